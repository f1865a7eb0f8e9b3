"""Labels of any length and kind: they are cut to what fits, and a figure is drawn with them."""

import dataclasses
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.figures.examples import examples
from tests.tiers import often
from workbench.figures.matplotlib import layout as module
from workbench.figures.matplotlib.draw import paper, save
from workbench.figures.matplotlib.layout import LONGEST, MOST_LINES, SMALL_PT, say, shorten, width_in, wrap
from workbench.figures.plotly.draw import screen

TEXTS = {
    "long": "x" * 3_000,
    "lines": "a\n" * 1_000,
    "marks": "e\u0301" * 1_500,
    "nul": "\x00" * 500,
    "emoji": "🙂👨\u200d👩\u200d👧" * 300,
    "right to left": "\u202eخبير שלום " * 200,
    "mathematics": "$\\frac{1}{0$ " * 200,
    "markup": "<b>b</b><br>&amp;<sub>[/red]" * 100,
    "latex": "\\input{x}\\end{y}%{" * 100,
}


def one_by_one(text: str, size_pt: float, inches: float) -> str:
    """The plain way: a character less, until it fits."""
    while len(text) > 1 and width_in(text, size_pt) > inches:
        text = text.removesuffix("…")[:-1] + "…"
    return text


@given(
    text=st.text(st.sampled_from("iWmx. -Ta…专e\u0301"), max_size=60),
    inches=st.floats(0.0, 3.0),
)
def test_halving_keeps_what_dropping_one_by_one_keeps(text, inches):
    drawable = say(text)
    assert shorten(drawable, SMALL_PT, inches) == one_by_one(drawable, SMALL_PT, inches)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 59, 60, 61, 90])
def test_texts_around_the_longest_are_cut_alike(n, monkeypatch):
    """Against the plain way, which takes its time over 2,000 characters; so the longest is less here."""
    monkeypatch.setattr(module, "LONGEST", 60)
    assert shorten("x" * n, SMALL_PT, 1.0) == one_by_one("x" * n, SMALL_PT, 1.0)


@pytest.mark.parametrize("n", often([400, LONGEST, LONGEST + 1, 3_000], [400]))
def test_texts_of_every_length_are_cut_alike(n):
    assert shorten("x" * n, SMALL_PT, 1.0) == one_by_one("x" * n, SMALL_PT, 1.0)


def test_a_long_text_is_measured_a_few_times_and_never_whole(monkeypatch):
    measured = []
    monkeypatch.setattr(module, "width_in", lambda text, size_pt: measured.append(len(text)) or width_in(text, size_pt))
    assert shorten("W" * 1_000_000, SMALL_PT, 1.0).endswith("…")
    assert len(measured) <= 12 and max(measured) <= LONGEST
    measured.clear()
    assert wrap("word " * 100_000, SMALL_PT, 1.0).count("\n") == MOST_LINES - 1
    assert len(measured) < 2 * LONGEST


def with_labels(figure, text: str):
    """A figure in which every text is this one, told apart by a number."""
    changed = {}
    for field in dataclasses.fields(figure):
        value = getattr(figure, field.name)
        if isinstance(value, pd.DataFrame):
            changed[field.name] = value.assign(**{
                name: [f"{list(dict.fromkeys(value[name])).index(cell)} {text}" for cell in value[name]]
                for name in value.columns
                if value[name].map(lambda cell: isinstance(cell, str)).all()
            })  # fmt: skip
        elif field.name in ("title", "x_label", "y_label", "value_label", "caption", "alt", "null_label") and value:
            changed[field.name] = text
    return dataclasses.replace(figure, **changed)


@pytest.mark.parametrize(
    ("name", "text"),
    [*(("lines-4", each) for each in TEXTS.values()), ("waterfall", TEXTS["long"]), ("waterfall", TEXTS["lines"])],
)
def test_any_text_can_be_a_label(name, text):
    figure = with_labels(examples()[name], text)
    drawn = paper(figure, width="column")
    assert drawn.get_size_inches()[1] < 15
    file = io.BytesIO()
    save(drawn, file, kind="svg", metadata={"Title": "t"})
    assert file.getvalue().startswith(b"<?xml")
    screen(figure)
