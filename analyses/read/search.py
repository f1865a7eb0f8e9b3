"""Where a recorded text says something: the next token that reads as it was typed.

Axes: T tokens of the recording.
"""

from dataclasses import dataclass

import numpy as np

from workbench.recordings.recording import Recording


@dataclass(frozen=True)
class Found:
    """A token of a recording.

    Attributes:
        document: Id of its document.
        position: In the document, from 0.
        place: Which of those that match it is, from 1.
        count: How many match.
        exact: Whether they are what was typed, and do not only hold it.
    """

    document: str
    position: int
    place: int
    count: int
    exact: bool


def find(recording: Recording, text: str, *, document: str = "", position: int | None = None) -> Found | None:
    """The next token that is the text, blanks around it and capitals aside; where none is, the next that holds it.

    Args:
        recording: Where to look.
        text: What was typed.
        document: Id of the document to begin in; the first unless given.
        position: The search begins behind this token, and goes on at the beginning behind the last.

    Returns:
        None where no token reads so, or the recording holds no tokens or not their positions.
    """
    wanted = text.strip().casefold()
    if not wanted or not (recording.has("token") and recording.has("position")):
        return None
    vocabulary = recording.vocabulary
    texts = vocabulary["text"].str.strip().str.casefold()
    same = vocabulary.loc[texts == wanted, "token"].to_numpy()
    ids = same if len(same) else vocabulary.loc[texts.str.contains(wanted, regex=False), "token"].to_numpy()
    places: list[tuple[int, int]] = []
    for part in recording.parts(["document", "position", "token"]):
        at_N = np.flatnonzero(np.isin(part["token"], ids))
        places += zip(part["document"][at_N].tolist(), part["position"][at_N].tolist(), strict=True)
    places.sort()
    if not places:
        return None
    documents = recording.documents().set_index("document")["id"]
    begin = documents.index[documents == document]
    here = (int(begin[0]), -1 if position is None else position) if len(begin) else (-1, -1)
    index = next((index for index, place in enumerate(places) if place > here), 0)
    number, found = places[index]
    return Found(str(documents[number]), found, index + 1, len(places), bool(len(same)))
