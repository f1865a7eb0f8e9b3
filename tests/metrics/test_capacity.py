"""What a capacity drops, against one queue served by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from workbench.metrics import capacity as m


def token_sets(draw_T: int, n_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((draw_T, n_experts)), axis=1)[:, :top_k]


def slow_drops(ids_TK, n_experts, factor, group_T, priority):
    n_tokens, top_k = ids_TK.shape
    dropped = np.zeros((n_tokens, top_k), dtype=bool)
    for group in set(group_T.tolist()):
        tokens = [t for t in range(n_tokens) if group_T[t] == group]
        room = {e: int(np.ceil(factor * top_k * len(tokens) / n_experts - 1e-9)) for e in range(n_experts)}
        turns = (
            [(t, k) for k in range(top_k) for t in tokens]
            if priority == "rank"
            else [(t, k) for t in tokens for k in range(top_k)]
        )
        for t, k in turns:
            room[ids_TK[t, k]] -= 1
            dropped[t, k] = room[ids_TK[t, k]] < 0
    return dropped


@given(seed=st.integers(0, 100), priority=st.sampled_from(["rank", "token"]), factor=st.sampled_from([0.5, 1.0, 1.25]))
@settings(max_examples=40, deadline=None)
def test_drops_equal_plain_python(seed, priority, factor):
    ids_TK = token_sets(40, 6, 3, seed) // 1
    ids_TK = np.where(np.random.default_rng(seed).random((40, 1)) < 0.5, [[0, 1, 2]], ids_TK)  # crowd three experts
    group_T = np.sort(np.random.default_rng(seed).integers(3, 6, 40))
    drops = m.drop_fraction(ids_TK, n_experts=6, capacity_factor=factor, group_T=group_T, priority=priority)
    expected = slow_drops(ids_TK, 6, factor, group_T, priority)
    np.testing.assert_array_equal(drops.dropped_TK, expected)
    assert drops.fraction == pytest.approx(expected.mean())
    position_T = np.array([(group_T[:t] == group_T[t]).sum() for t in range(40)])
    by_position = [expected[position_T == s].mean() for s in range(position_T.max() + 1)]
    np.testing.assert_allclose(drops.by_position_S, by_position)


def test_drops_by_hand():
    # 4 tokens, K = 2 of E = 4, factor 1: room for 2 each; experts 0 and 1 are wanted by all
    ids_TK = np.array([[0, 1], [1, 0], [0, 1], [0, 1]])
    group_T = np.zeros(4, dtype=int)
    by_rank = m.drop_fraction(ids_TK, n_experts=4, capacity_factor=1.0, group_T=group_T, priority="rank")
    np.testing.assert_array_equal(by_rank.dropped_TK, [[0, 0], [0, 1], [0, 1], [1, 1]])
    by_token = m.drop_fraction(ids_TK, n_experts=4, capacity_factor=1.0, group_T=group_T, priority="token")
    np.testing.assert_array_equal(by_token.dropped_TK, [[0, 0], [0, 0], [1, 1], [1, 1]])
    assert by_token.fraction == by_rank.fraction == 0.5
    np.testing.assert_allclose(by_token.by_position_S, [0, 0, 1, 1])
    np.testing.assert_array_equal(by_token.capacity_G, [2])


def test_drops_at_the_limits():
    ids_TK = np.tile(np.arange(4), (6, 1))
    kept = m.drop_fraction(
        ids_TK, n_experts=4, capacity_factor=1.0, group_T=np.zeros(6, dtype=int), priority="token"
    )  # K = E
    assert kept.fraction == 0
    exact = m.drop_fraction(
        np.zeros((10, 1), dtype=int), n_experts=1, capacity_factor=1.1, group_T=np.zeros(10, dtype=int), priority="rank"
    )
    np.testing.assert_array_equal(exact.capacity_G, [11])  # not 12, though 1.1 · 10 > 11 in floating point
    nothing = np.zeros(0, dtype=int)
    none = m.drop_fraction(
        np.zeros((0, 2), dtype=int), n_experts=4, capacity_factor=1.0, group_T=nothing, priority="rank"
    )
    assert np.isnan(none.fraction)
    assert len(none.by_position_S) == 0


# ---- counts alone ----


@given(seed=st.integers(0, 100), factor=st.sampled_from([0.5, 1.0, 1.25, 2.0]))
@settings(max_examples=30, deadline=None)
def test_how_many_are_dropped_follows_from_counts(seed, factor):
    rng = np.random.default_rng(seed)
    ids_TK = np.where(rng.random((60, 1)) < 0.5, [[0, 1, 2]], token_sets(60, 6, 3, seed))
    group_T = rng.integers(0, 4, 60)
    counts_GE = np.zeros((4, 6), dtype=int)
    for group, ids in zip(group_T, ids_TK, strict=True):
        counts_GE[group, ids] += 1
    dropped_G = m.dropped_by_group(counts_GE, top_k=3, capacity_factor=factor)
    for priority in ("rank", "token"):
        drops = m.drop_fraction(ids_TK, n_experts=6, capacity_factor=factor, group_T=group_T, priority=priority)
        by_group = [drops.dropped_TK[group_T == group].sum() for group in range(4)]
        np.testing.assert_array_equal(dropped_G, by_group)
    layers = np.stack([counts_GE, counts_GE[:, ::-1]], axis=1)  # experts' names do not matter
    np.testing.assert_array_equal(
        m.dropped_by_group(layers, top_k=3, capacity_factor=factor), np.stack([dropped_G, dropped_G], axis=1)
    )


def test_a_wider_capacity_drops_less_and_a_group_more():
    ids_TK = token_sets(400, 8, 2) // 2  # experts 0 to 3, by pairs
    ids_TK = np.where(ids_TK[:, :1] == ids_TK[:, 1:], [[0, 1]], ids_TK)
    counts_E = np.bincount(ids_TK.ravel(), minlength=8)
    dropped = [m.dropped_by_group(counts_E[None], top_k=2, capacity_factor=f)[0] for f in (1.0, 1.25, 1.5, 2.0)]
    assert all(more >= less for more, less in pairwise(dropped)) and dropped[0] > 0
    halves = np.stack([np.bincount(part.ravel(), minlength=8) for part in np.split(ids_TK, 2)])
    assert m.dropped_by_group(halves, top_k=2, capacity_factor=1.0).sum() >= dropped[0]


# ---- what random routing drops ----


def test_expected_drops_equal_the_sum_over_counts():
    rate_E = np.array([0.9, 0.5, 0.35, 0.25])
    for tokens, factor in ((1, 1.0), (7, 1.0), (40, 1.25), (40, 9.0)):
        room = int(np.ceil(factor * 2 * tokens / 4 - 1e-9))
        counts = np.arange(tokens + 1)
        excess = sum((binom.pmf(counts, tokens, p) * np.maximum(counts - room, 0)).sum() for p in rate_E)
        found = m.expected_drop_fraction(rate_E, tokens, top_k=2, capacity_factor=factor)
        assert found == pytest.approx(excess / (tokens * 2), abs=1e-12)


def test_uniform_random_routing_drops_what_is_expected():
    ids_TK = token_sets(40_000, 16, 4, seed=3)
    counts_GE = np.stack([np.bincount(part.ravel(), minlength=16) for part in np.split(ids_TK, 800)])  # 50 tokens
    dropped_G = m.dropped_by_group(counts_GE, top_k=4, capacity_factor=1.0) / 200
    expected = m.expected_drop_fraction(np.full(16, 0.25), 50, top_k=4, capacity_factor=1.0)
    assert dropped_G.mean() == pytest.approx(float(expected), abs=4 * dropped_G.std() / np.sqrt(800))


def test_the_floor_is_nan_where_a_rate_is():
    assert np.isnan(m.expected_drop_fraction(np.full(4, np.nan), 5, top_k=1, capacity_factor=1.0))


# ---- refusals ----


def test_refusals():
    ids_TK, group_T = np.array([[0, 1]]), np.array([0])
    with pytest.raises(ValueError, match=r"ids_TK spans 0 to 4, expected 0 to 3"):
        m.drop_fraction(np.array([[0, 4]]), n_experts=4, capacity_factor=1.0, group_T=group_T, priority="rank")
    with pytest.raises(ValueError, match=r"capacity_factor is 0.0, expected more than 0: 1 is room"):
        m.drop_fraction(ids_TK, n_experts=2, capacity_factor=0.0, group_T=group_T, priority="rank")
    with pytest.raises(ValueError, match=r"capacity_factor is -1.0, expected more than 0"):
        m.capacity(np.array([3]), n_experts=2, top_k=1, capacity_factor=-1.0)
    with pytest.raises(ValueError, match=r"group_T holds -1, expected 0 or more: give every token a group"):
        m.queue_places(ids_TK, n_experts=2, group_T=np.array([-1]), priority="token")
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.dropped_by_group(np.array([[-1, 2]]), top_k=1, capacity_factor=1.0)
    with pytest.raises(ValueError, match=r"tokens is 0, expected 1 or more: an empty group drops nothing"):
        m.expected_drop_fraction(np.full(4, 0.25), 0, top_k=1, capacity_factor=1.0)
