"""Intervals for statistics of routing, by resampling clusters of documents within their domains.

Tokens of a document are alike, so tokens are never resampled. What the intervals say: where the value would lie for
the same domains in the same mix with other documents of the same kind (and, where a bias is corrected, many of them).
Not here: tests (`nulls`), extremes over experts (`extremes`), and differences between runs of training. Two models on
one corpus: put their counts on an x axis ([D, 2, L, E]) and give a statistic that subtracts, so that documents stay
paired. Axes: D documents, U clusters, C cells (documents of one cluster in one domain), M domains, E experts,
B resamples, x any further axes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from workbench.statistics.arithmetic import (
    BLOCK,
    checked_counts,
    t_quantile,
)
from workbench.statistics.design import MIN_CLUSTERS, Clusters
from workbench.statistics.ratio import Ratio, ratio


@dataclass(frozen=True, eq=False)
class Interval:
    """An estimate and its interval, elementwise. `low` and `high` are NaN where none can be given; `note` says why."""

    value: Float[np.ndarray, "*x"]
    """The estimate that the interval is about; differs from `plug_in` where a bias is corrected."""
    low: Float[np.ndarray, "*x"]
    high: Float[np.ndarray, "*x"]
    plug_in: Float[np.ndarray, "*x"]
    """The statistic of the sample as it stands."""
    method: str
    level: float
    n_clusters: int
    note: str = ""

    @classmethod
    def around(
        cls,
        value: np.ndarray,
        reach: np.ndarray,
        clusters: Clusters,
        *,
        method: str,
        level: float,
        plug_in: np.ndarray | None = None,
    ) -> "Interval":
        """Value ± reach, with a note where a domain has few clusters, and without ends where all have too few."""
        if clusters.too_few:
            reach = np.full_like(reach, np.nan)
        return cls(
            value=value,
            low=np.asarray(value - reach),
            high=np.asarray(value + reach),
            plug_in=np.asarray(value if plug_in is None else plug_in),
            method=method,
            level=level,
            n_clusters=clusters.n_clusters,
            note=clusters.note,
        )


@dataclass(frozen=True, eq=False)
class Resamples:
    """Counts of a sample, and of its resamples. Counts by domain have M in front: [M, *x, E] and [M, B, *x, E]."""

    observed: Float[np.ndarray, "..."]
    drawn: Float[np.ndarray, "..."]
    clusters: Clusters
    by_domain: bool = False


@dataclass(frozen=True, eq=False)
class ClusterBootstrap:
    """One set of resamples for all statistics of the same counts: of the corpus' counts, and of those by domain."""

    corpus: Resamples
    domains: Resamples


def cluster_bootstrap(
    counts_DxE: Num[np.ndarray, "D *x E"], *, clusters: Clusters, n_resamples: int = 400, seed: int = 0
) -> ClusterBootstrap:
    """Counts of resampled corpora: in each stratum n − 1 of its n clusters are drawn with replacement, times n/(n−1).

    With n − 1 draws the resamples' variance is the unbiased n/(n−1) Σ (c − mean)² between clusters; with n draws it
    would be (n−1)/n of it, and so would every correction of a bias. All x share the draws.

    Range [0, ∞); unit: assignments. No NaN. Memory: (M + 1)·B·x·E float32; not larger with more documents.

    Raises:
        ValueError: `n_resamples` is under 2, a count is negative, or `clusters` was made of other documents.

    Source:
        Rao & Wu 1988, JASA 83:231 † (rescaled bootstrap for stratified samples): as commonly given.
    """
    if n_resamples < 2:
        raise ValueError(f"n_resamples is {n_resamples}, expected 2 or more: 400 gives the deviation to 4 %")
    cells_CxE = clusters.sum_cells(checked_counts(counts_DxE))
    observed_MxE = np.stack([cells_CxE[run].sum(axis=0) for run in clusters.domain_runs()])
    drawn_MBxE = np.empty((len(observed_MxE), n_resamples, *observed_MxE.shape[1:]), dtype=np.float32)
    weights_BU = _drawn_weights(clusters, n_resamples, seed)
    for m, run in enumerate(clusters.domain_runs()):
        drawn_MBxE[m] = _weighed(weights_BU[:, clusters.cell_cluster_C[run]], cells_CxE[run])
    pooled = clusters.pooled
    drawn_BxE = (
        drawn_MBxE.sum(axis=0)
        if pooled is clusters
        else _weighed(_drawn_weights(pooled, n_resamples, seed), pooled.sum(checked_counts(counts_DxE)))
    )
    return ClusterBootstrap(
        corpus=Resamples(observed_MxE.sum(axis=0), drawn_BxE, pooled),
        domains=Resamples(observed_MxE, drawn_MBxE, clusters, by_domain=True),
    )


