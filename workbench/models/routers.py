"""Routers: where they sit in a model, and by what rule they choose, read off what transformers' classes declare."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.errors import ModelError
from workbench.models.families import FamilyFacts


@dataclass(frozen=True)
class Router:
    """One router: where it sits and by what rule it chooses.

    Attributes:
        layer: Index of its decoder layer.
        site: Name of its block inside the layer (`mlp`); two routers of one layer differ in it.
        n_experts: E, what the router chooses from: routed experts, those without compute included.
        top_k: K, experts chosen per token.
        scoring: How logits become scores: `softmax`, `sigmoid` or `sqrtsoftplus`.
        normalized: Whether the chosen weights are divided by their sum.
        shared_width: FFN width of the shared experts together; 0 where there are none.
        shared_gate: Whether the shared expert's output is scaled by a learned sigmoid.
        expert_width: FFN width of one routed expert.
        router_path: Module path of the router.
        experts_path: Module path of the experts.
        block_path: Module path of the block that holds router, experts and shared expert.
        shared_gate_path: Module path of the shared expert's gate; empty where there is none.
        logits_index: Which element of the output of `logits_path` holds the logits; None where the output is them.
        logits_path: Module path of what puts the logits out; empty for the router itself.
        linear_path: Module path of the linear map that gives the logits; empty for the router itself.
        linear_input_path: Module path of what is given the linear map's input; empty for the router itself.
        bias_path: Path of the correction bias, [E], which takes part in the choice and not in the weights; empty where
            there is none.
        scale: Factor on the chosen weights.
        n_groups: Groups the experts are cut into for the choice; 1 where it is not limited to some.
        groups_chosen: How many of the groups a token's experts may come from.
        choice: `scores` or `logits` (the largest ones, with the bias, within the groups), or `hash` (by token id).
        n_zero: Experts without compute, the last ones of E: identities, or no expert at all.
        way: Where the choice is read: `experts` (what the experts module is given) or `scores` (zeros for the others).
        own_weights: Whether the weights follow a rule of the family's own; then `normalized` and `scale` say nothing.
        skips: Whether the last of E means no expert, which the experts module sees as expert 0 with weight 0.
        shared_path: Module path of the shared expert; empty where there is none, and in recordings of earlier versions.
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
    logits_path: str = ""
    linear_path: str = ""
    linear_input_path: str = ""
    bias_path: str = ""
    scale: float = 1.0
    n_groups: int = 1
    groups_chosen: int = 1
    choice: str = "scores"
    n_zero: int = 0
    way: str = "experts"
    skips: bool = False
    own_weights: bool = False
    shared_path: str = ""

    @property
    def has_margin(self) -> bool:
        """Whether the last chosen beats the first not chosen by their scores.

        Not where all are chosen, where another group's experts were never candidates, or where the token id decides.
        """
        return self.top_k < self.n_experts and self.n_groups == 1 and self.choice != "hash"

    @property
    def rule(self) -> str:
        """How it chooses and weighs, in words: `3 of 8 by sigmoid, + bias, in 1 of 2 groups, normalized, × 2.5`."""
        if self.choice == "hash":
            words = [f"{self.top_k} of {self.n_experts} by a hash of the token id, weights by {self.scoring}"]
        else:
            words = [f"{self.top_k} of {self.n_experts} by {self.scoring}"]
        words += ["+ correction bias"] if self.bias_path else []
        words += [f"in {self.groups_chosen} of {self.n_groups} groups"] if self.n_groups > 1 else []
        words += ["weights by a rule of its own"] if self.own_weights else []
        words += ["normalized"] if self.normalized else ["not normalized"] if not self.own_weights else []
        words += [f"× {self.scale:g}"] if self.scale != 1 else []
        words += [f"{self.n_zero} without compute"] if self.n_zero else []
        return ", ".join(words)


