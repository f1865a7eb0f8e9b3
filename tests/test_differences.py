"""The page docs/differences.md holds what its command computes."""

from pathlib import Path

import pytest

from docs import differences
from workbench.capture.record import record
from workbench.models.loading import load

PAGE = Path(differences.__file__).with_suffix(".md")


def test_the_table_has_every_comparison_and_takes_its_place_on_the_page(recording):
    text = differences.table(recording)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    layers = len(recording.moe_layers)
    assert len(rows) == 1 + layers + (layers - 1) + layers
    assert all(len(row) == 4 for row in rows) and "nan" not in text
    page = differences.written(PAGE.read_text(encoding="utf-8"), text)
    assert text in page and page == differences.written(page, text)
    assert page.startswith("# Where public code differs") and page.rstrip().endswith("the token.")


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tmp_path):
    text = differences.table(record(load("tiny-moe", device="cpu"), "demo", tmp_path / "demo"))
    assert text in PAGE.read_text(encoding="utf-8")
