"""How alike two choices of experts are for the same token: in two recordings, or at two places in the corpus.

Sums by document, so memory does not grow with tokens. Axes: T tokens, D documents, V labels (token ids), N labels that
occur in a part, P pairs of a document and a label, E routed experts, K chosen per token, W words of bits; x any further
axes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, Num, UInt64

from workbench.metrics._arithmetic import checked_counts, t_quantile, variance_of_total
from workbench.metrics.clusters import Clusters
from workbench.metrics.sets import overlap
from workbench.metrics.uncertainty import Interval


def saturation(
    bits_TW: UInt64[np.ndarray, "T W"], other_TW: UInt64[np.ndarray, "..."], *, top_k: int
) -> Float[np.ndarray, "T"]:
    """Share of a token's experts that the other recording of it chose too, |S ∩ S′| / K.

    Its mean over tokens is the router saturation of a checkpoint against the last one. Range [0, 1]; unit 1. No NaN.
    Ceiling: the same model recorded again (other batches, other dtype). Floors: `uniform_agreement` K/E and
    `load_matched_agreement`.

    Raises:
        ValueError: `top_k` is under 1, or the two have another number of tokens.

    Source:
        Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5.1: as published, over all K.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, wanted 1 or more: pass K of the recording")
    if bits_TW.shape != other_TW.shape:
        raise ValueError(
            f"the recordings have {bits_TW.shape} and {other_TW.shape} words, wanted the same: pass the same tokens in "
            "the same order"
        )
    return overlap(bits_TW, other_TW) / top_k


def load_matched_agreement(
    counts_xE: Num[np.ndarray, "*x E"], other_counts_xE: Num[np.ndarray, "*x E"], *, top_k: int
) -> Float[np.ndarray, "*x"]:
    """Agreement of two independent routers with these loads, Σ_e p_e p′_e / K. K/E where one of them is even.

    Range [0, 1]; unit 1. NaN without tokens.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    if not 1 <= top_k <= counts_xE.shape[-1]:
        raise ValueError(f"top_k is {top_k}, wanted 1 to {counts_xE.shape[-1]} (E): pass K of the recording")
    one, two = (checked_counts(counts) for counts in (counts_xE, other_counts_xE))
    product_x = one.sum(axis=-1) * two.sum(axis=-1)
    return np.asarray(top_k * (one * two).sum(axis=-1) / np.where(product_x > 0, product_x, np.nan))


@dataclass(frozen=True, eq=False)
class Labels:
    """What tokens have in common (their token id, their position) and which document each is in. Made by `labels`."""

    present_N: Int[np.ndarray, "N"]
    """The labels that occur here, ascending."""
    label_T: Int[np.ndarray, "T"]
    """Each token's label, as its place among those."""
    document_T: Int[np.ndarray, "T"]
    cell_T: Int[np.ndarray, "T"]
    """Each token's pair of document and label."""
    cell_document_P: Int[np.ndarray, "P"]
    cell_label_P: Int[np.ndarray, "P"]
    """As a place among those that occur."""
    cell_tokens_P: Int[np.ndarray, "P"]
    n_labels: int
    n_documents: int

    @property
    def tokens_N(self) -> Int[np.ndarray, "N"]:
        """Tokens of each label that occurs; adds up over parts."""
        return np.bincount(self.label_T, minlength=len(self.present_N))

    @property
    def squares_N(self) -> Int[np.ndarray, "N"]:
        """Σ_d n_dv², the ordered pairs of tokens of a label within documents; adds up over parts of whole documents."""
        squares_P = self.cell_tokens_P.astype(np.float64) ** 2
        return np.bincount(self.cell_label_P, weights=squares_P, minlength=len(self.present_N)).astype(np.int64)


def labels(
    label_T: Int[np.ndarray, "T"], document_T: Int[np.ndarray, "T"], *, n_labels: int, n_documents: int
) -> Labels:
    """Finds which tokens share label and document; once for all layers. No NaN.

    Args:
        label_T: 0 to V − 1.
        document_T: Row of each token's document, 0 to D − 1.
        n_labels: V.
        n_documents: D.

    Raises:
        ValueError: a label lies outside [0, V), or a document outside [0, D).

    Source:
        ours.
    """
    for name, values_T, n in (("label_T", label_T, n_labels), ("document_T", document_T, n_documents)):
        if len(values_T) and (values_T.min() < 0 or values_T.max() >= n):
            raise ValueError(
                f"{name} spans {values_T.min()} to {values_T.max()}, wanted 0 to {n - 1}: pass 0-based numbers and how "
                "many there are"
            )
    present_N, local_T = np.unique(label_T, return_inverse=True)
    key_T = document_T.astype(np.int64) * max(len(present_N), 1) + local_T
    key_P, cell_T, n_P = np.unique(key_T, return_inverse=True, return_counts=True)
    cells = np.divmod(key_P, max(len(present_N), 1))
    return Labels(present_N, local_T, document_T, cell_T, *cells, n_P, n_labels, n_documents)


