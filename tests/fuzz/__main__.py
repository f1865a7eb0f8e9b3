"""The command: `python -m tests.fuzz --inputs 10000 --seed 0 --jobs 2`. Ends with status 1 where anything failed."""

import argparse
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import pool
from tests.fuzz.kinds import SHARES
from tests.fuzz.trial import Outcome
from tests.fuzz.worker import Place


def main(words: Sequence[str] | None = None) -> int:
    """Runs the fuzzer; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000, help="in all; dealt to the kinds by their shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="workers")
    parser.add_argument("--kind", default="", help=f"of {', '.join(SHARES)}; several with commas")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--part", default="", help="A:B, only those from A to B of the inputs that were dealt")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds of one input")
    parser.add_argument("--keep", type=Path, help="folder in which the inputs stay, to be looked at")
    parser.add_argument("--verbose", action="store_true", help="also print what was done to inputs, and each sentence")
    asked = parser.parse_args(words)
    names = [name for name in asked.kind.split(",") if name] or [name for name, share in SHARES.items() if share]
    if unknown := [name for name in names if name not in SHARES]:
        parser.error(f"there is no kind {unknown[0]!r}; there are {', '.join(SHARES)}")
    inputs = dealt(names, asked.inputs, first=asked.first)
    if asked.part:
        start, _, stop = asked.part.partition(":")
        inputs = inputs[int(start) : int(stop)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Place(asked.keep or Path(folder), asked.seed, asked.deadline, keep=asked.keep is not None)
        place.root.mkdir(parents=True, exist_ok=True)
        started, outcomes = time.monotonic(), list[Outcome]()

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) % 100 == 0:
                failed = sum(bool(each.failures) for each in outcomes)
                at = f"{time.monotonic() - started:.0f} s: {len(outcomes):,} inputs, {failed:,} failed"
                print(at, file=sys.stderr, flush=True)

        with contextlib.suppress(KeyboardInterrupt):  # what was run until then is worth a report
            pool.run(inputs, place, jobs=asked.jobs, done=done)
    print(report(outcomes, seed=asked.seed))
    if asked.verbose:
        print(told(outcomes))
    return int(len(outcomes) < len(inputs) or any(outcome.failures for outcome in outcomes))


def dealt(names: Sequence[str], n_inputs: int, *, first: int = 0) -> list[tuple[str, int]]:
    """So many inputs, dealt to the kinds by their shares, each kind at least one; taken in turn."""
    shares = {name: SHARES[name] or 1 for name in names}
    whole = sum(shares.values())
    counts = {name: max(1, round(n_inputs * share / whole)) for name, share in shares.items()}
    counts[max(counts, key=lambda name: counts[name])] += n_inputs - sum(counts.values())
    dealt = [((index + 0.5) / counts[name], name, first + index) for name in names for index in range(counts[name])]
    return [(name, index) for _, name, index in sorted(dealt)]


def report(outcomes: Sequence[Outcome], *, seed: int) -> str:
    """A table by kind, and the distinct failures, the commonest first, each with a command that makes it again."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    lines = [f"{'kind':<12} {'inputs':>7} {'accepted':>9} {'refused':>8} {'failed':>7} {'distinct':>9} {'seconds':>8}"]
    for kind, held in [*by_kind.items(), ("all", list(outcomes))]:
        failed = [each for each in held if each.failures]
        refused = [each for each in held if each.sentences and not each.failures]
        distinct = {(failure.what, failure.where) for each in held for failure in each.failures}
        lines.append(
            f"{kind:<12} {len(held):>7,} {len(held) - len(failed) - len(refused):>9,} {len(refused):>8,} "
            f"{len(failed):>7,} {len(distinct):>9,} {sum(each.seconds for each in held):>8,.0f}"
        )
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        for key in dict.fromkeys((failure.what, failure.where) for failure in outcome.failures):
            found[key].append(outcome)
    for (what, where), held in sorted(found.items(), key=lambda item: -len(item[1])):
        example = held[0]
        failure = next(each for each in example.failures if (each.what, each.where) == (what, where))
        last = failure.detail.strip().rsplit("\n", 1)[-1][:200]
        again = f"python -m tests.fuzz --seed {seed} --kind {example.kind} --first {example.index} --inputs 1 --verbose"
        lines += ["", f"{len(held):>5,} × {what}: {where}", f"        {failure.step}: {last}", f"        {again}"]
    return "\n".join(lines)


def told(outcomes: Sequence[Outcome]) -> str:
    """What was done to each input and what was said of it, in full."""
    lines = []
    for outcome in outcomes:
        lines += ["", f"{outcome.kind} {outcome.index}: {outcome.accepted} accepted"]
        lines += [f"  {note}" for note in outcome.notes]
        lines += [f"  {step}: {message}" for step, message in outcome.sentences]
        lines += [f"  FAILED {each.what} {each.where}\n{each.detail}" for each in outcome.failures]
    return "\n".join(line.encode(errors="backslashreplace").decode() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
