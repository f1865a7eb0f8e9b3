"""A document's result does not depend on its company: what follows a batch is kept apart, or the model is refused."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

from tests import tiny
from tests.families import shrunk
from workbench.capture.batching import make_plan, rows_to_prove
from workbench.capture.generate import Generation
from workbench.capture.hooks import Tracer
from workbench.capture.proof.model import check_capture
from workbench.capture.record import record
from workbench.errors import CaptureError, RecordingError
from workbench.models.loading import Model, from_module
from workbench.models.rope_lengths import NO_BORDERS, Borders, length_borders
from workbench.recordings.corpus import Corpus, Document
from workbench.recordings.recording import Recording

SWITCH = 48
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": SWITCH,
    "short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 16.0, 32.0],
}  # fmt: skip
SMALL = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 192, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def of(module, name: str) -> Model:
    return from_module(module.eval().requires_grad_(False), name=name)


def phimoe() -> Model:
    torch.manual_seed(0)
    rope = LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.3}
    config = PhimoeConfig(**SMALL, intermediate_size=16, num_local_experts=8, num_experts_per_tok=2,
                          original_max_position_embeddings=SWITCH, rope_parameters=rope)  # fmt: skip
    return of(PhimoeForCausalLM(config), "tiny-phimoe")


def phi3() -> Model:
    torch.manual_seed(0)
    config = Phi3Config(
        **SMALL, intermediate_size=48, original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE
    )
    return of(Phi3ForCausalLM(config), "tiny-phi3")


def dynamic() -> Model:
    """A model whose frequencies follow the length beyond 48, and whose context is longer than that."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 8.0}
    config = LlamaConfig(**(SMALL | {"max_position_embeddings": SWITCH}), intermediate_size=48, rope_parameters=rope)
    model = of(LlamaForCausalLM(config), "tiny-dynamic")
    object.__setattr__(model.topology, "context", 192)
    return model


def documents(lengths) -> Corpus:
    rng = np.random.default_rng(1)
    rows = [tuple(int(t) for t in rng.integers(3, tiny.VOCABULARY, n)) for n in lengths]
    return Corpus("c", tuple(Document(f"d{i}", "x", "", f"d{i}", "", row) for i, row in enumerate(rows)))


def by_document(recording: Recording) -> dict[str, dict[str, np.ndarray]]:
    """Each document's columns, in the order of its positions."""
    names = dict(zip(recording.column("document", table="documents"), recording.documents()["id"], strict=True))
    document, position = recording.column("document"), recording.column("position")
    found = {}
    for number, name in names.items():
        rows = np.flatnonzero(document == number)
        rows = rows[np.argsort(position[rows])]
        found[name] = {"logprob": recording.column("logprob")[rows]}
        found[name] |= {f"ids{layer}": recording.ids(layer)[rows] for layer in recording.moe_layers}
    return found


LENGTHS = (90, 45, 80, 44, 49, 48, 47, 60, 12)


@pytest.mark.parametrize("build", [phimoe, phi3, dynamic])
def test_each_document_is_recorded_as_if_it_were_alone(build, tmp_path):
    corpus, model = documents(LENGTHS), build()
    together = by_document(record(model, corpus, tmp_path / "together", fields=("routing", "logprob")))
    for i, document in enumerate(corpus.documents):
        single = Corpus("one", (document,))
        alone = by_document(record(model, single, tmp_path / f"{i}", fields=("routing", "logprob"), check=False))
        for name, values in alone[document.id].items():
            if name == "logprob":
                np.testing.assert_allclose(together[document.id][name], values, atol=1e-4, err_msg=document.id)
            else:
                np.testing.assert_array_equal(together[document.id][name], values, err_msg=document.id)


def test_the_order_of_batches_does_not_matter():
    """Frequencies of the longest batch so far are not kept for the next one."""
    model = dynamic()
    tracer = Tracer(model.module, model.topology)
    ids_BS = torch.arange(3, 63)[None]
    first = tracer.run(ids_BS).logits
    tracer.run(torch.arange(3, 150)[None])
    torch.testing.assert_close(tracer.run(ids_BS).logits, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "borders"),
    [(phimoe, Borders((SWITCH,))), (phi3, Borders((SWITCH,))), (dynamic, Borders((), SWITCH)), (tiny.moe, NO_BORDERS)],
)
def test_borders_are_read_off_the_model_and_stand_in_the_manifest(build, borders, tmp_path):
    model = build()
    assert length_borders(model.module) == borders
    made = record(model, documents((60, 50, 30)), tmp_path / "r", fields=("logprob",))
    assert made.manifest["length_borders"] == (borders.to_json() if borders else None)
    assert bool(borders) == ("length_borders" in made.manifest["identity"])


def test_lengths_on_two_sides_of_a_border_never_share_a_batch():
    plan = make_plan(LENGTHS, ["a"] * len(LENGTHS), batch_tokens=4096, shard_tokens=9999, borders=Borders((48,)))
    assert [[row.n_tokens for row in batch.rows] for batch in plan.batches] == [[90, 80, 60, 49], [48, 47, 45, 44, 12]]
    exact = make_plan((90, 90, 80, 48, 12), ["a"] * 5, batch_tokens=4096, shard_tokens=9999, borders=Borders((), 48))
    assert [[row.n_tokens for row in batch.rows] for batch in exact.batches] == [[90, 90], [80], [48, 12]]


