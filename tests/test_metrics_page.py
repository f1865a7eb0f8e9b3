"""Every metric can be reached: by an analysis, so from Python and the command line, and on a page of the app."""

from pathlib import Path

import pytest

from analyses import catalogue
from docs import metrics

ALL = [name for name, _ in metrics.metrics()]


@pytest.mark.parametrize("metric", ALL)
def test_an_analysis_answers_with_it_and_a_page_shows_it(metric):
    names = metrics.analyses_of(metric)
    assert names, f"no analysis leads to {metric}"
    assert any(metrics.pages_of(name) for name in names), f"{metric} is on no page: {', '.join(names)}"


def test_a_metric_that_nothing_uses_is_not_found():
    assert metrics.analyses_of("structure.no_such_metric") == []
    assert metrics.analyses_of("structure.flow_information") == ["layer_flow"]  # through a table of functions
    assert "differences" in metrics.analyses_of("load.imbalance")


@pytest.mark.parametrize("name", catalogue.names())
def test_the_guide_lists_every_analysis_with_its_tables(name):
    guide = Path(metrics.__file__).with_name("guide.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith(f"| `{name}`")]
    assert len(rows) == 1, f"docs/guide.md has {len(rows)} rows for {name}"


def test_the_page_is_current():
    page = Path(metrics.__file__).with_name("metrics.md").read_text(encoding="utf-8")
    assert page == metrics.text(), "python -m docs.metrics writes it again"
