"""What attention heads do, beyond one query: sinks over windows, how alike heads are, and scores on a probe.

Axes: H heads, S queries, T keys.
"""

import numpy as np
from jaxtyping import Float

from workbench.metrics.attention import refuse_no_weights

SINK_WINDOW = 64
SINK_OVER = 0.3  # Gu et al., arXiv:2410.10781: a sink where the mean weight of the first key is over this


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
