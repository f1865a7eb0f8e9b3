"""Whether experts are chosen by domain: loads and information, and the controls without which they mean little.

Not an explanation: a router that only looks at the token id also tells domains apart, since domains use other words.
So every information is read beside its permutation null (`domain_information_test`), the random hash of the token id
(`hash_router_information`) and the untrained router. Axes: T tokens, D documents, M domains, E routed experts, K
chosen per token, V distinct token ids, C cells (documents of one cluster in one domain), B draws; x any further axes.
"""

import numpy as np
from jaxtyping import Float, Int, Num

from workbench.metrics.load import load
from workbench.statistics.arithmetic import GOLDEN, checked_counts, entropy, mixed
from workbench.statistics.design import Clusters
from workbench.statistics.null_test import NullTest


def domain_counts(counts_DxE: Num[np.ndarray, "D *x E"], *, clusters: Clusters) -> Float[np.ndarray, "M *x E"]:
    """Assignments to each expert by domain, domains in the order of `clusters.domains`.

    Range [0, ∞); unit: assignments. No NaN.

    Raises:
        ValueError: a count is negative, or `clusters` was made of another number of documents.

    Source:
        ours (a sum).
    """
    cells_CxE = clusters.sum_cells(checked_counts(counts_DxE))
    return np.stack([cells_CxE[run].sum(axis=0) for run in clusters.domain_runs()])


def domain_load(counts_MxE: Num[np.ndarray, "M *x E"], *, top_k: int) -> Float[np.ndarray, "M *x E"]:
    """Share of a domain's tokens that choose each expert, p_e = c_e/T = K·f_e.

    Range [0, 1], sum K; unit 1; compare with K/E and with the corpus' own rate. NaN for a domain without tokens.
    Interval: `uncertainty.domain_ratio_interval(counts, counts.sum(-1, keepdims=True) / top_k, …)`.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5.3 †, and Jiang et al. 2024 (Mixtral),
        arXiv:2401.04088, figure 7 †: as commonly given; theirs show one k or all, ours all K.
    """
    _check_top_k(top_k, counts_MxE.shape[-1])
    return top_k * load(counts_MxE)


def domain_information(counts_MxE: Num[np.ndarray, "M *x E"]) -> Float[np.ndarray, "*x"]:
    """Information between a token's domain and one of its chosen experts, I = H(mean_m f_m) − mean_m H(f_m).

    Every domain has the same weight (a uniform prior over domains), so mean_m f_m is not the corpus load. One of the
    K experts is drawn at random: the whole set tells more.

    Range [0, `domain_information_ceiling`]; unit nats. NaN where a domain has no tokens. Noise raises it: by about
    (M − 1)(E − K)/(2N) if N assignments were of independent tokens in domains of one size, by more for documents.

    Raises:
        ValueError: a count is negative.

    Source:
        ours (a Jensen–Shannon divergence, Lin 1991 †, of the domains' loads).
    """
    share_MxE = load(counts_MxE)
    information_x = entropy(share_MxE.mean(axis=0)) - entropy(share_MxE).mean(axis=0)
    return np.asarray(np.maximum(information_x, 0))  # −1e-16 where all domains agree


