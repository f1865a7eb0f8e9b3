"""A flow on the screen: plotly's Sankey diagram, which orders its nodes itself and lets a reader drag them."""

from typing import TYPE_CHECKING

import numpy as np

from workbench.figures import theme
from workbench.figures.plotly.canvas import add, as_text, column_of, dress, hover_texts, marks
from workbench.figures.spec import Flow
from workbench.figures.theme import DARK, Ink

if TYPE_CHECKING:
    import plotly.graph_objects as go


def draw_sankey(figure: Flow, ink: Ink) -> "go.Figure":
    """The streams, coloured by their source; a stream without a value keeps its row and draws nothing."""
    import plotly.graph_objects as go

    sources, targets = figure.order(figure.source), figure.order(figure.target)
    of_source, of_target = ({value: i for i, value in enumerate(values)} for values in (sources, targets))
    ring = [theme.mixed(colour, "#ffffff", 0.25) if ink is DARK else colour for colour in theme.CATEGORIES]
    colours = [ring[i % len(ring)] for i in range(len(sources))]  # as on paper
    rows = figure.table
    at = rows[figure.source].map(of_source).to_numpy(int)
    canvas = go.Figure()
    nodes = {
        "label": [as_text(value) for value in (*sources, *targets)],
        "color": [*colours, *[ink.faint] * len(targets)],
        "line": {"color": ink.text, "width": 0.5},
        "pad": 8,
        "thickness": 14,
        "hoverinfo": "skip",
    }
    links = {
        "source": at.tolist(),
        "target": (rows[figure.target].map(of_target).to_numpy(int) + len(sources)).tolist(),
        "value": np.nan_to_num(column_of(rows, figure.value)).tolist(),
        "color": [_veiled(colours[i]) for i in at],
        "customdata": hover_texts(figure, rows),
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    add(canvas, "Sankey", node=nodes, link=links, customdata=marks(figure, rows)["customdata"], arrangement="snap")
    tall_px = int(np.clip(22 * max(len(sources), len(targets)), 300, 900))
    dress(canvas, figure, ink, plot_px=tall_px, foot_px=60)
    heads = ((figure.source_label, 0, "left"), (figure.target_label, 1, "right"))
    for text, x, anchor in heads:
        canvas.add_annotation(text=as_text(text), x=x, y=1, yanchor="bottom", xanchor=anchor, showarrow=False)
    canvas.add_annotation(text=as_text(f"width: {figure.value_label}"), x=0, y=0, yanchor="top", showarrow=False)
    canvas.update_annotations(xref="paper", yref="paper")
    return canvas


def _veiled(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.45)"
