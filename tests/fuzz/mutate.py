"""Damage, drawn by chance: of JSON values, bytes, text and its encoding. All follows from the generator."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile import HOSTILE

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 5, 7, 127, 128, 255, 256, 1000, 65_535, 65_536, 10**7, 2**31 - 1, 2**31, 2**32, 2**53 + 1,
    2**63 - 1, 2**63, 2**64, 10**12, 10**30, -(2**31), -(2**63), -(10**30), 0.0, -0.0, 0.5, 1.5, -2.5, 1e-300, 1e30,
    1e308, math.inf, -math.inf, math.nan,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "a", "0", "-1", "7", "1e999", "null", "NaN", "true", "auto", "../..", "../../etc/passwd", "/",
    "/etc/passwd", "/dev/zero", "~", "C:\\con", "a/b", "a@b", "x" * 300, "x" * 5_000, "é", "中文", "🙂" * 40, "\ud800",
    "a\x00b", "\x1b[31m", "\r", "\r\n", "\u2028", "a,b", "-", "--", "%s%n", "{}", "[]", "$HOME", "`id`", "tiny-moe",
    "float32", "torch.float16", "int4", "sdpa", "a|b", "2024-02-30", "1970-01-01T00:00:00Z", *HOSTILE.values(),
)  # fmt: skip


def strange(rng: Random, depth: int = 0) -> Any:
    """Any JSON value, strange ones foremost."""
    kind = rng.choice(("none", "bool", "number", "number", "number", "text", "text", "list", "dict"))
    if kind == "number":
        return rng.choice(NUMBERS)
    if kind == "text":
        return rng.choice(TEXTS)
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "none" or depth > 2:
        return None
    inner = [strange(rng, depth + 1) for _ in range(rng.choice((0, 0, 1, 2, 5)))]
    return inner if kind == "list" else {rng.choice(TEXTS): value for value in inner}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key in it, from the outermost; of long lists some."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        held = waiting.pop(0)
        keys = list(held) if isinstance(held, dict) else list(range(min(len(held), 12)))
        found += [(held, key) for key in keys]
        waiting += [held[key] for key in keys if isinstance(held[key], dict | list)]
    return found


def mutated(rng: Random, value: Any, *, times: int | None = None, donors: Sequence[Any] = ()) -> Any:
    """The value with one to three changes; a donor lends keys and values that belong elsewhere."""
    held = {"": copy.deepcopy(value)}
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        found = places(held)
        container, key = rng.choice(found) if rng.random() > 0.02 else found[0]
        _change(rng, held, container, key, donors)
    return held[""]


def _change(rng: Random, root: Any, container: Any, key: Any, donors: Sequence[Any]) -> None:
    now = container[key]
    kind = rng.choice(("strange", "strange", "near", "near", "delete", "swap", "wrap", "repeat", "rename", "donor"))
    if kind == "near":
        container[key] = near(rng, now)
    elif kind == "delete" and container is not root:
        del container[key]
    elif kind == "swap":
        other, at = rng.choice(places(root))
        container[key] = copy.deepcopy(other[at])
    elif kind == "wrap":
        container[key] = rng.choice(([now], {"a": now}, [[now]], [now, now], {str(now)[:50]: now}))
    elif kind == "repeat" and isinstance(now, list | str) and len(now) < 10_000:
        container[key] = now * rng.choice((0, 2, 3, 100))
    elif kind == "rename" and isinstance(container, dict) and container is not root:
        container[rng.choice((rng.choice(TEXTS), f"{key}s", str(key).upper(), f"_{key}"))] = container.pop(key)
    elif kind == "donor" and donors:
        lender, at = rng.choice(places({"": rng.choice(donors)})[1:])
        if isinstance(container, dict) and container is not root and isinstance(at, str):
            container[at] = copy.deepcopy(lender[at])
        else:
            container[key] = copy.deepcopy(lender[at])
    else:
        container[key] = strange(rng)


def near(rng: Random, now: Any) -> Any:
    """A value like the one that is there: what a careless hand would write."""
    if isinstance(now, bool):
        return rng.choice((not now, int(now), str(now), None))
    if isinstance(now, int | float):
        return rng.choice(
            (now + 1, now - 1, -now, now * 2, now * 2 + 1, 0, float(now), str(now), [now], now / 2, now * 1000, None)
        )
    if isinstance(now, str):
        at = rng.randrange(len(now) + 1)
        return rng.choice(
            (now[:at], now[at:], now + now, now.upper(), now[:at] + rng.choice(TEXTS) + now[at:], [now], None)
        )
    if isinstance(now, list):
        return rng.choice((now[:-1], now[1:], now[::-1], now + now[:1], [*now, strange(rng)], now[0] if now else None))
    if isinstance(now, dict):
        return rng.choice(({}, list(now), list(now.values()), None, {**now, "a": strange(rng)}))
    return strange(rng)


def as_json(rng: Random, value: Any) -> bytes:
    """The value as a file holds it: mostly plain, at times in another encoding, with a key twice, or cut."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    kind = rng.choice(("plain",) * 24 + ("bom", "utf-16", "latin", "twice", "tail", "cut", "deep", "digits", "null"))
    if kind == "utf-16":
        return text.encode("utf-16", errors="surrogatepass")
    if kind == "latin":
        return json.dumps(value, ensure_ascii=False).encode("latin1", errors="replace")
    if kind == "twice" and text.startswith("{") and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        text = "{" + json.dumps(key) + ": " + json.dumps(strange(rng)) + ", " + text[1:]
    elif kind == "tail":
        text += rng.choice(("}", "\x00", " {}", "\n\n[1", "//"))
    elif kind == "cut":
        text = text[: rng.randrange(len(text) + 1)]
    elif kind in ("deep", "digits") and text:
        at = rng.randrange(len(text))
        deep = rng.choice(("[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900))
        text = text[:at] + (deep if kind == "deep" else "9" * rng.choice((400, 5_000))) + text[at:]
    elif kind == "null":
        text = rng.choice(("", "null", "[]", "{}", "0", '""', "\x00" * 100))
    raw = text.encode("utf-8", errors="surrogatepass")
    return b"\xef\xbb\xbf" + raw if kind == "bom" else raw


def held_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where an earlier change left none."""
    try:
        held = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes with one to three faults of a disk or a hand."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        start, length = rng.randrange(len(raw) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1024))
        block = bytes(raw[start : start + length])
        kind = rng.choice(("flip", "flip", "set", "cut", "insert", "delete", "zero", "double", "move", "fill", "empty"))
        if kind == "flip" and start < len(raw):
            raw[start] ^= 1 << rng.randrange(8)
        elif kind == "set":
            raw[start : start + length] = rng.randbytes(len(block))
        elif kind == "cut":
            del raw[start:]
        elif kind == "insert":
            raw[start:start] = rng.randbytes(length)
        elif kind == "delete":
            del raw[start : start + length]
        elif kind == "zero":
            raw[start : start + length] = bytes(len(block))
        elif kind == "fill":
            raw[start : start + length] = b"\xff" * len(block)
        elif kind == "double":
            raw[start:start] = block
        elif kind == "move":
            del raw[start : start + length]
            at = rng.randrange(len(raw) + 1)
            raw[at:at] = block
        elif kind == "empty" and rng.random() < 0.1:
            raw.clear()
    return bytes(raw)


def encoded(rng: Random, text: str) -> bytes:
    """Text as people's files hold it: in another encoding, with other line ends, or with stray bytes."""
    kind = rng.choice(("utf-8",) * 6 + ("bom", "utf-16", "utf-16-le", "utf-32", "latin1", "cp1252", "crlf", "cr", "ls"))
    if kind in ("crlf", "cr", "ls"):
        text = text.replace("\n", {"crlf": "\r\n", "cr": "\r", "ls": "\u2028"}[kind])
    if kind in ("utf-16", "utf-16-le", "utf-32"):
        return text.encode(kind, errors="surrogatepass")
    if kind in ("latin1", "cp1252"):
        return text.encode(kind, errors="replace")
    raw = text.encode("utf-8", errors="surrogatepass")
    return b"\xef\xbb\xbf" + raw if kind == "bom" else raw
