"""Writes, connections and processes of this process while something is watched, by Python's audit events.

What compiled code writes by itself raises no event; `listing` before and after sees that in the places that matter.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALLOWED = ("/dev/null", "/dev/tty", "/proc/self/")
"""Places that are no place: what is written there is nowhere."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1,
}  # fmt: skip
_PROCESSES = ("subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn")
_REMEMBERED = 200
_LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "", None)

_allowed: tuple[str, ...] | None = None
_earlier: tuple[str, ...] = ()  # of inputs before: a thread of an app that was stopped may end its work there
_events: list[tuple[str, str]] = []
_installed = False


def install() -> None:
    """Hooks in, once in a process: such a hook stays."""
    global _installed  # noqa: PLW0603
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


@contextlib.contextmanager
def watch(*folders: Path) -> Iterator[None]:
    """Takes down what is written outside these folders while the block runs."""
    global _allowed, _earlier  # noqa: PLW0603
    _events.clear()
    own = tuple(f"{folder.resolve()}" for folder in folders)
    _allowed = (*own, *_earlier, *ALLOWED)
    _earlier = (*_earlier[-_REMEMBERED:], *own)
    try:
        yield
    finally:
        _allowed = None


def taken() -> list[tuple[str, str]]:
    """What was taken down: write, network or process, and where; each once."""
    return list(dict.fromkeys(_events))


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event == "open":
        path, mode, flags = args
        if (isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and set(mode) & set("wax+")):
            _refuse_outside(path)
    elif event in _PATHS:
        if event == "os.mkdir" and os.path.isdir(args[0]):
            return  # it is there: asked for to be sure, and nothing is written
        for path in args[: _PATHS[event]]:
            _refuse_outside(path, args[-1])
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            _events.append(("network", f"connects to {str(address[0])[:80]}"))
    elif event == "socket.getaddrinfo":
        if args[0] not in _LOCAL:
            _events.append(("network", f"looks up {str(args[0])[:80]}"))
    elif event in _PROCESSES:
        _events.append(("process", f"starts a process: {str(args[0])[:80]}"))


def _refuse_outside(path: Any, folder: Any = -1) -> None:
    if isinstance(path, int):
        return
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
        with contextlib.suppress(OSError):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    where = os.path.realpath(text)
    if not where.startswith(_allowed or ()):
        _events.append(("write", f"writes {where[:200]}"))


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """Every file below a folder with its size and time."""
    found = set()
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                facts = entry.stat(follow_symlinks=False)
                found.add((entry.path, facts.st_size if entry.is_file() else 0, facts.st_mtime_ns))
    return found
