"""OLMoE's `c4_results.jsonl`: what the routers of a model chose over chunks of C4.

What it holds was read in allenai/OLMoE, scripts/run_moe_analysis.py (facts only): one JSON object a line, with
`input_ids` [T] (2,048 tokens, cut from documents that were strung together), `predicted_token_ids` [T] (the most
probable next token) and `exp_ids` as [token][rank][layer]. Every layer of the models it was written for (OLMoE,
Mixtral) has a router. The ids are the largest router logits in order, largest first: derived from logits, not what the
experts module was given, which for these models' plain top-k differs in ties alone. `predicted_token_ids` are not kept:
the format of recordings holds them beside log-probabilities.

A document is a line. Its borders are not those of texts: neighbouring lines can share one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.importers.trace import Trace, TracedDocument, source_files


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
        raise TraceError(f"{files[0]} has no lines; an object with input_ids and exp_ids in each was wanted.")
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
    )


def _lines(file: Path) -> Iterator[TracedDocument]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _document(file, number, line)


def _document(file: Path, number: int, line: bytes) -> TracedDocument:
    where = f"{file.name}, line {number}"
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{where} is not JSON ({error}); the file was cut short or edited.") from error
    if not isinstance(row, dict) or not {"input_ids", "exp_ids"} <= row.keys():
        held = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise TraceError(f"{where} holds {held}; an object with input_ids and exp_ids was wanted.")
    ids_TKL = _integers(row["exp_ids"], 3, f"{where}, exp_ids", "[token][rank][layer]")
    return TracedDocument(
        where=where,
        name=f"{file.stem}-{number}",
        ids_TLK=ids_TKL.transpose(0, 2, 1),
        token_T=_integers(row["input_ids"], 1, f"{where}, input_ids", "[token]"),
    )


def _integers(value: Any, n_axes: int, where: str, shape: str) -> np.ndarray:
    try:
        array = np.array(value)
    except ValueError as error:
        raise TraceError(f"{where} is ragged; lists of one length as {shape} were wanted.") from error
    if array.ndim != n_axes or array.dtype.kind not in "iu":
        raise TraceError(
            f"{where} has the shape {list(array.shape)} and the type {array.dtype}; integers as {shape} were wanted."
        )
    return array