def _drawn_weights(clusters: Clusters, n_resamples: int, seed: int) -> np.ndarray:
    """How much each cluster weighs in each resample: [B, U]; a cluster alone in its stratum stays as it is."""
    rng = np.random.default_rng(seed)
    weights_BU = np.ones((n_resamples, clusters.n_clusters), dtype=np.float32)
    for run in clusters.strata():
        n = run.stop - run.start
        if n > 1:
            cell_BU = rng.integers(0, n, size=(n_resamples, n - 1)) + n * np.arange(n_resamples)[:, None]
            times_BU = np.bincount(cell_BU.ravel(), minlength=n_resamples * n).reshape(n_resamples, n)
            weights_BU[:, run] = times_BU * (n / (n - 1))
    return weights_BU


def _weighed(weights_BU: np.ndarray, values_UxE: np.ndarray) -> np.ndarray:
    """Weighed sums over clusters: [B, *x, E] float32."""
    flat_UX = values_UxE.astype(np.float32).reshape(len(values_UxE), -1)
    return np.asarray((weights_BU @ flat_UX).reshape(len(weights_BU), *values_UxE.shape[1:]))


def bias_corrected_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: Resamples,
    *,
    scale: Literal["plain", "square"] = "plain",
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic of counts that noise raises (CV, Gini, entropy, information): 2θ̂ − mean θ* ± t·sd θ*.

    Resampling adds to θ the bias that sampling has added already, so it is subtracted once; what is left aims at the
    value with unlimited documents, not at the sample's. t has U − M degrees of freedom. CV and Gini bend like a root
    at balance: give them the "square" scale (computed of θ², the root of what is not negative returned). Measured
    coverage of 95 %: 95–100 % so, also at exact balance; there "plain" covers CV and Gini in 30 %. Entropy, effective
    experts and information, which are quadratic there, want "plain": 94–100 %.

    Range and unit: the statistic's; on the plain scale the value and the ends may leave it by a little. NaN for low
    and high with fewer than 8 clusters; of counts by domain, where a domain has so few.

    Args:
        statistic: Maps counts [..., E] to [...] (`load.gini`), or, for `ClusterBootstrap.domains`, counts
            [M, ..., E] to [...] (`specialization.domain_information`).
        resamples: `ClusterBootstrap.corpus` or `.domains`.
        scale: Where the bias is additive.
        level: Nominal coverage.

    Raises:
        ValueError: `level` is outside (0, 1).

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 10.6 †: differs: t instead of percentiles
        (a plain percentile interval covered in 0 to 80 % of cases), and the square scale is ours.
    """
    quantile = t_quantile(resamples.clusters.degrees_of_freedom, level)
    plug_in, drawn_Bx = np.asarray(statistic(resamples.observed)), statistic(resamples.drawn)
    power = 2 if scale == "square" else 1
    drawn_Bx = drawn_Bx**power
    value = np.asarray(2 * plug_in**power - drawn_Bx.mean(axis=0))
    reach = np.asarray(quantile * drawn_Bx.std(axis=0, ddof=1))
    method = f"bias-corrected cluster bootstrap{' of the square' if power == 2 else ''}, t"
    interval = Interval.around(value, reach, resamples.clusters, method=method, level=level, plug_in=plug_in)
    if resamples.by_domain and resamples.clusters.few:  # nothing is known of how such a domain varies
        unknown = np.full_like(value, np.nan)
        interval = replace(interval, low=unknown, high=unknown, note=resamples.clusters.few_of_domain)
    if scale == "plain":
        return interval
    value, low, high = (np.sqrt(np.maximum(end, 0)) for end in (interval.value, interval.low, interval.high))
    return replace(interval, value=np.asarray(value), low=np.asarray(low), high=np.asarray(high))


def ratio_interval(
    numerator_Dx: Num[np.ndarray, "D *x"],
    denominator_Dx: Num[np.ndarray, "D *y"],
    *,
    clusters: Clusters,
    level: float = 0.95,
    share: bool = False,
) -> Interval:
    """Interval of a ratio of sums over documents, θ = Σ a_d / Σ b_d ± t · sqrt(var Σ (a_d − θ b_d)) / Σ b_d.

    The variance is between clusters within domains (those with fewer than 8 clusters are drawn together:
    `Clusters.pooled`), Σ (u − mean u)² / (1 − v), v the share of the domain's b that a cluster holds; t has the degrees
    of freedom of that form, U − M for documents of one length, fewer for long-tailed ones. Load of each expert:
    `ratio_interval(counts, counts.sum(-1, keepdims=True), …)`; a mean over documents: b of ones.

    Range and unit: the ratio's. Measured coverage of 95 %: 92–99 % with `share`, for documents of one length and for
    log-normal lengths of sd 1, 8 or 24 in a domain (90–91 % for an expert that few documents use, in bursts); without
    it the same for ratios near the middle, down to 77 % for such experts (docs/coverage.md). NaN where Σ b is 0 or an a
    is NaN; low and high are NaN with fewer than 8 clusters, and where one cluster holds all of a domain's b.

    Args:
        numerator_Dx: a.
        denominator_Dx: b, broadcast against a from the documents' axis on; not negative.
        clusters: The design.
        level: Nominal coverage.
        share: Whether the ratio is a share of b, 0 to 1: then the ends are found on the scale of log-odds, and stay
            within; of a share of 0 or 1 the far end is that of as many effective clusters, none of which differs.

    Raises:
        ValueError: `level` is outside (0, 1), or an array has another number of documents than `clusters`.

    Source:
        Bell & McCaffrey 2002, Surv. Methodol. 28:169 † (CR2 and its degrees of freedom): differs: of a ratio, within
        strata, and the log-odds are ours.
    """
    clusters = clusters.pooled
    t_quantile(1, level)  # refuses a level that is none

    def one(a_Dx: np.ndarray, b_Dx: np.ndarray) -> tuple[np.ndarray, ...]:
        return _ends(ratio(clusters.sum(a_Dx), clusters.sum(b_Dx), clusters, None), level, share=share)

    value, low, high = _in_blocks(one, numerator_Dx, denominator_Dx, axis=0)
    found = Interval.around(value, np.zeros_like(value), clusters, method=_method(share), level=level)
    return found if clusters.too_few else replace(found, low=low, high=high)


def domain_ratio_interval(
    numerator_Dx: Num[np.ndarray, "D *x"],
    denominator_Dx: Num[np.ndarray, "D *y"],
    *,
    clusters: Clusters,
    level: float = 0.95,
    share: bool = False,
) -> Interval:
    """`ratio_interval` of the documents of each domain: [M, *x], in the order of `clusters.domains`.

    A domain with fewer than 8 clusters has NaN for low and high and is named in the note; the others keep theirs. A
    cluster that spans domains counts in each with its documents of that domain.

    Range, unit, coverage, NaN otherwise: as `ratio_interval`.

    Raises:
        ValueError: `level` is outside (0, 1), or an array has another number of documents than `clusters`.

    Source:
        Cochran 1977, Sampling Techniques, section 6 † (ratio estimate of a part of the sample), and as
        `ratio_interval`.
    """
    runs = list(clusters.domain_runs())
    t_quantile(1, level)

    def one(a_Dx: np.ndarray, b_Dx: np.ndarray) -> tuple[np.ndarray, ...]:
        a_Cx, b_Cx = clusters.sum_cells(a_Dx), clusters.sum_cells(b_Dx)
        parts = [
            _ends(ratio(a_Cx[run], b_Cx[run], clusters, clusters.cell_cluster_C[run]), level, share=share)
            for run in runs
        ]
        return tuple(np.stack(ends) for ends in zip(*parts, strict=True))

    value, low, high = _in_blocks(one, numerator_Dx, denominator_Dx, axis=1)
    for end in (low, high):
        end[clusters.clusters_M < MIN_CLUSTERS] = np.nan
    return Interval(
        value=value,
        low=low,
        high=high,
        plug_in=value,
        method=_method(share).replace("ratio", "ratio by domain"),
        level=level,
        n_clusters=clusters.n_clusters,
        note=clusters.few_of_domain,
    )


def _method(share: bool) -> str:
    return f"linearized ratio, {'log-odds, ' if share else ''}t"


def _ends(found: Ratio, level: float, *, share: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high."""
    if share:
        return found.value, *found.share_ends(level)
    reach = found.reach(level)
    return found.value, np.asarray(found.value - reach), np.asarray(found.value + reach)


def _in_blocks(
    one: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
    numerator_Dx: np.ndarray,
    denominator_Dx: np.ndarray,
    *,
    axis: int,
) -> tuple[np.ndarray, ...]:
    """`one` over runs of the first x axis (layers), which bounds the memory; joined along `axis` of its results."""
    denominator_Dx = denominator_Dx.reshape(*denominator_Dx.shape, *[1] * (numerator_Dx.ndim - denominator_Dx.ndim))
    if numerator_Dx.ndim < 2 or numerator_Dx.size <= BLOCK:
        return one(numerator_Dx, denominator_Dx)
    step = max(1, BLOCK * numerator_Dx.shape[1] // numerator_Dx.size)
    parts = []
    for start in range(0, numerator_Dx.shape[1], step):
        run = slice(start, start + step)
        parts.append(one(numerator_Dx[:, run], denominator_Dx[:, run if denominator_Dx.shape[1] > 1 else slice(None)]))
    return tuple(np.concatenate(ends, axis=axis) for ends in zip(*parts, strict=True))
