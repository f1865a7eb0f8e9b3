"""Which tokens stand next to one another in a text: by their positions, never by where their rows stand.

Rows of a trace are interleaved with those of other requests, masked, or cut in chunks. Nothing here measures anything;
`sequence` does, over the neighbours found here. Axes: T tokens, document by document, each by position.
"""

import numpy as np
from jaxtyping import Bool, Int


def follows(document_T: Int[np.ndarray, "T"], position_T: Int[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
    """Whether each token is the next of its text after the token in the row before it.

    It is where both are of one document and its position is one more. Not across a gap (a masked token); nowhere in a
    document in which a position comes twice, which holds several texts; not after a position under 0, which is none.

    Range: true or false; the first row is false. No NaN.

    Args:
        document_T: Each token's document, the rows of a document together; of one phase.
        position_T: Its place in the document, never falling within one.

    Raises:
        ValueError: the rows of a document do not stand together, or not by position.

    Source:
        ours.
    """
    same_T, step_T = np.diff(document_T) == 0, np.diff(position_T.astype(np.int64))
    starts = np.flatnonzero(np.diff(document_T, prepend=document_T[:1] - 1))
    if len(np.unique(document_T[starts])) < len(starts) or (step_T[same_T] < 0).any():
        raise ValueError("document_T and position_T are not in the order of the text: sort by document, then position")
    follows_T = np.zeros(len(document_T), dtype=bool)
    follows_T[1:] = same_T & (step_T == 1) & (position_T[:-1] >= 0)
    several_T = np.isin(document_T, document_T[1:][same_T & (step_T == 0)])
    return np.asarray(follows_T & ~several_T)


def stretches(follows_T: Bool[np.ndarray, "T"]) -> Int[np.ndarray, "T"]:
    """The number of each token's stretch: tokens that follow one another without a gap.

    Range 0 to T − 1, never falling. No NaN.

    Raises:
        Nothing.

    Source:
        ours.
    """
    return np.cumsum(~follows_T) - 1


def longest_stretches(
    document_T: Int[np.ndarray, "T"], follows_T: Bool[np.ndarray, "T"], *, n_documents: int
) -> Int[np.ndarray, "D"]:
    """Tokens of the longest stretch of each document: [D]; 0 for a document without tokens.

    Range 0 to T; unit: tokens. No NaN.

    Args:
        document_T: Row of each token's document, 0 to D − 1.
        follows_T: As of `follows`.
        n_documents: D.

    Raises:
        Nothing.

    Source:
        ours (a count).
    """
    starts = np.flatnonzero(~follows_T)
    longest_D = np.zeros(n_documents, dtype=np.int64)
    np.maximum.at(longest_D, document_T[starts], np.diff(starts, append=len(follows_T)))
    return longest_D
