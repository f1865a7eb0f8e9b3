"""Runs analyses in batch: finds them, reads their settings from text, writes their result.

`python -m analyses.NAME RECORDING --out DIR` and `workbench analyze` both end here.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import shlex
import sys
import types
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import analyses
from analyses import compare
from analyses.pairing import EXPERTS
from analyses.settings import parse_settings
from workbench.cli import ending
from workbench.efficiency.measurements.measurement import Measurement, is_measurement
from workbench.errors import AnalysisError
from workbench.export.bundle import finish
from workbench.export.files import Provenance, Source, is_name, sweep, write_result
from workbench.figures.theme import Width
from workbench.files.writing import refuse_unwritable
from workbench.recordings.recording import Recording

_SHARED = "read"  # what analyses read with; no analysis is there
CONTROLS = ("ceiling", "untrained")  # settings that name the folder of another recording


@cache
def _modules() -> dict[str, str]:
    """Where each analysis is, by its name, which is its file's: in a folder of the field's nouns."""
    files = sorted(Path(analyses.__path__[0]).glob("*/*.py"), key=lambda file: file.stem)
    return {
        file.stem: f"analyses.{file.parent.name}.{file.stem}"
        for file in files
        if not file.stem.startswith("_") and file.parent.name != _SHARED
    }


def names(of: str = "recording") -> list[str]:
    """The analyses there are of one kind of input, by name; `""` for all."""
    return [name for name in _modules() if of in ("", _input(name))]


@cache
def _input(name: str) -> str:
    """What an analysis is asked of: its `INPUT`, a recording unless it says so. Read, not imported: a page asks all."""
    file = Path(analyses.__path__[0], *_modules()[name].split(".")[1:]).with_suffix(".py")
    stated = re.search(r'^INPUT = "(\w+)"', file.read_text(encoding="utf-8"), re.M)
    return stated[1] if stated else "recording"


def get(name: str) -> types.ModuleType:
    """An analysis by name.

    Raises:
        AnalysisError: there is none of that name; says which are spelt alike.
    """
    if name not in _modules():
        raise AnalysisError(f"unknown analysis {name[:80]!r}; {_alike(name)}")
    return import_module(_modules()[name])


def _alike(name: str) -> str:
    """What may have been meant, as the end of a sentence."""
    near = difflib.get_close_matches(name[:80].lower().replace("-", "_"), names(""), n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "`workbench analyze RECORDING` without a name lists them."


def open_input(path: Path) -> Recording | Measurement:
    """The recording or measurement in a folder."""
    return Measurement.open(path) if is_measurement(path) else open_recording(path)


def open_recording(path: Path) -> Recording:
    """The recording in a folder, every digest of it compared: a byte that was turned over must not end in a table."""
    recording = Recording.open(path)
    recording.verify()
    return recording


def kind(given: Recording | Measurement) -> str:
    """Of an input, as analyses state theirs in `INPUT`."""
    return "measurement" if isinstance(given, Measurement) else "recording"


def takes_two(module: types.ModuleType) -> bool:
    """Whether an analysis has a question of its own for two recordings; any other one is asked of both."""
    return "other" in inspect.signature(module.run).parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What an analysis says of one recording, or of two.

    Attributes:
        result: As the analysis gave it; of two recordings without a question of its own, the comparison.
        settings: Of the analysis.
        tables: By name.
        figures: By name; none where the recording holds too little for them.
        missing: Why there are no figures.
    """

    result: Any
    settings: Any
    tables: Mapping[str, Any]
    figures: Mapping[str, Any]
    missing: str = ""


