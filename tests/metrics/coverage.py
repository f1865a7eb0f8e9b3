"""What is promised of every kind of interval and every scheme of permutations, and how often it holds.

    python -m tests.metrics.coverage [--sets 2000]

prints the tables of docs/coverage.md. Data sets are clustered: documents have lengths and tastes of their own
(`simulation`, `permutations`). The tests hold the same promises, with fewer data sets unless they are asked for.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from tests.metrics import permutations, simulation
from tests.metrics.simulation import LENGTHS, PAIRS, M, document_weights, pair_probability
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import domain_ratio_interval
from workbench.statistics.jackknife import bag_interval, deal

# what documents prefer, and how many are in a domain
AWAY, BALANCE, FEW = ("skewed", 24), ("mild", 24), ("skewed", 8)
LONELY, SMALL = ("skewed", (24, 24, 24, 24, 1)), ("skewed", (4, 4, 4, 4, 4))
Scenario = tuple[str, int | tuple[int, ...]]
WORDS: dict[Scenario, str] = {
    AWAY: "uneven load, 24 documents in each of 5 domains",
    BALANCE: "exact balance, 24 documents in each of 5 domains",
    FEW: "uneven load, 8 documents in each of 5 domains",
    LONELY: "uneven load, 24 documents in each of 4 domains and 1 in another",
    SMALL: "uneven load, 4 documents in each of 5 domains",
}


@dataclass(frozen=True)
class Promise:
    """Coverage of nominal 95 % that is promised of a statistic's interval.

    Attributes:
        kind: Of interval, as METRICS.md § 7 names it.
        statistic: As `simulation.coverage` names it.
        least: Share of data sets whose interval holds the truth, at least.
        most: And at most.
    """

    kind: str
    statistic: str
    least: float
    most: float


# Rate of a common, a middling and two rare experts, how alike documents are (Beta's a + b), and what is promised; the
# last is used by few documents at all, in bursts: Beta(.2, 9.8).
RATES = ((0.5, 10, 0.92), (0.125, 10, 0.92), (0.02, 40, 0.92), (0.02, 10, 0.89))
SDS = (0.0, 0.5, 1.0)  # of the documents' log lengths
RATIO, CORRECTED, JACKKNIFE = "smooth ratio: linearized, t", "bias-corrected bootstrap, t", "stratified jackknife"
BAND, BAGS, PLAIN = "max-t band", "bags of documents", "plain percentile (not used)"
PAIR = "P(expert 1 given 0)"
PROMISES: dict[Scenario, list[Promise]] = {
    AWAY: [
        Promise(RATIO, "load", 0.92, 0.96),
        Promise(RATIO, "domain load", 0.91, 0.96),
        Promise(CORRECTED, "coefficient_of_variation", 0.93, 1.0),
        Promise(CORRECTED, "gini", 0.93, 1.0),
        Promise(CORRECTED, "load_entropy", 0.93, 1.0),
        Promise(CORRECTED, "effective_experts", 0.93, 1.0),
        Promise(CORRECTED, "domain_information", 0.93, 1.0),
        Promise(JACKKNIFE, "imbalance", 0.91, 0.99),
        Promise(BAND, "max_violation", 0.95, 1.0),
        Promise(BAND, "min_violation", 0.95, 1.0),
        Promise(BAND, "dead_experts at .8", 0.95, 1.0),
        Promise(BAGS, PAIR, 0.92, 0.97),
        # not good enough, and why the others exist
        Promise(PLAIN, "percentile coefficient_of_variation", 0.0, 0.85),
        Promise(PLAIN, "percentile domain_information", 0.0, 0.05),
    ],
    BALANCE: [
        Promise(RATIO, "load", 0.92, 0.97),
        Promise(CORRECTED, "coefficient_of_variation", 0.95, 1.0),
        Promise(CORRECTED, "gini", 0.95, 1.0),
        Promise(CORRECTED, "load_entropy", 0.95, 1.0),
        Promise(CORRECTED, "domain_information", 0.95, 1.0),
        Promise(JACKKNIFE, "imbalance", 0.93, 1.0),
        Promise(BAND, "max_violation", 0.95, 1.0),
        Promise(BAND, "min_violation", 0.91, 1.0),
        # METRICS.md promises 93–100 %, which holds away from balance only
        Promise(PLAIN, "plain coefficient_of_variation", 0.0, 0.5),
        Promise(PLAIN, "plain gini", 0.0, 0.5),
    ],
    FEW: [Promise(BAGS, PAIR, 0.92, 0.97)],
    # domains with fewer than 8 clusters are drawn together
    LONELY: [
        Promise(RATIO, "load", 0.92, 0.97),
        Promise(CORRECTED, "gini", 0.92, 1.0),
        Promise(JACKKNIFE, "imbalance", 0.91, 0.99),
    ],
    SMALL: [
        Promise(RATIO, "load", 0.92, 0.97),
        Promise(CORRECTED, "gini", 0.92, 1.0),
        Promise(JACKKNIFE, "imbalance", 0.91, 0.99),
    ],
}


def slack(share: float, n_sets: int) -> float:
    """Three standard deviations of a share counted over so many data sets; no less than if it were .02 from 0 or 1."""
    share = min(max(share, 0.02), 0.98)
    return 3 * float(np.sqrt(share * (1 - share) / n_sets))


@cache
def held(scenario: Scenario, n_sets: int) -> dict[str, float]:
    """Share of data sets whose interval holds the truth, by statistic."""
    name, per_domain = scenario
    wanted = {promise.statistic for promise in PROMISES[scenario]}
    found = {}
    if wanted - {PAIR}:
        shares = simulation.coverage(name, n_sets=n_sets, per_domain=per_domain)
        found = {statistic: float(each.mean()) for statistic, each in shares.items()}
    if PAIR in wanted:
        assert isinstance(per_domain, int)
        found[PAIR] = pair_of_experts(per_domain, n_sets)[0]
    return found


def pair_of_experts(per_domain: int, n_sets: int) -> tuple[float, float]:
    """Coverage of the bags' interval of P(expert 1 | expert 0), and the relative bias of its value."""
    rng = np.random.default_rng(per_domain)
    clusters = Clusters.of(np.repeat(np.arange(M), per_domain))
    bags = deal(clusters)
    together, chosen, expected = [], [], np.zeros(2)
    with_0 = (PAIRS == 0).any(axis=0)
    both = with_0 & (PAIRS == 1).any(axis=0)
    for m in range(M):
        weight_DSE = document_weights(rng, "skewed", (per_domain, n_sets), m)
        tokens_DS = rng.integers(LENGTHS[m, 0], LENGTHS[m, 1] + 1, size=(per_domain, n_sets))
        pair_DSP = pair_probability(weight_DSE)
        of_0_DS = rng.binomial(tokens_DS, pair_DSP[..., with_0].sum(-1))
        together.append(rng.binomial(of_0_DS, pair_DSP[..., both][..., 0] / pair_DSP[..., with_0].sum(-1)))
        chosen.append(of_0_DS)
        many = pair_probability(document_weights(rng, "skewed", (100_000,), m))
        expected += LENGTHS[m].mean() * np.array([many[:, both].sum(-1).mean(), many[:, with_0].sum(-1).mean()])
    counts_DS2 = np.stack([np.concatenate(together), np.concatenate(chosen)], axis=-1)
    counts_GS2 = np.zeros((bags.n_bags, n_sets, 2))
    np.add.at(counts_GS2, bags.bag_D, counts_DS2)
    found = bag_interval(lambda counts: counts[..., 0] / counts[..., 1], counts_GS2, bags=bags)
    truth = expected[0] / expected[1]
    return float(np.mean((found.low <= truth) & (truth <= found.high))), float(found.value.mean() / truth - 1)


