"""Sets as bits, and shuffles that keep what they promise; each beside plain Python sets."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics import sets


def random_sets(rng: np.random.Generator, n: int, *, n_experts: int, top_k: int) -> np.ndarray:
    return np.argsort(rng.random((n, n_experts)), axis=1)[:, :top_k]


def places(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents and positions of documents of these lengths; their numbers are not in order."""
    documents = np.concatenate([np.full(n, 7 * i % 11) for i, n in enumerate(sizes)])
    return documents, np.concatenate([np.arange(n) for n in sizes])


def unpacked(bits_TW: np.ndarray, n_experts: int) -> list[set[int]]:
    chosen_TE = sets.indicators(bits_TW, n_experts=n_experts)
    return [set(np.flatnonzero(row).tolist()) for row in chosen_TE]


@given(st.integers(0, 2**31), st.sampled_from([(8, 2), (16, 16), (64, 8), (65, 3), (200, 5)]))
@settings(max_examples=20)
def test_bits_are_the_sets(seed, shape):
    n_experts, top_k = shape
    rng = np.random.default_rng(seed)
    one, two = (random_sets(rng, 9, n_experts=n_experts, top_k=top_k) for _ in range(2))
    bits = [sets.as_bits(ids.astype(np.uint8), n_experts=n_experts) for ids in (one, two)]
    assert unpacked(bits[0], n_experts) == [set(row) for row in one.tolist()]
    assert sets.overlap(*bits).tolist() == [
        len(set(a) & set(b)) for a, b in zip(one.tolist(), two.tolist(), strict=True)
    ]
    joint = np.zeros((n_experts, n_experts), dtype=int)
    for a, b in zip(one.tolist(), two.tolist(), strict=True):
        for i, j in itertools.product(a, b):
            joint[i, j] += 1
    np.testing.assert_array_equal(sets.joint_counts(*bits, n_experts=n_experts), joint)


def test_wrong_ids_are_refused():
    with pytest.raises(ValueError, match="ids_TK spans 0 to 4, expected 0 to 3"):
        sets.as_bits(np.array([[0, 4]]), n_experts=4)
    with pytest.raises(ValueError, match="names an expert twice"):
        sets.as_bits(np.array([[1, 1]]), n_experts=4)


def test_a_shuffle_stays_within_documents_and_knows_no_rows():
    document_T, position_T = places([5, 1, 9, 4])
    order = sets.shuffled_within(document_T, position_T, seed=3)
    assert sorted(order) == list(range(19)) and (order != np.arange(19)).any()
    np.testing.assert_array_equal(document_T[order], document_T)
    # the same documents in another order, as other parts would hold them, get the same draws
    rows = np.concatenate([np.arange(6, 15), np.arange(0, 6), np.arange(15, 19)])
    again = rows[sets.shuffled_within(document_T[rows], position_T[rows], seed=3)]
    np.testing.assert_array_equal(again, order[rows])
    assert (sets.shuffled_within(document_T, position_T, seed=3, draw=1) != order).any()
    assert (sets.shuffled_within(document_T, position_T, seed=4) != order).any()


def test_every_order_is_as_likely():
    document_T, position_T = np.zeros(3, dtype=int), np.arange(3)
    drawn = Counter(tuple(sets.shuffled_within(document_T, position_T, seed=0, draw=i)) for i in range(3000))
    assert len(drawn) == 6
    assert max(abs(count - 500) for count in drawn.values()) < 5 * np.sqrt(500)


def test_rows_of_a_document_that_are_apart_are_refused():
    with pytest.raises(ValueError, match="rows of one document in several places: sort by document and position"):
        sets.shuffled_within(np.array([0, 1, 0]), np.arange(3), seed=0)


@pytest.mark.parametrize("shape", [(8, 2), (64, 8), (100, 4)])
def test_swaps_keep_every_margin(shape):
    n_experts, top_k = shape
    document_T, position_T = places([30, 1, 41])
    rng = np.random.default_rng(0)
    of_layers = [random_sets(rng, 72, n_experts=n_experts, top_k=top_k) for _ in range(2)]
    bits_TLW = np.stack([sets.as_bits(ids_TK, n_experts=n_experts) for ids_TK in of_layers], axis=1)
    pairings = sets.Pairings(document_T, position_T, seed=1)
    swapped = sets.swapped_within(bits_TLW, pairings, n_steps=40)
    for layer in range(2):
        before, after = (
            sets.indicators(np.ascontiguousarray(bits[:, layer]), n_experts=n_experts) for bits in (bits_TLW, swapped)
        )
        assert (after.sum(axis=1) == top_k).all()
        for document in np.unique(document_T):
            of = document_T == document
            np.testing.assert_array_equal(before[of].sum(axis=0), after[of].sum(axis=0))
        assert (before != after).any()
        alone = sets.swapped_within(bits_TLW[:, layer], pairings, n_steps=40)
        np.testing.assert_array_equal(alone, swapped[:, layer])
    np.testing.assert_array_equal(swapped[30], bits_TLW[30])  # a document of one token has nobody to swap with


@pytest.mark.parametrize("n_tokens", [500, (1 << 16) + 3])  # of so many the steps are kept, and of more drawn again
def test_pairings_that_are_kept_are_those_that_are_drawn_and_belong_to_their_tokens(n_tokens):
    document_T, position_T = places([n_tokens - 100, 100])
    pairings = sets.Pairings.of(document_T, position_T, seed=1)
    assert sets.Pairings.of(document_T.copy(), position_T.copy(), seed=1) is pairings
    first = pairings.step(7)
    for again in (pairings.step(7), sets.Pairings(document_T, position_T, seed=1).step(7)):
        for one, two in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, two)
    one_P, two_P, _ = first
    assert len(set(one_P) | set(two_P)) == 2 * len(one_P) == 2 * ((n_tokens - 100) // 2 + 50)
    assert (document_T[one_P] == document_T[two_P]).all()
    assert (pairings.step(8)[0] != one_P).any()
    for other in ((document_T, position_T, 2), (document_T, position_T + 1, 1), (document_T + 1, position_T, 1)):
        assert sets.Pairings.of(other[0], other[1], seed=other[2]) is not pairings
        assert (sets.Pairings.of(other[0], other[1], seed=other[2]).step(7)[0] != one_P).any()


def test_swaps_reach_every_arrangement_as_often():
    """Three tokens with two of three experts, each expert twice: 6 arrangements."""
    bits_TW = sets.as_bits(np.array([[0, 1], [0, 2], [1, 2]]), n_experts=3)
    pairings = sets.Pairings(np.zeros(3, dtype=int), np.arange(3), seed=0)
    drawn: Counter = Counter()
    for step in range(0, 6000, 6):
        bits_TW = sets.swapped_within(bits_TW, pairings, n_steps=6, first_step=step)
        drawn[tuple(bits_TW[:, 0].tolist())] += 1
    assert len(drawn) == 6
    assert max(abs(count - 1000 / 6) for count in drawn.values()) < 5 * np.sqrt(1000 / 6)
