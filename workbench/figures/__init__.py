"""What a figure shows (`spec`), and its two drawings: `screen` with plotly, `paper` with matplotlib."""

from workbench.figures.spec import Bars, Distribution, Figure, Flow, HeatMap, Lines, Points, TokenStrip

__all__ = ["Figure", "HeatMap", "Bars", "Lines", "Points", "Distribution", "TokenStrip", "Flow"]
