"""How well a token's experts are predicted from what is known of the token, on documents that were not learned from.

Log-loss of the chosen experts, in nats per assignment: the gain over the load alone is the information that a simple
predictor could use, and is not raised by counting noise as plug-in information is. A lower bound: another predictor may
do better, and a rare context shows nothing. "Predictable from", not mechanism. Axes: T tokens, V ids, F folds of
clusters of documents, E routed experts, K chosen per token, X contexts, S strengths of shrinkage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, Num

from workbench.statistics.arithmetic import check_ids, checked_counts

STRENGTHS = (0.5, 4.0, 32.0, np.inf)  # tokens that the broader prediction counts for; inf ignores the context
MIXTURES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # weights of what is known before
_START = 0.5  # assignments that each expert has before any was seen


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Log-loss gains on held-out folds."""

    gain_F: Float[np.ndarray, "F"]
    """Sum over the fold's assignments of ln P − ln P of the load alone, nats."""
    assignments_F: Float[np.ndarray, "F"]
    load_loss_F: Float[np.ndarray, "F"]
    """Sum of −ln P of the load alone: what there was to gain, less ln K for each assignment."""
    strength_F: Float[np.ndarray, "F"]
    """Shrinkage that the other folds chose."""

    @property
    def gain(self) -> float:
        """Nats per assignment."""
        return float(self.gain_F.sum() / (self.assignments_F.sum() or np.nan))

    def ceiling(self, top_k: int) -> float:
        """The gain of one who knew every set: each of its K experts has probability 1/K."""
        return float(self.load_loss_F.sum() / (self.assignments_F.sum() or np.nan) - np.log(top_k))


def token_predictability(
    counts_FVE: Num[np.ndarray, "F V E"], other_FE: Num[np.ndarray, "F E"], *, top_k: int
) -> HeldOut:
    """Gain in predicting a chosen expert from the token's id, P(e | v) against P(e), on held-out folds.

    P(e) is the load of the other folds (each expert ½ more), P(e | v) = (n(v, e) + αK·P(e)) / (n(v)K + αK) of the
    other folds, and the gain the mean over the fold's assignments of ln P(e | v) − ln P(e). α is that of `STRENGTHS`
    with the largest gain on the folds other than the one predicted, so ids that say nothing end at α = ∞, gain 0. An id
    of one fold is predicted by the load: such ids may be left out of the table, and their assignments given beside it.

    Range (−∞, `HeldOut.ceiling`]; unit nats per assignment. NaN without assignments. Expected under routing that does
    not look at the id: 0, or a little under it. A router by token id alone reaches what the ids seen before allow, not
    the ceiling: `specialization.hash_router_counts` shows how much.

    Args:
        counts_FVE: Assignments by fold, id and expert.
        other_FE: Assignments of tokens that are not in the table.
        top_k: K.

    Raises:
        ValueError: there are fewer than two folds, or a count is negative.

    Source:
        ours (Dirichlet smoothing, MacKay & Peto 1995 †, with its strength from held-out folds).
    """
    if len(counts_FVE) < 2:
        raise ValueError(
            f"counts_FVE has {len(counts_FVE)} folds, expected 2 or more: one is predicted from the others"
        )
    if counts_FVE.size and counts_FVE.min() < 0:
        raise ValueError(f"counts hold {counts_FVE.min()}, expected 0 or more: pass assignments")
    n_folds, n_ids, n_experts = counts_FVE.shape
    cell = np.flatnonzero(counts_FVE)  # few of the cells are not 0: sums over them alone are cheap
    count = counts_FVE.ravel()[cell].astype(np.float64)
    fold, id_and_expert = np.divmod(cell, n_ids * n_experts)
    v, expert = np.divmod(id_and_expert, n_experts)

    def summed(by: np.ndarray, size: int) -> np.ndarray:
        return np.bincount(by, weights=count, minlength=size)

    of_fold_FE = summed(fold * n_experts + expert, n_folds * n_experts).reshape(n_folds, n_experts)
    of_fold_FE = of_fold_FE + checked_counts(other_FE)
    load_FE = of_fold_FE.sum(axis=0) - of_fold_FE + _START
    load_FE /= load_FE.sum(axis=1, keepdims=True)
    seen = (summed(id_and_expert, n_ids * n_experts)[id_and_expert] - count) / load_FE[fold, expert]
    of_id = summed(v, n_ids)[v] - summed(fold * n_ids + v, n_folds * n_ids)[fold * n_ids + v]
    gain_SF = np.zeros((len(STRENGTHS), n_folds))
    for s, strength in enumerate(STRENGTHS):
        if np.isfinite(strength):
            weight = strength * top_k
            gain_SF[s] = np.bincount(
                fold, weights=count * np.log((seen + weight) / (of_id + weight)), minlength=n_folds
            )
    chosen_F = _best_elsewhere(gain_SF)
    return HeldOut(
        gain_F=gain_SF[chosen_F, np.arange(n_folds)],
        assignments_F=of_fold_FE.sum(axis=1),
        load_loss_F=-(of_fold_FE * np.log(load_FE)).sum(axis=1),
        strength_F=np.array(STRENGTHS)[chosen_F],
    )


