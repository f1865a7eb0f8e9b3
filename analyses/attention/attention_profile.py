"""How does attention change along the document?

Not shown: one document followed from end to end. Late positions are of long documents only, so each bin stands for the
documents that reach it, and their number is given. A head that looks everywhere alike changes with the position too:
its curve is drawn beside.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.attention import _statistics
from analyses.attention._statistics import AXIS
from analyses.read.design import require, sample_words
from analyses.read.tokens import evenly
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import attention
from workbench.metrics.attention import BIN_EDGES, PROFILED
from workbench.recordings.recording import Recording
from workbench.statistics.design import MIN_CLUSTERS

INPUT = "recording"
NEEDS = ("attention",)
METRICS = (attention.by_bin, attention.query_statistics, attention.repeated_scores, attention.sink_windows)
_SHOWN_LAYERS = 5


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        statistic: Of `entropy`, `first`, `local32`, `distance`: what the figure of all layers shows.
        layer: Layer of the head that is shown alone; the middle one unless given.
        head: That head; the first unless given.
        level: Coverage of the intervals.
    """

    statistic: str = "entropy"
    layer: int | None = None
    head: int | None = None
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Statistics by position.

    Attributes:
        layers: One row per layer, statistic and bin of positions: `value`, the mean over heads and documents, with
            `low` and `high`; `uniform`, of a head that looks everywhere alike; `documents` that reach the bin.
        heads: The same of each head, without ends.
        of_head: The same of the one head, with ends.
        statistic: What the figure of all layers shows.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    heads: pd.DataFrame
    of_head: pd.DataFrame
    statistic: str
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes the means by bins of positions.

    Raises:
        AnalysisError: the recording holds no attention, or there is no such statistic, layer or head.
    """
    require(recording, NEEDS, "attention_profile", columns=())
    _statistics.known(recording, settings.statistic, "attention_profile", PROFILED)
    labels = _statistics.head_labels(recording)
    chosen = _chosen(labels, settings)
    layers, heads, head, note = [], [], [], ""
    for statistic in PROFILED:
        values_DNb = _statistics.of_bins(recording, statistic)
        bins = _Bins.of(statistic, values_DNb)
        of_heads = _statistics.mean_interval(recording, values_DNb, level=settings.level)
        note = of_heads.note
        heads += [
            bins.table(value_b, layer=layer, head=number)
            for value_b, layer, number in zip(of_heads.value, labels["layer"], labels["head"], strict=True)
        ]
        ends = (of_heads.low[chosen], of_heads.high[chosen])
        layer, number = (int(labels[name].iloc[chosen]) for name in ("layer", "head"))
        head.append(bins.table(of_heads.value[chosen], ends, layer=layer, head=number))
        for of_layer in labels["layer"].unique().tolist():
            of_layer_Db = values_DNb[:, (labels["layer"] == of_layer).to_numpy()].mean(axis=1)
            found = _statistics.mean_interval(recording, of_layer_Db, level=settings.level)
            layers.append(bins.table(found.value, (found.low, found.high), layer=of_layer))
    return Result(
        layers=pd.concat(layers, ignore_index=True),
        heads=pd.concat(heads, ignore_index=True),
        of_head=pd.concat(head, ignore_index=True),
        statistic=settings.statistic,
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


@dataclass(frozen=True, eq=False)
class _Bins:
    """The bins of positions that a statistic reaches, and what stands beside each."""

    statistic: str
    reached: np.ndarray
    documents_b: np.ndarray

    @classmethod
    def of(cls, statistic: str, values_DNb: np.ndarray) -> "_Bins":
        documents_b = np.isfinite(values_DNb).any(axis=1).sum(axis=0)
        return cls(statistic, np.flatnonzero(documents_b), documents_b)

    def table(
        self, value_b: np.ndarray, ends: tuple[np.ndarray, np.ndarray] | None = None, **about: int
    ) -> pd.DataFrame:
        """One row per bin."""
        names = _statistics.bin_names()
        between = dict(zip(("low", "high"), (end_b[self.reached] for end_b in ends), strict=True)) if ends else {}
        return pd.DataFrame(
            {
                **about,
                "statistic": self.statistic,
                "bin": [names[b] for b in self.reached],
                "position": np.array(BIN_EDGES)[self.reached],
                "value": value_b[self.reached],
                **between,
                "uniform": uniform(self.statistic)[self.reached],
                "documents": self.documents_b[self.reached],
            }
        )


def _chosen(labels: pd.DataFrame, settings: Settings) -> int:
    """The row of the head that is shown alone."""
    layers = labels["layer"].unique().tolist()
    layer = layers[len(layers) // 2] if settings.layer is None else settings.layer
    if layer not in layers:
        raise AnalysisError(f"attention_profile: layer {layer} has no recorded attention; there are {layers}.")
    heads = labels[labels["layer"] == layer]
    head = 0 if settings.head is None else settings.head
    if head not in heads["head"].tolist():
        raise AnalysisError(f"attention_profile: layer {layer} has heads 0 to {len(heads) - 1}, and {head} was asked.")
    return int(heads.index[heads["head"] == head][0])


def uniform(statistic: str) -> np.ndarray:
    """A statistic of a head that gives all keys the same weight, mean over the positions of each bin."""
    ends = [*BIN_EDGES[1:], 2 * BIN_EDGES[-1]]
    means = []
    for begin, end in zip(BIN_EDGES, ends, strict=True):
        keys = np.arange(begin, end) + 1.0
        of_query = {
            "entropy": np.log(keys),
            "first": 1 / keys,
            "local32": np.minimum(1, 32 / keys),
            "distance": (keys - 1) / 2,
        }[statistic]
        means.append(of_query.mean())
    return np.array(means)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`, `head` and `heads`."""
    return {"layers": result.layers, "head": result.of_head, "heads": result.heads}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer`: the statistic along the document; `head`: all four of one head."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    said = "Positions in bins that double in width; the middle of a bin's documents differs from bin to bin."
    short = f" Bins that fewer than {MIN_CLUSTERS} documents reach are in the table only."
    shown = result.layers[result.layers["statistic"] == result.statistic]
    of_head = result.of_head
    enough = shown["documents"] >= MIN_CLUSTERS
    shown = shown[enough] if enough.any() else shown
    reached = of_head["documents"] >= MIN_CLUSTERS
    of_head = of_head[reached] if reached.any() else of_head
    layers = evenly(shown["layer"].unique().tolist(), _SHOWN_LAYERS)
    last = shown[shown["layer"].isin(layers)]
    one = of_head.iloc[0]
    return {
        "by_layer": Lines(
            last.assign(layer=[f"layer {layer}" for layer in last["layer"]], number=_number(last)),
            "number",
            "value",
            group="layer",
            low="low",
            high="high",
            interval_label=level,
            null="uniform",
            null_label="all keys alike",
            title="Attention along the document",
            x_label="position (bins that double: 5 is 16–31)",
            y_label=AXIS[result.statistic],
            hover=("bin", "documents"),
            caption=f"Mean over the heads of a layer ({result.sample}). {said}{short if not enough.all() else ''} "
            f"{level}: over clusters of documents, t. {result.note}".strip(),
            alt=f"A line for each of {len(layers)} layers along positions {last['bin'].iloc[0]} to "
            f"{last['bin'].iloc[-1]}.",
        ),
        "head": Lines(
            of_head.assign(statistic=[AXIS[name] for name in of_head["statistic"]], number=_number(of_head)),
            "number",
            "value",
            panel="statistic",
            shared_y=False,
            low="low",
            high="high",
            interval_label=level,
            null="uniform",
            null_label="all keys alike",
            title=f"Layer {one['layer']}, head {one['head']}",
            x_label="position (bins that double: 5 is 16–31)",
            y_label="mean over documents",
            hover=("bin", "documents"),
            caption=f"Layer {one['layer']}, head {one['head']}, along the document ({result.sample}). {said} {level}: "
            f"over clusters of documents, t. {result.note}".strip(),
            alt=f"Entropy goes from {of_head['value'].iloc[0]:.2f} nats to "
            f"{of_head[of_head['statistic'] == 'entropy']['value'].iloc[-1]:.2f}.",
        ),
    }


def _number(table: pd.DataFrame) -> np.ndarray:
    """Of each bin, counted from 0."""
    return np.searchsorted(BIN_EDGES, table["position"].to_numpy())
