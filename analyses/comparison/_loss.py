"""How well two recordings' models predict the same documents. Used by `differences`.

Axes: D documents, M domains; 2 recordings, 3 with their difference.
"""

import numpy as np
import pandas as pd

from analyses.comparison.saturation import ALL
from analyses.pairing import Pair
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, domain_ratio_interval, ratio_interval


def loss_by_domain(both: Pair, level: float) -> pd.DataFrame | None:
    """Mean loss of a token by domain, and of all, the documents paired; None where it is not known in both."""
    if not all("logprob" in each.fields for each in (both.one, both.other)):
        return None
    mine, theirs = (each.documents().set_index("document") for each in (both.one, both.other))
    clusters = Clusters.of(mine["domain"].to_numpy(), cluster_D=mine["cluster"].to_numpy())
    tokens_D = np.maximum(mine["tokens"].to_numpy(dtype=np.float64) - 1, 0)  # the first has no loss
    if not tokens_D.any():
        return None
    loss_D2 = np.nan_to_num(np.stack([mine["loss"], theirs.loc[mine.index, "loss"]], axis=1)).astype(np.float64)
    sums_D3 = np.concatenate([loss_D2, np.diff(loss_D2, axis=1)], axis=1) * tokens_D[:, None]
    parts = domain_ratio_interval(sums_D3, tokens_D[:, None], clusters=clusters, level=level)
    rows: list[tuple[str, Interval, int | None]] = [
        (str(domain), parts, m) for m, domain in enumerate(clusters.domains)
    ]
    if len(clusters.domains) > 1:
        rows.append((ALL, ratio_interval(sums_D3, tokens_D[:, None], clusters=clusters, level=level), None))
    records = []
    for domain, found, m in rows:
        value_3, low_3, high_3 = (end if m is None else end[m] for end in (found.value, found.low, found.high))
        of_D = np.ones(len(tokens_D), dtype=bool) if m is None else clusters.domain_D == m
        ends = {"low": float(low_3[2]), "high": float(high_3[2]), "tokens": int(tokens_D[of_D].sum())}
        records.append(
            {"domain": domain, **dict(zip(("a", "b", "difference"), map(float, value_3), strict=True)), **ends}
        )
    return pd.DataFrame(records)
