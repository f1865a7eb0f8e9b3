"""SGLang's expert-distribution dumps: `.pt` files that its server writes on `/dump_expert_distribution_record`.

What they hold was read in sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py (facts only):

- Modes `stat` and `stat_approx`: `logical_count` int32 [forward passes, decoder layers, experts], physical experts
  mapped to logical ones already and summed over all ranks, and `rank`. No tokens. A circular buffer leaves passes of
  zeros. Under plain tensor parallelism every rank counts the same tokens, so the counts are as many times too large,
  and nothing in the file says so: `--ranks` does.
- Mode `per_token`: `records`, one of each forward pass and rank, with `input_ids`, `positions`, `extend_seq_lens` (None
  in decoding), `forward_mode` (1 extend, 2 decode, 3 mixed, 4 idle, more for speculation), and `topk_ids_of_layer`
  int32 [decoder layers, tokens, 8] of *physical* experts: -1 in dense layers, in padded rows, and in the columns beyond
  the model's k; and `last_physical_to_logical_map` [decoder layers, physical experts], the last one, should experts
  have been moved during the recording. One file of each rank.
- Mode `per_pass`: physical counts of one rank. Refused.

Request ids are not in the dump. So a document of `per_token` is one prompt's segment of one forward pass (a chunk,
where prompts are prefilled in chunks), and of decoding, whose tokens cannot be told apart by request, one forward pass;
all passes of decoding are one cluster. A document of `stat` is a forward pass, and all passes of a file are one
cluster.
"""

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.importers.trace import PADDING, Trace, TracedDocument, source_files

_PHASES = {1: "prefill", 2: "decode"}
_IDLE = 4


def read(path: Path) -> Trace:
    """Opens a dump, or a folder of dumps.

    Raises:
        TraceError: a file is no such dump, holds more than data, is of mode `per_pass`, or its shapes disagree.
    """
    files = source_files(path, ".pt")
    dumps = {file: _load(file) for file in files}
    modes = {_mode(file, dump) for file, dump in dumps.items()}
    if len(modes) > 1:
        raise TraceError(f"{path} holds dumps of the modes {' and '.join(sorted(modes))}; import them one by one.")
    return _stat(files, dumps) if modes == {"stat"} else _per_token(files, dumps)


