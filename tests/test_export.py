"""What is written for a paper: safe, whole or not at all, with its provenance, the same bytes every time."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.figures.examples import CANARY, load_map, strip
from workbench.errors import AnalysisError
from workbench.export import files
from workbench.export.bundle import finish
from workbench.export.files import Provenance, Source, write_figure, write_result, write_table

PROVENANCE = Provenance(
    analysis="expert_load",
    command="workbench analyze data/recordings/demo expert_load --out out",
    sources=(Source(digest="sha256:0123", model="tiny-moe", revision="step-0"),),
    settings={"level": 0.95, "by": ("domain",)},
    versions={"moe-workbench": "0.1.0"},
)
TABLE = pd.DataFrame(
    {
        "layer": [0, 1, 2],
        "load_over_balance": [1.25, 0.5, np.nan],
        "p": [0.0000123, 0.5, 1.0],
        "tokens": [12345, 7, 0],
        "dead": [False, True, False],
        "top token": ["=SUM(A1)", "50% a_b #1 {x} ~^\\ $", "line\nbreak"],
    }
)


def write(folder, **options):
    everything = {"tables": {"loads": TABLE}, "figures": {"map": load_map(2, 4)}, "provenance": PROVENANCE, **options}
    return write_result(everything.pop("tables"), everything.pop("figures"), folder, **everything)


def test_a_result_is_a_folder_of_files_and_their_digests(tmp_path):
    written = write(tmp_path / "out" / "expert_load")
    names = ["loads.csv", "loads.tex", "map.pdf", "map.svg", "map.png", "provenance.json"]
    assert [file.name for file in written] == names
    assert sorted(entry.name for entry in (tmp_path / "out" / "expert_load").iterdir()) == sorted(names)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["expert_load"]
    stated = json.loads(written[-1].read_text())
    assert stated["sources"] == [{"digest": "sha256:0123", "model": "tiny-moe", "revision": "step-0"}]
    assert stated["settings"] == {"level": 0.95, "by": ["domain"]}
    assert stated["figures"]["map"]["caption"] == load_map(2, 4).caption
    assert "created" not in stated
    for file in written[:-1]:
        assert stated["files"][file.name] == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_second_run_replaces_the_first_with_the_same_bytes(tmp_path):
    first = {file.name: file.read_bytes() for file in write(tmp_path / "expert_load")}
    write(tmp_path / "expert_load", tables={"other": TABLE})
    assert not (tmp_path / "expert_load" / "loads.csv").exists()
    assert {file.name: file.read_bytes() for file in write(tmp_path / "expert_load")} == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["expert_load"]


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ({"notes.txt": "mine"}, "holds notes.txt and no provenance of ours"),
        ({"provenance.json": "{}"}, "holds provenance.json and no provenance of ours"),
        ({"provenance.json": '{"analysis": "load_balance", "files": {}}'}, "holds the result of 'load_balance'"),
        (
            {"provenance.json": '{"analysis": "expert_load", "files": {"a.csv": ""}}', "a.csv": "", "mine.txt": ""},
            "also holds mine.txt, which 'expert_load' did not write",
        ),
        ({f"{i}.txt": "" for i in range(5)}, "holds 0.txt, 1.txt, 2.txt and 2 more and no provenance of ours"),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, held, sentence):
    for name, text in held.items():
        (tmp_path / name).write_text(text)
    wanted = "an empty or new folder, or one of an earlier run of 'expert_load', is expected; choose another --out."
    with pytest.raises(AnalysisError, match=re.escape(f"{tmp_path} {sentence}; {wanted}")):
        write(tmp_path)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == held


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AnalysisError, match="out is a file; an empty or new folder"):
        write(tmp_path / "out")


def test_an_empty_folder_is_taken(tmp_path):
    assert write(tmp_path)[0].is_file()


@pytest.mark.parametrize("name", ["../loads", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(AnalysisError, match=re.escape(f"{name!r} is no name for a file")):
        write(tmp_path / "out", tables={name: TABLE})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_and_the_earlier_result_whole(tmp_path, monkeypatch):
    before = {file.name: file.read_bytes() for file in write(tmp_path / "out")}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    sentence = (
        "out cannot be written: No space left on device; nothing was left there. Free the disk or choose another --out."
    )
    with pytest.raises(AnalysisError, match=re.escape(sentence)):
        write(tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failure_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "write_figure", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_csv_keeps_every_digit_and_starts_no_formula(tmp_path):
    write_table(TABLE, tmp_path / "t", provenance=PROVENANCE, caption="c", label="l")
    read = pd.read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read.drop(columns="top token"), TABLE.drop(columns="top token"), check_exact=True)
    assert read["top token"].tolist() == ["'=SUM(A1)", *TABLE["top token"][1:]]


def test_figures_carry_title_caption_and_provenance(tmp_path):
    figure = load_map(2, 4)
    pdf, svg, png = write_figure(figure, tmp_path / "map.v1", provenance=PROVENANCE)
    assert [path.name for path in (pdf, svg, png)] == ["map.v1.pdf", "map.v1.svg", "map.v1.png"]
    assert b"sha256:0123" in pdf.read_bytes()
    assert b"/Title (Load of each expert)" in pdf.read_bytes()
    assert "<title>Load of each expert</title>" in svg.read_text()
    assert "sha256:0123" in svg.read_text()
    with Image.open(png) as image:
        assert json.loads(image.text["Provenance"]) == PROVENANCE.as_dict()
        assert image.text["Description"] == figure.caption
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.width == 975


def test_metadata_may_say_anything(tmp_path):
    said = dataclasses.replace(PROVENANCE, command=CANARY + "\n\x00 中文 -->", created="2026-11-23T20:00:00+00:00")
    _, svg, _ = write_figure(
        dataclasses.replace(strip(3, colour="loss"), title=CANARY), tmp_path / "f", provenance=said
    )
    assert "<script" not in svg.read_text()
    assert "2026-11-23" in svg.read_text()


def test_half_a_letter_anywhere_is_its_escape(tmp_path):
    said = dataclasses.replace(PROVENANCE, command="workbench analyze 'caf\udce9'", settings={"document": "\ud800"})
    written = {file.name: file for file in write(tmp_path / "out", provenance=said)}
    assert json.loads(written["provenance.json"].read_text())["settings"] == {"document": "\ud800"}
    script = finish(tmp_path)[1]
    assert "caf\\udce9" in script.read_text()


def test_versions_are_read_without_importing():
    versions = files.software_versions()
    assert {"moe-workbench", "matplotlib", "torch"} <= set(versions)
