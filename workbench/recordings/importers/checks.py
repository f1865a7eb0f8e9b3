"""Refuses a trace that cannot be meant: shapes that disagree, ids out of range, an expert named twice. Masks padding.

A row with a padding mark (-1) in any layer has no complete choice and is masked whole: rows of padding, and apart from
them rows that are padding in part, which are counted and the first of them named. Rows whose ids are 0 in every layer
are what a server writes for tokens that it did not route; where k is 1 they could be meant, so they are counted, and
masked where the user says so. Positions stay those of the rows. Axes: T rows, L layers, K chosen, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import TraceError
from workbench.models.topology import Router
from workbench.recordings.importers.layout import Layout
from workbench.recordings.importers.trace import PADDING, TracedDocument
from workbench.recordings.schema import id_dtype


@dataclass(frozen=True)
class Padding:
    """Padding that was masked.

    Attributes:
        marks: Ids that are padding marks, in the columns taken.
        tokens: Rows masked.
        tokens_in_part: Those of them that are padding in some layers or ranks only.
        first_in_part: Where the first of these is, in words.
    """

    marks: int = 0
    tokens: int = 0
    tokens_in_part: int = 0
    first_in_part: str = ""

    def __add__(self, other: "Padding") -> "Padding":
        return Padding(
            self.marks + other.marks,
            self.tokens + other.tokens,
            self.tokens_in_part + other.tokens_in_part,
            self.first_in_part or other.first_in_part,
        )


@dataclass(frozen=True)
class ZeroRows:
    """Rows whose ids are 0 in every layer taken.

    Attributes:
        tokens: How many there are.
        of_tokens: Of how many that are not padding.
        masked: Those that were masked.
        first: Where the first of them is, in words.
    """

    tokens: int = 0
    of_tokens: int = 0
    masked: int = 0
    first: str = ""

    def __add__(self, other: "ZeroRows") -> "ZeroRows":
        return ZeroRows(
            self.tokens + other.tokens,
            self.of_tokens + other.of_tokens,
            self.masked + other.masked,
            self.first or other.first,
        )

    @property
    def of_masked(self) -> str:
        """How many were masked, as the end of a sentence; empty where none were."""
        return f", and {self.masked:,} were 0 in every layer" if self.masked else ""


@dataclass(frozen=True, eq=False)
class Checked:
    """A document that can be recorded: the layers of the layout, padding masked.

    Attributes:
        n_tokens: T.
        ids_TK: Of each layer, in the order of the layout; empty where the source has counts alone.
        weights_TK: The same for weights.
        counts_E: Assignments in each layer.
        weight_sum_E: Sums of weights in each layer.
        token_T: Token ids, or None.
        predicted_T: The most probable next tokens, or None.
        position_T: Positions.
        padding: What was masked.
        zero_rows: Rows that are 0 in every layer.
        mixed: Which position stands twice among others that follow one another, in words: the rows are of several
            sequences, and none is known to be another's neighbour. Empty where that is not so.
    """

    n_tokens: int
    ids_TK: tuple[np.ndarray, ...]
    weights_TK: tuple[np.ndarray, ...] | None
    counts_E: tuple[np.ndarray, ...]
    weight_sum_E: tuple[np.ndarray, ...] | None
    token_T: np.ndarray | None
    predicted_T: np.ndarray | None
    position_T: np.ndarray | None
    padding: Padding
    zero_rows: ZeroRows = ZeroRows()
    mixed: str = ""


def phases_of(document: TracedDocument, prompt_tokens: int | None) -> Iterator[TracedDocument]:
    """The document, cut where its prompt ends if that is known.

    Raises:
        TraceError: the prompt is longer than the document, or the source says another phase.
    """
    if prompt_tokens is None or document.ids_TLK is None:
        yield document
        return
    n_rows = len(document.ids_TLK)
    if prompt_tokens > n_rows or document.phase is not None:
        raise TraceError(
            f"{document.where}: --documents says {prompt_tokens} prompt_tokens; the source has {n_rows} rows"
            + (f", all {document.phase}." if document.phase else ".")
        )
    arrays = ("ids_TLK", "weights_TLK", "token_T", "predicted_T", "position_T")
    for start, end, phase in ((0, prompt_tokens, "prefill"), (prompt_tokens, n_rows, "decode")):
        if end > start:
            there = {name: getattr(document, name) for name in arrays if getattr(document, name) is not None}
            cut = {name: array[start:end] for name, array in there.items()}
            first = document.first_row + start
            yield replace(document, **cut, phase=phase, first_row=first)


def checked(document: TracedDocument, layout: Layout, *, n_columns: int, mask_zero_rows: bool = False) -> Checked:
    """Checks a document and takes the layout's layers from it.

    Args:
        document: As the source has it.
        layout: What its columns are.
        n_columns: L that every document of the source must have.
        mask_zero_rows: Whether rows whose ids are 0 in every layer are masked.

    Raises:
        TraceError: shapes disagree, an id is out of range or named twice, a weight is not finite or beyond float16, a
            token id or position is out of range, or counts cannot be k of each token; names row and layer.
    """
    if document.counts_LE is not None:
        return _checked_counts(document, document.counts_LE, layout, n_columns)
    assert document.ids_TLK is not None  # a document has ids or counts
    ids_TLK = document.ids_TLK
    _refuse_shapes(document, ids_TLK, (n_columns, layout.top_k))
    masked_T, padding = _padding(document, ids_TLK, layout)
    zero_rows, masked_T = _zero_rows(document, ids_TLK, layout, masked_T, mask=mask_zero_rows)
    kept = np.flatnonzero(~masked_T)
    ids, counts, weights, sums = [], [], [], []
    for column, router in zip(layout.columns, layout.topology.routers, strict=True):
        ids_TK = np.asarray(ids_TLK[:, column])[kept]
        _refuse_ids(document, ids_TK, kept, router, zero_rows)
        ids_TK = ids_TK.astype(np.int64)
        ids.append(ids_TK.astype(id_dtype(router.n_experts)))
        counts.append(np.bincount(ids_TK.ravel(), minlength=router.n_experts).astype(np.int32))
        if document.weights_TLK is not None:
            weights_TK = np.asarray(document.weights_TLK[:, column])[kept]
            weights.append(_as_float16(document, weights_TK, kept, router))
            sums.append(np.bincount(ids_TK.ravel(), weights_TK.ravel().astype(np.float64), router.n_experts))
    position_T = _in_range(document, "position", document.position_T, kept)
    position_T = kept.astype(np.int32) if position_T is None else position_T
    return Checked(
        n_tokens=len(kept),
        ids_TK=tuple(ids),
        weights_TK=tuple(weights) if document.weights_TLK is not None else None,
        counts_E=tuple(counts),
        weight_sum_E=tuple(total.astype(np.float32) for total in sums) if document.weights_TLK is not None else None,
        token_T=_in_range(document, "token id", document.token_T, kept),
        predicted_T=_in_range(document, "predicted token id", document.predicted_T, kept),
        position_T=position_T,
        padding=padding,
        zero_rows=zero_rows,
        mixed=_mixed(document, position_T),
    )


def _refuse_shapes(document: TracedDocument, ids_TLK: np.ndarray, wanted: tuple[int, int]) -> None:
    if ids_TLK.ndim != 3 or ids_TLK.shape[1:] != wanted:
        raise TraceError(
            f"{document.where}: ids have the shape {list(ids_TLK.shape)}; [tokens, {wanted[0]} layers, {wanted[1]} "
            "ids] was expected, as in the first document."
        )
    if ids_TLK.dtype.kind not in "iu":
        raise TraceError(f"{document.where}: ids are of {ids_TLK.dtype}; integers were expected.")
    rows, weights_TLK = len(ids_TLK), document.weights_TLK
    for name, array in (
        ("token ids", document.token_T),
        ("predicted token ids", document.predicted_T),
        ("positions", document.position_T),
    ):
        if array is not None and (array.ndim != 1 or len(array) != rows or array.dtype.kind not in "iu"):
            raise TraceError(
                f"{document.where}: {array.size} {name} ({array.dtype}) for {rows} rows of ids; as many integers as "
                "tokens were expected."
            )
    if weights_TLK is not None and weights_TLK.shape != ids_TLK.shape:
        raise TraceError(
            f"{document.where}: weights have the shape {list(weights_TLK.shape)} and ids {list(ids_TLK.shape)}; they "
            "must agree."
        )


def _padding(document: TracedDocument, ids_TLK: np.ndarray, layout: Layout) -> tuple[np.ndarray, Padding]:
    """Which rows are masked, and how many marks there are."""
    marks_T = np.zeros(len(ids_TLK), dtype=np.int64)
    for column in layout.columns:  # layer by layer: a source may be larger than the memory
        marks_T += (np.asarray(ids_TLK[:, column]) == PADDING).sum(axis=1)
    masked_T = marks_T > 0
    part_T = masked_T & (marks_T < len(layout.columns) * layout.top_k)
    first = ""
    if part_T.any():
        row = int(part_T.argmax())
        at = next(c for c in range(len(layout.columns)) if (ids_TLK[row, layout.columns[c]] == PADDING).any())
        found = ids_TLK[row, layout.columns[at]].tolist()
        first = f"{document.where}, row {document.first_row + row}, layer {layout.layers[at]}: ids {found}"
    return masked_T, Padding(int(marks_T.sum()), int(masked_T.sum()), int(part_T.sum()), first)


def _zero_rows(
    document: TracedDocument, ids_TLK: np.ndarray, layout: Layout, padded_T: np.ndarray, *, mask: bool
) -> tuple[ZeroRows, np.ndarray]:
    """Rows that are 0 in every layer, and which rows are masked with them."""
    zero_T = ~padded_T
    for column in layout.columns:
        zero_T &= (np.asarray(ids_TLK[:, column]) == 0).all(axis=1)
    if not zero_T.any():
        return ZeroRows(of_tokens=int((~padded_T).sum())), padded_T
    first = f"{document.where}, row {document.first_row + int(zero_T.argmax())}"
    found = int(zero_T.sum())
    return ZeroRows(found, int((~padded_T).sum()), found if mask else 0, first), padded_T | zero_T if mask else padded_T


def _refuse_ids(
    document: TracedDocument, ids_TK: np.ndarray, kept: np.ndarray, router: Router, zero_rows: ZeroRows
) -> None:
    wrong = np.argwhere((ids_TK < 0) | (ids_TK >= router.n_experts))
    sorted_TK = np.sort(ids_TK, axis=1)
    twice_T = (sorted_TK[:, 1:] == sorted_TK[:, :-1]).any(axis=1)
    if not len(wrong) and not twice_T.any():
        return
    row = int(wrong[0, 0]) if len(wrong) else int(twice_T.argmax())
    at = _at(document, kept[row], router)
    if ids_TK.dtype.kind == "u" and ids_TK[row].max() == np.iinfo(ids_TK.dtype).max:
        raise TraceError(
            f"{at}: the ids {ids_TK[row].tolist()} hold {np.iinfo(ids_TK.dtype).max}, which is what -1 becomes in "
            f"{ids_TK.dtype}. Save signed integers (int16, int32), so that padding is -1 and can be told apart."
        )
    if len(wrong):
        raise TraceError(
            f"{at}: expert {ids_TK[row, wrong[0, 1]]} is not one of the {router.n_experts} "
            f"experts (0 to {router.n_experts - 1}). Check --experts, and that shared experts have no id."
        )
    if zero_rows.tokens > zero_rows.masked and not ids_TK[row].any():
        raise TraceError(
            f"{at}: the ids {ids_TK[row].tolist()} name an expert twice, and {zero_rows.tokens:,} rows are 0 in every "
            "layer, as a server writes them for tokens that it did not route (a prefix from its cache, a prompt). "
            "Leave them out with --mask-zero-rows."
        )
    raise TraceError(
        f"{at}: the ids {ids_TK[row].tolist()} name an expert twice. Is it a layer "
        "with a router? A dense one is left at 0 by some tools: leave it out with --layers or --model."
    )


def _as_float16(document: TracedDocument, weights_TK: np.ndarray, kept: np.ndarray, router: Router) -> np.ndarray:
    """Weights as they are stored, which must not lose them: none beyond float16, no token's all below it."""
    if weights_TK.dtype.kind != "f":
        raise TraceError(f"{document.where}: weights are of {weights_TK.dtype}; floating-point numbers were expected.")
    wrong_T = ~np.isfinite(weights_TK).all(axis=1)
    if wrong_T.any():
        row = int(wrong_T.argmax())
        raise TraceError(f"{_at(document, kept[row], router)}: the weights {weights_TK[row].tolist()} are not finite.")
    size_T = np.abs(weights_TK).max(axis=1, initial=0)
    with np.errstate(over="ignore", under="ignore"):
        half_TK = weights_TK.astype(np.float16)
    lost_T = ~np.isfinite(half_TK).all(axis=1) | ((size_T > 0) & (half_TK == 0).all(axis=1))
    if lost_T.any():
        row = int(np.where(lost_T, size_T, -1).argmax())
        raise TraceError(
            f"{_at(document, kept[row], router)}: the largest weight is {size_T[row]:g}, and weights are stored as "
            "float16, from 6e-08 to 65,504. Divide each token's weights by their sum, as a router's are, or leave the "
            "weights out."
        )
    return half_TK


