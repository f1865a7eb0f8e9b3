"""How far a ratio of sums over clusters may be off, where the clusters are few and of unlike sizes.

Not a metric itself: `uncertainty` makes intervals of it. A cluster that holds the share v of its stratum pulls the
ratio towards itself, so its residual is too small by 1 − v; and a few long documents tell as little as few documents.
Axes: C cells or clusters; x any further axes, y those of the denominator, which broadcast against x.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from workbench.statistics.design import Clusters


@dataclass(frozen=True, eq=False)
class Ratio:
    """Σ a / Σ b, its standard deviation, and the degrees of freedom that this deviation has."""

    value: np.ndarray
    deviation: np.ndarray
    degrees: np.ndarray
    effective: np.ndarray
    """1 / Σ v², clusters of equal size that would tell as much."""

    def reach(self, level: float) -> np.ndarray:
        """The half width of a t interval."""
        return np.asarray(stats.t.ppf((1 + level) / 2, self.degrees) * self.deviation)

    def share_ends(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Ends of a share: t on the scale of log-odds; where it is 0 or 1, those of so many effective clusters.

        A value that rounding has put beyond 0 or 1 stays inside them.
        """
        share = np.clip(self.value, 0, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            centre = np.log(share) - np.log1p(-share)
            reach = self.reach(level) / (share * (1 - share))
            low, high = (1 / (1 + np.exp(-(centre + sign * reach))) for sign in (-1, 1))
        farthest = 1 - ((1 - level) / 2) ** (1 / self.effective)  # (1 − p)^n: no cluster shows what p of them do
        low = np.where(share == 0, 0, np.where(share == 1, 1 - farthest, low))
        high = np.where(share == 0, farthest, np.where(share == 1, 1, high))
        return np.asarray(np.minimum(low, self.value)), np.asarray(np.maximum(high, self.value))


def ratio(a_Cx: np.ndarray, b_Cy: np.ndarray, clusters: Clusters, cluster_C: np.ndarray | None) -> Ratio:
    """The ratio of the sums of clusters (`cluster_C`, ascending; all where it is None) drawn within strata.

    Variance Σ_m Σ_u (u − mean_m u)² / (1 − v_u) of the linearized u = (a − θ b)/Σ b, v_u the share of stratum m's b
    that u holds (CR2: 1/(1 − v) is n/(n − 1) where all are equal). Degrees of freedom (Σ tr)²/Σ |M|² of that quadratic
    form if the clusters' own ratios varied alike: U − M where all are equal, fewer where few clusters hold most.
    """
    total_y = b_Cy.sum(axis=0)
    total_y = np.where(total_y != 0, total_y, np.nan)
    value_x = np.asarray(a_Cx.sum(axis=0) / total_y)
    linear_Cx, weight_Cy = (a_Cx - value_x * b_Cy) / total_y, b_Cy / total_y
    stratum_C = clusters.stratum_U if cluster_C is None else clusters.stratum_U[cluster_C]
    n_M = np.bincount(clusters.stratum_U)
    variance_x, trace_y, square_y = np.zeros(value_x.shape), np.zeros(total_y.shape), np.zeros(total_y.shape)
    for m in np.unique(stratum_C):
        rows = slice(*np.searchsorted(stratum_C, [m, m + 1]))
        left_Cy, trace, square = _form(weight_Cy[rows])
        mean_x = linear_Cx[rows].sum(axis=0) / n_M[m]
        absent = n_M[m] - (rows.stop - rows.start)  # clusters of the stratum that have no part in the sums
        grown = n_M[m] / (n_M[m] - 1) if n_M[m] > 1 else np.nan
        variance_x += ((linear_Cx[rows] - mean_x) ** 2 / left_Cy).sum(axis=0) + absent * grown * mean_x**2
        trace_y, square_y = trace_y + trace, square_y + square
    degrees_y = np.maximum(trace_y**2 / np.where(square_y > 0, square_y, np.nan), 1)
    effective_y = 1 / (weight_Cy**2).sum(axis=0)
    degrees_x, effective_x = (np.broadcast_to(of, value_x.shape) for of in (degrees_y, effective_y))
    return Ratio(value_x, np.asarray(np.sqrt(variance_x)), degrees_x, effective_x)


def _form(weight_Cy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the clusters of a stratum 1 − v, and of the variance's quadratic form the trace and the squared norm.

    With c = w/√(1 − v) and s = Σ v² the form is M_ij = c_i c_j (δ_ij − v_i − v_j + s).
    """
    size_y = weight_Cy.sum(axis=0)
    share_Cy = weight_Cy / np.where(size_y > 0, size_y, np.nan)
    left_Cy = np.where(share_Cy < 1, 1 - share_Cy, np.nan)  # one cluster alone shows no variance
    left_Cy = np.where(size_y > 0, left_Cy, 1.0)
    share_Cy = np.nan_to_num(share_Cy)
    c2_Cy, s_y = weight_Cy**2 / left_Cy, (share_Cy**2).sum(axis=0)
    own_Cy = 1 - 2 * share_Cy + s_y
    c0, c1, c2 = (np.asarray((c2_Cy * share_Cy**power).sum(axis=0)) for power in range(3))
    crossed = s_y**2 * c0**2 + 2 * c2 * c0 + 2 * c1**2 - 4 * s_y * c1 * c0
    alone = (c2_Cy**2 * (own_Cy**2 - (s_y - 2 * share_Cy) ** 2)).sum(axis=0)
    return left_Cy, np.asarray((c2_Cy * own_Cy).sum(axis=0)), np.asarray(crossed + alone)
