"""What the analyses of a measurement take from costs: the work of each phase, and the peaks it is compared with.

The models' make-up stands in the measurement's manifest, the experts that were met in its table `coverage`, and the
ceilings that a large copy and a large product reached on the machine beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.measured._cells import POINT, as_compared
from workbench.efficiency.costs.devices import known_as
from workbench.efficiency.costs.formulas import known_parts
from workbench.efficiency.costs.workload import PHASES, Task, prefill_widths
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError, ModelError
from workbench.models.topology import Topology

CEILING = "measured ceiling"
KEYS = ["model", "routing", *POINT]
MOVED = 0.1


@dataclass(frozen=True)
class Peak:
    """What a share is of.

    Attributes:
        name: `measured ceiling`, or a device of the table as its maker states it.
        flops_per_s: Of dense products in the dtype.
        bytes_per_s: Of the memory.
        source: Where it is from.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    source: str

    @property
    def words(self) -> str:
        """For captions."""
        return (
            f"{self.name} ({self.flops_per_s / 1e12:,.3g} TFLOP/s, {self.bytes_per_s / 1e9:,.4g} GB/s; {self.source})"
        )


def peaks(measurement: Measurement) -> list[Peak]:
    """The measured ceiling, the better one of before and after; and the stated peak of a device that the table has.

    Raises:
        AnalysisError: the measurement has no ceiling.
    """
    ceiling = measurement.manifest.get("ceiling")
    if ceiling is None:
        raise AnalysisError(f"{measurement.path} has no ceiling of its machine; measure again.")
    count = max(len(model.get("devices", [])) for model in measurement.models.values()) or 1
    both = [ceiling["before"], ceiling["after"]]
    flops, moved = (count * max(each[key] for each in both) for key in ("flops_per_s", "bytes_per_s"))
    several = f", of {count} devices together" if count > 1 else ""
    found = [Peak(CEILING, flops, moved, f"a large product and a large copy on this machine{several}")]
    gpus = [gpu["name"] for gpu in measurement.manifest["machine"].get("gpus", [])]
    stated = known_as(gpus[:count])
    dtype = next(iter(measurement.models.values()))["dtype"]
    if stated is not None and measurement.manifest["machine"]["device"] == "cuda":
        found.append(Peak(f"{stated.name} as stated", stated.peak(dtype), stated.bandwidth_bytes, stated.source))
    return found


def ceiling_words(measurement: Measurement) -> str:
    """How much the ceiling moved while it was measured, where it did."""
    before, after = (measurement.manifest["ceiling"][when] for when in ("before", "after"))
    moved = {
        what: after[key] / before[key] - 1
        for what, key in (("products", "flops_per_s"), ("copies", "bytes_per_s"))
        if abs(after[key] / before[key] - 1) > MOVED
    }
    if not moved:
        return ""
    told = ", ".join(f"{what} by {change:+.0%}" for what, change in moved.items()).replace("%", " %")
    return f"The machine's ceiling moved between start and end: {told}; the better one counts."


def tasks(measurement: Measurement, timed: pd.DataFrame, analysis: str) -> pd.DataFrame:
    """A row per model, routing, point and phase that was timed: its `task`, and the coverage that went into it.

    `distinct`, `uniform` and `independent` are means over layers; NaN for a model without routers, and where coverage
    was not counted: the task then takes uniform routing, and `coverage` says so.

    Raises:
        AnalysisError: something in a model has no formula, or the measurement is without a model's make-up.
    """
    stated = measurement.manifest["tables"].get("coverage")
    counted = as_compared(measurement, measurement.table("coverage")) if stated and stated["rows"] else None
    chunk = int(measurement.manifest["settings"].get("prefill_chunk", 0))
    rows = []
    for key in timed[KEYS].drop_duplicates().to_dict("records"):
        facts = measurement.models[key["model"]]
        if "topology" not in facts:
            raise AnalysisError(
                f"{analysis}: {measurement.path} does not say what {key['model']} is made of; measure again."
            )
        topology = Topology.from_json(facts["topology"])
        try:
            moe = known_parts(topology).moe
        except ModelError as error:
            raise AnalysisError(f"{analysis}: {error}") from error
        sizes = {name: int(key[name]) for name in POINT}
        for phase in PHASES if sizes["output_tokens"] > 1 else PHASES[:1]:
            met = None if counted is None else _met(counted, key, phase)
            experts_R = None
            if met is not None and len(met) == len(moe) > 0:
                at = {(layer, site): i for i, (layer, site) in enumerate(zip(met["layer"], met["site"], strict=True))}
                experts_R = met["distinct"].to_numpy(float)[[at[each.layer, each.site] for each in moe]]
            passes = len(prefill_widths(sizes["batch"], sizes["prompt_tokens"], chunk))
            task = Task(topology, phase, **sizes, dtype=facts["dtype"], prefill_passes=passes, experts_R=experts_R)
            how = "no experts" if not moe else "measured" if experts_R is not None else "uniform"
            mean = {
                name: float(met[name].mean()) if experts_R is not None and met is not None else np.nan
                for name in ("distinct", "uniform", "independent")
            }
            rows.append({"model": key["model"], "routing": key["routing"], **sizes, "phase": phase, "task": task,
                         "coverage": how, **mean})  # fmt: skip
    return pd.DataFrame(rows)


def _met(counted: pd.DataFrame, key: Mapping[Any, Any], phase: str) -> pd.DataFrame:
    same = counted["phase"] == phase
    for name in KEYS:
        same &= counted[name] == key[name]
    return counted[same]
