"""What a capacity per expert would drop: by counts, and by place in the queue.

Hypothetical: models that drop nothing were trained without a capacity, and one trained with it routes otherwise. How
many assignments are dropped follows from counts alone; who is dropped depends on the order in which they are served.
Axes: T tokens, E routed experts, K chosen per token, G groups of tokens that share a capacity, S positions in a group;
x any further axes (layers).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num
from scipy.special import betainc

from workbench.statistics.arithmetic import check_ids, checked_counts

SMALL = np.iinfo(np.uint16).max  # keys up to here are sorted by radix, in linear time


def capacity(
    tokens_G: Num[np.ndarray, "*g"], *, n_experts: int, top_k: int, capacity_factor: float
) -> Int[np.ndarray, "*g"]:
    """Assignments that one expert takes of a group of n tokens, C = ceil(factor · K · n / E).

    Range 0 to ∞; unit: assignments. No NaN.

    Args:
        tokens_G: n.
        n_experts: E.
        top_k: K.
        capacity_factor: 1 is room for exactly balanced load.

    Raises:
        ValueError: `capacity_factor` is not positive.

    Source:
        Lepikhin et al. 2020 (GShard), arXiv:2006.16668, section 2.2 †: rounded up as in Megatron-LM's `get_capacity`.
    """
    if not capacity_factor > 0:
        raise ValueError(f"capacity_factor is {capacity_factor}, expected more than 0: 1 is room for balanced load")
    # less 1e-9: 1.1 · 10 / 1 is 11.000000000000002 in floating point, and is not 12
    return np.asarray(np.ceil(capacity_factor * top_k * tokens_G / n_experts - 1e-9), dtype=np.int64)


def dropped_by_group(
    counts_GxE: Num[np.ndarray, "G *x E"], *, top_k: int, capacity_factor: float
) -> Float[np.ndarray, "G *x"]:
    """Assignments over the capacity in each group, Σ_e max(c_ge − C_g, 0): the same whoever is served first.

    Range 0 to n·K; unit: assignments. No NaN; 0 in a group without tokens.

    Args:
        counts_GxE: Assignments to each expert by group.
        top_k: K.
        capacity_factor: 1 is room for exactly balanced load.

    Raises:
        ValueError: a count is negative, or `capacity_factor` is not positive.

    Source:
        Lepikhin et al. 2020 (GShard), arXiv:2006.16668, section 2.2 †: as commonly given.
    """
    counts_GxE = checked_counts(counts_GxE)
    tokens_Gx = np.round(counts_GxE.sum(axis=-1) / top_k)
    room_Gx = capacity(tokens_Gx, n_experts=counts_GxE.shape[-1], top_k=top_k, capacity_factor=capacity_factor)
    return np.maximum(counts_GxE - room_Gx[..., None], 0).sum(axis=-1)


def expected_drop_fraction(
    rate_xE: Float[np.ndarray, "*x E"], tokens: int, *, top_k: int, capacity_factor: float
) -> Float[np.ndarray, "*x"]:
    """Share dropped of a group of n tokens that are drawn at random and choose e with these rates, exactly.

    c_e is binomial(n, p_e), and E max(c − C, 0) = n·p·P(c′ ≥ C) − C·P(c > C), with c′ of n − 1 tokens. Rates K/E: the
    floor, uniform random routing. The corpus' rates: what its load alone drops, groups being mixed at random (with
    replacement; without, groups that are most of the corpus drop a little less).

    Range [0, 1]; unit 1. NaN where a rate is.

    Args:
        rate_xE: p_e, share of the tokens that choose e; sum K.
        tokens: n.
        top_k: K.
        capacity_factor: 1 is room for exactly balanced load.

    Raises:
        ValueError: `tokens` is under 1, or `capacity_factor` is not positive.

    Source:
        ours (the mean excess of a binomial count).
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}, expected 1 or more: an empty group drops nothing")
    n_experts = rate_xE.shape[-1]
    room = int(capacity(np.array(tokens), n_experts=n_experts, top_k=top_k, capacity_factor=capacity_factor))
    excess_xE = tokens * rate_xE * _at_least(room, tokens - 1, rate_xE) - room * _at_least(room + 1, tokens, rate_xE)
    return np.asarray(np.maximum(excess_xE, 0).sum(axis=-1) / (tokens * top_k))


def _at_least(least: int, n: int, rate_xE: np.ndarray) -> np.ndarray:
    """P(binomial(n, p) ≥ least)."""
    if least <= 0:
        return np.ones_like(rate_xE)
    return betainc(least, n - least + 1, rate_xE) if least <= n else np.zeros_like(rate_xE)


