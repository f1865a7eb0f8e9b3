import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from workbench.metrics import router as m

HALF = np.array([[0.5, 0.25, 0.25, 0.0]])


def test_values_by_hand():
    ids_TK = np.array([[0, 2]])
    assert m.token_entropy(HALF) == pytest.approx(1.5 * np.log(2))
    assert m.topk_mass(HALF, ids_TK) == pytest.approx(0.75)
    assert m.margin(np.array([[3.0, 1.0, 2.0, -1.0]]), ids_TK) == pytest.approx(1)
    assert m.margin(np.array([[3.0, 2.5, 2.0, -1.0]]), ids_TK) == pytest.approx(-0.5)  # a bias chose 2 over 1
    assert m.token_entropy_from_logits(np.log(HALF + 1e-300), scoring="softmax") == pytest.approx(1.5 * np.log(2))
    # σ(0) = 1/2 each
    assert m.token_entropy_from_logits(np.zeros((1, 8)), scoring="sigmoid") == pytest.approx(np.log(8))
    assert m.normalized_entropy(m.token_entropy(HALF), n_experts=4) == pytest.approx(0.75)


def test_limits():
    even, sure = np.full((1, 4), 0.25), np.array([[0.0, 1.0, 0.0, 0.0]])
    assert m.token_entropy(even) == pytest.approx(np.log(4))
    assert m.token_entropy(sure) == 0
    assert m.topk_mass(even, np.array([[1, 3]])) == pytest.approx(0.5)  # K/E
    every = np.arange(4)[None]
    assert m.topk_mass(HALF, every) == pytest.approx(1)
    assert np.isnan(m.margin(HALF, every)).all()
    assert m.token_entropy_from_logits(np.array([[1000.0, 0.0]]), scoring="softmax") == 0


def test_nan_stays_nan():
    broken = np.array([[np.nan, 0.5], [0.5, 0.5]])
    of_logits = (m.token_entropy_from_logits(broken, scoring=scoring) for scoring in ("softmax", "sigmoid"))
    for values in (m.token_entropy(broken), *of_logits):
        np.testing.assert_array_equal(np.isnan(values), [True, False])
    np.testing.assert_array_equal(np.isnan(m.topk_mass(broken, np.array([[0], [0]]))), [True, False])


@given(seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_plain_python_and_the_names_of_experts(seed):
    rng = np.random.default_rng(seed)
    logits_TE = rng.normal(size=(5, 6)) * 3
    scores_TE = softmax(logits_TE, axis=1)
    ids_TK = np.argsort(-logits_TE, axis=1)[:, :2]
    for t in range(5):
        s = scores_TE[t].tolist()
        chosen = [s[e] for e in ids_TK[t]]
        rest = [s[e] for e in range(6) if e not in ids_TK[t]]
        assert m.token_entropy(scores_TE)[t] == pytest.approx(-sum(x * np.log(x) for x in s))
        assert m.topk_mass(scores_TE, ids_TK)[t] == pytest.approx(sum(chosen))
        assert m.margin(scores_TE, ids_TK)[t] == pytest.approx(min(chosen) - max(rest))
    np.testing.assert_allclose(m.token_entropy_from_logits(logits_TE, scoring="softmax"), m.token_entropy(scores_TE))
    sigmoid_TE = 1 / (1 + np.exp(-logits_TE))
    np.testing.assert_allclose(
        m.token_entropy_from_logits(logits_TE, scoring="sigmoid"),
        m.token_entropy(sigmoid_TE / sigmoid_TE.sum(axis=1, keepdims=True)),
    )
    order = rng.permutation(6)
    renamed_TK = np.argsort(order)[ids_TK]
    np.testing.assert_allclose(m.token_entropy(scores_TE[:, order]), m.token_entropy(scores_TE))
    np.testing.assert_allclose(m.topk_mass(scores_TE[:, order], renamed_TK), m.topk_mass(scores_TE, ids_TK))
    np.testing.assert_allclose(m.margin(scores_TE[:, order], renamed_TK[:, ::-1]), m.margin(scores_TE, ids_TK))


def test_float16_scores_pass():
    scores_TE = softmax(np.random.default_rng(0).normal(size=(50, 256)), axis=1).astype(np.float16)
    assert m.token_entropy(scores_TE).shape == (50,)


def test_refusals():
    with pytest.raises(ValueError, match=r"scores_TE of token 1 sum to 3 with a minimum of 1, expected normalized"):
        m.token_entropy(np.array([[0.5, 0.5], [1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"scores_TE of token 0 sum to 1 with a minimum of -0.5"):
        m.topk_mass(np.array([[1.5, -0.5]]), np.array([[0]]))
    for call in (m.margin, m.topk_mass):
        with pytest.raises(ValueError, match=r"ids_TK spans 4 to 4, expected 0 to 3"):
            call(HALF, np.array([[4]]))
        with pytest.raises(ValueError, match=r"names an expert twice in 1 tokens"):
            call(HALF, np.array([[1, 1]]))
    assert np.isnan(m.normalized_entropy(np.zeros(2), n_experts=1)).all()
    with pytest.raises(ValueError, match=r"n_experts is 0, expected 1 or more"):
        m.normalized_entropy(np.zeros(1), n_experts=0)


def test_another_scoring_is_refused():
    unchecked = inspect.unwrap(m.token_entropy_from_logits)  # past the annotation, which says the same
    with pytest.raises(
        ValueError, match=r"scoring is 'tanh', expected 'softmax' or 'sigmoid': the recording's manifest"
    ):
        unchecked(HALF, scoring="tanh")
