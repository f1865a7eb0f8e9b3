"""What METRICS.md § 7 promises of every kind of interval, and of every scheme of permutations.

The slow version counts over 2,000 synthetic data sets (`make test-slow`; its numbers are in docs/coverage.md), the
plain one over fewer, with more slack: three standard deviations of a share.
"""

import numpy as np
import pytest

from tests.metrics import coverage
from tests.metrics.permutations import SCHEMES

SETS = [400, pytest.param(2000, marks=pytest.mark.slow)]
OFTEN = coverage.AWAY  # a scenario is drawn once for all statistics; the others are of the rest
CASES = [
    pytest.param(
        scenario,
        promise,
        id=f"{scenario[0]}-{scenario[1]}-{promise.statistic}",
        marks=() if scenario == OFTEN else pytest.mark.rest,
    )
    for scenario, promises in coverage.PROMISES.items()
    for promise in promises
]


@pytest.mark.parametrize("n_sets", SETS)
@pytest.mark.parametrize(("scenario", "promise"), CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(scenario, promise, n_sets):
    share = coverage.held(scenario, n_sets)[promise.statistic]
    assert share >= promise.least - coverage.slack(promise.least, n_sets)
    assert share <= promise.most + coverage.slack(promise.most, n_sets)


@pytest.mark.parametrize("n_sets", SETS)
@pytest.mark.parametrize("sd", coverage.SDS)
@pytest.mark.parametrize("per_domain", [8, 24])
@pytest.mark.parametrize("kind", coverage.RATES)
def test_rates_of_a_domain_hold_the_truth_whatever_the_lengths(kind, per_domain, sd, n_sets):
    value, alike, least = kind
    share, _ = coverage.rate(value, alike, per_domain, sd, n_sets)
    assert share >= least - coverage.slack(least, n_sets)


def test_every_kind_of_interval_is_held_to_a_promise():
    kinds = {promise.kind for promises in coverage.PROMISES.values() for promise in promises}
    assert kinds == {
        coverage.RATIO, coverage.CORRECTED, coverage.JACKKNIFE, coverage.BAND, coverage.BAGS, coverage.PLAIN,
    }  # fmt: skip


@pytest.mark.parametrize("n_sets", SETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_p_values_are_uniform_where_the_null_is_true(scheme, n_sets):
    p_S = coverage.p_values(scheme, n_sets)
    assert len(p_S) == n_sets and (p_S > 0).all()
    rejected = np.mean(p_S <= 0.05 + 1e-9)
    assert abs(rejected - 0.05) <= coverage.slack(0.05, n_sets)
    # of one sample of n the distance is over 1.63 / sqrt(n) in 1 %; ties of a count may make p larger, never smaller
    assert coverage.farthest(p_S) <= 1.63 / np.sqrt(n_sets) + 0.02


def test_a_shuffle_over_all_documents_is_no_null():
    """Why schemes stay within documents: tokens shuffled over the corpus take a document's taste for an effect."""
    rng = np.random.default_rng(0)
    n_sets, found = 150, []
    for _ in range(n_sets):
        rate_D = rng.beta(0.5, 0.5, 12)
        one_T, two_T = ((rng.random((12, 20)) < rate_D[:, None]).ravel() for _ in range(2))
        drawn = [np.sum(one_T & rng.permutation(two_T)) for _ in range(39)]
        found.append((1 + np.sum(np.array(drawn) >= np.sum(one_T & two_T))) / 40)
    assert np.mean(np.array(found) <= 0.05) > 0.5
