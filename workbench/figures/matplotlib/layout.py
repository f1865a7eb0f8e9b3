"""A printed page: fonts and their fallbacks, widths of text, panels with their labels, legend and height.

It knows matplotlib and no kind of figure; `paper` and `strip` draw on it.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure as Page
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from workbench.figures import theme
from workbench.figures.spec import Bars, Distribution, HeatMap, Lines, Points
from workbench.figures.theme import LIGHT, ColourScale

TITLE_PT, LABEL_PT, SMALL_PT = 9.0, 8.0, 7.0
HANDLE_IN = 0.32  # handle, gap and space of one entry of a legend, as set below
LONGEST = 2_000
"""Characters of a text that are measured: no page has room for more."""
MOST_LINES = 6
"""Lines of a title, of a label or of an entry of a legend."""
TALLEST_IN = 8.8  # what a page of a paper leaves above the caption

# Scripts that DejaVu Sans (which matplotlib brings) lacks, where the machine has a font for them; in this order.
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *(
        "Droid Sans Fallback",
        "PingFang SC",
        "Hiragino Sans GB",
        "Microsoft YaHei",
        "Noto Sans CJK JP",
        "Noto Sans CJK KR",
    ),
    *(
        "Noto Sans Devanagari",
        "Lohit Devanagari",
        "Kohinoor Devanagari",
        "Mangal",
        "Noto Sans Bengali",
        "Noto Sans Tamil",
    ),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Thai", "Noto Sans Ethiopic", "FreeSans", "Arial Unicode MS"),
    *("Noto Sans Symbols2", "Noto Emoji"),
)

_STYLE: dict[str, Any] = {
    "font.size": LABEL_PT,
    "figure.titlesize": TITLE_PT,
    "axes.titlesize": SMALL_PT,
    "axes.labelsize": LABEL_PT,
    "xtick.labelsize": SMALL_PT,
    "ytick.labelsize": SMALL_PT,
    "legend.fontsize": SMALL_PT,
    "text.color": LIGHT.text,
    "axes.edgecolor": LIGHT.text,
    "axes.labelcolor": LIGHT.text,
    "xtick.color": LIGHT.text,
    "ytick.color": LIGHT.text,
    "text.parse_math": False,  # a "$" or "_" of a token or a name is a "$" or "_"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": LIGHT.faint,
    "grid.linewidth": 0.4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.6,
    "legend.columnspacing": 1.1,
    "legend.borderaxespad": 0.0,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "pdf.fonttype": 42,
    # Outlines: an SVG with text needs DejaVu Sans where it is read, and is clipped or overlaps where that is missing.
    "svg.fonttype": "path",
    "svg.hashsalt": "moe-workbench",
}
_settings = threading.RLock()  # matplotlib's settings are one dictionary for all threads of a process

PanelFigure = HeatMap | Bars | Lines | Points | Distribution
Legend = list[tuple[Artist, str]]


@contextmanager
def style() -> Iterator[None]:
    """Our settings on matplotlib's defaults, whatever the user's are; one thread at a time."""
    with _settings, matplotlib.style.context(["default", {**_STYLE, "font.family": list(_families())}]):
        yield


@cache
def _families() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))


@cache
def _glyphs() -> frozenset[int]:
    paths = (fontManager.findfont(FontProperties(family=[name]), fallback_to_default=False) for name in _families())
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def say(value: object) -> str:
    """Text that our fonts can draw: a character that none of them has becomes ⟨hex⟩."""
    return "".join(c if ord(c) in _glyphs() else f"⟨{ord(c):04X}⟩" for c in theme.printable(value))


@lru_cache(maxsize=10_000)
def width_in(text: str, size_pt: float) -> float:
    """How wide a line of text is, in inches."""
    font = FontProperties(family=list(_families()), size=size_pt)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def shorten(text: str, size_pt: float, inches: float) -> str:
    """The text, or as much of its beginning as fits with an ellipsis; the ellipsis alone at least."""
    if len(text) <= 1 or (len(text) <= LONGEST and width_in(text, size_pt) <= inches):
        return text
    fits, over = 0, min(len(text), LONGEST)  # characters before the ellipsis: as many fit, as many do not
    while over - fits > 1:
        middle = (fits + over) // 2
        if width_in(f"{text[:middle]}…", size_pt) <= inches:
            fits = middle
        else:
            over = middle
    return f"{text[:fits]}…"


def wrap(text: str, size_pt: float, inches: float, *, most: int = MOST_LINES) -> str:
    """The text in lines that fit; of a text of more lines than `most` the first, with an ellipsis."""
    lines = [""]
    for word in map(say, text[:LONGEST].split()):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or width_in(longer[:LONGEST], size_pt) <= inches:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most or len(text) > LONGEST:
        lines = [*lines[: most - 1], f"{lines[most - 1 : most][0]} …" if len(lines) >= most else "…"]
    return "\n".join(shorten(line, size_pt, inches) for line in lines)


def panels(
    figure: PanelFigure, page_in: float, *, per_row: int, height_in: float
) -> tuple[Page, list[tuple[pd.DataFrame, Axes]]]:
    """An empty page with axes for each panel, in rows of equal length, named and labelled.

    Panels share their x axis, and their y axis unless the figure says otherwise; only the outer ones are labelled.
    """
    parts = figure.parts("panel")
    n_rows = math.ceil(len(parts) / per_row)
    n_columns = math.ceil(len(parts) / n_rows)
    page = Page(figsize=(page_in, n_rows * height_in + 8.0), layout="constrained")  # roomy; `finish` cuts it
    shared_y = getattr(figure, "shared_y", True)
    grid = page.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=shared_y)
    axes = list(grid.flat[: len(parts)])
    for unused in grid.flat[len(parts) :]:
        unused.remove()
    wide_in = (page_in - 0.6) / n_columns
    for index, (ax, (name, _)) in enumerate(zip(axes, parts, strict=True)):
        lowest, leftmost = index + n_columns >= len(parts), index % n_columns == 0
        ax.tick_params(labelbottom=lowest, labelleft=leftmost or not shared_y)
        if name:
            ax.set_title(shorten(say(name), SMALL_PT, wide_in), loc="left", pad=2)
        if lowest:
            ax.set_xlabel(wrap(figure.x_label, LABEL_PT, wide_in), labelpad=2)
        if leftmost:
            ax.set_ylabel(wrap(figure.y_label, LABEL_PT, max(height_in, 0.5)), labelpad=3)
    return page, [(part, ax) for (_, part), ax in zip(parts, axes, strict=True)]


def finish(page: Page, figure: PanelFigure, *, height_in: float, legends: Sequence[Legend] = ()) -> Page:
    """Title above, legends below the axes, and a page just so high that each panel has its height."""
    page_in = page.get_figwidth()
    page.suptitle(wrap(figure.title, TITLE_PT, page_in - 0.1), x=0.01, ha="left", fontsize=TITLE_PT)
    rows = [row for legend in legends for row in _legend_rows(legend, page_in - 0.1)]
    foot_in = sum(tall for _, tall in rows) + (0.03 if rows else 0.0)
    panel = page.axes[0]
    layout = page.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    for _ in range(6):  # the new height changes the ticks and the labels' lines, and they the height; two are the rule
        foot = (foot_in + (0.04 if rows else 0.0)) / page.get_figheight()
        layout.set(rect=(0, foot, 1, 1 - foot))
        layout.execute(page)
        for ax in page.axes:  # how long a label may be is known only now that the ticks' names have their room
            label = ax.xaxis.label
            label.set_text(wrap(label.get_text(), LABEL_PT, ax.get_position().width * page_in))
        missing_in = height_in - panel.get_position().height * page.get_figheight()
        if abs(missing_in) < 0.02:
            break
        page.set_figheight(page.get_figheight() + panels_across(panel)[0] * missing_in)
    page.set_layout_engine("none")
    page.set_figheight(round(page.get_figheight(), 4))
    for ax in page.axes:  # the solver's last digits differ from run to run, and files must not
        left, bottom, width, height = (round(edge, 6) for edge in ax.get_position(original=True).bounds)
        ax.set_position((left, bottom, width, height))
    top_in = foot_in
    for row, tall in rows:
        handles, labels = zip(*row, strict=True)
        at = (0.05 / page_in, top_in / page.get_figheight())
        page.legend(handles, labels, loc="upper left", bbox_to_anchor=at, ncols=len(row), borderpad=0.0)
        top_in -= tall
    return page


def _legend_rows(legend: Legend, inches: float) -> list[tuple[Legend, float]]:
    """Entries in rows that fit, each row with its height; matplotlib's own columns are all as wide as the widest."""
    rows: list[Legend] = []
    left_in = math.inf
    for handle, text in legend:
        label = wrap(text, SMALL_PT, inches - HANDLE_IN)
        wide = max(width_in(line, SMALL_PT) for line in label.split("\n")) + HANDLE_IN
        if left_in + wide > inches:
            rows.append([])
            left_in = 0.0
        rows[-1].append((handle, label))
        left_in += wide
    return [(row, 0.035 + 0.11 * max(label.count("\n") + 1 for _, label in row)) for row in rows]