def domain_information_ceiling(counts_MxE: Num[np.ndarray, "M *x E"], *, top_k: int) -> Float[np.ndarray, "*x"]:
    """The most that `domain_information` could be with this mean load, min(H(mean_m f_m) − ln K, ln M).

    No domain's load can be more uneven than 1/K on K experts, and the domain itself holds only ln M (which binds for
    few domains: five have 1.61 nats, K = 8 of 64 experts ln 8 = 2.08).

    Range [0, ln M]; unit nats. NaN where a domain has no tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    _check_top_k(top_k, counts_MxE.shape[-1])
    spread_x = entropy(load(counts_MxE).mean(axis=0)) - np.log(top_k)
    return np.asarray(np.minimum(np.maximum(spread_x, 0), np.log(len(counts_MxE))))


def domain_information_test(
    counts_DxE: Num[np.ndarray, "D *x E"],
    *,
    clusters: Clusters,
    n_length_strata: int = 4,
    n_draws: int = 199,
    seed: int = 0,
) -> NullTest:
    """Does the routing know the domain? Documents' domains are permuted within strata of like length.

    What moves is a cell: the documents of one cluster in one domain, together. Strata are quantiles of the cells'
    assignments, since short documents are noisier and domains differ in length. `null_mean` is the information that
    the sample would show without domains; where they do differ, their difference has gone into its noise, and the
    bias-corrected value of `uncertainty` is the better estimate of what is left.

    Statistic in nats; p from 1/(B+1) to 1. NaN where a domain has no tokens.

    Raises:
        ValueError: `n_draws` or `n_length_strata` is under 1, a count is negative, or `clusters` was made of others.

    Source:
        ours (a stratified permutation test).
    """
    if n_draws < 1 or n_length_strata < 1:
        raise ValueError(
            f"n_draws is {n_draws} and n_length_strata {n_length_strata}, expected 1 or more of each: 199 and 4 are "
            "usual"
        )
    cells_CxE = clusters.sum_cells(checked_counts(counts_DxE))
    n_cells, n_domains = len(cells_CxE), len(clusters.domains)
    length_C = cells_CxE.reshape(n_cells, -1).sum(axis=1)
    edges = np.quantile(length_C, np.arange(1, n_length_strata) / n_length_strata)
    stratum_C = np.searchsorted(edges, length_C)  # by value: equal lengths are one stratum, whatever their order
    rng = np.random.default_rng(seed)
    domain_BC = np.tile(clusters.cell_domain_C, (n_draws, 1))
    for stratum in np.unique(stratum_C):
        inside_C = stratum_C == stratum
        domain_BC[:, inside_C] = rng.permuted(domain_BC[:, inside_C], axis=1)
    flat_CX = cells_CxE.astype(np.float32).reshape(n_cells, -1)
    drawn_MBX = np.stack([(domain_BC == m).astype(np.float32) @ flat_CX for m in range(n_domains)])
    drawn_Bx = domain_information(drawn_MBX.reshape(n_domains, n_draws, *counts_DxE.shape[1:]))
    statistic_x = domain_information(domain_counts(counts_DxE, clusters=clusters))
    fixed = sum(len(np.unique(clusters.cell_domain_C[stratum_C == s])) == 1 for s in np.unique(stratum_C))
    return NullTest(
        question="does the routing know the domain?",
        statistic=statistic_x,
        null_mean=np.asarray(drawn_Bx.mean(axis=0)),
        null_high=np.asarray(np.quantile(drawn_Bx, 0.95, axis=0)),
        p=np.where(
            np.isnan(statistic_x), np.nan, (1 + (drawn_Bx >= statistic_x * (1 - 1e-6)).sum(axis=0)) / (n_draws + 1)
        ),
        n_draws=n_draws,
        n_clusters=clusters.n_clusters,
        note=f"{fixed} of {len(np.unique(stratum_C))} length strata hold one domain only, and are not permuted"
        if fixed
        else "",
    )


def hash_router_counts(
    token_T: Int[np.ndarray, "T"],
    document_T: Int[np.ndarray, "T"],
    *,
    n_documents: int,
    n_experts: int,
    top_k: int,
    seed: int,
) -> Int[np.ndarray, "D E"]:
    """Counts of a router that sees the token id alone: each id has K distinct experts from a keyed hash, for good.

    The sets are uniform over the K-subsets of E, and those of different ids and seeds unrelated. Give the domain
    index as `document_T` for counts by domain.

    Range 0 to the document's tokens; unit: assignments. No NaN.

    Raises:
        ValueError: `top_k` is outside [1, E], a token id is negative, or a document outside [0, D).

    Source:
        ours, after Roller et al. 2021 (Hash Layers), arXiv:2106.04426 †: differs: K experts, and no balancing.
    """
    pairs = _token_pairs(token_T, document_T, n_documents)
    return _hash_counts(pairs, n_documents=n_documents, n_experts=n_experts, top_k=top_k, seed=seed)


def hash_router_information(
    token_T: Int[np.ndarray, "T"],
    domain_T: Int[np.ndarray, "T"],
    *,
    n_domains: int,
    n_experts: int,
    top_k: int,
    n_seeds: int = 20,
    occurrences_T: Int[np.ndarray, "T"] | None = None,
) -> Float[np.ndarray, "R"]:
    """`domain_information` of `hash_router_counts` for seeds 0, 1, …: its mean is what vocabulary alone gives.

    Range [0, ln M]; unit nats; one value per seed. NaN where a domain has no tokens.

    Args:
        token_T: Token ids.
        domain_T: Index of each token's domain.
        n_domains: M.
        n_experts: E.
        top_k: K.
        n_seeds: R.
        occurrences_T: How many tokens each entry stands for, where they were counted before; one unless given.

    Raises:
        ValueError: `n_seeds` is under 1, and as `hash_router_counts`.

    Source:
        ours.
    """
    if n_seeds < 1:
        raise ValueError(f"n_seeds is {n_seeds}, expected 1 or more: 20 is usual")
    pairs = _token_pairs(
        token_T, domain_T, n_domains, occurrences_T
    )  # once: the seeds only change the experts of each id
    return np.array(
        [
            float(
                domain_information(
                    _hash_counts(pairs, n_documents=n_domains, n_experts=n_experts, top_k=top_k, seed=seed)
                )
            )
            for seed in range(n_seeds)
        ]
    )


def _token_pairs(
    token_T: np.ndarray, document_T: np.ndarray, n_documents: int, occurrences_T: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct ids (V); and for each distinct pair of document and id: the document, the id's index, how often."""
    if len(token_T) and token_T.min() < 0:
        raise ValueError(f"token_T holds {token_T.min()}, expected ids of 0 or more: leave padding out")
    if len(document_T) and (document_T.min() < 0 or document_T.max() >= n_documents):
        raise ValueError(
            f"document_T spans {document_T.min()} to {document_T.max()}, expected 0 to {n_documents - 1}: "
            "pass 0-based indices and the number of all documents"
        )
    id_V, index_T = np.unique(token_T, return_inverse=True)
    pair_T = document_T.astype(np.int64) * max(1, len(id_V)) + index_T
    if occurrences_T is None:
        pair_P, n_P = np.unique(pair_T, return_counts=True)
    else:
        pair_P, of_pair_T = np.unique(pair_T, return_inverse=True)
        n_P = np.bincount(of_pair_T, occurrences_T, len(pair_P)).astype(np.int64)
    return id_V, *np.divmod(pair_P, max(1, len(id_V))), n_P


