"""Where does the time of prefill and decode go, part by part?

Not shown: what a part would cost alone, or in a fused kernel: its time here holds the launching of its operations.
Marking the parts costs time too, told in `overhead`. `rest` is the whole less the parts: norms, sums, embedding, masks,
the choice of a token, and the marks themselves.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import POINT, base, ends, interval_words, largest, ratios, require_table, runs, summary
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("samples", "parts")
METRICS = ()


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        batch: That the figure shows; the largest unless given.
        level: Coverage of the intervals, at least.
    """

    batch: int = 0
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """The parts of a pass, and what telling them apart cost.

    Attributes:
        parts: One row per model, point, phase and part: the median time of one pass `value` in ms with `low` and
            `high`, and its median `share` of the whole.
        overhead: One row per model and point: time of a watched run over that of the same run unwatched, within rounds.
        hook_us: What one pair of marks costs on a module that does nothing, in microseconds.
        host: Wall-clock time that the device was idle, where it can be told.
        batch: That the figure shows.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    parts: pd.DataFrame
    overhead: pd.DataFrame
    hook_us: float
    host: str
    batch: int
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Sums up the watched runs.

    Raises:
        AnalysisError: parts were not timed, or the batch was not measured.
    """
    parts = require_table(measurement, "parts", "latency_breakdown", otherwise="measure again without --no-parts.")
    timed = runs(measurement, "latency_breakdown")
    passes = parts["output_tokens"].where(parts["phase"] == "decode", 2) - 1
    parts = parts.assign(pass_ms=parts["seconds"] / passes * 1e3, part_of=parts["seconds"] / parts["whole_s"])
    keys = ["model", *POINT, "phase", "part"]
    table = summary(parts, keys, "pass_ms", level=settings.level)
    share = summary(parts, keys, "part_of", level=settings.level)
    table = table.assign(share=share["value"]).drop(columns=["change", "drift_p"])
    known = sorted(table["batch"].unique())
    if settings.batch and settings.batch not in known:
        raise AnalysisError(
            f"latency_breakdown: batch is {settings.batch}; {', '.join(map(str, known))} were measured."
        )
    return Result(
        parts=table,
        overhead=_overhead(measurement, timed, settings.level),
        hook_us=measurement.manifest["hook_s"] * 1e6,
        host=_host(measurement),
        batch=settings.batch or int(known[-1]),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def _overhead(measurement: Measurement, timed: pd.DataFrame, level: float) -> pd.DataFrame:
    frames = []
    first = next(iter(measurement.models))
    for model in measurement.models:
        of_model = base(measurement, timed) if model == first else timed[timed["model"] == model]
        watched, plain = of_model[of_model["watched"]], of_model[~of_model["watched"]]
        frames.append(summary(ratios(watched, plain, ["whole_s"]), ["model", *POINT], "whole_s", level=level))
    return pd.concat(frames, ignore_index=True)


def _host(measurement: Measurement) -> str:
    if measurement.manifest["machine"]["device"] == "cpu":
        return "On a CPU host and device are one, so the host's overhead is part of every part."
    return "Parts were marked in the device's stream; a gap in which the device waits for the host counts to its part."


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`parts` and `overhead`."""
    return {"parts": result.parts, "overhead": result.overhead}


def figures(result: Result) -> dict[str, Figure]:
    """`by_part` at one batch."""
    table = largest(result.parts[result.parts["batch"] == result.batch])
    order = table.groupby("part")["value"].max().sort_values(ascending=False).index.tolist()
    order = [*(part for part in order if part != "rest"), *(["rest"] if "rest" in order else [])]
    table = table.assign(
        part=pd.Categorical(table["part"], categories=order),
        model=pd.Categorical(table["model"], categories=list(dict.fromkeys(result.overhead["model"]))),
        phase=pd.Categorical(table["phase"], categories=["prefill", "decode"]),
    )
    table = table.sort_values(["phase", "model", "part"])
    low, high = result.overhead["value"].min(), result.overhead["value"].max()
    most = table.loc[table.groupby(["model", "phase"], observed=True, sort=False)["share"].idxmax()]
    size = f"batch {result.batch}, {table['prompt_tokens'].iloc[0]} + {table['output_tokens'].iloc[0]} tokens"
    return {
        "by_part": Bars(
            table, "part", "value", panel="phase", group="model", shared_y=False,
            **ends(table, result.level),
            title="Time of one pass, by part", x_label="part", y_label="time of one pass (ms)",
            hover=("share", "rounds"),
            caption=f"Own time of each part in one pass: the prompts (prefill), one new token of each (decode); {size} "
            f"({result.words}). {interval_words(table, result.level)} Watched runs took {low:.2f} to {high:.2f} times "
            f"as long as the same unwatched; one pair of marks takes {result.hook_us:.1f} µs. {result.host}",
            alt="; ".join(
                f"{row.model}, {row.phase}: {row.part} takes most, {row.share:.0%}".replace("%", " %")
                for row in most.itertuples()
            )
            + ".",
        )
    }  # fmt: skip
