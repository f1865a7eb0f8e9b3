"""Statistics of softmax attention from queries and keys, in memory linear in the tokens.

A row's weights are made tile by tile (some heads, up to 128 queries, the keys they see), reduced while they lie in the
cache, and forgotten: no T × T matrix ever exists. `docs/attention.md` has the identities, `metrics/attention.py` the
definitions, which are the plain twin of this file.

Axes: H heads, G key/value groups, S queries, T keys, D width of a head; h, n, t a tile's heads, queries and keys.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.capture.attention.calls import Call
from workbench.metrics.attention import LOCAL, MOSTLY

_QUERIES = 128
_STEP = 64  # a tile's keys end at a multiple of it
_TILE = {"cpu": 2**18, "cuda": 2**26}  # float32 weights of a tile: 1 MiB stays in a core's cache


@dataclass(frozen=True)
class Tile:
    """Weights of some heads and queries on the keys they see.

    Attributes:
        heads: Which heads.
        queries: Which of the row's queries.
        keys: Which keys; those outside have no weight. Reaches past the last key, to a multiple of 64.
        weight_hnt: The weights; NaN for a query that sees no key.
        score_hnt: The scores; 0 where a key is not seen.
        max_logit_hn: The largest score.
    """

    heads: slice
    queries: slice
    keys: slice
    weight_hnt: torch.Tensor
    score_hnt: torch.Tensor
    max_logit_hn: torch.Tensor


class Row:
    """One row of an attention call: the tokens between its padding.

    Args:
        call: The call.
        row: Which row of the batch.
        start: First key that is a token (later than 0 under left padding).
        stop: End of the keys that are tokens.
        n_before: Keys before `start` that a cache has dropped, which the row's tokens could not see any more.
    """

    def __init__(self, call: Call, row: int, start: int, stop: int, *, n_before: int = 0) -> None:
        offset = call.key.shape[2] - call.query.shape[2]  # keys of a cache come before the first query
        first_query = max(start - offset, 0)
        queries, keys = slice(first_query, stop - offset), slice(start, stop)
        self.call = call
        self.query_HSD = call.query[row, :, queries].float()
        self.n_keys, self._n_before = stop - start, n_before
        key_GTD = call.key[row, :, keys].float()
        self._key_GTD = torch.nn.functional.pad(key_GTD, (0, 0, 0, -self.n_keys % _STEP))
        self.positions_S = torch.arange(first_query + offset - start, stop - start, device=key_GTD.device)
        bias = call.bias
        self._bias_HST = None if bias is None else bias[row % len(bias), :, queries, keys].float()
        self._mask_ST = _mask_of(call, row, queries, keys)
        if self._mask_ST is not None and _is_causal(self._mask_ST, self.positions_S):
            self._mask_ST = None
        self.sinks_HS = None
        if call.sinks is not None:
            of_row = call.sinks[row, :, queries, 0] if call.sinks.dim() == 4 else call.sinks[:, None]
            self.sinks_HS = of_row.float()

    @property
    def absolute_S(self) -> torch.Tensor:
        """Positions of the queries in the document, dropped keys counted."""
        return self.positions_S + self._n_before

    def keys_before(self, tile: Tile) -> int:
        """Keys of the document before the first one of a tile."""
        return tile.keys.start + self._n_before

    def of_queries(self, queries: np.ndarray) -> "Row":
        """The row with some of its queries alone, and all keys."""
        chosen = copy.copy(self)
        index_Q = torch.as_tensor(queries, device=self.device)
        chosen.query_HSD, chosen.positions_S = self.query_HSD[:, index_Q], self.positions_S[index_Q]
        chosen._bias_HST = None if self._bias_HST is None else self._bias_HST[:, index_Q]
        chosen._mask_ST = None if self._mask_ST is None else self._mask_ST[index_Q]
        return chosen

    @property
    def device(self) -> torch.device:
        """Where queries and keys lie."""
        return self.query_HSD.device

    def tiles(self, heads: slice | None = None) -> Iterator[Tile]:
        """The row's weights, tile by tile.

        Args:
            heads: Only these heads.
        """
        n_heads, n_queries, _ = self.query_HSD.shape
        per_group = n_heads // len(self._key_GTD)
        wanted = heads or slice(0, n_heads)
        budget = _TILE.get(self.device.type, _TILE["cuda"])
        begin = 0
        while begin < n_queries:
            width = int(self.positions_S[begin]) + _QUERIES if self._mask_ST is None else self._key_GTD.shape[1]
            size = min(_QUERIES, max(16, budget // width), n_queries - begin)
            queries = slice(begin, begin + size)
            keys, closed = self._seen(queries)
            many = max(1, budget // (size * (keys.stop - keys.start)))
            for part in _cut_heads(wanted, many, per_group):
                yield self._tile(part, queries, keys, closed)
            begin += size

    def _seen(self, queries: slice) -> tuple[slice, tuple[int, torch.Tensor]]:
        """The keys that some of the queries see, and from which column on which of them are closed to which query."""
        end = self._key_GTD.shape[1]
        keys_T = torch.arange(end, device=self.device)
        if self._mask_ST is None and self.call.causal:
            first, last = int(self.positions_S[queries][0]), int(self.positions_S[queries][-1])
            stop = min(end, -(-(last + 1) // _STEP) * _STEP)
            return slice(0, stop), (first, keys_T[first:stop] > self.positions_S[queries, None])
        if self._mask_ST is None:
            return slice(0, end), (0, (keys_T >= self.n_keys).expand(queries.stop - queries.start, end))
        part_ST = torch.nn.functional.pad(self._mask_ST[queries].bool(), (0, end - self.n_keys))
        seen = part_ST.any(0).nonzero()
        first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, 0)
        start, stop = first // _STEP * _STEP, -(-(last + 1) // _STEP) * _STEP
        return slice(start, stop), (0, ~part_ST[:, start:stop])

    def _tile(self, heads: slice, queries: slice, keys: slice, closed: tuple[int, torch.Tensor]) -> Tile:
        n_heads, size = heads.stop - heads.start, queries.stop - queries.start
        per_group = self.query_HSD.shape[0] // len(self._key_GTD)
        groups = slice(heads.start // per_group, (heads.stop - 1) // per_group + 1)
        query = self.query_HSD[heads, queries].reshape(groups.stop - groups.start, -1, self.query_HSD.shape[-1])
        score = torch.bmm(query * self.call.scaling, self._key_GTD[groups, keys].transpose(1, 2))
        score_hnt = score.view(n_heads, size, -1)
        if self.call.softcap is not None:
            score_hnt = self.call.softcap * torch.tanh(score_hnt / self.call.softcap)
        if self._bias_HST is not None:
            inside = slice(keys.start, min(keys.stop, self.n_keys))
            score_hnt[..., : inside.stop - inside.start] += self._bias_HST[heads, queries, inside]
        column, closed_nt = closed
        score_hnt[..., column:].masked_fill_(closed_nt, -torch.inf)
        max_logit_hn = score_hnt.amax(-1)
        weight_hnt = torch.softmax(score_hnt, -1)
        score_hnt[..., column:].masked_fill_(closed_nt, 0)  # minus infinity times a weight of zero is no number
        return Tile(heads, queries, keys, weight_hnt, score_hnt, max_logit_hn)


def _cut_heads(heads: slice, many: int, per_group: int) -> Iterator[slice]:
    """Parts of the heads, of at most `many`: whole key/value groups where they fit, else heads of one group."""
    begin = heads.start
    while begin < heads.stop:
        in_group = per_group - begin % per_group
        size = min(many, in_group) if many < per_group or in_group < per_group else many // per_group * per_group
        yield slice(begin, min(begin + size, heads.stop))
        begin = min(begin + size, heads.stop)


def _mask_of(call: Call, row: int, queries: slice, keys: slice) -> torch.Tensor | None:
    """Which keys a row's queries see, bool [S, T]; None where all keys up to the query's own, or all at all, are."""
    mask: Any = call.mask
    if hasattr(mask, "mask_mod"):  # flex attention's
        rows = torch.arange(call.query.shape[2], device=call.query.device)[queries, None]
        columns = torch.arange(call.key.shape[2], device=call.query.device)[None, keys]
        return mask.mask_mod(torch.tensor(row, device=rows.device), torch.tensor(0, device=rows.device), rows, columns)
    if mask is None or mask.dim() == 2:
        if call.window is None:
            return None
        offset = call.key.shape[2] - call.query.shape[2]
        row_S = torch.arange(queries.start, queries.stop, device=call.query.device) + offset
        column_T = torch.arange(keys.start, keys.stop, device=call.query.device)
        distance_ST = row_S[:, None] - column_T
        return (distance_ST >= 0) & (distance_ST < call.window)
    mask = mask[row if mask.shape[0] > 1 else 0]
    mask = mask[0, queries, keys] if mask.dim() == 3 else mask[queries, keys]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _is_causal(mask_ST: torch.Tensor, positions_S: torch.Tensor) -> bool:
    """Whether a mask is nothing but causal, looked at in chunks of queries."""
    keys_T = torch.arange(mask_ST.shape[1], device=mask_ST.device)
    return all(
        torch.equal(mask_ST[begin : begin + 1024], keys_T <= positions_S[begin : begin + 1024, None])
        for begin in range(0, len(mask_ST), 1024)
    )


def query_statistics(row: Row) -> dict[str, torch.Tensor]:
    """The statistics of each query of a row, [H, S], float32.

    Returns:
        The names of `metrics.attention.STATISTICS`; NaN where a statistic is not defined, and for all of a query that
        sees no key.
    """
    n_heads, n_queries, _ = row.query_HSD.shape
    found: dict[str, torch.Tensor] = {}
    for tile in row.tiles():
        for name, values_hn in _reduced(tile, row).items():
            if name not in found:
                found[name] = torch.empty(n_heads, n_queries, device=row.device)
            found[name][tile.heads, tile.queries] = values_hn
    lse_HS = found.pop("lse")
    found["off"] = torch.zeros_like(lse_HS) if row.sinks_HS is None else torch.sigmoid(row.sinks_HS - lse_HS)
    return _completed(found, row.absolute_S)


def _reduced(tile: Tile, row: Row) -> dict[str, torch.Tensor]:
    """What a tile's weights say of each of its queries."""
    weight = tile.weight_hnt
    max_weight_hn = weight.amax(-1)
    lse_hn = tile.max_logit_hn - max_weight_hn.log()
    distance_hn, spread_hn = _distances(weight, row.positions_S[tile.queries], tile.keys.start)
    nothing_hn = max_weight_hn * 0  # NaN for a query that sees no key
    before = row.keys_before(tile)
    return {
        "lse": lse_hn,
        "entropy": lse_hn - torch.linalg.vecdot(weight, tile.score_hnt),
        "participation": torch.linalg.vector_norm(weight, dim=-1) ** -2,
        "max_weight": max_weight_hn,
        "max_logit": tile.max_logit_hn + nothing_hn,
        "first": nothing_hn if before else weight[..., 0],
        "first4": nothing_hn + weight[..., : max(0, 4 - before)].sum(-1),
        "distance": distance_hn,
        "spread": spread_hn,
        **_band(weight, int(row.positions_S[tile.queries.start]) - tile.keys.start),
    }


