"""Every metric of routing has under random routing the value that METRICS.md states, at its size, for all shapes.

Shapes of its § 8, DeepSeek-V3's choice of groups among them: the 4 of 8 groups whose two best scores add up to most,
then the 8 best experts in these. One draw for each shape; limits are five standard deviations of what is drawn. Axes: T
tokens, D documents, E experts, K chosen per token.
"""

from functools import cache

import numpy as np
import pytest

from tests.metrics.test_sets import random_sets
from workbench.metrics import (
    agreement,
    capacity,
    heldout,
    load,
    sequence,
    specialization,
    structure,
    vocabulary,
)
from workbench.metrics.sets import as_bits, overlap, shuffled_within
from workbench.statistics import expected_at_random, neighbours, token_labels
from workbench.statistics.design import Clusters

SHAPES = {  # E, K, experts' groups and how many of them are open to a token
    "Mixtral": (8, 2, 1, 1),
    "Jamba": (16, 2, 1, 1),
    "Qwen1.5-MoE": (60, 4, 1, 1),
    "Qwen2-57B, OLMoE": (64, 8, 1, 1),
    "Qwen3-30B": (128, 8, 1, 1),
    "DeepSeek-V3": (256, 8, 8, 4),
}
DOCUMENTS, LENGTH, IDS, SD = 48, 500, 40, 5
DOCUMENT_T, POSITION_T = np.repeat(np.arange(DOCUMENTS), LENGTH), np.tile(np.arange(LENGTH), DOCUMENTS)
CLUSTERS = Clusters.of(np.arange(DOCUMENTS) % 3)
TOKENS = DOCUMENTS * LENGTH