def context_gains(
    contexts: Sequence[Integer[np.ndarray, "T"]],
    ids_TK: Integer[np.ndarray, "T K"],
    *,
    fold_T: Int[np.ndarray, "T"],
    n_folds: int,
    n_experts: int,
) -> list[HeldOut]:
    """Gains of nested contexts, each beside all before it: `token_predictability`, step by step.

    Step j knows the values of contexts 0 to j together. It mixes P_{j−1} with the prediction from context j alone, M =
    λP_{j−1} + (1 − λ)P(e | x_j), and shrinks towards it what the combination says: P_j(e) = (n_j(e) + αK·M(e)) /
    (n_j·K + αK), where n_j counts tokens of other folds with the same values of all. P_{−1} is the load. A combination
    not seen before leaves M. Each step chooses λ and both α as `token_predictability` does. What a context adds depends
    on what is known before it, and shrinks as combinations get rare: read both orders, which need not end alike.

    Range (−∞, `HeldOut.ceiling`]; unit nats per assignment, over the load, one for each step. NaN without tokens.
    Expected of a context that says nothing more: no more than the step before.

    Args:
        contexts: For each step a value (0 or more) of every token; −1 where it has none, which is a value as well.
        ids_TK: Chosen expert ids.
        fold_T: Fold of each token's document.
        n_folds: F.
        n_experts: E.

    Raises:
        ValueError: there are fewer than two folds, an id lies outside [0, E), or one token names an expert twice.

    Source:
        ours (hierarchical Dirichlet smoothing, MacKay & Peto 1995 †; linear interpolation, Jelinek & Mercer 1980 †).
    """
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}, expected 2 or more: one is predicted from the others")
    check_ids(ids_TK, n_experts=n_experts)
    ids_TK = ids_TK.astype(np.int64)
    of_fold_FE = _table(fold_T, ids_TK, n_folds, n_experts)
    load_FE = of_fold_FE.sum(axis=0) - of_fold_FE + _START
    load_FE /= load_FE.sum(axis=1, keepdims=True)
    load_TK = load_FE[fold_T[:, None], ids_TK]
    share_TK = load_TK.copy()
    assignments_F = of_fold_FE.sum(axis=1)
    load_loss_F = -np.bincount(fold_T, weights=np.log(load_TK).sum(axis=1), minlength=n_folds)
    key_T = np.zeros(len(ids_TK), dtype=np.int64)
    steps: list[HeldOut] = []
    folds = _Folds(ids_TK, fold_T, n_folds, n_experts)
    for context_T in contexts:
        if steps:
            share_TK = folds.mixed(share_TK, folds.shrunk(context_T, load_TK)[0])
        key_T = _joined(key_T, context_T)
        share_TK, strength_F = folds.shrunk(key_T, share_TK)
        gain_F = np.bincount(fold_T, weights=np.log(share_TK / load_TK).sum(axis=1), minlength=n_folds)
        steps.append(HeldOut(gain_F, assignments_F, load_loss_F, strength_F))
    return steps


