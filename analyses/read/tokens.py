"""What analyses of single tokens read: parts in the order of the text, sets of chosen experts, a sample of documents.

Axes: T tokens of a part, D documents, L routers of one shape, K chosen per token, W words of bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analyses.read.design import RouterStack
from analyses.read.order import first_choice, follows, in_text_order, place, text_columns
from workbench.errors import AnalysisError
from workbench.metrics.sets import as_bits, keyed_hash
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix

N_DRAWS = 20
SAMPLE_TOKENS = 16_384  # of the draws that are dear: whole documents, drawn at random


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of whole documents, document by document, in the order of the text.

    Attributes:
        row_T: Row of each token's document in the documents table.
        document_T: The document's number in the corpus.
        place_T: Position in the document, or the rank of its row where positions are not known.
        follows_T: Whether it is the next token after the row before (`neighbours.follows`).
        token_T: Token id; zeros where they were not asked for.
        ids_LTK: Chosen experts of each router.
        top1_LT: Expert with the largest routing weight; None where it was not asked for.
        n_experts: E.
    """

    row_T: np.ndarray
    document_T: np.ndarray
    place_T: np.ndarray
    follows_T: np.ndarray
    token_T: np.ndarray
    ids_LTK: list[np.ndarray]
    top1_LT: list[np.ndarray] | None
    n_experts: int

    @cached_property
    def bits_LTW(self) -> list[np.ndarray]:
        """The sets of chosen experts of each router."""
        return [as_bits(ids_TK, n_experts=self.n_experts) for ids_TK in self.ids_LTK]

    def of(self, rows: np.ndarray) -> "Tokens":
        """The tokens of some documents."""
        return Tokens(
            self.row_T[rows],
            self.document_T[rows],
            self.place_T[rows],
            self.follows_T[rows],
            self.token_T[rows],
            [ids_TK[rows] for ids_TK in self.ids_LTK],
            None if self.top1_LT is None else [top1_T[rows] for top1_T in self.top1_LT],
            self.n_experts,
        )


def token_parts(
    recording: Recording, stack: RouterStack, *, top1: bool = False, token: bool = False
) -> Iterator[Tokens]:
    """The tokens of a recording, part by part.

    Args:
        recording: What is read.
        stack: Whose choices.
        top1: Whether the first choice is needed (`_parts.first_choice`).
        token: Whether token ids are needed.
    """
    row_of = document_rows(recording)
    at = [prefix(router, recording.topology) for router in stack.routers]
    weighted = top1 and recording.has("weights") and not recording.ids_ranked
    columns = [*text_columns(recording), *(["token"] if token else []), *(f"{name}.ids" for name in at)]
    columns += [f"{name}.weights" for name in at] if weighted else []
    for part in recording.parts(columns):
        read = in_text_order(part, by_number=True)
        ids_LTK = [read[f"{name}.ids"] for name in at]
        firsts = None
        if top1:
            firsts = [first_choice(ids, read.get(f"{name}.weights")) for name, ids in zip(at, ids_LTK, strict=True)]
        document_T = read["document"].astype(np.int64)
        yield Tokens(
            row_of[document_T],
            document_T,
            place(read).astype(np.int64),
            follows(read),
            read["token"].astype(np.int64) if token else np.zeros(len(document_T), dtype=np.int64),
            ids_LTK,
            firsts,
            stack.n_experts,
        )


def first_choice_counts(recording: Recording, stack: RouterStack) -> np.ndarray:
    """Tokens of each document whose first choice each expert is: [D, L, E]."""
    counts_DLE = np.zeros((recording.n_documents, len(stack.routers), stack.n_experts), dtype=np.int64)
    for part in token_parts(recording, stack, top1=True):
        for i, top1_T in enumerate(part.top1_LT or []):
            cell_T = part.row_T * stack.n_experts + top1_T
            counted = np.bincount(cell_T, minlength=recording.n_documents * stack.n_experts)
            counts_DLE[:, i] += counted.reshape(-1, stack.n_experts)
    return counts_DLE


