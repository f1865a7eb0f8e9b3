import numpy as np
import pytest

from workbench.metrics import load
from workbench.statistics import extremes as m
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, cluster_bootstrap

BAND = Interval(
    value=np.array([[0.4, 0.3, 0.2, 0.1]]),
    low=np.array([[0.30, 0.25, 0.10, 0.00]]),
    high=np.array([[0.50, 0.60, 0.30, 0.20]]),
    plug_in=np.array([[0.4, 0.3, 0.2, 0.1]]),
    method="by hand",
    level=0.95,
    n_clusters=9,
    note="a note",
)


def test_extremes_by_hand():
    most = m.max_violation_interval(BAND)
    assert (most.value[0], most.low[0], most.high[0]) == pytest.approx((0.6, 0.2, 1.4))
    least = m.min_violation_interval(BAND)
    assert (least.value[0], least.low[0], least.high[0]) == pytest.approx((0.6, 0.2, 1.0))
    dead = m.dead_experts_interval(BAND)
    assert (dead.value[0], dead.low[0], dead.high[0]) == (0, 0, 1)
    dead = m.dead_experts_interval(BAND, threshold=0.8)  # a load of .2
    assert (dead.value[0], dead.low[0], dead.high[0]) == (2, 1, 2)
    assert most.method == "by hand, conservative"
    assert most.note == "a note"


def band(counts_DxE: np.ndarray, **options) -> Interval:
    clusters = Clusters.of(np.repeat([0, 1], len(counts_DxE) // 2))
    return m.max_t_band(cluster_bootstrap(counts_DxE, clusters=clusters).corpus, **options)


def test_a_band_is_wider_than_single_intervals_and_maps_over_layers():
    counts_DLE = np.random.default_rng(0).poisson(20, (20, 3, 6))
    found = band(counts_DLE)
    assert found.value.shape == (3, 6)
    assert ((found.low <= found.value) & (found.value <= found.high)).all()
    alone = band(counts_DLE[:, 1])
    np.testing.assert_allclose(found.low[1], alone.low, rtol=1e-4)
    for interval, statistic in (
        (m.max_violation_interval(found), load.max_violation),
        (m.min_violation_interval(found), load.min_violation),
        (m.dead_experts_interval(found, threshold=1.0), lambda c: load.dead_experts(c, threshold=1.0)),
    ):
        np.testing.assert_allclose(interval.value, statistic(counts_DLE.sum(0)))
        assert ((interval.low <= interval.value) & (interval.value <= interval.high)).all()


def test_experts_never_chosen_have_no_width():
    counts_DE = np.random.default_rng(0).poisson([20, 20, 0], (20, 3))
    found = band(counts_DE)
    assert found.low[2] == found.high[2] == 0
    dead = m.dead_experts_interval(found)
    assert (dead.value, dead.low, dead.high) == (1, 1, 1)


def test_nothing_counted_is_nan():
    found = band(np.zeros((20, 4), dtype=int))
    for interval in (
        found,
        m.max_violation_interval(found),
        m.min_violation_interval(found),
        m.dead_experts_interval(found),
    ):
        for end in (interval.value, interval.low, interval.high):
            assert np.isnan(end).all()


def test_too_few_clusters_give_no_band():
    found = band(np.full((6, 4), 3))
    assert "fewer than 8 clusters" in found.note
    dead = m.dead_experts_interval(found)
    assert np.isnan(dead.low)
    assert dead.value == 0


def test_a_bad_level_is_refused():
    with pytest.raises(ValueError, match=r"level is 0.0, expected between 0 and 1"):
        band(np.full((20, 4), 3), level=0.0)
