"""How decided the router is, token by token: the plain definitions of what the recorder computes while the model runs.

Not a reading of a recording: these take the full scores of a few tokens, and are the slow twins of the recorder's
columns. Normalized scores are what the family's router makes of its logits, scaled to sum to 1: softmax, or for a
sigmoid router s/Σs. Axes: T tokens, E routed experts, K chosen per token.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.special import expit, log_softmax

from workbench.statistics.arithmetic import check_ids, entropy

SUM_TOLERANCE = 1e-2  # bfloat16 scores, each off by up to 2e-3 of itself, still sum to 1 within it


def token_entropy(scores_TE: Float[np.ndarray, "T E"]) -> Float[np.ndarray, "T"]:
    """Entropy of each token's normalized scores, H(s_t) = −Σ_e s ln s.

    Range [0, ln E]; unit nats. NaN where a score is NaN.

    Raises:
        ValueError: a score is negative, or a token's scores do not sum to 1 (± .01).

    Source:
        Shannon 1948 †: as commonly given. Divide by ln E (`normalized_entropy`) to compare models of other E.
    """
    scores_TE = _checked_scores(scores_TE)
    return np.where(np.isnan(scores_TE).any(axis=1), np.nan, entropy(scores_TE))


def token_entropy_from_logits(
    logits_TE: Float[np.ndarray, "T E"], *, scoring: Literal["softmax", "sigmoid"]
) -> Float[np.ndarray, "T"]:
    """`token_entropy` of the normalized scores of these logits.

    Range [0, ln E]; unit nats. NaN where a logit is NaN.

    Args:
        logits_TE: Raw router scores, before softmax or sigmoid.
        scoring: "softmax": s = softmax(r). "sigmoid": s = σ(r)/Σσ(r), without any correction bias.

    Raises:
        ValueError: `scoring` is another word.

    Source:
        Shannon 1948 †: as commonly given.
    """
    logits_TE = logits_TE.astype(np.float64)
    if scoring == "softmax":
        log_TE = log_softmax(logits_TE, axis=1)
        share_TE = np.exp(log_TE)
        return -np.where(share_TE > 0, share_TE * log_TE, share_TE).sum(axis=1)  # s = 0 adds 0, NaN stays NaN
    if scoring == "sigmoid":
        score_TE = expit(logits_TE)
        return token_entropy(score_TE / score_TE.sum(axis=1, keepdims=True))
    raise ValueError(f"scoring is {scoring!r}, expected 'softmax' or 'sigmoid': the recording's manifest names it")


def normalized_entropy(entropy_T: Num[np.ndarray, "*x"], *, n_experts: int) -> Float[np.ndarray, "*x"]:
    """Entropy over its maximum, H / ln E.

    Range [0, 1]; unit 1. NaN where the entropy is NaN, and of one expert, which leaves nothing undecided.

    Raises:
        ValueError: there is no expert.

    Source:
        ours (a change of unit).
    """
    if n_experts < 1:
        raise ValueError(f"n_experts is {n_experts}, expected 1 or more: pass E of the recording")
    return np.asarray(entropy_T.astype(np.float64) / (np.log(n_experts) or np.nan))


def margin(selection_TE: Float[np.ndarray, "T E"], ids_TK: Int[np.ndarray, "T K"]) -> Float[np.ndarray, "T"]:
    """Gap between the last chosen and the first not chosen, min_{e∈S} r_e − max_{e∉S} r_e of the selection scores.

    Range: of the selection score, whose unit it has: softmax: probability; sigmoid: score + correction bias, not
    normalized. Negative where the ids are not the largest scores. NaN where all experts are chosen (K = E). Undefined
    for grouped routing, whose first not chosen may lie in a group that was never a candidate: do not call it there.

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        ours.
    """
    check_ids(ids_TK, n_experts=selection_TE.shape[1])
    if ids_TK.shape[1] == selection_TE.shape[1]:
        return np.full(len(selection_TE), np.nan)
    selection_TE = selection_TE.astype(np.float64)
    rest_TE = selection_TE.copy()
    np.put_along_axis(rest_TE, ids_TK.astype(np.int64), -np.inf, axis=1)
    return _chosen(selection_TE, ids_TK).min(axis=1) - rest_TE.max(axis=1)


def topk_mass(scores_TE: Float[np.ndarray, "T E"], ids_TK: Int[np.ndarray, "T K"]) -> Float[np.ndarray, "T"]:
    """Share of the normalized scores that the chosen experts hold, Σ_{e∈S} s_te.

    Range [0, 1]; K/E for equal scores; unit 1. NaN where a chosen score is NaN.

    Raises:
        ValueError: a score is negative, a token's scores do not sum to 1 (± .01), an id lies outside [0, E), or one
            token names an expert twice.

    Source:
        ours.
    """
    check_ids(ids_TK, n_experts=scores_TE.shape[1])
    return _chosen(_checked_scores(scores_TE), ids_TK).sum(axis=1)


def _chosen(values_TE: np.ndarray, ids_TK: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values_TE, ids_TK.astype(np.int64), axis=1)


def _checked_scores(scores_TE: np.ndarray) -> np.ndarray:
    scores_TE = scores_TE.astype(np.float64)
    sum_T = scores_TE.sum(axis=1)
    wrong_T = (scores_TE < 0).any(axis=1) | (np.abs(sum_T - 1) > SUM_TOLERANCE)
    if wrong_T.any():
        token = int(wrong_T.argmax())
        raise ValueError(
            f"scores_TE of token {token} sum to {sum_T[token]:.4g} with a minimum of {scores_TE[token].min():.4g}, "
            "expected normalized scores: pass softmax(logits), or sigmoid(logits) over their sum"
        )
    return scores_TE
