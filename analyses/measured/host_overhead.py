"""How much of a step does the device wait, or the loop take for itself?

Not shown: work that the host does while the device is busy, which costs nothing. On a GPU the device's own time is the
sum of its kernels in a profiled run, compared with runs that were not profiled; on a CPU host and device are one, no
device time exists, and what is told is the loop's own time outside the model's forward pass.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import (
    LAUNCH,
    POINT,
    WHO,
    batches,
    drift_words,
    ends,
    interval_words,
    largest,
    runs,
    summary,
)
from workbench.efficiency.costs.workload import PHASES, prefill_widths
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("samples",)
METRICS = ()
KEYS = [*WHO, LAUNCH, *POINT]


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals, at least.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Steps, and what of them is not the device's work.

    Attributes:
        overhead: One row per model, routing, experts, `launch`, point and phase: the median `step_ms` of a
            pass, of it `device_ms` (a CPU: the model's forward pass), and the rest, `overhead_ms`; the rest's `share`
            of the step with `low` and `high`; `launch_ms`, the host's time in the forward pass; `after_ms`, from the
            last token until the host knew of it, of the whole run.
        what: What is told of this machine.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    overhead: pd.DataFrame
    what: str
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Takes the device's time from each step.

    Raises:
        AnalysisError: the measurement does not hold the times of the forward passes, or those of its GPU.
    """
    timed = with_device_seconds(measurement, "host_overhead")
    timed = timed[~timed["watched"]]
    frames = []
    for phase in PHASES:
        here = timed.dropna(subset=[f"{phase}_s", f"{phase}_device_s"])
        if here.empty:
            continue
        passes = here["prefill_passes"] if phase == "prefill" else here["output_tokens"] - 1
        step, device = (here[f"{phase}{what}"] / passes * 1e3 for what in ("_s", "_device_s"))
        here = here.assign(
            step_ms=step, device_ms=device, overhead_ms=step - device, share=1 - device / step,
            launch_ms=here[f"{phase}_forward_s"] / passes * 1e3, after_ms=(here["wall_s"] - here["whole_s"]) * 1e3,
        )  # fmt: skip
        found = summary(here, KEYS, "share", level=settings.level).rename(columns={"value": "share"})
        for name in ("step_ms", "device_ms", "overhead_ms", "launch_ms", "after_ms"):
            found[name] = summary(here, KEYS, name, level=settings.level)["value"].to_numpy()
        frames.append(found.assign(phase=phase))
    table = pd.concat(frames, ignore_index=True)
    front = [*KEYS, "phase", "step_ms", "device_ms", "overhead_ms", "launch_ms", "after_ms"]
    return Result(
        overhead=table[[*front, "share", "low", "high", "rounds", "change", "drift_p"]],
        what=_what(measurement),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def with_device_seconds(measurement: Measurement, analysis: str) -> pd.DataFrame:
    """The timed runs with `prefill_device_s`, `decode_device_s`, and the host's time in each phase's forward passes.

    Raises:
        AnalysisError: the measurement does not hold them.
    """
    timed = runs(measurement, analysis, every_launch=True)
    samples = measurement.table("samples")
    if "forward_s" not in samples:
        raise AnalysisError(
            f"{analysis}: {measurement.path} does not hold the times of the forward passes; measure again."
        )
    chunk = int(measurement.manifest["settings"].get("prefill_chunk", 0))
    reads = [
        len(prefill_widths(batch, tokens, chunk))
        for batch, tokens in zip(timed["batch"], timed["prompt_tokens"], strict=True)
    ]
    passes = list(zip(samples["forward_s"], reads, strict=True))
    timed = timed.assign(
        prefill_passes=reads,
        prefill_forward_s=[float(np.sum(each[:n])) for each, n in passes],
        decode_forward_s=[float(np.sum(each[n:])) if len(each) > n else np.nan for each, n in passes],
    )
    if measurement.manifest["machine"]["device"] == "cpu":
        return timed.assign(prefill_device_s=timed["prefill_forward_s"], decode_device_s=timed["decode_forward_s"])
    stated = measurement.manifest["tables"].get("device")
    if not stated or not stated["rows"]:
        raise AnalysisError(f"{analysis}: {measurement.path} has no times of its device's kernels; measure again.")
    busy = measurement.table("device").pivot_table(index=KEYS, columns="phase", values="busy_s").reset_index()
    busy = busy.reindex(columns=[*KEYS, *PHASES]).rename(columns={phase: f"{phase}_device_s" for phase in PHASES})
    return timed.merge(busy, on=KEYS, how="left")


def _what(measurement: Measurement) -> str:
    if measurement.manifest["machine"]["device"] == "cpu":
        return (
            "A CPU has no device time: what is told is the loop's own time outside the model's forward pass (choosing "
            "a token, positions, marks); Python within the pass counts to the model."
        )
    return (
        "The device's time is the sum of its kernels, from a profiled run of its own; a step lasts from one token to "
        "the next by events in the device's stream."
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`overhead`."""
    return {"overhead": result.overhead}


def figures(result: Result) -> dict[str, Figure]:
    """`share` of a step that is overhead, by batch and launch."""
    table = result.overhead
    first = table.drop_duplicates(["model", LAUNCH])[["model", LAUNCH, "routing", "experts"]]
    table = largest(table.merge(first, on=["model", LAUNCH, "routing", "experts"]))
    several = table[LAUNCH].nunique() > 1
    who = table["model"] + ", " + table[LAUNCH] if several else table["model"]
    table = table.assign(
        batch=batches(table), who=who, phase=pd.Categorical(table["phase"], categories=list(PHASES)), none=0.0
    )
    steps = table[table["phase"] == "decode"] if "decode" in set(table["phase"]) else table
    size = f"{table['prompt_tokens'].iloc[0]} + {table['output_tokens'].iloc[0]} tokens"
    return {
        "share": Bars(
            table, "batch", "share", panel="phase", group="who", **ends(table, result.level),
            title="Host overhead", x_label="batch", y_label="share of a pass",
            hover=("step_ms", "device_ms", "overhead_ms", "launch_ms", "rounds"),
            caption=f"Share of a pass that is not the device's work, by batch; {size} ({result.words}). {result.what} "
            f"{interval_words(table, result.level)} {drift_words(table, 'share')}".strip(),
            alt="; ".join(
                f"{row.who}, batch {row.batch}: {row.overhead_ms:.3g} of {row.step_ms:.3g} ms, {row.share:.1%}".replace(
                    "%", " %"
                )
                for row in steps.itertuples()
            )
            + ".",
        )
    }  # fmt: skip
