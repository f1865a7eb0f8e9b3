"""The page of formulas says what the code works out."""

from tests.efficiency import page


def test_the_page_is_as_it_would_be_written():
    assert page.DOCS.read_text(encoding="utf-8") == page.text(), "run python -m tests.efficiency.page"
