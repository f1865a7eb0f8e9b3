"""The rows of a recording's documents table, made of a trace and of what the user knows of it; and a survey of them.

The survey is the first reading of the whole source: it checks everything and keeps only what the second, which writes,
has to know beforehand.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import TraceError
from workbench.importers.checks import Checked, Padding, checked, phases_of
from workbench.importers.labels import Label
from workbench.importers.layout import Layout
from workbench.importers.trace import Trace, TracedDocument

_NEVER_THERE = ("entropy", "margin", "topk_mass", "logsumexp", "shared_gate", "score_sum", "tokens_cut")
_OF_A_TOKEN = ("ids", "position", "weights", "weight_sum", "token", "text_digest")


@dataclass(frozen=True, eq=False)
class Piece:
    """A row of the documents table, with its tokens."""

    document: int
    id: str
    domain: str
    source: str
    cluster: str
    phase: str | None
    content: Checked

    @property
    def text_digest(self) -> str:
        """SHA-256 of the token ids, as of a corpus of token ids; empty where there are none."""
        token_T = self.content.token_T
        return "" if token_T is None else hashlib.sha256(json.dumps(token_T.tolist()).encode()).hexdigest()

    def lacks(self) -> frozenset[str]:
        """What this piece's document lacks and another's may have."""
        if not self.content.ids_TK:
            return frozenset(_OF_A_TOKEN)
        lacked = () if self.content.weights_TK is not None else ("weights", "weight_sum")
        return frozenset(lacked if self.content.token_T is not None else (*lacked, "token", "text_digest"))


@dataclass(frozen=True, eq=False)
class Source:
    """A trace with what the user said of it."""

    path: Path
    trace: Trace
    layout: Layout
    labels: list[Label] | None
    phase: str | None

    def pieces(self) -> Iterator[Piece]:
        """Every piece, checked, those without tokens too."""
        number = -1
        for document in self.trace.documents():
            number += not document.continues
            label = self._label(number)
            for part in phases_of(_with_tokens(document, label), label.prompt_tokens):
                name = label.id or document.name
                stated = part.phase or self.phase
                if self.phase is None or stated == self.phase:
                    yield Piece(
                        document=number,
                        id=name,
                        domain=label.domain or self.path.stem,
                        source=label.source or self.path.name,
                        cluster=label.cluster or document.cluster or name,
                        phase=stated,
                        content=checked(part, self.layout, n_columns=self.trace.n_columns),
                    )
        if self.labels is not None and len(self.labels) != number + 1:
            raise TraceError(self._too_many(f"{number + 1}"))

    def _label(self, number: int) -> Label:
        if self.labels is None:
            return Label()
        if number >= len(self.labels):
            raise TraceError(self._too_many("more"))
        return self.labels[number]

    def _too_many(self, there: str) -> str:
        return (
            f"--documents has {len(self.labels or ())} rows and {self.path} {there} {self.trace.unit}; one row for "
            "each was wanted, in their order."
        )


def _with_tokens(document: TracedDocument, label: Label) -> TracedDocument:
    if label.token_ids is None or document.ids_TLK is None:
        return document
    n_rows, tokens = len(document.ids_TLK), label.token_ids
    if document.token_T is not None or len(tokens) not in (n_rows, n_rows + 1):
        raise TraceError(
            f"{document.where}: --documents gives {len(tokens)} token_ids and the source has {n_rows} rows"
            + (" with token ids of its own; leave token_ids out." if document.token_T is not None else "; as many, or "
               "one more that was sampled last and never routed, were wanted.")
        )  # fmt: skip
    return replace(document, token_T=np.array(tokens[:n_rows], dtype=np.int64))


@dataclass(eq=False)
class Survey:
    """What the first reading of the whole source found."""

    shards: list[range] = field(default_factory=list)
    lacks: frozenset[str] | None = None
    phases: set[str | None] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    padding: Padding = field(default_factory=Padding)
    n_documents: int = 0
    n_tokens: int = 0
    n_empty: int = 0
    corpus_digest: str = ""
    seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, source: Source, *, shard_tokens: int) -> "Survey":
        """Reads and checks everything.

        Raises:
            TraceError: what the checks refuse; some documents have what others lack; nothing is left.
        """
        survey, digest = cls(), hashlib.sha256()
        first = in_shard = n_pieces = 0
        last = -1
        names: dict[str, int] = {}
        for piece in source.pieces():
            survey.padding += piece.content.padding
            if piece.content.n_tokens == 0:
                survey.n_empty += 1
                continue
            if names.setdefault(piece.id, piece.document) != piece.document:
                raise TraceError(f"{source.path}: two documents have the id {piece.id!r}; give ids with --documents.")
            survey._add(piece, digest)
            if in_shard >= shard_tokens and piece.document != last:  # a document's phases stay together
                survey.shards.append(range(first, n_pieces))
                first, in_shard = n_pieces, 0
            n_pieces, in_shard, last = n_pieces + 1, in_shard + piece.content.n_tokens, piece.document
        if n_pieces > first:
            survey.shards.append(range(first, n_pieces))
        if not survey.shards:
            raise TraceError(
                f"{source.path} has no token to record{f' of phase {source.phase}' if source.phase else ''}; "
                f"{survey.padding.tokens:,} were padding."
            )
        survey.n_documents, survey.corpus_digest = len(names), digest.hexdigest()
        return survey

    def _add(self, piece: Piece, digest: Any) -> None:
        lacks = piece.lacks()
        if self.lacks not in (None, lacks) or (self.phases and (piece.phase is None) != (None in self.phases)):
            what = sorted(lacks ^ (self.lacks or lacks)) or ["phase"]
            raise TraceError(
                f"document {piece.id!r} and those before it differ in what they have: {', '.join(what)}. Give it for "
                "all documents or for none."
            )
        self.lacks = lacks
        self.phases.add(piece.phase)
        self.domains.add(piece.domain)
        self.n_tokens += piece.content.n_tokens
        fields = [piece.id, piece.domain, piece.source, piece.cluster, piece.text_digest]
        digest.update(json.dumps(fields, ensure_ascii=False).encode())
        if piece.content.token_T is not None:
            self.seen.update(np.unique(piece.content.token_T).tolist())

    @property
    def vocabulary(self) -> np.ndarray:
        """The token ids that occur."""
        return np.array(sorted(self.seen), dtype=np.int32)

    @property
    def all_lacks(self) -> list[str]:
        """Every column that the recording will not have."""
        phase = ("phase",) if None in self.phases else ()
        return sorted({*(self.lacks or ()), *_NEVER_THERE, *phase})
