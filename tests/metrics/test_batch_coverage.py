"""Distinct experts of tokens decoded together: by hand, against a plain count, and under random routing."""

import numpy as np
import pytest

from tests.metrics.test_sets import random_sets
from workbench.metrics import sequence, sets
from workbench.metrics.distinct_experts import batch_activated_experts


def plainly(ids_TK, sequence_T, batch):
    """Sets of ids, one position at a time."""
    found = []
    rows = [ids_TK[sequence_T == s] for s in range(sequence_T.max() + 1)]
    for first in range(0, len(rows) - batch + 1, batch):
        together = rows[first : first + batch]
        steps = min(map(len, together))
        met = [len({expert for row in together for expert in row[at].tolist()}) for at in range(steps)]
        found.append((sum(met), steps))
    return found


def test_by_hand():
    """Two sequences, {0, 1} {2, 3} {0, 1} and {0, 1} {1, 2}: together 2 and 3 experts; the third token is alone."""
    ids_TK = np.array([[0, 1], [2, 3], [0, 1], [0, 1], [1, 2]])
    found = batch_activated_experts(sets.as_bits(ids_TK, n_experts=4), np.array([0, 0, 0, 1, 1]), doublings=1)
    assert [found.distinct[0].tolist(), found.steps[0].tolist()] == [[6, 4], [3, 2]]
    assert [found.distinct[1].tolist(), found.steps[1].tolist()] == [[5], [2]]


@pytest.mark.parametrize("n_experts", [8, 100])
def test_the_fast_way_is_the_plain_way(n_experts):
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, 13)
    sizes[-1] = 4
    sequence_T = np.repeat(np.arange(13), sizes)
    _, sequence_T = np.unique(sequence_T, return_inverse=True)  # sequences without tokens are no sequences
    ids_TK = random_sets(rng, len(sequence_T), n_experts=n_experts, top_k=3)
    found = batch_activated_experts(sets.as_bits(ids_TK, n_experts=n_experts), sequence_T, doublings=3)
    for n in range(4):
        pairs = list(zip(found.distinct[n].tolist(), found.steps[n].tolist(), strict=True))
        assert pairs == plainly(ids_TK, sequence_T, 2**n)


def test_under_uniform_random_routing_it_is_the_formula():
    rng = np.random.default_rng(1)
    ids_TK = random_sets(rng, 64 * 200, n_experts=16, top_k=2)
    found = batch_activated_experts(sets.as_bits(ids_TK, n_experts=16), np.repeat(np.arange(64), 200), doublings=5)
    expected = sequence.uniform_activated_experts(tokens_B=2 ** np.arange(6), n_experts=16, top_k=2)
    measured = [d.sum() / s.sum() for d, s in zip(found.distinct, found.steps, strict=True)]
    np.testing.assert_allclose(measured, expected, rtol=0.02)


def test_identical_sequences_meet_k_experts_at_any_batch():
    ids_TK = np.tile(random_sets(np.random.default_rng(2), 50, n_experts=16, top_k=4), (8, 1))
    found = batch_activated_experts(sets.as_bits(ids_TK, n_experts=16), np.repeat(np.arange(8), 50), doublings=3)
    assert all((d == 4 * s).all() for d, s in zip(found.distinct, found.steps, strict=True))


def test_what_cannot_be_meant_is_refused():
    bits_TW = sets.as_bits(np.array([[0, 1], [2, 3]]), n_experts=4)
    with pytest.raises(ValueError, match="sequence_T does not rise from 0 without gaps; sort the tokens by sequence"):
        batch_activated_experts(bits_TW, np.array([0, 2]), doublings=0)
    with pytest.raises(ValueError, match="there are 2 sequences, expected 4 or more: ask for fewer doublings"):
        batch_activated_experts(bits_TW, np.array([0, 1]), doublings=2)
