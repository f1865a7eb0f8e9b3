"""What does each attention head look at, and which heads are sinks, local, or copy?

Not shown: what a head does to the output. A weight says where a head reads, not what it writes there, nor whether later
layers use it; heads with the same statistics may do different things. The roles are thresholds on continuous scores,
by convention; the probe's scores are of random tokens, which no text resembles.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.attention import _statistics
from analyses.attention._statistics import AXIS
from analyses.read.design import require, sample_words
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure, HeatMap, Points
from workbench.metrics import attention
from workbench.metrics.attention import STATISTICS
from workbench.recordings.recording import Recording

INPUT = "recording"
NEEDS = ("attention",)
METRICS = (attention.by_bin, attention.query_statistics, attention.repeated_scores, attention.sink_windows)
PROBES = ("induction", "duplicate", "previous")


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        statistic: What the map shows: a name of the `statistics` table.
        sink: A head is a sink where its sink rate is over this.
        local: Local where the weight of the last 32 keys is over this.
        copying: An induction, duplicate or previous-token head where the probe's score is over this.
        collapsed: Collapsed where the entropy over ln of the number of keys is under this.
        level: Coverage of the intervals.
    """

    statistic: str = "normalized_entropy"
    sink: float = 0.5
    local: float = 0.8
    copying: float = 0.4
    collapsed: float = 0.1
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Every head by every statistic.

    Attributes:
        heads: One row per head, layer, group of keys, each statistic's mean over documents (the largest of
            `max_logit`), the `probe_` scores with their standard errors, and the roles.
        statistics: One row per head and statistic: `value` with `low` and `high`, and the `documents` that have it.
        roles: One row per layer and role: how many heads.
        undefined: Queries that saw no key, over all heads; they are in no mean.
        not_covered: Layers without statistics and why, in words.
        uniform_induction: Score of a head that looks everywhere alike on the probe.
        statistic: What the map shows.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    heads: pd.DataFrame
    statistics: pd.DataFrame
    roles: pd.DataFrame
    undefined: int
    not_covered: str
    uniform_induction: float
    statistic: str
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes the means of every head with their intervals, and names the heads whose scores pass the thresholds.

    Raises:
        AnalysisError: the recording holds no attention or no document of two tokens, or there is no such statistic.
    """
    require(recording, NEEDS, "attention_heads", columns=())
    names = _statistics.statistics_of(recording)
    _statistics.known(recording, settings.statistic, "attention_heads", names)
    heads = _statistics.head_labels(recording)
    if not (recording.column("tokens", table="documents") > 1).any():
        raise AnalysisError(
            f"attention_heads: no document of {recording.path} has two tokens, so no head has anywhere else to look. "
            "Record longer texts."
        )
    statistics, note = [], ""
    for name in names:
        values_DN = _statistics.of_heads(recording, name)
        interval = _statistics.mean_interval(recording, values_DN, level=settings.level)
        value, low, high, note = interval.value, interval.low, interval.high, interval.note
        if name == "max_logit":  # of a corpus the largest, and a largest has no such interval
            value = np.where(np.isfinite(values_DN), values_DN, -np.inf).max(axis=0)
            low = high = np.full_like(value, np.nan)
        documents = np.isfinite(values_DN).sum(axis=0)
        found = {"statistic": name, "value": value, "low": low, "high": high, "documents": documents}
        statistics.append(heads.assign(**found))
        heads[name] = value
    heads = _with_probe(heads, recording)
    heads = _with_roles(heads, settings)
    roles = [str(column) for column in heads if str(column).startswith("is_")]
    counted = heads.groupby("layer")[roles].sum().reset_index().melt("layer", var_name="role", value_name="heads")
    return Result(
        heads=heads,
        statistics=pd.concat([table[[c for c in table if c not in names]] for table in statistics], ignore_index=True),
        roles=counted.assign(role=counted["role"].str.removeprefix("is_").str.replace("_", " ")),
        undefined=int(_statistics.of_heads(recording, "undefined").sum()),
        not_covered=_statistics.not_covered(recording),
        uniform_induction=_uniform_induction(recording),
        statistic=settings.statistic,
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


def _with_probe(heads: pd.DataFrame, recording: Recording) -> pd.DataFrame:
    """The heads with their scores on repeated random tokens."""
    scores = recording.manifest["attention"]["probe"]["scores"]
    layers = [scores[str(facts["layer"])] for facts in _statistics.covered(recording)]
    columns = [f"{name}{end}" for name in PROBES for end in ("", "_error")]
    return heads.assign(
        **{f"probe_{name}": np.concatenate([np.array(of_layer[name]) for of_layer in layers]) for name in columns}
    )


def _with_roles(heads: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    return heads.assign(
        is_sink=heads["sink"] > settings.sink,
        is_local=heads["local32"] > settings.local,
        is_previous_token=heads["probe_previous"] > settings.copying,
        is_induction=heads["probe_induction"] > settings.copying,
        is_duplicate_token=heads["probe_duplicate"] > settings.copying,
        is_collapsed=heads["normalized_entropy"] < settings.collapsed,
    )


def _uniform_induction(recording: Recording) -> float:
    """The probe's induction score of a head that gives all keys the same weight."""
    probe = recording.manifest["attention"]["probe"]
    n, copies = probe["n_tokens"], probe["copies"]
    return float(np.mean([(query - 1) // n / (query + 1) for query in range(1 + n, 1 + n * copies)]))


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`heads`, `statistics` and `roles`."""
    return {"heads": result.heads, "statistics": result.statistics, "roles": result.roles}


def figures(result: Result) -> dict[str, Figure]:
    """`map` of all heads by the statistic, `landscape` of distance and entropy, `induction` on the probe, `roles`."""
    few = f" Undefined queries, in no mean: {result.undefined:,}." if result.undefined else ""
    sample = f"({result.sample}).{few} {result.not_covered}".strip()
    level = f"{result.level:.0%} intervals".replace("%", " %")
    shown = result.statistics[result.statistics["statistic"] == result.statistic]
    most, least = shown.nlargest(1, "value"), shown.nsmallest(1, "value")
    meaning = (
        _statistics.SINK if result.statistic == "sink" else STATISTICS.get(result.statistic, AXIS[result.statistic])
    )
    drawn: dict[str, Figure] = {}
    if len(most):
        drawn["map"] = HeatMap(
            shown,
            "head",
            "layer",
            "value",
            title="Every attention head",
            x_label="head",
            y_label="layer",
            value_label=AXIS[result.statistic],
            hover=("group", "low", "high", "documents"),
            caption=f"Of each head: {meaning}; mean over queries, then over documents, each with equal weight {sample} "
            f"{level} in the table: over clusters of documents, t. {result.note}".strip(),
            alt=f"Most at {_named(most.iloc[0])}: {most.iloc[0]['value']:.3g}; least at {_named(least.iloc[0])}: "
            f"{least.iloc[0]['value']:.3g}.",
        )
    drawn["landscape"] = Points(
        result.heads.assign(name=[f"L{row.layer} H{row.head}" for row in result.heads.itertuples()]),
        "distance",
        "normalized_entropy",
        size="first",
        size_label="weight of the first key",
        label="name" if len(result.heads) <= 64 else None,
        title="Near or far, narrow or wide",
        x_label=AXIS["distance"],
        y_label=AXIS["normalized_entropy"],
        hover=("layer", "head", "local32", "sink"),
        caption="A point per head: how far back it looks and how widely; areas are the weight of the first key "
        f"{sample} Means depend on the documents' lengths; attention_profile shows them by position.",
        alt=_alt(result.heads),
    )  # fmt: skip
    drawn["induction"] = HeatMap(
        result.heads,
        "head",
        "layer",
        "probe_induction",
        title="Induction on repeated random tokens",
        x_label="head",
        y_label="layer",
        value_label="induction score",
        hover=("probe_induction_error", "probe_duplicate", "probe_previous"),
        caption="Weight on the tokens behind earlier copies of the query's token, in random tokens that are repeated; "
        f"a head that looks everywhere alike has {result.uniform_induction:.3f}.",
        alt="Highest at "
        + " and ".join(
            f"layer {r.layer} head {r.head}" for r in result.heads.nlargest(2, "probe_induction").itertuples()
        )
        + ".",
    )
    found = result.roles[result.roles.groupby("role")["heads"].transform("sum") > 0]
    if len(found):
        drawn["roles"] = Bars(
            found,
            "layer",
            "heads",
            group="role",
            title="Heads that pass a threshold",
            x_label="layer",
            y_label="heads",
            caption=f"How many heads of each layer pass the thresholds of each role; one may pass several {sample}",
            alt="; ".join(f"{role}: {n} heads" for role, n in found.groupby("role")["heads"].sum().items()) + ".",
        )
    return drawn


def _named(row: pd.Series) -> str:
    return f"layer {row['layer']:.0f} head {row['head']:.0f}"


def _alt(heads: pd.DataFrame) -> str:
    near, far = heads.nsmallest(1, "distance").iloc[0], heads.nlargest(1, "distance").iloc[0]
    return (
        f"The nearest is {_named(near)} at {near['distance']:.0f} tokens, the farthest {_named(far)} at "
        f"{far['distance']:.0f}."
    )
