from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from workbench.metrics import specialization as m
from workbench.statistics.design import Clusters

AT = {"n_experts": 6, "top_k": 2}


# ---- values by hand, limits ----


def test_values_by_hand():
    counts_DE = np.array([[3, 1, 0, 0], [1, 3, 0, 0], [0, 0, 2, 2]])
    clusters = Clusters.of(np.array(["a", "a", "b"]))
    counts_ME = m.domain_counts(counts_DE, clusters=clusters)
    np.testing.assert_array_equal(counts_ME, [[4, 4, 0, 0], [0, 0, 2, 2]])
    np.testing.assert_allclose(m.domain_load(counts_ME, top_k=2), [[1, 1, 0, 0], [0, 0, 1, 1]])
    assert m.domain_information(counts_ME) == pytest.approx(np.log(2))  # equal weight, though b is half as long
    # f = 1/4 each: ln 4 − ln 2 = ln 2, and two domains hold no more
    assert m.domain_information_ceiling(counts_ME, top_k=2) == pytest.approx(np.log(2))


def test_ceilings():
    spread = np.eye(8, dtype=int)[:5] + 1000 * np.ones((5, 8), dtype=int)
    assert m.domain_information_ceiling(spread, top_k=1) == pytest.approx(np.log(5))  # the domain binds
    assert m.domain_information_ceiling(spread, top_k=4) == pytest.approx(np.log(2), rel=1e-4)  # K binds
    assert m.domain_information_ceiling(spread, top_k=8) == pytest.approx(0, abs=1e-4)


def test_limits():
    same = np.array([[1, 2, 3], [10, 20, 30]])
    assert m.domain_information(same) == 0
    assert m.domain_information(np.diag([5, 1, 100])) == pytest.approx(np.log(3))
    with_empty = np.array([[1, 2], [0, 0]])
    assert np.isnan(m.domain_information(with_empty))
    assert np.isnan(m.domain_information_ceiling(with_empty, top_k=1))
    np.testing.assert_array_equal(np.isnan(m.domain_load(with_empty, top_k=1)), [[False] * 2, [True] * 2])


