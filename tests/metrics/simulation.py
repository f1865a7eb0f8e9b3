"""Synthetic recordings whose truth is known, for the coverage of intervals and the size of tests.

`python -m tests.metrics.simulation` prints the figures of docs/decisions/0005-balance-test.md. Axes: D
documents, S data sets (an x axis to the metrics: one call covers all), M domains, E experts, P pairs of experts.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from workbench.metrics import balance, load, specialization
from workbench.statistics import extremes, intervals
from workbench.statistics.design import Clusters

E, K, M = 16, 2, 5
LENGTHS = np.array([[40, 160], [60, 240], [40, 160], [80, 320], [40, 160]])  # tokens, uniform, by domain
PAIRS = np.stack(np.triu_indices(E, 1))
MEMBERS_PE = np.eye(E)[PAIRS[0]] + np.eye(E)[PAIRS[1]]


@dataclass(frozen=True)
class Sample:
    counts_DSE: np.ndarray
    domain_D: np.ndarray
    clusters: Clusters


def pair_probability(weight_xE: np.ndarray) -> np.ndarray:
    """Of each pair, when two experts are drawn one after the other without replacement by these weights."""
    first, second = weight_xE[..., PAIRS[0]], weight_xE[..., PAIRS[1]]
    pair_xP = first * second * (1 / (1 - first) + 1 / (1 - second))
    return pair_xP / pair_xP.sum(axis=-1, keepdims=True)


def dirichlet(rng: np.random.Generator, alpha_xE: np.ndarray) -> np.ndarray:
    weight_xE = rng.gamma(alpha_xE) + 1e-9
    return weight_xE / weight_xE.sum(axis=-1, keepdims=True)


def document_weights(rng: np.random.Generator, scenario: str, shape: tuple[int, ...], domain: int) -> np.ndarray:
    """What each document of a domain prefers, [*shape, E]. All but "skewed" and "slight" are balanced.

    "none": no preferences; "mild", "strong": its own, of each expert apart (concentration 40 and 8); "shared": of
    blocks of 4 experts that rise together; "halves": of one half of the experts against the other; "domains": mild,
    around its domain's block of experts (4 of the domains; the fifth has none), which cancel over the corpus.
    """
    if scenario == "skewed":
        base_E = np.random.default_rng(domain).dirichlet(np.full(E, 4.0)) * 0.5 + np.arange(4, 4 + E)[::-1] / 460
        return dirichlet(rng, np.broadcast_to(25 * base_E / base_E.sum(), (*shape, E)))
    if scenario == "slight":
        return dirichlet(rng, np.broadcast_to(25 / E * (1 + 0.1 * np.linspace(-1, 1, E)), (*shape, E)))
    if scenario == "none":
        return np.full((*shape, E), 1 / E)
    if scenario in ("mild", "strong"):
        return dirichlet(rng, np.full((*shape, E), (40 if scenario == "mild" else 8) / E))
    if scenario in ("shared", "halves"):
        blocks = 4 if scenario == "shared" else 2
        return np.repeat(dirichlet(rng, np.full((*shape, blocks), 4 / blocks)), E // blocks, axis=-1) * blocks / E
    assert scenario == "domains"
    block_E = np.repeat(np.arange(4), E // 4) == domain
    base_E = np.full(E, 1 / E) if domain == 4 else np.where(block_E, 0.7 / 4, 0.1 / 4)
    return dirichlet(rng, np.broadcast_to(40 * base_E, (*shape, E)))


def sizes_of(per_domain: int | tuple[int, ...], n_domains: int = M) -> tuple[int, ...]:
    """Documents of each domain."""
    return per_domain if isinstance(per_domain, tuple) else (per_domain,) * n_domains


def draw(
    scenario: str, *, n_sets: int, per_domain: int | tuple[int, ...] = 24, n_domains: int = M, seed: int = 0
) -> Sample:
    rng = np.random.default_rng(seed)
    sizes_M = sizes_of(per_domain, n_domains)
    lengths_M2 = LENGTHS if scenario == "skewed" else np.broadcast_to([40, 160], LENGTHS.shape)  # else not balanced
    parts = []
    for m, size in enumerate(sizes_M):
        weight_DSE = document_weights(rng, scenario, (size, n_sets), m)
        tokens_DS = rng.integers(lengths_M2[m, 0], lengths_M2[m, 1] + 1, size=(size, n_sets))
        parts.append((rng.multinomial(tokens_DS, pair_probability(weight_DSE)) @ MEMBERS_PE).astype(np.int64))
    domain_D = np.repeat(np.arange(len(sizes_M)), sizes_M)
    return Sample(np.concatenate(parts), domain_D, Clusters.of(domain_D))


@cache
def truth_ME(scenario: str) -> np.ndarray:
    """Expected assignments of a document of each domain."""
    if scenario == "mild":
        return np.full((M, E), 100 * K / E)
    rng = np.random.default_rng(99)
    rows = []
    for m in range(M):
        load_E = np.mean(
            [pair_probability(document_weights(rng, scenario, (10_000,), m)).mean(0) for _ in range(10)], 0
        )
        rows.append(load_E @ MEMBERS_PE * LENGTHS[m].mean())
    return np.stack(rows)


def rejections(p_x: np.ndarray) -> float:
    return float(np.mean(p_x <= 0.05))


def relabelling_p(sample: Sample, *, n_sets: int, n_draws: int, seed: int = 0) -> np.ndarray:
    """The rejected design: experts relabelled by an independent permutation in every document."""
    rng = np.random.default_rng(seed)
    p_S = []
    for s in range(n_sets):
        counts_DE = sample.counts_DSE[:, s]
        drawn_BE = rng.permuted(np.broadcast_to(counts_DE, (n_draws, *counts_DE.shape)), axis=-1).sum(axis=1)
        p_S.append((1 + ((drawn_BE**2).sum(-1) >= (counts_DE.sum(0) ** 2).sum()).sum()) / (n_draws + 1))
    return np.array(p_S)


def plain_flips_p(sample: Sample, *, n_draws: int, studentized: bool, seed: int = 0) -> np.ndarray:
    """Two more rejected designs: signs of whole deviations, domains' own means left in; and the maximum of |t|."""
    rng = np.random.default_rng(seed)
    deviation_DSE = sample.counts_DSE - sample.counts_DSE.sum(-1, keepdims=True) / E
    signs_BD = rng.choice([-1.0, 1.0], size=(n_draws, len(deviation_DSE)))
    drawn_BSE = np.tensordot(signs_BD, deviation_DSE, axes=1)
    observed_SE = deviation_DSE.sum(axis=0)
    if studentized:
        scale_SE = np.sqrt((deviation_DSE**2).sum(axis=0))
        drawn_BS, observed_S = np.abs(drawn_BSE / scale_SE).max(-1), np.abs(observed_SE / scale_SE).max(-1)
    else:
        drawn_BS, observed_S = (drawn_BSE**2).sum(-1), (observed_SE**2).sum(-1)
    return (1 + (drawn_BS >= observed_S * (1 - 1e-9)).sum(axis=0)) / (n_draws + 1)


