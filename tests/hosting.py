"""What the tests of the model host share: patience, a look at processes, and a process that follows a script."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests import tiny
from workbench.jobs.service import Host, Job
from workbench.recordings.recording import Recording

PATIENCE_S = 120  # a worker imports torch in 3 to 15 s, whatever else the machine does


def until(true: Callable[[], object], what: str) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < PATIENCE_S, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.005)


def ended(host: Host, job_id: str) -> Job:
    until(lambda: host.job(job_id).state in ("done", "failed", "cancelled"), f"the end of {host.job(job_id)}")
    return host.job(job_id)


def made(host: Host, job_id: str) -> Recording:
    job = ended(host, job_id)
    assert (job.state, job.message) == ("done", "")
    return Recording.open(job.result["recording"])


def pid(host: Host) -> int:
    return host._worker._process.pid


def gone(process_id: int) -> bool:
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_corpus(file: Path, **settings: int) -> str:
    with file.open("w") as lines:
        for document in tiny.corpus(**settings).documents:
            row = {"id": document.id, "domain": document.domain, "token_ids": document.token_ids}
            lines.write(json.dumps(row) + "\n")
    return str(file)


class ScriptedProcess:
    """Stands for the model's process: every job waits for `let`, then gives the events that were set."""

    events_of_all = ({"event": "ended", "state": "done", "result": {}},)

    def __init__(self, log: Path, *, hub: bool) -> None:
        self.alive = True
        self.sent: list[dict] = []
        self._go = threading.Semaphore(0)

    def let(self) -> None:
        self._go.release()

    def send(self, message: dict) -> None:
        self.sent.append(message)

    def events(self) -> Iterator[dict]:
        self._go.acquire()
        if self.alive:
            yield from (dict(event) for event in self.events_of_all)

    def kill(self) -> None:
        self.alive = False
        self._go.release()

    def close(self) -> int:
        self.kill()
        return -9


def running(host: Host, job_id: str) -> ScriptedProcess:
    until(lambda: host._worker is not None and any(m.get("id") == job_id for m in host._worker.sent), "the job")
    return host._worker
