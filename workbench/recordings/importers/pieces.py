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
from workbench.recordings.corpus import name_fault
from workbench.recordings.importers.checks import Checked, Padding, ZeroRows, checked, phases_of
from workbench.recordings.importers.labels import Label, Labels
from workbench.recordings.importers.layout import Layout
from workbench.recordings.importers.trace import Trace, TracedDocument

_SHARD_COUNTERS = 2**25  # counts of the documents of a part: 128 MiB
_NEVER_THERE = ("entropy", "margin", "topk_mass", "logsumexp", "shared_gate", "score_sum", "tokens_cut")
_OF_A_TOKEN = ("ids", "position", "weights", "weight_sum", "token", "text_digest", "predicted")


@dataclass(frozen=True, eq=False)
class Piece:
    """A row of the documents table, with its tokens; `placed` where the source itself states their positions."""

    document: int
    id: str
    domain: str
    source: str
    cluster: str
    phase: str | None
    content: Checked
    placed: bool

    @property
    def text_digest(self) -> str:
        """SHA-256 of the token ids, as of a corpus of token ids; empty where there are none."""
        token_T = self.content.token_T
        return "" if token_T is None else hashlib.sha256(json.dumps(token_T.tolist()).encode()).hexdigest()

    def lacks(self) -> frozenset[str]:
        """What this piece's document lacks and another's may have."""
        if not self.content.ids_TK:
            return frozenset(_OF_A_TOKEN)
        lacked: tuple[str, ...] = () if self.content.weights_TK is not None else ("weights", "weight_sum")
        lacked = lacked if self.content.token_T is not None else (*lacked, "token", "text_digest")
        return frozenset(lacked if self.content.predicted_T is not None else (*lacked, "predicted"))


@dataclass(frozen=True, eq=False)
class Source:
    """A trace with what the user said of it.

    Attributes:
        name: Name of the file or folder.
        trace: The trace.
        layout: What its columns are.
        labels: What is known of the documents, in their order.
        phase: The phase to take, or what all tokens are.
        mask_zero_rows: Whether rows of expert 0 in every layer are left out.
    """

    name: str
    trace: Trace
    layout: Layout
    labels: Labels | None
    phase: str | None
    mask_zero_rows: bool = False

    def pieces(self) -> Iterator[Piece]:
        """Every piece, checked, those without tokens too."""
        number, rows_before = -1, 0
        for document in self.trace.documents():
            rows_before = rows_before if document.continues else 0
            number += not document.continues
            label = self._label(number)
            placed = _placed(_with_tokens(document, label), label, rows_before)
            rows_before += 0 if document.ids_TLK is None else len(document.ids_TLK)
            for part in phases_of(placed, label.prompt_tokens):
                stated = part.phase or self.phase
                if self.phase is None or stated == self.phase:
                    _refuse_unknown_start(part, document, label, stated)
                    yield self._piece(number, label, part, stated, placed=document.position_T is not None)

    def _piece(self, number: int, label: Label, part: TracedDocument, phase: str | None, *, placed: bool) -> Piece:
        name = label.id or part.name
        piece = Piece(
            document=number,
            id=name,
            domain=label.domain or Path(self.name).stem,
            source=label.source or self.name,
            cluster=label.cluster or part.cluster or name,
            phase=phase,
            content=checked(part, self.layout, n_columns=self.trace.n_columns, mask_zero_rows=self.mask_zero_rows),
            placed=placed,
        )
        for key in ("id", "cluster"):
            if fault := name_fault(getattr(piece, key)):
                raise TraceError(f"{part.where}: its {key} {fault}. Rename it, or give one with --documents.")
        return piece

    def _label(self, number: int) -> Label:
        return Label() if self.labels is None else self.labels.labels[number]


