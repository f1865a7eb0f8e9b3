"""Faults planted between the model and the file are caught by the rows that are read back, and right rows pass."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import tiny
from tests.tiers import often
from workbench.capture import routing, runner
from workbench.capture.batching import make_plan
from workbench.capture.generate import Generation
from workbench.capture.hooks import Tracer
from workbench.capture.proof.written_rows import AGAIN_FROM, sampled_parts
from workbench.capture.record import record
from workbench.capture.runner import RowRunner
from workbench.errors import Cancelled, CaptureError
from workbench.recordings.manifest import read_manifest
from workbench.recordings.recording import Recording
from workbench.recordings.writer import RecordingWriter

FIELDS = ("routing", "logprob", "logits", "experts")
SETTINGS = {"fields": FIELDS, "batch_tokens": 256, "shard_tokens": 512}


def proved(recording: Recording) -> dict:
    return recording.manifest["written_rows"]


def test_every_column_of_sampled_rows_is_compared(moe, tmp_path):
    made = record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)
    found = proved(made)
    assert found["parts"] == list(range(len(made.manifest["parts"]))) and len(found["parts"]) > 2
    assert found["parts_not_compared"] == [] and found["columns_not_compared"] == []
    assert found["rows"] > 50 and found["documents"] >= len(found["parts"])
    exact = ("ids", "weights", "counts", "token", "predicted", "tokens", "logits")
    assert {name: found["largest_difference"][name] for name in exact} == dict.fromkeys(exact, 0.0)
    assert 0 < found["largest_difference"]["entropy"] < 2e-3


def test_text_that_the_model_writes_is_compared(moe, tmp_path):
    corpus = tiny.corpus(n_documents=12, shortest=5, longest=9)
    made = record(moe, corpus, tmp_path / "r", fields=FIELDS, generation=Generation(6, temperature=1.0))
    assert proved(made)["columns_not_compared"] == []
    assert proved(made)["rows"] > 6 * 3  # of three batches one document each, as it goes on


def test_a_dense_model_is_compared(dense, tmp_path):
    found = proved(record(dense, tiny.corpus(), tmp_path / "r"))
    assert set(found["largest_difference"]) == {"token", "tokens", "logprob", "predicted", "loss"}


def columns_changed(monkeypatch, change, *, generated=False):
    """The recorder's columns of every batch are changed behind the model, before they are written."""
    run = RowRunner.run

    def changed(self, rows_, witness=None):
        tokens, documents = run(self, rows_, witness)
        change(tokens, documents)
        return tokens, documents

    monkeypatch.setattr(RowRunner, "run", changed)


ROLLED = ("ids", "weights", "entropy", "margin", "topk_mass", "logsumexp", "shared_gate", "logits", "contribution",
          "shared_share", "shared_projection", "shared_cosine")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    often(
        [*(f"layer02.{name}" for name in ROLLED), "logprob", "predicted", "token"],
        ["layer02.ids", "layer02.logits", "layer02.contribution", "logprob"],
    ),
)
def test_a_column_rolled_by_one_token_is_caught(moe, tmp_path, monkeypatch, name):
    columns_changed(monkeypatch, lambda tokens, _: tokens.__setitem__(name, np.roll(tokens[name], 1, axis=0)))
    with pytest.raises(
        CaptureError, match=rf"part \d+ holds in column {name}, position \d+ of document \d+: .* on disk"
    ):
        record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)


