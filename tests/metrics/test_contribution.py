"""What experts add: by hand, at the limits, beside plain Python; and peers as the null of experts that add alike."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics.contribution import contribution, peer_contribution, shared_share


def test_a_contribution_by_hand():
    outputs_TKC = np.array([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]])
    found_TK = contribution(np.array([[0.5, -1.0], [2.0, 0.7]]), outputs_TKC)
    assert found_TK.tolist() == [[2.5, 2.0], [2.0, 0.0]]


def test_a_share_by_hand_and_at_its_limits():
    shared_TC = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    routed_TC = np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    found = shared_share(shared_TC, routed_TC)
    np.testing.assert_allclose(found.share_T, [0.75, 0.5, 0, 1, np.nan, 0.5])
    np.testing.assert_allclose(found.projection_T, [0.9, 0.5, 0, 1, np.nan, np.nan])
    np.testing.assert_allclose(found.cosine_T, [0, 1, np.nan, np.nan, np.nan, -1])


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_shares_equal_plain_python_and_ignore_scale_and_turns(seed, scale):
    rng = np.random.default_rng(seed)
    shared_TC, routed_TC = rng.normal(size=(2, 4, 3))
    found = shared_share(shared_TC, routed_TC)
    for t in range(4):
        s, r = shared_TC[t].tolist(), routed_TC[t].tolist()
        y = [a + b for a, b in zip(s, r, strict=True)]
        norm = {name: sum(a * a for a in of) ** 0.5 for name, of in (("s", s), ("r", r), ("y", y))}
        assert found.share_T[t] == pytest.approx(norm["s"] / (norm["s"] + norm["r"]))
        assert found.projection_T[t] == pytest.approx(sum(a * b for a, b in zip(s, y, strict=True)) / norm["y"] ** 2)
        dot = sum(a * b for a, b in zip(s, r, strict=True))
        assert found.cosine_T[t] == pytest.approx(dot / norm["s"] / norm["r"])
    other = shared_share(routed_TC, shared_TC)
    np.testing.assert_allclose(found.projection_T + other.projection_T, 1)
    np.testing.assert_allclose(found.share_T + other.share_T, 1)
    turn_CC = np.linalg.qr(rng.normal(size=(3, 3)))[0] * scale
    turned = shared_share(shared_TC @ turn_CC, routed_TC @ turn_CC)
    for one, two in zip(vars(found).values(), vars(turned).values(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-9)


def test_unrelated_outputs_share_by_their_norms_alone():
    """The null: two outputs of one size that have nothing to do with each other are at right angles on the mean."""
    shared_TC, routed_TC = np.random.default_rng(0).normal(size=(2, 4000, 32))
    found = shared_share(shared_TC, routed_TC)
    for value_T, expected in ((found.share_T, 0.5), (found.projection_T, 0.5), (found.cosine_T, 0.0)):
        assert abs(value_T.mean() - expected) < 4 * value_T.std() / np.sqrt(4000)


def test_outputs_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"weights_TK is \(2, 2\) and outputs_TKC \(3, 2, 4\), expected a weight for"):
        inspect.unwrap(contribution)(np.ones((2, 2)), np.ones((3, 2, 4)))  # past the annotation, which says the same
    with pytest.raises(ValueError, match=r"shared_TC is \(2, 4\) and routed_TC \(3, 4\), expected the same: pass both"):
        inspect.unwrap(shared_share)(np.ones((2, 4)), np.ones((3, 4)))


def test_by_hand():
    ids_TK = np.array([[0, 1], [1, 2], [0, 2]])
    added_TK = np.array([[1.0, 3.0], [4.0, 0.0], [1.0, 1.0]])
    found_DE = peer_contribution(ids_TK, added_TK, document_T=np.array([0, 0, 1]), n_documents=3, n_experts=4)
    assert found_DE.tolist() == [[2, 4, 2, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_it_is_the_mean_over_random_deals():
    """A token's contributions dealt to its experts at random, which is the null that it stands for."""
    rng = np.random.default_rng(0)
    ids_TK = np.stack([rng.permutation(6)[:3] for _ in range(40)])
    added_TK, document_T = rng.exponential(size=(40, 3)), np.repeat([0, 1], 20)
    drawn_DE = np.zeros((2, 6))
    for _ in range(4000):
        dealt_TK = rng.permuted(added_TK, axis=1)
        np.add.at(drawn_DE, (document_T[:, None], ids_TK), dealt_TK / 4000)
    found_DE = peer_contribution(ids_TK, added_TK, document_T=document_T, n_documents=2, n_experts=6)
    np.testing.assert_allclose(found_DE, drawn_DE, rtol=0.03)


def test_the_order_of_a_tokens_experts_does_not_matter_and_the_total_is_kept():
    rng = np.random.default_rng(1)
    ids_TK = np.stack([rng.permutation(8)[:3] for _ in range(50)])
    added_TK, where = rng.exponential(size=(50, 3)), {"document_T": np.zeros(50, int), "n_documents": 1, "n_experts": 8}
    found_DE = peer_contribution(ids_TK, added_TK, **where)
    np.testing.assert_allclose(peer_contribution(ids_TK[:, ::-1], added_TK[:, ::-1], **where), found_DE)
    assert found_DE.sum() == pytest.approx(added_TK.sum())


def test_one_expert_a_token_is_its_own_peer():
    ids_TK, added_TK = np.array([[0], [1], [1]]), np.array([[2.0], [3.0], [5.0]])
    found_DE = peer_contribution(ids_TK, added_TK, document_T=np.zeros(3, int), n_documents=1, n_experts=2)
    assert found_DE.tolist() == [[2, 8]]


def test_the_largest_ratio_is_k():
    ids_TK, added_TK = np.array([[0, 1, 2]]), np.array([[7.0, 0.0, 0.0]])
    found_DE = peer_contribution(ids_TK, added_TK, document_T=np.zeros(1, int), n_documents=1, n_experts=3)
    assert added_TK[0, 0] / found_DE[0, 0] == pytest.approx(3)


@pytest.mark.parametrize(
    ("ids", "document", "message"),
    [
        ([[0, 4]], [0], r"ids_TK has values from 0 to 4, expected \[0, 4\)"),
        ([[0, 1]], [2], r"document_T has values from 2 to 2, expected \[0, 2\)"),
    ],
)
def test_what_is_refused(ids, document, message):
    with pytest.raises(ValueError, match=message):
        peer_contribution(np.array(ids), np.ones((1, 2)), document_T=np.array(document), n_documents=2, n_experts=4)
