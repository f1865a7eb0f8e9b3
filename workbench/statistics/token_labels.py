"""Tokens by what they have in common, for statistics over pairs of them: counts by label and document.

Axes: T tokens, N labels that occur, P pairs of a document and a label.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer


@dataclass(frozen=True, eq=False)
class Labels:
    """What tokens have in common (their token id, their position) and which document each is in. Made by `labels`.

    Tokens are taken label by label, so that what is counted of a label stays in the cache.
    """

    present_N: Int[np.ndarray, "N"]
    """The labels that occur here, ascending."""
    order_T: Int[np.ndarray, "T"] | None
    """Rows of the tokens by label, then by document; None where they stand so."""
    cell_document_P: Int[np.ndarray, "P"]
    cell_label_P: Int[np.ndarray, "P"]
    """As a place among those that occur; ascending."""
    cell_tokens_P: Int[np.ndarray, "P"]
    n_labels: int
    n_documents: int

    @property
    def tokens_N(self) -> Int[np.ndarray, "N"]:
        """Tokens of each label that occurs; adds up over parts."""
        return np.bincount(self.cell_label_P, self.cell_tokens_P, len(self.present_N)).astype(np.int64)

    @property
    def squares_N(self) -> Int[np.ndarray, "N"]:
        """Σ_d n_dv², the ordered pairs of tokens of a label within documents; adds up over parts of whole documents."""
        squares_P = self.cell_tokens_P.astype(np.float64) ** 2
        return np.bincount(self.cell_label_P, weights=squares_P, minlength=len(self.present_N)).astype(np.int64)

    @property
    def label_T(self) -> Int[np.ndarray, "T"]:
        """The label of each token in that order, as its place among those that occur."""
        return np.repeat(self.cell_label_P, self.cell_tokens_P)

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        arrays = [self.order_T, self.cell_document_P, self.cell_label_P, self.cell_tokens_P]
        return sum(array.nbytes for array in arrays if array is not None)

    def ordered(self, ids_TK: Integer[np.ndarray, "T K"]) -> Integer[np.ndarray, "T K"]:
        """The choices of the tokens in that order."""
        return ids_TK if self.order_T is None else ids_TK.take(self.order_T, axis=0)


def labels(
    label_T: Int[np.ndarray, "T"], document_T: Int[np.ndarray, "T"], *, n_labels: int, n_documents: int
) -> Labels:
    """Finds which tokens share label and document; once for all layers. No NaN.

    Args:
        label_T: 0 to V − 1.
        document_T: Row of each token's document, 0 to D − 1.
        n_labels: V.
        n_documents: D.

    Raises:
        ValueError: a label lies outside [0, V), or a document outside [0, D).

    Source:
        ours.
    """
    for name, values_T, n in (("label_T", label_T, n_labels), ("document_T", document_T, n_documents)):
        if len(values_T) and (values_T.min() < 0 or values_T.max() >= n):
            raise ValueError(
                f"{name} spans {values_T.min()} to {values_T.max()}, expected 0 to {n - 1}: pass 0-based numbers and "
                "how many there are"
            )
    key_T = label_T.astype(np.int64) * n_documents + document_T
    order_T = None
    if (key_T[1:] < key_T[:-1]).any():
        order_T = np.argsort(key_T).astype(np.int32)
        key_T = key_T[order_T]
    first_P = np.flatnonzero(np.diff(key_T, prepend=-1))
    label_P, document_P = np.divmod(key_T[first_P], n_documents)
    first_N = np.diff(label_P, prepend=-1) > 0
    return Labels(
        present_N=label_P[first_N],
        order_T=order_T,
        cell_document_P=document_P.astype(np.int32),
        cell_label_P=(np.cumsum(first_N) - 1).astype(np.int32),
        cell_tokens_P=np.diff(first_P, append=len(key_T)).astype(np.int32),
        n_labels=n_labels,
        n_documents=n_documents,
    )
