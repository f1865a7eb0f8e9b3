"""Figures for a paper: matplotlib, true vectors, embedded fonts, at the width they are printed in.

It uses no pyplot, no LaTeX and no display. What is drawn is what the spec's table holds; only places are computed here.
Save with `save`, which embeds the fonts and leaves out the time, so that the same table gives the same bytes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Page
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from workbench.figures import theme
from workbench.figures.matplotlib.flow import draw_streams
from workbench.figures.matplotlib.layout import (
    SMALL_PT,
    TALLEST_IN,
    Legend,
    PanelFigure,
    colour_bar,
    colour_map,
    finish,
    name_x,
    name_y,
    number_axis,
    panels,
    panels_across,
    say,
    shorten,
    style,
    width_in,
)
from workbench.figures.matplotlib.token_strip import draw_strip
from workbench.figures.spec import Bars, Distribution, Figure, Flow, HeatMap, Lines, Points, TokenStrip
from workbench.figures.theme import FEW_POINTS, LIGHT, WIDTHS_IN, ColourScale, Width

MARKERS = "osD^vPX"
_NULL: dict[str, Any] = {"color": LIGHT.text, "linestyle": (0, (3, 1.5)), "linewidth": 0.9}
_MISSING: dict[str, Any] = {"facecolor": LIGHT.missing, "hatch": "//////", "edgecolor": "white", "linewidth": 0}


def paper(figure: Figure, *, width: Width = "column") -> Page:
    """Draws a figure at its printed size.

    Args:
        figure: What to draw.
        width: "column" (3.25 in) or "text" (6.75 in).

    Returns:
        A matplotlib figure, laid out; `save` writes it.
    """
    with style():
        return _DRAW[type(figure)](figure, WIDTHS_IN[width])


def save(page: Page, file: IO[bytes], *, kind: str, metadata: Mapping[str, str]) -> None:
    """Writes a drawn figure as "pdf", "svg" or "png" (300 dpi): the same bytes every time.

    Args:
        page: What `paper` returned.
        file: Where to.
        kind: The format.
        metadata: In the format's own keys.
    """
    undated: dict[str, None] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    with style():
        page.savefig(file, format=kind, dpi=300, metadata={**metadata, **undated})


def _draw_heat_map(figure: HeatMap, page_in: float) -> Page:
    xs, ys = figure.order(figure.x), figure.order(figure.y)
    scale = ColourScale.of(figure.numbers(figure.value), center=figure.center, log=figure.log)
    per_row, height_in = _heat_map_size(figure, page_in, xs, ys)
    page, parts = panels(figure, page_in, per_row=per_row, height_in=height_in)
    column_of, row_of = ({value: index for index, value in enumerate(values)} for values in (xs, ys))
    legend: Legend = []
    for part, ax in parts:
        cells_YX = np.full((len(ys), len(xs)), np.nan)
        rows, columns = part[figure.y].map(row_of).to_numpy(int), part[figure.x].map(column_of).to_numpy(int)
        cells_YX[rows, columns] = _column(part, figure.value)
        ax.pcolormesh(
            np.arange(len(xs) + 1) - 0.5,
            np.arange(len(ys) + 1) - 0.5,
            np.ma.masked_invalid(scale.positions(cells_YX)),
            cmap=colour_map(scale),
            norm=Normalize(0, 1),
            edgecolors="face",  # viewers leave white hairlines between shapes that only touch
            linewidth=0.25,
            rasterized=False,
        )
        ax.set_ylim(len(ys) - 0.5, -0.5)
        ax.spines[:].set_visible(True)
        name_x(ax, range(len(xs)), xs, frame_in=1.0)
        name_y(ax, ys, height_in=height_in)
        if np.isnan(cells_YX).any() and not figure.square:
            ax.patch.set(**_MISSING)
            legend = [(Patch(**_MISSING), "no value")]
    tall_in = height_in * math.ceil(len(parts) / per_row)
    colour_bar(page, [ax for _, ax in parts], scale, figure.value_label, height_in=tall_in)
    return finish(page, figure, height_in=height_in, legends=[legend])


def _heat_map_size(figure: HeatMap, page_in: float, xs: list, ys: list) -> tuple[int, float]:
    """Panels per row and the height of each: rows just high enough for their names, and all on one page.

    Experts by experts are square.
    """
    n_rows, n_columns, square = len(ys), len(xs), figure.square or xs == ys
    named = not pd.api.types.is_numeric_dtype(figure.table[figure.y])
    height_in = min(max(n_rows * min(max(2.6 / n_rows, 0.125 if named else 0.05), 0.17), 0.4), 6.5)
    count, between_in, room_in = len(figure.parts("panel")), 0.35, TALLEST_IN - 1.0
    per_row = 1 if n_columns > 5 * page_in and not square else 2
    if square:  # names and colour bar take the rest of the width
        height_in = min(0.66 * page_in, 4.5) / min(count, per_row) * n_rows / n_columns
    while math.ceil(count / per_row) * (height_in + between_in) > room_in and per_row < min(count, 4):
        per_row += 1
    return per_row, min(height_in, room_in / math.ceil(count / per_row) - between_in)


def _draw_bars(figure: Bars, page_in: float) -> Page:
    per_row, height_in = _plot_size(figure, page_in)
    page, parts = panels(figure, page_in, per_row=per_row, height_in=height_in)
    values, colours = figure.order(figure.x), _group_colours(figure)
    place = {value: index for index, value in enumerate(values)}
    beside = 1 if figure.base else len(colours)
    wide = 0.8 / beside
    for part, ax in parts:
        for index, (_, rows) in enumerate(figure.parts("group", part)):
            at = rows[figure.x].map(place).to_numpy(dtype=float) + _shift(index if beside > 1 else 0, beside, 0.8)
            end = _column(rows, figure.y)
            begin = _column(rows, figure.base) if figure.base else np.zeros_like(end)
            ax.bar(at, end - begin, wide * (0.92 if beside > 1 else 1.0), bottom=begin, color=colours[index])
            if figure.label:
                _label_bars(ax, at, figure.tops(rows), rows[figure.label])
            if figure.null:
                ax.hlines(_column(rows, figure.null), at - wide / 2, at + wide / 2, **_NULL)
            if figure.low and figure.high:
                _whiskers(ax, at, _column(rows, figure.low), _column(rows, figure.high), color=LIGHT.text)
        if not figure.base:
            ax.axhline(0, color=LIGHT.text, linewidth=0.6)
        ax.set_xlim(-0.6, len(values) - 0.4)
        name_x(ax, range(len(values)), values, frame_in=0.7)
        ax.tick_params(axis="x", length=0)
        _dress_y(ax, log=False)
    groups = _group_legend(figure, lambda _, colour: Patch(facecolor=colour))
    marks: Legend = [(_whisker_handle(), figure.interval_label)] if figure.low else []
    return finish(page, figure, height_in=height_in, legends=[groups, marks + _null_legend(figure)])


def _label_bars(ax: Axes, at: np.ndarray, tops: np.ndarray, texts: Iterable[object]) -> None:
    """Texts over bars."""
    look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": SMALL_PT, "color": LIGHT.text}
    for x, y, text in zip(at, tops, texts, strict=True):
        if np.isfinite(y):
            ax.annotate(
                shorten(say(str(text)), SMALL_PT, 1.0), (x, y), xytext=(0, 2), textcoords="offset points", **look
            )
    ax.margins(y=0.15)


def _draw_lines(figure: Lines, page_in: float) -> Page:
    per_row, height_in = _plot_size(figure, page_in)
    page, parts = panels(figure, page_in, per_row=per_row, height_in=height_in)
    values, colours = figure.order(figure.x), _group_colours(figure)
    few = len(values) <= FEW_POINTS
    spread = 0.3 * min(np.diff(values), default=1.0) if few and figure.low else 0.0  # so that error bars stand apart
    one_null = figure.has_one_null()
    for part, ax in parts:
        for index, (_, rows) in enumerate(figure.parts("group", part)):
            rows = rows.sort_values(figure.x)  # noqa: PLW2901
            x, colour = _column(rows, figure.x), colours[index]
            at = x + _shift(index, len(colours), spread)
            ax.plot(at, _column(rows, figure.y), color=colour, marker=_marker(index) if few else "")
            if figure.low and figure.high:
                low, high = _column(rows, figure.low), _column(rows, figure.high)
                if few:
                    _whiskers(ax, at, low, high, color=colour)
                else:
                    ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            if figure.null and (index == 0 or not one_null):
                ax.plot(x, _column(rows, figure.null), **{**_NULL, "color": LIGHT.text if one_null else colour})
        _dress_x(ax, values, log=False)
        _dress_y(ax, log=figure.log)
    groups = _group_legend(figure, lambda i, c: Line2D([], [], color=c, marker=_marker(i) if few else ""))
    interval = _whisker_handle() if few else Patch(facecolor=LIGHT.text, alpha=0.2, linewidth=0)
    marks: Legend = [(interval, figure.interval_label)] if figure.low else []
    return finish(page, figure, height_in=height_in, legends=[groups, marks + _null_legend(figure)])


def _draw_points(figure: Points, page_in: float) -> Page:
    per_row, height_in = _plot_size(figure, page_in)
    height_in *= 1.25
    page, parts = panels(figure, page_in, per_row=per_row, height_in=height_in)
    colours = _group_colours(figure)
    alpha = 0.85 if len(figure.table) < 200 else 0.5
    for part, ax in parts:
        for index, (_, rows) in enumerate(figure.parts("group", part)):
            x, y = _column(rows, figure.x), _column(rows, figure.y)
            ax.scatter(
                x,
                y,
                s=_diameters(figure, rows) ** 2,
                color=colours[index],
                marker=_marker(index),
                alpha=alpha,
                linewidth=0,
            )
        ax.margins(0.08)
        _dress_x(ax, [], log=figure.log_x)
        _dress_y(ax, log=figure.log_y)
        ax.grid(axis="x")
    dot: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0}
    groups = _group_legend(figure, lambda i, c: Line2D([], [], color=c, marker=_marker(i), **dot))
    sizes: Legend = []
    for share in (0.25, 1.0) if figure.size else ():
        handle = Line2D([], [], color="#808080", marker="o", markersize=8.5 * math.sqrt(share), **dot)
        value = share * float(np.nanmax(figure.numbers(figure.size or "")))
        sizes.append((handle, f"{figure.size_label}: {theme.number(value)}"))
    page = finish(page, figure, height_in=height_in, legends=[groups, sizes])
    if figure.label:
        for part, ax in parts:
            _label_points(ax, part, figure)
    return page


def _diameters(figure: Points, rows: pd.DataFrame) -> np.ndarray:
    """Of the markers, in points: areas proportional to the sizes."""
    if figure.size is None:
        return np.full(len(rows), 4.0)
    return 8.5 * np.sqrt(np.nan_to_num(_column(rows, figure.size)) / (np.nanmax(figure.numbers(figure.size)) or 1.0))


def _label_points(ax: Axes, part: pd.DataFrame, figure: Points) -> None:
    """Texts beside their points, where they cover neither a point nor another text; else they are left out."""
    to_pt = 72 / ax.figure.dpi
    frame = Bbox(ax.get_window_extent().get_points() * to_pt)
    at_R2 = np.column_stack([_column(part, figure.x), _column(part, figure.y)])
    drawn_R2 = ax.transData.transform(at_R2) * to_pt
    radii = _diameters(figure, part) / 2
    taken = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(drawn_R2, radii, strict=True)]
    for at, (x, y), radius, value in zip(at_R2, drawn_R2, radii, part[figure.label], strict=True):
        if pd.isna(value) or not np.isfinite([x, y]).all():
            continue
        text = shorten(say(value), SMALL_PT, 1.2)
        wide, away = width_in(text, SMALL_PT) * 72, radius + 1.5
        for shift in ((away, -2.5), (-away - wide, -2.5), (-wide / 2, away), (-wide / 2, -away - SMALL_PT)):
            box = Bbox.from_bounds(x + shift[0], y + shift[1], wide, SMALL_PT)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                ax.annotate(text, at, xytext=shift, textcoords="offset points", fontsize=SMALL_PT)
                break


def _draw_distribution(figure: Distribution, page_in: float) -> Page:
    per_row, height_in = _plot_size(figure, page_in)
    page, parts = panels(figure, page_in, per_row=per_row, height_in=height_in)
    values, colours = figure.order(figure.x), _group_colours(figure)
    place = {value: index for index, value in enumerate(values)}
    wide = 0.75 / len(colours)
    box_pt = 72 * (page_in - 0.8) / panels_across(parts[0][1])[1] * wide / (len(values) + 0.2)
    mean = {**_MEAN, "markersize": min(2.2, box_pt / 2.5)}
    quantiles = (figure.q05, figure.q25, figure.q50, figure.q75, figure.q95)
    for part, ax in parts:
        for index, (_, rows) in enumerate(figure.parts("group", part)):
            at = rows[figure.x].map(place).to_numpy(dtype=float) + _shift(index, len(colours), 0.75)
            q05, q25, q50, q75, q95 = (_column(rows, column) for column in quantiles)
            ax.vlines(at, q05, q95, color=colours[index], linewidth=0.9)
            ax.bar(at, q75 - q25, 0.85 * wide, q25, **_box(colours[index]))
            ax.hlines(q50, at - 0.42 * wide, at + 0.42 * wide, color=LIGHT.text, linewidth=min(1.0, box_pt / 6))
            ax.plot(at, _column(rows, figure.mean), **mean)
            if figure.null:
                ax.hlines(_column(rows, figure.null), at - wide / 2, at + wide / 2, **_NULL)
        ax.set_xlim(-0.6, len(values) - 0.4)
        name_x(ax, range(len(values)), values, frame_in=0.7)
        _dress_y(ax, log=figure.log)
    groups = _group_legend(figure, lambda _, colour: Patch(**_box(colour)))
    marks: Legend = [
        (Patch(**_box("#808080")), "middle half"),
        (Line2D([], [], color="#808080", marker="|", linestyle="", markersize=7, markeredgewidth=0.9), "5–95 %"),
        (Line2D([], [], color=LIGHT.text, linewidth=1.0), "median"),
        (Line2D([], [], **_MEAN), "mean"),
        *_null_legend(figure),
    ]
    return finish(page, figure, height_in=height_in, legends=[groups, marks])


_MEAN: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 2.2, "color": LIGHT.text}


def _box(colour: str) -> dict[str, Any]:
    return {"facecolor": theme.mixed(colour, "#ffffff", 0.5), "edgecolor": colour, "linewidth": 0.6}


# What bars, lines, points and distributions share.


def _plot_size(figure: PanelFigure, page_in: float) -> tuple[int, float]:
    """Panels per row, and the height of each."""
    count, narrow = len(figure.parts("panel")), page_in < 5
    if count == 1:
        return 1, 1.6 if narrow else 2.1
    return (2 if narrow else min(count, 4)), 1.1 if narrow else 1.3


def _column(rows: pd.DataFrame, column: str) -> np.ndarray:
    return rows[column].to_numpy(dtype=float, na_value=np.nan)


def _shift(index: int, count: int, spread: float) -> float:
    """Where the index-th of `count` groups stands beside its position."""
    return (index - (count - 1) / 2) * spread / count


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _whiskers(ax: Axes, at: np.ndarray, low: np.ndarray, high: np.ndarray, *, color: str) -> None:
    """Intervals as they are: a bias-corrected one need not hold its value, which `errorbar` would refuse."""
    known = np.isfinite(low) & np.isfinite(high)
    ax.vlines(at[known], low[known], high[known], color=color, linewidth=0.8)
    for end in (low[known], high[known]):
        ax.plot(at[known], end, color=color, marker="_", linestyle="", markersize=3, markeredgewidth=0.8)


def _whisker_handle() -> Artist:
    capped = Path([(-0.35, -1), (0.35, -1), (0, -1), (0, 1), (-0.35, 1), (0.35, 1)], [1, 2, 1, 2, 1, 2])
    return Line2D([], [], color=LIGHT.text, marker=capped, linestyle="", markersize=7, markeredgewidth=0.8)


def _dress_y(ax: Axes, *, log: bool) -> None:
    if log:
        ax.set_yscale("log")
    number_axis(ax.yaxis, log=log)
    ax.grid(axis="y")


def _dress_x(ax: Axes, values: list[float], *, log: bool) -> None:
    """Ticks at the values where they are whole numbers (layers), else at round ones."""
    if log:
        ax.set_xscale("log")
    if len(values) == 1:
        ax.set_xlim(values[0] - 1, values[0] + 1)
    if values and all(isinstance(value, int) for value in values):
        name_x(ax, values, values, frame_in=0.8)
    else:
        number_axis(ax.xaxis, log=log)


def _group_colours(figure: Bars | Lines | Points | Distribution) -> list[str]:
    count = len(figure.order(figure.group)) if figure.group else 1
    return list(theme.category_colours([str(index) for index in range(count)]).values())


def _group_legend(
    figure: Bars | Lines | Points | Distribution, handle: Callable[[int, str], Artist]
) -> list[tuple[Artist, str]]:
    if figure.group is None:
        return []
    names = [name for name, _ in figure.parts("group")]
    return [(handle(index, colour), names[index]) for index, colour in enumerate(_group_colours(figure))]


def _null_legend(figure: Bars | Lines | Distribution) -> list[tuple[Artist, str]]:
    return [(Line2D([], [], **_NULL), figure.null_label)] if figure.null else []


_DRAW: dict[type, Callable[[Any, float], Page]] = {
    HeatMap: _draw_heat_map,
    Bars: _draw_bars,
    Lines: _draw_lines,
    Points: _draw_points,
    Distribution: _draw_distribution,
    TokenStrip: draw_strip,
    Flow: draw_streams,
}
