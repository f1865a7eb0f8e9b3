"""Whether experts are chosen by token id: how sharp an id's routing is, and what a domain adds once the id is known.

An id here is any label of a token: its own id, the id predicted after it, the id that does come next. Not here:
prediction on documents that were held out (`heldout`), which has no bias to correct, and domains without the id
(`specialization`). Axes: T tokens, V ids, F folds of clusters of documents, M domains, E routed experts, K chosen per
token; x any further axes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Num

from workbench.statistics.arithmetic import check_ids, checked_counts, group_numbers

_BLOCK_TOKENS = 1 << 14
_BLOCK_IDS = 256  # ids at a time: their tables stay in the cache


def label_counts(
    label_T: Int[np.ndarray, "T"], ids_TK: Integer[np.ndarray, "T K"], *, n_labels: int, n_experts: int
) -> Int[np.ndarray, "V E"]:
    """How often a token with each label chooses each expert, n(v, e). A label is a row index; −1 is none.

    Labels may be compound: `fold · V + id` gives counts [F·V, E], to be reshaped.

    Range 0 to the label's tokens; unit: assignments. No NaN.

    Args:
        label_T: Row of the table that each token counts in; tokens of −1 count nowhere.
        ids_TK: Chosen expert ids.
        n_labels: Rows.
        n_experts: E.

    Raises:
        ValueError: a label lies outside [−1, V), an id outside [0, E), or one token names an expert twice.

    Source:
        ours (a count).
    """
    if len(label_T) and (label_T.min() < -1 or label_T.max() >= n_labels):
        raise ValueError(
            f"label_T spans {label_T.min()} to {label_T.max()}, expected -1 to {n_labels - 1}: pass row indices and "
            "the number of all rows"
        )
    check_ids(ids_TK, n_experts=n_experts)
    return count_cells(label_T, ids_TK, n_labels=n_labels, n_experts=n_experts).astype(np.int64)


def count_cells(
    label_T: Int[np.ndarray, "T"], ids_TK: Integer[np.ndarray, "T K"], *, n_labels: int, n_experts: int
) -> Int[np.ndarray, "V E"]:
    """`label_counts` of ids and labels that are known to be right, as those of a recording are; in 4 bytes each.

    Range, unit: as `label_counts`; 2^31 tokens at most. No NaN.

    Raises:
        Nothing: wrong labels or ids give wrong counts.

    Source:
        ours (a count).
    """
    # one row more, for tokens without a label: cheaper than leaving them out
    counts = np.zeros((n_labels + 1) * n_experts, dtype=np.int32)
    # few tokens at a time: their cells stay in the cache, and so may the table
    for start in range(0, len(label_T), _BLOCK_TOKENS):
        base_T = (label_T[start : start + _BLOCK_TOKENS].astype(np.int64) + 1) * n_experts
        cell_T = (base_T[:, None] + ids_TK[start : start + _BLOCK_TOKENS].astype(np.int64)).ravel()
        if len(counts) <= _BLOCK_TOKENS:
            counts += np.bincount(cell_T, minlength=len(counts)).astype(np.int32)
        else:  # no second table for the sum, which may be larger than all else; quick for values of the table's type
            np.add.at(counts, cell_T, np.int32(1))
    return counts.reshape(n_labels + 1, n_experts)[1:]


def vocabulary_specialization(
    counts_xVE: Num[np.ndarray, "*x V E"], occurrences_V: Num[np.ndarray, "V"], *, min_count: int = 10
) -> Float[np.ndarray, "*x"]:
    """Share of a token's occurrences that its foremost expert takes, Σ_v max_e n(v, e) / Σ_v n(v).

    Over ids with n(v) ≥ `min_count` occurrences, each occurrence with equal weight. Give counts of all K choices (the
    share of occurrences whose set holds the id's foremost expert) or of the first choice alone (the source's main
    figure). The maximum of few counts is large by itself: never without its null, S_t permuted within documents
    (`sets.shuffled_within`), and beside a router that sees the token id alone
    (`specialization.hash_router_counts`), whose value is 1 for the input id.

    Range [1/E, 1] for one choice, [K/E, 1] for all; unit 1. NaN where no id occurs often enough.

    Args:
        counts_xVE: n(v, e), occurrences of v that choose e.
        occurrences_V: n(v).
        min_count: Occurrences that an id needs.

    Raises:
        ValueError: `min_count` is under 1, a count is negative, or an expert is counted more often than its id occurs.

    Source:
        Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5.4 †. Differs: their script
        (scripts/run_moe_analysis.py, `do_token_analysis_layers_experts`) averages over distinct ids, those that occur
        once (share 1 by itself) as much as the rest, with no minimum and no null; its paths with a minimum of 10 print
        lists of ids. A test reproduces theirs from the same input.
    """
    if min_count < 1:
        raise ValueError(
            f"min_count is {min_count}, expected 1 or more: 10 keeps most occurrences and little of the bias"
        )
    if counts_xVE.size and counts_xVE.min() < 0:
        raise ValueError(f"counts hold {counts_xVE.min()}, expected 0 or more: pass assignments")
    most_xV = counts_xVE.max(axis=-1).astype(np.float64)
    if (most_xV > occurrences_V).any():
        raise ValueError(
            "counts_xVE counts an expert more often than its id occurs: pass occurrences_V of the same tokens, one per "
            "token and not one per choice"
        )
    kept_V = occurrences_V >= min_count
    total = float(occurrences_V[kept_V].sum())
    return np.asarray(most_xV[..., kept_V].sum(axis=-1) / (total or np.nan))


def rate_elsewhere(
    token_T: Int[np.ndarray, "T"],
    chosen_T: Bool[np.ndarray, "T"],
    *,
    cluster_T: Int[np.ndarray, "T"],
    of_all_2V: tuple[Int[np.ndarray, "V"], Int[np.ndarray, "V"]] | None = None,
) -> Float[np.ndarray, "T"]:
    """How often the token's id chooses an expert in other clusters, (n(v, e) − n_u(v, e)) / (n(v) − n_u(v)).

    Its mean over a domain's tokens is the rate that the domain would have if its words alone decided, each as
    everywhere else; no token is its own evidence, nor is its document.

    Range [0, 1]; unit 1. NaN for a token whose id no other cluster has. Under routing that does not look at the id it
    is the expert's rate on the mean.

    Args:
        token_T: Token ids.
        chosen_T: Whether the token chose the expert.
        cluster_T: u, the cluster of the token's document.
        of_all_2V: n(v) and n(v, e) of all tokens, by id, where those given are some clusters of them, whole; else the
            tokens given are all.

    Raises:
        ValueError: an id or a cluster is negative, or the counts of all are less than those of the tokens given.

    Source:
        ours (direct standardization, as commonly given †, with rates of other clusters).
    """
    for name, values_T in (("token_T", token_T), ("cluster_T", cluster_T)):
        if len(values_T) and values_T.min() < 0:
            raise ValueError(f"{name} holds {values_T.min()}, expected 0 or more: leave padding out")
    if of_all_2V is None:
        of_all_2V = np.bincount(token_T), np.bincount(token_T, chosen_T).astype(np.int64)
    pair_T = group_numbers(token_T, cluster_T)
    others_T, chosen_others_T = (
        of_all_V[token_T] - np.bincount(pair_T, weight_T)[pair_T]
        for of_all_V, weight_T in zip(of_all_2V, (None, chosen_T), strict=True)
    )
    if (others_T < 0).any() or (chosen_others_T < 0).any():
        raise ValueError("of_all_2V counts fewer tokens than were given: pass the counts of the whole, by token id")
    return chosen_others_T / np.where(others_T > 0, others_T, np.nan)


@dataclass(frozen=True, eq=False)
class GivenToken:
    """What the domain says about the set of experts, in overlap. `domain_information_given_token` says how."""

    value: float
    """Of those who know the token id."""
    alone: float
    """Of those who do not, over the same tokens."""
    value_without_F: Float[np.ndarray, "F"]
    """The value without each fold in turn, for `folds.jackknife_interval`."""
    alone_without_F: Float[np.ndarray, "F"]
    tokens: int
    """Occurrences of the ids that stand in two domains, in two folds each."""


def domain_information_given_token(
    counts_VFME: Num[np.ndarray, "V F M E"], tokens_VFM: Num[np.ndarray, "V F M"], *, top_k: int
) -> GivenToken:
    """How much is left of the domain's information about the routing when the token id is known, in overlap of sets.

    For an id v and domains m, m′ let A_mm′ be the mean overlap |S ∩ S′|/K of an occurrence of v in m and one in m′.
    θ_v = mean_m A_mm − mean_{m≠m′} A_mm′, the mean of ½|p_m − p_m′|²/K, with p_m the rates at which v in m chooses
    each expert. Pairs are of different folds, hence of different clusters of documents, so neither counting noise nor
    a document's own taste enters: where the domain says nothing the expectation is 0 at any sample size, and the value
    may lie a little below. Ids weigh by their occurrences, an id's domains alike; a domain where the id stands in one
    fold only is left out, and so is an id with fewer than two domains. `alone` is the same of these tokens as if they
    were all of one id; it may be the smaller one, where what a domain changes cancels over ids. A router that sees the
    token id alone has the value 0.

    Range [−1, 1]; unit: share of the set. NaN where no id stands in two domains, in two folds each.

    Args:
        counts_VFME: Occurrences of v in fold f and domain m that choose e.
        tokens_VFM: Occurrences.
        top_k: K.

    Raises:
        ValueError: there are fewer than three folds, a count is negative, or counts are not K times the tokens.

    Source:
        ours (an unbiased U-statistic of the squared distance between rates).
    """
    _, n_folds, n_domains, _ = counts_VFME.shape
    if n_folds < 3:
        raise ValueError(f"counts_VFME has {n_folds} folds, expected 3 or more: pairs are of different folds")
    usable_VM = (tokens_VFM > 0).sum(axis=1) >= 2
    usable_VM &= usable_VM.sum(axis=1, keepdims=True) >= 2
    kept = np.flatnonzero(usable_VM.any(axis=1))
    tokens_VFM = (tokens_VFM * usable_VM[:, None]).astype(np.float64)
    sums_VGMM = np.empty((len(kept), 1 + n_folds, n_domains, n_domains))
    whole_FME = np.zeros(counts_VFME.shape[1:])
    for start in range(0, len(kept), _BLOCK_IDS):
        block = kept[start : start + _BLOCK_IDS]
        counts_BFME = checked_counts(counts_VFME[block]) * usable_VM[block, None, :, None]
        if not np.array_equal(counts_BFME.sum(axis=-1), top_k * tokens_VFM[block]):
            raise ValueError(f"counts_VFME does not hold top_k = {top_k} assignments a token: pass counts of all K")
        sums_VGMM[start : start + len(block)] = _of_different_folds(counts_BFME)
        whole_FME += counts_BFME.sum(axis=0)
    given_G = _distance(sums_VGMM, tokens_VFM[kept]) / top_k
    alone_G = _distance(_of_different_folds(whole_FME[None]), tokens_VFM.sum(axis=0)[None]) / top_k
    return GivenToken(
        value=float(given_G[0]),
        alone=float(alone_G[0]),
        value_without_F=given_G[1:],
        alone_without_F=alone_G[1:],
        tokens=int(tokens_VFM.sum()),
    )


def _distance(sums_VGMM: np.ndarray, tokens_VFM: np.ndarray) -> np.ndarray:
    """Mean θ_v over ids, weighted by occurrences; of all folds, then without each: [1 + F]."""
    pairs_VGMM = _of_different_folds(tokens_VFM[..., None])
    known_VGMM = pairs_VGMM > 0.5
    mean_VGMM = sums_VGMM / np.where(known_VGMM, pairs_VGMM, 1)
    same_MM = np.eye(tokens_VFM.shape[2], dtype=bool)
    theta_VG = _mean(mean_VGMM, known_VGMM & same_MM) - _mean(mean_VGMM, known_VGMM & ~same_MM)
    size_VG = np.where(np.isnan(theta_VG), 0, tokens_VFM.sum(axis=(1, 2))[:, None])
    total_G = size_VG.sum(axis=0)
    return (np.nan_to_num(theta_VG) * size_VG).sum(axis=0) / np.where(total_G > 0, total_G, np.nan)


def _of_different_folds(of_VFMx: np.ndarray) -> np.ndarray:
    """Sums over pairs of different folds of products of domains m and m′.

    Of all folds, then without each: [V, 1 + F, M, M].
    """
    whole_VxM = np.swapaxes(of_VFMx.sum(axis=1), 1, 2)
    with_others_VFMM = of_VFMx @ whole_VxM[:, None] - of_VFMx @ np.swapaxes(of_VFMx, 2, 3)
    all_VMM = with_others_VFMM.sum(axis=1)
    without_VFMM = all_VMM[:, None] - with_others_VFMM - np.swapaxes(with_others_VFMM, 2, 3)
    return np.concatenate([all_VMM[:, None], without_VFMM], axis=1)


def _mean(value_VGMM: np.ndarray, where_VGMM: np.ndarray) -> np.ndarray:
    n_VG = where_VGMM.sum(axis=(2, 3))
    return (value_VGMM * where_VGMM).sum(axis=(2, 3)) / np.where(n_VG > 0, n_VG, np.nan)
