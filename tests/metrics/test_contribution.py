"""What peers add: by hand, at the limits, and as the null of experts that add alike."""

import numpy as np
import pytest

from workbench.metrics.contribution import peer_contribution


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
        ([[0, 4]], [0], r"ids_TK has values from 0 to 4, wanted \[0, 4\)"),
        ([[0, 1]], [2], r"document_T has values from 2 to 2, wanted \[0, 2\)"),
    ],
)
def test_what_is_refused(ids, document, message):
    with pytest.raises(ValueError, match=message):
        peer_contribution(np.array(ids), np.ones((1, 2)), document_T=np.array(document), n_documents=2, n_experts=4)
