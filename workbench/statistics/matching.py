"""Which expert of one model stands for which of another: experts of different models have no common order.

A matching is fitted to noise as well, so agreement is read on other documents than those it was fitted on. Axes:
E routed experts; x any further axes (layers, halves of the documents).
"""

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.optimize import linear_sum_assignment


def match_experts(together_xEE: Num[np.ndarray, "*x E F"]) -> Int[np.ndarray, "*x E"]:
    """Of each expert of the other model, the expert of the one that it is matched with.

    The matching π with the largest Σ_j C[π(j), j], C the tokens that choose i in the one model and j in the other: it
    makes the mean overlap of S_t and π(S′_t) as large as a matching can. Every expert has one partner. No NaN: experts
    that are never chosen get what is left, which means nothing.

    Range 0 to E − 1, each once; unit: ids.

    Args:
        together_xEE: `sets.joint_counts` of both models' sets, of the same tokens; the other's experts along the last
            axis.

    Raises:
        ValueError: the last two axes differ, or a count is negative or NaN.

    Source:
        Kuhn 1955, Nav. Res. Logist. 2:83 † (assignment); Li et al. 2015, arXiv:1511.07543 † (units of two networks
        matched one to one): differs: of chosen experts, by counts and not by correlation.
    """
    if together_xEE.ndim < 2 or together_xEE.shape[-1] != together_xEE.shape[-2]:
        raise ValueError(
            f"together_xEE has the shape {together_xEE.shape}, expected [..., E, E]: models of as many experts"
        )
    if not (together_xEE >= 0).all():
        raise ValueError(
            "together_xEE has negative or missing counts; expected numbers of tokens, from sets.joint_counts"
        )
    flat_XEE = together_xEE.reshape(-1, *together_xEE.shape[-2:])
    of_XE = np.empty(flat_XEE.shape[:-1], dtype=np.int64)
    for of_E, together_EE in zip(of_XE, flat_XEE, strict=True):
        one_E, other_E = linear_sum_assignment(together_EE, maximize=True)
        of_E[other_E] = one_E
    return of_XE.reshape(together_xEE.shape[:-1])


def matching_consistency(
    of_xE: Int[np.ndarray, "*x E"], again_xE: Int[np.ndarray, "..."], *, weight_xE: Num[np.ndarray, "*x E"]
) -> Float[np.ndarray, "*x"]:
    """Share of the other's choices whose expert has the same partner in two matchings, fitted on different documents.

    Range [0, 1]; unit 1; about 1/E where the models have nothing in common. NaN without choices.

    Args:
        of_xE: A matching.
        again_xE: The other.
        weight_xE: Choices of each expert of the other model.

    Raises:
        ValueError: the matchings have other shapes.

    Source:
        ours.
    """
    if of_xE.shape != again_xE.shape:
        raise ValueError(f"the matchings have the shapes {of_xE.shape} and {again_xE.shape}, expected the same experts")
    total_x = weight_xE.sum(axis=-1)
    return np.asarray(((of_xE == again_xE) * weight_xE).sum(axis=-1) / np.where(total_x > 0, total_x, np.nan))
