"""What is done to every part of a recording that is read: the order of the text, and the order of a token's choices.

Axes: T tokens, K chosen per token.
"""

import numpy as np

from workbench.recordings.recording import Recording
from workbench.statistics import neighbours

_INFINITY = 0x7C00  # the bits of the largest float16


def text_columns(recording: Recording) -> list[str]:
    """The columns that say where a token stands: `position` is not there where a trace does not know it."""
    return ["document", *(["position"] if "position" not in recording.lacks else [])]


def in_text_order(part: dict[str, np.ndarray], *, by_number: bool = False) -> dict[str, np.ndarray]:
    """Columns with `document` and `position`, each document's rows together and by position.

    Without positions a document's rows stay in their order. Documents come by number, as those of two recordings have
    to, or stay where they are if nothing else has to move.
    """
    step_T = np.diff(part["document"])
    in_order = "position" not in part or (np.diff(part["position"])[step_T == 0] > 0).all()
    if by_number:
        in_order = in_order and (step_T >= 0).all()
    else:
        in_order = in_order and len(np.unique(part["document"])) == 1 + np.count_nonzero(step_T)
    if in_order:
        return part
    order_T = np.lexsort((*([part["position"]] if "position" in part else []), part["document"]))
    return {name: values[order_T] for name, values in part.items()}


def place(part: dict[str, np.ndarray]) -> np.ndarray:
    """What tells the tokens of a document apart: the position, or, where it is not known, the rank of its row.

    A key of random orders alone: a rank says nothing of neighbours (`follows` does).
    """
    if "position" in part:
        return part["position"]
    order_T = np.argsort(part["document"], kind="stable")
    starts_T = np.flatnonzero(np.diff(part["document"][order_T], prepend=-1))
    place_T = np.empty(len(order_T), dtype=np.int64)
    place_T[order_T] = np.arange(len(order_T)) - np.repeat(starts_T, np.diff(starts_T, append=len(order_T)))
    return place_T


def follows(part: dict[str, np.ndarray]) -> np.ndarray:
    """Whether each token of a part in the order of the text is the next after the row before: `neighbours.follows`.

    The phases of one document are never read together, so the first token that a model writes follows none. Nothing
    follows where positions are not known.
    """
    if "position" not in part:
        return np.zeros(len(part["document"]), dtype=bool)
    return neighbours.follows(part["document"], part["position"])


def first_choice(ids_TK: np.ndarray, weights_TK: np.ndarray | None) -> np.ndarray:
    """The expert with the largest weight, [T]; without weights the first of ranked ids.

    Weights are rounded on disk, and of equal ones the router's order says which was larger: the first, where the
    weights of all tokens read here fall along the ids. Where they do not, the order is no order of weights (a bias
    chose, or nothing was sorted), and of equal ones the lowest id is taken.
    """
    if weights_TK is None or _falling(weights_TK):
        return ids_TK[:, 0]
    first_T = ids_TK[:, 0].copy()
    # where the first weight is the largest, as routers give them, there is nothing to look for
    rising_T = np.zeros(len(ids_TK), dtype=bool)
    comparable_TK = _comparable(weights_TK)
    for k in range(1, ids_TK.shape[1]):
        rising_T |= comparable_TK[:, k] >= comparable_TK[:, 0]
    loose = np.flatnonzero(rising_T)
    heaviest_TK = weights_TK[loose] == weights_TK[loose].max(axis=1, keepdims=True)
    first_T[loose] = np.where(heaviest_TK, ids_TK[loose], np.iinfo(ids_TK.dtype).max).min(axis=1)
    return first_T


def ranked(ids_TK: np.ndarray, weights_TK: np.ndarray | None) -> np.ndarray:
    """Ids by falling weight, equal ones as `first_choice` takes them; as they stand where only ids are known."""
    if weights_TK is None or _falling(weights_TK):
        return ids_TK
    out_TK = ids_TK.copy()
    # most tokens stand in order already; equal weights need a look
    loose_T = np.zeros(len(ids_TK), dtype=bool)
    comparable_TK = _comparable(weights_TK)
    for k in range(1, ids_TK.shape[1]):
        loose_T |= comparable_TK[:, k] >= comparable_TK[:, k - 1]
    by_TK = np.lexsort((ids_TK[loose_T], -weights_TK[loose_T]), axis=1)
    out_TK[loose_T] = np.take_along_axis(ids_TK[loose_T], by_TK, axis=1)
    return out_TK


def _falling(weights_TK: np.ndarray) -> bool:
    """Whether no token has a larger weight behind a smaller one: then its ids stand in the order of the router."""
    comparable_TK = _comparable(weights_TK)
    return all((comparable_TK[:, k] <= comparable_TK[:, k - 1]).all() for k in range(1, weights_TK.shape[1]))


def _comparable(weights_TK: np.ndarray) -> np.ndarray:
    """What compares as the weights do, in a fraction of the time: NumPy compares float16 value by value.

    The bits of float16 that is not negative rise with its value.
    """
    if weights_TK.dtype != np.float16:
        return weights_TK
    bits_TK = weights_TK.view(np.uint16)
    # over the bits of infinity are NaN and what is negative, −0 too
    return bits_TK if bits_TK.max(initial=0) <= _INFINITY else weights_TK.astype(np.float32)
