"""What a test against a null says."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class NullTest:
    """A statistic, what it is under a null at this sample's size, and p = (b + 1)/(m + 1), elementwise."""

    question: str
    statistic: Float[np.ndarray, "*x"]
    null_mean: Float[np.ndarray, "*x"]
    null_high: Float[np.ndarray, "*x"]
    """The 95 % quantile of the statistic under the null."""
    p: Float[np.ndarray, "*x"]
    n_draws: int
    n_clusters: int
    note: str = ""
