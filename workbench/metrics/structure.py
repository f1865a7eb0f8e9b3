"""Which experts are chosen together, and which follow which from one layer to the next.

Both are read off counts of pairs of experts, which add up over parts of a recording, so memory does not grow with
tokens (`sets.joint_counts`; `bags` for intervals). Along the text: `sequence`; of the same token twice: `agreement`.
Not causes: experts that the same words, or the same documents, call for are also chosen together. Axes: T tokens,
D documents, E routed experts, K chosen per token; x any further axes (layers, bags).
"""

import numpy as np
from jaxtyping import Float, Int, Integer, Num

from workbench.metrics.sets import as_bits, joint_counts
from workbench.statistics.arithmetic import checked_counts, entropy

_STEPS, _NEWTON_STEPS = 60, 40  # of the fit of weights; 20 and none suffice unless an expert is nearly always chosen
_TOLERANCE = 1e-9
_ALWAYS = 1 - 1e-9


def pair_counts(ids_TK: Integer[np.ndarray, "T K"], *, n_experts: int) -> Int[np.ndarray, "E E"]:
    """N_ij, the tokens that choose both i and j; N_ii = N_i, those that choose i. Counts of parts add up.

    Every pair of a token counts, whatever its rank. Symmetric; range 0 to T; unit: tokens. No NaN.

    Args:
        ids_TK: Chosen expert ids, 0-based; the order within a token carries no meaning.
        n_experts: E, routed experts only (shared experts have no id).

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        ours (a count).
    """
    bits_TW = as_bits(ids_TK, n_experts=n_experts)
    return joint_counts(bits_TW, bits_TW, n_experts=n_experts)


def coactivation(pairs_xEE: Num[np.ndarray, "*x E E"]) -> Float[np.ndarray, "*x E E"]:
    """P(expert j is chosen | expert i is chosen), N_ij / N_i: of the tokens whose top-k holds i, the share with j.

    Not symmetric. Range [0, 1], a row sums to K − 1 without its diagonal; unit 1. The diagonal, and rows of experts
    never chosen, are NaN. Uniform random routing: (K−1)/(E−1).

    Raises:
        ValueError: a count is negative.

    Source:
        Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5: as published; their script counts neighbouring
        ranks only, and is kept as an oracle in the tests.
    """
    pairs_xEE = checked_counts(pairs_xEE)
    chosen_xE = np.diagonal(pairs_xEE, axis1=-2, axis2=-1)
    return _off_diagonal(pairs_xEE / np.where(chosen_xE > 0, chosen_xE, np.nan)[..., None])


def coactivation_lift(pairs_xEE: Num[np.ndarray, "*x E E"], *, top_k: int) -> Float[np.ndarray, "*x E E"]:
    """How much more often two experts are chosen together than apart, N_ij T / (N_i N_j).

    Not 1 without structure: the K experts of a token are distinct, so uniform random routing gives E(K−1)/(K(E−1))
    (.571 for 2 of 8, .889 for 8 of 64). Divide by `coactivation_lift` of `matched_pairs`, which has the same loads.

    Symmetric; range [0, T]; unit 1. The diagonal, and experts never chosen, are NaN.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours (a ratio of probabilities).
    """
    pairs_xEE = checked_counts(pairs_xEE)
    chosen_xE = np.diagonal(pairs_xEE, axis1=-2, axis2=-1)
    tokens_x11 = _tokens(chosen_xE, top_k)[..., None, None]
    known_xE = np.where(chosen_xE > 0, chosen_xE, np.nan)
    return _off_diagonal(pairs_xEE * tokens_x11 / (known_xE[..., :, None] * known_xE[..., None, :]))


