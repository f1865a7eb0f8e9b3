"""The parent: gives inputs to workers, ends those that hang or grow, starts others, and collects what became of all."""

import contextlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz import worker
from tests.fuzz.trial import Failure, Outcome
from tests.fuzz.worker import GIB, MEMORY_BYTES, Place

_LOOK_S = 0.2
_IDLE = 0.02  # share of a core below which a process waits for something that does not come
_PATIENCE = 10
_STARTING_S = 120.0  # a worker imports torch on a machine that does other things too


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    input: tuple[str, int] | None = None
    since: float = 0.0
    cpu_s: float = 0.0
    answered: bool = False

    def give(self, asked: tuple[str, int]) -> None:
        self.pipe.send(asked)
        self.input, self.since, self.cpu_s = asked, time.monotonic(), self._cpu_s()

    def _cpu_s(self) -> float:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(self.process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def hangs(self, deadline_s: float) -> bool:
        """Whether the time is over: it worked for half of it or did nothing, or a busy machine let it wait for long."""
        waited_s, worked_s = time.monotonic() - self.since, self._cpu_s() - self.cpu_s
        idle = worked_s < _IDLE * waited_s
        return waited_s > deadline_s and (worked_s > deadline_s / 2 or idle or waited_s > _PATIENCE * deadline_s)

    def end(self) -> None:
        """Ends the process and its children, whatever it does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(
    inputs: Sequence[tuple[str, int]], place: Place, *, jobs: int = 1, done: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Runs inputs, each named by kind and index.

    Args:
        inputs: What to run.
        place: Where.
        jobs: Workers at a time.
        done: Called with each outcome as it comes.

    Returns:
        An outcome for each input, in their order.
    """
    for name in ("home", "cache", "inputs"):
        (place.root / name).mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with _environment(worker.environment(place)):
        names = list(dict.fromkeys(kind for kind, _ in inputs))
        first = context.Process(target=worker.prepare, args=(place, names, place.root / "prepare.log"))
        first.start()
        first.join()
        if first.exitcode:
            raise RuntimeError(f"the inputs cannot be prepared: {(place.root / 'prepare.log').read_text()[-3_000:]}")
        outcomes: dict[tuple[str, int], Outcome] = {}
        for outcome in _all(context, inputs, place, jobs):
            outcomes[outcome.kind, outcome.index] = outcome
            if done is not None:
                done(outcome)
    return [outcomes[each] for each in inputs]


def _all(context: Any, inputs: Sequence[tuple[str, int]], place: Place, jobs: int) -> Iterator[Outcome]:
    waiting = list(reversed(inputs))
    workers: list[_Worker] = []
    try:
        while waiting or any(each.input for each in workers):
            while waiting and len(workers) < min(jobs, len(inputs)):
                workers.append(_start(context, place))
            for idle in (each for each in workers if each.input is None and waiting):
                idle.give(waiting.pop())
            wait([each.pipe for each in workers if each.input], timeout=_LOOK_S)
            for each in list(workers):
                outcome, lost = _look(each, place)
                if outcome is not None:
                    yield outcome
                if lost:
                    each.end()
                    workers.remove(each)
    finally:
        for each in workers:
            each.end()


def _start(context: Any, place: Place) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.serve, args=(place, theirs, place.root / "worker.log"))
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _look(each: _Worker, place: Place) -> tuple[Outcome | None, bool]:
    """What became of a worker's input, if anything yet, and whether the worker is lost."""
    if each.input is None:
        return None, False
    kind, index = each.input
    try:
        if each.pipe.poll():
            outcome, grown = each.pipe.recv()
            each.input, each.answered = None, True
            return outcome, grown or any(failure.what == "memory" for failure in outcome.failures)
    except (EOFError, OSError):
        each.process.join(10)
        ended = each.process.exitcode
        name = signal.Signals(-ended).name if ended is not None and ended < 0 else f"exit status {ended}"
        return _failed(kind, index, Failure("died", name)), True
    if each.hangs(place.deadline_s + (0 if each.answered else _STARTING_S)):
        stack = _stack(place.stacks(each.process.pid or 0))
        return _failed(kind, index, Failure("hang", _innermost(stack), detail=stack)), True
    with contextlib.suppress(psutil.NoSuchProcess):
        held = psutil.Process(each.process.pid).memory_info().rss
        if held > MEMORY_BYTES:
            return _failed(kind, index, Failure("memory", f"{held / GIB:.0f} GiB held")), True
    return None, False


def _failed(kind: str, index: int, failure: Failure) -> Outcome:
    return Outcome(kind, index, failures=[failure])


def _stack(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(errors="replace")[-6_000:]
    return ""


def _innermost(stack: str) -> str:
    """Where a worker hung: our innermost frame of its main thread, and the innermost of all."""
    main = stack.rpartition("(most recent call first)")[2]
    frames = re.findall(r'File "([^"]+)", line \d+ in (\S+)', main)
    ours = [f"{Path(file).name}:{name}" for file, name in frames if re.search(r"/(workbench|analyses|pages)/", file)]
    inner = [f"{Path(file).name}:{name}" for file, name in frames[:1]]
    return " < ".join(dict.fromkeys((*ours[:1], *inner))) or "unknown"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What processes that are started meanwhile find in their environment."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
