"""The model host: each job gets its own right answer, whatever is cancelled, killed or broken beside it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests import tiny
from tests.hosting import PATIENCE_S, ScriptedProcess, ended, gone, made, pid, running, until, write_corpus
from workbench.capture.attention.heads import attention_map
from workbench.capture.record import record
from workbench.errors import CorpusError, HostError
from workbench.jobs import queue, storage, worker
from workbench.jobs.service import Host
from workbench.models import loading, memory
from workbench.models.topology import Topology
from workbench.recordings.recording import Recording


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny random model, one with NaN in it, and two corpora."""
    folder = tmp_path_factory.mktemp("data")
    model = tiny.moe().module
    model.save_pretrained(folder / "model")
    model.model.layers[2].mlp.gate.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder / "nan")
    write_corpus(folder / "small.jsonl")
    write_corpus(folder / "long.jsonl", n_documents=1200, shortest=80, longest=250)
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in this process: float32 sums of two threads differ in their last bits, and with them the digests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def host(data: Path, one_thread: None) -> Iterator[Host]:
    running = Host(data)
    running.start()
    running.start()
    yield running
    running.stop()
    running.stop()


@pytest.fixture(scope="module")
def long(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The long corpus, recorded in this process without any interruption."""
    model = loading.load(str(data / "model"))
    return record(model, data / "long.jsonl", tmp_path_factory.mktemp("long") / "r", check=False)


def record_long(host: Host, name: str) -> str:
    model, corpus = str(host.data / "model"), str(host.data / "long.jsonl")
    return host.record(model=model, corpus=corpus, name=name, check=False)


# Right answers


def test_a_prompt_gives_its_own_tokens_and_the_same_again_the_same_recording(host):
    prompt = "The river rose in the night: <b>1,204</b> sandbags — 水位."
    expected = loading.load("tiny-moe").tokenizer(prompt)["input_ids"]
    first = made(host, host.record(model="tiny-moe", prompt=prompt))
    assert first.tokens()["token"].tolist() == expected
    assert first.manifest["corpus"]["name"] == "prompt"
    again = host.record(model="tiny-moe", prompt=prompt)
    assert made(host, again).path == first.path
    assert host.job(again).done_tokens == len(expected)


def test_visitors_who_submit_at_once_each_get_their_own_answer(host):
    tokenizer = loading.load("tiny-moe").tokenizer
    prompts = [f"Visitor {number} counts {number * 37} boats." for number in range(6)]
    barrier = threading.Barrier(len(prompts))

    def visit(prompt: str) -> list[int]:
        barrier.wait()
        return made(host, host.record(model="tiny-moe", prompt=prompt)).tokens()["token"].tolist()

    with ThreadPoolExecutor(len(prompts)) as visitors:
        assert list(visitors.map(visit, prompts)) == [tokenizer(prompt)["input_ids"] for prompt in prompts]


def test_inspect_tells_topology_and_forecast_from_the_config_and_checks_when_asked(host):
    result = ended(host, host.inspect("qwen2-57b-a14b")).result
    assert Topology.from_json(result["topology"]) == loading.inspect_topology("qwen2-57b-a14b")
    forecast = loading.memory_forecast("qwen2-57b-a14b")
    told = result["forecast"]
    assert set(told) == {
        "weights_bytes", "kv_cache_bytes", "buffers_bytes", "needed_bytes", "free_bytes", "fits", "device",
    }  # fmt: skip
    assert (told["weights_bytes"], told["needed_bytes"]) == (forecast.weights_bytes, forecast.needed_bytes)
    assert result["check"] is None
    check = ended(host, host.inspect("tiny-moe", check=True)).result["check"]
    assert check["routers"] == 4
    assert check["seconds"] > 0


def test_a_map_of_one_head_is_kept_in_a_file(host):
    ids = [5, 9, 200, 9, 31, 5]
    first, again = (host.attention(model="tiny-moe", token_ids=ids, layer=3, head=1) for _ in range(2))
    one, two = ended(host, first), ended(host, again)
    assert one.result == two.result and one.kind == "attention"
    kept = np.load(one.result["file"])
    np.testing.assert_allclose(kept, attention_map(loading.load("tiny-moe"), ids, layer=3, head=1), atol=1e-3)
    wrong = ended(host, host.attention(model="tiny-moe", token_ids=ids, layer=9, head=1))
    assert wrong.state == "failed" and "tiny-moe has no head 1 in an attention of layer 9" in wrong.message


def test_a_corpus_gives_the_recording_that_record_gives(host, data, tmp_path):
    ended(host, host.inspect("tiny-moe", check=True))
    assert host.loaded == "tiny-moe"
    process_id = pid(host)
    job_id = host.record(model=str(data / "model"), corpus=str(data / "small.jsonl"))
    recording = made(host, job_id)
    assert recording.path.parent == data / "recordings"
    assert recording.path.name.startswith("model-small-")
    assert recording.digest == record(loading.load(str(data / "model")), data / "small.jsonl", tmp_path / "r").digest
    assert host.loaded == str(data / "model")
    assert gone(process_id), "another model's memory comes back with the end of its process"
    job = host.job(job_id)
    assert (job.kind, job.place, job.left_s) == ("record", 0, None)
    assert job.done_tokens == job.total_tokens == recording.n_tokens
    command = recording.manifest["environment"]["command"]
    assert command.startswith("workbench record ") and command.endswith("--fields routing,logprob")
    assert host.jobs()[0] == job
    assert job.load_s > 0 and job.run_s > 0 and job.name == recording.path.name
    again = ended(host, host.record(model=str(data / "model"), corpus=str(data / "small.jsonl"), fields=("routing",)))
    assert again.load_s is None and again.run_s > 0, "it was in memory"


@pytest.mark.rest
def test_a_dense_parent_is_compared(host, data):
    recording = made(
        host,
        host.record(model="tiny-moe", prompt="Rain.", fields=("routing", "weights"), parent="tiny-dense@parent"),
    )
    assert recording.manifest["settings"]["parent"]["name"] == "tiny-dense"
    assert recording.manifest["environment"]["command"] == "workbench app"
    assert (recording.expert_weights["parent_similarity"].map(np.mean) > 0).all()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"prompt": " \n"}, HostError, "prompt is empty; at least one word was expected"),
        ({"prompt": "a" * 20_001}, HostError, "prompt has 20,001 characters, at most 20,000 were expected; upload"),
        ({"prompt": "half \ud800"}, HostError, "prompt holds half a character .* delete what shows as a box"),
        ({"prompt": "a", "name": "../up"}, HostError, "name is '../up'; up to 120 letters, digits, .* were expected"),
        ({"prompt": "a", "name": ".."}, HostError, "name is '..'; .* no '.' first"),
        ({"prompt": "a", "name": "a\n"}, HostError, r"name is 'a\\n'; up to 120 letters"),
        ({"prompt": "a", "name": ""}, HostError, "name is ''; up to 120 letters"),
        ({"prompt": "a", "fields": ("routing", "mood")}, HostError, "fields are routing, mood; some of routing, logp"),
        ({"prompt": "a", "fields": ()}, HostError, "fields are empty; some of routing"),
        (
            {"prompt": "a", "parent": "tiny-dense"},
            HostError,
            "parent: it is compared in the field weights, which is not",
        ),
        ({"prompt": "a", "parent": ""}, HostError, "model is ''; the name of a bundled model"),
        ({"prompt": "a", "max_tokens": 0}, HostError, "max_tokens is 0; at least 1 was expected"),
        ({"prompt": "a", "corpus": "demo"}, HostError, "both corpus and prompt were given; give one of them"),
        ({}, HostError, "neither corpus and prompt were given; give one of them"),
        ({"prompt": "a", "model": ""}, HostError, "model is ''; the name of a bundled model, a folder or a hub id"),
        ({"prompt": "a", "model": "a\0b"}, HostError, r"model is 'a\\x00b'; the name of a bundled model"),
        ({"prompt": "a", "model": "x" * 256}, HostError, "no longer than names can be"),
        ({"corpus": "demoo"}, CorpusError, r"'demoo' is neither a bundled one \(demo\) nor a file below .* Upload it"),
        ({"corpus": ""}, CorpusError, "corpus '' is neither"),
        ({"corpus": "/etc/hostname"}, CorpusError, "corpus '/etc/hostname' is neither"),
        ({"corpus": "a\0b"}, CorpusError, "is neither a bundled one"),
        ({"corpus": "DATA/no.jsonl"}, CorpusError, "no.jsonl' is neither a bundled one"),
        ({"corpus": "DATA/../outside.jsonl"}, CorpusError, "outside.jsonl' is neither a bundled one"),
        ({"corpus": "DATA/link.jsonl"}, CorpusError, "link.jsonl' is neither a bundled one"),
        ({"corpus": "DATA/" + "x" * 300}, CorpusError, "is neither a bundled one"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_at_once(tmp_path, arguments, error, told):
    data = tmp_path / "data"
    data.mkdir()
    write_corpus(tmp_path / "outside.jsonl", n_documents=1)
    (data / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    if "corpus" in arguments:
        arguments = arguments | {"corpus": arguments["corpus"].replace("DATA", str(data))}
    host = Host(data)
    with pytest.raises(error, match=told):
        host.record(**{"model": "tiny-moe"} | arguments)
    assert host.jobs() == []
    assert host._thread is None


def test_a_model_that_cannot_be_meant_is_not_inspected(tmp_path):
    with pytest.raises(HostError, match="model is ''; the name of a bundled model"):
        Host(tmp_path).inspect("")


def test_an_unknown_job_is_named(tmp_path):
    host = Host(tmp_path)
    for ask in (host.job, host.cancel):
        with pytest.raises(HostError, match="no job 'x': the app was started again since, .* list of recordings"):
            ask("x")


def test_faults_of_model_corpus_and_folder_are_told_in_their_own_sentences(host, data):
    (data / "bad.jsonl").write_text("{}\n")
    (data / "recordings" / "taken").mkdir(parents=True)
    (data / "recordings" / "taken" / "thesis.txt").write_text("mine")
    model, small = str(data / "model"), str(data / "small.jsonl")
    made(host, host.record(model=model, corpus=small))
    for arguments, told in [
        ({"model": "tiny-mo"}, "unknown model 'tiny-mo'. Known: bundled"),
        ({"corpus": str(data / "bad.jsonl")}, "bad.jsonl, line 1: 'text' is missing"),
        ({"name": "taken"}, "is not empty and holds no recording (thesis.txt …)"),
        ({"fields": ("logits",)}, "'logits' are the router's and go with 'routing'"),
    ]:
        job = ended(host, host.record(**{"model": model, "corpus": small} | arguments))
        assert (job.state, job.result) == ("failed", {})
        assert told in job.message
        assert host.loaded == model, "a mistake must not cost the next visitor the model in memory"
    job = ended(host, host.record(model=str(data / "nan"), prompt="a"))
    assert job.state == "failed"
    assert "layer 2, model.layers.2.mlp.gate.weight holds NaN or infinite values" in job.message
    assert host.loaded is None
    assert (data / "recordings" / "taken" / "thesis.txt").read_text() == "mine"


# Cancelling, killing, crashing


@pytest.mark.rest
def test_a_cancelled_recording_goes_on_to_the_same_tables(host, long):
    job_id = record_long(host, "cancelled")
    until(lambda: host.job(job_id).done_tokens > 80_000, "the first part")
    running = host.job(job_id)
    assert (running.state, running.total_tokens) == ("running", long.n_tokens)
    assert running.tokens_per_s > 0 and running.left_s > 0
    queued = [host.inspect("tiny-moe"), host.inspect("tiny-dense@parent"), host.inspect("tiny-moe")]
    assert [host.job(waiting).place for waiting in queued] == [1, 2, 3]
    host.cancel(queued[0])
    assert [host.job(waiting).place for waiting in queued] == [0, 1, 2]
    assert host.job(queued[0]).message == "cancelled before it began; nothing was written. Ask again to start it."
    process_id = pid(host)
    host.cancel(job_id)
    host.cancel(job_id)
    job = ended(host, job_id)
    assert job.state == "cancelled"
    assert "tokens; the parts in" in job.message
    assert pid(host) == process_id
    assert ended(host, queued[2]).state == ended(host, queued[1]).state == "done"
    host.cancel(queued[2])
    assert host.job(queued[2]).state == "done"
    part = host.data / "recordings" / "cancelled" / "documents" / "part-00000.parquet"
    written = part.stat().st_mtime_ns
    recording = made(host, record_long(host, "cancelled"))
    assert part.stat().st_mtime_ns == written
    assert recording.digest == long.digest


def test_a_killed_process_fails_its_job_and_the_next_one_runs(host, long):
    job_id = record_long(host, "killed")
    next_id = record_long(host, "killed")
    until(lambda: host.job(job_id).done_tokens > 80_000, "the first part")
    os.kill(pid(host), signal.SIGKILL)
    job = ended(host, job_id)
    assert job.state == "failed"
    assert job.message.startswith(
        "the model's process was ended by signal 9 (Killed), and the model was released. What is on disk is whole: ask "
        "the same again, and it resumes where it stopped. If memory was short, free some or take a smaller model;"
    )
    assert job_id in (host.data / "logs" / "host.log").read_text()
    assert made(host, next_id).digest == long.digest


@pytest.mark.rest
def test_killed_ten_times_and_begun_again_by_another_app_a_recording_ends_whole(data, one_thread, long):
    host = Host(data)
    job_id = record_long(host, "ten-times")
    for time in range(10):
        aim = (0, 0, 70_000, 70_000)[time % 4] if time < 8 else 140_000  # in the first part, the second, the third
        until(lambda host=host, job_id=job_id, aim=aim: host.job(job_id).done_tokens > aim, f"token {aim}")
        if time in (3, 7):  # the app goes, and its process with it
            host.stop()
            host = Host(data)
        else:
            os.kill(pid(host), signal.SIGKILL)
            assert ended(host, job_id).state == "failed"
        (left,) = [each for each in host.unfinished() if each.name == "ten-times"]
        assert left.title == f"{data / 'model'} · long" and left.of_parts > 1
        job_id = host.resume("ten-times")
    recording = made(host, job_id)
    recording.verify()
    assert recording.digest == long.digest
    assert "ten-times" not in {each.name for each in host.unfinished()}
    host.stop()


@pytest.mark.parametrize(
    ("ask", "phase", "message"),
    [
        (lambda host: host.record(model="tiny-moe", prompt="Never loaded.", name="never"), "loading",
         "cancelled while the model was being loaded, so its process was ended."),
        (lambda host: host.inspect("nobody/has-this-model"), "asking",
         "cancelled while the hub was being asked, so its process was ended."),
    ],
)  # fmt: skip
@pytest.mark.rest
def test_what_nothing_can_interrupt_is_said_at_once_and_cancelled_with_its_process(
    data, monkeypatch, ask, phase, message
):
    host = Host(data, cancel_grace_s=PATIENCE_S)
    events = worker.ModelProcess.events

    def stuck(self: worker.ModelProcess) -> Iterator[dict]:
        for event in events(self):
            if event.get("phase") == phase:
                os.kill(self._process.pid, signal.SIGSTOP)
            yield event

    monkeypatch.setattr(worker.ModelProcess, "events", stuck)
    job_id = ask(host)
    until(lambda: host.job(job_id).phase == phase, phase)
    process_id = pid(host)
    host.cancel(job_id)
    job = ended(host, job_id)
    assert (job.state, job.phase) == ("cancelled", "")
    assert job.message.startswith(message)
    assert gone(process_id) and host._worker.alive
    assert "never" not in {each.name for each in host.unfinished()}
    host.stop()


FAULT = """
import os
import psutil
found = psutil.virtual_memory
def virtual_memory():
    if os.path.exists(os.environ["PLANTED_FAULT"]):
        raise ZeroDivisionError("a fault of ours")
    return found()
psutil.virtual_memory = virtual_memory
"""


@pytest.mark.rest
def test_an_unexpected_exception_is_a_sentence_and_a_traceback_in_the_log(data, tmp_path, monkeypatch):
    """The fault is planted where the free memory is read, in the model's process alone, while a file is there."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    fault = tmp_path / "fault"
    fault.touch()
    monkeypatch.setenv("PLANTED_FAULT", str(fault))
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", root)]))
    host = Host(data)
    try:
        job_id = host.record(model=str(data / "model"), corpus=str(data / "small.jsonl"), name="odd")
        job = ended(host, job_id)
        assert job.state == "failed"
        assert job.message.startswith("an unexpected ZeroDivisionError came up, and the model was released.")
        assert job.message.endswith(f"the details are in the data folder's logs/host.log under {job_id}.")
        assert "Traceback" not in job.message
        log = (data / "logs" / "host.log").read_text()
        assert "Traceback (most recent call last)" in log.partition(f"job {job_id}: an unexpected ")[2]
        assert host.loaded is None
        fault.unlink()
        assert ended(host, host.inspect("tiny-moe")).state == "done"
    finally:
        host.stop()


@pytest.mark.rest
def test_a_second_host_on_the_same_folder_waits_its_turn(host, data, long):
    other = Host(data)
    try:
        made(other, other.record(model=str(data / "model"), corpus=str(data / "small.jsonl"), name="mine"))
        job_id = record_long(host, "both")
        until(lambda: host.job(job_id).done_tokens > 0, "the first batch")
        writing = psutil.Process(pid(host))
        writing.suspend()  # so that it holds the folder for as long as this needs
        refused = ended(other, record_long(other, "both"))
        writing.resume()
        assert refused.state == "failed"
        assert "both is being written by another process; wait for it" in refused.message
        assert made(host, job_id).digest == made(other, record_long(other, "both")).digest == long.digest
    finally:
        other.stop()


def test_a_process_that_does_not_stop_is_ended_after_the_grace(tmp_path, one_thread):
    host = Host(tmp_path, cancel_grace_s=0.3)
    job_id = host.inspect("tiny-moe")
    until(lambda: host.job(job_id).state == "running", "the job")
    until(lambda: host._worker is not None, "its process")
    process_id = pid(host)
    os.kill(process_id, signal.SIGSTOP)
    host.cancel(job_id)
    job = ended(host, job_id)
    assert job.state == "cancelled"
    assert job.message.startswith("cancelled: the model did not stop within 0.3 s, so its process was ended. What is")
    assert gone(process_id)
    assert host._worker.alive
    host.stop()


@pytest.mark.rest
def test_unload_releases_the_model_and_the_next_job_loads_it_again(host, data):
    model, small = str(data / "model"), str(data / "small.jsonl")
    made(host, host.record(model=model, corpus=small))
    assert host.loaded == model
    process_id = pid(host)
    host.unload()
    assert host.loaded is None
    assert gone(process_id)
    host.unload()
    made(host, host.record(model=model, corpus=small))
    assert host.loaded == model


def test_a_line_to_a_closed_process_is_nothing(tmp_path):
    process = worker.ModelProcess(tmp_path / "worker.log")
    assert process.alive
    assert process.close() == -signal.SIGKILL
    assert not process.alive
    process.send({"cancel": "x"})


APP = """
import sys
from pathlib import Path
from workbench.jobs.service import Host
host = Host(Path(sys.argv[1]))
job = host.inspect("tiny-moe")
while host._worker is None:
    pass
print(host._worker._process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["killed", "ended"])
def test_the_process_ends_with_the_app(tmp_path, way):
    with subprocess.Popen(
        [sys.executable, "-c", APP, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as app:
        process_id = int(app.stdout.readline())
        assert not gone(process_id)
        if way == "killed":
            app.kill()
        else:
            app.stdin.write("\n")
            app.stdin.flush()
        app.wait(timeout=PATIENCE_S)
        until(lambda: gone(process_id), "the end of the model's process")


# The queue, on a process that follows a script


@pytest.fixture
def scripted(tmp_path, monkeypatch) -> Iterator[Host]:
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    host = Host(tmp_path)
    yield host
    host.stop()


def test_jobs_run_one_at_a_time_in_the_order_of_asking(scripted):
    jobs = [scripted.inspect("tiny-moe") for _ in range(3)]
    running(scripted, jobs[0])
    assert [(job.id, job.state, job.place) for job in scripted.jobs()] == [
        (jobs[2], "queued", 2), (jobs[1], "queued", 1), (jobs[0], "running", 0),
    ]  # fmt: skip
    for job_id in jobs:
        running(scripted, job_id).let()
        assert ended(scripted, job_id).state == "done"
    assert [message["id"] for message in scripted._worker.sent] == jobs


def test_a_default_name_is_the_same_for_the_same_arguments_only(scripted):
    prompt = {"model": "tiny-moe", "prompt": "The river rose."}
    corpus = {"model": "org/Some-Model", "corpus": str(scripted.data / "my text.txt")}
    for text in ("first", "second"):
        (scripted.data / "my text.txt").write_text(text)
        scripted.record(**corpus)
    for changed in (
        {}, {"prompt": "The river rose"}, {"model": "tiny-moe@step-0"}, {"fields": ("routing",)}, {"check": False},
        {"max_tokens": 9}, {"fields": ("logprob", "routing")}, {"name": "mine"},
        {"fields": ("routing", "weights"), "parent": "tiny-dense@parent"}, {"fields": ("routing", "weights")},
    ):  # fmt: skip
        scripted.record(**prompt | changed)
    for job in reversed(scripted.jobs()):
        running(scripted, job.id).let()
        ended(scripted, job.id)
    names = [Path(message["out"]).name for message in scripted._worker.sent]
    assert len(set(names)) == len(names) - 1
    assert names[2] == names[8]
    assert names[9] == "mine"
    assert re.fullmatch(r"Some-Model-my-text-[0-9a-f]{12}", names[0])
    assert re.fullmatch(r"tiny-moe-prompt-[0-9a-f]{12}", names[2])
    assert scripted.jobs()[-1].title == "org/Some-Model · my text"
    assert scripted.jobs()[-3].title == "tiny-moe · “The river rose.”"


def test_of_ended_jobs_the_last_two_hundred_are_kept(scripted):
    first = scripted.inspect("tiny-moe")
    running(scripted, first)
    others = [scripted.inspect("tiny-moe") for _ in range(205)]
    for job_id in others:
        scripted.cancel(job_id)
    assert [job.id for job in scripted.jobs()] == [*reversed(others[5:]), first]


def test_memory_that_ran_out_is_said_and_the_process_replaced(scripted, monkeypatch):
    crash = {"event": "crashed", "error": "OutOfMemoryError", "out_of_memory": True, "traceback": "Traceback of torch"}
    monkeypatch.setattr(ScriptedProcess, "events_of_all", ({"event": "loaded", "model": "tiny-moe"}, crash))
    job_id = scripted.inspect("tiny-moe")
    process = running(scripted, job_id)
    process.let()
    job = ended(scripted, job_id)
    assert job.state == "failed"
    assert job.message.startswith("memory ran out, and the model was released. What is on disk is whole")
    assert "Traceback of torch" in (scripted.data / "logs" / "host.log").read_text()
    assert scripted.loaded is None
    assert scripted._worker is not process


def test_another_model_gets_another_process_that_learns_of_a_cancel_before_it(scripted):
    job_id = scripted.inspect("tiny-moe")
    first = running(scripted, job_id)
    first.events_of_all = ({"event": "replace"},)
    scripted.cancel(job_id)
    first.let()
    until(lambda: scripted._worker not in (None, first), "another process")
    second = running(scripted, job_id)
    until(lambda: len(second.sent) == 2, "the cancel")
    assert second.sent == first.sent
    assert second.sent[1] == {"cancel": job_id}
    second.let()
    ended(scripted, job_id)


def test_a_process_that_died_between_two_jobs_is_replaced(scripted, monkeypatch):
    loads = ({"event": "loaded", "model": "tiny-moe"}, *ScriptedProcess.events_of_all)
    monkeypatch.setattr(ScriptedProcess, "events_of_all", loads)
    job_id = scripted.inspect("tiny-moe")
    process = running(scripted, job_id)
    process.let()
    ended(scripted, job_id)
    assert scripted.loaded == "tiny-moe"
    process.alive = False
    assert scripted.loaded is None
    job_id = scripted.inspect("tiny-moe")
    running(scripted, job_id).let()
    assert ended(scripted, job_id).state == "done"
    assert scripted._worker is not process


def test_unload_waits_for_what_runs_and_waits_and_is_forgotten_when_the_model_is_wanted_again(scripted):
    first, second = scripted.inspect("tiny-moe"), scripted.inspect("tiny-moe")
    process = running(scripted, first)
    scripted.unload()
    process.let()
    running(scripted, second).let()
    ended(scripted, second)
    until(lambda: scripted._worker is None, "the unloading")
    third = scripted.inspect("tiny-moe")
    process = running(scripted, third)
    scripted.unload()
    fourth = scripted.inspect("tiny-moe")
    process.let()
    process.let()
    ended(scripted, fourth)
    assert scripted._worker is process


def test_a_stopped_host_ends_its_jobs_and_takes_no_more(scripted):
    first, second = scripted.inspect("tiny-moe"), scripted.inspect("tiny-moe")
    running(scripted, first)
    scripted.stop()
    assert [job.state for job in scripted.jobs()] == ["cancelled", "cancelled"]
    assert scripted.job(first).message.startswith("stopped with the app. What is on disk is whole")
    assert scripted.job(second).message == "the app was stopped before it began; nothing was written. Ask again."
    with pytest.raises(HostError, match="the model host was stopped and takes no more jobs; start the app again"):
        scripted.inspect("tiny-moe")


def test_a_machine_that_can_start_no_process_fails_the_job_and_not_the_queue(scripted, monkeypatch):
    def full(log: Path, *, hub: bool) -> ScriptedProcess:
        raise OSError("no more processes")

    monkeypatch.setattr(queue, "ModelProcess", full)
    assert ended(scripted, scripted.inspect("tiny-moe")).message.startswith("an unexpected OSError came up")
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    job_id = scripted.inspect("tiny-moe")
    running(scripted, job_id).let()
    assert ended(scripted, job_id).state == "done"


def test_a_log_that_has_grown_large_is_put_aside(scripted, monkeypatch):
    monkeypatch.setattr(storage, "_LOG_BYTES", 10)
    log = scripted._log_file("host.log")
    log.write_text("longer than ten bytes")
    assert scripted._log_file("host.log").read_text() == ""
    assert log.with_name("host.log.1").read_text() == "longer than ten bytes"


# The owner of the model, in this process


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def owner(events) -> worker.Owner:
    return worker.Owner(lambda event, **facts: events.append({"event": event, **facts}), lambda job_id: False)


def asked(model: str) -> dict:
    return {"id": "j", "kind": "inspect", "model": model, "check": True}


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_want_of_memory_is_told_from_other_crashes(owner, events, monkeypatch, error):
    def load(name: str) -> None:
        raise error

    monkeypatch.setattr(loading, "load", load)
    owner.answer(asked("tiny-moe"))
    assert events[-1].items() >= {"event": "crashed", "error": type(error).__name__, "out_of_memory": True}.items()
    monkeypatch.setattr(loading, "load", lambda name: 1 / 0)
    owner.answer(asked("tiny-moe"))
    assert events[-1].items() >= {"event": "crashed", "error": "ZeroDivisionError", "out_of_memory": False}.items()


def test_one_model_is_loaded_once_and_another_wants_another_process(owner, events):
    for model in ("tiny-moe", "tiny-moe", "tiny-dense@parent", "tiny-moe"):
        owner.answer(asked(model))
    told = [event.get("model") or event["event"] for event in events if event["event"] != "phase"]
    assert told == ["tiny-moe", "ended", "ended", "replace", "ended"]


def test_a_folder_that_was_saved_again_wants_another_process(owner, events, tmp_path):
    tiny.moe().module.save_pretrained(tmp_path)
    owner.answer(asked(str(tmp_path)))
    tiny.moe(seed=1).module.save_pretrained(tmp_path)
    owner.answer(asked(str(tmp_path)))
    assert [e["event"] for e in events if e["event"] != "phase"] == ["loaded", "ended", "replace"]


def test_what_the_model_in_memory_holds_counts_as_free(owner, events, monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 10**9)
    owner.answer({**asked("tiny-moe"), "check": False})
    owner.answer(asked("tiny-moe"))
    owner.answer({**asked("tiny-moe"), "check": False})
    free = [event["result"]["forecast"]["free_bytes"] for event in events if event["event"] == "ended"]
    weights = loading.memory_forecast("tiny-moe").weights_bytes
    assert free == [10**9, 10**9, 10**9 + weights]


def test_a_job_cancelled_while_its_model_is_loaded_writes_nothing(events, tmp_path):
    owner = worker.Owner(lambda event, **facts: events.append({"event": event, **facts}), lambda job_id: True)
    out = tmp_path / "r"
    owner.answer({
        "id": "j", "kind": "record", "model": "tiny-moe", "prompt": "a", "corpus": None, "out": str(out),
        "fields": ["routing"], "max_tokens": None, "check": True,
    })  # fmt: skip
    told = "cancelled before the first token; nothing was written. Ask again to start it."
    assert events[-1] == {"event": "ended", "state": "cancelled", "message": told}
    assert not out.exists()


def test_a_wrong_name_does_not_cost_the_model_in_memory(owner, events):
    owner.answer(asked("tiny-moe"))
    module = owner._model.module
    owner.answer(asked("tiny-mo"))
    assert "unknown model 'tiny-mo'" in events[-1]["message"]
    assert owner._model.module is module