def unused_parameters(router: Router, parameter: Any) -> int:
    """Values of one of the experts' parameters that no expert reads.

    transformers gives longcat's experts without compute rows of gate and up all the same; no checkpoint's total counts
    them.
    """
    rows = parameter.shape[0] if parameter.dim() == 3 else 0
    real = router.n_experts - router.n_zero
    return parameter.numel() // rows * (rows - real) if rows == router.n_experts > real else 0


def read_routers(module: Any, modules: dict[str, Any], config: Any, facts: FamilyFacts) -> tuple[Router, ...]:
    """Every router of a model, by layer and site.

    Args:
        module: The model; its weights may be on the meta device.
        modules: Its modules by path.
        config: The config of its text part.
        facts: What transformers does not declare of its family.

    Raises:
        ModelError: a router is declared whose experts or numbers cannot be found, or whose choice cannot be made.
    """
    return tuple(sorted(_routers(module, modules, config, facts), key=lambda router: (router.layer, router.site)))


def _routers(module: Any, modules: dict[str, Any], config: Any, facts: FamilyFacts) -> Iterator[Router]:
    found: dict[str, tuple[str, Any]] = {}
    recorders = _recorders(module, modules)
    for path, candidate in modules.items():
        recorder = _recorder_of(recorders, path, candidate)
        if recorder is None and type(candidate).__name__ in facts.hash_routers:
            recorder = candidate
        if recorder is not None:
            found[path.rpartition(".")[0]] = path, recorder
    _refuse_unrouted(modules, found, config, facts)
    for block_path, (path, recorder) in found.items():
        router = _router(_Block(config, facts, modules, block_path), path, recorder)
        _refuse_choice(config, router)
        yield router


def _refuse_unrouted(modules: dict[str, Any], found: dict[str, Any], config: Any, facts: FamilyFacts) -> None:
    """No routed experts may go unseen: each module of them needs its router."""
    for path, candidate in modules.items():
        block = path.rpartition(".")[0]
        name = type(candidate).__name__
        if not name.endswith("Experts") or "Shared" in name or any(tower in path for tower in TOWERS):
            continue
        if block not in found and any(p.dim() == 3 for p in candidate.parameters(recurse=False)):
            children = ", ".join(f"{child}: {type(m).__name__}" for child, m in modules[block].named_children())
            raise ModelError(
                f"{config.model_type}: {path!r} holds routed experts ({name}), but {block!r} has no router that "
                f"{config.model_type}'s class declares (_can_record_outputs['router_logits']); it holds {children}. "
                "Name the router's class in workbench/models/families.py (hash_routers)."
            )


TOWERS = ("vision", "visual", "audio")


@dataclass(frozen=True)
class _Block:
    """Where a router was found."""

    config: Any
    facts: FamilyFacts
    modules: dict[str, Any]
    path: str

    def refuse(self, what: str) -> ModelError:
        """An error that names family, block and what to add."""
        return ModelError(f"{self.config.model_type}: {what}. Add the family's facts to workbench/models/families.py.")

    def child(self, *names: str) -> tuple[str, Any]:
        """Path and module of the first of the names that the block, or the decoder layer around it, has."""
        for parent in (self.path, self.path.rpartition(".")[0]):
            for name in names:
                child = getattr(self.modules[parent], name, None)
                if child is not None and hasattr(child, "parameters") and f"{parent}.{name}" in self.modules:
                    return f"{parent}.{name}", child
        return "", None


