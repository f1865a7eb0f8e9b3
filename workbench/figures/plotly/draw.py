"""Figures for the browser: plotly, with hover and with marks that can be clicked.

Each mark carries its row as `customdata`, so that a page can link selections; each figure carries the names of the
columns, its caption and its text alternative in `layout.meta`. Nothing is computed here but places. Plotly reads a
little HTML in every text: all text passes through `as_text`, because tokens and names are what other people wrote.
"""

import math
import unicodedata
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.figures import theme
from workbench.figures.plotly.canvas import (
    Group,
    add,
    as_text,
    canvas_of,
    colour_axis,
    column_of,
    dress,
    groups,
    legend_line,
    marks,
    strokes,
    tick_names,
)
from workbench.figures.plotly.flow import draw_sankey
from workbench.figures.spec import Bars, Distribution, Figure, Flow, HeatMap, Lines, Points, TokenStrip
from workbench.figures.theme import DARK, FEW_POINTS, LIGHT, ColourScale, Ink

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTH_PX = 900  # what a page usually has; only the size of the marks to click depends on it
LINE_CELLS = 96  # the length of a line of tokens, in monospaced letters


def screen(figure: Figure, *, dark: bool = False) -> "go.Figure":
    """Draws a figure for the browser.

    Args:
        figure: What to draw.
        dark: Whether the page is dark.

    Returns:
        A plotly figure without a width: it takes its container's. Streamlit's own theme would replace its colours:
        show it with `theme=None`.
    """
    return _DRAW[type(figure)](figure, DARK if dark else LIGHT)


