"""What the proof of written rows adds to a recording of the bundled corpus with the bundled model, on a CPU.

    python -m tests.benchmarks.proof [--rounds 10] [--fields routing,logprob] [--copies 1]

Rounds are interleaved: the recording without the proof and the recording with it, in turn and in changing order.
Neither makes the proof of the capture, so that what differs is what is asked of the rows. Processor time of the whole
process is compared (the writing thread's too), and the time on the clock; the ratio of a round is its result, and the
median is printed with the range of the middle half of the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.recording import middle_half, repeated
from workbench.capture import record as recorder
from workbench.corpus import Corpus
from workbench.models.check import CheckReport
from workbench.models.loading import Model, load

_NONE = CheckReport(0, 0, "", 0.0, 0.0, 0.0, 0.0, 0.0, 0, (), 0.0)


def seconds(model: Model, corpus: Corpus, fields: tuple[str, ...], *, proved: bool) -> tuple[float, float]:
    """Processor seconds and seconds of one recording."""
    with tempfile.TemporaryDirectory() as folder, patch.object(recorder, "check_capture", lambda *_, **__: _NONE):
        processor, clock = time.process_time(), time.perf_counter()
        recorder.record(model, corpus, Path(folder) / "r", fields=fields, check=proved)
        return time.process_time() - processor, time.perf_counter() - clock


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
    ratios: dict[str, list[float]] = {"processor time": [], "time": []}
    plain: list[float] = []
    for round_ in range(asked.rounds):
        order = (False, True) if round_ % 2 else (True, False)
        found = {proved: seconds(model, corpus, fields, proved=proved) for proved in order}
        plain.append(found[False][0])
        for i, name in enumerate(ratios):
            ratios[name].append(found[True][i] / found[False][i])
    print(f"{asked.fields}: {statistics.median(plain):.2f} s of processor time without the proof")
    for name, values in ratios.items():
        print(f"{name} with the proof of written rows over without: {middle_half(values)}, {asked.rounds} rounds")


if __name__ == "__main__":
    main()