def _router(block: _Block, path: str, recorder: Any) -> Router:
    facts, modules = block.facts, block.modules
    numbers = re.findall(r"\.(\d+)(?=\.)", path)
    if not numbers:
        raise block.refuse(
            f"the router {path!r} lies in no numbered layer; a path such as 'model.layers.3.mlp.gate' was expected"
        )
    block = replace(block, config=of_layer(block.config, int(numbers[0])))
    config = block.config
    experts = modules.get(f"{block.path}.{facts.experts}")
    if experts is None:
        raise block.refuse(
            f"the block {block.path!r} has a router but no module named {facts.experts!r}; it holds "
            f"{', '.join(name for name, _ in modules[block.path].named_children())}"
        )
    router = modules[path]
    linear_path, rows = _linear(block, path)
    n_experts = rows - (int(getattr(config, facts.rows_beyond)) if facts.rows_beyond else 0)
    shared_path, shared = block.child(*facts.shared)
    gate_path, gate = block.child("shared_expert_gate") if shared is not None else ("", None)
    hashed = type(router).__name__ in facts.hash_routers
    n_real, expert_width = _experts_shape(block, experts)
    n_groups = int(getattr(config, "n_group", None) or 1) if facts.groups or _limits_groups(config) else 1
    return Router(
        layer=int(numbers[0]),
        site=_site(block.path, numbers[0]),
        n_experts=n_experts,
        top_k=_top_k(block, router),
        scoring=facts.scoring,
        normalized=facts.weights_rule and bool(getattr(config, "norm_topk_prob", facts.normalized)),
        shared_width=_shared_width(shared) if shared_path else 0,
        shared_gate=gate is not None,
        expert_width=expert_width,
        router_path=path,
        experts_path=f"{block.path}.{facts.experts}",
        block_path=block.path,
        shared_gate_path=gate_path,
        logits_index=None if facts.logits or facts.returns_logits else getattr(recorder, "index", 0),
        logits_path=f"{path}.{facts.logits}" if facts.logits else "",
        linear_path="" if linear_path == path else linear_path,
        linear_input_path=linear_path if linear_path != path and facts.calls_linear else "",
        bias_path=_bias(block, path, n_experts) if not hashed else "",
        scale=_scale(config, facts),
        n_groups=n_groups if not hashed else 1,
        groups_chosen=int(getattr(config, "topk_group", None) or 1) if n_groups > 1 and not hashed else 1,
        choice="hash" if hashed else facts.choice,
        n_zero=n_experts - n_real,
        way=facts.way,
        skips=facts.skips,
        own_weights=not facts.weights_rule,
        shared_path=shared_path,
    )


def _site(block_path: str, layer: str) -> str:
    """The block's name inside its decoder layer; `layer` where the block is the decoder layer itself."""
    behind = block_path.partition(f".{layer}")[2].strip(".")
    return behind.replace(".", "-") or "layer"


def _limits_groups(config: Any) -> bool:
    return getattr(config, "topk_method", None) == "group_limited_greedy"


def _linear(block: _Block, path: str) -> tuple[str, int]:
    """Path and rows of the linear map that gives the logits: the router's own weight, or its last linear child's."""
    maps = [
        (child, module.weight.shape[0])
        for child, module in block.modules[path].named_modules(prefix=path)
        if getattr(module, "weight", None) is not None and module.weight.dim() == 2
    ]
    if not maps:
        raise block.refuse(f"the router {path!r} ({type(block.modules[path]).__name__}) holds no linear map")
    return maps[-1]


_TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_top_k", "moe_topk")


def _top_k(block: _Block, router: Any) -> int:
    """K, as the router or its block state it, and as the config does; both must agree."""
    config = block.config
    stated = [value for name in _TOP_K if (value := getattr(config, name, None)) is not None]
    of_config = int(stated[0][0] if isinstance(stated[0], list | tuple) else stated[0]) if stated else None
    seen = [getattr(owner, "top_k", None) for owner in (router, block.modules[block.path])]
    of_module = next((int(value) for value in seen if value is not None), None)
    if of_module is None and of_config is None:
        raise block.refuse(f"neither the router of {block.path!r} nor the config states how many experts are chosen")
    if of_module is not None and of_config is not None and of_module != of_config:
        raise ModelError(
            f"{config.model_type}: top_k is {of_module} in the router and {of_config} in the config; they must agree. "
            "The checkpoint's config.json was edited, or the family's facts in workbench/models/families.py are wrong."
        )
    k = of_module if of_module is not None else of_config
    assert k is not None
    return k