def _with_tokens(document: TracedDocument, label: Label) -> TracedDocument:
    if label.token_ids is None or document.ids_TLK is None:
        return document
    n_rows, tokens = len(document.ids_TLK), label.token_ids
    if document.token_T is not None or len(tokens) not in (n_rows, n_rows + 1):
        raise TraceError(
            f"{document.where}: --documents gives {len(tokens)} token_ids and the source has {n_rows} rows"
            + (" with token ids of its own; leave token_ids out." if document.token_T is not None else "; as many, or "
               "one more that was sampled last and never routed, were expected.")
        )  # fmt: skip
    return replace(document, token_T=np.array(tokens[:n_rows], dtype=np.int64))


def _placed(document: TracedDocument, label: Label, rows_before: int) -> TracedDocument:
    """The document with positions: its own, or those of its rows, from the start that the user states."""
    if document.ids_TLK is None or (document.position_T is not None and label.start is None):
        return document
    if document.position_T is not None:
        raise TraceError(f"{document.where}: the source has positions of its own; leave start out of --documents.")
    first = rows_before + (label.start or 0)
    return replace(document, position_T=np.arange(first, first + len(document.ids_TLK)))


def _refuse_unknown_start(part: TracedDocument, document: TracedDocument, label: Label, phase: str | None) -> None:
    """Decoding follows something: what is cut off in front of it is asked for, not taken for nothing."""
    if phase != "decode" or document.position_T is not None or label.start is not None or document.ids_TLK is None:
        return
    if part.position_T is not None and len(part.position_T) and part.position_T[0] == 0:
        raise TraceError(
            f"{part.where}: its decoding would begin at position 0, as if nothing came before it. Say with "
            '--documents, for each document, how many tokens did: {"start": N} (0 where there were none), or give '
            "prompt_tokens where the rows hold the prompt."
        )


@dataclass(eq=False)
class Survey:
    """What the first reading of the whole source found."""

    shards: list[range] = field(default_factory=list)
    lacks: frozenset[str] | None = None
    phases: set[str | None] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    padding: Padding = field(default_factory=Padding)
    zero_rows: ZeroRows = field(default_factory=ZeroRows)
    mixed: str = ""
    positions_from: str = "the trace"
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
        most_pieces = max(1, _SHARD_COUNTERS // sum(router.n_experts for router in source.layout.topology.routers))
        names: dict[str, int] = {}
        for piece in source.pieces():
            survey.padding += piece.content.padding
            survey.zero_rows += piece.content.zero_rows
            survey.mixed = survey.mixed or piece.content.mixed
            survey.positions_from = survey.positions_from if piece.placed else "the order of the rows"
            if piece.content.n_tokens == 0:
                survey.n_empty += 1
                continue
            if names.setdefault(piece.id, piece.document) != piece.document:
                raise TraceError(f"{source.name}: two documents have the id {piece.id!r}; give ids with --documents.")
            survey._add(piece, digest)
            full = in_shard >= shard_tokens or n_pieces - first >= most_pieces
            if full and piece.document != last:  # a document's phases stay together
                survey.shards.append(range(first, n_pieces))
                first, in_shard = n_pieces, 0
            n_pieces, in_shard, last = n_pieces + 1, in_shard + piece.content.n_tokens, piece.document
        if n_pieces > first:
            survey.shards.append(range(first, n_pieces))
        if not survey.shards:
            raise TraceError(
                f"{source.name} has no token to record{f' of phase {source.phase}' if source.phase else ''}; "
                f"{survey.padding.tokens:,} were padding{survey.zero_rows.of_masked}."
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
        for ids_T in (piece.content.token_T, piece.content.predicted_T):
            if ids_T is not None:
                self.seen.update(np.unique(ids_T).tolist())

    @property
    def vocabulary(self) -> np.ndarray:
        """The token ids that occur."""
        return np.array(sorted(self.seen), dtype=np.int32)

    @property
    def all_lacks(self) -> list[str]:
        """Every column that the recording will not have."""
        phase = ("phase",) if None in self.phases else ()
        position = ("position",) if self.mixed else ()
        return sorted({*(self.lacks or ()), *_NEVER_THERE, *phase, *position})
