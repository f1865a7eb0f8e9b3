"""The proofs pass on a right capture, and each fails on the very fault it is there for."""

from dataclasses import replace

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tests import tiny
from workbench.capture import routing
from workbench.capture.hooks import Tracer
from workbench.capture.proof import padding
from workbench.capture.proof.model import check_capture
from workbench.capture.routing import BatchTokens
from workbench.errors import CaptureError
from workbench.models.loading import with_module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm"])
def test_a_right_capture_passes(dtype, implementation):
    model = tiny.moe()
    module = model.module.to(dtype)
    module.set_experts_implementation(implementation)
    report = check_capture(with_module(model, module))
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert report.routers == 2
    assert report.rebuild_with != implementation
    assert 0 <= report.experts_error <= limit
    assert 0 <= report.block_error <= limit
    assert report.causal_change > 10 * report.causal_leak
    assert "seconds" not in report.to_json()


def test_a_dense_model_has_nothing_to_prove(dense):
    assert check_capture(dense).routers == 0


def test_routers_of_the_tests_are_decided(moe):
    """Weights that make the proofs bite: router entropy below 0.9 ln E."""
    trace = Tracer(moe.module, moe.topology).run(torch.randint(0, tiny.VOCABULARY, (2, 30)))
    for capture in trace.routers:
        score_TE = capture.logits_TE.softmax(-1)
        entropy = torch.special.entr(score_TE).sum(-1).mean()
        assert entropy < 0.9 * torch.log(torch.tensor(8.0))


def broken_expert(experts, hidden, ids, weights):
    """Right but for one expert, whose output is 1 % too large."""
    scaled = torch.where(ids == 3, weights * 1.01, weights)
    return ALL_EXPERTS_FUNCTIONS["batched_mm"](experts, hidden, ids, scaled)


def test_one_expert_that_is_off_by_one_percent_fails_the_rebuild():
    ALL_EXPERTS_FUNCTIONS.register("broken_expert", broken_expert)
    model = tiny.moe()
    model.module.set_experts_implementation("broken_expert")
    with pytest.raises(CaptureError, match=r"layer 0 mlp: .*proof of rebuild: expected the experts' output"):
        check_capture(model)


def replaced_router(model, forward):
    """The model with the router of its last layer replaced."""
    gate = model.module.model.layers[2].mlp.gate
    plain = type(gate).forward
    gate.forward = lambda hidden: forward(*plain(gate, hidden))
    return model


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda logits, w, i: (logits.softmax(-1), w, i), "proof of logits: expected raw router logits"),
        (lambda logits, w, i: (logits * 1.01, w, i), "proof of logits: expected the router's linear map"),
        (lambda logits, w, i: (logits, w, logits.topk(4).indices[:, 1:]), "proof of top-k"),
        (lambda logits, w, i: (logits, w, i * 0), "proof of ranges: expected different experts"),
        (lambda logits, w, i: (logits, w * float("nan"), i), "proof of ranges: expected finite routing weights"),
        (lambda logits, w, i: (logits, w[:, :2], i[:, :2]), "proof of shapes: expected ids, weights, logits"),
    ],
)
def test_a_router_that_does_not_do_what_it_says_is_refused(forward, message):
    with pytest.raises(CaptureError, match=f"tiny-random-moe \\(qwen2_moe\\), layer 2 mlp: .*{message}"):
        check_capture(replaced_router(tiny.moe(), forward))


def test_ids_out_of_range_are_refused():
    model = tiny.moe()
    facts = replace(model.topology.routers[0], n_experts=2)
    with pytest.raises(CaptureError, match="proof of shapes"):
        check_capture(replace(model, topology=replace(model.topology, routers=(facts,))))


