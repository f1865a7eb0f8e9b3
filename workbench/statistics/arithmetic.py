"""What several metrics share: checks of ids and counts, entropy, hashes, sums and variances between clusters.

Not metrics themselves. Axes: T tokens, D documents, U clusters, E experts, K chosen per token, X one flattened run of
further axes.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from workbench.statistics.design import Clusters

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the step of splitmix64
BLOCK = 1 << 20  # elements of a [U, X, E] block: its float64 temporaries are 8 MB each, near the cache


def check_ids(ids_TK: np.ndarray, *, n_experts: int) -> None:
    """Refuse ids outside [0, E), and a token that names an expert twice."""
    check_range(ids_TK, n_experts=n_experts)
    sorted_TK = np.sort(ids_TK, axis=1)
    refuse_twice(ids_TK, (sorted_TK[:, 1:] == sorted_TK[:, :-1]).any(axis=1))


def check_range(ids_TK: np.ndarray, *, n_experts: int) -> None:
    """Refuse ids outside [0, E)."""
    if ids_TK.size == 0:
        return
    low, high = int(ids_TK.min()), int(ids_TK.max())
    if low < 0 or high >= n_experts:
        raise ValueError(
            f"ids_TK spans {low} to {high}, expected 0 to {n_experts - 1}: check n_experts, and that ids are of routed "
            "experts of one layer"
        )


def refuse_twice(ids_TK: np.ndarray, twice_T: np.ndarray) -> None:
    """Refuse tokens that were found to name an expert twice."""
    if twice_T.any():
        token = int(twice_T.argmax())
        raise ValueError(
            f"ids_TK names an expert twice in {int(twice_T.sum())} tokens (first: token {token}, ids "
            f"{ids_TK[token].tolist()}), expected distinct ids: check that the columns are one router's choices"
        )


def checked_counts(counts: np.ndarray) -> np.ndarray:
    """Counts as float64, negative ones refused."""
    if counts.size and counts.min() < 0:
        raise ValueError(f"counts hold {counts.min()}, expected 0 or more: pass assignments, not differences or logits")
    return counts.astype(np.float64, copy=False)


def entropy(share_xE: np.ndarray) -> np.ndarray:
    """−Σ f ln f in nats, with 0 ln 0 = 0."""
    return np.asarray(-(share_xE * np.log(np.where(share_xE > 0, share_xE, 1))).sum(axis=-1))


def group_numbers(*keys_T: np.ndarray) -> np.ndarray:
    """The number of each token's combination of keys, whole and not negative; equal combinations have equal numbers.

    The inverse of `np.unique`, sorted by digits of 16 bits in linear time, a quarter of the time or less.
    """
    digits = []
    for key_T in keys_T:
        rest_T = key_T.astype(np.uint64)
        for _ in range(0, max(int(rest_T.max(initial=0)).bit_length(), 1), 16):
            digits.append(rest_T.astype(np.uint16))  # the lower bits
            rest_T = rest_T >> np.uint64(16)
    order_T = np.lexsort(digits)
    new_T = np.zeros(len(order_T), dtype=bool)
    for digit_T in digits:
        sorted_T = digit_T[order_T]
        new_T[1:] |= sorted_T[1:] != sorted_T[:-1]
    group_T = np.empty(len(order_T), dtype=np.int64)
    group_T[order_T] = np.cumsum(new_T)  # the first is of group 0, being new to nothing
    return group_T


def mixed(key_x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of the key."""
    key_x = (key_x ^ (key_x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key_x = (key_x ^ (key_x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key_x ^ (key_x >> np.uint64(31))


def cluster_blocks(counts_DxE: np.ndarray, clusters: Clusters) -> Iterator[np.ndarray]:
    """Counts summed by cluster, [U, X, E] for successive runs of the flattened x axes: bounds the memory."""
    flat_DXE = counts_DxE.reshape(len(counts_DxE), -1, counts_DxE.shape[-1])
    step = max(1, BLOCK // max(1, flat_DXE.shape[0] * flat_DXE.shape[2]))
    for start in range(0, max(1, flat_DXE.shape[1]), step):
        yield checked_counts(clusters.sum(flat_DXE[:, start : start + step]))


def variance_of_total(values_Cx: np.ndarray, clusters: Clusters, *, cluster_C: np.ndarray | None = None) -> np.ndarray:
    """Variance of Σ values under the drawing of clusters within strata, Σ_m n/(n−1) Σ_u (value − mean)².

    Rows are of the clusters `cluster_C` (ascending; all of them where it is None), and the others' values are 0. NaN
    where a stratum has one cluster, since nothing can be said of its variance.
    """
    stratum_C = clusters.stratum_U if cluster_C is None else clusters.stratum_U[cluster_C]
    n_M = np.bincount(clusters.stratum_U)
    total_x = np.zeros(values_Cx.shape[1:])
    for m in np.unique(stratum_C):
        rows_Cx = values_Cx[slice(*np.searchsorted(stratum_C, [m, m + 1]))]
        mean_x = rows_Cx.sum(axis=0) / n_M[m]
        squares_x = ((rows_Cx - mean_x) ** 2).sum(axis=0) + (n_M[m] - len(rows_Cx)) * mean_x**2
        total_x += squares_x * (n_M[m] / (n_M[m] - 1) if n_M[m] > 1 else np.nan)
    return total_x


def unbiased_square(values_UXE: np.ndarray, clusters: Clusters) -> np.ndarray:
    """|E Σ_u values|², estimated without bias: the square of the sum less its variance. [X]."""
    return (values_UXE.sum(axis=0) ** 2).sum(axis=-1) - variance_of_total(values_UXE, clusters).sum(axis=-1)


def centred(values_Ux: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Each cluster's values less the mean of its stratum."""
    out_Ux = np.empty_like(values_Ux)
    for run in clusters.strata():
        out_Ux[run] = values_Ux[run] - values_Ux[run].mean(axis=0)
    return out_Ux


def t_quantile(degrees: int, level: float) -> float:
    """The two-sided t quantile of a nominal coverage."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected between 0 and 1: 0.95 is usual")
    return float(stats.t.ppf((1 + level) / 2, max(degrees, 1)))
