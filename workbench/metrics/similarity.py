"""How alike experts are: their parameters, their router rows, and their neurons matched one by one.

What an expert computes does not change when its neurons change places, so the cosine of flattened parameters is a lower
bound that can miss a copy altogether; matched neurons cannot. Axes: N vectors, E experts, F neurons of an expert, G
neurons of the other, P parts of a neuron (gate row, up row, down column), C model width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats


def cosine_similarity(vectors_NX: Float[np.ndarray, "N X"]) -> Float[np.ndarray, "N N"]:
    """cos(a, b) = ⟨a, b⟩ / (‖a‖ ‖b‖) of every pair of vectors.

    Range [−1, 1]; unit 1. NaN for a vector of zeros, also with itself. Not changed by scaling a vector.

    Raises:
        ValueError: a value is NaN or infinite.

    Source:
        Elementary; as commonly given.
    """
    if not np.isfinite(vectors_NX).all():
        broken = int(np.flatnonzero(~np.isfinite(vectors_NX).all(axis=1))[0])
        raise ValueError(f"vector {broken} holds NaN or infinite values, expected finite ones: the weights are broken")
    norm_N = np.linalg.norm(vectors_NX, axis=1)
    unit_NX = vectors_NX / np.where(norm_N > 0, norm_N, np.nan)[:, None]
    return np.clip(unit_NX @ unit_NX.T, -1, 1)


def router_similarity(rows_EC: Float[np.ndarray, "E C"]) -> Float[np.ndarray, "E E"]:
    """Cosine of the router's rows less their mean row.

    The same vector added to all rows changes no choice (and no softmax), so what the rows have in common is taken out.
    Range [−1, 1]; unit 1; −1/(E−1) on the mean for rows drawn alike. NaN where a row equals the mean.

    Raises:
        ValueError: a value is NaN or infinite.

    Source:
        ours (a cosine; rows are centred).
    """
    return cosine_similarity(rows_EC - rows_EC.mean(axis=0, keepdims=True))


@dataclass(frozen=True, eq=False)
class Match:
    """Each neuron's most similar candidate and the similarity to it."""

    candidate_F: Int[np.ndarray, "F"]
    similarity_F: Float[np.ndarray, "F"]


def best_match(neurons_FPC: Float[np.ndarray, "F P C"], candidates_GPC: Float[np.ndarray, "G Q X"]) -> Match:
    """The candidate neuron most similar to each neuron: max_g mean_p cos(neuron_fp, candidate_gp).

    Each part of a neuron counts alike, so that scaling up against down, which leaves the function as it is, changes
    nothing. A candidate may be the best of several neurons: an upcycled expert may hold one parent neuron twice, which
    a one-to-one (Hungarian) match could not say. The maximum over many candidates is above 0 for unrelated neurons too:
    compare with candidates whose coordinates are shuffled.

    Range [−1, 1]; unit 1. A part of zeros counts as cosine 0; no NaN. Of equal candidates the first.

    Raises:
        ValueError: the two differ in parts or width, or there is no candidate.

    Source:
        ours.
    """
    if neurons_FPC.shape[1:] != candidates_GPC.shape[1:] or not len(candidates_GPC):
        raise ValueError(
            f"neurons have shape {neurons_FPC.shape} and candidates {candidates_GPC.shape}; expected the same parts "
            "and width, and one candidate or more: take both from models of the same width"
        )
    similarity_FG = _unit(neurons_FPC) @ _unit(candidates_GPC).T
    return Match(similarity_FG.argmax(axis=1), similarity_FG.max(axis=1))


def matched_similarity(neurons_EFPC: Float[np.ndarray, "E F P C"]) -> Float[np.ndarray, "E E"]:
    """M[i, j]: mean over the neurons of expert i of their `best_match` among those of expert j.

    Range [−1, 1]; unit 1; 1 on the diagonal, and for experts that differ in the order of neurons alone. Not symmetric:
    i may be a part of what j has. NaN nowhere (parts of zeros count as cosine 0).

    Raises:
        ValueError: as `best_match`.

    Source:
        ours.
    """
    return np.array([[best_match(one, other).similarity_F.mean() for other in neurons_EFPC] for one in neurons_EFPC])


