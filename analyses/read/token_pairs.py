"""What two tokens can have in common, numbered once for all layers of a recording. Used by `same_token`.

Axes: T tokens of a chunk, D documents, M domains, V token ids, P pairs of a document and a label.
"""

import copy
from dataclasses import dataclass

import numpy as np

from analyses.read.chunks import Chunk, PerChunk, chunks
from analyses.read.order import place, text_columns
from analyses.read.tokens import document_rows
from workbench.metrics import agreement
from workbench.recordings.recording import Recording
from workbench.statistics import token_labels
from workbench.statistics.design import Clusters

SAME = ("token", "token and domain", "position", "domain")
TOKEN, TOKEN_AND_DOMAIN, PLACE, DOMAIN = range(len(SAME))
PAIRED = (TOKEN, TOKEN_AND_DOMAIN, PLACE)
WEIGHTS = ("pairs", "tokens")


@dataclass(frozen=True, eq=False)
class LabelledChunk:
    """The labels of a chunk's tokens, in the order of `PAIRED`."""

    order_T: np.ndarray
    """Rows of the tokens whose id two documents have, by id, then by domain, then by document."""
    token: token_labels.Labels
    token_and_domain: token_labels.Labels
    """Of the same cells, since a document is of one domain."""
    place: token_labels.Labels

    @property
    def kinds(self) -> tuple[token_labels.Labels, ...]:
        """The labels of pairs: one token, one token in one domain, one place."""
        return self.token, self.token_and_domain, self.place

    def first_of_token(self) -> np.ndarray:
        """The first label of token and domain of each token that occurs."""
        label_P = self.token.cell_label_P
        first_P = np.flatnonzero(np.diff(label_P, prepend=-1))
        return self.token_and_domain.cell_label_P[first_P]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.order_T.nbytes + sum(each.nbytes for each in self.kinds)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The numbers of what tokens can have in common: ids that two documents have, these by domain, and places."""

    row_of: np.ndarray
    rank_D: np.ndarray
    """Each document's place when those of one domain stand together."""
    domain_D: np.ndarray
    id_of: np.ndarray
    """Of each token id; −1 where one document alone has it."""
    pair_of: np.ndarray
    """Of each id and domain, flat."""
    sizes: tuple[int, int, int, int]
    """Of each kind of `SAME`."""
    unpaired: int

    @classmethod
    def of(cls, recording: Recording, clusters: Clusters) -> "_Numbers":
        ids = recording.vocabulary["token"].to_numpy()
        row_of, domain_D, n_domains = document_rows(recording), clusters.domain_D, len(clusters.domains)
        tokens_VM = np.zeros((int(ids.max()) + 1, n_domains), dtype=np.int64)
        documents_V, longest = np.zeros(len(tokens_VM), dtype=np.int64), 0
        for chunk in chunks(recording, ["token"]):
            token_T, row_T = chunk["token"].astype(np.int64), row_of[chunk["document"]]
            tokens_VM += np.bincount(token_T * n_domains + domain_D[row_T], minlength=tokens_VM.size).reshape(
                tokens_VM.shape
            )
            in_document = np.unique(token_T * len(domain_D) + row_T) // len(domain_D)
            documents_V += np.bincount(in_document, minlength=len(documents_V))
            longest = max(longest, int(place(chunk).max()) + 1)
        shared_V = documents_V > 1
        id_of = np.where(shared_V, np.cumsum(shared_V) - 1, -1)
        paired = ((tokens_VM > 0) & shared_V[:, None]).ravel()
        rank_D = np.empty(len(domain_D), dtype=np.int64)
        rank_D[np.argsort(domain_D, kind="stable")] = np.arange(len(domain_D))
        sizes = int(shared_V.sum()), int(paired.sum()), longest, n_domains
        return cls(row_of, rank_D, domain_D, id_of, np.cumsum(paired) - 1, sizes, int(tokens_VM[~shared_V].sum()))

    def chunk(self, chunk: Chunk) -> LabelledChunk:
        """The labels of a chunk's tokens."""
        row_T = self.row_of[chunk["document"]]
        token_T, n_domains = chunk["token"].astype(np.int64), self.sizes[DOMAIN]
        order_T = np.flatnonzero(self.id_of[token_T] >= 0)
        # documents by rank stand domain by domain, so that both kinds have one order
        order_T = order_T[np.argsort(token_T[order_T] * len(self.rank_D) + self.rank_D[row_T[order_T]])]
        token_T, row_of_T = token_T[order_T], row_T[order_T]
        pair_T = self.pair_of[token_T * n_domains + self.domain_D[row_of_T]]
        found = [
            token_labels.labels(label_T, self.rank_D[rows_T], n_labels=size, n_documents=len(self.rank_D))
            for label_T, rows_T, size in (
                (self.id_of[token_T], row_of_T, self.sizes[TOKEN]),
                (pair_T, row_of_T, self.sizes[TOKEN_AND_DOMAIN]),
                (place(chunk).astype(np.int64), row_T, self.sizes[PLACE]),
            )
        ]
        return LabelledChunk(order_T.astype(np.int32), *found)


class PairLabels:
    """The labels of all tokens, the same for every layer.

    Attributes:
        chunks: Of each chunk its labels, with the columns that are asked for.
        n_domains: M.
        places_known: Whether places are positions; else they say nothing, and nobody asks for them.
        n_rows: Labels whose choices are counted, in all.
        unpaired: Tokens whose id is in one document only.
        tokens: Of each kind of `SAME`, tokens of each label, of which two documents have the id.
        weights: Of the pairs of each label, in the order of `WEIGHTS`.
    """

    def __init__(self, recording: Recording, clusters: Clusters) -> None:
        self._numbers = _Numbers.of(recording, clusters)
        self.chunks = PerChunk(recording, [*text_columns(recording), "token"], self._numbers.chunk)
        self.places_known = "position" not in recording.lacks
        self.n_domains, self.n_rows = len(clusters.domains), sum(self._numbers.sizes)
        self.unpaired, self.rank_D = self._numbers.unpaired, self._numbers.rank_D
        self.tokens, squares = ([np.zeros(n, dtype=np.int64) for n in self._numbers.sizes] for _ in range(2))
        tokens_D = recording.column("tokens", table="documents").astype(np.int64)
        np.add.at(self.tokens[DOMAIN], clusters.domain_D, tokens_D)
        np.add.at(squares[DOMAIN], clusters.domain_D, tokens_D**2)
        for chunk, _ in self.chunks([]):
            for i, found in enumerate(chunk.kinds):
                self.tokens[i][found.present_N] += found.tokens_N
                squares[i][found.present_N] += found.squares_N
        self.weights = [
            np.stack([np.ones(len(tokens)), agreement.token_weights(tokens, each)], axis=1)
            for tokens, each in zip(self.tokens, squares, strict=True)
        ]

    def of_view(self, recording: Recording) -> "PairLabels":
        """The same labels, with the columns of a recording that differs in its choices alone."""
        view = copy.copy(self)
        view.chunks = self.chunks.of_view(recording)
        return view
