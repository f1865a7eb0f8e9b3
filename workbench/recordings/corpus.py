"""Corpora: documents with a domain, from JSONL, Parquet or text. Reading only; tokens are the recorder's matter."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import CorpusError
from workbench.paths import BUNDLED
from workbench.recordings.corpus_files import MOST_DOCUMENTS, READERS, Row, no_corpus_file, unread_domain

CORPORA = BUNDLED / "corpora"
"""Those that came with the workbench."""
MOST_CHARACTERS = 1_000
_NAMES = ("id", "domain", "source", "cluster")
_MOST_TOKEN = 2**31 - 1  # token ids are stored in 32 bits


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: Unique in its corpus.
        domain: What it belongs to; intervals and nulls are taken within and across domains.
        source: Where it comes from, in words.
        cluster: What is resampled together with it (translations, chunks of one article); its id unless given.
        text: The text; empty where `token_ids` are given.
        token_ids: Token ids, where there is no tokenizer.
    """

    id: str
    domain: str
    source: str
    cluster: str
    text: str
    token_ids: tuple[int, ...] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text, or of the token ids."""
        content = self.text if self.token_ids is None else json.dumps(self.token_ids)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, under a name."""

    name: str
    documents: tuple[Document, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, sorted."""
        return tuple(sorted({document.domain for document in self.documents}))

    @property
    def digest(self) -> str:
        """SHA-256 over every document's fields, in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            fields = [document.id, document.domain, document.source, document.cluster, document.digest]
            digest.update(json.dumps(fields, ensure_ascii=False).encode())
        return digest.hexdigest()

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, domain: str = "text", name: str = "texts") -> "Corpus":
        """A corpus of plain strings, for a prompt or a notebook."""
        rows = [{"id": f"{name}-{i}", "domain": domain, "text": text} for i, text in enumerate(texts)]
        return cls(name, _documents(((f"text {i}", row) for i, row in enumerate(rows)), name))

    @classmethod
    def read(cls, path: str | Path) -> "Corpus":
        """Reads a corpus file.

        `.jsonl`: one object a line. `.parquet`: the same keys as columns. `.txt`: the blocks between blank lines
        (empty, or of blanks and tabs) are documents of one domain, the file's name. Keys: `text` or `token_ids`; `id`,
        `domain`, `source`, `cluster` may be left out (the line's number, the file's name, empty, the id). Lines end in
        LF, CRLF or CR. At most `MOST_DOCUMENTS` documents, names of at most `MOST_CHARACTERS` characters.

        Args:
            path: The file, or the name of a bundled corpus (`demo`).

        Raises:
            CorpusError: names the file and the line, what it got and what it expected.
        """
        file = Path(path)
        bundled = CORPORA / f"{path}.jsonl"
        try:
            if not file.exists() and bundled.is_file():
                file = bundled
            if not file.is_file() or file.suffix not in READERS:
                raise CorpusError(no_corpus_file(file, CORPORA))
            return cls(file.stem, _documents(READERS[file.suffix](file), str(file)))
        except OSError as error:  # a name of 300 characters, a file that may not be read, a disk that fails
            raise CorpusError(
                f"corpus {_short(str(path))} cannot be read ({error.strerror or error}). Give the path of a file that "
                "can be opened."
            ) from error


def name_fault(value: str) -> str | None:
    """What keeps a text from being the name of a document, domain, source or cluster, in words; None for a good one."""
    if len(value) > MOST_CHARACTERS:
        return f"has {len(value):,} characters; at most {MOST_CHARACTERS:,} were expected"
    return _half_character(value)


def _half_character(value: str) -> str | None:
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return "holds half a character (a lone surrogate); delete it"
    return None


