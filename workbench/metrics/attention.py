"""Statistics of attention and of heads, by definition, from a matrix of weights.

The plain twin of `capture/attention/tiles.py`.

A[h, i, j] is the weight of query i on key j ≤ i, per head, summing to 1 over the keys. What is captured is never
computed this way, for a matrix of T × T weights does not fit; `docs/attention.md` derives what replaces it.

Axes: H heads, S queries, T keys. Entropies are in nats, distances in tokens.
"""

import numpy as np
from jaxtyping import Float, Int

SINK_WINDOW = 64
SINK_OVER = 0.3  # Gu et al., arXiv:2410.10781: a sink where the mean weight of the first key is over this

STATISTICS = {
    "entropy": "entropy of the weights, nats",
    "normalized_entropy": "entropy over ln of the number of keys; not defined for a single key",
    "effective_keys": "exp of the entropy",
    "participation": "1 over the sum of squared weights",
    "first": "weight of the first key",
    "first4": "weight of the first four keys",
    "self": "weight of the query's own key",
    "previous": "weight of the key before",
    "local8": "weight of the last 8 keys, the own one counted",
    "local32": "weight of the last 32 keys",
    "local128": "weight of the last 128 keys",
    "max_weight": "largest weight",
    "max_logit": "largest score before the softmax; of a document the largest, not the mean",
    "distance": "mean distance of the keys, tokens",
    "spread": "standard deviation of the keys' distances, tokens",
    "entropy_rest": "entropy without the first key, the others' weights divided by their sum; queries with more than "
    "0.9 on the first key are left out",
    "distance_rest": "mean distance without the first key; the same queries are left out",
    "mostly_first": "share of queries with more than 0.9 on the first key",
    "off": "weight that a learned sink takes away from all keys, before the others are divided by their sum",
}
WEIGHED = {
    "keys90": "fewest keys that hold 0.9 of the weight",
    "duplicate": "weight of earlier keys of the same token; the own one is not counted",
    "induction": "weight of the keys behind earlier ones of the same token",
}
PROFILED = ("entropy", "first", "local32", "distance")
LOCAL = (8, 32, 128)
MOSTLY = 0.9  # Vig & Belinkov, arXiv:1906.04284, drop queries with more than this on the first key
BIN_EDGES = (0, 1, *(2**i for i in range(1, 16)))  # positions 0, 1, 2-3, 4-7, …, 32,768 and beyond


