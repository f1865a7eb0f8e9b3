"""How much each expert is used: counts, load, and the measures of its imbalance.

Every number here describes the sample it is given and depends on its size: name the scope (document, batch, corpus)
and T beside it, the value of random routing from `floors`, and an interval from `uncertainty`. Axes: T tokens,
D documents, U clusters, E routed experts, K chosen per token; x any further axes (layers). N = T·K assignments,
f_e = c_e / N the load, uniform load 1/E. What a capacity drops is in `capacity`.
"""

import numpy as np
from jaxtyping import Float, Int, Num

from workbench.statistics.arithmetic import (
    check_ids,
    checked_counts,
    cluster_blocks,
    entropy,
    unbiased_square,
    variance_of_total,
)
from workbench.statistics.design import Clusters


def expert_counts(ids_TK: Int[np.ndarray, "T K"], *, n_experts: int) -> Int[np.ndarray, "E"]:
    """Assignments to each expert, c_e = #{(t, k): ids[t, k] = e}.

    Range 0 to T each, sum T·K; unit: assignments. No NaN; zeros where there are no tokens.

    Args:
        ids_TK: Chosen expert ids, 0-based; the order within a token carries no meaning.
        n_experts: E, routed experts only (shared experts have no id).

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        ours (a count).
    """
    check_ids(ids_TK, n_experts=n_experts)
    return np.bincount(ids_TK.ravel(), minlength=n_experts)


def document_counts(
    ids_TK: Int[np.ndarray, "T K"], document_T: Int[np.ndarray, "T"], *, n_documents: int, n_experts: int
) -> Int[np.ndarray, "D E"]:
    """Assignments to each expert by document: `expert_counts` of the tokens of each document.

    Range 0 to the document's tokens; unit: assignments. No NaN; a document without tokens has zeros.

    Raises:
        ValueError: an id lies outside [0, E), one token names an expert twice, or a document outside [0, D).

    Source:
        ours (a count).
    """
    check_ids(ids_TK, n_experts=n_experts)
    if len(document_T) and (document_T.min() < 0 or document_T.max() >= n_documents):
        raise ValueError(
            f"document_T spans {document_T.min()} to {document_T.max()}, expected 0 to {n_documents - 1}: "
            "pass 0-based indices and the number of all documents"
        )
    cells = document_T.astype(np.int64)[:, None] * n_experts + ids_TK
    return np.bincount(cells.ravel(), minlength=n_documents * n_experts).reshape(n_documents, n_experts)


