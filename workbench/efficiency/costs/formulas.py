"""What a token costs, by formula: parameters, FLOPs, bytes and memory of a topology, by part of the model.

One multiply-add is 2 FLOP, and only matrix products and convolutions count: norms, activations, rotary embeddings,
softmax and the elementwise recurrence of a state space do not, as in every published figure. These are the costs of
what routing asks for; an implementation may do more. Axes: R routers, in the order of the topology's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from workbench.errors import ModelError
from workbench.metrics.sequence import uniform_activated_experts
from workbench.models.topology import Topology
from workbench.models.weights import Mixer, Parts

DTYPE_BYTES: Mapping[str, float] = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int4": 0.5}
"""Bytes of a weight; scales of quantized ones come on top and are not known here."""


@dataclass(frozen=True)
class Share:
    """Parameters of a part: all, and those that one token meets."""

    total: int
    active: float


def known_parts(topology: Topology) -> Parts:
    """The weights by purpose.

    Raises:
        ModelError: something in the model is not understood, so that a cost would be wrong; it is named.
    """
    parts = topology.parts
    if parts is None:
        raise ModelError(
            f"{topology.family}: this topology is of an earlier version and does not say what its weights are for; "
            "give the model's name instead: workbench costs MODEL."
        )
    if parts.unknown:
        more = f" and {len(parts.unknown) - 1} more" if len(parts.unknown) > 1 else ""
        raise ModelError(
            f"{topology.family}: no formula for {parts.unknown[0]}{more}, so its costs would be wrong. Known are "
            "attention with maps for queries, keys and values, latent attention, and Mamba's first state space; teach "
            "workbench/models/weights.py what this one keeps and multiplies."
        )
    return parts


def parameters(topology: Topology) -> dict[str, Share]:
    """Parameters by part, all and active per token; the embedding counts whole in both. They sum to the topology's."""
    parts = known_parts(topology)
    found = {"embedding": Share(parts.embedding.parameters, parts.embedding.parameters)}
    for layer in parts.layers:
        for mixer in layer.mixers:
            _add(found, _mixer_part(mixer), mixer.weights.parameters)
        _add(found, "dense FFN", layer.dense.parameters)
        _add(found, "norms and other", layer.other.parameters)
        for moe in layer.moe:
            routed = moe.experts.parameters
            _add(found, "router", moe.router.parameters)
            _add(found, "routed experts", routed, _share(routed, moe.top_k, moe.n_experts))
            _add(found, "shared expert", moe.shared.parameters + moe.shared_gate.parameters)
    _add(found, "head", parts.head.parameters)
    _add(found, "norms and other", parts.other.parameters)
    return _present(found, lambda share: share.total)


def linear_flops(topology: Topology) -> dict[str, float]:
    """FLOP per token of every product with weights, the head included; no attention scores."""
    parts = known_parts(topology)
    found: dict[str, float] = {}
    for layer in parts.layers:
        named: list[tuple[str, float]] = [(_mixer_part(m), m.weights.products) for m in layer.mixers]
        named.append(("dense FFN", layer.dense.products))
        for moe in layer.moe:
            named += [
                ("router", moe.router.products),
                ("routed experts", _share(moe.experts.products, moe.top_k, moe.n_experts)),
                ("shared expert", moe.shared.products + moe.shared_gate.products),
            ]
        for name, products in named:
            found[name] = found.get(name, 0) + 2 * products
    found["head"] = 2 * parts.head.products
    return _present(found, lambda flops: flops)


def decode_flops(topology: Topology, *, context: int) -> dict[str, float]:
    """FLOP of one token that meets `context` tokens, itself among them.

    Scores and values take 2·(key width + value width) per head and token met, which is 4nd·t for plain attention:
    sharing keys among heads makes the cache smaller, not the scores.
    """
    _at_least(context, "context")
    found = linear_flops(topology)
    mixers = known_parts(topology).mixers
    met = sum(2 * m.n_heads * m.step_width * _reach(m, context) for m in mixers)
    return _present({**found, **_mixing(mixers, met, tokens=1)}, lambda flops: flops)


def prefill_flops(
    topology: Topology, *, tokens: int, causal: bool = True, logits: int | None = None
) -> dict[str, float]:
    """FLOP of reading one sequence.

    Args:
        topology: Of the model.
        tokens: S, its length.
        causal: Whether scores are counted for earlier tokens alone, S(S + 1)/2 of them, as kernels that skip the
            others compute them; else S², as counters of operations see them.
        logits: At how many positions the head is applied; all unless given.
    """
    _at_least(tokens, "tokens")
    found: dict[str, float] = {name: flops * tokens for name, flops in linear_flops(topology).items()}
    found["head"] = 2 * known_parts(topology).head.products * (tokens if logits is None else logits)
    mixers = known_parts(topology).mixers
    met = sum(2 * m.n_heads * m.score_width * _pairs(m, tokens, causal=causal) for m in mixers)
    return _present({**found, **_mixing(mixers, met, tokens=tokens)}, lambda flops: flops)


def cache_bytes(topology: Topology, *, context: int, value_bytes: float) -> float:
    """Keys, values and states kept of one sequence of `context` tokens; what lies behind a window is let go."""
    kept = sum(m.cached_values * _reach(m, context) + m.state_values for m in known_parts(topology).mixers)
    return kept * value_bytes