def test_a_block_that_adds_something_unseen_fails_the_rebuild():
    model = tiny.moe()
    block = model.module.model.layers[0].mlp
    plain, calls = type(block).forward, []

    def forward(hidden):
        calls.append(None)
        return plain(block, hidden) + 0.1 * len(calls)

    block.forward = forward
    with pytest.raises(CaptureError, match="proof of rebuild: expected the block's output"):
        check_capture(model)


def test_experts_that_do_nothing_fail_causality():
    model = tiny.moe()
    model.module.model.layers[2].mlp.experts.down_proj.zero_()
    with pytest.raises(CaptureError, match="proof of causality: expected logits that change"):
        check_capture(model)


def test_a_model_that_looks_ahead_fails_causality():
    model = tiny.moe()
    model.module.model.layers[2].register_forward_hook(lambda m, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(CaptureError, match="proof of causality: expected (no earlier token|logits that change)"):
        check_capture(model)


def test_a_batch_that_leaks_into_its_rows_fails_padding():
    model = tiny.moe()
    embedding = model.module.model.embed_tokens
    embedding.register_forward_hook(lambda m, args, out: out + out.mean(0, keepdim=True) * (len(out) > 1))
    with pytest.raises(CaptureError, match="proof of padding: expected the same experts for a document alone"):
        check_capture(model)


def broken_capture(monkeypatch, breaking):
    """Captures that a fault in the workbench itself would give; the model is as it should be."""
    run = Tracer.run

    def broken(self, *args, **options):
        trace = run(self, *args, **options)
        return replace(trace, routers=tuple(breaking(i, trace.routers) for i in range(len(trace.routers))))

    monkeypatch.setattr(Tracer, "run", broken)


def test_ids_of_the_layer_before_are_caught(monkeypatch):
    broken_capture(monkeypatch, lambda i, routers: replace(routers[i], ids_TK=routers[i - 1].ids_TK))
    with pytest.raises(CaptureError, match="layer 0 mlp: .*proof of top-k: expected chosen ids with the k largest"):
        check_capture(tiny.moe())


def test_ids_and_logits_of_the_layer_before_are_caught(monkeypatch):
    """Consistent with each other, and of another layer: no look at one capture alone would tell."""
    broken_capture(
        monkeypatch,
        lambda i, routers: replace(
            routers[i - 1],
            **{name: getattr(routers[i], name) for name in DEEP},
        ),
    )
    with pytest.raises(CaptureError, match="layer 0 mlp: .*proof of logits: expected the router's linear map"):
        check_capture(tiny.moe())


DEEP = ("linear_input", "hidden_TC", "routed_TC", "block_inputs", "block_output")


def test_probabilities_given_as_logits_are_caught(monkeypatch):
    broken_capture(monkeypatch, lambda i, routers: replace(routers[i], logits_TE=routers[i].logits_TE.softmax(-1)))
    with pytest.raises(CaptureError, match="expected raw router logits, found rows that are non-negative and sum to 1"):
        check_capture(tiny.moe())


def test_a_choice_derived_again_from_bfloat16_logits_is_caught(monkeypatch):
    def derived(i, routers):
        rounded_TE = routers[i].logits_TE.bfloat16().float()
        return replace(routers[i], ids_TK=rounded_TE.topk(3, dim=-1).indices)

    broken_capture(monkeypatch, derived)
    model = tiny.moe(n_experts=64)  # many experts stand close to the border
    with pytest.raises(CaptureError, match="proof of (top-k|weights|rebuild)"):
        check_capture(model)


def test_padding_that_is_kept_is_caught(monkeypatch):
    def without_mask(trace, batch, facts, *, with_logits):
        whole = torch.full_like(batch.lengths_B, batch.ids_BS.shape[1])
        return routing.routing_columns(trace, BatchTokens(batch.ids_BS, whole), facts, with_logits=with_logits)

    monkeypatch.setattr(padding, "routing_columns", without_mask)
    with pytest.raises(CaptureError, match="proof of padding: expected 63 tokens .*padding was kept"):
        check_capture(tiny.moe())