@pytest.mark.parametrize("name", often(["ids", "weights", "entropy", "margin", "shared_gate", "contribution"], ["ids"]))
def test_a_rolled_column_of_written_text_is_caught(moe, tmp_path, monkeypatch, name):
    def roll(tokens, _):
        decoded, column = tokens["phase"] == 1, tokens[f"layer00.{name}"]
        column[decoded] = np.roll(column[decoded], 1, axis=0)

    columns_changed(monkeypatch, roll)
    corpus = tiny.corpus(n_documents=12, shortest=5, longest=9)
    with pytest.raises(CaptureError, match=rf"holds in column layer00.{name}, position"):
        record(moe, corpus, tmp_path / "r", fields=FIELDS, generation=Generation(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.update({"layer00.ids": (t["layer00.ids"] + 1) % 8}), "column layer00.ids"),
        (lambda t, d: t.update({"layer00.ids": t["layer00.ids"][:, ::-1]}), "column layer00.ids"),
        (lambda t, d: t.update({"layer00.entropy": t["layer02.entropy"]}), "column layer00.entropy"),
        (lambda t, d: t.update({"layer00.weights": t["layer00.weights"] * np.float16(1.01)}), "column layer00.weights"),
        (lambda t, d: t.update({"position": np.roll(t["position"], 1)}), "other documents or positions"),
        (lambda t, d: t.update({"document": np.roll(t["document"], 1)}), "other documents or positions"),
        (lambda t, d: d.update({"layer00.counts": d["layer02.counts"]}), "column layer00.counts"),
        (lambda t, d: d.update({"layer00.score_sum": d["layer00.score_sum"] * 1.001}), "column layer00.score_sum"),
        (lambda t, d: d.update({"loss": d["loss"][::-1]}), "column loss"),
        (lambda t, d: d.update({"tokens": d["tokens"] + 1}), "column tokens"),
        (lambda t, d: d.update({"document": d["document"][::-1]}), "column tokens|column loss|layer00"),
    ],
)
def test_values_of_elsewhere_are_caught(moe, tmp_path, monkeypatch, change, message):
    columns_changed(monkeypatch, change)
    with pytest.raises(CaptureError, match=f"part \\d+ holds .*{message}"):
        record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)


def captures_changed(monkeypatch, change):
    """What the tracer gives while recording is changed: a fault of the capture itself, after its proof has passed."""
    run = Tracer.run

    def changed(self, ids_BS, *args, **options):
        trace = run(self, ids_BS, *args, **options)
        return replace(trace, routers=tuple(change(capture, ids_BS) for capture in trace.routers))

    monkeypatch.setattr(Tracer, "run", changed)


def test_a_fault_of_long_batches_alone_is_caught(moe, tmp_path, monkeypatch):
    """The proof at the start runs short text; the rows of the plan are one to a batch, and are not proved there."""

    def rolled(capture, ids_BS):
        if ids_BS.shape[1] <= 200:
            return capture
        names = ("ids_TK", "weights_TK", "logits_TE", "shared_gate_T")
        return replace(capture, **{name: getattr(capture, name).roll(1, 0) for name in names})

    captures_changed(monkeypatch, rolled)
    corpus = tiny.corpus(n_documents=6, shortest=201, longest=250)
    with pytest.raises(CaptureError, match="part 0 holds in column layer00.ids, position"):
        record(moe, corpus, tmp_path / "r", batch_tokens=256)


def test_columns_mixed_up_in_the_file_are_caught(moe, tmp_path, monkeypatch):
    """Behind everything the recorder knows: while the part is written."""
    write = RecordingWriter._write_part

    def mixed(self, name, columns, schema):
        if name.startswith("tokens"):
            columns = {**columns, "layer00.margin": columns["layer02.margin"]}
        return write(self, name, columns, schema)

    monkeypatch.setattr(RecordingWriter, "_write_part", mixed)
    with pytest.raises(CaptureError, match="column layer00.margin"):
        record(moe, tiny.corpus(), tmp_path / "r")
    assert not list((tmp_path / "r").rglob("*.parquet"))  # the part that is wrong does not stay


