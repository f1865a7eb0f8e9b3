"""What a model is made of, as plain data: layers, routers, experts, heads, parameters.

The dataclasses need no torch, so that costs and analyses can use them; `topology(module)` reads them off a loaded (or
meta-device) transformers model through what its class itself declares. It is no list of families: what transformers
does not declare stands in `families.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from workbench.errors import ModelError
from workbench.models.families import FamilyFacts, family_facts


@dataclass(frozen=True)
class Router:
    """One router: where it sits and by what rule it chooses.

    Attributes:
        layer: Index of its decoder layer.
        site: Name of its block inside the layer (`mlp`); two routers of one layer differ in it.
        n_experts: E, routed experts.
        top_k: K, experts chosen per token.
        scoring: How logits become scores: `softmax` or `sigmoid`.
        normalized: Whether the chosen weights are divided by their sum.
        shared_width: FFN width of the shared experts together; 0 where there are none.
        shared_gate: Whether the shared expert's output is scaled by a learned sigmoid.
        expert_width: FFN width of one routed expert.
        router_path: Module path of the router.
        experts_path: Module path of the experts.
        block_path: Module path of the block that holds router, experts and shared expert.
        shared_gate_path: Module path of the shared expert's gate; empty where there is none.
        logits_index: Which element of the router's output holds the logits; None where the output is the logits.
    """

    layer: int
    site: str
    n_experts: int
    top_k: int
    scoring: str
    normalized: bool
    shared_width: int
    shared_gate: bool
    expert_width: int
    router_path: str
    experts_path: str
    block_path: str
    shared_gate_path: str
    logits_index: int | None


@dataclass(frozen=True)
class Topology:
    """A model's make-up.

    Attributes:
        family: transformers' `model_type`.
        n_layers: Decoder layers.
        width: C, model width.
        vocabulary: V, rows of the output.
        n_heads: H, attention heads of a layer.
        n_kv_groups: G, key/value groups of a layer.
        head_width: Width of one head.
        context: Longest sequence that the config states; None where it states none.
        routers: Every router, by layer and site; empty for a dense model.
        parameters_total: All parameters, tied ones once.
        parameters_active: Those one token meets: of each router's experts K in E; the embedding counts whole.
    """

    family: str
    n_layers: int
    width: int
    vocabulary: int
    n_heads: int
    n_kv_groups: int
    head_width: int
    context: int | None
    routers: tuple[Router, ...]
    parameters_total: int
    parameters_active: int

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Decoder indices of the layers that have a router."""
        return tuple(sorted({router.layer for router in self.routers}))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Topology":
        """From `to_json`."""
        return replace(cls(**{**value, "routers": ()}), routers=tuple(Router(**router) for router in value["routers"]))


def topology(module: Any) -> Topology:
    """Reads what a transformers causal language model is made of.

    Args:
        module: The model; its weights may be on the meta device.

    Raises:
        ModelError: a router is declared whose experts or numbers cannot be found; nothing is left out silently.
    """
    config = module.config.get_text_config()
    facts = family_facts(config.model_type)
    parameters = {name: parameter.numel() for name, parameter in module.named_parameters()}
    routers = tuple(sorted(_routers(module, config, facts), key=lambda router: (router.layer, router.site)))
    idle = 0.0
    for router in routers:
        routed = sum(size for name, size in parameters.items() if name.startswith(router.experts_path + "."))
        idle += routed * (1 - router.top_k / router.n_experts)
    total = sum(parameters.values())
    heads = config.num_attention_heads
    return Topology(
        family=config.model_type,
        n_layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        n_heads=heads,
        n_kv_groups=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        context=getattr(config, "max_position_embeddings", None),
        routers=routers,
        parameters_total=total,
        parameters_active=round(total - idle),
    )


def _routers(module: Any, config: Any, facts: FamilyFacts) -> Iterator[Router]:
    modules = dict(module.named_modules())
    for path, found in modules.items():
        recorder = _recorder_of(module, path, found)
        if recorder is None:
            continue
        numbers = re.findall(r"\.(\d+)(?=\.)", path)
        if not numbers:
            raise ModelError(
                f"{config.model_type}: the router {path!r} lies in no numbered layer; a path such as "
                "'model.layers.3.mlp.gate' was expected. Add the family's facts to workbench/models/families.py."
            )
        block_path = path.rpartition(".")[0]
        experts = getattr(modules[block_path], facts.experts, None)
        if experts is None:
            raise ModelError(
                f"{config.model_type}: the block {block_path!r} has a router but no module named {facts.experts!r}; "
                f"it holds {', '.join(name for name, _ in modules[block_path].named_children())}. Add the family's "
                "facts to workbench/models/families.py."
            )
        shared = getattr(modules[block_path], facts.shared_expert, None) if facts.shared_expert else None
        gate = getattr(modules[block_path], facts.shared_gate, None) if facts.shared_gate else None
        expert_width = _first(config, facts.expert_width)
        yield Router(
            layer=int(numbers[0]),
            site=block_path.rpartition(".")[2],
            n_experts=_number(config, found, "n_experts", facts.n_experts),
            top_k=_number(config, found, "top_k", facts.top_k),
            scoring=facts.scoring,
            normalized=bool(getattr(config, "norm_topk_prob", facts.normalized)),
            shared_width=_first(config, facts.shared_width) if shared is not None else 0,
            shared_gate=gate is not None,
            expert_width=expert_width,
            router_path=path,
            experts_path=f"{block_path}.{facts.experts}",
            block_path=block_path,
            shared_gate_path=f"{block_path}.{facts.shared_gate}" if gate is not None else "",
            logits_index=recorder.index if facts.router_returns_tuple else None,
        )


def _recorder_of(module: Any, path: str, found: Any) -> Any:
    """The declaration of transformers' that makes this module a router, or None."""
    declared = getattr(module, "_can_record_outputs", None) or {}
    recorders = declared.get("router_logits", [])
    for recorder in recorders if isinstance(recorders, list) else [recorders]:
        target: Any = getattr(recorder, "target_class", recorder)
        layer_name = getattr(recorder, "layer_name", None)
        if isinstance(found, target) and (layer_name is None or f".{layer_name.strip('.')}." in f"{path}."):
            return recorder
    return None


def _first(config: Any, names: tuple[str, ...]) -> int:
    values = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    if not values:
        raise ModelError(
            f"{config.model_type}: the config has none of {', '.join(names) or '(no name is known)'}. "
            "Add the family's facts to workbench/models/families.py."
        )
    return int(values[0])


def _number(config: Any, router: Any, what: str, names: tuple[str, ...]) -> int:
    """A number that router module and config both state; the config's where the module states none."""
    stated = _first(config, names)
    seen = getattr(router, "num_experts" if what == "n_experts" else "top_k", stated)
    if seen != stated:
        raise ModelError(
            f"{config.model_type}: {what} is {seen} in the router and {stated} in the config; they must agree. "
            "The checkpoint's config.json was edited, or the family's facts in workbench/models/families.py are wrong."
        )
    return stated
