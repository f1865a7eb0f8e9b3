"""What each expert adds to a token, and the shared expert's part beside it: the field `experts`.

The experts module is called once more on every token and chosen expert alone, with a weight of one, so no family's
formula is written twice here. The proof at the start holds the parts against the model: they sum to the experts'
output, and the block (or the decoder layer, where the shared expert sits there) adds routed and shared output as they
are. A family that does otherwise, as by projecting or normalizing the sum, is refused by name.

Axes: T tokens (padding included), N pairs of a token and a chosen expert, K chosen per token, E experts, C the width
the experts work in.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.capture.hooks import Inputs, RouterCapture, Trace, Tracer
from workbench.capture.routing import BatchTokens, as_half
from workbench.errors import CaptureError
from workbench.models.loading import Model
from workbench.models.placement import here
from workbench.models.topology import Router, Topology
from workbench.recordings.schema import prefix

_CHUNK_VALUES = 2**24  # values of a chunk of pairs: 32 MB in bfloat16, times a few inside the experts


@dataclass(frozen=True)
class _Parts:
    """What a router's output is made of: `routed` times the experts' output, and `shared` times the shared expert's."""

    routed: float
    shared: float
    sum_error: float
    added_error: float


@dataclass(frozen=True)
class ExpertsReport:
    """What the proof of the field `experts` measured; part of the manifest.

    Attributes:
        routers: Routers that were proved.
        sum_error: Largest relative difference of the experts' output and the sum of its parts.
        added_error: Largest relative difference of what the block adds and the routed and shared output.
        routed_scale: Factor of each router's block on the experts' output, by layer and site.
    """

    routers: int
    sum_error: float
    added_error: float
    routed_scale: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class ExpertTracer(Tracer):
    """A tracer whose captures hold each chosen expert's contribution and the shared expert's part.

    Args:
        model: The model.

    Raises:
        CaptureError: what the experts add cannot be told apart in a layer; names family and layer.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model.module, model.topology)
        self._modules = dict(model.module.named_modules())
        self._parts = _Proof(model, self).all()

    @property
    def report(self) -> ExpertsReport:
        """What the proof measured."""
        parts = self._parts
        return ExpertsReport(
            routers=len(parts),
            sum_error=max((one.sum_error for one in parts.values()), default=0.0),
            added_error=max((one.added_error for one in parts.values()), default=0.0),
            routed_scale={f"{layer} {site}": one.routed for (layer, site), one in parts.items()},
        )

    def factors(self, router: Router) -> tuple[float, float]:
        """By what factors a router's block adds the routed and the shared output."""
        parts = self._parts[router.layer, router.site]
        return parts.routed, parts.shared

    def run(self, *arguments: Any, **keywords: Any) -> Trace:
        """As `Tracer.run`; the large tensors are reduced and let go."""
        trace = super().run(*arguments, **keywords, outputs=True)
        reduced = []
        for router, capture in zip(self._topology.routers, trace.routers, strict=True):
            parts = self._parts[router.layer, router.site]
            added_TK = contributions(self._modules[router.experts_path], router, capture)
            reduced.append(
                replace(
                    capture,
                    contribution_TK=abs(parts.routed) * added_TK,
                    shared_T3=shared_part(router, capture, parts.routed, parts.shared),
                    experts_inputs=None,
                    routed_TC=None,
                    shared_TC=None,
                )
            )
        return replace(trace, routers=tuple(reduced))


def contributions(experts: Any, router: Router, capture: RouterCapture) -> torch.Tensor:
    """Norm of what each chosen expert adds to the experts' output, w · ‖f_e(x)‖: [T, K], float32.

    Where the weight scales the expert's input (`scores`), it is the norm of the expert's output as it is.
    """
    if router.way == "scores":
        added_ETC = _by_expert(router, capture)
        rows_T = torch.arange(added_ETC.shape[1], device=added_ETC.device)
        return added_ETC[capture.ids_TK.long(), rows_T[:, None]].norm(dim=-1)
    assert capture.experts_inputs is not None
    return _each(experts, router, capture.experts_inputs, summed=False)


