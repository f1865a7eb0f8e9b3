"""How routing goes along a text: repeated experts, stretches that use the same ones, experts that runs need.

Sums by document, or histograms that add up over parts. Tokens come document by document, in the order of the text, and
`neighbours` says which of them stand next to one another. Not causes: neighbouring tokens are alike in topic and often
in word, so each measure has its value when whole sets S_t are shuffled within documents. Axes: T tokens, D documents, E
routed experts, K chosen per token, W words of bits, N counts 0 to m in a window of m tokens; x any further axes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt64
from scipy.special import gammaln
from scipy.stats import binom

from workbench.metrics.sets import indicators, overlap
from workbench.statistics.arithmetic import checked_counts

_WINDOWS = 1 << 14  # at a time: what is made of them stays in the cache
_ADDED = 255  # bytes of 0 and 1 whose sum is a byte


@dataclass(frozen=True, eq=False)
class Repetition:
    """Sums over the pairs of neighbouring tokens of each document; over `pairs_D` they are rates."""

    pairs_D: Int[np.ndarray, "D"]
    first_D: Int[np.ndarray, "D"]
    """Pairs with the same top-1 expert."""
    any_D: Int[np.ndarray, "D"]
    """Pairs with an expert in common."""
    overlap_D: Int[np.ndarray, "D"]
    """Experts in common, summed over pairs."""


def repetition(
    bits_TW: UInt64[np.ndarray, "T W"],
    document_T: Int[np.ndarray, "T"],
    *,
    follows_T: Bool[np.ndarray, "T"],
    n_documents: int,
    top1_T: Num[np.ndarray, "T"] | None = None,
) -> Repetition:
    """What a token shares with the next one of its document: its top-1 expert, any expert, how many.

    Rates: first and any in [0, 1], overlap in [0, K] experts. Without `top1_T` first is 0 everywhere and means
    nothing. No NaN; a document of one token has no pairs.

    Args:
        bits_TW: Sets (`sets.as_bits`), in the order of the text.
        document_T: Row of each token's document, 0 to D − 1; a document's tokens together.
        follows_T: Whether a token is the next after the row before (`neighbours.follows`); only such rows are a pair.
        n_documents: D.
        top1_T: The first choice.

    Raises:
        ValueError: a document lies outside [0, D).

    Source:
        Jiang et al. 2024 (Mixtral), arXiv:2401.04088, Table 5: as published ("first choice", "first or second choice"
        for K = 2); overlap is ours.
    """
    _check_documents(document_T, n_documents)
    common_T = overlap(bits_TW[1:], bits_TW[:-1])
    most = int(common_T.max(initial=0)) + 1
    # one histogram by document, common experts and first or not: sums by document are read off it
    cell_T = document_T[1:].astype(np.int64) * (2 * most) + 2 * common_T
    if top1_T is not None:
        cell_T += top1_T[1:] == top1_T[:-1]
    histogram = np.bincount(cell_T[follows_T[1:]], minlength=n_documents * 2 * most).reshape(n_documents, most, 2)
    by_overlap_DN = histogram.sum(axis=2)
    return Repetition(
        pairs_D=by_overlap_DN.sum(axis=1),
        first_D=histogram[:, :, 1].sum(axis=1),
        any_D=by_overlap_DN[:, 1:].sum(axis=1),
        overlap_D=by_overlap_DN @ np.arange(most),
    )


@dataclass(frozen=True, eq=False)
class Repeated:
    """Rates of repetition expected of independent tokens."""

    first: Float[np.ndarray, "*x"]
    any: Float[np.ndarray, "*x"]
    overlap: Float[np.ndarray, "*x"]


def uniform_repetition(*, n_experts: int, top_k: int) -> Repeated:
    """Repetition of uniform random routing: first 1/E, any 1 − C(E−K, K)/C(E, K), overlap K²/E.

    No NaN. Routing restricted to groups of experts has values of its own.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        Jiang et al. 2024 (Mixtral), arXiv:2401.04088, section 5 (12.5 % and 46.4 % for 2 of 8): as published.
    """
    _check_top_k(top_k, n_experts)
    apart = np.exp(_log_choose(n_experts - top_k, top_k) - _log_choose(n_experts, top_k))
    return Repeated(np.array(1 / n_experts), np.asarray(1 - apart), np.array(top_k**2 / n_experts))


def load_matched_repetition(
    top1_counts_xE: Num[np.ndarray, "*x E"], counts_xE: Num[np.ndarray, "*x E"], *, top_k: int
) -> Repeated:
    """Repetition of two independent tokens with these loads: first Σ q_e², overlap Σ p_e²; any is NaN.

    q is the load of top-1 choices, p_e = c_e / T. `any` depends on more than the loads: `any_overlap` of a sample.

    First in [1/E, 1], overlap in [K²/E, K]. NaN without tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_top_k(top_k, counts_xE.shape[-1])
    first, chosen = (checked_counts(counts) for counts in (top1_counts_xE, counts_xE))
    total_x, total_first_x = (np.where((n := c.sum(axis=-1)) > 0, n, np.nan) for c in (chosen, first))
    repeated_x = (first**2).sum(axis=-1) / total_first_x**2
    overlap_x = np.asarray((chosen**2).sum(axis=-1) * (top_k / total_x) ** 2)
    return Repeated(np.asarray(repeated_x), np.full_like(overlap_x, np.nan), overlap_x)


