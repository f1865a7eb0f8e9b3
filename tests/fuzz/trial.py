"""One input: where it lies, what is asked of it, and what became of that."""

import contextlib
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import watching
from workbench.errors import WorkbenchError

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE = 2_000
_READS = ("inspect", "memory", "load", "tokenizer", "read", "import", "open", "verify")
_OURS = ("workbench", "analyses", "pages", "data")


@dataclass(frozen=True)
class Failure:
    """What must not be.

    Attributes:
        what: traceback, message, refused, hang, memory, died, write, network, process, leftover or status.
        where: What failures of one root have in common: the error's type and the innermost frames, ours and a
            library's.
        step: What was asked.
        detail: For people.
    """

    what: str
    where: str
    step: str = ""
    detail: str = ""


@dataclass
class Outcome:
    """What became of an input."""

    kind: str
    index: int
    accepted: int = 0
    sentences: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """An input on its way: a folder of its own, a generator of its own, and an outcome.

    Attributes:
        rng: Follows from seed, kind and index alone.
        base: What the kinds prepared; read only.
        inputs: Folder of the damaged input.
        out: Where results belong; what is asked may write here and nowhere else.
    """

    def __init__(self, kind: str, index: int, *, seed: int, base: Path, folder: Path) -> None:
        self.rng = Random(f"{seed} {kind} {index}")
        self.base = base / kind
        self.folder, self.inputs, self.out = folder, folder / "in", folder / "out"
        self.outcome = Outcome(kind, index)
        self.also_allowed: list[Path] = []  # places where writing is asked for, and must be refused by the system
        self.drafts: set[Path] = set()  # that lay there before anything was asked
        self.untouched = False  # nothing was damaged: what reads must not refuse
        self._before = watching.listing(base), watching.listing(Path.home())
        self._watched = base
        for place in (self.inputs, self.out, self._scratch, self._cwd):
            place.mkdir(parents=True, exist_ok=True)

    @property
    def _scratch(self) -> Path:
        return self.folder / "tmp"

    @property
    def _cwd(self) -> Path:
        return self.folder / "cwd"

    def note(self, text: str) -> None:
        """Keeps what was done to the input, for whoever looks at it again; the same wherever it lies."""
        for folder, name in ((self.folder, "INPUT"), (self._watched, "BASE")):
            text = text.replace(str(folder), name)
        self.outcome.notes.append(text)

    def fail(self, failure: Failure) -> None:
        """Counts a failure."""
        self.outcome.failures.append(failure)

    def attempt(self, step: str, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """Asks for something; None where it was refused or failed."""
        try:
            with self._within():
                result = call(*args, **how)
        except WorkbenchError as error:
            self.refused(step, str(error))
        except MemoryError as error:
            self.fail(Failure("memory", signature(error), step, _tail(error)))
        except Exception as error:
            self.fail(Failure("traceback", signature(error), step, _tail(error)))
        else:
            self.outcome.accepted += 1
            return result
        return None

    def refused(self, step: str, message: str) -> None:
        """Takes down a sentence, which must be one."""
        self.outcome.sentences.append((step, message))
        if self.untouched and step in _READS:
            self.fail(Failure("refused", f"what is whole: {skeleton(message)}", step, message[:3_000]))
        if fault := fault_of(message):
            self.fail(Failure("message", f"{fault}: {skeleton(message)}", step, message[:3_000]))

    def command(self, *words: str) -> bool:
        """Runs the command line as it would be typed; whether it went well."""
        step = f"workbench {words[0] if words else ''}"
        self.note("workbench " + " ".join(map(repr, words)))
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        complained = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        status = 0
        try:
            with self._within(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
                status = _main(words)
        except MemoryError as error:
            self.fail(Failure("memory", signature(error), step, _tail(error)))
            return False
        except Exception as error:
            self.fail(Failure("traceback", signature(error), step, _tail(error)))
            return False
        text = complained.buffer.getvalue().decode()  # type: ignore[attr-defined]
        if status == 0:
            self.outcome.accepted += 1
        elif status == 1:
            self.refused(step, " ".join(text.split()))
        elif status == 2:
            self.outcome.sentences.append((step, text))
            if not text.strip() or "Traceback (most recent call last)" in text:
                self.fail(Failure("message", f"usage error: {skeleton(text)}", step, text[-3_000:]))
        else:
            self.fail(Failure("status", f"exit status {status}", step, text[-3_000:]))
        return status == 0

    @contextlib.contextmanager
    def _within(self) -> Iterator[None]:
        """Runs the block in the input's folders, with writes, sockets and processes watched."""
        before, scratch = Path.cwd(), tempfile.tempdir
        os.chdir(self._cwd)
        tempfile.tempdir = str(self._scratch)
        try:
            with watching.watch(self.out, self._scratch, self._cwd, *self.also_allowed):
                yield
        finally:
            os.chdir(before)
            tempfile.tempdir = scratch
            for what, where in watching.taken():
                self.fail(Failure(what, where))

    def finish(self) -> Outcome:
        """Looks for what was left behind and for what changed elsewhere."""
        for file in sorted((*self.out.rglob("*"), *self._cwd.rglob("*"))):
            if file in self.drafts:
                continue
            if file.name.endswith(".tmp") or file.name.startswith(".tmp") or file.suffix == ".deleted":
                self.fail(Failure("leftover", f"a draft {_letters(file.name)}", detail=str(file)))
        for file in self._scratch.iterdir():
            self.fail(Failure("leftover", f"a temporary {_letters(file.name)}", detail=str(file)))
        for folder, before in zip((self._watched, Path.home()), self._before, strict=True):
            for changed in sorted(before ^ watching.listing(folder))[:1]:
                self.fail(Failure("write", f"changed: {changed[0]}"))
        return self.outcome

    def refuse_leftovers(self, out: Path, *, whole: bool) -> None:
        """After a refusal: no folder at all where `whole`, else none that holds no manifest."""
        if out.exists() and (whole or not (out / "manifest.json").is_file()):
            held = ", ".join(sorted(found.name for found in out.rglob("*"))[:5])
            self.fail(Failure("leftover", f"a folder after a refusal: {_letters(held)}", detail=str(out)))


def _main(words: tuple[str, ...]) -> int:
    """The command line, in this process; its exit status."""
    from workbench.cli import main

    before, sys.argv = sys.argv, ["workbench", *words]
    try:
        main.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.argv = before
    return 0


def fault_of(message: str) -> str:
    """Why a message is none that a person can use; empty where it is one."""
    if not message.strip():
        return "empty"
    if "Traceback (most recent call last)" in message or re.search(r'File ".*", line \d+', message):
        return "holds a traceback"
    if re.search(r"object at 0x[0-9a-f]+", message):
        return "holds an object's address"
    try:
        message.encode()
    except UnicodeEncodeError:
        return "cannot be shown (half a character)"
    return f"over {LONGEST_MESSAGE:,} characters" if len(message) > LONGEST_MESSAGE else ""


def signature(error: BaseException) -> str:
    """What errors of one root share: type, our innermost frame, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    named = [f"{place(frame.filename)}:{frame.name}" for frame in frames]
    ours = [name for name in named if name.startswith(tuple(f"{folder}/" for folder in _OURS))]
    inner = f" < {named[-1]}" if named and named[-1] not in ours[-1:] else ""
    return f"{type(error).__name__} {ours[-1] if ours else ''}{inner}"


def place(filename: str) -> str:
    """A file's place in the checkout or among the packages."""
    path = Path(filename)
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return path.relative_to(ROOT).as_posix()
    return filename.rpartition("site-packages/")[2] if "site-packages/" in filename else path.name


def skeleton(message: str) -> str:
    """A message without what differs from input to input."""
    return _letters(re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "…", message[:300]))[:80]


def _letters(text: str) -> str:
    return re.sub(r"[^A-Za-z ,.…]+", "#", text)


def _tail(error: BaseException) -> str:
    """The end of the traceback, and what it says."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join(lines)[-2_500:]
