"""Whether the files of a recording are what its manifest says: columns on opening, values on reading, all in `verify`.

Axes: E experts, K chosen per token. Nothing is mended here; what is wrong is named with the next step.
"""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import RecordingError
from workbench.recordings.manifest import file_digest
from workbench.recordings.schema import SCHEMA, prefixes

if TYPE_CHECKING:
    from workbench.recordings.recording import Recording

MOST_DOCUMENTS = 1 << 27
AGAIN = "Restore it from a copy, or record again into an empty folder."
_MOST_EXPANDED = 1000  # bytes in memory for one on disk; parts of real recordings take less than 20
_EXPANDED_BYTES = 1 << 30  # below which no part is refused for what it claims


def check_part(path: Path, name: str, expected: dict[str, Any], schema: pa.Schema) -> None:
    """Refuses a part that is not there, or has other bytes, rows or columns than were written; reads no value.

    Raises:
        RecordingError: says which part, and what is wrong with it.
    """
    file = path / name
    if not file.is_file():
        raise RecordingError(f"{path}: {name} is missing, but the manifest lists it. {AGAIN}")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise RecordingError(
            f"{path}: {name} has {size} bytes, {expected['bytes']} were written; it was truncated or edited. {AGAIN}"
        )
    try:
        with pq.ParquetFile(file) as parquet:
            rows, found = parquet.metadata.num_rows, parquet.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordingError(f"{path}: {name} is not a readable Parquet file ({error}). {AGAIN}") from error
    if rows != expected["rows"]:
        raise RecordingError(f"{path}: {name} has {rows} rows, the manifest says {expected['rows']}. {AGAIN}")
    if found.names != schema.names:
        wrong = sorted(set(found.names) ^ set(schema.names))
        raise RecordingError(f"{path}: {name} has other columns than schema {SCHEMA}: {wrong or 'in order'}. {AGAIN}")
    for mine, theirs in zip(found, schema, strict=True):
        if mine.type != theirs.type:
            raise RecordingError(
                f"{path}: {name} has column {mine.name} of type {mine.type}; {theirs.type} was written. {AGAIN}"
            )
    claimed = rows * sum(_width(field.type) for field in schema)
    if claimed > max(_EXPANDED_BYTES, _MOST_EXPANDED * size):
        raise RecordingError(
            f"{path}: {name} claims {rows:,} rows, {claimed:,} bytes in memory, in a file of {size:,} bytes; no "
            f"recording is so regular, so it is not read. {AGAIN}"
        )