def ask(
    recording: Recording | Measurement, name: str, *, settings: Sequence[str] = (), against: Recording | None = None,
    experts: str = "auto",
) -> Answer:  # fmt: skip
    """Runs one analysis.

    Args:
        recording: What is asked.
        name: The analysis.
        settings: `key=value` texts.
        against: A second recording to compare with.
        experts: Of two recordings: `auto`, `same` or `matched`.

    Raises:
        AnalysisError: what `get`, `parse_settings` or the analysis refuse; or it compares two and was given one.
    """
    module = get(name)
    if _input(name) == "costs":
        raise AnalysisError(
            f"{name}: it is asked of costs, not of a {kind(recording)}; run python -m analyses.{name} --help."
        )
    if _input(name) != kind(recording):
        raise AnalysisError(
            f"{name}: it is asked of a {_input(name)}, and {recording.path} holds a {kind(recording)}; `workbench "
            f"analyze {recording.path} --all` runs those that can be asked of it."
        )
    if isinstance(recording, Measurement) and against is not None:
        raise AnalysisError(f"{name}: a measurement holds both models that it compares; leave --against out.")
    if not takes_two(module):
        chosen = parse_settings(module, settings)
        if against is not None and isinstance(recording, Recording):
            found = compare.compare(module, recording, against, chosen, experts=experts)
            return Answer(found, chosen, found.tables, compare.figures(name, found))
        result = module.run(recording, chosen)
    else:
        if against is None:
            raise AnalysisError(
                f"{name}: it compares two recordings, and one was given; give another of the same corpus: "
                "--against RECORDING."
            )
        chosen = parse_settings(module, [*([f"experts={experts}"] if experts != "auto" else []), *settings])
        result = module.run(recording, against, chosen)
    try:
        return Answer(result, chosen, module.tables(result), module.figures(result))
    except AnalysisError as error:  # one short prompt has no pairs of documents to compare
        return Answer(result, chosen, module.tables(result), {}, str(error))


def analyze(
    recording: Recording | Measurement,
    name: str,
    out: Path,
    *,
    settings: Sequence[str] = (),
    width: Width = "column",
    against: Recording | None = None,
    experts: str = "auto",
    only: Sequence[str] = (),
    label: str = "",
) -> tuple[list[Path], Mapping[str, Any]]:
    """Runs one analysis and writes its tables and figures into `out/NAME`.

    Args:
        recording: What is asked.
        name: The analysis.
        out: Folder for the results of all analyses.
        settings: `key=value` texts.
        width: Of the figures: `column` or `text`.
        against: A second recording to compare with.
        experts: Of two recordings: `auto`, `same` or `matched`.
        only: Figures and tables to write; all unless given.
        label: Name of the folder in `out`; the analysis' unless given.

    Returns:
        The files written, and the figures by name.

    Raises:
        AnalysisError: what `get`, `parse_settings`, the analysis or the export refuse.
    """
    answer = picked(ask(recording, name, settings=settings, against=against, experts=experts), name, only)
    if answer.missing:
        raise AnalysisError(answer.missing)
    of_two: dict[str, Any] = {"against": against, "experts": experts}
    provenance = Provenance(
        analysis=name,
        command=command(recording, name, settings=settings, width=width, **of_two, only=only, label=label),
        sources=sources(recording, against, answer.settings),
        settings=dataclasses.asdict(answer.settings),
    )
    folder = out / named(label or name)
    return write_result(answer.tables, answer.figures, folder, provenance=provenance, width=width), answer.figures


def named(label: str) -> str:
    """The label, where a folder can be called so.

    Raises:
        AnalysisError: it cannot.
    """
    if not is_name(label):
        raise AnalysisError(
            f"--label is {label!r}; letters, digits, '_', '-' and '.' were expected, no blank or slash."
        )
    return label


def picked(answer: Answer, name: str, only: Sequence[str]) -> Answer:
    """An answer with the figures and tables of these names alone; of none, all.

    Raises:
        AnalysisError: one of them is not there.
    """
    if not only:
        return answer
    known = [*answer.figures, *answer.tables]
    if unknown := [each for each in only if each not in known]:
        raise AnalysisError(
            f"{name}: --only {unknown[0]!r} is neither a figure nor a table; there are {_words(known)}."
        )
    tables, figures = ({k: v for k, v in held.items() if k in only} for held in (answer.tables, answer.figures))
    return dataclasses.replace(answer, tables=tables, figures=figures, missing="")


