"""Repetition, windows and runs: by hand, beside plain loops, under random routing, and shuffled."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.test_sets import places, random_sets
from workbench.metrics import sequence, sets

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
TABLE = [  # E, K, 1/E, any, K²/E of the common shapes
    (8, 2, 0.1250, 0.4643, 0.500),
    (16, 2, 0.0625, 0.2417, 0.250),
    (60, 4, 0.0167, 0.2468, 0.267),
    (64, 8, 0.0156, 0.6791, 1.000),
    (128, 8, 0.0078, 0.4123, 0.500),
]


def rows_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def gapless(row_T: np.ndarray) -> np.ndarray:
    """Which tokens follow the one before, where no position is missing."""
    return np.diff(row_T, prepend=row_T[:1] - 1) == 0


def test_repetition_by_hand():
    ids_TK = np.array([[0, 1], [1, 2], [1, 3], [4, 5], [4, 6]])
    row_T = np.array([0, 0, 0, 2, 2])
    bits_TW = sets.as_bits(ids_TK, n_experts=7)
    found = sequence.repetition(bits_TW, row_T, follows_T=gapless(row_T), n_documents=3, top1_T=ids_TK[:, 0])
    assert found.pairs_D.tolist() == [2, 0, 1]
    assert found.first_D.tolist() == [1, 0, 1]
    assert found.any_D.tolist() == [2, 0, 1]
    assert found.overlap_D.tolist() == [2, 0, 1]


@given(st.integers(0, 2**31), SIZES, st.sampled_from([(4, 2), (9, 3), (70, 5)]))
@settings(max_examples=30)
def test_repetition_and_runs_beside_plain_loops(seed, sizes, shape):
    n_experts, top_k = shape
    rng = np.random.default_rng(seed)
    row_T = rows_of(sizes)
    ids_TK = random_sets(rng, len(row_T), n_experts=n_experts, top_k=top_k)
    bits_TW = sets.as_bits(ids_TK, n_experts=n_experts)
    found = sequence.repetition(bits_TW, row_T, follows_T=gapless(row_T), n_documents=len(sizes), top1_T=ids_TK[:, 0])
    runs = sequence.activated_experts(bits_TW, row_T, stretch_T=row_T, n_documents=len(sizes), doublings=3)
    histogram = np.zeros((n_experts, 4), dtype=int)
    for d in range(len(sizes)):
        chosen = [set(token) for token in ids_TK[row_T == d].tolist()]
        first = ids_TK[row_T == d][:, 0]
        common = [len(a & b) for a, b in itertools.pairwise(chosen)]
        assert found.pairs_D[d] == len(common) and found.overlap_D[d] == sum(common)
        assert found.any_D[d] == sum(n > 0 for n in common) and found.first_D[d] == (first[1:] == first[:-1]).sum()
        for n in range(4):
            starts = range(0, len(chosen) - 2**n + 1, 2**n)
            assert runs.runs_DB[d, n] == len(starts)
            assert runs.distinct_DB[d, n] == sum(len(set().union(*chosen[s : s + 2**n])) for s in starts)
        for start in range(len(chosen) - 2):
            for expert in range(n_experts):
                histogram[expert, sum(expert in token for token in chosen[start : start + 3])] += 1
    got = sequence.window_histogram(bits_TW, row_T, n_experts=n_experts, window=3)
    np.testing.assert_array_equal(got, histogram)


def test_windows_are_counted_block_by_block(monkeypatch):
    rng = np.random.default_rng(4)
    sizes = [300, 3, 41, 600]
    row_T = rows_of(sizes)
    bits_TW = sets.as_bits(random_sets(rng, sum(sizes), n_experts=70, top_k=8), n_experts=70)
    whole = sequence.window_histogram(bits_TW, row_T, n_experts=70, window=5)
    chosen_TE = sets.indicators(bits_TW, n_experts=70)
    expected = np.zeros((70, 6), dtype=int)
    for t in range(len(row_T) - 4):
        if row_T[t] == row_T[t + 4]:
            expected[np.arange(70), chosen_TE[t : t + 5].sum(axis=0)] += 1
    np.testing.assert_array_equal(whole, expected)
    monkeypatch.setattr(sequence, "_WINDOWS", 100)
    np.testing.assert_array_equal(sequence.window_histogram(bits_TW, row_T, n_experts=70, window=5), whole)


def test_parts_add_up_and_padding_does_nothing():
    rng = np.random.default_rng(0)
    sizes = [20, 3, 40, 17]
    row_T = rows_of(sizes)
    bits_TW = sets.as_bits(random_sets(rng, 80, n_experts=9, top_k=2), n_experts=9)
    whole = sequence.window_histogram(bits_TW, row_T, n_experts=9, window=8)
    parts = [
        sequence.window_histogram(bits_TW[run], row_T[run], n_experts=9, window=8)
        for run in (slice(0, 23), slice(23, 23), slice(23, 80))
    ]
    np.testing.assert_array_equal(sum(parts), whole)
    assert whole.sum() == 9 * sum(max(n - 7, 0) for n in sizes)
    more = sequence.repetition(bits_TW, row_T + 1, follows_T=gapless(row_T), n_documents=6)  # documents without tokens
    assert more.pairs_D.tolist() == [0, 19, 2, 39, 16, 0]
    assert more.first_D.sum() == 0


@pytest.mark.parametrize(("n_experts", "top_k", "first", "any_", "overlap"), TABLE)
def test_uniform_routing_has_the_values_of_the_table(n_experts, top_k, first, any_, overlap):
    expected = sequence.uniform_repetition(n_experts=n_experts, top_k=top_k)
    assert float(expected.first) == pytest.approx(first, abs=6e-5)
    assert float(expected.any) == pytest.approx(any_, abs=6e-5)
    assert float(expected.overlap) == pytest.approx(overlap, abs=6e-4)
    ids_TK = random_sets(np.random.default_rng(1), 30_000, n_experts=n_experts, top_k=top_k)
    bits_TW = sets.as_bits(ids_TK, n_experts=n_experts)
    row_T = np.zeros(30_000, dtype=int)
    found = sequence.repetition(bits_TW, row_T, follows_T=gapless(row_T), n_documents=1, top1_T=ids_TK[:, 0])
    rates = (found.first_D[0], found.any_D[0], found.overlap_D[0])
    for rate, value in zip(rates, (expected.first, expected.any, expected.overlap), strict=True):
        assert rate / 29_999 == pytest.approx(float(value), abs=5 * np.sqrt(float(value) / 30_000) + 1e-9)


def test_all_experts_chosen_repeat_for_certain():
    expected = sequence.uniform_repetition(n_experts=4, top_k=4)
    assert (float(expected.any), float(expected.overlap)) == (1, 4)


def test_load_matched_repetition_is_that_of_independent_tokens():
    rng = np.random.default_rng(2)
    ids_TK = np.argsort(-(rng.normal(0, 1, 12) + rng.gumbel(size=(60_000, 12))), axis=1)[:, :3]
    bits_TW = sets.as_bits(ids_TK, n_experts=12)
    counts_E, top1_E = np.bincount(ids_TK.ravel(), minlength=12), np.bincount(ids_TK[:, 0], minlength=12)
    expected = sequence.load_matched_repetition(top1_E, counts_E, top_k=3)
    row_T = np.zeros(60_000, dtype=int)
    found = sequence.repetition(bits_TW, row_T, follows_T=gapless(row_T), n_documents=1, top1_T=ids_TK[:, 0])
    assert found.first_D[0] / 59_999 == pytest.approx(float(expected.first), abs=0.01)
    assert found.overlap_D[0] / 59_999 == pytest.approx(float(expected.overlap), abs=0.015)
    assert np.isnan(expected.any)
    some = slice(0, 1500)
    assert sequence.any_overlap(bits_TW[some], np.arange(1500)) == pytest.approx(found.any_D[0] / 59_999, abs=0.02)
    nothing = sequence.load_matched_repetition(np.zeros(12), np.zeros(12), top_k=3)
    assert np.isnan(nothing.first) and np.isnan(nothing.overlap)


def test_pairs_within_a_document_are_no_independent_pairs():
    bits_TW = sets.as_bits(np.array([[0], [0], [1], [1]]), n_experts=2)
    assert sequence.any_overlap(bits_TW, np.array([0, 0, 1, 1])) == 0
    assert sequence.any_overlap(bits_TW, np.array([0, 1, 0, 1])) == pytest.approx(1 / 2)
    assert np.isnan(sequence.any_overlap(bits_TW, np.zeros(4, dtype=int)))


def test_segment_consistency_by_hand():
    """Window 2 over experts 0 0 1 1: of three windows expert 0 is chosen 2, 1, 0 times, expert 1 0, 1, 2 times."""
    bits_TW = sets.as_bits(np.array([[0], [0], [1], [1]]), n_experts=2)
    histogram = sequence.window_histogram(bits_TW, np.zeros(4, dtype=int), n_experts=2, window=2)
    assert histogram.tolist() == [[1, 1, 1], [1, 1, 1]]
    # τ = 1: 4 of 6 on, F1 = 2·6/(2·4 + 6); τ = 2: 2 on, F1 = 2·4/(2·2 + 6); τ = 0: 2·6/(2·6 + 6)
    assert sequence.segment_consistency(histogram) == pytest.approx(12 / 14)
    np.testing.assert_allclose(sequence.expert_segment_consistency(histogram), [6 / 7, 6 / 7])


def plain_f1(ids_TK: np.ndarray, window: int, n_experts: int, thresholds: list[int]) -> float:
    """Token by token: how well the windows' experts are the tokens' experts."""
    hit = kept = chosen = 0
    for start in range(len(ids_TK) - window + 1):
        tokens = [set(token) for token in ids_TK[start : start + window].tolist()]
        on = {e for e in range(n_experts) if sum(e in token for token in tokens) >= thresholds[e]}
        hit += sum(len(on & token) for token in tokens)
        kept += window * len(on)
        chosen += sum(map(len, tokens))
    return 2 * hit / (kept + chosen)


def f1_of_one(chosen_T: list[bool], window: int, threshold: int) -> float:
    """Of one expert: windows that keep it on for all their tokens, against the tokens that choose it."""
    hit = kept = chosen = 0
    for start in range(len(chosen_T) - window + 1):
        n = sum(chosen_T[start : start + window])
        on = n >= threshold
        hit, kept, chosen = hit + n * on, kept + window * on, chosen + n
    return 2 * hit / (kept + chosen) if kept + chosen else 0.0


@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_segment_consistency_beside_a_plain_f1(seed):
    ids_TK = random_sets(np.random.default_rng(seed), 12, n_experts=5, top_k=2)
    histogram = sequence.window_histogram(
        sets.as_bits(ids_TK, n_experts=5), np.zeros(12, dtype=int), n_experts=5, window=4
    )
    best = max(plain_f1(ids_TK, 4, 5, [tau] * 5) for tau in range(5))
    assert sequence.segment_consistency(histogram) == pytest.approx(best)
    own_E = sequence.expert_segment_consistency(histogram)
    for expert in range(5):
        chosen_T = (ids_TK == expert).any(axis=1).tolist()
        best = max(f1_of_one(chosen_T, 4, tau) for tau in range(5)) if any(chosen_T) else np.nan
        assert own_E[expert] == pytest.approx(best, nan_ok=True)


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (64, 8)])
def test_uniform_routing_is_over_the_floor_of_all_on(n_experts, top_k):
    expected = sequence.uniform_segment_consistency(n_experts=n_experts, top_k=top_k, window=16)
    ids_TK = random_sets(np.random.default_rng(3), 20_000, n_experts=n_experts, top_k=top_k)
    bits_TW = sets.as_bits(ids_TK, n_experts=n_experts)
    found = sequence.window_histogram(bits_TW, np.zeros(20_000, dtype=int), n_experts=n_experts, window=16)
    assert sequence.segment_consistency(found) == pytest.approx(expected, abs=3e-3)
    assert expected > 2 * top_k / (n_experts + top_k)
    longer = sequence.uniform_segment_consistency(n_experts=n_experts, top_k=top_k, window=255)
    assert 2 * top_k / (n_experts + top_k) <= longer < expected


def test_consistent_routing_has_an_f1_of_one_and_names_do_not_matter():
    ids_TK = np.tile([[3, 1]], (40, 1))
    bits_TW = sets.as_bits(ids_TK, n_experts=5)
    histogram = sequence.window_histogram(bits_TW, np.zeros(40, dtype=int), n_experts=5, window=7)
    assert sequence.segment_consistency(histogram) == 1
    own = sequence.expert_segment_consistency(histogram)
    assert own[1] == own[3] == 1 and np.isnan(own[[0, 2, 4]]).all()
    assert sequence.segment_consistency(histogram[::-1]) == 1
    assert np.isnan(sequence.segment_consistency(np.zeros((5, 8))))


def test_expected_activated_experts_is_the_mean_over_shuffles():
    ids_TK = random_sets(np.random.default_rng(4), 12, n_experts=6, top_k=2)
    counts_E = np.bincount(ids_TK.ravel(), minlength=6)
    expected = sequence.expected_activated_experts(counts_E, tokens_B=np.array([1, 2, 4, 16]), top_k=2)
    assert expected[0] == pytest.approx(2) and np.isnan(expected[3])
    bits_TW, document_T = sets.as_bits(ids_TK, n_experts=6), np.zeros(12, dtype=int)
    drawn = []
    for draw in range(1500):
        order = sets.shuffled_within(document_T, np.arange(12), seed=0, draw=draw)
        found = sequence.activated_experts(bits_TW[order], document_T, stretch_T=document_T, n_documents=1, doublings=2)
        drawn.append(found.distinct_DB[0] / found.runs_DB[0])
    np.testing.assert_allclose(np.mean(drawn, axis=0), expected[:3], atol=0.02)
    everything = sequence.expected_activated_experts(counts_E, tokens_B=np.array([12]), top_k=2)
    assert everything[0] == pytest.approx((counts_E > 0).sum())


def test_many_even_tokens_are_as_uniform_routing():
    tokens_B = np.array([1, 8, 64])
    even = sequence.expected_activated_experts(np.full(64, 125_000), tokens_B=tokens_B, top_k=8)
    np.testing.assert_allclose(
        even, sequence.uniform_activated_experts(tokens_B=tokens_B, n_experts=64, top_k=8), rtol=1e-4
    )


def test_distinct_experts_at_given_rates():
    """By hand: two tokens, p = 1, 1/2, 1/2 give 1 + 3/4 + 3/4. Even rates are the uniform value, uneven ones less."""
    tokens_B = np.array([1, 2, 64])
    by_hand = sequence.rate_activated_experts(np.array([1.0, 0.5, 0.5]), tokens_B=tokens_B)
    np.testing.assert_allclose(by_hand[:2], [2, 2.5])
    even = sequence.rate_activated_experts(np.full((2, 64), 8 / 64), tokens_B=tokens_B)
    uniform = sequence.uniform_activated_experts(tokens_B=tokens_B, n_experts=64, top_k=8)
    np.testing.assert_allclose(even, [uniform, uniform])
    rng = np.random.default_rng(3)
    ids_TK = random_sets(rng, 20_000, n_experts=64, top_k=8)
    counts_E = np.bincount(ids_TK.ravel(), minlength=64)
    uneven_E = np.where(np.arange(64) < 32, 1.5, 0.5) * 8 / 64
    assert (sequence.rate_activated_experts(uneven_E, tokens_B=tokens_B)[1:] < uniform[1:]).all()
    drawn = sequence.expected_activated_experts(counts_E, tokens_B=tokens_B, top_k=8)  # without replacement: its limit
    np.testing.assert_allclose(sequence.rate_activated_experts(counts_E / 20_000, tokens_B=tokens_B), drawn, rtol=1e-4)
    with pytest.raises(ValueError, match="rate_xE spans 0.0 to 1.5, expected 0 to 1: pass counts over tokens"):
        sequence.rate_activated_experts(np.array([0.0, 1.5]), tokens_B=tokens_B)


def test_shuffles_leave_the_load_and_take_the_order():
    """Experts in stretches of 10: neighbours repeat, shuffled ones as independent tokens do."""
    ids_TK = np.repeat(random_sets(np.random.default_rng(5), 100, n_experts=16, top_k=2), 10, axis=0)
    document_T, position_T = places([500, 500])
    bits_TW = sets.as_bits(ids_TK, n_experts=16)
    row_T = rows_of([500, 500])
    order = sets.shuffled_within(document_T, position_T, seed=0)
    follows_T = gapless(row_T)
    kept, shuffled = (
        sequence.repetition(bits, row_T, follows_T=follows_T, n_documents=2) for bits in (bits_TW, bits_TW[order])
    )
    assert kept.overlap_D.sum() > 1.7 * 998 and shuffled.overlap_D.sum() < 0.5 * 998


def test_wrong_input_is_refused():
    bits_TW, row_T = sets.as_bits(np.array([[0], [1]]), n_experts=2), np.array([0, 2])
    for call in (
        lambda: sequence.repetition(bits_TW, row_T, follows_T=gapless(row_T), n_documents=2),
        lambda: sequence.activated_experts(bits_TW, row_T, stretch_T=row_T, n_documents=2, doublings=1),
    ):
        with pytest.raises(ValueError, match="document_T spans 0 to 2, expected 0 to 1"):
            call()
    with pytest.raises(ValueError, match="window is 256, expected 1 to 255 tokens"):
        sequence.window_histogram(bits_TW, row_T, n_experts=2, window=256)
    for call in (
        lambda: sequence.uniform_repetition(n_experts=4, top_k=5),
        lambda: sequence.load_matched_repetition(np.ones(4), np.ones(4), top_k=5),
        lambda: sequence.uniform_segment_consistency(n_experts=4, top_k=5, window=4),
        lambda: sequence.expected_activated_experts(np.ones(4), tokens_B=np.array([1]), top_k=5),
        lambda: sequence.uniform_activated_experts(tokens_B=np.array([1]), n_experts=4, top_k=5),
    ):
        with pytest.raises(ValueError, match=r"top_k is 5, expected 1 to 4 \(E\)"):
            call()
