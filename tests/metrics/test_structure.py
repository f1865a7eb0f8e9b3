"""Co-activation and flow: by hand, at their limits, under random routing, and beside what OLMoE's script counts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.test_sets import random_sets
from tests.oracles import adjacent_coactivation, same_slot_flow
from workbench.metrics import sets, structure

SHAPES = [(8, 2), (16, 2), (60, 4), (64, 8), (128, 8)]
SMALL = np.array([[0, 1], [0, 1], [0, 2], [1, 3]])


def biased_sets(rng: np.random.Generator, n: int, *, n_experts: int, top_k: int, spread: float = 1.0) -> np.ndarray:
    """Experts drawn one after the other, some more likely than others: the larger draw comes first."""
    preference_E = rng.normal(0, spread, n_experts)
    return np.argsort(-(preference_E + rng.gumbel(size=(n, n_experts))), axis=1)[:, :top_k]


def test_coactivation_by_hand():
    pairs = structure.pair_counts(SMALL, n_experts=5)
    assert pairs.diagonal().tolist() == [3, 3, 1, 1, 0]
    assert (pairs[0, 1], pairs[0, 2], pairs[1, 3], pairs[2, 3]) == (2, 1, 1, 0)
    probability = structure.coactivation(pairs)
    assert probability[0, 1] == pytest.approx(2 / 3) and probability[2, 0] == 1
    assert np.isnan(probability.diagonal()).all() and np.isnan(probability[4]).all()
    np.testing.assert_allclose(np.nansum(probability[:4], axis=1), 1)  # K − 1
    lift = structure.coactivation_lift(pairs, top_k=2)
    assert lift[0, 1] == lift[1, 0] == pytest.approx(2 * 4 / 9)
    assert np.isnan(lift[4]).all() and np.isnan(lift[:, 4]).all()


@given(st.integers(0, 2**31), st.integers(2, 70), st.data())
@settings(max_examples=25)
def test_coactivation_beside_a_plain_loop_and_without_regard_to_order(seed, n_experts, data):
    top_k = data.draw(st.integers(1, min(n_experts, 6)))
    rng = np.random.default_rng(seed)
    ids_TK = random_sets(rng, 30, n_experts=n_experts, top_k=top_k)
    plain = np.zeros((n_experts, n_experts), dtype=int)
    for token in ids_TK.tolist():
        for i, j in itertools.product(token, token):
            plain[i, j] += 1
    pairs = structure.pair_counts(ids_TK, n_experts=n_experts)
    np.testing.assert_array_equal(pairs, plain)
    shuffled = rng.permuted(ids_TK, axis=1)[rng.permutation(30)]  # tokens, and experts within a token
    np.testing.assert_array_equal(structure.pair_counts(shuffled, n_experts=n_experts), plain)
    parts = [structure.pair_counts(part, n_experts=n_experts) for part in np.split(ids_TK, [7, 20])]
    np.testing.assert_array_equal(sum(parts), plain)
    names = rng.permutation(n_experts)
    np.testing.assert_array_equal(
        structure.pair_counts(names[ids_TK], n_experts=n_experts)[np.ix_(names, names)], plain
    )


@pytest.mark.parametrize(("n_experts", "top_k"), SHAPES)
def test_uniform_routing_has_the_values_of_the_table(n_experts, top_k):
    ids_TK = random_sets(np.random.default_rng(0), 40_000, n_experts=n_experts, top_k=top_k)
    pairs = structure.pair_counts(ids_TK, n_experts=n_experts)
    apart = ~np.eye(n_experts, dtype=bool)
    assert structure.coactivation(pairs)[apart].mean() == pytest.approx((top_k - 1) / (n_experts - 1), rel=1e-3)
    expected = n_experts * (top_k - 1) / (top_k * (n_experts - 1))
    assert structure.coactivation_lift(pairs, top_k=top_k)[apart].mean() == pytest.approx(expected, rel=1e-2)
    matched = structure.matched_pairs(pairs.diagonal(), top_k=top_k)
    surprise = (pairs - matched)[apart] / np.sqrt(matched[apart])
    assert 0.5 < surprise.std() < 1.1 and np.abs(surprise).max() < 6  # under 1: the loads are those of the sample


def test_the_lift_of_an_even_subset_is_not_one():
    even = structure.matched_pairs(np.full(8, 250.0), top_k=2)
    assert structure.coactivation_lift(even, top_k=2)[0, 1] == pytest.approx(0.571, abs=5e-4)
    even = structure.matched_pairs(np.full(64, 1000.0), top_k=8)
    assert structure.coactivation_lift(even, top_k=8)[3, 60] == pytest.approx(0.889, abs=5e-4)


def test_matched_pairs_by_going_through_all_subsets():
    """Three of six experts: P(S) in proportion to the product of weights, summed over all 20 subsets."""
    weight_E = np.array([5.0, 2.0, 1.0, 1.0, 0.3, 0.05])
    subsets = list(itertools.combinations(range(6), 3))
    probability = np.array([weight_E[list(s)].prod() for s in subsets])
    probability /= probability.sum()
    pairs = np.zeros((6, 6))
    for subset, p in zip(subsets, probability, strict=True):
        for i, j in itertools.product(subset, subset):
            pairs[i, j] += p
    np.testing.assert_allclose(structure.matched_pairs(1000 * pairs.diagonal(), top_k=3) / 1000, pairs, atol=1e-7)


@given(st.integers(0, 2**31), st.sampled_from([(5, 2), (8, 7), (64, 8), (6, 1)]))
@settings(max_examples=20)
def test_matched_pairs_keep_the_loads(seed, shape):
    n_experts, top_k = shape
    ids_TK = biased_sets(np.random.default_rng(seed), 200, n_experts=n_experts, top_k=top_k, spread=2.0)
    counts_E = np.bincount(ids_TK.ravel(), minlength=n_experts)
    matched = structure.matched_pairs(np.stack([counts_E, counts_E * 2]), top_k=top_k)
    np.testing.assert_allclose(matched[1], 2 * matched[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.diag(matched[0]), counts_E)
    np.testing.assert_allclose(matched[0].sum(axis=1), counts_E * top_k, atol=1e-4)
    assert (matched >= 0).all()


def test_experts_chosen_always_or_never_have_known_pairs():
    matched = structure.matched_pairs(np.array([100, 60, 40, 0]), top_k=2)
    np.testing.assert_allclose(matched, [[100, 60, 40, 0], [60, 60, 0, 0], [40, 0, 40, 0], [0, 0, 0, 0]], atol=1e-6)
    assert np.isnan(structure.matched_pairs(np.zeros(4), top_k=2)).all()


def test_matched_pairs_agree_with_swaps():
    """The null in closed form, and the one that moves sets about: the same pairs, but for counting noise."""
    ids_TK = biased_sets(np.random.default_rng(1), 4000, n_experts=12, top_k=3)
    bits_TW = sets.as_bits(ids_TK, n_experts=12)
    pairings = sets.Pairings(np.zeros(4000, dtype=int), np.arange(4000), seed=0)
    total, n = np.zeros((12, 12)), 25
    for draw in range(n):
        bits_TW = sets.swapped_within(bits_TW, pairings, n_steps=20, first_step=20 * draw)
        total += sets.joint_counts(bits_TW, bits_TW, n_experts=12)
    matched = structure.matched_pairs(structure.pair_counts(ids_TK, n_experts=12).diagonal(), top_k=3)
    apart = ~np.eye(12, dtype=bool) & (matched > 5)
    surprise = (total / n - matched)[apart] / np.sqrt(matched[apart] / n)
    assert np.abs(surprise).max() < 5


def test_displaced_pairs_at_both_ends():
    blocks = np.repeat([[0, 1], [2, 3]], 50, axis=0)  # two pairs that never mix
    pairs = structure.pair_counts(blocks, n_experts=4)
    even = structure.matched_pairs(pairs.diagonal(), top_k=2)
    assert structure.displaced_pairs(pairs, even) == pytest.approx(2 / 3)
    assert structure.displaced_pairs(even, even) == 0
    assert np.isnan(structure.displaced_pairs(np.diag([5, 5]), np.diag([5, 5])))


def test_olmoes_script_counts_neighbouring_ranks_alone():
    ids_TK = biased_sets(np.random.default_rng(2), 3000, n_experts=16, top_k=4)
    ours = structure.coactivation(structure.pair_counts(ids_TK, n_experts=16))
    theirs = adjacent_coactivation(ids_TK, 16)
    assert np.nansum(ours, axis=1) == pytest.approx(3)  # K − 1
    assert (theirs.sum(axis=1) < 2).all()  # at most two neighbours of K − 1
    of_two = biased_sets(np.random.default_rng(3), 500, n_experts=8, top_k=2)  # with K = 2 all pairs are neighbours
    apart = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(
        structure.coactivation(structure.pair_counts(of_two, n_experts=8))[apart],
        adjacent_coactivation(of_two, 8)[apart],
    )


def test_flow_by_hand():
    flow = structure.flow_counts(np.array([[0, 1], [0, 2]]), np.array([[2, 3], [2, 0]]), n_experts=4)
    assert flow.tolist() == [[1, 0, 2, 1], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert structure.successor_accuracy(flow, top_k=2) == pytest.approx((2 + 1 + 1) / 4)
    assert structure.mode_accuracy(flow, top_k=2) == 1  # expert 2 is in both sets


@pytest.mark.parametrize(("n_experts", "top_k"), SHAPES)
def test_a_layer_tells_all_about_itself_whatever_its_names(n_experts, top_k):
    rng = np.random.default_rng(4)
    ids_TK = biased_sets(rng, 4000, n_experts=n_experts, top_k=top_k)
    names = rng.permutation(n_experts)
    flow = structure.flow_counts(ids_TK, rng.permuted(names[ids_TK], axis=1), n_experts=n_experts)
    assert structure.flow_information(flow, top_k=top_k) == pytest.approx(1)
    assert structure.successor_accuracy(flow, top_k=top_k) == 1
    joint = flow / flow.sum()  # the plain share of the joint's information cannot say so
    entropy = -(joint.sum(1) * np.log(np.maximum(joint.sum(1), 1e-300))).sum()
    told = (joint * np.log(np.maximum(joint, 1e-300) / np.maximum(np.outer(joint.sum(1), joint.sum(0)), 1e-300))).sum()
    assert told / entropy < 0.6


def test_two_equal_layers_give_little_by_the_plain_measure():
    ids_TK = random_sets(np.random.default_rng(5), 20_000, n_experts=64, top_k=8)
    joint = structure.flow_counts(ids_TK, ids_TK, n_experts=64) / (20_000 * 64)
    told = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum() / np.log(64)
    assert told == pytest.approx(0.038, abs=2e-3)


def test_independent_layers_tell_nothing():
    rng = np.random.default_rng(6)
    one, two = (biased_sets(rng, 50_000, n_experts=16, top_k=2) for _ in range(2))
    flow = structure.flow_counts(one, two, n_experts=16)
    assert structure.flow_information(flow, top_k=2) < 1e-3
    gap = structure.successor_accuracy(flow, top_k=2) - structure.mode_accuracy(flow, top_k=2)
    assert 0 <= gap < 0.01


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_information_beside_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    one, two = random_sets(rng, 40, n_experts=5, top_k=2), random_sets(rng, 40, n_experts=5, top_k=2)
    two[:20] = one[:20]

    def entropy(values) -> float:
        _, counts = np.unique(values, return_counts=True, axis=0)
        return float(-(counts / 40 * np.log(counts / 40)).sum())

    told, own = 0.0, 0.0
    for j in range(5):
        after = (two == j).any(axis=1)
        best = []
        for i in range(5):
            before = (one == i).any(axis=1)
            best.append(entropy(before) + entropy(after) - entropy(np.stack([before, after], axis=1)))
        told, own = told + max(best), own + entropy(after)
    flow = structure.flow_counts(one, two, n_experts=5)
    assert structure.flow_information(flow, top_k=2) == pytest.approx(told / own)
    stacked = structure.flow_information(np.stack([flow, flow.T]), top_k=2)
    assert stacked[0] == pytest.approx(told / own)


@given(st.integers(0, 2**31), st.sampled_from([(5, 2), (9, 1), (70, 4)]))
@settings(max_examples=20)
def test_flow_beside_a_plain_loop_in_any_order_and_in_parts(seed, shape):
    n_experts, top_k = shape
    rng = np.random.default_rng(seed)
    one, two = (random_sets(rng, 24, n_experts=n_experts, top_k=top_k) for _ in range(2))
    plain = np.zeros((n_experts, n_experts), dtype=int)
    for a, b in zip(one.tolist(), two.tolist(), strict=True):
        for i, j in itertools.product(a, b):
            plain[i, j] += 1
    order, names = rng.permutation(24), rng.permutation(n_experts)
    for first, second in ((one, two), (one[order], two[order]), (rng.permuted(one, axis=1), two)):
        np.testing.assert_array_equal(structure.flow_counts(first, second, n_experts=n_experts), plain)
    parts = [structure.flow_counts(one[run], two[run], n_experts=n_experts) for run in (slice(9), slice(9, None))]
    np.testing.assert_array_equal(sum(parts), plain)
    best = sum(max(row) for row in plain.tolist()) / (24 * top_k)
    mode = max(np.bincount(two.ravel(), minlength=n_experts).tolist()) / 24
    renamed = structure.flow_counts(one, names[two], n_experts=n_experts)
    for flow in (plain, renamed):
        assert structure.successor_accuracy(flow, top_k=top_k) == pytest.approx(best)
        assert structure.mode_accuracy(flow, top_k=top_k) == pytest.approx(mode)


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_lift_beside_a_plain_loop(seed):
    ids_TK = random_sets(np.random.default_rng(seed), 40, n_experts=6, top_k=3)
    lift = structure.coactivation_lift(structure.pair_counts(ids_TK, n_experts=6), top_k=3)
    chosen = [set(token) for token in ids_TK.tolist()]
    for i, j in itertools.permutations(range(6), 2):
        apart = sum(i in token for token in chosen) * sum(j in token for token in chosen)
        both = sum(i in token and j in token for token in chosen)
        assert lift[i, j] == pytest.approx(both * 40 / apart if apart else np.nan, nan_ok=True)


def test_permuted_flow_is_the_mean_over_permutations():
    rng = np.random.default_rng(7)
    document_T = np.repeat([0, 1, 2], [6, 1, 9])
    one, two = (random_sets(rng, 16, n_experts=6, top_k=2) for _ in range(2))
    counts = [
        np.stack([np.bincount(ids[document_T == d].ravel(), minlength=6) for d in range(3)]) for ids in (one, two)
    ]
    expected = structure.permuted_flow(*counts, top_k=2)
    drawn = np.mean(
        [
            structure.flow_counts(
                one, two[sets.shuffled_within(document_T, np.arange(16), seed=0, draw=draw)], n_experts=6
            )
            for draw in range(2000)
        ],
        axis=0,
    )
    np.testing.assert_allclose(drawn, expected, atol=0.15)
    assert expected.sum() == pytest.approx(16 * 4)


def test_same_slots_are_a_small_part_of_the_flow():
    rng = np.random.default_rng(8)
    one = biased_sets(rng, 2000, n_experts=16, top_k=4)
    two = rng.permuted((one + 1) % 16, axis=1)  # a perfect flow, whose slots do not correspond
    ours, theirs = structure.flow_counts(one, two, n_experts=16), same_slot_flow(one, two, 16)
    assert ours.sum() == 4 * theirs.sum()
    assert structure.successor_accuracy(ours, top_k=4) == 1
    assert theirs.max(axis=1).sum() / theirs.sum() < 0.6
    assert (theirs <= ours).all()


def test_without_tokens_nothing_is_known():
    nothing = np.zeros((4, 4))
    for value in (
        structure.successor_accuracy(nothing, top_k=2),
        structure.mode_accuracy(nothing, top_k=2),
        structure.flow_information(nothing, top_k=2),
    ):
        assert np.isnan(value)
    all_on = structure.flow_counts(np.array([[0, 1]] * 5), np.array([[0, 1]] * 5), n_experts=2)
    assert np.isnan(structure.flow_information(all_on, top_k=2))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="expected 0 to 3"):
        structure.pair_counts(np.array([[0, 9]]), n_experts=4)
    for call in (structure.coactivation_lift, structure.successor_accuracy, structure.mode_accuracy):
        with pytest.raises(ValueError, match=r"top_k is 9, expected 1 to 4 \(E\)"):
            call(np.ones((4, 4)), top_k=9)
    with pytest.raises(ValueError, match="counts hold -1"):
        structure.coactivation(np.full((2, 2), -1.0))
    with pytest.raises(ValueError, match="an expert is chosen once a token at most; check top_k"):
        structure.matched_pairs(np.array([90.0, 5, 5]), top_k=2)
