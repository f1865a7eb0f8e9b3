"""The process that owns the model, and the app's end of the pipes to it: JSON objects, one a line, both ways.

`ModelProcess` is the app's end. The process, `python -m workbench.jobs.worker`, runs the job it is sent, answers with
events, knows no queue and writes nothing but recordings. It loads one model in its life: for another it asks to be
replaced, because only the end of a process surely gives its memory back. It ends at once when its commands end, which
is when the app is gone: what a recording has on disk is whole at any moment. Importing this module imports no torch;
running it does.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench.errors import Cancelled, WorkbenchError
from workbench.extras import missing
from workbench.jobs.limits import is_hub_id
from workbench.recordings.corpus import Corpus

if TYPE_CHECKING:
    from workbench.capture.record import Progress
    from workbench.models.loading import Model

_PROGRESS_EVERY_S = 0.1
Request = dict[str, Any]
Send = Callable[..., None]  # of an event's name and its facts


class ModelProcess:
    """The model's process, seen from the app. Any thread may send or kill; one at a time reads events and closes.

    Args:
        log: File that takes what the process and its libraries print.
        hub: Whether it may ask the hub; else it takes what is in the hub's cache on this machine.

    Raises:
        OSError: the log cannot be written, or no process can be started.
    """

    def __init__(self, log: Path, *, hub: bool = True) -> None:
        self._sending = threading.Lock()
        with log.open("ab") as noise:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-m", "workbench.jobs.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                text=True,
                env=os.environ if hub else {**os.environ, "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # a Ctrl-C in the terminal is the app's, which ends its process itself
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands, self._events = self._process.stdin, self._process.stdout

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """Sends a line; to a process that is gone nothing, for the end of its events tells that."""
        with self._sending, contextlib.suppress(OSError, ValueError):  # ValueError: its pipe is closed already
            self._commands.write(json.dumps(message) + "\n")
            self._commands.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """The events until the process ends; half a line is what a killed one leaves."""
        for line in self._events:
            if line.endswith("\n"):
                yield json.loads(line)

    def kill(self) -> None:
        """Ends the process; its pipes stay to be read to their end."""
        self._process.kill()

    def close(self) -> int:
        """Ends the process, waits for it, and closes its pipes.

        Returns:
            Its exit status; negative is the signal that ended it.
        """
        self._process.kill()
        status = self._process.wait()
        with self._sending, contextlib.suppress(OSError):
            self._commands.close()
        self._events.close()
        return status


class _OtherModel(Exception):
    """The job is of another model than the one that this process has begun to load."""


class Owner:
    """Runs jobs, one after the other, on the one model that it loads and keeps."""

    def __init__(self, send: Send, is_cancelled: Callable[[str], bool]) -> None:
        self._send = send
        self._is_cancelled = is_cancelled
        self._model: Model | None = None
        self._asked: tuple[Any, ...] | None = None
        self._load_s = 0.0  # of this job

    def answer(self, request: Request) -> None:
        """Runs one job; its last event is `ended`, `replace` where it needs another model, or `crashed`."""
        started, self._load_s = time.perf_counter(), 0.0
        try:
            ways = {"record": self._record, "inspect": self._inspect, "attention": self._attention}
            ways |= {"profile": self._profile}
            result = ways[request["kind"]](request)
            run_s = time.perf_counter() - started - self._load_s
            self._send("ended", state="done", result=result, run_s=round(run_s, 3))
        except _OtherModel:
            self._send("replace")
        except Cancelled as error:
            self._send("ended", state="cancelled", message=str(error))
        except WorkbenchError as error:
            self._send("ended", state="failed", message=str(error))
        except BaseException as error:
            if (of_an_extra := missing(error, f"a job of the kind {request['kind']}")) is not None:
                self._send("ended", state="failed", message=str(of_an_extra))
                return
            self._send(
                "crashed",
                error=type(error).__name__,
                out_of_memory=_out_of_memory(error),
                traceback=traceback.format_exc(),
            )

    def _record(self, request: Request) -> dict[str, Any]:
        from workbench.capture.record import record

        if request["prompt"] is not None:
            corpus = Corpus.from_texts([request["prompt"]], domain="prompt", name="prompt")
        else:
            corpus = Corpus.read(request["corpus"])  # before the model: a bad line is told without loading anything
        model = self._load(request)
        parent = self._parent(request, model)
        self._send("phase", phase="proving" if request["check"] else "recording")
        recording = record(
            model,
            corpus,
            request["out"],
            fields=tuple(request["fields"]),
            max_tokens=request["max_tokens"],
            parent=parent,
            check=request["check"],
            on_progress=self._throttled(),
            should_cancel=lambda: self._is_cancelled(request["id"]),
            command=_command(request),
        )
        # Also true of a recording that was there already, for which nothing ran.
        self._send("progress", done_tokens=recording.n_tokens, total_tokens=recording.n_tokens)
        return {"recording": str(recording.path)}

    def _inspect(self, request: Request) -> dict[str, Any]:
        from workbench.capture.proof.model import check_capture
        from workbench.models.loading import inspect

        self._send("phase", phase="asking" if is_hub_id(request["model"]) else "looking")
        looked = inspect(request["model"])
        topology, forecast = looked.topology, looked.forecast
        if self._model is not None and self._model.device.type == forecast.device:
            # It is in memory already, or will be released before another is loaded.
            held = sum(p.numel() * p.element_size() for p in self._model.module.parameters())
            forecast = replace(forecast, free_bytes=forecast.free_bytes + held)
        found: dict[str, Any] = {
            "topology": topology.to_json(),
            "forecast": {**asdict(forecast), "needed_bytes": forecast.needed_bytes, "fits": forecast.fits},
            "quantization": looked.quantization,
            "check": None,
            "remarks": [],
        }
        if request["check"]:
            model = self._load(request)
            self._send("phase", phase="proving")
            found["check"] = asdict(check_capture(model))
            found["remarks"] = model.checkpoint.remarks() if model.checkpoint is not None else []
        return found

    def _attention(self, request: Request) -> dict[str, Any]:
        import io

        import numpy as np

        from workbench.capture.attention.heads import attention_map
        from workbench.models.loading import weights_digest

        model = self._load(request)
        self._send("phase", phase="looking")
        digest = weights_digest(model.module)
        file = Path(request["out"])
        file = file.with_stem(f"{file.stem}-{digest[-12:]}")  # a model that was trained on has another map
        if file.is_file():
            file.touch()  # those that were used longest ago are deleted first
        else:
            map_ST = attention_map(model, request["token_ids"], layer=request["layer"], head=request["head"])
            content = io.BytesIO()
            np.save(content, map_ST.astype(np.float16))
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")  # two apps may draw the same map at once
            draft.write_bytes(content.getbuffer())
            draft.replace(file)
        return {"file": str(file), "weights_digest": digest}

    def _profile(self, request: Request) -> dict[str, Any]:
        from workbench.efficiency.profiling.profile import profile
        from workbench.efficiency.profiling.settings import Asked
        from workbench.models.loading import inspect_topology, load

        names = [request["model"], *([request["against"]] if request["against"] else [])]
        if self._asked is not None:
            for name in names:
                inspect_topology(name)  # as in `_load`
            raise _OtherModel  # a model that was captured from is slower, so it is measured in a process of its own
        self._asked = ("profile", request["id"])
        words = ["profile", names[0], *(["--against", names[1]] if len(names) > 1 else [])]
        words += ["--weights", request["weights"]] if request["weights"] != "checkpoint" else []
        models = [self._timed(lambda name=name: load(name, weights=request["weights"])) for name in names]  # type: ignore[misc]
        self._send("phase", phase="measuring")

        def tell(done: int, total: int, what: str) -> None:
            self._send("progress", done_tokens=done, total_tokens=total)

        found = profile(
            models[0], Path(request["out"]), against=models[1] if len(models) > 1 else None,
            asked=Asked(limit_s=request["limit_s"]), on_progress=tell,
            should_cancel=lambda: self._is_cancelled(request["id"]), command=words,
        )  # fmt: skip
        return {"measurement": str(found.path)}

    def _load(self, request: Request) -> "Model":
        from workbench.models.loading import inspect_topology, load

        name = request["model"]
        asked = (name, *_state_of_folder(name))
        if self._asked not in (None, asked):
            inspect_topology(name)  # a mistyped name must not cost the next visitor the model that is in memory
            raise _OtherModel
        self._asked = asked
        if self._model is None and not self._is_cancelled(request["id"]):
            self._model = self._timed(lambda: load(name))
            self._send("loaded", model=name, load_s=round(self._load_s, 3))
        if self._model is None or self._is_cancelled(request["id"]):
            raise Cancelled("cancelled before the first token; nothing was written. Ask again to start it.")
        return self._model

    def _parent(self, request: Request, model: "Model") -> "Model | None":
        """The dense parent; it is released when the recording is made."""
        from workbench.models.loading import load

        if request["parent"] is None:
            return None
        return self._timed(lambda: load(request["parent"], device=model.device.type))

    def _timed(self, load: "Callable[[], Model]") -> "Model":
        self._send("phase", phase="loading")
        started = time.perf_counter()
        model = load()
        self._load_s += time.perf_counter() - started
        return model

    def _throttled(self) -> Callable[["Progress"], None]:
        last = -_PROGRESS_EVERY_S

        def report(progress: "Progress") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PROGRESS_EVERY_S:
                last = now
                self._send("progress", **asdict(progress))

        return report


def _state_of_folder(name: str) -> tuple[Any, ...]:
    """Sizes and times of a local model's files: one that was trained on and saved again is another model."""
    folder = Path(name)
    if not folder.is_dir():
        return ()
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _out_of_memory(error: BaseException) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _command(request: Request) -> list[str]:
    if request["prompt"] is not None:
        return ["workbench", "app"]  # a typed prompt has no command
    more = [] if request["max_tokens"] is None else ["--max-tokens", str(request["max_tokens"])]
    more += [] if request["parent"] is None else ["--parent", request["parent"]]
    return [
        "workbench", "record", request["model"], "--corpus", request["corpus"], "--out", request["out"],
        "--fields", ",".join(request["fields"]), *more, *([] if request["check"] else ["--no-check"]),
    ]  # fmt: skip


def _listen(commands: IO[str], requests: "queue.SimpleQueue[Request]", cancelled: set[str]) -> None:
    for line in commands:
        message = json.loads(line)
        if "cancel" in message:
            cancelled.add(message["cancel"])
        else:
            requests.put(message)
    os._exit(0)  # the app is gone: nobody waits for a batch or a load that is under way


def main() -> None:
    """Serves until the commands end."""
    commands, events = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what libraries print goes to the log, with stderr, and never between two events
    with contextlib.suppress(OSError):
        # Linux, when memory runs out, ends the process with the largest score: this one, and not the app.
        Path("/proc/self/oom_score_adj").write_text("500")
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    cancelled: set[str] = set()
    threading.Thread(target=_listen, args=(commands, requests, cancelled), daemon=True).start()

    with contextlib.suppress(ModuleNotFoundError):  # the first job says which extra is missing
        import workbench.capture.record  # noqa: F401  seconds of importing torch, spent before the first job comes

    def send(event: str, **facts: Any) -> None:
        events.write(json.dumps({"event": event, **facts}) + "\n")
        events.flush()

    owner = Owner(send, cancelled.__contains__)
    while True:
        owner.answer(requests.get())


if __name__ == "__main__":
    main()
