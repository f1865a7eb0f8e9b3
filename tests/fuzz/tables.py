"""Damage of Parquet tables: columns of another type, width or length, nulls, rows that are gone; drawn by chance."""

from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutate import NUMBERS, TEXTS

_NOT_TO_BE_HAD = (
    pa.ArrowException, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, NotImplementedError,
)  # fmt: skip
"""What pyarrow and NumPy raise where a change cannot be made to such a column."""
_PLAIN = [text for text in TEXTS if "\ud800" not in text]


def written(table: pa.Table, rng: Random) -> bytes:
    """A Parquet file of a table, in one of the ways in which tools write them."""
    sink = pa.BufferOutputStream()
    how = {"compression": rng.choice(("zstd", "snappy", "gzip", "none")), "row_group_size": rng.choice((1, 3, 10_000))}
    pq.write_table(table, sink, **how)
    return sink.getvalue().to_pybytes()


def mutated_table(rng: Random, table: pa.Table) -> pa.Table:
    """The table with one or two changes that a file can hold."""
    for _ in range(rng.choice((1, 1, 2))):
        change = rng.choice(_CHANGES)
        if table.num_columns:
            try:
                table = change(rng, table)
            except _NOT_TO_BE_HAD:
                table = retyped(rng, table)  # this one cannot be had of such columns
    return table


def _at(rng: Random, table: pa.Table) -> int:
    return rng.randrange(table.num_columns)


def retyped(rng: Random, table: pa.Table) -> pa.Table:
    """A column of values of another kind, as many as there are rows."""
    at, n_rows = _at(rng, table), table.num_rows
    made: Any = rng.choice((
        pa.nulls(n_rows), pa.array([rng.choice(_PLAIN)] * n_rows), pa.array([1.5] * n_rows),
        pa.array([b"\xff\xfe"] * n_rows), pa.array([[1, 2, 3]] * n_rows), pa.array([{"a": 1}] * n_rows),
        pa.array([2**63 - 1] * n_rows), pa.array([-1] * n_rows), pa.array([True] * n_rows),
        pa.array([[]] * n_rows, pa.list_(pa.int64())), pa.array([2**52] * n_rows, pa.timestamp("s")),
        pa.array([float("nan")] * n_rows), pa.array(["a"] * n_rows).dictionary_encode(),
        pa.array([rng.choice([n for n in NUMBERS if isinstance(n, float)])] * n_rows),
        pa.array([[[1]]] * n_rows), pa.array([10**7] * n_rows, pa.date32()), pa.array(list(range(n_rows))),
        _invalid_text(n_rows), pa.array([[None, 1]] * n_rows), pa.array([1] * n_rows, pa.decimal128(38, 2)),
    ))  # fmt: skip
    return table.set_column(at, table.column_names[at], made)


def _invalid_text(n_rows: int) -> pa.Array:
    """Text that is not UTF-8: nobody checks it when it is written."""
    raw = pa.array([b"caf\xe9"] * n_rows, pa.binary())
    return pa.StringArray.from_buffers(n_rows, raw.buffers()[1], raw.buffers()[2])


def cast(rng: Random, table: pa.Table) -> pa.Table:
    """The same values in another type."""
    at = _at(rng, table)
    column = table.column(at).combine_chunks()
    types = [
        pa.string(),
        pa.float32(),
        pa.int8(),
        pa.int64(),
        pa.uint64(),
        pa.large_string(),
        pa.binary(),
        pa.float16(),
    ]
    wanted = rng.choice(types)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        wanted = rng.choice(
            (pa.list_(column.type.value_type), pa.list_(pa.float64(), width), pa.large_list(pa.int32()))
        )
    return table.set_column(at, table.column_names[at], column.cast(wanted, safe=False))


