"""What balanced random routing would show at the sample's size: the floor under every measure of imbalance.

Each token draws one of the K-subsets of E experts, all equally likely, independently. These are expectations, not
quantiles, and not a test (`nulls.balance_test` keeps the documents' own preferences; here tokens are independent).
`tokens_x` takes the T of one corpus or of each document. Axes: T tokens, D documents, E routed experts, K chosen per
token, R simulated corpora; x any axes.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num
from scipy.stats import binom

from workbench.statistics.arithmetic import checked_counts

SIMULATE_BELOW = 256  # assignments T·K under which order statistics of independent binomials are 1 to 8 % off
SIMULATIONS = 8192  # standard error of the mean of the maximum then: under .5 % of it


def expected_squared_cv(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[CV²] of the load, (E/K − 1)/T, exactly.

    E[CV] lies under its root, by 3.5 % at E = 8 and less beyond. Range [0, E/K − 1]; unit 1. NaN at T < 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours: the variance of a binomial count with rate K/E; the counts' sum is fixed.
    """
    _check_shape(n_experts, top_k)
    return np.asarray((n_experts / top_k - 1) / _tokens(tokens_x))


def expected_gini(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[Gini] of the load, exactly: (E − 1)/(2TK) · E|c_i − c_j|.

    c_i − c_j adds T steps of +1, 0, −1, with q = K(E−K)/(E(E−1)) for each sign, and for a lattice walk
    E|s| = 1/π ∫_0^π (1 − φ(t)^T)/(1 − cos t) dt, φ = 1 − 2q(1 − cos t). For large T it is
    sqrt((1 − 1/E)(E/K − 1)/(πT)).

    Range [0, 1 − K/E]; unit 1. NaN at T < 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_shape(n_experts, top_k)
    if n_experts == 1:
        return np.asarray(_tokens(tokens_x) * 0)
    step = top_k * (n_experts - top_k) / (n_experts * (n_experts - 1))

    def one(tokens: float) -> float:
        # the midpoint rule is exact with more nodes than T, and to 1e-12 once they resolve φ^T, of width 1/sqrt(2qT)
        nodes = int(min(tokens + 1, 64 + 16 * np.sqrt(tokens)))
        fall = 1 - np.cos((np.arange(nodes) + 0.5) * np.pi / nodes)
        distance = np.mean((1 - (1 - 2 * step * fall) ** tokens) / fall)
        return (n_experts - 1) * distance / (2 * tokens * top_k)

    return _per_distinct(tokens_x, one)


def expected_entropy_deficit(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[1 − H(f)/ln E], exactly: each count is binomial, so E[H] = −E · E[f ln f]. About (E/K − 1)/(2T ln E).

    Range [0, 1 − ln K/ln E]; unit 1. NaN at T < 1, and for E = 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_shape(n_experts, top_k)

    def one(tokens: float) -> float:
        count, probability = _binomial(tokens, top_k / n_experts)
        share = np.maximum(count, 1) / (tokens * top_k)
        f_ln_f = np.where(count > 0, share * np.log(share), 0)
        return 1 + n_experts * float(probability @ f_ln_f) / np.log(n_experts) if n_experts > 1 else np.nan

    return _per_distinct(tokens_x, one)


def expected_dead_experts(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[number of experts never chosen], E(1 − K/E)^T, exactly.

    Range [0, E − K]; unit: experts. NaN at T < 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_shape(n_experts, top_k)
    return np.asarray(n_experts * (1 - top_k / n_experts) ** _tokens(tokens_x))


def expected_max_violation(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[MaxVio] of the load.

    From 256 assignments on: the expected maximum of E independent binomials, Σ_c 1 − F(c)^E, less their mean, times
    sqrt(E/(E−1)), since counts with a fixed sum are a little negatively correlated: within 1 % of simulation for E
    from 2 to 256 (the skewness is in it, which the normal form m_E·sqrt(E/(E−1))·sqrt((E/K−1)/T) lacks). Under that:
    the mean of 8,192 simulated corpora with a fixed seed, standard error under .5 %.

    Range [0, E/K − 1]; unit 1. NaN at T < 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours, for the metric of Wang et al. 2024, arXiv:2408.15664, Eq. 4.
    """
    return _expected_extreme(tokens_x, n_experts, top_k, np.max, lambda below, above: 1 - below**n_experts)


def expected_min_violation(tokens_x: Num[np.ndarray, "*x"], *, n_experts: int, top_k: int) -> Float[np.ndarray, "*x"]:
    """E[1 − min c / mean c] of the load; found as `expected_max_violation` is.

    Range [0, 1]; unit 1. NaN at T < 1.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    return _expected_extreme(tokens_x, n_experts, top_k, np.min, lambda below, above: above**n_experts)


def document_excess(
    counts_DxE: Num[np.ndarray, "D *x E"],
    *,
    statistic: Callable[[np.ndarray], np.ndarray],
    expected: Callable[..., np.ndarray],
    top_k: int,
) -> Float[np.ndarray, "D *x"]:
    """Each document's imbalance over the floor at its own length, statistic(c_d) − expected(T_d, E, K).

    Range: of the statistic, negative where a document is more even than chance; unit 1. NaN for a document without
    tokens. Example: `document_excess(counts, statistic=max_violation, expected=expected_max_violation, top_k=8)`.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    tokens_Dx = checked_counts(counts_DxE).sum(axis=-1) / top_k
    return np.asarray(statistic(counts_DxE) - expected(tokens_Dx, n_experts=counts_DxE.shape[-1], top_k=top_k))


def pseudo_document_squared_cv(counts_DxE: Num[np.ndarray, "D *x E"], *, top_k: int) -> Float[np.ndarray, "D *x"]:
    """E[CV²] of a document of the same length whose tokens are drawn from the whole corpus without replacement.

    The part of a document's imbalance that the corpus' own load and the document's length explain; the rest is the
    document's preference. With p_e = c_e/T of the corpus and n the document's tokens, exactly
    E/(nK)² · Σ_e [(n p_e)² + n p_e(1 − p_e)(T − n)/(T − 1)] − 1.

    Range [0, E/K − 1]; unit 1. NaN for a document without tokens, and for a corpus of one token.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours (the variance of a hypergeometric count).
    """
    n_experts = counts_DxE.shape[-1]
    _check_shape(n_experts, top_k)
    counts_DxE = checked_counts(counts_DxE)
    tokens_Dx = _tokens(counts_DxE.sum(axis=-1) / top_k)
    total_x = np.nansum(tokens_Dx, axis=0)
    rate_xE = counts_DxE.sum(axis=0) / total_x[..., None]
    left_Dx = (total_x - tokens_Dx) / np.where(total_x > 1, total_x - 1, np.nan)
    noise_Dx = (rate_xE * (1 - rate_xE)).sum(axis=-1) / tokens_Dx * left_Dx
    return np.asarray(n_experts / top_k**2 * ((rate_xE**2).sum(axis=-1) + noise_Dx) - 1)


def _expected_extreme(
    tokens_x: np.ndarray,
    n_experts: int,
    top_k: int,
    extreme: Callable[..., np.ndarray],
    survival: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """|E[extreme count] − mean| / mean; `survival(P(c ≤ k), P(c > k))` is P(extreme > k) for each k."""
    _check_shape(n_experts, top_k)
    if n_experts == top_k:
        return np.asarray(_tokens(tokens_x) * 0)
    small = np.unique(tokens_x[(tokens_x >= 1) & (tokens_x * top_k < SIMULATE_BELOW)])
    simulated = dict(zip(small.tolist(), _simulate(small, n_experts, top_k, extreme), strict=True))

    def one(tokens: float) -> float:
        mean = tokens * top_k / n_experts
        if tokens in simulated:
            return abs(simulated[tokens] - mean) / mean
        count, probability = _binomial(tokens, top_k / n_experts)
        below = np.minimum(np.cumsum(probability), 1)
        value = count[0] + survival(below, 1 - below).sum()
        return abs(value - mean) / mean * np.sqrt(n_experts / (n_experts - 1))

    return _per_distinct(tokens_x, one)


def _simulate(tokens_N: np.ndarray, n_experts: int, top_k: int, extreme: Callable[..., np.ndarray]) -> list[float]:
    """Mean extreme count at each T (ascending), along R corpora that grow token by token."""
    rng = np.random.default_rng(0)
    counts_RE = np.zeros((SIMULATIONS, n_experts), dtype=np.int64)
    row_R1 = np.arange(SIMULATIONS)[:, None]
    out, done = [], 0
    for tokens in tokens_N.astype(np.int64).tolist():
        drawn_RTK = _random_subsets(rng, SIMULATIONS * (tokens - done), n_experts, top_k).reshape(SIMULATIONS, -1)
        cells = (row_R1 * n_experts + drawn_RTK).ravel()
        counts_RE += np.bincount(cells, minlength=counts_RE.size).reshape(counts_RE.shape)
        out.append(float(extreme(counts_RE, axis=1).mean()))
        done = tokens
    return out


def _random_subsets(rng: np.random.Generator, n: int, n_experts: int, top_k: int) -> np.ndarray:
    """Uniform K-subsets of E (Floyd's algorithm: draw from [0, j], and take j itself where the draw is taken)."""
    chosen_NK = np.empty((n, top_k), dtype=np.int64)
    for k, j in enumerate(range(n_experts - top_k, n_experts)):
        draw_N = rng.integers(0, j + 1, size=n)
        taken_N = (chosen_NK[:, :k] == draw_N[:, None]).any(axis=1)
        chosen_NK[:, k] = np.where(taken_N, j, draw_N)
    return chosen_NK


def _binomial(tokens: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts within 12 standard deviations (at least 40) of the mean, and their probabilities."""
    reach = max(40.0, 12 * np.sqrt(tokens * rate * (1 - rate)))
    count = np.arange(max(0, int(tokens * rate - reach)), int(min(tokens, tokens * rate + reach)) + 1)
    return count, binom.pmf(count, tokens, rate)


def _per_distinct(tokens_x: np.ndarray, one: Callable[[float], float]) -> np.ndarray:
    """`one` of every T, computed once for each distinct T; NaN at T < 1."""
    distinct, inverse = np.unique(_tokens(tokens_x), return_inverse=True)
    values = np.array([np.nan if np.isnan(tokens) else one(tokens) for tokens in distinct.tolist()])
    return np.asarray(values[inverse]).reshape(tokens_x.shape)


def _tokens(tokens_x: np.ndarray) -> np.ndarray:
    return np.where(tokens_x >= 1, tokens_x, np.nan).astype(np.float64)


def _check_shape(n_experts: int, top_k: int) -> None:
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k is {top_k}, expected 1 to {n_experts} (E): pass K and E of the recording")
