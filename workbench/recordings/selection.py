"""A part of a recording, read as if it were one: one phase, some layers, some documents; and experts under other ids.

Nothing is copied: rows are left out, and numbers replaced, while parts are read. A part has the digest of its whole.
Axes: T tokens, E experts.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.recordings.schema import prefix

if TYPE_CHECKING:
    from workbench.recordings.recording import Recording

_BY_EXPERT = ("counts", "score_sum", "weight_sum", "logits", "contribution_sum")


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows of a recording are read, and under which numbers.

    Attributes:
        phase: Rows of this phase alone; None for all.
        number_of: Of each document number of the whole: its number here, −1 where it is left out; None for all as
            they are.
        half_of: 0 or 1 for each document number here, where experts have other ids.
        label_of: By column prefix of a router: the id here of each expert, [2, E], a row for each half of documents.
        looked_up: Columns whose rows come from elsewhere: by name, the column that says which row, and the rows.
    """

    phase: str | None = None
    number_of: np.ndarray | None = None
    half_of: np.ndarray | None = None
    label_of: Mapping[str, np.ndarray] = field(default_factory=dict)
    looked_up: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.phase is not None or self.changes_documents

    @property
    def changes_documents(self) -> bool:
        """Whether documents have other numbers here, or their rows other values."""
        return self.number_of is not None or self.half_of is not None or bool(self.looked_up)

    def needs(self, columns: Sequence[str]) -> list[str]:
        """The columns to read for these."""
        of_rows = ["phase"] if self.phase else []
        of_documents = ["document"] if self.number_of is not None or self.half_of is not None else []
        read = [self.looked_up[name][0] if name in self.looked_up else name for name in columns]
        return list(dict.fromkeys([*read, *of_rows, *of_documents]))

    def of(self, read: Mapping[str, np.ndarray], columns: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns as they are here, of what was read of a part."""
        kept_T, document_T = self._rows(read)
        given = read if document_T is None else {**read, "document": document_T}
        here = {name: given[name] if kept_T.all() else given[name][kept_T] for name in self.needs(columns)}
        if self.half_of is not None:
            half_T = self.half_of[here["document"]]
            here = {name: self._renamed(name, values, half_T) for name, values in here.items()}
        for name in self.looked_up.keys() & set(columns):
            key, rows = self.looked_up[name]
            here[name] = rows[here[key]]
        return {name: here[name] for name in columns}

    def frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that are here."""
        kept_T, document_T = self._rows({name: frame[name] for name in ("document", "phase") if name in frame})
        if document_T is not None:
            frame["document"] = document_T
        return frame[kept_T].reset_index(drop=True)

    def _rows(self, rows: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Which rows belong here, and the numbers of all rows' documents where they change."""
        kept_T = np.ones(len(next(iter(rows.values()))), dtype=bool)
        if self.phase:
            kept_T &= np.asarray(rows["phase"] == self.phase)
        if self.number_of is None or "document" not in rows:
            return kept_T, None
        whole_T = np.asarray(rows["document"])
        number_T = self.number_of[whole_T].astype(whole_T.dtype)
        return kept_T & (number_T >= 0), number_T

    def _renamed(self, name: str, values: np.ndarray, half_T: np.ndarray) -> np.ndarray:
        at, _, what = name.rpartition(".")
        if at not in self.label_of or what not in ("ids", *_BY_EXPERT):
            return values
        label_2E = self.label_of[at]
        if what == "ids":
            return label_2E[half_T[:, None], values].astype(values.dtype)
        out = np.empty_like(values)
        for h in (0, 1):
            rows = np.flatnonzero(half_T == h)
            out[rows[:, None], label_2E[h]] = values[rows]
        return out


def of_documents(recording: "Recording", numbers: np.ndarray, *, as_numbers: np.ndarray | None = None) -> "Recording":
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
    earlier = recording.selection.number_of
    if earlier is not None:  # the whole's numbers lead here through the numbers of the part it is of
        number_of = np.where(earlier >= 0, number_of[np.maximum(earlier, 0)], -1)
    half_of = recording.selection.half_of
    if half_of is not None:  # the half of a document goes with it to its number here
        renumbered = np.zeros(int(number_of.max()) + 1, dtype=half_of.dtype)
        renumbered[(numbers if as_numbers is None else as_numbers)[there]] = half_of[numbers[there]]
        return recording.selected(number_of=number_of, half_of=renumbered)
    return recording.selected(number_of=number_of)


def of_layers(recording: "Recording", layers: tuple[int, ...]) -> "Recording":
    """A recording with the routers of some layers alone."""
    part = copy.copy(recording)
    stated = recording.topology.to_json()
    routers = [router for router in stated["routers"] if router["layer"] in layers]
    part.manifest = {**recording.manifest, "topology": {**stated, "routers": routers}}
    part.topology = type(recording.topology).from_json(part.manifest["topology"])
    return part


def renamed(recording: "Recording", half_of: np.ndarray, label_of: Mapping[tuple[int, str], np.ndarray]) -> "Recording":
    """A recording whose experts have the ids `label_of[layer, site]`, [2, E]: a row for each half of documents."""
    topology = recording.topology
    by_prefix = {prefix(router, topology): label_of[router.layer, router.site] for router in topology.routers}
    return recording.selected(half_of=half_of, label_of=by_prefix)
