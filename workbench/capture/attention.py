"""Watches a model's softmax attention from inside, and computes its statistics in memory linear in the tokens.

transformers calls an attention function by name. While a model is watched, that name is one of ours, whose function
calls the very function that the model would have used, with the mask made by that one's own mask function, returns its
output as it is, and looks at queries, keys and mask on the side. No matrix of weights is made where none is needed: a
causal row needs two passes of a flash kernel (`docs/attention.md` has the identities), other masks go in chunks of
queries.

Axes: B rows, S queries, T keys, H heads, G key/value groups, D width of a head.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workbench.metrics.attention import MOSTLY

PREFIX = "workbench_"
LOCAL = (8, 32, 128)
_CHUNK_WEIGHTS = 2**23  # float32 weights of one chunk of queries over all heads: 32 MiB
Watcher = Callable[["Call"], None]


@dataclass(frozen=True)
class Call:
    """One attention call.

    Attributes:
        layer: Decoder layer.
        query: [B, H, S, D], positions already turned in (post-RoPE).
        key: [B, G, T, D], groups not repeated; T counts cached keys too.
        mask: What the model's own mask function made: None (causal), bool, or added to the scores; [B, 1, S, T].
        scaling: Factor on the scores.
        softcap: Bound of the scores by a tanh; None for none.
        bias: [B, H, S, T], added to the scores by the model's own rule (relative positions); None for none.
        sinks: Logits that take weight from all keys, learned, [H], or of each query, [B, H, S, 1]; None for none.
        causal: Whether, without a mask, a query sees the keys up to its own.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    bias: torch.Tensor | None
    sinks: torch.Tensor | None
    causal: bool

    @property
    def of_tokens(self) -> bool:
        """Whether the keys are those of the tokens: without a cache there are as many as queries."""
        return self.key.shape[2] == self.query.shape[2]


@dataclass
class _Watched:
    watcher: Watcher | None = None
    models: list[Any] = field(default_factory=list)


_STATE = _Watched()


@contextmanager
def watching(model: Any, watcher: Watcher) -> Iterator[None]:
    """A block in which every softmax attention of a model is shown to a watcher, and runs as it would have run.

    One model at a time: the functions of transformers are one table for all.
    """
    if _STATE.watcher is not None:
        raise RuntimeError("a model is being watched already; its block must end first")
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    try:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = _registered(name or "eager")
        _STATE.watcher = watcher
        yield
    finally:
        _STATE.watcher = None
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _configs(model: Any) -> list[Any]:
    """Every config that a module of the model holds: layers may hold copies of their own."""
    found = {id(config): config for m in model.modules() if hasattr(config := getattr(m, "config", None), "to_dict")}
    return list(found.values())


def _registered(name: str) -> str:
    """The name under which an implementation is watched; registered at its first use, with its own mask function."""
    if name.startswith(PREFIX):
        return name
    ours = PREFIX + name
    if ours not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(ours, _watched(name))
        if name in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return ours


