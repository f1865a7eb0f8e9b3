"""Analyses of a measurement: the contract, and what their tables say, by hand and against a plain twin."""

import dataclasses
import inspect
import shutil
from itertools import count

import numpy as np
import pandas as pd
import pytest

from analyses import catalogue
from analyses.measured import _cells, forced_routing, kernel_choice, latency_breakdown, throughput
from analyses.question import Question
from tests.efficiency.conftest import measurement, served  # noqa: F401  the fixtures
from tests.tiers import often
from workbench.efficiency.measurements.measurement import TABLES, Measurement, write_measurement
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.settings import Asked
from workbench.errors import AnalysisError
from workbench.figures.matplotlib.draw import paper
from workbench.figures.plotly.draw import screen

NAMES = catalogue.names("measurement")


def made(path, samples: list[dict], *, against: bool = True, **more) -> Measurement:
    """A measurement with given times."""
    models = {name: {"name": name, "revision": "", "dtype": "float32", "attention": "sdpa", "weights": "checkpoint"} for name in ["a", *(["b"] if against else [])]}  # fmt: skip  # noqa: E501
    manifest = {
        "models": models, "base": {"routing": "natural", "experts": "eager"}, "hook_s": 1e-6, "left_out": [],
        "machine": {"cpu": "abacus", "threads": 1, "device": "cpu"},
        "settings": {"rounds": 7, "prompts": dict.fromkeys(models, "random")},
    }  # fmt: skip
    memory = pd.DataFrame(samples)[
        ["model", "routing", "experts", "watched", "batch", "prompt_tokens", "output_tokens"]
    ]
    memory = memory.drop_duplicates().assign(before_bytes=100, peak_bytes=150, counter="fingers")
    return write_measurement(path, {"samples": pd.DataFrame(samples), "memory": memory, **more}, manifest)


def sample(model: str, number: int, token_s: list[float], **changed) -> dict:
    who = {"model": model, "routing": "natural", "experts": "eager" if model == "a" else "", "watched": False}
    size = {"batch": 2, "prompt_tokens": 10, "output_tokens": len(token_s)}
    return {
        **who,
        **size,
        "round": number,
        "order": 0,
        "started_s": 0.0,
        "wall_s": token_s[-1],
        "token_s": token_s,
    } | changed


def test_they_are_found_apart_from_those_of_recordings():
    assert {"throughput", "latency_breakdown", "kernel_choice", "forced_routing"} <= set(NAMES)
    assert not set(NAMES) & set(catalogue.of_recordings())
    assert set(catalogue.names()) >= set(NAMES) | set(catalogue.of_recordings())


@pytest.fixture
def asked_of(name, measurement, served) -> Measurement:  # noqa: F811
    """What an analysis can be asked of: timed models, or served ones."""
    return served.measurement if "requests" in catalogue.get(name).NEEDS else measurement


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name, asked_of):
    module = catalogue.get(name)
    asks, _, rest = inspect.getdoc(module).partition("\n\n")
    assert asks.endswith("?") and "\n" not in asks and rest.startswith("Not shown: ")
    assert module.INPUT == "measurement" and set(module.NEEDS) <= set(TABLES)
    for kind in (module.Settings, module.Result):
        assert kind.__dataclass_params__.frozen
        assert all(f"{field.name}:" in kind.__doc__ for field in dataclasses.fields(kind))
    tables, figures = (each(module.run(asked_of)) for each in (module.tables, module.figures))
    assert tables and figures and all(len(table) for table in tables.values())
    for figure in figures.values():
        screen(figure)


