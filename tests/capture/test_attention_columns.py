"""Attention as recorded, compared with the definitions on eager weights; decode steps; what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import tiny
from tests.capture.test_attention import eager_weights
from tests.families import shrunk
from workbench.capture.attention.heads import attention_facts, sampled_queries
from workbench.capture.generate import Generation
from workbench.capture.record import record
from workbench.errors import CaptureError, RecordingError
from workbench.metrics import attention as plain
from workbench.metrics.attention import (
    BIN_EDGES,
    PROFILED,
    SINK_OVER,
    STATISTICS,
    WEIGHED,
    head_divergence,
    sink_windows,
)
from workbench.recordings.corpus import Corpus

FIELDS = ("routing", "logprob", "attention", "attention-tokens", "attention-weights")


@pytest.fixture(scope="module")
def corpus():
    return tiny.corpus(n_documents=12, shortest=1, longest=150)


@pytest.fixture(scope="module")
def watched(moe, corpus, tmp_path_factory):
    return record(moe, corpus, tmp_path_factory.mktemp("attention") / "r", fields=FIELDS, batch_tokens=400)


def column(recording, layer, name, **where):
    return recording.column(f"layer{layer:02d}.attention.{name}", **where)


def by_number(recording, layer, name):
    """A documents column in the order of the corpus."""
    order = np.argsort(recording.column("document", table="documents"))
    return column(recording, layer, name, table="documents")[order]


def test_documents_hold_the_means_of_the_definitions(moe, corpus, watched):
    for number, document in enumerate(corpus.documents):
        ids_T = np.array(document.token_ids)
        positions_S = np.arange(len(ids_T))
        for layer, found_HST in eager_weights(moe.module, torch.tensor(ids_T)[None]).items():
            weights_HST = found_HST.numpy()
            queries = plain.query_statistics(weights_HST, positions_S)
            queries |= plain.weighed_statistics(weights_HST, ids_T, positions_S=positions_S)
            for name, values_HS in queries.items():
                kept = ~np.isnan(values_HS).all(1)
                wanted = np.full(len(values_HS), np.nan)
                wanted[kept] = np.nanmean(values_HS[kept], -1)
                found = by_number(watched, layer, name)[number]
                atol = 0.02 if name == "keys90" else 1e-4  # a count: a rounding may change it by one in some query
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol, err_msg=name)
            for name in PROFILED:
                found = by_number(watched, layer, f"{name}.profile")[number].reshape(-1, len(BIN_EDGES))
                wanted = plain.by_bin(queries[name], positions_S)
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
            windows = sink_windows(queries["first"])
            wanted = (windows > SINK_OVER).mean(-1) if windows.size else np.full(len(windows), np.nan)
            np.testing.assert_allclose(by_number(watched, layer, "sink")[number], wanted)
            sample = head_divergence(weights_HST[:, sampled_queries(len(ids_T))])
            found = by_number(watched, layer, "divergence")[number].reshape(sample.shape)
            np.testing.assert_allclose(found, sample, atol=1e-5)
        assert not by_number(watched, 0, "undefined")[number].any()


def test_tokens_hold_the_values_of_their_queries(moe, corpus, watched):
    document, position = watched.column("document"), watched.column("position")
    for number in (0, 5):
        ids_T = torch.tensor(corpus.documents[number].token_ids)
        at = np.flatnonzero(document == number)
        at = at[np.argsort(position[at])]
        for layer, weights_HST in eager_weights(moe.module, ids_T[None]).items():
            wanted = plain.query_statistics(weights_HST.numpy(), np.arange(len(ids_T)))
            for name in PROFILED:
                np.testing.assert_allclose(column(watched, layer, name)[at], wanted[name].T, rtol=1e-3, atol=1e-3)


def test_the_manifest_says_what_is_covered_and_how_it_was_run(watched):
    facts = watched.manifest["attention"]
    assert facts["layers"] == [{"layer": i, "heads": 4, "groups": 2, "width": 8} for i in range(3)]
    assert facts["not_covered"] == []
    assert watched.manifest["model"]["attention_implementation"] == "sdpa"
    scores = facts["probe"]["scores"]["1"]
    assert set(scores) == {f"{n}{e}" for n in ("induction", "duplicate", "previous") for e in ("", "_error")}
    assert all(len(values) == 4 and min(values) >= 0 and max(values) < 1 for values in scores.values())


def test_without_a_proof_before_it_the_first_batch_is_the_first(corpus, watched, tmp_path):
    """A fresh model's sites are put in order by a short forward pass, which is no text."""
    fresh = record(tiny.moe(), corpus, tmp_path / "r", fields=FIELDS[:3], batch_tokens=400, check=False)
    for name in STATISTICS:
        assert np.array_equal(by_number(fresh, 0, name), by_number(watched, 0, name), equal_nan=True), name


