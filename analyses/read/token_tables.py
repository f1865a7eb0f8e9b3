"""Choices of a router counted by token id, chunk by chunk, and what is read off the tables: specialization by token.

Used by `specialization`; not an analysis. Axes: T tokens of a chunk, F folds of clusters of documents, M domains, V
token ids or rows of a table, E experts, K chosen per token, B permutations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analyses.read.chunks import Chunk, Shuffles, chunks, first_choice, knows_first_choice, next_token, routing_columns
from analyses.read.controls import hashed_sets
from analyses.read.design import design
from analyses.read.order import text_columns
from analyses.read.tokens import document_rows
from workbench.metrics import heldout, vocabulary
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.statistics import folds
from workbench.statistics.design import Clusters

INPUT_TOKEN, PREDICTED, NEXT = "input token", "predicted next token", "true next token"
FIRST, ALL = "first", "all"
TABLE_TOKENS = 1 << 20  # of a chunk: tables by token id are large to add up
_DRAWN_BYTES = 1 << 26  # of the tables of permutations held at once
N_FOLDS = 8  # the fewest that give an interval, so the smallest tables


@dataclass(frozen=True, eq=False)
class Label:
    """A label of tokens: which ids it takes, and where they stand in the tables (−1: nowhere)."""

    name: str
    row_of_V: np.ndarray
    """Row of ids that occur in two folds, or often enough for the sharpness."""
    often_of_V: np.ndarray
    """Row among ids that occur often enough."""
    occurrences_FV: np.ndarray
    """Occurrences of those, by fold."""
    tokens: int
    """Tokens with this label."""

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return int(self.row_of_V.max(initial=-1)) + 1

    @property
    def n_often(self) -> int:
        """Ids that occur often enough."""
        return self.occurrences_FV.shape[1]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is the same for all layers: folds, domains, and which ids are counted."""

    clusters: Clusters
    row_of: np.ndarray
    fold_D: np.ndarray
    labels: tuple[Label, ...]
    shared_of_V: np.ndarray
    """Row of input ids that stand in two domains, in two folds each."""
    shared_tokens_VFM: np.ndarray
    shuffles: Shuffles

    @property
    def n_shared(self) -> int:
        """Ids that stand in two domains, in two folds each."""
        return len(self.shared_tokens_VFM)

    @property
    def n_ids(self) -> int:
        """One more than the largest id."""
        return len(self.shared_of_V) - 1

    @classmethod
    def of(cls, recording: Recording, *, min_count: int, seed: int) -> "Plan":
        """Reads the small columns once."""
        documents = recording.documents()
        clusters = design(recording)
        fold_D = folds.folds(
            documents["cluster"].to_numpy(), documents["domain"].to_numpy(), n_folds=N_FOLDS, seed=seed
        )
        row_of = document_rows(recording)
        n_ids = 1 + max(int(ids.max(initial=0)) for chunk in _small(recording) for ids in _label_ids(chunk).values())
        n_domains = len(clusters.domains)
        seen = {name: np.zeros((N_FOLDS, n_ids), dtype=np.int64) for name in _names(recording)}
        domain_FMV = np.zeros((N_FOLDS, n_domains, n_ids), dtype=np.int64)
        for chunk in _small(recording):
            row_T = row_of[chunk["document"]]
            for name, id_T in _label_ids(chunk).items():
                cell_T = (fold_D[row_T] * n_ids + id_T)[id_T >= 0]
                seen[name] += np.bincount(cell_T, minlength=N_FOLDS * n_ids).reshape(N_FOLDS, n_ids)
            cell_T = (fold_D[row_T] * n_domains + clusters.domain_D[row_T]) * n_ids + chunk["token"]
            domain_FMV += np.bincount(cell_T, minlength=domain_FMV.size).reshape(domain_FMV.shape)
        shared_V = ((domain_FMV > 0).sum(axis=0) >= 2).sum(axis=0) >= 2
        return cls(
            clusters=clusters,
            row_of=row_of,
            fold_D=fold_D,
            labels=tuple(_label(name, seen_FV, min_count) for name, seen_FV in seen.items()),
            shared_of_V=_rows(shared_V),
            shared_tokens_VFM=np.moveaxis(domain_FMV[:, :, shared_V], 2, 0),
            shuffles=Shuffles(seed),
        )


def _label(name: str, seen_FV: np.ndarray, min_count: int) -> Label:
    often_V = seen_FV.sum(axis=0) >= min_count
    return Label(
        name=name,
        row_of_V=_rows(often_V | ((seen_FV > 0).sum(axis=0) >= 2)),
        often_of_V=_rows(often_V),
        occurrences_FV=seen_FV[:, often_V],
        tokens=int(seen_FV.sum()),
    )


