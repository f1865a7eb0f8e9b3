"""Expert ids in Parquet: one row a token, with the columns of the `tokens` table of a recording.

Columns: `layerNN.ids` (a list of K integers, or a fixed-size list) for each MoE layer NN, a decoder index; where known
`layerNN.weights` (in the order of the ids), `token`, `position`, `phase` (`prefill` or `decode`), and `document` (a
number or name; a document's rows stand in one piece). Without `document` a file is one document. Other columns are left
out. A folder's files are read in the order of their names. Memory: one document and one row group.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import TraceError
from workbench.importers.trace import Trace, TracedDocument, source_files

_IDS = re.compile(r"layer(\d+)\.ids")
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
        raise TraceError(f"{files[0]} has no rows; one for each token was wanted.")
    return Trace(
        format="parquet",
        files=files,
        documents=documents,
        n_columns=len(order),
        top_k=first.ids_TLK.shape[2],
        layers=tuple(sorted(layers)),
    )


def _columns(file: Path) -> list[str]:
    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise TraceError(
            f"{file}: not a readable Parquet file ({str(error).splitlines()[0]}). Write it again."
        ) from error
    ids = [name for name in names if _IDS.fullmatch(name)]
    if not ids:
        raise TraceError(
            f"{file} has no column layerNN.ids; it has {', '.join(names)}. Name each by its decoder layer."
        )
    weights = [name.replace(".ids", ".weights") for name in ids]
    there = [name for name in weights if name in names]
    if there and len(there) < len(ids):
        absent = next(name for name in weights if name not in names)
        raise TraceError(f"{file} has weights of some layers and no {absent}; give those of all, or none.")
    return [name for name in names if name in (*ids, *there, *_SCALARS)]


def _joined(files: tuple[Path, ...], columns: list[str], order: list[str]) -> Iterator[TracedDocument]:
    """Documents, put together over the borders of row groups and files."""
    held: list[_Chunk] = []
    held_key: tuple[str, str] | None = None
    held_from: tuple[Path, int] = (files[0], 0)
    for file in files:
        row = 0
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=65_536, columns=columns):
                chunk = {name: _values(batch.column(name), name, file, row) for name in columns}
                for start, end, key in _pieces(chunk, batch.num_rows, file):
                    if key != held_key and held:
                        yield _document(held, held_key, held_from, order)
                        held = []
                    if not held:
                        held_key, held_from = key, (file, row + start)
                    held.append({name: values[start:end] for name, values in chunk.items()})
                row += batch.num_rows
    if held:
        yield _document(held, held_key, held_from, order)


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
    joined = {name: np.concatenate([chunk[name] for chunk in held]) for name in held[0]}
    weights = [name.replace(".ids", ".weights") for name in order]
    shapes = {name: joined[name].shape for name in order}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{shape[1]} in {name}" for name, shape in shapes.items())
        raise TraceError(f"{at[0].name}: the layers disagree in k: {told}.")
    if key[1] not in ("", "prefill", "decode"):
        raise TraceError(f"{at[0].name}, row {at[1]}: phase is {key[1]!r}; 'prefill' or 'decode' was wanted.")
    return TracedDocument(
        where=f"{at[0].name}, document {key[0]}",
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
        raise TraceError(f"{file.name}, row {row}: {name} is null; a value was wanted (-1 marks padding).")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        if pa.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
        return column.to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) and (lengths != lengths[0]).any():
        at = int((lengths != lengths[0]).argmax())
        raise TraceError(
            f"{file.name}, row {first_row + at}: {name} holds {lengths[at]} values and the rows before {lengths[0]}; "
            "k must agree."
        )
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