@pytest.mark.rest
@pytest.mark.parametrize("width", ["column", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_on_paper(name, width, asked_of):
    module = catalogue.get(name)
    for figure in module.figures(module.run(asked_of)).values():
        paper(figure, width=width)


@pytest.mark.parametrize("name", often(NAMES, ["throughput"]))
def test_they_are_written_with_both_models_in_their_provenance(name, asked_of, tmp_path):
    files, _ = Question(asked_of, name).write(tmp_path)
    assert all(file.stat().st_size for file in files)
    command = Question(asked_of, name).command
    assert command == f"workbench analyze {asked_of.path} {name} --out out"


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_measured_is_refused_and_what_would_measure_it_is_said(name, measurement, served):  # noqa: F811
    other = measurement if "requests" in catalogue.get(name).NEEDS else served.measurement
    with pytest.raises(AnalysisError, match=f"{name}: .* has no (samples|requests|parts|coverage|recording); "):
        catalogue.get(name).run(other)


def test_inputs_are_not_mixed_up(measurement, recording):  # noqa: F811
    with pytest.raises(
        AnalysisError,
        match="expert_load: it is asked of a recording, and .* holds a measurement; `workbench .* --all` runs",
    ):
        Question(measurement, "expert_load").answer()
    with pytest.raises(AnalysisError, match="throughput: it is asked of a measurement, and .* holds a recording"):
        Question(recording, "throughput").answer()
    with pytest.raises(AnalysisError, match="throughput: a measurement holds both models that it compares"):
        Question(measurement, "throughput", against=recording).answer()


def test_speeds_by_hand(tmp_path):
    """Two prompts of 10 tokens; the first tokens after .5 s, two more at 1 s and 1.5 s."""
    found = throughput.run(made(tmp_path / "m", [sample("a", r, [0.5, 1.0, 1.5]) for r in range(7)], against=False))
    value = found.speeds.set_index("measure")["value"]
    assert value["TTFT"] == 500 and value["TPOT"] == 500
    assert value["prompt tokens per second of prefill"] == 40 and value["output tokens per second of decode"] == 4
    assert value["requests per second"] == pytest.approx(2 / 1.5)
    assert value["output tokens per second"] == pytest.approx(4.0) and value["total tokens per second"] == 26 / 1.5
    assert "ratios" not in throughput.tables(found) and set(throughput.figures(found)) == {"tokens_per_second"}
    assert found.memory[["before_bytes", "peak_bytes"]].to_numpy().tolist() == [[100, 150]]


def test_the_cards_total_tokens_are_requests_times_tokens_of_one(measurement):  # noqa: F811
    """QPS × tokens per request = TPS, whatever the run."""
    speeds = throughput.run(measurement).speeds.set_index(["model", "batch", "measure"])["value"].unstack()
    np.testing.assert_allclose(speeds["total tokens per second"], speeds["requests per second"] * 10)


def test_a_ratio_is_of_runs_of_one_round_so_a_common_drift_leaves_it(tmp_path):
    rng = np.random.default_rng(0)
    load_R = np.exp(rng.normal(size=9))  # the machine's, the same for both
    rows = [
        row
        for r, load in enumerate(load_R)
        for row in (sample("a", r, [load, 2 * load]), sample("b", r, [3 * load, 5 * load]))
    ]
    found = throughput.run(made(tmp_path / "m", rows)).ratios.set_index("phase")
    np.testing.assert_allclose(found.loc[["prefill", "decode", "whole requests"], "value"], [3.0, 2.0, 2.5])
    np.testing.assert_allclose(found["high"] - found["low"], 0, atol=1e-12)
    plain = np.median([s["wall_s"] for s in rows[1::2]]) / np.median([s["wall_s"] for s in rows[::2]])
    assert plain == pytest.approx(2.5)  # of whole medians too, here; with single rounds missing it would not be


def test_swapping_the_models_inverts_the_ratio(tmp_path):
    rng, numbers = np.random.default_rng(1), count()
    times = rng.lognormal(size=(7, 2))

    def ratio(first: int) -> float:
        rows = [sample(m, r, [times[r, i ^ first], 2.0]) for r in range(7) for i, m in enumerate("ab")]
        table = throughput.run(made(tmp_path / f"m{next(numbers)}", rows)).ratios
        return float(table.loc[table["phase"] == "prefill", "value"].iloc[0])

    assert ratio(0) == pytest.approx(1 / ratio(1))


def test_alike_models_have_an_interval_around_one(tmp_path):
    """The null: both draw from one distribution; 95 % of intervals hold 1."""
    rng, held = np.random.default_rng(2), 0
    for _ in range(200):
        times_R2 = rng.lognormal(size=(9, 2))
        samples = pd.DataFrame(
            {"batch": 1, "prompt_tokens": 1, "output_tokens": 1, "round": range(9), "s": times_R2[:, 0]}
        )
        beside = _cells.ratios(samples.assign(s=times_R2[:, 1]), samples, ["s"])
        found = _cells.summary(beside, _cells.POINT, "s", level=0.95).iloc[0]
        held += found["low"] <= 1 <= found["high"]
    assert held >= 182  # 95 % of 200 less 2.6 standard errors


def test_one_new_token_has_no_decoding_and_few_rounds_no_interval(tmp_path):
    rows = [sample(m, r, [1.0]) for r in range(3) for m in "ab"]
    found = throughput.run(made(tmp_path / "m", rows))
    assert "TPOT" not in set(found.speeds["measure"]) and set(found.ratios["phase"]) == {"prefill", "whole requests"}
    assert found.ratios["low"].isna().all()
    assert "too few for an interval" in throughput.figures(found)["ratio"].caption


def test_an_interval_says_that_it_is_of_one_run(tmp_path):
    """The same command gave 0.667 [0.629, 0.742] and, later, 0.424 [0.341, 0.613]."""
    rows = [sample(m, r, [1.0 + 0.01 * r, 2.0]) for r in range(9) for m in "ab"]
    shown = throughput.figures(throughput.run(made(tmp_path / "m", rows)))
    assert shown
    for figure in shown.values():
        assert "within this run; another run of the same command can lie outside" in figure.caption
        assert figure.interval_label == "95 % interval within this run"


def test_drift_is_said(tmp_path):
    rows = [sample(m, r, [t * (1 + r), 20.0 + r]) for r in range(12) for m, t in (("a", 1.0), ("b", 2.0))]
    found = throughput.figures(throughput.run(made(tmp_path / "m", rows)))
    assert "speeds drifted between the halves of the rounds (p ≤ 0.05)" in found["tokens_per_second"].caption
    steady = [sample(m, r, [1.0 + 0.01 * (r % 2), 2.0]) for r in range(12) for m in "ab"]
    found = throughput.figures(throughput.run(made(tmp_path / "n", steady)))
    assert "No ratio drifted" in found["ratio"].caption


def test_parts_are_of_one_pass_and_the_watching_is_told(tmp_path):
    rows = [
        sample("a", r, [0.5, 1.0, 1.5], watched=w) | ({"token_s": [1.0, 2.0, 3.0]} if w else {})
        for r in range(7)
        for w in (False, True)
    ]
    key = {"model": "a", "routing": "natural", "experts": "eager", "watched": True, "batch": 2, "prompt_tokens": 10}
    parts = [
        {**key, "output_tokens": 3, "round": r, "phase": phase, "part": part, "seconds": s, "whole_s": whole}
        for r in range(7)
        for phase, whole, own in (("prefill", 1.0, 0.25), ("decode", 2.0, 1.5))
        for part, s in (("attention", own), ("rest", whole - own))
    ]
    found = latency_breakdown.run(made(tmp_path / "m", rows, against=False, parts=pd.DataFrame(parts)))
    table = found.parts.set_index(["phase", "part"])
    assert table.loc[("prefill", "attention"), "value"] == 250
    assert table.loc[("decode", "attention"), "value"] == 750  # 1.5 s over two passes
    assert table.loc[("decode", "attention"), "share"] == 0.75
    assert found.overhead["value"].tolist() == [2.0] and found.hook_us == pytest.approx(1.0)
    assert "2.00 to 2.00 times as long as the same unwatched" in latency_breakdown.figures(found)["by_part"].caption


def test_shares_of_the_parts_sum_to_one_in_every_pass(measurement):  # noqa: F811
    parts = measurement.table("parts")
    shares = parts.assign(share=parts["seconds"] / parts["whole_s"]).groupby(["model", "batch", "round", "phase"])
    np.testing.assert_allclose(shares["share"].sum(), 1)


def test_a_batch_that_was_not_measured_is_refused(measurement):  # noqa: F811
    with pytest.raises(AnalysisError, match="latency_breakdown: batch is 3; 1, 4 were measured"):
        latency_breakdown.run(measurement, latency_breakdown.Settings(batch=3))


def test_kernels_are_held_against_the_base_within_rounds(measurement):  # noqa: F811
    found = kernel_choice.run(measurement)
    samples = measurement.table("samples")
    samples = samples[~samples["watched"] & (samples["routing"] == "natural") & (samples["batch"] == 4)]
    prefill = samples.assign(s=[each[0] for each in samples["token_s"]]).pivot(
        columns="experts", index="round", values="s"
    )
    for name in set(found.kernels["experts"]):
        here = (
            (found.kernels["experts"] == name) & (found.kernels["batch"] == 4) & (found.kernels["phase"] == "prefill")
        )
        plain = np.median((prefill[name] / prefill[found.base]).dropna())
        assert found.kernels.loc[here, "value"].iloc[0] == pytest.approx(plain)
    assert (found.kernels["tokens_same"] == 1).all()


def test_coverage_is_averaged_over_layers_and_times_over_rounds(measurement):  # noqa: F811
    found = forced_routing.run(measurement)
    raw = measurement.table("coverage")
    at = (raw["routing"] == "uniform") & (raw["batch"] == 4) & (raw["phase"] == "decode")
    mine = found.mean[
        (found.mean["routing"] == "uniform") & (found.mean["batch"] == 4) & (found.mean["phase"] == "decode")
    ]
    assert mine["distinct"].iloc[0] == pytest.approx(raw.loc[at, "distinct"].mean()) and mine["layers"].iloc[0] == 2
    assert set(found.times["routing"]) == {"uniform", "zipf:1.5", "worst"} and found.first == "natural"


def test_what_was_not_measured_is_said(tmp_path, dense):
    asked = Asked(batches=(1,), prompt_lengths=(2,), output_lengths=(2,), rounds=2, warm_up=1, parts=False)
    alone = profile(dense, tmp_path / "m", asked=asked)
    for module, words in (
        (latency_breakdown, "has no parts; measure again without --no-parts"),
        (kernel_choice, "has one way to run experts; measure an MoE with several"),
        (forced_routing, "has no coverage; no model in it has a router"),
    ):
        with pytest.raises(AnalysisError, match=words):
            module.run(alone)
    assert throughput.tables(throughput.run(alone))
    assert shutil.rmtree(alone.path) is None


def test_one_routing_has_coverage_and_no_times(tmp_path, moe):
    asked = Asked(
        batches=(2,), prompt_lengths=(2,), output_lengths=(1,), routings=("round-robin",), experts=("eager",), rounds=2,
        warm_up=1, parts=False,
    )  # fmt: skip
    found = forced_routing.run(profile(moe, tmp_path / "m", asked=asked))
    assert found.first == "round-robin" and set(forced_routing.figures(found)) == {"coverage"}
    assert set(found.coverage["phase"]) == {"prefill"}
