"""Likeness of experts: by hand, at the limits, under what must not change it, and under its null."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics import similarity


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_cosines_by_hand():
    found = similarity.cosine_similarity(np.array([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found[:3, :3], [[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]])
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()


def test_cosines_do_not_change_with_scale():
    vectors = drawn(5, 7)
    scaled = vectors * np.array([1, 2, 0.1, 30, 4])[:, None]
    np.testing.assert_allclose(similarity.cosine_similarity(vectors), similarity.cosine_similarity(scaled))


def test_what_router_rows_have_in_common_does_not_count():
    rows_EC = drawn(16, 40)
    with_common = similarity.router_similarity(rows_EC + 100 * drawn(40, seed=1))
    np.testing.assert_allclose(with_common, similarity.router_similarity(rows_EC), atol=1e-9)


def test_router_rows_drawn_alike_are_minus_one_over_e_minus_one_apart():
    off = ~np.eye(8, dtype=bool)
    found = [similarity.router_similarity(drawn(8, 64, seed=seed))[off].mean() for seed in range(50)]
    assert np.mean(found) == pytest.approx(-1 / 7, abs=0.003)


def test_a_match_by_hand():
    neurons_FPC = np.array([[[1.0, 0], [0, 2]], [[0, 1], [1, 1]]])
    candidates_GPC = np.array([[[0, 5.0], [3, 0]], [[2, 0], [0, 1]], [[1, 1], [1, 1]]])
    found = similarity.best_match(neurons_FPC, candidates_GPC)
    assert found.candidate_F.tolist() == [1, 0]
    # second neuron: (1 + √½)/2 with the first candidate, (√½ + 1)/2 with the third: of equal ones the first
    np.testing.assert_allclose(found.similarity_F, [1, (1 + np.sqrt(0.5)) / 2])


def test_a_match_is_the_mean_of_the_parts_cosines():
    neurons_FPC, candidates_GPC = drawn(6, 3, 5), drawn(9, 3, 5, seed=1)
    found = similarity.best_match(neurons_FPC, candidates_GPC)
    for f, neuron_PC in enumerate(neurons_FPC):
        plain = [
            np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(neuron_PC, candidate_PC, strict=True)])
            for candidate_PC in candidates_GPC
        ]
        assert found.candidate_F[f] == int(np.argmax(plain))
        assert found.similarity_F[f] == pytest.approx(max(plain))


def test_the_order_of_neurons_and_the_scale_of_parts_do_not_matter():
    neurons_EFPC = drawn(4, 10, 3, 6)
    rng = np.random.default_rng(2)
    moved_EFPC = np.stack([one[rng.permutation(10)] for one in neurons_EFPC])
    moved_EFPC[..., 1, :] *= 4.0
    moved_EFPC[..., 2, :] /= 4.0
    np.testing.assert_allclose(
        similarity.matched_similarity(moved_EFPC), similarity.matched_similarity(neurons_EFPC), atol=1e-12
    )


def test_flattened_cosine_misses_a_shuffled_copy_and_matched_neurons_find_it():
    one_FPC = drawn(64, 3, 32)
    copy_FPC = one_FPC[np.random.default_rng(1).permutation(64)]
    flat = similarity.cosine_similarity(np.stack([one_FPC, copy_FPC]).reshape(2, -1))
    assert abs(flat[0, 1]) < 0.1
    np.testing.assert_allclose(similarity.matched_similarity(np.stack([one_FPC, copy_FPC])), 1.0)


def test_unrelated_neurons_match_as_well_as_with_shuffled_coordinates():
    """The null of the best match, which lies well above 0."""
    neurons_FPC, candidates_GPC = drawn(200, 3, 24), drawn(300, 3, 24, seed=1)
    order = np.random.default_rng(2).permutation(24)
    found = similarity.best_match(neurons_FPC, candidates_GPC).similarity_F.mean()
    null = similarity.best_match(neurons_FPC, candidates_GPC[..., order]).similarity_F.mean()
    assert null > 0.25
    assert found == pytest.approx(null, abs=0.01)


def test_a_part_of_an_expert_is_alike_in_one_direction():
    whole_FPC = drawn(20, 3, 16)
    part_FPC = np.concatenate([whole_FPC[:10]] * 2)
    found = similarity.matched_similarity(np.stack([part_FPC, whole_FPC]))
    assert found[0, 1] == pytest.approx(1)
    assert found[1, 0] < 0.9


def test_agreement_by_enumerating_every_relabelling():
    one_EE, other_EE = (np.corrcoef(drawn(5, 4, seed=seed)) for seed in (0, 1))
    found = similarity.similarity_agreement(one_EE, other_EE, n_draws=4000)
    pairs = np.triu_indices(5, k=1)

    def spearman(a, b):
        return np.corrcoef(a[pairs].argsort().argsort(), b[pairs].argsort().argsort())[0, 1]

    orders = [list(order) for order in itertools.permutations(range(5))]
    null = [spearman(one_EE, other_EE[np.ix_(order, order)]) for order in orders]
    value = spearman(one_EE, other_EE)
    assert found.correlation == pytest.approx(value)
    assert found.p == pytest.approx(np.mean(np.abs(null) >= abs(value) - 1e-9), abs=0.03)


def test_agreement_at_its_limits():
    one_EE = np.corrcoef(drawn(12, 6))
    assert similarity.similarity_agreement(one_EE, one_EE).correlation == pytest.approx(1)
    assert similarity.similarity_agreement(one_EE, one_EE).p == pytest.approx(1 / 1000)
    assert similarity.similarity_agreement(one_EE, -one_EE).correlation == pytest.approx(-1)
    assert np.isnan(similarity.similarity_agreement(one_EE[:3, :3], one_EE[:3, :3]).correlation)
    assert np.isnan(similarity.similarity_agreement(one_EE, np.eye(12)).correlation)


def test_agreement_leaves_out_experts_without_parameters():
    one_EE, other_EE = (np.corrcoef(drawn(9, 6, seed=seed)) for seed in (0, 1))
    cut = similarity.similarity_agreement(one_EE[:7, :7], other_EE[:7, :7])
    one_EE[7:], one_EE[:, 7:] = np.nan, np.nan
    assert similarity.similarity_agreement(one_EE, other_EE) == cut


def test_unrelated_similarities_are_rejected_as_often_as_said():
    p = []
    for seed in range(200):
        one_EE, other_EE = (np.corrcoef(drawn(8, 5, seed=2 * seed + i)) for i in (0, 1))
        p.append(similarity.similarity_agreement(one_EE, other_EE, n_draws=99, seed=seed).p)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: similarity.cosine_similarity(np.array([[1.0, 2], [np.nan, 1]])), "vector 1 holds NaN or infinite"),
        (lambda: similarity.router_similarity(np.array([[np.nan, 2], [3.0, 1]])), "holds NaN or infinite"),
        (lambda: similarity.best_match(drawn(2, 3, 4), drawn(2, 3, 5)), "expected the same parts and width"),
        (lambda: similarity.best_match(drawn(2, 3, 4), drawn(0, 3, 4)), "one candidate or more"),
        (lambda: similarity.matched_similarity(drawn(2, 0, 3, 4)), "one candidate or more"),
        (lambda: similarity.similarity_agreement(drawn(3, 3), drawn(4, 4)), "are of 3 and 4 experts"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_cka_by_hand_and_at_its_limits():
    one, other = np.array([[1.0, -1, 0, 0]]), np.array([[1.0, 0, -1, 0]])  # one neuron each, centred already
    found = similarity.linear_cka(np.stack([one, other])[:, :, None])
    np.testing.assert_allclose(found, [[1, (1 / 2) ** 2], [(1 / 2) ** 2, 1]])  # of single neurons the squared cosine
    rng = np.random.default_rng(0)
    neurons_FPC = rng.normal(size=(6, 2, 40))
    turned = np.einsum("gf,fpc->gpc", np.linalg.qr(rng.normal(size=(6, 6)))[0], neurons_FPC) * 3 + 7
    np.testing.assert_allclose(similarity.linear_cka(np.stack([neurons_FPC, turned])), 1)
    assert np.isnan(similarity.linear_cka(np.stack([neurons_FPC, 0 * neurons_FPC]))[0, 1])


@given(seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_cka_and_cosines_equal_plain_python_whatever_the_order_of_experts(seed):
    rng = np.random.default_rng(seed)
    neurons_EFPC = rng.normal(size=(3, 4, 2, 5))
    found, order = similarity.linear_cka(neurons_EFPC), rng.permutation(3)
    for i, j in itertools.product(range(3), repeat=2):
        parts = []
        for p in range(2):
            one, other = (neurons_EFPC[e, :, p] for e in (i, j))
            one, other = (w - w.mean(axis=1, keepdims=True) for w in (one, other))
            square = {
                name: sum(float(a @ b) ** 2 for a in first for b in second)
                for name, first, second in (("ij", one, other), ("ii", one, one), ("jj", other, other))
            }
            parts.append(square["ij"] / (square["ii"] * square["jj"]) ** 0.5)
        assert found[i, j] == pytest.approx(sum(parts) / 2)
    np.testing.assert_allclose(similarity.linear_cka(neurons_EFPC[order]), found[np.ix_(order, order)])
    rows = neurons_EFPC.reshape(3, -1)
    cosines = similarity.cosine_similarity(rows)
    for i, j in itertools.product(range(3), repeat=2):
        length = (sum(x * x for x in rows[i]) * sum(x * x for x in rows[j])) ** 0.5
        assert cosines[i, j] == pytest.approx(sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / length)


def test_cka_of_unrelated_neurons_is_their_share_of_the_coordinates():
    rng = np.random.default_rng(1)
    found = similarity.linear_cka(rng.normal(size=(30, 12, 1, 48)))
    off = found[~np.eye(30, dtype=bool)]
    assert off.mean() == pytest.approx(12 / (12 + 47), abs=0.01)  # 48 coordinates, centred


def test_cka_of_broken_weights_is_refused():
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        similarity.linear_cka(np.full((2, 3, 1, 4), np.nan))
