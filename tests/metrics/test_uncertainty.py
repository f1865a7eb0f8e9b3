import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.metrics import load, specialization
from workbench.metrics.balance import jackknife_interval
from workbench.statistics import intervals as m
from workbench.statistics.design import Clusters

TWO_DOMAINS = Clusters.of(np.repeat(["a", "b"], 10))


def counts(seed: int = 0, shape: tuple[int, ...] = (20, 3, 6)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 30, shape) + np.arange(shape[-1])


# ---- ratios ----


def slow_ratio(a_D, b_D, domain_D, level=0.95):
    """Ratio and interval by the definition, documents independent: the variance's quadratic form as a matrix."""
    total = float(sum(b_D))
    theta = float(sum(a_D)) / total
    variance, traces, squares = 0.0, 0.0, 0.0
    for label in dict.fromkeys(np.asarray(domain_D).tolist()):
        rows = [d for d in range(len(a_D)) if domain_D[d] == label]
        u = [(a_D[d] - theta * b_D[d]) / total for d in rows]
        v = [b_D[d] / sum(b_D[e] for e in rows) for d in rows]
        mean = sum(u) / len(u)
        variance += sum((x - mean) ** 2 / (1 - y) for x, y in zip(u, v, strict=True))
        residual = np.eye(len(rows)) - np.outer(np.ones(len(rows)), v)
        form = np.diag([b_D[d] / total / np.sqrt(1 - y) for d, y in zip(rows, v, strict=True)]) @ residual
        traces += np.trace(form @ form.T)
        squares += ((form @ form.T) ** 2).sum()
    reach = stats.t.ppf((1 + level) / 2, traces**2 / squares) * np.sqrt(variance)
    return theta, theta - reach, theta + reach


def test_ratio_by_hand():
    # ten documents of one token; expert 0 takes 7: the plain binomial, n/(n − 1) larger
    counts_DE = np.array([[1, 0]] * 7 + [[0, 1]] * 3)
    interval = m.ratio_interval(counts_DE, counts_DE.sum(-1, keepdims=True), clusters=Clusters.of(np.zeros(10)))
    reach = stats.t.ppf(0.975, 9) * np.sqrt(0.7 * 0.3 / 9)
    np.testing.assert_allclose(interval.value, [0.7, 0.3])
    np.testing.assert_allclose(interval.low, [0.7 - reach, 0.3 - reach])
    np.testing.assert_allclose(interval.high, [0.7 + reach, 0.3 + reach])
    assert interval.method == "linearized ratio, t"
    assert (interval.n_clusters, interval.note) == (10, "")


@given(seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_ratios_equal_plain_python(seed):
    rng = np.random.default_rng(seed)
    counts_DLE = counts(seed)
    total_DL1 = counts_DLE.sum(-1, keepdims=True)
    order = rng.permutation(20)
    domain_D = np.repeat(["a", "b"], 10)[order]
    clusters = Clusters.of(domain_D)
    interval = m.ratio_interval(counts_DLE, total_DL1, clusters=clusters, level=0.9)
    by_domain = m.domain_ratio_interval(counts_DLE, total_DL1, clusters=clusters, level=0.9)
    found = interval.value[1, 2], interval.low[1, 2], interval.high[1, 2]
    assert found == pytest.approx(slow_ratio(counts_DLE[:, 1, 2], total_DL1[:, 1, 0], domain_D, 0.9))
    for label in "ab":
        i = clusters.domains.index(label)
        found = by_domain.value[i, 1, 2], by_domain.low[i, 1, 2], by_domain.high[i, 1, 2]
        mine = domain_D == label
        assert found == pytest.approx(slow_ratio(counts_DLE[mine, 1, 2], total_DL1[mine, 1, 0], domain_D[mine], 0.9))


def test_ratio_by_domain_where_clusters_span_domains():
    """Nine articles in two languages each: a cluster without documents of a domain is a zero of its stratum."""
    domain_D = np.array(["en"] * 9 + ["zh"] * 8 + ["de"])
    cluster_D = np.concatenate([np.arange(9), np.arange(9)])
    clusters = Clusters.of(domain_D, cluster_D=cluster_D)
    counts_DE = counts(4, (18, 3))
    interval = m.domain_ratio_interval(counts_DE, counts_DE.sum(-1, keepdims=True), clusters=clusters)
    found = interval.value[1, 0], interval.low[1, 0], interval.high[1, 0]
    assert found == pytest.approx(slow_ratio(counts_DE[9:17, 0], counts_DE[9:17].sum(-1), np.zeros(8)))


def test_documents_of_one_length_have_their_plain_degrees_of_freedom():
    """CR2 is then n/(n − 1), and the degrees are U − M: nothing is wider than it was."""
    value_D = np.random.default_rng(0).normal(size=20)
    found = m.ratio_interval(value_D, np.ones(20), clusters=TWO_DOMAINS)
    deviation = np.sqrt(sum(value_D[half].var(ddof=1) / 40 for half in (slice(0, 10), slice(10, 20))))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 18) * deviation)