def _rows(kept_V: np.ndarray) -> np.ndarray:
    """Row among those kept; −1 for the rest, and at the end for the label −1."""
    return np.append(np.where(kept_V, np.cumsum(kept_V) - 1, -1), -1)


def _names(recording: Recording) -> list[str]:
    known = [PREDICTED] if recording.has("predicted") else []
    return [INPUT_TOKEN, *known, *([NEXT] if "position" not in recording.lacks else [])]


def _small_columns(recording: Recording) -> list[str]:
    return [*text_columns(recording), "token", *(["predicted"] if recording.has("predicted") else [])]


def _small(recording: Recording) -> Iterator[Chunk]:
    return chunks(recording, _small_columns(recording), tokens=TABLE_TOKENS)


def _label_ids(chunk: Chunk) -> dict[str, np.ndarray]:
    """Each token's id under each label, −1 where it has none."""
    ids = {INPUT_TOKEN: chunk["token"].astype(np.int64)} | ({NEXT: next_token(chunk)} if "position" in chunk else {})
    return ids | ({PREDICTED: chunk["predicted"].astype(np.int64)} if "predicted" in chunk else {})


@dataclass(frozen=True, eq=False)
class Measured:
    """One router's numbers.

    Attributes:
        sharpness: By label and choices: the value, then without each fold, then permuted: [1 + F + B].
        held_out: By label.
        given: Of the input id.
    """

    sharpness: dict[tuple[str, str], np.ndarray]
    held_out: dict[str, heldout.HeldOut]
    given: vocabulary.GivenToken


def of_router(recording: Recording, plan: Plan, router: Router, *, draws: int) -> Measured:
    """The numbers of a router, with permutations within documents."""
    read = _Read(recording, router)
    tables = _Tables(plan, router.n_experts, with_first=knows_first_choice(recording))
    for routed in read:
        tables.add(*routed)
    bytes_each = sum(label.n_often for label in plan.labels) * router.n_experts * 4 * (1 + tables.with_first)
    step = max(1, _DRAWN_BYTES // max(bytes_each, 1))
    drawn: dict[tuple[str, str], list[float]] = {}
    for start in range(0, draws, step):
        some = _Drawn(plan, router.n_experts, range(start, min(start + step, draws)))
        for routed in read:
            some.add(*routed)
        for key, values in some.sharpness().items():
            drawn.setdefault(key, []).extend(values)
    return tables.measured(router.top_k, drawn)


class _Read:
    """The small columns, the choices and the first choices of a router, chunk by chunk, as often as is asked.

    What is read of a recording of one chunk stays: its weights are read once.
    """

    def __init__(self, recording: Recording, router: Router) -> None:
        self._recording, self._columns = recording, routing_columns(recording, router)
        self._with_first = knows_first_choice(recording)
        self._only: tuple[Chunk, np.ndarray, np.ndarray | None] | None = None

    def __iter__(self) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray | None]]:
        if self._only is not None:
            yield self._only
            return
        n = 0
        columns = [*_small_columns(self._recording), *self._columns]
        for chunk in chunks(self._recording, columns, tokens=TABLE_TOKENS):
            first_T1 = first_choice(chunk, self._columns) if self._with_first else None
            small = {name: chunk[name] for name in _small_columns(self._recording)}
            routed, n = (small, chunk[self._columns[0]], first_T1), n + 1
            yield routed
        if n == 1:
            self._only = routed


def of_hash(recording: Recording, plan: Plan, *, n_experts: int, top_k: int, seed: int) -> Measured:
    """A router that sees the input id alone: K experts from a hash of it, the first choice from another hash."""
    sets_VK, first_VK = (hashed_sets(plan.n_ids, n_experts=n_experts, top_k=k, seed=seed) for k in (top_k, 1))
    tables = _Tables(plan, n_experts, with_first=knows_first_choice(recording))
    for chunk in _small(recording):
        tables.add(chunk, sets_VK[chunk["token"]], first_VK[chunk["token"]] if tables.with_first else None)
    return tables.measured(top_k, {})


