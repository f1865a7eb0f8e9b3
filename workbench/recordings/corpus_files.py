"""The files that corpora are read from, as rows: JSONL, Parquet, text. What a row must hold is `corpus.py`'s matter.

Sizes are compared with the free memory before anything is read: a few bytes of Parquet can claim any number of rows.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import CorpusError

Row = tuple[str, Any]  # where it stands, in words, and what it holds
KEYS = ("id", "domain", "source", "text", "token_ids", "cluster")
_TEXTS = ("id", "domain", "source", "text", "cluster")
MOST_DOCUMENTS = 1_000_000
_ROW_BYTES = 1_000  # of a document as a Python object, beside its text
_TOKEN_BYTES = 40  # of a token id as a Python object, and its place in a list
_META = ("meta", "metadata")
_DOMAIN_WORDS = frozenset(
    ("domain", "set", "subset", "category", "topic", "subject", "lang", "language", "genre", "dataset", "collection",
     "label", "task")
)  # fmt: skip
_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip


def no_corpus_file(file: Path, bundled: Path) -> str:
    """Why a path is no corpus file, and what to do, as a sentence.

    Args:
        file: What was named.
        bundled: Folder of the bundled corpora.
    """
    if file.is_dir():
        return f"corpus {_shown(file)} is a folder; a corpus is one file ({', '.join(READERS)}). {_of_folder(file)}"
    if not file.is_file():
        known = ", ".join(sorted(found.stem for found in bundled.glob("*.jsonl"))) or "none"
        return f"corpus {_shown(file)!r}: no such file; bundled corpora: {known}. Give a path or such a name."
    steps = {
        ".gz": "Unpack it first: gunzip -k.",
        ".zst": "Unpack it first: zstd -d.",
        ".json": "Where each line is one object, rename it to .jsonl; where it is one list: "
        "jq -c '.[]' OLD > NEW.jsonl.",
        ".csv": "Convert it: python -c \"import pandas; pandas.read_csv('OLD').to_json('NEW.jsonl', orient='records', "
        'lines=True)".',
        ".arrow": "Convert it: datasets.Dataset.from_file('OLD').to_json('NEW.jsonl').",
    }
    step = steps.get(file.suffix, "Convert it to JSONL.")
    return (
        f"corpus {_shown(file)}: the ending is {file.suffix or 'missing'!r}; {', '.join(READERS)} can be read. {step} "
        "JSONL is one object a line with 'text' and 'domain'."
    )


def _of_folder(folder: Path) -> str:
    if any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        return (
            "It is what save_to_disk of datasets wrote; convert it: datasets.load_from_disk('FOLDER')"
            f"{'[SPLIT]' if (folder / 'dataset_dict.json').is_file() else ''}.to_json('corpus.jsonl')."
        )
    files = sorted(file.name for file in folder.iterdir() if file.suffix in READERS)
    if len(files) == 1:
        return f"Name the file in it: {files[0]}."
    return "Write its files into one JSONL: one object a line with 'text' and 'domain'."


def _shown(file: Path) -> str:
    text = str(file).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}"


def unread_domain(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of a row that are not read and, by their names, could hold its domain; with their values."""
    for key, value in row.items():
        nested = value.items() if key in _META and isinstance(value, dict) else ()
        for path, held in ((key, value), *((f"{key}.{inner}", held) for inner, held in nested)):
            if key not in KEYS and isinstance(held, str) and _tells_domain(path.rpartition(".")[2]):
                yield path, held


