"""How fast are two served models, by concurrency and rate, and one beside the other?

Not shown: the models themselves, only they behind their servers, with the cache, the batching and the machine that
those had; a prefix cache makes identical prompts nearly free, and how many tokens it held is told only by some servers.
Short runs reach no steady state: throughput has their beginning and end in it, as it has in the tools named here. Runs
in which requests failed are left out, and counted; what they would have shown nobody knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.measured import _cells
from analyses.measured._cells import drift_words, ends, interval_words, ratios, require_table, summary
from workbench.efficiency.measurements.measurement import Measurement
from workbench.efficiency.serving.latency import E2E, ITL, TPOT, TTFT, WORDS, Arrivals, readings_s
from workbench.figures.spec import Bars, Distribution, Figure

INPUT = "measurement"
NEEDS = ("requests",)
METRICS = ()
SERVED_POINT = ["prompts", "load", "level", "prompt_tokens", "output_tokens"]
COMPLETE = "complete"
RATE, OUTPUT, TOTAL, FLIGHT = "requests per second", "output tokens per second", "total tokens per second", "in flight"
UNITS = {RATE: "1/s", OUTPUT: "tokens/s", TOTAL: "tokens/s", FLIGHT: "requests"}
MEDIANS = {f"{word.name}, median": word.name for word in (TTFT, TPOT, ITL, E2E)}
SHOWN = {"requests": RATE, "TTFT": "TTFT, median", "TPOT": "TPOT, median"}
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q90": 0.9, "q95": 0.95, "q99": 0.99}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals, at least.
        failed: Share of a run's requests that may have failed before the run is left out.
    """

    level: float = 0.95
    failed: float = 0.0