def load(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x E"]:
    """Share of the assignments that each expert gets, f_e = c_e / Σ c.

    Range [0, 1], sum 1; unit 1. NaN where there are no assignments. Uniform: 1/E. (A token's rate of choosing e is
    K·f_e, at most 1, so f_e ≤ 1/K.)

    Raises:
        ValueError: a count is negative.

    Source:
        Shazeer et al. 2017, arXiv:1701.06538, section 4: as published, of counts.
    """
    counts_xE = checked_counts(counts_xE)
    total_x1 = counts_xE.sum(axis=-1, keepdims=True)
    return counts_xE / np.where(total_x1 > 0, total_x1, np.nan)


def gate_mass(
    ids_TK: Int[np.ndarray, "T K"], weights_TK: Float[np.ndarray, "T K"], *, n_experts: int
) -> Float[np.ndarray, "E"]:
    """Routing weight that each expert received, Σ_t w_te. Compare its spread with the load's.

    Range [0, T] for weights in [0, 1]; unit: weight. NaN where a weight of that expert is NaN.

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        Shazeer et al. 2017, arXiv:1701.06538, Eq. 6 ("importance"): as published, of the chosen experts' weights.
    """
    check_ids(ids_TK, n_experts=n_experts)
    return np.bincount(ids_TK.ravel(), weights=weights_TK.ravel().astype(np.float64), minlength=n_experts)


def imbalance(counts_DxE: Num[np.ndarray, "D *x E"], *, clusters: Clusters | None = None) -> Float[np.ndarray, "*x"]:
    """Unbiased squared coefficient of variation of the load, over pairs of documents: the headline of balance.

    E · Σ_{d≠d'} c_d·c_d' / Σ_{d≠d'} N_d N_d' − 1. Two documents share no tokens, so neither counting noise nor the
    documents' own preferences enter: balanced routing has the expectation 0 at any number of tokens, and the value
    may be a little below it. Σ_{d≠d'} c_d·c_d' = |Σ c_d|² − Σ |c_d|², so the cost is one pass.

    With `clusters`, the pairs are of different clusters, and pairs within a domain weigh as much as the domain's mix
    asks (n(n−1) pairs stand for n²): |Σ c|² − Σ_m n_m/(n_m−1) Σ_{u∈m} |c_u − mean_m|², over the same of N. Without
    it, several domains with different loads lower the value by their variance / (D − 1). A domain with one cluster has
    no pairs: it is taken as one with the smallest other domain (`Clusters.paired`).

    Range [−1, E/K − 1]; unit 1. NaN with fewer than two clusters or no assignments.

    Raises:
        ValueError: a count is negative, or `clusters` was made of another number of documents.

    Source:
        ours: the unbiased counterpart of the CV² of Shazeer et al. 2017, arXiv:1701.06538, Eq. 7–8.
    """
    if clusters is None:
        if len(counts_DxE) < 2:
            return np.full(counts_DxE.shape[1:-1], np.nan)
        clusters = Clusters.of(np.zeros(len(counts_DxE), dtype=np.int64))
    clusters = clusters.paired
    n_experts = counts_DxE.shape[-1]
    value_X = []
    for counts_UXE in cluster_blocks(counts_DxE, clusters):
        total_UX = counts_UXE.sum(axis=-1)
        square_X, square_total_X = (unbiased_square(values, clusters) for values in (counts_UXE, total_UX[..., None]))
        value_X.append(n_experts * square_X / np.where(square_total_X > 0, square_total_X, np.nan) - 1)
    return np.concatenate(value_X).reshape(counts_DxE.shape[1:-1])


def coefficient_of_variation(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """Spread of the load over its mean, std(c) / mean(c), the population standard deviation over experts.

    Range [0, sqrt(E/K − 1)]; unit 1. NaN without assignments. Random routing: E[CV²] = (E/K − 1)/T.

    Raises:
        ValueError: a count is negative.

    Source:
        Shazeer et al. 2017, arXiv:1701.06538, Eq. 7 and 11: as published (they use its square as the loss).
    """
    share_xE = load(counts_xE)
    return np.asarray(share_xE.std(axis=-1) * share_xE.shape[-1])


def max_violation(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """By how much the busiest expert exceeds the mean, (max c − mean c) / mean c.

    Range [0, E/K − 1]; unit 1. NaN without assignments. Random routing: `floors.expected_max_violation`.

    Raises:
        ValueError: a count is negative.

    Source:
        Wang et al. 2024 (DeepSeek), arXiv:2408.15664, Eq. 4: as published, per layer (the paper reports the mean over
        layers).
    """
    share_xE = load(counts_xE)
    return np.asarray(share_xE.max(axis=-1) * share_xE.shape[-1] - 1)


def min_violation(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """By how much the idlest expert falls short of the mean, 1 − min c / mean c.

    Range [0, 1], 1 where an expert is never chosen; unit 1. NaN without assignments.

    Raises:
        ValueError: a count is negative.

    Source:
        ours, after arXiv:2408.15664, Eq. 4.
    """
    share_xE = load(counts_xE)
    return np.asarray(1 - share_xE.min(axis=-1) * share_xE.shape[-1])


def gini(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """Gini coefficient of the load, Σ_ij |f_i − f_j| / (2E) (the f sum to 1).

    Range [0, 1 − K/E]; unit 1. NaN without assignments. Random routing: `floors.expected_gini`.

    Raises:
        ValueError: a count is negative.

    Source:
        Gini 1912 †: as commonly given (without the correction E/(E − 1)).
    """
    sorted_xE = np.sort(load(counts_xE), axis=-1)
    n_experts = sorted_xE.shape[-1]
    return np.asarray(sorted_xE @ ((2 * np.arange(1, n_experts + 1) - n_experts - 1) / n_experts))


def load_entropy(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """Entropy of the load over its maximum, H(f) / ln E.

    Range [ln K / ln E, 1]; unit 1. NaN without assignments, and for E = 1.

    Raises:
        ValueError: a count is negative.

    Source:
        Shannon 1948 †: as commonly given.
    """
    n_experts = counts_xE.shape[-1]
    return np.asarray(entropy(load(counts_xE)) / (np.log(n_experts) if n_experts > 1 else np.nan))


def effective_experts(counts_xE: Num[np.ndarray, "*x E"]) -> Float[np.ndarray, "*x"]:
    """The number of equally used experts with the load's entropy, exp H(f).

    Range [K, E]; unit: experts. NaN without assignments.

    Raises:
        ValueError: a count is negative.

    Source:
        Hill 1973 † (order 1): as commonly given.
    """
    return np.asarray(np.exp(entropy(load(counts_xE))))


def dead_experts(counts_xE: Num[np.ndarray, "*x E"], *, threshold: float = 0.0) -> Int[np.ndarray, "*x"]:
    """Number of experts whose load is at or under a threshold, #{e: E·f_e ≤ threshold}.

    Range 0 to E; unit: experts. No NaN: without assignments every expert is dead.

    Args:
        counts_xE: Assignments.
        threshold: In multiples of the uniform load 1/E, so that it means the same at any T; 0 is never chosen.

    Raises:
        ValueError: a count is negative.

    Source:
        ours. Random routing leaves E·(1 − K/E)^T: `floors.expected_dead_experts`.
    """
    counts_xE = checked_counts(counts_xE)
    uniform_x1 = counts_xE.sum(axis=-1, keepdims=True) / counts_xE.shape[-1]
    return np.asarray((counts_xE <= threshold * uniform_x1).sum(axis=-1))


def balance_loss(
    counts_xE: Num[np.ndarray, "*x E"], mean_score_xE: Float[np.ndarray, "*x E"]
) -> Float[np.ndarray, "*x"]:
    """The auxiliary loss, E · Σ_e f_e P_e, with P_e the mean normalized score of e over tokens; per layer.

    Range [0, E/K]; unit 1. NaN without assignments. It is 1 whenever P is uniform, whatever the load, and may be
    under 1: 1 is no proof of balance.

    Raises:
        ValueError: a count is negative.

    Source:
        Fedus et al. 2021 (Switch), arXiv:2101.03961, Eq. 4–6 †: differs: its f is of the top-1, ours over all K.
        transformers' `load_balancing_loss_func` pools the layers before the product and is K times ours.
    """
    return np.asarray((load(counts_xE) * mean_score_xE).sum(axis=-1) * counts_xE.shape[-1])


def z_loss(logsumexp_T: Float[np.ndarray, "T"]) -> float:
    """Mean squared log-partition of the router, mean_t (ln Σ_e exp r_te)²; softmax routers only.

    Range [0, ∞); unit nats². NaN without tokens, and where a value is NaN (as recorded where scoring is no softmax).

    Raises:
        Nothing.

    Source:
        Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, Eq. 5 †: as commonly given.
    """
    return float(np.mean(logsumexp_T.astype(np.float64) ** 2)) if len(logsumexp_T) else float("nan")


def effective_tokens(
    counts_DxE: Num[np.ndarray, "D *x E"], *, top_k: int, clusters: Clusters
) -> Float[np.ndarray, "*x"]:
    """Independent tokens that would fix the load as well as these documents do.

    T · Σ_e p_e(1 − p_e)/T / Σ_e var(p_e), with p_e = c_e/T and var its linearized variance between clusters within
    domains. Tokens of a document are alike, so it is far under T.

    Range (0, ∞); unit: tokens. NaN with one cluster, without assignments, and where every cluster has the same load.

    Raises:
        ValueError: a count is negative, `top_k` is outside [1, E], or `clusters` was made of other documents.

    Source:
        Kish 1965 † (design effect): as commonly given, summed over experts.
    """
    if not 1 <= top_k <= counts_DxE.shape[-1]:
        raise ValueError(f"top_k is {top_k}, expected 1 to {counts_DxE.shape[-1]} (E): pass K of the recording")
    clusters, value_X = clusters.paired, []
    for counts_UXE in cluster_blocks(counts_DxE, clusters):
        tokens_UX1 = counts_UXE.sum(axis=-1, keepdims=True) / top_k
        tokens_X1 = tokens_UX1.sum(axis=0)
        rate_XE = counts_UXE.sum(axis=0) / np.where(tokens_X1 > 0, tokens_X1, np.nan)
        between_X = variance_of_total((counts_UXE - rate_XE * tokens_UX1) / tokens_X1, clusters).sum(axis=-1)
        value_X.append((rate_XE * (1 - rate_XE)).sum(axis=-1) / np.where(between_X > 0, between_X, np.nan))
    return np.concatenate(value_X).reshape(counts_DxE.shape[1:-1])


def position_divergence(counts_xPE: Num[np.ndarray, "*x P E"]) -> Float[np.ndarray, "*x P"]:
    """How far the load at each bin of positions is from the load over all of them, KL(f_p ‖ f) = Σ_e f_pe ln(f_pe/f_e).

    Range [0, −ln min f]; unit nats. NaN for a bin without tokens. Noise raises it, by about (E − K)/(2N) for N
    assignments of independent tokens.

    Raises:
        ValueError: a count is negative.

    Source:
        Kullback & Leibler 1951 †: as commonly given.
    """
    counts_xPE = checked_counts(counts_xPE)
    total_xP1 = counts_xPE.sum(axis=-1, keepdims=True)
    share_xPE = counts_xPE / np.where(total_xP1 > 0, total_xP1, np.nan)
    whole_x1E = counts_xPE.sum(axis=-2, keepdims=True)
    whole_x1E = whole_x1E / np.maximum(whole_x1E.sum(axis=-1, keepdims=True), 1)
    ratio_xPE = np.where(share_xPE > 0, share_xPE, 1) / np.where((share_xPE > 0) & (whole_x1E > 0), whole_x1E, 1)
    return np.asarray((share_xPE * np.log(ratio_xPE)).sum(axis=-1))


def position_drift(counts_xPE: Num[np.ndarray, "*x P E"]) -> Float[np.ndarray, "*x"]:
    """Information between a token's bin of positions and one of its chosen experts, Σ_p (N_p/N) KL(f_p ‖ f).

    Range [0, ln P]; unit nats. NaN without assignments; a bin without tokens has no weight. Noise raises it, by about
    (P − 1)(E − K)/(2N) for independent tokens.

    Raises:
        ValueError: a count is negative.

    Source:
        Shannon 1948 † (mutual information): as commonly given.
    """
    divergence_xP = position_divergence(counts_xPE)
    tokens_xP = counts_xPE.sum(axis=-1)
    total_x = tokens_xP.sum(axis=-1)
    return np.asarray((np.nan_to_num(divergence_xP) * tokens_xP).sum(axis=-1) / np.where(total_x > 0, total_x, np.nan))
