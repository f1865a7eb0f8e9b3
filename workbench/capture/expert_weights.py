"""Facts of the experts' parameters, for the field `weights`: norms, likeness of experts, likeness to a dense parent.

Computed where the parameters lie, a few experts at a time, so that a large model's need not fit twice; what the
numbers mean stands in `metrics/similarity.py`, the plain twin that the tests hold this against. Nothing here is a
sample: it has no interval, only nulls.

Axes: E routed experts with parameters, F neurons of an expert, G neurons of the parent's FFN, P parts of a neuron (gate
row, up row, down column), C width the experts work in, Q neurons sampled of an expert.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from workbench.errors import ModelError
from workbench.models.loading import Model
from workbench.models.placement import here
from workbench.models.topology import Router

PARTS = ("gate", "up", "down")
SAMPLED = 256  # neurons of an expert that are matched with every other expert's: mean similarities to about 1/16 of sd
_CHUNK_VALUES = 2**26  # float32 values of a chunk: 256 MB
_LIST = pa.list_(pa.float32())
_ALIKE = ("cosine", "router_cosine", "matched", "cka")
_LINEAGE = ("parent_similarity", "parent_shuffled", "parent_other_layer")


def expert_weights(model: Model, *, parent: Model | None = None) -> pa.Table:
    """One row per router and expert.

    Columns: `layer`, `site`, `expert`; Frobenius norms of its parameters (`norm_gate`, `norm_up`, `norm_down`, `norm`
    of all; biases are not counted) and of its router row (`router_norm`); for every expert of its layer `cosine`
    (flattened parameters), `router_cosine` (rows less their mean), `matched` (mean best match of 256 evenly spaced
    neurons) and `cka` (linear CKA of such neurons), and `matched_null` and `cka_null`, the same with the next expert
    whose coordinates are shuffled. With a parent, for each
    neuron: `parent_neuron` (its best match), `parent_similarity`, and the best match's similarity among the parent's
    neurons with shuffled coordinates (`parent_shuffled`) and among those of the parent's next layer, of the last the
    first (`parent_other_layer`). NaN, and lists without entries, for experts without parameters.

    Args:
        model: The MoE.
        parent: The dense model it was made from.

    Raises:
        ModelError: the experts keep their parameters in a form that is not known, or as `check_parent`.
    """
    if parent is not None:
        check_parent(model, parent)
    modules = dict(model.module.named_modules())
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for router in model.topology.routers:
            module = modules[router.experts_path]
            with here(module):
                rows += _rows(router, neuron_parts(module, router), _router_rows(modules, router), parent)
    return pa.Table.from_pylist(rows, schema=_schema(lineage=parent is not None))


def check_parent(model: Model, parent: Model) -> None:
    """Whether a model can be the dense parent of another: an FFN of the same width in the place of each router's block.

    Raises:
        ModelError: it has no such FFN, or one of another width; names the place.
    """
    for router in model.topology.routers:
        _parent_ffn(parent, router)
        if parent.topology.width != model.topology.width:
            raise ModelError(
                f"parent: {parent.name} has model width {parent.topology.width}, {model.name} has "
                f"{model.topology.width}; give the dense model that it was made from."
            )


def neuron_parts(experts: Any, router: Router) -> dict[str, torch.Tensor]:
    """The neurons of the experts, by part: views [E, F, C] of the parameters.

    Raises:
        ModelError: the parameters are not those of a known form.
    """
    named = dict(experts.named_parameters())
    if {"mlp.w1", "mlp.v1", "mlp.w2"} <= set(named):
        shaped = {name: named[f"mlp.{name}"].unflatten(0, (-1, router.expert_width)) for name in ("w1", "v1", "w2")}
        return {"gate": shaped["w1"], "up": shaped["v1"], "down": shaped["w2"]}
    first = next((name for name in ("gate_up_proj", "up_proj") if name in named), None)
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    if first is None or "down_proj" not in named:
        raise _unknown(router, f"their parameters are {shapes}")
    transposed = bool(getattr(experts, "is_transposed", False)) or router.way == "scores"
    down = named["down_proj"]
    into = named[first][: len(down)]  # longcat keeps unused rows for its experts without compute
    into, down = (into.mT, down) if transposed else (into, down.mT)
    if first == "up_proj":
        parts = {"up": into, "down": down}
    elif getattr(experts, "is_concatenated", True):
        half = into.shape[1] // 2
        parts = {"gate": into[:, :half], "up": into[:, half:], "down": down}
    else:
        parts = {"gate": into[:, ::2], "up": into[:, 1::2], "down": down}
    if len({tuple(part.shape) for part in parts.values()}) != 1 or down.shape[1] != router.expert_width:
        raise _unknown(router, f"their parameters are {shapes}, the width of one is {router.expert_width}")
    return parts


def _unknown(router: Router, found: str) -> ModelError:
    return ModelError(
        f"layer {router.layer} {router.experts_path}: the experts' neurons cannot be told apart: {found}. "
        "Record without the field 'weights'."
    )


def _parent_ffn(parent: Model, router: Router, *, layers_on: int = 0) -> dict[str, torch.Tensor] | None:
    """The neurons [1, G, C] of the parent's FFN in a router's place, or some layers on; None past its last layer."""
    layer = router.layer + layers_on
    if layers_on and layer >= parent.topology.n_layers:
        layer = 0
    path = router.block_path.replace(f".{router.layer}.", f".{layer}.", 1)
    modules = dict(parent.module.named_modules())
    linear = {part: modules.get(f"{path}.{part}_proj") for part in PARTS}
    missing = [f"{path}.{part}_proj" for part, module in linear.items() if module is None]
    if missing and layers_on:
        return None
    if missing:
        raise ModelError(
            f"parent: {parent.name} has no {missing[0]!r}; a dense FFN (gate_proj, up_proj, down_proj) was expected at "
            f"{path!r}, where the MoE has its block. Give the dense model that it was made from."
        )
    weights = {}
    for part, module in linear.items():
        with here(module):
            weight = module.weight.detach()  # type: ignore[union-attr]  # none is missing
            weights[part] = (weight.mT if part == "down" else weight)[None].clone()
    return weights


def _router_rows(modules: dict[str, Any], router: Router) -> torch.Tensor:
    module = modules[router.linear_path or router.router_path]
    with here(module):
        return module.weight[: router.n_experts].float().cpu()


def _rows(
    router: Router, parts: dict[str, torch.Tensor], rows_EC: torch.Tensor, parent: Model | None
) -> list[dict[str, Any]]:
    n_real, gram_PEE = next(iter(parts.values())).shape[0], {name: _gram(part) for name, part in parts.items()}
    total_EE = torch.stack(list(gram_PEE.values())).sum(0)
    centred_EC = rows_EC - rows_EC.mean(0, keepdim=True)
    matched_EE, null_E = _matched(parts)
    cka_EE, cka_null_E = _cka(parts)
    values = {
        **{f"norm_{name}": gram.diagonal().sqrt() for name, gram in gram_PEE.items()},
        "norm": total_EE.diagonal().sqrt(),
        "cosine": _cosine(total_EE),
        "matched": matched_EE,
        "matched_null": null_E,
        "cka": cka_EE,
        "cka_null": cka_null_E,
    }
    whole = {"router_norm": rows_EC.norm(dim=-1), "router_cosine": _cosine((centred_EC @ centred_EC.mT).double())}
    lineage = _lineage(parts, parent, router) if parent is not None else {}
    rows = []
    for expert in range(router.n_experts):
        row: dict[str, Any] = {"layer": router.layer, "site": router.site, "expert": expert}
        row |= {name: _json(value[expert]) for name, value in whole.items()}
        row |= {f"norm_{name}": np.nan for name in PARTS}
        for name, value in values.items():
            if expert >= n_real:
                row[name] = [np.nan] * router.n_experts if value.dim() == 2 else np.nan
            else:
                without = [np.nan] * (router.n_experts - n_real) if value.dim() == 2 else []
                row[name] = [*_json(value[expert]), *without] if value.dim() == 2 else _json(value[expert])
        row |= {name: _json(value[expert]) if expert < n_real else [] for name, value in lineage.items()}
        rows.append(row)
    return rows


def _json(values: torch.Tensor) -> Any:
    return values.cpu().tolist()


def _gram(part_EFC: torch.Tensor) -> torch.Tensor:
    """⟨a, b⟩ of the experts' flattened parameters, [E, E], float64."""
    n_experts, n_neurons, width = part_EFC.shape
    gram_EE = torch.zeros(n_experts, n_experts, dtype=torch.float64, device=part_EFC.device)
    step = max(1, _CHUNK_VALUES // (n_experts * width))
    for start in range(0, n_neurons, step):
        flat_EX = part_EFC[:, start : start + step].float().reshape(n_experts, -1)
        gram_EE += (flat_EX @ flat_EX.mT).double()
    return gram_EE


def _cosine(gram_EE: torch.Tensor) -> torch.Tensor:
    norm_E = gram_EE.diagonal().sqrt()
    norm_E = torch.where(norm_E > 0, norm_E, torch.nan)
    return (gram_EE / (norm_E[:, None] * norm_E)).clamp(-1, 1)


def _unit(parts: dict[str, torch.Tensor], expert: int, rows: Any = slice(None)) -> torch.Tensor:
    """Neurons of one expert [F, P·C] such that a product is the mean over parts of their cosines."""
    units = [torch.nn.functional.normalize(part[expert, rows].float(), dim=-1) for part in parts.values()]
    return torch.cat(units, -1) / len(units) ** 0.5


def _shuffled(neurons_FX: torch.Tensor, n_parts: int) -> torch.Tensor:
    """The coordinates of the model's width shuffled, alike for all neurons and parts."""
    width = neurons_FX.shape[-1] // n_parts
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0)).to(neurons_FX.device)
    return neurons_FX.reshape(-1, n_parts, width)[..., order].reshape(neurons_FX.shape)