def matched_pairs(counts_xE: Num[np.ndarray, "*x E"], *, top_k: int) -> Float[np.ndarray, "*x E E"]:
    """The pair counts expected of random K-subsets with the same loads: the null of co-activation.

    Of all distributions over K-subsets that choose expert e at its rate p_e the one with most entropy, P(S) ∝ Π_{e∈S}
    w_e; w is fitted, and the pairs' probabilities are exact. Tokens are independent here: loads that differ between
    documents raise co-activation too, which `sets.swapped_within` keeps.

    Symmetric, with the counts themselves in the diagonal; range 0 to T; unit: tokens. NaN without tokens.

    Raises:
        ValueError: a count is negative, `top_k` is outside [1, E], or a count exceeds the tokens.

    Source:
        Chen, Dempster & Liu 1994, Biometrika 81:457 † (maximum-entropy sampling with given inclusion rates): as
        commonly given.
    """
    counts_xE = checked_counts(counts_xE)
    n_experts = counts_xE.shape[-1]
    flat_XE = counts_xE.reshape(-1, n_experts)
    tokens_X = _tokens(flat_XE, top_k)
    if (flat_XE > np.nan_to_num(tokens_X)[:, None] * (1 + 1e-9)).any():
        raise ValueError(
            f"counts_xE holds {flat_XE.max():g} of {np.nanmax(tokens_X):g} tokens: an expert is chosen once a token at "
            "most; check top_k"
        )
    pairs_XEE = np.full((len(flat_XE), n_experts, n_experts), np.nan)
    known = np.flatnonzero(tokens_X > 0)
    step = max(1, (1 << 22) // (n_experts**2 * top_k))  # rows at a time: bounds the memory of the polynomials
    for start in range(0, len(known), step):
        rows = known[start : start + step]
        pairs_XEE[rows] = tokens_X[rows, None, None] * _subset_pairs(flat_XE[rows] / tokens_X[rows, None], top_k)
    return pairs_XEE.reshape(*counts_xE.shape, n_experts)


def displaced_pairs(
    pairs_xEE: Num[np.ndarray, "*x E E"], expected_xEE: Num[np.ndarray, "*x E E"]
) -> Float[np.ndarray, "*x"]:
    """Share of the pairs that would have to change for the expected counts, ½ Σ_{i≠j} |N_ij − M_ij| / Σ_{i≠j} N_ij.

    Range [0, 1]; unit 1. NaN without pairs (K = 1). Counting noise raises it: read it beside `sets.swapped_within`.

    Raises:
        ValueError: a count is negative.

    Source:
        ours (a total variation distance).
    """
    apart_EE = ~np.eye(pairs_xEE.shape[-1], dtype=bool)
    pairs, expected = (checked_counts(counts)[..., apart_EE] for counts in (pairs_xEE, expected_xEE))
    total_x = pairs.sum(axis=-1)
    return np.asarray(np.abs(pairs - expected).sum(axis=-1) / 2 / np.where(total_x > 0, total_x, np.nan))


def flow_counts(
    ids_TK: Integer[np.ndarray, "T K"], next_ids_TK: Integer[np.ndarray, "T K"], *, n_experts: int
) -> Int[np.ndarray, "E E"]:
    """J_ij, the tokens that choose i in one layer and j in the other: all K×K pairs. Counts of parts add up.

    Range 0 to T; sum T·K²; unit: tokens. No NaN.

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, appendix †: differs: their script counts pairs of the same
        slot only, and is kept as an oracle in the tests.
    """
    one_TW, two_TW = (as_bits(ids, n_experts=n_experts) for ids in (ids_TK, next_ids_TK))
    return joint_counts(one_TW, two_TW, n_experts=n_experts)


def permuted_flow(
    counts_DxE: Num[np.ndarray, "D *x E"], next_counts_DxE: Num[np.ndarray, "D *x E"], *, top_k: int
) -> Float[np.ndarray, "*x E E"]:
    """The flow expected when one layer's sets are permuted within documents: Σ_d c_di c′_dj / T_d, exactly.

    What is left is what documents alone give. Range 0 to T; unit: tokens. No NaN: a document without tokens adds 0.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    one_DxE, two_DxE = (np.moveaxis(checked_counts(counts), 0, -2) for counts in (counts_DxE, next_counts_DxE))
    tokens_xD1 = np.nan_to_num(_tokens(one_DxE, top_k), nan=1.0)[..., None]
    return np.asarray(np.swapaxes(one_DxE / tokens_xD1, -1, -2) @ two_DxE)


def successor_accuracy(flow_xEE: Num[np.ndarray, "*x E E"], *, top_k: int) -> Float[np.ndarray, "*x"]:
    """How often the most frequent successor of a chosen expert is chosen too, Σ_i max_j J_ij / (T·K).

    Read it beside `mode_accuracy`. The successors are found in the same counts, so noise raises it: `bags` corrects it.

    Range [K/E, 1]; unit 1. NaN without tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    flow_xEE = checked_counts(flow_xEE)
    return np.asarray(flow_xEE.max(axis=-1).sum(axis=-1) / (_flow_tokens(flow_xEE, top_k) * top_k))


def mode_accuracy(flow_xEE: Num[np.ndarray, "*x E E"], *, top_k: int) -> Float[np.ndarray, "*x"]:
    """How often the busiest expert of the second layer is chosen, max_j c_j / T: the accuracy of not looking.

    Range [K/E, 1]; unit 1. NaN without tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    flow_xEE = checked_counts(flow_xEE)
    return np.asarray(flow_xEE.sum(axis=-2).max(axis=-1) / top_k / _flow_tokens(flow_xEE, top_k))


def flow_information(flow_xEE: Num[np.ndarray, "*x E E"], *, top_k: int) -> Float[np.ndarray, "*x"]:
    """What one layer tells about the next, Σ_j max_i I(1[i ∈ S]; 1[j ∈ S′]) over its maximum Σ_j h(p_j).

    For each expert j of the second layer the one expert i of the first that tells most about it. Two equal layers give
    1, also when experts are relabelled; information over the entropy of J itself cannot reach 1 (.038 for equal
    layers, 8 of 64). What several experts of the first layer tell together is not in it. Noise raises it.

    Range [0, 1]; unit 1. NaN without tokens, and where every expert is chosen always or never.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours (mutual information of pairs of indicators).
    """
    flow_xEE = checked_counts(flow_xEE)
    tokens_x11 = _flow_tokens(flow_xEE, top_k)[..., None, None]
    joint = flow_xEE / tokens_x11
    one, two = joint.sum(axis=-1, keepdims=True) / top_k, joint.sum(axis=-2, keepdims=True) / top_k
    cells = np.stack([joint, one - joint, two - joint, 1 - one - two + joint], axis=-1)
    of_joint = entropy(np.clip(cells, 0, 1))
    own_xE = _binary_entropy(two[..., 0, :])
    told_xEE = _binary_entropy(one) + own_xE[..., None, :] - of_joint
    total_x = own_xE.sum(axis=-1)
    return np.asarray(np.maximum(told_xEE.max(axis=-2), 0).sum(axis=-1) / np.where(total_x > 0, total_x, np.nan))


def _binary_entropy(rate_x: np.ndarray) -> np.ndarray:
    rate_x = np.clip(rate_x, 0, 1)
    return entropy(np.stack([rate_x, 1 - rate_x], axis=-1))


def _off_diagonal(values_xEE: np.ndarray) -> np.ndarray:
    return np.where(np.eye(values_xEE.shape[-1], dtype=bool), np.nan, values_xEE)


def _tokens(counts_xE: np.ndarray, top_k: int) -> np.ndarray:
    """T of counts over experts; NaN where there are none."""
    if not 1 <= top_k <= counts_xE.shape[-1]:
        raise ValueError(f"top_k is {top_k}, expected 1 to {counts_xE.shape[-1]} (E): pass K of the recording")
    total_x = np.asarray(counts_xE.sum(axis=-1))
    return np.where(total_x > 0, total_x / top_k, np.nan)


def _flow_tokens(flow_xEE: np.ndarray, top_k: int) -> np.ndarray:
    return np.asarray(_tokens(flow_xEE.sum(axis=-1), top_k) / top_k)


def _subset_pairs(rate_XE: np.ndarray, top_k: int) -> np.ndarray:
    """P(i and j ∈ S) of the K-subset with most entropy at these inclusion rates; the rates in the diagonal."""
    pairs_XEE = rate_XE[:, :, None] * rate_XE[:, None, :]  # right wherever one of the two is always or never chosen
    always_XE = rate_XE > _ALWAYS
    for n_always in np.unique(always_XE.sum(axis=1)).tolist():
        rows = np.flatnonzero(always_XE.sum(axis=1) == n_always)
        left = [np.flatnonzero(~always_E) for always_E in always_XE[rows]]
        size = top_k - n_always
        if size == 0:
            continue
        free = np.stack(left)
        rate = np.take_along_axis(rate_XE[rows], free, axis=1)
        pairs_XEE[rows[:, None, None], free[:, :, None], free[:, None, :]] = _free_pairs(rate, size)
    diagonal = np.arange(rate_XE.shape[1])
    pairs_XEE[:, diagonal, diagonal] = rate_XE
    return pairs_XEE


def _free_pairs(rate_XE: np.ndarray, size: int) -> np.ndarray:
    """Of rates under 1: the weights by Chen, Dempster and Liu's fixed point, then the pairs of those weights.

    The fixed point is slow where an expert is nearly always chosen; Newton's method finishes those rows.
    """
    weight_XE = rate_XE / (1 - rate_XE)
    for _ in range(_STEPS):
        weight_XE, inclusion_XE = _inclusion(weight_XE, size)
        if np.abs(inclusion_XE - rate_XE).max() < _TOLERANCE:
            break
        weight_XE = weight_XE * rate_XE / np.where(weight_XE > 0, inclusion_XE, 1)
    pairs_XEE = _weighted_pairs(weight_XE, size)
    for _ in range(_NEWTON_STEPS):
        weight_XE, inclusion_XE = _inclusion(weight_XE, size)
        slow = np.flatnonzero(np.abs(inclusion_XE - rate_XE).max(axis=1) >= _TOLERANCE)
        if not len(slow):
            break
        weight_XE[slow] *= np.exp(_newton_step(pairs_XEE[slow], inclusion_XE[slow], rate_XE[slow]))
        pairs_XEE[slow] = _weighted_pairs(weight_XE[slow], size)
    return pairs_XEE


def _inclusion(weight_XE: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights with a geometric mean of 1, which changes nothing but their size, and the rates that they give."""
    used_XE = weight_XE > 0
    logs_XE = np.log(np.where(used_XE, weight_XE, 1))
    weight_XE = weight_XE / np.exp(logs_XE.sum(axis=1) / used_XE.sum(axis=1))[:, None]
    inclusion_XE = weight_XE * _without_each(weight_XE, size - 1)
    return weight_XE, inclusion_XE * (size / inclusion_XE.sum(axis=1, keepdims=True))


def _newton_step(pairs_XEE: np.ndarray, inclusion_XE: np.ndarray, rate_XE: np.ndarray) -> np.ndarray:
    """Change of the logarithms of the weights: the covariance of the indicators is the rates' derivative."""
    unit_EE = np.eye(rate_XE.shape[1])
    covariance_XEE = np.where(unit_EE > 0, inclusion_XE[:, None], pairs_XEE)
    covariance_XEE -= inclusion_XE[:, :, None] * inclusion_XE[:, None, :]
    # a common factor of all weights changes nothing, nor does the weight of an expert that is never chosen
    covariance_XEE += 1 / len(unit_EE) + unit_EE * (rate_XE == 0)[:, None]
    step_XE = np.linalg.solve(covariance_XEE, (rate_XE - inclusion_XE)[..., None])[..., 0]
    return np.clip(step_XE, -2, 2)


def _weighted_pairs(weight_XE: np.ndarray, size: int) -> np.ndarray:
    """P(i and j ∈ S) where P(S) ∝ Π w, for i ≠ j."""
    n_rows, n_experts = weight_XE.shape
    if size < 2:
        return np.zeros((n_rows, n_experts, n_experts))
    others_XEE = np.where(np.eye(n_experts, dtype=bool), 0.0, weight_XE[:, None, :])
    without_XEE = _without_each(others_XEE.reshape(-1, n_experts), size - 2).reshape(others_XEE.shape)
    pairs_XEE = weight_XE[:, :, None] * others_XEE * without_XEE
    return pairs_XEE * (size * (size - 1) / pairs_XEE.sum(axis=(1, 2), keepdims=True))


def _without_each(weight_XE: np.ndarray, order: int) -> np.ndarray:
    """The elementary symmetric polynomial of an order of all weights but the e-th, for each e: [X, E].

    From the polynomials of what stands before and after e: only sums of positive numbers, so nothing cancels.
    """
    n_rows, n_experts = weight_XE.shape
    before_EXR, after_EXR = (np.zeros((n_experts + 1, n_rows, order + 1)) for _ in range(2))
    before_EXR[0, :, 0] = after_EXR[n_experts, :, 0] = 1
    for e in range(n_experts):
        before_EXR[e + 1] = before_EXR[e]
        before_EXR[e + 1, :, 1:] += weight_XE[:, e, None] * before_EXR[e, :, :-1]
        back = n_experts - 1 - e
        after_EXR[back] = after_EXR[back + 1]
        after_EXR[back, :, 1:] += weight_XE[:, back, None] * after_EXR[back + 1, :, :-1]
    return np.einsum("exr,exr->xe", before_EXR[:-1], after_EXR[1:, :, ::-1])
