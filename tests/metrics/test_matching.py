"""Experts of two models matched one to one."""

import itertools

import numpy as np
import pytest

from workbench.metrics.sets import as_bits, joint_counts, overlap
from workbench.statistics.matching import match_experts, matching_consistency


def choices(rng: np.random.Generator, n_tokens: int, n_experts: int, top_k: int) -> np.ndarray:
    return np.argsort(rng.random((n_tokens, n_experts)), axis=1)[:, :top_k]


def test_by_hand():
    together_EE = np.array([[0, 5, 1], [4, 5, 0], [0, 0, 2]])
    # 0-1, 1-0, 2-2 gives 11; taking the 5 of 1-1 would leave 0-0 and give 7
    assert match_experts(together_EE).tolist() == [1, 0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_matchings(seed):
    together_EE = np.random.default_rng(seed).integers(0, 50, size=(5, 5))
    every = [sum(together_EE[i, j] for j, i in enumerate(order)) for order in itertools.permutations(range(5))]
    found = match_experts(together_EE)
    assert together_EE[found, np.arange(5)].sum() == max(every)


def test_a_renamed_model_is_found_again():
    rng = np.random.default_rng(0)
    names_E, ids_TK = rng.permutation(16), choices(rng, 2000, 16, 4)
    bits = [as_bits(ids, n_experts=16) for ids in (ids_TK, names_E[ids_TK])]
    found = match_experts(joint_counts(*bits, n_experts=16))
    np.testing.assert_array_equal(found[names_E], np.arange(16))
    assert overlap(bits[0], as_bits(found[names_E[ids_TK]], n_experts=16)).mean() == 4


def test_layers_are_matched_each_for_itself():
    together_LEE = np.random.default_rng(1).integers(0, 9, size=(2, 3, 4, 4))
    found = match_experts(together_LEE)
    for at in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[at], match_experts(together_LEE[at]))


def test_unrelated_models_match_by_chance_where_they_are_fitted_and_not_elsewhere():
    """The null: on the tokens that a matching was fitted on, even random routers seem to agree beyond K/E."""
    rng = np.random.default_rng(2)
    gains, held_out, alike = [], [], []
    for _ in range(60):
        bits = [as_bits(choices(rng, 400, 8, 2), n_experts=8) for _ in range(2)]
        halves = [[of[:200] for of in bits], [of[200:] for of in bits]]
        together_2EE = np.stack([joint_counts(*half, n_experts=8) for half in halves])
        found_2E = match_experts(together_2EE)
        gains.append(together_2EE[0][found_2E[0], np.arange(8)].sum() / 400)
        held_out.append(together_2EE[1][found_2E[0], np.arange(8)].sum() / 400)
        alike.append(matching_consistency(found_2E[0], found_2E[1], weight_xE=np.ones(8)))
    assert np.mean(gains) > 0.28
    assert abs(np.mean(held_out) - 2 / 8) < 3 * np.std(held_out) / np.sqrt(60)
    assert abs(np.mean(alike) - 1 / 8) < 3 * np.std(alike) / np.sqrt(60)


def test_consistency_by_hand():
    one, two = np.array([[0, 1, 2], [0, 1, 2]]), np.array([[0, 2, 1], [0, 1, 2]])
    found = matching_consistency(one, two, weight_xE=np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    assert found.tolist() == [0.75, 1.0]
    assert np.isnan(matching_consistency(one[0], two[0], weight_xE=np.zeros(3)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: match_experts(np.zeros((2, 3))), r"shape \(2, 3\), expected \[..., E, E\]"),
        (lambda: match_experts(np.full((2, 2), -1)), "negative or missing counts"),
        (lambda: match_experts(np.full((2, 2), np.nan)), "negative or missing counts"),
        (
            lambda: matching_consistency(np.zeros(2, dtype=int), np.zeros(3, dtype=int), weight_xE=np.ones(2)),
            r"shapes \(2,\) and \(3,\), expected the same experts",
        ),
    ],
)
def test_wrong_input_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