def test_ends_of_a_share_stay_within_and_say_something_of_none():
    one = Clusters.of(np.zeros(10, dtype=int))
    none, every = (m.ratio_interval(np.full(10, n), np.full(10, 9), clusters=one, share=True) for n in (0, 9))
    assert none.low == 0 and none.high == pytest.approx(1 - 0.025**0.1)  # (1 − p)^10 = .025
    assert every.high == 1 and every.low == pytest.approx(0.025**0.1)
    counts_DE, rare = counts(0, (10, 5)), np.zeros((10, 1), dtype=int)
    rare[3] = 7
    numerator_DE = np.concatenate([counts_DE, rare], axis=1)
    found = m.ratio_interval(numerator_DE, numerator_DE.sum(-1, keepdims=True), clusters=one, share=True)
    assert (found.low > 0).all() and (found.low < found.value).all() and (found.value < found.high).all()
    assert (found.high < 1).all() and found.method == "linearized ratio, log-odds, t"


def test_a_document_that_holds_all_has_no_interval():
    alone_D = np.where(np.arange(10) == 4, 7, 0)
    for share in (False, True):
        found = m.ratio_interval(alone_D // 2, alone_D, clusters=Clusters.of(np.zeros(10, dtype=int)), share=share)
        assert found.value == pytest.approx(3 / 7) and np.isnan(found.low) and np.isnan(found.high)


def test_ratio_of_scalars_and_of_blocks(monkeypatch):
    loss_D = np.random.default_rng(0).normal(size=20)
    interval = m.ratio_interval(loss_D, np.ones(20), clusters=TWO_DOMAINS)
    assert interval.value == pytest.approx(loss_D.mean())
    assert interval.value.shape == ()
    counts_DLE = counts()
    total_DL1 = counts_DLE.sum(-1, keepdims=True)
    whole = [f(counts_DLE, total_DL1, clusters=TWO_DOMAINS) for f in (m.ratio_interval, m.domain_ratio_interval)]
    shared = m.ratio_interval(counts_DLE, total_DL1[:, :1], clusters=TWO_DOMAINS)
    monkeypatch.setattr(m, "BLOCK", 20 * 6)
    for before, f in zip(whole, (m.ratio_interval, m.domain_ratio_interval), strict=True):
        after = f(counts_DLE, total_DL1, clusters=TWO_DOMAINS)
        np.testing.assert_allclose(after.low, before.low)
    np.testing.assert_allclose(m.ratio_interval(counts_DLE, total_DL1[:, :1], clusters=TWO_DOMAINS).low, shared.low)


def test_ratio_over_nothing_is_nan():
    interval = m.ratio_interval(np.ones((20, 2)), np.zeros((20, 1)), clusters=TWO_DOMAINS)
    assert np.isnan(interval.value).all()


# ---- resamples ----


def test_resamples_keep_the_domains_sizes_on_average_and_the_variance():
    counts_DE = counts(0, (20, 6))
    bootstrap = m.cluster_bootstrap(counts_DE, clusters=TWO_DOMAINS, n_resamples=20_000)
    np.testing.assert_array_equal(bootstrap.domains.observed, [counts_DE[:10].sum(0), counts_DE[10:].sum(0)])
    np.testing.assert_array_equal(bootstrap.corpus.observed, counts_DE.sum(0))
    assert bootstrap.domains.drawn.shape == (2, 20_000, 6)
    np.testing.assert_allclose(bootstrap.corpus.drawn.mean(axis=0), counts_DE.sum(0), rtol=0.01)
    expected = 10 * counts_DE[:10].var(axis=0, ddof=1) + 10 * counts_DE[10:].var(axis=0, ddof=1)
    np.testing.assert_allclose(bootstrap.corpus.drawn.var(axis=0), expected, rtol=0.05)


def test_resamples_move_clusters_whole_across_domains():
    domain_D = np.tile(["en", "zh"], 10)
    clusters = Clusters.of(domain_D, cluster_D=np.repeat(np.arange(10), 2))
    counts_DE = np.repeat(np.random.default_rng(0).integers(1, 50, (10, 3)), 2, axis=0)  # a translation counts the same
    drawn_MBE = m.cluster_bootstrap(counts_DE, clusters=clusters).domains.drawn
    np.testing.assert_allclose(drawn_MBE[0], drawn_MBE[1])


def test_a_cluster_alone_stays():
    clusters = Clusters.of(np.array([0] * 9 + [1]))
    drawn_MBE = m.cluster_bootstrap(counts(0, (10, 4)), clusters=clusters).domains.drawn
    assert (drawn_MBE[1] == drawn_MBE[1, 0]).all()


def test_the_seed_decides():
    first, again, other = (
        m.cluster_bootstrap(counts(), clusters=TWO_DOMAINS, n_resamples=5, seed=seed).corpus.drawn for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# ---- bias-corrected ----


@pytest.mark.parametrize("scale", ["plain", "square"])
def test_bias_corrected_equals_plain_python(scale):
    bootstrap = m.cluster_bootstrap(counts(), clusters=TWO_DOMAINS, n_resamples=50)
    interval = m.bias_corrected_interval(load.gini, bootstrap.corpus, scale=scale, level=0.9)
    power = {"plain": 1, "square": 2}[scale]
    for layer in range(3):
        plug_in = float(load.gini(bootstrap.corpus.observed[layer]))
        drawn = [float(load.gini(bootstrap.corpus.drawn[b, layer])) ** power for b in range(50)]
        mean = sum(drawn) / 50
        deviation = (sum((x - mean) ** 2 for x in drawn) / 49) ** 0.5
        value = 2 * plug_in**power - mean
        reach = stats.t.ppf(0.95, 18) * deviation
        expected = [max(x, 0) ** (1 / power) if power == 2 else x for x in (value, value - reach, value + reach)]
        found = interval.value[layer], interval.low[layer], interval.high[layer]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert interval.plug_in[layer] == pytest.approx(plug_in)


def test_bias_corrected_information_by_domain():
    counts_DE = np.concatenate([counts(1, (10, 4)), counts(2, (10, 4))[:, ::-1]])
    bootstrap = m.cluster_bootstrap(counts_DE, clusters=TWO_DOMAINS)
    interval = m.bias_corrected_interval(specialization.domain_information, bootstrap.domains)
    assert interval.value.shape == ()
    assert interval.low < interval.value < interval.plug_in


def test_two_recordings_of_the_same_documents_stay_paired():
    rng = np.random.default_rng(0)
    first = counts(0, (20, 6))
    second = first + rng.integers(0, 3, (20, 6))
    pair_D2E = np.stack([first, second], axis=1)
    drawn = m.cluster_bootstrap(pair_D2E, clusters=TWO_DOMAINS).corpus
    difference = m.bias_corrected_interval(lambda c: load.gini(c[..., 1, :]) - load.gini(c[..., 0, :]), drawn)
    alone = m.bias_corrected_interval(load.gini, drawn)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low).min()


# ---- jackknife ----


def slow_jackknife(counts_DE, domain_D):
    """Leave one out, and let the rest of its domain stand for it: by the sums over pairs."""
    thetas = []
    for left in range(len(counts_DE)):
        keep = np.arange(len(counts_DE)) != left
        n_D = np.array([(domain_D == d).sum() for d in domain_D[keep]])
        m_D = np.array([(domain_D[keep] == d).sum() for d in domain_D[keep]])
        c, s = counts_DE[keep], n_D / m_D  # each kept document stands for s
        top = bottom = 0.0
        for i in range(len(c)):
            for j in range(len(c)):
                if i != j:
                    same = domain_D[keep][i] == domain_D[keep][j]
                    pair = s[i] * s[j] * (m_D[i] / (m_D[i] - 1) if same else 1)
                    top += pair * float(c[i] @ c[j])
                    bottom += pair * float(c[i].sum() * c[j].sum())
        thetas.append(counts_DE.shape[1] * top / bottom - 1)
    thetas = np.array(thetas)
    variance = 0.0
    for d in set(domain_D.tolist()):
        of_d = thetas[domain_D == d]
        variance += (len(of_d) - 1) / len(of_d) * ((of_d - of_d.mean()) ** 2).sum()
    return variance**0.5


@pytest.mark.parametrize("sizes", [(9,), (8, 11)])
def test_jackknife_equals_leaving_out(sizes):
    domain_D = np.repeat(np.arange(len(sizes)), sizes)
    counts_DE = counts(5, (sum(sizes), 4))
    interval = jackknife_interval(counts_DE, clusters=Clusters.of(domain_D))
    reach = stats.t.ppf(0.975, sum(sizes) - len(sizes)) * slow_jackknife(counts_DE, domain_D)
    assert interval.high - interval.value == pytest.approx(reach)
    assert interval.value == pytest.approx(load.imbalance(counts_DE, clusters=Clusters.of(domain_D)))


def test_jackknife_of_one_domain_is_the_plain_one():
    counts_DE = counts(6, (9, 4))
    thetas = np.array([load.imbalance(np.delete(counts_DE, d, axis=0)) for d in range(9)])
    interval = jackknife_interval(counts_DE, clusters=Clusters.of(np.zeros(9)))
    reach = stats.t.ppf(0.975, 8) * np.sqrt(8 / 9 * ((thetas - thetas.mean()) ** 2).sum())
    assert interval.high - interval.value == pytest.approx(reach)


def test_jackknife_maps_over_layers():
    counts_DLE = counts()
    layers = jackknife_interval(counts_DLE, clusters=TWO_DOMAINS)
    alone = jackknife_interval(counts_DLE[:, 1], clusters=TWO_DOMAINS)
    assert layers.low[1] == pytest.approx(alone.low)


# ---- too few, refusals ----


def test_too_few_clusters_give_no_interval_and_say_so():
    clusters = Clusters.of(np.array(["code"] * 3 + ["math"] * 4))
    counts_DE = counts(0, (7, 5))
    total_D1 = counts_DE.sum(-1, keepdims=True)
    bootstrap = m.cluster_bootstrap(counts_DE, clusters=clusters)
    for interval in (
        m.ratio_interval(counts_DE, total_D1, clusters=clusters),
        m.bias_corrected_interval(load.gini, bootstrap.corpus),
        m.bias_corrected_interval(load.gini, bootstrap.corpus, scale="square"),
        jackknife_interval(counts_DE, clusters=clusters),
    ):
        assert np.isnan(interval.low).all()
        assert np.isnan(interval.high).all()
        assert np.isfinite(interval.value).all()
        assert interval.note == "no interval: fewer than 8 clusters in a domain (code has 3, math has 4)"


@pytest.mark.parametrize("alone", [1, 4])
def test_a_domain_with_few_clusters_is_drawn_with_another_and_named(alone):
    """Of the whole the interval is that of the documents with one domain less; the small domain has none."""
    domain_D = np.array(["code"] * 10 + ["math"] * alone + ["law"] * 12)
    clusters, merged = Clusters.of(domain_D), Clusters.of(np.where(domain_D == "math", "code", domain_D))
    counts_DE = counts(0, (len(domain_D), 5))
    total_D1 = counts_DE.sum(-1, keepdims=True)

    def intervals(clusters: Clusters) -> list[m.Interval]:
        bootstrap = m.cluster_bootstrap(counts_DE, clusters=clusters)
        return [
            m.ratio_interval(counts_DE, total_D1, clusters=clusters),
            m.bias_corrected_interval(load.gini, bootstrap.corpus),
            jackknife_interval(counts_DE, clusters=clusters),
        ]

    for found, expected in zip(intervals(clusters), intervals(merged), strict=True):
        np.testing.assert_allclose(found.high - found.low, expected.high - expected.low)
        assert np.isfinite(found.value).all() and f"(math has {alone})" in found.note
    by_domain = m.domain_ratio_interval(counts_DE, total_D1, clusters=clusters)
    np.testing.assert_array_equal(np.isnan(by_domain.low).any(axis=1), [False, True, False])
    assert by_domain.note == f"no interval: fewer than 8 clusters in a domain (math has {alone})"
    resamples = m.cluster_bootstrap(counts_DE, clusters=clusters).domains
    information = m.bias_corrected_interval(specialization.domain_information, resamples)
    assert np.isfinite(information.value) and np.isnan(information.low)
    assert information.note == by_domain.note


def test_refusals():
    counts_DE = counts(0, (20, 5))
    ones_D1 = np.ones((20, 1))
    bootstrap = m.cluster_bootstrap(counts_DE, clusters=TWO_DOMAINS)
    for call in (
        lambda: m.ratio_interval(counts_DE, ones_D1, clusters=TWO_DOMAINS, level=1.0),
        lambda: m.domain_ratio_interval(counts_DE, ones_D1, clusters=TWO_DOMAINS, level=1.0),
        lambda: m.bias_corrected_interval(load.gini, bootstrap.corpus, level=1.0),
        lambda: jackknife_interval(counts_DE, clusters=TWO_DOMAINS, level=1.0),
    ):
        with pytest.raises(ValueError, match=r"level is 1.0, expected between 0 and 1: 0.95 is usual"):
            call()
    with pytest.raises(ValueError, match=r"n_resamples is 1, expected 2 or more: 400 gives"):
        m.cluster_bootstrap(counts_DE, clusters=TWO_DOMAINS, n_resamples=1)
    for call in (m.cluster_bootstrap, jackknife_interval):
        with pytest.raises(ValueError, match=r"counts hold -1"):
            call(np.full((20, 3), -1), clusters=TWO_DOMAINS)
        with pytest.raises(ValueError, match=r"has 19 rows, but the clusters were made of 20"):
            call(counts_DE[:19], clusters=TWO_DOMAINS)
    for call in (m.ratio_interval, m.domain_ratio_interval):
        with pytest.raises(ValueError, match=r"has 19 rows, but the clusters were made of 20"):
            call(counts_DE[:19], ones_D1[:19], clusters=TWO_DOMAINS)
