"""Records what a model does over a corpus: the loop that joins plan, capture, reduction and writer.

Nothing is written before the input has been checked and the capture proved. A run that was killed or cancelled goes on
where it stopped when it is started again with the same arguments, and ends with the same tables.
"""

import hashlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from workbench.capture.attention_columns import AttentionColumns
from workbench.capture.experts import ExpertTracer, experts_columns
from workbench.capture.generate import Generation, Written, generate, stop_ids
from workbench.capture.heads import attention_facts
from workbench.capture.hooks import Trace, Tracer
from workbench.capture.plan import Batch, Plan, Row, make_plan
from workbench.capture.reduce import BatchTokens, logprob_columns, routing_columns
from workbench.capture.vocabulary import vocabulary_table
from workbench.capture.watching import watching
from workbench.corpus import Corpus
from workbench.errors import Cancelled, CorpusError, RecordingError
from workbench.models.check import CheckReport, check_capture
from workbench.models.expert_weights import check_parent, expert_weights
from workbench.models.loading import Model, config_digest, weights_digest
from workbench.recording import FIELDS, SCHEMA, Recording, json_digest, part_name
from workbench.recording_writer import RecordingWriter

DEFAULT_FIELDS = ("routing", "logprob")


@dataclass(frozen=True)
class Progress:
    """How far a recording is.

    Attributes:
        done_tokens: Tokens on disk or on their way there, those of an earlier run included.
        total_tokens: Tokens of the plan.
        tokens_per_s: Rate of this run.
        left_s: Time left at this rate.
    """

    done_tokens: int
    total_tokens: int
    tokens_per_s: float
    left_s: float


def record(
    model: Model,
    corpus: Corpus | str | Path,
    out: str | Path,
    *,
    fields: tuple[str, ...] = DEFAULT_FIELDS,
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
    shard_tokens: int = 65_536,
    generation: Generation | None = None,
    parent: Model | None = None,
    check: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Recording:
    """Records a model over a corpus.

    Args:
        model: From `load`.
        corpus: A corpus, a corpus file, or the name of a bundled one.
        out: Folder of the recording: new, empty, or this very recording unfinished.
        fields: Of `routing`, `logprob`, `logits` (every router logit), `experts` (what each chosen expert adds),
            `weights` (facts of the experts' parameters), `attention` (statistics of each head and document),
            `attention-tokens` (some of each token), `attention-weights` (those that need the weights).
        max_tokens: Cap over the corpus, kept by whole documents, taken from the domains in turn.
        batch_tokens: Padded positions of one batch, at most; also the longest a document can be.
        shard_tokens: Tokens of one part on disk, at least.
        generation: How each document is continued by the model, and that recorded too, as phase `decode`; None for the
            given text alone. `max_tokens` and progress count the given text.
        parent: The dense model that the MoE was made from: the field `weights` then tells what is alike.
        check: Prove the capture first; False is noted in the manifest.
        on_progress: Called after every batch.
        should_cancel: Asked before every batch; True ends the run with what is on disk whole.

    Returns:
        The closed recording.

    Raises:
        CorpusError: the corpus cannot be read, or is text and the model has no tokenizer.
        CaptureError: the capture failed its proof, or gave NaN.
        RecordingError: the folder holds something else, is being written, or the disk is full.
        Cancelled: `should_cancel` said so.
    """
    fields = _checked_fields(fields, generation)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.read(corpus)
    out = Path(out)
    encoded = _encode(corpus, model)
    plan = make_plan(
        [len(ids) for ids in encoded],
        [document.domain for document in corpus.documents],
        batch_tokens=batch_tokens,
        shard_tokens=shard_tokens,
        context=_room(model, generation),
        max_tokens=max_tokens,
        one_length=generation is not None,
    )
    if parent is not None:
        _check_parent(model, parent, fields)
    settings: dict[str, Any] = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "shard_tokens": shard_tokens}
    if generation is not None:
        settings["generation"] = asdict(generation)
    if parent is not None:
        settings["parent"] = {
            "name": parent.name,
            "revision": parent.revision,
            "weights": weights_digest(parent.module),
        }
    manifest = _manifest(model, corpus, plan, fields=fields, settings=settings)
    _refuse_before_proof(out)
    manifest["check"] = check_capture(model).to_json() if check else "skipped (--no-check)"
    if "attention" in fields:
        manifest["attention"] = attention_facts(model)
    tracer = ExpertTracer(model) if "experts" in fields else Tracer(model.module, model.topology)
    if isinstance(tracer, ExpertTracer):
        manifest["experts_check"] = tracer.report.to_json()
    with RecordingWriter(out, manifest, topology=model.topology, fields=fields, n_shards=len(plan.shards)) as writer:
        if not writer.closed:
            run = _Run(
                model,
                corpus,
                encoded=encoded,
                plan=plan,
                fields=fields,
                writer=writer,
                generation=generation,
                tracer=tracer,
            )
            run.all_shards(on_progress, should_cancel)
            facts = expert_weights(model, parent=parent) if "weights" in fields else None
            writer.close(vocabulary_table(model.tokenizer, run.tokens_seen()), expert_weights=facts)
    return Recording.open(out)


