"""At which batch and context is the MoE faster than the dense model it is compared with, by the roofline?

Not shown: what a machine reaches; both times are floors, and kernels for experts are further from theirs than dense
ones. Whether weights and caches fit into the memory is marked in the table and left blank in the figure. Experts are
met as under uniform random routing, which is the most a batch of independent tokens can be expected to meet.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.costs._checks import check, doublings
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.formulas import memory
from workbench.efficiency.costs.roofline import decode_floor
from workbench.figures.spec import Figure, HeatMap, Lines

INPUT = "costs"
METRICS = ()
_LINES = 4


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        device: Name of a device, several as `2xh100`.
        dtype: Of the weights.
        largest_batch: Batches of 1, 2, 4 … up to it.
        largest_context: Contexts of 128, 256 … up to it.
    """

    device: str = "h200"
    dtype: str = "bfloat16"
    largest_batch: int = 1024
    largest_context: int = 32768


@dataclass(frozen=True, eq=False)
class Result:
    """The map.

    Attributes:
        map: One row per batch and context: floor of a decode step of both (`moe_ms`, `dense_ms`), their `ratio` (dense
            over MoE: over 1 the MoE is faster), what each is bound by, and whether both `fit` the memory.
        crossings: One row per context and place where the ratio passes 1: the `batch` (between two, where the
            logarithm of the ratio would pass 0), and whether the MoE is faster or slower beyond it.
        words: The models and the device in words.
    """

    map: pd.DataFrame
    crossings: pd.DataFrame
    words: str


def run(subject: Costed, settings: Settings = Settings()) -> Result:
    """Works out the map.

    Raises:
        AnalysisError: settings that cannot be meant.
    """
    sizes = {"largest_batch": settings.largest_batch, "largest_context": settings.largest_context}
    check("crossover", on=settings.device, dtype=settings.dtype, **sizes)
    on = device(settings.device)
    rows = []
    contexts = [c for c in doublings(settings.largest_context) if c >= 128] or [settings.largest_context]
    for context in contexts:
        for batch in doublings(settings.largest_batch):
            how: dict[str, Any] = {"batch": batch, "context": context, "dtype": settings.dtype}
            moe, dense = (decode_floor(t, on, **how) for t in (subject.topology, subject.other))
            needed = max(memory(t, **how).total_bytes for t in (subject.topology, subject.other))
            rows.append(
                {
                    "batch": batch,
                    "context": context,
                    "moe_ms": moe.time_s * 1e3,
                    "dense_ms": dense.time_s * 1e3,
                    "ratio": dense.time_s / moe.time_s,
                    "moe_bound": moe.bound,
                    "dense_bound": dense.bound,
                    "fits": needed <= on.memory_bytes,
                }
            )
    found = pd.DataFrame(rows)
    crossings = pd.DataFrame(
        [row for context in contexts for row in _crossings(context, found[found["context"] == context])],
        columns=["context", "batch", "beyond"],
    )
    words = f"{subject.words}; {on.name}, {settings.dtype}, {on.memory_bytes / 1e9:,.0f} GB"
    return Result(found, crossings, words)


def _crossings(context: int, part: pd.DataFrame) -> list[dict[str, object]]:
    log_ratio, log_batch = np.log(part["ratio"].to_numpy()), np.log(part["batch"].to_numpy())
    faster = log_ratio >= 0
    rows: list[dict[str, object]] = []
    for i in np.flatnonzero(faster[:-1] != faster[1:]).tolist():
        share = -log_ratio[i] / (log_ratio[i + 1] - log_ratio[i])
        at = float(np.exp(log_batch[i] + share * (log_batch[i + 1] - log_batch[i])))
        rows.append({"context": context, "batch": at, "beyond": "faster" if faster[i + 1] else "slower"})
    return rows


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`map`, and `crossings` where there are any."""
    return {"map": result.map} | ({"crossings": result.crossings} if len(result.crossings) else {})


def figures(result: Result) -> dict[str, Figure]:
    """`map` of the ratio, white at 1; `by_batch` at some contexts; `crossings`, where both are equally fast."""
    shown = result.map.assign(ratio=result.map["ratio"].where(result.map["fits"]))
    some = result.map["context"].unique()
    some = some[np.unique(np.linspace(0, len(some) - 1, _LINES).round().astype(int))]
    lines = result.map[result.map["context"].isin(some)].assign(
        doublings=lambda t: t["batch"].map(lambda b: b.bit_length() - 1),
        at=lambda t: "context " + t["context"].map("{:,}".format),
    )
    low, high = result.map["ratio"].min(), result.map["ratio"].max()
    blank = " Blank: weights and caches of one of them do not fit." if not result.map["fits"].all() else ""
    said = f"floor of a decode step of the dense model over the MoE's. {result.words}."
    drawn: dict[str, Figure] = {
        "by_batch": Lines(
            lines.assign(even=1.0),
            "doublings",
            "ratio",
            group="at",
            null="even",
            null_label="equally fast",
            log=True,
            hover=("batch", "context"),
            title="How many times as fast the MoE could decode",
            x_label="sequences decoded together, as a power of 2",
            y_label="dense over MoE",
            caption=f"Over 1 the MoE is faster: {said} Experts met as under uniform routing, whether or not the caches "
            "fit.",
            alt=f"The ratio runs from {low:.2f} to {high:.2f}.",
        )
    }
    if shown["ratio"].notna().any():
        drawn["map"] = HeatMap(
            shown.astype({"batch": str, "context": str}),
            "batch",
            "context",
            "ratio",
            center=1.0,
            log=True,
            title="Where the MoE decodes faster",
            x_label="sequences decoded together",
            y_label="tokens in the cache of each",
            value_label="dense over MoE",
            caption=f"Over 1 the MoE is faster: {said} Experts met as under uniform routing.{blank}",
            alt=f"The ratio runs from {low:.2f} to {high:.2f} over batches and contexts.",
        )
    if len(result.crossings):
        crossed = result.crossings.assign(
            doublings=np.log2(result.crossings["context"]).astype(int),
            beyond="above it the MoE is " + result.crossings["beyond"].astype(str),
        )
        drawn["crossings"] = Lines(
            crossed,
            "doublings",
            "batch",
            group="beyond",
            log=True,
            hover=("context",),
            title="Where both are equally fast",
            x_label="tokens in the cache of each, as a power of 2",
            y_label="sequences decoded together",
            caption=f"Batches at which the ratio passes 1: {said} Where a line ends, longer contexts have no crossing. "
            "Experts met as under uniform routing, whether or not the caches fit.",
            alt=f"Crossings at batches from {crossed['batch'].min():.0f} to {crossed['batch'].max():.0f}.",
        )
    return drawn
