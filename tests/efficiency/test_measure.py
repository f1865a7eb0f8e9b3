"""A whole measurement: who ran beside whom, what was kept, what was refused before anything was measured."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from tests.efficiency.conftest import ASKED
from tests.test_cli import run as command
from workbench.efficiency.measurements.measurement import Measurement, is_measurement, write_measurement
from workbench.efficiency.profiling import kernels, run_memory
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.prompts import kind_of, prompts
from workbench.efficiency.profiling.settings import Asked
from workbench.efficiency.profiling.timed_run import Point, Run
from workbench.efficiency.profiling.variants import order_of, warm_up
from workbench.errors import MeasurementError


def test_every_round_holds_every_contestant_once_in_turning_order(measurement):
    samples = measurement.table("samples")
    who = ["model", "routing", "experts", "watched"]
    for _, at_point in samples.groupby("batch"):
        rounds = at_point.groupby("round")
        full = rounds.get_group(0)
        assert len(full) == len(full.drop_duplicates(who)) == 4 + 1 + len(_kernels(measurement)) + 2
        first, second = (rounds.get_group(number).sort_values("order")[who].to_numpy() for number in (0, 1))
        np.testing.assert_array_equal(first, second[::-1])
        assert set(rounds.size()) <= {len(full), *range(2, len(full))} and len(rounds) == ASKED.rounds
    assert (samples["started_s"].diff().dropna() > 0).all()


def _kernels(measurement: Measurement) -> list[str]:
    samples = measurement.table("samples")
    base = measurement.manifest["base"]["experts"]
    return [name for name in samples["experts"].unique() if name not in ("", base)]


def test_raw_times_of_every_token_are_kept(measurement):
    samples = measurement.table("samples")
    for row in samples.itertuples():
        assert len(row.token_s) == row.output_tokens == 4 and (np.diff(row.token_s) > 0).all()
        assert 0 < row.token_s[0] <= row.token_s[-1] <= row.wall_s


def test_parts_and_rest_are_the_whole(measurement):
    parts = measurement.table("parts")
    keys = ["model", "batch", "round", "phase"]
    sums = parts.groupby(keys).agg(seconds=("seconds", "sum"), whole_s=("whole_s", "first"))
    np.testing.assert_allclose(sums["seconds"], sums["whole_s"])
    assert (parts["seconds"] >= 0).all()
    of_dense = set(parts.loc[parts["model"] == "tiny-random-dense", "part"])
    assert of_dense == {"attention", "dense FFN", "lm_head", "rest"}


def test_coverage_is_what_was_forced_and_stands_beside_what_is_expected(measurement):
    table = measurement.table("coverage")
    assert set(table["model"]) == {"tiny-random-moe"} and set(table["layer"]) == {0, 2}
    worst, uniform = (table[table["routing"] == name] for name in ("worst", "uniform"))
    assert (worst["distinct"] == 3).all() and (worst["highest"] == 3).all()
    decode = uniform[uniform["phase"] == "decode"]
    np.testing.assert_allclose(decode["uniform"], 8 * (1 - (1 - 3 / 8) ** decode["batch"]))
    assert decode["passes"].tolist() == [3] * len(decode) and decode["independent"].notna().all()
    assert table.loc[table["phase"] == "prefill", "independent"].isna().all()


def test_checks_hold_the_loop_against_generate_and_kernels_against_each_other(measurement):
    checks = measurement.table("checks")
    assert set(checks.loc[checks["check"] == "generate", "model"]) == {"tiny-random-moe", "tiny-random-dense"}
    assert (checks["tokens_same"] == 1).all()
    others = checks[checks["check"] != "generate"]
    assert len(others) and (others["logit_difference"] <= 1e-4 * others["largest_logit"]).all()


def test_the_manifest_places_the_measurement(measurement):
    told = measurement.manifest
    assert list(told["models"]) == ["tiny-random-moe", "tiny-random-dense"]
    assert told["models"]["tiny-random-moe"]["attention"] == "sdpa" and told["base"]["routing"] == "natural"
    assert told["machine"]["threads"] == 1 and told["machine"]["cpu"] and told["versions"]["torch"]
    assert {"before", "after"} <= set(told["ceiling"]) and told["hook_s"] >= 0
    assert all(each["runs"] == 1 and not each["settled"] for each in told["warm_up"])
    assert told["settings"]["prompts"] == dict.fromkeys(told["models"], "random")
    assert told["energy"]  # a counter's name, or why there is none
    if not torch.cuda.is_available():
        assert any(line.startswith("experts implementation sonicmoe: ") for line in told["left_out"])


def test_it_is_read_again_as_it_was_written(measurement):
    again = Measurement.open(measurement.path)
    assert again.manifest == measurement.manifest and again.verify() == len(again.manifest["tables"])
    assert is_measurement(measurement.path) and again.digest == measurement.digest


def test_a_model_beside_itself_is_told_apart_by_name(dense, tmp_path):
    asked = Asked(batches=(1,), prompt_lengths=(2,), output_lengths=(2,), rounds=1, warm_up=1, parts=False)
    found = profile(dense, tmp_path / "m", against=dense, asked=asked)
    assert list(found.models) == ["tiny-random-dense", "tiny-random-dense again"]
    assert found.manifest["base"] == {"routing": "natural", "experts": "", "launch": "eager"}
    assert "coverage" not in found.manifest["tables"] and "parts" not in found.manifest["tables"]


def small(**changed) -> Asked:
    return replace(Asked(batches=(1,), prompt_lengths=(2,), output_lengths=(2,), rounds=1, warm_up=1), **changed)


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("dense", small(routings=("uniform",)), "routing is uniform, but tiny-random-dense has no router to force"),
        ("dense", small(experts=("eager",)), "'eager', but tiny-random-dense has no experts to switch"),
        ("moe", small(experts=("magic",)), "experts implementation is 'magic'; eager, .*grouped_mm.* were expected"),
        (
            "moe",
            small(prompt_lengths=(300,)),
            "302 tokens of prompt and output exceed tiny-random-moe's context of 256",
        ),
        ("moe", small(prompts="demo"), "tiny-random-moe has no tokenizer to read the corpus 'demo' with"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_written(kind, asked, message, tmp_path):
    model = tiny.moe() if kind == "moe" else tiny.dense()
    with pytest.raises(MeasurementError, match=message):
        profile(model, tmp_path / "m", asked=asked)
    assert not (tmp_path / "m").exists()


def test_a_run_that_the_models_code_does_not_survive_is_a_sentence(monkeypatch, tmp_path):
    """Two tokens without a cache run; with a cache the class fails, as some do whose window is shorter than a piece."""
    model = tiny.moe()
    plain = model.module.forward

    def fails(*arguments, past_key_values=None, **options):
        if past_key_values is not None:
            raise IndexError("index 4 is out of bounds")
        return plain(*arguments, **options)

    monkeypatch.setattr(model.module, "forward", fails)
    message = (
        r"tiny-random-moe \(qwen2_moe\) does not read and write .* \(IndexError: index 4 is out of bounds\)\. Give"
    )
    with pytest.raises(MeasurementError, match=message):
        profile(model, tmp_path / "m", asked=small(prompts="random"))
    assert not (tmp_path / "m").exists()


def test_empty_lists_and_no_rounds_are_refused():
    with pytest.raises(MeasurementError, match="batches is empty"):
        Asked(batches=())
    with pytest.raises(MeasurementError, match="rounds is 0"):
        Asked(rounds=0)


def test_an_occupied_folder_is_refused_before_measuring(tmp_path, dense):
    (tmp_path / "there").write_text("")
    with pytest.raises(MeasurementError, match="is not an empty folder; nothing was measured"):
        profile(dense, tmp_path)


def test_batched_mm_is_left_out_where_its_copies_do_not_fit(moe, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(run_memory, "of_run", lambda *_, **__: None)  # which would leave the point out
    found = profile(moe, tmp_path / "m", asked=small(parts=False, routings=("natural",)))
    assert "batched_mm" not in set(found.table("samples")["experts"])
    assert any(re.match(r"batched_mm at 1 x 2 \+ 2 tokens: it would copy", line) for line in found.manifest["left_out"])


class Sitting:
    """A seat whose runs take given times."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def run(self):
        return Run(None, None, self.seconds.pop(0), None, None, None), {}  # type: ignore[arg-type]


