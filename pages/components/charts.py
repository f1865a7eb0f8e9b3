"""Figures on a page: drawn in its colours, the chosen marks outlined, and clicks on marks followed."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from workbench.figures.plotly.draw import screen
from workbench.figures.spec import Figure, HeatMap, TokenStrip
from workbench.figures.theme import DARK, LIGHT

from .choices import pick
from .jobs import plain

_TITLE_PX = 46
_LEAST_PX = 360
"""What a figure with its axes and a legend can be read at."""
_MODEBAR = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "toImage"]}


def beside(*, first: int = 1) -> list[Any]:
    """Two places side by side, the first `first` times as wide; where the page is too narrow, one below the other.

    Widths that are whole numbers of pixels, as these on a page of the usual width, are drawn once: Streamlit measures
    a fraction twice, to other digits, and has plotly draw again.
    """
    grid = st.grid(first + 1, min_column_width=_LEAST_PX if first == 1 else 2 * _LEAST_PX // 3)
    return [grid.cell(column_span=first), grid.cell()]


@st.cache_resource(max_entries=128, show_spinner=False)
def drawn(key: str, name: str, dark: bool, _figure: Figure) -> Any:
    """A figure of a result, drawn once and kept; whoever changes it copies it first."""
    drawn = screen(_figure, dark=dark)
    drawn.layout.datarevision = hashlib.sha256(repr((key, name, dark)).encode()).hexdigest()
    return drawn


def draw(
    figure: Figure, key: str, *, drawn: Any = None, follow: Mapping[str, str] | None = None, gaps: bool = False
) -> None:
    """Draws a figure in the page's colours.

    Args:
        figure: What to draw.
        key: Of the chart.
        drawn: It, drawn already.
        follow: As of `show`.
        gaps: Whether the cells of a heat map are kept apart.
    """
    ink = DARK if is_dark() else LIGHT
    drawn = screen(figure, dark=is_dark()) if drawn is None else drawn
    st.markdown(f"**{plain(figure.title)}**")  # above the chart it folds; in it, a narrow page would cut it
    drawn.update_layout(title=None, height=drawn.layout.height - _TITLE_PX, margin_t=drawn.layout.margin.t - _TITLE_PX)
    drawn.update_layout(modebar={"bgcolor": "rgba(0,0,0,0)", "color": ink.faint, "activecolor": ink.text})
    if isinstance(figure, TokenStrip):
        drawn.update_layout(margin={"l": 0})  # it has no axis to leave room for, and its letters want the width
    if gaps and isinstance(figure, HeatMap):
        gap = 2 if len(figure.order(figure.x)) <= 40 else 1  # or they would outweigh the cells of a narrow page
        drawn.update_traces(xgap=gap, ygap=gap, selector={"type": "heatmap"})
        drawn.update_layout(plot_bgcolor=ink.missing)
    chosen = {column: st.session_state["chosen"].get(choice) for column, choice in (follow or {}).items()}
    outlined = _outline(drawn, chosen) if follow else False
    # Streamlit hands every figure to plotly twice. Told that the numbers are the same, plotly draws them once; where
    # there is an object in the layout, it takes that of the second time for another, and draws all again.
    revision = drawn.layout.datarevision or hashlib.sha256(drawn.to_json().encode()).hexdigest()
    drawn.layout.datarevision, drawn.layout.dragmode = f"{revision} {chosen}" if outlined else revision, "pan"
    drawn.layout.template = drawn.layout.meta = None
    st.plotly_chart(
        drawn,
        key=key,
        theme=None,
        on_select=partial(_follow, key, figure.columns(), follow) if follow else "ignore",
        selection_mode="points",
        config=_MODEBAR,
        alt=figure.alt,
    )


def _follow(key: str, columns: Sequence[str], follow: Mapping[str, str]) -> None:
    points = st.session_state[key]["selection"]["points"]
    if points:
        row = points[0]["customdata"]
        row = [row[str(index)] for index in range(len(columns))] if isinstance(row, dict) else row
        pick(**{choice: row[columns.index(column)] for column, choice in follow.items()})


def _outline(drawn: Any, chosen: Mapping[str, Any]) -> bool:
    """Outlines the marks of what is chosen; whether there are any."""
    ink, columns = (DARK if is_dark() else LIGHT), list(drawn.layout.meta["columns"])
    wanted, found = [(columns.index(column), text) for column, text in chosen.items()], False
    for trace in drawn.data:
        rows = trace.customdata if trace.customdata is not None else ()
        at = [i for i, row in enumerate(rows) if all(str(row[place]) == text for place, text in wanted)]
        if not at:
            continue
        found = True
        if trace.type == "bar":  # a token: plotly gives selected bars no border of their own
            borders = [(3, ink.text) if i in at else (1, ink.faint) for i in range(len(rows))]
            trace.marker.line.width, trace.marker.line.color = map(list, zip(*borders, strict=True))
        elif trace.marker.symbol == "square-open":  # the unseen squares over the cells of a heat map
            xs, ys = [trace.x[i] for i in at], [trace.y[i] for i in at]  # a cell, or a row or a column of cells
            box = {"x0": min(xs) - 0.5, "x1": max(xs) + 0.5, "y0": min(ys) - 0.5, "y1": max(ys) + 0.5}
            for line in ({"color": "black", "width": 5}, {"color": "white", "width": 2}):  # seen on any colour
                drawn.add_shape(type="rect", xref=trace.xaxis, yref=trace.yaxis, **box, line=line)
        elif trace.marker.size is not None and not isinstance(trace.marker.size, int | float):  # sizes say something
            lines = [(3, ink.text) if i in at else (0, ink.faint) for i in range(len(rows))]
            trace.marker.line.width, trace.marker.line.color = map(list, zip(*lines, strict=True))
        else:
            size: Any = trace.marker.size
            trace.marker.size = [2 * size if i in at else size for i in range(len(rows))]
    return found


def is_dark() -> bool:
    """Whether the visitor's page is dark."""
    return bool(st.context.theme) and st.context.theme.type == "dark"
