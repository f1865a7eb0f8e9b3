"""Served models, against a server of our own that does as it is told, and once against the real one."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from analyses.measured import served as analysis
from tests.efficiency.conftest import BOTH
from tests.efficiency.endpoint import Script, serving
from tests.test_cli import run as command
from workbench.efficiency.measurements.measurement import Measurement
from workbench.efficiency.serving import guidellm, local_servers
from workbench.efficiency.serving.benchmark import Served, serve_bench
from workbench.efficiency.serving.endpoints import Endpoint, reach
from workbench.efficiency.serving.guidellm import OUTCOMES, Load, send
from workbench.efficiency.serving.prompts import Texts, counter
from workbench.errors import MeasurementError
from workbench.models.bundled import MODELS

TOKENIZER = str(MODELS / "tiny-moe")
NOBODY = "http://127.0.0.1:9"


def endpoint(url: str, label: str = "a", fixed_by: str = "ignore_eos") -> Endpoint:
    return Endpoint(label, url, "fake-model", TOKENIZER, fixed_by)


# --- what is kept of a measurement


def test_every_round_holds_both_models_once_in_turning_order(served):
    table = served.measurement.table("requests")
    for _, at_point in table.groupby(["prompts", "load", "level"]):
        first, second = (
            at_point[at_point["round"] == number].groupby("order")["model"].unique().tolist() for number in (0, 1)
        )
        assert [list(each) for each in first] == [["a"], ["b"]] and [list(each) for each in second] == [["b"], ["a"]]
    assert set(table.groupby(["model", "prompts", "load", "round"]).size()) == {BOTH.requests}
    assert set(table["outcome"]) == {"complete"}


def test_every_chunk_has_its_time_and_no_time_is_before_the_server_wrote_it(served):
    table = served.measurement.table("requests")
    slow = {"a": served.scripts["a"], "b": served.scripts["b"]}
    for row in table.itertuples():
        script, text_s = slow[row.model], np.asarray(row.chunk_s)[np.asarray(row.chunk_chars) > 0]
        assert len(text_s) == row.output_tokens and list(row.chunk_chars) == [2] * row.output_tokens + [0]
        assert text_s[0] >= script.first_s and (np.diff(row.chunk_s) >= 0).all()
        assert row.end_s - row.sent_s >= row.chunk_s[-1] and row.due_s <= row.sent_s
    assert (table["written_tokens"] == 4).all() and (table["read_tokens"] > 0).all()


def test_both_models_are_asked_the_same_and_no_unique_prompt_twice(served):
    a, b = (served.scripts[name].bodies for name in "ab")
    assert sorted(body["prompt"] for body in a) == sorted(body["prompt"] for body in b)
    kept = [body["prompt"] for body in a[2:]]  # the first two looked at the server
    identical = max(set(kept), key=kept.count)
    unique = [prompt for prompt in kept if prompt != identical]
    assert len(unique) == len(set(unique)) == BOTH.requests * BOTH.rounds * len(BOTH.loads)
    count = counter(TOKENIZER)
    assert {count(prompt) for prompt in kept} == set(BOTH.prompt_lengths)
    told = a[-1]
    assert (told["max_tokens"], told["ignore_eos"], told["temperature"]) == (BOTH.output_lengths[0], True, 0)


def test_the_manifest_places_it_and_it_is_read_again(served):
    again = Measurement.open(served.measurement.path)
    assert again.verify() == 1 and list(again.models) == ["a", "b"]
    facts = again.models["a"]
    assert facts["fixed_by"] == "ignore_eos" and facts["says"] == {"version": "fake 1.0"}
    assert facts["served_as"] == "fake-model" and again.manifest["versions"]["guidellm"]
    assert again.manifest["left_out"] == [] and again.manifest["settings"]["rounds"] == BOTH.rounds


def test_an_endpoint_that_fails_on_the_way_is_counted_and_left_out_by_name(tmp_path):
    asked = replace(BOTH, prompts=("unique",), rates=(), rounds=3)
    with serving(Script()) as good, serving(Script(status=503, good=6)) as bad:  # two to prime, four of a round
        found = serve_bench(endpoint(good), endpoint(bad, "b"), tmp_path / "m", asked=asked)
    table = found.table("requests").set_index("model")["outcome"]
    assert table["a"].tolist() == ["complete"] * 8
    assert table["b"].tolist() == ["complete"] * 4 + ["HTTP 5xx"] * 4
    assert found.manifest["left_out"] == [
        "2 at a time, 8 + 4 tokens, unique prompts, after round 2: no request of b was answered whole"
    ]
    result = analysis.run(found)
    assert "Left out: 1 run of b (requests: 4 HTTP 5xx). Given up: 2 at a time" in result.left_out
    assert set(result.ratios["rounds"]) == {1}


def test_nothing_is_written_where_nobody_answered(tmp_path):
    out = tmp_path / "m"
    with pytest.raises(
        MeasurementError, match="none of 8 requests was answered whole .8 no connection; the first: Conn"
    ):
        serve_bench(endpoint(NOBODY), endpoint(NOBODY, "b"), out, asked=replace(BOTH, prompts=("unique",), rates=()))
    assert not out.exists()


# --- what becomes of requests


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (Script(), "complete"),
        (Script(first_s=0, gap_s=0), "complete"),
        (Script(per_chunk=2), "complete"),
        (Script(short_by=2), "short"),
        (Script(short_by=-1), "long"),
        (Script(silent=True), "no stream"),
        (Script(per_chunk=9), "no stream"),
        (Script(counts=False), "not counted"),
        (Script(status=500), "HTTP 5xx"),
        (Script(refuses=("ignore_eos",)), "HTTP 4xx"),
        (Script(breaks=True), "error in the stream"),
        (Script(first_s=30), "timed out"),
    ],
)
def test_what_became_of_each_request(script, outcome):
    with serving(script) as url:
        rows = send(endpoint(url), ["One two"] * 3, Load("concurrency", 2), output_tokens=4, timeout_s=0.5)
    assert [row["outcome"] for row in rows] == [outcome] * 3 and outcome in OUTCOMES
    assert all(bool(row["error"]) == outcome.startswith(("HTTP", "error", "timed")) for row in rows)


def test_nobody_there_is_an_outcome_too():
    rows = send(endpoint(NOBODY), ["One two"] * 3, Load("rate", 50), output_tokens=4)
    assert [row["outcome"] for row in rows] == ["no connection"] * 3


def test_a_run_ends_at_its_limit_and_what_it_did_not_send_is_counted():
    with serving(Script(first_s=0.6)) as url:
        rows = send(endpoint(url), ["One two"] * 8, Load("concurrency", 1), output_tokens=2, limit_s=1.5)
    outcomes = [row["outcome"] for row in rows]
    assert len(rows) == 8 and set(outcomes) <= {"complete", "not answered in time"}
    assert outcomes.count("not answered in time") >= 5


def test_a_load_generator_that_breaks_is_said_in_every_row(monkeypatch):
    async def broken(*_):
        raise RuntimeError("its process died")
        yield

    monkeypatch.setattr("guidellm.scheduler.Scheduler.run", broken)
    rows = send(endpoint(NOBODY), ["One"] * 2, Load("concurrency", 1), output_tokens=2)
    assert [row["error"] for row in rows] == ["load generator: its process died"] * 2
    assert all(math.isnan(row["sent_s"]) for row in rows)


def test_other_errors_have_a_name():
    assert guidellm._failure("KeyError('x')") == "other error"
    assert guidellm._failure("HTTPStatusError(\"Client error '404 Not Found' for url 'http://x/500'\")") == "HTTP 4xx"


def test_a_closed_loop_never_has_more_in_flight_than_asked():
    script = Script(first_s=0.05)
    with serving(script) as url:
        rows = send(endpoint(url), ["One two"] * 9, Load("concurrency", 3), output_tokens=2)
    assert script.most_in_flight == 3 and len(rows) == 9


def test_arrivals_are_the_same_for_the_same_seed():
    with serving(Script()) as url:
        gaps = []
        for seed in (1, 1, 2):
            rows = send(endpoint(url), ["One two"] * 5, Load("rate", 40), output_tokens=2, seed=seed)
            gaps.append(np.diff(sorted(row["due_s"] for row in rows)))
    np.testing.assert_allclose(gaps[0], gaps[1], atol=1e-4)
    assert not np.allclose(gaps[0], gaps[2], atol=1e-4)


# --- what a server has to be told


def test_how_lengths_are_fixed_is_found_out():
    for script, fixed_by in (
        (Script(), "ignore_eos"),
        (Script(refuses=("ignore_eos",)), "generation_config"),
        (Script(refuses=("ignore_eos", "generation_config")), "nothing"),
    ):
        with serving(script) as url:
            found = reach(f"{url}/v1/", tokenizer=TOKENIZER)
        assert (found.fixed_by, found.model, found.label, found.url) == (fixed_by, "fake-model", "fake-model", url)
    assert endpoint(url, fixed_by="nothing").body == {"temperature": 0}


@pytest.mark.parametrize(
    ("script", "model", "message"),
    [
        (Script(takes_models=False), "", "names no model .HTTP 500.; say which one is measured: --moe-model NAME"),
        (Script(status=500), "", "answers a completion of two tokens by 'fake-model' with HTTP 500: .*told to"),
        (Script(status=401), "x", "by 'x' with HTTP 401: .* Look at the server's log; --moe-model names another model"),
        (
            Script(first_s=3),
            "x",
            "cannot be reached .no answer in 0.2 s.; nothing was measured.* more time with --timeout",
        ),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused_before_anything_is(script, model, message):
    with serving(script) as url, pytest.raises(MeasurementError, match=message):
        reach(url, model=model, timeout_s=0.2)


def test_a_wrong_address_is_one_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(MeasurementError, match="127.0.0.1:9/v1/completions cannot be reached .*refused"):
        reach(NOBODY, model="x")
    with pytest.raises(MeasurementError, match="--dense is 'localhost:1'; a URL was expected, e.g. http://127"):
        reach("localhost:1", option="--dense")
    out = tmp_path / "m"
    status, _, said = command(monkeypatch, capsys, "serve-bench", "--moe", NOBODY, "--dense", NOBODY, "--out", out)
    assert status == 1 and "cannot be reached" in said and not out.exists()
    status, _, said = command(monkeypatch, capsys, "serve-bench", "--moe", NOBODY, "--out", out)
    assert status == 1 and "give --moe URL and --dense URL, or --launch to start two here" in said


def test_without_the_load_generator_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "guidellm", None)
    status, _, said = command(monkeypatch, capsys, "serve-bench", "--launch", "--out", tmp_path / "m")
    assert status == 1 and "pip install 'moe-workbench[serve]'" in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ()}, "prompts is empty; one or more was expected"),
        ({"prompts": ("odd",)}, "prompts is 'odd'; identical or unique was expected"),
        ({"concurrencies": ()}, "neither a concurrency nor a rate was given"),
        ({"concurrencies": (0,)}, "concurrency is 0; a number above zero was expected"),
        ({"rates": (-1.0,)}, "rate is -1; a number above zero was expected"),
        ({"rounds": 0}, "rounds is 0; a number above zero was expected"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changed, message):
    with pytest.raises(MeasurementError, match=message):
        Served(**changed)


def test_a_level_is_held_by_twice_as_many_requests():
    assert Served(requests=4).requests_of(Load("concurrency", 8)) == 16
    assert Served(requests=40).requests_of(Load("concurrency", 8)) == 40
    assert Served(requests=4).requests_of(Load("rate", 8)) == 4


def test_two_of_one_name_are_refused(tmp_path):
    with pytest.raises(MeasurementError, match="both endpoints serve 'a'; give them names of their own: --moe-name"):
        serve_bench(endpoint(NOBODY), endpoint(NOBODY), tmp_path / "m")


# --- prompts


def test_prompts_have_the_asked_length_for_each_reader_and_no_place_is_used_twice():
    texts = Texts("demo", {"a": counter(TOKENIZER), "b": len})
    taken = [texts.take(12) for _ in range(30)]
    count = counter(TOKENIZER)
    assert {count(each["a"]) for each in taken} == {12} and {len(each["b"]) for each in taken} == {12}
    assert len({each["a"] for each in taken}) == 30
    assert all(each["a"].startswith(each["b"]) or each["b"].startswith(each["a"]) for each in taken)
    alike = Texts("demo", {"a": count, "b": counter(TOKENIZER)}, seed=1).take(12)
    assert alike["a"] == alike["b"] not in [each["a"] for each in taken]


def test_a_corpus_that_is_too_small_and_a_tokenizer_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "short.txt").write_text("one two three four five")
    texts = Texts(str(tmp_path / "short.txt"), {"a": lambda text: len(text.split())})
    with pytest.raises(MeasurementError, match="has no further place for a prompt of 5 tokens; name a larger one"):
        texts.take(5)  # no place but the first has five, and that one follows no space
    with pytest.raises(MeasurementError, match="no tokenizer that can be read here.*--dense-tokenizer NAME"):
        counter(str(tmp_path), "--dense")


# --- servers that are started here


def test_a_server_ends_with_who_started_it():
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.efficiency.serving.server_process", TOKENIZER], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=120) == 0


@pytest.mark.rest
def test_what_cannot_be_served_is_refused_and_what_a_server_said_is_told(tmp_path):
    with (
        pytest.raises(MeasurementError, match="--launch cannot serve 'nothing'.*tiny-dense, tiny-moe"),
        local_servers.launched(["nothing"]),
    ):
        pass
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(MeasurementError, match="transformers serve of .* ended with .*; the end of what it said: "),
        local_servers.launched([str(tmp_path)]),
    ):
        pass
    with (
        pytest.raises(MeasurementError, match="transformers serve of tiny-moe did not answer in 0 s"),
        local_servers.launched(["tiny-moe"], healthy_s=0.0),
    ):
        pass
    assert not _servers()


@pytest.mark.rest
def test_an_interrupt_ends_the_servers_and_leaves_nothing(tmp_path):
    out = tmp_path / "m"
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "serve-bench", "--launch", "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while len(_servers(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    servers = _servers(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0 and len(servers) == 2
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == [] and not out.exists()


def _servers(pid: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(pid or os.getpid()).children(recursive=True)
    return [each for each in children if "workbench.efficiency.serving.server_process" in " ".join(each.cmdline())]


@pytest.mark.rest
def test_the_whole_path_with_transformers_serve(tmp_path, monkeypatch, capsys):
    """The real server, both bundled models, one round."""
    out = tmp_path / "m"
    status, said, wrong = command(
        monkeypatch, capsys, "serve-bench", "--launch", "--out", out, "--prompts", "unique", "--concurrency", "2",
        "--rate", "", "--rounds", "1", "--requests", "4", "--prompt-length", "8", "--output-length", "4",
    )  # fmt: skip
    assert status == 0, wrong
    assert "tiny-moe: 4 complete" in said and "tiny-dense: 4 complete" in said
    found = Measurement.open(out)
    assert found.models["tiny-moe"]["fixed_by"] == "generation_config"  # ignore_eos is refused with 422
    assert found.manifest["launched"]["server"] == "transformers serve"
    table = found.table("requests")
    assert (table["read_tokens"] == 8).all() and (table["written_tokens"] == 4).all()
    assert set(analysis.tables(analysis.run(found))) == {"speeds", "ratios", "latency", "outcomes"}
    assert not _servers()
