"""The process that runs inputs, one after another, until it hangs, dies or has grown; another follows then."""

import faulthandler
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GIB = 2**30
MEMORY_BYTES = 4 * GIB
_GROWN_BYTES = 2 * GIB  # a worker that holds so much between inputs is replaced, so that no input is blamed for others


@dataclass(frozen=True)
class Place:
    """Where a run works: all below one folder.

    Attributes:
        root: The folder.
        seed: Of every input.
        deadline_s: An input's time.
        keep: Whether inputs stay on disk.
    """

    root: Path
    seed: int = 0
    deadline_s: float = 60.0
    keep: bool = False

    @property
    def base(self) -> Path:
        """What the kinds prepared."""
        return self.root / "base"

    def folder(self, kind: str, index: int) -> Path:
        """Of one input."""
        return self.root / "inputs" / f"{kind}-{index}"

    def stacks(self, process_id: int) -> Path:
        """Where a worker writes its stack shortly before its input's deadline."""
        return self.root / f"stacks-{process_id}.txt"


def environment(place: Place) -> dict[str, str]:
    """What a worker's process is started with: no hub, a home of its own, caches where they may be."""
    return {
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HOME": str(place.root / "home"), "HF_HOME": str(place.root / "cache" / "hf"),
        "MPLCONFIGDIR": str(place.root / "cache" / "mpl"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120",
        "WORKBENCH_TRACEBACK": "1",  # where a command failed, not only that it did
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve a GiB at once, and the limit would count it
    }  # fmt: skip


def prepare(place: Place, names: list[str], log: Path) -> None:
    """Writes what the kinds damage: models, recordings, traces. In a process of its own; the parent stays small."""
    _quiet(log)
    from tests.fuzz import kinds

    for name in names:
        (place.base / name).mkdir(parents=True, exist_ok=True)
        kinds.module(name).prepare(place.base / name)
    import matplotlib.font_manager  # noqa: F401  makes its list of fonts, which is no input's doing


def serve(place: Place, requests: Connection, log: Path) -> None:
    """Answers (kind, index) with an outcome, until there is no more."""
    _quiet(log)
    stacks = place.stacks(os.getpid()).open("w")
    from tests.fuzz import watching

    watching.install()
    while (asked := requests.recv()) is not None:
        faulthandler.dump_traceback_later(max(place.deadline_s * 0.9, place.deadline_s - 3), repeat=True, file=stacks)
        outcome = run_one(place, *asked)
        faulthandler.cancel_dump_traceback_later()
        stacks.seek(0)
        stacks.truncate()
        requests.send((outcome, resident_bytes() > _GROWN_BYTES))


def run_one(place: Place, kind: str, index: int) -> Any:
    """Runs one input in a folder of its own."""
    from tests.fuzz import kinds
    from tests.fuzz.trial import Failure, Trial, signature

    run = kinds.module(kind).run
    if torch := sys.modules.get("torch"):
        torch.manual_seed(index)
    folder = place.folder(kind, index)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    trial = Trial(kind, index, seed=place.seed, base=place.base, folder=folder)
    before = peak_bytes()
    _limit()
    try:
        run(trial)
    except Exception as error:  # a mutator's own fault, to be mended here; what is asked is caught where it is asked
        trial.fail(Failure("fuzzer", signature(error), detail="".join(traceback.format_exception(error))))
    outcome = trial.finish()
    if peak_bytes() > max(before, MEMORY_BYTES):
        trial.fail(Failure("memory", f"{peak_bytes() / GIB:.0f} GiB at its peak"))
    outcome.seconds = time.monotonic() - started
    if not place.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def resident_bytes() -> int:
    """Memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit() -> None:
    """Lets this process claim 4 GiB in all, what it holds included: more is an error in it, not a machine's end."""
    import psutil

    info = psutil.Process().memory_info()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (info.data + max(MEMORY_BYTES - info.rss, GIB), hard))


def _quiet(log: Path) -> None:
    """Sends what libraries print into a log, and keeps their warnings out of it."""
    with log.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