def _watched(name: str) -> Callable[..., Any]:
    def forward(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        plain = ALL_ATTENTION_FUNCTIONS.get(name, None) if name != "eager" else None
        if plain is None:  # a family's own eager function is not in the table
            plain = sys.modules[type(module).__module__].eager_attention_forward
        result = plain(module, query, key, value, *rest, **options)
        if _STATE.watcher is not None and getattr(module, "layer_idx", None) is not None:
            scaling = options.get("scaling")
            sinks, bias = options.get("s_aux", options.get("sinks")), options.get("position_bias")
            _STATE.watcher(
                Call(
                    layer=int(module.layer_idx),
                    query=query.detach(),
                    key=key.detach(),
                    mask=rest[0] if rest else options.get("attention_mask"),
                    scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
                    softcap=options.get("softcap"),
                    bias=None if bias is None else bias.detach(),
                    sinks=None if sinks is None else sinks.detach(),
                    causal=bool(getattr(module, "is_causal", True) if options.get("is_causal") is None
                                else options["is_causal"]),
                )
            )  # fmt: skip
        return result

    return forward


def row_statistics(call: Call, row: int, start: int, stop: int) -> dict[str, torch.Tensor]:
    """The statistics of one row's queries, [H, S], float32, of the tokens from `start` to `stop` of the keys.

    Args:
        call: The call.
        row: Which row of the batch.
        start: First key that is a token (later than 0 under left padding).
        stop: End of the keys that are tokens.

    Returns:
        The names of `metrics.attention.STATISTICS`; NaN where a statistic is not defined, and for all of a query that
        sees no key.
    """
    n_keys, n_queries = call.key.shape[2], call.query.shape[2]
    offset = n_keys - n_queries  # keys of a cache come before the first query
    first_query = max(start - offset, 0)
    query_HSD = call.query[row, :, first_query : stop - offset].float()
    key_GTD = call.key[row, :, start:stop].float()
    positions_S = torch.arange(first_query + offset - start, stop - start, device=query_HSD.device)
    mask_ST = _of_row(call, row, slice(first_query, stop - offset), slice(start, stop))
    plain = call.softcap is None and call.bias is None and len(positions_S) == key_GTD.shape[1] and call.causal
    if plain and (mask_ST is None or _is_causal(mask_ST)):
        found = _flash(query_HSD, key_GTD, call.scaling)
    else:
        bias = call.bias
        bias_HST = None if bias is None else bias[row % len(bias), :, first_query : stop - offset, start:stop].float()
        found = _chunked(query_HSD, key_GTD, call, mask_ST=mask_ST, bias_HST=bias_HST, positions_S=positions_S)
    lse_HS = found.pop("lse")
    if call.sinks is not None:
        queries = slice(first_query, stop - offset)
        sinks_HS = call.sinks[row, :, queries, 0] if call.sinks.dim() == 4 else call.sinks[:, None]
        found["off"] = torch.sigmoid(sinks_HS.float() - lse_HS)
    else:
        found["off"] = torch.zeros_like(lse_HS)
    return _completed(found, positions_S)


def _of_row(call: Call, row: int, queries: slice, keys: slice) -> torch.Tensor | None:
    """A row's mask, [S, T]: bool, or added to the scores; None where there is none and the keys are causal."""
    if call.mask is None:
        return None
    mask = call.mask[row if call.mask.shape[0] > 1 else 0]
    return mask[0, queries, keys] if mask.dim() == 3 else mask[queries, keys]


def _is_causal(mask_ST: torch.Tensor) -> bool:
    """Whether a mask of a row's tokens is nothing but causal, looked at in chunks of queries."""
    n = mask_ST.shape[1]
    keys_T = torch.arange(n, device=mask_ST.device)
    for begin in range(0, len(mask_ST), 1024):
        part_ST = mask_ST[begin : begin + 1024]
        open_ST = part_ST if part_ST.dtype == torch.bool else part_ST == 0
        queries_S = torch.arange(begin, begin + len(part_ST), device=mask_ST.device)
        if not torch.equal(open_ST, keys_T <= queries_S[:, None]):
            return False
    return True


def _flash(query_HSD: torch.Tensor, key_GTD: torch.Tensor, scaling: float) -> dict[str, torch.Tensor]:
    """Statistics of causal attention from two flash passes and a band.

    The first pass has as values the keys, beside the positions: its log-sum-exp, mean key and mean position give
    entropy and distance. The second, at twice the scores, gives the sum of squared weights by its log-sum-exp alone.
    """
    n_heads, n, width = query_HSD.shape
    groups = n_heads // key_GTD.shape[0]
    position_T = torch.arange(n, device=key_GTD.device, dtype=torch.float32)
    # Keys and values must be equally wide for the kernel: both get eight columns more, those of queries are zero.
    blank_GT8 = key_GTD.new_zeros(*key_GTD.shape[:2], 8)
    value_GT8 = blank_GT8.clone()
    value_GT8[..., 0] = position_T / n
    wide_HSD = torch.nn.functional.pad(query_HSD, (0, 8))
    mean_HSD, lse_HS = flash(
        wide_HSD, torch.cat([key_GTD, blank_GT8], -1), torch.cat([key_GTD, value_GT8], -1), scaling
    )
    mean_score_HS = scaling * (query_HSD * mean_HSD[..., :width]).sum(-1)
    _, twice_HS = flash(query_HSD, key_GTD, key_GTD, 2 * scaling)
    first_HS4 = _scores(query_HSD, key_GTD[:, :4], groups, scaling)
    seen_S4 = torch.arange(min(4, n), device=query_HSD.device) <= torch.arange(n, device=query_HSD.device)[:, None]
    first_HS4 = torch.where(seen_S4, torch.exp(first_HS4 - lse_HS[..., None]), 0)
    return {
        "lse": lse_HS,
        "entropy": lse_HS - mean_score_HS,
        "participation": torch.exp(2 * lse_HS - twice_HS),
        "first": first_HS4[..., 0],
        "first4": first_HS4.sum(-1),
        "distance": position_T - mean_HSD[..., width] * n,
        **_band(query_HSD, key_GTD, lse_HS, scaling),
    }


def flash(
    query_HSD: torch.Tensor, key_GTD: torch.Tensor, value_GTD: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One causal pass of a flash kernel in float32: its output [H, S, D] and its log-sum-exp [H, S]."""
    groups = query_HSD.shape[0] // key_GTD.shape[0]
    if query_HSD.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_HSD[None], key_GTD[None], value_GTD[None], 0.0, True, scale=scaling
        )
    else:  # the memory-efficient kernel is the one that takes float32 and gives its log-sum-exp
        key, value = (t.repeat_interleave(groups, 0)[None] for t in (key_GTD, value_GTD))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query_HSD[None], key, value, None, True, 0.0, True, scale=scaling
        )
    return out[0], lse[0, :, : query_HSD.shape[1]].float()


def _scores(query_HSD: torch.Tensor, key_GTD: torch.Tensor, groups: int, scaling: float) -> torch.Tensor:
    """Scaled scores [H, S, T] of some keys, the groups not repeated."""
    grouped = query_HSD.reshape(key_GTD.shape[0], -1, query_HSD.shape[-1])
    return (scaling * grouped @ key_GTD.transpose(-1, -2)).reshape(*query_HSD.shape[:2], key_GTD.shape[1])


def _band(
    query_HSD: torch.Tensor, key_GTD: torch.Tensor, lse_HS: torch.Tensor, scaling: float
) -> dict[str, torch.Tensor]:
    """Weights on the own key, the one before, and the last 8, 32 and 128, by blocks of queries."""
    n, widest, groups = query_HSD.shape[1], LOCAL[-1], query_HSD.shape[0] // key_GTD.shape[0]
    names = ("self", "previous", *(f"local{w}" for w in LOCAL))
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for begin in range(0, n, widest):
        queries = slice(begin, min(begin + widest, n))
        first_key = max(0, begin - widest + 1)
        score_HST = _scores(query_HSD[:, queries], key_GTD[:, first_key : queries.stop], groups, scaling)
        weight_HST = torch.exp(score_HST - lse_HS[:, queries, None])
        position_S = torch.arange(queries.start, queries.stop, device=query_HSD.device)
        distance_ST = position_S[:, None] - torch.arange(first_key, queries.stop, device=query_HSD.device)
        for name, low, high in (("self", 0, 1), ("previous", 1, 2), *((f"local{w}", 0, w) for w in LOCAL)):
            inside_ST = (distance_ST >= low) & (distance_ST < high)
            found[name].append(torch.where(inside_ST, weight_HST, 0).sum(-1))
    return {name: torch.cat(parts, -1) for name, parts in found.items()}


def _chunked(
    query_HSD: torch.Tensor,
    key_GTD: torch.Tensor,
    call: Call,
    *,
    mask_ST: torch.Tensor | None,
    bias_HST: torch.Tensor | None,
    positions_S: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Statistics by their definitions, weights and all, a chunk of queries at a time: for any mask."""
    n_heads, n_queries = query_HSD.shape[:2]
    n_keys = key_GTD.shape[1]
    step = max(1, _CHUNK_WEIGHTS // (n_heads * n_keys))
    parts = []
    for begin in range(0, n_queries, step):
        queries = slice(begin, min(begin + step, n_queries))
        score_HST = _scores(query_HSD[:, queries], key_GTD, n_heads // len(key_GTD), call.scaling)
        if call.softcap is not None:
            score_HST = call.softcap * torch.tanh(score_HST / call.softcap)
        if bias_HST is not None:
            score_HST = score_HST + bias_HST[:, queries]
        score_HST = _masked(score_HST, mask_ST, call, positions_S, queries)
        parts.append(_by_definition(score_HST, positions_S[queries]))
    return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}


def _masked(
    score_HST: torch.Tensor, mask_ST: torch.Tensor | None, call: Call, positions_S: torch.Tensor, queries: slice
) -> torch.Tensor:
    """Scores of a chunk of queries, minus infinity where a key is not seen."""
    keys_T = torch.arange(score_HST.shape[-1], device=score_HST.device)
    if mask_ST is None:
        seen_ST = keys_T <= positions_S[queries, None] if call.causal else torch.ones_like(score_HST[0]).bool()
        return score_HST.masked_fill(~seen_ST, -torch.inf)
    part_ST = mask_ST[queries]
    if part_ST.dtype == torch.bool:
        return score_HST.masked_fill(~part_ST, -torch.inf)
    part_ST = part_ST.float()
    closed_ST = part_ST <= torch.finfo(call.mask.dtype).min / 2  # type: ignore[union-attr]
    return (score_HST + part_ST).masked_fill(closed_ST, -torch.inf)


def _by_definition(score_HST: torch.Tensor, positions_S: torch.Tensor) -> dict[str, torch.Tensor]:
    lse_HS = score_HST.logsumexp(-1)
    weight_HST = torch.exp(score_HST - lse_HS[..., None])  # NaN for a query that sees no key
    keys_T = torch.arange(score_HST.shape[-1], device=score_HST.device)
    distance_ST = positions_S[:, None] - keys_T
    found = {
        "lse": lse_HS,
        "entropy": torch.special.entr(weight_HST).sum(-1),
        "participation": 1 / (weight_HST**2).sum(-1),
        "first": weight_HST[..., 0],
        "first4": weight_HST[..., :4].sum(-1),
        "distance": (weight_HST * distance_ST).sum(-1),
    }
    for name, low, high in (("self", 0, 1), ("previous", 1, 2), *((f"local{w}", 0, w) for w in LOCAL)):
        inside_ST = (distance_ST >= low) & (distance_ST < high)
        found[name] = (weight_HST * inside_ST).sum(-1)
    return found


def _completed(found: dict[str, torch.Tensor], positions_S: torch.Tensor) -> dict[str, torch.Tensor]:
    """What follows from the other statistics; NaN where something is not defined."""
    entropy_HS = found["entropy"].clamp(min=0)
    first_HS = found["first"].clamp(0, 1)
    later_S = positions_S > 0
    nan = torch.tensor(torch.nan, device=entropy_HS.device)
    kept_HS = (first_HS <= MOSTLY) & later_S
    binary_HS = torch.special.entr(first_HS) + torch.special.entr(1 - first_HS)
    rest_HS = torch.where(kept_HS, 1 - first_HS, nan)
    unseen_HS = torch.isnan(first_HS)
    found |= {
        "entropy": entropy_HS,
        "normalized_entropy": torch.where(later_S, entropy_HS / torch.log(positions_S + 1.0), nan),
        "effective_keys": torch.exp(entropy_HS),
        "previous": torch.where(later_S, found["previous"], nan),
        "entropy_rest": (entropy_HS - binary_HS).clamp(min=0) / rest_HS,
        "distance_rest": (found["distance"] - first_HS * positions_S) / rest_HS,
        "mostly_first": torch.where(later_S & ~unseen_HS, (first_HS > MOSTLY).float(), nan),
    }
    return found