@dataclass(frozen=True, eq=False)
class Result:
    """Throughput, latency, their ratios, and what became of every request.

    Attributes:
        speeds: One row per model, point and measure: the median over rounds `value` with `low` and `high`, `unit`, and
            the drift. A run lasts from the first request sent until the last answer closed; total tokens are the
            prompts' and the answers', as model cards count. `in flight` is the mean number of unanswered requests.
        ratios: One row per point and measure: the first model's over the second's, within rounds. Above 1 is faster
            for what is per second, slower for times.
        latency: One row per model, point and reading (`word`, `as_in`, `formula`): quantiles in milliseconds over the
            requests of all rounds (of ITL, over gaps), their number, and the mean.
        outcomes: One row per model, point and outcome: requests, and the runs that were left out.
        models: Their names, the first of the ratios first.
        level: Coverage of the intervals, at least.
        words: Machine and servers.
        left_out: What the ratios lack, in words.
        cached: Share of the prompts' tokens that servers say they had in a cache; NaN where none says.
    """

    speeds: pd.DataFrame
    ratios: pd.DataFrame
    latency: pd.DataFrame
    outcomes: pd.DataFrame
    models: tuple[str, ...]
    level: float
    words: str
    left_out: str
    cached: float


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Sums up the rounds of both models.

    Raises:
        AnalysisError: the measurement holds no request.
    """
    requests = require_table(measurement, "requests", "served", otherwise="`workbench serve-bench` makes them.")
    requests = requests.assign(failed=requests["outcome"] != COMPLETE)
    run_of = ["model", *SERVED_POINT, "round"]
    share = requests.groupby(run_of, sort=False)["failed"].transform("mean")
    requests = requests.assign(left_out=share > settings.failed)
    whole = requests[~requests["left_out"] & ~requests["failed"]]
    times = _times(whole)
    runs = _runs(whole, times, run_of)
    models = tuple(measurement.models)
    mine, other = (runs[runs["model"] == name] for name in models[:2])
    both = ratios(mine, other, [*UNITS, *MEDIANS], SERVED_POINT)
    read = float(whole["read_tokens"].where(whole["cached_tokens"].notna()).sum())
    return Result(
        speeds=_speeds(runs, settings.level),
        ratios=_ratios(both, settings.level),
        latency=_latency(times),
        outcomes=_outcomes(requests),
        models=models,
        level=settings.level,
        words=_words(measurement),
        left_out=_left_out(requests, measurement, models),
        cached=float(whole["cached_tokens"].sum()) / read if read else float("nan"),
    )


def _times(whole: pd.DataFrame) -> pd.DataFrame:
    """One row per time: of a request the reading of each word, of ITL each gap; milliseconds."""
    rows: list[tuple[object, ...]] = []
    requests: Any = whole.itertuples()  # pandas-stubs knows no column's type
    for row in requests:
        arrivals = Arrivals(
            np.asarray(row.chunk_s), np.asarray(row.chunk_chars), row.end_s - row.sent_s, row.due_s - row.sent_s,
            int(row.written_tokens),
        )  # fmt: skip
        key = (row.model, row.prompts, row.load, row.level, row.prompt_tokens, row.output_tokens, row.round)
        rows += [(*key, word, 1e3 * each) for word, found in readings_s(arrivals).items() for each in found]
    return pd.DataFrame(rows, columns=["model", *SERVED_POINT, "round", "word", "ms"]).astype({"ms": float})


def _runs(whole: pd.DataFrame, times: pd.DataFrame, run_of: Sequence[str]) -> pd.DataFrame:
    """One row per run that is kept."""
    if whole.empty:
        return pd.DataFrame(columns=[*run_of, *UNITS, *MEDIANS])
    timed = whole.assign(took_s=whole["end_s"] - whole["sent_s"], tokens=whole["read_tokens"] + whole["written_tokens"])
    by = timed.groupby(list(run_of), sort=False)
    found = by.agg(
        first_s=("sent_s", "min"), last_s=("end_s", "max"), requests=("sent_s", "size"), took_s=("took_s", "sum"),
        written=("written_tokens", "sum"), tokens=("tokens", lambda each: each.sum(skipna=False)),
    )  # fmt: skip
    window_s = found["last_s"] - found["first_s"]
    found[RATE], found[OUTPUT] = found["requests"] / window_s, found["written"] / window_s
    found[TOTAL], found[FLIGHT] = found["tokens"] / window_s, found["took_s"] / window_s
    medians = times.groupby([*run_of, "word"], sort=False)["ms"].median().unstack("word")
    for measure, word in MEDIANS.items():
        found[measure] = medians.get(word, np.nan)
    return found.reset_index()[[*run_of, *UNITS, *MEDIANS]]


def _speeds(runs: pd.DataFrame, level: float) -> pd.DataFrame:
    keys = ["model", *SERVED_POINT]
    units = UNITS | dict.fromkeys(MEDIANS, "ms")
    frames = [summary(runs, keys, name, level=level).assign(measure=name, unit=unit) for name, unit in units.items()]
    columns = [*keys, "measure", "unit", "value", "low", "high", "rounds", "change", "drift_p"]
    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True)[columns] if kept else pd.DataFrame(columns=columns)


def _ratios(both: pd.DataFrame, level: float) -> pd.DataFrame:
    columns = [*SERVED_POINT, "measure", "value", "low", "high", "rounds", "change", "drift_p"]
    names = [name for name in (*UNITS, *MEDIANS) if name != FLIGHT]
    frames = [summary(both, SERVED_POINT, name, level=level).assign(measure=name) for name in names]
    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True)[columns] if kept else pd.DataFrame(columns=columns)


def _latency(times: pd.DataFrame) -> pd.DataFrame:
    by = times.groupby(["model", *SERVED_POINT, "word"], sort=False)["ms"]
    quantiles = {name: by.quantile(q) for name, q in QUANTILES.items()}
    found = pd.DataFrame({"values": by.size(), "mean": by.mean(), **quantiles})
    words = {word.name: word for word in WORDS}
    found = found.reset_index()
    found["as_in"] = found["word"].map(lambda name: words[name].as_in)
    found["formula"] = found["word"].map(lambda name: words[name].formula)
    return found[["model", *SERVED_POINT, "word", "as_in", "formula", "values", "mean", *QUANTILES]]


def _outcomes(requests: pd.DataFrame) -> pd.DataFrame:
    keys = ["model", *SERVED_POINT]
    runs = requests.groupby([*keys, "round"], sort=False)["left_out"].first().groupby(keys, sort=False)
    left_out = runs.agg(runs="size", runs_left_out="sum").reset_index()
    counted = requests.groupby([*keys, "outcome"], sort=False).size().rename("requests").reset_index()
    errors = requests[requests["error"] != ""].groupby([*keys, "outcome"], sort=False)["error"].first()
    found = counted.merge(left_out, on=keys).merge(errors.rename("first_error"), on=[*keys, "outcome"], how="left")
    return found.assign(first_error=found["first_error"].fillna("").str.slice(0, 200))


def _left_out(requests: pd.DataFrame, measurement: Measurement, models: Sequence[str]) -> str:
    """Which runs the ratios lack, and why, by name."""
    parts = []
    for name in models:
        here = requests[(requests["model"] == name) & requests["left_out"]]
        if len(here):
            runs = here[[*SERVED_POINT, "round"]].drop_duplicates()
            counted = here.loc[here["failed"], "outcome"].value_counts()
            why = ", ".join(f"{n} {outcome}" for outcome, n in counted.items())
            parts.append(f"{len(runs)} run{'s' * (len(runs) > 1)} of {name} (requests: {why})")
    failed = int(requests["failed"].sum())
    whole = f"Every run was kept, {failed} request{'s' * (failed > 1)} failed." if failed else ""
    said = f"Left out: {'; '.join(parts)}." if parts else whole or "Every request was answered whole."
    given_up = measurement.manifest["left_out"]
    return said + (f" Given up: {'; '.join(given_up)}." if given_up else "")


def _words(measurement: Measurement) -> str:
    machine, launched = measurement.manifest["machine"], measurement.manifest["launched"]
    if launched:
        batching = ", continuous batching" if launched["continuous_batching"] else ""
        threads = f"{launched['threads']} thread{'s' if launched['threads'] > 1 else ''}"
        return f"{launched['server']}{batching}, both on {machine['cpu']}, {threads} each"
    return f"servers at {' and '.join(model['url'] for model in measurement.models.values())}"


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`outcomes`; where runs were kept `speeds`, `latency`, and of both models in one round `ratios`."""
    found = {"speeds": result.speeds, "ratios": result.ratios, "latency": result.latency, "outcomes": result.outcomes}
    return {name: table for name, table in found.items() if len(table)}


