"""The weights of a model by what they are for, and what each layer's mixer keeps and computes: what costs are made of.

Everything is read off the modules, which may be on the meta device; the dataclasses need no torch. What is not
understood is named in `unknown`, so that nothing is left out of a cost silently.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.models.routers import Router, unused_parameters

KINDS = ("attention", "latent attention", "state space")
"""Kinds of mixers whose costs are known."""


@dataclass(frozen=True)
class Weights:
    """Parameters of one purpose.

    Attributes:
        parameters: All of them.
        products: Those multiplied with a token's vector in a matrix product or a convolution: 2 FLOP each per token.
    """

    parameters: int = 0
    products: int = 0

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.parameters + other.parameters, self.products + other.products)


@dataclass(frozen=True)
class Mixer:
    """What mixes the tokens of a layer: attention, latent attention or a state space.

    Attributes:
        kind: `attention`, `latent attention`, `state space`; else the class that is not understood.
        path: Module path.
        weights: Its weights.
        n_heads: Query heads.
        score_width: Width of a head's keys and values together, where each key is multiplied once per query.
        step_width: The same when one token meets the cache; latent attention then works in the latent width.
        cached_values: Values kept of every earlier token.
        window: How many tokens back it reaches; None for all.
        state_values: Values kept of a sequence, however long.
        state_products: Multiply-adds per token of reading that state out.
    """

    kind: str
    path: str
    weights: Weights
    n_heads: int = 0
    score_width: int = 0
    step_width: int = 0
    cached_values: int = 0
    window: int | None = None
    state_values: int = 0
    state_products: int = 0


@dataclass(frozen=True)
class MoeParts:
    """The weights around one router.

    Attributes:
        layer: Decoder layer.
        site: As the router's.
        n_experts: E, as the router's.
        top_k: K.
        router: The router's weights.
        experts: Those of all routed experts together.
        shared: The shared expert's.
        shared_gate: Its gate's.
    """

    layer: int
    site: str
    n_experts: int
    top_k: int
    router: Weights
    experts: Weights
    shared: Weights
    shared_gate: Weights


@dataclass(frozen=True)
class LayerParts:
    """One decoder layer.

    Attributes:
        layer: Its index.
        mixers: What mixes tokens; two in layers that attend twice.
        moe: Per router.
        dense: What else is multiplied with every token: the dense FFN.
        other: Norms and the like.
    """

    layer: int
    mixers: tuple[Mixer, ...]
    moe: tuple[MoeParts, ...]
    dense: Weights
    other: Weights


@dataclass(frozen=True)
class Parts:
    """A model's weights by purpose.

    Attributes:
        layers: Decoder layers.
        embedding: Look-up tables of the input; multiplied with nothing.
        head: The output's matrix; where it is tied, 0 parameters, and products all the same.
        other: Last norm, and whatever lies outside the decoder.
        unknown: What has no known cost, as `path: class`; costs are refused where there is any.
    """

    layers: tuple[LayerParts, ...]
    embedding: Weights
    head: Weights
    other: Weights
    unknown: tuple[str, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the output's matrix is the embedding."""
        return self.head.products > self.head.parameters

    @property
    def moe(self) -> tuple[MoeParts, ...]:
        """All MoE parts, in the order of the topology's routers."""
        return tuple(sorted((moe for layer in self.layers for moe in layer.moe), key=lambda m: (m.layer, m.site)))

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """All mixers, by layer."""
        return tuple(mixer for layer in self.layers for mixer in layer.mixers)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Parts":
        """From the JSON of its dataclass."""
        return cls(
            layers=tuple(_layer_from_json(layer) for layer in value["layers"]),
            unknown=tuple(value["unknown"]),
            **{name: Weights(**value[name]) for name in ("embedding", "head", "other")},
        )