def print_sizes(n_sets: int = 1000, n_draws: int = 399) -> None:
    print(f"share of p <= .05 over {n_sets} data sets (relabelling: 300), E = {E}, K = {K}; 'skewed' is not balanced")
    print("design  documents    balance_test  max_t_test | relabelling  plain flips  plain max|t|")
    for n_domains, per_domain in ((1, 8), (1, 24), (5, 8), (5, 24)):
        for scenario in ("none", "mild", "strong", "shared", "halves", "domains", "skewed"):
            if n_domains == 1 and scenario == "domains":
                continue
            sample = draw(scenario, n_sets=n_sets, n_domains=n_domains, per_domain=per_domain, seed=1)
            test = balance.balance_test(sample.counts_DSE, clusters=sample.clusters, n_draws=n_draws)
            experts = balance.max_t_test(sample.counts_DSE, clusters=sample.clusters, n_draws=n_draws)
            print(
                f"{n_domains} x {per_domain:2d}  {scenario:11s}  {rejections(test.p):12.3f}  "
                f"{rejections(experts.p.min(axis=-1)):10.3f} | "
                f"{rejections(relabelling_p(sample, n_sets=300, n_draws=199)):11.3f}  "
                f"{rejections(plain_flips_p(sample, n_draws=n_draws, studentized=False)):11.3f}  "
                f"{rejections(plain_flips_p(sample, n_draws=n_draws, studentized=True)):13.3f}",
                flush=True,
            )


