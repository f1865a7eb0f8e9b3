"""What the proof of written rows adds to a recording of the bundled corpus with the bundled model, on a CPU.

    python -m tests.benchmarks.proof [--rounds 10] [--fields routing,logprob] [--copies 1]

Rounds are interleaved: the recording without the proof and the recording with it, in changing order. Neither makes the
proof of the capture, so that what differs is what is asked of the rows. Processor time of the whole process is compared
(the writing thread's too); the ratio of a round is its result, and the median is printed with the range of the middle
half of the rounds. Beside it stands the processor time that the parts of the proof take themselves, over the whole of
the recording: it is steadier than a difference of two runs on a busy machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.recording import middle_half, repeated
from workbench.capture import record as recorder
from workbench.capture.proof.model import CheckReport
from workbench.capture.proof.witness import Witness
from workbench.capture.proof.written_rows import PartProof
from workbench.models.loading import Model, load
from workbench.recordings.corpus import Corpus
from workbench.recordings.writer import RecordingWriter

_NONE = CheckReport(0, 0, "", 0.0, 0.0, 0.0, 0.0, 0.0, 0, (), 0.0)
_OWN = ((Witness, "_keep"), (Witness, "_end"), (Witness, "_gather"), (Witness, "attend"), (PartProof, "add"),
        (RecordingWriter, "_prove"))  # fmt: skip


@contextmanager
def timed() -> Iterator[list[float]]:
    """A block in which the processor time of the proof's own parts is collected, thread by thread."""
    spent: list[float] = []

    def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.thread_time()
            try:
                return method(*arguments, **keywords)
            finally:
                spent.append(time.thread_time() - started)

        return run

    with ExitStack() as patches:
        for owner, name in _OWN:
            patches.enter_context(patch.object(owner, name, clocked(getattr(owner, name))))
        yield spent


def seconds(model: Model, corpus: Corpus, fields: tuple[str, ...], *, proved: bool) -> tuple[float, float]:
    """Processor seconds of one recording, and those of the proof's own parts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(recorder, "check_capture", lambda *_, **__: _NONE),
        timed() as spent,
    ):
        started = time.process_time()
        recorder.record(model, corpus, Path(folder) / "r", fields=fields, check=proved)
        return time.process_time() - started, sum(spent)


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fields", default="routing,logprob")
    parser.add_argument("--copies", type=int, default=1)
    asked = parser.parse_args()
    fields = tuple(asked.fields.split(","))
    model, corpus = load("tiny-moe", device="cpu"), repeated(Corpus.read("demo"), asked.copies)
    seconds(model, corpus, fields, proved=True)
    ratios: list[float] = []
    shares: list[float] = []
    plain: list[float] = []
    for round_ in range(asked.rounds):
        order = (False, True) if round_ % 2 else (True, False)
        found = {proved: seconds(model, corpus, fields, proved=proved) for proved in order}
        plain.append(found[False][0])
        ratios.append(found[True][0] / found[False][0])
        shares.append(100 * found[True][1] / found[True][0])
    print(
        f"{asked.fields}: {statistics.median(plain):.2f} s of processor time without the proof, {asked.rounds} rounds"
    )
    print(f"processor time with the proof of written rows over without: {middle_half(ratios)}")
    print(f"its own processor time, per cent of the recording's: {middle_half(shares)}")


if __name__ == "__main__":
    main()
