"""Which other experts the tokens of one expert choose too. Axes: D documents, E experts, N tokens, K chosen each."""

import numpy as np
import pandas as pd

from workbench.metrics import structure
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import ratio_interval

COLUMNS = ("other", "together", "probability", "low", "high", "matched_probability", "lift_over_matched")


def partners(
    ids_NK: np.ndarray, row_N: np.ndarray, counts_DE: np.ndarray, expert: int, *, clusters: Clusters, level: float
) -> pd.DataFrame:
    """Every other expert, the most surprising first: P(other | expert) beside that of random sets with the same loads.

    Args:
        ids_NK: The sets of the tokens that choose the expert.
        row_N: Their documents, as rows of `counts_DE`.
        counts_DE: Assignments of every expert.
        expert: The expert.
        clusters: The design of the documents.
        level: Coverage of the intervals.

    Returns:
        COLUMNS; the difference from the null is ranked in standard deviations of independent tokens. No rows where a
        token chooses one expert, or every one, or none chooses this one.
    """
    (n_documents, n_experts), top_k = counts_DE.shape, ids_NK.shape[1]
    if not 1 < top_k < n_experts or not len(ids_NK):
        return pd.DataFrame(columns=list(COLUMNS))
    cell_NK = row_N[:, None] * n_experts + ids_NK
    together_DE = np.bincount(cell_NK.ravel(), minlength=n_documents * n_experts).reshape(n_documents, n_experts)
    rate = ratio_interval(together_DE, counts_DE[:, [expert]], clusters=clusters, level=level, share=True)
    counts_E, together_E = counts_DE.sum(axis=0), together_DE.sum(axis=0)
    expected_E = structure.matched_pairs(counts_E, top_k=top_k)[expert]
    known_E = np.where(expected_E > 0, expected_E, np.nan)
    surprise_E = np.nan_to_num((together_E - expected_E) / np.sqrt(known_E), nan=-np.inf)
    order = np.lexsort((np.arange(n_experts), -surprise_E))
    order = order[order != expert]
    frame = pd.DataFrame(
        {
            "other": np.arange(n_experts),
            "together": together_E,
            "probability": rate.value,
            "low": rate.low,
            "high": rate.high,
            "matched_probability": expected_E / counts_E[expert],
            "lift_over_matched": together_E / known_E,
        }
    )
    return frame.iloc[order].reset_index(drop=True)
