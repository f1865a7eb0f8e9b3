"""A flow on a printed page: two columns of nodes, and streams between them as wide as their values.

Sources stand in their order, targets by the mean place of what flows into them, so that few streams cross.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Page
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from workbench.figures.matplotlib.layout import LABEL_PT, SMALL_PT, TITLE_PT, say, shorten, width_in, wrap
from workbench.figures.spec import Flow
from workbench.figures.theme import CATEGORIES, LIGHT

MARGIN_IN, NODE_IN, NAME_IN, LINE_IN = 0.05, 0.09, 0.9, 0.11
GAP_IN = 0.025  # between nodes, where there are not too many


@dataclass(frozen=True)
class Column:
    """Nodes one above the other.

    Attributes:
        names: In their order from above.
        top_in: Where each begins, from above.
        tall_in: Height of each.
    """

    names: list[Hashable]
    top_in: np.ndarray
    tall_in: np.ndarray


def draw_streams(figure: Flow, page_in: float) -> Page:
    """The streams, coloured by their source, the names of the nodes beside them where they fit."""
    width_ST = _widths(figure)
    sources, targets = figure.order(figure.source), figure.order(figure.target)
    centre_T = (np.arange(len(sources))[:, None] * width_ST).sum(axis=0) / np.maximum(width_ST.sum(axis=0), 1e-300)
    order_T = np.argsort(centre_T, kind="stable")
    targets, width_ST = [targets[i] for i in order_T], width_ST[:, order_T]
    title = wrap(figure.title, TITLE_PT, page_in - 2 * MARGIN_IN)
    heads = [wrap(text, LABEL_PT, page_in / 2 - 2 * MARGIN_IN) for text in (figure.source_label, figure.target_label)]
    foot = wrap(f"width: {figure.value_label}", LABEL_PT, page_in - 2 * MARGIN_IN)
    room_in = float(np.clip(0.17 * max(len(sources), len(targets)), 1.5, 5.0))
    columns = [
        _stacked(names, values, room_in=room_in)
        for names, values in ((sources, width_ST.sum(axis=1)), (targets, width_ST.sum(axis=0)))
    ]
    body_in = max(float(column.top_in[-1] + column.tall_in[-1]) for column in columns)
    top_in = 0.08 + 0.16 * (title.count("\n") + 1) + 0.15 * (max(text.count("\n") for text in heads) + 1)
    tall_in = top_in + body_in + 0.1 + 0.14 * (foot.count("\n") + 1)
    page = Page(figsize=(page_in, tall_in))
    ax = page.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, page_in), ylim=(tall_in, 0))
    ax.set_axis_off()
    ax.text(MARGIN_IN, 0.04, title, fontsize=TITLE_PT, va="top")
    ax.text(MARGIN_IN, top_in - 0.05, heads[0], fontsize=LABEL_PT, va="bottom")
    ax.text(page_in - MARGIN_IN, top_in - 0.05, heads[1], fontsize=LABEL_PT, va="bottom", ha="right")
    ax.text(MARGIN_IN, top_in + body_in + 0.06, foot, fontsize=LABEL_PT, va="top")
    columns = [Column(each.names, each.top_in + top_in, each.tall_in) for each in columns]
    name_in = [min(max(width_in(_name(n), SMALL_PT) for n in column.names), NAME_IN) + 0.08 for column in columns]
    left_in, right_in = MARGIN_IN + name_in[0], page_in - MARGIN_IN - name_in[1] - NODE_IN
    colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(sources))]  # pale turns of them would not be seen
    _draw_streams(ax, width_ST, columns, colours, between=(left_in + NODE_IN, right_in))
    _draw_nodes(ax, columns[0], left_in, colours, text_in=left_in - 0.03, align="right")
    greys = [LIGHT.missing] * len(targets)
    _draw_nodes(ax, columns[1], right_in, greys, text_in=right_in + NODE_IN + 0.03, align="left")
    return page


def _widths(figure: Flow) -> np.ndarray:
    rows = {value: i for i, value in enumerate(figure.order(figure.source))}
    columns = {value: i for i, value in enumerate(figure.order(figure.target))}
    width_ST = np.zeros((len(rows), len(columns)))
    at = figure.table[figure.source].map(rows).to_numpy(int), figure.table[figure.target].map(columns).to_numpy(int)
    width_ST[at] = np.nan_to_num(figure.numbers(figure.value))
    return width_ST


def _stacked(names: list, values: np.ndarray, *, room_in: float) -> Column:
    """Nodes as tall as their values, and far enough apart for their names where there are not too many."""
    tall_in = values / values.sum() * room_in
    gap_in = min(GAP_IN, 1.5 / len(names))
    slot_in = np.maximum(tall_in + gap_in, min(LINE_IN, 3.0 / len(names)))
    return Column(names, np.cumsum(slot_in) - slot_in + (slot_in - tall_in - gap_in) / 2, tall_in)


def _draw_streams(
    ax: Axes, width_ST: np.ndarray, columns: Sequence[Column], colours: list[str], *, between: tuple[float, float]
) -> None:
    """Each stream leaves its source below the streams to higher targets, and enters its target likewise."""
    unit_in = columns[0].tall_in.sum() / width_ST.sum(), columns[1].tall_in.sum() / width_ST.sum()
    left_ST = columns[0].top_in[:, None] + unit_in[0] * (np.cumsum(width_ST, axis=1) - width_ST)
    right_ST = columns[1].top_in + unit_in[1] * (np.cumsum(width_ST, axis=0) - width_ST)
    x0, x1 = between
    middle = (x0 + x1) / 2
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    for s, t in zip(*np.nonzero(width_ST), strict=True):
        a, b, value = left_ST[s, t], right_ST[s, t], width_ST[s, t]
        c, d = a + unit_in[0] * value, b + unit_in[1] * value
        points = [(x0, a), (middle, a), (middle, b), (x1, b), (x1, d), (middle, d), (middle, c), (x0, c), (x0, a)]
        ax.add_patch(PathPatch(Path(points, codes), facecolor=colours[s], alpha=0.5, linewidth=0))


def _draw_nodes(ax: Axes, column: Column, at_in: float, colours: list[str], *, text_in: float, align: str) -> None:
    for top, tall, colour in zip(column.top_in, column.tall_in, colours, strict=True):
        ax.add_patch(Rectangle((at_in, top), NODE_IN, tall, facecolor=colour, linewidth=0))
    middle_in = column.top_in + column.tall_in / 2
    taken: list[float] = []
    for i in np.argsort(-column.tall_in, kind="stable"):  # the largest get their names first
        if column.tall_in[i] > 0 and all(abs(middle_in[i] - other) >= 0.95 * LINE_IN for other in taken):
            taken.append(middle_in[i])
            ax.text(text_in, middle_in[i], _name(column.names[i]), fontsize=SMALL_PT, ha=align, va="center_baseline")


def _name(value: object) -> str:
    return shorten(say(value), SMALL_PT, NAME_IN)
