"""Makes a recording of a foreign trace: the whole source is checked first, then written, a shard at a time.

All or nothing: a source that is refused leaves no folder. What it lacks has no column, and the manifest's `source` says
so (`lacks`), with the digests of its files and what was masked. `check` says that nothing was proved.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.extras import extra_named
from workbench.recordings.importers import arrays, olmoe, parquet, sglang
from workbench.recordings.importers.labels import join_labels
from workbench.recordings.importers.layout import Layout, layout_of
from workbench.recordings.importers.limits import MOST_ROWS
from workbench.recordings.importers.pieces import Piece, Source, Survey
from workbench.recordings.importers.trace import Trace
from workbench.recordings.manifest import command_text, file_digest, json_digest
from workbench.recordings.recording import Recording
from workbench.recordings.schema import PHASES, SCHEMA, prefix
from workbench.recordings.writer import RecordingWriter
from workbench.version import workbench_version

READERS: dict[str, Callable[[Path], Trace]] = {
    "sglang": sglang.read,
    "routed-experts": arrays.read_routed_experts,
    "olmoe": olmoe.read,
    "numpy": arrays.read_numpy,
    "parquet": parquet.read,
}
NOT_PROVED = "imported: not proved"
_Columns = dict[str, list[np.ndarray]]


def import_trace(
    kind: str,
    path: str | Path,
    out: str | Path,
    *,
    layers: tuple[int, ...] | None = None,
    model: str | None = None,
    n_experts: int | None = None,
    top_k: int | None = None,
    ranks: int = 1,
    ids_ranked: bool = False,
    documents: str | Path | None = None,
    tokenizer: str | None = None,
    phase: str | None = None,
    mask_zero_rows: bool = False,
    shard_tokens: int = 65_536,
    command: Sequence[str] = (),
) -> Recording:
    """Imports a trace.

    Args:
        kind: Format: `sglang`, `routed-experts`, `olmoe`, `numpy` or `parquet`; each reader's module says what it is.
        path: File, or folder of files.
        out: Folder of the recording: new, empty, or this very import unfinished.
        layers: Decoder layers of the source's columns, where the source does not say them.
        model: Name of the model, whose config says layers, experts and k. No weight is read.
        n_experts: E, where neither source nor model says it.
        top_k: K, where neither source nor model says it.
        ranks: Ranks that counted the same tokens (tensor parallelism), for sources of counts.
        ids_ranked: Whether a token's ids stand in the order of their scores; for sources that do not say.
        documents: JSONL file with what is known of each document, joined by id where the ids name the documents
            (`labels.py`).
        tokenizer: Name or folder of the model whose tokenizer gives token ids their text.
        phase: `prefill` or `decode`: the phase to take of a source that tells them apart; of another, what all its
            tokens are.
        mask_zero_rows: Whether rows whose ids are 0 in every layer are left out, as those of tokens that a server did
            not route; else they are counted (`source["zero_rows"]` in the manifest).
        shard_tokens: Tokens of one part on disk, at least.
        command: What is noted in the manifest as what makes the recording again.

    Returns:
        The closed recording.

    Raises:
        TraceError: the source cannot be read or be meant, or an option is missing or contradicts it; nothing is
            written.
        ModelError: `model` or `tokenizer` is not known.
        RecordingError: the folder holds something else, is being written, or the disk is full.
    """
    path, out = Path(path), Path(out)
    if kind not in READERS:
        raise TraceError(f"format {kind!r} is unknown; there are {', '.join(READERS)}.")
    if phase not in (None, *PHASES):
        raise TraceError(f"--phase is {phase!r}; prefill or decode was expected.")
    if not 1 <= shard_tokens <= MOST_ROWS:
        wanted = "1 or more" if shard_tokens < 1 else f"{MOST_ROWS:,} or less"
        raise TraceError(f"--shard-tokens is {shard_tokens}; {wanted} was expected.")
    trace = READERS[kind](path)
    trace = trace if ranks == 1 else sglang.shared_by(trace, ranks)
    topology = _model_topology(model) if model else None
    layout = layout_of(trace, layers=layers, topology=topology, n_experts=n_experts, top_k=top_k)
    labels = join_labels(Path(documents), trace.names(), unit=trace.unit) if documents else None
    source = Source(path.resolve().name or kind, trace, layout, labels, phase, mask_zero_rows)
    survey = Survey.of(source, shard_tokens=shard_tokens)
    read_tokenizer = _load_tokenizer(tokenizer) if tokenizer else None
    manifest = _manifest(source, survey, model=model, ids_ranked=ids_ranked, shard_tokens=shard_tokens, command=command)
    manifest["tokenizer"] = {"class": type(read_tokenizer).__name__ if read_tokenizer else None, "digest": None}
    manifest["identity"] |= {
        "tokenizer": tokenizer,
        "documents_digest": file_digest(Path(documents)) if documents else None,
        "documents_joined_by": labels.joined_by if labels else None,
    }
    writer = RecordingWriter(out, manifest, topology=layout.topology, fields=("routing",), n_shards=len(survey.shards))
    with writer:
        if not writer.closed:
            _write(source, survey, writer)
            from workbench.recordings.vocabulary import vocabulary_table

            writer.close(vocabulary_table(read_tokenizer, survey.vocabulary))
    return Recording.open(out)


def _model_topology(model: str) -> Any:
    with extra_named("--model"):
        from workbench.models.loading import inspect_topology

    topology = inspect_topology(model)
    if not topology.routers:
        raise TraceError(f"--model {model} has no MoE layer, so the trace is not of it; name another.")
    return topology


def _load_tokenizer(name: str) -> Any:
    with extra_named("--tokenizer"):
        from workbench.models.loading import load_tokenizer

    return load_tokenizer(name)


def _manifest(
    source: Source,
    survey: Survey,
    *,
    model: str | None,
    ids_ranked: bool,
    shard_tokens: int,
    command: Sequence[str],
) -> dict[str, Any]:
    trace, layout, labels = source.trace, source.layout, source.labels
    files = [{"name": f.name, "bytes": f.stat().st_size, "sha256": file_digest(f)} for f in trace.files]
    name = model or f"unknown model ({source.name})"
    settings = {"shard_tokens": shard_tokens, "phase": source.phase, "mask_zero_rows": source.mask_zero_rows}
    ranked = trace.ids_ranked or ids_ranked
    return {
        "schema": SCHEMA,
        "identity": {
            "format": trace.format,
            "source_digest": json_digest([file["sha256"] for file in files]),
            "model": name,
            "corpus_digest": survey.corpus_digest,
            "layers": list(layout.layers),
            "experts": sorted({router.n_experts for router in layout.topology.routers}),
            "top_k": layout.top_k,
            "ids_ranked": ranked,
            "ranks": trace.notes.get("ranks", 1),
            "fields": ["routing"],
            **settings,
        },
        "model": {"name": name, "revision": "", "weights": "unknown"},
        "corpus": {
            "name": source.name,
            "digest": survey.corpus_digest,
            "documents": survey.n_documents,
            "domains": sorted(survey.domains),
            "documents_left_out": 0,
            "documents_cut": 0,
            "tokens_cut": 0,
        },
        "fields": ["routing"],
        "phases": [phase for phase in PHASES if phase in survey.phases],
        "ids_ranked": ranked,
        "settings": settings,
        "topology": layout.topology.to_json(),
        "seed": None,
        "check": NOT_PROVED,
        "source": {
            "format": trace.format,
            "name": source.name,
            "files": files,
            "columns_taken": list(layout.columns),
            "unit": trace.unit,
            "lacks": survey.all_lacks,
            "has": [] if "predicted" in survey.all_lacks else ["predicted"],  # columns that the fields do not tell of
            "padding": asdict(survey.padding),
            "documents_empty": survey.n_empty,
            "zero_rows": asdict(survey.zero_rows),
            "positions": _positions(source.trace, survey),
            "documents": {"name": labels.file, "joined_by": labels.joined_by} if labels else None,
            **trace.notes,
        },
        "versions": {
            "workbench": workbench_version(),
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "pyarrow")},
        },
        "environment": {
            "command": command_text(command),
            "machine": platform.machine(),
        },
    }


def _positions(trace: Trace, survey: Survey) -> dict[str, str | None]:
    """Where the positions are from: stated by the trace, or the order of its rows; None, with why, where unknown."""
    if survey.mixed:
        return {"from": None, "because": survey.mixed}
    return {"from": None if trace.counts_only else survey.positions_from, "because": None}


# The second reading


def _write(source: Source, survey: Survey, writer: RecordingWriter) -> None:
    """Hands every shard that is not on disk yet to the writer."""
    pieces = (piece for piece in source.pieces() if piece.content.n_tokens)
    for index, shard in enumerate(survey.shards):
        tokens: _Columns = {}
        documents: _Columns = {}
        for _ in shard:
            piece = next(pieces)
            if index not in writer.parts:
                _append(tokens, _token_columns(piece, source.layout, placed=not survey.mixed))
                _append(documents, _document_columns(piece, source.layout))
        if index not in writer.parts:
            writer.submit(index, tokens, documents)
    writer.wait()


def _token_columns(piece: Piece, layout: Layout, *, placed: bool) -> dict[str, np.ndarray]:
    content = piece.content
    n_rows = content.n_tokens if content.ids_TK else 0
    columns = {"document": np.full(n_rows, piece.document, dtype=np.int32)}
    if piece.phase is not None:
        columns["phase"] = np.full(n_rows, PHASES.index(piece.phase), dtype=np.int8)
    if content.position_T is not None and placed:
        columns["position"] = content.position_T
    for name, ids_T in (("token", content.token_T), ("predicted", content.predicted_T)):
        if ids_T is not None:
            columns[name] = ids_T
    for name, arrays_TK in (("ids", content.ids_TK), ("weights", content.weights_TK or ())):
        for router, array_TK in zip(layout.topology.routers, arrays_TK, strict=False):
            columns[f"{prefix(router, layout.topology)}.{name}"] = array_TK
    return columns


def _document_columns(piece: Piece, layout: Layout) -> dict[str, np.ndarray]:
    content = piece.content
    columns = {
        "document": np.array([piece.document], dtype=np.int32),
        **{name: np.array([getattr(piece, name)], dtype=object) for name in ("id", "domain", "source", "cluster")},
        "tokens": np.array([content.n_tokens], dtype=np.int32),
    }
    if content.token_T is not None:
        columns["text_digest"] = np.array([piece.text_digest], dtype=object)
    if piece.phase is not None:
        columns["phase"] = np.array([PHASES.index(piece.phase)], dtype=np.int8)
    for name, arrays_E in (("counts", content.counts_E), ("weight_sum", content.weight_sum_E or ())):
        for router, array_E in zip(layout.topology.routers, arrays_E, strict=False):
            columns[f"{prefix(router, layout.topology)}.{name}"] = array_E[None]
    return columns


def _append(columns: _Columns, more: dict[str, np.ndarray]) -> None:
    for name, values in more.items():
        columns.setdefault(name, []).append(values)
