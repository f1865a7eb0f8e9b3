"""From documents to columns: runs a batch of rows and joins what is recorded of it, field by field."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from workbench.capture.attention.calls import Call, watching
from workbench.capture.attention.columns import AttentionColumns
from workbench.capture.batching import Row
from workbench.capture.contributions import experts_columns
from workbench.capture.failures import forward_errors
from workbench.capture.generate import Generation, Written, generate, stop_ids
from workbench.capture.hooks import Trace, Tracer
from workbench.capture.proof.witness import Witness
from workbench.capture.routing import BatchTokens, logprob_columns, routing_columns
from workbench.models.loading import Model
from workbench.recordings.corpus import Corpus

Columns = dict[str, Any]


class RowRunner:
    """Runs rows of a corpus and gives their columns.

    Args:
        model: The model.
        tracer: Of the model.
        corpus: The corpus.
        encoded: Token ids of its documents.
        fields: Recorded fields.
        attention_layers: Of the manifest; empty without the field.
        generation: How documents are continued; None for not.
    """

    def __init__(
        self,
        model: Model,
        tracer: Tracer,
        corpus: Corpus,
        *,
        encoded: Sequence[np.ndarray],
        fields: tuple[str, ...],
        attention_layers: list[dict[str, Any]],
        generation: Generation | None,
    ) -> None:
        self._model, self._tracer, self._corpus, self._encoded = model, tracer, corpus, encoded
        self._fields, self._generation = fields, generation
        self._witness: Witness | None = None
        self._stop = stop_ids(model.module) if generation is not None else set()
        self._attention = AttentionColumns(model.topology, attention_layers, fields) if "attention" in fields else None

    def watching(self) -> AbstractContextManager[None]:
        """The block in which rows are run: attention is watched in it, where it is recorded."""
        with forward_errors(self._model.name, "two tokens"):
            self._tracer.prepare(torch.zeros(1, 2, dtype=torch.long, device=self._model.device))
        if self._attention is None:
            return nullcontext()
        return watching(self._model.module, self._watch)

    def _watch(self, call: Call) -> None:
        assert self._attention is not None
        self._attention(call)
        if self._witness is not None and self._generation is None:
            self._witness.attend(call)

    def run(self, rows: tuple[Row, ...], witness: Witness | None = None) -> tuple[Columns, Columns]:
        """The columns of some documents' tokens and of the documents; a witness looks at the very same passes."""
        self._witness = witness
        batch = self._batch_tokens(rows)
        traced: dict[str, Any] = {
            "routers": None if "routing" in self._fields else (),
            "logits_to_keep": 0 if "logprob" in self._fields else 1,
        }
        if self._attention is not None:
            self._attention.begin(batch)
        what = f"a batch of {len(rows)} documents of up to {rows[0].n_tokens} tokens"
        if self._generation is None:
            with forward_errors(self._model.name, what, short_of_memory=True), _seen_by(witness, rows):
                trace = self._tracer.run(batch.ids_BS, batch.mask_BS.long() if batch.padded else None, **traced)
            return self._columns(rows, batch, trace)
        numbers = [row.document for row in rows]
        what += " and what is written behind them"
        with forward_errors(self._model.name, what, short_of_memory=True), _seen_by(witness, rows):
            written = generate(self._tracer, batch.ids_BS, numbers, self._generation, stop=self._stop, **traced)
        given, new = self._columns(rows, batch, written.prefill), self._columns(rows, written.batch, written)
        return _joined(given[0], new[0]), _joined(given[1], new[1])

    def _columns(self, rows: tuple[Row, ...], batch: BatchTokens, run: Trace | Written) -> tuple[Columns, Columns]:
        """The columns of given text, or of what was written behind it."""
        decoded = isinstance(run, Written)
        lengths = batch.lengths_B.cpu().numpy()
        starts = [row.n_tokens if decoded else 0 for row in rows]
        trace = run.decode if isinstance(run, Written) else run
        tokens: Columns = {
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

    def _batch_tokens(self, rows: tuple[Row, ...]) -> BatchTokens:
        device = self._model.device
        ids_BS = torch.zeros(len(rows), rows[0].n_tokens, dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BS[i, : row.n_tokens] = torch.as_tensor(self._encoded[row.document][: row.n_tokens])
        return BatchTokens(ids_BS.to(device), torch.tensor([row.n_tokens for row in rows], device=device))

    def _document_columns(self, rows: tuple[Row, ...]) -> Columns:
        documents = [self._corpus.documents[row.document] for row in rows]
        texts = {name: [getattr(d, name) for d in documents] for name in ("id", "domain", "source", "cluster")}
        return {
            "document": np.array([row.document for row in rows], np.int32),
            **{name: np.array(values, dtype=object) for name, values in texts.items()},
            "text_digest": np.array([document.digest for document in documents], dtype=object),
            "tokens_cut": np.array([row.n_cut for row in rows], np.int32),
        }


def _seen_by(witness: Witness | None, rows: tuple[Row, ...]) -> AbstractContextManager[None]:
    return nullcontext() if witness is None else witness.watching(rows)


def _written_columns(written: Written) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`logprob`, `predicted` and `loss` of tokens that the model wrote."""
    mask_BN = written.batch.mask_BS
    total_B = torch.where(mask_BN, -written.logprob_BN.to(mask_BN.device), 0).double().sum(-1)
    tokens = {
        "logprob": written.logprob_BN[mask_BN].float().cpu().numpy(),
        "predicted": written.predicted_BN[mask_BN].to(torch.int32).cpu().numpy(),
    }
    return tokens, {"loss": (total_B / mask_BN.sum(-1)).float().cpu().numpy()}


def _joined(given: Columns, new: Columns) -> Columns:
    return {name: np.concatenate([given[name], new[name]]) for name in given}