def _width(kind: pa.DataType) -> int:
    """Bytes of a value in memory; of a text those of its place alone."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * _width(kind.value_type))
    return 4 if pa.types.is_string(kind) or pa.types.is_dictionary(kind) else int(kind.bit_width // 8)


def read_columns(path: Path, name: str, columns: list[str], *, memory_map: bool = False) -> pa.Table:
    """Columns of one part of a recording, every value there and every text a text.

    Raises:
        RecordingError: the file cannot be read, or lacks a value.
    """
    read = _read(path, name, columns, memory_map=memory_map)
    for column, values in zip(read.column_names, read.columns, strict=True):
        inner = sum(chunk.values.null_count for chunk in values.chunks) if _is_list(values.type) else 0
        if missing := values.null_count or inner:
            raise RecordingError(
                f"{path}: {name} lacks {missing:,} values of {column}; every value was written. {AGAIN}"
            )
    return read


def read_whole(path: Path, name: str, schema: pa.Schema) -> pa.Table:
    """A file beside the parts, whole.

    Args:
        path: Of the recording.
        name: The file.
        schema: Columns that it must have, every value of theirs; others may be there, and lack values.

    Raises:
        RecordingError: the file cannot be read, or has other columns.
    """
    read = _read(path, name, None)
    types = dict(zip(read.schema.names, read.schema.types, strict=True))
    for field in schema:
        known = {field.type} if read.num_rows else {field.type, pa.null()}  # of no row the type was never seen
        if types.get(field.name) not in known or (read.num_rows and read[field.name].null_count):
            raise RecordingError(
                f"{path}: {name} has no whole column {field.name} of type {field.type}; one was written. {AGAIN}"
            )
    return read


def _read(path: Path, name: str, columns: list[str] | None, *, memory_map: bool = False) -> pa.Table:
    try:
        read = pq.read_table(path / name, columns=columns, memory_map=memory_map)
        read.validate(full=any(map(_holds_text, read.schema)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordingError(f"{path}: {name} cannot be read ({error}). Run `workbench verify {path}`.") from error
    return read


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _holds_text(field: pa.Field) -> bool:
    return bool(pa.types.is_string(field.type) or pa.types.is_dictionary(field.type))


def check_ids(path: Path, name: str, column: str, ids_TK: np.ndarray, n_experts: int) -> None:
    """Refuses chosen experts that there are not, or that one token names twice.

    Raises:
        RecordingError: an id is E or more, or stands in a row twice.
    """
    if ids_TK.size and (largest := int(ids_TK.max())) >= n_experts:
        raise RecordingError(
            f"{path}: {name} names expert {largest} in {column}; there are {n_experts}, from 0. {AGAIN}"
        )
    if (twice_T := _twice(ids_TK)).any():
        row = int(twice_T.argmax())
        raise RecordingError(
            f"{path}: {name} names an expert twice in {column}, row {row}: {ids_TK[row].tolist()}. {AGAIN}"
        )


def check_counts(path: Path, name: str, column: str, counts: np.ndarray) -> None:
    """Refuses negative counts.

    Raises:
        RecordingError: one is below 0.
    """
    if counts.size and (smallest := int(counts.min())) < 0:
        raise RecordingError(f"{path}: {name} holds {smallest} in {column}; counts from 0 were expected. {AGAIN}")


def _twice(ids_TK: np.ndarray) -> np.ndarray:
    """Which rows name an expert twice. By pairs of columns, which for a few is ten times as fast as to sort rows."""
    ids_KT = np.ascontiguousarray(ids_TK.T)
    twice_T = np.zeros(len(ids_TK), dtype=bool)
    for first, second in combinations(ids_KT, 2):
        twice_T |= first == second
    return twice_T


def verify_file(path: Path, name: str, expected: dict[str, Any]) -> int:
    """Reads every byte of a file and compares its digest; its bytes.

    Raises:
        RecordingError: it is not what was written.
    """
    file = path / name
    try:
        if not file.is_file():
            raise RecordingError(f"{path}: {name} cannot be read (there is no such file). {AGAIN}")
        if file_digest(file) == expected["sha256"]:
            return file.stat().st_size
    except OSError as error:
        raise RecordingError(f"{path}: {name} cannot be read ({error.strerror or error}). {AGAIN}") from error
    raise RecordingError(f"{path}: {name} is not what was written (its SHA-256 differs). {AGAIN}")


def check_documents(path: Path, documents: pd.DataFrame, *, n_documents: int, phases: tuple[str, ...]) -> None:
    """Refuses documents that the corpus does not have, that stand there twice, or are of a phase that was not recorded.

    Args:
        path: Of the recording.
        documents: `document`, `tokens`, and `phase` where it was recorded.
        n_documents: In the corpus; of an imported trace, whose numbers have gaps, the most that is read.
        phases: That were recorded.

    Raises:
        RecordingError: says which.
    """
    number = documents["document"]
    if not number.between(0, n_documents - 1).all():
        wrong = number[~number.between(0, n_documents - 1)].iloc[0]
        raise RecordingError(f"{path}: documents holds number {wrong}; 0 to {n_documents - 1} were expected. {AGAIN}")
    if documents["tokens"].lt(0).any():
        raise RecordingError(f"{path}: documents holds one of {documents['tokens'].min()} tokens. {AGAIN}")
    if "phase" in documents and not documents["phase"].isin(phases).all():
        wrong = documents["phase"][~documents["phase"].isin(phases)].iloc[0]
        raise RecordingError(
            f"{path}: documents holds phase {str(wrong)[:40]!r}; the manifest says {' and '.join(phases)}. {AGAIN}"
        )
    keys = ["document", *(["phase"] if "phase" in documents else [])]
    if (twice := documents.duplicated(keys)).any():
        raise RecordingError(f"{path}: documents holds number {number[twice].iloc[0]} twice. {AGAIN}")


def check_token_counts(recording: "Recording") -> None:
    """Refuses a part whose tokens are not as many of each document as its documents say.

    Raises:
        RecordingError: names the part and the first document that differs.
    """
    pairs = zip(recording.parts(["document"]), recording.parts(["document", "tokens"], table="documents"), strict=True)
    for index, (tokens, documents) in enumerate(pairs):
        number, count = np.unique(tokens["document"], return_counts=True)
        stated, row = np.unique(documents["document"], return_inverse=True)
        expected = np.bincount(row, weights=documents["tokens"]).astype(np.int64)
        there = expected > 0
        if np.array_equal(number, stated[there]) and np.array_equal(count, expected[there]):
            continue
        found = dict(zip(number.tolist(), count.tolist(), strict=True))
        said = dict(zip(stated.tolist(), expected.tolist(), strict=True))
        wrong = next(each for each in sorted({*found, *said}) if found.get(each, 0) != said.get(each, 0))
        raise RecordingError(
            f"{recording.path}: part {index} has {found.get(wrong, 0)} tokens of document {wrong}; its documents say "
            f"{said.get(wrong, 0)}. {AGAIN}"
        )


def check_values(recording: "Recording") -> None:
    """Refuses counts that are not those of the chosen experts; of a recording of counts alone, that are not K a token.

    Raises:
        RecordingError: names the part, the column and the document.
    """
    for router, at in prefixes(recording.topology).items() if "routing" in recording.fields else ():
        documents = recording.parts(["document", "tokens", f"{at}.counts"], table="documents")
        tokens = recording.parts(["document", f"{at}.ids"]) if "ids" not in recording.lacks else None
        for index, part in enumerate(documents):
            counts_DE = part[f"{at}.counts"].astype(np.int64)
            wrong_D = (counts_DE < 0).any(1) | (counts_DE.sum(1) != part["tokens"].astype(np.int64) * router.top_k)
            if tokens is not None:
                wrong_D |= (_recounted(next(tokens), part, at, router.n_experts) != _together(part, counts_DE)).any(1)
            if wrong_D.any():
                raise RecordingError(
                    f"{recording.path}: part {index} has {at}.counts of document {part['document'][wrong_D][0]} that "
                    f"are not those of its tokens. {AGAIN}"
                )


def _recounted(tokens: dict[str, np.ndarray], documents: dict[str, np.ndarray], at: str, n_experts: int) -> np.ndarray:
    """Counts of the chosen experts of each row's document, both phases together: [D, E]."""
    number, row = np.unique(documents["document"], return_inverse=True)
    counts_NE = np.zeros((len(number), n_experts), dtype=np.int64)
    np.add.at(counts_NE, (np.searchsorted(number, tokens["document"])[:, None], tokens[f"{at}.ids"]), 1)
    return np.asarray(counts_NE[row])


def _together(documents: dict[str, np.ndarray], counts_DE: np.ndarray) -> np.ndarray:
    """Stated counts of each row's document, both phases together: [D, E]."""
    number, row = np.unique(documents["document"], return_inverse=True)
    sums_NE = np.zeros((len(number), counts_DE.shape[1]), dtype=np.int64)
    np.add.at(sums_NE, row, counts_DE)
    return np.asarray(sums_NE[row])
