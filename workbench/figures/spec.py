"""What a figure shows: a table in long form, which of its columns go where, and the words around it.

A spec is data. It neither computes a statistic nor draws: the table is the analysis', `screen` and `paper` draw it.
Every spec is checked when it is made, so that a renderer never meets a column that is not there.
"""

import itertools
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from workbench.figures.base import Spec


@dataclass(frozen=True, eq=False)
class HeatMap(Spec):
    """Cells coloured by a value; rows run downwards.

    Attributes:
        x: Column of the cells' columns.
        y: Column of the cells' rows.
        value: Column of the values; NaN is drawn as "no value".
        x_label: What x is.
        y_label: What y is.
        value_label: What the value is, with its unit.
        center: Value that gets the neutral colour of a diverging palette; None for a sequential one.
        log: Whether colours follow the logarithm; zeros are then drawn at the low end.
        square: Whether a cell is about as high as wide, and what the table has no row for stays blank (a triangle).
    """

    x: str
    y: str
    value: str
    _: KW_ONLY
    x_label: str
    y_label: str
    value_label: str
    center: float | None = None
    log: bool = False
    square: bool = False

    KEYS: ClassVar[tuple[str, ...]] = ("x", "y", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("value",)
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "x_label", "y_label", "value_label")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_once(self.x, self.y, self.panel)
        if self.log:
            self._check_positive(self.value)
            if self.center is not None and self.center <= 0:
                raise self._error(f"log is set and center is {self.center}; a center above zero is expected")


