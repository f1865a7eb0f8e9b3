"""Records what a model does over a corpus: the loop that joins plan, capture, reduction and writer.

Nothing is written before the input has been checked and the capture proved. A run that was killed or cancelled goes on
where it stopped when it is started again with the same arguments, and ends with the same tables.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from workbench.capture.attention.heads import attention_facts
from workbench.capture.batching import Batch, Plan, make_plan, rows_to_prove
from workbench.capture.contributions import ExpertTracer
from workbench.capture.encode import encode
from workbench.capture.expert_weights import check_parent, expert_weights
from workbench.capture.failures import forward_errors, out_of_memory
from workbench.capture.generate import Generation
from workbench.capture.hooks import Tracer
from workbench.capture.manifest import manifest_of
from workbench.capture.proof.model import CheckReport, check_capture
from workbench.capture.proof.witness import Witness
from workbench.capture.proof.written_rows import WrittenProof, summary
from workbench.capture.runner import RowRunner
from workbench.errors import Cancelled, RecordingError
from workbench.files.writing import refuse_unwritable
from workbench.models.loading import Model, weights_digest
from workbench.models.rope_lengths import Borders, length_borders
from workbench.recordings.corpus import Corpus
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording
from workbench.recordings.schema import part_name
from workbench.recordings.vocabulary import vocabulary_table
from workbench.recordings.writer import RecordingWriter

DEFAULT_FIELDS = ("routing", "logprob")
SKIPPED = "skipped (--no-check)"


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
    command: Sequence[str] = (),
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
        check: Prove the capture first, and rows that were written while recording; False is noted in the manifest.
        on_progress: Called after every batch.
        should_cancel: Asked before every batch; True ends the run with what is on disk whole.
        command: What is noted in the manifest as what makes the recording again; words, as a shell would take them.

    Returns:
        The closed recording.

    Raises:
        CorpusError: the corpus cannot be read, or is text and the model has no tokenizer.
        CaptureError: the capture failed its proof, gave NaN, or is not what stands in the file; or the model's code
            raised something.
        RecordingError: the folder holds something else, is being written, or the disk is full.
        Cancelled: `should_cancel` said so.
    """
    fields = _checked_fields(fields, generation)
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.read(corpus)
    out = Path(out)
    room, borders = _room(model, generation), length_borders(model.module)
    encoded = encode(corpus, model, limit=min(max(batch_tokens, 1), room or batch_tokens))
    plan = make_plan(
        encoded.lengths,
        [document.domain for document in corpus.documents],
        batch_tokens=batch_tokens,
        shard_tokens=shard_tokens,
        context=room,
        max_tokens=max_tokens,
        one_length=generation is not None,
        borders=borders,
    )
    if generation is not None:
        _refuse_crossing(model, plan, borders, generation)
    if parent is not None:
        _check_parent(model, parent, fields)
    settings = _settings(max_tokens, batch_tokens, shard_tokens, generation, parent)
    manifest = manifest_of(
        model,
        corpus,
        plan,
        fields=fields,
        settings=settings,
        borders=borders,
        n_marked=encoded.n_marked,
        command=command,
    )
    refuse_unwritable(out, RecordingError)
    proved = rows_to_prove(plan, borders) if check else []
    together = [[encoded.ids[row.document][: row.n_tokens].tolist() for row in rows] for rows in proved]
    manifest["check"] = SKIPPED
    if check:
        manifest["check"] = check_capture(model, batches=together, with_logits="logits" in fields).to_json()
    tracer = _tracer(model, fields, manifest)
    written = WrittenProof(model, tracer, plan, fields=fields, generation=generation) if check else None
    manifest["written_rows"] = SKIPPED if written is None else {"sampled": list(written.parts), "of_parts": {}}
    with RecordingWriter(out, manifest, topology=model.topology, fields=fields, n_shards=len(plan.shards)) as writer:
        if not writer.closed:
            rows = RowRunner(
                model,
                tracer,
                corpus,
                encoded=encoded.ids,
                fields=fields,
                attention_layers=writer.manifest.get("attention", {}).get("layers", []),
                generation=generation,
            )
            run = _Run(plan, writer, rows, fields=fields, written=written)
            run.all_shards(on_progress, should_cancel)
            facts = expert_weights(model, parent=parent) if "weights" in fields else None
            vocabulary = vocabulary_table(model.tokenizer, run.tokens_seen())
            writer.close(vocabulary, expert_weights=facts, **run.facts())
    return Recording.open(out)


def _settings(
    max_tokens: int | None,
    batch_tokens: int,
    shard_tokens: int,
    generation: Generation | None,
    parent: Model | None,
) -> dict[str, Any]:
    """What was asked for, as it stands in the manifest and decides whether a folder holds the same recording."""
    settings: dict[str, Any] = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "shard_tokens": shard_tokens}
    if generation is not None:
        settings["generation"] = asdict(generation)
    if parent is not None:
        settings["parent"] = {
            "name": parent.name,
            "revision": parent.revision,
            "weights": weights_digest(parent.module),
        }
    return settings


