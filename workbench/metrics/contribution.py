"""How much chosen experts add, in norm, beside the other experts of the same tokens.

Axes: T tokens, D documents, K chosen per token, E routed experts.
"""

import numpy as np
from jaxtyping import Float, Int


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
        METRICS section 4 (contribution); the comparison with peers is ours.
    """
    for name, values, limit in (("ids_TK", ids_TK, n_experts), ("document_T", document_T, n_documents)):
        if values.size and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name} has values from {values.min()} to {values.max()}, wanted [0, {limit})")
    mean_TK = np.broadcast_to(contribution_TK.mean(axis=1, keepdims=True), ids_TK.shape)
    cell_TK = document_T[:, None] * n_experts + ids_TK
    sums = np.bincount(cell_TK.ravel(), weights=mean_TK.ravel(), minlength=n_documents * n_experts)
    return sums.reshape(n_documents, n_experts)
