"""The words that a command was given: kept with the context, cut by parameter, quoted where they are shown."""

import ast
import json
import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from workbench.cli import record as record_command
from workbench.cli.words import Remembered, words_given, words_without
from workbench.recordings.manifest import command_text

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def app():
    """A command that prints its words, whole and cut."""
    made = typer.Typer()

    @made.command(cls=Remembered)
    def measure(  # noqa: PLR0917  typer reads a command's options from its parameters
        context: typer.Context,
        model: str,
        only: Annotated[list[str] | None, typer.Option()] = None,
        rounds: int = 9,
        parts: bool = True,
        sequential: Annotated[bool, typer.Option("--sequential")] = False,
        out: str = "",
        limit: float = 0.0,
    ) -> None:
        cut = words_without(context, ("out", "limit", "sequential"))
        print(json.dumps([words_given(context), cut, words_without(context, ("out",), changed={"model": "other"})]))

    @made.command()
    def rest() -> None: ...

    return made


def said(app, *words: str) -> list[list[str]]:
    done = CliRunner().invoke(app, ["measure", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_command_knows_its_words(app):
    words = ["m", "--out", "a b", "--rounds", "3"]
    whole, cut, changed = said(app, *words)
    assert whole == ["workbench", "measure", *words]
    assert cut == ["measure", "m", "--rounds", "3"]
    assert changed == ["measure", "other", "--rounds", "3"]


def test_options_are_cut_with_their_values_however_they_are_written(app):
    _, cut, _ = said(app, "--limit=3", "--out=--rounds", "--no-parts", "m", "--only", "a", "--only=b", "--sequential")
    assert cut == ["measure", "m", "--no-parts", "--only", "a", "--only", "b"]


def test_a_value_that_looks_like_an_option_is_a_value(app):
    _, cut, changed = said(app, "m", "--only", "--out", "--rounds", "1")
    assert cut == ["measure", "m", "--only", "--out", "--rounds", "1"]
    _, _, changed = said(app, "m", "--only", "m")
    assert changed == ["measure", "other", "--only", "m"], "only the argument is another"


def test_a_command_that_is_kept_can_be_run():
    words = ["workbench", "record", "m", "--out", "a folder/it's", "--corpus", "$HOME"]
    assert shlex.split(command_text(words)) == words
    assert command_text(["a\udce9b"]) == "'a\\udce9b'" and command_text(()) == ""


def test_a_recording_names_the_command_that_made_it(tmp_path, monkeypatch):
    app = typer.Typer()
    record_command.register(app)
    ids = tmp_path / "trace.npz"
    np.savez(ids, ids=np.tile(np.array([[0], [1]]), (6, 1, 1)))
    out = tmp_path / "my trace"
    words = ["import", "numpy", str(ids), "--experts", "4", "--layers", "0-1", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    command = json.loads((out / "manifest.json").read_text())["environment"]["command"]
    assert shlex.split(command) == ["workbench", *words] and "'" in command


def test_only_the_command_line_reads_or_sets_the_words_of_the_process():
    """Below it a command is given."""
    found = [
        str(file.relative_to(ROOT))
        for folder in ("workbench", "analyses", "pages")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "argv" and ast.unparse(node.value) == "sys"
    ]
    assert {file for file in found if not file.startswith("workbench/cli/")} == set()
