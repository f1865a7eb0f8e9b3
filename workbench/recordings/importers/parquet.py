"""Expert ids in Parquet: one row a token, with the columns of the `tokens` table of a recording.

Columns: `layerNN.ids` (a list of K integers, or a fixed-size list) for each MoE layer NN, a decoder index; where known
`layerNN.weights` (in the order of the ids), `token`, `position`, `phase` (`prefill` or `decode`), and `document` (a
number or name; a document's rows stand in one piece). Without `document` a file is one document. Other columns are left
out. A folder's files are read in the natural order of their names. Rows and sizes that a file claims are compared with
bounds before it is read. Memory: one document and one row group.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workbench.errors import TraceError
from workbench.recordings.corpus import MOST_CHARACTERS
from workbench.recordings.importers.limits import MOST_LAYERS, MOST_ROWS, refuse_claim, refuse_ratio
from workbench.recordings.importers.trace import Trace, TracedDocument, foreign, shown, source_files

_IDS = re.compile(r"layer([0-9]{1,9})\.ids")
_ADVICE = "a Parquet file of a row a token was expected. Write it again from the tool that made it"
_SCALARS = ("document", "phase", "token", "position")
_Chunk = dict[str, np.ndarray]


def read(path: Path) -> Trace:
    """Opens a file, or the files of a folder.

    Raises:
        TraceError: a file is no Parquet file, has no ids, or other columns than the first; names row and layer of a
            list of another length.
    """
    files = source_files(path, ".parquet")
    columns = [_columns(file) for file in files]
    for file, found in zip(files, columns, strict=True):
        if found != columns[0]:
            wrong = sorted(set(found) ^ set(columns[0]))
            raise TraceError(f"{file} has other columns than {files[0].name}: {', '.join(wrong)}. They must agree.")
    names = [name for name in columns[0] if _IDS.fullmatch(name)]
    if len(names) > MOST_LAYERS:
        raise TraceError(f"{files[0]} has ids of {len(names):,} layers; {MOST_LAYERS:,} at most were expected.")
    layers = {int(name[5:-4]): name for name in names}
    if len(layers) < len(names):
        raise TraceError(f"{files[0]} has two columns of one layer: {', '.join(names)}. Name each layer once.")
    order = [layers[layer] for layer in sorted(layers)]

    def documents() -> Iterator[TracedDocument]:
        phases_of: dict[str, set[str | None]] = {}
        last = None
        for document in _joined(files, columns[0], order):
            phases = phases_of.setdefault(document.name, set())
            if document.phase in phases or (phases and document.name != last):
                raise TraceError(f"{document.where}: the document begins again; sort the rows by document.")
            phases.add(document.phase)
            yield replace(document, continues=document.name == last)
            last = document.name

    first = next(documents(), None)
    if first is None or first.ids_TLK is None:
        raise TraceError(f"{files[0]} has no rows; one for each token was expected.")
    return Trace(
        format="parquet",
        files=files,
        documents=documents,
        n_columns=len(order),
        top_k=first.ids_TLK.shape[2],
        layers=tuple(sorted(layers)),
    )


def _columns(file: Path) -> list[str]:
    with foreign(file, _ADVICE), pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        names = schema.names
        ids = [name for name in names if _IDS.fullmatch(name)]
        if not ids:
            held = f"{', '.join(map(shown, names[:12]))}{' …' if len(names) > 12 else ''}"
            raise TraceError(f"{file} has no column layerNN.ids; it has {held}. Name each by its decoder layer.")
        weights = [name.replace(".ids", ".weights") for name in ids]
        there = [name for name in weights if name in names]
        if there and len(there) < len(ids):
            absent = next(name for name in weights if name not in names)
            raise TraceError(f"{file} has weights of some layers and no {absent}; give those of all, or none.")
        taken = [name for name in names if name in (*ids, *there, *_SCALARS)]
        if len(set(taken)) < len(taken):
            raise TraceError(f"{file} has two columns of one name: {', '.join(taken[:12])}. Name each once.")
        for name in taken:
            _refuse_type(file, name, schema.field(name).type)
        _refuse_size(file, opened.metadata, set(taken))
        if "document" not in taken and opened.metadata.num_rows > MOST_ROWS:
            raise TraceError(
                f"{file} has {opened.metadata.num_rows:,} rows in one document; {MOST_ROWS:,} at most were expected. "
                "Say in a column document which rows belong together."
            )
    return taken


def _refuse_type(file: Path, name: str, kind: pa.DataType) -> None:
    """Refuses a column whose type cannot hold what its name says."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    of_text = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(of_text) or pa.types.is_large_string(of_text) or pa.types.is_string_view(of_text)
    whole = pa.types.is_integer(kind)
    right, wanted = {
        "ids": (lists and pa.types.is_integer(kind.value_type), "lists of integers"),
        "weights": (lists and pa.types.is_floating(kind.value_type), "lists of floating-point numbers"),
        "document": (text or whole, "integers or text"),
        "phase": (text, "text ('prefill' or 'decode')"),
    }.get(name.rpartition(".")[2], (whole, "integers"))
    if not right and not pa.types.is_null(kind):
        raise TraceError(f"{file}: {name} is of {kind}; {wanted} were expected.")


