"""Measurements joined to costs: shares of peaks, the host's share, and the waterfall that multiplies to the ratio."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import catalogue
from analyses.measured import _workload, efficiency_waterfall, host_overhead, throughput, utilization
from analyses.measured._cells import POINT, interval_words
from analyses.measured.throughput import WHOLE
from tests.analyses.test_measured import made, sample
from tests.efficiency.conftest import measurement  # noqa: F401  the fixture
from workbench.efficiency.costs import formulas
from workbench.efficiency.measurements.measurement import Measurement, write_measurement
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.settings import Asked
from workbench.errors import AnalysisError
from workbench.models.loading import inspect_topology
from workbench.models.topology import Topology


def changed(given: Measurement, out: Path, *, manifest=None, drop: tuple[str, ...] = (), **tables) -> Measurement:
    """A measurement with some of it changed."""
    kept = {k: v for k, v in given.manifest.items() if k not in ("kind", "schema", "tables", "created", "digest")}
    kept = json.loads(json.dumps(kept)) if manifest is None else manifest(json.loads(json.dumps(kept)))
    all_tables = {name: given.table(name) for name in given.manifest["tables"] if name not in drop}
    return write_measurement(out, {**all_tables, **tables}, kept)


def short(point: tuple[int, int, int], *, rounds: int) -> Asked:
    """One point, and nothing beside its times."""
    batch, prompt, output = point
    return Asked(
        batches=(batch,), prompt_lengths=(prompt,), output_lengths=(output,), rounds=rounds, warm_up=1, parts=False,
        checks=False,
    )  # fmt: skip


def on_h200(manifest: dict) -> dict:
    manifest["machine"] |= {"device": "cuda", "gpus": [{"name": "NVIDIA H200", "memory_bytes": 1}]}
    return manifest


def test_a_share_times_the_peak_and_the_time_is_the_work(measurement):  # noqa: F811
    found = utilization.run(measurement)
    keys = ["model", "routing", *POINT, "phase"]
    both = found.utilization.merge(found.work, on=keys)
    both = both[(both["experts"] == "grouped_mm") & (both["routing"] == "natural") & (both["phase"] == "decode")]
    samples = measurement.table("samples")
    same = ~samples["watched"] & (samples["experts"] == "grouped_mm") & (samples["routing"] == "natural")
    for batch in (1, 4):
        token_s = samples[same & (samples["batch"] == batch)]["token_s"]
        seconds = float(np.median([each[-1] - each[0] for each in token_s]))
        at = both[both["batch"] == batch].set_index("measure")
        for measure, column in (
            ("MFU", "all_flops"),
            ("S-MFU", "active_flops"),
            ("MBU", "all_bytes"),
            ("S-MBU", "met_bytes"),
        ):
            assert at.loc[measure, "value"] * at.loc[measure, "peak"] * seconds == pytest.approx(
                at.loc[measure, column]
            )


def test_bytes_take_the_experts_that_were_met(measurement):  # noqa: F811
    work = utilization.run(measurement).work
    worst = work[(work["routing"] == "worst") & (work["phase"] == "decode") & (work["batch"] == 4)].iloc[0]
    assert (worst["distinct"], worst["coverage"]) == (3.0, "measured") and worst["uniform"] > 5
    topology = Topology.from_json(measurement.models["tiny-random-moe"]["topology"])
    steps = [
        formulas.step_bytes(topology, batch=4, context=t, weight_bytes=4, experts_R=np.array([3.0, 3.0]))
        for t in (7, 8, 9)
    ]
    assert worst["met_bytes"] == pytest.approx(sum(sum(step.values()) for step in steps))
    dense = work[work["model"] == "tiny-random-dense"].iloc[0]
    assert dense["coverage"] == "no experts" and dense["all_flops"] == dense["active_flops"]


def test_the_stated_peak_stands_beside_the_ceiling_where_the_table_has_the_device(measurement, tmp_path):  # noqa: F811
    assert set(utilization.run(measurement).utilization["against"]) == {_workload.CEILING}

    def bfloat16(manifest: dict) -> dict:
        for model in manifest["models"].values():
            model["dtype"] = "bfloat16"
        return on_h200(manifest)

    found = utilization.run(changed(measurement, tmp_path / "m", manifest=bfloat16))
    stated = found.utilization[found.utilization["against"] == "h200 as stated"]
    assert set(stated["peak"]) == {989.4e12, 4.8e12}
    assert "h200 as stated (989 TFLOP/s, 4,800 GB/s; NVIDIA H200" in utilization.figures(found)["memory"].caption


def test_a_ceiling_that_moved_is_said(measurement, tmp_path):  # noqa: F811
    def slower(manifest: dict) -> dict:
        before = manifest["ceiling"]["before"]
        manifest["ceiling"]["after"] = {**before, "bytes_per_s": before["bytes_per_s"] / 2}
        return manifest

    found = utilization.run(changed(measurement, tmp_path / "m", manifest=slower))
    assert found.ceiling == (
        "The machine's ceiling moved between start and end: copies by -50 %; the better one counts."
    )


def test_a_wide_interval_is_said_and_a_narrow_one_is_not():
    table = pd.DataFrame({"value": [10.0, 10.0], "low": [9.9, 8.0], "high": [10.1, 13.0], "rounds": [9, 9]})
    assert interval_words(table, 0.95).endswith("spans 50 % of its value: the machine was not steady.")
    assert interval_words(table[:1], 0.95).endswith("can lie outside).")


def test_what_is_missing_for_shares_is_said(measurement, tmp_path):  # noqa: F811
    bare = made(tmp_path / "m", [sample("a", r, [1.0, 2.0]) for r in range(2)], against=False)
    with pytest.raises(AnalysisError, match="does not say what a is made of; measure again"):
        utilization.run(bare)

    def without(key):
        return lambda manifest: {name: value for name, value in manifest.items() if name != key}

    with pytest.raises(AnalysisError, match="has no ceiling of its machine; measure again"):
        utilization.run(changed(measurement, tmp_path / "n", manifest=without("ceiling")))

    def unknown(manifest: dict) -> dict:
        manifest["models"]["tiny-random-moe"]["topology"]["parts"]["unknown"] = ["model.x: Magic"]
        return manifest

    with pytest.raises(AnalysisError, match="utilization: .*no formula for model.x: Magic"):
        utilization.run(changed(measurement, tmp_path / "o", manifest=unknown))


def test_the_loop_outside_the_forward_is_what_is_told_of_a_cpu(measurement):  # noqa: F811
    found = host_overhead.run(measurement)
    samples = measurement.table("samples")
    row = samples[~samples["watched"] & (samples["batch"] == 4) & (samples["model"] == "tiny-random-dense")]
    own = [1 - sum(f[1:]) / (t[-1] - t[0]) for f, t in zip(row["forward_s"], row["token_s"], strict=True)]
    at = found.overhead[
        (found.overhead["model"] == "tiny-random-dense") & (found.overhead["batch"] == 4)
        & (found.overhead["phase"] == "decode")
    ].iloc[0]  # fmt: skip
    assert at["share"] == pytest.approx(np.median(own)) and 0 < at["share"] < 1
    assert "A CPU has no device time" in host_overhead.figures(found)["share"].caption


def test_on_a_gpu_the_kernels_of_a_profiled_run_are_the_devices_time(measurement, tmp_path):  # noqa: F811
    keys = ["model", "routing", "experts", "watched", "launch", *POINT]
    busy = measurement.table("samples")[keys].drop_duplicates()
    busy = busy[~busy["watched"]]
    device = pd.concat([busy.assign(phase="prefill", busy_s=1e-6), busy.assign(phase="decode", busy_s=3e-6)])
    found = host_overhead.run(changed(measurement, tmp_path / "m", manifest=on_h200, device=device))
    np.testing.assert_allclose(found.overhead["device_ms"], 1e-3)  # 1 µs, and 3 µs over three steps
    assert "sum of its kernels" in found.what
    with pytest.raises(AnalysisError, match="has no times of its device's kernels; measure again"):
        host_overhead.run(changed(measurement, tmp_path / "n", manifest=on_h200))
    older = measurement.table("samples").drop(columns=["forward_s", "launch"])
    with pytest.raises(AnalysisError, match="does not hold the times of the forward passes; measure again"):
        host_overhead.run(changed(measurement, tmp_path / "o", samples=older))


def test_a_measurement_from_before_there_were_launches_is_read(measurement, tmp_path):  # noqa: F811
    tables = {
        name: measurement.table(name).drop(columns=["launch", "forward_s"], errors="ignore")
        for name in measurement.manifest["tables"]
    }

    def older(manifest: dict) -> dict:
        manifest["base"].pop("launch")
        return manifest

    found = throughput.run(changed(measurement, tmp_path / "m", manifest=older, **tables))
    pd.testing.assert_frame_equal(found.ratios, throughput.run(measurement).ratios)


def test_the_steps_multiply_to_the_measured_ratio(measurement):  # noqa: F811
    """At every point, in both phases and over whole requests; and the ratio is the one that throughput tells."""
    found = efficiency_waterfall.run(measurement)
    told = throughput.run(measurement).ratios.set_index([*POINT, "phase"])["value"]
    groups = found.steps.groupby([*POINT, "phase"])
    assert len(groups) == 2 * 3
    for key, group in groups:
        *factors, whole = group["factor"]
        assert np.prod(factors) == pytest.approx(whole, rel=1e-12) == pytest.approx(told[key], rel=1e-12)
        assert group["step"].tolist() == [*efficiency_waterfall.STEPS, "measured"]
        np.testing.assert_allclose(group["before"].to_numpy()[1:-1], group["after"].to_numpy()[:-2])


def test_the_first_step_is_the_ratio_of_flop_and_the_four_are_the_ratio_of_floors(measurement):  # noqa: F811
    found = efficiency_waterfall.run(measurement)
    moe, dense = (Topology.from_json(facts["topology"]) for facts in measurement.models.values())
    flops = [sum(formulas.prefill_flops(t, tokens=6, logits=1).values()) for t in (moe, dense)]
    steps = found.steps[(found.steps["batch"] == 4) & (found.steps["phase"] == "prefill")].set_index("step")
    assert steps.loc["FLOP", "factor"] == pytest.approx(flops[1] / flops[0])
    floors = found.floors[(found.floors["batch"] == 4)].set_index(["model", "phase"])["floor_s"]
    for phase in ("prefill", "decode", WHOLE):
        steps = found.steps[(found.steps["batch"] == 4) & (found.steps["phase"] == phase)].set_index("step")
        allowed = floors["tiny-random-dense", phase] / floors["tiny-random-moe", phase]
        assert steps.loc["cache", "after"] == pytest.approx(allowed)
    both = floors["tiny-random-moe", "prefill"] + floors["tiny-random-moe", "decode"]
    assert floors["tiny-random-moe", WHOLE] == pytest.approx(both)


def test_a_model_beside_itself_is_allowed_no_advantage(dense, tmp_path):
    """The null: equal work, so the first four factors are 1, and what was measured is all kernels and host."""
    asked = Asked(
        batches=(2,), prompt_lengths=(4,), output_lengths=(3,), rounds=6, warm_up=1, parts=False, checks=False
    )
    found = efficiency_waterfall.run(profile(dense, tmp_path / "m", against=dense, asked=asked))
    allowed = found.steps[found.steps["step"].isin(efficiency_waterfall.STEPS[:4])]
    np.testing.assert_allclose(allowed["factor"], 1)
    assert found.published["what"].tolist()[0] == "published, on 2xa100-80gb"


def test_swapping_the_models_inverts_what_is_allowed(measurement, tmp_path):  # noqa: F811
    def swapped(manifest: dict) -> dict:
        manifest["models"] = dict(reversed(manifest["models"].items()))
        manifest["base"] = {"routing": "natural", "experts": "", "launch": "eager"}
        return manifest

    samples = measurement.table("samples")
    kept = samples[
        ~samples["watched"] & samples["experts"].isin(["", "grouped_mm"]) & (samples["routing"] == "natural")
    ]
    one = efficiency_waterfall.run(measurement).steps
    other = efficiency_waterfall.run(changed(measurement, tmp_path / "m", manifest=swapped, samples=kept)).steps
    at = one["step"].isin(efficiency_waterfall.STEPS[:4])
    np.testing.assert_allclose(one[at]["factor"].to_numpy() * other[at]["factor"].to_numpy(), 1)


def test_the_cards_models_stand_beside_the_published_ratio_and_its_roofline(measurement, tmp_path):  # noqa: F811
    """The tiny pair's times under the card's names and make-up: the analytic rows are those of the configs."""

    def cards(manifest: dict) -> dict:
        for facts, name in zip(manifest["models"].values(), ("Qwen/qwen2-57b-a14b", "qwen1.5-32b"), strict=True):
            facts |= {
                "name": name,
                "topology": inspect_topology(name.rpartition("/")[2]).to_json(),
                "dtype": "bfloat16",
            }
        return manifest

    result = efficiency_waterfall.run(changed(measurement, tmp_path / "m", manifest=cards, drop=("coverage",)))
    published = result.published.set_index("what")["ratio"]
    assert published["published, on 2xa100-80gb"] == pytest.approx(1.815, abs=1e-3)
    assert published["analytic, roofline of 2xa100-80gb"] > 1
    assert "The published ratio is 1.815" in efficiency_waterfall.figures(result)["whole"].caption
    flop = result.steps[(result.steps["step"] == "FLOP") & (result.steps["phase"] == "decode")]["factor"]
    np.testing.assert_allclose(flop, 2.3155, rtol=1e-3)


def test_what_has_no_waterfall_is_refused(measurement, tmp_path, dense):  # noqa: F811
    asked = Asked(
        batches=(1,), prompt_lengths=(2,), output_lengths=(1,), rounds=2, warm_up=1, parts=False, checks=False
    )
    with pytest.raises(AnalysisError, match="holds tiny-random-dense alone; measure two models"):
        efficiency_waterfall.run(profile(dense, tmp_path / "m", asked=asked))
    with pytest.raises(AnalysisError, match="batch 3 was not measured; there are"):
        efficiency_waterfall.run(measurement, efficiency_waterfall.Settings(batch=3))
    shown = efficiency_waterfall.run(measurement, efficiency_waterfall.Settings(batch=1)).shown
    assert shown == (1, 6, 4)


def test_one_new_token_has_a_prefill_and_no_decode(tmp_path, dense):
    asked = Asked(
        batches=(1,), prompt_lengths=(3,), output_lengths=(1,), rounds=2, warm_up=1, parts=False, checks=False
    )
    found = profile(dense, tmp_path / "m", against=dense, asked=asked)
    assert set(efficiency_waterfall.figures(efficiency_waterfall.run(found))) == {"prefill", "whole"}
    assert set(host_overhead.run(found).overhead["phase"]) == {"prefill"}
    assert set(utilization.run(found).utilization["phase"]) == {"prefill"}
    assert dataclasses.is_dataclass(found) and catalogue.names("measurement")
