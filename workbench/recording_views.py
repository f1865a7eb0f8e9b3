"""A part of a recording, read as if it were one: one phase, some layers, some documents; and experts under other ids.

Nothing is copied: rows are left out, and numbers replaced, while parts are read. A view has the digest of its whole.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.recording import Recording
from workbench.recording_schema import prefix

_BY_EXPERT = ("counts", "score_sum", "weight_sum", "logits", "contribution_sum")


class View(Recording):
    """Rows of a recording: those of a phase, and of the documents that have a number here."""

    phase: str | None = None
    number_of: np.ndarray | None = None
    """Of each document number of the whole: its number here, −1 where it is left out; None for all as they are."""

    @classmethod
    def of(cls, recording: Recording, **changed: Any) -> "View":
        """A view of a recording or of a view, with some of its attributes changed."""
        kind = type(recording) if isinstance(recording, cls) else cls
        view = kind(recording.path, recording.manifest)
        vars(view).update({**vars(recording), **changed})
        return view

    @property
    def chosen_phase(self) -> str | None:
        """The phase that was chosen of several."""
        return self.phase

    @property
    def _rows_of_document(self) -> str | None:
        return f"phase {self.phase}" if type(self) is View and self.number_of is None else None

    @property
    def n_tokens(self) -> int:
        """T, tokens of the documents that are here."""
        return int(self.column("tokens", table="documents").sum())

    @property
    def n_documents(self) -> int:
        """Rows of the documents table that are here."""
        return len(self.column("document", table="documents"))

    def parts(self, columns: list[str], *, table: str = "tokens") -> Iterator[dict[str, np.ndarray]]:
        """As of a recording, with the rows that are here."""
        needed = [*(["phase"] if self.phase else []), *(["document"] if self.number_of is not None else [])]
        for part in super().parts(list(dict.fromkeys([*columns, *needed])), table=table):
            kept, document = self._rows_here(part)
            if document is not None:
                part["document"] = document
            yield {name: part[name] if kept.all() else part[name][kept] for name in columns}

    def _rows_here(self, rows: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Which rows belong here, and the numbers of all rows' documents."""
        whole = np.asarray(rows["document"]) if "document" in rows else None
        number = None if self.number_of is None or whole is None else self.number_of[whole].astype(whole.dtype)
        of_phase = [np.asarray(rows["phase"] == self.phase)] if self.phase else []
        numbered = [] if number is None else [number >= 0]
        return np.logical_and.reduce(
            [np.ones(len(next(iter(rows.values()))), dtype=bool), *of_phase, *numbered]
        ), number

    def _frame(self, table: str, columns: tuple[str, ...]) -> pd.DataFrame:
        frame = super()._frame(table, columns)
        kept, document = self._rows_here({name: frame[name] for name in ("document", "phase") if name in frame})
        if document is not None:
            frame["document"] = document
        return frame[kept].reset_index(drop=True)


def of_phase(recording: Recording, phase: str) -> View:
    """The rows of one phase of a recording that holds two."""
    return View.of(recording, phase=phase, manifest={**recording.manifest, "phases": [phase]})


def of_documents(recording: Recording, numbers: np.ndarray, *, as_numbers: np.ndarray | None = None) -> View:
    """The rows of some documents.

    Args:
        recording: Whose.
        numbers: Of the documents; those that there are not are passed over.
        as_numbers: The number that each has here; its own where it is None.
    """
    before = recording.column("document", table="documents").astype(np.int64)
    number_of = np.full(int(before.max()) + 1, -1, dtype=np.int64)
    there = np.isin(numbers, before)
    number_of[numbers[there]] = (numbers if as_numbers is None else as_numbers)[there]
    earlier = recording.number_of if isinstance(recording, View) else None
    if earlier is not None:  # the whole's numbers lead to this view's through the numbers of the view it is of
        number_of = np.where(earlier >= 0, number_of[np.maximum(earlier, 0)], -1)
    return View.of(recording, number_of=number_of)


def of_layers(recording: Recording, layers: tuple[int, ...]) -> Recording:
    """A recording with the routers of some layers alone."""
    view = copy.copy(recording)
    stated = recording.topology.to_json()
    routers = [router for router in stated["routers"] if router["layer"] in layers]
    view.manifest = {**recording.manifest, "topology": {**stated, "routers": routers}}
    view.topology = type(recording.topology).from_json(view.manifest["topology"])
    return view


class Renamed(View):
    """A recording whose experts have other ids: in each document those of its half, by router.

    Attributes:
        half_of: 0 or 1 for each document number of the view.
        label_of: By column prefix of a router: the id here of each expert, [2, E].
    """

    half_of: np.ndarray
    label_of: Mapping[str, np.ndarray]

    def parts(self, columns: list[str], *, table: str = "tokens") -> Iterator[dict[str, np.ndarray]]:
        """As of a recording, experts under their ids here."""
        for part in super().parts(list(dict.fromkeys([*columns, "document"])), table=table):
            half = self.half_of[part["document"]]
            yield {name: self._renamed(name, part[name], half) for name in columns}

    def _renamed(self, name: str, values: np.ndarray, half: np.ndarray) -> np.ndarray:
        at, _, what = name.rpartition(".")
        if at not in self.label_of or what not in ("ids", *_BY_EXPERT):
            return values
        label_2E = self.label_of[at]
        if what == "ids":
            return label_2E[half[:, None], values].astype(values.dtype)
        out = np.empty_like(values)
        for h in (0, 1):
            rows = np.flatnonzero(half == h)
            out[rows[:, None], label_2E[h]] = values[rows]
        return out


def renamed(recording: Recording, half_of: np.ndarray, label_of: Mapping[tuple[int, str], np.ndarray]) -> Renamed:
    """A recording whose experts have the ids `label_of[layer, site]`, [2, E]: a row for each half of documents."""
    by_prefix = {
        prefix(router, recording.topology): label_of[router.layer, router.site] for router in recording.topology.routers
    }
    return Renamed.of(recording, half_of=half_of, label_of=by_prefix)  # type: ignore[return-value]  # `of` makes a cls