def _refuse_size(file: Path, metadata: pq.FileMetaData, names: set[str]) -> None:
    """Refuses a file that claims what would not fit, or what no trace of its bytes can hold."""
    claimed, largest = 0, 0
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        of_group = 0
        for column in map(group.column, range(group.num_columns)):
            place = column.path_in_schema.split(".")  # layer1.ids.list.element, token
            if names.intersection((place[0], ".".join(place[:2]))):
                of_group += 8 * column.num_values
        claimed, largest = claimed + of_group, max(largest, of_group)
    refuse_ratio(file, claimed, what=f"{metadata.num_rows:,} rows")
    refuse_claim(file, largest, what="a row group", advice="Write it with smaller row groups.")


def _joined(files: tuple[Path, ...], columns: list[str], order: list[str]) -> Iterator[TracedDocument]:
    """Documents, put together over the borders of row groups and files."""
    held: list[_Chunk] = []
    held_key: tuple[str, str] | None = None
    held_from: tuple[Path, int] = (files[0], 0)
    held_rows = 0
    for file in files:
        row = 0
        for n_rows, chunk in _chunks(file, columns):
            for start, end, key in _pieces(chunk, n_rows, file):
                if key != held_key and held:
                    yield _document(held, held_key, held_from, order)
                    held, held_rows = [], 0
                if not held:
                    held_key, held_from = key, (file, row + start)
                held.append({name: values[start:end] for name, values in chunk.items()})
                held_rows += end - start
                if held_rows > MOST_ROWS:
                    raise TraceError(
                        f"{file.name}, document {shown(key[0])} has over {MOST_ROWS:,} rows; say in a column document "
                        "which rows belong together."
                    )
            row += n_rows
    if held:
        yield _document(held, held_key, held_from, order)


def _chunks(file: Path, columns: list[str]) -> Iterator[tuple[int, _Chunk]]:
    """Number of rows, and the columns as arrays, of one batch after another."""
    row = 0
    with foreign(file, _ADVICE), pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=65_536, columns=columns):
            yield batch.num_rows, {name: _values(batch.column(name), name, file, row) for name in columns}
            row += batch.num_rows


def _pieces(chunk: _Chunk, n_rows: int, file: Path) -> Iterator[tuple[int, int, tuple[str, str]]]:
    """Start, end and key (document, phase) of each run of rows."""
    names = chunk.get("document", np.full(n_rows, file.stem, dtype=object)).astype(str)
    phases = chunk.get("phase", np.full(n_rows, "", dtype=object)).astype(str)
    changes = (names[1:] != names[:-1]) | (phases[1:] != phases[:-1])
    starts = [0, *(np.flatnonzero(changes) + 1).tolist()] if n_rows else []
    for start, end in zip(starts, [*starts[1:], n_rows], strict=True):
        yield start, end, (str(names[start]), str(phases[start]))


def _document(
    held: list[_Chunk], key: tuple[str, str] | None, at: tuple[Path, int], order: list[str]
) -> TracedDocument:
    assert key is not None  # set with the first chunk held
    for name in order:
        widths = sorted({chunk[name].shape[1] for chunk in held})
        if len(widths) > 1:
            raise TraceError(f"{at[0].name}, document {shown(key[0])}: {name} holds {widths} values; k must agree.")
    joined = {name: np.concatenate([chunk[name] for chunk in held]) for name in held[0]}
    weights = [name.replace(".ids", ".weights") for name in order]
    shapes = {name: joined[name].shape for name in order}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{shape[1]} in {name}" for name, shape in shapes.items())
        raise TraceError(f"{at[0].name}: the layers disagree in k: {told}.")
    other = [name for name in weights if name in joined and joined[name].shape != joined[order[0]].shape]
    if other:
        raise TraceError(
            f"{at[0].name}: {other[0]} holds {joined[other[0]].shape[1:]} values in a row, and {order[0]} "
            f"{joined[order[0]].shape[1:]}; a weight of each chosen expert was expected."
        )
    if key[1] not in ("", "prefill", "decode"):
        raise TraceError(f"{at[0].name}, row {at[1]}: phase is {shown(key[1])!r}; 'prefill' or 'decode' was expected.")
    return TracedDocument(
        where=f"{at[0].name}, document {shown(key[0])}",
        name=key[0],
        ids_TLK=np.stack([joined[name] for name in order], axis=1),
        weights_TLK=np.stack([joined[name] for name in weights], axis=1) if weights[0] in joined else None,
        token_T=joined.get("token"),
        position_T=joined.get("position"),
        phase=key[1] or None,
        first_row=at[1],
    )


def _values(column: pa.Array, name: str, file: Path, first_row: int) -> np.ndarray:
    if column.null_count:
        row = first_row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise TraceError(f"{file.name}, row {row}: {name} is null; a value was expected (-1 marks padding).")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 0
        if (lengths != width).any():
            at = int((lengths != width).argmax())
            raise TraceError(
                f"{file.name}, row {first_row + at}: {name} holds {lengths[at]} values and the rows before {width}; k "
                "must agree."
            )
    else:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not pa.types.is_integer(column.type):  # text: as an array it takes the room of its longest for each row
            longest = pc.max(pc.utf8_length(column)).as_py() or 0
            if longest > MOST_CHARACTERS:
                raise TraceError(
                    f"{file.name}: {name} has {longest:,} characters; {MOST_CHARACTERS:,} at most were expected."
                )
        return column.to_numpy(zero_copy_only=False)
    flat = column.flatten()
    if flat.null_count:
        row = first_row + int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // width
        raise TraceError(f"{file.name}, row {row}: {name} holds a null; numbers were expected (-1 marks padding).")
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
