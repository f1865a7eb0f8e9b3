"""Faults on purpose, one of each sort: the fuzzer's own tests run them, and nobody else."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz.trial import Trial
from workbench.errors import WorkbenchError


class _AsItIs(WorkbenchError):
    """An error whose message is not mended where it is made, as those of the workbench are."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


def prepare(base: Path) -> None:
    """A file that nobody may touch."""
    (base / "canary").write_text("as it was")


def run(trial: Trial) -> None:
    """The fault of this number."""
    name = list(PLANTED)[trial.outcome.index % len(PLANTED)]
    trial.note(f"{name} {trial.rng.random()}")
    trial.attempt(name, PLANTED[name], trial)


def _sentence(trial: Trial) -> None:
    raise WorkbenchError("the file is empty; give one that is not.")


def _traceback(trial: Trial) -> None:
    1 / 0


def _hang(trial: Trial) -> None:
    time.sleep(1_000)


def _die(trial: Trial) -> None:
    os.kill(os.getpid(), 9)


def _write(trial: Trial) -> None:
    (trial.folder / "elsewhere").write_text("a")


def _change(trial: Trial) -> None:
    subprocess.run([sys.executable, "-c", f"open({str(trial.base / 'canary')!r}, 'a').write('b')"], check=True)


def _network(trial: Trial) -> None:
    with socket.socket() as opened:
        opened.settimeout(0.01)
        with contextlib.suppress(OSError):
            opened.connect(("192.0.2.1", 9))  # an address of nobody


def _memory(trial: Trial) -> None:
    np.ones(2**31)


def _leftover(trial: Trial) -> None:
    (trial.out / "manifest.json.tmp").write_text("{")
    raise WorkbenchError("the disk is full; free some space.")


def _no_words(trial: Trial) -> None:
    raise WorkbenchError(" ")


def _many_words(trial: Trial) -> None:
    raise _AsItIs("long " * 1_000)


def _half_a_letter(trial: Trial) -> None:
    raise _AsItIs("the id is \ud800; name another.")


def _accepted(trial: Trial) -> None:
    (trial.out / "result").write_text("a")


PLANTED: dict[str, Callable[[Trial], None]] = {
    "sentence": _sentence, "traceback": _traceback, "hang": _hang, "died": _die, "write": _write, "change": _change,
    "network": _network, "memory": _memory, "leftover": _leftover, "empty": _no_words, "long": _many_words,
    "surrogate": _half_a_letter, "accepted": _accepted,
}  # fmt: skip
