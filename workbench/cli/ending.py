"""How a command ends: done, refused, interrupted, its reader gone, or by a fault of the workbench's own.

Whatever happens is one sentence on standard error and a status: 1 for what the user or the machine can mend, 130 for
Ctrl-C, 143 for SIGTERM, 70 for a fault. Of a fault the traceback is kept in a file, so that it can be reported; with
`WORKBENCH_TRACEBACK=1` it is raised as it is.
"""

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from workbench.errors import WorkbenchError
from workbench.extras import missing
from workbench.files.writing import reason, shortened

FAULT = 70  # EX_SOFTWARE of sysexits.h
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}


class Ended(BaseException):
    """A signal asked the command to end. No `Exception`, so that nobody takes it for an error to go on after."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def signals_end() -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM raise `Ended` once, so that what was begun is undone; then they kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _WORDS}

    def end(signum: int, _: FrameType | None) -> None:
        for each in _WORDS:
            signal.signal(each, signal.SIG_DFL)
        raise Ended(signum)

    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # a command in the background of a script stays there
            signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def run(command: Callable[[], object], *, say: Callable[[str], None], stays: str = "") -> None:
    """Runs a command to its end, and ends the process with its status where it is not 0.

    Args:
        command: What is run.
        say: Prints the sentence.
        stays: What an interrupted command leaves behind, as a sentence.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a name that is no text must not end a command that prints it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # suppressed where it has none
    try:
        with signals_end():
            command()
            sys.stdout.flush()
    except SystemExit:
        _flush()
        raise
    except (Ended, KeyboardInterrupt) as ended:
        signum = ended.signum if isinstance(ended, Ended) else signal.SIGINT
        say(f"{_WORDS[signal.Signals(signum)]}. {stays}".strip())
        sys.exit(128 + signum)
    except BrokenPipeError:
        _flush()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        say(_sentence(error))
        _flush()
        sys.exit(1 if _is_mendable(error) else FAULT)


def _is_mendable(error: Exception) -> bool:
    return isinstance(error, WorkbenchError | OSError | MemoryError) or missing(error) is not None


def _sentence(error: Exception) -> str:
    if isinstance(error, WorkbenchError):
        return str(error)
    if (of_an_extra := missing(error, "this command")) is not None:
        return str(of_an_extra)
    if isinstance(error, OSError):
        where = f"{shortened(os.fspath(error.filename))!s}: " if isinstance(error.filename, str | Path) else ""
        return f"{where}{reason(error)}."
    if isinstance(error, MemoryError):
        return "there is not enough memory for this. Give it less at once, or run it on a larger machine."
    if os.environ.get("WORKBENCH_TRACEBACK"):
        raise error
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
    return f"this is a fault of the workbench, not of your input ({what}). Please report it{_kept(error)}"


def _kept(error: Exception) -> str:
    """Where the traceback is, as the end of a sentence; the traceback itself where no file can be written."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="workbench-fault-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{sys.argv}\n\n{text}")
    except OSError:
        return f":\n{text}"
    return f" with the traceback, which is in {file.name}."


def _flush() -> None:
    """Writes what is left; where nobody reads it any more, nothing is said of it when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