def figures(result: Result) -> dict[str, Figure]:
    """`outcomes`; where runs were kept `throughput`, `latency` and `ratio`."""
    found: dict[str, Figure] = {}
    throughput = _lengths(result.speeds[result.speeds["measure"] == TOTAL])
    if len(throughput):
        throughput = throughput.assign(at=_loads(throughput))
        best = throughput.nlargest(1, "value").iloc[0]
        found["throughput"] = Bars(
            throughput, "at", "value", group="model", panel="prompts", **ends(throughput, result.level),
            title="Served tokens per second", x_label="requests", y_label="total tokens/s",
            hover=("rounds", "change", "drift_p"),
            caption=f"Prompt and answer tokens per second of requests of {_size(throughput)} ({result.words}). "
            f"{interval_words(throughput, result.level)} {drift_words(throughput, 'speed')} {result.left_out}",
            alt=f"The highest is {best['value']:,.0f} tokens/s: {best['model']}, {best['prompts']} prompts, "
            f"{best['at']}.",
        )  # fmt: skip
    spread = _lengths(result.latency[result.latency["word"].isin([TTFT.name, TPOT.name])])
    if len(spread):
        spread = spread.assign(at=_loads(spread), what=spread["word"] + ", " + spread["prompts"])
        found["latency"] = Distribution(
            spread, "at", group="model", panel="what", log=True, title="Time to the first token, and per further one",
            x_label="requests", y_label="ms", hover=("values", "q90", "q99"),
            caption=f"TTFT ({TTFT.formula}) and TPOT ({TPOT.formula}) of {_size(spread)} ({result.words}): middle half "
            f"as a box, 5 to 95 % as a whisker, mean marked, over all rounds. {result.left_out}",
            alt=_latency_alt(spread),
        )  # fmt: skip
    if len(result.ratios):
        found["ratio"] = _ratio(result)
    outcomes = _lengths(result.outcomes)
    outcomes = outcomes.assign(at=_loads(outcomes), who=outcomes["model"] + ", " + outcomes["prompts"])
    failed = int(outcomes.loc[outcomes["outcome"] != COMPLETE, "requests"].sum())
    found["outcomes"] = Bars(
        outcomes, "at", "requests", group="outcome", panel="who", title="What became of the requests",
        x_label="requests", y_label="requests", hover=("runs", "runs_left_out", "first_error"),
        caption=f"Requests of {_size(outcomes)} by what became of them, all rounds. {result.left_out}",
        alt=f"{failed} of {int(outcomes['requests'].sum())} requests were not answered whole.",
    )  # fmt: skip
    return found