def _jsonl_rows(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                step = "Each line must be one object with at least 'text'; mend or delete the line."
                if number == 1 and line.strip() in ("[", "{"):
                    step = (
                        "It is one JSON value over many lines; JSONL is one object a line: jq -c '.[]' OLD > NEW.jsonl."
                    )
                raise CorpusError(
                    f"{file}, line {number}: not JSON ({error.msg} at column {error.colno}). {step}"
                ) from error
            except (RecursionError, ValueError) as error:  # brackets without end; a number of thousands of digits
                raise CorpusError(
                    f"{file}, line {number}: not JSON that can be read ({type(error).__name__}: nested too deeply, "
                    "or a number with too many digits). Mend or delete the line."
                ) from error


def _text_rows(file: Path) -> Iterator[Row]:
    blocks: list[list[str]] = [[]]
    for line in _lines(file):
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    for number, block in enumerate(filter(None, blocks), start=1):
        yield f"block {number}", {"text": "\n".join(block)}


def _lines(file: Path) -> list[str]:
    """The lines of a text file, whatever they end in: LF, CRLF or CR."""
    _refuse_size(file, 5 * file.stat().st_size)  # bytes, text and lines, at once
    return _decode(file).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _refuse_size(file: Path, needed_bytes: int) -> None:
    free = psutil.virtual_memory().available
    if needed_bytes > free // 2:
        raise CorpusError(
            f"{file} needs about {needed_bytes:,} bytes of memory as documents, and {free:,} are free, of which half "
            "are used at most. Cut it into several files, or take fewer documents."
        )


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(file) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
            if metadata.num_rows > MOST_DOCUMENTS:
                raise CorpusError(
                    f"{file} has {metadata.num_rows:,} rows; {MOST_DOCUMENTS:,} documents are read at most."
                )
            values = sum(
                group.column(at).num_values
                for group in map(metadata.row_group, range(metadata.num_row_groups))
                for at in range(group.num_columns)
                if group.column(at).path_in_schema.startswith("token_ids")
            )
            _refuse_size(file, values * _TOKEN_BYTES + metadata.num_rows * _ROW_BYTES)
            names = [name for field in schema for name in _wanted(field, file)]
            if {"text", "token_ids"} & set(names):
                yield from _parquet_batches(opened, names, file)
            elif metadata.num_rows:
                yield "row 1", dict.fromkeys(schema.names, "")  # refused there, by the keys that there are
    except CorpusError:
        raise
    except Exception as error:  # Arrow raises nearly anything over a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CorpusError(f"{file}: not a readable Parquet file ({reason}). Write it again.") from error


def _parquet_batches(opened: pq.ParquetFile, names: list[str], file: Path) -> Iterator[Row]:
    number, held_bytes, compared_bytes = 0, 0, 0
    for batch in opened.iter_batches(batch_size=256, columns=names):  # a few bytes can repeat one long text
        held_bytes += batch.nbytes
        if held_bytes >= compared_bytes:
            _refuse_size(file, held_bytes)
            compared_bytes = held_bytes + 2**24
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # bytes that are no UTF-8; a date out of range
            raise CorpusError(
                f"{file}, row {number + _first_unreadable(batch)}: a value cannot be read ({str(error)[:200]}). Text "
                "must be UTF-8; mend or delete the row."
            ) from error
        for row in rows:
            number += 1
            yield f"row {number}", {key: value for key, value in row.items() if value is not None}


def _first_unreadable(batch: pa.RecordBatch) -> int:
    """Number from 1 of the first row that has no Python value."""
    for at in range(batch.num_rows):
        try:
            batch.slice(at, 1).to_pylist()
        except (ValueError, OverflowError):
            return at + 1
    return batch.num_rows


def _wanted(field: pa.Field, file: Path) -> list[str]:
    """What is read of a column: it, where it is a key of documents or could hold a domain; nothing of others.

    Raises:
        CorpusError: a key of documents is of another type.
    """
    if field.name in _TEXTS and not (_is_text(field.type) or pa.types.is_null(field.type)):
        raise CorpusError(f"{file}: the column {field.name!r} is of {field.type}; strings were expected. Convert it.")
    if field.name == "token_ids" and not pa.types.is_null(field.type):
        lists = any(
            is_kind(field.type) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        )
        if not (lists and pa.types.is_integer(field.type.value_type)):
            raise CorpusError(f"{file}: the column 'token_ids' is of {field.type}; lists of integers were expected.")
    if field.name in KEYS or (_is_text(field.type) and _tells_domain(field.name)):
        return [field.name]
    if field.name in _META and pa.types.is_struct(field.type):
        return [
            f"{field.name}.{inner.name}" for inner in field.type if _is_text(inner.type) and _tells_domain(inner.name)
        ]
    return []


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _tells_domain(key: str) -> bool:
    return not _DOMAIN_WORDS.isdisjoint(re.split(r"[^a-z]+", key.lower()))


def _decode(file: Path) -> str:
    raw = file.read_bytes()
    named = next((name for mark, name in _ENCODINGS.items() if raw.startswith(mark)), None)
    for name, zeros, others in (("UTF-16LE", raw[1:8:2], raw[0:8:2]), ("UTF-16BE", raw[0:8:2], raw[1:8:2])):
        if named is None and zeros == b"\x00" * 4 and b"\x00" not in others:
            named = name  # without its mark: every second byte of Latin text is 0
    if named is not None:
        raise CorpusError(f"{file} is in {named}, not UTF-8. Convert it first: iconv -f {named} -t UTF-8 OLD > NEW.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{file}, line {line}: byte {error.start} is not UTF-8. Convert the file from its encoding first; where "
            "that is Latin-1 or Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW."
        ) from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
