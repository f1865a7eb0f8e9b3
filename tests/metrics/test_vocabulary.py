"""Specialization by token id, against plain loops, the published script's numbers, and routers of known kind."""

from collections import defaultdict
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import type_averaged_specialization
from workbench.metrics import specialization
from workbench.metrics import vocabulary as m
from workbench.metrics.sets import shuffled_within
from workbench.statistics.arithmetic import group_numbers


def token_sets(n_tokens: int, n_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((n_tokens, n_experts)), axis=1)[:, :top_k]


def counted(token_T, ids_TK, n_ids: int, n_experts: int):
    counts_VE = m.label_counts(token_T, ids_TK, n_labels=n_ids, n_experts=n_experts)
    return counts_VE, np.bincount(token_T[token_T >= 0], minlength=n_ids)


# ---- counts ----


def test_counts_equal_plain_python_and_parts_add_up():
    rng = np.random.default_rng(0)
    label_T, ids_TK = rng.integers(-1, 5, 300), token_sets(300, 7, 3)
    expected = np.zeros((5, 7), dtype=int)
    for label, ids in zip(label_T, ids_TK, strict=True):
        if label >= 0:
            for e in ids:
                expected[label, e] += 1
    np.testing.assert_array_equal(m.label_counts(label_T, ids_TK, n_labels=5, n_experts=7), expected)
    halves = [
        m.label_counts(label_T[run], ids_TK[run], n_labels=5, n_experts=7) for run in (slice(90), slice(90, None))
    ]
    np.testing.assert_array_equal(sum(halves), expected)
    many_T = rng.integers(-1, 3000, 300)  # a table larger than what is counted at a time
    plain = np.zeros((3000, 7), dtype=int)
    np.add.at(plain, (many_T[many_T >= 0][:, None], ids_TK[many_T >= 0]), 1)
    np.testing.assert_array_equal(m.count_cells(many_T, ids_TK, n_labels=3000, n_experts=7), plain)
    narrow = m.count_cells(label_T, ids_TK.astype(np.uint8), n_labels=5, n_experts=7)
    np.testing.assert_array_equal(narrow, expected)


# ---- vocabulary specialization ----


def test_sharpness_by_hand():
    # id 0 four times, thrice with expert 1; id 1 twice, each with another; id 2 once
    token_T = np.array([0, 0, 0, 0, 1, 1, 2])
    counts_VE, n_V = counted(token_T, np.array([[1], [1], [1], [0], [0], [2], [2]]), 3, 3)
    assert m.vocabulary_specialization(counts_VE, n_V, min_count=1) == pytest.approx((3 + 1 + 1) / 7)
    assert m.vocabulary_specialization(counts_VE, n_V, min_count=2) == pytest.approx((3 + 1) / 6)
    assert m.vocabulary_specialization(counts_VE, n_V, min_count=4) == pytest.approx(3 / 4)
    assert np.isnan(m.vocabulary_specialization(counts_VE, n_V, min_count=5))


