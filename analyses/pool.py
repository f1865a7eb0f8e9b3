"""Runs several analyses of one recording, on several cores where it is large; each stays as it is when run alone.

A process of its own for each core, since much of an analysis holds Python's lock; each keeps decoded ids from one
question to the next. Results come as they are done.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analyses import question
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.theme import Width
from workbench.recordings.recording import Recording

KEPT_BYTES = 256 << 20  # of decoded ids in each process: those of a million tokens of 28 layers, K = 8
MOST_PROCESSES = 2  # each takes up to a gigabyte
_WORTH_A_PROCESS = 200_000  # tokens; a process takes two seconds to start
_LONGEST = (  # begun first, to end together
    "specialization",
    "context",
    "position",
    "coactivation",
    "same_token",
    "repetition",
    "segment_consistency",
    "layer_flow",
    "capacity",
)

_UNDONE_S = 5.0  # what a process is given to end by itself
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, eq=False)
class Done:
    """What came of one analysis: its files and figures, or why it refused.

    Attributes:
        name: The analysis.
        files: Written.
        figures: By name.
        refused: Why there are none; empty where there are.
        seconds: Taken.
    """

    name: str
    files: list[Path]
    figures: Mapping[str, Any]
    refused: str
    seconds: float


@dataclass(frozen=True, eq=False)
class Asked:
    """What analyses are asked of.

    Attributes:
        recording: The recording.
        out: Folder for the results of all.
        settings: `key=value` texts of those that have any, by name.
        width: Of figures.
        against: A second recording to compare with.
        experts: Of two recordings: `auto`, `same` or `matched`.
        only: Figures and tables to write, where one analysis is asked; all unless given.
        label: Name of its folder in `out`; the analysis' unless given.
    """

    recording: Recording | Measurement
    out: Path
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    width: Width = "column"
    against: Recording | None = None
    experts: str = "auto"
    only: Sequence[str] = ()
    label: str = ""

    def keeping(self) -> "Asked":
        """The same for several questions in a row."""
        if isinstance(self.recording, Measurement):
            return self
        return replace(self, recording=self.recording.keeping(KEPT_BYTES))

    def _how(self, name: str) -> dict[str, Any]:
        of_two = {"against": self.against, "experts": self.experts}
        narrowed = {"only": self.only, "label": self.label, "width": self.width}
        return {"settings": self.settings.get(name, ()), **of_two, **narrowed}

    def answer(self, name: str) -> Done:
        """Runs one analysis."""
        started = time.perf_counter()
        try:
            files, drawn = question.analyze(self.recording, name, self.out, **self._how(name))
        except AnalysisError as error:
            return Done(name, [], {}, str(error), time.perf_counter() - started)
        return Done(name, files, drawn, "", time.perf_counter() - started)


def processes(recording: Recording | Measurement, names: Sequence[str]) -> int:
    """How many processes are worth their start."""
    if isinstance(recording, Measurement) or recording.n_tokens < _WORTH_A_PROCESS:
        return 1
    return max(1, min(MOST_PROCESSES, os.cpu_count() or 1, len(names)))


def in_order(names: Sequence[str]) -> list[str]:
    """The longest first, so that the processes end together."""
    return sorted(names, key=lambda name: _LONGEST.index(name) if name in _LONGEST else len(_LONGEST))


def run(asked: Asked, names: Sequence[str], *, n_processes: int) -> Iterator[Done]:
    """Runs the analyses and yields each when it is done; with several processes not in the order of the names.

    Args:
        asked: Of what, and how.
        names: The analyses.
        n_processes: 1 runs them here.

    Raises:
        AnalysisError: a process died, which is nearly always for want of memory.
    """
    if n_processes == 1:
        here = asked.keeping()
        yield from map(here.answer, names)
        return
    others = multiprocessing.active_children()
    with (
        one_thread_each(),
        ProcessPoolExecutor(
            n_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_open, initargs=(asked,)
        ) as pool,
    ):
        futures: list[Future[Done]] = [pool.submit(_answer, name) for name in in_order(names)]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise AnalysisError(
                f"a process died while it analyzed {asked.recording.path}, most likely for want of memory; run the "
                "analyses with --jobs 1."
            ) from error
        except BaseException:  # interrupted, or one failed: what the others are at is of no use any more
            _end([each for each in multiprocessing.active_children() if each not in others])
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _end(processes_: Sequence[Any]) -> None:
    """Ends processes: they take back what they were writing; one that does not within some seconds is killed."""
    for each in processes_:
        each.terminate()
    for each in processes_:
        each.join(timeout=_UNDONE_S)
        if each.is_alive():
            each.kill()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Linear algebra in the processes started here takes one thread each: as many as there are cores, all busy."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_asked: Asked | None = None  # of this process, set by its initializer


class _Stopped(SystemExit):
    """This process was asked to end."""


def _open(asked: Asked) -> None:
    global _asked  # noqa: PLW0603  what an initializer of a pool can leave to its calls
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the process that started this one, which ends it
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _asked = asked.keeping()


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed for instance; nobody waits for its answer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _answer(name: str) -> Done:
    assert _asked is not None
    try:
        return _asked.answer(name)
    except _Stopped as stopped:  # the pool would take it for an answer
        os._exit(int(str(stopped.code)))