def queue_places(
    ids_TK: Integer[np.ndarray, "T K"],
    *,
    n_experts: int,
    group_T: Integer[np.ndarray, "T"],
    priority: Literal["rank", "token"],
) -> Int[np.ndarray, "T K"]:
    """How many assignments of its group an expert was served before each one. Over the capacity means dropped.

    "rank": all tokens' first choices come first, then all second choices (so `ids_TK` must be ranked); "token": token
    by token, in the order of the rows.

    Range 0 to n − 1; unit: assignments. No NaN.

    Args:
        ids_TK: Chosen expert ids, tokens in the order of the text.
        n_experts: E.
        group_T: Index of each token's group, 0 or more: its document, or `np.arange(T) // n` for batches of n tokens.
        priority: What comes first.

    Raises:
        ValueError: an id lies outside [0, E), one token names an expert twice, or a group is negative.

    Source:
        Lepikhin et al. 2020 (GShard), arXiv:2006.16668, section 2.2 † ("rank").
    """
    check_ids(ids_TK, n_experts=n_experts)
    if len(group_T) and group_T.min() < 0:
        raise ValueError(f"group_T holds {group_T.min()}, expected 0 or more: give every token a group")
    n_tokens, top_k = ids_TK.shape
    by_rank = priority == "rank"
    expert_N = (ids_TK.T if by_rank else ids_TK).ravel()
    group_N = np.tile(group_T, top_k) if by_rank else np.repeat(group_T, top_k)
    place_N = _rank_in_run(group_N, expert_N)
    return place_N.reshape(top_k, n_tokens).T if by_rank else place_N.reshape(n_tokens, top_k)


def _rank_in_run(group_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
    """How many earlier items have the same group and expert: a stable sort, and the place in the run of equal ones."""
    key_N = group_N.astype(np.int64) * (int(expert_N.max(initial=0)) + 1) + expert_N
    order_N = np.argsort(key_N.astype(np.uint16) if key_N.max(initial=0) <= SMALL else key_N, kind="stable")
    key_N = key_N[order_N]
    starts = np.flatnonzero(np.diff(key_N, prepend=-1))
    rank_N = np.empty(len(order_N), dtype=np.int64)
    rank_N[order_N] = np.arange(len(order_N)) - np.repeat(starts, np.diff(starts, append=len(order_N)))
    return rank_N


@dataclass(frozen=True, eq=False)
class Drops:
    """Which assignments a capacity would drop. `drop_fraction` says how it is found."""

    fraction: float
    """Dropped assignments over all; NaN without tokens."""
    by_position_S: Float[np.ndarray, "S"]
    """The same at each position in the group, over the groups that reach it."""
    capacity_G: Int[np.ndarray, "G"]
    """Assignments that one expert takes in each group, groups in the order of their labels."""
    dropped_TK: Bool[np.ndarray, "T K"]


def drop_fraction(
    ids_TK: Integer[np.ndarray, "T K"],
    *,
    n_experts: int,
    capacity_factor: float,
    group_T: Integer[np.ndarray, "T"],
    priority: Literal["rank", "token"],
) -> Drops:
    """Assignments over an expert's capacity C = ceil(factor · K · n / E), in groups of n tokens.

    Within a group an expert takes its first C assignments, in the order of `queue_places`.

    Range [0, 1]; unit 1. NaN without tokens.

    Args:
        ids_TK: Chosen expert ids, tokens in the order of the text.
        n_experts: E.
        capacity_factor: 1 is room for exactly balanced load.
        group_T: Label of each token's group: its document, or `np.arange(T) // n` for batches of n tokens.
        priority: What comes first where there is too little room.

    Raises:
        ValueError: an id lies outside [0, E), one token names an expert twice, or `capacity_factor` is not positive.

    Source:
        Lepikhin et al. 2020 (GShard), arXiv:2006.16668, section 2.2 † ("rank"); Xue et al. 2024 (OpenMoE),
        arXiv:2402.01739 (drops by position). As commonly given; rounded up as in Megatron-LM's `get_capacity`.
    """
    n_tokens, top_k = ids_TK.shape
    _, group_index_T, size_G = np.unique(group_T, return_inverse=True, return_counts=True)
    room_G = capacity(size_G, n_experts=n_experts, top_k=top_k, capacity_factor=capacity_factor)
    place_TK = queue_places(ids_TK, n_experts=n_experts, group_T=group_index_T, priority=priority)
    dropped_TK = place_TK >= room_G[group_index_T][:, None]
    position_T = _rank_in_run(group_index_T, np.zeros(n_tokens, dtype=np.uint16))
    n_S = np.bincount(position_T)
    return Drops(
        fraction=float(dropped_TK.mean()) if n_tokens else float("nan"),
        by_position_S=np.bincount(position_T, weights=dropped_TK.sum(axis=1)) / (n_S * top_k),
        capacity_G=room_G,
        dropped_TK=dropped_TK,
    )