def _distances(weight_hnt: torch.Tensor, position_n: torch.Tensor, first_key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the keys' distances from each query.

    Positions count from the first query of the tile: what lies near is then summed in small numbers.
    """
    key_t = torch.arange(weight_hnt.shape[-1], device=weight_hnt.device) + float(first_key - int(position_n[0]))
    mean_hn = weight_hnt @ key_t
    off_hnt = key_t - mean_hn[..., None]
    return position_n - position_n[0] - mean_hn, torch.linalg.vecdot(weight_hnt, off_hnt.square_()).sqrt()


def _band(weight_hnt: torch.Tensor, position: int) -> dict[str, torch.Tensor]:
    """Weights on the own key, the one before, and the last 8, 32 and 128: the tile's diagonal as a view.

    Args:
        weight_hnt: A tile's weights; its queries stand behind each other.
        position: The own key of the first query, counted in the tile's keys.
    """
    widest = LOCAL[-1]
    missing = max(0, widest - 1 - position)
    if missing or not weight_hnt.is_contiguous():
        weight_hnt = torch.nn.functional.pad(weight_hnt, (missing, 0)).contiguous()
    n_heads, size, width = weight_hnt.shape
    begin = weight_hnt.storage_offset() + position + missing - (widest - 1)
    band_hnw = weight_hnt.as_strided((n_heads, size, widest), (size * width, width + 1, 1), begin)
    return {
        "self": band_hnw[..., -1],
        "previous": band_hnw[..., -2],
        **{f"local{w}": band_hnw[..., -w:].sum(-1) for w in LOCAL},
    }


def _completed(found: dict[str, torch.Tensor], positions_S: torch.Tensor) -> dict[str, torch.Tensor]:
    """What follows from the other statistics; NaN where something is not defined."""
    entropy_HS = found["entropy"].clamp(min=0)
    first_HS = found["first"].clamp(0, 1)
    later_S = positions_S > 0
    nan = torch.tensor(torch.nan, device=entropy_HS.device)
    kept_HS = (first_HS <= MOSTLY) & later_S
    binary_HS = torch.special.entr(first_HS) + torch.special.entr(1 - first_HS)
    rest_HS = torch.where(kept_HS, 1 - first_HS, nan)
    return found | {
        "entropy": entropy_HS,
        "normalized_entropy": torch.where(later_S, entropy_HS / torch.log(positions_S + 1.0), nan),
        "effective_keys": torch.exp(entropy_HS),
        "previous": torch.where(later_S, found["previous"], nan),
        "entropy_rest": (entropy_HS - binary_HS).clamp(min=0) / rest_HS,
        "distance_rest": (found["distance"] - first_HS * positions_S) / rest_HS,
        "mostly_first": torch.where(later_S & ~first_HS.isnan(), (first_HS > MOSTLY).float(), nan),
    }


def weights(row: Row, *, heads: slice | None = None) -> torch.Tensor:
    """The weights themselves, [H, S, T], of a row that is short enough for them."""
    n_heads, n_queries, _ = row.query_HSD.shape
    wanted = heads or slice(0, n_heads)
    found_HST = torch.zeros(wanted.stop - wanted.start, n_queries, row.n_keys, device=row.device)
    for tile in row.tiles(wanted):
        stop = min(tile.keys.stop, row.n_keys)
        into = slice(tile.heads.start - wanted.start, tile.heads.stop - wanted.start)
        found_HST[into, tile.queries, tile.keys.start : stop] = tile.weight_hnt[..., : stop - tile.keys.start]
    return found_HST
