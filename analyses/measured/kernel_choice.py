"""Which way to run the experts is fastest here, at what cost in memory, and do they agree?

Not shown: kernels that do not run on this machine (the measurement's manifest says which and why), and other machines:
the order differs between CPU and GPU, and between prefill and decode.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import (
    POINT,
    as_compared,
    base,
    batches,
    drift_words,
    ends,
    interval_words,
    largest,
    ratios,
    runs,
    summary,
)
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("samples", "memory", "checks")
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
    """Implementations of the experts beside the one in use.

    Attributes:
        kernels: One row per implementation, point and phase: time over the base's within rounds, `value` with `low` and
            `high`; `extra_bytes` that a whole run takes at its peak, `tokens_same` of its greedy tokens with the
            base's, `logit_difference` (largest absolute) beside `largest_logit`.
        base: The implementation the others are compared with.
        left_out: What does not run here, and why.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    kernels: pd.DataFrame
    base: str
    left_out: tuple[str, ...]
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Holds each implementation against the base, round by round.

    Raises:
        AnalysisError: only one implementation was measured, or the model has no experts.
    """
    timed = runs(measurement, "kernel_choice")
    timed = timed[~timed["watched"]]
    mine, how = base(measurement, timed), measurement.manifest["base"]
    same = (timed["model"] == next(iter(measurement.models))) & (timed["routing"] == how["routing"])
    others = timed[same & (timed["experts"] != how["experts"])]
    if others.empty:
        raise AnalysisError(
            f"kernel_choice: {measurement.path} has one way to run experts; measure an MoE with several: "
            "workbench profile MODEL --experts-implementation grouped_mm,eager --out DIR."
        )
    frames = []
    for phase in ("prefill", "decode"):
        beside = ratios(others, mine, [f"{phase}_s"])
        frames.append(summary(beside, ["experts", *POINT], f"{phase}_s", level=settings.level).assign(phase=phase))
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    memory, checks = (as_compared(measurement, measurement.table(name)) for name in ("memory", "checks"))
    memory = memory.assign(extra_bytes=memory["peak_bytes"] - memory["before_bytes"])
    memory = memory[(memory["model"] == mine["model"].iloc[0]) & (memory["routing"] == how["routing"])]
    checks = checks[checks["check"] == f"as {how['experts']}"]
    keys = ["experts", *POINT]
    table = table.merge(memory[[*keys, "extra_bytes"]], on=keys, how="left")
    agreed = ["tokens_same", "logit_difference", "largest_logit"]
    table = table.merge(checks[[*keys, *agreed]], on=keys, how="left")
    columns = [*keys, "phase", "value", "low", "high", "rounds", "change", "drift_p", "extra_bytes", *agreed]
    return Result(
        kernels=table[columns],
        base=how["experts"],
        left_out=tuple(measurement.manifest["left_out"]),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`kernels`."""
    return {"kernels": result.kernels}


def figures(result: Result) -> dict[str, Figure]:
    """`time` of each implementation over the base's."""
    table = largest(result.kernels)
    table = table.assign(
        batch=batches(table), equal=1.0, phase=pd.Categorical(table["phase"], categories=["prefill", "decode"])
    )
    worst = table.nlargest(1, "value").iloc[0]
    apart = (table["logit_difference"] / table["largest_logit"]).max()
    left_out = f" Left out: {'; '.join(line.rstrip('.') for line in result.left_out)}." if result.left_out else ""
    return {
        "time": Bars(
            table, "batch", "value", panel="phase", group="experts", shared_y=False,
            **ends(table, result.level), null="equal",
            null_label=f"{result.base}", title=f"Ways to run the experts, beside {result.base}",
            x_label="batch", y_label="relative time",
            hover=("rounds", "extra_bytes", "tokens_same", "logit_difference"),
            caption=f"Time of prefill and of decode over that of {result.base}, divided within each round; "
            f"{table['prompt_tokens'].iloc[0]} + {table['output_tokens'].iloc[0]} tokens ({result.words}). "
            f"{interval_words(table, result.level)} {drift_words(table, 'ratio')} Logits differ by {apart:.1e} of the "
            f"largest at most, greedy tokens agree to {table['tokens_same'].min():.1%}.".replace("%.", " %.")
            + left_out,
            alt=f"{worst['experts']} takes most: {worst['value']:.1f} times as long in {worst['phase']} at batch "
            f"{worst['batch']}.",
        )
    }  # fmt: skip
