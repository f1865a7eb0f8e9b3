"""What is made ahead: never during a page, the last page's outlook alone, within its bytes; and pages find it."""

import itertools
import threading
import time

import pytest
from streamlit.testing.v1 import AppTest

from analyses.question import Question
from tests.pages.test_pages import PAGES, app, data, opened, said  # noqa: F401  fixtures

PATIENCE_S = 10


@pytest.fixture
def prefetch(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(PAGES))
    from components import prefetch

    return prefetch


def test_nothing_is_made_while_a_page_is_and_then_all_in_turn(prefetch):
    outlook, made, ended = prefetch.Outlook(), [], threading.Event()
    outlook.begin()
    with outlook.page():
        outlook.likely([lambda: made.append(1) or 0, lambda: made.append(2) or 0, lambda: ended.set() or 0])
        time.sleep(1.5 * prefetch.QUIET_S)
        assert made == []
        left = time.monotonic()
    assert ended.wait(PATIENCE_S)
    assert made == [1, 2] and time.monotonic() - left >= prefetch.QUIET_S


def test_a_new_outlook_takes_the_place_of_what_waits_and_a_failure_ends_nothing(prefetch):
    outlook, made, ended = prefetch.Outlook(), [], threading.Event()
    outlook.begin()

    def fail() -> int:
        raise MemoryError("as nobody expected")

    with outlook.page():
        outlook.likely([lambda: made.append("old") or 0])
        outlook.likely([fail, lambda: ended.set() or 0])
    assert ended.wait(PATIENCE_S)
    assert made == []


def test_an_outlook_of_large_things_ends_before_it_fills_the_memory(prefetch):
    outlook, numbers = prefetch.Outlook(), itertools.count()
    outlook.likely([lambda: (20 << 20) + 0 * next(numbers)] * 10)
    outlook.begin()
    deadline = time.monotonic() + PATIENCE_S
    while outlook._waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    assert next(numbers) == 3  # 60 of 64 MB


@pytest.mark.parametrize("asked_of", [("structure", "coactivation"), ("utilization", "expert_card")])
@pytest.mark.parametrize("address", [{}, {"expert": "3"}])
def test_a_page_finds_its_other_layers(app: AppTest, prefetch, monkeypatch, asked_of, address):  # noqa: F811
    page, analysis = asked_of
    opened(app, page, recording="shared", **address)
    assert not app.exception
    layers = app.selectbox(key="layer").options
    assert len(prefetch.outlook._waiting) == len(layers) - 1
    while prefetch.outlook._waiting:
        assert prefetch.outlook.take()() > 0
    asked, original = [], Question.answer
    monkeypatch.setattr(Question, "answer", lambda asks: asked.append(asks.analysis) or original(asks))
    for layer in layers:
        app.selectbox(key="layer").select(int(layer)).run()
        assert not app.exception and said(app) == ""
        assert app.session_state["chosen"]["layer"] == str(layer)
    assert analysis not in asked
