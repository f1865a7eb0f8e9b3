"""Which rows of a server's forward passes are of one request: by the requests' ids if there are any, else by position.

A server computes many requests together and changes their company from pass to pass, so rows that stand next to one
another in a trace are not neighbours in any text. Without ids a row follows another where its position says so and
nothing else can be meant:

- A token of decoding at position p continues the one token of the pass of decoding before that stands at p - 1, where
  it is itself the only one at p and no prompt that ended at p - 1 waits for its first token. Where requests stand at
  one position it cannot be said whose a token is: such tokens make a document of each pass and position, in which, as
  all stand at one position, none is another's neighbour.
- A segment of a prompt that begins at p > 0 is resampled with those that ended at p - 1 in the last pass that has such
  (a chunk of the same prompt, or one whose cached prefix it uses): they are one cluster. All decoding of a file is one
  cluster.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby


@dataclass(frozen=True)
class Segment:
    """Rows of one request in one forward pass.

    Attributes:
        record: Number of the record.
        rank: Its rank.
        pass_id: Number of the forward pass.
        rows: Rows of the record.
        first: Position of the first row.
        last: Position of the last row.
        decode: Whether it is a token of decoding.
        rid: Id of the request, where the dump has it.
    """

    record: int
    rank: int
    pass_id: int
    rows: range
    first: int
    last: int
    decode: bool
    rid: str | None


@dataclass(eq=False)
class Stretch:
    """Segments that make one document, of one phase.

    Attributes:
        name: Id of the document.
        cluster: What is resampled with it.
        what: What it is, in words.
        segments: In the order of the text.
        continues: Whether it is the document before it, in its other phase.
    """

    name: str
    cluster: str
    what: str
    segments: list[Segment] = field(default_factory=list)
    continues: bool = False


def requests_of(passes: Iterable[list[Segment]], stem: str) -> list[Stretch]:
    """Puts segments together into documents, in the order in which these begin.

    Args:
        passes: The segments of each record, in order.
        stem: What names begin with.
    """
    records = list(passes)
    if all(segment.rid is not None for segments in records for segment in segments):
        return list(_by_id(records, stem))
    ranks = sorted({segment.rank for segments in records for segment in segments})
    return [
        stretch
        for rank in ranks
        for stretch in _ByPosition(stem).stretches([s for s in records if s and s[0].rank == rank])
    ]


def _by_id(records: list[list[Segment]], stem: str) -> Iterator[Stretch]:
    of_rid: dict[tuple[int, str | None], list[Segment]] = {}
    for segments in records:
        for segment in segments:
            of_rid.setdefault((segment.rank, segment.rid), []).append(segment)
    ranks = {rank for rank, _ in of_rid}
    for (rank, rid), found in of_rid.items():
        name = f"{stem}-{rid}" if len(ranks) == 1 else f"{stem}-{rank}-{rid}"
        continues = False
        for decode in (False, True):
            of_phase = [segment for segment in found if segment.decode == decode]
            if of_phase:
                yield Stretch(name, name, f"request {rid}", of_phase, continues)
                continues = True


class _ByPosition:
    """Goes through the passes of one rank and keeps what can still be continued."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._found: list[Stretch] = []
        self._decoding: dict[int, list[Stretch]] = {}  # by the position they stand at, after the last pass of decoding
        self._prompts: dict[int, list[Stretch]] = {}  # by the position they ended at, with no continuation yet
        self._joined: dict[str, str] = {}  # a cluster and the one that it has become

    def stretches(self, records: list[list[Segment]]) -> list[Stretch]:
        """The documents, in the order in which they begin."""
        for (_, decode), halves in groupby(records, key=lambda segments: (segments[0].pass_id, segments[0].decode)):
            segments = [segment for half in halves for segment in half]  # a pass in two halves has two records
            (self._decode if decode else self._extend)(segments)
        for stretch in self._found:
            stretch.cluster = self._now(stretch.cluster)
        return self._found

    def _now(self, cluster: str) -> str:
        while cluster in self._joined:
            cluster = self._joined[cluster]
        return cluster

    def _begin(self, segment: Segment, cluster: str, what: str) -> Stretch:
        name = f"{self._stem}-{segment.rank}-{segment.record}-{segment.rows.start}"
        stretch = Stretch(name, cluster or name, what, [segment])
        self._found.append(stretch)
        return stretch

    def _extend(self, segments: list[Segment]) -> None:
        begun = []
        for number, segment in enumerate(segments):
            before = self._prompts.get(segment.first - 1, [])
            latest = [s for s in before if s.segments[-1].pass_id == before[-1].segments[-1].pass_id]
            cluster = self._now(latest[0].cluster) if latest else ""
            for other in latest[1:]:
                if self._now(other.cluster) != cluster:
                    self._joined[self._now(other.cluster)] = cluster
            if latest:
                self._prompts[segment.first - 1] = before[: -len(latest)]
            begun.append((segment.last, self._begin(segment, cluster, f"segment {number}")))
        for last, stretch in begun:
            self._prompts.setdefault(last, []).append(stretch)

    def _decode(self, segments: list[Segment]) -> None:
        cluster = f"{self._stem}-decode"
        at_position = Counter(segment.first for segment in segments)
        now: dict[int, list[Stretch]] = {}
        together: dict[int, Stretch] = {}
        for segment in segments:
            position = segment.first
            before, waiting = self._decoding.get(position - 1, []), self._prompts.get(position - 1, [])
            if at_position[position] > 1:
                if position in together:
                    together[position].segments.append(segment)
                else:
                    together[position] = self._begin(segment, cluster, f"tokens at position {position}")
                now.setdefault(position, []).append(together[position])
            elif len(before) == 1 and not waiting:
                before[0].segments.append(segment)
                now[position] = before
            else:
                now[position] = [self._begin(segment, cluster, "a request's decoding")]
        for position, count in at_position.items():
            if not self._decoding.get(position - 1):  # nothing else can have gone on to here
                del self._prompts.get(position - 1, [])[:count]
        self._decoding = now
