"""What may be asked of the model host: places of models and corpora, uploads, and how much by each visitor."""

import json
from pathlib import Path

import pytest

from tests.hosting import ScriptedProcess, ended, running
from workbench.errors import CorpusError, HostError
from workbench.jobs import limits, queue
from workbench.jobs.limits import Allowance, Limits, Rules, checked_upload, is_hub_id, rules_from_json, rules_to_json
from workbench.jobs.service import Host
from workbench.paths import BUNDLED

LIMITS = Limits(jobs=2, jobs_per_minute=4, upload_bytes_per_hour=100, tokens_per_job=50)


@pytest.fixture
def places(tmp_path):
    """A data folder, a root beside it with a model and a corpus, and a model outside both."""
    for folder in ("data/mine", "allowed/given", "outside/secret"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "allowed" / "given.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "outside" / "secret.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    host = Host(tmp_path, rules=Rules(limits=LIMITS))
    yield host
    host.stop()


def test_a_local_model_lies_below_a_root(places, monkeypatch):
    rules, data = Rules(models=(places / "allowed",)), places / "data"
    for name, found in (
        ("data/mine", "data/mine"),
        ("allowed/given", "allowed/given"),
        ("allowed/../allowed/given", "allowed/given"),
    ):
        assert rules.checked_model(str(places / name), data) == str(places / found)
    assert rules.checked_model("given", data) == str(places / "allowed" / "given")  # as it is called below its root
    monkeypatch.setenv("HOME", str(places))
    assert rules.checked_model("~/allowed/given", data) == str(places / "allowed" / "given")


@pytest.mark.parametrize(
    "way", ["there", "missing", "dots", "link", "linked file", "relative", "~/outside/secret", "../x"]
)
def test_of_a_model_elsewhere_nothing_is_told(places, monkeypatch, way):
    rules, data = Rules(models=(places / "allowed",)), places / "data"
    outside = places / "outside" / "secret"
    (places / "allowed" / "link").symlink_to(outside)
    (places / "allowed" / "given" / "model.safetensors").symlink_to(outside / "config.json")
    monkeypatch.chdir(places / "outside")
    monkeypatch.setenv("HOME", str(places))
    name = {
        "there": str(outside), "missing": str(outside) + "-not", "dots": f"{places}/allowed/../outside/secret",
        "link": f"{places}/allowed/link", "linked file": f"{places}/allowed/given", "relative": "secret",
    }.get(way, way)  # fmt: skip
    with pytest.raises(
        HostError, match=r"is no model folder below .*/data, .*/allowed, links followed\. Put it there, or"
    ):
        rules.checked_model(name, data)


@pytest.mark.parametrize("name", ["tiny-moe", "tiny-moe@step-0", "tiny-moe@nonsense", "qwen2-57b-a14b", "tiny-mo",
                                  "Qwen/Qwen1.5-MoE-A2.7B", "org/name@refs/pr/1"])  # fmt: skip
def test_names_that_are_no_places_stay_as_they_are(tmp_path, name):
    assert Rules().checked_model(name, tmp_path) == name


@pytest.mark.parametrize("name", ["org/na me", "org/-name", "-org/name", "o<b>/n", "org/", "org/name@a b", "оrg/name"])
def test_what_is_no_hub_id_is_refused(tmp_path, name):
    with pytest.raises(HostError, match="is no hub id; OWNER/NAME was expected, or OWNER/NAME@REVISION"):
        Rules().checked_model(name, tmp_path)


def test_a_corpus_lies_below_a_root(places):
    data, given = places / "data", places / "allowed" / "given.jsonl"
    assert Rules(corpora=(places / "allowed",)).checked_corpus(str(given), data) == given
    for rules, file in ((Rules(), given), (Rules(corpora=(places / "allowed",)), places / "outside" / "secret.jsonl")):
        with pytest.raises(CorpusError, match="nor a file below .*/data.*workbench app --corpora DIR"):
            rules.checked_corpus(str(file), data)


def test_what_lies_below_the_roots_can_be_chosen(places):
    rules = Rules(models=(places / "allowed",), corpora=(places / "allowed",))
    assert rules.local_models(places / "data") == [str(places / "allowed" / "given")]
    assert rules.local_corpora(places / "data") == [str(places / "allowed" / "given.jsonl")]
    assert Rules().local_models(places / "data") == Rules().local_corpora(places / "data") == []
    assert Rules().local_models(BUNDLED) == []  # the bundled ones have names


def test_without_the_hub_the_process_is_told_to_stay_offline(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(queue, "ModelProcess", lambda log, hub: asked.append(hub) or ScriptedProcess(log, hub=hub))
    for hub in (True, False):
        host = Host(tmp_path, rules=Rules(hub=hub))
        host._ready_worker()
        host.stop()
    assert asked == [True, False]


def test_rules_are_handed_on_whole():
    rules = Rules((Path("/m"),), (Path("/c"), Path("/d")), hub=False, limits=LIMITS)
    assert rules_from_json(rules_to_json(rules)) == rules
    assert rules_from_json(rules_to_json(Rules())) == Rules()


def test_a_limit_below_one_is_refused():
    with pytest.raises(HostError, match="jobs_per_minute is 0; at least 1 was expected"):
        Limits(jobs_per_minute=0)


# How much by each


def test_an_allowance_is_of_each_visitor_and_comes_back_with_time():
    now = [0.0]
    allowance = Allowance(10, 60, clock=lambda: now[0])
    assert [allowance.take("a", 6), allowance.take("b", 10)] == [0, 0]
    now[0] = 20
    assert allowance.take("a", 4) == 0
    assert allowance.take("a", 1) == 40  # the six come back first
    assert allowance.take("a", 7) == 60  # then the four
    assert allowance.take("a", 11) == float("inf")
    now[0] = 60
    assert allowance.take("a", 6) == 0
    now[0] = 1000
    assert allowance.take("c") == 0
    assert set(allowance._spent) == {"c"}, "of those who left nothing is kept"


def test_a_visitor_has_so_many_jobs_at_once_and_others_have_theirs(shared):
    mine = [shared.record(model="tiny-moe", prompt=f"{n}", owner="ada") for n in range(2)]
    with pytest.raises(HostError, match="2 jobs of yours are waiting or running; wait for one to end, or cancel one"):
        shared.inspect("tiny-moe", owner="ada")
    shared.inspect("tiny-moe", owner="bob")
    for _ in range(5):
        shared.inspect("tiny-moe")  # the app's own
    running(shared, mine[0]).let()
    ended(shared, mine[0])
    assert shared.inspect("tiny-moe", owner="ada")


def test_a_visitor_asks_so_often_a_minute(shared):
    for n in range(4):
        shared.cancel(shared.record(model="tiny-moe", prompt=f"{n}", owner="ada"), owner="ada")
    with pytest.raises(
        HostError, match=r"4 jobs were asked for by you within a minute, as many as may be; ask again in \d+ s"
    ):
        shared.record(model="tiny-moe", prompt="one more", owner="ada")
    assert shared.record(model="tiny-moe", prompt="one more", owner="bob")


def test_a_visitor_cancels_their_own_jobs_alone(shared):
    jobs = [shared.record(model="tiny-moe", prompt="the same", owner="ada"), shared.inspect("tiny-moe", owner="ada")]
    running(shared, jobs[0])
    for job in jobs:
        with pytest.raises(HostError, match="was asked for by another visitor, who alone can cancel it"):
            shared.cancel(job, owner="bob")
    assert [shared.job(job).state for job in jobs] == ["running", "queued"]
    shared.cancel(jobs[1], owner="ada")
    assert shared.job(jobs[1]).state == "cancelled"


def test_a_job_of_a_visitor_has_so_many_tokens(shared):
    with pytest.raises(HostError, match="max_tokens is 51; this app records at most 50 tokens at a time"):
        shared.record(model="tiny-moe", corpus="demo", max_tokens=51, owner="ada")
    job = shared.record(model="tiny-moe", corpus="demo", owner="ada")
    assert running(shared, job).sent[-1]["max_tokens"] == 50
    assert Rules(limits=LIMITS).checked_tokens(None, "") is None  # the app's own first recording


def test_a_visitor_uploads_so_much_an_hour(shared):
    row = b'{"text": "%s"}\n'
    first = shared.keep_upload("a.jsonl", row % (b"a" * 40), owner="ada")
    assert shared.keep_upload("a.jsonl", row % (b"a" * 40), owner="ada") == first  # it is there already
    with pytest.raises(
        HostError, match=r"b.jsonl was not kept: 100 bytes an hour may be uploaded; ask again in 3,600 s"
    ):
        shared.keep_upload("b.jsonl", row % (b"b" * 40), owner="ada")
    with pytest.raises(HostError, match="100 bytes an hour may be uploaded; a smaller one may be"):
        shared.keep_upload("b.jsonl", row % (b"b" * 400), owner="bob")
    assert shared.keep_upload("b.jsonl", row % (b"b" * 40), owner="bob")


def test_nobody_deletes_in_a_shared_app(shared):
    with pytest.raises(
        HostError, match="'r' was not deleted: in a shared app recordings are everybody's; ask its operator"
    ):
        shared.delete("r")


def test_a_queue_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    monkeypatch.setattr(queue, "LONGEST_QUEUE", 2)
    host = Host(tmp_path)
    running(host, host.inspect("tiny-moe"))
    for _ in range(2):
        host.inspect("tiny-moe")
    with pytest.raises(HostError, match="2 jobs are waiting already; ask again when some of them have ended"):
        host.inspect("tiny-moe")
    host.stop()


# Uploads


def line(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "up.jsonl: no documents; at least one was expected"),
        (b"\xfe{", "up.jsonl, line 1: byte 0 is not UTF-8"),
        (b"\xff\xfe{", "up.jsonl is in UTF-16, not UTF-8"),
        (b'{"text": "fine"}\n{"text": \n', "up.jsonl, line 2: not JSON"),
        (b"[" * 100_000, "up.jsonl, line 1: not JSON that can be read .RecursionError: nested too deeply"),
        (b'{"token_ids": [' + b"9" * 5000 + b"]}", "up.jsonl, line 1: not JSON that can be read .ValueError"),
        (b'{"text": "a", "id": "\\ud800"}', "up.jsonl, line 1: 'id' holds half a character"),
        (b'{"text": "\\udfff"}', "up.jsonl, line 1: 'text' holds half a character .a lone surrogate.; delete it"),
        (line(text="a", domain="d" * 301), "up.jsonl, document 1: 'domain' has 301 characters; at most 300"),
        (line(text="a", source="s" * 301), "up.jsonl, document 1: 'source' has 301 characters"),
        (line(text="a", id=["x" * 1000]), r"line 1: 'id' is \['x{90,99}…, expected a string"),
        (line(text="a", id="x" * 1000) * 2, "the id 'x{90,99}… stands at line 1 already"),
        (b"".join(line(text="a", domain=str(n)) for n in range(201)), "up.jsonl has 201 domains; an upload may"),
    ],
    ids=range(13),
)  # fmt: skip
def test_an_upload_that_is_no_corpus_leaves_nothing(tmp_path, content, told):
    with pytest.raises(CorpusError, match=told):
        Host(tmp_path).keep_upload("up.jsonl", content)
    assert list(tmp_path.iterdir()) == []


