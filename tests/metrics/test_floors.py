import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics import balance, load
from workbench.statistics import expected_at_random as m

EXPECTED = {
    m.expected_squared_cv: lambda c: load.coefficient_of_variation(c) ** 2,
    m.expected_gini: load.gini,
    m.expected_entropy_deficit: lambda c: 1 - load.load_entropy(c),
    m.expected_dead_experts: load.dead_experts,
    m.expected_max_violation: load.max_violation,
    m.expected_min_violation: load.min_violation,
}
NORMAL_MAXIMUM = {8: 1.424, 16: 1.766, 60: 2.320, 64: 2.344, 128: 2.595, 256: 2.827}  # METRICS.md § 1


def random_counts(tokens, n_experts, top_k, repeats, seed=0):
    """K-subsets by sorting random numbers: no code shared with the module's own simulation."""
    rng = np.random.default_rng(seed)
    counts_RE = np.zeros((repeats, n_experts), dtype=np.int64)
    for _ in range(tokens):
        chosen_RK = np.argpartition(rng.random((repeats, n_experts), dtype=np.float32), top_k - 1, axis=1)[:, :top_k]
        counts_RE[np.arange(repeats)[:, None], chosen_RK] += 1
    return counts_RE


@pytest.mark.parametrize(
    ("tokens", "n_experts", "top_k"), [(1, 8, 2), (5, 8, 1), (24, 8, 2), (200, 8, 2), (40, 16, 6), (64, 64, 8)]
)
def test_floors_equal_simulation(tokens, n_experts, top_k):
    counts_RE = random_counts(tokens, n_experts, top_k, repeats=3000)
    for expected, statistic in EXPECTED.items():
        values_R = statistic(counts_RE).astype(float)
        floor = expected(np.array([tokens]), n_experts=n_experts, top_k=top_k)[0]
        slack = 4 * values_R.std() / np.sqrt(3000) + 0.012 * abs(floor)  # the extremes are approximate within 1 %
        assert floor == pytest.approx(values_R.mean(), abs=slack + 1e-6), expected.__name__


def test_max_violation_of_common_sizes():
    """The figures of METRICS.md for 64 experts, 8 chosen."""
    floors = m.expected_max_violation(np.array([64, 150, 512, 2048]), n_experts=64, top_k=8)
    np.testing.assert_allclose(floors, [0.85, 0.54, 0.29, 0.14], atol=0.0065)


@pytest.mark.parametrize("n_experts", NORMAL_MAXIMUM)
def test_large_samples_reach_the_normal_forms(n_experts):
    top_k, tokens = 4, 10**7
    even = n_experts / top_k - 1
    at = {"n_experts": n_experts, "top_k": top_k}
    normal = NORMAL_MAXIMUM[n_experts] * np.sqrt(n_experts / (n_experts - 1)) * np.sqrt(even / tokens)
    assert m.expected_max_violation(np.array([tokens]), **at)[0] == pytest.approx(normal, rel=0.01)
    assert m.expected_min_violation(np.array([tokens]), **at)[0] == pytest.approx(normal, rel=0.01)
    gini = np.sqrt((1 - 1 / n_experts) * even / (np.pi * tokens))
    assert m.expected_gini(np.array([tokens]), **at)[0] == pytest.approx(gini, rel=1e-4)
    deficit = even / (2 * tokens * np.log(n_experts))
    assert m.expected_entropy_deficit(np.array([tokens]), **at)[0] == pytest.approx(deficit, rel=1e-3)


def test_one_token_and_every_expert():
    one = np.array([1])
    assert m.expected_squared_cv(one, n_experts=8, top_k=2)[0] == pytest.approx(3)
    assert m.expected_gini(one, n_experts=8, top_k=2)[0] == pytest.approx(0.75)
    assert m.expected_max_violation(one, n_experts=8, top_k=2)[0] == pytest.approx(3)
    assert m.expected_min_violation(one, n_experts=8, top_k=2)[0] == pytest.approx(1)
    assert m.expected_entropy_deficit(one, n_experts=8, top_k=2)[0] == pytest.approx(1 - np.log(2) / np.log(8))
    assert m.expected_dead_experts(one, n_experts=8, top_k=2)[0] == pytest.approx(6)
    for expected in EXPECTED:
        np.testing.assert_allclose(expected(np.array([[1, 70]]), n_experts=4, top_k=4), [[0, 0]], atol=1e-12)
        assert np.isnan(expected(np.array([0]), n_experts=4, top_k=2)).all()
    assert m.expected_gini(one, n_experts=1, top_k=1)[0] == 0
    assert np.isnan(m.expected_entropy_deficit(one, n_experts=1, top_k=1)).all()


