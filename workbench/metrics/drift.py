"""Whether the use of experts changes along the document.

Position and text are confounded: documents begin alike, and only long ones reach late positions. So every number is
read beside its null, S_t permuted within documents (`sets.shuffled_within`), which keeps lengths and what each
document prefers. Axes: P bins of position, E routed experts; x any further axes.
"""

import numpy as np
from jaxtyping import Float, Num

from workbench.metrics._arithmetic import checked_counts


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
