"""The model host: jobs, queue, progress and cancel, for an app whose process must never hold a model.

The model lives in a process of its own (`host_worker.py`), which runs one job at a time, first come first served. This
side keeps the queue and follows the events; it imports no torch, loads nothing and computes nothing. A crash of the
model is a failed job with a sentence; the process is started again and the queue goes on.
"""

import atexit
import contextlib
import re
import secrets
import signal
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.corpus import BUNDLED
from workbench.errors import CorpusError, HostError
from workbench.host_worker import ModelProcess
from workbench.recording import file_digest, json_digest
from workbench.recording_schema import FIELDS

LONGEST_PROMPT = 20_000  # characters
LONGEST_PROFILE_S = 600.0
ENDED_JOBS_KEPT = 200
_ENDED = ("done", "failed", "cancelled")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")  # no leading dot: `..` names another folder
_LOG_BYTES = 10 * 2**20
_GOES_ON = "What is on disk is whole: ask the same again, and it goes on where it stopped."


@dataclass(frozen=True)
class Job:
    """One job as it stands at this moment.

    Attributes:
        id: Names it.
        kind: `record`, `inspect`, `attention` or `profile`.
        title: For people; it may hold what a visitor typed.
        state: `queued`, `running`, `done`, `failed` or `cancelled`.
        place: In the queue, 1 is next; 0 when it runs or has ended.
        done_tokens: Tokens on disk or on their way there; of a `profile` its steps.
        total_tokens: Tokens in all; 0 until it is known, and for `inspect`.
        tokens_per_s: Rate of this run.
        left_s: Time left at this rate; None before the first batch and after the last.
        message: Of a failed or cancelled job: what happened, and the next step.
        result: Of a job that is done: `recording`, a path; or `topology`, `forecast` and `check`.
        submitted: When, ISO 8601.
    """

    id: str
    kind: str
    title: str
    state: str = "queued"
    place: int = 0
    done_tokens: int = 0
    total_tokens: int = 0
    tokens_per_s: float = 0.0
    left_s: float | None = None
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    submitted: str = ""


