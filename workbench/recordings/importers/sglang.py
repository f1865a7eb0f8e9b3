"""SGLang's expert-distribution dumps: `.pt` files that its server writes on `/dump_expert_distribution_record`.

What they hold was read in sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py (facts only):

- Modes `stat` and `stat_approx`: `logical_count` int32 [forward passes, decoder layers, experts], physical experts
  mapped to logical ones already and summed over all ranks, and `rank`. No tokens. A circular buffer leaves passes of
  zeros. Under plain tensor parallelism every rank counts the same tokens, so the counts are as many times too large,
  and nothing in the file says so: `--ranks` does. A document is a forward pass, and all passes of a file are one
  cluster.
- Mode `per_token`: `records` of single tokens, read in `sglang_tokens.py`.
- Mode `per_pass`: physical counts of one rank. Refused.
"""

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.extras import extra_named
from workbench.recordings.importers.sglang_tokens import array_of, per_token
from workbench.recordings.importers.trace import Trace, TracedDocument, first_line, foreign, shown, source_files

_SMALL_BYTES = 2**26
_MOST_RANKS = 2**20
"""More processes than ever served one model."""


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
    return _stat(files, dumps) if modes == {"stat"} else per_token(files, dumps)


def _load(file: Path) -> dict[str, Any]:
    with extra_named("a dump of SGLang"):
        import torch

    with foreign(file, "was it cut short? Dump it again"):
        zipped = zipfile.is_zipfile(file)
    if zipped:
        _refuse_members(file)
    try:
        dump = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise TraceError(
            f"{file} holds more than tensors and plain values, or is no file of torch.save; it was not opened, for "
            "opening it could run code. Dump it again, and make sure that it comes from SGLang."
        ) from error
    except Exception as error:  # over a damaged file torch raises nearly anything
        raise TraceError(f"{file} cannot be read ({first_line(error)}); was it cut short? Dump it again.") from error
    if not isinstance(dump, dict):
        raise TraceError(f"{file} holds a {type(dump).__name__}; a dump of SGLang is a dict.")
    _refuse_views(file, dump)
    return dump


def _refuse_members(file: Path) -> None:
    """torch.save does not compress: a file whose parts are larger than itself was not written by it."""
    with foreign(file, "was it cut short? Dump it again"), zipfile.ZipFile(file) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        if claimed > file.stat().st_size:
            raise TraceError(
                f"{file} has {file.stat().st_size:,} bytes and claims {claimed:,}; torch.save does not compress. Dump "
                "it again, and make sure that it comes from SGLang."
            )


def _refuse_views(file: Path, dump: dict[str, Any]) -> None:
    """A tensor can repeat one number any number of times: what is claimed in all is compared with the file."""
    records = dump.get("records")
    values = [*dump.values()]
    values += [v for r in (records if isinstance(records, list) else ()) if isinstance(r, dict) for v in r.values()]
    claimed = sum(value.numel() * value.element_size() for value in values if hasattr(value, "element_size"))
    if claimed > file.stat().st_size + _SMALL_BYTES:
        raise TraceError(
            f"{file} has {file.stat().st_size:,} bytes and its tensors claim {claimed:,}: they repeat what is there "
            "once. Dump it again, and make sure that it comes from SGLang."
        )


def _mode(file: Path, dump: dict[str, Any]) -> str:
    if "logical_count" in dump:
        return "stat"
    records = dump.get("records")
    if isinstance(records, list) and records:
        if all(isinstance(record, dict) and "topk_ids_of_layer" in record for record in records):
            return "per_token"
        if isinstance(records[0], dict) and "global_physical_count" in records[0]:
            raise TraceError(
                f"{file} is of mode per_pass, which keeps one rank's counts of physical experts; dump again with "
                "--expert-distribution-recorder-mode stat or per_token."
            )
    held = ", ".join(map(shown, list(dump)[:12])) or "nothing"
    logits = " Router logits are not read: save the ids chosen of them (numpy.save) and import numpy."
    raise TraceError(
        f"{file} is no dump of mode stat (logical_count) or per_token (records with topk_ids_of_layer); it holds "
        f"{held}{' with no records' if isinstance(records, list) and not records else ''}."
        f"{logits if 'router_logits' in dump else ''}"
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
    if not 1 <= ranks <= _MOST_RANKS or not trace.counts_only:
        raise TraceError(
            f"--ranks is {ranks}; it is for counts (SGLang's mode stat), and 1 to {_MOST_RANKS:,} was expected."
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
    count = array_of(dump["logical_count"], f"{file}, logical_count")
    count = count[None] if count.ndim == 2 else count
    if count.ndim != 3 or not count.size:
        raise TraceError(
            f"{file}: logical_count has the shape {list(count.shape)}; [passes, layers, experts] was expected."
        )
    return count
