"""Tables and figures as files for a paper, each with its provenance.

Bytes depend on the table, the figure, the provenance and the versions named in it, on nothing else: no clock, no paths.
This module computes nothing and knows no analysis; it is told what to write and where.
"""

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import AnalysisError
from workbench.export import latex
from workbench.export.csv_file import csv_text
from workbench.figures.matplotlib.draw import paper, save
from workbench.figures.spec import Figure
from workbench.figures.theme import Width, printable
from workbench.files.json_file import read_object
from workbench.version import workbench_version

OURS = ("provenance.json", "reproduce.sh", "paper.tex")
_PACKAGES = ("torch", "transformers", "nnsight", "numpy", "scipy", "pandas", "matplotlib")


def software_versions() -> dict[str, str]:
    """The installed versions of what a result depends on, without importing any of it."""
    found = {"moe-workbench": workbench_version()}
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


def is_name(text: str) -> bool:
    """Whether a text can name a file of a bundle."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text))


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
        if not is_name(name):
            raise AnalysisError(
                f"{name!r} is no name for a file; letters, digits, '_', '-' and '.' are expected, rename it"
            )
    _refuse_foreign(folder, provenance.analysis)
    with _writing(folder), _replacing(folder) as draft:
        files: list[Path] = []
        for name, table in tables.items():
            caption, label = (captions or {}).get(name, name.replace("_", " ")), f"{folder.name}-{name}"
            files += write_table(table, draft / name, provenance=provenance, caption=caption, label=label)
        for name, figure in figures.items():
            files += write_figure(figure, draft / name, provenance=provenance, width=width)
        words = {name: {"title": f.title, "caption": f.caption, "alt": f.alt} for name, f in figures.items()}
        digests = {file.name: "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        stated = {**provenance.as_dict(), "figures": words, "files": digests}
        files.append(draft / "provenance.json")
        _write(files[-1], utf8(json.dumps(stated, ensure_ascii=False, indent=2) + "\n"))
    return [folder / file.name for file in files]


def utf8(text: str) -> bytes:
    """A text as bytes; half a letter, which no file can hold, becomes its escape, which JSON reads back."""
    return text.encode("utf-8", errors="backslashreplace")


def put(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Writes one more file of a bundle, whole or not at all.

    Raises:
        AnalysisError: it cannot be written.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content, mode=mode)


def _refuse_foreign(folder: Path, analysis: str) -> None:
    """Only what an earlier run of the same analysis wrote may be replaced."""
    if not folder.exists():
        return
    wanted = f"an empty or new folder, or one of an earlier run of {analysis!r}, is expected; choose another --out"
    if not folder.is_dir():
        raise AnalysisError(f"{folder} is a file; {wanted}.")
    held = {entry.name for entry in folder.iterdir()}
    if not held:
        return
    try:
        stated = read_object(folder / "provenance.json", halves=True)
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
    held = _hold(draft)
    try:
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(held)


def sweep(out: Path) -> None:
    """Removes what killed runs left half-written in a folder of results; a run that is under way holds its own.

    A result whose new version was never put in its place comes back.
    """
    for left in [*out.glob(".*.draft"), *out.glob(".*.old")]:
        try:
            held = _hold(left)
        except OSError:
            continue  # it is being written, or gone
        with suppress(OSError):
            name = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.old", left.name)
            if name and not (out / name[1]).exists():
                left.rename(out / name[1])
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        os.close(held)


def _hold(path: Path) -> int:
    """Opens a draft so that `sweep` leaves it alone until it is closed.

    Raises:
        OSError: somebody holds it.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened


def _write(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """The whole file or none: under another name, on the disk, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with open(draft, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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
    files = []
    for kind, content in _drawn(figure, ("pdf", "svg", "png"), provenance=provenance, width=width):
        files.append(stem.with_name(f"{stem.name}.{kind}"))
        _write(files[-1], content)
    return files


def figure_bytes(figure: Figure, kind: str, *, provenance: Provenance, width: Width = "column") -> bytes:
    """What `write_figure` writes as pdf, svg or png."""
    return next(content for _, content in _drawn(figure, (kind,), provenance=provenance, width=width))


def _drawn(
    figure: Figure, kinds: Sequence[str], *, provenance: Provenance, width: Width
) -> Iterator[tuple[str, bytes]]:
    maker = f"moe-workbench {provenance.versions.get('moe-workbench', '')}".strip()
    words = {
        "pdf": {"Title": figure.title, "Subject": figure.caption, "Keywords": str(provenance), "Creator": maker},
        "svg": {"Title": figure.title, "Description": f"{figure.caption} {figure.alt}", "Source": str(provenance)},
        "png": {"Title": figure.title, "Description": figure.caption, "Provenance": str(provenance)},
    }
    page = paper(figure, width=width)
    for kind in kinds:
        drawn = io.BytesIO()
        save(page, drawn, kind=kind, metadata={key: printable(text) for key, text in words[kind].items()})
        yield kind, drawn.getvalue()


# Tables


def write_table(table: pd.DataFrame, stem: Path, *, provenance: Provenance, caption: str, label: str) -> list[Path]:
    r"""Writes `stem`.csv with every digit, and `stem`.tex rounded for reading.

    The LaTeX table uses booktabs; over 60 rows it is a longtable, which breaks over pages. In the CSV no text can be
    read as a formula or as the end of a row (`workbench.export.csv_file`).

    Args:
        table: What to write; its index is not written.
        stem: Path without its ending.
        provenance: Stands in the LaTeX as comments; a CSV has no place for it.
        caption: Of the LaTeX table.
        label: Of the LaTeX table, after "tab:".

    Returns:
        The two files.
    """
    written = latex.table(table, provenance=provenance.as_dict(), caption=caption, label=label)
    texts = {".csv": csv_text(table), ".tex": written}
    files = [stem.with_name(stem.name + ending) for ending in texts]
    for file, text in zip(files, texts.values(), strict=True):
        _write(file, utf8(text))
    return files
