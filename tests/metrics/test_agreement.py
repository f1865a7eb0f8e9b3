"""Agreement of the same token: by hand, beside loops over all pairs, unbiased, and covered by its interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.test_sets import random_sets
from workbench.metrics import agreement, sets
from workbench.statistics import token_labels
from workbench.statistics.design import Clusters


def sums_of(ids_TK, label_T, row_T, *, n_labels, n_documents, n_experts, runs=(slice(None),), weigh=False):
    """Both passes, part by part."""
    counts_VE = np.zeros((n_labels, n_experts), dtype=np.int64)
    tokens_V, squares_V = np.zeros(n_labels, dtype=np.int64), np.zeros(n_labels, dtype=np.int64)
    parts = [
        (ids_TK[run], token_labels.labels(label_T[run], row_T[run], n_labels=n_labels, n_documents=n_documents))
        for run in runs
    ]
    for ids, labels in parts:
        counts_VE[labels.present_N] += agreement.label_counts(ids, labels, n_experts=n_experts)
        tokens_V[labels.present_N] += labels.tokens_N
        squares_V[labels.present_N] += labels.squares_N
    weight_V = agreement.token_weights(tokens_V, squares_V) if weigh else np.ones(n_labels)
    found = [agreement.pair_sums(ids, labels, counts_VE=counts_VE, weight_Vx=weight_V) for ids, labels in parts]
    return agreement.PairSums(sum(one.overlap_Dx for one in found), sum(one.pairs_Dx for one in found))


def document_counts(ids_TK, row_T, *, n_documents, n_experts):
    return np.stack([np.bincount(ids_TK[row_T == d].ravel(), minlength=n_experts) for d in range(n_documents)])


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_the_sums_are_those_over_all_pairs(seed):
    rng = np.random.default_rng(seed)
    row_T, label_T = np.sort(rng.integers(0, 4, 30)), rng.integers(0, 5, 30)
    ids_TK = random_sets(rng, 30, n_experts=6, top_k=2)
    shape = {"n_labels": 6, "n_documents": 4, "n_experts": 6}
    cut = int(np.searchsorted(row_T, 2))
    same = sums_of(ids_TK, label_T, row_T, **shape)
    parts = sums_of(ids_TK, label_T, row_T, **shape, runs=(slice(0, cut), slice(cut, 30)))
    np.testing.assert_allclose(parts.overlap_Dx, same.overlap_Dx)
    np.testing.assert_allclose(parts.pairs_Dx, same.pairs_Dx)
    order = np.lexsort((row_T, label_T))  # by label, as they are counted: nothing is to be moved
    ordered = sums_of(ids_TK[order], label_T[order], row_T[order], **shape)
    np.testing.assert_array_equal(ordered.overlap_Dx, same.overlap_Dx)
    counts_DE = document_counts(ids_TK, row_T, n_documents=4, n_experts=6)
    other = agreement.other_pair_sums(counts_DE, same, top_k=2)
    plain = {True: np.zeros((4, 2)), False: np.zeros((4, 2))}
    of_label: dict[int, list[float]] = {}
    for s in range(30):
        for t in range(30):
            if row_T[s] != row_T[t]:
                common = len(set(ids_TK[s]) & set(ids_TK[t]))
                plain[bool(label_T[s] == label_T[t])][row_T[s]] += (common, 1)
                if label_T[s] == label_T[t]:
                    of_label.setdefault(int(label_T[s]), []).append(common / 2)
    for sums, pairs in ((same, plain[True]), (other, plain[False])):
        np.testing.assert_allclose(sums.overlap_Dx, pairs[:, 0])
        np.testing.assert_allclose(sums.pairs_Dx, pairs[:, 1])
    if of_label:
        counts = np.bincount(label_T)
        by_token = np.average([np.mean(v) for v in of_label.values()], weights=[counts[k] for k in of_label])
        weighed = sums_of(ids_TK, label_T, row_T, **shape, weigh=True)
        assert agreement.agreement_rate(weighed, top_k=2) == pytest.approx(by_token)


def test_labels_of_whole_documents_need_their_counts_alone():
    rng = np.random.default_rng(5)
    row_T, label_D = np.sort(rng.integers(0, 6, 60)), np.array([0, 1, 1, 0, 2, 1])
    ids_TK = random_sets(rng, 60, n_experts=7, top_k=3)
    shape = {"n_documents": 6, "n_experts": 7}
    slow = sums_of(ids_TK, label_D[row_T], row_T, n_labels=4, **shape)
    fast = agreement.document_pair_sums(
        document_counts(ids_TK, row_T, **shape), label_D, weight_Vx=np.array([1.0, 1, 1, 1]), top_k=3
    )
    np.testing.assert_allclose(fast.overlap_Dx, slow.overlap_Dx)
    np.testing.assert_allclose(fast.pairs_Dx, slow.pairs_Dx)
    assert fast.overlap_Dx[4] == fast.pairs_Dx[4] == 0  # alone with its label
    with pytest.raises(ValueError, match="counts hold -1"):
        agreement.document_pair_sums(-np.ones((6, 7)), label_D, weight_Vx=np.ones(4), top_k=3)


def routed_by_token(rng, *, share, n_documents=40, length=50, n_labels=30, n_experts=16, top_k=2):
    """Each label has its set; a token takes it with probability `share`, else any. Documents prefer some labels."""
    own_VK = random_sets(rng, n_labels, n_experts=n_experts, top_k=top_k)
    preference_DV = rng.dirichlet(np.full(n_labels, 0.5), size=n_documents)
    label_T = np.concatenate([rng.choice(n_labels, size=length, p=p) for p in preference_DV])
    ids_TK = np.where(
        rng.random(len(label_T))[:, None] < share,
        own_VK[label_T],
        random_sets(rng, len(label_T), n_experts=n_experts, top_k=top_k),
    )
    return ids_TK, label_T, np.repeat(np.arange(n_documents), length)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_agreement_is_the_share_that_the_token_decides(share):
    shape = {"n_labels": 30, "n_documents": 40, "n_experts": 16}
    ids_TK, label_T, row_T = routed_by_token(np.random.default_rng(0), share=share)
    same = sums_of(ids_TK, label_T, row_T, **shape)
    other = agreement.other_pair_sums(document_counts(ids_TK, row_T, n_documents=40, n_experts=16), same, top_k=2)
    clusters = Clusters.of(np.zeros(40, dtype=int))
    found = agreement.same_token_agreement(same, other, top_k=2, clusters=clusters)
    assert agreement.agreement_rate(same, top_k=2) == pytest.approx(share**2 + (1 - share**2) / 8, abs=0.03)
    assert found.low <= share**2 * 7 / 8 + 0.02 and found.high >= share**2 * 7 / 8 - 0.03
    names = np.random.default_rng(1).permutation(16)
    again = sums_of(names[ids_TK], label_T, row_T, **shape)
    np.testing.assert_allclose(again.overlap_Dx, same.overlap_Dx)


def test_a_documents_own_preferences_do_not_enter():
    """All tokens of a document choose one expert: within documents they agree, between them not more than at random."""
    rng = np.random.default_rng(2)
    row_T, label_T = np.repeat(np.arange(60), 20), rng.integers(0, 4, 1200)
    ids_TK = rng.integers(0, 6, 60)[row_T][:, None]
    same = sums_of(ids_TK, label_T, row_T, n_labels=4, n_documents=60, n_experts=6)
    other = agreement.other_pair_sums(document_counts(ids_TK, row_T, n_documents=60, n_experts=6), same, top_k=1)
    found = agreement.same_token_agreement(same, other, top_k=1, clusters=Clusters.of(np.zeros(60, dtype=int)))
    assert abs(float(found.value)) < 0.01


def test_the_estimate_has_no_bias_and_its_interval_covers():
    """2,000 small corpora: 24 documents of 12 tokens, 3 labels, documents of their own kind."""
    rng = np.random.default_rng(3)
    n_sets, n_documents, length = 2000, 24, 12
    clusters = Clusters.of(np.repeat([0, 1], n_documents // 2))
    own_V = np.array([0, 1, 2])
    row_T = np.repeat(np.arange(n_documents), length)
    held, values = [], []
    for _ in range(n_sets):
        label_T = rng.integers(0, 3, len(row_T))
        noise_D = rng.beta(2, 2, n_documents)  # how seldom a document goes by the token
        ids_TK = np.where(rng.random(len(row_T)) < noise_D[row_T], rng.integers(0, 4, len(row_T)), own_V[label_T])
        labels = token_labels.labels(label_T, row_T, n_labels=3, n_documents=n_documents)
        counts_VE = agreement.label_counts(ids_TK[:, None], labels, n_experts=4)
        same = agreement.pair_sums(ids_TK[:, None], labels, counts_VE=counts_VE, weight_Vx=np.ones(3))
        counts_DE = np.bincount(row_T * 4 + ids_TK, minlength=n_documents * 4).reshape(n_documents, 4)
        other = agreement.other_pair_sums(counts_DE, same, top_k=1)
        found = agreement.same_token_agreement(same, other, top_k=1, clusters=clusters)
        values.append(float(found.value))
        held.append(found.low <= 0.25 <= found.high)
    # both tokens go by the token with probability 1/4; then they agree, and those with other labels do not. A token
    # that goes by its label meets one that does not at random in both kinds of pair.
    assert np.mean(values) == pytest.approx(0.25, abs=5 * np.std(values) / np.sqrt(n_sets))
    assert 0.92 <= np.mean(held) <= 0.97


def test_saturation_by_hand():
    one, two = (
        sets.as_bits(np.array(ids), n_experts=6) for ids in ([[0, 1], [2, 3], [4, 5]], [[1, 0], [2, 5], [0, 1]])
    )
    assert agreement.saturation(one, two, top_k=2).tolist() == [1, 0.5, 0]


@given(st.integers(0, 2**31), st.sampled_from([(5, 2), (70, 4), (4, 4)]))
@settings(max_examples=20)
def test_saturation_beside_plain_sets_whatever_the_names(seed, shape):
    n_experts, top_k = shape
    rng = np.random.default_rng(seed)
    one, two = (random_sets(rng, 15, n_experts=n_experts, top_k=top_k) for _ in range(2))
    names = rng.permutation(n_experts)
    plain = [len(set(a) & set(b)) / top_k for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    for first, second in ((one, two), (names[one], names[two]), (rng.permuted(one, axis=1), two)):
        bits = (sets.as_bits(ids, n_experts=n_experts) for ids in (first, second))
        np.testing.assert_allclose(agreement.saturation(*bits, top_k=top_k), plain)
    counts = [np.bincount(ids.ravel(), minlength=n_experts) for ids in (one, two)]
    expected = sum((a / 15) * (b / 15) for a, b in zip(*(c.tolist() for c in counts), strict=True)) / top_k
    assert agreement.load_matched_agreement(*counts, top_k=top_k) == pytest.approx(expected)


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (16, 2), (60, 4), (64, 8), (128, 8)])
def test_random_routers_agree_by_chance(n_experts, top_k):
    rng = np.random.default_rng(4)
    ids = [random_sets(rng, 20_000, n_experts=n_experts, top_k=top_k) for _ in range(2)]
    bits = [sets.as_bits(each, n_experts=n_experts) for each in ids]
    counts = [np.bincount(each.ravel(), minlength=n_experts) for each in ids]
    found = agreement.saturation(*bits, top_k=top_k).mean()
    assert found == pytest.approx(top_k / n_experts, rel=0.05)
    assert agreement.load_matched_agreement(*counts, top_k=top_k) == pytest.approx(top_k / n_experts, rel=0.01)


def test_an_even_router_agrees_by_chance_with_any():
    assert agreement.load_matched_agreement(np.full(8, 10), np.array([40, 40, 0, 0, 0, 0, 0, 0]), top_k=2) == 0.25
    assert np.isnan(agreement.load_matched_agreement(np.zeros(4), np.ones(4), top_k=2))


def test_without_pairs_nothing_is_known():
    same = sums_of(np.array([[0], [1]]), np.array([0, 1]), np.array([0, 1]), n_labels=2, n_documents=2, n_experts=2)
    assert np.isnan(agreement.agreement_rate(same, top_k=1))


def test_wrong_input_is_refused():
    labels = token_labels.labels(np.array([0]), np.array([0]), n_labels=1, n_documents=1)
    bits = sets.as_bits(np.array([[0], [1]]), n_experts=2)
    for call, message in (
        (lambda: agreement.saturation(bits, bits[:1], top_k=1), "expected the same: pass the same tokens"),
        (lambda: agreement.saturation(bits, bits, top_k=0), "top_k is 0, expected 1 or more"),
        (lambda: agreement.load_matched_agreement(np.ones(2), np.ones(2), top_k=3), "top_k is 3, expected 1 to 2"),
        (lambda: token_labels.labels(np.array([3]), np.array([0]), n_labels=2, n_documents=1), "label_T spans 3 to 3"),
        (
            lambda: token_labels.labels(np.array([0]), np.array([1]), n_labels=2, n_documents=1),
            "document_T spans 1 to 1",
        ),
        (lambda: agreement.label_counts(np.array([[4]]), labels, n_experts=2), "ids_TK spans 4 to 4, expected 0 to 1"),
        (
            lambda: agreement.pair_sums(np.array([[0]]), labels, counts_VE=np.ones((2, 2)), weight_Vx=np.ones(2)),
            "counts_VE has 2 rows, expected 1",
        ),
        (
            lambda: agreement.other_pair_sums(np.ones((1, 2)), agreement.PairSums(np.ones(1), np.ones(1)), top_k=3),
            "top_k is 3, expected 1 to 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