def coverage(
    scenario: str, *, n_sets: int, per_domain: int | tuple[int, ...], block: int = 500
) -> dict[str, np.ndarray]:
    """Whether each data set's interval holds the truth, by statistic; [S] or, for loads, [S, …]."""
    sample = draw(scenario, n_sets=n_sets, per_domain=per_domain)
    truth, clusters = truth_ME(scenario), sample.clusters
    total_E = np.array(sizes_of(per_domain)) @ truth
    share_E = total_E / total_E.sum()
    held: dict[str, list[np.ndarray]] = {}

    def hold(name: str, interval: intervals.Interval, value: np.ndarray | float) -> None:
        held.setdefault(name, []).append((interval.low <= value) & (value <= interval.high))

    for start in range(0, n_sets, block):  # bounds the memory of the resamples
        counts_DSE = sample.counts_DSE[:, start : start + block]
        total_DS1 = counts_DSE.sum(axis=-1, keepdims=True)
        resamples = intervals.cluster_bootstrap(counts_DSE, clusters=clusters)
        for name in ("coefficient_of_variation", "gini", "load_entropy", "effective_experts"):
            statistic = getattr(load, name)
            rooted = name in ("coefficient_of_variation", "gini")
            interval = intervals.bias_corrected_interval(
                statistic, resamples.corpus, scale="square" if rooted else "plain"
            )
            hold(name, interval, statistic(total_E))
            if rooted:
                interval = intervals.bias_corrected_interval(statistic, resamples.corpus)
                hold(f"plain {name}", interval, statistic(total_E))
            ends = np.quantile(statistic(resamples.corpus.drawn), [0.025, 0.975], axis=0)
            held.setdefault(f"percentile {name}", []).append(
                (ends[0] <= statistic(total_E)) & (statistic(total_E) <= ends[1])
            )
        information = specialization.domain_information
        interval = intervals.bias_corrected_interval(information, resamples.domains)
        hold("domain_information", interval, information(truth))
        ends = np.quantile(information(resamples.domains.drawn), [0.025, 0.975], axis=0)
        held.setdefault("percentile domain_information", []).append(
            (ends[0] <= information(truth)) & (information(truth) <= ends[1])
        )
        hold("load", intervals.ratio_interval(counts_DSE, total_DS1, clusters=clusters), share_E)
        by_domain = intervals.domain_ratio_interval(counts_DSE, total_DS1, clusters=clusters)
        hold("domain load", by_domain, (truth / truth.sum(axis=-1, keepdims=True))[:, None])
        held["domain load"][-1] = np.moveaxis(held["domain load"][-1], 0, 1)
        squared_cv = load.coefficient_of_variation(total_E) ** 2
        hold("imbalance", balance.jackknife_interval(counts_DSE, clusters=clusters), squared_cv)
        band = extremes.max_t_band(resamples.corpus)
        hold("all loads at once", band, share_E)
        held["all loads at once"][-1] = held["all loads at once"][-1].all(axis=-1)
        hold("max_violation", extremes.max_violation_interval(band), load.max_violation(total_E))
        hold("min_violation", extremes.min_violation_interval(band), load.min_violation(total_E))
        dead = extremes.dead_experts_interval(band, threshold=0.8)
        hold("dead_experts at .8", dead, load.dead_experts(total_E, threshold=0.8))
        test = balance.balance_test(counts_DSE, clusters=clusters, n_draws=199)
        held.setdefault("balance is rejected", []).append(test.p <= 0.05)
    return {name: np.concatenate(parts) for name, parts in held.items()}


def print_coverage(n_sets: int = 2000) -> None:
    for scenario, per_domain in (("skewed", 24), ("skewed", 8), ("mild", 24), ("slight", 8)):
        print(f"coverage of nominal 95 % over {n_sets} data sets: {M} domains x {per_domain}, {scenario}")
        result = coverage(scenario, n_sets=n_sets, per_domain=per_domain)
        rejected = result["balance is rejected"]
        for name, held in result.items():
            worst = f"  (worst {held.mean(axis=0).min():.3f})" if held.ndim > 1 else ""
            print(
                f"  {name:36s} {held.mean():.3f}  where balance is rejected {held[rejected].mean():.3f}{worst}",
                flush=True,
            )


if __name__ == "__main__":
    print_sizes()
    print_coverage()