def _best(neurons_FX: torch.Tensor, candidates_GX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity and index of the best candidate of each neuron."""
    step = max(1, _CHUNK_VALUES // len(candidates_GX))
    found = [(chunk @ candidates_GX.mT).max(-1) for chunk in neurons_FX.split(step)]
    return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])


def _matched(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean best match of an expert's sampled neurons among each other's, [E, E], and its null [E]."""
    n_experts, sampled = next(iter(parts.values())).shape[0], _sampled(parts)
    sample_EQX = torch.stack([_unit(parts, expert, sampled) for expert in range(n_experts)])
    columns, null_E = [], torch.zeros(n_experts)
    for other in range(n_experts):
        neurons_FX = _unit(parts, other)
        similarity, _ = _best(sample_EQX.flatten(0, 1), neurons_FX)
        columns.append(similarity.reshape(n_experts, -1).mean(-1))
        before = (other - 1) % n_experts
        null_E[before] = _best(sample_EQX[before], _shuffled(neurons_FX, len(parts)))[0].mean()
    return torch.stack(columns, -1), null_E


def _sampled(parts: dict[str, torch.Tensor]) -> list[int]:
    """Evenly spaced neurons of an expert, all of a narrow one."""
    n_neurons = next(iter(parts.values())).shape[1]
    return np.unique(np.linspace(0, n_neurons - 1, min(n_neurons, SAMPLED)).round().astype(int)).tolist()


def _cka(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear CKA of the experts' sampled neurons, [E, E], and its null [E]; means over parts."""
    sampled, found = _sampled(parts), []
    for part in parts.values():
        sample_EQC = part[:, sampled].float()
        sample_EQC = sample_EQC - sample_EQC.mean(-1, keepdim=True)
        n_experts, flat_NC = len(sample_EQC), sample_EQC.flatten(0, 1)
        columns = [(flat_NC @ one_QC.mT).square().reshape(n_experts, -1).sum(-1) for one_QC in sample_EQC]
        moved = [(one_QC @ _shuffled(after, 1).mT).square().sum() for one_QC, after in
                 zip(sample_EQC, sample_EQC.roll(-1, 0), strict=True)]  # fmt: skip
        squares_EE = torch.stack(columns, -1).double()
        own_E = squares_EE.diagonal().sqrt()
        own_E = torch.where(own_E > 0, own_E, torch.nan)
        null_E = torch.stack(moved).double() / (own_E * own_E.roll(-1))
        found.append((squares_EE / (own_E[:, None] * own_E), null_E))
    cka, null = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
    return cka, null


def _lineage(parts: dict[str, torch.Tensor], parent: Model, router: Router) -> dict[str, torch.Tensor]:
    """Of each neuron its best match in the parent and the similarities, [E, F] each."""
    here_on = next(iter(parts.values())).device
    ffn, other_ffn = _parent_ffn(parent, router), _parent_ffn(parent, router, layers_on=1)
    assert ffn is not None  # check_parent has seen it
    alike = {name: ffn[name].to(here_on) for name in parts}
    candidates_GX = _unit(alike, 0)
    shuffled_GX = _shuffled(candidates_GX, len(parts))
    others_GX = _unit({name: other_ffn[name].to(here_on) for name in parts}, 0) if other_ffn is not None else None
    found: dict[str, list[torch.Tensor]] = {name: [] for name in ("parent_neuron", *_LINEAGE)}
    for expert in range(next(iter(parts.values())).shape[0]):
        neurons_FX = _unit(parts, expert)
        similarity_F, neuron_F = _best(neurons_FX, candidates_GX)
        found["parent_neuron"].append(neuron_F)
        found["parent_similarity"].append(similarity_F)
        found["parent_shuffled"].append(_best(neurons_FX, shuffled_GX)[0])
        unknown_F = torch.full_like(similarity_F, torch.nan)
        found["parent_other_layer"].append(unknown_F if others_GX is None else _best(neurons_FX, others_GX)[0])
    return {name: torch.stack(values) for name, values in found.items()}


def _schema(*, lineage: bool) -> pa.Schema:
    columns = [("layer", pa.int32()), ("site", pa.string()), ("expert", pa.int32())]
    columns += [(f"norm_{name}", pa.float32()) for name in PARTS]
    columns += [("norm", pa.float32()), ("router_norm", pa.float32())]
    columns += [(name, _LIST) for name in _ALIKE] + [(name, pa.float32()) for name in ("matched_null", "cka_null")]
    if lineage:
        columns += [("parent_neuron", pa.list_(pa.int32())), *((name, _LIST) for name in _LINEAGE)]
    return pa.schema(columns)
