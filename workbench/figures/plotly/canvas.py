"""A figure of the browser before anything is drawn on it: subplots, colours, legend lines, and what a mark carries.

It knows plotly and no kind of figure; `screen` draws on it.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.figures import theme
from workbench.figures.spec import Bars, Distribution, Lines, Points
from workbench.figures.theme import DARK, ColourScale, Ink

if TYPE_CHECKING:
    import plotly.graph_objects as go

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x")
Place = tuple[int, int]  # row and column of a subplot, from 1
Parts = list[tuple[pd.DataFrame, Place]]


def as_text(value: object) -> str:
    """Text that plotly shows letter by letter: no tags, no entities, no LaTeX."""
    return "".join(_ENTITIES.get(c, c) for c in theme.printable(value))


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}


def canvas_of(figure: Any, ink: Ink, *, panel_px: int, foot_px: int) -> tuple["go.Figure", Parts]:
    """An empty figure with a subplot for each panel, and each panel's rows with its place."""
    from plotly.subplots import make_subplots

    parts = figure.parts("panel")
    n_columns = min(2, len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    plot_px = n_rows * panel_px + (n_rows - 1) * _GAP_PX
    canvas = make_subplots(
        n_rows,
        n_columns,
        shared_xaxes="all" if len(parts) > 1 else False,
        shared_yaxes="all" if len(parts) > 1 and getattr(figure, "shared_y", True) else False,
        subplot_titles=[as_text(name) for name, _ in parts] if figure.panel else None,
        vertical_spacing=_GAP_PX / plot_px if n_rows > 1 else 0,
        horizontal_spacing=0.08,
    )
    canvas.update_annotations(font_size=12)
    dress(canvas, figure, ink, plot_px=plot_px, foot_px=foot_px)
    places = [(index // n_columns + 1, index % n_columns + 1) for index in range(len(parts))]
    for row, column in places:
        if row * n_columns + column > len(parts):  # nothing below
            label = _folded(figure.x_label, 24 if n_columns > 1 else 90)
            canvas.update_xaxes(title_text=label, showticklabels=True, row=row, col=column)
        if column == 1:
            canvas.update_yaxes(title_text=_folded(figure.y_label, panel_px // 7), row=row, col=column)
    return canvas, [(part, place) for (_, part), place in zip(parts, places, strict=True)]


_GAP_PX = 44


def dress(canvas: "go.Figure", figure: Any, ink: Ink, *, plot_px: int, foot_px: int) -> None:
    """Title, colours, height, and what lets marks be hovered and clicked."""
    canvas.update_layout(
        title={"text": _folded(figure.title, 90), "x": 0, "xref": "paper", "font": {"size": 15}},
        meta={"title": figure.title, "caption": figure.caption, "alt": figure.alt, "columns": figure.columns()},
        template="none",
        height=plot_px + 70 + foot_px,
        margin={"l": 70, "r": 20, "t": 70, "b": foot_px},
        font={"color": ink.text, "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        barmode="overlay",  # places are given: bars are put side by side by their abscissas
        hovermode="closest",
        clickmode="event+select",
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        hoverlabel={"align": "left", "namelength": -1},
    )
    canvas.update_xaxes(gridcolor=ink.faint, linecolor=ink.text, zeroline=False, automargin=True)
    canvas.update_yaxes(gridcolor=ink.faint, linecolor=ink.text, zeroline=False, automargin=True)


def _folded(text: str, letters: int) -> str:
    return "<br>".join(as_text(line) for line in textwrap.wrap(text, max(letters, 12)))


def marks(figure: Any, rows: pd.DataFrame) -> dict[str, Any]:
    """What every mark carries: its row, for whoever is told of a click and for the hover, whose words are sent once.

    A row is a list in the order of `layout.meta["columns"]`: whole numbers as they are, everything else as the text
    that is shown. A map of thousands of cells is a quarter as large so as with the words beside each.
    """
    columns, labels = figure.columns(), _labels(figure)
    texts_TC = np.empty((len(rows), len(columns)), dtype=object)  # plotly walks through lists, cell by cell
    for index, column in enumerate(columns):
        texts_TC[:, index] = _shown(rows[column].tolist())
    lines = [f"{as_text(labels.get(c, c))}: %{{customdata[{i}]}}" for i, c in enumerate(columns)]
    return {"customdata": texts_TC, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def hover_texts(figure: Any, rows: pd.DataFrame) -> list[str]:
    """What a hover says of each row, for marks that cannot put it together themselves."""
    columns, labels = figure.columns(), _labels(figure)
    texts = [[f"{as_text(labels.get(c, c))}: {text}" for text in _shown(rows[c].tolist())] for c in columns]
    return ["<br>".join(lines) for lines in zip(*texts, strict=True)]


def _shown(values: list) -> list[int | str]:
    """Whole numbers as they are; other values as text, of which that of a number holds nothing to be escaped."""
    return [
        value if type(value) is int else _value(value) if type(value) is float else as_text(_value(value))
        for value in values
    ]


def _labels(figure: Any) -> dict[str, str]:
    """What the hover calls each column: what the axes and the legend call it."""
    labels = {column: column.replace("_", " ") for column in figure.columns()}
    for field in ("x", "y", "source", "target", "value", "null", "size"):
        if (column := getattr(figure, field, None)) is not None:
            labels[column] = getattr(figure, f"{field}_label")
    if getattr(figure, "low", None):
        labels |= {figure.low: f"{figure.interval_label}, from", figure.high: f"{figure.interval_label}, to"}
    if getattr(figure, "category", None):
        labels[figure.category] = figure.value_label
    return labels


def _value(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "no value"
    return theme.number(value, digits=4) if isinstance(value, float) else str(value)


def column_of(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Numbers, NaN where there are none; plotly leaves those out."""
    return rows[column].to_numpy(dtype=float, na_value=np.nan)


def tick_names(values: Sequence[object], *, fits: int) -> dict[str, Any]:
    """Names of the ranks 0, 1, … of an axis, as many as fit."""
    shown = theme.tick_indices(values, fits=fits)
    return {"tickmode": "array", "tickvals": shown, "ticktext": [as_text(values[i]) for i in shown]}


def colour_axis(scale: ColourScale, label: str, ink: Ink, *, tall_px: float) -> dict[str, Any]:
    """The colour bar. Plotly has no arrows at its ends: the outermost label says that values lie beyond."""
    named = dict(zip(scale.positions(scale.ticks).tolist(), scale.tick_labels, strict=True))
    if scale.below:
        named[0.0] = f"≤ {theme.number(scale.low)}"
    if scale.above:
        named[1.0] = f"≥ {theme.number(scale.high)}"
    palette = scale.palette(dark=ink is DARK)
    bar = {"title": {"text": _folded(label, int(tall_px / 7)), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    bar |= {"lenmode": "pixels", "len": min(tall_px, 400), "y": 1, "yanchor": "top"}
    return {
        "colorscale": [[index / (len(palette) - 1), colour] for index, colour in enumerate(palette)],
        "cmin": 0,
        "cmax": 1,
        "colorbar": {**bar, "tickvals": list(named), "ticktext": list(named.values())},
    }


def group_colours(figure: Any, ink: Ink) -> list[str]:
    """As on paper; lighter on a dark page, where the palette's blue would sink."""
    count = len(figure.order(figure.group)) if figure.group else 1
    colours = theme.category_colours([str(index) for index in range(count)]).values()
    return [theme.mixed(colour, "#ffffff", 0.25) for colour in colours] if ink is DARK else list(colours)


def add(canvas: "go.Figure", kind: str, place: Place | None = None, **options: Any) -> None:
    """One trace into a panel, or into a figure that has none."""
    import plotly.graph_objects as go

    trace = getattr(go, kind)(**options)
    canvas.add_trace(trace, *(place or ()))


def strokes(starts: np.ndarray, ends: np.ndarray) -> list[float | None]:
    """One coordinate of separate strokes in one line, as plotly wants them."""
    return [value for start, end in zip(starts.tolist(), ends.tolist(), strict=True) for value in (start, end, None)]


def legend_line(canvas: "go.Figure", name: str, **line: Any) -> None:
    """A line of the legend for what no single trace stands for."""
    add(canvas, "Scatter", x=[None], y=[None], mode="lines", name=as_text(name), line=line)


@dataclass(frozen=True)
class Group:
    """The rows of one group in one panel.

    Attributes:
        place: The panel.
        rows: The group's rows there.
        at: Their abscissas.
        colour: The group's.
        symbol: The group's.
        legend: The options that name it in the legend, once, and let a click there hide all of it.
    """

    place: Place
    rows: pd.DataFrame
    at: np.ndarray
    colour: str
    symbol: str
    legend: dict[str, Any]

    @property
    def unnamed(self) -> dict[str, Any]:
        """The options of what belongs to the group and has no line of its own in the legend."""
        return {**self.legend, "showlegend": False}


def groups(
    figure: Bars | Lines | Points | Distribution, parts: Parts, ink: Ink, *, spread: float = 0.0
) -> Iterator[Group]:
    """The groups of all panels; with a `spread` side by side around the rank of their x, else at their x."""
    colours = group_colours(figure, ink)
    rank = {value: index for index, value in enumerate(figure.order(figure.x))} if spread else {}
    for part, place in parts:
        for index, (name, rows) in enumerate(figure.parts("group", part)):
            if spread:
                shared = isinstance(figure, Bars) and figure.base is not None
                shift = 0.0 if shared else (index - (len(colours) - 1) / 2) * spread / len(colours)
                at = rows[figure.x].map(rank).to_numpy(float) + shift
            else:
                at = column_of(rows, figure.x)
            named = bool(name) and place == (1, 1)
            legend = {"name": as_text(name), "legendgroup": name, "showlegend": named}
            yield Group(place, rows, at, colours[index], SYMBOLS[index % len(SYMBOLS)], legend)