def _layer_from_json(value: Mapping[str, Any]) -> LayerParts:
    weights = ("router", "experts", "shared", "shared_gate")
    return LayerParts(
        layer=value["layer"],
        mixers=tuple(Mixer(**{**mixer, "weights": Weights(**mixer["weights"])}) for mixer in value["mixers"]),
        moe=tuple(MoeParts(**{**moe, **{name: Weights(**moe[name]) for name in weights}}) for moe in value["moe"]),
        dense=Weights(**value["dense"]),
        other=Weights(**value["other"]),
    )


def read_parts(module: Any, routers: Sequence[Router]) -> Parts:
    """Sorts a transformers model's weights by purpose.

    Args:
        module: The model; its weights may be on the meta device.
        routers: Its routers.
    """
    config = module.config.get_text_config()
    modules = dict(module.named_modules())
    found: dict[tuple[int | None, str], Weights] = {}
    mixers = dict(_mixers(modules))
    roles = _roles(routers, mixers)
    read_by = {router.experts_path: router for router in routers}
    unknown = []
    looked_up = module.get_input_embeddings().weight
    head = module.get_output_embeddings()
    for name, parameter in module.named_parameters():
        owner, _, last = name.rpartition(".")
        role = _role_of(owner, roles)
        layer = _layer_of(name)
        if parameter is looked_up:
            role, product = "embedding", False
        elif head is not None and parameter is head.weight:
            role, product = "head", True
        elif role.startswith("experts"):
            product = parameter.dim() >= 2 and not last.endswith("bias")
        else:
            product = parameter.dim() >= 2 and last == "weight" and "Embedding" not in type(modules[owner]).__name__
            if parameter.squeeze().dim() >= 2 and not product and not (last == "A_log" and role in mixers):
                unknown.append(f"{name}: parameter of {type(modules[owner]).__name__}")
        role = role or ("dense" if product and layer is not None else "other")
        if role == "other" and product:
            unknown.append(f"{name}: outside the decoder layers")
        size = parameter.numel() - (unused_parameters(read_by[owner], parameter) if owner in read_by else 0)
        key = (None if role in ("embedding", "head") else layer, role)
        found[key] = found.get(key, Weights()) + Weights(size, size if product else 0)
    if head is not None and head.weight is looked_up:
        found[None, "head"] = Weights(0, looked_up.numel())
    numbers = sorted({number for number, _ in found if number is not None})
    inside: dict[int | None, list[Mixer]] = {}
    for path, mixer in mixers.items():
        layer = _layer_of(f"{path}.")
        inside.setdefault(layer, []).append(_mixer(path, mixer, found.get((layer, path), Weights()), config))
    layers = tuple(_layer(n, routers, inside.get(n, []), found) for n in numbers)
    unknown += [f"{m.path}: {m.kind}" for layer in layers for m in layer.mixers if m.kind not in KINDS]
    unknown += [f"decoder layer {layer.layer}: nothing in it mixes tokens" for layer in layers if not layer.mixers]
    named = {"embedding", "head"}
    rest = sum((w for (n, role), w in found.items() if n is None and role not in named), Weights())
    return Parts(
        layers=layers,
        embedding=found.get((None, "embedding"), Weights()),
        head=found.get((None, "head"), Weights()),
        other=rest,
        unknown=tuple(unknown),
    )


def _role_of(path: str, roles: Mapping[str, str]) -> str:
    """What a module's parameters are for: the role of the innermost module around it that has one."""
    while path and path not in roles:
        path = path.rpartition(".")[0]
    return roles.get(path, "")


def _roles(routers: Sequence[Router], mixers: Mapping[str, Any]) -> dict[str, str]:
    """Module paths with what their parameters are for."""
    paths = {path: path for path in mixers}
    for router in routers:
        named = {
            "experts": router.experts_path, "router": router.router_path, "shared": router.shared_path,
            "shared_gate": router.shared_gate_path,
        }  # fmt: skip
        paths |= {path: f"{what} {router.site}" for what, path in named.items() if path}
    return paths


def _layer_of(name: str) -> int | None:
    if any(tower in name for tower in ("vision", "visual", "audio")):
        return None
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else None