def _heat_map(figure: HeatMap, ink: Ink) -> "go.Figure":
    xs, ys = figure.order(figure.x), figure.order(figure.y)
    scale = ColourScale.of(figure.numbers(figure.value), center=figure.center, log=figure.log)
    row_px = min(460 / len(ys), 60) if figure.square else min(max(420 / len(ys), 12), 32)
    canvas, parts = canvas_of(figure, ink, panel_px=int(row_px * len(ys)), foot_px=50)
    column_at, row_at = ({value: index for index, value in enumerate(values)} for values in (xs, ys))
    across = max(column for _, (_, column) in parts)
    side_px = max(4.0, 0.9 * min(WIDTH_PX / across / len(xs), row_px))
    for part, place in parts:
        columns, rows = part[figure.x].map(column_at).to_numpy(int), part[figure.y].map(row_at).to_numpy(int)
        cells_YX = np.full((len(ys), len(xs)), np.nan)
        cells_YX[rows, columns] = scale.positions(column_of(part, figure.value))
        cells = [[None if math.isnan(cell) else cell for cell in row] for row in cells_YX.tolist()]
        add(canvas, "Heatmap", place, z=cells, coloraxis="coloraxis", hoverinfo="skip")
        # Streamlit hears no click on a heat map; it hears one on these squares, which show only where selected.
        marker = {"symbol": "square-open", "size": side_px, "opacity": 0, "color": ink.text, "line": {"width": 2}}
        unseen = {"selected": {"marker": {"opacity": 1}}, "unselected": {"marker": {"opacity": 0}}, "showlegend": False}
        at = {"x": columns.tolist(), "y": rows.tolist()}
        add(canvas, "Scatter", place, mode="markers", marker=marker, **at, **unseen, **marks(figure, part))
        if np.isnan(cells_YX).any() and not figure.square:
            canvas.update_layout(plot_bgcolor=ink.missing)
    canvas.update_layout(coloraxis=colour_axis(scale, figure.value_label, ink, tall_px=canvas.layout.height - 120))
    canvas.update_xaxes(showgrid=False, range=[-0.5, len(xs) - 0.5], **tick_names(xs, fits=20 // across))
    fits = 20 if figure.square else int(len(ys) * row_px / 16)  # a square is as small as the page is narrow
    canvas.update_yaxes(showgrid=False, range=[len(ys) - 0.5, -0.5], **tick_names(ys, fits=fits))
    if figure.square:
        canvas.update_yaxes(scaleanchor="x", constrain="domain")
        canvas.update_xaxes(constrain="domain")
    return canvas


def _bars(figure: Bars, ink: Ink) -> "go.Figure":
    canvas, parts = canvas_of(figure, ink, panel_px=_plot_px(figure), foot_px=110)
    wide = 0.8 / (1 if figure.base else _count(figure))
    for group in groups(figure, parts, ink, spread=0.8):
        bar = {"x": group.at, "y": column_of(group.rows, figure.y), "width": wide * 0.92}
        if figure.base:
            begin = column_of(group.rows, figure.base)
            bar |= {"base": begin, "y": bar["y"] - begin}
        add(
            canvas,
            "Bar",
            group.place,
            marker={"color": group.colour},
            **bar,
            **group.legend,
            **marks(figure, group.rows),
        )
        _null_ticks(canvas, figure, group, ink, wide=wide)
        _whiskers(canvas, figure, group, colour=ink.text)
        if figure.label:
            said = {"mode": "text", "text": [as_text(text) for text in group.rows[figure.label]], "hoverinfo": "skip"}
            look = {"textposition": "top center", "cliponaxis": False, "textfont": {"color": ink.text}}
            add(canvas, "Scatter", group.place, x=group.at, y=figure.tops(group.rows), **said, **look, **group.unnamed)
    _name_marks(canvas, figure, ink)
    _rank_axis(canvas, figure)
    if figure.base and figure.panel is None:  # bars without a height would push the others aside
        canvas.update_xaxes(range=[-0.6, len(figure.order(figure.x)) - 0.4])
    return canvas


def _lines(figure: Lines, ink: Ink) -> "go.Figure":
    canvas, parts = canvas_of(figure, ink, panel_px=_plot_px(figure), foot_px=110)
    values = figure.order(figure.x)
    few = len(values) <= FEW_POINTS
    for group in groups(figure, parts, ink):
        if few:
            _whiskers(canvas, figure, group, colour=group.colour)
        elif figure.low and figure.high:
            band = _band(group.at, column_of(group.rows, figure.low), column_of(group.rows, figure.high))
            fill = {"fill": "toself", "fillcolor": group.colour, "opacity": 0.2, "line": {"width": 0}}
            add(canvas, "Scatter", group.place, mode="lines", hoverinfo="skip", **band, **fill, **group.unnamed)
        if figure.null:
            colour = group.colour if figure.group and not figure.has_one_null() else ink.text
            null = {"x": group.at, "y": column_of(group.rows, figure.null), "line": _null_line(colour)}
            add(canvas, "Scatter", group.place, mode="lines", hoverinfo="skip", **null, **group.unnamed)
        look = {
            "line": {"color": group.colour, "width": 2},
            "marker": {"symbol": group.symbol, "size": 8 if few else 5},
        }
        line = {"x": group.at, "y": column_of(group.rows, figure.y), "mode": "lines+markers", **look}
        add(canvas, "Scatter", group.place, **line, **group.legend, **marks(figure, group.rows))
    _name_marks(canvas, figure, ink)
    if few:
        canvas.update_xaxes(tickmode="array", tickvals=values)
    canvas.update_yaxes(type="log" if figure.log else "linear")
    return canvas


def _points(figure: Points, ink: Ink) -> "go.Figure":
    canvas, parts = canvas_of(figure, ink, panel_px=int(1.3 * _plot_px(figure)), foot_px=110)
    largest = float(np.nanmax(figure.numbers(figure.size))) if figure.size else 0.0
    for group in groups(figure, parts, ink):
        areas = column_of(group.rows, figure.size) / (largest or 1.0) if figure.size else None
        size_px = 9.0 if areas is None else 22 * np.sqrt(np.nan_to_num(areas))
        texts = None
        if figure.label:
            texts = ["" if pd.isna(text) else as_text(text) for text in group.rows[figure.label]]
        look = {"mode": "markers+text" if texts else "markers", "text": texts, "textposition": "top center"}
        marker = {"color": group.colour, "symbol": group.symbol, "size": size_px, "opacity": 0.85}
        at = {"x": group.at, "y": column_of(group.rows, figure.y), "marker": marker}
        add(canvas, "Scatter", group.place, **at, **look, **group.legend, **marks(figure, group.rows))
    if figure.size:
        canvas.update_layout(legend={"title": {"text": as_text(f"area: {figure.size_label}  ")}})
    canvas.update_xaxes(type="log" if figure.log_x else "linear", exponentformat="power")
    canvas.update_yaxes(type="log" if figure.log_y else "linear", exponentformat="power")
    return canvas


def _distribution(figure: Distribution, ink: Ink) -> "go.Figure":
    canvas, parts = canvas_of(figure, ink, panel_px=_plot_px(figure), foot_px=110)
    wide = 0.8 / _count(figure)
    ends = {"q1": figure.q25, "median": figure.q50, "q3": figure.q75, "mean": figure.mean}
    ends |= {"lowerfence": figure.q05, "upperfence": figure.q95}
    for group in groups(figure, parts, ink, spread=0.8):
        box = {field: column_of(group.rows, column) for field, column in ends.items()}
        look = {
            "line": {"color": group.colour, "width": 1.5},
            "width": wide * 0.8,
            "boxmean": True,
            "hoverinfo": "skip",
        }
        add(canvas, "Box", group.place, x=group.at, **box, **look, **group.legend)
        _null_ticks(canvas, figure, group, ink, wide=wide)
        # A box made of quantiles tells of no click, and hovers its own numbers only: the mark on its median does both.
        dot = {"mode": "markers", "marker": {"size": 9, "color": group.colour}, "y": box["median"]}
        add(canvas, "Scatter", group.place, x=group.at, **dot, **group.unnamed, **marks(figure, group.rows))
    _name_marks(canvas, figure, ink)
    _rank_axis(canvas, figure)
    canvas.update_yaxes(type="log" if figure.log else "linear")
    return canvas


def _plot_px(figure: Bars | Lines | Points | Distribution) -> int:
    return 300 if figure.panel is None else 180


def _count(figure: Bars | Distribution) -> int:
    return len(figure.order(figure.group)) if figure.group else 1


def _rank_axis(canvas: "go.Figure", figure: Bars | Distribution) -> None:
    values = figure.order(figure.x)
    # No range here: plotly 7.1 then scales y axes that panels share as if they were empty.
    canvas.update_xaxes(showgrid=False, **tick_names(values, fits=20))


def _null_line(colour: str) -> dict[str, Any]:
    return {"color": colour, "width": 1.5, "dash": "dash"}


def _null_ticks(canvas: "go.Figure", figure: Bars | Distribution, group: Group, ink: Ink, *, wide: float) -> None:
    if figure.null:
        null = column_of(group.rows, figure.null)
        at = {"x": strokes(group.at - wide / 2, group.at + wide / 2), "y": strokes(null, null)}
        line = {"mode": "lines", "line": _null_line(ink.text), "hoverinfo": "skip"}
        add(canvas, "Scatter", group.place, **at, **line, **group.unnamed)


def _whiskers(canvas: "go.Figure", figure: Bars | Lines, group: Group, *, colour: str) -> None:
    if figure.low and figure.high:
        ends = strokes(column_of(group.rows, figure.low), column_of(group.rows, figure.high))
        line = {"mode": "lines", "line": {"color": colour, "width": 1.5}, "hoverinfo": "skip"}
        add(canvas, "Scatter", group.place, x=strokes(group.at, group.at), y=ends, **line, **group.unnamed)


def _name_marks(canvas: "go.Figure", figure: Bars | Lines | Distribution, ink: Ink) -> None:
    if not isinstance(figure, Distribution) and figure.low:
        banded = isinstance(figure, Lines) and len(figure.order(figure.x)) > FEW_POINTS
        look = {"color": ink.faint, "width": 10} if banded else {"color": ink.text, "width": 1.5}
        legend_line(canvas, figure.interval_label, **look)
    if figure.null:
        legend_line(canvas, figure.null_label, **_null_line(ink.text))


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, list[float | None]]:
    """The outline of a band, in pieces where the interval is missing: it does not bridge what is not known."""
    outline: dict[str, list[float | None]] = {"x": [], "y": []}
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for piece in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        outline["x"] += [*x[piece].tolist(), *x[piece][::-1].tolist(), None]
        outline["y"] += [*low[piece].tolist(), *high[piece][::-1].tolist(), None]
    return outline


def _token_strip(figure: TokenStrip, ink: Ink) -> "go.Figure":
    """Tokens as bars laid end to end: bars hold their text, and tell of hover and click."""
    import plotly.graph_objects as go

    scale: ColourScale | None = None
    palette: dict[Hashable, str] = {}
    if figure.value is not None:
        scale = ColourScale.of(figure.numbers(figure.value), center=figure.center, log=figure.log)
    elif figure.category is not None:
        palette = theme.category_colours(figure.order(figure.category))
    numbered = theme.needs_numbers(palette)
    canvas = go.Figure()
    line = -1
    for name, part in figure.parts("panel"):
        line += 1
        if name:
            canvas.add_annotation(x=0, y=line, text=as_text(name), showarrow=False, xanchor="left")
            line += 1
        if scale is not None:
            colours = scale.colours(column_of(part, figure.value or ""), dark=ink is DARK)
        else:
            colours = [palette[category] for category in part[figure.category]]
        texts = [theme.printable(text) for text in part[figure.text]]
        if numbered:
            texts = [f"{t}{theme.subscript(c)}" for t, c in zip(texts, part[figure.category], strict=True)]
        lefts, lines, line = _laid(texts, ["\n" in str(text) for text in part[figure.text]], first_line=line)
        add(
            canvas,
            "Bar",
            orientation="h",
            base=lefts,
            x=[_cells(text) for text in texts],
            y=lines,
            width=0.86,
            marker={"color": colours, "line": {"color": ink.faint, "width": 1}},
            text=[as_text(text) for text in texts],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="inside",
            insidetextfont={"family": "monospace", "size": 13, "color": [theme.text_on(colour) for colour in colours]},
            showlegend=False,
            **marks(figure, part),
        )
    dress(canvas, figure, ink, plot_px=24 * (line + 1), foot_px=70)
    canvas.update_xaxes(visible=False, range=[0, LINE_CELLS], fixedrange=True)
    canvas.update_yaxes(visible=False, range=[line + 0.6, -0.6], fixedrange=True)
    _key(canvas, figure, ink, scale=scale, palette={} if numbered else palette)
    return canvas


def _key(
    canvas: "go.Figure", figure: TokenStrip, ink: Ink, *, scale: ColourScale | None, palette: dict[Hashable, str]
) -> None:
    if scale is not None:
        add(canvas, "Scatter", x=[None], y=[None], marker={"color": [0], "coloraxis": "coloraxis"}, showlegend=False)
        canvas.update_layout(coloraxis=colour_axis(scale, figure.value_label, ink, tall_px=canvas.layout.height - 140))
        return
    for category, colour in palette.items():
        marker = {"color": colour, "symbol": "square", "size": 12}
        add(canvas, "Scatter", x=[None], y=[None], mode="markers", marker=marker, name=as_text(category))
    canvas.update_layout(legend={"title": {"text": as_text(figure.value_label)}, "itemclick": False})
    if not palette:
        below = {"x": 0, "y": 0, "xref": "paper", "yref": "paper", "yanchor": "top", "showarrow": False}
        canvas.add_annotation(text=as_text(f"{figure.value_label}: subscript; colours can repeat"), **below)


def _laid(texts: list[str], breaks: list[bool], *, first_line: int) -> tuple[list[float], list[int], int]:
    """Where each token begins and on which line, and the last line; a line ends where it is full or the text's does."""
    lefts, lines, left, line = [], [], 0.0, first_line
    for text, ends in zip(texts, breaks, strict=True):
        if left + _cells(text) > LINE_CELLS and left > 0:
            left, line = 0.0, line + 1
        lefts.append(left)
        lines.append(line)
        left, line = (0.0, line + 1) if ends else (left + _cells(text), line)
    return lefts, lines, max(lines, default=first_line)


def _cells(text: str) -> float:
    """Width in monospaced letters: East Asian ones are two wide, combining ones none; half a letter is the frame."""
    widths = (0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    return min(sum(widths) + 0.5, LINE_CELLS)


_DRAW: dict[type, Callable[[Any, Ink], "go.Figure"]] = {
    HeatMap: _heat_map,
    Bars: _bars,
    Lines: _lines,
    Points: _points,
    Distribution: _distribution,
    TokenStrip: _token_strip,
    Flow: draw_sankey,
}