def test_padding_kept_in_the_middle_is_caught(moe, tmp_path, monkeypatch):
    """The reduction itself takes each row one place too late."""
    plain = routing.routing_columns

    def late(trace, batch, topology, *, with_logits):
        shifted = tuple(
            replace(capture, ids_TK=capture.ids_TK.roll(-1, 0), weights_TK=capture.weights_TK.roll(-1, 0))
            for capture in trace.routers
        )
        return plain(replace(trace, routers=shifted), batch, topology, with_logits=with_logits)

    monkeypatch.setattr(runner, "routing_columns", late)
    with pytest.raises(CaptureError, match="column layer00.ids"):
        record(moe, tiny.corpus(), tmp_path / "r")


def test_without_the_check_nothing_is_compared_and_the_manifest_says_so(moe, tmp_path):
    made = record(moe, tiny.corpus(n_documents=8), tmp_path / "r", check=False)
    assert proved(made) == "skipped (--no-check)"


MANY = {"batch_tokens": 24, "shard_tokens": 60, "fields": ("routing", "logprob")}


@pytest.fixture(scope="module")
def short_corpus():
    return tiny.corpus(n_documents=230, shortest=8, longest=12)


@pytest.fixture(scope="module")
def of_many_batches(moe, short_corpus, tmp_path_factory):
    return record(moe, short_corpus, tmp_path_factory.mktemp("many") / "r", **MANY)


def test_of_many_batches_one_is_run_again(of_many_batches):
    found = proved(of_many_batches)
    assert found["run_again"]["different"] == 0
    assert found["run_again"]["rows"] > 8
    assert len(found["parts"]) <= 9 < len(of_many_batches.manifest["parts"])
    assert {0, len(of_many_batches.manifest["parts"]) - 1} <= set(found["parts"])


def test_a_batch_that_comes_out_otherwise_the_second_time_is_caught(moe, short_corpus, tmp_path, monkeypatch):
    run, seen = RowRunner.run, {}

    def drifting(self, rows_, witness=None):
        tokens, documents = run(self, rows_, witness)
        seen[rows_] = seen.get(rows_, 0) + 1
        if seen[rows_] > 1:
            tokens["layer00.ids"] = (tokens["layer00.ids"] + 1) % 8
        return tokens, documents

    monkeypatch.setattr(RowRunner, "run", drifting)
    with pytest.raises(CaptureError, match=r"other values than a second run of batch \d+ gives, for \d+ of \d+ tokens"):
        record(moe, short_corpus, tmp_path / "r", **MANY)


@pytest.mark.parametrize("after", often([7, 45, 80], [45]))
def test_an_interrupted_run_states_the_same(moe, short_corpus, of_many_batches, tmp_path, after):
    asked = iter([False] * after)
    with pytest.raises(Cancelled):
        record(moe, short_corpus, tmp_path / "r", should_cancel=lambda: next(asked, True), **MANY)
    again = record(moe, short_corpus, tmp_path / "r", **MANY)
    assert proved(again) == proved(of_many_batches)
    assert again.digest == of_many_batches.digest


def test_a_part_that_was_written_and_not_proved_is_written_again(moe, short_corpus, of_many_batches, tmp_path):
    """A kill between the two leaves it so."""
    asked = iter([False] * 45)
    with pytest.raises(Cancelled):
        record(moe, short_corpus, tmp_path / "r", should_cancel=lambda: next(asked, True), **MANY)
    manifest = read_manifest(tmp_path / "r")
    del manifest["written_rows"]["of_parts"]["0"]
    (tmp_path / "r" / "manifest.json").write_text(json.dumps(manifest))
    again = record(moe, short_corpus, tmp_path / "r", **MANY)
    assert again.digest == of_many_batches.digest


def test_what_an_unproved_run_wrote_is_not_claimed(moe, short_corpus, tmp_path):
    """Begun with the proof and gone on without it: the manifest names the parts that are not compared."""
    asked = iter([False] * 45)
    with pytest.raises(Cancelled):
        record(moe, short_corpus, tmp_path / "r", should_cancel=lambda: next(asked, True), **MANY)
    found = proved(record(moe, short_corpus, tmp_path / "r", **MANY, check=False))
    assert found["parts"] and found["parts_not_compared"]
    assert max(found["parts"]) < min(found["parts_not_compared"])