def linear_cka(neurons_EFPC: Float[np.ndarray, "E F P C"]) -> Float[np.ndarray, "E E"]:
    """‖W_i W_jᵀ‖² / (‖W_i W_iᵀ‖ ‖W_j W_jᵀ‖), Frobenius, mean over parts; W [F, C] a part of an expert, rows centred.

    Linear centred kernel alignment with the model's coordinates as examples and an expert's neurons as features: the
    order of neurons, their signs, and any rotation among them change nothing, nor does a scale common to a part.

    Range [0, 1]; unit 1; 1 on the diagonal. Unrelated neurons give about F/(F + C). NaN for an expert with a part of
    zeros (or of rows that are all alike).

    Raises:
        ValueError: a value is NaN or infinite.

    Source:
        Kornblith et al. 2019, arXiv:1905.00414, linear CKA; applied to parameters instead of activations: ours.
    """
    if not np.isfinite(neurons_EFPC).all():
        raise ValueError("neurons_EFPC holds NaN or infinite values, expected finite ones: the weights are broken")
    centred_EFPC = neurons_EFPC - neurons_EFPC.mean(axis=-1, keepdims=True)
    cross_PEE = np.einsum("ifpc,jgpc->pijfg", centred_EFPC, centred_EFPC)
    squares_PEE = (cross_PEE**2).sum(axis=(-1, -2))
    own_PE = np.sqrt(np.einsum("pii->pi", squares_PEE))
    own_PE = np.where(own_PE > 0, own_PE, np.nan)
    return (squares_PEE / (own_PE[:, :, None] * own_PE[:, None])).mean(axis=0)


@dataclass(frozen=True)
class Agreement:
    """A rank correlation of two similarities over pairs of experts, with what experts relabelled at random give."""

    correlation: float
    null_low: float
    null_high: float
    p: float


def similarity_agreement(
    one_EE: Float[np.ndarray, "E E"], other_EE: Float[np.ndarray, "G G"], *, n_draws: int = 999, seed: int = 0
) -> Agreement:
    """Spearman's correlation of two similarities over the pairs i < j, each the mean of both directions.

    Null: the experts of the second are relabelled at random, rows and columns together (pairs that share an expert are
    not independent). p = (b + 1)/(m + 1), two-sided; `null_low` and `null_high` are its 2.5 and 97.5 % quantiles.

    Range [−1, 1]; unit 1. NaN where fewer than 4 experts are left, or a similarity is the same for all pairs. Experts
    with NaN in either are left out.

    Raises:
        ValueError: the two are of different experts.

    Source:
        Mantel 1967, Cancer Research 27:209 †; differs: ranks instead of values.
    """
    if one_EE.shape != other_EE.shape:
        raise ValueError(
            f"similarities are of {len(one_EE)} and {len(other_EE)} experts; expected the same ones in both"
        )
    known_E = ~(np.isnan(np.diag(one_EE)) | np.isnan(np.diag(other_EE)))
    one, other = (((s + s.T) / 2)[np.ix_(known_E, known_E)] for s in (one_EE, other_EE))
    n = len(one)
    pairs = np.triu_indices(n, k=1)
    nothing = Agreement(np.nan, np.nan, np.nan, np.nan)
    if n < 4:
        return nothing
    rank_one, rank_other = stats.rankdata(one[pairs]), np.zeros((n, n))
    rank_other[pairs] = stats.rankdata(other[pairs])
    rank_other += rank_other.T
    centred = rank_one - rank_one.mean()
    spread = np.linalg.norm(centred) * np.linalg.norm(rank_other[pairs] - rank_other[pairs].mean())
    if spread == 0:
        return nothing
    rng = np.random.default_rng(seed)
    drawn = np.empty(n_draws)
    for i in range(n_draws):
        order = rng.permutation(n)
        drawn[i] = centred @ rank_other[order][:, order][pairs] / spread
    value = float(centred @ rank_other[pairs] / spread)
    low, high = np.quantile(drawn, [0.025, 0.975])
    beyond = int((np.abs(drawn) >= abs(value) - 1e-12).sum())
    return Agreement(value, float(low), float(high), (beyond + 1) / (n_draws + 1))


def _unit(neurons_FPC: np.ndarray) -> np.ndarray:
    """[F, P·C], so that a product is the mean over parts of their cosines."""
    norm_FP1 = np.linalg.norm(neurons_FPC, axis=-1, keepdims=True)
    unit_FPC = neurons_FPC / np.where(norm_FP1 > 0, norm_FP1, 1) / np.sqrt(neurons_FPC.shape[1])
    return unit_FPC.reshape(len(neurons_FPC), -1)