def panels_across(ax: Axes) -> tuple[int, int]:
    """Rows and columns of the grid that the axes belong to."""
    grid = ax.get_gridspec()
    return (grid.nrows, grid.ncols) if grid else (1, 1)


def value_text(value: object) -> str:
    """A position of an axis, as its tick says it."""
    return theme.number(value, digits=6) if isinstance(value, int | float) else shorten(say(value), SMALL_PT, 1.0)


def name_x(ax: Axes, at: Sequence[float], values: Sequence[object], *, frame_in: float) -> None:
    """Names positions of the x axis: all where they fit, slanted if need be, else round ones of them.

    Args:
        ax: The axes.
        at: Where each position is.
        values: What each position is.
        frame_in: What of the page's width is not panels.
    """
    page = ax.figure
    assert isinstance(page, Page)
    inches = (page.get_figwidth() - frame_in) / panels_across(ax)[1]
    names = [value_text(value) for value in values]
    widest = max(width_in(name, SMALL_PT) for name in names)
    level = widest + 0.06 <= inches / len(names) or all(isinstance(value, int | float) for value in values)
    shown = theme.tick_indices(values, fits=int(inches / (widest + 0.08 if level else 0.14)))
    ax.set_xticks([at[i] for i in shown], [names[i] for i in shown])
    if not level:
        for label in ax.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def name_y(ax: Axes, values: Sequence[object], *, height_in: float) -> None:
    """Names the rows of a heat map, all where they fit."""
    shown = theme.tick_indices(values, fits=int(height_in / 0.115))
    ax.set_yticks(shown, [value_text(values[i]) for i in shown])


