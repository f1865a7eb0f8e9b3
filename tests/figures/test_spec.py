"""A spec refuses what could not be drawn, with a sentence that names what, got, expected and next."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from tests.figures.examples import (
    DOMAINS,
    WORDS,
    bars,
    entropies,
    examples,
    flow,
    lines,
    load_map,
    points,
    series,
    strip,
    waterfall,
)
from workbench.errors import AnalysisError
from workbench.figures import HeatMap

TABLE = series(4)
ONE_DOMAIN = TABLE[TABLE["domain"] == "code"].reset_index(drop=True)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: dataclasses.replace(load_map(2, 2), value="laod"),
            "HeatMap 'Load of each expert': value names the column 'laod', which the table does not have; "
            "name one of: layer, expert, load, tokens.",
        ),
        (
            lambda: dataclasses.replace(load_map(2, 2), hover=("tokesn",)),
            "hover names the column 'tokesn', which the table does not have",
        ),
        (lambda: dataclasses.replace(load_map(2, 2), alt=" "), "alt is empty; say it in words"),
        (
            lambda: bars(TABLE.head(0), "domain"),
            "Bars 'Load imbalance': the table has no rows, at least one is expected; look at what the analysis "
            "dropped.",
        ),
        (
            lambda: bars(ONE_DOMAIN.assign(value=np.nan), "layer"),
            "column 'value' is NaN in all 4 rows, a number is expected in at least one.",
        ),
        (
            lambda: bars(ONE_DOMAIN.assign(value="0.5"), "layer"),
            "column 'value' holds str, numbers are expected; convert it first.",
        ),
        (
            lambda: bars(ONE_DOMAIN.assign(high=np.inf), "layer"),
            "column 'high' holds an infinite value; use NaN for what is not known.",
        ),
        (
            lambda: bars(TABLE.assign(domain=None), "layer", group="domain"),
            "column 'domain' is empty in 20 rows; a position or group is expected in each.",
        ),
        (
            lambda: bars(TABLE, "layer"),
            "layer 0 stands in more than one row, one is expected; aggregate in the analysis.",
        ),
        (
            lambda: dataclasses.replace(waterfall(), table=waterfall().table.assign(before=np.nan)),
            "column 'before' is NaN somewhere; a number is expected where each bar begins.",
        ),
        (
            lambda: dataclasses.replace(load_map(2, 2), x="layer", y="layer"),
            "stands in more than one row, one is expected",
        ),
        (
            lambda: bars(ONE_DOMAIN, "layer", low=None),
            "low is None and high is 'high'; name both columns or neither.",
        ),
        (
            lambda: bars(ONE_DOMAIN, "layer", low="high", high="low"),
            "column 'high' exceeds column 'low' in row 0; the lower one is expected in 'high'.",
        ),
        (
            lambda: lines(ONE_DOMAIN.assign(value=-1.0), log=True),
            "log is set and column 'value' is below zero somewhere; use log=False.",
        ),
        (
            lambda: dataclasses.replace(load_map(2, 2), center=0.0),
            "log is set and center is 0.0; a center above zero is expected.",
        ),
        (
            lambda: lines(ONE_DOMAIN.assign(layer=["a", "b", "c", "d"])),
            "column 'layer' holds str, numbers are expected",
        ),
        (
            lambda: dataclasses.replace(points(), size_label=""),
            "size names the column 'total' and size_label is empty; say what the size is.",
        ),
        (
            lambda: dataclasses.replace(points(), table=points().table.assign(total=-1.0)),
            "column 'total' is below zero somewhere; an area is expected, at least zero.",
        ),
        (
            lambda: dataclasses.replace(entropies(4), q25="q75", q75="q25"),
            "column 'q75' exceeds column 'q50' in row 0; the lower one is expected in 'q75'.",
        ),
        (
            lambda: dataclasses.replace(strip(3, colour="loss"), category="expert"),
            "TokenStrip 'Tokens of document demo-code-03': value is 'loss' and category is 'expert'; name one of them "
            "to colour by, the other can go into hover.",
        ),
        (lambda: dataclasses.replace(strip(3, colour="loss"), value=None), "value is None and category is None"),
        (
            lambda: dataclasses.replace(flow(4, 8), panel="expert"),
            "Flow 'Strongest flow, layer 3 to layer 4': panel is 'expert', and a flow has none; make a figure of each.",
        ),
        (
            lambda: dataclasses.replace(flow(4, 8), table=flow(4, 8).table.assign(tokens=-1.0)),
            "column 'tokens' is below zero somewhere; a width is expected, at least zero.",
        ),
        (
            lambda: dataclasses.replace(flow(4, 8), table=flow(4, 8).table.assign(tokens=0.0)),
            "column 'tokens' is zero everywhere; a stream is expected.",
        ),
        (
            lambda: dataclasses.replace(flow(4, 8), table=flow(4, 8).table.assign(next=1, expert=1)),
            "expert 1, next 1 stands in more than one row",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, sentence):
    with pytest.raises(AnalysisError, match=re.escape(sentence)):
        make()


@pytest.mark.parametrize("figure", examples().values(), ids=examples())
def test_columns_are_all_that_a_figure_needs(figure):
    dataclasses.replace(figure, table=figure.table[figure.columns()])


def test_order_is_numeric_or_as_given():
    table = pd.DataFrame({"layer": [11, 3, 11, 3], "domain": ["math", "code", "code", "math"], "v": 1.0})
    labels = {"title": "t", "x_label": "x", "y_label": "y", "value_label": "v", **WORDS}
    figure = HeatMap(table, "layer", "domain", "v", **labels)
    assert figure.order("layer") == [3, 11]
    assert figure.order("domain") == ["math", "code"]
    ordered = table.assign(domain=pd.Categorical(table["domain"], ["english", "code", "math"]))
    assert dataclasses.replace(figure, table=ordered).order("domain") == ["code", "math"]


def test_parts_keep_the_order_of_the_whole_table():
    figure = bars(
        TABLE[~((TABLE["layer"] == 1) & (TABLE["domain"] == "code"))], "domain", group="domain", panel="layer"
    )
    panels = figure.parts("panel")
    assert [name for name, _ in panels] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    groups = figure.parts("group", panels[1][1])
    assert [name for name, _ in groups] == list(DOMAINS)
    assert [len(rows) for _, rows in groups] == [1, 0, 1, 1, 1]


def test_one_null_for_all_groups_is_noticed():
    assert lines(TABLE, group="domain").has_one_null()
    assert not lines(TABLE.assign(null=TABLE["value"] / 2), group="domain").has_one_null()
    assert not lines(TABLE, group="domain", null=None).has_one_null()