@dataclass(frozen=True, eq=False)
class _Series(Spec):
    """A value over positions, with its interval and the value expected under the null.

    Attributes:
        x: Column of positions.
        y: Column of values.
        x_label: What x is.
        y_label: What y is, with its unit.
        low: Column of the intervals' lower ends; NaN where there is no interval.
        high: Column of the intervals' upper ends.
        interval_label: The interval's level and method, for the legend.
        group: Column whose values get a colour each.
        null: Column of the values expected under the null.
        null_label: The null's name, for the legend.
        shared_y: Whether panels share one y axis; False where panels have units of their own.
    """

    x: str
    y: str
    _: KW_ONLY
    x_label: str
    y_label: str
    low: str | None = None
    high: str | None = None
    interval_label: str = "95 % interval"
    group: str | None = None
    null: str | None = None
    null_label: str = "expected under the null"
    shared_y: bool = True

    KEYS: ClassVar[tuple[str, ...]] = ("x", "group", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("y", "low", "high", "null")
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "x_label", "y_label", "interval_label", "null_label")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_once(self.x, self.group, self.panel)
        if (self.low is None) != (self.high is None):
            raise self._error(f"low is {self.low!r} and high is {self.high!r}; name both columns or neither")
        if self.low is not None and self.high is not None:
            self._check_rises(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Bars(_Series):
    """Bars over categories or layers, side by side by group; from zero, or each from a base of its own (a waterfall).

    Attributes:
        base: Column of where the bars begin; groups then share one place, and tell kinds of steps apart.
        label: Column of short texts at the bars' ends.
    """

    _: KW_ONLY
    base: str | None = None
    label: str | None = None

    NUMBERS: ClassVar[tuple[str, ...]] = (*_Series.NUMBERS, "base")
    TEXTS: ClassVar[tuple[str, ...]] = ("label",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is not None:
            self._check_once(self.x, self.panel)
            if np.isnan(self.numbers(self.base)).any():
                raise self._error(f"column {self.base!r} is NaN somewhere; a number is expected where each bar begins")

    def tops(self, rows: pd.DataFrame) -> np.ndarray:
        """The highest place of each bar, its interval's upper end among them: over it is room for a label."""
        ends = [column for column in (self.base, self.y, self.high) if column is not None]
        return rows[ends].to_numpy(dtype=float, na_value=-np.inf).max(axis=1)


@dataclass(frozen=True, eq=False)
class Lines(_Series):
    """Lines over numbers or layers: up to a dozen points with markers and error bars, more with bands.

    Attributes:
        log: Whether the y axis is logarithmic.
    """

    _: KW_ONLY
    log: bool = False

    NUMBERS: ClassVar[tuple[str, ...]] = ("y", "x", "low", "high", "null")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log:
            self._check_positive(self.y, self.low, self.high, self.null)

    def has_one_null(self) -> bool:
        """Whether the null is the same for all groups, so that one line can show it."""
        if self.null is None:
            return False
        position = [self.x, *([self.panel] if self.panel else [])]
        return bool((self.table.groupby(position)[self.null].nunique() <= 1).all())


@dataclass(frozen=True, eq=False)
class Points(Spec):
    """A point per row.

    Attributes:
        x: Column of the abscissa.
        y: Column of the ordinate.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        group: Column whose values get a colour and a marker each.
        size: Column that the markers' areas are proportional to, at least zero.
        size_label: What the size is, with its unit.
        label: Column of texts beside the points; a text that would cover another is left out on paper.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axis is logarithmic.
    """

    x: str
    y: str
    _: KW_ONLY
    x_label: str
    y_label: str
    group: str | None = None
    size: str | None = None
    size_label: str = ""
    label: str | None = None
    log_x: bool = False
    log_y: bool = False

    KEYS: ClassVar[tuple[str, ...]] = ("group", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("y", "x", "size")
    TEXTS: ClassVar[tuple[str, ...]] = ("label",)
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "x_label", "y_label")

    def __post_init__(self) -> None:
        super().__post_init__()
        for log, column in ((self.log_x, self.x), (self.log_y, self.y)):
            if log:
                self._check_positive(column)
        if self.size is not None and not self.size_label.strip():
            raise self._error(f"size names the column {self.size!r} and size_label is empty; say what the size is")
        if self.size is not None and (self.numbers(self.size) < 0).any():
            raise self._error(f"column {self.size!r} is below zero somewhere; an area is expected, at least zero")


@dataclass(frozen=True, eq=False)
class Distribution(Spec):
    """Boxes from quantiles: the middle half as a box, 5–95 % as a whisker, median and mean marked.

    Attributes:
        x: Column of the distributions' positions (layer, domain).
        x_label: What x is.
        y_label: What is distributed, with its unit.
        group: Column whose values get a colour each.
        null: Column of the values expected under the null.
        null_label: The null's name, for the legend.
        log: Whether the y axis is logarithmic.
        q05: Column of the 5 % quantiles; so too q25, q50, q75, q95.
        mean: Column of the means.
    """

    x: str
    _: KW_ONLY
    x_label: str
    y_label: str
    group: str | None = None
    null: str | None = None
    null_label: str = "expected under the null"
    log: bool = False
    q05: str = "q05"
    q25: str = "q25"
    q50: str = "q50"
    q75: str = "q75"
    q95: str = "q95"
    mean: str = "mean"

    KEYS: ClassVar[tuple[str, ...]] = ("x", "group", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("q50", "q05", "q25", "q75", "q95", "mean", "null")
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "x_label", "y_label", "null_label")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_once(self.x, self.group, self.panel)
        quantiles = (self.q05, self.q25, self.q50, self.q75, self.q95)
        for lower, upper in itertools.pairwise(quantiles):
            self._check_rises(lower, upper)
        if self.log:
            self._check_positive(*quantiles, self.mean, self.null)


@dataclass(frozen=True, eq=False)
class TokenStrip(Spec):
    """A text as its tokens, in order, one row each, coloured by a number or by a category.

    Attributes:
        text: Column of the tokens' texts; anything may stand in it, and none of it is ever markup.
        value: Column of numbers to colour by; NaN is drawn as "no value".
        category: Column of categories to colour by; give this or `value`.
        value_label: What the colour says, with its unit.
        center: As for a heat map.
        log: As for a heat map.
    """

    text: str
    _: KW_ONLY
    value_label: str
    value: str | None = None
    category: str | None = None
    center: float | None = None
    log: bool = False

    KEYS: ClassVar[tuple[str, ...]] = ("category", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("value",)
    TEXTS: ClassVar[tuple[str, ...]] = ("text",)
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "value_label")

    def __post_init__(self) -> None:
        if (self.value is None) == (self.category is None):
            given = f"value is {self.value!r} and category is {self.category!r}"
            raise self._error(f"{given}; name one of them to colour by, the other can go into hover")
        super().__post_init__()
        if self.log and self.value is not None:
            self._check_positive(self.value)


@dataclass(frozen=True, eq=False)
class Flow(Spec):
    """Streams from one column of nodes to another, as wide as their values.

    Attributes:
        source: Column of the nodes where the streams begin.
        target: Column of the nodes where they end.
        value: Column of the streams' widths, at least zero; NaN and zero draw nothing.
        source_label: What the sources are.
        target_label: What the targets are.
        value_label: What the width is, with its unit.
    """

    source: str
    target: str
    value: str
    _: KW_ONLY
    source_label: str
    target_label: str
    value_label: str

    KEYS: ClassVar[tuple[str, ...]] = ("source", "target", "panel")
    NUMBERS: ClassVar[tuple[str, ...]] = ("value",)
    WORDS: ClassVar[tuple[str, ...]] = (*Spec.WORDS, "source_label", "target_label", "value_label")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.panel is not None:
            raise self._error(f"panel is {self.panel!r}, and a flow has none; make a figure of each")
        self._check_once(self.source, self.target)
        if (self.numbers(self.value) < 0).any():
            raise self._error(f"column {self.value!r} is below zero somewhere; a width is expected, at least zero")
        if not np.nansum(self.numbers(self.value)) > 0:
            raise self._error(f"column {self.value!r} is zero everywhere; a stream is expected")


Figure = HeatMap | Bars | Lines | Points | Distribution | TokenStrip | Flow