def label_counts(ids_TK: Integer[np.ndarray, "T K"], of: Labels, *, n_experts: int) -> Int[np.ndarray, "N E"]:
    """Assignments to each expert by label, of the labels that occur here: add them to rows `present_N` of the whole.

    Range 0 to the label's tokens; unit: assignments. No NaN.

    Raises:
        ValueError: an id lies outside [0, E).

    Source:
        ours (a count).
    """
    if ids_TK.size and not 0 <= int(ids_TK.min()) <= int(ids_TK.max()) < n_experts:
        raise ValueError(
            f"ids_TK spans {ids_TK.min()} to {ids_TK.max()}, wanted 0 to {n_experts - 1}: check n_experts, and that "
            "ids are of routed experts of one layer"
        )
    cell_TK = of.label_T[:, None] * n_experts + ids_TK
    n_rows = len(of.present_N)
    return np.bincount(cell_TK.ravel(), minlength=n_rows * n_experts).reshape(n_rows, n_experts)


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over pairs of tokens of different documents, by the document of the first of the two.

    Pairs are ordered, so a pair is in the sums of both its documents. Sums of parts add up. x: ways to weigh pairs.
    """

    overlap_Dx: Float[np.ndarray, "D *x"]
    """Experts in common, times the pair's weight."""
    pairs_Dx: Float[np.ndarray, "D *x"]
    """Pairs, times their weight."""


def pair_sums(
    ids_TK: Integer[np.ndarray, "T K"],
    of: Labels,
    *,
    counts_VE: Num[np.ndarray, "V E"],
    weight_Vx: Num[np.ndarray, "V *x"],
) -> PairSums:
    """Overlap with all tokens of the same label in other documents, without going through the pairs.

    Σ_{t∈d} Σ_{e∈S_t} C_{v(t),e} − Σ_v |c_dv|², where C are the counts of the whole corpus (`label_counts`) and c_dv
    those of a document. The tokens may be a part, with whole documents in it; the counts may not.

    Overlap in [0, K] for each pair; unit: experts. No NaN.

    Args:
        ids_TK: Chosen experts.
        of: The tokens' labels and documents.
        counts_VE: C.
        weight_Vx: Of the pairs of each label: ones, or `token_weights`.

    Raises:
        ValueError: the counts are of another number of labels.

    Source:
        ours (the sums of a U-statistic over pairs of documents).
    """
    if len(counts_VE) != of.n_labels:
        raise ValueError(f"counts_VE has {len(counts_VE)} rows, wanted {of.n_labels}: those of `label_counts`")
    n_experts, top_k = counts_VE.shape[1], ids_TK.shape[1]
    counts_NE = counts_VE[of.present_N]  # few rows, which stay in the cache
    tokens_N = counts_NE.sum(axis=1) / max(top_k, 1)
    weight_Nx = weight_Vx[of.present_N]
    flat, row_T = counts_NE.ravel(), of.label_T * n_experts
    with_all_T = np.zeros(len(row_T))
    for k in range(top_k):
        with_all_T += flat[row_T + ids_TK[:, k]]

    def by_document(of_T: np.ndarray, of_P: np.ndarray) -> np.ndarray:
        sums = np.zeros((of.n_documents, int(np.prod(weight_Vx.shape[1:]))))
        for x, weight_N in enumerate(weight_Nx.reshape(len(of.present_N), sums.shape[1]).T):
            sums[:, x] = np.bincount(of.document_T, of_T * weight_N[of.label_T], of.n_documents)
            sums[:, x] -= np.bincount(of.cell_document_P, of_P * weight_N[of.cell_label_P], of.n_documents)
        return sums.reshape(of.n_documents, *weight_Vx.shape[1:])

    within_P = _squares(ids_TK, of, n_experts)
    return PairSums(
        by_document(with_all_T, within_P), by_document(tokens_N[of.label_T], of.cell_tokens_P.astype(np.float64) ** 2)
    )


def document_pair_sums(
    counts_DE: Num[np.ndarray, "D E"],
    label_D: Int[np.ndarray, "D"],
    *,
    weight_Vx: Num[np.ndarray, "V *x"],
    top_k: int,
) -> PairSums:
    """`pair_sums` where all tokens of a document have one label (its domain): read off the documents' counts.

    Overlap in [0, K] for each pair; unit: experts. No NaN.

    Args:
        counts_DE: Assignments of each document.
        label_D: The documents' labels, 0 to V − 1.
        weight_Vx: Of the pairs of each label.
        top_k: K.

    Raises:
        ValueError: a count is negative.

    Source:
        ours.
    """
    counts_DE = checked_counts(counts_DE)
    tokens_D = counts_DE.sum(axis=1) / top_k
    counts_VE = np.zeros((len(weight_Vx), counts_DE.shape[1]))
    np.add.at(counts_VE, label_D, counts_DE)
    overlap_D = (counts_DE * (counts_VE[label_D] - counts_DE)).sum(axis=1)
    pairs_D = tokens_D * (counts_VE.sum(axis=1)[label_D] / top_k - tokens_D)
    weight_Dx = weight_Vx[label_D]
    rest = (slice(None), *[None] * (weight_Vx.ndim - 1))
    return PairSums(overlap_D[rest] * weight_Dx, pairs_D[rest] * weight_Dx)