def _tracer(model: Model, fields: tuple[str, ...], manifest: dict[str, Any]) -> Tracer:
    """The tracer of the fields asked for; what was found of them before the first token goes into the manifest."""
    with forward_errors(model.name, "the proof of the fields asked for"):
        if "attention" in fields:
            manifest["attention"] = attention_facts(model)
        if "experts" not in fields:
            return Tracer(model.module, model.topology)
        tracer = ExpertTracer(model)
    manifest["experts_check"] = tracer.report.to_json()
    return tracer


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


def _refuse_crossing(model: Model, plan: Plan, borders: Borders, generation: Generation) -> None:
    """What is kept of a text was turned by the rule of short ones, and would be read by the rule of long ones."""
    given = [row.n_tokens for batch in plan.batches for row in batch.rows]
    for switch in borders.switches:
        crossing = sum(n <= switch < n + generation.new_tokens for n in given)
        if crossing:
            raise RecordingError(
                f"{model.name} turns positions by other factors in texts of more than {switch:,} tokens (longrope), "
                f"and {crossing} of {len(given)} documents would pass that length while {generation.new_tokens} tokens "
                "are written behind them: the keys kept of the given text would be wrong from there on. Ask for fewer "
                "new tokens, or leave those documents out."
            )


class _Run:
    """One run over the shards that are not on disk yet."""

    def __init__(
        self,
        plan: Plan,
        writer: RecordingWriter,
        rows: RowRunner,
        *,
        fields: tuple[str, ...],
        written: WrittenProof | None,
    ) -> None:
        self._plan, self._writer, self._rows, self._fields = plan, writer, rows, fields
        # A folder that an earlier version began, or one begun without proof, has no place for what is proved.
        self._written = written if isinstance(writer.manifest.get("written_rows"), dict) else None

    def all_shards(
        self, on_progress: Callable[[Progress], None] | None, should_cancel: Callable[[], bool] | None
    ) -> None:
        """Runs and hands over every missing shard."""
        with self._rows.watching():
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
            proof = self._written.of_part(index) if self._written is not None else None
            repeated: int | None = None
            for number in batches:
                if should_cancel is not None and should_cancel():
                    raise Cancelled(
                        f"cancelled after {done:,} of {self._plan.n_tokens:,} tokens; the parts in {self._writer.path} "
                        "are whole. Run the same command to go on."
                    )
                witness = self._written.witness(proof, number) if self._written is not None else None
                for of_tokens, of_documents in self._run_batch(number, witness):
                    _append(tokens, of_tokens)
                    _append(documents, of_documents)
                size = self._plan.batches[number].n_tokens
                done, run = done + size, run + size
                if on_progress is not None:
                    rate = run / (time.perf_counter() - started)
                    on_progress(Progress(done, self._plan.n_tokens, rate, (self._plan.n_tokens - done) / rate))
                if proof is not None and witness is not None:
                    proof.add(witness.seen)
                if proof is not None and self._written is not None and number == self._written.again:
                    repeated = number
            if proof is not None and repeated is not None:
                proof.again = (repeated, list(self._run_batch(repeated)))
            self._writer.submit(index, tokens, documents, proof)

    def facts(self) -> dict[str, Any]:
        """What was proved of the rows that were written, for the closed manifest."""
        proved = self._writer.manifest.get("written_rows")
        return {"written_rows": summary(proved["of_parts"], proved["sampled"])} if isinstance(proved, dict) else {}

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

    def _run_batch(
        self, number: int, witness: Witness | None = None
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The columns of one batch; of its halves where it does not fit into the GPU's memory, and that is logged."""
        batch = self._plan.batches[number]
        halved: list[int] = self._writer.manifest["halved_batches"]
        pieces = _halves(batch, halved.count(number))
        while True:
            try:
                yield from [self._rows.run(piece.rows, witness) for piece in pieces]
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if all(len(piece.rows) == 1 for piece in pieces):
                    limit = self._writer.manifest["settings"]["batch_tokens"]
                    kind = "GPU memory" if isinstance(error, torch.cuda.OutOfMemoryError) else "memory"
                    raise RecordingError(
                        f"out of {kind} with a single document of {batch.width} tokens in the batch. Give a "
                        f"smaller --batch-tokens (documents are cut to it), now {limit}."
                    ) from error
                halved.append(number)
                self._writer.note(halved_batches=halved)
                torch.cuda.empty_cache()
                pieces = _halves(batch, halved.count(number))
                if witness is not None:
                    witness.seen.clear()


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
