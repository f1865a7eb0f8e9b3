"""Where a recorded text says something, against a plain walk through the tokens."""

import pytest

from analyses.read.search import find
from workbench.recordings.recording import Recording


def walked(recording: Recording, text: str) -> list[tuple[str, int]]:
    """All tokens that read as the text, in the order of the corpus."""
    texts = dict(zip(recording.vocabulary["token"], recording.vocabulary["text"], strict=True))
    names = recording.documents().set_index("document")["id"]
    rows = recording.tokens()[["document", "position", "token"]].sort_values(["document", "position"])
    found = rows[[texts[token].strip().casefold() == text for token in rows["token"]]]
    return [(names[row.document], row.position) for row in found.itertuples()]


def test_the_next_token_that_reads_so_and_then_the_first_again(recording):
    text = recording.vocabulary["text"].iloc[3].strip().casefold()
    places = walked(recording, text)
    assert len(places) > 1
    document, position = "", None
    for index, place in enumerate([*places, places[0]]):
        found = find(recording, f" {text.upper()} ", document=document, position=position)
        assert (found.document, found.position) == place
        assert (found.place, found.count, found.exact) == (index % len(places) + 1, len(places), True)
        document, position = found.document, found.position


def test_a_part_of_a_token_is_found_where_none_reads_so(recording):
    text = max(recording.vocabulary["text"], key=len).strip()
    found = find(recording, text[:-1].lower())
    assert found is not None and not found.exact


@pytest.mark.parametrize("text", ["", "   ", "nothing reads like this", "[.*"])
def test_what_is_not_there_is_none(recording, text):
    assert find(recording, text) is None
