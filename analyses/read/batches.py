"""Batches of mixed documents, as a server or a training step would see them: made of a recording, and counted.

Axes: D documents, G batches, L routers of one shape, E experts, T tokens of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analyses.read.chunks import Chunk, PerChunk
from analyses.read.design import RouterStack
from analyses.read.order import in_text_order, text_columns
from analyses.read.tokens import document_rows
from workbench.metrics.sets import keyed_hash
from workbench.metrics.vocabulary import count_cells
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix


@dataclass(frozen=True, eq=False)
class Batches:
    """Documents one after the other in an order drawn at random, cut every n tokens. The incomplete last is left out.

    A recording of fewer than n tokens is one batch.

    Attributes:
        tokens: n.
        n_batches: G.
        left_out: Tokens of the last one.
    """

    tokens: int
    n_batches: int
    left_out: int
    _row_of: np.ndarray
    _start_D: np.ndarray

    @classmethod
    def of(cls, recording: Recording, *, tokens: int, seed: int) -> "Batches":
        """Draws the order by the documents' numbers, whatever the order of rows."""
        document_D = recording.column("document", table="documents").astype(np.int64)
        tokens_D = recording.column("tokens", table="documents").astype(np.int64)
        order = np.argsort(keyed_hash(document_D, np.zeros_like(document_D), seed=seed), kind="stable")
        start_D = np.empty(len(document_D), dtype=np.int64)
        start_D[order] = np.cumsum(tokens_D[order]) - tokens_D[order]
        total = int(tokens_D.sum())
        tokens = min(tokens, total)
        return cls(tokens, total // tokens, total % tokens, document_rows(recording), start_D)

    def placed(self, chunk: Chunk) -> "Placed":
        """Where the tokens of a chunk of whole documents stand."""
        rows = {"row": np.arange(len(chunk["document"]))}
        text = in_text_order({name: chunk[name] for name in ("document", "position") if name in chunk} | rows)
        document_T = text["document"]
        starts_T = np.flatnonzero(np.diff(document_T, prepend=document_T[:1] - 1))
        within_T = np.arange(len(document_T)) - np.repeat(starts_T, np.diff(starts_T, append=len(document_T)))
        place_T = np.empty(len(document_T), dtype=np.int64)
        place_T[text["row"]] = self._start_D[self._row_of[document_T]] + within_T
        batch_T = place_T // self.tokens
        return Placed(place_T, np.where(batch_T < self.n_batches, batch_T, -1).astype(np.int32))

    def counts(self, recording: Recording, stack: RouterStack) -> Iterator[np.ndarray]:
        """Assignments of each batch, router by router: [G, E]."""
        placed = PerChunk(recording, text_columns(recording), self.placed)
        for router in stack.routers:
            counts_GE = np.zeros((self.n_batches, stack.n_experts), dtype=np.int64)
            for at, (ids_TK,) in placed([f"{prefix(router, recording.topology)}.ids"]):
                counts_GE += count_cells(at.batch_T, ids_TK, n_labels=self.n_batches, n_experts=stack.n_experts)
            yield counts_GE


@dataclass(frozen=True, eq=False)
class Placed:
    """Where the tokens of a chunk stand.

    Attributes:
        place_T: In the whole row of documents.
        batch_T: Their batch, place // n; −1 in the last, incomplete one.
    """

    place_T: np.ndarray
    batch_T: np.ndarray

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        return self.place_T.nbytes + self.batch_T.nbytes
