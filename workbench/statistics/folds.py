"""Folds of clusters of documents: what is held out together, and intervals of statistics that are known by fold.

Not the resampling of clusters (`uncertainty`): a statistic of large tables, by token id and expert, is computed by fold
and not by document, so that memory does not grow with the corpus. Axes: D documents, F folds, x any further axes.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from workbench.statistics.arithmetic import t_quantile
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, ratio_interval


def folds(
    cluster_D: Shaped[np.ndarray, "D"], domain_D: Shaped[np.ndarray, "D"], *, n_folds: int = 8, seed: int = 0
) -> Int[np.ndarray, "D"]:
    """A fold for every document: clusters whole, each domain's clusters dealt out evenly, at random.

    The same for the same labels, whatever the documents' order. A cluster that spans domains is dealt out with those
    of the domain whose label comes first.

    Range 0 to F − 1; unit: fold. No NaN.

    Args:
        cluster_D: What may not be torn apart.
        domain_D: What every fold shall have its part of.
        n_folds: F; 8 is the fewest that give an interval.
        seed: Of the deal.

    Raises:
        ValueError: `n_folds` is under 2.

    Source:
        ours (stratified group folds).
    """
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}, expected 2 or more: what is held out needs something to learn from")
    rng = np.random.default_rng(seed)
    first_domain = dict(sorted(zip(cluster_D.tolist(), domain_D.tolist(), strict=True), reverse=True))
    fold_of: dict = {}
    start = 0
    for domain in sorted(set(first_domain.values())):
        inside = sorted(cluster for cluster, its in first_domain.items() if its == domain)
        for place, index in enumerate(rng.permutation(len(inside))):
            fold_of[inside[index]] = (start + place) % n_folds
        start += len(inside)  # the next domain goes on where this one ended, so that small ones fill all folds
    return np.array([fold_of[cluster] for cluster in cluster_D.tolist()], dtype=np.int64)


def fold_ratio_interval(
    numerator_Fx: Num[np.ndarray, "F *x"],
    denominator_Fx: Num[np.ndarray, "F *y"],
    *,
    clusters: Clusters,
    level: float = 0.95,
) -> Interval:
    """Interval of Σ_f a_f / Σ_f b_f, folds taken as the units: `uncertainty.ratio_interval` with F − 1 degrees.

    Folds that learn from each other's documents are not quite independent. Measured coverage of 95 %, of held-out
    gains: 91 % with 48 documents, 94 % with 128.

    Range and unit: the ratio's. NaN where Σ b is 0; low and high are NaN with fewer than 8 folds or clusters of
    documents.

    Raises:
        ValueError: `level` is outside (0, 1).

    Source:
        Cochran 1977, Sampling Techniques, section 6 † (ratio estimate): as commonly given.
    """
    one = Clusters.of(np.zeros(len(numerator_Fx), dtype=np.int64))
    found = ratio_interval(numerator_Fx, denominator_Fx, clusters=one, level=level)
    return _unless_few(found, clusters, method=f"ratio over {len(numerator_Fx)} folds of clusters, t")


def fold_jackknife_interval(
    value_x: Float[np.ndarray, "*x"],
    without_Fx: Float[np.ndarray, "F *x"],
    *,
    clusters: Clusters,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic from its values without each fold, θ̂ ± t · sqrt((F−1)/F Σ_f (θ_(f) − mean)²).

    Measured coverage of 95 %, with 48 and 120 documents: 95–96 % for `vocabulary.domain_information_given_token`,
    95–97 % for the expectation of `vocabulary.vocabulary_specialization`.

    Range and unit: the statistic's, the ends unbounded. NaN where a value is; low and high also with fewer than 8
    clusters of documents.

    Raises:
        ValueError: `level` is outside (0, 1).

    Source:
        Shao & Tu 1995, The Jackknife and Bootstrap, section 2.3 † (delete-a-group jackknife): as commonly given.
    """
    n_folds = len(without_Fx)
    squares_x = ((without_Fx - without_Fx.mean(axis=0)) ** 2).sum(axis=0)
    reach_x = np.asarray(t_quantile(n_folds - 1, level) * np.sqrt((n_folds - 1) / n_folds * squares_x))
    value_x = np.asarray(value_x)
    found = Interval(
        value=value_x, low=np.asarray(value_x - reach_x), high=np.asarray(value_x + reach_x), plug_in=value_x,
        method="", level=level, n_clusters=n_folds,
    )  # fmt: skip
    return _unless_few(found, clusters, method=f"jackknife over {n_folds} folds of clusters, t")


def _unless_few(found: Interval, clusters: Clusters, *, method: str) -> Interval:
    if not clusters.too_few:
        return replace(found, method=method, n_clusters=clusters.n_clusters, note=clusters.note)
    unknown = np.full_like(found.value, np.nan)
    return replace(
        found, low=unknown, high=unknown, method=method, n_clusters=clusters.n_clusters, note=clusters.too_few
    )
