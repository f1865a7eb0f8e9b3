"""The bundle for a paper: what stands beside the results, and all of it in one file."""

import dataclasses
import io
import json
import re
import shutil
import stat
import subprocess
import zipfile

import pytest

from tests.figures.examples import load_map
from tests.test_export import PROVENANCE, TABLE
from workbench.errors import AnalysisError
from workbench.export.bundle import finish, zipped
from workbench.export.files import write_result


def write(folder, command: str) -> None:
    provenance = dataclasses.replace(PROVENANCE, command=command)
    write_result({"loads": TABLE}, {"map": load_map(2, 4)}, folder, provenance=provenance)


def test_a_second_result_is_added_to_the_document_and_to_the_commands(tmp_path):
    write(tmp_path / "one", "echo one")
    finish(tmp_path)
    write(tmp_path / "two", "echo two")
    paper, script = finish(tmp_path)
    assert [path.name for path in (paper, script)] == ["paper.tex", "reproduce.sh"]
    assert re.findall(r"includegraphics.*", paper.read_text()) == [
        "includegraphics{{one/map}.pdf}", "includegraphics{{two/map}.pdf}",
    ]  # fmt: skip
    assert script.read_text().splitlines()[-2:] == ["echo one", "echo two"]


def test_reproduce_runs_the_commands_and_stops_at_a_failure(tmp_path):
    for name, command in (("a", "echo one"), ("b", "false"), ("c", "echo two")):
        write(tmp_path / name, command)
    _, path = finish(tmp_path)
    assert path.stat().st_mode & stat.S_IXUSR
    done = subprocess.run([path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("one\n", 1)


def test_what_names_no_file_of_ours_stays_out(tmp_path):
    write(tmp_path / "one", "echo one")
    stated = json.loads((tmp_path / "one" / "provenance.json").read_text())
    stated["figures"]["}\\input{x"] = {"title": "", "caption": ""}
    (tmp_path / "one" / "provenance.json").write_text(json.dumps(stated))
    assert "includegraphics" not in finish(tmp_path)[0].read_text()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two results, to be copied."""
    folder = tmp_path_factory.mktemp("bundle")
    for name in ("one", "two"):
        write(folder / name, f"echo {name}")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"figures": {"map": 5}}, {"figures": [5]}, {"figures": {"map": {"title": "t"}}}, {"sources": [5]},
        {"sources": 5},
        {"sources": [{"model": 5, "digest": 5}]}, {"command": ["echo"]}, {"files": 5}, {"files": [5]}, None, 5,
    ],
)  # fmt: skip
def test_what_is_damaged_stays_out(tmp_path, two, change):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "one" / "provenance.json"
    stated = {**json.loads(file.read_text()), **change} if isinstance(change, dict) else change
    file.write_text(json.dumps(stated) if change is not None else "[" * 100_000)
    paper, script = finish(tmp_path)
    assert "{two/map}" in paper.read_text() and "{one/map}" not in paper.read_text()
    assert script.read_text().splitlines()[-1:] == ["echo two"] and "echo one" not in script.read_text()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match=r"paper.tex cannot be written: .*Free the disk or choose another --out"):
        finish(tmp_path / "file")


def test_all_of_it_in_one_file_with_the_same_bytes_each_time(tmp_path):
    write(tmp_path / "bundle" / "one", "echo one")
    finish(tmp_path / "bundle")
    packed = zipped(tmp_path / "bundle")
    assert packed == zipped(tmp_path / "bundle")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {"bundle/paper.tex", "bundle/reproduce.sh", "bundle/one/map.pdf", "bundle/one/loads.tex"} <= set(
            archive.namelist()
        )
        assert archive.getinfo("bundle/reproduce.sh").external_attr >> 16 == 0o100755
        assert archive.read("bundle/one/map.svg") == (tmp_path / "bundle" / "one" / "map.svg").read_bytes()