def _checked_fields(fields: tuple[str, ...], generation: Generation | None) -> tuple[str, ...]:
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        raise RecordingError(f"fields: {unknown[0]!r} is unknown; known are {', '.join(FIELDS)}.")
    if not fields:
        raise RecordingError(f"fields: none were given; choose of {', '.join(FIELDS)}.")
    if "logits" in fields and "routing" not in fields:
        raise RecordingError("fields: 'logits' are the router's and go with 'routing'; give routing,logits.")
    if "experts" in fields and "routing" not in fields:
        raise RecordingError("fields: 'experts' are those of the routing and go with it; give routing,experts.")
    further = [field for field in fields if field.startswith("attention-")]
    if further and "attention" not in fields:
        raise RecordingError(f"fields: {further[0]!r} goes with 'attention'; give attention,{further[0]}.")
    if "attention-weights" in fields and generation is not None:
        raise RecordingError(
            "fields: 'attention-weights' is of given text; leave it out where the model writes (--generate)."
        )
    return tuple(field for field in FIELDS if field in fields)


def _check_parent(model: Model, parent: Model, fields: tuple[str, ...]) -> None:
    if "weights" not in fields:
        raise RecordingError("parent: it is compared in the field 'weights', which is not asked for; add it to fields.")
    check_parent(model, parent)


def _room(model: Model, generation: Generation | None) -> int | None:
    """The longest a given text may be, so that what is written behind it has room in the context."""
    context = model.topology.context
    if context is None or generation is None:
        return context
    if generation.new_tokens >= context:
        raise RecordingError(
            f"{generation.new_tokens} new tokens do not fit into the context of {model.name}, {context}; ask for fewer."
        )
    return context - generation.new_tokens


def _refuse_before_proof(out: Path) -> None:
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RecordingError(f"{out} cannot be made: {parent} is a file. Name another --out.")


def _encode(corpus: Corpus, model: Model) -> list[list[int]]:
    encoded: list[list[int]] = []
    for number, document in enumerate(corpus.documents):
        if document.token_ids is not None:
            ids = list(document.token_ids)
        elif model.tokenizer is None:
            raise CorpusError(
                f"{corpus.name}: document {document.id!r} is text, but {model.name} has no tokenizer. "
                "Give 'token_ids' instead of 'text', or put the tokenizer's files beside the weights."
            )
        else:
            ids = model.tokenizer(document.text, verbose=False)["input_ids"]
        if not ids:
            raise CorpusError(f"{corpus.name}: document {document.id!r} (number {number}) has no tokens; take it out.")
        if not 0 <= min(ids) <= max(ids) < model.topology.vocabulary:
            raise CorpusError(
                f"{corpus.name}: document {document.id!r} has token ids from {min(ids)} to {max(ids)}; "
                f"{model.name} knows 0 to {model.topology.vocabulary - 1}. Was it tokenized for another model?"
            )
        encoded.append(ids)
    return encoded


