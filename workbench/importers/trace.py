"""What a reader of a foreign trace gives: documents of expert ids, or of counts, as the source has them.

Readers do not check ids: `checks.py` does, for all of them alike. Axes: T tokens, L columns of the source (layers), K
chosen per token, E experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError

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


def source_files(path: Path, *endings: str) -> tuple[Path, ...]:
    """The file, or the files of a folder that have one of the endings, by name.

    Raises:
        TraceError: there is no such file, it has another ending, or the folder holds none.
    """
    wanted = " or ".join(endings)
    if path.is_dir():
        found = tuple(sorted(file for file in path.iterdir() if file.suffix in endings and file.is_file()))
        if not found:
            raise TraceError(
                f"{path} holds no file that ends in {wanted}; name the trace, or the folder that holds it."
            )
        return found
    if not path.is_file():
        raise TraceError(f"{path}: no such file; name the trace that the other tool wrote ({wanted}).")
    if path.suffix not in endings:
        raise TraceError(f"{path} ends in {path.suffix or 'nothing'!r}; this format is read from {wanted} files.")
    return (path,)