def test_warm_up_ends_when_the_rolling_median_rests():
    found = warm_up(Sitting(9.0, 5.0, 3.0, 3.01, 3.0, 3.0, 3.0), most=7)  # medians of three: 5, 3.01, 3.0
    assert (found.runs, found.settled, found.last_s) == (5, True, 3.0)
    assert not warm_up(Sitting(9.0, 5.0, 3.0, 2.0, 1.0), most=5).settled
    slow = warm_up(Sitting(9.0, 9.0, 9.0), most=3, limit_s=4.0)
    assert (slow.runs, slow.last_s) == (1, 9.0)


def test_rounds_turn_their_order():
    assert [order_of(3, number) for number in (0, 1, 2)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_prompts_of_each_kind(moe):
    point = Point(3, 5, 1)
    random, same = (prompts(moe, point, kind=kind) for kind in ("random", "identical"))
    assert random.shape == (3, 5) and len({tuple(row) for row in random.tolist()}) == 3
    assert len({tuple(row) for row in same.tolist()}) == 1
    assert torch.equal(random, prompts(moe, point)) and not torch.equal(random, prompts(moe, point, seed=1))
    assert kind_of(moe, "auto") == "random"


def test_prompts_of_a_corpus_are_its_text(tmp_path, moe):
    rows = [{"id": str(i), "domain": "x", "token_ids": list(range(i * 10, i * 10 + 10))} for i in range(4)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = prompts(moe, Point(3, 6, 1), kind=str(tmp_path / "c.jsonl"))
    assert found.tolist() == [list(range(start, start + 6)) for start in (0, 17, 34)]
    with pytest.raises(MeasurementError, match="has 40 tokens, fewer than one prompt of 41"):
        prompts(moe, Point(1, 41, 1), kind=str(tmp_path / "c.jsonl"))


def test_the_format_refuses_what_is_none(tmp_path, measurement):
    with pytest.raises(MeasurementError, match="holds no measurement .* make one with `workbench profile"):
        Measurement.open(tmp_path)
    with pytest.raises(MeasurementError, match="'times' is no table of a measurement; there are samples"):
        write_measurement(tmp_path / "m", {"times": pd.DataFrame()}, {})
    with pytest.raises(MeasurementError, match="has no table 'energy'; it has samples"):
        copied(measurement, tmp_path / "n", samples=measurement.table("samples")).table("energy")


def copied(measurement, path, **tables) -> Measurement:
    """A measurement of these tables with the manifest of another."""
    return write_measurement(path, tables, measurement.manifest)


def test_what_was_changed_on_disk_is_found(tmp_path, measurement):
    def written(name: str) -> Measurement:
        return copied(measurement, tmp_path / name, samples=measurement.table("samples"))

    edited = written("edited").path / "manifest.json"
    edited.write_text(edited.read_text().replace('"seed": ', '"seed": 1'))
    with pytest.raises(MeasurementError, match="was edited after the measurement"):
        Measurement.open(edited.parent)
    newer = written("newer").path / "manifest.json"
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(MeasurementError, match="has schema 2, and this workbench reads up to 1"):
        Measurement.open(newer.parent)
    (written("short").path / "samples.parquet").unlink()
    with pytest.raises(MeasurementError, match="lacks samples.parquet"):
        Measurement.open(tmp_path / "short")
    other = written("other")
    other.table("samples").assign(wall_s=1.0).to_parquet(other.path / "samples.parquet")
    with pytest.raises(MeasurementError, match="samples.parquet is not as it was written"):
        other.verify()


@pytest.mark.rest
def test_the_command_measures_and_analyses_read_it(tmp_path, monkeypatch, capsys):
    tiny.moe().module.save_pretrained(tmp_path / "moe")
    tiny.dense().module.save_pretrained(tmp_path / "dense")
    out = tmp_path / "m"
    status, said, _ = command(
        monkeypatch, capsys, "profile", tmp_path / "moe", "--against", tmp_path / "dense", "--out", out, "--batch", "2",
        "--prompt-length", "4", "--output-length", "3", "--rounds", "6", "--warm-up", "1", "--device", "cpu",
        "--routing", "natural,worst", "--experts-implementation", "grouped_mm,eager",
    )  # fmt: skip
    assert status == 0 and "48 timed runs" not in said  # 2 models, 1 routing, 1 kernel and 2 watched, 6 rounds
    assert "36 timed runs" in said and "energy: " in said and f"workbench analyze {out} --all" in said
    status, said, _ = command(monkeypatch, capsys, "analyze", out, "--all", "--out", tmp_path / "report")
    assert status == 0, said
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "How fast is each model on this machine" in page and "throughput/ratio.svg" in page
    provenance = json.loads((tmp_path / "report" / "throughput" / "provenance.json").read_text())
    assert [source["model"] for source in provenance["sources"]] == ["moe", "dense"]


def test_the_command_says_no(tmp_path, monkeypatch, capsys):
    for arguments, message in (
        (("--batch", "one"), "--batch is 'one'; numbers with commas were expected"),
        (("--routing", "best"), "routing is 'best'; natural, uniform"),
        (("--batch", "0"), "batch is 0; 1 or more was expected"),
    ):
        status, _, err = command(
            monkeypatch, capsys, "profile", "tiny-dense", "--out", tmp_path / "m", "--device", "cpu", *arguments
        )
        assert status == 1 and message in err
    assert not (tmp_path / "m").exists()


@pytest.mark.rest
def test_measuring_needs_no_nnsight():
    code = "import sys, workbench.efficiency.profiling.profile; sys.exit('nnsight' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
