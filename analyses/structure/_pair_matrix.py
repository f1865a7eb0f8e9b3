"""Pairs of experts of one layer as a matrix, beside those of random sets with the same loads. Axes: E experts."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from workbench.metrics import structure


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pair counts of one router."""

    about: pd.DataFrame
    top_k: int
    pairs_EE: np.ndarray

    @cached_property
    def matched_EE(self) -> np.ndarray:
        return structure.matched_pairs(np.diag(self.pairs_EE), top_k=self.top_k)

    def matrix(self) -> pd.DataFrame:
        """One row per ordered pair, as `coactivation` gives it."""
        pairs_EE, matched_EE, n_experts = self.pairs_EE, self.matched_EE, len(self.pairs_EE)
        expert, other = (axis.ravel() for axis in np.indices((n_experts, n_experts)))
        probability_EE, matched_probability_EE = (structure.coactivation(counts) for counts in (pairs_EE, matched_EE))
        lift_EE = structure.coactivation_lift(pairs_EE, top_k=self.top_k)
        matched_lift_EE = structure.coactivation_lift(matched_EE, top_k=self.top_k)
        frame = self.about.loc[self.about.index.repeat(n_experts**2)].reset_index(drop=True)
        return frame.assign(
            expert=expert,
            other=other,
            together=pairs_EE.ravel(),
            probability=probability_EE.ravel(),
            matched_probability=matched_probability_EE.ravel(),
            excess=(probability_EE - matched_probability_EE).ravel(),
            lift=lift_EE.ravel(),
            matched_lift=matched_lift_EE.ravel(),
            lift_over_matched=(lift_EE / np.where(matched_lift_EE > 0, matched_lift_EE, np.nan)).ravel(),
        )