def any_overlap(bits_TW: UInt64[np.ndarray, "T W"], document_T: Int[np.ndarray, "T"]) -> float:
    """Share of the pairs of tokens of different documents that have an expert in common: load-matched `any`.

    All pairs: give a sample of tokens. Range [0, 1]; unit 1. NaN without such pairs.

    Raises:
        Nothing.

    Source:
        ours.
    """
    met, pairs = 0, 0
    for t in range(0, len(bits_TW), 256):
        apart_TT = document_T[t : t + 256, None] != document_T
        met += int(np.count_nonzero((overlap(bits_TW[t : t + 256, None], bits_TW[None]) > 0) & apart_TT))
        pairs += int(np.count_nonzero(apart_TT))
    return met / pairs if pairs else float("nan")


def window_histogram(
    bits_TW: UInt64[np.ndarray, "T W"], stretch_T: Int[np.ndarray, "T"], *, n_experts: int, window: int
) -> Int[np.ndarray, "E N"]:
    """How many windows choose an expert n times, n = 0 to m: windows of m tokens, stride 1, without a gap.

    Histograms of parts add up. Stretches shorter than a window give nothing. Unit: windows. No NaN.

    Args:
        bits_TW: Sets, in the order of the text.
        stretch_T: Each token's stretch of neighbours (`neighbours.stretches`).
        n_experts: E.
        window: m.

    Raises:
        ValueError: `window` is outside [1, 255].

    Source:
        ours (a count).
    """
    if not 1 <= window <= 255:
        raise ValueError(f"window is {window}, expected 1 to 255 tokens: 16 is usual")
    histogram = np.zeros((n_experts, window + 1), dtype=np.int64)
    for start in range(0, len(stretch_T) - window + 1, _WINDOWS):
        run = slice(start, start + _WINDOWS + window - 1)
        histogram += _of_windows(bits_TW[run], stretch_T[run], n_experts=n_experts, window=window)
    return histogram