def _refuse_choice(config: Any, router: Router) -> None:
    """Refuses a choice that cannot be made: more experts than there are, or than the chosen groups hold."""
    where = f"{config.model_type}: layer {router.layer} chooses {router.top_k}"
    if not 1 <= router.top_k <= router.n_experts:
        raise ModelError(
            f"{where} of {router.n_experts} experts for each token; 1 to {router.n_experts} was expected. Mend the "
            "number of experts, or of those per token, in config.json."
        )
    groups, chosen = router.n_groups, router.groups_chosen
    if groups > 1 and (router.n_experts % groups or not 1 <= chosen <= groups):
        raise ModelError(
            f"{config.model_type}: layer {router.layer} takes {chosen} of {groups} groups of {router.n_experts} "
            "experts; 1 to all of groups of one size were expected. Mend n_group and topk_group in config.json."
        )
    if groups > 1 and router.top_k > router.n_experts // groups * chosen:
        raise ModelError(
            f"{where} experts for each token from {chosen} of {groups} groups, which hold "
            f"{router.n_experts // groups * chosen}. Mend n_group, topk_group or the experts per token in config.json."
        )


def _scale(config: Any, facts: FamilyFacts) -> float:
    """Factor on the chosen weights, as the config states it."""
    stated = [value for name in facts.scale if (value := getattr(config, name, None)) is not None]
    return float(stated[0]) if stated and facts.weights_rule else 1.0


def of_layer(config: Any, layer: int) -> Any:
    """The config of one layer, for models whose layers differ."""
    if not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[layer]


def _bias(block: _Block, router_path: str, n_experts: int) -> str:
    """Path of the correction bias, in the router or beside it in the block."""
    for owner in (router_path, block.path):
        named = [*block.modules[owner].named_parameters(), *block.modules[owner].named_buffers()]
        for name, tensor in named:
            if name.endswith(_BIASES) and tensor.numel() == n_experts:
                return f"{owner}.{name}"
    return ""


_BIASES = ("e_score_correction_bias", "expert_bias", "balancing_biases")


def _experts_shape(block: _Block, experts: Any) -> tuple[int, int]:
    """How many experts there are with weights, and the FFN width of one."""
    down = getattr(experts, "down_proj", None)
    if down is not None and down.dim() == 3:
        transposed = bool(getattr(experts, "is_transposed", False)) or block.facts.way == "scores"
        return int(down.shape[0]), int(down.shape[1 if transposed else 2])
    glu = getattr(experts, "mlp", None)
    if glu is not None and hasattr(glu, "ffn_hidden_size"):
        return int(glu.moe_num_experts), int(glu.ffn_hidden_size)
    shapes = {name: tuple(p.shape) for name, p in experts.named_parameters()}
    raise block.refuse(f"{type(experts).__name__} has no 3-D down_proj [E, C, width]; it has {shapes}")


def _shared_width(shared: Any) -> int:
    """FFN width of all shared experts together: what their projection back to the model's width takes in."""
    for name in ("down_proj", "w2", "output_linear", "fc2"):
        down = getattr(shared, name, None)
        if down is None:
            continue
        weight = getattr(down, "weight", down)
        return int(weight.shape[-1] * (weight.shape[0] if weight.dim() == 3 else 1))
    first = next(p for p in shared.parameters() if p.dim() > 1)
    return int(first.shape[0])


def _recorders(module: Any, modules: Mapping[str, Any]) -> list[Any]:
    """What transformers declares to be routers; some families declare it in the model inside the model alone."""
    found: list[Any] = []
    for owner in (module, *(modules[path] for path in ("model", "model.language_model") if path in modules)):
        declared = (getattr(owner, "_can_record_outputs", None) or {}).get("router_logits", [])
        found += declared if isinstance(declared, list | tuple) else [declared]
    return found


def _recorder_of(recorders: Sequence[Any], path: str, candidate: Any) -> Any:
    """The first declaration that makes this module a router, or None."""
    for recorder in recorders:
        target: Any = getattr(recorder, "target_class", recorder)
        layer_name = getattr(recorder, "layer_name", None)
        if isinstance(candidate, target) and (layer_name is None or f".{layer_name.strip('.')}." in f".{path}."):
            return recorder
    return None
