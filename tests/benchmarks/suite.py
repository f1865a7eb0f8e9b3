"""How long all analyses of a large recording take together, in how much memory, and how far that is from the floor.

    python -m tests.benchmarks.suite [RECORDING] [--tokens 1000000] [--jobs 2] [--points] [--structure] [--files]
        [--each]

Runs what `workbench analyze RECORDING --all` runs, with 1,000 resamples and 20 permutations; `--points` with as few of
them as are allowed, which leaves the values; `--structure` without specialization. Tables and figure specs are made;
`--files` has them drawn and written as well, as for a user. `--each` runs one analysis after the other, each in a
process of its own, for the processor time and the memory of each. Without a recording a synthetic one is made (28
layers, 64 experts, top-8). Memory is that of all processes together, shared pages counted once, as far as the system
tells. The floor is one pass that decodes the ids of all layers and counts the pairs of experts of each token.
"""

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import psutil

from analyses import catalogue, pool
from analyses.question import Question
from analyses.read.design import router_stacks
from analyses.read.tokens import token_parts
from tests.benchmarks.synthetic import make
from workbench.errors import AnalysisError
from workbench.metrics.sets import joint_counts
from workbench.recordings.recording import Recording

USUAL = {"n_resamples": 1000, "n_permutations": 20, "n_draws": None}
FEWEST = {"n_resamples": 2, "n_permutations": 0, "n_draws": 1, "n_seeds": 1}
SPECIALIZATION = ("specialization", "context")  # the rest are structure and load


class Peak(threading.Thread):
    """Samples the memory of this process and its children, or of the children alone, until told to stop."""

    def __init__(self, *, own: bool = True) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.bytes = 0
        self._own = own

    def run(self) -> None:
        """Every tenth of a second."""
        own = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for process in ([own] if self._own else []) + own.children(recursive=True):
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue
            self.bytes = max(self.bytes, total)


def settings(name: str, wanted: dict[str, int | None]) -> list[str]:
    """Those of the wanted numbers that the analysis has a setting for."""
    fields = {field.name for field in dataclasses.fields(catalogue.get(name).Settings)}
    return [f"{key}={value}" for key, value in wanted.items() if key in fields and value is not None]


def floor(recording: Recording) -> tuple[float, float]:
    """Seconds to decode the ids of all layers once, and to count the pairs of experts as well."""
    started = time.perf_counter()
    stacks = list(router_stacks(recording))
    for stack in stacks:
        for _ in token_parts(recording, stack):
            pass
    decoded = time.perf_counter() - started
    started = time.perf_counter()
    for stack in stacks:
        for part in token_parts(recording, stack):
            for bits_TW in part.bits_LTW:
                joint_counts(bits_TW, bits_TW, n_experts=stack.n_experts)
    return decoded, time.perf_counter() - started


_recording: Recording | None = None


def _open(path: Path) -> None:
    global _recording  # noqa: PLW0603  what an initializer of a pool can leave to its calls
    _recording = Recording.open(path).keeping(pool.KEPT_BYTES)


def _ask(name: str, texts: list[str]) -> pool.Done:
    """Tables and figure specs alone."""
    assert _recording is not None
    started = time.perf_counter()
    try:
        Question(_recording, name, texts).answer()
    except AnalysisError as error:
        return pool.Done(name, [], {}, str(error), 0.0)
    return pool.Done(name, [], {}, "", time.perf_counter() - started)


def computed(recording: Recording, names: list[str], settings: dict[str, list[str]], n: int) -> Iterator[pool.Done]:
    """As `pool.run`, without files."""
    processes = ProcessPoolExecutor(
        n, multiprocessing.get_context("spawn"), initializer=_open, initargs=(recording.path,)
    )
    with pool.one_thread_each(), processes:
        for future in as_completed([processes.submit(_ask, name, settings[name]) for name in names]):
            yield future.result()


def one_by_one(questions: list[Question], out: Path, *, files: bool) -> None:
    """Prints the processor time and the memory of each analysis, alone in its process, the start of it too."""
    for question in questions:
        name = question.analysis
        peak, before = Peak(own=False), os.times()
        peak.start()
        if files:
            (done,) = _in_a_process(pool._open, ([question], out), pool._answer_here, 0)
        else:
            (done,) = _in_a_process(_open, (question.of.path,), _ask, name, question.settings)
        peak.done.set()
        peak.join()
        cpu = sum(os.times()[2:4]) - sum(before[2:4])
        print(f"{name:20s} {cpu:6.1f} s  {peak.bytes / 2**30:5.2f} GiB  {done.refused[:60]}", flush=True)


def _in_a_process(begin: Callable, given: tuple, ask: Callable, *arguments: object) -> list[pool.Done]:
    spawn = multiprocessing.get_context("spawn")
    with pool.one_thread_each(), ProcessPoolExecutor(1, spawn, initializer=begin, initargs=given) as processes:
        return [processes.submit(ask, *arguments).result()]


def main() -> None:
    """Prints a line per analysis, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--points", action="store_true", help="as few draws as are allowed")
    parser.add_argument("--structure", action="store_true", help="leave out " + " and ".join(SPECIALIZATION))
    parser.add_argument("--files", action="store_true", help="draw and write, as for a user")
    parser.add_argument("--each", action="store_true", help="each in a process of its own, with its memory")
    parser.add_argument("--names", nargs="+")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recording = Recording.open(asked.recording) if asked.recording else make(folder / "r", n_tokens=asked.tokens)
        names = asked.names or [n for n in catalogue.of_recordings() if not (asked.structure and n in SPECIALIZATION)]
        chosen = {name: settings(name, FEWEST if asked.points else USUAL) for name in names}
        questions = [Question(recording, name, chosen[name]) for name in names]
        if asked.each:
            one_by_one(questions, folder / "out", files=asked.files)
            return
        peak = Peak()
        peak.start()
        started, before = time.perf_counter(), os.times()
        runs = (
            pool.run(questions, folder / "out", n_processes=asked.jobs)
            if asked.files
            else computed(recording, names, chosen, asked.jobs)
        )
        for done in runs:
            print(f"{done.name:20s} {done.seconds:6.1f} s  {done.refused[:60]}", flush=True)
        wall, after = time.perf_counter() - started, os.times()
        peak.done.set()
        # of this process and of those that have ended
        cpu = sum(after[:4]) - sum(before[:4])
        kind = "fewest draws" if asked.points else "1,000 resamples, 20 permutations"
        print(
            f"{len(names)} analyses, {recording.n_tokens:,} tokens, {kind}: {wall:.0f} s with {asked.jobs} processes, "
            f"{cpu:.0f} s of processor, peak {peak.bytes / 2**30:.2f} GiB"
        )
        decoded, counted = floor(recording)
        print(f"floor: ids decoded once {decoded:.1f} s, decoded and pairs counted {counted:.1f} s")


if __name__ == "__main__":
    main()