def _documents(rows: Iterator[Row], name: str) -> tuple[Document, ...]:
    documents: list[Document] = []
    seen: dict[str, str] = {}
    values_of: dict[str, set[str]] = {}  # of rows without a domain, what other keys say that could be one
    for where, row in rows:
        if len(documents) == MOST_DOCUMENTS:
            raise CorpusError(f"{name}: more than {MOST_DOCUMENTS:,} documents; cut the file into several.")
        document = _document(row, f"{name}, {where}", stem=Path(name).stem, number=len(documents))
        if document.id in seen:
            raise CorpusError(
                f"{name}, {where}: the id {_short(document.id)} stands at {seen[document.id]} already; ids must be "
                "unique. Rename one, or leave the ids out."
            )
        seen[document.id] = where
        documents.append(document)
        if "domain" not in row:
            for key, value in unread_domain(row):
                values = values_of.setdefault(key, set())
                if len(values) < 4:  # enough to name some
                    values.add(value)
    if not documents:
        raise CorpusError(f"{name}: no documents; at least one was expected. Each line must be an object with 'text'.")
    for key, values in values_of.items():
        if len(values) > 1:
            some = ", ".join(_short(value) for value in sorted(values)[:3])
            raise CorpusError(
                f"{name}: rows without 'domain' differ in {_short(key)} ({some} …), which would be dropped: domains "
                "are read from 'domain' alone. Write it there (jq -c '.domain = .KEY' OLD > NEW), or give every row "
                "the domain that is meant."
            )
    return tuple(documents)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _document(row: Any, where: str, *, stem: str, number: int) -> Document:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: got a JSON {type(row).__name__}, expected an object with 'text'.")
    for key in (*_NAMES, "text"):
        if key in row and not isinstance(row[key], str):
            raise CorpusError(f"{where}: {key!r} is {_short(row[key])}, expected a string.")
        fault = (_half_character if key == "text" else name_fault)(row.get(key, ""))
        if fault:
            raise CorpusError(f"{where}: {key!r} {fault}.")
    tokens = row.get("token_ids")
    _refuse_tokens(tokens, where)
    text = row.get("text", "")
    if tokens is None and not text.strip():
        raise CorpusError(f"{where}: {_without_text(row)}")
    identity: str = row.get("id", f"{stem}-{number}")
    return Document(
        id=identity,
        domain=row.get("domain", stem),
        source=row.get("source", ""),
        cluster=row.get("cluster", identity),
        text=text if tokens is None else "",
        token_ids=tuple(tokens) if tokens is not None else None,
    )


def _refuse_tokens(tokens: Any, where: str) -> None:
    if tokens is None:
        return
    if not (isinstance(tokens, list) and tokens and all(type(token) is int for token in tokens)):
        raise CorpusError(f"{where}: 'token_ids' must be a list of at least one integer.")
    wrong = next((token for token in tokens if not 0 <= token <= _MOST_TOKEN), None)
    if wrong is not None:
        raise CorpusError(
            f"{where}: 'token_ids' holds {_short(wrong)}; token ids from 0 to {_MOST_TOKEN} were expected. Padding, "
            "such as -1 or -100, is left out."
        )


def _without_text(row: dict[str, Any]) -> str:
    """Why a row has no text, and what to do about it, by the keys that it has instead."""
    if "text" in row:
        return "'text' is empty; every document needs text or 'token_ids'. Delete the line or fill it."
    missing = "'text' is missing; every document needs text or 'token_ids'. "
    chat = next((key for key in ("messages", "conversations", "conversation") if key in row), None)
    if chat:
        return (
            f"{missing}It has {chat!r}: render each conversation with the model's chat template "
            "(tokenizer.apply_chat_template(…, tokenize=False)) and write the result under 'text'."
        )
    if "input_ids" in row:
        return f"{missing}It has 'input_ids': write them under 'token_ids', without padding."
    if not row:
        return f"{missing}Delete the line or fill it."
    keys = ", ".join(_short(key) for key in list(row)[:8])
    return f"{missing}It has {keys}: write the one that holds the text under 'text'."
