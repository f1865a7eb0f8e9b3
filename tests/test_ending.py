"""How a command ends: one sentence, a status of its own, nothing half-written, and no process left over."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.cli import ending
from workbench.errors import RecordingError
from workbench.export.files import sweep
from workbench.files.writing import cannot_write, refuse_unwritable


def ended(command) -> tuple[int, str]:
    """Status and sentence of something that was run as a command."""
    said: list[str] = []
    try:
        ending.run(command, say=said.append, stays="What was there stays.")
    except SystemExit as stopped:
        return int(stopped.code or 0), "".join(said)
    return 0, "".join(said)


def failing(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (RecordingError("no [such] thing"), 1, "no [such] thing"),
        (OSError(errno.EROFS, "Read-only file system", "/r/x"), 1, "/r/x: Read-only file system."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 1, "(300 characters): File name too long."),
        (MemoryError(), 1, "there is not enough memory for this"),
        (KeyboardInterrupt(), 130, "interrupted. What was there stays."),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_an_end_is_a_sentence_and_a_status(error, status, sentence):
    found, said = ended(failing(error))
    assert found == status
    assert sentence in said


def test_a_fault_of_ours_says_so_and_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(ending.tempfile, "tempdir", str(tmp_path))
    status, said = ended(failing(KeyError("n_layers")))
    assert status == 70 and said.startswith(
        "this is a fault of the workbench, not of your input (KeyError: 'n_layers')"
    )
    (kept,) = tmp_path.glob("workbench-fault-*.txt")
    assert str(kept) in said and "Traceback (most recent call last)" in kept.read_text()
    monkeypatch.setenv("WORKBENCH_TRACEBACK", "1")
    with pytest.raises(KeyError):
        ending.run(failing(KeyError("n_layers")), say=lambda _: None)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_undoes_what_was_begun_and_is_said_in_one_line(signum, status):
    undone = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signum)
            time.sleep(60)
        finally:
            undone.append(signum)

    before = signal.getsignal(signum)
    assert ended(command)[0] == status
    assert undone == [signum]
    assert signal.getsignal(signum) is before


# Processes

WAITS = """
import sys, time
from pathlib import Path
from analyses import pool
from analyses.question import Question
from workbench.export.files import _replacing

def slowly(*_, **__):
    out = Path(sys.argv[2])
    with _replacing(out / "slow"):
        (out / f"at-{__import__('os').getpid()}").touch()
        time.sleep(600)

Question.write = slowly  # in each process, for each imports this file anew
if __name__ == "__main__":
    from workbench.cli import ending
    from workbench.recordings.recording import Recording
    recording = Recording.open(sys.argv[1])
    questions = [Question(recording, name) for name in ("expert_load", "load_balance")]
    ending.run(lambda: list(pool.run(questions, Path(sys.argv[2]), n_processes=2)),
               say=lambda words: print(words, file=sys.stderr))
"""


def begun(recording, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A run of two analyses that never end, both under way, and the ids of their processes."""
    (folder / "waits.py").write_text(WAITS)
    (folder / "out").mkdir()
    words = [sys.executable, folder / "waits.py", recording.path, folder / "out"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while len(at := sorted((folder / "out").glob("at-*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, [int(each.name.removeprefix("at-")) for each in at]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_until_gone(pids: list[int]) -> None:
    while not all(map(gone, pids)):
        time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_run_leaves_no_process_and_no_draft(signum, recording, tmp_path):
    process, pids = begun(recording, tmp_path)
    process.send_signal(signum)
    _, said = process.communicate()
    assert process.returncode == 128 + signum
    assert len(said.strip().splitlines()) == 1, said
    wait_until_gone(pids)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_run_leaves_no_process_and_the_next_sweeps_its_drafts(recording, tmp_path):
    process, pids = begun(recording, tmp_path)
    process.kill()
    wait_until_gone(pids)
    process.communicate()
    out = tmp_path / "out"
    assert len(list(out.glob(".*.draft"))) == 2
    sweep(out)
    assert not list(out.glob(".*"))


def test_what_is_being_written_is_not_swept_and_what_was_replaced_comes_back(tmp_path):
    from workbench.export.files import _replacing

    with _replacing(tmp_path / "a") as draft:
        (draft / "file").write_text("new")
        sweep(tmp_path)
    assert (tmp_path / "a" / "file").read_text() == "new"
    (tmp_path / ".b.0123abcd.old").mkdir()
    (tmp_path / ".a.0123abcd.old").mkdir()
    (tmp_path / ".paper.tex.77.draft").write_text("half")
    sweep(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b"}


# Places


def test_a_place_that_cannot_be_written_is_refused_before_work_begins(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place, message in (
        (tmp_path / "file" / "r", "cannot be made: .*file is a file. Name another --out"),
        (tmp_path / "file", "cannot be made: .*file is a file"),
        (tmp_path / ("x" * 300), r"\(File name too long\); name another --out"),
        (Path("a\0b"), "embedded null byte"),
    ):
        with pytest.raises(RecordingError, match=message):
            refuse_unwritable(place, RecordingError)
    refuse_unwritable(tmp_path / "new" / "folder", RecordingError)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RecordingError, match=f"cannot be written: no permission in {tmp_path}"):
        refuse_unwritable(tmp_path / "new", RecordingError)


def test_a_disk_that_is_read_only_is_told_apart(tmp_path, monkeypatch):
    stated = os.statvfs(tmp_path)
    fields = list(stated)
    fields[8] |= os.ST_RDONLY  # f_flag
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    with pytest.raises(RecordingError, match="cannot be written: the disk is read-only in"):
        refuse_unwritable(tmp_path / "new", RecordingError)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: .* needs 6 bytes"),
        (errno.EFBIG, "more than a file may have here .*raise the limit, or write smaller parts with --shard-tokens"),
        (errno.EROFS, "cannot be written: Read-only file system. What was written before is whole"),
    ],
)
def test_what_the_system_refuses_while_writing_is_a_sentence(number, message, tmp_path):
    sentence = cannot_write(tmp_path / "part", OSError(number, os.strerror(number)), n_bytes=6)
    with pytest.raises(RecordingError, match=message):
        raise RecordingError(sentence)


def test_a_limit_on_files_is_a_sentence_and_leaves_nothing(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from workbench.errors import RecordingError\n"
        "from workbench.files.writing import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_whole(Path(sys.argv[1]) / 'part', bytes(1000), RecordingError)\n"
        "except RecordingError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "needs 1,000 bytes, more than a file may have here" in found.stdout
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_is_no_traceback(recording):
    words = ["workbench", "recordings", str(recording.path.parent)]
    code = f"from workbench.cli.main import main; import sys; sys.argv = {words}"
    writer = subprocess.Popen(
        [sys.executable, "-c", f"{code}; main()"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.close()
    said = writer.stderr.read()
    writer.wait()
    writer.stderr.close()
    assert "Traceback" not in said and "Exception ignored" not in said
