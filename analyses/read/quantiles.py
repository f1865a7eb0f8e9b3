"""Exact quantiles of float16 columns by counting: there are 65,536 values, so memory does not grow with the tokens.

Axes: T tokens, M groups, N bit patterns in the order of their values.
"""

import numpy as np

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
_N = 1 << 16
_SIGN = np.uint16(0x8000)


class HalfCounts:
    """How often each float16 occurs, in each group.

    Args:
        n_groups: M.
    """

    def __init__(self, n_groups: int = 1) -> None:
        self.counts_MN = np.zeros((n_groups, _N), dtype=np.int64)

    def add(self, values_T: np.ndarray, group_T: np.ndarray | int = 0) -> None:
        """Counts float16 values, none of them NaN."""
        bits_T = values_T.view(np.uint16)
        # Bits of what is negative fall with its value, the others rise: turned over and put behind them, all rise.
        rank_T = np.where(bits_T & _SIGN, ~bits_T, bits_T | _SIGN).astype(np.int64)
        n_groups = len(self.counts_MN)
        self.counts_MN += np.bincount(group_T * _N + rank_T, minlength=n_groups * _N).reshape(n_groups, _N)

    def quantiles(self, group: int | None = None) -> dict[str, float]:
        """`q05` to `q95` of a group, or of all together; NaN where nothing was counted."""
        counts_N = self.counts_MN.sum(axis=0) if group is None else self.counts_MN[group]
        total = int(counts_N.sum())
        if not total:
            return dict.fromkeys(QUANTILES, float("nan"))
        wanted = np.maximum(np.ceil(np.array(list(QUANTILES.values())) * total), 1)
        rank = np.searchsorted(np.cumsum(counts_N), wanted).astype(np.uint16)
        bits = np.where(rank & _SIGN, rank & ~_SIGN, ~rank).astype(np.uint16)
        return dict(zip(QUANTILES, bits.view(np.float16).astype(np.float64).tolist(), strict=True))
