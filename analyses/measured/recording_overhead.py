"""How much longer does the forward pass take when the routing is recorded?

Not shown: decoding, and other fields than the routing, which cost more. The bare rounds ran first, for a model that was
captured from is slower even when nothing is; the two are of the same batches, not of the same moments.
"""

from dataclasses import dataclass

import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import drift_words, ends, interval_words, require_table, summary
from workbench.efficiency.measurements.measurement import Measurement
from workbench.figures.spec import Bars, Figure

INPUT = "measurement"
NEEDS = ("recording",)
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
    """Both speeds, and one beside the other.

    Attributes:
        speeds: One row per way (`bare`, `recorded`): tokens per second, `value` with `low` and `high`.
        overhead: One row: time of a recorded round over a bare one, less 1.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    speeds: pd.DataFrame
    overhead: pd.DataFrame
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Holds recorded rounds against bare ones.

    Raises:
        AnalysisError: recording was not measured.
    """
    table = require_table(
        measurement, "recording", "recording_overhead", otherwise="measure again with --recording-rounds 6."
    )
    table = table.assign(speed=table["tokens"] / table["seconds"])
    bare, recorded = (table[table["way"] == way].set_index("round")["seconds"] for way in ("bare", "recorded"))
    beside = (recorded / bare - 1).rename("overhead").reset_index().assign(model=table["model"].iloc[0])
    return Result(
        speeds=summary(table, ["model", "way"], "speed", level=settings.level),
        overhead=summary(beside, ["model"], "overhead", level=settings.level),
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`speeds` and `overhead`."""
    return {"speeds": result.speeds, "overhead": result.overhead}


def figures(result: Result) -> dict[str, Figure]:
    """`speed` of both."""
    one = result.overhead.iloc[0]
    between = "" if pd.isna(one["low"]) else f" ({one['low']:+.1%} to {one['high']:+.1%})"
    said = f"Recording the routing takes {one['value']:+.1%}{between} of the bare forward pass's time".replace(
        "%", " %"
    )
    return {
        "speed": Bars(
            result.speeds, "way", "value", **ends(result.speeds, result.level), title="Recording the routing",
            x_label="forward pass", y_label="tokens/s", hover=("rounds", "change", "drift_p"),
            caption=f"Tokens per second of the bare forward pass, logits at all positions, and of recording the same "
            f"batches to disk ({result.words}). {said}. {interval_words(result.speeds, result.level)} "
            f"{drift_words(result.speeds, 'speed')}".strip(),
            alt=f"{said}.",
        )
    }  # fmt: skip
