import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics import load as m


def test_divergence_and_drift_by_hand():
    counts_PE = np.array([[4, 0], [0, 4], [4, 4]])
    np.testing.assert_allclose(m.position_divergence(counts_PE), [np.log(2), np.log(2), 0])
    assert m.position_drift(counts_PE) == pytest.approx(np.log(2) / 2)
    assert m.position_drift(np.array([[3, 1], [6, 2]])) == pytest.approx(0)


@given(seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_drift_equals_plain_information_and_ignores_names(seed):
    rng = np.random.default_rng(seed)
    counts_PE = rng.integers(0, 9, (3, 4))
    counts_PE[0, 0] += 1
    joint = counts_PE / counts_PE.sum()
    expected = sum(
        joint[p, e] * np.log(joint[p, e] / (joint[p].sum() * joint[:, e].sum()))
        for p in range(3)
        for e in range(4)
        if joint[p, e]
    )
    moved = counts_PE[rng.permutation(3)][:, rng.permutation(4)]
    np.testing.assert_allclose(m.position_drift(np.stack([counts_PE, moved])), expected, atol=1e-12)
    assert -1e-12 <= expected <= np.log(3)


@given(seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_divergence_equals_plain_python(seed):
    counts_PE = np.random.default_rng(seed).integers(0, 9, (3, 4)) + np.eye(3, 4, dtype=int)
    whole = [sum(column) / int(counts_PE.sum()) for column in counts_PE.T.tolist()]
    for p, row in enumerate(counts_PE.tolist()):
        share = [c / sum(row) for c in row]
        plain = sum(f * np.log(f / g) for f, g in zip(share, whole, strict=True) if f)
        assert m.position_divergence(counts_PE)[p] == pytest.approx(plain, abs=1e-12)


def test_random_routing_drifts_by_counting_alone():
    counts_BPE = np.random.default_rng(0).multinomial(200, np.full(8, 1 / 8), size=(300, 5))
    assert m.position_drift(counts_BPE).mean() == pytest.approx(4 * 7 / (2 * 1000), rel=0.05)


def test_ranges_without_tokens():
    counts_PE = np.array([[2, 2], [0, 0]])
    np.testing.assert_array_equal(np.isnan(m.position_divergence(counts_PE)), [False, True])
    assert m.position_drift(counts_PE) == 0
    assert np.isnan(m.position_drift(np.zeros((2, 3), dtype=int)))
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.position_divergence(np.array([[-1, 2]]))
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.position_drift(np.array([[-1, 2]]))
