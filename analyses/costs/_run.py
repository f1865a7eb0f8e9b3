"""Runs the analyses that are asked of two models' costs, and none of a recording (`INPUT = "costs"`)."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from analyses import question
from workbench.efficiency.costs.comparison import Costed, costed, with_published
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.formulas import dtype_bytes
from workbench.errors import AnalysisError, ModelError, WorkbenchError
from workbench.export.bundle import finish
from workbench.export.files import Provenance, Source, write_result
from workbench.figures.theme import Width


def names() -> list[str]:
    """The analyses of costs."""
    return question.names("costs")


def ask(subject: Costed, name: str, *, settings: Sequence[str] = ()) -> question.Answer:
    """Runs one analysis.

    Raises:
        AnalysisError: it is unknown, asked of something else, or refuses its settings.
    """
    module = question.get(name)
    if name not in names():
        raise AnalysisError(f"{name}: it is not asked of costs; these are: {', '.join(names())}.")
    chosen = question.parse_settings(module, settings)
    try:
        result = module.run(subject, chosen)
    except ModelError as error:
        raise AnalysisError(f"{name}: {error}") from error
    return question.Answer(result, chosen, module.tables(result), module.figures(result))


def write(
    subject: Costed, name: str, out: Path, *, settings: Sequence[str] = (), width: Width = "column",
    only: Sequence[str] = (), label: str = "",
) -> list[Path]:  # fmt: skip
    """Runs one analysis and writes its tables and figures, or those named, into `out/NAME`. Errors as of `ask`."""
    answer = question.picked(ask(subject, name, settings=settings), name, only)
    made = provenance(subject, name, settings=settings, width=width, only=only, label=label)
    folder = out / question.named(label or name)
    return write_result(answer.tables, answer.figures, folder, provenance=made, width=width)


def provenance(
    subject: Costed, name: str, *, settings: Sequence[str] = (), width: Width = "column",
    only: Sequence[str] = (), label: str = "",
) -> Provenance:  # fmt: skip
    """Where a result comes from."""
    return Provenance(
        analysis=name,
        command=command(subject, name, settings=settings, width=width, only=only, label=label),
        sources=(Source(digest=subject.digest, model=subject.name, revision=None),),
        settings=dataclasses.asdict(question.parse_settings(question.get(name), settings)),
    )


def command(
    subject: Costed, name: str, *, settings: Sequence[str] = (), width: Width = "column",
    only: Sequence[str] = (), label: str = "",
) -> str:  # fmt: skip
    """What makes it again."""
    words = ["python", "-m", f"analyses.{name}", subject.name, "--against", subject.against]
    words += [word for pair in settings for word in ("--set", pair)]
    words += question.narrowed(only, label, width)
    return shlex.join([*words, "--out", "out"])


def check(analysis: str, *, on: str, dtype: str, **numbers: int) -> None:
    """Refuses settings that cannot be meant.

    Raises:
        AnalysisError: an unknown device or dtype, one that the device has no peak for, or a number under 1.
    """
    try:
        dtype_bytes(dtype)
        device(on).peak(dtype)
    except ModelError as error:
        raise AnalysisError(f"{analysis}: {error}") from error
    for name, value in numbers.items():
        if value < 1:
            raise AnalysisError(f"{analysis}: {name} is {value}; 1 or more was expected.")


def doublings(largest: int) -> list[int]:
    """1, 2, 4 … up to a number."""
    return [2**n for n in range(largest.bit_length())]


def main() -> None:
    """Runs the analysis whose file is being run: `python -m analyses.NAME MODEL --out DIR`."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "run an analysis with python -m analyses.NAME"
    name = spec.name.rpartition(".")[2]
    parser = argparse.ArgumentParser(prog=f"python -m analyses.{name}")
    parser.add_argument("model", help="bundled, local folder, published config or hub id")
    parser.add_argument("--against", default="iso-active", help="iso-active, iso-total, iso-memory, or a model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--width", choices=["column", "text"], default="column")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a figure or table; repeat for more"
    )
    parser.add_argument("--label", default="", help="name of the folder in --out; the analysis' unless given")
    given = parser.parse_args()
    try:
        subject = with_published(costed(given.model, given.against))
        how = {"settings": given.settings, "width": given.width, "only": given.only, "label": given.label}
        files = [*write(subject, name, given.out, **how), *finish(given.out)]
    except WorkbenchError as error:
        sys.exit(f"workbench: {error}")
    print("\n".join(map(str, files)))
