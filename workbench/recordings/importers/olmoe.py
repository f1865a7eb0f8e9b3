"""OLMoE's `c4_results.jsonl`: what the routers of a model chose over chunks of C4.

What it holds was read in allenai/OLMoE, scripts/run_moe_analysis.py (facts only): one JSON object a line, with
`input_ids` [T] (2,048 tokens, cut from documents that were strung together), `predicted_token_ids` [T] (the most
probable next token) and `exp_ids` as [token][rank][layer]. Every layer of the models it was written for (OLMoE,
Mixtral) has a router. The ids are the largest router logits in order, largest first: derived from logits, not what the
experts module was given, which for these models' plain top-k differs in ties alone. `predicted_token_ids` become the
column `predicted` where every line has them.

A document is a line. Its borders are not those of texts: neighbouring lines can share one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.recordings.importers.limits import MOST_LINE_BYTES
from workbench.recordings.importers.trace import Trace, TracedDocument, first_line, shown, source_files


def read(path: Path) -> Trace:
    """Opens the file.

    Raises:
        TraceError: a line is not such an object, or its ids are ragged; names the line.
    """
    files = source_files(path, ".jsonl")

    def documents() -> Iterator[TracedDocument]:
        for file in files:
            yield from _lines(file)

    first = next(documents(), None)
    if first is None or first.ids_TLK is None:
        raise TraceError(f"{files[0]} has no lines; an object with input_ids and exp_ids in each was expected.")
    _, n_columns, top_k = first.ids_TLK.shape
    return Trace(
        format="olmoe",
        files=files,
        documents=documents,
        n_columns=n_columns,
        top_k=top_k,
        every_layer=True,
        ids_ranked=True,
        unit="chunks of text",
        notes={"ids": "the largest router logits, derived by the source"},
        name_lists=lambda: [(_name(file, number),) for file in files for number, _ in _numbered(file)],
    )


def _name(file: Path, number: int) -> str:
    return f"{file.stem}-{number}"


def _lines(file: Path) -> Iterator[TracedDocument]:
    for number, line in _numbered(file):
        yield _document(file, number, line)


def _numbered(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1.

    Raises:
        TraceError: a line is longer than any that holds a chunk of text.
    """
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > MOST_LINE_BYTES:
                raise TraceError(
                    f"{file.name}, line {number} has over {MOST_LINE_BYTES:,} bytes; one object a line was expected, "
                    "with the tokens of one chunk."
                )
            if line.strip():
                yield number, line


def _document(file: Path, number: int, line: bytes) -> TracedDocument:
    where = f"{file.name}, line {number}"
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where} is not JSON ({first_line(error)}); the file was cut short or edited.") from error
    if not isinstance(row, dict) or not {"input_ids", "exp_ids"} <= row.keys():
        held = ", ".join(map(shown, list(row)[:8])) if isinstance(row, dict) else type(row).__name__
        raise TraceError(f"{where} holds {held}; an object with input_ids and exp_ids was expected.")
    ids_TKL = _integers(row["exp_ids"], 3, f"{where}, exp_ids", "[token][rank][layer]")
    predicted = row.get("predicted_token_ids")
    return TracedDocument(
        where=where,
        name=_name(file, number),
        ids_TLK=ids_TKL.transpose(0, 2, 1),
        token_T=_integers(row["input_ids"], 1, f"{where}, input_ids", "[token]"),
        predicted_T=None if predicted is None else _integers(predicted, 1, f"{where}, predicted_token_ids", "[token]"),
    )


def _integers(value: Any, n_axes: int, where: str, shape: str) -> np.ndarray:
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{where} is ragged; lists of one length as {shape} were expected.") from error
    if array.ndim != n_axes or array.dtype.kind not in "iu" or _has_bool(value):
        raise TraceError(
            f"{where} has the shape {list(array.shape)} and the type {array.dtype}; integers as {shape} were expected."
        )
    return array


def _has_bool(value: Any) -> bool:
    """Whether a list has true or false among its numbers, which arrays take for 1 and 0."""
    return any(map(_has_bool, value)) if value and isinstance(value[0], list) else bool in set(map(type, value))
