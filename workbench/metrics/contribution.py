"""How much chosen experts and the shared expert add: norms, shares, and what the other experts of a token add.

`contribution` and `shared_share` take the outputs of experts, which no recording holds: they are the plain definitions
of what the recorder computes while the model runs. Axes: T tokens, D documents, K chosen per token, E routed experts,
C model width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


def contribution(
    weights_TK: Float[np.ndarray, "T K"], outputs_TKC: Float[np.ndarray, "T K C"]
) -> Float[np.ndarray, "T K"]:
    """Norm of what each chosen expert adds to its token, |w| · ‖f_e(x)‖.

    Norms do not add: two experts that add opposite vectors have a contribution each and no sum. Range [0, ∞); unit:
    that of the residual stream. NaN where an output or a weight is.

    Raises:
        ValueError: the weights are not of these outputs.

    Source:
        Lasby et al. 2025 (REAP), arXiv:2510.13999 †: as commonly given (they average it over an expert's tokens).
    """
    if weights_TK.shape != outputs_TKC.shape[:2]:
        raise ValueError(
            f"weights_TK is {weights_TK.shape} and outputs_TKC {outputs_TKC.shape}, expected a weight for each output: "
            "pass both of the same tokens and choices"
        )
    return np.abs(weights_TK) * np.linalg.norm(outputs_TKC, axis=-1)


@dataclass(frozen=True, eq=False)
class SharedShare:
    """A shared expert's output s beside the routed output r, of each token. `shared_share` says how."""

    share_T: Float[np.ndarray, "T"]
    """‖s‖ / (‖s‖ + ‖r‖)."""
    projection_T: Float[np.ndarray, "T"]
    """⟨s, y⟩ / ‖y‖², y = s + r."""
    cosine_T: Float[np.ndarray, "T"]
    """cos(s, r)."""


def shared_share(shared_TC: Float[np.ndarray, "T C"], routed_TC: Float[np.ndarray, "T C"]) -> SharedShare:
    """The shared expert's part of a token's output, by norms, by projection on the sum, and its direction.

    Shared and routed output are those that the model adds: after the gate, after the routing weights. Norms do not add,
    so no one of the three is "the" share. The projections of s and r sum to 1.

    Range: share [0, 1], projection (−∞, ∞), cosine [−1, 1]; unit 1. NaN for 0/0: both outputs 0, a sum of 0, one of
    the two 0 for the cosine.

    Raises:
        ValueError: the two have other shapes.

    Source:
        ours (norms and angles of two vectors).
    """
    if shared_TC.shape != routed_TC.shape:
        raise ValueError(
            f"shared_TC is {shared_TC.shape} and routed_TC {routed_TC.shape}, expected the same: pass both outputs of "
            "the same tokens"
        )
    sum_TC = shared_TC + routed_TC
    shared_T, routed_T = np.linalg.norm(shared_TC, axis=-1), np.linalg.norm(routed_TC, axis=-1)

    def over(top_T: np.ndarray, bottom_T: np.ndarray) -> np.ndarray:
        return np.asarray(top_T / np.where(bottom_T > 0, bottom_T, np.nan))

    return SharedShare(
        share_T=over(shared_T, shared_T + routed_T),
        projection_T=over((shared_TC * sum_TC).sum(axis=-1), (sum_TC**2).sum(axis=-1)),
        cosine_T=over((shared_TC * routed_TC).sum(axis=-1), shared_T * routed_T),
    )


def peer_contribution(
    ids_TK: Int[np.ndarray, "T K"],
    contribution_TK: Float[np.ndarray, "T K"],
    *,
    document_T: Int[np.ndarray, "T"],
    n_documents: int,
    n_experts: int,
) -> Float[np.ndarray, "D E"]:
    """Σ over a document's tokens that choose e of the mean contribution of a token's K experts, e itself among them.

    This is what e's contributions would sum to were a token's contributions dealt to its experts at random: the null of
    "experts add alike", in closed form. The ratio of e's sum to it lies in [0, K]. With K = 1 the two are the same.

    Range [0, ∞); unit: the contribution's (norm). NaN where a contribution of the document is.

    Raises:
        ValueError: an id lies outside [0, E), or a document outside [0, D).

    Source:
        ours, of the contributions of Lasby et al. 2025 (REAP), arXiv:2510.13999 †.
    """
    for name, values, limit in (("ids_TK", ids_TK, n_experts), ("document_T", document_T, n_documents)):
        if values.size and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(
                f"{name} has values from {values.min()} to {values.max()}, expected [0, {limit}): pass 0-based "
                "numbers and how many there are"
            )
    mean_TK = np.broadcast_to(contribution_TK.mean(axis=1, keepdims=True), ids_TK.shape)
    cell_TK = document_T[:, None] * n_experts + ids_TK
    sums = np.bincount(cell_TK.ravel(), weights=mean_TK.ravel(), minlength=n_documents * n_experts)
    return sums.reshape(n_documents, n_experts)
