"""The proof that reaches the file: a sample of the rows that were written is read back and compared with the model.

In some parts of every recording, a witness looks at a few tokens of the first, the middle and the last batch while they
are run. When the part is on disk, their rows are read back from it, all columns, and compared with what the plain twin
makes of what the witness saw. In recordings of 100 batches or more, one whole batch is also run again. A part that does
not hold what was captured is removed, and the run ends with the place. What was compared stands in the manifest.

Axes: N sampled tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.capture.batching import Plan, Row
from workbench.capture.contributions import ExpertTracer
from workbench.capture.generate import Generation, stop_ids
from workbench.capture.hooks import Tracer
from workbench.capture.proof.expected_rows import Expected, ExpertParts, document_columns, token_columns
from workbench.capture.proof.plain_attention import MOST_WHOLE as MOST_ATTENDED
from workbench.capture.proof.router import other_implementation
from workbench.capture.proof.witness import Seen, Witness
from workbench.errors import CaptureError
from workbench.models.loading import Model
from workbench.models.topology import Router
from workbench.recordings.schema import PHASES

MOST_PARTS = 8
AGAIN_FROM = 100  # batches of a recording in which one is run again
_MOST_WHOLE = 2048  # tokens of a document that is looked at whole
_OTHERWISE = {"cpu": 0.001}  # share of tokens that may come out otherwise in a second run
_OTHERWISE_ELSEWHERE = 0.02  # a GPU adds up in no fixed order, and in 16 bits that moves more

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class _Rows:
    """Some tokens of one document and phase, and what must stand for them: in `documents` where they are all of it."""

    document: int
    decoded: bool
    position_N: np.ndarray
    tokens: dict[str, Expected]
    documents: dict[str, Expected] | None


@dataclass
class PartProof:
    """What a part must hold; called with its files when they are on disk."""

    proof: "WrittenProof"
    index: int
    rows: list[_Rows] = field(default_factory=list)
    batches: int = 0
    again: tuple[int, list[tuple[Columns, Columns]]] | None = None

    def add(self, seen: Sequence[Seen]) -> None:
        """Takes in what a witness saw."""
        self.rows += [self.proof.expected(one) for one in seen]

    def __call__(self, tokens: Path, documents: Path) -> dict[str, Any]:
        """Compares the files.

        Returns:
            For the manifest: rows, documents, columns and the largest differences.

        Raises:
            CaptureError: a row holds something else than was captured; names part, column and token.
        """
        return self.proof.compare(self, pq.read_table(tokens), pq.read_table(documents))


class WrittenProof:
    """The proof over one recording.

    Args:
        model: The model.
        tracer: Of the model.
        plan: Its batches.
        fields: Recorded fields.
        generation: How documents are continued; None for not.
    """

    def __init__(
        self, model: Model, tracer: Tracer, plan: Plan, *, fields: tuple[str, ...], generation: Generation | None
    ) -> None:
        self._model, self._tracer, self._plan, self._fields = model, tracer, plan, fields
        self._generation = generation
        self._stop = stop_ids(model.module) if generation is not None else set()
        self._modules = dict(model.module.named_modules())
        self.again = batch_to_repeat(plan)
        self.parts = sampled_parts(plan)

    def of_part(self, index: int) -> PartProof | None:
        """The proof of one part; None where it is not sampled."""
        return PartProof(self, index) if index in self.parts else None

    def witness(self, part: PartProof | None, number: int) -> Witness | None:
        """Who looks at a batch of a part; None where nobody does."""
        if part is None:
            return None
        first, last = self._plan.shards[part.index]
        if number not in (first, (first + last - 1) // 2, last - 1):
            return None
        part.batches += 1
        rows = self._plan.batches[number].rows
        whole = number == last - 1 or self._generation is not None
        most = MOST_ATTENDED if "attention" in self._fields else _MOST_WHOLE
        whole &= rows[-1].n_tokens <= most
        return Witness(self._model, self._fields, _positions(rows, whole=whole), stop=self._stop)

    def expected(self, seen: Seen) -> _Rows:
        """What must stand in a recording for the tokens seen."""
        asked = (seen, self._model.topology, self._fields, self._parts)
        documents = document_columns(*asked) if seen.whole else None
        return _Rows(seen.document, seen.decoded, seen.position_N, token_columns(*asked), documents)

    def compare(self, part: PartProof, tokens: pa.Table, documents: pa.Table) -> dict[str, Any]:
        """Holds what is on disk against what was seen, and run again."""
        compared = _Compared(self._model.name, part.index)
        if self._generation is None:
            compared.order(tokens, self._rows_of(part.index))
        place = _Places(tokens)
        for rows in part.rows:
            compared.rows("tokens", tokens, place.of(rows), rows.tokens, rows)
            if rows.documents is not None:
                compared.rows("documents", documents, _document_row(documents, rows), rows.documents, rows)
        facts = compared.facts(tokens, documents) | {"batches": part.batches}
        if part.again is not None:
            facts["again"] = self._repeated(part, tokens)
        return facts

    def _rows_of(self, index: int) -> list[Row]:
        first, last = self._plan.shards[index]
        return [row for batch in self._plan.batches[first:last] for row in batch.rows]

    def _parts(self, router: Router) -> ExpertParts:
        assert isinstance(self._tracer, ExpertTracer)
        routed, shared = self._tracer.factors(router)
        experts = self._modules[router.experts_path]
        _, rebuild = other_implementation(experts, router)
        exact = self._model.dtype == "float32"
        return ExpertParts(experts, rebuild, routed, shared, 5e-3 if exact else 5e-2)

    def _repeated(self, part: PartProof, tokens: pa.Table) -> dict[str, int]:
        """Holds a batch that was run again against its rows."""
        assert part.again is not None
        number, pieces = part.again
        wanted = {name: np.concatenate([piece[0][name] for piece in pieces]) for name in pieces[0][0]}
        on_disk = tokens["document"].to_numpy()
        rows = np.flatnonzero(np.isin(on_disk, np.unique(wanted["document"])))
        otherwise = np.zeros(len(rows), bool)
        if len(rows) != len(wanted["document"]):
            raise _wrong(self._model.name, part.index, f"{len(rows)} rows of batch {number}, not as many as its tokens")
        for name, values in wanted.items():
            if name == "phase":
                continue
            found = _values(tokens, name, rows)
            exact = values.dtype.kind in "iu"
            near = np.isclose(
                found, values.astype(np.float64), rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3, equal_nan=True
            )
            otherwise |= ~near.reshape(len(rows), -1).all(1)
        n_otherwise = int(otherwise.sum())
        if n_otherwise > len(rows) * _OTHERWISE.get(self._model.device.type, _OTHERWISE_ELSEWHERE):
            raise _wrong(
                self._model.name,
                part.index,
                f"other values than a second run of batch {number} gives, for {n_otherwise} of {len(rows)} tokens",
            )
        return {"batch": number, "rows": len(rows), "different": n_otherwise}


def sampled_parts(plan: Plan) -> tuple[int, ...]:
    """Parts whose rows are read back: the first, the last, those evenly between, and that of the repeated batch."""
    n_parts = len(plan.shards)
    chosen = {int(i) for i in np.linspace(0, n_parts - 1, min(n_parts, MOST_PARTS)).round()}
    again = batch_to_repeat(plan)
    if again is not None:
        chosen |= {i for i, (first, last) in enumerate(plan.shards) if first <= again < last}
    return tuple(sorted(chosen))


def batch_to_repeat(plan: Plan) -> int | None:
    """The batch that is run again; None in a recording of few batches."""
    return len(plan.batches) // 2 if len(plan.batches) >= AGAIN_FROM else None


def summary(parts: Mapping[str, Mapping[str, Any]], sampled: Sequence[int]) -> dict[str, Any]:
    """What was compared in all, for the manifest: the same however often the run was interrupted.

    Args:
        parts: What was found of each part, by its number.
        sampled: Parts that were to be compared.
    """
    largest: dict[str, float] = {}
    for facts in parts.values():
        for name, value in facts["largest_difference"].items():
            largest[name] = max(largest.get(name, 0.0), value)
    whole = list(parts.values())
    again = [facts["again"] for facts in whole if "again" in facts]
    return {
        "parts": [index for index in sampled if str(index) in parts],
        "parts_not_compared": [index for index in sampled if str(index) not in parts],
        "batches": sum(facts["batches"] for facts in whole),
        "rows": sum(facts["rows"] for facts in whole),
        "documents": sum(facts["documents"] for facts in whole),
        "columns": max((facts["columns"] for facts in whole), default=0),
        "columns_not_compared": sorted({name for facts in whole for name in facts["columns_not_compared"]}),
        "largest_difference": dict(sorted(largest.items())),
        "run_again": again[0] if again else None,
    }


def _positions(rows: tuple[Row, ...], *, whole: bool) -> dict[int, Sequence[int] | None]:
    """The tokens of a batch to look at: ends and middle of its first, its middle and its last document."""
    chosen: dict[int, Sequence[int] | None] = {}
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        n = row.n_tokens
        chosen[row.document] = sorted({at for at in (0, 1, n // 3, n // 2, n - 2, n - 1) if 0 <= at < n})
    if whole:
        chosen[rows[-1].document] = None
    return chosen


class _Places:
    """Where the tokens of a document stand in a table."""

    def __init__(self, tokens: pa.Table) -> None:
        self._document, self._position = tokens["document"].to_numpy(), tokens["position"].to_numpy()
        self._decoded = _decoded(tokens)

    def of(self, seen: _Rows) -> np.ndarray:
        """The row of each token seen; −1 where there is not exactly one."""
        rows = np.flatnonzero((self._document == seen.document) & (self._decoded == seen.decoded))
        at = [rows[self._position[rows] == position] for position in seen.position_N]
        return np.array([found[0] if len(found) == 1 else -1 for found in at], dtype=np.int64)


def _document_row(documents: pa.Table, seen: _Rows) -> np.ndarray:
    here = _decoded(documents) == seen.decoded
    rows = np.flatnonzero((documents["document"].to_numpy() == seen.document) & here)
    return rows if len(rows) == 1 else np.array([-1])


def _decoded(table: pa.Table) -> np.ndarray:
    """Which rows are of what the model wrote."""
    phases = table["phase"].combine_chunks()
    of_index = np.array([name == PHASES[1] for name in phases.dictionary.to_pylist()] or [False])
    return of_index[np.asarray(phases.indices)]


class _Compared:
    """Counts what was compared of a part, and refuses what differs."""

    def __init__(self, name: str, index: int) -> None:
        self._name, self._index = name, index
        self._n = {"tokens": 0, "documents": 0}
        self._columns: set[str] = {"document", "phase"}
        self._largest: dict[str, float] = {}

    def order(self, tokens: pa.Table, rows: list[Row]) -> None:
        """The rows stand in the order of the plan."""
        document, position = tokens["document"].to_numpy(), tokens["position"].to_numpy()
        lengths = [row.n_tokens for row in rows]
        wanted = np.repeat([row.document for row in rows], lengths), np.concatenate([np.arange(n) for n in lengths])
        if not (np.array_equal(document, wanted[0]) and np.array_equal(position, wanted[1])):
            raise _wrong(self._name, self._index, "other documents or positions than its batches, or in another order")

    def rows(
        self, table: str, on_disk: pa.Table, at_N: np.ndarray, expected: Mapping[str, Expected], seen: _Rows
    ) -> None:
        """Some rows of a table."""
        if (at_N < 0).any():
            raise _wrong(
                self._name, self._index, f"no row, or several, of a token of document {seen.document} in {table}"
            )
        self._n[table] += len(at_N)
        for name, wanted in expected.items():
            self._columns.add(name if table == "tokens" else f"documents {name}")
            found, values = _values(on_disk, name, at_N), wanted.values.astype(np.float64)
            self._same(name, found.reshape(values.shape), values, wanted, seen)

    def _same(self, name: str, found: np.ndarray, values: np.ndarray, wanted: Expected, seen: _Rows) -> None:
        ignored = np.isnan(values) if name == "predicted" else np.zeros(values.shape, bool)  # equally probable ones
        with np.errstate(invalid="ignore"):
            off = np.abs(found - values)
            allowed = wanted.relative * np.where(np.isfinite(values), np.abs(values), 0) + wanted.absolute
        near = (found == values) | (np.isnan(found) & np.isnan(values)) | ignored | (off <= allowed)
        if not near.all():
            row = int(np.flatnonzero(~near.reshape(len(values), -1).all(1))[0])
            where = f"position {int(seen.position_N[row])} of " if len(values) == len(seen.position_N) else ""
            raise _wrong(
                self._name,
                self._index,
                f"in column {name}, {where}document {seen.document}: {_short(found[row])} on disk, "
                f"{_short(values[row])} as the model gave it",
            )
        known = np.isfinite(off) & ~ignored
        last = _column(name)
        largest = float(off[known].max()) if known.any() else 0.0
        self._largest[last] = max(self._largest.get(last, 0.0), float(f"{largest:.1e}"))

    def facts(self, tokens: pa.Table, documents: pa.Table) -> dict[str, Any]:
        """What was compared."""
        there = {*tokens.column_names, *(f"documents {name}" for name in documents.column_names)}
        left = {_column(name) for name in there - self._columns - _OF_THE_CORPUS}
        return {
            "rows": self._n["tokens"],
            "documents": self._n["documents"],
            "columns": len(there & self._columns),
            "columns_not_compared": sorted(left),
            "largest_difference": self._largest,
        }


# Known before the model runs, and copied as they are.
_OF_THE_CORPUS = {
    "position",
    *(f"documents {name}" for name in ("document", "id", "domain", "source", "cluster", "text_digest", "tokens_cut")),
    "documents phase",
}


def _values(table: pa.Table, name: str, rows: np.ndarray) -> np.ndarray:
    """Some rows of a column, float64, a list's values behind each other."""
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, column.type.list_size)[rows].astype(np.float64)
    return column.to_numpy(zero_copy_only=False)[rows].astype(np.float64)


def _column(name: str) -> str:
    """A column's name without its layer: `entropy`, `attention.entropy`, `documents attention.sink`."""
    table, _, rest = name.rpartition(" ")
    layer, _, column = rest.partition(".")
    return f"{table} {column}".strip() if layer.startswith("layer") and column else name


def _short(values: np.ndarray) -> str:
    flat = np.atleast_1d(values).reshape(-1)
    return ", ".join(f"{value:.6g}" for value in flat[:4]) + (" …" if len(flat) > 4 else "")


def _wrong(name: str, index: int, found: str) -> CaptureError:
    return CaptureError(
        f"{name}: part {index} holds {found}. What was written is not what was captured, so the part was removed. Run "
        "the same command again; if it fails again, please report it: it is a fault of the workbench, or of this "
        "machine's memory or disk."
    )