def test_the_proof_runs_rows_of_the_batches_to_come():
    plan = make_plan((100, 99, 30, 29, 9, 8, 7, 6), ["a"] * 8, batch_tokens=200, shard_tokens=9999)
    assert [[row.n_tokens for row in rows] for rows in rows_to_prove(plan, NO_BORDERS)] == [
        [30, 29, 9, 8, 7, 6], [100, 99], [30, 6]
    ]  # fmt: skip
    assert rows_to_prove(make_plan((9,), ["a"], batch_tokens=9, shard_tokens=9), NO_BORDERS) == []


def test_what_was_proved_stands_in_the_manifest(moe, tmp_path):
    made = record(moe, documents((100, 99, 30, 6)), tmp_path / "r", batch_tokens=200)
    assert made.manifest["check"]["padding_batches"][1:] == [
        {"rows": 2, "alone": 2, "longest": 100, "shortest": 99}, {"rows": 2, "alone": 2, "longest": 30, "shortest": 6}
    ]  # fmt: skip


def test_batches_that_do_not_fit_are_proved_smaller(moe_that_is_short_of_memory, tmp_path):
    made = record(moe_that_is_short_of_memory, documents([50] * 9 + [40]), tmp_path / "r", batch_tokens=500)
    assert made.manifest["halved_batches"] == [0, 0]
    assert [batch["rows"] for batch in made.manifest["check"]["padding_batches"]] == [2, 3, 2]


@pytest.fixture
def moe_that_is_short_of_memory() -> Model:
    model = tiny.moe()

    def fail(_, args):
        if args[0].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.module.model.layers[1].register_forward_pre_hook(fail)
    return model


def test_a_leak_in_long_rows_alone_is_refused(tmp_path):
    """Rows of up to 200 tokens are right: the proof must reach the lengths that will be run."""
    model = tiny.moe()

    def leak(_, __, out):
        return out + 0.3 * out.mean(0, keepdim=True) if len(out) > 1 and out.shape[1] > 200 else out

    model.module.model.embed_tokens.register_forward_hook(leak)
    record(model, documents((90, 80)), tmp_path / "short")
    with pytest.raises(CaptureError, match=r"proof of padding: expected the same experts .* in a row of 2\d\d tokens"):
        record(model, documents((220, 210)), tmp_path / "long")
    assert not (tmp_path / "long").exists()


def test_a_capacity_of_the_batch_is_refused(tmp_path):
    """Rows are right in twos: tokens are dropped only where the batch is large."""
    model = tiny.moe()

    def full(module, args):
        hidden, ids, weights = args
        kept = torch.ones_like(weights)
        kept[150:] = 0.0
        return hidden, ids, weights * kept

    for layer in model.module.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts.register_forward_pre_hook(full)
    with pytest.raises(CaptureError, match="proof of (padding|weights)"):
        record(model, documents([30] * 4 + [29] * 4), tmp_path / "r", batch_tokens=240)


def test_a_dense_model_that_looks_at_its_company_is_refused(tmp_path):
    model = tiny.dense()
    model.module.model.embed_tokens.register_forward_hook(
        lambda m, args, out: out + out.mean(0, keepdim=True) * (len(out) > 1)
    )
    with pytest.raises(
        CaptureError, match="tiny-random-dense .*proof of padding: expected the same logits of the model"
    ):
        record(model, documents((30, 20)), tmp_path / "r")


def test_writing_across_a_border_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"more than 48 tokens \(longrope\), and 1 of 2 documents would pass"):
        record(phimoe(), documents((44, 60)), tmp_path / "r", generation=Generation(8))
    assert not (tmp_path / "r").exists()
    made = record(phimoe(), documents((40, 60)), tmp_path / "r", generation=Generation(8))
    assert made.of_phase("decode").n_tokens == 16


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "jamba", "qwen3_next"])
def test_windows_chunks_and_states_are_reached_and_pass(family, tmp_path):
    """A window of 8 and chunks of attention, states of a convolution: rows go beyond them."""
    model = shrunk.build(family)
    corpus, fields = documents((90, 70, 33, 5)), ("routing", "logprob")
    made = record(model, corpus, tmp_path / "r", fields=fields, batch_tokens=400)
    assert max(batch["longest"] for batch in made.manifest["check"]["padding_batches"]) == 90


def test_a_router_whose_bias_masks_experts_is_proved_and_recorded(tmp_path):
    model = shrunk.build("gpt_oss")
    for router in model.topology.routers:
        model.module.get_submodule(router.router_path).bias[[1, 5]] = -torch.inf
    fields = ("routing", "logprob", "logits", "experts")
    made = record(model, tiny.corpus(n_documents=10), tmp_path / "r", fields=fields)
    assert made.manifest["written_rows"]["columns_not_compared"] == []
    for layer in made.moe_layers:
        assert not made.counts(layer)[:, [1, 5]].any()
        assert np.isfinite(made.router_statistic("entropy", layer)).all()


def test_a_mask_that_the_capture_lost_is_refused():
    model = shrunk.build("gpt_oss")
    router = model.topology.routers[0]
    module = model.module.get_submodule(router.router_path)
    module.bias[1] = -torch.inf
    plain = type(module).forward

    def unmasked(hidden):
        logits, *rest = plain(module, hidden)
        return logits.clamp(min=-30.0), *rest

    module.forward = unmasked
    with pytest.raises(CaptureError, match="proof of logits: expected the router's linear map"):
        check_capture(model)