def nulled(rng: Random, table: pa.Table) -> pa.Table:
    """Some values of a column are missing."""
    at = _at(rng, table)
    values = table.column(at).to_pylist()
    values = [None if rng.random() < 0.3 else value for value in values]
    return table.set_column(at, table.column_names[at], pa.array(values, table.column(at).type))


def narrowed(rng: Random, table: pa.Table) -> pa.Table:
    """Lists of another length; or of lengths that differ."""
    lists = [at for at, kind in enumerate(table.schema.types) if hasattr(kind, "value_type") and not _is_coded(kind)]
    at = rng.choice(lists or [_at(rng, table)])
    rows = table.column(at).to_pylist()
    kind = rng.choice(("shorter", "longer", "ragged", "empty"))
    made = []
    for row in rows:
        held = list(row or [])
        made.append(
            held[:-1] if kind == "shorter" else held + held[:1] if kind == "longer"
            else held[: rng.randrange(len(held) + 1)] if kind == "ragged" else []
        )  # fmt: skip
    inner = table.schema.types[at].value_type
    width = {len(row) for row in made}
    fixed = len(width) == 1 and rng.random() < 0.5
    return table.set_column(
        at, table.column_names[at], pa.array(made, pa.list_(inner, *width) if fixed else pa.list_(inner))
    )


def _is_coded(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind))


def replaced(rng: Random, table: pa.Table) -> pa.Table:
    """A number of a column, or all, is out of range."""
    at = _at(rng, table)
    column = table.column(at).combine_chunks()
    listed = hasattr(column.type, "value_type") and not _is_coded(column.type)
    flat = np.array((column.flatten() if listed else column).to_numpy(zero_copy_only=False))
    value = rng.choice(NUMBERS)
    where = slice(None) if rng.random() < 0.3 else rng.randrange(max(len(flat), 1))
    with np.errstate(all="ignore"):
        flat[where] = np.array(value).astype(flat.dtype) if flat.dtype.kind in "iuf" else value
    inner = pa.array(flat, column.type.value_type if listed else column.type)
    if not listed:
        return table.set_column(at, table.column_names[at], inner)
    made = type(column).from_arrays(
        inner, column.type.list_size if pa.types.is_fixed_size_list(column.type) else column.offsets
    )
    return table.set_column(at, table.column_names[at], made)


def columns(rng: Random, table: pa.Table) -> pa.Table:
    """Columns that are gone, there twice, named otherwise, or in another order."""
    at, names = _at(rng, table), list(table.column_names)
    kind = rng.choice(("drop", "double", "rename", "order", "add", "swap"))
    if kind == "drop":
        return table.remove_column(at)
    if kind == "double":
        return table.append_column(names[at], table.column(at))
    if kind == "rename":
        names[at] = rng.choice((*_PLAIN, names[at].upper(), f"{names[at]}x", "layer99.ids", "layer-1.ids"))
        return table.rename_columns(names)
    if kind == "order":
        return table.select(rng.sample(names, len(names))) if len(set(names)) == len(names) else table
    if kind == "add":
        return table.append_column(rng.choice(_PLAIN), pa.nulls(table.num_rows))
    other = rng.randrange(len(names))
    names[at], names[other] = names[other], names[at]
    return table.rename_columns(names)


def rows(rng: Random, table: pa.Table) -> pa.Table:
    """Rows that are gone, there again, or in another order."""
    n_rows = table.num_rows
    kind = rng.choice(("none", "head", "tail", "again", "order", "many"))
    if kind == "none":
        return table.slice(0, 0)
    if kind == "head":
        return table.slice(0, rng.randrange(n_rows + 1))
    if kind == "tail":
        return table.slice(rng.randrange(n_rows + 1))
    if kind == "again":
        return pa.concat_tables([table, table])
    if kind == "order":
        return table.take(rng.sample(range(n_rows), n_rows))
    return pa.concat_tables([table] * 50)


_CHANGES = (retyped, retyped, cast, nulled, narrowed, replaced, replaced, columns, columns, rows)
