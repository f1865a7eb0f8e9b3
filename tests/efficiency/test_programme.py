"""Measurements in pieces: what is done is not done again, what was killed goes on, two models make one measurement."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from analyses.measured import efficiency_waterfall, recording_overhead, throughput
from tests import tiny
from workbench.cli import main
from workbench.efficiency.measurements import programme
from workbench.efficiency.measurements.measurement import Measurement
from workbench.efficiency.measurements.merge import join
from workbench.efficiency.measurements.programme import Piece, Programme, read_programme, run_programme
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.settings import Asked
from workbench.errors import AnalysisError, MeasurementError

MODELS = {"moe": tiny.moe, "dense": tiny.dense}
BARE = Asked(
    batches=(1, 2), prompt_lengths=(3,), output_lengths=(3,), routings=("natural",), experts=None, rounds=2, warm_up=1,
    parts=False, checks=False,
)  # fmt: skip
PAIR = Programme(
    "pair",
    tuple(
        Piece(name, ("profile", name.partition("-")[0], "--rounds", "2"), 60) for name in ("moe-1", "dense", "moe-2")
    ),
    (("both", ("moe-1", "dense", "moe-2")),),
)


@pytest.fixture
def made(monkeypatch):
    """The pieces that were made, in this process."""
    names: list[str] = []

    def make(piece: Piece, folder: Path, *, limit_s: float) -> Measurement:
        names.append(piece.name)
        asked = BARE if piece.words[1] == "dense" else replace(BARE, experts=("grouped_mm",))
        return profile(MODELS[piece.words[1]](), folder, asked=asked, command=piece.words)

    monkeypatch.setattr(programme, "_make", make)
    return names


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> dict[str, Measurement]:
    out = tmp_path_factory.mktemp("pieces")
    asked = replace(BARE, experts=("grouped_mm",))
    return {
        "a": profile(tiny.moe(), out / "a", asked=asked),
        "b": profile(tiny.dense(), out / "b", asked=replace(BARE, rounds=4)),
        "c": profile(tiny.moe(), out / "c", asked=asked),
    }


def test_pieces_are_made_once_and_joined(made, tmp_path):
    said: list[str] = []
    (both,) = run_programme(PAIR, tmp_path / "p", say=said.append)
    assert made == ["moe-1", "dense", "moe-2"] and "60 s at most" in said[0]
    (again,) = run_programme(PAIR, tmp_path / "p", say=said.append)
    assert made == ["moe-1", "dense", "moe-2"] and again.digest == both.digest
    assert sum("done before, digest" in line for line in said) == 3
    told = json.loads((tmp_path / "p" / "programme.json").read_text())
    assert [piece["name"] for piece in told["pieces"]] == made and told["joins"][0]["digest"] == both.digest


def test_the_second_go_begins_where_the_first_one_stopped(made, tmp_path, monkeypatch):
    make = programme._make

    def fails(piece: Piece, folder: Path, *, limit_s: float) -> Measurement:
        if piece.name == "dense" and made == ["moe-1"]:
            folder.mkdir()
            (folder / "samples.parquet").write_bytes(b"half")  # what a killed piece leaves
            made.append("killed")
            raise KeyboardInterrupt
        return make(piece, folder, limit_s=limit_s)

    monkeypatch.setattr(programme, "_make", fails)
    with pytest.raises(KeyboardInterrupt):
        run_programme(PAIR, tmp_path / "p", say=lambda line: None)
    run_programme(PAIR, tmp_path / "p", say=lambda line: None)
    assert made == ["moe-1", "killed", "dense", "moe-2"]


@pytest.mark.rest
def test_folders_that_hold_something_else_are_refused(made, tmp_path):
    run_programme(PAIR, tmp_path / "p", say=lambda line: None)
    other = Programme("pair", (replace(PAIR.pieces[0], words=("profile", "moe", "--rounds", "9")),))
    with pytest.raises(
        MeasurementError, match=r"moe-1 was made by `workbench profile moe --rounds 2`, not by this piece"
    ):
        run_programme(other, tmp_path / "p", say=lambda line: None)
    (tmp_path / "q" / "moe-1").mkdir(parents=True)
    (tmp_path / "q" / "moe-1" / "thesis.txt").write_text("")
    with pytest.raises(MeasurementError, match=r"holds thesis.txt, which no measurement wrote; name another --out"):
        run_programme(PAIR, tmp_path / "q", say=lambda line: None)
    damaged = tmp_path / "p" / "moe-1" / "samples.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(MeasurementError, match="samples.parquet is not as it was written"):
        run_programme(PAIR, tmp_path / "p", say=lambda line: None)


def test_a_go_has_its_time(made, tmp_path):
    with pytest.raises(MeasurementError, match=r"piece 1 of 3, moe-1 was not begun: the 10 s of this go are used up"):
        run_programme(replace(PAIR, total_s=10.0), tmp_path / "p", say=lambda line: None)
    assert made == []


def test_the_rounds_of_a_model_that_came_twice_follow_each_other(pieces, tmp_path):
    found = join(pieces, tmp_path / "m", command=["x"])
    samples = found.table("samples")
    rounds = samples.groupby(["model", "batch"])["round"].apply(sorted)
    assert all(each == [0, 1, 2, 3] for each in rounds)
    later = samples[(samples["model"] == "tiny-random-moe") & (samples["round"] >= 2)]
    original = pieces["c"].table("samples")
    np.testing.assert_allclose(np.stack(later["token_s"].to_list()), np.stack(original["token_s"].to_list()))
    coverage = pieces["a"].table("coverage")
    pd.testing.assert_frame_equal(found.table("coverage"), coverage)  # once, though it was counted twice
    assert [piece["digest"] for piece in found.manifest["pieces"]] == [piece.digest for piece in pieces.values()]
    ratio = throughput.figures(throughput.run(found))["ratio"]
    assert "not in turns: tiny-random-moe, tiny-random-dense, tiny-random-moe" in ratio.caption
    assert set(efficiency_waterfall.run(found).steps["rounds"]) == {4}


def test_what_makes_no_pair_is_not_joined(pieces, tmp_path, dense):
    with pytest.raises(MeasurementError, match="the pieces are all of tiny-random-moe"):
        join({name: pieces[name] for name in "ac"}, tmp_path / "m")
    both = profile(dense, tmp_path / "both", against=dense, asked=BARE)
    with pytest.raises(MeasurementError, match="piece b holds several models"):
        join({"a": pieces["a"], "b": both}, tmp_path / "m")
    manifest = {**pieces["b"].manifest, "base": {**pieces["b"].manifest["base"], "launch": "graphs"}}
    with pytest.raises(MeasurementError, match=r"launch their steps differently \(eager, graphs\)"):
        join({"a": pieces["a"], "b": Measurement(pieces["b"].path, manifest)}, tmp_path / "m")


def test_the_programmes_are_as_they_promise():
    """Pieces of at most 8 minutes, a go of less than 25, words that the command knows; the rehearsal has the same."""
    known = {name: read_programme(name) for name in ("h200", "tiny")}
    full, rehearsal = known.values()
    assert [piece.name for piece in full.pieces] == [piece.name for piece in rehearsal.pieces]
    assert full.joins == rehearsal.joins == (("pair", ("moe-1", "dense", "moe-2")),)
    assert all(piece.limit_s + programme.GRACE_S <= 480 for piece in full.pieces) and full.total_s <= 1500
    command = get_command(main.command_line()).commands["profile"]  # type: ignore[attr-defined]
    for each, other in zip(full.pieces, rehearsal.pieces, strict=True):
        context = command.make_context("profile", [*each.words[1:], "--out", "x"])
        assert context.params["weights"] == "dummy" and context.params["dtype"] == "bfloat16"
        options = [set(re.findall(r"--[a-z-]+", " ".join(piece.words))) for piece in (each, other)]
        assert options[0] - options[1] <= {"--dtype", "--attention"} and options[1] - options[0] <= {"--threads"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[piece]]\nname = 'a'", "is no programme: KeyError"),
        ("piece = 3", "is no programme: TypeError"),
        ("=", "is no programme: TOMLDecodeError"),
        ("[[piece]]\nname='a'\nwords='m'\nlimit_s=1\n[[piece]]\nname='a'\nwords='m'\nlimit_s=1", "names 'a' twice"),
        (
            "[[piece]]\nname='a'\nwords='m'\nlimit_s=1\n[[join]]\nname='j'\nof=['b']",
            "joins 'b', which is no piece of it",
        ),
    ],
)
def test_a_file_that_is_no_programme_is_refused(text, message, tmp_path):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(MeasurementError, match=message):
        read_programme(str(tmp_path / "p.toml"))


def test_an_unknown_programme_lists_the_known_ones():
    with pytest.raises(MeasurementError, match="programme 'h300' is neither one of h200, tiny nor a file"):
        read_programme("h300")


@pytest.mark.rest
def test_a_piece_that_fails_or_does_not_end_is_a_sentence(tmp_path, monkeypatch):
    bad = Programme("p", (Piece("a", ("profile", "no-such-model"), 60),))
    with pytest.raises(
        MeasurementError, match=r"piece a ended with status 1: unknown model 'no-such-model'.*kept; run the"
    ):
        run_programme(bad, tmp_path / "p", say=lambda line: None)
    monkeypatch.setattr(programme, "GRACE_S", 0.0)
    slow = Programme("p", (Piece("a", ("profile", "tiny-dense", "--device", "cpu"), 0.2),))
    with pytest.raises(MeasurementError, match="piece a did not end within 0 s and was ended; nothing of it is kept"):
        run_programme(slow, tmp_path / "q", say=lambda line: None)
    assert not (tmp_path / "q" / "a" / "manifest.json").exists()


@pytest.mark.rest
def test_a_programme_that_was_killed_goes_on(tmp_path):
    """The whole command, in processes of its own: killed in its second piece, and run again."""
    sizes = "--device cpu --threads 1 --batch 1 --prompt-length 4 --output-length 3 --routing natural --no-parts"
    (tmp_path / "p.toml").write_text(
        f"words = '{sizes} --no-checks --warm-up 1 --weights dummy'\n"
        "[[piece]]\nname='one'\nwords='tiny-moe --experts-implementation grouped_mm --rounds 1'\nlimit_s=60\n"
        "[[piece]]\nname='two'\nwords='tiny-dense --rounds 2'\nlimit_s=60\n"
        "[[join]]\nname='both'\nof=['one', 'two']\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "workbench.cli", "programme", str(tmp_path / "p.toml"), "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("piece 2 of 2, two: workbench profile"):
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    made = (out / "one" / "manifest.json").stat().st_mtime_ns
    time.sleep(0.5)
    assert not (out / "two" / "manifest.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "piece 1 of 2, one: done before" in again.stdout and "next: workbench analyze" in again.stdout
    assert (out / "one" / "manifest.json").stat().st_mtime_ns == made
    assert list(Measurement.open(out / "both").models) == ["tiny-moe", "tiny-dense"]


def test_two_models_one_after_the_other_make_one_measurement(monkeypatch, tmp_path):
    """`profile --sequential`: three pieces, put together, and nothing left beside."""
    ran: list[tuple[str, ...]] = []

    def make(piece: Piece, folder: Path, *, limit_s: float) -> Measurement:
        ran.append(piece.words)
        words = list(piece.words)
        asked = replace(BARE, rounds=int(words[words.index("--rounds") + 1]))
        model = "moe" if "tiny-moe" in words else "dense"
        return profile(
            MODELS[model](),
            folder,
            asked=replace(asked, experts=("grouped_mm",) if model == "moe" else None),
            command=words,
        )

    monkeypatch.setattr(programme, "_make", make)
    out = tmp_path / "m"
    words = ["profile", "tiny-moe", "--against", "tiny-dense", "--out", str(out), "--routing", "uniform,natural",
             "--rounds", "5", "--device", "cpu", "--sequential"]  # fmt: skip
    done = CliRunner().invoke(main.command_line(), words)
    assert done.exit_code == 0, done.output
    common = ("--device", "cpu")
    assert ran[0] == ("profile", "tiny-moe", "--routing", "uniform,natural", *common, "--rounds", "3")
    assert ran[1] == ("profile", "tiny-dense", *common, "--routing", "natural", "--rounds", "5")
    assert ran[2][-2:] == ("--rounds", "2") and list(Measurement.open(out).models)[1] == "tiny-random-dense"
    assert [folder.name for folder in tmp_path.iterdir()] == ["m"]
    assert "timed runs in" in done.output


def test_models_that_do_not_fit_together_are_measured_in_turn(monkeypatch, capsys):
    from workbench.cli.profile import _both_fit
    from workbench.models import loading
    from workbench.models.memory import MemoryForecast

    def forecast(free: int):
        return lambda name, **_: MemoryForecast(100, 0, 10, free, "cuda")

    monkeypatch.setattr(loading, "memory_forecast", forecast(150))
    assert not _both_fit("a", "b", device="auto", dtype="auto")
    assert (
        "a and b do not fit into memory together, so they are measured one after the other" in capsys.readouterr().out
    )
    for free in (210, 90):  # both fit; or neither, which loading refuses with its figures
        monkeypatch.setattr(loading, "memory_forecast", forecast(free))
        assert _both_fit("a", "b", device="auto", dtype="auto")


def test_recording_is_held_against_the_bare_pass_by_hand(tmp_path, dense):
    bare = profile(dense, tmp_path / "m", asked=replace(BARE, batches=(1,)))
    with pytest.raises(AnalysisError, match="has no recording; measure again with --recording-rounds 6"):
        recording_overhead.run(bare)
    rows = [
        {"model": "a", "way": way, "round": r, "tokens": 100, "seconds": s}
        for r in range(6)
        for way, s in (("bare", 1.0 + r), ("recorded", 1.03 * (1.0 + r)))
    ]
    fake = type("Fake", (), {})()
    fake.path, fake.models = bare.path, bare.models
    fake.manifest = {**bare.manifest, "tables": {**bare.manifest["tables"], "recording": {"rows": 12}}}
    fake.table = lambda name: pd.DataFrame(rows)
    found = recording_overhead.run(fake).overhead.iloc[0]
    assert found["value"] == pytest.approx(0.03) and found["low"] == pytest.approx(0.03) == found["high"]