def uniform_coverage(topology: Topology, *, tokens: int) -> np.ndarray:
    """Distinct experts [R] that so many tokens meet under uniform random routing, E(1 − (1 − K/E)^B)."""
    moe = known_parts(topology).moe
    return np.array(
        [
            float(uniform_activated_experts(tokens_B=np.array([tokens]), n_experts=m.n_experts, top_k=m.top_k)[0])
            for m in moe
        ]
    )


def step_bytes(
    topology: Topology,
    *,
    batch: int,
    context: int,
    weight_bytes: float,
    value_bytes: float | None = None,
    experts_R: np.ndarray | None = None,
) -> dict[str, float]:
    """Bytes that one decode step reads: every weight it needs once, and the cache of each sequence.

    b·[P − P_embedding − P_experts + P_experts·C(B)/E] + B·cache. The rows looked up in the embedding and what is
    written (activations, one token's keys and values) are left out; a tied embedding is read as the head.

    Args:
        topology: Of the model.
        batch: B, sequences decoded together, a token each.
        context: Tokens in each one's cache.
        weight_bytes: Bytes of a weight.
        value_bytes: Bytes of a value in the cache; as of a weight unless given.
        experts_R: C(B), distinct experts that each router's tokens meet; of uniform random routing unless given.

    Raises:
        ModelError: `batch` or `context` is under 1, or `experts_R` is not one number from 0 to E for each router.
    """
    _at_least(batch, "batch")
    _at_least(context, "context")
    kept = cache_bytes(topology, context=context, value_bytes=weight_bytes if value_bytes is None else value_bytes)
    return {
        **weights_read(topology, tokens=batch, weight_bytes=weight_bytes, experts_R=experts_R),
        "cache": batch * kept,
    }


def weights_read(
    topology: Topology, *, tokens: int, weight_bytes: float, experts_R: np.ndarray | None = None
) -> dict[str, float]:
    """Bytes of weights that so many tokens read together, each once. Arguments and errors as of `step_bytes`."""
    moe = known_parts(topology).moe
    met_R = uniform_coverage(topology, tokens=tokens) if experts_R is None else np.asarray(experts_R, dtype=float)
    if met_R.shape != (len(moe),) or any(not 0 <= c <= m.n_experts for c, m in zip(met_R, moe, strict=True)):
        raise ModelError(
            f"{topology.family}: experts_R is {met_R.tolist()}; one number of distinct experts, 0 to E, was expected "
            f"for each of its {len(moe)} routers."
        )
    read: dict[str, float] = {name: share.total for name, share in parameters(topology).items()}
    if known_parts(topology).tied:
        read["head"] = known_parts(topology).head.products
    del read["embedding"]
    if moe:
        read["routed experts"] = sum(
            m.experts.parameters * c / m.n_experts for c, m in zip(met_R.tolist(), moe, strict=True)
        )
    return {name: n * weight_bytes for name, n in read.items()}


@dataclass(frozen=True)
class Memory:
    """What must lie in memory, in bytes; activations and what a framework takes for itself come on top."""

    weights_bytes: float
    cache_bytes: float

    @property
    def total_bytes(self) -> float:
        """Both."""
        return self.weights_bytes + self.cache_bytes


def memory(topology: Topology, *, batch: int, context: int, dtype: str) -> Memory:
    """Weights, and the cache of `batch` sequences of `context` tokens; kept in bfloat16 where weights are narrower.

    Raises:
        ModelError: an unknown dtype.
    """
    width = dtype_bytes(dtype)
    kept = cache_bytes(topology, context=context, value_bytes=max(width, 2))
    return Memory(topology.parameters_total * width, batch * kept)


def dtype_bytes(dtype: str) -> float:
    """Bytes of a weight.

    Raises:
        ModelError: an unknown dtype.
    """
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype is {dtype!r}; one of {', '.join(DTYPE_BYTES)} was expected.")
    return DTYPE_BYTES[dtype]


def _mixer_part(mixer: Mixer) -> str:
    return "state space" if mixer.kind == "state space" else "attention maps"


def _mixing(mixers: tuple[Mixer, ...], met: float, *, tokens: int) -> dict[str, float]:
    """FLOP of mixing tokens, which no weight takes part in."""
    return {"attention scores": met, "state read-out": 2 * tokens * sum(m.state_products for m in mixers)}


def _reach(mixer: Mixer, context: int) -> int:
    return context if mixer.window is None else min(context, mixer.window)


def _pairs(mixer: Mixer, tokens: int, *, causal: bool) -> int:
    """Pairs of a query and a key that are multiplied."""
    if not causal:
        return tokens * tokens
    reach = _reach(mixer, tokens)
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


def _add(found: dict[str, Share], name: str, total: int, active: float | None = None) -> None:
    before = found.get(name, Share(0, 0))
    found[name] = Share(before.total + total, before.active + (total if active is None else active))


def _share(n: int, k: int, of: int) -> float:
    """n·k/of, as an integer where it is one."""
    return n * k // of if n * k % of == 0 else n * k / of


_ORDER = (
    "embedding", "attention maps", "state space", "dense FFN", "router", "routed experts", "shared expert", "head",
    "norms and other", "attention scores", "state read-out",
)  # fmt: skip


def _present(found: Mapping[str, object], size) -> dict:
    """What is not zero, in the order of the model."""
    return {name: found[name] for name in _ORDER if name in found and size(found[name])}


def _at_least(value: int, name: str) -> None:
    if value < 1:
        raise ModelError(f"{name} is {value}; 1 or more was expected.")
