"""Every kind on the screen: it can be sent to a browser, clicked, and never runs what a token says."""

import functools
import itertools
import json
import re

import pytest

from tests.figures.examples import CANARY, awkward, examples, load_map, series, strip, waterfall
from workbench.figures import Bars
from workbench.figures.plotly.canvas import as_text
from workbench.figures.plotly.draw import screen

FIGURES = {**examples(), **awkward()}


@functools.cache
def drawn_of(name: str):
    return screen(FIGURES[name], dark=len(name) % 2 == 0)


@pytest.mark.parametrize("name", FIGURES)
def test_every_kind_is_drawn_with_its_words(name):
    figure = FIGURES[name]
    drawn = drawn_of(name)
    sent = json.loads(drawn.to_json())
    words = {"title": figure.title, "caption": figure.caption, "alt": figure.alt}
    assert sent["layout"]["meta"] == {**words, "columns": figure.columns()}
    clickable = [trace for trace in drawn.data if trace.customdata is not None]
    assert sum(len(trace.customdata) for trace in clickable) == len(figure.table)
    assert {len(mark) for trace in clickable for mark in trace.customdata} == {len(figure.columns())}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_markup(name):
    sent = json.loads(drawn_of(name).to_json())
    for text in shown_texts(sent):
        assert set(re.findall("<[^>]*>?", text)) <= {"<br>", "<extra>", "</extra>"}
        assert "$" not in text


def shown_texts(node, key=""):
    """All that plotly would read as its HTML, and so does with customdata, which stands in the hover; meta is data."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name != "meta":
                yield from shown_texts(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from shown_texts(value, key)
    elif isinstance(node, str) and key in _SHOWN:
        yield node


_SHOWN = ("text", "hovertext", "hovertemplate", "customdata", "name", "ticktext")


def test_the_canary_is_shown_letter_by_letter():
    shown = as_text(CANARY)
    assert shown.startswith("&lt;b&gt;x&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;&#36;a_1^2&#36;")


def test_a_heat_map_has_a_layer_that_hears_clicks():
    cells, marks = screen(load_map(4, 8)).data
    assert (cells.type, marks.type) == ("heatmap", "scatter")
    assert marks.marker.opacity == 0
    columns = screen(load_map(4, 8)).layout.meta["columns"]
    assert set(columns) == {"layer", "expert", "load", "tokens"}
    assert [marks.customdata[9][columns.index(name)] for name in ("layer", "expert")] == [1, 1]
    assert cells.z[1][1] == pytest.approx(screen(load_map(4, 8)).data[0].z[1][1])
    assert marks.hovertemplate.split("<br>")[:2] == ["expert: %{customdata[0]}", "layer: %{customdata[1]}"]
    assert list(marks.customdata[9][:2]) == [1, 1]


def test_hover_names_interval_and_null():
    figure = Bars(
        *(series(4).head(1), "domain", "value"),
        title="t",
        caption="c",
        alt="a",
        x_label="domain",
        y_label="imbalance (unit 1)",
        low="low",
        high="high",
        interval_label="95 % interval, jackknife",
        null="null",
        null_label="uniform routing",
    )
    lines = screen(figure).data[0].hovertemplate.removesuffix("<extra></extra>").split("<br>")
    assert [line.split(":")[0] for line in lines] == [
        *("domain", "imbalance (unit 1)", "95 % interval, jackknife, from", "95 % interval, jackknife, to"),
        "uniform routing",
    ]


def test_a_bar_with_a_base_goes_from_it_to_its_value_with_its_text_over_it():
    figure = waterfall()
    drawn = screen(figure)
    ends = {
        x: (b, b + h) for bar in drawn.data if bar.type == "bar" for x, b, h in zip(bar.x, bar.base, bar.y, strict=True)
    }
    for place, row in enumerate(figure.table.itertuples()):
        assert ends[place] == pytest.approx((row.before, row.after))
    said = [one for one in drawn.data if getattr(one, "mode", "") == "text"]
    texts = {x: (t, y) for one in said for x, t, y in zip(one.x, one.text, one.y, strict=True)}
    assert texts[1][0] == "×0.50" and texts[1][1] == pytest.approx(2.3)  # over where it begins, for it falls


def test_a_missing_value_is_said_in_words():
    figure, drawn = FIGURES["ordered categories"], drawn_of("ordered categories")
    at = figure.columns().index("share")
    assert [mark[at] == "no value" for mark in drawn.data[1].customdata] == figure.table["share"].isna().tolist()


def test_a_flow_goes_from_its_sources_to_its_targets():
    figure = FIGURES["flow"]
    (sankey,) = screen(figure).data
    labels = sankey.node.label
    ends = [(labels[i], labels[j]) for i, j in zip(sankey.link.source, sankey.link.target, strict=True)]
    assert ends == [(str(row.expert), str(row.next)) for row in figure.table.itertuples()]
    assert list(sankey.link.value) == figure.table["tokens"].tolist()
    assert sankey.link.customdata[0].startswith("expert of layer 3: ")


def test_tokens_stand_in_order_and_do_not_overlap():
    bars = screen(strip(300, colour="loss")).data[0]
    spans = list(zip(bars.y, bars.base, bars.x, strict=True))
    for (line, left, wide), (next_line, next_left, _) in itertools.pairwise(spans):
        assert (next_line, next_left) == (line, left + wide) or (next_line > line and next_left == 0)
    at = screen(strip(300, colour="loss")).layout.meta["columns"].index("loss")
    assert bars.customdata[0][at] == "no value"
    assert f"loss (nats): %{{customdata[{at}]}}" in bars.hovertemplate
