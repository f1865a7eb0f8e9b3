"""Where does the ratio of two models' speeds come from, from their FLOP to what was measured?

Not shown: one true order. The steps multiply exactly to the measured ratio, but what a step is given depends on those
before it; this order goes from what the configs say to what only a machine can say. Each step is a factor of how many
times as fast the first model is; over 1 speaks for it.

`FLOP`: the other model's FLOP over the first one's, both at the machine's ceiling. `weights`: instead, the longer of
computing and of reading the weights, with the experts that even and independent tokens meet. `experts met`: instead,
with the experts that the passes did meet. `cache`: the cache is moved too (read in decode, written in prefill). The
four together are what the machine allows at its measured ceilings. `kernels`: how much further from that floor the
other model's device time is than the first one's. `host`: the same of what the loop takes beside the device.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.measured import _cells, _workload
from analyses.measured._cells import POINT, as_compared, base, ends, interval_words, ratios, summary
from analyses.measured.host_overhead import with_device_seconds
from analyses.measured.throughput import WHOLE
from workbench.efficiency.costs.claims import bound, published_claims
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.workload import Task, seconds_at
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure
from workbench.models.topology import Topology

INPUT = "measurement"
NEEDS = ("samples",)
METRICS = ()
MEASURED = "measured"
STEPS = ("FLOP", "weights", "experts met", "cache", "kernels", "host")
PHASES = {"prefill": ("prefill",), "decode": ("decode",), WHOLE: ("prefill", "decode")}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        batch: That the figure shows; the largest unless given.
        prompt_tokens: That the figure shows; the longest unless given.
        output_tokens: That the figure shows; the longest unless given.
        level: Coverage of the intervals, at least.
    """

    batch: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """The ratio of speeds, step by step.

    Attributes:
        steps: One row per point, phase and step: its `factor`, the ratio `before` and `after` it; `low` and `high` of
            the factor where it comes from rounds (`kernels`, `host`, and `measured`, whose factor is the whole ratio).
        floors: One row per model, point and phase: FLOP, bytes, the least time at the ceilings and the measured one.
        published: Published ratios of requests per second beside what is analytic and measured: `what`, `ratio`, with
            `low` and `high` where it was measured, and of which `models` and `requests`.
        models: Both.
        shown: The point of the figure.
        peak: The ceilings in words.
        level: Coverage of the intervals, at least.
        words: Machine and implementations.
    """

    steps: pd.DataFrame
    floors: pd.DataFrame
    published: pd.DataFrame
    models: tuple[str, str]
    shown: tuple[int, int, int]
    peak: str
    level: float
    words: str


def run(measurement: Measurement, settings: Settings = Settings()) -> Result:
    """Takes the measured ratio apart.

    Raises:
        AnalysisError: one model was measured, or a point that was not; what `utilization` refuses.
    """
    models = tuple(measurement.models)
    if len(models) < 2:
        raise AnalysisError(
            f"efficiency_waterfall: {measurement.path} holds {models[0]} alone; measure two models: "
            f"workbench profile {models[0]} --against MODEL --out DIR."
        )
    timed = as_compared(measurement, with_device_seconds(measurement, "efficiency_waterfall"))
    timed = timed[~timed["watched"]].assign(prefill=1)
    timed[f"{WHOLE}_device_s"] = timed["prefill_device_s"] + timed["decode_device_s"].fillna(0.0)
    timed = timed.rename(columns={"whole_s": f"{WHOLE}_s"})
    mine, others = base(measurement, timed), timed[timed["model"] == models[1]]
    peak = _workload.peaks(measurement)[0]
    floors = _floors(_workload.tasks(measurement, pd.concat([mine, others]), "efficiency_waterfall"), peak)
    steps = _steps(mine, others, floors, settings.level)
    known = [tuple(row) for row in steps[POINT].drop_duplicates().itertuples(index=False)]
    wanted = [getattr(settings, name) for name in POINT]
    fitting = [
        point for point in known if all(not want or want == got for want, got in zip(wanted, point, strict=True))
    ]
    if not fitting:
        asked = ", ".join(f"{name} {want}" for name, want in zip(POINT, wanted, strict=True) if want)
        raise AnalysisError(
            f"efficiency_waterfall: {asked} was not measured; there are (batch, prompt, output): "
            f"{', '.join(map(str, known))}."
        )
    measured_s = (
        pd.concat([mine, others]).groupby(["model", *POINT])[[f"{phase}_s" for phase in PHASES]].median().reset_index()
    )
    for phase in PHASES:
        at = floors["phase"] == phase
        here = floors[at].merge(measured_s[["model", *POINT, f"{phase}_s"]], on=["model", *POINT], how="left")
        floors.loc[at, "measured_s"] = here[f"{phase}_s"].to_numpy()
    return Result(
        steps=steps,
        floors=floors,
        published=_published(measurement, steps),
        models=(models[0], models[1]),
        shown=max(fitting, key=lambda point: (point[1:], point[0])),
        peak=peak.words,
        level=settings.level,
        words=_cells.setting_words(measurement),
    )