def shared_part(router: Router, capture: RouterCapture, routed: float, shared: float) -> torch.Tensor | None:
    """‖s‖/(‖s‖+‖r‖), ⟨s, y⟩/‖y‖² and cos(s, r) of each token, float32 [T, 3]; None without a shared expert.

    r is the routed output, s the shared output after its gate, y = r + s; 0/0 is NaN.
    """
    s_TC = _shared(router, capture)
    if s_TC is None:
        return None
    s_TC, r_TC = shared * s_TC, routed * _routed(router, capture).to(s_TC.device)
    s_T, r_T, y_TC = s_TC.norm(dim=-1), r_TC.norm(dim=-1), s_TC + r_TC
    projection_T = (s_TC * y_TC).sum(-1) / (y_TC * y_TC).sum(-1)
    return torch.stack([s_T / (s_T + r_T), projection_T, (s_TC * r_TC).sum(-1) / (s_T * r_T)], -1)


def experts_columns(
    trace: Trace, batch: BatchTokens, topology: Topology
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The columns of the field `experts` of a batch: of its tokens and of its documents.

    Raises:
        CaptureError: a contribution is not finite; names layer and row.
    """
    mask_BS = batch.mask_BS
    device, n_rows = mask_BS.device, len(mask_BS)
    row_T = torch.arange(n_rows, device=device).repeat_interleave(batch.lengths_B)
    tokens: dict[str, np.ndarray] = {}
    documents: dict[str, np.ndarray] = {}
    for router, capture in zip(topology.routers, trace.routers, strict=True):
        assert capture.contribution_TK is not None
        at, valid_T = prefix(router, topology), mask_BS.reshape(-1)
        added_TK = capture.contribution_TK.to(device)[valid_T]
        broken_T = ~torch.isfinite(added_TK).all(-1)
        if bool(broken_T.any()):
            raise CaptureError(
                f"layer {router.layer}: the experts' output is NaN or infinite in row {int(row_T[broken_T][0])} of a "
                "batch. The weights are broken or the dtype is too narrow; try --dtype float32 or bfloat16."
            )
        place_TK = row_T[:, None] * router.n_experts + capture.ids_TK.to(device)[valid_T].long()
        sum_BE = torch.zeros(n_rows * router.n_experts, dtype=torch.float64, device=device)
        sum_BE.index_add_(0, place_TK.reshape(-1), added_TK.reshape(-1).double())
        documents[f"{at}.contribution_sum"] = sum_BE.reshape(n_rows, -1).float().cpu().numpy()
        tokens[f"{at}.contribution"] = as_half(added_TK, "contribution", layer=router.layer)
        if capture.shared_T3 is not None:
            shared_T3 = as_half(capture.shared_T3.to(device)[valid_T], "shared_projection", layer=router.layer)
            names = ("shared_share", "shared_projection", "shared_cosine")
            tokens |= {f"{at}.{name}": np.ascontiguousarray(shared_T3[:, i]) for i, name in enumerate(names)}
    return tokens, documents


def _each(experts: Any, router: Router, inputs: Inputs, *, summed: bool) -> torch.Tensor:
    """The experts of each token called one by one: norms [T, K] of their weighted outputs, or their sum [T, C].

    longcat's experts refuse a single one for a token: there a second, an identity of weight zero, stands beside it.
    """
    hidden, ids, weights = _tensors(inputs)
    x_TC, ids_TK, weights_TK = (t.reshape(-1, t.shape[-1]) for t in (hidden, ids, weights))
    n_tokens, top_k = ids_TK.shape
    beside = [router.n_experts - 1] if router.n_zero and not router.skips else []
    alone_S = torch.tensor([1.0] + [0.0] * len(beside), device=weights.device, dtype=weights.dtype)
    step = max(1, _CHUNK_VALUES // (top_k * x_TC.shape[-1]))
    parts = []
    with torch.no_grad(), here(experts):
        for start in range(0, n_tokens, step):
            one = slice(start, start + step)
            ids_N = ids_TK[one].reshape(-1)
            ids_NS = torch.stack([ids_N, *(torch.full_like(ids_N, expert) for expert in beside)], -1)
            given = {
                id(hidden): _shaped(x_TC[one].repeat_interleave(top_k, dim=0), hidden),
                id(ids): _shaped(ids_NS, ids),
                id(weights): _shaped(alone_S.expand(len(ids_N), -1), weights),
            }
            arguments = [given.get(id(value), value) for value in inputs[0]]
            keywords = {name: given.get(id(value), value) for name, value in inputs[1].items()}
            out_TKC = experts(*arguments, **keywords).reshape(-1, top_k, x_TC.shape[-1]).float()
            weights_TK1 = weights_TK[one].float().to(out_TKC.device)[..., None]
            parts.append((out_TKC * weights_TK1).sum(1) if summed else (out_TKC * weights_TK1).norm(dim=-1))
    return torch.cat(parts)


def _shaped(rows_NX: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows with as many axes as a tensor has, for experts that are given batches."""
    return rows_NX.reshape(*[1] * (like.dim() - 2), *rows_NX.shape)


def _tensors(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, ids and weights as the experts were given them; that they are these is `experts_call.bound`'s."""
    tensors = [value for value in (*inputs[0], *inputs[1].values()) if isinstance(value, torch.Tensor)]
    (ids,) = (t for t in tensors if not t.is_floating_point() and t.dtype != torch.bool)
    weights = next(t for t in tensors if t.is_floating_point() and t.shape == ids.shape)
    hidden = next(t for t in tensors if t.is_floating_point() and t is not weights)
    return hidden, ids, weights


def _by_expert(router: Router, capture: RouterCapture) -> torch.Tensor:
    """[E, T, C] of experts that see every token, float32."""
    assert capture.routed_TC is not None
    return capture.routed_TC.reshape(router.n_experts, -1, capture.routed_TC.shape[-1]).float()


def _routed(router: Router, capture: RouterCapture) -> torch.Tensor:
    """The experts' output [T, C], float32."""
    assert capture.routed_TC is not None
    if router.way == "scores":
        return _by_expert(router, capture).sum(0)
    return capture.routed_TC.reshape(-1, capture.routed_TC.shape[-1]).float()


def _shared(router: Router, capture: RouterCapture) -> torch.Tensor | None:
    """The shared expert's output after its gate [T, C], float32."""
    if capture.shared_TC is None:
        return None
    s_TC = capture.shared_TC.reshape(-1, capture.shared_TC.shape[-1]).float()
    if capture.shared_gate_T is None:
        return s_TC
    return s_TC * capture.shared_gate_T.float().sigmoid()[:, None].to(s_TC.device)


class _Proof:
    """That the parts are what the model adds, on a short batch."""

    def __init__(self, model: Model, tracer: Tracer) -> None:
        self.model = model
        self.modules = dict(model.module.named_modules())
        generator = torch.Generator().manual_seed(0)
        self.ids_BS = torch.randint(0, model.topology.vocabulary, (1, 48), generator=generator).to(model.device)
        # of the trace itself, not of the subclass: what it reduces by is found here
        self.trace = Tracer.run(tracer, self.ids_BS, outputs=True)
        self.tolerance = 1e-5 if model.module.dtype == torch.float32 else 2e-2

    def all(self) -> dict[tuple[int, str], _Parts]:
        """The parts of each router, by layer and site."""
        routers = self.model.topology.routers
        inputs = self.inputs({self.owner(router) for router in routers})
        found = {}
        for router, capture in zip(routers, self.trace.routers, strict=True):
            sum_error = self.summed(router, capture)
            found[router.layer, router.site] = self.added(router, capture, inputs[self.owner(router)], sum_error)
        return found

    def owner(self, router: Router) -> str:
        """The innermost module that holds experts and shared expert: the block, or the layer around it."""
        if router.shared_path and not router.shared_path.startswith(f"{router.block_path}."):
            return router.shared_path.rpartition(".")[0]
        return router.block_path

    def inputs(self, paths: set[str]) -> dict[str, Inputs]:
        """What modules are given in one forward pass."""
        seen: dict[str, Inputs] = {}
        handles = [
            self.modules[path].register_forward_pre_hook(
                lambda _, args, kwargs, path=path: seen.__setitem__(path, (args, kwargs)), with_kwargs=True
            )
            for path in paths
        ]
        try:
            with torch.no_grad():
                self.model.module(input_ids=self.ids_BS, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def summed(self, router: Router, capture: RouterCapture) -> float:
        """The experts one by one sum to their output; returns the relative error."""
        if router.way == "scores":
            return 0.0  # their outputs are read one by one as it is
        assert capture.experts_inputs is not None
        summed_TC = _each(self.modules[router.experts_path], router, capture.experts_inputs, summed=True)
        routed_TC = _routed(router, capture)
        error = _error(summed_TC, routed_TC, scale=routed_TC)
        if error > self.tolerance:
            raise self.refusal(
                router, f"its experts, called one by one, sum to its output with a relative error of {error:.2g}"
            )
        return error

    def added(self, router: Router, capture: RouterCapture, inputs: Inputs, sum_error: float) -> _Parts:
        """What the owner adds is the routed and the shared output, each by a factor."""
        owner = self.owner(router)
        whole, without_routed, without_shared, neither = (
            self.silenced(owner, inputs, silent)
            for silent in (
                (),
                (router.experts_path,),
                (router.shared_path,),
                (router.experts_path, router.shared_path),
            )
        )
        routed, routed_error = self.factor(router, whole - without_routed, _routed(router, capture), whole)
        if (
            owner == router.block_path
            and (rest := _error(neither, torch.zeros_like(neither), scale=whole)) > self.tolerance
        ):
            raise self.refusal(router, f"its block puts out more than routed and shared output (a share of {rest:.2g})")
        s_TC = _shared(router, capture)
        if s_TC is None:
            return _Parts(routed, 0.0, sum_error, routed_error)
        shared, shared_error = self.factor(router, whole - without_shared, s_TC, whole)
        if owner != router.block_path:  # a factor of the layer on both is none of theirs
            routed, shared = routed / shared, 1.0
        return _Parts(routed, shared, sum_error, max(routed_error, shared_error))

    def silenced(self, owner: str, inputs: Inputs, silent: tuple[str, ...]) -> torch.Tensor:
        """The owner's output [T, C] when some modules put out zeros."""
        handles = [
            self.modules[path].register_forward_hook(lambda _, __, out: torch.zeros_like(out))
            for path in silent
            if path
        ]
        try:
            with torch.no_grad():
                out = self.modules[owner](*inputs[0], **inputs[1])
        finally:
            for handle in handles:
                handle.remove()
        out = out[0] if isinstance(out, tuple) else out
        return out.reshape(-1, out.shape[-1]).float()

    def factor(
        self, router: Router, added_TC: torch.Tensor, part_TC: torch.Tensor, scale_TC: torch.Tensor
    ) -> tuple[float, float]:
        """By what factor a part is added, with the relative error of saying so."""
        if added_TC.shape != part_TC.shape:
            raise self.refusal(
                router, f"what it puts out has width {part_TC.shape[-1]} and is mapped to {added_TC.shape[-1]}"
            )
        part_TC = part_TC.to(added_TC.device)
        factor = float((added_TC.double() * part_TC.double()).sum() / (part_TC.double() ** 2).sum().clamp(min=1e-30))
        error = _error(added_TC, factor * part_TC, scale=scale_TC)
        if error > self.tolerance:
            raise self.refusal(
                router, f"it is transformed before it is added (a relative error of {error:.2g} as a plain sum)"
            )
        return (1.0 if abs(factor - 1) <= self.tolerance else factor), error

    def refusal(self, router: Router, found: str) -> CaptureError:
        """Family, layer, what was found, and the next step."""
        return CaptureError(
            f"{self.model.name} ({self.model.topology.family}), layer {router.layer} {router.site}: what an expert "
            f"adds cannot be told: {found}. Record without the field 'experts'."
        )


def _error(found: torch.Tensor, expected: torch.Tensor, *, scale: torch.Tensor) -> float:
    return float((found - expected.to(found.device)).abs().max()) / max(float(scale.abs().max()), 1e-30)
