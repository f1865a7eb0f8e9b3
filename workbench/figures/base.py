"""What all figures have: a table, which is checked when a figure is made, and the words around it."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from workbench.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class Spec:
    """What all figures have.

    Attributes:
        table: One row per mark, in long form.
        title: One line over the figure.
        caption: What it shows, with unit, interval method and null: the text under it in a paper.
        alt: What a reader who cannot see it should know.
        panel: Column whose values get a panel each.
        hover: Further columns that the screen shows on hover.
    """

    table: pd.DataFrame
    _: KW_ONLY
    title: str
    caption: str
    alt: str
    panel: str | None = None
    hover: tuple[str, ...] = ()

    KEYS: ClassVar[tuple[str, ...]] = ("panel",)
    """Fields that name columns of positions and groups."""
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    """Fields that name columns of numbers, the one that carries the figure first."""
    TEXTS: ClassVar[tuple[str, ...]] = ()
    """Fields that name columns of texts."""
    WORDS: ClassVar[tuple[str, ...]] = ("title", "caption", "alt")
    """Fields that must not be empty."""

    def __post_init__(self) -> None:
        for field in self.WORDS:
            if not str(getattr(self, field)).strip():
                raise self._error(f"{field} is empty; say it in words, the reader has nothing else")
        for field, column in self._named():
            if column not in self.table.columns:
                known = ", ".join(map(str, self.table.columns))
                raise self._error(
                    f"{field} names the column {column!r}, which the table does not have; name one of: {known}"
                )
        if self.table.empty:
            raise self._error("the table has no rows, at least one is expected; look at what the analysis dropped")
        for column in self._columns(self.KEYS):
            if missing := int(self.table[column].isna().sum()):
                raise self._error(
                    f"column {column!r} is empty in {missing} rows; a position or group is expected in each"
                )
        for column in self._columns(self.NUMBERS):
            self._check_numbers(column)
        if (main := self._columns(self.NUMBERS[:1])) and np.isnan(self.numbers(main[0])).all():
            rows = len(self.table)
            raise self._error(f"column {main[0]!r} is NaN in all {rows} rows, a number is expected in at least one")

    def _named(self) -> Iterator[tuple[str, str]]:
        for field in (*self.KEYS, *self.NUMBERS, *self.TEXTS):
            if (column := getattr(self, field)) is not None:
                yield field, column
        yield from (("hover", column) for column in self.hover)

    def _columns(self, fields: tuple[str, ...]) -> list[str]:
        return [column for field in fields if (column := getattr(self, field)) is not None]

    def _check_numbers(self, column: str) -> None:
        if not pd.api.types.is_numeric_dtype(self.table[column]):
            raise self._error(
                f"column {column!r} holds {self.table[column].dtype}, numbers are expected; convert it first"
            )
        if np.isinf(self.numbers(column)).any():
            raise self._error(f"column {column!r} holds an infinite value; use NaN for what is not known")

    def _check_positive(self, *columns: str | None) -> None:
        for column in columns:
            if column is not None and (self.numbers(column) < 0).any():
                raise self._error(f"log is set and column {column!r} is below zero somewhere; use log=False")

    def _check_rises(self, lower: str, upper: str) -> None:
        crossed = np.flatnonzero(self.numbers(lower) > self.numbers(upper))
        if crossed.size:
            where = f"column {lower!r} exceeds column {upper!r} in row {crossed[0]}"
            raise self._error(f"{where}; the lower one is expected in {lower!r}")

    def _check_once(self, *columns: str | None) -> None:
        keys = [column for column in columns if column is not None]
        doubled = self.table.duplicated(keys, keep=False)
        if doubled.any():
            row = ", ".join(f"{k} {v}" for k, v in self.table.loc[doubled, keys].iloc[0].items())
            raise self._error(f"{row} stands in more than one row, one is expected; aggregate in the analysis")

    def _error(self, sentence: str) -> AnalysisError:
        return AnalysisError(f"{type(self).__name__} {self.title!r}: {sentence}.")

    def columns(self) -> list[str]:
        """Every column that the figure uses, once."""
        return list(dict.fromkeys(column for _, column in self._named()))

    def numbers(self, column: str) -> np.ndarray:
        """A column as float64, NaN where it is empty."""
        return self.table[column].to_numpy(dtype=float, na_value=np.nan)

    def order(self, column: str) -> list:
        """The distinct values of a column: numbers ascending, categories in their order, the rest as they come."""
        values = self.table[column]
        if isinstance(values.dtype, pd.CategoricalDtype):
            present = set(values)
            return [value for value in values.cat.categories if value in present]
        distinct = values.drop_duplicates().tolist()
        return sorted(distinct) if pd.api.types.is_numeric_dtype(values) else distinct

    def parts(self, field: str, within: pd.DataFrame | None = None) -> list[tuple[str, pd.DataFrame]]:
        """The table, or rows of it, cut by the column that `field` ("panel" or "group") names; else in one part.

        The parts come in the order of the whole table, empty ones too: the n-th group is the n-th in every panel.
        """
        table = self.table if within is None else within
        column = getattr(self, field)
        if column is None:
            return [("", table)]
        return [(self.name(column, value), table[table[column] == value]) for value in self.order(column)]

    def name(self, column: str, value: object) -> str:
        """How a panel or group is called: a number needs its column's name, "layer 3"."""
        return (
            f"{column.replace('_', ' ')} {value}" if pd.api.types.is_numeric_dtype(self.table[column]) else str(value)
        )
