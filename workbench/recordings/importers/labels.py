"""What a user knows of a trace's documents and the trace does not: ids, domains, clusters, tokens, where prompts end.

A JSONL file, one object a document; every key may be left out: `id`, `domain`, `source`, `cluster` (what is resampled
together), `token_ids` (of the rows; a last one that was sampled and never routed may follow), `prompt_tokens` (how many
of the rows are the prompt: the rest is decoding), `start` (position of the first row: how many tokens of the sequence
came before it and are not in the trace).

Rows are joined to documents by their ids where these name the documents (a file's name, with or without its ending or
folder; or the name in the file), else by the numbers in both where these are the same numbers, else in order: the order
of the rows, and the natural order of the files (`r2` before `r10`). Which it was stands in the manifest.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import TraceError
from workbench.recordings.corpus import name_fault
from workbench.recordings.importers.limits import MOST_ROWS, refuse_claim
from workbench.recordings.importers.trace import foreign, shown

_TEXTS = ("id", "domain", "source", "cluster")
_NUMBERS = ("prompt_tokens", "start")
_KNOWN = (*_TEXTS, "token_ids", *_NUMBERS)
_ENDINGS = (".npy", ".npz", ".pt", ".parquet", ".jsonl")
_MOST_TOKEN = 2**31 - 1
BY_NAME, BY_NUMBER, IN_ORDER = "name", "number in the name", "natural order"


@dataclass(frozen=True)
class Label:
    """What is known of a document beside its trace.

    Attributes:
        id: Its id; None for the trace's.
        domain: Its domain; None for the source's name.
        source: Where it comes from, in words.
        cluster: What is resampled with it; None for the trace's.
        token_ids: Its token ids.
        prompt_tokens: Rows of the prompt.
        start: Position of the first row.
        line: Line of the file.
    """

    id: str | None = None
    domain: str | None = None
    source: str = ""
    cluster: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    start: int | None = None
    line: int = 0


@dataclass(frozen=True)
class Labels:
    """Labels in the order of the documents, and what joined them (`BY_NAME`, `BY_NUMBER` or `IN_ORDER`)."""

    labels: tuple[Label, ...]
    joined_by: str
    file: str


def read_labels(file: Path) -> list[Label]:
    """Reads the file.

    Raises:
        TraceError: it cannot be read, a line is no such object, or an id stands twice; names the line.
    """
    with foreign(Path(f"--documents {file}"), "a JSONL file in UTF-8 was expected"):
        if file.exists() and not file.is_file():
            raise TraceError(f"--documents {shown(file, most=300)} is no file; a JSONL file in UTF-8 was expected.")
        refuse_claim(file, 5 * file.stat().st_size, what="lines", advice="Leave out what is not needed of it.")
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    labels: list[Label] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            label = _label(line, number, f"--documents {file}, line {number}")
            if label.id is not None and seen.setdefault(label.id, number) != number:
                raise TraceError(
                    f"--documents {file}, line {number}: the id {label.id!r} stands in line {seen[label.id]} already."
                )
            labels.append(label)
    return labels


def _label(line: str, number: int, where: str) -> Label:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(f"{where} is not JSON ({error.msg} at column {error.colno}).") from error
    except (RecursionError, ValueError) as error:  # brackets without end; a number of thousands of digits
        raise TraceError(f"{where} is not JSON that can be read ({type(error).__name__}).") from error
    if not isinstance(row, dict) or not set(row) <= set(_KNOWN):
        held = ", ".join(_short(k) for k in row if k not in _KNOWN) if isinstance(row, dict) else type(row).__name__
        raise TraceError(f"{where} holds {held}; an object with, of {', '.join(_KNOWN)}, was expected.")
    for key in _TEXTS:
        if not isinstance(row.get(key, ""), str):
            raise TraceError(f"{where}: {key} is {_short(row[key])}; a string was expected.")
        if fault := name_fault(row.get(key, "")):
            raise TraceError(f"{where}: {key} {fault}.")
    for key in _NUMBERS:
        value = row.get(key)
        if value is not None and not (type(value) is int and 0 <= value <= _MOST_TOKEN):
            raise TraceError(f"{where}: {key} is {_short(value)}; a number from 0 was expected.")
    tokens = row.get("token_ids")
    if tokens is not None and not _are_tokens(tokens):
        raise TraceError(f"{where}: token_ids must be a list of integers from 0 to {_MOST_TOKEN}.")
    return Label(
        id=row.get("id"),
        domain=row.get("domain"),
        source=row.get("source", ""),
        cluster=row.get("cluster"),
        token_ids=tuple(tokens) if tokens is not None else None,
        prompt_tokens=row.get("prompt_tokens"),
        start=row.get("start"),
        line=number,
    )


def _are_tokens(tokens: Any) -> bool:
    return (
        isinstance(tokens, list)
        and len(tokens) <= MOST_ROWS
        and all(type(token) is int and 0 <= token <= _MOST_TOKEN for token in tokens)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


# Which label is whose


def join_labels(file: Path, names: list[tuple[str, ...]], *, unit: str) -> Labels:
    """Reads labels and puts them into the order of the documents.

    Args:
        file: The JSONL file.
        names: Of each document the names that it goes by, its own first, in the order of the source.
        unit: What a document is, in words.

    Raises:
        TraceError: what `read_labels` refuses; the ids name some of the documents and not all, or two rows name one;
            or, in order, there are more or fewer rows than documents.
    """
    labels = read_labels(file)
    at = _by_name(labels, names)
    if any(found is not None for found in at) and not _renames(labels, at):
        return Labels(tuple(labels[found] for found in _whole(labels, names, at, unit)), BY_NAME, file.name)
    numbered = _by_number(labels, names)
    if numbered is not None:
        return Labels(tuple(labels[found] for found in numbered), BY_NUMBER, file.name)
    if len(labels) != len(names):
        raise TraceError(
            f"--documents has {len(labels):,} rows and the trace {len(names):,} {unit}, and the ids of the rows do not "
            "name them; one row for each was expected, in natural order, or with the names as ids."
        )
    return Labels(tuple(labels), IN_ORDER, file.name)


def _by_name(labels: list[Label], names: list[tuple[str, ...]]) -> list[int | None]:
    """Of each document the label whose id names it."""
    of_key: dict[str, int] = {}
    for index, label in enumerate(labels):
        if label.id is not None:
            name = Path(label.id).name
            for key in (name, name.removesuffix(Path(name).suffix) if Path(name).suffix in _ENDINGS else name):
                of_key.setdefault(key, index)
    for index, label in enumerate(labels):
        if label.id is not None:
            of_key[label.id] = index  # a whole id goes before a part of another
    return [next((of_key[name] for name in known if name in of_key), None) for known in names]


def _renames(labels: list[Label], at: list[int | None]) -> bool:
    """Whether those that are named stand in their places and all others have no id: the order says the same."""
    return len(labels) == len(at) and all(
        found == index if found is not None else labels[index].id is None for index, found in enumerate(at)
    ) and None in at  # fmt: skip


def _whole(labels: list[Label], names: list[tuple[str, ...]], at: list[int | None], unit: str) -> list[int]:
    nameless = [names[index][0] for index, found in enumerate(at) if found is None]
    taken = [found for found in at if found is not None]
    used = set(taken)
    idle = [label for index, label in enumerate(labels) if index not in used]
    twice = next((found for found in taken if taken.count(found) > 1), None) if len(used) < len(taken) else None
    if twice is not None:
        both = [names[index][0] for index, found in enumerate(at) if found == twice]
        raise TraceError(
            f"--documents, line {labels[twice].line}: the id {labels[twice].id!r} names {len(both)} {unit} "
            f"({', '.join(map(_short, both[:3]))}); give each a row with a name of its own."
        )
    if nameless or idle:
        reasons = [f"no row names {', '.join(map(_short, nameless[:3]))} ({len(nameless):,})"] if nameless else []
        if idle:
            name = "no id" if idle[0].id is None else f"id {_short(idle[0].id)}"
            reasons.append(f"line {idle[0].line} ({name}) names none ({len(idle):,} rows do not)")
        raise TraceError(
            f"the ids of --documents name {len(taken):,} of the {len(names):,} {unit}: {', and '.join(reasons)}. Give "
            "every one a row with its name as id, or leave the ids out to join in order."
        )
    return taken


def _by_number(labels: list[Label], names: list[tuple[str, ...]]) -> list[int] | None:
    """Of each document the label with the same number in its id; None where the numbers are not the same ones."""
    if len(labels) < 2 or any(label.id is None for label in labels):
        return None
    of_label, of_document = (_numbers(texts) for texts in ([label.id or "" for label in labels], [n[0] for n in names]))
    if of_label is None or of_document is None or sorted(of_label) != sorted(of_document):
        return None
    place = {number: index for index, number in enumerate(of_label)}
    return [place[number] for number in of_document]


def _numbers(texts: list[str]) -> list[tuple[int, ...]] | None:
    """The numbers in each text, less those that all share; None where they do not tell the texts apart."""
    found = [tuple(int(digits[-18:]) for digits in re.findall(r"[0-9]+", text)) for text in texts]
    if len({len(numbers) for numbers in found}) != 1:
        return None
    varying = [at for at in range(len(found[0])) if len({numbers[at] for numbers in found}) > 1]
    kept = [tuple(numbers[at] for at in varying) for numbers in found]
    return kept if varying and len(set(kept)) == len(kept) else None