@given(tokens=st.lists(st.integers(1, 3000), min_size=1, max_size=5), k=st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_each_length_has_its_own_floor_and_more_tokens_a_lower_one(tokens, k):
    tokens_x = np.array(tokens)
    for expected in EXPECTED:
        floors = expected(tokens_x, n_experts=8, top_k=k)
        if expected not in (m.expected_max_violation, m.expected_min_violation):  # theirs shares its simulations
            np.testing.assert_allclose(floors, [expected(np.array(t), n_experts=8, top_k=k) for t in tokens])
        order = np.argsort(tokens_x)
        assert (np.diff(floors[order]) <= 0.01 * floors[order][:-1] + 1e-12).all()


def test_documents_excess_over_their_own_floor():
    rng = np.random.default_rng(0)
    tokens_D = rng.integers(30, 400, 300)
    counts_DE = np.stack([random_counts(int(t), 8, 2, 1, seed=i)[0] for i, t in enumerate(tokens_D)])
    for expected, statistic in list(EXPECTED.items())[:3]:
        excess_D = m.document_excess(counts_DE, statistic=statistic, expected=expected, top_k=2)
        assert abs(excess_D.mean()) < 4 * excess_D.std() / np.sqrt(300)
    by_layer = m.document_excess(
        np.stack([counts_DE, counts_DE], axis=1), statistic=load.gini, expected=m.expected_gini, top_k=2
    )
    assert by_layer.shape == (300, 2)


def test_pseudo_documents_equal_a_shuffle_of_tokens():
    rng = np.random.default_rng(0)
    # two kinds of token, one in each half of the documents: strong preferences by document
    document_T = np.repeat(np.arange(6), [5, 10, 15, 20, 25, 30])
    ids_TK = np.where((document_T % 2 == 0)[:, None], [[0, 1]], [[2, 3]])
    ids_TK[rng.random(105) < 0.3] = [4, 0]
    at = {"n_documents": 6, "n_experts": 5}
    counts_DE = load.document_counts(ids_TK, document_T, **at)
    shuffled_RDE = np.stack([balance.pseudo_document_counts(ids_TK, document_T, seed=s, **at) for s in range(1500)])
    np.testing.assert_array_equal(shuffled_RDE[0].sum(axis=1), counts_DE.sum(axis=1))
    np.testing.assert_array_equal(shuffled_RDE[0].sum(axis=0), counts_DE.sum(axis=0))
    simulated_RD = load.coefficient_of_variation(shuffled_RDE) ** 2
    exact_D = m.pseudo_document_squared_cv(counts_DE, top_k=2)
    assert (np.abs(simulated_RD.mean(axis=0) - exact_D) < 4 * simulated_RD.std(axis=0) / np.sqrt(1500)).all()
    assert (load.coefficient_of_variation(counts_DE) ** 2 > exact_D).all()


def test_pseudo_documents_at_the_limits():
    whole = np.array([[6, 4, 2]])
    cv = load.coefficient_of_variation(whole[0])
    assert m.pseudo_document_squared_cv(whole, top_k=2)[0] == pytest.approx(cv**2)  # one document is the corpus
    with_empty = np.array([[6, 4, 2], [0, 0, 0]])
    np.testing.assert_array_equal(np.isnan(m.pseudo_document_squared_cv(with_empty, top_k=2)), [False, True])


def test_refusals():
    for expected in EXPECTED:
        with pytest.raises(ValueError, match=r"top_k is 9, expected 1 to 8 \(E\): pass K and E of the recording"):
            expected(np.array([3]), n_experts=8, top_k=9)
    with pytest.raises(ValueError, match=r"top_k is 0, expected 1 to 2"):
        m.pseudo_document_squared_cv(np.ones((2, 2), dtype=int), top_k=0)
    for call in (
        lambda: m.pseudo_document_squared_cv(np.array([[-1, 2]]), top_k=1),
        lambda: m.document_excess(np.array([[-1, 2]]), statistic=load.gini, expected=m.expected_gini, top_k=1),
    ):
        with pytest.raises(ValueError, match=r"counts hold -1"):
            call()
    ids_TK, document_T = np.array([[0, 1]]), np.array([3])
    with pytest.raises(ValueError, match=r"document_T spans 3 to 3, expected 0 to 1"):
        balance.pseudo_document_counts(ids_TK, document_T, n_documents=2, n_experts=2, seed=0)
    with pytest.raises(ValueError, match=r"ids_TK spans 0 to 1, expected 0 to 0"):
        balance.pseudo_document_counts(ids_TK, document_T, n_documents=4, n_experts=1, seed=0)
