"""What the analyses of attention take from a recording: statistics of heads by document, and their names on axes.

Axes: D documents, N heads of all layers, b bins of positions.
"""

import numpy as np
import pandas as pd

from analyses.read.design import design
from workbench.errors import AnalysisError
from workbench.metrics.attention import BIN_EDGES, STATISTICS, WEIGHED
from workbench.recordings.recording import Recording
from workbench.recordings.schema import attention_prefix
from workbench.statistics.intervals import Interval, ratio_interval

AXIS = {
    "entropy": "entropy (nats)",
    "normalized_entropy": "entropy over ln of the number of keys",
    "effective_keys": "effective keys (exp of the entropy)",
    "participation": "participation ratio (keys)",
    "first": "weight of the first key",
    "first4": "weight of the first four keys",
    "self": "weight of the own key",
    "previous": "weight of the key before",
    "local8": "weight of the last 8 keys",
    "local32": "weight of the last 32 keys",
    "local128": "weight of the last 128 keys",
    "max_weight": "largest weight",
    "max_logit": "largest logit",
    "distance": "mean distance (tokens)",
    "spread": "spread of the distance (tokens)",
    "entropy_rest": "entropy without the first key (nats)",
    "distance_rest": "mean distance without the first key (tokens)",
    "mostly_first": "share of queries mostly on the first key",
    "off": "weight taken by a learned sink",
    "sink": "sink rate (share of windows)",
    "keys90": "keys that hold 0.9 of the weight",
    "duplicate": "weight of earlier keys of the same token",
    "induction": "weight behind earlier keys of the same token",
}
SINK = "share of windows of 64 queries whose mean weight of the first key is over 0.3"


def covered(recording: Recording) -> list[dict[str, int]]:
    """The recorded attention layers: `layer`, `heads`, `groups`, `width` of each."""
    return list(recording.manifest["attention"]["layers"])


def not_covered(recording: Recording) -> str:
    """Which layers have no statistics and why, as a sentence; empty where all have."""
    by_reason: dict[str, list[str]] = {}
    for facts in recording.manifest["attention"]["not_covered"]:
        by_reason.setdefault(facts["reason"], []).append(str(facts["layer"]))
    return " ".join(f"Not covered: layer {', '.join(layers)} ({reason})." for reason, layers in by_reason.items())


def head_labels(recording: Recording) -> pd.DataFrame:
    """`layer`, `head` and key/value `group`: one row per head."""
    rows = [
        {"layer": facts["layer"], "head": head, "group": head * facts["groups"] // facts["heads"]}
        for facts in covered(recording)
        for head in range(facts["heads"])
    ]
    return pd.DataFrame(rows)


def statistics_of(recording: Recording) -> list[str]:
    """The statistics that it holds, in the order of their tables."""
    return [*STATISTICS, "sink", *(WEIGHED if "attention-weights" in recording.fields else ())]


def known(recording: Recording, statistic: str, analysis: str, among: tuple[str, ...] | list[str]) -> None:
    """Refuses a statistic that there is not."""
    if statistic in among:
        return
    if statistic in WEIGHED and "attention-weights" not in recording.fields:
        raise AnalysisError(
            f"{analysis}: {statistic} needs the weights; record again with --fields "
            f"{','.join([*recording.fields, 'attention-weights'])}."
        )
    raise AnalysisError(f"{analysis}: there is no statistic {statistic!r}; there are {', '.join(among)}.")


def of_heads(recording: Recording, statistic: str) -> np.ndarray:
    """A statistic of every document and head, [D, N]; NaN where it is not defined."""
    names = [f"{attention_prefix(facts['layer'], recording.topology)}.{statistic}" for facts in covered(recording)]
    parts = recording.parts(names, table="documents")
    return np.concatenate([np.concatenate([part[name] for name in names], axis=1) for part in parts]).astype(np.float64)


def of_bins(recording: Recording, statistic: str) -> np.ndarray:
    """A statistic of every document, head and bin of positions, [D, N, b]."""
    values = of_heads(recording, f"{statistic}.profile")
    return values.reshape(len(values), -1, len(BIN_EDGES))


def mean_interval(recording: Recording, values_Dx: np.ndarray, *, level: float) -> Interval:
    """Mean over the documents for which the value is defined, each with equal weight."""
    known_Dx = np.isfinite(values_Dx)
    return ratio_interval(
        np.where(known_Dx, values_Dx, 0), known_Dx.astype(np.float64), clusters=design(recording), level=level
    )


def bin_names() -> list[str]:
    """The bins of positions as they are written: 0, 1, 2-3, 4-7 and so on."""
    ends = [*(edge - 1 for edge in BIN_EDGES[1:]), None]
    return [
        f"{one:,}" if one == end else f"≥ {one:,}" if end is None else f"{one:,}–{end:,}"
        for one, end in zip(BIN_EDGES, ends, strict=True)
    ]
