"""SGLang's dumps of mode `per_token`: forward passes of many requests, put together into documents.

What they hold was read in sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py (facts only): `records`,
one of each forward pass and rank, with `input_ids`, `positions`, `extend_seq_lens` (None in decoding), `forward_mode`
(1 extend, 2 decode, 3 mixed, 4 idle, more for speculation), in some versions `rids` (ids of the requests), and
`topk_ids_of_layer` int32 [decoder layers, tokens, 8] of *physical* experts: -1 in dense layers, in padded rows, and in
the columns beyond the model's k; and `last_physical_to_logical_map` [decoder layers, physical experts], the last one,
should experts have been moved during the recording. One file of each rank. A pass of decoding has one token of every
request, so its rows are not neighbours; `sglang_requests.py` says which rows are of one document.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.recordings.importers.sglang_requests import Segment, Stretch, requests_of
from workbench.recordings.importers.trace import PADDING, Trace, TracedDocument, foreign, shown

PHASES = {1: "prefill", 2: "decode"}
_IDLE = 4


@dataclass(frozen=True, eq=False)
class Record:
    """A forward pass of one rank, its types checked.

    Attributes:
        where: Its place, in words.
        rank: Its rank.
        pass_id: Number of the forward pass.
        mode: Forward mode.
        token_T: Token ids.
        position_T: Positions, each in its request.
        lengths: Tokens of each request, of an extending pass that says them.
        rids: Ids of the requests, where the dump has them.
        ids_LTK: Physical experts of all decoder layers.
    """

    where: str
    rank: int
    pass_id: int
    mode: int
    token_T: np.ndarray
    position_T: np.ndarray
    lengths: np.ndarray | None
    rids: tuple[str, ...] | None
    ids_LTK: np.ndarray


@dataclass(frozen=True, eq=False)
class _Dump:
    """A file: its records, and the logical expert of each physical one."""

    file: Path
    records: list[Record]
    logical_LP: np.ndarray


def per_token(files: tuple[Path, ...], dumps: dict[Path, dict[str, Any]]) -> Trace:
    """The trace of dumps of mode `per_token`.

    Raises:
        TraceError: shapes or types are wrong, or two ranks hold the same tokens.
    """
    read = [_dump(file, dump) for file, dump in dumps.items()]
    columns, top_k, empty = _filled(read)
    _refuse_same_tokens(read)

    def documents() -> Iterator[TracedDocument]:
        for dump in read:
            for stretch in requests_of(_segments(dump), dump.file.stem):
                yield _document(dump, stretch, columns=columns, top_k=top_k)

    with_rids = all(record.rids is not None for dump in read for record in dump.records)
    return Trace(
        format="sglang",
        files=files,
        documents=documents,
        n_columns=len(columns),
        top_k=top_k,
        n_experts=int(max(dump.logical_LP.max() for dump in read)) + 1,
        layers=tuple(map(int, columns)),
        unit="requests" if with_rids else "segments of requests",
        notes={
            "mode": "per_token",
            "empty_passes": empty,
            "physical_experts": read[0].logical_LP.shape[1],
            "ids_mapped": any(bool((d.logical_LP != np.arange(d.logical_LP.shape[1])).any()) for d in read),
            "requests_by": "id" if with_rids else "position",
        },
    )


def _filled(read: list[_Dump]) -> tuple[np.ndarray, int, int]:
    """The decoder layers that hold ids, k, and how many passes hold none."""
    used_LK = np.zeros((1, 1), dtype=bool)
    empty = 0
    for dump in read:
        for record in dump.records:
            used = (record.ids_LTK != PADDING).any(axis=1)
            empty += not used.any()
            if used_LK.shape not in ((1, 1), used.shape):
                raise TraceError(
                    f"{dump.file}, {record.where}: {used.shape[0]} layers of {used.shape[1]} ids, "
                    f"{used_LK.shape[0]} of {used_LK.shape[1]} before; they must agree."
                )
            used_LK = used_LK | used
    file = read[0].file
    top_k = int(used_LK.sum(axis=1).max(initial=0))
    if top_k == 0:
        raise TraceError(f"{file}: every id is {PADDING}; nothing was recorded before it was dumped.")
    columns = np.flatnonzero(used_LK.any(axis=1))
    for column in columns:
        if not used_LK[column, :top_k].all() or used_LK[column, top_k:].any():
            raise TraceError(
                f"{file}: layer {column} fills {int(used_LK[column].sum())} of the {top_k} ids that other layers "
                "fill; the layers must agree in k."
            )
    return columns, top_k, empty


def _refuse_same_tokens(read: list[_Dump]) -> None:
    """Ranks of tensor parallelism record the same tokens each: together they would count every token several times."""
    seen: dict[int, tuple[Path, Record]] = {}
    for dump in read:
        for record in dump.records:
            if not len(record.token_T):
                continue
            first, other = seen.setdefault(record.pass_id, (dump.file, record))
            same = np.array_equal(other.token_T, record.token_T) and np.array_equal(other.position_T, record.position_T)
            if other is not record and same and other.rank != record.rank:
                raise TraceError(
                    f"{first.name} and {dump.file.name} hold the same tokens for forward pass {record.pass_id}: "
                    "their ranks share the tokens (tensor parallelism). Import one of the files."
                )


# One file


def _dump(file: Path, dump: dict[str, Any]) -> _Dump:
    if "last_physical_to_logical_map" not in dump:
        raise TraceError(
            f"{file} has no last_physical_to_logical_map, and its ids are of physical experts: which experts they are "
            "cannot be said. Dump it with a version of SGLang that writes the map."
        )
    logical_LP = array_of(dump["last_physical_to_logical_map"], f"{file}, last_physical_to_logical_map")
    if logical_LP.ndim != 2 or not logical_LP.size or logical_LP.min() < 0:
        raise TraceError(
            f"{file}: last_physical_to_logical_map has the shape {list(logical_LP.shape)}"
            f"{f' and values from {logical_LP.min()}' if logical_LP.size else ''}; [layers, physical experts] from 0 "
            "was expected."
        )
    return _Dump(file, [_record(file, n, r, len(logical_LP)) for n, r in enumerate(dump["records"])], logical_LP)


def _record(file: Path, number: int, record: dict[str, Any], n_layers: int) -> Record:
    where = f"{file}, record {number}"
    missing = [key for key in ("input_ids", "positions", "forward_mode", "forward_pass_id") if key not in record]
    if missing:
        raise TraceError(f"{where} has no {missing[0]}; it holds {', '.join(map(shown, list(record)[:12]))}.")
    numbers = {key: record.get(key, 0) for key in ("forward_mode", "forward_pass_id", "rank")}
    for key, value in numbers.items():
        if type(value) is not int:
            raise TraceError(f"{where}: {key} is {shown(value)} ({type(value).__name__}); an integer was expected.")
    token_T = _integers(record["input_ids"], f"{where}, input_ids")
    position_T = _integers(record["positions"], f"{where}, positions")
    ids_LTK = array_of(record["topk_ids_of_layer"], f"{where}, topk_ids_of_layer")
    if ids_LTK.ndim != 3 or ids_LTK.shape[:2] != (n_layers, len(token_T)):
        raise TraceError(
            f"{where}: topk_ids_of_layer has the shape {list(ids_LTK.shape)}; [{n_layers} layers of the map, "
            f"{len(token_T)} tokens of input_ids, k] was expected."
        )
    if len(position_T) != len(token_T):
        raise TraceError(f"{where}: {len(position_T)} positions for {len(token_T)} tokens; they must agree.")
    lengths = record.get("extend_seq_lens")
    return Record(
        where=f"record {number} (forward pass {numbers['forward_pass_id']}, rank {numbers['rank']})",
        rank=numbers["rank"],
        pass_id=numbers["forward_pass_id"],
        mode=numbers["forward_mode"],
        token_T=token_T,
        position_T=position_T,
        lengths=None if lengths is None else _integers(lengths, f"{where}, extend_seq_lens"),
        rids=_rids(record.get("rids"), where),
        ids_LTK=ids_LTK,
    )


def _rids(value: Any, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not (isinstance(value, list | tuple) and all(isinstance(rid, str) for rid in value)):
        raise TraceError(f"{where}: rids is a {type(value).__name__}; a list of the requests' ids was expected.")
    return tuple(value)


def _segments(dump: _Dump) -> Iterator[list[Segment]]:
    """Of each forward pass the rows of each request, in order."""
    for number, record in enumerate(dump.records):
        where = f"{dump.file.name}, {record.where}"
        n_tokens = len(record.token_T)
        if n_tokens == 0 or record.mode == _IDLE:
            continue
        if record.mode not in PHASES:
            raise TraceError(
                f"{where} has forward_mode {record.mode}: neither extend (1) nor decode (2) but both mixed, or "
                "speculation, so its tokens have no phase. Record without mixed chunks and speculative decoding."
            )
        decode = PHASES[record.mode] == "decode"
        ends = np.arange(1, n_tokens + 1) if decode else _ends(record, where)
        starts = np.concatenate([[0], ends[:-1]])
        if record.rids is not None and len(record.rids) != len(ends):
            raise TraceError(f"{where}: {len(record.rids)} rids for {len(ends)} requests; they must agree.")
        yield [
            Segment(
                record=number,
                rank=record.rank,
                pass_id=record.pass_id,
                rows=range(int(start), int(end)),
                first=int(record.position_T[start]),
                last=int(record.position_T[end - 1]),
                decode=decode,
                rid=record.rids[at] if record.rids is not None else None,
            )
            for at, (start, end) in enumerate(zip(starts, ends, strict=True))
            if end > start
        ]


def _ends(record: Record, where: str) -> np.ndarray:
    """Where each request's rows of an extending pass end: as its lengths say, else where positions do not follow."""
    n_tokens = len(record.token_T)
    if record.lengths is None or not len(record.lengths):
        return np.append(np.flatnonzero(np.diff(record.position_T) != 1) + 1, n_tokens)
    if (record.lengths < 0).any() or record.lengths.sum() > n_tokens:
        raise TraceError(
            f"{where}: extend_seq_lens add up to {record.lengths.sum()}, from {record.lengths.min()}, and there are "
            f"{n_tokens} tokens."
        )
    ends = np.cumsum(record.lengths)
    ends[-1] = n_tokens  # padding of the batch follows, which is masked
    return ends


