"""Tables and figures as files for a paper, each with its provenance.

Bytes depend on the table, the figure, the provenance and the versions named in it, on nothing else: no clock, no paths.
This module computes nothing and knows no analysis; it is told what to write and where.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import AnalysisError
from workbench.figures.paper import paper, save
from workbench.figures.spec import Figure
from workbench.figures.theme import Width, printable

LONGEST_TABLE = 60  # rows that a page of a paper holds; a longer table breaks over pages
OURS = ("provenance.json", "reproduce.sh")
_PACKAGES = ("moe-workbench", "torch", "transformers", "nnsight", "numpy", "scipy", "pandas", "matplotlib")


def software_versions() -> dict[str, str]:
    """The installed versions of what a result depends on, without importing any of it."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an analysis was asked of.

    Attributes:
        digest: Of the recording or measurement.
        model: Name of the model.
        revision: Of the model, where it has one.
    """

    digest: str
    model: str
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a table or figure comes from.

    Attributes:
        analysis: Name of the analysis.
        command: The command that makes it again.
        sources: The recordings or measurements it was made from.
        settings: The analysis' settings.
        versions: Versions of the software.
        created: When, as ISO 8601; None, so that a second run gives the same bytes.
    """

    analysis: str
    command: str
    sources: tuple[Source, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=software_versions)
    created: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a file; what is not known is left out."""
        stated = {
            name: getattr(self, name) for name in ("analysis", "command", "sources", "settings", "versions", "created")
        }
        stated["sources"] = [dataclasses.asdict(source) for source in self.sources]
        stated |= {"settings": dict(self.settings), "versions": dict(self.versions)}
        return json.loads(json.dumps({name: value for name, value in stated.items() if value}, default=str))

    def __str__(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False)


# Whole results


def write_result(
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    folder: Path,
    *,
    provenance: Provenance,
    width: Width = "column",
    captions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes all that an analysis returned into one folder, or nothing.

    For each table `NAME.csv` and `NAME.tex`, for each figure `NAME.pdf`, `.svg` and `.png`, and `provenance.json` with
    the captions and the sha256 of every file. The folder appears complete; the same analysis' earlier one is replaced.

    Args:
        tables: By name.
        figures: By name.
        folder: Where to.
        provenance: Of all of them.
        width: Of the figures.
        captions: Of the tables, by name; a table's name where there is none.

    Returns:
        The files, provenance last.

    Raises:
        AnalysisError: A name is no file name, the folder holds something else, or it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    for name in (*tables, *figures):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise AnalysisError(
                f"{name!r} is no name for a file; letters, digits, '_', '-' and '.' are wanted, rename it"
            )
    _refuse_foreign(folder, provenance.analysis)
    with _writing(folder), _replacing(folder) as draft:
        files: list[Path] = []
        for name, table in tables.items():
            caption, label = (captions or {}).get(name, name.replace("_", " ")), f"{provenance.analysis}-{name}"
            files += write_table(table, draft / name, provenance=provenance, caption=caption, label=label)
        for name, figure in figures.items():
            files += write_figure(figure, draft / name, provenance=provenance, width=width)
        words = {name: {"title": f.title, "caption": f.caption, "alt": f.alt} for name, f in figures.items()}
        digests = {file.name: "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        stated = {**provenance.as_dict(), "figures": words, "files": digests}
        files.append(draft / "provenance.json")
        _write(files[-1], (json.dumps(stated, ensure_ascii=False, indent=2) + "\n").encode())
    return [folder / file.name for file in files]


def write_reproduce(folder: Path, commands: Sequence[str]) -> Path:
    """Writes `reproduce.sh`, which runs the commands and stops at the first that fails."""
    path = Path(folder) / "reproduce.sh"
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        script = "\n".join(("#!/usr/bin/env bash", "set -euo pipefail", "", *commands, ""))
        _write(path, script.encode(), mode=0o755)
    return path


def _refuse_foreign(folder: Path, analysis: str) -> None:
    """Only what an earlier run of the same analysis wrote may be replaced."""
    if not folder.exists():
        return
    wanted = f"an empty or new folder, or one of an earlier run of {analysis!r}, is wanted; choose another --out"
    if not folder.is_dir():
        raise AnalysisError(f"{folder} is a file; {wanted}.")
    held = {entry.name for entry in folder.iterdir()}
    if not held:
        return
    try:
        stated = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        earlier, files = stated["analysis"], set(stated["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise AnalysisError(f"{folder} holds {_some(held)} and no provenance of ours; {wanted}.") from None
    if earlier != analysis:
        raise AnalysisError(f"{folder} holds the result of {earlier!r}; {wanted}.")
    if foreign := held - files - set(OURS):
        raise AnalysisError(f"{folder} also holds {_some(foreign)}, which {analysis!r} did not write; {wanted}.")


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise AnalysisError(
            f"{path} cannot be written: {reason}; nothing was left there. Free the disk or choose another --out."
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A draft beside the folder, which takes its place when all is written and goes when something fails."""
    mark = secrets.token_hex(4)
    draft, old = (folder.with_name(f".{folder.name}.{mark}.{what}") for what in ("draft", "old"))
    draft.mkdir(parents=True)
    try:
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """The whole file or none: under another name, on the disk, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


# Figures


def write_figure(figure: Figure, stem: Path, *, provenance: Provenance, width: Width = "column") -> list[Path]:
    """Writes `stem`.pdf, .svg and .png, each with title, caption and provenance inside.

    Args:
        figure: What to draw.
        stem: Path without its ending.
        provenance: Where it comes from.
        width: "column" (3.25 in) or "text" (6.75 in).

    Returns:
        The three files.
    """
    maker = f"moe-workbench {provenance.versions.get('moe-workbench', '')}".strip()
    words = {
        "pdf": {"Title": figure.title, "Subject": figure.caption, "Keywords": str(provenance), "Creator": maker},
        "svg": {"Title": figure.title, "Description": f"{figure.caption} {figure.alt}", "Source": str(provenance)},
        "png": {"Title": figure.title, "Description": figure.caption, "Provenance": str(provenance)},
    }
    page = paper(figure, width=width)
    files = []
    for kind, metadata in words.items():
        drawn = io.BytesIO()
        save(page, drawn, kind=kind, metadata={key: printable(text) for key, text in metadata.items()})
        files.append(stem.with_name(f"{stem.name}.{kind}"))
        _write(files[-1], drawn.getvalue())
    return files


# Tables


def write_table(table: pd.DataFrame, stem: Path, *, provenance: Provenance, caption: str, label: str) -> list[Path]:
    r"""Writes `stem`.csv with every digit, and `stem`.tex rounded for reading.

    The LaTeX table uses booktabs; over 60 rows it is a longtable, which breaks over pages. In the CSV a text that
    a spreadsheet would run as a formula begins with an apostrophe.

    Args:
        table: What to write; its index is not written.
        stem: Path without its ending.
        provenance: Stands in the LaTeX as comments; a CSV has no place for it.
        caption: Of the LaTeX table.
        label: Of the LaTeX table, after "tab:".

    Returns:
        The two files.
    """
    texts = {".csv": _csv(table), ".tex": _latex(table, provenance=provenance, caption=caption, label=label)}
    files = [stem.with_name(stem.name + ending) for ending in texts]
    for file, text in zip(files, texts.values(), strict=True):
        _write(file, text.encode("utf-8", errors="backslashreplace"))
    return files


def _csv(table: pd.DataFrame) -> str:
    safe = table.map(_no_formula).rename(columns=_no_formula)
    return safe.to_csv(index=False, lineterminator="\n")


def _no_formula(cell: object) -> object:
    return "'" + cell if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _latex(table: pd.DataFrame, *, provenance: Provenance, caption: str, label: str) -> str:
    columns = [_cells(table[column]) for column in table.columns]
    head = " & ".join(_escape(str(column)) for column in table.columns) + r" \\"
    body = [" & ".join(row) + r" \\" for row in zip(*columns, strict=True)]
    align = "".join("r" if _is_number(table[column]) else "l" for column in table.columns)
    title = rf"\caption{{{_escape(caption)}}}\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', label)}}}"
    said = [
        f"% {printable(line)}" for line in json.dumps(provenance.as_dict(), ensure_ascii=False, indent=1).split("\n")
    ]
    if len(table) <= LONGEST_TABLE:
        opening = [
            r"\begin{table}",
            r"\centering",
            title,
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head,
            r"\midrule",
        ]
        lines = [*opening, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        needs = r"% needs \usepackage{booktabs}"
    else:
        repeated = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        lines = [rf"\begin{{longtable}}{{{align}}}", title + r" \\", *repeated, *body, r"\end{longtable}"]
        needs = r"% needs \usepackage{booktabs,longtable}"
    return "\n".join((*said, needs, *lines, ""))


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _cells(column: pd.Series) -> list[str]:
    """A column as LaTeX: whole numbers whole, others with as many places as their median needs for three digits."""
    values = column.tolist()
    if not _is_number(column):
        return ["--" if _is_missing(value) else _escape(_word(value)) for value in values]
    sizes = sorted(abs(value) for value in values if not _is_missing(value) and value and math.isfinite(value))
    median = sizes[(len(sizes) - 1) // 2] if sizes else 1.0
    places = min(max(2 - math.floor(math.log10(median)), 0), 6)
    return ["--" if _is_missing(value) else _number(value, places=places) for value in values]


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _number(value: float, *, places: int) -> str:
    if isinstance(value, int):
        text = f"{value:,}"
    elif math.isinf(value):
        text = r"$-\infty$" if value < 0 else r"$\infty$"
    elif value and (abs(value) >= 1e7 or abs(value) < 1e-4):
        mantissa, exponent = f"{value:.2e}".split("e")
        text = rf"${mantissa}\times 10^{{{int(exponent)}}}$"
    elif value and abs(value) < 10.0 ** (1 - places):  # the column's places would leave one digit or none
        text = f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"
    else:
        text = f"{value:,.{places}f}"
    return text if "$" in text else text.replace("-", "$-$")


def _escape(text: str) -> str:
    """Text that LaTeX prints letter by letter."""
    letters = "".join(_LATEX.get(c, c) for c in printable(text))
    return re.sub("-(?=-)", "-{}", letters)  # else two hyphens become a dash


# Beside the ten specials: what text fonts print as something else, what begins an argument after \\, and signs that
# pdfLaTeX does not know as letters.
_LATEX = {
    "\\": r"\textbackslash{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    **{bracket: f"{{{bracket}}}" for bracket in "[]*"},
    **{
        sign: f"${command}$"
        for sign, command in {"≤": r"\le", "≥": r"\ge", "−": "-", "Σ": r"\Sigma", "Δ": r"\Delta"}.items()
    },
    "↵": r"$\hookleftarrow$",
    "⇥": r"$\rightarrow$",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
}
