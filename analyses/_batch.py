"""Runs analyses in batch: finds them, reads their settings from text, writes their result.

`python -m analyses.NAME RECORDING --out DIR` and `workbench analyze` both end here.
"""

import argparse
import dataclasses
import pkgutil
import shlex
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import analyses
from workbench.errors import AnalysisError, WorkbenchError
from workbench.export import Provenance, Source, write_reproduce, write_result
from workbench.figures.theme import Width
from workbench.recording import Recording


def names() -> list[str]:
    """The analyses there are, by name."""
    return sorted(found.name for found in pkgutil.iter_modules(analyses.__path__) if not found.name.startswith("_"))


def get(name: str) -> types.ModuleType:
    """An analysis by name.

    Raises:
        AnalysisError: there is none of that name; lists those that there are.
    """
    if name not in names():
        raise AnalysisError(f"unknown analysis {name!r}; there are {', '.join(names())}.")
    return import_module(f"analyses.{name}")


def parse_settings(module: types.ModuleType, pairs: Sequence[str]) -> Any:
    """An analysis' settings from `key=value` texts.

    Raises:
        AnalysisError: a text without `=`, an unknown key (lists the known ones), or a value of another type.
    """
    name = module.__name__.rpartition(".")[2]
    types_of = typing.get_type_hints(module.Settings)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise AnalysisError(f"{name}: --set {pair!r} has no '='; key=value was wanted.")
        if key not in types_of:
            raise AnalysisError(f"{name}: unknown setting {key!r}; there are {', '.join(types_of)}.")
        kinds = [kind for kind in typing.get_args(types_of[key]) or (types_of[key],) if kind is not types.NoneType]
        try:
            values[key] = kinds[0](text)
        except ValueError as error:
            raise AnalysisError(
                f"{name}: {key} is {text!r}; a value of type {kinds[0].__name__} was wanted."
            ) from error
    return module.Settings(**values)


def analyze(
    recording: Recording, name: str, out: Path, *, settings: Sequence[str] = (), width: Width = "column"
) -> tuple[list[Path], Mapping[str, Any]]:
    """Runs one analysis and writes its tables and figures into `out/NAME`.

    Args:
        recording: What is asked.
        name: The analysis.
        out: Folder for the results of all analyses.
        settings: `key=value` texts.
        width: Of the figures: `column` or `text`.

    Returns:
        The files written, and the figures by name.

    Raises:
        AnalysisError: what `get`, `parse_settings`, the analysis or the export refuse.
    """
    module = get(name)
    chosen = parse_settings(module, settings)
    result = module.run(recording, chosen)
    model = recording.manifest["model"]
    provenance = Provenance(
        analysis=name,
        command=command(recording, name, settings=settings, width=width),
        sources=(Source(digest=recording.digest, model=model["name"], revision=model["revision"] or None),),
        settings=dataclasses.asdict(chosen),
    )
    drawn = module.figures(result)
    files = write_result(module.tables(result), drawn, out / name, provenance=provenance, width=width)
    return files, drawn


def command(recording: Recording, name: str, *, settings: Sequence[str] = (), width: Width = "column") -> str:
    """The command that makes an analysis' result again, with the recording named as it was opened."""
    words = ["workbench", "analyze", str(recording.path), name]
    words += [word for pair in settings for word in ("--set", pair)]
    words += ["--width", width] if width != "column" else []
    words += ["--phase", recording.chosen_phase] if recording.chosen_phase else []
    return shlex.join([*words, "--out", "out"])


def main() -> None:
    """Runs the analysis whose file is being run: `python -m analyses.NAME RECORDING --out DIR`."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "run an analysis with python -m analyses.NAME"
    name = spec.name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m analyses.{name}", description=(get(name).__doc__ or "").strip())
    parser.add_argument("recording", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--width", choices=["column", "text"], default="column")
    parser.add_argument("--phase", choices=["prefill", "decode"], help="of a recording that holds both")
    arguments = parser.parse_args()
    try:
        recording = Recording.open(arguments.recording)
        recording = recording.of_phase(arguments.phase) if arguments.phase else recording
        files, _ = analyze(recording, name, arguments.out, settings=arguments.settings, width=arguments.width)
    except WorkbenchError as error:
        sys.exit(f"workbench: {error}")
    write_reproduce(arguments.out, [command(recording, name, settings=arguments.settings, width=arguments.width)])
    print("\n".join(map(str, files)))
