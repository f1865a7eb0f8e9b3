"""Sets of chosen experts as bits, and how they are shuffled: what the metrics of structure are made of.

Not metrics. A token's chosen experts S_t are bits of W = ceil(E/64) words, so that an overlap is one `and` and one
count of bits. Shuffles move whole sets and are keyed by document and position, never by the row: the same recording in
other parts gives the same draws. Axes: T tokens, E routed experts, K chosen per token, W words, P pairs of tokens;
x any further axes (layers).
"""

import numpy as np
from jaxtyping import Int, Integer, Shaped, UInt8, UInt64

from workbench.statistics.arithmetic import GOLDEN, check_range, mixed, refuse_twice

_BLOCK = 1 << 12  # tokens of one block of indicators: they stay in the cache, and every count is exact in float32


def as_bits(ids_TK: Integer[np.ndarray, "T K"], *, n_experts: int) -> UInt64[np.ndarray, "T W"]:
    """The set of each token, bit e of word e // 64 set where expert e is chosen.

    Range: K bits a token; unit: bits. No NaN.

    Raises:
        ValueError: an id lies outside [0, E), or one token names an expert twice.

    Source:
        ours.
    """
    check_range(ids_TK, n_experts=n_experts)
    words = -(-n_experts // 64)
    word_E, bit_E = np.divmod(np.arange(n_experts), 64)
    bits_EW = np.where(
        word_E[:, None] == np.arange(words), np.uint64(1) << bit_E[:, None].astype(np.uint64), np.uint64(0)
    )
    bits_TW = np.zeros((len(ids_TK), words), dtype=np.uint64)
    for start in range(0, len(ids_TK), _BLOCK):
        block_TW = bits_TW[start : start + _BLOCK]
        for id_T in ids_TK[start : start + _BLOCK].T:
            block_TW |= bits_EW.take(id_T, axis=0)
    refuse_twice(ids_TK, np.bitwise_count(bits_TW).sum(axis=1) < ids_TK.shape[1])  # cheaper than to sort the ids
    return bits_TW


def overlap(bits_xW: UInt64[np.ndarray, "*#x W"], other_xW: UInt64[np.ndarray, "*#x W"]) -> Shaped[np.ndarray, "..."]:
    """Experts in both sets, |S ∩ S′|; the sets are broadcast against each other.

    Range 0 to K; unit: experts. No NaN.

    Raises:
        Nothing.

    Source:
        ours (a count).
    """
    common = np.bitwise_count(bits_xW & other_xW)
    return np.asarray(common[..., 0] if common.shape[-1] == 1 else common.sum(axis=-1, dtype=np.uint16))


def indicators(bits_TW: UInt64[np.ndarray, "T W"], *, n_experts: int) -> UInt8[np.ndarray, "T E"]:
    """1 where the expert is chosen, else 0.

    Range 0 or 1; unit 1. No NaN.

    Raises:
        Nothing.

    Source:
        ours.
    """
    little = np.ascontiguousarray(bits_TW).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(little, axis=1, count=n_experts, bitorder="little")


def joint_counts(
    bits_TW: UInt64[np.ndarray, "T W"], other_TW: UInt64[np.ndarray, "T W"], *, n_experts: int
) -> Int[np.ndarray, "E E"]:
    """J_ij = #{t: i ∈ S_t and j ∈ S′_t}, all K×K pairs of a token; counts of parts add up.

    Range 0 to T; unit: tokens. No NaN.

    Raises:
        Nothing.

    Source:
        ours (a count).
    """
    joint_EE = np.zeros((n_experts, n_experts), dtype=np.int64)
    for start in range(0, len(bits_TW), _BLOCK):
        run = slice(start, start + _BLOCK)
        one_TE = indicators(bits_TW[run], n_experts=n_experts).astype(np.float32)
        same = other_TW is bits_TW
        two_TE = one_TE if same else indicators(other_TW[run], n_experts=n_experts).astype(np.float32)
        joint_EE += (one_TE.T @ two_TE).astype(np.int64)  # of whole numbers under 2^24: exact
    return joint_EE


def shuffled_within(
    document_T: Int[np.ndarray, "T"], position_T: Int[np.ndarray, "T"], *, seed: int, draw: int = 0
) -> Int[np.ndarray, "T"]:
    """An order of the tokens that shuffles each document within the rows that it has.

    Row t of a shuffled array is `array[order[t]]`. The draw depends on a token's document and position alone, not on
    where its row stands.

    Range 0 to T − 1, each once; unit: rows. No NaN.

    Args:
        document_T: A document's number, the rows of a document together.
        position_T: Place in the document; distinct within it.
        seed: Of the shuffles.
        draw: Which of them.

    Raises:
        ValueError: the rows of a document do not stand together.

    Source:
        ours.
    """
    starts_T = np.flatnonzero(np.diff(document_T, prepend=document_T[:1] - 1))
    if len(np.unique(document_T[starts_T])) < len(starts_T):
        raise ValueError("document_T has rows of one document in several places: sort by document and position first")
    run_T = np.repeat(np.arange(len(starts_T)), np.diff(starts_T, append=len(document_T)))
    key_T = keyed_hash(document_T, position_T, seed=seed, draw=draw)
    # one key: the run in the upper bits, so that a sort leaves each document in its rows
    key_T = (run_T.astype(np.uint64) << np.uint64(40)) | (key_T >> np.uint64(24))
    order_T = np.argsort(key_T)  # half the time of a stable sort, which only equal keys need: one in 10^12 pairs
    ordered_T = key_T[order_T]
    return np.argsort(key_T, kind="stable") if (ordered_T[1:] == ordered_T[:-1]).any() else order_T


def keyed_hash(
    one_T: Int[np.ndarray, "T"], two_T: Int[np.ndarray, "T"], *, seed: int, draw: int = 0
) -> UInt64[np.ndarray, "T"]:
    """A random number for each pair of whole numbers, the same wherever the pair stands.

    Range [0, 2^64); unit 1. No NaN.

    Raises:
        Nothing.

    Source:
        Steele, Lea & Flood 2014 † (splitmix64): as commonly given.
    """
    start = mixed(np.array([seed], dtype=np.int64).view(np.uint64) + GOLDEN)
    start = mixed(start + np.array([draw + 1], dtype=np.uint64) * GOLDEN)
    key_T = mixed(one_T.astype(np.int64).view(np.uint64) * GOLDEN + start)
    return mixed(key_T + (two_T.astype(np.int64).view(np.uint64) + np.uint64(1)) * GOLDEN)


class Pairings:
    """Which two tokens of a document meet in each step of `swapped_within`: the same for every router.

    Of up to 65,536 tokens the steps that were drawn are kept, two bytes a token each, for the next router's draws.

    Args:
        document_T: A document's number, the rows of a document together.
        position_T: Place in the document; distinct within it.
        seed: Of pairs and masks.
    """

    _last: "Pairings | None" = None

    def __init__(self, document_T: Int[np.ndarray, "T"], position_T: Int[np.ndarray, "T"], *, seed: int) -> None:
        self._document_T, self._position_T, self._seed = document_T, position_T, seed
        starts_T = np.flatnonzero(np.diff(document_T, prepend=document_T[:1] - 1))
        size = np.diff(starts_T, append=len(document_T))
        within_T, size_T = np.arange(len(document_T)) - np.repeat(starts_T, size), np.repeat(size, size)
        self._first_P = np.flatnonzero((within_T % 2 == 0) & (within_T + 1 < size_T))
        self._kept: dict[int, np.ndarray] = {}

    @classmethod
    def of(cls, document_T: Int[np.ndarray, "T"], position_T: Int[np.ndarray, "T"], *, seed: int) -> "Pairings":
        """Those of these tokens: the last ones that were asked for, where they are the same."""
        last = Pairings._last
        if (
            last is None
            or last._seed != seed
            or not (np.array_equal(last._document_T, document_T) and np.array_equal(last._position_T, position_T))
        ):
            last = Pairings._last = cls(document_T, position_T, seed=seed)
        return last

    def step(self, step: int) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"], UInt64[np.ndarray, "P"]]:
        """The rows of the pairs' first and second tokens, and a random number of each pair.

        Raises:
            ValueError: the rows of a document do not stand together.
        """
        kept = self._kept.get(step)
        if kept is None:
            order_T = shuffled_within(self._document_T, self._position_T, seed=self._seed, draw=step)
            kept = np.stack([order_T[self._first_P], order_T[self._first_P + 1]])
            if len(self._document_T) <= 1 << 16:
                kept = self._kept[step] = kept.astype(np.uint16)
        one_P, two_P = kept.astype(np.intp)
        # keyed by the pair's first token, apart from the key that put it there
        key_P = keyed_hash(self._document_T[one_P], self._position_T[one_P], seed=self._seed + 2**32, draw=step)
        return one_P, two_P, key_P


def swapped_within(
    bits_TxW: UInt64[np.ndarray, "T *x W"], pairings: Pairings, *, n_steps: int, first_step: int = 0
) -> UInt64[np.ndarray, "T *x W"]:
    """Sets after random exchanges within documents that keep each token's K and each expert's count in a document.

    A step pairs the tokens of each document at random. Of a pair, the experts that only one of the two has are
    exchanged where a random mask holds them, if the mask holds as many of the one token as of the other; else the pair
    stays. The mask that made an exchange undoes it, so every arrangement is equally likely in the end. About 20 steps
    forget the start (K = 8). x (layers) share pairs and masks: a layer's draws do not depend on which others are there,
    and those of two layers are no more independent than the layers.

    Range: K bits a token; unit: bits. No NaN.

    Args:
        bits_TxW: Sets; all x of a token together.
        pairings: Of the same tokens.
        n_steps: Steps.
        first_step: Steps made before, so that a chain can go on.

    Raises:
        ValueError: the rows of a document do not stand together.

    Source:
        Strona et al. 2014, Nat. Commun. 5:4114 † (curveball): differs: a mask in place of a drawn number of exchanges.
    """
    bits_TxW = bits_TxW.copy()
    n_words = bits_TxW.shape[-1]
    of_mask_W = np.arange(1, n_words + 1, dtype=np.uint64) * GOLDEN
    for step in range(first_step, first_step + n_steps):
        one_P, two_P, key_P = pairings.step(step)
        one_PxW, two_PxW = bits_TxW[one_P], bits_TxW[two_P]
        mask_PW = mixed(key_P[:, None] + of_mask_W)
        moved_PxW = (one_PxW ^ two_PxW) & mask_PW.reshape(-1, *[1] * (one_PxW.ndim - 2), n_words)
        as_many_Px = overlap(one_PxW, moved_PxW) == overlap(two_PxW, moved_PxW)
        moved_PxW[~as_many_Px] = 0
        bits_TxW[one_P], bits_TxW[two_P] = one_PxW ^ moved_PxW, two_PxW ^ moved_PxW
    return bits_TxW
