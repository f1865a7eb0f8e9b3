"""What do the experts that a batch meets cost, and how many are they?

Not shown: what a model with such routing would write: the router's weights stay and only its experts are replaced, so
a forced run computes with experts that were not chosen. Even routing is the best case over many devices, and on one
device the most weights to read.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import (
    POINT,
    base,
    batches,
    drift_words,
    ends,
    interval_words,
    largest,
    ratios,
    require_table,
    runs,
)
from analyses.measured._cells import summary as over_rounds
from workbench.efficiency.measurements.measurement import Measurement
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("samples", "coverage")
METRICS = ()


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals, at least.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Coverage and time by routing.

    Attributes:
        coverage: One row per routing, point, phase and layer: mean `distinct` experts of a pass between `lowest` and
            `highest`; `uniform` E(1 − (1 − K/E)^T), what T even and independent tokens would meet; `independent`, what
            these tokens shuffled over the passes would (NaN where there is one pass).
        mean: One row per routing, point and phase: the same, mean over layers.
        times: One row per other routing, point and phase: time over the first routing's within rounds. May be empty.
        first: The routing the others are compared with.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    coverage: pd.DataFrame
    mean: pd.DataFrame
    times: pd.DataFrame
    first: str
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Sums up coverage by routing, and holds each routing's times against the first's.

    Raises:
        AnalysisError: no model of the measurement has a router.
    """
    coverage = require_table(
        measurement, "coverage", "forced_routing", otherwise="no model in it has a router; measure an MoE."
    )
    model, how = next(iter(measurement.models)), measurement.manifest["base"]
    keys = ["model", "routing", *POINT, "phase"]
    coverage = coverage.drop(columns=["watched", "experts"]).assign(
        phase=pd.Categorical(coverage["phase"], categories=["prefill", "decode"])
    )
    mean = coverage.groupby(keys, sort=False, observed=True, as_index=False).agg(
        distinct=("distinct", "mean"), uniform=("uniform", "mean"), independent=("independent", "mean"),
        lowest=("lowest", "min"), highest=("highest", "max"), tokens=("tokens", "first"), layers=("layer", "nunique"),
    )  # fmt: skip
    timed = runs(measurement, "forced_routing")
    timed = timed[~timed["watched"] & (timed["experts"] == how["experts"]) & (timed["model"] == model)]
    others = timed[timed["routing"] != how["routing"]]
    frames = []
    for phase in ("prefill", "decode"):
        beside = ratios(others, base(measurement, timed), [f"{phase}_s"])
        found = over_rounds(beside, ["routing", *POINT], f"{phase}_s", level=settings.level)
        frames += [found.assign(phase=phase)] if len(found) else []
    times = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return Result(
        coverage=coverage,
        mean=mean,
        times=times,
        first=how["routing"],
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`coverage`, `mean`, and with several routings `times`."""
    found = {"coverage": result.coverage, "mean": result.mean}
    return found | ({"times": result.times} if len(result.times) else {})


def figures(result: Result) -> dict[str, Figure]:
    """`coverage` by batch, and with several routings their `time`."""
    mean = largest(result.mean[result.mean["model"] == result.mean["model"].iloc[0]])
    mean = mean.assign(batch=batches(mean))
    decode = mean[mean["phase"] == "decode"]
    told = decode if len(decode) else mean
    size = f"{mean['prompt_tokens'].iloc[0]} + {mean['output_tokens'].iloc[0]} tokens"
    found: dict[str, Figure] = {
        "coverage": Bars(
            mean, "batch", "distinct", panel="phase", group="routing", null="uniform",
            null_label="even, independent tokens", title="Distinct experts of a layer in one pass",
            x_label="batch", y_label="distinct experts", hover=("independent", "lowest", "highest"),
            caption=f"Mean over passes and layers of the distinct experts that a pass meets, counted in runs that were "
            f"not timed, beside E(1 − (1 − K/E)^T) of T tokens; {size} ({result.words}).",
            alt="; ".join(
                f"{row.routing} at batch {row.batch}: {row.distinct:.1f} of {row.uniform:.1f} expected when even"
                for row in told.itertuples()
            )
            + ".",
        )
    }  # fmt: skip
    if len(result.times):
        times = largest(result.times)
        times = times.assign(
            batch=batches(times), equal=1.0, phase=pd.Categorical(times["phase"], categories=["prefill", "decode"])
        )
        most = times.assign(apart=(times["value"] - 1).abs()).nlargest(1, "apart").iloc[0]
        found["time"] = Bars(
            times, "batch", "value", panel="phase", group="routing", **ends(times, result.level),
            null="equal", null_label=result.first,
            title=f"Time of forced routing, beside {result.first}", x_label="batch",
            y_label="relative time", hover=("rounds", "change", "drift_p"),
            caption=f"Time of prefill and of decode over that of {result.first} routing, divided within each round; "
            f"{size} ({result.words}). {interval_words(times, result.level)} {drift_words(times, 'ratio')} A forced "
            "run holds one hook per layer that a natural one does not.",
            alt=f"{most['routing']} differs most: {most['value']:.2f} times as long in {most['phase']} at batch "
            f"{most['batch']}.",
        )  # fmt: skip
    return found
