"""Corpora: documents with a domain, from JSONL, Parquet or text. Reading only; tokens are the recorder's matter."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import CorpusError

BUNDLED = Path(__file__).resolve().parent.parent / "data" / "corpora"
_KEYS = {"id", "domain", "source", "text", "token_ids", "cluster"}


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

        `.jsonl`: one object a line. `.parquet`: the same keys as columns. `.txt`: the blocks between blank lines are
        documents of one domain, the file's name. Keys: `text` or `token_ids`; `id`, `domain`, `source`, `cluster`
        may be left out (the line's number, the file's name, empty, the id).

        Args:
            path: The file, or the name of a bundled corpus (`demo`).

        Raises:
            CorpusError: names the file and the line, what it got and what it wanted.
        """
        file = Path(path)
        bundled = BUNDLED / f"{path}.jsonl"
        if not file.exists() and bundled.is_file():
            file = bundled
        if not file.is_file():
            known = ", ".join(sorted(found.stem for found in BUNDLED.glob("*.jsonl"))) or "none"
            raise CorpusError(
                f"corpus {str(path)!r}: no such file; bundled corpora: {known}. Give a path or such a name."
            )
        readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".txt": _text_rows}
        if file.suffix not in readers:
            raise CorpusError(
                f"corpus {file}: the ending is {file.suffix or 'missing'!r}; {', '.join(readers)} can be read. "
                "Convert it to JSONL: one object a line with 'text' and 'domain'."
            )
        return cls(file.stem, _documents(readers[file.suffix](file), str(file)))


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_decode(file).split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: not JSON ({error.msg} at column {error.colno}). "
                    "Each line must be one object with at least 'text'; mend or delete the line."
                ) from error
            except (RecursionError, ValueError) as error:  # brackets without end; a number of thousands of digits
                raise CorpusError(
                    f"{file}, line {number}: not JSON that can be read ({type(error).__name__}: nested too deeply, "
                    "or a number with too many digits). Mend or delete the line."
                ) from error


def _text_rows(file: Path) -> Iterator[tuple[str, Any]]:
    blocks = [block.strip("\n") for block in _decode(file).replace("\r\n", "\n").split("\n\n")]
    for number, block in enumerate((block for block in blocks if block.strip()), start=1):
        yield f"block {number}", {"text": block}


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{file}: not a readable Parquet file ({error}). Write it again.") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", {key: value for key, value in row.items() if key in _KEYS and value is not None}


def _decode(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{file}, line {line}: byte {error.start} is not UTF-8. "
            "Convert the file first, e.g. iconv -f latin1 -t utf-8 OLD > NEW."
        ) from error


def _documents(rows: Iterator[tuple[str, Any]], name: str) -> tuple[Document, ...]:
    documents: list[Document] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        document = _document(row, f"{name}, {where}", stem=Path(name).stem, number=len(documents))
        if document.id in seen:
            raise CorpusError(
                f"{name}, {where}: the id {_short(document.id)} stands at {seen[document.id]} already; ids must be "
                "unique. Rename one, or leave the ids out."
            )
        seen[document.id] = where
        documents.append(document)
    if not documents:
        raise CorpusError(f"{name}: no documents; at least one was wanted. Each line must be an object with 'text'.")
    return tuple(documents)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _document(row: Any, where: str, *, stem: str, number: int) -> Document:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: got a JSON {type(row).__name__}, wanted an object with 'text'.")
    for key in ("id", "domain", "source", "text", "cluster"):
        if key in row and not isinstance(row[key], str):
            raise CorpusError(f"{where}: {key!r} is {_short(row[key])}, wanted a string.")
        if any("\ud800" <= letter <= "\udfff" for letter in row.get(key, "")):
            raise CorpusError(f"{where}: {key!r} holds half a character (a lone surrogate); delete it.")
    tokens = row.get("token_ids")
    if tokens is not None and not (
        isinstance(tokens, list) and tokens and all(isinstance(t, int) and not isinstance(t, bool) for t in tokens)
    ):
        raise CorpusError(f"{where}: 'token_ids' must be a list of at least one integer.")
    text = row.get("text", "")
    if tokens is None and not text.strip():
        raise CorpusError(
            f"{where}: 'text' is {'empty' if 'text' in row else 'missing'}; every document needs text or 'token_ids'. "
            "Delete the line or fill it."
        )
    identity: str = row.get("id", f"{stem}-{number}")
    return Document(
        id=identity,
        domain=row.get("domain", stem),
        source=row.get("source", ""),
        cluster=row.get("cluster", identity),
        text=text if tokens is None else "",
        token_ids=tuple(tokens) if tokens is not None else None,
    )
