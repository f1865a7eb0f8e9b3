"""The batch plan: which documents share a batch, and which batches share a shard.

A pure function of the documents' lengths and domains and of the budgets, so that a run that was killed resumes with the
very batches it would have had. One document is one row; rows of a batch have similar lengths, so little is padded.
Where a model computes rows by the longest one of their batch, rows that it would compute otherwise are kept apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from workbench.errors import CorpusError
from workbench.models.rope_lengths import NO_BORDERS, Borders

_MOST_PAIRS = 3  # pairs of rows that the proof of padding runs, each at most two rows of a batch


@dataclass(frozen=True)
class Row:
    """One document in a batch: its index in the corpus, the tokens kept of it, and the tokens cut off its end."""

    document: int
    n_tokens: int
    n_cut: int


@dataclass(frozen=True)
class Batch:
    """Rows that are run together, longest first, padded to the first one's length."""

    rows: tuple[Row, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(row.n_tokens for row in self.rows)

    @property
    def width(self) -> int:
        """Length that the rows are padded to."""
        return self.rows[0].n_tokens


@dataclass(frozen=True)
class Plan:
    """Batches in the order they run, and the shards they fill (each a run of consecutive batches).

    Attributes:
        batches: All batches.
        shards: For each shard the half-open range of its batches.
        n_documents_left_out: Documents beyond `max_tokens`.
    """

    batches: tuple[Batch, ...]
    shards: tuple[tuple[int, int], ...]
    n_documents_left_out: int

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(batch.n_tokens for batch in self.batches)

    @property
    def n_documents(self) -> int:
        """Documents that are recorded."""
        return sum(len(batch.rows) for batch in self.batches)

    @property
    def n_cut_documents(self) -> int:
        """Documents that were longer than the context or the budget and are cut to it."""
        return sum(row.n_cut > 0 for batch in self.batches for row in batch.rows)

    @property
    def padding_share(self) -> float:
        """Share of the positions run that is padding."""
        run = sum(len(batch.rows) * batch.width for batch in self.batches)
        return 1 - self.n_tokens / run


def make_plan(
    lengths: Sequence[int],
    domains: Sequence[str],
    *,
    batch_tokens: int,
    shard_tokens: int,
    context: int | None = None,
    max_tokens: int | None = None,
    one_length: bool = False,
    borders: Borders = NO_BORDERS,
) -> Plan:
    """Plans the batches.

    With `max_tokens`, whole documents are taken from the domains in turn, so that a cap never leaves a domain out for
    standing last in the file; the document that would pass the cap ends its domain's turn. Longest documents run
    first: what does not fit into memory fails at once.

    Args:
        lengths: Tokens of each document.
        domains: Domain of each document.
        batch_tokens: Padded positions of a batch, at most.
        shard_tokens: A shard ends with the batch that brings it to this many tokens.
        context: Longest sequence the model takes; None for no limit.
        max_tokens: Cap over the corpus; None for none.
        one_length: Whether the rows of a batch must have one length, so that nothing is padded.
        borders: Lengths that never share a batch.

    Raises:
        CorpusError: a budget below 1, or a cap that holds no document.
    """
    for name, value in (("batch_tokens", batch_tokens), ("shard_tokens", shard_tokens), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise CorpusError(f"{name} is {value}; at least 1 was expected.")
    limit = min(batch_tokens, context or batch_tokens)
    rows = [Row(i, min(n, limit), max(0, n - limit)) for i, n in enumerate(lengths)]
    kept = _capped(rows, domains, max_tokens) if max_tokens is not None else rows
    if not kept:
        shortest = min(row.n_tokens for row in rows)
        raise CorpusError(
            f"max_tokens is {max_tokens}, but the shortest document has {shortest} tokens; give at least {shortest}."
        )
    batches: list[Batch] = []
    open_rows: list[Row] = []
    for row in sorted(kept, key=lambda row: (-row.n_tokens, row.document)):
        full = open_rows and (len(open_rows) + 1) * open_rows[0].n_tokens > batch_tokens
        if full or (open_rows and _apart(row.n_tokens, open_rows[0].n_tokens, one_length=one_length, borders=borders)):
            batches.append(Batch(tuple(open_rows)))
            open_rows = []
        open_rows.append(row)
    batches.append(Batch(tuple(open_rows)))
    return Plan(tuple(batches), _shards(batches, shard_tokens), len(rows) - len(kept))


def _apart(one: int, other: int, *, one_length: bool, borders: Borders) -> bool:
    """Whether rows of these lengths may not share a batch."""
    return one != other if one_length else borders.side(one) != borders.side(other)


def rows_to_prove(plan: Plan, borders: Borders) -> list[tuple[Row, ...]]:
    """The rows that the proof of padding runs together: of the batches that will be run, in their lengths and shapes.

    The batch with the most rows, whole; and the longest and the shortest row of the batch that pads most and of the
    widest batch on each side of the borders, three pairs at most. Batches of one row have no company to prove.
    """
    several = [batch for batch in plan.batches if len(batch.rows) > 1]
    if not several:
        return []
    by_side = {borders.side(batch.width): batch for batch in reversed(several)}  # the widest one stays
    widest = sorted(by_side.values(), key=lambda batch: -batch.width)
    pads_most = max(several, key=lambda batch: batch.width - batch.rows[-1].n_tokens)
    pairs = [(batch.rows[0], batch.rows[-1]) for batch in (*widest[: _MOST_PAIRS - 1], pads_most)]
    whole = max(several, key=lambda batch: len(batch.rows)).rows
    return [whole, *dict.fromkeys(pair for pair in pairs if pair != whole)]


def _capped(rows: list[Row], domains: Sequence[str], max_tokens: int) -> list[Row]:
    by_domain = sorted(rows, key=lambda row: domains[row.document])
    queues = [list(group) for _, group in groupby(by_domain, key=lambda row: domains[row.document])]
    kept: list[Row] = []
    left = max_tokens
    turn = 0
    while any(queues):
        queue = queues[turn % len(queues)]
        turn += 1
        if not queue:
            continue
        row = queue.pop(0)
        if row.n_tokens > left:
            queue.clear()
            continue
        kept.append(row)
        left -= row.n_tokens
    return kept


def _shards(batches: list[Batch], shard_tokens: int) -> tuple[tuple[int, int], ...]:
    shards, start, filled = [], 0, 0
    for i, batch in enumerate(batches):
        filled += batch.n_tokens
        if filled >= shard_tokens:
            shards.append((start, i + 1))
            start, filled = i + 1, 0
    if start < len(batches):
        shards.append((start, len(batches)))
    return tuple(shards)
