"""Neighbours by position: by hand, beside a plain search, and under every order of the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.statistics import neighbours

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 8)), max_size=24)


def in_text_order(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    document_T, position_T = np.array(sorted(rows), dtype=np.int64).reshape(-1, 2).T
    return document_T, position_T


def plain_pairs(rows: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The tokens that follow another one, by looking for that one among all rows."""
    whole = {d for d, _ in rows if len({p for e, p in rows if e == d}) == sum(e == d for e, _ in rows)}
    return {(d, p) for d, p in rows if d in whole and p > 0 and (d, p - 1) in rows}


def test_by_hand():
    """A gap, another document at the next position, a position that comes twice, and one that is none."""
    document_T = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    position_T = np.array([4, 5, 7, 8, 9, 0, 0, 1, -1, 0])
    follows_T = neighbours.follows(document_T, position_T)
    assert follows_T.tolist() == [False, True, False, False, True, False, False, False, False, False]
    assert neighbours.stretches(follows_T).tolist() == [0, 0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert neighbours.longest_stretches(document_T, follows_T, n_documents=5).tolist() == [2, 2, 1, 1, 0]


@given(ROWS)
@settings(max_examples=200)
def test_beside_a_plain_search(rows):
    document_T, position_T = in_text_order(rows)
    follows_T = neighbours.follows(document_T, position_T)
    found = set(zip(document_T[follows_T].tolist(), position_T[follows_T].tolist(), strict=True))
    assert found == plain_pairs(rows) and follows_T.sum() == len(found)
    longest_D = neighbours.longest_stretches(document_T, follows_T, n_documents=4)
    for d in range(4):
        starts = [p for e, p in rows if e == d]
        runs = [next(n for n in range(1, 20) if (d, p + n) not in found) for p in starts]
        assert longest_D[d] == max(runs, default=0)


def test_rows_out_of_the_texts_order_are_refused():
    for document, position in (([0, 1, 0], [0, 0, 1]), ([0, 0], [1, 0])):
        with pytest.raises(ValueError, match="document_T and position_T are not in the order of the text: sort by"):
            neighbours.follows(np.array(document), np.array(position))


def test_nothing_follows_nothing():
    nothing = np.empty(0, dtype=np.int64)
    assert neighbours.follows(nothing, nothing).shape == (0,)
    assert neighbours.longest_stretches(nothing, np.empty(0, dtype=bool), n_documents=2).tolist() == [0, 0]
