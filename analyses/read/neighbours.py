"""Whether a recording knows which tokens stand next to one another; whoever speaks of neighbours asks here first.

Axes: D documents.
"""

from dataclasses import dataclass

import numpy as np

from analyses.read.order import follows, in_text_order, text_columns
from analyses.read.tokens import document_rows
from workbench.errors import AnalysisError
from workbench.recordings.recording import Recording
from workbench.statistics.neighbours import longest_stretches


def single_texts(recording: Recording) -> np.ndarray:
    """The numbers of the documents that hold one token at a position, so that there is a text around it: ascending.

    None where positions are not known.
    """
    document_D = np.sort(recording.column("document", table="documents"))
    if "position" in recording.lacks:
        return document_D[:0]
    several = [np.empty(0, dtype=document_D.dtype)]
    for part in recording.parts(text_columns(recording)):
        text = in_text_order(part)
        again_T = (np.diff(text["document"]) == 0) & (np.diff(text["position"]) == 0)
        several.append(text["document"][1:][again_T])
    return document_D[~np.isin(document_D, np.concatenate(several))]


@dataclass(frozen=True, eq=False)
class Stretches:
    """Tokens that follow one another without a gap.

    Attributes:
        longest_D: Tokens of the longest stretch of each document, by the rows of the documents table.
        note: Documents of which no neighbours are known, in words; empty where there are none.
    """

    longest_D: np.ndarray
    note: str


def stretches(recording: Recording, analysis: str, *, tokens: int = 1) -> Stretches:
    """The stretches of all documents.

    Args:
        recording: What is read; `require` has asked it for positions.
        analysis: Who asks, for the sentence.
        tokens: Fewest tokens of a stretch that the question needs.

    Raises:
        AnalysisError: no document has so many neighbouring tokens.
    """
    row_of, longest_D = document_rows(recording), np.zeros(recording.n_documents, dtype=np.int64)
    for part in recording.parts(text_columns(recording)):
        text = in_text_order(part)
        row_T = row_of[text["document"]]
        longest_D = np.maximum(longest_D, longest_stretches(row_T, follows(text), n_documents=len(longest_D)))
    several = len(longest_D) - len(single_texts(recording))
    note = (
        f"{several:,} of {len(longest_D):,} documents hold several tokens at one position, so nothing is known of "
        "neighbours in them"
        if several
        else ""
    )
    if longest_D.max(initial=0) < tokens:
        raise AnalysisError(
            f"{analysis}: no document of {recording.path} has {tokens} tokens at neighbouring positions. "
            + (
                f"{note[0].upper()}{note[1:]}; give the trace's requests and positions when importing it."
                if note
                else "Record longer texts."
            )
        )
    return Stretches(longest_D, note)