def test_an_upload_is_limited(monkeypatch):
    monkeypatch.setattr(limits, "LARGEST_UPLOAD", 30)
    monkeypatch.setattr(limits, "_UPLOAD_DOCUMENTS", 1)
    with pytest.raises(CorpusError, match="up has 44 bytes; an upload may have 30. Put the file into a folder that"):
        checked_upload("up", line(text="a" * 31))
    with pytest.raises(CorpusError, match="up has 2 lines; an upload may have 1"):
        checked_upload("up", line(text="a") * 2)


def test_uploads_are_kept_up_to_a_bound(tmp_path, monkeypatch):
    from workbench.jobs import service

    monkeypatch.setattr(service, "_UPLOAD_BYTES", 40)
    kept = [Path(Host(tmp_path).keep_upload("a.jsonl", line(text=f"text {n}"))) for n in range(4)]
    assert [file.is_file() for file in kept] == [False, False, True, True]


@pytest.mark.parametrize("name", ["Qwen/Qwen1.5-MoE-A2.7B", "a/b@main", "a/b@refs/pr/1"])
def test_a_hub_id_is_one_that_the_hub_may_be_asked_for(name):
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["tiny-moe", "tiny-moe@step-0", "qwen2-57b-a14b", "/tmp", "a/b/c", "../a", ""])
def test_what_is_here_is_no_hub_id(name):
    assert not is_hub_id(name)


def test_a_folder_that_is_named_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("a/b")