def _of_windows(bits_TW: np.ndarray, stretch_T: np.ndarray, *, n_experts: int, window: int) -> np.ndarray:
    n_windows = len(stretch_T) - window + 1
    # a window lies in one stretch where its ends do
    inside_T = stretch_T[window - 1 :] == stretch_T[:n_windows]
    # sums over windows of 1, 2, 4 … tokens, of which those that make up the window are added end to end
    run_TE = indicators(bits_TW, n_experts=n_experts)
    in_window_TE = np.zeros((n_windows, n_experts), dtype=np.uint8)
    size, placed = 1, 0
    while size <= window:
        if window & size:
            in_window_TE += run_TE[placed : placed + n_windows]
            placed += size
        run_TE = run_TE[:-size] + run_TE[size:]
        size *= 2
    # wide rows, of which 255 add up in a byte: comparing and adding bytes is many times as fast as counting cells
    n_inside = int(np.count_nonzero(inside_T))
    wide = -(-n_inside // _ADDED)
    rows_RX = np.zeros((_ADDED, wide * n_experts), dtype=np.uint8)
    np.compress(inside_T, in_window_TE, axis=0, out=rows_RX.reshape(-1, n_experts)[:n_inside])
    histogram = np.zeros((n_experts, window + 1), dtype=np.int64)
    for n in range(1, int(rows_RX.max(initial=0)) + 1):
        counted_X = np.add.reduce((rows_RX == n).view(np.uint8), axis=0, dtype=np.uint8)
        histogram[:, n] = counted_X.reshape(wide, n_experts).sum(axis=0, dtype=np.int64)
    histogram[:, 0] = n_inside - histogram.sum(axis=1)
    return histogram


def segment_consistency(histogram_xEN: Num[np.ndarray, "*x E N"]) -> Float[np.ndarray, "*x"]:
    """How well keeping experts for whole windows fits the routing: F1 at the best threshold of the layer.

    An expert is on for a window that chooses it τ times or more, for all its m tokens; a token's choices are then
    found with F1 = 2 Σ n·on / (m·#on + Σ n), summed over windows and experts. The largest over τ = 0 … m.

    Range [2K/(E + K), 1], the lower end all experts on; unit 1. NaN without windows. Uniform random routing is above
    the lower end at a finite m: `uniform_segment_consistency`.

    Raises:
        ValueError: a count is negative.

    Source:
        arXiv:2505.16056 (SRP) †: as commonly given, one threshold for a layer.
    """
    histogram_xEN = checked_counts(histogram_xEN)
    return np.asarray(_f1(histogram_xEN.sum(axis=-2)).max(axis=-1))


def expert_segment_consistency(histogram_xEN: Num[np.ndarray, "*x E N"]) -> Float[np.ndarray, "*x E"]:
    """`segment_consistency` of each expert alone, each at its own best threshold.

    Range [2p_e/(1 + p_e), 1]; unit 1. NaN for an expert that no window chooses. Not comparable with the layer's: its
    mean over experts is another number.

    Raises:
        ValueError: a count is negative.

    Source:
        arXiv:2505.16056 (SRP) †: as commonly given, a threshold for each expert.
    """
    histogram_xEN = checked_counts(histogram_xEN)
    chosen_xE = histogram_xEN[..., 1:].sum(axis=-1) > 0
    return np.where(chosen_xE, _f1(histogram_xEN).max(axis=-1), np.nan)


def uniform_segment_consistency(*, n_experts: int, top_k: int, window: int) -> float:
    """`segment_consistency` of uniform random routing with many windows: n is binomial(m, K/E).

    Range [2K/(E + K), 1]; unit 1. No NaN.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_top_k(top_k, n_experts)
    return float(segment_consistency(binom.pmf(np.arange(window + 1), window, top_k / n_experts)[None]))


@dataclass(frozen=True, eq=False)
class Activated:
    """Sums over runs of B tokens of each document; distinct over runs is a mean."""

    distinct_DB: Int[np.ndarray, "D B"]
    runs_DB: Int[np.ndarray, "D B"]


def activated_experts(
    bits_TW: UInt64[np.ndarray, "T W"],
    document_T: Int[np.ndarray, "T"],
    *,
    stretch_T: Int[np.ndarray, "T"],
    n_documents: int,
    doublings: int,
) -> Activated:
    """Distinct experts in runs of B = 1, 2, 4 … 2^doublings neighbouring tokens of a document, side by side.

    What is left over at the end of a stretch is in no run. The mean ranges from K to min(BK, E) experts. No NaN.

    Args:
        bits_TW: Sets, in the order of the text.
        document_T: Row of each token's document, 0 to D − 1; a document's tokens together.
        stretch_T: Each token's stretch of neighbours (`neighbours.stretches`).
        n_documents: D.
        doublings: The largest B is 2 to this power.

    Raises:
        ValueError: a document lies outside [0, D).

    Source:
        ours (a count).
    """
    _check_documents(document_T, n_documents)
    distinct_DB, runs_DB = (np.zeros((n_documents, doublings + 1), dtype=np.int64) for _ in range(2))
    for n in range(doublings + 1):
        runs_DB[:, n] = np.bincount(document_T, minlength=n_documents)
        weight_T = np.bitwise_count(bits_TW).sum(axis=1)
        distinct_DB[:, n] = np.bincount(document_T, weights=weight_T, minlength=n_documents)
        starts_T = np.flatnonzero(np.diff(stretch_T, prepend=stretch_T[:1] - 1))
        size = np.diff(starts_T, append=len(stretch_T))
        within_T = np.arange(len(stretch_T)) - np.repeat(starts_T, size)
        even = np.flatnonzero((within_T % 2 == 0) & (within_T + 1 < np.repeat(size, size)))
        bits_TW, document_T, stretch_T = bits_TW[even] | bits_TW[even + 1], document_T[even], stretch_T[even]
    return Activated(distinct_DB, runs_DB)


def expected_activated_experts(
    counts_xE: Num[np.ndarray, "*x E"], *, tokens_B: Int[np.ndarray, "B"], top_k: int
) -> Float[np.ndarray, "*x B"]:
    """Distinct experts expected in B tokens drawn from these without replacement, Σ_e 1 − C(T − c_e, B)/C(T, B).

    Of a document's counts: its tokens shuffled, exactly. Of the corpus': a batch of tokens from anywhere. With even
    counts and many tokens E(1 − (1 − K/E)^B).

    Range [K, E]; unit: experts. NaN where there are fewer than B tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        Hurlbert 1971 † (rarefaction): as commonly given.
    """
    _check_top_k(top_k, counts_xE.shape[-1])
    counts_xE = checked_counts(counts_xE)
    tokens_x1 = counts_xE.sum(axis=-1, keepdims=True) / top_k
    expected = []
    for tokens in tokens_B.tolist():
        left_xE = tokens_x1 - counts_xE
        drawn_x1 = np.where(tokens_x1 >= tokens, tokens_x1, np.nan)
        enough_xE = left_xE >= tokens
        log_xE = _log_choose(np.where(enough_xE, left_xE, tokens), tokens) - _log_choose(drawn_x1, tokens)
        expected.append((1 - np.where(enough_xE, np.exp(log_xE), 0.0 * log_xE)).sum(axis=-1))
    return np.stack(expected, axis=-1)


def uniform_activated_experts(*, tokens_B: Int[np.ndarray, "B"], n_experts: int, top_k: int) -> Float[np.ndarray, "B"]:
    """Distinct experts in B tokens under uniform random routing, E(1 − (1 − K/E)^B).

    Range [K, E]; unit: experts. No NaN.

    Raises:
        ValueError: `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_top_k(top_k, n_experts)
    return n_experts * (1 - (1 - top_k / n_experts) ** tokens_B.astype(np.float64))


def rate_activated_experts(
    rate_xE: Float[np.ndarray, "*x E"], *, tokens_B: Int[np.ndarray, "B"]
) -> Float[np.ndarray, "*x B"]:
    """Distinct experts expected in B tokens drawn independently at these rates, Σ_e 1 − (1 − p_e)^B.

    At most the uniform value of as many experts and choices: uneven rates meet fewer. What a batch of real tokens
    meets lies lower still where its tokens choose alike.

    Range [K, E]; unit: experts. NaN where a rate is.

    Args:
        rate_xE: p_e, share of the tokens that choose e; sum K.
        tokens_B: B.

    Raises:
        ValueError: a rate is outside [0, 1].

    Source:
        ours.
    """
    if (rate_xE < 0).any() or (rate_xE > 1).any():
        raise ValueError(
            f"rate_xE spans {np.nanmin(rate_xE)} to {np.nanmax(rate_xE)}, expected 0 to 1: pass counts over tokens"
        )
    return np.stack([(1 - (1 - rate_xE) ** tokens).sum(axis=-1) for tokens in tokens_B.tolist()], axis=-1)


def _f1(histogram_xN: np.ndarray) -> np.ndarray:
    """F1 at every threshold τ = 0 … m; NaN without windows."""
    count_N = np.arange(histogram_xN.shape[-1])
    on_xN, found_xN = (
        np.flip(np.cumsum(np.flip(values, axis=-1), axis=-1), axis=-1)
        for values in (histogram_xN, histogram_xN * count_N)
    )
    below_xN = (len(count_N) - 1) * on_xN + found_xN[..., :1]
    return 2 * found_xN / np.where(below_xN > 0, below_xN, np.nan)


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    """The logarithm of C(n, k); −∞ where n < k."""
    n = np.asarray(n, dtype=np.float64)
    known = np.where(n < k, k, n)
    return np.where(n < k, -np.inf, gammaln(known + 1) - gammaln(k + 1) - gammaln(known - k + 1))


def _check_documents(document_T: np.ndarray, n_documents: int) -> None:
    if len(document_T) and (document_T.min() < 0 or document_T.max() >= n_documents):
        raise ValueError(
            f"document_T spans {document_T.min()} to {document_T.max()}, expected 0 to {n_documents - 1}: "
            "pass 0-based rows and the number of all documents"
        )


def _check_top_k(top_k: int, n_experts: int) -> None:
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k is {top_k}, expected 1 to {n_experts} (E): pass K and E of the recording")