def _in_range(document: TracedDocument, name: str, array_T: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    """Token ids or positions of the kept rows, as 32 bits hold them."""
    if array_T is None:
        return None
    array_T = np.asarray(array_T)[kept]
    wrong_T = (array_T < 0) | (array_T > np.iinfo(np.int32).max)
    if wrong_T.any():
        row = int(wrong_T.argmax())
        raise TraceError(
            f"{document.where}, row {document.first_row + kept[row]}: {name} {array_T[row]} is out of range; "
            f"0 to {np.iinfo(np.int32).max} was expected."
        )
    return array_T.astype(np.int32)


def _mixed(document: TracedDocument, position_T: np.ndarray) -> str:
    """Says where rows of one document are of several sequences: positions that come twice beside ones that follow."""
    steps = np.diff(np.sort(position_T))
    if not ((steps == 0).any() and (steps == 1).any()):
        return ""
    position = int(np.sort(position_T)[:-1][steps == 0][0])
    return f"{document.where}: {int((position_T == position).sum())} rows have position {position}"


def _checked_counts(document: TracedDocument, counts_LE: np.ndarray, layout: Layout, n_columns: int) -> Checked:
    n_experts = layout.topology.routers[0].n_experts
    if counts_LE.shape != (n_columns, n_experts):
        raise TraceError(
            f"{document.where}: counts have the shape {list(counts_LE.shape)}; [{n_columns} layers, {n_experts} "
            "experts] was expected."
        )
    taken_LE = counts_LE[list(layout.columns)].astype(np.int64)
    if taken_LE.max() > np.iinfo(np.int32).max:
        raise TraceError(
            f"{document.where}: {taken_LE.max():,} assignments of an expert; {np.iinfo(np.int32).max:,} at most were "
            "expected. Dump it in shorter times."
        )
    total_L, n_tokens = taken_LE.sum(axis=1), int(taken_LE[0].sum()) // layout.top_k
    for total, count_E, layer in zip(total_L, taken_LE, layout.layers, strict=True):
        if count_E.min() < 0 or count_E.max() > n_tokens or total != n_tokens * layout.top_k:
            raise TraceError(
                f"{document.where}, layer {layer}: {total} assignments, from {count_E.min()} to {count_E.max()} of an "
                f"expert; {layout.top_k} for each of {n_tokens} tokens were expected, as in layer {layout.layers[0]}. "
                "Check --top-k; counts of mode stat_approx can be too rough to be imported."
            )
    if n_tokens > np.iinfo(np.int32).max:
        raise TraceError(f"{document.where}: {n_tokens:,} tokens; {np.iinfo(np.int32).max:,} at most were expected.")
    return Checked(
        n_tokens=n_tokens,
        ids_TK=(),
        weights_TK=None,
        counts_E=tuple(taken_LE.astype(np.int32)),
        weight_sum_E=None,
        token_T=None,
        predicted_T=None,
        position_T=None,
        padding=Padding(),
    )


def _at(document: TracedDocument, row: int, router: Router) -> str:
    return f"{document.where}, row {document.first_row + row}, layer {router.layer}"