def test_sampled_parts_are_few_and_hold_both_ends():
    plan = make_plan([10] * 1000, ["a"] * 1000, batch_tokens=20, shard_tokens=20)
    chosen = sampled_parts(plan)
    assert len(plan.batches) >= AGAIN_FROM
    assert len(chosen) <= 9 and {0, len(plan.shards) - 1} <= set(chosen)
    assert sampled_parts(make_plan([10], ["a"], batch_tokens=20, shard_tokens=20)) == (0,)


def test_halved_batches_are_compared_too(moe, tmp_path, monkeypatch):
    run_rows = RowRunner.run

    def small(self, rows_, witness=None):
        if len(rows_) > 4:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return run_rows(self, rows_, witness)

    monkeypatch.setattr(RowRunner, "run", small)
    made = record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)
    assert made.manifest["halved_batches"] and proved(made)["rows"] > 50


ATTENTION = ("routing", "logprob", "attention", "attention-tokens", "attention-weights")


def test_attention_is_compared(moe, tmp_path):
    found = proved(record(moe, tiny.corpus(shortest=70, longest=90), tmp_path / "r", fields=ATTENTION, **WINDOW))
    assert found["columns_not_compared"] == []
    assert {"attention.entropy", "attention.divergence", "attention.sink"} <= set(found["largest_difference"])


WINDOW = {"batch_tokens": 512, "shard_tokens": 1024}


@pytest.mark.parametrize("name", often(["entropy", "first", "local32", "distance"], ["entropy"]))
def test_attention_of_the_token_before_is_caught(moe, tmp_path, monkeypatch, name):
    column = f"layer01.attention.{name}"
    columns_changed(monkeypatch, lambda tokens, _: tokens.__setitem__(column, np.roll(tokens[column], 1, axis=0)))
    with pytest.raises(CaptureError, match=f"part 0 holds in column {column}, position"):
        record(moe, tiny.corpus(), tmp_path / "r", fields=ATTENTION)


@pytest.mark.parametrize(
    "name", often(["entropy", "max_logit", "spread", "first.profile", "divergence", "keys90"], ["first.profile"])
)
def test_attention_of_another_document_or_layer_is_caught(moe, tmp_path, monkeypatch, name):
    here, there = f"layer01.attention.{name}", f"layer02.attention.{name}"
    columns_changed(monkeypatch, lambda _, documents: documents.__setitem__(here, documents[there]))
    with pytest.raises(CaptureError, match=f"part 0 holds in column {here}, document"):
        record(moe, tiny.corpus(), tmp_path / "r", fields=ATTENTION)


def test_attention_of_written_text_is_said_not_to_be_compared(moe, tmp_path):
    corpus = tiny.corpus(n_documents=6, shortest=5, longest=9)
    made = record(moe, corpus, tmp_path / "r", fields=ATTENTION[:4], generation=Generation(4))
    assert "attention.entropy" in proved(made)["columns_not_compared"]
    assert "documents attention.sink" in proved(made)["columns_not_compared"]


def test_router_scores_beyond_float16_are_refused_before_anything_is_written(tmp_path):
    """1e30 is finite in float32 and infinite in float16: the logits themselves cannot be kept, all else can."""
    model = tiny.moe()
    for layer in model.module.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.weight *= 1e30
    with pytest.raises(CaptureError, match=r"layer 0: logits reach \d.*e\+\d+, .* Record without the field 'logits'"):
        record(model, tiny.corpus(), tmp_path / "r", fields=("routing", "logits"))
    assert not (tmp_path / "r").exists()
    made = record(model, tiny.corpus(), tmp_path / "r", fields=("routing",))
    for layer in made.moe_layers:
        assert all(np.isfinite(made.router_statistic(n, layer)).all() for n in ("weights", "entropy", "logsumexp"))