@cache
def rate(value: float, alike: int, per_domain: int, sd: float, n_sets: int) -> tuple[float, float]:
    """Coverage and mean width of a domain's rate, where documents have log-normal lengths and tastes of their own."""
    rng = np.random.default_rng(per_domain)
    tokens_DS = np.maximum(np.round(100 * np.exp(rng.normal(0, sd, (per_domain, n_sets)))), 1).astype(np.int64)
    chosen_DS = rng.binomial(tokens_DS, rng.beta(alike * value, alike * (1 - value), tokens_DS.shape))
    clusters = Clusters.of(np.zeros(per_domain, dtype=np.int64))
    found = domain_ratio_interval(chosen_DS, tokens_DS, clusters=clusters, share=True)
    held = (found.low <= value) & (value <= found.high)
    return float(held.mean()), float((found.high - found.low).mean())


@cache
def p_values(scheme: str, n_sets: int) -> np.ndarray:
    """Of data sets in which the null of the scheme is true."""
    return permutations.SCHEMES[scheme](n_sets, 1)


def farthest(p_S: np.ndarray) -> float:
    """Largest distance of the p values' distribution from the uniform one, at the values that p can have."""
    value, n = np.unique(p_S, return_counts=True)
    return float(np.abs(np.cumsum(n) / len(p_S) - value).max())


def main() -> None:
    """Prints both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000)
    n_sets = parser.parse_args().sets
    print("| design | interval | statistic | promised | holds the truth in |\n| --- | --- | --- | --- | --- |")
    for scenario, promises in PROMISES.items():
        for promise in promises:
            share = held(scenario, n_sets)[promise.statistic]
            print(
                f"| {WORDS[scenario]} | {promise.kind} | {promise.statistic.replace('_', ' ')} | "
                f"{promise.least:.0%}–{promise.most:.0%} | {share:.1%} |".replace("%", " %"),
                flush=True,
            )
    print("\n| rate | documents alike | documents | sd of log lengths | promised | holds the truth in | mean width |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (value, alike, least), per_domain, sd in product(RATES, (8, 24), SDS):
        share, width = rate(value, alike, per_domain, sd, n_sets)
        promised = f"{least:.0%}–100 %".replace("%–", " %–")
        print(
            f"| {value} | {alike} | {per_domain} | {sd} | {promised} | {100 * share:.1f} % | {width:.3f} |", flush=True
        )
    print("\n| permuted | p ≤ .05 | p ≤ .25 | p ≤ .5 | mean p | farthest from uniform |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scheme in permutations.SCHEMES:
        p_S = p_values(scheme, n_sets)
        shares = " | ".join(f"{(p_S <= edge + 1e-9).mean():.3f}" for edge in (0.05, 0.25, 0.5))
        print(f"| {scheme} | {shares} | {p_S.mean():.3f} | {farthest(p_S):.3f} |", flush=True)


if __name__ == "__main__":
    main()
