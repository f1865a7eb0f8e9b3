"""Starts `transformers serve` for some models on this machine alone, and ends them whatever happens.

A way to try serving without a GPU, not a fast server. Each listens on the loopback address, takes requests together
(continuous batching) over a small cache, and reads nothing from a network.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import MeasurementError
from workbench.models.bundled import MODELS, bundled_models

CACHE = {"cb-num-blocks": 64, "cb-max-batch-tokens": 256}
"""Small, for a CPU: with transformers' own sizes the first answer of a tiny model took 18.5 s, with these 0.8 s."""
HEALTHY_S = 240.0
_LOG_LINES = 5


@dataclass(frozen=True)
class Launched:
    """A server that runs.

    Attributes:
        name: The model as it was named.
        folder: What the server was given, which is also what it calls its model.
        url: Where it listens.
        how: Its settings, for the manifest.
    """

    name: str
    folder: str
    url: str
    how: dict[str, Any]


@contextlib.contextmanager
def launched(names: Sequence[str], *, healthy_s: float = HEALTHY_S) -> Iterator[list[Launched]]:
    """Servers of these models, until the end of the block.

    Each has the CPUs but one as threads: one serves at a time, and the load generator needs a CPU of its own.

    Args:
        names: Bundled models, or local folders.
        healthy_s: Until a server that does not answer is given up.

    Raises:
        MeasurementError: a name is neither; a server ends or does not answer in time, with the end of its log.
    """
    folders = [_folder(name) for name in names]
    threads = max(1, (os.cpu_count() or 2) - 1)
    with tempfile.TemporaryDirectory(prefix="workbench-serve-") as logs, contextlib.ExitStack() as stack:
        servers, processes = [], []
        for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
            port, log = _free_port(), Path(logs) / f"{number}.log"
            processes.append((stack.enter_context(_process(folder, port, threads, log)), log))
            how = {"server": "transformers serve", "continuous_batching": True, "threads": threads, **CACHE}
            servers.append(Launched(name, folder, f"http://127.0.0.1:{port}", how))
        until = time.monotonic() + healthy_s
        for server, (process, log) in zip(servers, processes, strict=True):
            _wait(server, process, log, until, healthy_s)
        yield servers


def _folder(name: str) -> str:
    folder = MODELS / name if name in bundled_models() else Path(name)
    if not (folder / "config.json").is_file():
        raise MeasurementError(
            f"--launch cannot serve {name!r}: it is no folder with a model; name one, or {', '.join(bundled_models())}."
        )
    return str(folder.resolve())


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextlib.contextmanager
def _process(folder: str, port: int, threads: int, log: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-P", "-m", "workbench.efficiency.serving.server_process", "serve", folder]
    command += ["--continuous-batching"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "auto"]
    command += [word for name, value in CACHE.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with log.open("wb") as noise:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=noise, stderr=noise, env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the starter's, who ends it
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _wait(server: Launched, process: subprocess.Popen, log: Path, until: float, healthy_s: float) -> None:
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        ended = process.poll()
        if ended is None and time.monotonic() < until:
            time.sleep(0.2)
            continue
        said = " | ".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]) or "nothing"
        what = f"ended with {ended}" if ended is not None else f"did not answer in {healthy_s:g} s"
        raise MeasurementError(f"transformers serve of {server.name} {what}; the end of what it said: {said}")