def token_weights(tokens_V: Num[np.ndarray, "V"], squares_V: Num[np.ndarray, "V"]) -> Float[np.ndarray, "V"]:
    """Weights of pairs that let each token count once, n_v / (n_v² − Σ_d n_dv²).

    With weights of 1 the mean is over pairs, and nearly all pairs are of a few frequent tokens. Range [0, ∞); unit:
    tokens a pair. 0 for a label that no two documents share; no NaN.

    Args:
        tokens_V: Tokens of each label.
        squares_V: `Labels.squares_N` of the whole corpus.

    Raises:
        Nothing.

    Source:
        ours.
    """
    pairs_V = tokens_V.astype(np.float64) ** 2 - squares_V
    return np.where(pairs_V > 0, tokens_V / np.where(pairs_V > 0, pairs_V, 1), 0.0)


def other_pair_sums(counts_DE: Num[np.ndarray, "D E"], same: PairSums, *, top_k: int) -> PairSums:
    """The sums over pairs of tokens of different documents that do not have one label: all pairs less `same`.

    `same` must have weights of 1. Overlap in [0, K] for each pair; unit: experts. No NaN.

    Raises:
        ValueError: a count is negative, or `top_k` is outside [1, E].

    Source:
        ours.
    """
    if not 1 <= top_k <= counts_DE.shape[-1]:
        raise ValueError(f"top_k is {top_k}, wanted 1 to {counts_DE.shape[-1]} (E): pass K of the recording")
    counts_DE = checked_counts(counts_DE)
    tokens_D = counts_DE.sum(axis=1) / top_k
    all_D = counts_DE @ counts_DE.sum(axis=0) - (counts_DE**2).sum(axis=1)
    return PairSums(all_D - same.overlap_Dx, tokens_D * (tokens_D.sum() - tokens_D) - same.pairs_Dx)


def agreement_rate(sums: PairSums, *, top_k: int) -> Float[np.ndarray, "*x"]:
    """Mean |S∩S′|/K over the pairs. `same_token_agreement` subtracts two of them, with an interval.

    Range [0, 1]; unit 1. NaN without pairs.

    Raises:
        Nothing.

    Source:
        ours.
    """
    return _influence(sums, top_k)[0]


def same_token_agreement(
    same: PairSums, other: PairSums, *, top_k: int, clusters: Clusters, level: float = 0.95
) -> Interval:
    """How much more alike two tokens route when they have one label: mean |S∩S′|/K of those pairs less of the others.

    Both tokens of a pair are of different documents, so a document's own preference does not enter: 0 if the label has
    nothing to do with routing, 1 if it decides it all and other labels have nothing in common. The interval takes each
    document's part in the pairs (the first term of the statistic's Hoeffding decomposition, twice); documents of one
    cluster keep their pairs with each other.

    Range [−1, 1]; unit 1. NaN without pairs; low and high also where a domain has fewer than 8 clusters. Measured
    coverage of 95 %: 94 % with 12 documents in each of 2 domains.

    Args:
        same: Of pairs with one label (`pair_sums`).
        other: Of the others (`other_pair_sums`).
        top_k: K.
        clusters: The design.
        level: Nominal coverage.

    Raises:
        ValueError: `level` is outside (0, 1).

    Source:
        ours, after Hoeffding 1948, Ann. Math. Stat. 19:293 † (U-statistics).
    """
    (value, influence_D), (other_value, other_D) = (_influence(sums, top_k) for sums in (same, other))
    quantile = t_quantile(clusters.degrees_of_freedom, level)
    reach_x = quantile * np.sqrt(variance_of_total(clusters.sum(influence_D - other_D), clusters))
    method = "linearized U-statistic of pairs of documents, t"
    return Interval.around(np.asarray(value - other_value), np.asarray(reach_x), clusters, method=method, level=level)


def _influence(sums: PairSums, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean over pairs, and each document's part in its error."""
    pairs_x = sums.pairs_Dx.sum(axis=0)
    pairs_x = np.where(pairs_x > 0, pairs_x, np.nan)
    mean_x = sums.overlap_Dx.sum(axis=0) / top_k / pairs_x
    return np.asarray(mean_x), 2 * (sums.overlap_Dx / top_k - mean_x * sums.pairs_Dx) / pairs_x


def _squares(ids_TK: np.ndarray, of: Labels, n_experts: int) -> np.ndarray:
    """|c|² of each pair of document and label; a pair of one token has K, and only the others are counted out."""
    squares_P = np.full(len(of.cell_tokens_P), float(ids_TK.shape[1]))
    several_P = of.cell_tokens_P > 1
    row_P = np.cumsum(several_P) - 1
    held_T = several_P[of.cell_T]
    cell_TK = row_P[of.cell_T[held_T]][:, None] * n_experts + ids_TK[held_T]
    n_rows = int(several_P.sum())
    counts = np.bincount(cell_TK.ravel(), minlength=n_rows * n_experts).reshape(n_rows, n_experts)
    squares_P[several_P] = (counts.astype(np.float64) ** 2).sum(axis=1)
    return squares_P