def document_rows(recording: Recording) -> np.ndarray:
    """The row in the documents table of each document number; −1 where there is none."""
    document_D = recording.column("document", table="documents")
    row_of = np.full(int(document_D.max()) + 1, -1, dtype=np.int64)
    row_of[document_D] = np.arange(len(document_D))
    return row_of


def sampled(recording: Recording, *, n_tokens: int, seed: int) -> np.ndarray:
    """Whether each document is in a sample of whole documents with at least so many tokens, or all there are.

    Drawn by the documents' numbers, whatever the order of rows.
    """
    document_D = recording.column("document", table="documents").astype(np.int64)
    tokens_D = recording.column("tokens", table="documents")
    order = np.argsort(keyed_hash(document_D, np.zeros_like(document_D), seed=seed), kind="stable")
    before = np.cumsum(tokens_D[order]) - tokens_D[order]
    chosen_D = np.zeros(len(document_D), dtype=bool)
    chosen_D[order[before < n_tokens]] = True
    return chosen_D


class Sampler:
    """Collects the tokens of the sampled documents while the parts go by."""

    def __init__(self, recording: Recording, *, n_tokens: int, seed: int) -> None:
        self._chosen_D = sampled(recording, n_tokens=n_tokens, seed=seed)
        self._parts: list[Tokens] = []

    def take(self, part: Tokens) -> None:
        """Keeps what is of the sample."""
        rows = np.flatnonzero(self._chosen_D[part.row_T])
        if len(rows):
            self._parts.append(part.of(rows))

    def joined(self) -> Tokens:
        """The sample."""
        parts = self._parts
        top1 = None
        if parts[0].top1_LT is not None:
            top1 = [np.concatenate(each) for each in zip(*(part.top1_LT or [] for part in parts), strict=True)]
        return Tokens(
            np.concatenate([part.row_T for part in parts]),
            np.concatenate([part.document_T for part in parts]),
            np.concatenate([part.place_T for part in parts]),
            np.concatenate([part.follows_T for part in parts]),
            np.concatenate([part.token_T for part in parts]),
            [np.concatenate(each) for each in zip(*(part.ids_LTK for part in parts), strict=True)],
            top1,
            parts[0].n_experts,
        )


def by_bag(bag_T: np.ndarray, n_bags: int, count: Callable[[np.ndarray], np.ndarray], into_Gx: np.ndarray) -> None:
    """Adds `count(rows)` of the rows of each bag to that bag's counts; rows stay in their order."""
    order = np.argsort(bag_T, kind="stable")
    edges = np.searchsorted(bag_T[order], np.arange(n_bags + 1))
    for bag in np.unique(bag_T).tolist():
        into_Gx[bag] += count(order[edges[bag] : edges[bag + 1]])


def p_value(observed_x: np.ndarray, drawn_Bx: np.ndarray) -> np.ndarray:
    """(b + 1)/(m + 1), b the draws at or above what was observed; NaN where it is not known."""
    at_least_x = (drawn_Bx >= observed_x - 1e-12).sum(axis=0)
    return np.where(np.isnan(observed_x), np.nan, (1 + at_least_x) / (len(drawn_Bx) + 1))


def check_draws(analysis: str, n_draws: int) -> None:
    """Refuses a number of draws under 1."""
    if n_draws < 1:
        raise AnalysisError(f"{analysis}: n_draws is {n_draws}; 1 or more was expected, {N_DRAWS} gives p down to .05.")


def layers_said(shown: list[int], every: int) -> str:
    """Which of the layers a figure shows, in words; nothing where it shows all."""
    if len(shown) == every:
        return ""
    return f" Layer{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown))} of {every} layers."


def evenly(items: list, most: int) -> list:
    """At most so many of the items, evenly spaced, the first and last among them."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]