def _manifest(
    model: Model,
    corpus: Corpus,
    plan: Plan,
    *,
    fields: tuple[str, ...],
    settings: dict[str, Any],
) -> dict[str, Any]:
    config = model.module.config
    described = {
        "name": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "config_digest": config_digest(model.module),
        "weights_digest": weights_digest(model.module),
        "dtype": model.dtype,
        "device": model.device.type,
        "attention_implementation": config._attn_implementation,
        "experts_implementation": getattr(config, "_experts_implementation", None),
        "output_attentions": bool(getattr(config, "output_attentions", False)),
    }
    tokenizer = _tokenizer_digest(model)
    same = ("config_digest", "weights_digest", "dtype", "device", "attention_implementation", "experts_implementation")
    return {
        "schema": SCHEMA,
        "identity": {
            **{key: described[key] for key in same},
            "model": f"{model.name}@{model.revision}" if model.revision else model.name,
            "tokenizer_digest": tokenizer,
            "corpus_digest": corpus.digest,
            "fields": list(fields),
            **settings,
        },
        "model": described,
        "tokenizer": {"class": type(model.tokenizer).__name__ if model.tokenizer else None, "digest": tokenizer},
        "corpus": {
            "name": corpus.name,
            "digest": corpus.digest,
            "documents": len(corpus.documents),
            "domains": list(corpus.domains),
            "documents_left_out": plan.n_documents_left_out,
            "documents_cut": plan.n_cut_documents,
            "tokens_cut": sum(row.n_cut for batch in plan.batches for row in batch.rows),
        },
        "fields": list(fields),
        "phases": ["prefill", "decode"] if "generation" in settings else ["prefill"],
        "settings": settings,
        "padding_share": round(plan.padding_share, 4),
        "halved_batches": [],
        "topology": model.topology.to_json(),
        # Nothing is drawn where the text is given, or the most probable token is taken.
        "seed": settings.get("generation", {}).get("seed")
        if settings.get("generation", {}).get("temperature")
        else None,
        "versions": {
            "workbench": version("moe-workbench"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "nnsight", "numpy", "pyarrow")},
        },
        "environment": {
            "command": " ".join(sys.argv),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _tokenizer_digest(model: Model) -> str | None:
    if model.tokenizer is None:
        return None
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    return json_digest(model.tokenizer.get_vocab())


class _Run:
    """One run over the shards that are not on disk yet."""

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        *,
        encoded: list[list[int]],
        plan: Plan,
        fields: tuple[str, ...],
        writer: RecordingWriter,
        generation: Generation | None,
        tracer: Tracer,
    ) -> None:
        self._model, self._corpus, self._encoded, self._plan = model, corpus, encoded, plan
        self._fields, self._writer, self._generation = fields, writer, generation
        self._stop = stop_ids(model.module) if generation is not None else set()
        self._tracer = tracer
        self._attention = (
            AttentionColumns(model.topology, writer.manifest["attention"]["layers"], fields)
            if "attention" in fields
            else None
        )

    def all_shards(
        self, on_progress: Callable[[Progress], None] | None, should_cancel: Callable[[], bool] | None
    ) -> None:
        """Runs and hands over every missing shard."""
        if self._attention is None:
            self._all_shards(on_progress, should_cancel)
            return
        self._tracer.prepare(torch.zeros(1, 2, dtype=torch.long, device=self._model.device))
        with watching(self._model.module, self._attention):
            self._all_shards(on_progress, should_cancel)

    def _all_shards(
        self, on_progress: Callable[[Progress], None] | None, should_cancel: Callable[[], bool] | None
    ) -> None:
        started = time.perf_counter()
        done = run = 0
        for index, (first, last) in enumerate(self._plan.shards):
            batches = range(first, last)
            if index in self._writer.parts:
                done += sum(self._plan.batches[i].n_tokens for i in batches)
                continue
            tokens: dict[str, list[np.ndarray]] = {}
            documents: dict[str, list[np.ndarray]] = {}
            for number in batches:
                if should_cancel is not None and should_cancel():
                    raise Cancelled(
                        f"cancelled after {done:,} of {self._plan.n_tokens:,} tokens; the parts in {self._writer.path} "
                        "are whole. Run the same command to go on."
                    )
                for of_tokens, of_documents in self._run_batch(number):
                    _append(tokens, of_tokens)
                    _append(documents, of_documents)
                size = self._plan.batches[number].n_tokens
                done, run = done + size, run + size
                if on_progress is not None:
                    rate = run / (time.perf_counter() - started)
                    on_progress(Progress(done, self._plan.n_tokens, rate, (self._plan.n_tokens - done) / rate))
            self._writer.submit(index, tokens, documents)

    def tokens_seen(self) -> np.ndarray:
        """The token ids that occur in the recording, as input or as prediction, read back from the parts."""
        self._writer.wait()
        columns = ["token", "predicted"] if "logprob" in self._fields else ["token"]
        seen: set[int] = set()
        for index in range(len(self._plan.shards)):
            table = pq.read_table(self._writer.path / part_name("tokens", index), columns=columns)
            for name in columns:
                seen.update(np.unique(table[name].to_numpy()).tolist())
        return np.array(sorted(seen), dtype=np.int32)

    def _run_batch(self, number: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The columns of one batch; of its halves where it does not fit into the GPU's memory, and that is logged."""
        batch = self._plan.batches[number]
        halved: list[int] = self._writer.manifest["halved_batches"]
        pieces = _halves(batch, halved.count(number))
        while True:
            try:
                yield from [self._run_rows(piece.rows) for piece in pieces]
                return
            except torch.cuda.OutOfMemoryError as error:
                if all(len(piece.rows) == 1 for piece in pieces):
                    limit = self._writer.manifest["settings"]["batch_tokens"]
                    raise RecordingError(
                        f"out of GPU memory with a single document of {batch.width} tokens in the batch. Give a "
                        f"smaller --batch-tokens (documents are cut to it), now {limit}."
                    ) from error
                halved.append(number)
                self._writer.note(halved_batches=halved)
                torch.cuda.empty_cache()
                pieces = _halves(batch, halved.count(number))

    def _run_rows(self, rows: tuple[Row, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        batch = self._batch_tokens(rows)
        traced: dict[str, Any] = {
            "routers": None if "routing" in self._fields else (),
            "logits_to_keep": 0 if "logprob" in self._fields else 1,
        }
        if self._attention is not None:
            self._attention.begin(batch)
        if self._generation is None:
            trace = self._tracer.run(batch.ids_BS, batch.mask_BS.long() if batch.padded else None, **traced)
            return self._columns(rows, batch, trace)
        numbers = [row.document for row in rows]
        written = generate(self._tracer, batch.ids_BS, numbers, self._generation, stop=self._stop, **traced)
        given, new = self._columns(rows, batch, written.prefill), self._columns(rows, written.batch, written)
        return tuple(  # type: ignore[return-value]
            {name: np.concatenate([of_given[name], of_new[name]]) for name in of_given}
            for of_given, of_new in zip(given, new, strict=True)
        )

    def _columns(
        self, rows: tuple[Row, ...], batch: BatchTokens, run: Trace | Written
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The columns of given text, or of what was written behind it."""
        decoded = isinstance(run, Written)
        lengths = batch.lengths_B.cpu().numpy()
        starts = [row.n_tokens if decoded else 0 for row in rows]
        trace = run.decode if isinstance(run, Written) else run
        tokens: dict[str, Any] = {
            "document": np.repeat(np.array([row.document for row in rows], np.int32), lengths),
            "position": np.concatenate(
                [np.arange(start, start + n, dtype=np.int32) for start, n in zip(starts, lengths, strict=True)]
            ),
            "token": batch.ids_BS[batch.mask_BS].to(torch.int32).cpu().numpy(),
            "phase": np.full(lengths.sum(), decoded, np.int8),
        }
        documents = self._document_columns(rows) | {
            "tokens": lengths.astype(np.int32),
            "phase": np.full(len(rows), decoded, np.int8),
        }
        if "routing" in self._fields:
            of_tokens, of_documents = routing_columns(
                trace, batch, self._model.topology, with_logits="logits" in self._fields
            )
            tokens |= of_tokens
            documents |= of_documents
        if "experts" in self._fields:
            of_tokens, of_documents = experts_columns(trace, batch, self._model.topology)
            tokens |= of_tokens
            documents |= of_documents
        if self._attention is not None:
            of_tokens, of_documents = self._attention.written(batch.lengths_B) if decoded else self._attention.given()
            tokens |= of_tokens
            documents |= of_documents
        if "logprob" in self._fields:
            of_tokens, of_documents = (
                _written_columns(run) if isinstance(run, Written) else logprob_columns(trace.logits, batch)
            )
            tokens |= of_tokens
            documents |= of_documents
        return tokens, documents

    def _kept_ids(self, row: Row) -> list[int]:
        return self._encoded[row.document][: row.n_tokens]

    def _batch_tokens(self, rows: tuple[Row, ...]) -> BatchTokens:
        device = self._model.device
        ids_BS = torch.zeros(len(rows), rows[0].n_tokens, dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BS[i, : row.n_tokens] = torch.tensor(self._kept_ids(row))
        return BatchTokens(ids_BS.to(device), torch.tensor([row.n_tokens for row in rows], device=device))

    def _document_columns(self, rows: tuple[Row, ...]) -> dict[str, Any]:
        documents = [self._corpus.documents[row.document] for row in rows]
        texts = {name: [getattr(d, name) for d in documents] for name in ("id", "domain", "source", "cluster")}
        return {
            "document": np.array([row.document for row in rows], np.int32),
            **{name: np.array(values, dtype=object) for name, values in texts.items()},
            "text_digest": np.array([document.digest for document in documents], dtype=object),
            "tokens_cut": np.array([row.n_cut for row in rows], np.int32),
        }


def _written_columns(written: Written) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`logprob`, `predicted` and `loss` of tokens that the model wrote."""
    mask_BN = written.batch.mask_BS
    total_B = torch.where(mask_BN, -written.logprob_BN.to(mask_BN.device), 0).double().sum(-1)
    tokens = {
        "logprob": written.logprob_BN[mask_BN].float().cpu().numpy(),
        "predicted": written.predicted_BN[mask_BN].to(torch.int32).cpu().numpy(),
    }
    return tokens, {"loss": (total_B / mask_BN.sum(-1)).float().cpu().numpy()}


def _halves(batch: Batch, times: int) -> list[Batch]:
    """The batch cut into halves as often as it failed; rows stay in order, so the tables do not change."""
    pieces = [batch]
    for _ in range(times):
        pieces = [
            Batch(half)
            for piece in pieces
            for half in (piece.rows[: (len(piece.rows) + 1) // 2], piece.rows[(len(piece.rows) + 1) // 2 :])
            if half
        ]
    return pieces


def _append(columns: dict[str, list[np.ndarray]], more: dict[str, np.ndarray]) -> None:
    for name, values in more.items():
        columns.setdefault(name, []).append(values)


__all__ = ["DEFAULT_FIELDS", "CheckReport", "Generation", "Progress", "record"]
