"""The queue before the model's process: jobs one at a time, first come first served, with progress and cancel.

It knows nothing of what a job is about: `host.py` checks what is asked and puts it in, `host_worker.py` does it. Every
method may be called from any thread.
"""

import atexit
import contextlib
import secrets
import signal
import threading
import traceback
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import HostError
from workbench.jobs import storage
from workbench.jobs.limits import Allowance, Limits, again
from workbench.jobs.worker import ModelProcess

ENDED_JOBS_KEPT = 200
LONGEST_QUEUE = 1000
_ENDED = ("done", "failed", "cancelled")
_MAP_BYTES = 2**30  # kept of maps, those last used
_NOT_TO_BE_INTERRUPTED = {"loading": "the model was being loaded", "asking": "the hub was being asked"}
_RESUMES = "What is on disk is whole: ask the same again, and it resumes where it stopped."


@dataclass(frozen=True)
class Job:
    """One job as it stands at this moment.

    Attributes:
        id: Names it.
        kind: `record`, `inspect`, `attention` or `profile`.
        title: For people; it may hold what a visitor typed.
        owner: The visitor who asked for it; empty in an app that is not shared.
        name: Of the recording that it makes; empty where it makes none.
        state: `queued`, `running`, `done`, `failed` or `cancelled`.
        phase: Of a running job: empty while the process starts, `loading`, `proving`, `recording`,
            `looking`, `asking` the hub, or `measuring`.
        place: In the queue, 1 is next; 0 when it runs or has ended.
        done_tokens: Tokens on disk or on their way there; of a `profile` its steps.
        total_tokens: Tokens in all; 0 until it is known, and for `inspect`.
        tokens_per_s: Rate of this run.
        left_s: Time left at this rate; None before the first batch and after the last.
        load_s: Seconds that loading the model took; None where it was in memory, or is not yet.
        run_s: Seconds from there to the end of the job; None until then.
        message: Of a failed or cancelled job: what happened, and the next step.
        crashed: Whether it failed because its process did, which says nothing against what was asked.
        result: Of a job that is done: `recording`, a path; or `topology`, `forecast` and `check`.
        submitted: When, ISO 8601.
    """

    id: str
    kind: str
    title: str
    owner: str = ""
    name: str = ""
    state: str = "queued"
    phase: str = ""
    place: int = 0
    done_tokens: int = 0
    total_tokens: int = 0
    tokens_per_s: float = 0.0
    left_s: float | None = None
    load_s: float | None = None
    run_s: float | None = None
    message: str = ""
    crashed: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    submitted: str = ""


