"""Heads: sinks, divergence, groups and the probe, by hand, at their limits, and under their nulls."""

import numpy as np
import pytest

from workbench.metrics.attention import (
    group_similarity,
    head_divergence,
    repeated_scores,
    sink_windows,
    weighed_statistics,
)


def causal(rng, n_heads, n):
    weights = np.tril(rng.random((n_heads, n, n)) ** 4)
    return weights / weights.sum(-1, keepdims=True)


def test_repeated_tokens_by_hand():
    ids = np.array([7, 3, 7, 3])
    weights = np.array([[[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.2, 0.7, 0], [0.1, 0.4, 0.2, 0.3]]])
    found = weighed_statistics(weights, ids, positions_S=np.arange(4))
    np.testing.assert_allclose(found["duplicate"], [[0, 0, 0.1, 0.4]])  # the second a on the first, b on b
    np.testing.assert_allclose(found["induction"], [[0, 0, 0.2, 0.2]])  # on what followed: b, and a
    assert found["keys90"].tolist() == [[1, 2, 2, 3]]


def test_sinks_are_counted_by_whole_windows():
    first = np.array([[0.5] * 64 + [0.1] * 64 + [1.0] * 10])
    np.testing.assert_allclose(sink_windows(first), [[0.5, 0.1]])
    assert sink_windows(first[:, :63]).shape == (1, 0)
    with pytest.raises(ValueError, match="window is 0"):
        sink_windows(first, window=0)


def test_divergence_is_0_of_a_head_with_itself_and_ln_2_at_most():
    rng = np.random.default_rng(0)
    weights = causal(rng, 3, 20)
    same = head_divergence(np.concatenate([weights, weights[:1]]))
    assert abs(same[0, 3]) < 1e-12 and (np.diag(same) == 0).all() and np.allclose(same, same.T)
    apart = np.zeros((2, 5, 5))
    apart[0, :, 0] = apart[1, :, 1] = 1
    np.testing.assert_allclose(head_divergence(apart)[0, 1], np.log(2))


def test_divergence_by_its_definition():
    a, b = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8])
    mixed = (a + b) / 2
    by_hand = 0.5 * (a * np.log(a / mixed)).sum() + 0.5 * (b * np.log(b / mixed)).sum()
    np.testing.assert_allclose(head_divergence(np.stack([a, b])[:, None])[0, 1], by_hand)


def test_a_query_that_a_head_does_not_see_is_left_out():
    weights = causal(np.random.default_rng(1), 3, 12)
    spoiled = weights.copy()
    spoiled[1, 5] = np.nan
    kept = np.delete(weights, 5, axis=1)
    np.testing.assert_allclose(head_divergence(spoiled), head_divergence(kept))
    assert np.isnan(head_divergence(np.full((2, 3, 3), np.nan))).all()


def test_groups_that_attend_alike_are_found_and_random_ones_are_not():
    group = np.arange(8) // 2
    alike = np.where(group[:, None] == group, 0.1, 0.5)
    np.fill_diagonal(alike, 0)
    found = group_similarity(alike, n_groups=4)
    assert found["inside"] == pytest.approx(0.1) and found["between"] == pytest.approx(0.5)
    assert found["p"] < 0.02
    rng = np.random.default_rng(2)
    p = []
    for _ in range(300):
        noise = rng.random((8, 8))
        p.append(
            group_similarity((noise + noise.T) / 2, n_groups=4, n_permutations=99, seed=int(rng.integers(9**9)))["p"]
        )
    # Uniform under the null: 300 draws stay within 0.094 of it (Kolmogorov-Smirnov, 1 %); 99 permutations step by 0.01.
    steps = np.arange(1, 301) / 300
    assert np.abs(np.sort(p) - steps).max() < 0.094 + 0.01


def test_groups_of_one_head_or_one_group_have_nothing_to_compare():
    assert np.isnan(group_similarity(np.zeros((4, 4)), n_groups=4)["difference"])
    assert np.isnan(group_similarity(np.zeros((4, 4)), n_groups=1)["p"])
    with pytest.raises(ValueError, match="4 heads do not divide into 3 groups"):
        group_similarity(np.zeros((4, 4)), n_groups=3)


def test_a_perfect_induction_head_scores_1_and_a_uniform_one_its_null():
    n, copies = 5, 4
    length = 1 + n * copies
    perfect = np.zeros((3, length, length))
    for query in range(length):
        perfect[0, query, max(0, query - n + 1)] = 1  # behind the copy before
        perfect[1, query, max(0, query - n)] = 1
        perfect[2, query, max(0, query - 1)] = 1
    found = repeated_scores(perfect, n_tokens=n)
    assert found["induction"].tolist() == [1, 0, 0]
    assert found["duplicate"].tolist() == [0, 1, 0]
    assert found["previous"].tolist() == [0, 0, 1]
    uniform = np.tril(np.ones((1, length, length)))
    uniform /= uniform.sum(-1, keepdims=True)
    earlier = [(query - 1) // n for query in range(1 + n, length)]  # copies before, one key each
    by_hand = np.mean([count / (query + 1) for query, count in zip(range(1 + n, length), earlier, strict=True)])
    np.testing.assert_allclose(repeated_scores(uniform, n_tokens=n)["induction"], by_hand)


def test_what_is_no_repetition_is_refused():
    with pytest.raises(ValueError, match="11 keys are not 1 [+] 2 or more copies of 10 tokens"):
        repeated_scores(np.eye(11)[None], n_tokens=10)