def query_statistics(
    weights_HST: Float[np.ndarray, "H S T"], positions_S: Int[np.ndarray, " S"]
) -> dict[str, Float[np.ndarray, "H S"]]:
    """Every statistic of every query but `off` and `max_logit`, which weights do not show.

    Args:
        weights_HST: Attention weights; of query i only keys up to its position may be more than zero.
        positions_S: Position of each query among the keys.

    Returns:
        By name; NaN where a statistic is not defined for a query.

    Raises:
        ValueError: weights of a query do not sum to 1.

    Source: entropy and distance as Vig & Belinkov, arXiv:1906.04284, Eq. 6-7, per query and not pooled; participation
    ratio as commonly given; local and first-key weights are ours.
    """
    refuse_no_weights(weights_HST)
    weights_HST = weights_HST.astype(np.float64)
    distance_ST = positions_S[:, None] - np.arange(weights_HST.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_HS = -np.where(weights_HST > 0, weights_HST * np.log(weights_HST), 0).sum(-1)
        first_HS = weights_HST[..., 0]
        mean_HS = (weights_HST * distance_ST).sum(-1)
        found = {
            "entropy": entropy_HS,
            "normalized_entropy": np.where(positions_S > 0, entropy_HS / np.log(positions_S + 1.0), np.nan),
            "effective_keys": np.exp(entropy_HS),
            "participation": 1 / (weights_HST**2).sum(-1),
            "first": first_HS,
            "first4": weights_HST[..., :4].sum(-1),
            "self": (weights_HST * (distance_ST == 0)).sum(-1),
            "previous": np.where(positions_S > 0, (weights_HST * (distance_ST == 1)).sum(-1), np.nan),
            **{f"local{w}": (weights_HST * ((distance_ST >= 0) & (distance_ST < w))).sum(-1) for w in (8, 32, 128)},
            "max_weight": weights_HST.max(-1),
            "distance": mean_HS,
            "spread": np.sqrt((weights_HST * (distance_ST - mean_HS[..., None]) ** 2).sum(-1)),
        }
        return found | _without_first(entropy_HS, mean_HS, first_HS, positions_S)


def refuse_no_weights(weights_HST: np.ndarray) -> None:
    """Refuses what is no attention.

    Args:
        weights_HST: Attention weights; NaN for a query that sees no key.

    Raises:
        ValueError: weights of a query do not sum to 1.

    Source: the softmax over keys, whose weights sum to 1.
    """
    off = np.nanmax(np.abs(weights_HST.sum(-1) - 1), initial=0)
    if off > 1e-3:
        raise ValueError(
            f"the weights of a query sum to {1 + off:.3g} or {1 - off:.3g}; 1 was expected. Divide them by their sum, "
            "and report what a sink takes apart."
        )


def _without_first(
    entropy_HS: Float[np.ndarray, "H S"],
    distance_HS: Float[np.ndarray, "H S"],
    first_HS: Float[np.ndarray, "H S"],
    positions_S: Int[np.ndarray, " S"],
) -> dict[str, Float[np.ndarray, "H S"]]:
    """Entropy and mean distance of what is left when the first key is taken out and the rest sums to 1 again.

    H' = (H - h(a)) / (1 - a) with a the first key's weight and h the entropy of (a, 1 - a); D' = (D - a i) / (1 - a).
    NaN for the first query, which has no other key, and where a is over 0.9: little is left, and it is mostly rounding.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        a_HS = np.clip(first_HS, 0, 1)
        binary_HS = -(np.where(a_HS > 0, a_HS * np.log(a_HS), 0) + np.where(a_HS < 1, (1 - a_HS) * np.log1p(-a_HS), 0))
        kept_HS = (a_HS <= MOSTLY) & (positions_S > 0)
        rest_HS = np.where(kept_HS, 1 - a_HS, np.nan)
        return {
            "entropy_rest": np.maximum(entropy_HS - binary_HS, 0) / rest_HS,
            "distance_rest": (distance_HS - a_HS * positions_S) / rest_HS,
            "mostly_first": np.where(positions_S > 0, (a_HS > MOSTLY).astype(np.float64), np.nan),
        }


def by_bin(values_HS: Float[np.ndarray, "H S"], positions_S: Int[np.ndarray, " S"]) -> Float[np.ndarray, "H bins"]:
    """Means over the queries of each bin of positions (`BIN_EDGES`); NaN where a bin holds none.

    Args:
        values_HS: A statistic of each query; NaN where it is not defined, and left out.
        positions_S: Position of each query.

    Raises:
        ValueError: a position below 0.

    Source: ours; means over positions depend on the length of a document, so documents are compared at equal bins.
    """
    if positions_S.size and positions_S.min() < 0:
        raise ValueError(f"positions_S holds {positions_S.min()}; positions count from 0.")
    bin_S = np.searchsorted(BIN_EDGES, positions_S, side="right") - 1
    with np.errstate(invalid="ignore"):
        defined_HS = np.isfinite(values_HS)
        columns = []
        for b in range(len(BIN_EDGES)):
            here_HS = defined_HS & (bin_S == b)
            columns.append(np.where(here_HS, values_HS, 0).sum(-1) / here_HS.sum(-1))
    return np.stack(columns, axis=-1)


def weighed_statistics(
    weights_HST: Float[np.ndarray, "H S T"], ids_T: Int[np.ndarray, " T"], *, positions_S: Int[np.ndarray, " S"]
) -> dict[str, Float[np.ndarray, "H S"]]:
    """The statistics of `WEIGHED`, of every query.

    Args:
        weights_HST: Attention weights.
        ids_T: Token ids of the keys.
        positions_S: Position of each query among the keys; a query's token is the key there.

    Returns:
        By name. `duplicate` and `induction` are 0 where the token did not occur before, not NaN: no weight lies there.

    Raises:
        ValueError: weights of a query do not sum to 1.

    Source: ours for running text. On repeated random tokens, `repeated_scores`, they are the duplicate and induction
    scores of Wang et al., arXiv:2211.00593, and Olsson et al., arXiv:2209.11895.
    """
    refuse_no_weights(weights_HST)
    largest_HST = -np.sort(-weights_HST.astype(np.float64), axis=-1)
    unseen_HS = np.isnan(weights_HST).any(-1)
    keys90_HS = np.where(unseen_HS, np.nan, (np.cumsum(largest_HST, -1) < 0.9 - 1e-9).sum(-1) + 1.0)
    keys_T = np.arange(len(ids_T))
    same_ST = ids_T[positions_S][:, None] == ids_T
    earlier_ST = same_ST & (keys_T < positions_S[:, None])
    behind_ST = np.zeros_like(earlier_ST)
    behind_ST[:, 1:] = earlier_ST[:, :-1]  # a key behind an earlier one is at most the query's own
    return {
        "keys90": keys90_HS,
        "duplicate": (weights_HST * earlier_ST).sum(-1),
        "induction": (weights_HST * behind_ST).sum(-1),
    }


def sink_windows(first_HS: Float[np.ndarray, "H S"], *, window: int = SINK_WINDOW) -> Float[np.ndarray, "H W"]:
    """Mean weight of the first key over each whole window of queries.

    Args:
        first_HS: Weight of the first key, of each query from position 0 on.
        window: Queries of a window; what is left at the end is not used.

    Returns:
        W windows; none of a text shorter than one. NaN where a query of the window saw no key.

    Raises:
        ValueError: a window below 1.

    Source: the sink metric of Gu et al., arXiv:2410.10781, which takes inputs of 64 tokens; further windows of a longer
    text are ours, and look at the same first key.
    """
    if window < 1:
        raise ValueError(f"window is {window}; 1 or more was expected.")
    whole = first_HS.shape[1] // window
    return first_HS[:, : whole * window].reshape(len(first_HS), whole, window).mean(-1)


def head_divergence(weights_HST: Float[np.ndarray, "H S T"]) -> Float[np.ndarray, "H H"]:
    """Jensen-Shannon divergence between the weights of each pair of heads, mean over queries, nats (at most ln 2).

    Args:
        weights_HST: Attention weights of all heads on the same keys.

    Returns:
        Symmetric, 0 on the diagonal; queries of which a head saw no key are left out, NaN where none is left.

    Raises:
        ValueError: weights of a query do not sum to 1.

    Source: Lin, IEEE Trans. Inf. Theory 37 (1991), as commonly applied to heads (Clark et al., arXiv:1906.04341).
    """
    refuse_no_weights(weights_HST)
    kept_HST = weights_HST[:, np.isfinite(weights_HST).all((0, 2))].astype(np.float64)
    if not kept_HST.shape[1]:
        return np.full((len(weights_HST), len(weights_HST)), np.nan)
    own_H = _entropy(kept_HST).mean(-1)
    mixed_HH = np.stack([_entropy((kept_HST + one_ST) / 2).mean(-1) for one_ST in kept_HST])
    found_HH = np.maximum(mixed_HH - (own_H[:, None] + own_H) / 2, 0)
    np.fill_diagonal(found_HH, 0)
    return found_HH


def _entropy(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(weights > 0, weights * np.log(weights), 0).sum(-1)


def group_similarity(
    divergence_HH: Float[np.ndarray, "H H"], *, n_groups: int, n_permutations: int = 999, seed: int = 0
) -> dict[str, float]:
    """Whether heads that share keys and values attend more alike than heads of different groups.

    Args:
        divergence_HH: Of `head_divergence`, heads of a group beside each other.
        n_groups: Key/value groups.
        n_permutations: Random assignments of heads to groups of the same sizes.
        seed: Of the assignments.

    Returns:
        `inside` and `between`: mean divergence of the pairs of a group, and of other pairs; `difference`, between less
        inside; `p`, one-sided, of a difference as large when heads are dealt to groups at random. All NaN where each
        head has its own group, or all share one.

    Raises:
        ValueError: heads that do not divide into the groups.

    Source: ours; the permutation is the exact null of exchangeable heads.
    """
    n_heads = len(divergence_HH)
    if n_heads % n_groups:
        raise ValueError(f"{n_heads} heads do not divide into {n_groups} groups.")
    if n_groups in (1, n_heads):
        return dict.fromkeys(("inside", "between", "difference", "p"), float("nan"))
    group_H = np.arange(n_heads) // (n_heads // n_groups)
    upper = np.triu_indices(n_heads, 1)

    def means(order_H: np.ndarray) -> tuple[float, float]:
        same = group_H[order_H][upper[0]] == group_H[order_H][upper[1]]
        pairs = divergence_HH[upper]
        return float(pairs[same].mean()), float(pairs[~same].mean())

    inside, between = means(np.arange(n_heads))
    rng = np.random.default_rng(seed)
    dealt = [means(rng.permutation(n_heads)) for _ in range(n_permutations)]
    as_large = sum(b - a >= between - inside - 1e-12 for a, b in dealt)
    p = (as_large + 1) / (n_permutations + 1)
    return {"inside": inside, "between": between, "difference": between - inside, "p": p}


def repeated_scores(weights_HST: Float[np.ndarray, "H S T"], *, n_tokens: int) -> dict[str, Float[np.ndarray, " H"]]:
    """Probe scores of each head on a first token and then copies of one run of random tokens.

    Args:
        weights_HST: Weights of every query on every key, S = T = 1 + copies · n_tokens.
        n_tokens: n, length of the run.

    Returns:
        `induction`: weight on the keys behind earlier copies of the query's token (offsets r·n - 1); `duplicate`: on
        the earlier copies (offsets r·n); `previous`: on the key before. Means over the queries of the second copy on;
        NaN where one saw no key.

    Raises:
        ValueError: fewer than two copies, or keys that are not 1 + copies · n_tokens.

    Source: Olsson et al., arXiv:2209.11895; Wang et al., arXiv:2211.00593, appendix H; with all earlier copies summed.
    """
    n_keys = weights_HST.shape[-1]
    copies, left = divmod(n_keys - 1, n_tokens)
    if copies < 2 or left:
        raise ValueError(f"{n_keys} keys are not 1 + 2 or more copies of {n_tokens} tokens.")
    totals_3H = np.zeros((3, len(weights_HST)))
    queries = range(1 + n_tokens, n_keys)
    for query in queries:
        back = np.arange(1, (query - 1) // n_tokens + 1) * n_tokens
        for i, keys in enumerate((query - back + 1, query - back, np.array([query - 1]))):
            totals_3H[i] += weights_HST[:, query, keys].sum(-1)
    return dict(zip(("induction", "duplicate", "previous"), totals_3H / len(queries), strict=True))
