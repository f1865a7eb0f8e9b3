"""A recording that is killed at any moment and resumed ends with the tables of one that was not.

The command under test is `workbench record` in a process of its own, killed with SIGKILL. A process that has imported
everything and run nothing forks one child per command, so that twenty kills do not cost twenty imports of torch.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests import tiny
from workbench.recordings.manifest import read_manifest
from workbench.recordings.recording import Recording

SEED = 20240617
N_KILLS = 20
N_BETWEEN_PARTS = 15

FORKING = """
import json, os, sys
import workbench.capture.record, workbench.cli.main, workbench.models.loading
sys.stderr = open(os.devnull, "w")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.argv = json.loads(line)
        workbench.cli.main.main()
        os._exit(0)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Commands:
    """Runs `workbench` commands, one at a time, each in a process that can be killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # a model this small gains nothing from more
        )

    def start(self, arguments: list[str]) -> int:
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        # The command itself may print; its exit status is the last line.
        while True:
            line = self._process.stdout.readline().strip()
            if line.lstrip("-").isdigit():
                return int(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    running = Commands()
    yield running
    running.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("killed")
    tiny.moe().module.save_pretrained(folder / "model")
    with (folder / "corpus.jsonl").open("w") as file:
        for document in tiny.corpus(n_documents=400, shortest=30, longest=120).documents:
            row = {"id": document.id, "domain": document.domain, "token_ids": document.token_ids}
            file.write(json.dumps(row) + "\n")
    return folder / "model", folder / "corpus.jsonl"


def command(inputs: tuple[Path, Path], out: Path) -> list[str]:
    model, corpus = map(str, inputs)
    return [
        "workbench", "record", model, "--corpus", corpus, "--out", str(out), "--batch-tokens", "128",
        "--shard-tokens", "900",
    ]  # fmt: skip


def parts_on_disk(out: Path) -> int:
    return len(list(out.glob("documents/part-*.parquet")))


def seconds_until(n_parts: int, out: Path, started: float) -> float:
    """Waits for that many parts on disk; seconds since the start."""
    while parts_on_disk(out) < n_parts:
        assert time.monotonic() - started < 120, f"fewer than {n_parts} parts in two minutes"
        time.sleep(0.002)
    return time.monotonic() - started


def tables(out: Path) -> list[pd.DataFrame]:
    return [
        pd.concat([pd.read_parquet(part) for part in sorted((out / table).glob("*.parquet"))])
        for table in ("tokens", "documents")
    ]


@pytest.mark.rest
def test_a_recording_killed_at_any_moment_resumes_to_the_same_tables(commands, inputs, tmp_path):
    print(f"seed of the moments: {SEED}")
    whole = tmp_path / "whole"
    started = time.monotonic()
    commands.start(command(inputs, whole))
    first_part = seconds_until(1, whole, started)
    last_part = seconds_until(read_manifest(whole)["shards"], whole, started)
    assert commands.wait() == 0
    duration = time.monotonic() - started
    n_parts = read_manifest(whole)["shards"]
    assert n_parts >= 20
    expected, digest = tables(whole), Recording.open(whole).digest

    moments = random.Random(SEED)
    kills = between = 0
    while kills < N_KILLS or between < N_BETWEEN_PARTS:
        assert kills < 4 * N_KILLS, f"only {between} of {kills} kills fell between the first and the last part"
        out = tmp_path / f"killed-{kills}"
        begun = time.monotonic()
        pid = commands.start(command(inputs, out))
        # A quarter of the moments over the whole duration; the others between the first part and the last, counted from
        # the first part, for how long a start takes varies more than the writing lasts.
        if kills % 4 == 0:
            time.sleep(moments.uniform(0.0, duration))
        else:
            seconds_until(1, out, begun)
            time.sleep(moments.uniform(0.0, last_part - first_part))
        with_parts = parts_on_disk(out)
        with contextlib.suppress(ProcessLookupError):  # it had finished: a moment after the last part
            os.kill(pid, signal.SIGKILL)
        commands.wait()
        kills += 1
        between += 0 < with_parts < n_parts
        commands.start(command(inputs, out))
        assert commands.wait() == 0
        for table, uninterrupted in zip(tables(out), expected, strict=True):
            pd.testing.assert_frame_equal(table, uninterrupted)
        assert Recording.open(out).digest == digest
        assert not list(out.rglob("*.tmp"))
    print(f"{kills} kills, {between} of them between the first and the last of {n_parts} parts")
