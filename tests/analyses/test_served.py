"""Served models: throughput, latency and ratios by hand, what is left out, and the null."""

from itertools import count

import numpy as np
import pandas as pd
import pytest

from analyses.measured import served
from tests.test_cli import run as command
from workbench.efficiency.measurements.measurement import Measurement, write_measurement
from workbench.errors import AnalysisError

NUMBERS = count()


def request(model: str, number: int, sent_s: float, chunk_s: list[float], **changed) -> dict:
    """One that asked 10 tokens in and as many out as it has chunks."""
    point = {
        "prompts": "unique",
        "load": "concurrency",
        "level": 2.0,
        "prompt_tokens": 10,
        "output_tokens": len(chunk_s),
    }
    return {
        "model": model, **point, "round": number, "order": 0, "request": next(NUMBERS), "outcome": "complete",
        "error": "",
        "due_s": sent_s - 0.1, "sent_s": sent_s, "end_s": sent_s + chunk_s[-1] + 0.1, "read_tokens": 10.0,
        "cached_tokens": np.nan, "written_tokens": float(len(chunk_s)), "chunk_s": chunk_s,
        "chunk_chars": [1] * len(chunk_s),
    } | changed  # fmt: skip


def made(path, rows: list[dict], **changed) -> Measurement:
    models = {name: {"name": name, "revision": "", "dtype": "not stated", "weights": "served", "url": f"http://{name}"} for name in "ab"}  # fmt: skip  # noqa: E501
    manifest = {
        "models": models, "machine": {"cpu": "abacus", "threads": 1, "device": "cpu"}, "launched": {}, "left_out": [],
        "settings": {"rounds": 7},
    } | changed  # fmt: skip
    return write_measurement(path, {"requests": pd.DataFrame(rows)}, manifest)


def pair(number: int, load: float = 1.0) -> list[dict]:
    """A round: `a` answers two requests, from 0 to 1 s and from 0.5 to 2 s on an idle machine; `b` takes twice that."""
    rows = []
    for model, slower in (("a", load), ("b", 2 * load)):
        for sent, chunks in ((0.0, [0.4, 0.6, 0.9]), (0.5, [0.5, 0.9, 1.4])):
            at = [slower * each for each in chunks]
            rows.append(request(model, number, slower * sent, at, end_s=slower * (sent + chunks[-1] + 0.1)))
    return rows


def test_throughput_and_latency_by_hand(tmp_path):
    found = served.run(made(tmp_path / "m", [row for r in range(7) for row in pair(r)]))
    a = found.speeds[found.speeds["model"] == "a"].set_index("measure")
    assert a.loc["requests per second", "value"] == pytest.approx(2 / 2)  # from 0 to 2 s
    assert a.loc["output tokens per second", "value"] == pytest.approx(6 / 2)
    assert a.loc["total tokens per second", "value"] == pytest.approx((6 + 20) / 2)
    assert a.loc["in flight", "value"] == pytest.approx((1.0 + 1.5) / 2)
    assert a.loc["TTFT, median", "value"] == pytest.approx(450) and a.loc["TTFT, median", "unit"] == "ms"
    assert a.loc["TPOT, median", "value"] == pytest.approx((250 + 450) / 2)
    ratio = found.ratios.set_index("measure")["value"]
    assert ratio["requests per second"] == pytest.approx(2) and ratio["TTFT, median"] == pytest.approx(0.5)
    assert (found.ratios["low"] == found.ratios["high"]).all() and "in flight" not in ratio
    latency = found.latency[found.latency["model"] == "a"].set_index("word")
    assert latency.loc["TTFT", "values"] == 14 and latency.loc["ITL", "values"] == 28
    assert latency.loc["ITL", "q50"] == pytest.approx(350)  # of 200, 300, 400, 500
    assert latency.loc["TTFT since due", "mean"] == pytest.approx(550)
    assert latency.loc["E2E until closed", "mean"] == pytest.approx(1250)
    assert found.left_out == "Every request was answered whole." and np.isnan(found.cached)


def test_the_cards_total_tokens_are_requests_times_tokens_of_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = [row for r in range(6) for row in pair(r, float(rng.lognormal()))]
    speeds = served.run(made(tmp_path / "m", rows)).speeds.set_index(["model", "measure"])["value"].unstack()
    np.testing.assert_allclose(speeds["total tokens per second"], 13 * speeds["requests per second"])


def test_a_machine_that_slows_both_leaves_the_ratio(tmp_path):
    rng = np.random.default_rng(1)
    rows = [row for r in range(8) for row in pair(r, float(rng.lognormal()))]
    found = served.run(made(tmp_path / "m", rows)).ratios.set_index("measure")
    np.testing.assert_allclose(found.loc["requests per second", ["value", "low", "high"]].astype(float), 2.0)