def test_routing_is_recorded_as_without_attention(moe, corpus, watched, tmp_path):
    alone = record(moe, corpus, tmp_path / "r", batch_tokens=400)
    assert "attention" not in alone.manifest
    for name in ("token", "logprob", "layer00.ids", "layer02.weights"):
        assert np.array_equal(alone.column(name), watched.column(name), equal_nan=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_implementation_that_was_asked_for_is_the_one_that_runs(attention, corpus, watched, tmp_path):
    model = tiny.moe()
    model.module.set_attn_implementation(attention)
    again = record(model, corpus, tmp_path / "r", fields=FIELDS[:3], batch_tokens=400)
    assert again.manifest["model"]["attention_implementation"] == attention
    assert model.module.config._attn_implementation == attention
    for name in STATISTICS:
        one, two = (by_number(recording, 2, name) for recording in (again, watched))
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_steps_are_as_one_pass_over_the_whole_text(moe, tmp_path):
    prompts = tiny.corpus(n_documents=6, shortest=5, longest=8)
    written = record(
        moe, prompts, tmp_path / "w", fields=FIELDS[:4], generation=Generation(6), batch_tokens=20
    ).of_phase("decode")  # fmt: skip
    whole_ids = written.of_phase("decode").tokens()
    for number, document in enumerate(prompts.documents):
        new = whole_ids[whole_ids["document"] == number].sort_values("position")["token"].tolist()
        ids_T = torch.tensor([*document.token_ids, *new])
        positions_S = np.arange(len(ids_T))
        for layer, weights_HST in eager_weights(moe.module, ids_T[None]).items():
            steps = slice(len(document.token_ids), None)
            wanted = plain.query_statistics(weights_HST.numpy()[:, steps], positions_S[steps])
            for name, values in wanted.items():
                found = by_number(written, layer, name)[number]
                np.testing.assert_allclose(found, np.nanmean(values, -1), rtol=1e-4, atol=1e-4, err_msg=name)
            at = np.flatnonzero(written.column("document") == number)
            at = at[np.argsort(written.column("position")[at])]
            np.testing.assert_allclose(column(written, layer, "first")[at], wanted["first"].T, rtol=1e-3, atol=1e-3)
        assert np.isnan(by_number(written, 0, "sink")[number]).all()  # no window of a whole text


def test_a_cancelled_run_goes_on_to_the_same_tables(moe, corpus, watched, tmp_path):
    from workbench.errors import Cancelled

    calls = []
    how = {"fields": FIELDS, "batch_tokens": 400, "shard_tokens": 300}
    with pytest.raises(Cancelled):
        record(moe, corpus, tmp_path / "a", **how, should_cancel=lambda: calls.append(None) or len(calls) > 2)
    resumed, whole = record(moe, corpus, tmp_path / "a", **how), record(moe, corpus, tmp_path / "b", **how)
    assert resumed.digest == whole.digest
    for name in ("entropy", "sink", "divergence"):
        np.testing.assert_allclose(by_number(whole, 1, name), by_number(watched, 1, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"fields": ("routing", "attention-tokens")},
            "'attention-tokens' goes with 'attention'; give attention,attention-",
        ),
        ({"fields": FIELDS, "generation": Generation(2)}, "'attention-weights' is of given text; leave it out"),
    ],
)
def test_fields_that_cannot_be_recorded_are_refused(moe, corpus, tmp_path, given, message):
    with pytest.raises(RecordingError, match=message):
        record(moe, corpus, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_a_model_that_notices_is_refused(moe, monkeypatch):
    """An attention function that answers otherwise under another name."""
    from workbench.capture.attention import calls as module

    watched = module._watched

    def noisy(name):
        forward = watched(name)
        return lambda *given, **options: (forward(*given, **options)[0] * 1.001, None)

    monkeypatch.setattr(module, "_watched", noisy)
    monkeypatch.setattr(module, "PREFIX", "noisy_")
    model = copy.deepcopy(moe)
    with pytest.raises(CaptureError, match="computes other logits when its attention is watched"):
        attention_facts(model)
    assert model.module.config._attn_implementation == "sdpa"


def test_weights_of_all_statistics_are_columns(watched):
    names = {name for name in watched._schemas()["documents"].names if name.startswith("layer01.attention.")}
    assert len(names) == len(STATISTICS) + len(PROFILED) + len(WEIGHED) + 3


@pytest.mark.parametrize(
    ("family", "covered", "reasons"),
    [
        ("jamba", lambda layers, topology: layers == list(topology.attention_layers), "no softmax attention"),
        ("deepseek_v4", lambda layers, _: layers == [0, 1, 2], "its keys are not the tokens', but compressed ones"),
        ("qwen3_next", lambda layers, topology: layers == list(topology.attention_layers), "no softmax attention"),
    ],
)
def test_layers_that_are_not_covered_are_named_with_the_reason(family, covered, reasons):
    model = shrunk.build(family)
    facts = attention_facts(model)
    layers = [each["layer"] for each in facts["layers"]]
    assert covered(layers, model.topology)
    assert {each["layer"] for each in facts["not_covered"]} == set(range(model.topology.n_layers)) - set(layers)
    assert any(reasons in each["reason"] for each in facts["not_covered"])
    assert set(facts["probe"]["scores"]) == {str(layer) for layer in layers}


def test_a_model_of_mixed_layers_is_recorded_with_what_is_covered(tmp_path):
    model = shrunk.build("jamba")
    texts = tiny.corpus(n_documents=8, shortest=5, longest=30)
    ids = [tuple(i % shrunk.VOCABULARY for i in document.token_ids) for document in texts.documents]
    texts = Corpus("few", tuple(replace(d, token_ids=i) for d, i in zip(texts.documents, ids, strict=True)))
    found = record(model, texts, tmp_path / "r", fields=FIELDS)
    watched = {each["layer"] for each in found.manifest["attention"]["layers"]}
    names = found._schemas()["documents"].names
    assert {int(name[5:7]) for name in names if ".attention." in name} == watched != set()
    assert np.isfinite(by_number(found, min(watched), "entropy")).all()