def _best_elsewhere(gain_SF: np.ndarray) -> np.ndarray:
    """For each fold the strength with the largest gain on the others; of equal ones the last, which shrinks most."""
    elsewhere_SF = gain_SF.sum(axis=1, keepdims=True) - gain_SF
    return len(gain_SF) - 1 - elsewhere_SF[::-1].argmax(axis=0)


def _table(row_T: np.ndarray, ids_TK: np.ndarray, n_rows: int, n_experts: int) -> np.ndarray:
    cells = (row_T[:, None] * n_experts + ids_TK).ravel()
    return np.bincount(cells, minlength=n_rows * n_experts).reshape(n_rows, n_experts).astype(np.float64)


def _joined(key_T: np.ndarray, context_T: np.ndarray) -> np.ndarray:
    """An index of the pairs of two keys."""
    _, context_T = np.unique(context_T, return_inverse=True)
    return np.unique(key_T * (int(context_T.max(initial=0)) + 1) + context_T, return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class _Folds:
    """Predictions of the chosen experts from other folds."""

    ids_TK: np.ndarray
    fold_T: np.ndarray
    n_folds: int
    n_experts: int

    def shrunk(self, key_T: np.ndarray, broader_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prediction from tokens with the same key, shrunk towards a broader one; and the strengths by fold."""
        top_k = self.ids_TK.shape[1]
        row_R, learned_R, count_RK = self._learned(key_T)
        broader_RK = broader_TK[row_R]
        share_SRK = np.stack(
            [
                (count_RK + strength * top_k * broader_RK) / (learned_R[:, None] * top_k + strength * top_k)
                if np.isfinite(strength)
                else broader_RK
                for strength in STRENGTHS
            ]
        )
        chosen_F = _best_elsewhere(self._gains(share_SRK, self.fold_T[row_R]))
        out_TK = broader_TK.copy()
        out_TK[row_R] = share_SRK[chosen_F[self.fold_T[row_R]], np.arange(len(row_R))]
        return out_TK, np.array(STRENGTHS)[chosen_F]

    def mixed(self, one_TK: np.ndarray, two_TK: np.ndarray) -> np.ndarray:
        """A mixture of two predictions, its weights from the other folds; of equal ones that with most of the first."""
        share_WTK = np.stack([weight * one_TK + (1 - weight) * two_TK for weight in MIXTURES])
        chosen_F = _best_elsewhere(self._gains(share_WTK, self.fold_T))
        return share_WTK[chosen_F[self.fold_T], np.arange(len(one_TK))]

    def _gains(self, share_SRK: np.ndarray, fold_R: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.bincount(fold_R, weights=np.log(share_RK).sum(axis=1), minlength=self.n_folds)
                for share_RK in share_SRK
            ]
        )

    def _learned(self, key_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows whose key stands in another fold too; how many tokens there have it, and of those each expert."""
        _, key_T = np.unique(key_T, return_inverse=True)
        n_X = np.bincount(key_T)
        _, pair_T = np.unique(key_T * self.n_folds + self.fold_T, return_inverse=True)
        n_P = np.bincount(pair_T)
        learned_T = n_X[key_T] - n_P[pair_T]
        row_R = np.flatnonzero(learned_T)
        key_R, pair_R, ids_RK = (of_T[row_R] for of_T in (key_T, pair_T, self.ids_TK))
        _, key_R = np.unique(key_R, return_inverse=True)
        _, pair_R = np.unique(pair_R, return_inverse=True)
        all_XE = _table(key_R, ids_RK, int(key_R.max(initial=-1)) + 1, self.n_experts)
        own_PE = _table(pair_R, ids_RK, int(pair_R.max(initial=-1)) + 1, self.n_experts)
        return row_R, learned_T[row_R], all_XE[key_R[:, None], ids_RK] - own_PE[pair_R[:, None], ids_RK]
