"""Each tool's words for one request's times, by hand."""

import numpy as np
import pytest

from workbench.efficiency.serving.latency import (
    E2E,
    E2E_CLOSED,
    ITL,
    TPOT,
    TPOT_WHOLE,
    TTFT,
    TTFT_DUE,
    WORDS,
    Arrivals,
    readings_s,
)
from workbench.errors import MeasurementError


def arrivals(**changed) -> Arrivals:
    """Due 0.1 s before it was sent; chunks at 0.5, 0.7 and 1.1 s, an empty one at 1.2, closed at 1.3; 7 tokens."""
    told = {"chunk_s_C": np.array([0.5, 0.7, 1.1, 1.2]), "chunk_chars_C": np.array([4, 2, 8, 0])}
    return Arrivals(**{**told, "end_s": 1.3, "due_s": -0.1, "tokens": 7} | changed)


def test_every_word_by_hand():
    found = readings_s(arrivals())
    assert set(found) == {word.name for word in WORDS}
    assert found[TTFT.name] == [0.5] and found[TTFT_DUE.name] == [0.6]
    assert found[TPOT.name] == pytest.approx([0.1])  # 0.6 s for the six after the first
    assert found[TPOT_WHOLE.name] == pytest.approx([1.1 / 7])
    assert found[ITL.name] == pytest.approx([0.2, 0.4])  # two gaps, though six tokens came
    assert found[E2E.name] == [1.1] and found[E2E_CLOSED.name] == [1.3]


def test_words_that_have_no_meaning_have_no_value():
    one = readings_s(arrivals(chunk_s_C=np.array([0.5]), chunk_chars_C=np.array([4]), tokens=1))
    assert one[TPOT.name] == [] and one[ITL.name] == [] and one[TPOT_WHOLE.name] == [0.5]
    silent = readings_s(arrivals(chunk_chars_C=np.zeros(4)))
    assert all(values == [] for values in silent.values())
    assert all(values == [] for values in readings_s(arrivals(tokens=0)).values())


def test_a_chunk_per_token_gives_gaps_whose_mean_is_the_time_per_token():
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(size=9))
    found = readings_s(arrivals(chunk_s_C=at, chunk_chars_C=np.ones(9), tokens=9))
    assert np.mean(found[ITL.name]) == pytest.approx(found[TPOT.name][0])


def test_a_later_clock_changes_nothing_but_what_was_due():
    """Times count from the sending: were all of them later by as much, each word would be, and gaps would not."""
    base, late = readings_s(arrivals()), readings_s(arrivals(chunk_s_C=np.array([0.5, 0.7, 1.1, 1.2]) + 2, end_s=3.3))
    assert late[TTFT.name] == [base[TTFT.name][0] + 2]
    np.testing.assert_allclose(late[ITL.name], base[ITL.name])
    np.testing.assert_allclose(late[TPOT.name], base[TPOT.name])


def test_a_time_without_a_length_is_refused():
    with pytest.raises(MeasurementError, match="4 chunks have times and 3 have lengths; one of each was expected"):
        arrivals(chunk_chars_C=np.array([4, 2, 8]))