_MIXES = re.compile("Attention|MLA|Mamba|Mixer|ShortConv|Delta|Recurrent|Lightning|Indexer")


def _mixers(modules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The outermost modules of the decoder layers that mix tokens."""
    last = "\0"
    for path, candidate in modules.items():
        name = type(candidate).__name__
        inside = _layer_of(f"{path}.") is not None and not re.fullmatch(r"\D*\.\d+", path)
        if inside and _MIXES.search(name) and not path.startswith(f"{last}."):
            last = path
            yield path, candidate


def _layer(number: int, routers: Sequence[Router], mixers: Sequence[Mixer], found: Mapping[Any, Weights]) -> LayerParts:
    def of(role: str) -> Weights:
        return found.get((number, role), Weights())

    return LayerParts(
        layer=number,
        mixers=tuple(mixers),
        moe=tuple(
            MoeParts(
                layer=number,
                site=r.site,
                n_experts=r.n_experts,
                top_k=r.top_k,
                **{what: of(f"{what} {r.site}") for what in ("router", "experts", "shared", "shared_gate")},
            )
            for r in routers
            if r.layer == number
        ),
        dense=of("dense"),
        other=of("other"),
    )


def _mixer(path: str, module: Any, weights: Weights, config: Any) -> Mixer:
    """What one mixer keeps and computes, by the maps it holds."""
    children = {name: child for name, child in module.named_children() if hasattr(child, "weight")}
    if {"kv_a_proj_with_mqa", "kv_b_proj", "o_proj"} <= set(children) and not _surprising(module, _LATENT):
        latent, rope = int(module.kv_lora_rank), int(module.qk_rope_head_dim)
        heads = children["o_proj"].weight.shape[1] // int(module.v_head_dim)
        own = int(module.qk_head_dim) + int(module.v_head_dim)
        return Mixer("latent attention", path, weights, heads, own, 2 * latent + rope, latent + rope)
    if {"q_proj", "k_proj", "v_proj"} <= set(children) and not _surprising(module, _PLAIN):
        back = next((children[name] for name in ("o_proj", "out_proj", "dense") if name in children), None)
        keys, values = (children[name].weight.shape[0] for name in ("k_proj", "v_proj"))
        width = getattr(module, "head_dim", None)
        if back is not None and isinstance(width, int) and not keys % width and not _chunked(config):
            heads = back.weight.shape[1] * keys // (values * width)
            both = width + values * width // keys
            window = getattr(module, "sliding_window", None)
            return Mixer("attention", path, weights, heads, both, both, keys + values, window)
    if {"qkv_proj", "o_proj"} <= set(children) and not _surprising(module, _FUSED):
        width, of_queries = getattr(module, "head_dim", None), children["o_proj"].weight.shape[1]
        cached = children["qkv_proj"].weight.shape[0] - of_queries
        if isinstance(width, int) and cached > 0 and not cached % (2 * width) and not _chunked(config):
            window = getattr(module, "sliding_window", None)
            return Mixer("attention", path, weights, of_queries // width, 2 * width, 2 * width, cached, window)
    state = dict(module.named_parameters()).get("A_log")
    if state is not None and state.dim() == 2 and "x_proj" in children and "conv1d" in children:
        kept = state.numel() + state.shape[0] * children["conv1d"].weight.shape[-1]
        return Mixer("state space", path, weights, state_values=kept, state_products=state.numel())
    return Mixer(type(module).__name__, path, weights)


_PLAIN = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense")
_FUSED = ("qkv_proj", "o_proj")
_LATENT = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def _surprising(module: Any, known: Sequence[str]) -> bool:
    """Whether a mixer holds more than its maps and norms: an indexer, a gate of its own, a convolution."""
    more = (child for name, child in module.named_children() if name not in known)
    return any(p.dim() >= 2 for child in more for p in child.parameters())


def _chunked(config: Any) -> bool:
    return getattr(config, "attention_chunk_size", None) is not None