class Host:
    """Jobs for the one model process of a data folder. Every method may be called from any thread.

    Args:
        data: The data folder: recordings go to `data/recordings/NAME`, logs to `data/logs`.
        cancel_grace_s: How long a cancelled job may take to end by itself before its process is ended.
    """

    def __init__(self, data: Path, *, cancel_grace_s: float = 10.0) -> None:
        self.data = data.resolve()
        self._grace_s = cancel_grace_s
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

    def record(
        self,
        *,
        model: str,
        corpus: str | None = None,
        prompt: str | None = None,
        fields: tuple[str, ...] = ("routing", "logprob"),
        max_tokens: int | None = None,
        parent: str | None = None,
        name: str | None = None,
        check: bool = True,
    ) -> str:
        """Queues a recording.

        Args:
            model: A name that `load` knows.
            corpus: A bundled corpus, or a file below the data folder; or give `prompt`.
            prompt: A text, recorded as a corpus of one document.
            fields: As of `workbench.record`.
            max_tokens: Cap over the corpus.
            parent: The dense model that the MoE was made from, a name that `load` knows; for the field `weights`.
            name: Folder of the recording in `data/recordings`; the default is made of a digest of all arguments and of
                the corpus' bytes, so that asking the same again finds the same recording, finished or to be resumed.
            check: Prove the capture first.

        Returns:
            The job's id.

        Raises:
            HostError: an argument that cannot be meant, with what was wanted; the host was stopped.
            CorpusError: a corpus that is neither bundled nor a file below the data folder.
        """
        for given in (model, *([] if parent is None else [parent])):
            _refuse_bad_name_of_model(given)
        if parent is not None and "weights" not in fields:
            raise HostError("parent: it is compared in the field weights, which is not asked for; add it to fields.")
        if not fields or set(fields) - set(FIELDS):
            raise HostError(f"fields are {', '.join(fields) or 'empty'}; some of {', '.join(FIELDS)} were wanted.")
        if max_tokens is not None and max_tokens < 1:
            raise HostError(f"max_tokens is {max_tokens}; at least 1 was wanted, or none for the whole corpus.")
        file = None
        if prompt is not None and corpus is None:
            what, title, content = "prompt", _excerpt(prompt), _checked_prompt(prompt)
        elif corpus is not None and prompt is None:
            file = self._corpus_file(corpus)
            what, title, content = _slug(file.stem), file.stem, file_digest(file)
        else:
            raise HostError(
                f"{'both' if corpus is not None else 'neither'} corpus and prompt were given; give one of them."
            )
        if name is None:
            identity = [model, what, content, [kept for kept in FIELDS if kept in fields], max_tokens, check]
            identity += [] if parent is None else [parent]
            name = f"{_slug(model)}-{what}-{json_digest(identity)[:12]}"
        if not _NAME.fullmatch(name):
            raise HostError(
                f"name is {name[:130]!r}; up to 120 letters, digits, '.', '_' and '-' were wanted, no '.' first."
            )
        request = {
            "model": model,
            "corpus": str(file) if file is not None else None,
            "prompt": prompt,
            "fields": list(fields),
            "max_tokens": max_tokens,
            "parent": parent,
            "check": check,
            "out": str(self.data / "recordings" / name),
        }
        return self._submit("record", f"{model} · {title}", request)

    def inspect(self, model: str, *, check: bool = False) -> str:
        """Queues a look at a model: what it is made of, and what it would take against what would be free for it.

        Args:
            model: A name that `inspect_topology` knows; its config alone is read.
            check: Load it too, and prove the capture.

        Returns:
            The job's id.

        Raises:
            HostError: a name that cannot be meant; the host was stopped.
        """
        _refuse_bad_name_of_model(model)
        return self._submit("inspect", model, {"model": model, "check": check})

    def attention(self, *, model: str, token_ids: Sequence[int], layer: int, head: int) -> str:
        """Queues a map of one attention head on one text; the file it ends in is kept in the data folder's `maps`.

        Args:
            model: A name that `load` knows.
            token_ids: Of the text.
            layer: Attention layer.
            head: Head.

        Returns:
            The job's id. Its result names the `file` (NumPy, float16 [S, T]) and the `weights_digest` of the model.

        Raises:
            HostError: a name that cannot be meant; the host was stopped.
        """
        _refuse_bad_name_of_model(model)
        digest = json_digest([model, list(token_ids), layer, head])[:24]
        request = {
            "model": model,
            "token_ids": list(token_ids),
            "layer": layer,
            "head": head,
            "out": str(self.data / "maps" / f"{digest}.npy"),
        }
        return self._submit("attention", f"{model} · layer {layer}, head {head}", request)

    def profile(self, *, model: str, against: str | None = None, weights: str = "checkpoint") -> str:
        """Queues a measurement of a model, or of two beside each other, with the settings of `workbench profile`.

        Args:
            model: A name that `load` knows.
            against: Another one.
            weights: `checkpoint` or `dummy`, of both.

        Returns:
            The job's id. Its result names the `measurement`, a new folder in the data folder's `measurements`.

        Raises:
            HostError: a name that cannot be meant; the host was stopped.
        """
        names = [model, *([] if against is None else [against])]
        for given in names:
            _refuse_bad_name_of_model(given)
        folder = "-".join([*map(_slug, names), datetime.now(UTC).strftime("%Y%m%d-%H%M%S")])
        request = {
            "model": model,
            "against": against,
            "weights": weights,
            "limit_s": LONGEST_PROFILE_S,
            "out": str(self.data / "measurements" / folder),
        }
        return self._submit("profile", " beside ".join(names), request)

    def job(self, job_id: str) -> Job:
        """A job as it stands.

        Raises:
            HostError: no such job.
        """
        found = [job for job in self.jobs() if job.id == job_id]
        if not found:
            raise HostError(
                f"no job {job_id!r}: the app was started again since, or {ENDED_JOBS_KEPT} others have ended. "
                "What it recorded is in the list of recordings."
            )
        return found[0]

    def jobs(self) -> list[Job]:
        """All jobs, newest first; of those that have ended the last 200."""
        with self._changed:
            place = {job_id: number for number, job_id in enumerate(self._requests, start=1)}
            return [replace(job, place=place.get(job.id, 0)) for job in reversed(self._jobs.values())]

    def cancel(self, job_id: str) -> None:
        """Cancels a job; one that has ended stays as it is.

        A queued one is taken out. A running one ends before its next batch, or with its process after the grace.

        Raises:
            HostError: no such job.
        """
        with self._changed:
            job = self.job(job_id)
            if job.state == "queued":
                self._withdraw(job_id, "cancelled before it began; nothing was written. Ask again to start it.")
            if job.state != "running" or self._killer is not None:
                return
            self._killer = threading.Timer(self._grace_s, self._kill, args=(job_id,))
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

    def _corpus_file(self, corpus: str) -> Path:
        """The file of a corpus, links followed, where corpora may lie; of other places nothing is told."""
        bundled = BUNDLED / f"{corpus}.jsonl"
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # what no file system can look up is no file
            file = (bundled if _NAME.fullmatch(corpus) and bundled.is_file() else Path(corpus)).resolve()
            if any(file.is_relative_to(root) for root in (self.data, BUNDLED)) and file.is_file():
                return file
        known = ", ".join(sorted(found.stem for found in BUNDLED.glob("*.jsonl")))
        raise CorpusError(
            f"corpus {corpus[:200]!r} is neither a bundled one ({known}) nor a file below {self.data}. "
            "Upload it, or put it there."
        )

    def _submit(self, kind: str, title: str, request: dict[str, Any]) -> str:
        with self._changed:
            self.start()
            job = Job(id=secrets.token_hex(6), kind=kind, title=title, submitted=_now())
            self._jobs[job.id] = job
            self._requests[job.id] = {"id": job.id, "kind": kind, **request}
            self._unload_when_idle = False  # the model is wanted after all
            self._changed.notify_all()
        return job.id

    def _update(self, job_id: str, **changes: Any) -> None:
        with self._changed:
            self._jobs[job_id] = replace(self._jobs[job_id], **changes)

    def _settle(self, job_id: str, **end: Any) -> None:
        with self._changed:
            self._update(job_id, left_s=None, **end)
            ended = [job.id for job in self._jobs.values() if job.state in _ENDED]
            for old in ended[:-ENDED_JOBS_KEPT]:
                del self._jobs[old]

    def _withdraw(self, job_id: str, message: str) -> None:
        del self._requests[job_id]
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
                self._running = None
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
                case "loaded":
                    self._loaded = event["model"]
                case "progress":
                    self._update(job_id, **event)
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
            return {"state": "cancelled", "message": f"stopped with the app. {_GOES_ON}"}
        if self._killer is not None:
            told = f"cancelled: the model did not stop within {self._grace_s:g} s, so its process was ended. {_GOES_ON}"
            return {"state": "cancelled", "message": told}
        how = f"was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with {status}"
        return self._crash(job_id, f"the model's process {how}", "what it printed is in worker.log")

    def _crash(self, job_id: str, what: str, details: str) -> dict[str, Any]:
        """A failed job; its details go to the log, for a traceback is not for every visitor."""
        with contextlib.suppress(OSError), self._log_file("host.log").open("a", encoding="utf-8") as log:
            log.write(f"{_now()} job {job_id}: {what}\n{details}\n")
        return {
            "state": "failed",
            "message": f"{what}, and the model was released. {_GOES_ON} If memory was short, free some or take a "
            f"smaller model; the details are in the data folder's logs/host.log under {job_id}.",
        }

    def _ready_worker(self) -> ModelProcess:
        with self._changed:
            if self._worker is not None and not self._worker.alive:
                self._discard_worker()
            if self._worker is None:
                self._worker = ModelProcess(self._log_file("worker.log"))
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
        """A log's path, its folder made; a log that has grown large is put aside, over the one before it."""
        log = self.data / "logs" / name
        log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another app on this folder did it in this moment
            if log.exists() and log.stat().st_size > _LOG_BYTES:
                log.replace(log.with_name(f"{name}.1"))
        return log


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_bad_name_of_model(model: str) -> None:
    # 255 bytes is what file systems take of one name; a longer one is an OSError that says nothing.
    if not (model and len(model) <= 1000 and model.isprintable() and max(map(len, model.encode().split(b"/"))) <= 255):
        raise HostError(
            f"model is {model[:100]!r}; the name of a bundled model, a folder or a hub id was wanted, printable and "
            "no longer than names can be."
        )


def _checked_prompt(prompt: str) -> str:
    """The digest of a prompt that can be recorded."""
    if not prompt.strip():
        raise HostError("prompt is empty; at least one word was wanted.")
    if len(prompt) > LONGEST_PROMPT:
        raise HostError(
            f"prompt has {len(prompt):,} characters, at most {LONGEST_PROMPT:,} were wanted; "
            "upload a longer text as a corpus."
        )
    try:
        return json_digest(prompt)
    except UnicodeEncodeError as error:
        raise HostError("prompt holds half a character (a lone surrogate); delete what shows as a box.") from error


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name).strip(".-")[:40] or "model"


def _excerpt(prompt: str) -> str:
    text = " ".join(prompt.split())
    return f"“{text}”" if len(text) <= 40 else f"“{text[:39]}…”"
