import numpy as np
import pytest

from tests.metrics import simulation
from workbench.metrics import balance as m
from workbench.metrics import load
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval

TWO_DOMAINS = Clusters.of(np.repeat(["a", "b"], 10))


def interval(value: list[float]) -> Interval:
    v = np.array(value)
    return Interval(value=v, low=v - 1, high=v + 1, plug_in=v, method="by hand", level=0.95, n_clusters=20)


# ---- by hand, and against plain Python ----


def test_flips_of_one_domain_by_hand():
    """Eight like documents of one domain: only all signs alike reach the observed sum, 2 of 256."""
    counts_DE = np.tile([3, 1], (8, 1))
    test = m.balance_test(counts_DE, clusters=Clusters.of(np.zeros(8)), n_draws=4000)
    assert test.statistic == pytest.approx(load.imbalance(counts_DE))
    assert test.p == pytest.approx(2 / 256, abs=0.006)
    assert test.null_mean == pytest.approx(0, abs=0.02)


def slow_residuals(counts_DE, domain_D):
    """a_m (d − mean_m d) + mean d, one number at a time."""
    n, n_experts = counts_DE.shape
    d = [[counts_DE[u, e] - counts_DE[u].sum() / n_experts for e in range(n_experts)] for u in range(n)]
    out = np.zeros((n, n_experts))
    for u in range(n):
        mine = [v for v in range(n) if domain_D[v] == domain_D[u]]
        scale = ((1 - 1 / n) * len(mine) / (len(mine) - 1)) ** 0.5
        for e in range(n_experts):
            here, overall = sum(d[v][e] for v in mine) / len(mine), sum(d[v][e] for v in range(n)) / n
            out[u, e] = scale * (d[u][e] - here) + overall
    return out


def test_both_tests_equal_plain_python():
    rng = np.random.default_rng(0)
    counts_DE = rng.integers(0, 20, (20, 4)) + np.array([2, 0, 0, 0])
    domain_D = np.repeat([0, 1], 10)
    residual_DE = slow_residuals(counts_DE, domain_D)
    observed_E = np.abs((counts_DE - counts_DE.sum(1, keepdims=True) / 4).sum(axis=0))
    signs_BD = np.random.default_rng(7).integers(0, 2, size=(199, 20)) * 2 - 1
    larger, as_extreme_E = 0, np.zeros(4)
    order = np.argsort(-observed_E)
    for signs_D in signs_BD:
        drawn_E = np.abs(sum(sign * row for sign, row in zip(signs_D, residual_DE, strict=True)))
        larger += (drawn_E**2).sum() >= (observed_E**2).sum() * (1 - 1e-6)
        for rank, e in enumerate(order):
            as_extreme_E[e] += max(drawn_E[order[rank:]]) >= observed_E[e] * (1 - 1e-6)
    p_E = (1 + as_extreme_E) / 200
    p_E[order] = np.maximum.accumulate(p_E[order])
    clusters = Clusters.of(domain_D)
    assert m.balance_test(counts_DE, clusters=clusters, n_draws=199, seed=7).p == pytest.approx((1 + larger) / 200)
    experts = m.max_t_test(counts_DE, clusters=clusters, n_draws=199, seed=7)
    np.testing.assert_allclose(experts.p, p_E)
    np.testing.assert_allclose(experts.statistic, load.load(counts_DE.sum(0)) * 4 - 1)


def test_the_variance_of_flips_is_that_of_the_sum():
    """Σ|r|² estimates the variance of Σ d without bias, however the domains lean."""
    sample = simulation.draw("domains", n_sets=3000, per_domain=8)
    deviation_SE = (sample.counts_DSE - sample.counts_DSE.sum(-1, keepdims=True) / simulation.E).sum(axis=0)
    squares_S = np.concatenate([squares for _, _, squares, _ in m._flipped(sample.counts_DSE, sample.clusters, 1, 0)])
    assert squares_S.mean() == pytest.approx((deviation_SE**2).sum(-1).mean(), rel=0.03)


# ---- invariances, axes ----


def test_layers_are_mapped_over_and_names_do_not_matter():
    counts_DLE = np.random.default_rng(1).integers(0, 20, (20, 3, 5))
    layers, experts = (f(counts_DLE, clusters=TWO_DOMAINS) for f in (m.balance_test, m.max_t_test))
    order = [3, 1, 4, 0, 2]
    for layer in range(3):
        renamed = counts_DLE[:, layer][:, order]
        assert m.balance_test(renamed, clusters=TWO_DOMAINS).p == pytest.approx(layers.p[layer])
        np.testing.assert_allclose(m.max_t_test(renamed, clusters=TWO_DOMAINS).p, experts.p[layer, order])


def test_a_family_of_all_layers_is_stricter():
    counts_DLE = np.random.default_rng(1).poisson(20, (20, 3, 5))
    counts_DLE[:, 0, 0] += 8
    by_layer, over_all = (m.max_t_test(counts_DLE, clusters=TWO_DOMAINS, family=f) for f in ("layer", "all"))
    assert (over_all.p >= by_layer.p).all()
    assert over_all.p.shape == (3, 5)
    assert over_all.p[0, 0] == pytest.approx(0.001)
    assert over_all.null_high.shape == (3, 5)


