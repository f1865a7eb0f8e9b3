"""Reads a JSON object from a file that anybody may have written: of bounded size, no key twice, no text that is none.

What is wrong is a `ValueError` with the reason, so that a caller makes one sentence of all of it; nothing is followed
that is no regular file, so that a pipe cannot keep a reader waiting.
"""

import json
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of a manifest; one of a thousand million tokens has 6 MB."""


def read_object(file: Path, *, most_bytes: int = MOST_BYTES, halves: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: Which; UTF-8.
        most_bytes: A larger file is not read.
        halves: As of `object_of`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no such object; says what it holds instead.
    """
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("it is no regular file")
    if facts.st_size > most_bytes:
        raise ValueError(f"it has {facts.st_size:,} bytes, and {most_bytes:,} are the most that is read")
    return object_of(file.read_bytes().decode("utf-8"), halves=halves)


def object_of(text: str, *, halves: bool = False) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        text: JSON.
        halves: Whether texts in it may hold halves of a surrogate pair, as the names of files do that are no UTF-8.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
        # Half a surrogate pair can be written as an escape, and neither hashed nor printed.
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass" if halves else "strict")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is no object, but {_KINDS.get(type(value), 'something else')}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} stands in it twice")
    return found


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}
