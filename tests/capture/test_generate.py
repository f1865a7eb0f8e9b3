"""Text recorded while the model writes it: what is written, what is captured, and that the phases stay apart."""

import numpy as np
import pytest
import torch

from analyses.routing import expert_load
from tests import tiny
from tests.families import shrunk
from workbench.capture.generate import Generation
from workbench.capture.hooks import Tracer
from workbench.capture.record import record
from workbench.errors import AnalysisError, Cancelled, RecordingError
from workbench.recordings.recording import Recording

NEW = 6


@pytest.fixture(scope="module")
def corpus():
    return tiny.corpus(n_documents=12, shortest=5, longest=8)


@pytest.fixture(scope="module")
def written(moe, corpus, tmp_path_factory):
    return record(moe, corpus, tmp_path_factory.mktemp("decode") / "greedy", generation=Generation(NEW))


def texts(recording: Recording) -> list[tuple[list[int], list[int]]]:
    """Given and written token ids of each document."""
    frame = recording.tokens().sort_values(["document", "position"])
    return [
        (part.loc[part["phase"] == "prefill", "token"].tolist(), part.loc[part["phase"] == "decode", "token"].tolist())
        for _, part in frame.groupby("document")
    ]


def test_greedy_text_is_what_generate_writes(moe, corpus, written):
    for document, (given, new) in zip(corpus.documents, texts(written), strict=True):
        assert tuple(given) == document.token_ids
        whole = moe.module.generate(
            torch.tensor([given]), attention_mask=torch.ones(1, len(given)), max_new_tokens=NEW, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert whole[0, len(given) :].tolist() == new


def test_each_step_is_captured_as_one_pass_over_the_whole_text_is(moe, written):
    tracer = Tracer(moe.module, moe.topology)
    decode, frame = written.of_phase("decode"), written.tokens()
    for number, (given, new) in enumerate(texts(written)):
        trace = tracer.run(torch.tensor([[*given, *new]]))
        at = (frame["document"] == number) & (frame["phase"] == "decode")
        logprob = trace.logits[0].log_softmax(-1)[range(len(given) - 1, len(given) + NEW - 1), new]
        np.testing.assert_allclose(frame.loc[at, "logprob"], logprob.numpy(), atol=1e-4)
        assert frame.loc[at, "predicted"].tolist() == trace.logits[0, len(given) :].argmax(-1).tolist()
        of_document = decode.column("document") == number
        for router, capture in zip(moe.topology.routers, trace.routers, strict=True):
            assert np.array_equal(decode.ids(router.layer)[of_document], capture.ids_TK[len(given) :].numpy())
            np.testing.assert_allclose(
                decode.weights(router.layer)[of_document], capture.weights_TK[len(given) :].numpy(), atol=1e-3
            )


def test_the_given_text_is_recorded_as_without_writing(moe, corpus, written, tmp_path):
    alone = record(moe, corpus, tmp_path / "prefill")
    prefill = written.of_phase("prefill")
    for layer in alone.moe_layers:
        order, order_alone = (
            np.lexsort((r.column("position"), r.column("document"))) for r in (prefill, alone)
        )  # fmt: skip
        assert np.array_equal(prefill.ids(layer)[order], alone.ids(layer)[order_alone])
    assert prefill.n_tokens == alone.n_tokens and prefill.n_documents == alone.n_documents == 12


def test_the_phases_are_never_averaged(written):
    assert written.phases == ("prefill", "decode")
    with pytest.raises(AnalysisError, match="prefill and decode, which are never averaged; choose one: --phase"):
        expert_load.run(written)
    prefill, decode = written.of_phase("prefill"), written.of_phase("decode")
    assert decode.n_tokens == 12 * NEW and decode.n_documents == 12
    for layer in written.moe_layers:
        whole = written.counts(layer).sum(0)
        assert np.array_equal(prefill.counts(layer).sum(0) + decode.counts(layer).sum(0), whole)
        by_hand = np.bincount(decode.ids(layer).reshape(-1), minlength=8)
        assert np.array_equal(decode.counts(layer).sum(0), by_hand)
    result = expert_load.run(decode)
    assert "text the model wrote" in expert_load.figures(result)["load_map"].caption
    with pytest.raises(RecordingError, match="holds no phase 'encode', only prefill and decode"):
        written.of_phase("encode")
    assert prefill.documents()["phase"].eq("prefill").all() and decode.tokens()["phase"].eq("decode").all()
    assert len(decode.of_document(3, ["token"])["token"]) == NEW


def test_the_rows_of_a_document_that_are_kept_are_those_of_its_phase(written):
    kept = written.keeping(1 << 20)
    for _ in range(2):
        for phase in ("prefill", "decode"):
            view = kept.of_phase(phase)
            rows = view.of_document(1, ["position", "token"])
            frame = view.tokens().query("document == 1")
            assert rows["position"].tolist() == frame["position"].tolist()
            assert rows["token"].tolist() == frame["token"].tolist()


def test_sampling_follows_the_seed_and_the_document_alone(moe, corpus, tmp_path):
    how = Generation(NEW, temperature=1.0, seed=3)
    one = record(moe, corpus, tmp_path / "one", generation=how)
    same = record(moe, corpus, tmp_path / "same", generation=how, batch_tokens=10)  # other batches
    other = record(moe, corpus, tmp_path / "other", generation=Generation(NEW, temperature=1.0, seed=4))
    assert texts(one) == texts(same)
    assert texts(one) != texts(other)
    assert (one.manifest["seed"], one.manifest["settings"]["generation"]["temperature"]) == (3, 1.0)


def test_sampling_draws_by_the_softmax_over_the_temperature():
    from workbench.capture.generate import _choose

    logits_BV = torch.tensor([[0.0, 1.0, 2.0, -50.0]]).repeat(20_000, 1)
    streams = [np.random.default_rng(i) for i in range(20_000)]
    drawn = np.bincount(_choose(logits_BV, 2.0, streams).numpy(), minlength=4) / 20_000
    np.testing.assert_allclose(drawn, (logits_BV[0] / 2).softmax(-1).numpy(), atol=0.015)


def test_a_text_ends_where_the_model_ends_it(moe, corpus, written, tmp_path, monkeypatch):
    new = [document for _, document in texts(written)]
    stop = new[0][2]
    monkeypatch.setattr(moe.module.generation_config, "eos_token_id", stop)
    ended = record(moe, corpus, tmp_path / "ended", generation=Generation(NEW))
    for (_, before), (_, after) in zip(texts(written), texts(ended), strict=True):
        wanted = before[: before.index(stop) + 1] if stop in before else before
        assert after == wanted
    tokens = ended.of_phase("decode").documents().sort_values("document")["tokens"].tolist()
    assert tokens == [len(after) for _, after in texts(ended)] and min(tokens) <= 3


def test_a_run_that_was_cancelled_goes_on_to_the_same_tables(moe, corpus, tmp_path):
    how = {"generation": Generation(NEW, temperature=1.0), "shard_tokens": 20, "batch_tokens": 16}
    calls = []
    with pytest.raises(Cancelled):
        record(moe, corpus, tmp_path / "a", **how, should_cancel=lambda: calls.append(None) or len(calls) > 4)
    resumed, whole = record(moe, corpus, tmp_path / "a", **how), record(moe, corpus, tmp_path / "b", **how)
    assert resumed.digest == whole.digest


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"new_tokens": 0}, "new tokens are 0; 1 or more"),
        ({"new_tokens": 4, "temperature": -1.0}, "temperature is -1.0; 0"),
        ({"new_tokens": 256}, "256 new tokens do not fit into the context of .*, 256"),
    ],
)
def test_what_cannot_be_written_is_refused(moe, corpus, tmp_path, how, message):
    with pytest.raises(RecordingError, match=message):
        record(moe, corpus, tmp_path / "r", generation=Generation(**how))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("family", ["mixtral", "jamba", "deepseek_v3", "gpt_oss", "olmoe", "qwen3_next", "llama4_text"])
def test_other_families_decode_as_they_prefill(family, tmp_path):
    """Jamba and qwen3_next keep states beside keys and values; gpt_oss slides its window over more than it."""
    model = shrunk.build(family)
    recording = record(model, tiny.corpus(n_documents=2, shortest=9, longest=12), tmp_path / "r",
                       generation=Generation(4))  # fmt: skip
    decode = recording.of_phase("decode")
    for number, (given, new) in enumerate(texts(recording)):
        trace = Tracer(model.module, model.topology).run(torch.tensor([[*given, *new]]))
        of_document = decode.column("document") == number
        for router, capture in zip(model.topology.routers, trace.routers, strict=True):
            decoded_TK, whole_TK = decode.ids(router.layer)[of_document], capture.ids_TK[len(given) :].numpy()
            assert np.array_equal(np.sort(decoded_TK), np.sort(whole_TK))
