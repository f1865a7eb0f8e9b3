"""Bags of documents: dealt evenly within domains, and intervals that cover."""

import numpy as np
import pytest

from tests.metrics.coverage import pair_of_experts
from tests.metrics.simulation import E
from workbench.metrics import structure
from workbench.statistics.design import Clusters
from workbench.statistics.jackknife import MOST_BAGS, bag_interval, deal


@pytest.mark.parametrize("per_domain", [8, 24, 100])
def test_bags_hold_every_domain_alike(per_domain):
    clusters = Clusters.of(np.tile(np.arange(5), per_domain))
    bags = deal(clusters)
    assert bags.n_bags == min(per_domain, MOST_BAGS) and not bags.note
    held = np.zeros((bags.n_bags, 5), dtype=int)
    np.add.at(held, (bags.bag_D, clusters.domain_D), 1)
    assert held.max() - held.min() <= 1
    assert (deal(clusters, seed=1).bag_D != bags.bag_D).any()


def test_documents_of_a_cluster_stay_together():
    cluster_D = np.repeat(np.arange(20), 3)
    bags = deal(Clusters.of(np.zeros(60, dtype=int), cluster_D=cluster_D))
    assert all(len(set(bags.bag_D[cluster_D == u])) == 1 for u in range(20))


def test_few_documents_give_no_interval():
    bags = deal(Clusters.of(np.zeros(3, dtype=int)))
    assert bags.n_bags == 8 and "fewer than 8 clusters" in bags.note
    counts_GE = np.zeros((8, 2))
    counts_GE[bags.bag_D] = [[1, 2]]
    found = bag_interval(lambda counts: counts[..., 0] / counts[..., 1], counts_GE, bags=bags)
    assert found.value == 0.5 and np.isnan(found.low) and found.note == bags.note


def test_a_ratio_has_the_interval_of_the_plain_jackknife():
    rng = np.random.default_rng(0)
    counts_GE = rng.integers(5, 30, size=(20, 2)).astype(float)
    bags = deal(Clusters.of(np.zeros(20, dtype=int)))
    found = bag_interval(lambda counts: counts[..., 0] / counts[..., 1], counts_GE, bags=bags)
    left = np.array([np.delete(counts_GE, g, axis=0).sum(axis=0) for g in range(20)])
    theta = left[:, 0] / left[:, 1]
    value = 20 * counts_GE[:, 0].sum() / counts_GE[:, 1].sum() - 19 * theta.mean()
    assert found.value == pytest.approx(value)
    spread = np.sqrt(19 / 20 * ((theta - theta.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 == pytest.approx(2.093 * spread, rel=1e-3)  # t of 19 degrees


@pytest.mark.parametrize("per_domain", [24, 8])
@pytest.mark.rest
def test_the_value_of_a_pair_has_no_bias(per_domain):
    _, bias = pair_of_experts(per_domain, 2000)
    assert abs(bias) < 0.02


def test_the_jackknife_takes_noise_out_of_information():
    """Independent layers, 24 documents: the information of the sample is noise, the corrected value is near 0."""
    rng = np.random.default_rng(1)
    flow_GEE = np.stack(
        [structure.flow_counts(*(rng.integers(0, E, (60, 1)) for _ in range(2)), n_experts=E) for _ in range(24)]
    )
    bags = deal(Clusters.of(np.zeros(24, dtype=int)))
    found = bag_interval(lambda flow: structure.flow_information(flow, top_k=1), flow_GEE, bags=bags)
    assert abs(float(found.value)) < 0.5 * float(found.plug_in)


def test_wrong_input_is_refused():
    bags = deal(Clusters.of(np.zeros(9, dtype=int)))
    with pytest.raises(ValueError, match="counts_Gx has 3 rows, expected 9: one for each bag"):
        bag_interval(lambda counts: counts, np.ones((3, 1)), bags=bags)
    with pytest.raises(ValueError, match="most is 2, expected 8 or more bags"):
        deal(Clusters.of(np.zeros(9, dtype=int)), most=2)
    with pytest.raises(ValueError, match="level is 2"):
        bag_interval(lambda counts: counts, np.ones((9, 1)), bags=bags, level=2.0)
