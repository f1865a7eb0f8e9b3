"""How much of what the machine can do does each model use, in arithmetic and in memory?

Not shown: why the rest is not used, which is the waterfall's business, and what a loop does beyond its work (a static
cache is read at its full length): that counts as time, not as work. A share of the measured ceiling can exceed 1 where
the machine was busier while the ceiling was taken.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells, _workload
from analyses.measured._cells import POINT, WHO, batches, drift_words, ends, interval_words, largest, runs, summary
from workbench.efficiency.costs.utilization import utilization
from workbench.efficiency.measurements.measurement import Measurement
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("samples",)
METRICS = ()
MEASURES = {
    "mfu": ("MFU", "FLOP, all experts"),
    "s_mfu": ("S-MFU", "FLOP, chosen experts"),
    "mbu": ("MBU", "bytes, all experts"),
    "s_mbu": ("S-MBU", "bytes, experts met"),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals, at least.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Shares of peaks.

    Attributes:
        utilization: One row per model, routing, experts, point, phase, peak and measure (`MFU` and `MBU` as if every
            expert were met, `S-MFU` with the K experts of each token, `S-MBU` with the experts that passes met): the
            share `value` with `low` and `high`, and the `peak` in `unit`.
        work: One row per model, routing, point and phase: what went into it, and the mean distinct experts of a layer:
            measured beside `uniform` (even, independent tokens) and `independent` (these tokens, shuffled over passes).
        peaks: The peaks in words.
        ceiling: How the measured ceiling moved.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    utilization: pd.DataFrame
    work: pd.DataFrame
    peaks: tuple[str, ...]
    ceiling: str
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Divides the work of each phase by what the peaks do in its time, round by round.

    Raises:
        AnalysisError: no timed run, no ceiling, or a model part that no formula knows.
    """
    timed = runs(measurement, "utilization")
    timed = timed[~timed["watched"]]
    tasks = _workload.tasks(measurement, timed, "utilization")
    found = [each.work for each in tasks["task"]]
    work = tasks.drop(columns="task").assign(
        **{name: [getattr(w, name) for w in found] for name in ("active_flops", "all_flops", "met_bytes", "all_bytes")}
    )
    frames = []
    for phase in _workload.PHASES:
        here = timed.merge(tasks[tasks["phase"] == phase], on=_workload.KEYS).dropna(subset=[f"{phase}_s"])
        for peak in _workload.peaks(measurement):
            shares = [
                utilization(
                    task.work, seconds=seconds, peak_flops_per_s=peak.flops_per_s, peak_bytes_per_s=peak.bytes_per_s
                )
                for task, seconds in zip(here["task"], here[f"{phase}_s"], strict=True)
            ]
            for name, (measure, of) in MEASURES.items():
                of_runs = here.assign(value=[getattr(share, name) for share in shares])
                if of_runs.empty:
                    continue
                flops = name.endswith("mfu")
                frames.append(
                    summary(of_runs, [*WHO, *POINT], "value", level=settings.level).assign(
                        phase=phase, against=peak.name, measure=measure, of=of,
                        peak=peak.flops_per_s if flops else peak.bytes_per_s, unit="FLOP/s" if flops else "bytes/s",
                    )
                )  # fmt: skip
    table = pd.concat(frames, ignore_index=True)
    front = [*WHO, *POINT, "phase", "measure", "of", "against", "peak", "unit"]
    return Result(
        utilization=table[[*front, "value", "low", "high", "rounds", "change", "drift_p"]],
        work=work,
        peaks=tuple(peak.words for peak in _workload.peaks(measurement)),
        ceiling=_workload.ceiling_words(measurement),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`utilization` and `work`."""
    return {"utilization": result.utilization, "work": result.work}


def figures(result: Result) -> dict[str, Figure]:
    """`arithmetic` and `memory`: S-MFU and S-MBU of the measured ceiling, by batch and phase."""
    table = result.utilization
    table = table[table["against"] == _workload.CEILING]
    first = table.drop_duplicates("model")[["model", "routing", "experts"]]  # each model as it is compared
    table = largest(table.merge(first, on=["model", "routing", "experts"]))
    table = table.assign(
        batch=batches(table), whole=1.0, phase=pd.Categorical(table["phase"], categories=list(_workload.PHASES))
    )
    size = f"{table['prompt_tokens'].iloc[0]} + {table['output_tokens'].iloc[0]} tokens"
    peaks = "; ".join(result.peaks)
    found: dict[str, Figure] = {}
    for name, measure, title in (
        ("arithmetic", "S-MFU", "Share of the machine's arithmetic"),
        ("memory", "S-MBU", "Share of the memory's bandwidth"),
    ):
        here = table[table["measure"] == measure]
        best = here.nlargest(1, "value").iloc[0]
        found[name] = Bars(
            here, "batch", "value", panel="phase", group="model", **ends(here, result.level), null="whole",
            null_label=_workload.CEILING, title=title, x_label="batch", y_label=f"{measure} (share)",
            hover=("peak", "rounds", "change", "drift_p"),
            caption=f"{measure}, {here['of'].iloc[0]}, over the time of the phase, as a share of the measured ceiling; "
            f"{size} ({result.words}). Peaks: {peaks}. {result.ceiling} {interval_words(here, result.level)} "
            f"{drift_words(here, 'share')}".replace("  ", " ").strip(),
            alt=f"The highest {measure} is {best['value']:.1%}: {best['model']}, {best['phase']}, batch "
            f"{best['batch']}.".replace("%", " %"),
        )  # fmt: skip
    return found