def _floors(tasks: pd.DataFrame, peak: _workload.Peak) -> pd.DataFrame:
    """Least times at the ceilings, as the steps add to them; of whole requests their phases' sums."""
    rows = []
    for key, group in tasks.groupby(["model", *POINT], sort=False):
        of = dict(zip(group["phase"], group["task"], strict=True))
        for phase, parts in PHASES.items():
            if phase == "decode" and "decode" not in of:
                continue
            each = [_floor(of[part], peak) for part in parts if part in of]
            rows.append(
                {**dict(zip(["model", *POINT], key, strict=True)), "phase": phase,
                 **{name: sum(found[name] for found in each) for name in each[0]}}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _floor(task: Task, peak: _workload.Peak) -> dict[str, float]:
    flops, width = sum(task.flops.values()), {"flops_per_s": peak.flops_per_s, "bytes_per_s": peak.bytes_per_s}
    even = Task(
        task.topology, task.phase, task.batch, task.prompt_tokens, task.output_tokens, task.dtype, task.prefill_passes
    )
    return {
        "flops": flops,
        "weights_bytes": task.weights_bytes,
        "cache_bytes": task.cache_bytes,
        "flops_s": seconds_at(flops, 0.0, **width),
        "weights_s": seconds_at(flops, even.weights_bytes, **width),
        "met_s": seconds_at(flops, task.weights_bytes, **width),
        "floor_s": seconds_at(flops, task.weights_bytes + task.cache_bytes, **width),
    }


def _steps(mine: pd.DataFrame, others: pd.DataFrame, floors: pd.DataFrame, level: float) -> pd.DataFrame:
    columns = [f"{phase}{what}" for phase in PHASES for what in ("_s", "_device_s")]
    beside = ratios(
        others, mine, columns
    )  # the other's time over the first one's: the first one's speed over the other's
    rows = []
    for phase in PHASES:
        here = beside.dropna(subset=[f"{phase}_s"])
        if here.empty:
            continue
        here = here.assign(
            whole=here[f"{phase}_s"], device=here[f"{phase}_device_s"],
            host=here[f"{phase}_s"] / here[f"{phase}_device_s"],
        )  # fmt: skip
        found = {name: summary(here, POINT, name, level=level).set_index(POINT) for name in ("whole", "device", "host")}
        for point in found["whole"].index:
            both = floors[(floors["phase"] == phase) & (floors[POINT] == list(point)).all(axis=1)].set_index("model")
            first, second = (both.loc[name] for name in (mine["model"].iloc[0], others["model"].iloc[0]))
            allowed = [second[name] / first[name] for name in ("flops_s", "weights_s", "met_s", "floor_s")]
            whole, dev, host = (found[name].loc[point] for name in ("whole", "device", "host"))
            factors = [allowed[0], *(np.array(allowed[1:]) / allowed[:-1])]
            factors += [whole["value"] / allowed[3] / host["value"], host["value"]]
            edges = np.cumprod([1.0, *factors])
            intervals = [(np.nan, np.nan)] * 4 + [
                (dev["low"] / allowed[3], dev["high"] / allowed[3]), (host["low"], host["high"]),
            ]  # fmt: skip
            size = dict(zip(POINT, point, strict=True))
            for number, name in enumerate(STEPS):
                rows.append({**size, "phase": phase, "step": name, "factor": factors[number], "before": edges[number],
                             "after": edges[number + 1], "low": intervals[number][0], "high": intervals[number][1],
                             "rounds": int(whole["rounds"])})  # fmt: skip
            rows.append({**size, "phase": phase, "step": MEASURED, "factor": whole["value"], "before": 1.0,
                         "after": whole["value"], "low": whole["low"], "high": whole["high"],
                         "rounds": int(whole["rounds"])})  # fmt: skip
    return pd.DataFrame(rows)


def _published(measurement: Measurement, steps: pd.DataFrame) -> pd.DataFrame:
    """The card's ratio, what a roofline says of it where the card's models were measured, and what was measured."""
    one, other = published_claims()
    names = f"{one.model} over {other.model}"
    rows = [
        {"what": f"published, on {one.devices}", "ratio": float(one.requests_per_s) / float(other.requests_per_s),
         "low": np.nan, "high": np.nan, "models": names, "requests": "lengths not published"}
    ]  # fmt: skip
    facts = list(measurement.models.values())
    same = [_is(each["name"], claim.config) for each, claim in zip(facts, (one, other), strict=False)] == [True, True]
    here = f"{facts[0]['name']} over {facts[1]['name']}"
    whole = steps[steps["phase"] == WHOLE]
    for size in whole[POINT].drop_duplicates().to_numpy().tolist():
        batch, read, written = size
        requests = f"{read} + {written} tokens"
        if same and not any(row["requests"] == requests for row in rows):
            floors = [
                bound(Topology.from_json(each["topology"]), device(one.devices), read=read, written=written)
                for each in facts[:2]
            ]
            ratio = floors[0].serial_per_s / floors[1].serial_per_s
            rows.append({"what": f"analytic, roofline of {one.devices}", "ratio": ratio, "low": np.nan, "high": np.nan,
                         "models": here, "requests": requests})  # fmt: skip
        at = whole[(whole[POINT] == size).all(axis=1)].set_index("step")
        for what, step in (("allowed at this machine's ceilings", "cache"), ("measured on this machine", MEASURED)):
            low, high = (float(at[end].loc[step]) if step == MEASURED else np.nan for end in ("low", "high"))
            rows.append({"what": what, "ratio": at.loc[step, "after"], "low": low, "high": high, "models": here,
                         "requests": f"{requests}, batch {batch}"})  # fmt: skip
    return pd.DataFrame(rows)


def _is(name: str, config: str) -> bool:
    """Whether a measured model is a published config: by its name, or by a hub id that ends with it."""
    return name.rpartition("/")[2].lower() == config


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`steps`, `floors` and `published`."""
    return {"steps": result.steps, "floors": result.floors, "published": result.published}


def figures(result: Result) -> dict[str, Figure]:
    """`prefill`, `decode` and `whole` requests of one point."""
    table = result.steps[(result.steps[POINT] == list(result.shown)).all(axis=1)]
    names = {"prefill": "prefill", "decode": "decode", WHOLE: "whole"}
    return {
        name: _figure(result, part, phase)
        for phase, name in names.items()
        if len(part := table[table["phase"] == phase])
    }


def _figure(result: Result, table: pd.DataFrame, phase: str) -> Figure:
    first, second = result.models
    batch, prompt, output = result.shown
    whole = table["step"] == MEASURED
    kinds = [f"for {first}", f"for {second}", MEASURED]
    table = table.assign(
        step=pd.Categorical(table["step"], categories=[*STEPS, MEASURED]),
        kind=pd.Categorical(np.where(whole, kinds[2], np.where(table["factor"] >= 1, *kinds[:2])), categories=kinds),
        equal=1.0,
        text=[f"×{factor:.2f}" for factor in table["factor"]],
        value=table["factor"],
        # of a factor, where its bar ends
        low=table["low"] * table["before"],
        high=table["high"] * table["before"],
    )
    size = f"batch {batch}, {prompt} + {output} tokens" if phase != "prefill" else f"batch {batch}, {prompt} tokens"
    factor = dict(zip(table["step"], table["factor"], strict=True))
    allowed = float(table.loc[table["step"] == "cache", "after"].iloc[0])
    card = result.published.iloc[0]
    said = ""
    if phase == WHOLE and result.published["what"].str.startswith("analytic").any():
        said = f" The published ratio is {card['ratio']:.3f} ({card['what']})."
    return Bars(
        table, "step", "after", base="before", group="kind", label="text", **ends(table, result.level), null="equal",
        null_label="equal speed", title=f"Speed of {first} over {second}: {phase}", x_label="step",
        y_label="ratio of speeds", hover=("factor", "before", "rounds"),
        caption=f"How the ratio of FLOP becomes the measured ratio of speeds, factor by factor; {phase}, {size} "
        f"({result.words}). The first four steps are what the machine allows, {allowed:.2f}, at the {result.peak}; "
        f"kernels and host are what is left. {interval_words(table[whole], result.level)}{said}",
        alt=", ".join(f"{name} {factor[name]:.2f}" for name in STEPS) + f"; together {factor[MEASURED]:.2f}.",
    )  # fmt: skip
