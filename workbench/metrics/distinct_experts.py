"""Distinct experts of tokens that are decoded together: one of each of B sequences, at the same position.

Axes: T tokens, W words of a set's bits, G batches.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64


@dataclass(frozen=True, eq=False)
class BatchActivated:
    """Distinct experts and steps of each batch, for batches of 1, 2, 4 … sequences."""

    distinct: tuple[Int[np.ndarray, "..."], ...]
    """Summed over the steps of a batch."""
    steps: tuple[Int[np.ndarray, "..."], ...]
    """Positions that all sequences of the batch have."""


def batch_activated_experts(
    bits_TW: UInt64[np.ndarray, "T W"], sequence_T: Int[np.ndarray, "T"], *, doublings: int
) -> BatchActivated:
    """Distinct experts of each step of batches of B = 1, 2, 4 … 2^doublings sequences, neighbours by number.

    Sequences left over are in no batch, and a batch ends with its shortest sequence. The mean over steps ranges from K
    to min(BK, E) experts. No NaN; a batch with a sequence without tokens has no step.

    Args:
        bits_TW: Sets, sequence by sequence, each in the order of its text.
        sequence_T: Number of each token's sequence, rising from 0 without gaps.
        doublings: The largest B is 2 to this power.

    Raises:
        ValueError: the sequences are not in order, or there are fewer than the largest batch needs.

    Source:
        ours (a count).
    """
    if len(sequence_T) and (sequence_T[0] != 0 or not np.isin(np.diff(sequence_T), (0, 1)).all()):
        raise ValueError("sequence_T does not rise from 0 without gaps; sort the tokens by sequence and number them")
    sizes_G = np.bincount(sequence_T) if len(sequence_T) else np.zeros(0, dtype=np.int64)
    if len(sizes_G) < 2**doublings:
        raise ValueError(
            f"there are {len(sizes_G)} sequences, expected {2**doublings} or more: ask for fewer doublings"
        )
    distinct, steps = [], []
    for n in range(doublings + 1):
        starts_G = np.cumsum(sizes_G) - sizes_G
        owner_T = np.repeat(np.arange(len(sizes_G)), sizes_G)
        met_T = np.bitwise_count(bits_TW).sum(axis=1)
        distinct.append(np.bincount(owner_T, weights=met_T, minlength=len(sizes_G)).astype(np.int64))
        steps.append(sizes_G.astype(np.int64))
        if n == doublings:
            break
        pairs = len(sizes_G) // 2
        shorter_G = np.minimum(sizes_G[0 : 2 * pairs : 2], sizes_G[1 : 2 * pairs : 2])
        within_T = np.arange(shorter_G.sum()) - np.repeat(np.cumsum(shorter_G) - shorter_G, shorter_G)
        first_T, second_T = (np.repeat(starts_G[side : 2 * pairs : 2], shorter_G) + within_T for side in (0, 1))
        bits_TW, sizes_G = bits_TW[first_T] | bits_TW[second_T], shorter_G
    return BatchActivated(tuple(distinct), tuple(steps))
