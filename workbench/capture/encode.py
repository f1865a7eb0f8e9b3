"""From documents to token ids, as the model will be given them.

Where a text brings the marks that the tokenizer would add, as one rendered by a chat template does, they are not added
again. Of a long text only the tokens that can be recorded are kept, and the rest is counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import CorpusError
from workbench.models.loading import Model
from workbench.recordings.corpus import Corpus, Document

_MOST_CHARACTERS = 50_000_000  # of one document: half a minute of a fast tokenizer


@dataclass(frozen=True)
class Encoded:
    """A corpus as token ids.

    Attributes:
        ids: Of each document its first tokens, int32, as many as can be recorded at most.
        lengths: Of each document all its tokens.
        n_marked: Texts that began or ended with the marks that the tokenizer adds, which were not added again.
    """

    ids: tuple[np.ndarray, ...]
    lengths: tuple[int, ...]
    n_marked: int


@dataclass(frozen=True)
class _Marks:
    """Token ids that a tokenizer puts before and behind every text."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


def encode(corpus: Corpus, model: Model, *, limit: int | None = None) -> Encoded:
    """The token ids of every document.

    Args:
        corpus: The corpus.
        model: Whose tokenizer is used, and whose vocabulary the ids must belong to.
        limit: Most tokens of a document that can be recorded; None for no limit.

    Raises:
        CorpusError: a text and no tokenizer, a text the tokenizer cannot read, a document without tokens, or ids that
            the model does not know; names the document.
    """
    of_text = _TextEncoder(corpus, model)
    ids, lengths = [], []
    for number, document in enumerate(corpus.documents):
        found = list(document.token_ids) if document.token_ids is not None else of_text(document)
        if not found:
            raise CorpusError(f"{corpus.name}: document {document.id!r} (number {number}) has no tokens; take it out.")
        if not 0 <= min(found) <= max(found) < model.topology.vocabulary:
            raise CorpusError(
                f"{corpus.name}: document {document.id!r} has token ids from {min(found)} to {max(found)}; "
                f"{model.name} knows 0 to {model.topology.vocabulary - 1}. Was it tokenized for another model?"
            )
        lengths.append(len(found))
        ids.append(np.array(found[:limit], dtype=np.int32))
    return Encoded(tuple(ids), tuple(lengths), of_text.n_marked)


class _TextEncoder:
    """Encodes texts, and counts those that bring the tokenizer's marks themselves."""

    def __init__(self, corpus: Corpus, model: Model) -> None:
        self._corpus, self._model = corpus, model
        self._marks: _Marks | None = None
        self.n_marked = 0

    def __call__(self, document: Document) -> list[int]:
        """The ids of a text.

        Raises:
            CorpusError: there is no tokenizer, or it fails on this text.
        """
        corpus, model = self._corpus, self._model
        if model.tokenizer is None:
            raise CorpusError(
                f"{corpus.name}: document {document.id!r} is text, but {model.name} has no tokenizer that can be read: "
                f"{model.tokenizer_problem}"
            )
        if len(document.text) > _MOST_CHARACTERS:
            raise CorpusError(
                f"{corpus.name}: document {document.id!r} has {len(document.text):,} characters; at most "
                f"{_MOST_CHARACTERS:,} are read. Cut it into documents of one 'cluster'."
            )
        ids = self._ids(document, document.text)
        if self._marks is None:
            self._marks = self._added(document)
        once = _once(ids, self._marks)
        self.n_marked += len(once) < len(ids)
        return once

    def _ids(self, document: Document, text: str, **options: Any) -> list[int]:
        tokenizer: Callable[..., Any] = self._model.tokenizer  # type: ignore[assignment]  # asked before
        try:
            return [int(i) for i in tokenizer(text, verbose=False, **options)["input_ids"]]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raise what they like; a panic of Rust's is no Exception
            raise CorpusError(
                f"{self._corpus.name}: the tokenizer of {self._model.name} fails on document {document.id!r} "
                f"({type(error).__name__}: {_first_line(error)}). Look for broken characters in its text, or take it "
                "out; if it fails on every document, give 'token_ids' instead of 'text'."
            ) from error

    def _added(self, document: Document) -> _Marks:
        """What the tokenizer puts around a text: what is around a letter beside what the letter alone becomes."""
        text = "a"
        try:
            marked = self._ids(document, text)
        except CorpusError:  # it knows some words, and no letters
            text = document.text
            marked = self._ids(document, text)
        plain = self._ids(document, text, add_special_tokens=False)
        if not plain or len(marked) <= len(plain):
            return _Marks((), ())
        for start in range(len(marked) - len(plain) + 1):
            if marked[start : start + len(plain)] == plain:
                return _Marks(tuple(marked[:start]), tuple(marked[start + len(plain) :]))
        return _Marks((), ())


def _once(ids: list[int], marks: _Marks) -> list[int]:
    """The ids without marks that stand there twice, once from the tokenizer and once from the text itself."""
    n_before, n_behind = len(marks.before), len(marks.behind)
    inner = ids[n_before : len(ids) - n_behind]
    begin = _shared(inner, marks.before)
    end = len(inner) - _shared(inner[begin:][::-1], marks.behind[::-1])
    return [*ids[:n_before], *inner[begin:end], *ids[len(ids) - n_behind :]] if end - begin < len(inner) else ids


def _shared(ids: Sequence[int], marks: Sequence[int]) -> int:
    """How many of the marks the ids begin with."""
    n = 0
    while n < min(len(ids), len(marks)) and ids[n] == marks[n]:
        n += 1
    return n


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
