"""Tokens of a recording in chunks of several parts, and what is found of each once for all layers.

Axes: T tokens of a chunk, K chosen per token.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from analyses.read import order
from workbench.metrics.sets import shuffled_within
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix

CHUNK_TOKENS = 1 << 18
KEPT_BYTES = 1 << 27  # of shuffles, kept for the next layer; those of a larger recording are drawn again

Chunk = dict[str, np.ndarray]


def chunks(
    recording: Recording, columns: list[str], *, tokens: int | None = None, in_order: bool = True
) -> Iterator[Chunk]:
    """Columns of the tokens table, several parts at a time: about `tokens` rows, documents whole and in their order.

    Args:
        recording: What is read.
        columns: Their names; `document`, and `position` where it is known, are read with them.
        tokens: Rows after which a chunk ends; `CHUNK_TOKENS` where it is None.
        in_order: False leaves rows as they stand and `document` and `position` out: for columns that go with some that
            were read so before, as the choices of one layer go with those of another.
    """
    columns = list(dict.fromkeys([*(order.text_columns(recording) if in_order else []), *columns]))
    joined = _joined if in_order else _as_they_stand
    tokens, held = CHUNK_TOKENS if tokens is None else tokens, list[Chunk]()
    for part in recording.parts(columns):
        held.append(part)
        if sum(len(one[columns[0]]) for one in held) >= tokens:
            chunk, held = joined(held), []  # the parts are let go before the chunk is worked on
            yield chunk
            del chunk
    if held:
        yield joined(held)


def _joined(parts: list[Chunk]) -> Chunk:
    return order.in_text_order(_as_they_stand(parts))


def _as_they_stand(parts: list[Chunk]) -> Chunk:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Held(Protocol):
    """What knows how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""


Of = TypeVar("Of", bound=Held)


class PerChunk(Generic[Of]):
    """What is the same for every layer, of each chunk: kept while it is little, and else found again.

    Args:
        recording: What is read.
        columns: What it is found from.
        of: Finds it.
    """

    def __init__(self, recording: Recording, columns: list[str], of: Callable[[Chunk], Of]) -> None:
        self._recording, self._columns, self._of = recording, columns, of
        self._kept: dict[int, Of] = {}
        self._left = KEPT_BYTES

    def of_view(self, recording: Recording) -> "PerChunk[Of]":
        """The same of a recording with the same rows, of which other columns are asked: a view of it."""
        view = copy.copy(self)
        view._recording = recording
        return view

    def __call__(self, names: list[str]) -> Iterator[tuple[Of, list[np.ndarray]]]:
        """Chunk by chunk, with further columns of its rows as they stand."""
        columns = list(dict.fromkeys([*self._columns, *names]))
        for index, chunk in enumerate(chunks(self._recording, columns, in_order=False)):
            found = self._kept[index] if index in self._kept else self._of(chunk)
            if index not in self._kept and found.nbytes <= self._left:
                self._kept[index], self._left = found, self._left - found.nbytes
            yield found, [chunk[name] for name in names]


def knows_first_choice(recording: Recording) -> bool:
    """Whether a token's choices can be told apart by rank."""
    return recording.has("weights") or recording.ids_ranked


def routing_columns(recording: Recording, router: Router) -> list[str]:
    """The columns that rank a router's choices: its ids, and weights where the ids are not known to be ranked."""
    at = prefix(router, recording.topology)
    weighted = recording.has("weights") and not recording.ids_ranked
    return [f"{at}.ids", *([f"{at}.weights"] if weighted else [])]


def first_choice(chunk: Chunk, columns: list[str]) -> np.ndarray:
    """`_parts.first_choice` of these columns, as ids of one choice: [T, 1]."""
    ids_TK, weights_TK = _routing(chunk, columns)
    return order.first_choice(ids_TK, weights_TK)[:, None]


def ranked(chunk: Chunk, columns: list[str]) -> np.ndarray:
    """`_parts.ranked` of these columns."""
    return order.ranked(*_routing(chunk, columns))


def _routing(chunk: Chunk, columns: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    return chunk[columns[0]], chunk[columns[1]] if len(columns) > 1 else None


def next_token(chunk: Chunk) -> np.ndarray:
    """The id that does come next in the document, −1 where none is known to: [T]."""
    next_T = np.full(len(chunk["token"]), -1, dtype=np.int64)
    follows_T = order.follows(chunk)[1:]
    next_T[:-1][follows_T] = chunk["token"][1:][follows_T]
    return next_T


def previous_token(chunk: Chunk) -> np.ndarray:
    """The id that comes before in the document, −1 where none is known to: [T]."""
    previous_T = np.full(len(chunk["token"]), -1, dtype=np.int64)
    follows_T = order.follows(chunk)[1:]
    previous_T[1:][follows_T] = chunk["token"][:-1][follows_T]
    return previous_T


@dataclass
class Shuffles:
    """Orders that shuffle each document, and what is read off them: the same for every layer. Kept while it is little.

    Attributes:
        seed: Of the shuffles.
    """

    seed: int
    _kept: dict[tuple[str, int, int, int], np.ndarray] = field(default_factory=dict)
    _bytes: int = 0

    def order(self, chunk: Chunk, draw: int) -> np.ndarray:
        """Row t of a shuffled array is `array[order[t]]`."""
        return self.kept("order", chunk, draw, lambda order_T: order_T)

    def kept(self, what: str, chunk: Chunk, draw: int, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`of(order)`, which may be smaller to keep than the order; found again under the same name."""
        document_T = chunk["document"]
        # a document stands in one chunk only, so its number tells chunks of one recording apart; and their number of
        # tokens those of a chunk from some of them
        key = (what, draw, len(document_T), int(document_T[0]) if len(document_T) else -1)
        if key not in self._kept:
            order_T = shuffled_within(document_T, order.place(chunk), seed=self.seed, draw=draw)
            made = of(order_T.astype(np.int32))
            if self._bytes + made.nbytes > KEPT_BYTES:
                return made
            self._kept[key] = made
            self._bytes += made.nbytes
        return self._kept[key]
