"""Answers several questions about one recording, on several cores where it is large; each as when it is asked alone.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analyses.question import Question
from workbench.efficiency.costs.comparison import Costed
from workbench.errors import AnalysisError
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


def _answer(question: Question, out: Path) -> Done:
    """Runs one analysis and writes its answer."""
    started = time.perf_counter()
    try:
        files, drawn = question.write(out)
    except AnalysisError as error:
        return Done(question.analysis, [], {}, str(error), time.perf_counter() - started)
    return Done(question.analysis, files, drawn, "", time.perf_counter() - started)


def keeping(questions: Sequence[Question]) -> list[Question]:
    """The same, of recordings that keep what they decoded for the next question."""
    kept = {id(each.of): each.of.keeping(KEPT_BYTES) for each in questions if isinstance(each.of, Recording)}
    return [replace(each, of=kept.get(id(each.of), each.of)) for each in questions]


def processes(questions: Sequence[Question]) -> int:
    """How many processes are worth their start."""
    if not any(isinstance(each.of, Recording) and each.of.n_tokens >= _WORTH_A_PROCESS for each in questions):
        return 1
    return max(1, min(MOST_PROCESSES, os.cpu_count() or 1, len(questions)))


def in_order(questions: Sequence[Question]) -> list[int]:
    """Their numbers, the longest first, so that the processes end together."""
    rank = {name: place for place, name in enumerate(_LONGEST)}
    return sorted(range(len(questions)), key=lambda number: rank.get(questions[number].analysis, len(_LONGEST)))


def run(questions: Sequence[Question], out: Path, *, n_processes: int) -> Iterator[Done]:
    """Answers questions and yields each when it is done; with several processes not in their order.

    Args:
        questions: What is asked of what.
        out: Folder for the results of all.
        n_processes: 1 runs them here.

    Raises:
        AnalysisError: a process died, which is nearly always for want of memory.
    """
    if n_processes == 1:
        yield from (_answer(question, out) for question in keeping(questions))
        return
    others = multiprocessing.active_children()
    with (
        one_thread_each(),
        ProcessPoolExecutor(
            n_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_open, initargs=(questions, out)
        ) as pool,
    ):
        futures: list[Future[Done]] = [pool.submit(_answer_here, number) for number in in_order(questions)]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise AnalysisError(
                f"a process died while it analyzed {_named(questions)}, most likely for want of memory; run the "
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


_here: tuple[list[Question], Path] | None = None  # of this process, set by its initializer


class _Stopped(SystemExit):
    """This process was asked to end."""


def _open(questions: Sequence[Question], out: Path) -> None:
    global _here  # noqa: PLW0603  what an initializer of a pool can leave to its calls
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the process that started this one, which ends it
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = keeping(questions), out


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed for instance; nobody waits for its answer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _answer_here(number: int) -> Done:
    assert _here is not None
    questions, out = _here
    try:
        return _answer(questions[number], out)
    except _Stopped as stopped:  # the pool would take it for an answer
        os._exit(int(str(stopped.code)))


def _named(questions: Sequence[Question]) -> str:
    subject = questions[0].of
    return subject.name if isinstance(subject, Costed) else str(subject.path)