class Queue:
    """The jobs of the one model process of a data folder.

    Args:
        data: The data folder.
        limits: Of each visitor that has a name; None for no limit.
        hub: Whether the process may ask the hub.
        cancel_grace_s: How long a cancelled job may take to end by itself before its process is ended.
    """

    def __init__(self, data: Path, *, limits: Limits | None, hub: bool, cancel_grace_s: float) -> None:
        self.data = data.resolve()
        self._limits, self._hub, self._grace_s = limits, hub, cancel_grace_s
        if limits is not None:
            self._asked = Allowance(limits.jobs_per_minute, 60)
        self._changed = threading.Condition()  # guards everything below
        self._jobs: dict[str, Job] = {}  # oldest first
        self._requests: dict[str, dict[str, Any]] = {}  # of the queued jobs, next first
        self._running: str | None = None
        self._killer: threading.Timer | None = None  # of the running job, once it was cancelled
        self._worker: ModelProcess | None = None
        self._loaded: str | None = None
        self._unload_when_idle = False
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Starts the model's process, so that it is ready when the first job comes; a second call does nothing.

        Raises:
            HostError: the host was stopped.
        """
        with self._changed:
            if self._stopped:
                raise HostError("the model host was stopped and takes no more jobs; start the app again.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="model-host", daemon=True)
                self._thread.start()
                atexit.register(self.stop)

    def job(self, job_id: str) -> Job:
        """A job as it stands.

        Raises:
            HostError: no such job.
        """
        found = [job for job in self.jobs() if job.id == job_id]
        if not found:
            raise HostError(
                f"no job {job_id[:200]!r}: the app was started again since, or {ENDED_JOBS_KEPT} others have ended. "
                "What it recorded is in the list of recordings."
            )
        return found[0]

    def jobs(self) -> list[Job]:
        """All jobs, newest first; of those that have ended the last 200."""
        with self._changed:
            place = {job_id: number for number, job_id in enumerate(self._requests, start=1)}
            return [replace(job, place=place.get(job.id, 0)) for job in reversed(self._jobs.values())]

    def cancel(self, job_id: str, *, owner: str = "") -> None:
        """Cancels a job; one that has ended stays as it is.

        A queued one is taken out. A running one ends before its next batch, or with its process after the grace; where
        the model is still being loaded or the hub is being asked, which nothing can interrupt, with its process at
        once.

        Raises:
            HostError: no such job, or another visitor's.
        """
        with self._changed:
            job = self.job(job_id)
            if job.owner != owner:
                raise HostError(f"job {job_id!r} was asked for by another visitor, who alone can cancel it.")
            if job.state == "queued":
                self._withdraw(job_id, "cancelled before it began; nothing was written. Ask again to start it.")
            if job.state != "running" or self._killer is not None:
                return
            grace_s = 0.0 if job.phase in _NOT_TO_BE_INTERRUPTED else self._grace_s
            self._killer = threading.Timer(grace_s, self._kill, args=(job_id,))
            self._killer.daemon = True
            self._killer.start()
            worker = self._worker
        if worker is not None:
            worker.send({"cancel": job_id})  # not under the lock: a process that does not read may make it wait

    @property
    def loaded(self) -> str | None:
        """The name of the model in memory."""
        with self._changed:
            return self._loaded if self._worker is not None and self._worker.alive else None

    def unload(self) -> None:
        """Releases the model, by ending its process: now, or as soon as nothing runs or waits."""
        with self._changed:
            self._unload_when_idle = True
        self._unload_if_idle()

    def stop(self) -> None:
        """Ends everything, the running job too; a second call does nothing."""
        with self._changed:
            if self._stopped:
                return
            self._stopped = True
            for job_id in list(self._requests):
                self._withdraw(job_id, "the app was stopped before it began; nothing was written. Ask again.")
            if self._worker is not None:
                self._worker.kill()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._discard_worker()
        atexit.unregister(self.stop)

    def _submit(
        self, kind: str, title: str, request: dict[str, Any], *, owner: str = "", kept: dict[str, Any] | None = None
    ) -> str:
        with self._changed:
            self._refuse_too_much(owner)
            self.start()
            name = Path(request["out"]).name if kind == "record" else ""
            if kept is not None:
                storage.keep_request(self.data, name, **kept)
            job = Job(secrets.token_hex(6), kind, title, owner=owner, name=name, submitted=_now())
            self._jobs[job.id] = job
            self._requests[job.id] = {"id": job.id, "kind": kind, **request}
            self._unload_when_idle = False  # the model is needed after all
            self._changed.notify_all()
        return job.id

    def _refuse_too_much(self, owner: str) -> None:
        if len(self._requests) >= LONGEST_QUEUE:
            raise HostError(f"{LONGEST_QUEUE} jobs are waiting already; ask again when some of them have ended.")
        if self._limits is None or not owner:
            return
        mine = sum(job.owner == owner and job.state not in _ENDED for job in self._jobs.values())
        if mine >= self._limits.jobs:
            raise HostError(f"{mine} jobs of yours are waiting or running; wait for one to end, or cancel one.")
        if wait_s := self._asked.take(owner):
            most = self._limits.jobs_per_minute
            raise HostError(f"{most} jobs were asked for by you within a minute, as many as may be; {again(wait_s)}")

    def _update(self, job_id: str, **changes: Any) -> None:
        with self._changed:
            self._jobs[job_id] = replace(self._jobs[job_id], **changes)

    def _settle(self, job_id: str, **end: Any) -> None:
        with self._changed:
            self._update(job_id, left_s=None, phase="", **end)
            ended = [job.id for job in self._jobs.values() if job.state in _ENDED]
            for old in ended[:-ENDED_JOBS_KEPT]:
                del self._jobs[old]

    def _withdraw(self, job_id: str, message: str) -> None:
        del self._requests[job_id]
        if self._jobs[job_id].name and not self._stopped:  # what waited when the app ended can be asked for again
            storage.drop_request(self.data, self._jobs[job_id].name, also_begun=False)
        self._settle(job_id, state="cancelled", message=message)

    def _kill(self, job_id: str) -> None:
        with self._changed:
            if self._running == job_id and self._worker is not None:
                self._worker.kill()

    def _work(self) -> None:
        """The thread of the queue; it alone starts processes and reads from them."""
        with contextlib.suppress(OSError):  # the first job says what is wrong
            self._ready_worker()
        while (begun := self._next()) is not None:
            job_id, request = begun
            try:
                end = self._run(job_id, request)
            except Exception as error:  # no process, no disk, a bug: the job's end, and not the queue's
                end = self._crash(job_id, f"an unexpected {type(error).__name__} came up", traceback.format_exc())
            with self._changed:
                if self._killer is not None:
                    self._killer.cancel()
                    self._killer = None
                self._running, job = None, self._jobs[job_id]
                with contextlib.suppress(OSError):
                    self._tidy(replace(job, **end))  # before anyone can see the end, and ask for the same name again
                self._settle(job_id, **end)
            self._unload_if_idle()

    def _next(self) -> tuple[str, dict[str, Any]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._requests)
            if self._stopped:
                return None
            job_id = next(iter(self._requests))
            self._running = job_id
            self._update(job_id, state="running")
            return job_id, self._requests.pop(job_id)

    def _tidy(self, job: Job) -> None:
        """At a job's end: a request that is done is forgotten, and what only makes a second time quicker is bounded.

        A request whose process died is kept, with its prompt, however little of it was done.
        """
        if job.name and not self._stopped and not job.crashed:
            storage.drop_request(self.data, job.name, also_begun=job.state == "done")
        if job.kind == "attention":
            storage.trim(self.data / "maps", _MAP_BYTES)
        self._log_file("worker.log")

    def _run(self, job_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Follows a job to its end: what is to be changed of it then."""
        with self._changed:
            if self._stopped:
                return self._after_the_end(job_id, 0)
            worker = self._ready_worker()
        worker.send(request)
        if self._killer is not None:
            worker.send({"cancel": job_id})  # it was cancelled while the process was being started
        for event in worker.events():
            match event.pop("event"):
                case "phase":
                    self._update(job_id, **event)
                case "loaded":
                    self._loaded = event.pop("model")
                    self._update(job_id, **event)
                case "progress":
                    self._update(job_id, phase="recording", **event)
                case "ended":
                    return event
                case "replace":
                    self._replace_worker()
                    return self._run(job_id, request)
                case "crashed":
                    self._replace_worker()
                    what = "memory ran out" if event["out_of_memory"] else f"an unexpected {event['error']} came up"
                    return self._crash(job_id, what, event["traceback"])
        return self._after_the_end(job_id, self._replace_worker())

    def _after_the_end(self, job_id: str, status: int) -> dict[str, Any]:
        """What a job is whose process ended under it, by our hand or another's."""
        if self._stopped:
            return {"state": "cancelled", "message": f"stopped with the app. {_RESUMES}"}
        if self._killer is not None and (what := _NOT_TO_BE_INTERRUPTED.get(self._jobs[job_id].phase)):
            message = f"cancelled while {what}, so its process was ended. {_RESUMES}"
            return {"state": "cancelled", "message": message}
        if self._killer is not None:
            message = (
                f"cancelled: the model did not stop within {self._grace_s:g} s, so its process was ended. {_RESUMES}"
            )
            return {"state": "cancelled", "message": message}
        how = f"was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with {status}"
        return self._crash(job_id, f"the model's process {how}", "what it printed is in worker.log")

    def _crash(self, job_id: str, what: str, details: str) -> dict[str, Any]:
        """A failed job; its details go to the log, for a traceback is not for every visitor."""
        with contextlib.suppress(OSError), self._log_file("host.log").open("a", encoding="utf-8") as log:
            log.write(f"{_now()} job {job_id}: {what}\n{details}\n")
        return {
            "state": "failed",
            "crashed": True,
            "message": f"{what}, and the model was released. {_RESUMES} If memory was short, free some or take a "
            f"smaller model; the details are in the data folder's logs/host.log under {job_id}.",
        }

    def _ready_worker(self) -> ModelProcess:
        with self._changed:
            if self._worker is not None and not self._worker.alive:
                self._discard_worker()
            if self._worker is None:
                self._worker = ModelProcess(self._log_file("worker.log"), hub=self._hub)
            return self._worker

    def _take_worker(self) -> ModelProcess | None:
        """The process, to be ended by the caller without the lock: giving back much memory takes seconds."""
        with self._changed:
            worker, self._worker, self._loaded = self._worker, None, None
            return worker

    def _discard_worker(self) -> int:
        """Ends the process; its exit status, 0 where there was none."""
        worker = self._take_worker()
        return worker.close() if worker is not None else 0

    def _replace_worker(self) -> int:
        """Ends the process and starts another; the exit status of the ended one."""
        status = self._discard_worker()
        if not self._stopped:
            with contextlib.suppress(OSError):  # the next job says what is wrong
                self._ready_worker()
        return status

    def _unload_if_idle(self) -> None:
        with self._changed:
            if not self._unload_when_idle or self._running is not None or self._requests:
                return
            self._unload_when_idle = False
            worker = self._take_worker()
        if worker is not None:
            worker.close()

    def _log_file(self, name: str) -> Path:
        return storage.log_file(self.data, name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
