"""Two synthetic recordings of the same documents, whose difference is known, for the coverage of its interval.

`python -m tests.metrics.pairs` prints the figures of docs/decisions/0010-differences.md. Axes: as `simulation`.
"""

from collections.abc import Callable

import numpy as np

from tests.metrics.simulation import LENGTHS, MEMBERS_PE, E, K, M, pair_probability
from workbench.metrics import load, specialization
from workbench.statistics.design import Clusters
from workbench.statistics.jackknife import Bags, deal, left_out_interval

MOST_GROUPS = 16
ALPHA = 25.0  # how much documents of a domain are alike
SHARED = 0.7  # how much of a document's preferences both models have in common

Counts = np.ndarray
Statistic = Callable[[Counts, Clusters], np.ndarray]


def bases(scenario: str) -> np.ndarray:
    """Mean preference of each model for each expert by domain: [2, M, E]."""
    rng = np.random.default_rng(5)
    one_ME = rng.dirichlet(np.full(E, 4.0), size=M) * 0.5 + np.arange(4, 4 + E)[::-1] / 460
    if scenario == "same":
        return np.stack([one_ME, one_ME])
    if scenario == "balanced":
        return np.full((2, M, E), 1 / E)
    assert scenario in ("trained", "sharper")  # the other model is nearer to balance, and its domains are further apart
    return np.stack([one_ME, 0.5 / E + 0.5 * rng.dirichlet(np.full(E, 1.5), size=M)])


def weights(rng: np.random.Generator, scenario: str, domain: int, shape: tuple[int, ...]) -> np.ndarray:
    """What each document prefers in the two models, [2, *shape, E]: with the same noise in part."""
    common = rng.gamma(SHARED * ALPHA / E, size=(*shape, E))
    noise = common + rng.gamma((1 - SHARED) * ALPHA / E, size=(2, *shape, E)) + 1e-9
    if scenario == "sharper":
        noise[0] **= 0.2  # documents of the one hardly differ
    weight = bases(scenario)[:, domain].reshape(2, *[1] * len(shape), E) * noise
    return weight / weight.sum(axis=-1, keepdims=True)


def draw(scenario: str, *, n_sets: int, per_domain: int, seed: int) -> tuple[Counts, Clusters]:
    """Counts [D, 2, S, E] of both models for documents of the same lengths, independent given the preferences."""
    rng = np.random.default_rng(seed)
    parts = []
    for m in range(M):
        pair_2DSP = pair_probability(weights(rng, scenario, m, (per_domain, n_sets)))
        tokens_DS = rng.integers(LENGTHS[m, 0], LENGTHS[m, 1] + 1, size=(per_domain, n_sets))
        parts.append(np.moveaxis(rng.multinomial(tokens_DS, pair_2DSP) @ MEMBERS_PE, 0, 1))
    return np.concatenate(parts), Clusters.of(np.repeat(np.arange(M), per_domain))


def truth(scenario: str) -> np.ndarray:
    """Expected assignments of a document of each domain in the two models: [M, 2, E]."""
    rng = np.random.default_rng(99)
    rows = []
    for m in range(M):
        mean_2E = np.mean(
            [pair_probability(weights(rng, scenario, m, (10_000,))).mean(axis=1) for _ in range(20)], axis=0
        )
        rows.append(mean_2E @ MEMBERS_PE * LENGTHS[m].mean())
    return np.stack(rows)


def by_domain(counts_DxE: Counts, clusters: Clusters) -> Counts:
    return specialization.domain_counts(counts_DxE, clusters=clusters)


STATISTICS: dict[str, Statistic] = {
    "load of an expert": lambda counts, _: load.load(counts.sum(axis=0))[..., 0],
    "imbalance": lambda counts, clusters: load.imbalance(counts, clusters=clusters),
    "coefficient of variation": lambda counts, _: load.coefficient_of_variation(counts.sum(axis=0)),
    "entropy / ln E": lambda counts, _: load.load_entropy(counts.sum(axis=0)),
    "domain information": lambda counts, clusters: specialization.domain_information(by_domain(counts, clusters)),
    "max violation": lambda counts, _: load.max_violation(counts.sum(axis=0)),
}


def true_values(scenario: str) -> dict[str, np.ndarray]:
    """The difference of each statistic with unlimited documents."""
    counts_M2E = truth(scenario)
    alone = Clusters.of(np.arange(M))
    found = {name: statistic(counts_M2E, alone) for name, statistic in STATISTICS.items() if name != "imbalance"}
    found["imbalance"] = found["coefficient of variation"] ** 2
    return {name: np.diff(value_2)[0] for name, value_2 in found.items()}


def differences(statistic: Statistic, counts_D2SE: Counts, clusters: Clusters, bags: Bags) -> tuple:
    """The difference of all documents [S], and without each bag [G, S]: the analysis run again on those kept."""

    def one(kept_D: np.ndarray) -> np.ndarray:
        design = Clusters.of(clusters.domain_D[kept_D])
        value_2S = statistic(counts_D2SE[kept_D], design)
        return value_2S[1] - value_2S[0]

    everything = np.ones(len(bags.bag_D), dtype=bool)
    return one(everything), np.stack([one(bags.bag_D != g) for g in range(bags.n_bags)])


def coverage(
    scenario: str, *, n_sets: int, per_domain: int, corrected: bool = True, most: int = MOST_GROUPS, block: int = 250
) -> dict[str, tuple[float, float]]:
    """Share of intervals that hold the true difference, and the value's mean error over the interval's width."""
    true = true_values(scenario)
    held: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
    shift: dict[str, list[np.ndarray]] = {name: [] for name in STATISTICS}
    for seed in range(n_sets // block):
        counts_D2SE, clusters = draw(scenario, n_sets=block, per_domain=per_domain, seed=seed)
        bags = deal(clusters, most=most, seed=seed)
        for name, statistic in STATISTICS.items():
            whole_S, left_GS = differences(statistic, counts_D2SE, clusters, bags)
            found = left_out_interval(whole_S, left_GS, bags=bags, corrected=corrected)
            held[name].append((found.low <= true[name]) & (true[name] <= found.high))
            shift[name].append((found.value - true[name]) / (found.high - found.low))
    return {name: (float(np.mean(held[name])), float(np.mean(shift[name]))) for name in STATISTICS}


def print_coverage(n_sets: int = 2000) -> None:
    for per_domain in (8, 24):
        for scenario in ("trained", "sharper", "same", "balanced"):
            print(f"{n_sets} pairs, {M} domains x {per_domain} documents, E = {E}, K = {K}, {scenario}")
            print("  statistic                  true difference  corrected: held, bias/width    not corrected")
            true = true_values(scenario)
            both = [
                coverage(scenario, n_sets=n_sets, per_domain=per_domain, corrected=corrected)
                for corrected in (True, False)
            ]
            for name in STATISTICS:
                (held, bias), (plain, plain_bias) = (of[name] for of in both)
                print(
                    f"  {name:26s} {true[name]:+.4f}          {held:.3f} {bias:+.2f}      {plain:.3f} {plain_bias:+.2f}"
                )


if __name__ == "__main__":
    print_coverage()