def test_swapped_models_have_the_inverse_ratio(tmp_path):
    rows = [row for r in range(7) for row in pair(r)]
    swapped = [row | {"model": {"a": "b", "b": "a"}[row["model"]]} for row in rows]
    one, other = (served.run(made(tmp_path / f"m{i}", each)).ratios["value"] for i, each in enumerate((rows, swapped)))
    np.testing.assert_allclose(one, 1 / other)


def test_alike_models_have_an_interval_around_one(tmp_path):
    """The null: both draw their times from one distribution; 95 % of intervals hold 1."""
    rng = np.random.default_rng(2)
    rows = [
        request(model, number, 0.0, [float(rng.lognormal())], level=float(trial))
        for trial in range(1, 61)
        for number in range(9)
        for model in "ab"
    ]
    found = served.run(made(tmp_path / "m", rows)).ratios
    found = found[found["measure"] == "requests per second"]
    held = ((found["low"] <= 1) & (found["high"] >= 1)).sum()
    assert len(found) == 60 and held >= 52  # 95 % of 60 less 3 standard errors


def test_a_run_with_a_failed_request_is_left_out_of_everything_but_the_count(tmp_path):
    rows = [row for r in range(7) for row in pair(r)]
    wrong = request("b", 3, 0.0, [9.0, 9.5], outcome="short", output_tokens=3)
    found = served.run(made(tmp_path / "m", [*rows, wrong]))
    assert set(found.ratios["rounds"]) == {6} and "too few" not in served.figures(found)["ratio"].caption
    b = found.speeds[found.speeds["model"] == "b"]
    assert set(b["rounds"]) == {6} and set(found.speeds.loc[found.speeds["model"] == "a", "rounds"]) == {7}
    assert found.left_out == "Left out: 1 run of b (requests: 1 short)."
    short = found.outcomes[found.outcomes["outcome"] == "short"].iloc[0]
    assert (short["model"], short["requests"], short["runs"], short["runs_left_out"]) == ("b", 1, 7, 1)
    kept = served.run(made(tmp_path / "n", [*rows, wrong]), served.Settings(failed=0.5))
    assert set(kept.ratios["rounds"]) == {7} and kept.left_out == "Every run was kept, 1 request failed."
    np.testing.assert_allclose(
        kept.ratios.set_index("measure").loc["requests per second", "value"], 2.0
    )  # over those that were answered whole


def test_an_endpoint_that_answered_nothing_has_outcomes_and_no_ratio(tmp_path):
    rows = [row for r in range(6) for row in pair(r)]
    rows = [row | ({"outcome": "HTTP 5xx", "error": "503", "chunk_s": [], "chunk_chars": []} if row["model"] == "b" else {}) for row in rows]  # fmt: skip  # noqa: E501
    found = served.run(made(tmp_path / "m", rows, left_out=["2 at a time: no request of b was answered whole"]))
    assert set(served.tables(found)) == {"speeds", "latency", "outcomes"}
    assert set(served.figures(found)) == {"throughput", "latency", "outcomes"}
    assert "6 runs of b (requests: 12 HTTP 5xx). Given up: 2 at a time" in served.figures(found)["outcomes"].caption
    both = [row | {"outcome": "timed out", "chunk_s": [], "chunk_chars": []} for row in rows]
    nothing = served.run(made(tmp_path / "n", both))
    assert set(served.tables(nothing)) == {"outcomes"} == set(served.figures(nothing))


def test_what_a_cache_held_is_said(tmp_path):
    rows = [row | {"cached_tokens": 5.0} for r in range(6) for row in pair(r)]
    found = served.run(made(tmp_path / "m", rows))
    assert found.cached == 0.5
    assert "Of the prompts' tokens, 50 % were in a cache." in served.figures(found)["ratio"].caption


def test_a_server_that_does_not_count_the_prompt_has_no_total(tmp_path):
    rows = [row | {"read_tokens": np.nan} for r in range(6) for row in pair(r)]
    found = served.run(made(tmp_path / "m", rows))
    assert "total tokens per second" not in set(found.speeds["measure"])
    assert "output tokens per second" in set(found.speeds["measure"])
    assert set(served.figures(found)) == {"latency", "ratio", "outcomes"}


def test_it_is_asked_on_the_command_line(tmp_path, monkeypatch, capsys):
    made(tmp_path / "m", [row for r in range(6) for row in pair(r)])
    out = tmp_path / "out"
    status, said, wrong = command(monkeypatch, capsys, "analyze", tmp_path / "m", "--all", "--out", out)
    assert status == 0, wrong
    assert "left out: throughput: " in said and (out / "served" / "ratio.pdf").stat().st_size
    assert "How fast are two served models" in (out / "index.html").read_text(encoding="utf-8")


def test_a_measurement_without_requests_is_refused(tmp_path):
    with pytest.raises(AnalysisError, match="served: .* has no requests; `workbench serve-bench` makes them"):
        served.run(write_measurement(tmp_path / "m", {}, made(tmp_path / "n", pair(0)).manifest))
