"""What the host keeps on disk: requests until their recording is done, and logs, maps and uploads within bounds."""

import json
import os
from pathlib import Path

import pytest

from tests import tiny
from tests.hosting import ScriptedProcess, ended, running
from workbench.capture.record import record
from workbench.errors import Cancelled, HostError, RecordingError
from workbench.jobs import queue, storage
from workbench.jobs.service import Host
from workbench.jobs.storage import delete_recording, trim, unfinished
from workbench.recordings.writer import locked


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    host = Host(tmp_path)
    yield host
    host.stop()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A data folder with a recording that was stopped after its first part."""
    data = tmp_path_factory.mktemp("data")
    asked = iter(range(1000))
    with pytest.raises(Cancelled):
        how = {"batch_tokens": 256, "shard_tokens": 512, "check": False, "command": ("workbench", "record", "m", "a b")}
        record(tiny.moe(), tiny.corpus(), data / "recordings" / "begun", should_cancel=lambda: next(asked) > 4, **how)
    return data


def requests(host: Host) -> list[str]:
    return sorted(file.name for file in (host.data / "requests").glob("*"))


def test_a_request_is_kept_until_its_recording_is_done(scripted):
    done, dropped = (scripted.record(model="tiny-moe", prompt=text, name=text) for text in ("done", "dropped"))
    assert requests(scripted) == ["done.json", "dropped.json"]
    assert scripted.unfinished() == [], "what waits or runs here is no matter of going on"
    scripted.cancel(dropped)
    assert requests(scripted) == ["done.json"]
    running(scripted, done).let()
    ended(scripted, done)
    scripted.stop()
    assert requests(scripted) == []


def test_what_the_app_took_with_it_can_be_asked_for_again(scripted):
    first = scripted.record(model="tiny-moe", prompt="first <b>", name="first", fields=("routing",), max_tokens=7)
    second = scripted.record(model="tiny-moe", corpus="demo", name="second", check=False, owner="ada")
    asked = [running(scripted, first).sent[-1], scripted._requests[second]]
    scripted.stop()
    again = Host(scripted.data)
    assert [(each.name, each.title, each.owner, each.of_parts) for each in again.unfinished(owner="ada")] == [
        ("first", "tiny-moe · “first <b>”", "", 0), ("second", "tiny-moe · demo", "ada", 0),
    ]  # fmt: skip
    assert [each.name for each in again.unfinished(owner="bob")] == ["first"]
    for name, request in zip(("first", "second"), asked, strict=True):
        job = again.resume(name, owner="ada")
        sent = running(again, job).sent[-1]
        assert {**sent, "id": ""} == {**request, "id": ""}
        again._worker.let()
        ended(again, job)
    again.stop()
    assert requests(again) == []


@pytest.mark.parametrize(
    "events",
    [
        (),  # its process was killed
        ({"event": "phase", "phase": "loading"},),
        ({"event": "crashed", "error": "MemoryError", "out_of_memory": True, "traceback": ""},),
        ({"event": "crashed", "error": "KeyError", "out_of_memory": False, "traceback": ""},),
    ],
)
def test_a_request_whose_process_died_before_the_first_part_is_kept(scripted, monkeypatch, events):
    monkeypatch.setattr(ScriptedProcess, "events_of_all", events)
    job_id = scripted.record(model="tiny-moe", prompt="a long thought", name="mine", fields=("routing",), max_tokens=7)
    running(scripted, job_id).let()
    job = ended(scripted, job_id)
    assert (job.state, job.crashed) == ("failed", True)
    (kept,) = scripted.unfinished()
    assert kept.arguments["prompt"] == "a long thought" and kept.arguments["max_tokens"] == 7
    monkeypatch.undo()
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    again = scripted.resume("mine")
    running(scripted, again).let()
    assert ended(scripted, again).state == "done" and scripted.unfinished() == []


def test_what_was_refused_with_a_sentence_is_not_kept(scripted, monkeypatch):
    monkeypatch.setattr(ScriptedProcess, "events_of_all", ({"event": "ended", "state": "failed", "message": "No."},))
    job_id = scripted.record(model="tiny-moe", prompt="a", name="mine")
    running(scripted, job_id).let()
    assert not ended(scripted, job_id).crashed and scripted.unfinished() == []


GOOD = {
    "title": "t", "owner": "",
    "arguments": {"model": "tiny-moe", "corpus": None, "prompt": "a", "fields": ["routing"], "max_tokens": None,
                  "parent": None, "check": True},
}  # fmt: skip


def changed(**arguments):
    return json.dumps({**GOOD, "arguments": {**GOOD["arguments"], **arguments}})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "5", "null", '"x"', "[" * 100_000, '{"title": "t"}', json.dumps({**GOOD, "title": 5}),
        json.dumps({**GOOD, "owner": ["ada"]}), json.dumps({**GOOD, "arguments": []}),
        json.dumps({**GOOD, "arguments": "x"}),
        changed(fields="routing"), changed(fields=[5]), changed(fields=None), changed(model=None), changed(prompt=7),
        changed(max_tokens="7"), changed(max_tokens=True), changed(check=1), changed(more=1), changed(parent={}),
        json.dumps({**GOOD, "arguments": {"model": "tiny-moe"}}), changed(prompt="x" * 2**20),
    ],
)  # fmt: skip
def test_a_damaged_request_is_passed_over(tmp_path, text):
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "good.json").write_text(json.dumps(GOOD))
    (tmp_path / "requests" / "bad.json").write_text(text)
    (tmp_path / "requests" / "binary.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "requests" / "folder.json").mkdir()
    os.mkfifo(tmp_path / "requests" / "pipe.json")
    for name in ("a b", ".hidden", "x" * 130, "new\nline", "é"):
        (tmp_path / "requests" / f"{name}.json").write_text(json.dumps(GOOD))
    assert [each.name for each in unfinished(tmp_path)] == ["good"]
    assert [each.name for each in Host(tmp_path).unfinished()] == ["good"]


def test_another_visitors_request_is_neither_resumed_nor_forgotten(scripted):
    scripted.record(model="tiny-moe", prompt="mine", name="mine", owner="ada")
    scripted.stop()
    again = Host(scripted.data)
    for name, owner in (("mine", "bob"), ("none", "ada"), ("../mine", "ada")):
        with pytest.raises(HostError, match=f"no unfinished recording '{name}' that was asked for here; record it"):
            again.resume(name, owner=owner)
        with pytest.raises(HostError, match=f"'{name}' is nothing that was asked for here and never began"):
            again.forget(name, owner=owner)
    again.forget("mine", owner="ada")
    assert again.unfinished(owner="ada") == []


def test_a_recording_of_the_command_line_says_how_it_goes_on(begun):
    (found,) = unfinished(begun)
    assert (found.name, found.title, found.arguments) == ("begun", "tiny-random-moe · random", {})
    assert 0 < found.parts < found.of_parts and found.command == "workbench record m 'a b'"
    with pytest.raises(HostError, match="no unfinished recording 'begun'"):
        Host(begun).resume("begun")
    with pytest.raises(HostError, match="'begun' is nothing that was asked for here and never began"):
        Host(begun).forget("begun")


def test_what_cannot_be_read_is_passed_over(begun, tmp_path):
    for name, text in (("broken", "{"), ("foreign", "[]"), ("older", '{"title": "x"}')):
        (tmp_path / "requests").mkdir(exist_ok=True)
        (tmp_path / "requests" / f"{name}.json").write_text(text)
    (tmp_path / "recordings" / "damaged").mkdir(parents=True)
    (tmp_path / "recordings" / "damaged" / "manifest.json").write_text("{")
    assert unfinished(tmp_path) == []


def test_a_data_folder_that_cannot_be_written_is_said_before_anything_begins(scripted):
    (scripted.data / "requests").write_text("a file in the way")
    with pytest.raises(HostError, match=r"requests cannot be written .*; nothing was begun. Free the disk"):
        scripted.record(model="tiny-moe", prompt="a")
    assert scripted.jobs() == []


def test_a_deleted_recording_is_gone_and_what_lies_elsewhere_stays(recording, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(recording.path, data / "recordings" / "mine")
    shutil.copytree(recording.path, tmp_path / "elsewhere")
    (data / "recordings" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "requests").mkdir()
    (data / "requests" / "mine.json").write_text("{}")
    with (
        locked(data / "recordings" / "mine"),
        pytest.raises(RecordingError, match="is being written by another process"),
    ):
        delete_recording(data, "mine")
    for name in ("mine", "linked"):
        Host(data).delete(name)
    assert list((data / "recordings").iterdir()) == list((data / "requests").iterdir()) == []
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()
    for name in ("mine", "", "..", "../recordings/mine"):
        with pytest.raises(RecordingError, match="there is no recording .* to delete"):
            delete_recording(data, name)


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        file = tmp_path / name / "kept"
        file.parent.mkdir()
        file.write_bytes(b"x" * 100)
        os.utime(file, (1000 - age, 1000 - age))
    trim(tmp_path, 300)
    assert sorted(file.parent.name for file in tmp_path.rglob("kept")) == ["middle", "new", "old"]
    trim(tmp_path, 250)
    assert sorted(file.parent.name for file in tmp_path.rglob("kept")) == ["middle", "new"]
    trim(tmp_path / "none", 0)


def test_maps_are_kept_up_to_a_bound(scripted, monkeypatch):
    monkeypatch.setattr(queue, "_MAP_BYTES", 100)
    (scripted.data / "maps").mkdir()
    (scripted.data / "maps" / "old.npy").write_bytes(b"x" * 101)
    job = scripted.attention(model="tiny-moe", token_ids=[1], layer=0, head=0)
    running(scripted, job).let()
    ended(scripted, job)
    scripted.stop()
    assert list((scripted.data / "maps").iterdir()) == []


def test_a_log_is_cut_under_a_process_that_writes_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LOG_BYTES", 10)
    log = storage.log_file(tmp_path, "worker.log")
    with log.open("ab") as noise:
        noise.write(b"longer than ten bytes")
        noise.flush()
        storage.log_file(tmp_path, "worker.log")
        noise.write(b"and on")
    assert log.read_text() == "and on"
    assert Path(f"{log}.1").read_text() == "longer than ten bytes"


def test_a_request_is_written_whole(tmp_path, monkeypatch):
    storage.keep_request(tmp_path, "r", title="t", owner="", arguments={"model": "m"})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(HostError, match="cannot be written .No space left on device.; nothing was begun"):
        storage.keep_request(tmp_path, "r", title="other", owner="", arguments={})
    assert [file.name for file in (tmp_path / "requests").iterdir()] == ["r.json"]
    assert json.loads((tmp_path / "requests" / "r.json").read_text())["title"] == "t"
