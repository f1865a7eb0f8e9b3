"""What a reader of a foreign trace gives: documents of expert ids, or of counts, as the source has them.

Readers do not check ids: `checks.py` does, for all of them alike. What libraries raise over a damaged file becomes a
sentence in `foreign`. Axes: T tokens, L columns of the source (layers), K chosen per token, E experts.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError, WorkbenchError
from workbench.recordings.corpus import name_fault

PADDING = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedDocument:
    """One document (sequence, segment, or forward pass) of a source.

    Attributes:
        where: Its place in the source, in words, for messages.
        name: Its id, unless the user gives another.
        cluster: What is resampled with it; empty where it stands alone.
        ids_TLK: Chosen experts, `PADDING` where there is none; None where the source has counts alone.
        weights_TLK: Routing weights, in the order of the ids.
        token_T: Token ids.
        predicted_T: The most probable next token of each row.
        position_T: Positions in the document; the row's number where the source says none.
        phase: `prefill` or `decode`, where the source tells.
        counts_LE: Assignments to each expert, where the source has counts alone.
        first_row: Number of the first row in the source, for messages.
        continues: Whether it is the document before it, in its other phase.
    """

    where: str
    name: str
    cluster: str = ""
    ids_TLK: np.ndarray | None = None
    weights_TLK: np.ndarray | None = None
    token_T: np.ndarray | None = None
    predicted_T: np.ndarray | None = None
    position_T: np.ndarray | None = None
    phase: str | None = None
    counts_LE: np.ndarray | None = None
    first_row: int = 0
    continues: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """A source, opened.

    Attributes:
        format: Its format.
        files: Its files, in order.
        documents: Gives the documents, from the first, as often as it is called.
        n_columns: L of every document.
        top_k: K of every document; None where the source does not say.
        n_experts: E; None where the source does not say.
        layers: Decoder layers of the columns; None where the source does not say.
        every_layer: Whether the columns are all decoder layers, unless the user says otherwise.
        counts_only: Whether the source has counts and no tokens.
        ids_ranked: Whether ids stand in the order of their scores.
        unit: What a document is, in words.
        notes: Facts for the manifest.
        name_lists: Gives the names that each document goes by, its own first; None where they are read from the
            documents.
    """

    format: str
    files: tuple[Path, ...]
    documents: Callable[[], Iterator[TracedDocument]]
    n_columns: int
    top_k: int | None = None
    n_experts: int | None = None
    layers: tuple[int, ...] | None = None
    every_layer: bool = False
    counts_only: bool = False
    ids_ranked: bool = False
    unit: str = "documents"
    notes: dict[str, Any] = field(default_factory=dict)
    name_lists: Callable[[], list[tuple[str, ...]]] | None = None

    def names(self) -> list[tuple[str, ...]]:
        """The names that each document goes by; reads the documents where the source has no list."""
        if self.name_lists is not None:
            return self.name_lists()
        return [(document.name,) for document in self.documents() if not document.continues]


def source_files(path: Path, *endings: str) -> tuple[Path, ...]:
    """The file, or the files of a folder that have one of the endings, in natural order: `r2` before `r10`.

    Raises:
        TraceError: there is no such file, it has another ending or a name that is no text, or the folder holds none.
    """
    wanted = " or ".join(endings)
    with foreign(path, "name a file or folder that can be opened"):
        if path.is_dir():
            found = [file for file in path.iterdir() if file.suffix in endings and file.is_file()]
            if not found:
                raise TraceError(f"{path} holds no file that ends in {wanted}; {_next_step(path)}")
            return tuple(_named(file) for file in sorted(found, key=lambda file: natural(file.name)))
        if not path.is_file():
            raise TraceError(f"{path}: no such file; name the trace that the other tool wrote ({wanted}).")
    if path.suffix not in endings:
        raise TraceError(
            f"{path} ends in {path.suffix or 'nothing'!r}; this format is read from {wanted} files."
            f"{_ANSWERS if path.suffix == '.json' else ''}"
        )
    return (_named(path),)


_ANSWERS = (
    " The answer of a server holds the array as base64 text: decode it (base64.b64decode), give it its type and shape "
    "[tokens, layers, k] (numpy.load reads vLLM's; numpy.frombuffer(…).reshape(…) SGLang's and Dynamo's), and "
    "numpy.save it."
)


def _next_step(folder: Path) -> str:
    endings = sorted({file.suffix for file in folder.iterdir() if file.suffix})
    held = f"it holds files that end in {', '.join(map(shown, endings[:5]))}; " if endings else ""
    return f"{held}name the trace, or the folder that holds it.{_ANSWERS if '.json' in endings else ''}"


def _named(file: Path) -> Path:
    if name_fault(file.name):
        raise TraceError(f"the name of {shown(file.name)} is no text in UTF-8; rename the file.")
    return file


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts names by the numbers in them: `r2` before `r10`."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if at % 2 else (-1, piece) for at, piece in enumerate(pieces)], name


@contextmanager
def foreign(file: Path, advice: str) -> Iterator[None]:
    """Around the reading of a file that someone else made: what a library raises over it is the file's fault.

    Libraries raise nearly anything over a damaged file (KeyError, struct.error, OverflowError, UnicodeDecodeError …),
    so no list of exceptions would be whole.

    Raises:
        TraceError: the file cannot be read; says why in the library's first line, and the advice.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        raise TraceError(f"{shown(file, most=300)} cannot be read ({first_line(error)}); {advice}.") from error


def shown(value: object, *, most: int = 100) -> str:
    """A name, key or path of a foreign file as a sentence can hold it: printable, and of bounded length."""
    text = str(value)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of bounded length."""
    text = getattr(error, "strerror", None) or str(error)
    return shown((str(text).strip().splitlines() or [type(error).__name__])[0], most=200)