def _ratio(result: Result) -> Figure:
    first, second = result.models[:2]
    table = _lengths(result.ratios[result.ratios["measure"].isin(SHOWN.values())])
    names = {
        measure: f"{what}, {'faster' if what == 'requests' else 'slower'} above 1" for what, measure in SHOWN.items()
    }
    table = table[(table["measure"] != RATE) | (table["load"] == "concurrency")]  # a rate is given, not found
    table = table.assign(at=_loads(table), equal=1.0)
    table["what"] = pd.Categorical(table["measure"].map(names), categories=list(names.values()))
    rates = table[table["measure"] == RATE]
    said = ", ".join(f"{row.value:.2f} with {row.prompts} prompts {row.at}" for row in rates.itertuples())
    return Bars(
        table, "at", "value", group="prompts", panel="what", **ends(table, result.level), null="equal",
        null_label="equal", title=f"{first} over {second}, served", x_label="requests", y_label="ratio",
        shared_y=False, hover=("rounds", "change", "drift_p"),
        caption=f"{first} over {second} within each round: requests per second of the closed loops, and the median "
        f"TTFT and TPOT, for {_size(table)} ({result.words}). {interval_words(table, result.level)} "
        f"{drift_words(table, 'ratio')} {_cached(result)}{result.left_out}",
        alt=f"Requests per second of {first} over those of {second}: {said}." if said else f"Times of {first} over "
        f"those of {second}.",
    )  # fmt: skip


def _cached(result: Result) -> str:
    if np.isnan(result.cached):
        return "No server said what it had cached. "
    return f"Of the prompts' tokens, {result.cached:.0%} were in a cache. ".replace("%", " %")


def _lengths(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the largest lengths alone, where there are several: one figure shows one."""
    return _cells.largest(table) if len(table) else table


def _size(table: pd.DataFrame) -> str:
    return f"{table['prompt_tokens'].iloc[0]} + {table['output_tokens'].iloc[0]} tokens"


def _loads(table: pd.DataFrame) -> pd.Series:
    """The load in words, as categories: closed loops first, then rates, each in its order."""
    ordered = table.sort_values(["load", "level"])  # concurrency before rate
    order = dict.fromkeys(_load(load, level) for load, level in zip(ordered["load"], ordered["level"], strict=True))
    text = [_load(load, level) for load, level in zip(table["load"], table["level"], strict=True)]
    return pd.Series(pd.Categorical(text, categories=list(order)), index=table.index)


def _load(load: str, level: float) -> str:
    return f"{level:g} at once" if load == "concurrency" else f"{level:g}/s"


def _latency_alt(spread: pd.DataFrame) -> str:
    first = spread[spread["at"] == spread["at"].cat.categories[0]]
    said = [f"{row.model}, {row.what}: {row.q50:,.0f} ms" for row in first.itertuples()]
    return f"Medians with {first['at'].iloc[0]}: {'; '.join(said)}."
