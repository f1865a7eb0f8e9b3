"""Folds that keep clusters whole, and the intervals made of them."""

import numpy as np
import pytest

from workbench.metrics import heldout
from workbench.statistics import folds as m
from workbench.statistics.design import Clusters

CLUSTERS = Clusters.of(np.repeat(["a", "b"], 40))


def test_clusters_are_whole_and_domains_even_whatever_the_order():
    rng = np.random.default_rng(0)
    domain_D = np.repeat(["a", "b", "c"], [40, 17, 9])
    cluster_D = np.array([f"{domain}{i // 2}" for i, domain in enumerate(domain_D)])
    cluster_D[[0, 50]] = "both"  # one that spans domains
    fold_D = m.folds(cluster_D, domain_D)
    assert all(len(set(fold_D[cluster_D == cluster])) == 1 for cluster in set(cluster_D))
    for domain in "abc":
        names = sorted({cluster for cluster, its in zip(cluster_D, domain_D, strict=True) if its == domain} - {"both"})
        sizes = np.bincount([fold_D[cluster_D == name][0] for name in names], minlength=8)
        assert sizes.max() - sizes.min() <= 2
    order = rng.permutation(len(domain_D))
    np.testing.assert_array_equal(m.folds(cluster_D[order], domain_D[order]), fold_D[order])
    assert (m.folds(cluster_D, domain_D, seed=1) != fold_D).any()
    assert set(m.folds(np.arange(3), np.zeros(3), n_folds=2).tolist()) == {0, 1}


def test_intervals_by_hand():
    gain_F, n_F = np.array([1.0, 3.0] * 4), np.full(8, 2.0)
    interval = m.fold_ratio_interval(gain_F, n_F, clusters=CLUSTERS)
    # mean 1, deviations ± 1/2 of 8: variance of the mean (8/7)(1/4)/8 = 1/28, t with 7 degrees
    assert interval.value == 1
    assert interval.high - 1 == pytest.approx(2.364624 / np.sqrt(28), rel=1e-5)
    without_F = (gain_F.sum() - gain_F) / 14
    jackknife = m.fold_jackknife_interval(np.array(1.0), without_F, clusters=CLUSTERS)
    assert jackknife.high == pytest.approx(float(interval.high))  # of a mean they are the same
    assert jackknife.n_clusters == 80


def test_too_few_clusters_give_no_interval():
    few = Clusters.of(np.array(["a"] * 4 + ["b"] * 3))
    for interval in (
        m.fold_ratio_interval(np.ones(8), np.ones(8), clusters=few),
        m.fold_jackknife_interval(np.array(1.0), np.ones(8), clusters=few),
    ):
        assert np.isnan(interval.low) and np.isnan(interval.high) and interval.value == 1
        assert interval.note == "no interval: fewer than 8 clusters in a domain (a has 4, b has 3)"


def test_the_interval_of_held_out_gains_covers():
    """Documents with tastes: of 1,500 corpora of 48 documents 91 %; 3 sd of 150 are 7 %."""
    rng = np.random.default_rng(0)
    set_VE = rng.gamma(0.3, size=(12, 6))

    def draw():
        document_T = np.repeat(np.arange(48), 20)
        token_T = rng.zipf(1.5, 960) % 12
        weight_TE = set_VE[token_T] + rng.gamma(0.3, size=(48, 6))[document_T]
        expert_T = (np.log(weight_TE) + rng.gumbel(size=weight_TE.shape)).argmax(axis=1)
        counts = np.zeros((8, 12, 6), dtype=int)
        np.add.at(counts, (document_T % 8, token_T, expert_T), 1)
        return heldout.token_predictability(counts, np.zeros((8, 6)), top_k=1)

    truth = np.mean([draw().gain for _ in range(400)])
    held = []
    for _ in range(150):
        found = draw()
        interval = m.fold_ratio_interval(found.gain_F, found.assignments_F, clusters=Clusters.of(np.zeros(48)))
        held.append(interval.low <= truth <= interval.high)
    assert 0.84 <= np.mean(held) <= 0.98


def test_refusals():
    with pytest.raises(ValueError, match=r"n_folds is 1, expected 2 or more: what is held out needs something"):
        m.folds(np.arange(3), np.zeros(3), n_folds=1)
    with pytest.raises(ValueError, match=r"level is 2.0, expected between 0 and 1"):
        m.fold_ratio_interval(np.ones(8), np.ones(8), clusters=CLUSTERS, level=2.0)
    with pytest.raises(ValueError, match=r"level is 2.0, expected between 0 and 1"):
        m.fold_jackknife_interval(np.array(1.0), np.ones(8), clusters=CLUSTERS, level=2.0)