@given(seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_information_equals_plain_python_and_ignores_names(seed):
    rng = np.random.default_rng(seed)
    counts_ME = rng.integers(0, 9, (3, 4)) + np.eye(3, 4, dtype=int)
    joint = counts_ME / counts_ME.sum(axis=1, keepdims=True) / 3
    expected = sum(
        joint[d, e] * np.log(joint[d, e] / (joint[d].sum() * joint[:, e].sum()))
        for d in range(3)
        for e in range(4)
        if joint[d, e]
    )
    assert m.domain_information(counts_ME) == pytest.approx(expected, abs=1e-12)
    moved = counts_ME[rng.permutation(3)][:, rng.permutation(4)]
    assert m.domain_information(moved) == pytest.approx(expected, abs=1e-12)
    assert expected <= m.domain_information_ceiling(counts_ME, top_k=1) + 1e-12
    layers = m.domain_information(np.stack([counts_ME, moved], axis=1))
    np.testing.assert_allclose(layers, expected, atol=1e-12)


@given(seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_loads_by_domain_equal_plain_python_in_any_order(seed):
    rng = np.random.default_rng(seed)
    counts_DE, domain_D = 2 * rng.integers(0, 9, (7, 4)) + 2, rng.permutation(["a", "a", "a", "b", "b", "b", "b"])
    order, names = rng.permutation(7), rng.permutation(4)
    for rows, columns in ((np.arange(7), np.arange(4)), (order, names)):
        clusters = Clusters.of(domain_D[rows])
        load_ME = m.domain_load(m.domain_counts(counts_DE[rows][:, columns], clusters=clusters), top_k=2)
        for domain in "ab":
            mine = counts_DE[domain_D == domain]
            plain = [mine[:, e].sum() / (mine.sum() / 2) for e in columns]
            np.testing.assert_allclose(load_ME[clusters.domains.index(domain)], plain)


def test_information_never_exceeds_its_ceiling_for_sets():
    for top_k in (1, 2, 3, 5):
        for domain_sets in combinations(list(combinations(range(6), top_k)), 2):
            counts_ME = np.array([[e in chosen for e in range(6)] for chosen in domain_sets]).astype(int)
            information = m.domain_information(counts_ME)
            assert information <= m.domain_information_ceiling(counts_ME, top_k=top_k) + 1e-12


# ---- permutation null ----


def documents(seed: int, *, effect: float, n: int = 40):
    rng = np.random.default_rng(seed)
    domain_D = np.repeat([0, 1], n // 2)
    lean = 1 + effect * np.where((np.arange(6) < 3) == (domain_D == 0)[:, None], 1, 0)
    weight_DE = rng.gamma(3 * lean)
    return rng.multinomial(60, weight_DE / weight_DE.sum(axis=1, keepdims=True)), Clusters.of(domain_D)


def test_permutation_finds_domains_and_nothing_else():
    counts_DE, clusters = documents(0, effect=1.0)
    found = m.domain_information_test(counts_DE, clusters=clusters)
    assert found.p == pytest.approx(1 / 200)
    assert found.statistic > found.null_high > found.null_mean > 0
    unrelated_DSE = np.stack([documents(s, effect=0.0)[0] for s in range(300)], axis=1)
    p = m.domain_information_test(unrelated_DSE, clusters=clusters, n_draws=199).p
    assert 0.01 <= np.mean(p <= 0.05) <= 0.10
    assert 0.42 <= np.mean(p) <= 0.58


def test_permutation_maps_over_layers_and_moves_clusters_whole():
    counts_DE, clusters = documents(1, effect=0.5)
    layers = m.domain_information_test(np.stack([counts_DE, counts_DE[:, ::-1]], axis=1), clusters=clusters)
    single = m.domain_information_test(counts_DE, clusters=clusters)
    np.testing.assert_allclose(layers.p, single.p)
    np.testing.assert_allclose(layers.null_mean, single.null_mean, rtol=1e-4)
    # two clusters per domain: 4 choose 2 arrangements, so p cannot be small however many documents there are
    in_two = Clusters.of(clusters.domain_D, cluster_D=np.arange(40) // 10)
    test = m.domain_information_test(counts_DE, clusters=in_two, n_length_strata=1)
    assert test.p > 0.2


def test_strata_of_one_domain_are_named():
    counts_DE = np.concatenate([np.full((10, 4), 1), np.full((10, 4), 50)])
    clusters = Clusters.of(np.repeat([0, 1], 10))
    test = m.domain_information_test(counts_DE, clusters=clusters, n_length_strata=2)
    assert test.note == "2 of 2 length strata hold one domain only, and are not permuted"
    assert test.p == 1


# ---- the hash of the token id ----


def test_hash_sets_are_distinct_fixed_and_keyed():
    token_T, document_T = np.array([5, 9, 5, 7]), np.array([0, 0, 1, 1])
    counts_DE = m.hash_router_counts(token_T, document_T, n_documents=3, seed=1, **AT)
    np.testing.assert_array_equal(counts_DE.sum(axis=1), [4, 4, 0])
    five = m.hash_router_counts(np.array([5]), np.array([0]), n_documents=1, seed=1, **AT)[0]
    assert five.max() == 1
    assert five.sum() == 2
    assert (counts_DE[0] >= five).all()
    assert (counts_DE[1] >= five).all()
    again = m.hash_router_counts(token_T, document_T, n_documents=3, seed=1, **AT)
    np.testing.assert_array_equal(again, counts_DE)
    sets = {
        m.hash_router_counts(np.array([5]), np.array([0]), n_documents=1, seed=s, **AT).tobytes() for s in range(40)
    }
    assert len(sets) > 8


def test_hash_router_equals_plain_python():
    rng = np.random.default_rng(0)
    token_T, document_T = rng.integers(0, 30, 200), rng.integers(0, 5, 200)
    expected = np.zeros((5, 6), dtype=int)
    for token, document in zip(token_T, document_T, strict=True):
        expected[document] += m.hash_router_counts(token[None], np.array([0]), n_documents=1, seed=3, **AT)[0]
    np.testing.assert_array_equal(m.hash_router_counts(token_T, document_T, n_documents=5, seed=3, **AT), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_hash_sets_are_uniform_over_subsets(seed):
    """Of consecutive ids, as tokenizers give; over all 10 pairs of 5, and of a set with that of the next id."""
    chosen_VE = m.hash_router_counts(
        np.arange(20_000), np.arange(20_000), n_documents=20_000, n_experts=5, top_k=2, seed=seed
    )
    codes = chosen_VE @ 2 ** np.arange(5)
    assert len(Counter(codes.tolist())) == 10
    assert chisquare(list(Counter(codes.tolist()).values())).pvalue > 1e-3
    assert chisquare(list(Counter((codes[:-1] * 32 + codes[1:]).tolist()).values())).pvalue > 1e-3


def test_hash_information_of_unrelated_ids_is_counting_noise():
    """Every id once: the hash routes as at random, and information is (M − 1)(E − K)/(2N) in expectation."""
    token_T = np.arange(5_000)
    information_R = m.hash_router_information(token_T, token_T % 5, n_domains=5, n_experts=16, top_k=4, n_seeds=60)
    expected = 4 * 12 / (2 * 5_000 * 4)
    assert information_R.mean() == pytest.approx(expected, abs=4 * information_R.std() / np.sqrt(60) + 0.02 * expected)


def test_hash_information_equals_information_of_hash_counts():
    rng = np.random.default_rng(0)
    token_T, domain_T = rng.zipf(1.5, 500) % 50, rng.integers(0, 3, 500)
    information_R = m.hash_router_information(token_T, domain_T, n_domains=3, n_seeds=4, **AT)
    for seed in range(4):
        counts_ME = m.hash_router_counts(token_T, domain_T, n_documents=3, seed=seed, **AT)
        assert information_R[seed] == pytest.approx(float(m.domain_information(counts_ME)))
    counted_MV = np.zeros((3, 50), dtype=np.int64)
    np.add.at(counted_MV, (domain_T, token_T), 1)
    domain_P, token_P = np.nonzero(counted_MV)
    how = {"n_domains": 3, "n_seeds": 4, "occurrences_T": counted_MV[domain_P, token_P]}
    np.testing.assert_array_equal(m.hash_router_information(token_P, domain_P, **how, **AT), information_R)


def test_hash_of_every_expert_says_nothing():
    information_R = m.hash_router_information(
        np.arange(30), np.arange(30) % 2, n_domains=2, n_experts=4, top_k=4, n_seeds=2
    )
    np.testing.assert_allclose(information_R, 0, atol=1e-12)


# ---- refusals ----


def test_refusals():
    counts_ME = np.ones((2, 4), dtype=int)
    for call in (m.domain_load, m.domain_information_ceiling):
        with pytest.raises(ValueError, match=r"top_k is 5, expected 1 to 4 \(E\): pass K and E"):
            call(counts_ME, top_k=5)
        with pytest.raises(ValueError, match=r"counts hold -1"):
            call(-counts_ME, top_k=1)
    with pytest.raises(ValueError, match=r"counts hold -1"):
        m.domain_information(-counts_ME)
    clusters = Clusters.of(np.array([0, 1]))
    for bad in ({"n_draws": 0}, {"n_length_strata": 0}):
        with pytest.raises(ValueError, match=r"n_draws is \d+ and n_length_strata \d, expected 1 or more of each"):
            m.domain_information_test(counts_ME, clusters=clusters, **bad)
    for call in (m.domain_counts, m.domain_information_test):
        with pytest.raises(ValueError, match=r"counts hold -1"):
            call(-counts_ME, clusters=clusters)
        with pytest.raises(ValueError, match=r"has 3 rows, but the clusters were made of 2"):
            call(np.ones((3, 4), dtype=int), clusters=clusters)
    token_T, document_T = np.array([1, 2]), np.array([0, 2])
    with pytest.raises(ValueError, match=r"document_T spans 0 to 2, expected 0 to 1: pass 0-based"):
        m.hash_router_counts(token_T, document_T, n_documents=2, seed=0, **AT)
    with pytest.raises(ValueError, match=r"token_T holds -1, expected ids of 0 or more: leave padding out"):
        m.hash_router_counts(-token_T[:1], document_T[:1], n_documents=2, seed=0, **AT)
    with pytest.raises(ValueError, match=r"top_k is 7, expected 1 to 6"):
        m.hash_router_counts(token_T, document_T, n_documents=3, n_experts=6, top_k=7, seed=0)
    with pytest.raises(ValueError, match=r"n_seeds is 0, expected 1 or more: 20 is usual"):
        m.hash_router_information(token_T, document_T, n_domains=3, n_seeds=0, **AT)