def test_the_expert_off_balance_is_found():
    counts_DE = np.random.default_rng(1).poisson(20, (20, 8))
    counts_DE[:, 3] += 15
    test = m.max_t_test(counts_DE, clusters=TWO_DOMAINS)
    assert test.p[3] == pytest.approx(0.001)
    assert test.statistic[3] > test.null_high[3]
    np.testing.assert_allclose(test.null_mean, test.null_mean[0])


def test_all_on_one_expert_and_exact_balance():
    one = np.zeros((20, 4), dtype=int)
    one[:, 2] = 9
    assert m.balance_test(one, clusters=TWO_DOMAINS).p == pytest.approx(0.001)
    even = m.balance_test(np.full((20, 4), 9), clusters=TWO_DOMAINS)
    assert even.p == 1
    assert even.statistic == pytest.approx(0, abs=1e-12)


def test_nothing_counted_is_nan():
    for f in (m.balance_test, m.max_t_test):
        assert np.isnan(f(np.zeros((20, 4), dtype=int), clusters=TWO_DOMAINS).p).all()


def test_a_layer_without_assignments_leaves_the_family_alone():
    counts_DLE = np.random.default_rng(1).poisson(20, (20, 2, 5))
    counts_DLE[:, 1] = 0
    p = m.max_t_test(counts_DLE, clusters=TWO_DOMAINS, family="all").p
    np.testing.assert_allclose(p[0], m.max_t_test(counts_DLE[:, 0], clusters=TWO_DOMAINS).p)
    assert np.isnan(p[1]).all()


def test_too_few_clusters_give_no_test():
    clusters = Clusters.of(np.array(["a"] * 4 + ["b"] * 3))
    for f in (m.balance_test, m.max_t_test):
        test = f(np.ones((7, 4), dtype=int), clusters=clusters)
        assert np.isnan(test.p).all()
        assert test.note == "no test: fewer than 8 clusters in a domain (a has 4, b has 3)"


def test_a_domain_of_one_document_leaves_the_others_their_test():
    counts_DE = np.random.default_rng(0).poisson([30, 20, 20, 20], (21, 4))
    lonely, merged = Clusters.of(np.array([0] * 10 + [1] + [2] * 10)), Clusters.of(np.array([0] * 11 + [2] * 10))
    for f in (m.balance_test, m.max_t_test):
        test, expected = f(counts_DE, clusters=lonely), f(counts_DE, clusters=merged)
        np.testing.assert_array_equal(test.p, expected.p)
        assert np.isfinite(test.p).all() and np.isfinite(test.statistic).all() and "(1 has 1)" in test.note


# ---- size and power (docs/decisions/0005-balance-test.md) ----


@pytest.mark.parametrize(
    ("scenario", "n_domains", "per_domain"),
    [("mild", 5, 24), ("strong", 5, 8), ("shared", 5, 8), ("halves", 1, 24), ("domains", 5, 8)],
)
def test_size(scenario, n_domains, per_domain):
    """Balanced routing is rejected in about 5 % of data sets, whatever the documents prefer: 3 sd of 600 are 2.7 %."""
    sample = simulation.draw(scenario, n_sets=600, n_domains=n_domains, per_domain=per_domain, seed=2)
    balance = m.balance_test(sample.counts_DSE, clusters=sample.clusters, n_draws=199)
    assert 0.015 <= simulation.rejections(balance.p) <= 0.08
    assert abs(balance.null_mean.mean()) < 0.02 * balance.null_high.mean()
    experts = m.max_t_test(sample.counts_DSE, clusters=sample.clusters, n_draws=199)
    assert 0.01 <= simulation.rejections(experts.p.min(axis=-1)) <= 0.08


def test_relabelling_has_the_wrong_size():
    """Why it was not chosen: documents whose experts rise together are taken for imbalance."""
    sample = simulation.draw("shared", n_sets=200, per_domain=8, seed=2)
    assert simulation.rejections(simulation.relabelling_p(sample, n_sets=200, n_draws=99)) > 0.1


def test_power():
    sample = simulation.draw("skewed", n_sets=200, per_domain=8)
    test = m.balance_test(sample.counts_DSE, clusters=sample.clusters, n_draws=199)
    assert simulation.rejections(test.p) > 0.95


# ---- refusals ----


def test_refusals():
    counts_DE = np.ones((20, 4), dtype=int)
    for f in (m.balance_test, m.max_t_test):
        with pytest.raises(ValueError, match=r"n_draws is 0, expected 1 or more: 999 gives p to .001"):
            f(counts_DE, clusters=TWO_DOMAINS, n_draws=0)
        with pytest.raises(ValueError, match=r"counts hold -1"):
            f(-counts_DE, clusters=TWO_DOMAINS)
        with pytest.raises(ValueError, match=r"has 19 rows, but the clusters were made of 20"):
            f(counts_DE[:19], clusters=TWO_DOMAINS)
