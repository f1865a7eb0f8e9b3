"""What METRICS.md § 7 promises of each interval, over 2,000 synthetic data sets: slack is 3 sd of a share, .015."""

import pytest

from tests.metrics import simulation

# 24 documents in each of 5 domains, loads from .038 to .093 (truth of the corpus: CV .22, information .022 nats)
AWAY = {
    "load": (0.92, 0.96),
    "domain load": (0.91, 0.96),
    "coefficient_of_variation": (0.93, 1.0),
    "gini": (0.93, 1.0),
    "load_entropy": (0.93, 1.0),
    "effective_experts": (0.93, 1.0),
    "domain_information": (0.93, 1.0),
    "imbalance": (0.91, 0.99),
    "max_violation": (0.95, 1.0),
    "min_violation": (0.95, 1.0),
    "dead_experts at .8": (0.95, 1.0),
    # not good enough, and why the others exist
    "percentile coefficient_of_variation": (0.0, 0.85),
    "percentile domain_information": (0.0, 0.05),
}
# exact balance, documents with mild preferences
BALANCE = {
    "load": (0.92, 0.97),
    "coefficient_of_variation": (0.95, 1.0),
    "gini": (0.95, 1.0),
    "load_entropy": (0.95, 1.0),
    "domain_information": (0.95, 1.0),
    "imbalance": (0.93, 1.0),
    "max_violation": (0.95, 1.0),
    "min_violation": (0.91, 1.0),
    # METRICS.md promises 93–100 %, which holds away from balance only
    "plain coefficient_of_variation": (0.0, 0.5),
    "plain gini": (0.0, 0.5),
}


@pytest.fixture(scope="module", params=["skewed", "mild"])
def scenario(request):
    n_sets = 2000 if request.param == "skewed" else 500
    held = simulation.coverage(request.param, n_sets=n_sets, per_domain=24)
    return {"skewed": AWAY, "mild": BALANCE}[request.param], held


def test_intervals_hold_the_truth_as_often_as_they_say(scenario):
    promised, held = scenario
    coverage = {name: float(held[name].mean()) for name in promised}
    missed = {
        name: round(coverage[name], 3)
        for name, (least, most) in promised.items()
        if not least - 0.015 <= coverage[name] <= most + 0.015
    }
    assert not missed, f"{missed}, promised {promised}"
