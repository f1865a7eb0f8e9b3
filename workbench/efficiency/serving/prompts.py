"""Prompts of one length as text, cut from a corpus by the tokenizer of whoever reads them.

Servers take text and count tokens themselves, so a prompt is a piece of text that their tokenizer reads as exactly so
many tokens. Pieces begin at places of their own, so that no two share a beginning that a prefix cache could hold.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from workbench.errors import MeasurementError
from workbench.models.library_errors import foreign_errors, quiet
from workbench.models.tokenizers import auto_tokenizer
from workbench.recordings.corpus import Corpus

Count = Callable[[str], int]
_NEAR = 12
"""Characters to either side of a cut that are tried before a place is given up."""


def counter(name: str, option: str = "--moe") -> Count:
    """Counts a text's tokens as a server of that model does: `AutoTokenizer`, which servers use, with special tokens.

    Not the workbench's own reading (`load_tokenizer`), which keeps to tokenizer.json where the two differ.

    Raises:
        MeasurementError: no tokenizer of that name can be read.
    """
    with (
        quiet(),
        foreign_errors(
            f"{name!r} has no tokenizer that can be read here, and prompts of a fixed length need one",
            f"Name a folder or hub id: {option}-tokenizer NAME.",
            kind=MeasurementError,
        ),
    ):
        tokenizer = auto_tokenizer(name, as_servers=True)

    def count(text: str) -> int:
        with foreign_errors(
            f"the tokenizer of {name!r} fails on a piece of the corpus",
            f"Name another: {option}-tokenizer NAME, or give another corpus.",
            kind=MeasurementError,
        ):
            return len(tokenizer(text, verbose=False)["input_ids"])

    return count


@dataclass(eq=False)
class Texts:
    """Hands out pieces of a corpus, each from a place that no other began at.

    Attributes:
        corpus: Name or file.
        counts: The token counter of each reader, by label.
        seed: Of the order of places.
    """

    corpus: str
    counts: Mapping[str, Count]
    seed: int = 0
    _text: str = field(init=False, repr=False)
    _places: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._text = "\n\n".join(document.text for document in Corpus.read(self.corpus).documents)
        places = [found.end() for found in re.finditer(r"\s+(?=\S)", self._text)]
        self._places = np.random.default_rng(self.seed).permutation(places).tolist()

    def take(self, tokens: int) -> dict[str, str]:
        """A prompt for each reader, from one place: the same text where their tokenizers agree.

        Raises:
            MeasurementError: every place was used or is too near the end.
        """
        while self._places:
            start = self._places.pop()
            cut = {label: self._cut(start, tokens, count) for label, count in self.counts.items()}
            found = {label: text for label, text in cut.items() if text is not None}
            if len(found) == len(cut):
                return found
        raise MeasurementError(
            f"the corpus {self.corpus!r} has no further place for a prompt of {tokens} tokens; name a larger one with "
            "--corpus, or ask for fewer requests or rounds."
        )

    def _cut(self, start: int, tokens: int, count: Count) -> str | None:
        """The text from a place that counts as so many tokens; nothing where no cut near it does."""
        low, high = 1, tokens
        while count(self._text[start : start + high]) < tokens:
            if start + high > len(self._text):
                return None
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if count(self._text[start : start + middle]) < tokens else (low, middle)
        for length in range(max(1, low - _NEAR), low + _NEAR):
            text = self._text[start : start + length]
            if count(text) == tokens:
                return text
        return None
