"""Rounds of a timing: values by hand, limits, invariances, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from workbench.statistics.timing import halves, median_interval


def test_by_hand():
    """Of 6 rounds the extremes cover 1 − 2/64; of 8 the extremes 1 − 2/256, the second ones only 1 − 18/256."""
    found = median_interval(np.array([5.0, 1.0, 4.0, 2.0, 6.0, 3.0]))
    assert (float(found.value), float(found.low), float(found.high)) == (3.5, 1.0, 6.0)
    assert found.coverage == pytest.approx(1 - 2 / 64)
    eight = median_interval(np.arange(8.0))
    assert (float(eight.low), float(eight.high)) == (0.0, 7.0)
    assert (float(median_interval(np.arange(8.0), level=0.9).low), eight.coverage) == (1.0, 1 - 2 / 256)


def test_twelve_rounds_leave_two_out_on_each_side():
    found = median_interval(np.arange(12.0))
    assert (float(found.low), float(found.high)) == (2.0, 9.0)
    assert found.coverage == pytest.approx(1 - 2 * stats.binom.cdf(2, 12, 0.5))


def test_too_few_rounds_have_a_median_and_no_interval():
    found = median_interval(np.arange(5.0))
    assert float(found.value) == 2 and np.isnan(found.low) and np.isnan(found.high) and np.isnan(found.coverage)
    assert found.note == "5 rounds are too few for an interval; 6 give one."
    assert not np.isnan(median_interval(np.arange(6.0)).low)


def test_one_outlier_of_any_size_moves_no_end():
    values = np.random.default_rng(0).lognormal(size=12)
    values[values.argmax()] *= 1e6
    assert float(median_interval(values).high) == np.sort(values)[9]


def test_the_unit_and_the_order_of_rounds_do_not_matter():
    values_R2 = np.random.default_rng(1).lognormal(size=(11, 2))
    one, other = median_interval(values_R2), median_interval(values_R2[::-1] * 1e3)
    for end in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(one, end) * 1e3, getattr(other, end))
    inverted = median_interval(1 / values_R2)  # of times and of rates the same, as long as rounds are odd
    np.testing.assert_allclose(inverted.low, 1 / one.high)


def test_a_missing_value_gives_no_number_and_harms_no_other():
    values_R2 = np.stack([np.arange(8.0), np.arange(8.0)], axis=1)
    values_R2[3, 1] = np.nan
    found = median_interval(values_R2)
    assert not np.isnan(found.low[0]) and np.isnan([found.value[1], found.low[1], found.high[1]]).all()


@pytest.mark.parametrize("rounds", [6, 9, 12])
@pytest.mark.parametrize("shape", ["lognormal", "uniform", "cauchy"])
def test_it_covers_what_it_says_whatever_the_distribution(rounds, shape):
    rng = np.random.default_rng(rounds)
    drawn = {"lognormal": rng.lognormal, "uniform": rng.uniform, "cauchy": rng.standard_cauchy}[shape]
    truth = {"lognormal": 1.0, "uniform": 0.5, "cauchy": 0.0}[shape]
    found = median_interval(drawn(size=(rounds, 20_000)))
    covered = float(((found.low <= truth) & (truth <= found.high)).mean())
    assert covered == pytest.approx(found.coverage, abs=0.006)
    assert found.coverage >= 0.95


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="0 rounds were given, 1 or more"):
        median_interval(np.zeros(0))
    with pytest.raises(ValueError, match="level is 95"):
        median_interval(np.zeros(9), level=95.0)
    with pytest.raises(ValueError, match="1 rounds were given, 2 or more"):
        halves(np.zeros(1))


def test_halves_by_hand_and_the_middle_is_left_out():
    found = halves(np.array([1.0, 2.0, 99.0, 3.0, 6.0]))
    assert float(found.change) == pytest.approx(4.5 / 1.5 - 1)
    assert float(found.p) == pytest.approx(2 / 6)  # 2 of the 6 splits of four values are this extreme


def test_a_drift_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    steady_RN = rng.lognormal(sigma=0.1, size=(12, 4_000))
    assert float((halves(steady_RN).p <= 0.05).mean()) <= 0.055
    rising = rng.lognormal(sigma=0.01, size=12) * np.linspace(1, 2, 12)
    assert float(halves(rising).p) < 0.01 and float(halves(rising).change) > 0.3
    assert float(halves(rising * 1e3).p) == float(halves(rising).p)