def _load(file: Path) -> dict[str, Any]:
    import torch

    try:
        dump = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise TraceError(
            f"{file} holds more than tensors and plain values, or is no file of torch.save; it was not opened, for "
            "opening it could run code. Dump it again, and make sure that it comes from SGLang."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise TraceError(f"{file} cannot be read ({_first_line(error)}); was it cut short? Dump it again.") from error
    if not isinstance(dump, dict):
        raise TraceError(f"{file} holds a {type(dump).__name__}; a dump of SGLang is a dict.")
    return dump


def _mode(file: Path, dump: dict[str, Any]) -> str:
    if "logical_count" in dump:
        return "stat"
    records = dump.get("records")
    if isinstance(records, list) and records:
        if all(isinstance(record, dict) and "topk_ids_of_layer" in record for record in records):
            return "per_token"
        if "global_physical_count" in records[0]:
            raise TraceError(
                f"{file} is of mode per_pass, which keeps one rank's counts of physical experts; dump again with "
                "--expert-distribution-recorder-mode stat or per_token."
            )
    raise TraceError(
        f"{file} is no dump of mode stat (logical_count) or per_token (records with topk_ids_of_layer); it holds "
        f"{', '.join(map(str, dump)) or 'nothing'}{' with no records' if records == [] else ''}."
    )


# Counts


def _stat(files: tuple[Path, ...], dumps: dict[Path, dict[str, Any]]) -> Trace:
    counts = {file: _counts(file, dump) for file, dump in dumps.items()}
    shapes = {count.shape[1:]: file for file, count in counts.items()}
    if len(shapes) > 1:
        told = "; ".join(
            f"{layers} layers of {experts} experts in {file}" for (layers, experts), file in shapes.items()
        )
        raise TraceError(f"the dumps disagree in shape: {told}. Import them one by one.")
    used_L = np.any([count.any(axis=(0, 2)) for count in counts.values()], axis=0)
    if not used_L.any():
        raise TraceError(f"{files[0]}: every count is 0; nothing was recorded before it was dumped.")
    columns = np.flatnonzero(used_L)

    def documents() -> Iterator[TracedDocument]:
        for file, count in counts.items():
            for index in np.flatnonzero(count.any(axis=(1, 2))):
                where, name = f"{file.name}, pass {index}", f"{file.stem}-{index}"
                yield TracedDocument(where=where, name=name, cluster=file.stem, counts_LE=count[index][columns])

    return Trace(
        format="sglang",
        files=files,
        documents=documents,
        n_columns=len(columns),
        n_experts=next(iter(shapes))[1],
        layers=tuple(map(int, columns)),
        counts_only=True,
        unit="forward passes",
        notes={"mode": "stat", "empty_passes": int(sum((~c.any(axis=(1, 2))).sum() for c in counts.values()))},
    )


def shared_by(trace: Trace, ranks: int) -> Trace:
    """The trace with its counts divided: `ranks` ranks counted the same tokens.

    Raises:
        TraceError: the trace has tokens, and no counts that ranks could share; while it is read, a count that is no
            multiple of the ranks.
    """
    if ranks < 1 or not trace.counts_only:
        raise TraceError(
            f"--ranks is {ranks}; it is for counts (SGLang's mode stat), and 1 or more was wanted."
            + ("" if trace.counts_only else f" {trace.files[0]} has tokens, each of them once.")
        )

    def documents() -> Iterator[TracedDocument]:
        for document in trace.documents():
            assert document.counts_LE is not None  # of a trace of counts
            wrong = np.argwhere(document.counts_LE % ranks)
            if len(wrong):
                layer, expert = wrong[0]
                raise TraceError(
                    f"{document.where}, column {layer}: expert {expert} has {document.counts_LE[layer, expert]} "
                    f"assignments, no multiple of {ranks}; --ranks is the number that count the same tokens."
                )
            yield replace(document, counts_LE=document.counts_LE // ranks)

    return replace(trace, documents=documents, notes={**trace.notes, "ranks": ranks})


def _counts(file: Path, dump: dict[str, Any]) -> np.ndarray:
    count = _array(dump["logical_count"], f"{file}, logical_count")
    count = count[None] if count.ndim == 2 else count
    if count.ndim != 3:
        raise TraceError(
            f"{file}: logical_count has the shape {list(count.shape)}; [passes, layers, experts] was wanted."
        )
    return count


# Tokens


def _per_token(files: tuple[Path, ...], dumps: dict[Path, dict[str, Any]]) -> Trace:
    maps = {file: _map(file, dump) for file, dump in dumps.items()}
    used_LK = np.zeros((1, 1), dtype=bool)
    empty = 0
    for file, dump in dumps.items():
        for number, record in enumerate(dump["records"]):
            ids_LTK = _ids(file, number, record, maps[file])
            used = (ids_LTK != PADDING).any(axis=1)
            empty += not used.any()
            if used_LK.shape not in ((1, 1), used.shape):
                raise TraceError(
                    f"{file}, record {number}: {used.shape[0]} layers of {used.shape[1]} ids, "
                    f"{used_LK.shape[0]} of {used_LK.shape[1]} before; they must agree."
                )
            used_LK = used_LK | used
    _refuse_same_tokens(dumps)
    top_k = int(used_LK.sum(axis=1).max())
    if top_k == 0:
        raise TraceError(f"{files[0]}: every id is {PADDING}; nothing was recorded before it was dumped.")
    columns = np.flatnonzero(used_LK.any(axis=1))
    for column in columns:
        if not used_LK[column, :top_k].all() or used_LK[column, top_k:].any():
            raise TraceError(
                f"{files[0]}: layer {column} fills {int(used_LK[column].sum())} of the {top_k} ids that other layers "
                "fill; the layers must agree in k."
            )

    def documents() -> Iterator[TracedDocument]:
        for file, dump in dumps.items():
            for number, record in enumerate(dump["records"]):
                yield from _pass(file, number, record, maps[file], columns=columns, top_k=top_k)

    physical = next(iter(maps.values()))
    return Trace(
        format="sglang",
        files=files,
        documents=documents,
        n_columns=len(columns),
        top_k=top_k,
        n_experts=int(max(found.max() for found in maps.values())) + 1,
        layers=tuple(map(int, columns)),
        unit="segments of forward passes",
        notes={
            "mode": "per_token",
            "empty_passes": empty,
            "physical_experts": physical.shape[1],
            "ids_mapped": any(bool((found != np.arange(found.shape[1])).any()) for found in maps.values()),
        },
    )


def _map(file: Path, dump: dict[str, Any]) -> np.ndarray:
    if "last_physical_to_logical_map" not in dump:
        raise TraceError(
            f"{file} has no last_physical_to_logical_map, and its ids are of physical experts: which experts they are "
            "cannot be said. Dump it with a version of SGLang that writes the map."
        )
    found = _array(dump["last_physical_to_logical_map"], f"{file}, last_physical_to_logical_map")
    if found.ndim != 2 or found.min() < 0:
        raise TraceError(
            f"{file}: last_physical_to_logical_map has the shape {list(found.shape)} and values from {found.min()}; "
            "[layers, physical experts] from 0 was wanted."
        )
    return found


def _ids(file: Path, number: int, record: dict[str, Any], logical_LP: np.ndarray) -> np.ndarray:
    where = f"{file}, record {number}"
    missing = [key for key in ("input_ids", "positions", "forward_mode", "forward_pass_id") if key not in record]
    if missing:
        raise TraceError(f"{where} has no {missing[0]}; it holds {', '.join(map(str, record))}.")
    ids_LTK = _array(record["topk_ids_of_layer"], f"{where}, topk_ids_of_layer")
    n_tokens = len(record["input_ids"])
    if ids_LTK.ndim != 3 or ids_LTK.shape[0] != len(logical_LP) or ids_LTK.shape[1] != n_tokens:
        raise TraceError(
            f"{where}: topk_ids_of_layer has the shape {list(ids_LTK.shape)}; [{len(logical_LP)} layers of the map, "
            f"{n_tokens} tokens of input_ids, k] was wanted."
        )
    if len(record["positions"]) != n_tokens:
        raise TraceError(f"{where}: {len(record['positions'])} positions for {n_tokens} tokens; they must agree.")
    return ids_LTK


def _refuse_same_tokens(dumps: dict[Path, dict[str, Any]]) -> None:
    """Ranks of tensor parallelism record the same tokens each: together they would count every token several times."""
    seen: dict[int, tuple[Path, dict[str, Any]]] = {}
    for file, dump in dumps.items():
        for record in dump["records"]:
            if not record["input_ids"]:
                continue
            first, other = seen.setdefault(record["forward_pass_id"], (file, record))
            same = other["input_ids"] == record["input_ids"] and other["positions"] == record["positions"]
            if other is not record and same and other.get("rank") != record.get("rank"):
                raise TraceError(
                    f"{first.name} and {file.name} hold the same tokens for forward pass {record['forward_pass_id']}: "
                    "their ranks share the tokens (tensor parallelism). Import one of the files."
                )


def _pass(
    file: Path, number: int, record: dict[str, Any], logical_LP: np.ndarray, *, columns: np.ndarray, top_k: int
) -> Iterator[TracedDocument]:
    """The documents of one forward pass."""
    mode, pass_id, rank = record["forward_mode"], record["forward_pass_id"], record.get("rank", 0)
    n_tokens = len(record["input_ids"])
    if n_tokens == 0 or mode == _IDLE:
        return
    at = f"{file.name}, record {number} (forward pass {pass_id}, rank {rank})"
    if mode not in _PHASES:
        raise TraceError(
            f"{at} has forward_mode {mode}: neither extend (1) nor decode (2) but both mixed, or speculation, so its "
            "tokens have no phase. Record without mixed chunks and speculative decoding."
        )
    name, cluster = f"{rank}-{number}", ""
    lengths = [n_tokens]
    if _PHASES[mode] == "prefill":
        lengths = [int(length) for length in record.get("extend_seq_lens") or lengths]
        if sum(lengths) > n_tokens:
            raise TraceError(f"{at}: extend_seq_lens add up to {sum(lengths)}, and there are {n_tokens} tokens.")
        lengths[-1] += n_tokens - sum(lengths)  # padding of the batch, which is masked
    else:
        cluster = f"{file.stem}-decode"
    ids_LTK = _array(record["topk_ids_of_layer"], at)[columns][:, :, :top_k]
    ids_TLK = _logical(ids_LTK.transpose(1, 0, 2), logical_LP[columns], at, columns)
    ends = np.cumsum(lengths)
    for segment, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        rows = slice(int(start), int(end))
        yield TracedDocument(
            where=f"{at}, segment {segment}",
            name=f"{file.stem}-{name}-{segment}",
            cluster=cluster,
            ids_TLK=ids_TLK[rows],
            token_T=np.array(record["input_ids"][rows], dtype=np.int64),
            position_T=np.array(record["positions"][rows], dtype=np.int64),
            phase=_PHASES[mode],
            first_row=int(start),
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


def _array(value: Any, where: str) -> np.ndarray:
    """A tensor of integers, as an array over the same memory."""
    if not hasattr(value, "numpy"):
        raise TraceError(f"{where} is a {type(value).__name__}; a tensor was wanted.")
    array = value.numpy()
    if array.dtype.kind not in "iu":
        raise TraceError(f"{where} is of {array.dtype}; integers were wanted.")
    return array


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