def number_axis(axis: Axis, *, log: bool) -> None:
    """Round numbers on an axis, written without an offset or a factor."""
    if log:
        low, high = axis.get_view_interval()
        steps = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)  # decades alone could leave one label
        axis.set_major_locator(LogLocator(subs=steps, numticks=6))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: theme.number(value, digits=6)))


def colour_map(scale: ColourScale) -> LinearSegmentedColormap:
    """The palette of a scale."""
    return LinearSegmentedColormap.from_list("", scale.palette())


def colour_bar(page: Page, axes: Sequence[Axes], scale: ColourScale, label: str, *, height_in: float) -> None:
    """The key of a heat map: upright beside the axes where it and its label have the room, else below them."""
    upright = height_in >= 1.5
    length_in = min(height_in if upright else page.get_figwidth() - 1.0, 4.0)
    bar = page.colorbar(
        ScalarMappable(Normalize(0, 1), colour_map(scale)),
        ax=axes,
        location="right" if upright else "bottom",
        fraction=0.15 if upright else max(0.15, 0.1 / height_in),
        aspect=length_in / 0.09,
        shrink=min(1.0, length_in / height_in) if upright else length_in / (page.get_figwidth() - 1.0),
        pad=0.02,
        extend=scale.extend,
    )
    dress_colour_bar(bar, scale, wrap(label, LABEL_PT, length_in if upright else page.get_figwidth() - 0.2))


def dress_colour_bar(bar: Colorbar, scale: ColourScale, label: str) -> None:
    """The values, the label, and vectors."""
    bar.set_ticks(scale.positions(scale.ticks).tolist(), labels=scale.tick_labels)
    bar.set_label(label, labelpad=3)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face", linewidth=0.25)  # a bar of over 50 colours would be a bitmap
    bar.outline.set(linewidth=0.4)