class _Tables:
    """Counts of one router by label, added up over chunks."""

    def __init__(self, plan: Plan, n_experts: int, *, with_first: bool) -> None:
        self.plan, self.n_experts, self.with_first = plan, n_experts, with_first
        self.counts: dict[tuple[str, str], np.ndarray] = {}

    def add(self, chunk: Chunk, ids_TK: np.ndarray, first_T1: np.ndarray | None) -> None:
        row_T = self.plan.row_of[chunk["document"]]
        fold_T = self.plan.fold_D[row_T]
        of_labels = _label_ids(chunk)
        for label in self.plan.labels:
            id_T = of_labels[label.name]
            row_T_, often_T = label.row_of_V[id_T], label.often_of_V[id_T]
            # tokens that have the label and no row count in the last one
            in_T = np.where(id_T < 0, -1, np.where(row_T_ < 0, label.n_rows, row_T_))
            self._count((label.name, "rows"), _within(fold_T, label.n_rows + 1, in_T), ids_TK, label.n_rows + 1)
            if first_T1 is not None:
                self._count((label.name, FIRST), _within(fold_T, label.n_often, often_T), first_T1, label.n_often)
        n_domains = len(self.plan.clusters.domains)
        cell_T = fold_T * n_domains + self.plan.clusters.domain_D[row_T]
        shared_T = self.plan.shared_of_V[chunk["token"]]
        cells = N_FOLDS * n_domains
        self._count(("", "shared"), _within(shared_T, cells, cell_T), ids_TK, cells, blocks=self.plan.n_shared)

    def _count(
        self, key: tuple[str, str], cell_T: np.ndarray, ids_TK: np.ndarray, rows: int, *, blocks: int = N_FOLDS
    ) -> None:
        counts = vocabulary.count_cells(cell_T, ids_TK, n_labels=blocks * rows, n_experts=self.n_experts)
        counts = counts.reshape(blocks, rows, self.n_experts)
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts

    def measured(self, top_k: int, drawn: dict[tuple[str, str], list[float]]) -> Measured:
        sharpness, held_out = {}, {}
        for label in self.plan.labels:
            rows_FVE = self.counts[label.name, "rows"]
            held_out[label.name] = heldout.token_predictability(rows_FVE[:, :-1], rows_FVE[:, -1], top_k=top_k)
            often = label.row_of_V[np.flatnonzero(label.often_of_V[:-1] >= 0)]
            for choices in (FIRST, ALL) if self.with_first else (ALL,):
                of_FVE = self.counts[label.name, FIRST] if choices == FIRST else rows_FVE[:, often]
                values = _sharpness(of_FVE, label)
                sharpness[label.name, choices] = np.array([*values, *drawn.get((label.name, choices), [])])
        shape = (self.plan.n_shared, N_FOLDS, len(self.plan.clusters.domains), self.n_experts)
        return Measured(
            sharpness=sharpness,
            held_out=held_out,
            given=vocabulary.domain_information_given_token(
                self.counts["", "shared"].reshape(shape), self.plan.shared_tokens_VFM, top_k=top_k
            ),
        )


class _Drawn:
    """Counts of one router by label when the sets are permuted within documents, for some of the permutations."""

    def __init__(self, plan: Plan, n_experts: int, draws: range) -> None:
        self.plan, self.n_experts, self.draws = plan, n_experts, draws
        self.counts: dict[tuple[str, str, int], np.ndarray] = {}

    def add(self, chunk: Chunk, ids_TK: np.ndarray, first_T1: np.ndarray | None) -> None:
        of_labels = _label_ids(chunk)
        often = {label.name: label.often_of_V[of_labels[label.name]] for label in self.plan.labels}
        for draw in self.draws:
            order_T = self.plan.shuffles.order(chunk, draw)
            for label in self.plan.labels:
                often_T = often[label.name].take(order_T)
                for choices, chosen in ((ALL, ids_TK), (FIRST, first_T1)):
                    if chosen is not None:
                        self._count((label.name, choices, draw), often_T, chosen, label.n_often)

    def _count(self, key: tuple[str, str, int], label_T: np.ndarray, ids_TK: np.ndarray, rows: int) -> None:
        counts = vocabulary.count_cells(label_T, ids_TK, n_labels=rows, n_experts=self.n_experts)
        self.counts[key] = self.counts[key] + counts if key in self.counts else counts

    def sharpness(self) -> dict[tuple[str, str], list[float]]:
        """By label and choices, of each permutation."""
        found: dict[tuple[str, str], list[float]] = {}
        occurrences = {label.name: label.occurrences_FV.sum(axis=0) for label in self.plan.labels}
        for (name, choices, _), counts_VE in self.counts.items():
            value = vocabulary.vocabulary_specialization(counts_VE, occurrences[name], min_count=1)
            found.setdefault((name, choices), []).append(float(value))
        return found


def _within(block_T: np.ndarray, rows: int, row_T: np.ndarray) -> np.ndarray:
    return np.where((block_T < 0) | (row_T < 0), -1, block_T * rows + row_T)


def _sharpness(counts_FVE: np.ndarray, label: Label) -> list[float]:
    """The value, and without each fold. The ids are the same in all."""
    total_VE, total_V = counts_FVE.sum(axis=0), label.occurrences_FV.sum(axis=0)
    folds_of = zip(counts_FVE, label.occurrences_FV, strict=True)
    without = ((total_VE - one_VE, total_V - one_V) for one_VE, one_V in folds_of)
    return [
        float(vocabulary.vocabulary_specialization(counts_VE, tokens_V, min_count=1))
        for counts_VE, tokens_V in ((total_VE, total_V), *without)
    ]