def _hash_counts(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    *,
    n_documents: int,
    n_experts: int,
    top_k: int,
    seed: int,
) -> np.ndarray:
    _check_top_k(top_k, n_experts)
    id_V, document_P, index_P, n_P = pairs
    cell_PK = document_P[:, None] * n_experts + _hashed_subsets(id_V, n_experts, top_k, seed)[index_P]
    counts = np.bincount(cell_PK.ravel(), weights=np.repeat(n_P, top_k), minlength=n_documents * n_experts)
    return counts.astype(np.int64).reshape(n_documents, n_experts)


def _hashed_subsets(id_V: np.ndarray, n_experts: int, top_k: int, seed: int) -> np.ndarray:
    """A K-subset for each id: Floyd's algorithm on hashed draws (draw from [0, j]; take j where it is taken)."""
    key_V = mixed(id_V.astype(np.uint64) * GOLDEN + mixed(np.array([seed], dtype=np.uint64) + GOLDEN))
    chosen_VK = np.empty((len(id_V), top_k), dtype=np.int64)
    for k, j in enumerate(range(n_experts - top_k, n_experts)):
        draw_V = (mixed(key_V + np.array([k + 1], dtype=np.uint64) * GOLDEN) % np.uint64(j + 1)).astype(np.int64)
        taken_V = (chosen_VK[:, :k] == draw_V[:, None]).any(axis=1)
        chosen_VK[:, k] = np.where(taken_V, j, draw_V)
    return chosen_VK


def _check_top_k(top_k: int, n_experts: int) -> None:
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k is {top_k}, expected 1 to {n_experts} (E): pass K and E of the recording")