def _words(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def sources(
    recording: Recording | Measurement, against: Recording | None = None, settings: Any = None
) -> tuple[Source, ...]:
    """The recordings that a result is made of, for its provenance; its controls among them."""
    if isinstance(recording, Measurement):
        found = recording.models.values()
        return tuple(Source(digest=recording.digest, model=m["name"], revision=m["revision"] or None) for m in found)
    paths = [getattr(settings, name, "") for name in CONTROLS]
    given = [recording, against, *(Recording.open(path) for path in paths if path)]
    models = [(each.digest, each.manifest["model"]) for each in given if each is not None]
    return tuple(Source(digest=d, model=model["name"], revision=model["revision"] or None) for d, model in models)


def command(
    recording: Recording | Measurement,
    name: str,
    *,
    settings: Sequence[str] = (),
    width: Width = "column",
    against: Recording | None = None,
    experts: str = "auto",
    only: Sequence[str] = (),
    label: str = "",
) -> str:
    """The command that makes an analysis' result again, with the recordings named as they were opened."""
    words = ["workbench", "analyze", str(recording.path), name]
    words += ["--against", str(against.path)] if against is not None else []
    words += ["--experts", experts] if experts != "auto" else []
    words += [word for pair in settings for word in ("--set", pair)]
    words += narrowed(only, label, width)
    words += ["--phase", phase] if (phase := getattr(recording, "chosen_phase", None)) else []
    return shlex.join([*words, "--out", "out"])


def narrowed(only: Sequence[str], label: str, width: Width) -> list[str]:
    """What a command says of what is written, and where."""
    words = [word for each in only for word in ("--only", each)]
    words += ["--label", label] if label else []
    return words + (["--width", width] if width != "column" else [])


def with_controls(
    module: types.ModuleType, settings: Sequence[str], *, ceiling: Path | None, untrained: Path | None, of_two: bool
) -> list[str]:
    """The settings with the recordings that an analysis takes as controls, those of them that it has.

    Args:
        module: The analysis.
        settings: `key=value` texts.
        ceiling: The same model recorded again.
        untrained: The untrained model.
        of_two: Whether two recordings are compared: then a control belongs to an analysis of two alone.
    """
    known = {field.name for field in dataclasses.fields(module.Settings)} if takes_two(module) or not of_two else set()
    given = {"ceiling": ceiling, "untrained": untrained}
    return [*settings, *(f"{name}={path}" for name, path in given.items() if path is not None and name in known)]


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
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a figure or table; repeat for more"
    )
    parser.add_argument("--label", default="", help="name of the folder in --out; the analysis' unless given")
    parser.add_argument("--phase", choices=["prefill", "decode"], help="of a recording that holds both")
    parser.add_argument("--against", type=Path, help="a second recording of the same corpus to compare with")
    parser.add_argument("--ceiling", type=Path, help="the first recording's model recorded again")
    parser.add_argument("--untrained", type=Path, help="the untrained model over the same corpus")
    parser.add_argument("--experts", choices=EXPERTS, default="auto", help="whether equal ids are equal experts")
    arguments = parser.parse_args()
    ending.run(
        lambda: _analyze(name, arguments), say=lambda words: print(f"workbench: {words}", file=sys.stderr),
        stays="Nothing was written.",
    )  # fmt: skip


def _analyze(name: str, arguments: argparse.Namespace) -> None:
    """What the command of one analysis does."""
    refuse_unwritable(arguments.out, AnalysisError)
    recording = open_input(arguments.recording)
    if arguments.phase and isinstance(recording, Recording):
        recording = recording.of_phase(arguments.phase)
    settings = with_controls(
        get(name),
        arguments.settings,
        ceiling=arguments.ceiling,
        untrained=arguments.untrained,
        of_two=arguments.against is not None,
    )
    sweep(arguments.out)
    files, _ = analyze(
        recording,
        name,
        arguments.out,
        settings=settings,
        width=arguments.width,
        against=open_recording(arguments.against) if arguments.against else None,
        experts=arguments.experts,
        only=arguments.only,
        label=arguments.label,
    )
    print("\n".join(map(str, [*files, *finish(arguments.out)])))