@given(seed=st.integers(0, 100), top_k=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_sharpness_equals_plain_python_and_ignores_names_and_order(seed, top_k):
    rng = np.random.default_rng(seed)
    token_T, ids_TK = rng.zipf(1.6, 200) % 20, token_sets(200, 6, top_k, seed)
    of_id = defaultdict(list)
    for token, ids in zip(token_T, ids_TK, strict=True):
        of_id[token].append(ids.tolist())
    kept = [sets for sets in of_id.values() if len(sets) >= 3]
    most = sum(max(sum(e in one for one in sets) for e in range(6)) for sets in kept)
    expected = most / sum(len(sets) for sets in kept)
    counts_VE, n_V = counted(token_T, ids_TK, 20, 6)
    assert m.vocabulary_specialization(counts_VE, n_V, min_count=3) == pytest.approx(expected)
    assert top_k / 6 <= expected <= 1
    order, names = rng.permutation(200), rng.permutation(6)
    moved_VE, _ = counted(token_T[order], names[ids_TK[order]], 20, 6)
    layers = m.vocabulary_specialization(np.stack([counts_VE, moved_VE]), n_V, min_count=3)
    np.testing.assert_allclose(layers, expected)


def test_a_router_by_token_alone_is_sharp_and_a_blind_one_is_its_null():
    rng = np.random.default_rng(1)
    token_T, document_T = rng.zipf(1.4, 4000) % 60, np.repeat(np.arange(20), 200)
    set_VK = token_sets(60, 8, 2)
    counts_VE, n_V = counted(token_T, set_VK[token_T], 60, 8)
    assert m.vocabulary_specialization(counts_VE, n_V) == 1
    blind_TK = token_sets(4000, 8, 2, seed=2)

    def value(label_T) -> float:
        return float(m.vocabulary_specialization(*counted(label_T, blind_TK, 60, 8)))

    position_T = np.tile(np.arange(200), 20)
    drawn_B = [value(token_T[shuffled_within(document_T, position_T, seed=0, draw=b)]) for b in range(40)]
    assert abs(value(token_T) - np.mean(drawn_B)) < 4 * np.std(drawn_B)
    assert np.mean(drawn_B) > 2 / 8  # the maximum of few counts is over K/E by itself


@pytest.mark.parametrize("topk", [1, 3])
def test_the_published_script_averages_over_distinct_ids(topk):
    """Theirs from our table; and what rare ids do to it, where routing looks at nothing."""
    rng = np.random.default_rng(3)
    token_T, ids_TK = rng.zipf(1.3, 3000) % 2000, token_sets(3000, 16, 3, seed=4)
    counts_VE, n_V = counted(token_T, ids_TK[:, :topk], 2000, 16)
    seen_V = n_V > 0
    by_type = (counts_VE[seen_V].max(axis=1) / n_V[seen_V]).mean()
    theirs = type_averaged_specialization(token_T.tolist(), ids_TK.tolist(), top_k=topk)
    assert theirs == pytest.approx(by_type)
    ours = m.vocabulary_specialization(counts_VE, n_V)
    assert (n_V == 1).sum() > 300
    assert by_type > ours + 0.25


# ---- the rate of an expert by the tokens of a text ----


def test_rates_elsewhere_by_hand():
    token_T, cluster_T = np.array([7, 7, 7, 7, 3, 9, 9]), np.array([0, 0, 1, 2, 0, 1, 1])
    chosen_T = np.array([True, False, True, False, True, True, True])
    # id 7: cluster 0 sees clusters 1 and 2 (1 of 2), cluster 1 sees 0 and 2 (1 of 3), cluster 2 sees 0 and 1 (2 of 3)
    found_T = m.rate_elsewhere(token_T, chosen_T, cluster_T=cluster_T)
    np.testing.assert_allclose(found_T, [1 / 2, 1 / 2, 1 / 3, 2 / 3, np.nan, np.nan, np.nan])
    assert len(m.rate_elsewhere(token_T[:0], chosen_T[:0], cluster_T=cluster_T[:0])) == 0


@given(seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_rates_elsewhere_equal_plain_python_in_any_order_under_any_names(seed):
    rng = np.random.default_rng(seed)
    token_T, chosen_T, cluster_T = rng.zipf(1.5, 60) % 9, rng.random(60) < 0.4, rng.integers(0, 4, 60)
    plain = []
    for t in range(60):
        others = [chosen_T[u] for u in range(60) if token_T[u] == token_T[t] and cluster_T[u] != cluster_T[t]]
        plain.append(sum(others) / len(others) if others else np.nan)
    np.testing.assert_allclose(m.rate_elsewhere(token_T, chosen_T, cluster_T=cluster_T), plain)
    order, names = rng.permutation(60), rng.permutation(9) * 5
    moved_T = m.rate_elsewhere(names[token_T[order]], chosen_T[order], cluster_T=3 - cluster_T[order])
    np.testing.assert_allclose(moved_T, np.array(plain)[order])
    of_all_2V = np.bincount(token_T, minlength=9), np.bincount(token_T[chosen_T], minlength=9)
    for some in (cluster_T < 2, cluster_T == 2, cluster_T == 9):  # whole clusters of it
        found_T = m.rate_elsewhere(token_T[some], chosen_T[some], cluster_T=cluster_T[some], of_all_2V=of_all_2V)
        np.testing.assert_allclose(found_T, np.array(plain)[some])


def test_rates_elsewhere_tell_words_from_domains():
    """By the id alone, a domain's rate is that of its ids; blind routing has the corpus' rate in every domain."""
    rng = np.random.default_rng(0)
    domain_T, cluster_T = np.repeat([0, 1], 4000), np.arange(8000) // 100
    token_T = np.where(domain_T == 0, rng.zipf(1.5, 8000) % 30, 29 - rng.zipf(1.5, 8000) % 30)
    by_id_T, blind_T = (rng.random(30) < 0.4)[token_T], rng.random(8000) < 0.25
    for chosen_T in (by_id_T, blind_T):
        rate_T = m.rate_elsewhere(token_T, chosen_T, cluster_T=cluster_T)
        for domain in (0, 1):
            mine = (domain_T == domain) & ~np.isnan(rate_T)
            expected = chosen_T[mine].mean() if chosen_T is by_id_T else 0.25
            assert rate_T[mine].mean() == pytest.approx(expected, abs=0.02)
    assert abs(by_id_T[domain_T == 0].mean() - by_id_T[domain_T == 1].mean()) > 0.05


def test_rates_of_padding_are_refused():
    with pytest.raises(ValueError, match=r"token_T holds -1, expected 0 or more: leave padding out"):
        m.rate_elsewhere(np.array([-1]), np.array([True]), cluster_T=np.array([0]))
    with pytest.raises(ValueError, match=r"cluster_T holds -2, expected 0 or more"):
        m.rate_elsewhere(np.array([1]), np.array([True]), cluster_T=np.array([-2]))
    few = np.array([0, 1]), np.array([0, 1])
    with pytest.raises(
        ValueError, match=r"of_all_2V counts fewer tokens than were given: pass the counts of the whole"
    ):
        m.rate_elsewhere(np.array([1, 1]), np.array([True, False]), cluster_T=np.array([0, 0]), of_all_2V=few)


# ---- what a domain adds ----


def slow_given_token(document_T, token_T, ids_TK, fold_D, domain_D):
    """Mean overlap over all pairs of tokens of one id in different folds, pair by pair."""
    top_k, total, size = ids_TK.shape[1], 0.0, 0
    sets = [set(ids.tolist()) for ids in ids_TK]
    for v in set(token_T.tolist()):
        overlap = defaultdict(list)
        at = np.flatnonzero(token_T == v)
        for t, u in product(at, at):
            a, b = document_T[t], document_T[u]
            if fold_D[a] != fold_D[b]:
                overlap[domain_D[a], domain_D[b]].append(len(sets[t] & sets[u]) / top_k)
        # a domain counts where the id stands in two of its folds, an id with two such domains
        folds_of = defaultdict(set)
        for t in at:
            folds_of[domain_D[document_T[t]]].add(fold_D[document_T[t]])
        usable = sorted(d for d, found in folds_of.items() if len(found) >= 2)
        if len(usable) < 2:
            continue
        within = np.mean([np.mean(overlap[d, d]) for d in usable])
        across = np.mean([np.mean(overlap[d, e]) for d, e in product(usable, usable) if d != e])
        n = sum(domain_D[document_T[t]] in usable for t in at)
        total, size = total + n * (within - across), size + n
    return total / size, size


def given_tables(document_T, token_T, ids_TK, fold_D, domain_D, *, n_experts: int):
    n_ids, n_folds, n_domains = (int(of.max()) + 1 for of in (token_T, fold_D, domain_D))
    cell_T = (token_T * n_folds + fold_D[document_T]) * n_domains + domain_D[document_T]
    size = n_ids * n_folds * n_domains
    counts = m.label_counts(cell_T, ids_TK, n_labels=size, n_experts=n_experts)
    shape = (n_ids, n_folds, n_domains)
    return counts.reshape(*shape, n_experts), np.bincount(cell_T, minlength=size).reshape(shape)


def corpus(seed: int, *, n_documents: int = 24, length: int = 12, n_ids: int = 8):
    rng = np.random.default_rng(seed)
    document_T = np.repeat(np.arange(n_documents), length)
    return (
        document_T,
        rng.zipf(1.5, len(document_T)) % n_ids,
        np.arange(n_documents) % 4,
        rng.permutation(np.arange(n_documents) % 3),
    )


@given(seed=st.integers(0, 200))
@settings(max_examples=15, deadline=None)
def test_given_token_equals_all_pairs(seed):
    document_T, token_T, fold_D, domain_D = corpus(seed)
    ids_TK = token_sets(len(token_T), 6, 2, seed)
    tables = given_tables(document_T, token_T, ids_TK, fold_D, domain_D, n_experts=6)
    found = m.domain_information_given_token(*tables, top_k=2)
    expected, size = slow_given_token(document_T, token_T, ids_TK, fold_D, domain_D)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.tokens == size
    names = np.random.default_rng(seed).permutation(6)
    moved = given_tables(document_T, token_T, names[ids_TK], fold_D, domain_D, n_experts=6)
    assert m.domain_information_given_token(*moved, top_k=2).value == pytest.approx(expected, abs=1e-12)


def test_given_token_without_a_fold_is_that_of_the_other_folds():
    document_T, token_T, fold_D, domain_D = corpus(1, n_documents=60, length=30)
    ids_TK = token_sets(len(token_T), 6, 2)
    counts, tokens = given_tables(document_T, token_T, ids_TK, fold_D, domain_D, n_experts=6)
    found = m.domain_information_given_token(counts, tokens, top_k=2)
    for fold in range(4):
        rest = [f for f in range(4) if f != fold]
        without = m.domain_information_given_token(counts[:, rest], tokens[:, rest], top_k=2)
        assert found.value_without_F[fold] == pytest.approx(without.value, abs=1e-3)  # ids weigh by all folds
        assert found.alone_without_F[fold] == pytest.approx(without.alone, abs=1e-12)


def test_a_router_by_token_alone_leaves_nothing_for_the_domain():
    document_T, token_T, fold_D, domain_D = corpus(2, n_documents=60, length=30)
    token_T = np.where(np.random.default_rng(0).random(len(token_T)) < 0.5, token_T, domain_D[document_T] + 8)
    sets_VE = specialization.hash_router_counts(
        np.arange(11), np.arange(11), n_documents=11, n_experts=16, top_k=2, seed=0
    )
    ids_TK = np.nonzero(sets_VE)[1].reshape(11, 2)[token_T]
    found = m.domain_information_given_token(
        *given_tables(document_T, token_T, ids_TK, fold_D, domain_D, n_experts=16), top_k=2
    )
    assert found.value == pytest.approx(0, abs=1e-12)


def test_a_router_by_domain_alone_is_known_in_full():
    document_T, token_T, fold_D, domain_D = corpus(3, n_documents=60, length=30)
    ids_TK = np.array([[0, 1], [2, 3], [4, 5]])[domain_D[document_T]]
    found = m.domain_information_given_token(
        *given_tables(document_T, token_T, ids_TK, fold_D, domain_D, n_experts=6), top_k=2
    )
    assert found.value == pytest.approx(1)
    assert found.alone == pytest.approx(1)


def test_given_token_is_unbiased_where_documents_have_tastes():
    """Each document prefers experts of its own, domains do not: 0 on average, whatever the sample."""
    values = []
    for seed in range(150):
        document_T, token_T, fold_D, domain_D = corpus(seed)
        rng = np.random.default_rng(seed + 1000)
        taste_DE = rng.gamma(0.5, size=(24, 6))
        ids_TK = np.argsort(-np.log(taste_DE[document_T]) - rng.gumbel(size=(len(token_T), 6)), axis=1)[:, :2]
        tables = given_tables(document_T, token_T, ids_TK, fold_D, domain_D, n_experts=6)
        values.append(m.domain_information_given_token(*tables, top_k=2).value)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_one_domain_or_ids_of_one_fold_say_nothing():
    one = m.domain_information_given_token(np.ones((2, 3, 1, 2), dtype=int), np.ones((2, 3, 1)), top_k=2)
    assert np.isnan(one.value) and np.isnan(one.alone) and one.tokens == 0
    single = np.zeros((1, 3, 2, 2), dtype=int)
    single[0, 0] = 1
    assert np.isnan(m.domain_information_given_token(single, single[..., 0], top_k=2).value)


# ---- refusals ----


def test_refusals():
    ids_TK = np.array([[0, 1]])
    with pytest.raises(ValueError, match=r"label_T spans 3 to 3, expected -1 to 2: pass row indices"):
        m.label_counts(np.array([3]), ids_TK, n_labels=3, n_experts=2)
    with pytest.raises(ValueError, match=r"ids_TK spans 0 to 1, expected 0 to 0"):
        m.label_counts(np.array([0]), ids_TK, n_labels=3, n_experts=1)
    with pytest.raises(ValueError, match=r"min_count is 0, expected 1 or more: 10 keeps"):
        m.vocabulary_specialization(np.ones((2, 2)), np.ones(2), min_count=0)
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.vocabulary_specialization(-np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"an expert more often than its id occurs: pass occurrences_V of the same"):
        m.vocabulary_specialization(2 * np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"counts_VFME has 2 folds, expected 3 or more"):
        m.domain_information_given_token(np.ones((1, 2, 2, 2)), np.ones((1, 2, 2)), top_k=2)
    with pytest.raises(ValueError, match=r"does not hold top_k = 1 assignments a token: pass counts of all K"):
        m.domain_information_given_token(np.ones((1, 3, 2, 2)), np.ones((1, 3, 2)), top_k=1)
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.domain_information_given_token(-np.ones((1, 3, 2, 2)), np.ones((1, 3, 2)), top_k=2)


def test_pairs_of_the_plain_twin_are_pairs():
    """The twin itself, by hand: three documents of two domains, one id."""
    document_T, token_T = np.arange(4), np.zeros(4, dtype=int)
    ids_TK = np.array([[0, 1], [0, 2], [3, 4], [3, 5]])
    value, size = slow_given_token(document_T, token_T, ids_TK, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    assert (value, size) == (0.5, 4)
    assert sum(1 for _ in combinations(range(4), 2)) == 6


@pytest.mark.parametrize("most", [1, 7, 2**16, 2**16 + 3, 2**40])
def test_groups_are_those_of_unique(most):
    rng = np.random.default_rng(most)
    one_T = rng.integers(0, most, 500)
    two_T = rng.integers(0, 3, 500)
    known = np.unique(np.stack([two_T, one_T]), axis=1, return_inverse=True)[1]
    found = group_numbers(one_T, two_T)
    assert len(set(zip(found.tolist(), known.tolist(), strict=True))) == len(set(known.tolist())) == found.max() + 1
    assert found.min() == 0
    assert group_numbers(one_T[:0]).shape == (0,)
