"""What a user knows of a trace's documents and the trace does not: ids, domains, clusters, tokens, where prompts end.

A JSONL file, one object a document, in the order of the source; every key may be left out: `id`, `domain`, `source`,
`cluster` (what is resampled together), `token_ids` (of the rows; a last one that was sampled and never routed may
follow), `prompt_tokens` (how many of the rows are the prompt: the rest is decoding).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import TraceError

_TEXTS = ("id", "domain", "source", "cluster")


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
    """

    id: str | None = None
    domain: str | None = None
    source: str = ""
    cluster: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None


def read_labels(file: Path) -> list[Label]:
    """Reads the file.

    Raises:
        TraceError: it cannot be read, a line is no such object, or an id stands twice; names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"--documents {file} cannot be read ({error}); a JSONL file in UTF-8 was wanted.") from error
    labels: list[Label] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            label = _label(line, f"--documents {file}, line {number}")
            if label.id is not None and seen.setdefault(label.id, number) != number:
                raise TraceError(
                    f"--documents {file}, line {number}: the id {label.id!r} stands in line {seen[label.id]} already."
                )
            labels.append(label)
    return labels


def _label(line: str, where: str) -> Label:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(f"{where} is not JSON ({error.msg} at column {error.colno}).") from error
    known = (*_TEXTS, "token_ids", "prompt_tokens")
    if not isinstance(row, dict) or not set(row) <= set(known):
        held = ", ".join(key for key in row if key not in known) if isinstance(row, dict) else type(row).__name__
        raise TraceError(f"{where} holds {held}; an object with, of {', '.join(known)}, was wanted.")
    for key in _TEXTS:
        if not isinstance(row.get(key, ""), str):
            raise TraceError(f"{where}: {key} is {row[key]!r}; a string was wanted.")
    tokens, prompt = row.get("token_ids"), row.get("prompt_tokens")
    if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise TraceError(f"{where}: token_ids must be a list of integers.")
    if prompt is not None and not (type(prompt) is int and prompt >= 0):
        raise TraceError(f"{where}: prompt_tokens is {prompt!r}; a number from 0 was wanted.")
    return Label(
        id=row.get("id"),
        domain=row.get("domain"),
        source=row.get("source", ""),
        cluster=row.get("cluster"),
        token_ids=tuple(tokens) if tokens is not None else None,
        prompt_tokens=prompt,
    )
