"""How fast is each model on this machine, and how fast is one beside the other?

Not shown: the throughput of a server, which batches requests as they come; another machine. Batches are closed: all
prompts start together and have one length, nothing ends early. An interval is about more rounds on this machine in the
state it was in; a CPU that others share makes times drift, and their ratios less.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import (
    POINT,
    WHO,
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
NEEDS = ("samples",)
METRICS = ()
WHOLE = "whole requests"
PHASES = {"prefill": "prefill_s", "decode": "decode_s", WHOLE: "whole_s"}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals, at least.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Speeds, ratios and memory.

    Attributes:
        speeds: One row per model, point and measure: the median `value` with `low` and `high`, `unit`, and the drift.
            TTFT is the time to the first token of every row, TPOT the time per output token without the first;
            requests, output tokens and total tokens (the prompts' too) per second are over whole runs.
        ratios: One row per point and phase: speed of the first model over the second's, within rounds; empty of one
            model.
        energy: One row per contestant, point and counter: joules of an output token, all that the counter showed and
            what is over the idle machine's; watts of both. Empty where nothing counts energy here.
        memory: One row per model and point: bytes before and at the peak of a run, and what counted them.
        models: Their names, the measured one first.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    speeds: pd.DataFrame
    ratios: pd.DataFrame
    memory: pd.DataFrame
    energy: pd.DataFrame
    models: tuple[str, ...]
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Sums up the rounds of the models as they are compared.

    Raises:
        AnalysisError: the measurement holds no timed run.
    """
    timed = runs(measurement, "throughput")
    timed = timed[~timed["watched"]]
    mine = base(measurement, timed)
    if mine.empty:
        raise AnalysisError(f"throughput: {measurement.path} has no run of the model itself; measure again.")
    others = timed[timed["model"] != next(iter(measurement.models))]
    memory = as_compared(measurement, measurement.table("memory"))
    compared = [base(measurement, memory), memory[memory["model"] != mine["model"].iloc[0]]]
    return Result(
        speeds=_speeds(pd.concat([mine, others]), settings.level),
        ratios=_ratios(mine, others, settings.level),
        memory=pd.concat(compared, ignore_index=True)[[*WHO, *POINT, "before_bytes", "peak_bytes", "counter"]],
        energy=_energy(measurement),
        models=tuple(measurement.models),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def _speeds(timed: pd.DataFrame, level: float) -> pd.DataFrame:
    batch, prompt, output = (timed[name] for name in POINT)
    measures = {
        "TTFT": (timed["prefill_s"] * 1e3, "ms"),
        "TPOT": (timed["between_s"] * 1e3, "ms"),
        "prompt tokens per second of prefill": (batch * prompt / timed["prefill_s"], "tokens/s"),
        "output tokens per second of decode": (batch * (output - 1) / timed["decode_s"], "tokens/s"),
        "output tokens per second": (batch * output / timed["whole_s"], "tokens/s"),
        "total tokens per second": (batch * (prompt + output) / timed["whole_s"], "tokens/s"),
        "requests per second": (batch / timed["whole_s"], "1/s"),
    }
    frames = []
    for name, (values, unit) in measures.items():
        frame = summary(timed.assign(value=values), [*WHO, *POINT], "value", level=level)
        frames.append(frame.assign(measure=name, unit=unit))
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    return table[[*WHO, *POINT, "measure", "unit", "value", "low", "high", "rounds", "change", "drift_p"]]


def _energy(measurement: Measurement) -> pd.DataFrame:
    stated = measurement.manifest["tables"].get("energy")
    if not stated or not stated["rows"]:
        return pd.DataFrame()
    table = as_compared(measurement, measurement.table("energy"))
    tokens = table["runs"] * table["batch"] * table["output_tokens"]
    idle_watts = table["idle_watts"] if "idle_watts" in table else pd.Series(float("nan"), table.index)
    return table.assign(
        joules_per_token=table["joules"] / tokens,
        joules_per_token_over_idle=(table["joules"] - idle_watts * table["window_s"]) / tokens,
        watts=table["joules"] / table["window_s"],
        idle_watts=idle_watts,
    )[[*WHO, *POINT, "counter", "joules_per_token", "joules_per_token_over_idle", "watts", "idle_watts", "window_s"]]


def _ratios(mine: pd.DataFrame, others: pd.DataFrame, level: float) -> pd.DataFrame:
    columns = [*POINT, "phase", "value", "low", "high", "rounds", "change", "drift_p"]
    if others.empty:
        return pd.DataFrame(columns=columns)
    beside = ratios(others, mine, list(PHASES.values()))  # a time under another is a speed over another
    frames = [summary(beside, POINT, column, level=level).assign(phase=phase) for phase, column in PHASES.items()]
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)[columns]
    table["phase"] = pd.Categorical(table["phase"], categories=list(PHASES))
    return table


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`speeds`, `memory`, of two models `ratios`, and where it was counted `energy`."""
    found = {"speeds": result.speeds, "memory": result.memory}
    found |= {"energy": result.energy} if len(result.energy) else {}
    return found | ({"ratios": result.ratios} if len(result.ratios) else {})


def figures(result: Result) -> dict[str, Figure]:
    """`tokens_per_second` of prefill and decode by batch; of two models also their `ratio`."""
    names = {
        "prompt tokens per second of prefill": "prefill: prompt tokens/s",
        "output tokens per second of decode": "decode: output tokens/s",
    }
    shown = largest(result.speeds[result.speeds["measure"].isin(names)])
    shown = shown.assign(batch=batches(shown), what=shown["measure"].map(names))
    lengths = f"{shown['prompt_tokens'].iloc[0]} + {shown['output_tokens'].iloc[0]} tokens"
    best = shown.nlargest(1, "value").iloc[0]
    found: dict[str, Figure] = {
        "tokens_per_second": Bars(
            shown, "batch", "value", panel="what", group="model", **ends(shown, result.level),
            shared_y=False, title="Throughput by batch", x_label="batch", y_label="tokens/s",
            hover=("rounds", "change", "drift_p"),
            caption=f"Tokens per second of closed batches of {lengths} ({result.words}). "
            f"{interval_words(shown, result.level)} {drift_words(shown, 'speed')}".strip(),
            alt=f"The highest is {best['value']:,.0f} tokens/s: {best['model']}, {best['what'].partition(':')[0]}, "
            f"batch {best['batch']}.",
        )
    }  # fmt: skip
    if len(result.ratios):
        first, second = result.models
        table = largest(result.ratios)
        table = table.assign(batch=batches(table), equal=1.0)
        whole = table[table["phase"] == WHOLE]
        found["ratio"] = Bars(
            table, "batch", "value", group="phase", **ends(table, result.level), null="equal",
            null_label="equal speed", title=f"Speed of {first} over {second}", x_label="batch",
            y_label="ratio of speeds", hover=("rounds", "change", "drift_p"),
            caption=f"Speed of {first} over that of {second}, divided within each round, for {lengths} "
            f"({result.words}). {interval_words(table, result.level)} {drift_words(table, 'ratio')}".strip(),
            alt=f"Over whole requests {first} has "
            + ", ".join(f"{row.value:.2f} times the speed at batch {row.batch}" for row in whole.itertuples())
            + ".",
        )  # fmt: skip
    return found
