"""What analyses of a measurement share: speeds of single runs, and medians with intervals over rounds.

A round is the unit of every interval, and ratios are taken within rounds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.statistics.timing import halves, median_interval

WHO = ["model", "routing", "experts"]
LAUNCH = "launch"
WIDE = 0.2
POINT = ["batch", "prompt_tokens", "output_tokens"]
DRIFT_P = 0.05


def require_table(measurement: Measurement, name: str, analysis: str, *, otherwise: str) -> pd.DataFrame:
    """A table of a measurement.

    Raises:
        AnalysisError: it is not there or has no row; says what to do about it.
    """
    stated = measurement.manifest["tables"].get(name)
    if not stated or not stated["rows"]:
        raise AnalysisError(f"{analysis}: {measurement.path} has no {name}; {otherwise}")
    return as_compared(measurement, measurement.table(name))


def as_compared(measurement: Measurement, table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose steps of decoding were launched as those that models are compared by."""
    if LAUNCH not in table:  # measured before there were several
        return table.assign(**{LAUNCH: "eager"})
    return table[table[LAUNCH] == measurement.manifest["base"][LAUNCH]]


def runs(measurement: Measurement, analysis: str, *, every_launch: bool = False) -> pd.DataFrame:
    """One row per timed run: `prefill_s` (until the first token), `decode_s` (from then to the last), `whole_s`.

    `between_s` is the time per output token, the first left out: NaN where only one was written. With `every_launch`
    also the runs whose steps were launched otherwise than those that models are compared by.
    """
    table = require_table(measurement, "samples", analysis, otherwise="`workbench profile` makes them.")
    if every_launch:
        table = measurement.table("samples").assign(**({} if LAUNCH in table else {LAUNCH: "eager"}))
    first_s, last_s = (np.array([each[at] for each in table["token_s"]]) for at in (0, -1))
    steps = table["output_tokens"].to_numpy() - 1
    decode_s = np.where(steps > 0, last_s - first_s, np.nan)
    return table.drop(columns="token_s").assign(
        prefill_s=first_s, decode_s=decode_s, whole_s=last_s, between_s=decode_s / np.where(steps > 0, steps, np.nan)
    )


def base(measurement: Measurement, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the measured model as it is compared: its first routing, its first way to run experts."""
    how, first = measurement.manifest["base"], next(iter(measurement.models))
    return table[
        (table["model"] == first) & (table["routing"] == how["routing"]) & (table["experts"] == how["experts"])
    ]


def summary(table: pd.DataFrame, keys: Sequence[str], column: str, *, level: float) -> pd.DataFrame:
    """The median over rounds of a column for each key: `value`, `low`, `high`, `rounds`, `change`, `drift_p`.

    `change` is the later half of the rounds over the earlier one, less 1; `drift_p` says whether that is chance.
    """
    rows = []
    for at, group in table.dropna(subset=[column]).groupby(list(keys), sort=False):
        value_R = group.sort_values("round")[column].to_numpy(dtype=float)
        found = median_interval(value_R, level=level)
        drift = halves(value_R) if len(value_R) > 1 else None
        rows.append(
            {
                **dict(zip(keys, at, strict=True)),
                "value": float(found.value),
                "low": float(found.low),
                "high": float(found.high),
                "rounds": len(value_R),
                "change": float(drift.change) if drift else np.nan,
                "drift_p": float(drift.p) if drift else np.nan,
            }
        )
    return pd.DataFrame(rows)


def ratios(
    above: pd.DataFrame, below: pd.DataFrame, columns: Sequence[str], point: Sequence[str] = POINT
) -> pd.DataFrame:
    """`above` over `below`, run by run of the same point and round; a run without its partner is left out."""
    keys = [*point, "round"]
    both = above.merge(below[[*keys, *columns]], on=keys, suffixes=("", "_below"))
    return both.assign(**{column: both[column] / both[f"{column}_below"] for column in columns})


def interval_words(table: pd.DataFrame, level: float) -> str:
    """How the intervals were made, how many rounds there were, and that other runs are not in them."""
    fewest, most = int(table["rounds"].min()), int(table["rounds"].max())
    rounds = f"{most} rounds" if fewest == most else f"{fewest} to {most} rounds"
    if table["low"].isna().all():
        return f"Median of {rounds}, too few for an interval."
    width = 0.0 if "value" not in table else ((table["high"] - table["low"]) / table["value"].abs()).max()
    wide = f" The widest interval spans {width:.0%} of its value: the machine was not steady." if width > WIDE else ""
    return (
        f"Median of {rounds} between order statistics (sign test, at least {level:.0%} within this run; another run of "
        f"the same command can lie outside).{wide}"
    ).replace("%", " %")


def drift_words(table: pd.DataFrame, what: str) -> str:
    """Whether later rounds differed from earlier ones."""
    tested = table.dropna(subset=["drift_p"])
    if tested.empty:
        return ""
    found = tested[tested["drift_p"] <= DRIFT_P]
    if found.empty:
        return f"No {what} drifted between the halves of the rounds (p > {DRIFT_P:g})."
    worst = found.assign(size=found["change"].abs()).nlargest(1, "size").iloc[0]
    return (
        f"{len(found)} of {len(tested)} {what}s drifted between the halves of the rounds (p ≤ {DRIFT_P:g}), by "
        f"{worst['change']:+.0%} at most."
    ).replace("%", " %")


def setting_words(measurement: Measurement) -> str:
    """Machine, dtype, implementations and prompts, for captions."""
    machine, models = measurement.manifest["machine"], measurement.models
    where = ", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or machine["cpu"]
    first = next(iter(models.values()))
    prompts = ", ".join(sorted(set(measurement.manifest["settings"]["prompts"].values())))
    experts = measurement.manifest["base"]["experts"]
    how = f"{first['dtype']}, attention {first['attention']}" + (f", experts {experts}" if experts else "")
    dummy = ", random weights" if any(m["weights"] == "dummy" for m in models.values()) else ""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    turns = [piece["model"] for piece in measurement.manifest.get("pieces", [])]
    turned = f"; one after the other, not in turns: {', '.join(turns)}" if turns else ""
    return f"{where}, {threads}; {how}; prompts: {prompts}{dummy}{turned}"


def sizes(table: pd.DataFrame) -> pd.Series:
    """The lengths of a point in words, as categories in their order."""
    ordered = table.sort_values(["prompt_tokens", "output_tokens"])
    words = [f"{p} + {n} tokens" for p, n in zip(ordered["prompt_tokens"], ordered["output_tokens"], strict=True)]
    text = [f"{p} + {n} tokens" for p, n in zip(table["prompt_tokens"], table["output_tokens"], strict=True)]
    return pd.Series(pd.Categorical(text, categories=list(dict.fromkeys(words))), index=table.index)


def batches(table: pd.DataFrame) -> pd.Series:
    """The batch as a category, so that bars of 1, 8 and 256 stand side by side."""
    order = [str(batch) for batch in sorted(table["batch"].unique())]
    return pd.Series(pd.Categorical(table["batch"].astype(str), categories=order), index=table.index)


def ends(table: pd.DataFrame, level: float) -> dict[str, Any]:
    """The interval's columns for a figure; nothing where no row has one."""
    if table["low"].isna().all():
        return {}
    return {"low": "low", "high": "high", "interval_label": f"{level:.0%} interval within this run".replace("%", " %")}


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest lengths alone, where there are several: one figure shows one."""
    prompt = table["prompt_tokens"].max()
    return table[(table["prompt_tokens"] == prompt) & (table["output_tokens"] == table["output_tokens"].max())]
