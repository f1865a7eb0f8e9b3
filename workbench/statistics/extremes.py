"""Intervals of what depends on the most extreme expert: the maximum, the minimum, the number of dead experts.

They come from one band that holds the loads of all experts at once, since resampling cannot imitate an extreme. Not a
test of single experts (`nulls.max_t_test`). Axes: E routed experts, B resamples, x any further axes.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from workbench.statistics.arithmetic import t_quantile
from workbench.statistics.intervals import Interval, Resamples


def max_t_band(resamples: Resamples, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Band that holds the load of all experts at once: f_e ± c · sd_e, cut to [0, 1].

    c is the `level` quantile of max_e |f*_e − f_e| / sd_e over resamples, each divided by sqrt(χ²/ν) with ν = U − M
    (a multivariate t). For the extremes and the number of dead experts; for one expert alone `ratio_interval` is
    narrower. Measured: all 16 loads held at once in 82 % (8 documents in each of 5 domains) to 92 % of cases.

    Range [0, 1]; unit 1. NaN without assignments; low and high with fewer than 8 clusters. An expert
    that no cluster chose has a band of width 0: nothing in the sample says how rare it is.

    Raises:
        ValueError: `level` is outside (0, 1).

    Source:
        Westfall & Young 1993 †, and Hothorn et al. 2008 † (max-t bands): as commonly given.
    """
    clusters = resamples.clusters
    degrees = max(clusters.degrees_of_freedom, 1)
    t_quantile(degrees, level)  # refuses a bad level
    total_x1 = resamples.observed.sum(axis=-1, keepdims=True)
    total_x1 = np.where(total_x1 > 0, total_x1, np.nan)
    load_xE = resamples.observed / total_x1
    residual_BxE = (resamples.drawn - load_xE * resamples.drawn.sum(axis=-1, keepdims=True)) / total_x1
    deviation_xE = residual_BxE.std(axis=0, ddof=1)
    largest_Bx = (np.abs(residual_BxE) / np.where(deviation_xE > 0, deviation_xE, np.inf)).max(axis=-1)
    chi_B = np.random.default_rng(seed).chisquare(degrees, size=len(largest_Bx)) / degrees
    largest_Bx /= np.sqrt(chi_B).reshape(-1, *[1] * (largest_Bx.ndim - 1))
    reach = np.quantile(largest_Bx, level, axis=0)[..., None] * deviation_xE
    band = Interval.around(load_xE, reach, clusters, method="max-t band over experts", level=level)
    return replace(band, low=np.clip(band.low, 0, 1), high=np.clip(band.high, 0, 1))


def max_violation_interval(band: Interval) -> Interval:
    """Interval of `load.max_violation` from a band: E·[max_e L_e, max_e U_e] − 1.

    Conservative: measured coverage of 95 %: 98–100 %, though all loads at once are held in fewer. Range [−1, E − 1];
    unit 1; NaN as the band.

    Raises:
        Nothing.

    Source:
        ours.
    """
    return _from_band(band, lambda load_xE: load_xE.shape[-1] * load_xE.max(axis=-1) - 1, band.low, band.high)


def min_violation_interval(band: Interval) -> Interval:
    """Interval of `load.min_violation` from a band: 1 − E·[min_e U_e, min_e L_e]. Measured: held in 93–99 %.

    Range [1 − E, 1]; unit 1; NaN as the band.

    Raises:
        Nothing.

    Source:
        ours.
    """
    return _from_band(band, lambda load_xE: 1 - load_xE.shape[-1] * load_xE.min(axis=-1), band.high, band.low)


def dead_experts_interval(band: Interval, *, threshold: float = 0.0) -> Interval:
    """Interval of `load.dead_experts`: [#{U_e ≤ threshold/E}, #{L_e ≤ threshold/E}], conservative.

    At threshold 0 the low end counts experts that no document of the sample chose, which more documents might.
    Range 0 to E; unit: experts; NaN as the band.

    Raises:
        Nothing.

    Source:
        ours.
    """

    def dead(load_xE: np.ndarray) -> np.ndarray:
        number_x = (load_xE * load_xE.shape[-1] <= threshold).sum(axis=-1).astype(np.float64)
        return np.where(np.isnan(load_xE).any(axis=-1), np.nan, number_x)

    return _from_band(band, dead, band.high, band.low)


def _from_band(
    band: Interval, statistic: Callable[[np.ndarray], np.ndarray], low_xE: np.ndarray, high_xE: np.ndarray
) -> Interval:
    value, low, high = (np.asarray(statistic(load_xE)) for load_xE in (band.value, low_xE, high_xE))
    method = f"{band.method}, conservative"
    return replace(band, value=value, low=low, high=high, plug_in=value, method=method)