def grouped_sets(rng: np.random.Generator, n: int, *, n_experts: int, top_k: int, groups: int, open_groups: int):
    score_TE = rng.random((n, n_experts), dtype=np.float32)
    of_group_TG = np.sort(score_TE.reshape(n, groups, -1), axis=2)[:, :, -2:].sum(axis=2)
    best_TG = np.argsort(-of_group_TG, axis=1)[:, :open_groups]
    open_TG = np.zeros((n, groups), dtype=bool)
    np.put_along_axis(open_TG, best_TG, True, axis=1)
    score_TE[~np.repeat(open_TG, n_experts // groups, axis=1)] = -1
    return np.argsort(-score_TE, axis=1)[:, :top_k]


class Random:
    """Two layers of random routing of one shape, and token ids that have nothing to do with it."""

    def __init__(self, name: str, seed: int) -> None:
        self.n_experts, self.top_k, groups, open_groups = SHAPES[name]
        rng = np.random.default_rng(seed)
        self.shape = {"n_experts": self.n_experts, "top_k": self.top_k}
        self.group_E = np.arange(self.n_experts) // (self.n_experts // groups)
        draw = grouped_sets if groups > 1 else random_sets
        more = {"groups": groups, "open_groups": open_groups} if groups > 1 else {}
        self.ids_TK, self.next_TK = (draw(rng, TOKENS, **self.shape, **more) for _ in range(2))
        self.bits_TW, self.next_TW = (as_bits(ids, n_experts=self.n_experts) for ids in (self.ids_TK, self.next_TK))
        self.token_T = rng.integers(0, IDS, TOKENS)
        self.counts_DE = np.stack(
            [np.bincount(ids.ravel(), minlength=self.n_experts) for ids in self.ids_TK.reshape(DOCUMENTS, LENGTH, -1)]
        )

    @property
    def noise(self) -> float:
        """Relative standard deviation of a sum of E squares; groups tie some of them together."""
        return float(np.sqrt(2 / (self.n_experts - 1))) * (2 if self.group_E.any() else 1)


@cache
def drawn(name: str, seed: int) -> Random:
    return Random(name, seed)


@pytest.fixture(params=SHAPES)
def routing(request) -> Random:
    return drawn(request.param, 0)


def within(values_D: np.ndarray, expected: float) -> bool:
    """Whether the documents' mean is what is expected, by their own spread (where all are alike, to 2 in 10,000)."""
    error = SD * values_D.std(ddof=1) / np.sqrt(len(values_D))
    return bool(abs(values_D.mean() - expected) <= error + 2e-4 * abs(expected))


def test_load(routing):
    even = routing.n_experts / routing.top_k - 1
    assert abs(load.imbalance(routing.counts_DE, clusters=CLUSTERS)) <= SD * routing.noise * even / TOKENS
    statistics = {
        expected_at_random.expected_squared_cv: lambda counts: load.coefficient_of_variation(counts) ** 2,
        expected_at_random.expected_gini: load.gini,
        expected_at_random.expected_entropy_deficit: lambda counts: 1 - load.load_entropy(counts),
        expected_at_random.expected_max_violation: load.max_violation,
        expected_at_random.expected_min_violation: load.min_violation,
    }
    for expected, statistic in statistics.items():
        floor = expected(np.array([LENGTH]), **routing.shape)[0]
        found_D = statistic(routing.counts_DE).astype(float)
        error = SD * found_D.std(ddof=1) / np.sqrt(DOCUMENTS)
        assert abs(found_D.mean() - floor) <= error + 0.012 * floor, expected.__name__  # the extremes: within 1 %
    effective = load.effective_tokens(routing.counts_DE, top_k=routing.top_k, clusters=CLUSTERS)
    assert effective == pytest.approx(TOKENS, rel=SD * np.sqrt(2 / DOCUMENTS) * max(routing.noise, 0.2))


def test_capacity(routing):
    expected = capacity.expected_drop_fraction(
        np.full(routing.n_experts, routing.top_k / routing.n_experts), LENGTH, top_k=routing.top_k, capacity_factor=1.0
    )
    dropped_D = capacity.dropped_by_group(routing.counts_DE, top_k=routing.top_k, capacity_factor=1.0)
    assert within(dropped_D / (LENGTH * routing.top_k), float(expected))


def test_coactivation(routing):
    pairs_EE = structure.pair_counts(routing.ids_TK, n_experts=routing.n_experts)
    apart_EE = ~np.eye(routing.n_experts, dtype=bool)
    probability_EE = structure.coactivation(pairs_EE)
    uniform = (routing.top_k - 1) / (routing.n_experts - 1)
    assert probability_EE[apart_EE].mean() == pytest.approx(uniform, rel=2e-3)
    same_EE = (routing.group_E[:, None] == routing.group_E) & apart_EE
    if routing.group_E.any():
        assert probability_EE[same_EE].mean() == pytest.approx(0.043, abs=1e-3)
        assert probability_EE[~same_EE & apart_EE].mean() == pytest.approx(0.025, abs=1e-3)
        return
    matched_EE = structure.matched_pairs(pairs_EE.diagonal(), top_k=routing.top_k)
    displaced = structure.displaced_pairs(pairs_EE, matched_EE)
    # mean |z| over a pair's count; given the loads its variance is that of the pairs' own part (Johnson scheme)
    own = (routing.n_experts - routing.top_k) * (routing.n_experts - routing.top_k - 1)
    own /= (routing.n_experts - 1) * (routing.n_experts - 2)
    by_counting = np.sqrt(2 / np.pi * own / matched_EE[apart_EE].mean()) / 2
    free = routing.n_experts * (routing.n_experts - 3) / 2
    assert displaced == pytest.approx(by_counting, rel=SD * 0.76 / np.sqrt(free))


def test_flow_and_agreement_of_two_random_layers(routing):
    shared_D = overlap(routing.bits_TW, routing.next_TW).reshape(DOCUMENTS, LENGTH).mean(axis=1)
    assert within(shared_D / routing.top_k, routing.top_k / routing.n_experts)

    def told(order_T: np.ndarray) -> float:
        flow_EE = structure.flow_counts(routing.ids_TK, routing.next_TK[order_T], n_experts=routing.n_experts)
        return float(structure.flow_information(flow_EE, top_k=routing.top_k))

    drawn_B = [told(shuffled_within(DOCUMENT_T, POSITION_T, seed=0, draw=draw)) for draw in range(9)]
    assert abs(told(np.arange(TOKENS)) - np.mean(drawn_B)) <= SD * np.std(drawn_B, ddof=1) * np.sqrt(10 / 9)


def test_repetition_windows_and_runs(routing):
    shape = {"n_documents": DOCUMENTS}
    follows_T = neighbours.follows(DOCUMENT_T, POSITION_T)
    found = sequence.repetition(routing.bits_TW, DOCUMENT_T, follows_T=follows_T, **shape, top1_T=routing.ids_TK[:, 0])
    expected = sequence.uniform_repetition(**routing.shape)
    assert within(found.first_D / found.pairs_D, float(expected.first))
    assert within(found.overlap_D / found.pairs_D, float(expected.overlap))
    common = 0.2245 if routing.group_E.any() else float(expected.any)  # of groups: by simulation
    assert within(found.any_D / found.pairs_D, common)
    runs = sequence.activated_experts(routing.bits_TW, DOCUMENT_T, stretch_T=DOCUMENT_T, **shape, doublings=5)
    uniform_B = sequence.uniform_activated_experts(tokens_B=2 ** np.arange(6), **routing.shape)
    for n in range(6):
        assert within(runs.distinct_DB[:, n] / runs.runs_DB[:, n], uniform_B[n])
    windows = sequence.window_histogram(routing.bits_TW, DOCUMENT_T, n_experts=routing.n_experts, window=16)
    uniform = sequence.uniform_segment_consistency(**routing.shape, window=16)
    assert sequence.segment_consistency(windows) == pytest.approx(uniform, abs=4e-3)


def test_what_token_and_domain_tell(routing):
    labels = token_labels.labels(routing.token_T, DOCUMENT_T, n_labels=IDS, n_documents=DOCUMENTS)
    counts_VE = agreement.label_counts(routing.ids_TK, labels, n_experts=routing.n_experts)
    same = agreement.pair_sums(routing.ids_TK, labels, counts_VE=counts_VE, weight_Vx=np.ones(IDS))
    other = agreement.other_pair_sums(routing.counts_DE, same, top_k=routing.top_k)
    excess = agreement.same_token_agreement(same, other, top_k=routing.top_k, clusters=CLUSTERS)
    assert abs(excess.value) <= SD / 2 * (excess.high - excess.low) / 2
    assert specialization.domain_information_test(routing.counts_DE, clusters=CLUSTERS, n_draws=199).p > 0.005

    n_V = np.bincount(routing.token_T, minlength=IDS)

    def sharp(ids_TK: np.ndarray) -> float:
        counts_VE = vocabulary.label_counts(routing.token_T, ids_TK, n_labels=IDS, n_experts=routing.n_experts)
        return float(vocabulary.vocabulary_specialization(counts_VE, n_V))

    orders = [shuffled_within(DOCUMENT_T, POSITION_T, seed=1, draw=draw) for draw in range(9)]
    drawn_B = [sharp(routing.ids_TK[order_T]) for order_T in orders]
    assert abs(sharp(routing.ids_TK) - np.mean(drawn_B)) <= SD * np.std(drawn_B, ddof=1) * np.sqrt(10 / 9)

    fold_T = DOCUMENT_T % 8
    cell_T = fold_T * IDS + routing.token_T
    counts = vocabulary.label_counts(cell_T, routing.ids_TK, n_labels=8 * IDS, n_experts=routing.n_experts)
    counts_FVE = counts.reshape(8, IDS, -1)
    gain = heldout.token_predictability(counts_FVE, np.zeros((8, routing.n_experts)), top_k=routing.top_k).gain
    assert -2e-3 <= gain <= 1e-3
    domain_T = CLUSTERS.domain_D[DOCUMENT_T]
    cell_T = (routing.token_T * 8 + fold_T) * 3 + domain_T
    counts = vocabulary.label_counts(cell_T, routing.ids_TK, n_labels=IDS * 24, n_experts=routing.n_experts)
    tokens = np.bincount(cell_T, minlength=IDS * 24).reshape(IDS, 8, 3)
    given = vocabulary.domain_information_given_token(counts.reshape(IDS, 8, 3, -1), tokens, top_k=routing.top_k)
    spread = np.sqrt(7 / 8 * ((given.value_without_F - given.value_without_F.mean()) ** 2).sum())
    assert abs(given.value) <= SD * spread


def test_drift(routing):
    """Information of position and choice: (P − 1)(E − K)/(2N) by counting alone."""
    starts = np.array([0, 16, 64, 256])
    bin_T = np.searchsorted(starts, POSITION_T, side="right") - 1
    counts_PE = vocabulary.label_counts(bin_T, routing.ids_TK, n_labels=4, n_experts=routing.n_experts)
    expected = 3 * (routing.n_experts - routing.top_k) / (2 * TOKENS * routing.top_k)
    slack = SD * routing.noise / np.sqrt(3)
    assert load.position_drift(counts_PE) == pytest.approx(expected, rel=slack)
