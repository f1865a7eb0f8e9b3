"""What is known of one expert beside its use: what it adds, and its parameters. For the expert card."""

import numpy as np
import pandas as pd

from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import ratio_interval

COLUMNS = ("fact", "value", "low", "high", "layer_mean", "unit")
_UNKNOWN = (float("nan"), float("nan"))


def expert_facts(recording: Recording, layer: int, expert: int, *, clusters: Clusters, level: float) -> pd.DataFrame:
    """A row per fact, beside its mean over the layer's experts; no rows where no such field was recorded."""
    facts: list[dict] = []
    if "experts" in recording.fields:
        added_DE, counts_DE = recording.contribution_sum(layer), recording.counts(layer)
        mean = ratio_interval(added_DE[:, expert], counts_DE[:, expert], clusters=clusters, level=level)
        ends = (float(np.maximum(mean.low, 0)), float(mean.high))
        of_layer = float(added_DE.sum() / counts_DE.sum())
        what = "contribution to a token that chooses it"
        facts.append(_fact(what, float(mean.value), ends=ends, layer_mean=of_layer, unit="norm"))
        part = added_DE[:, expert].sum() / added_DE.sum()
        facts.append(
            _fact("part of the layer's contributions", float(part), layer_mean=1 / added_DE.shape[1], unit="1")
        )
    if "weights" in recording.fields:
        rows = recording.expert_weights.query("layer == @layer")
        mine = rows[rows["expert"] == expert].iloc[0]
        names = {"norm_gate": "gate", "norm_up": "up", "norm_down": "down", "norm": "all parameters"}
        for name, what in {**names, "router_norm": "router row"}.items():
            if np.isfinite(mine[name]):
                facts.append(
                    _fact(f"norm, {what}", float(mine[name]), layer_mean=float(rows[name].mean()), unit="norm")
                )
        others_E = np.delete(mine["matched"], expert)
        if np.isfinite(others_E).any():
            nearest = int(np.nanargmax(np.where(np.arange(len(rows)) == expert, np.nan, mine["matched"])))
            facts.append(_fact("nearest expert by its neurons", nearest, unit="expert"))
            between = float(np.nanmean(others_E))
            facts.append(_fact("match with it", float(mine["matched"][nearest]), layer_mean=between, unit="cosine"))
        if "parent_similarity" in rows and len(mine["parent_similarity"]):
            of_all = np.concatenate(rows["parent_similarity"].tolist())
            value = float(np.mean(mine["parent_similarity"]))
            facts.append(_fact("similarity to the parent", value, layer_mean=float(of_all.mean()), unit="cosine"))
    return pd.DataFrame(facts, columns=list(COLUMNS))


def _fact(
    fact: str, value: float, *, ends: tuple[float, float] = _UNKNOWN, layer_mean: float = np.nan, unit: str = ""
) -> dict:
    return dict(zip(COLUMNS, (fact, value, *ends, float(layer_mean), unit), strict=True))