# One document


def _document(dump: _Dump, stretch: Stretch, *, columns: np.ndarray, top_k: int) -> TracedDocument:
    """The rows of a stretch of segments."""
    ids, tokens, positions = [], [], []
    for segment in stretch.segments:
        record, rows = dump.records[segment.record], slice(segment.rows.start, segment.rows.stop)
        ids.append(record.ids_LTK[columns, rows, :top_k].transpose(1, 0, 2))
        tokens.append(record.token_T[rows])
        positions.append(record.position_T[rows])
    first = stretch.segments[0]
    where = f"{dump.file.name}, {dump.records[first.record].where}, {shown(stretch.what)}"
    return TracedDocument(
        where=where,
        name=stretch.name,
        cluster=stretch.cluster,
        ids_TLK=_logical(np.concatenate(ids), dump.logical_LP[columns], where, columns),
        token_T=np.concatenate(tokens),
        position_T=np.concatenate(positions),
        phase="decode" if first.decode else "prefill",
        first_row=first.rows.start,
        continues=stretch.continues,
    )


def _logical(ids_TLK: np.ndarray, logical_LP: np.ndarray, at: str, columns: np.ndarray) -> np.ndarray:
    """Physical experts as the logical ones that they are copies of."""
    n_physical = logical_LP.shape[1]
    wrong = np.argwhere((ids_TLK < PADDING) | (ids_TLK >= n_physical))
    if len(wrong):
        row, column, rank = wrong[0]
        raise TraceError(
            f"{at}, row {row}, layer {columns[column]}: expert {ids_TLK[row, column, rank]} is not one of the "
            f"{n_physical} physical experts. Were shared experts fused into the routed ones "
            "(--disable-shared-experts-fusion)?"
        )
    mapped_TLK = logical_LP[np.arange(len(logical_LP))[None, :, None], np.maximum(ids_TLK, 0)]
    return np.where(ids_TLK == PADDING, PADDING, mapped_TLK)


# Values


def array_of(value: Any, where: str) -> np.ndarray:
    """A tensor of integers, as an array over the same memory."""
    if not hasattr(value, "numpy"):
        raise TraceError(f"{where} is a {type(value).__name__}; a tensor was expected.")
    if str(value.dtype) in ("torch.bfloat16", "torch.float32", "torch.float16", "torch.bool"):
        raise TraceError(f"{where} is of {str(value.dtype).removeprefix('torch.')}; integers were expected.")
    with foreign(Path(where), "a plain tensor of integers was expected"):
        array = np.asarray(value.detach().numpy())
    if array.dtype.kind not in "iu":
        raise TraceError(f"{where} is of {array.dtype}; integers were expected.")
    return array


def _integers(value: Any, where: str) -> np.ndarray:
    """A list, or a tensor [tokens], of integers."""
    if isinstance(value, list | tuple):
        if not all(type(number) is int and abs(number) < 2**62 for number in value):
            raise TraceError(f"{where} holds something else than integers; a list of integers was expected.")
        return np.array(value, dtype=np.int64)
    array = array_of(value, where).astype(np.int64)
    if array.ndim != 1:
        raise TraceError(f"{where} has the shape {list(array.shape)}; one number for each was expected.")
    return array
