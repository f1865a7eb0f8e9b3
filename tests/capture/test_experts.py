"""The field `experts`: compared with a loop over tokens and experts, and against what must be refused."""

import numpy as np
import pytest
import torch

from tests import tiny
from workbench.capture.contributions import ExpertTracer
from workbench.capture.generate import Generation
from workbench.capture.hooks import Tracer, _keys
from workbench.capture.record import record
from workbench.errors import CaptureError, RecordingError
from workbench.metrics.contribution import contribution, shared_share

FIELDS = ("routing", "experts")


@pytest.fixture
def own():
    """A model of the test's own, to be broken."""
    return tiny.moe()


def plainly(model, ids):
    """Of one document: per layer contributions [T, K], and share, projection, cosine [T, 3], outputs by loops."""
    seen = {}
    blocks = {layer: model.module.model.layers[layer].mlp for layer in model.topology.moe_layers}
    handles = [
        block.register_forward_pre_hook(lambda _, args, layer=layer: seen.__setitem__(layer, args[0][0]))
        for layer, block in blocks.items()
    ]
    model.module(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    found = {}
    for layer, block in blocks.items():
        added, parts = [], []
        for x in seen[layer]:
            score = (block.gate.weight @ x).softmax(-1)
            chosen = score.topk(block.gate.top_k).indices
            outs = []
            for expert in chosen:
                gate, up = (block.experts.gate_up_proj[expert] @ x).chunk(2)
                outs.append(block.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
            s = (block.shared_expert_gate.weight @ x).sigmoid() * block.shared_expert(x)
            r = sum(score[expert] * out for expert, out in zip(chosen, outs, strict=True))
            added.append((score[chosen].numpy(), torch.stack(outs).numpy()))
            parts.append((s.numpy(), r.numpy()))
        weights_TK, outputs_TKC = (np.stack(each).astype(np.float64) for each in zip(*added, strict=True))
        of = shared_share(*(np.stack(each).astype(np.float64) for each in zip(*parts, strict=True)))
        found[layer] = contribution(weights_TK, outputs_TKC), np.stack([of.share_T, of.projection_T, of.cosine_T], -1)
    return found


def test_it_is_what_a_loop_over_tokens_and_experts_gives(moe, recording):
    corpus = tiny.corpus()
    for number in (0, 7, 31):
        plain = plainly(moe, corpus.documents[number].token_ids)
        for layer, (added_TK, parts_T3) in plain.items():
            at = f"layer{layer:02d}"
            names = [f"{at}.shared_share", f"{at}.shared_projection", f"{at}.shared_cosine"]
            read = recording.of_document(number, [f"{at}.contribution", *names])
            # in whatever order the ids stand
            np.testing.assert_allclose(
                np.sort(read[f"{at}.contribution"].astype(float)), np.sort(added_TK), rtol=1e-3, atol=1e-6
            )
            parts = np.stack([read[name].astype(float) for name in names], -1)
            np.testing.assert_allclose(parts, parts_T3, rtol=2e-3, atol=2e-3)


def test_sums_of_documents_are_the_sums_of_their_tokens(recording):
    document_T = recording.column("document")
    for layer in recording.moe_layers:
        ids_TK, added_TK = recording.ids(layer), recording.contribution(layer).astype(float)
        for row, document in enumerate(recording.column("document", table="documents")):
            mine = document_T == document
            plain_E = np.zeros(8)
            np.add.at(plain_E, ids_TK[mine].reshape(-1), added_TK[mine].reshape(-1))
            np.testing.assert_allclose(recording.contribution_sum(layer)[row], plain_E, rtol=2e-3, atol=1e-5)


def test_the_sum_of_norms_is_at_least_the_norm_of_the_sum(moe):
    """A limit: only where experts agree do their norms add up."""
    trace = ExpertTracer(moe).run(torch.arange(3, 43)[None])
    deep = Tracer(moe.module, moe.topology).run(torch.arange(3, 43)[None], deep=True)
    for reduced, whole in zip(trace.routers, deep.routers, strict=True):
        routed_T = whole.routed_TC.norm(dim=-1)
        assert (reduced.contribution_TK.sum(-1) >= routed_T * (1 - 1e-6)).all()
        assert reduced.routed_TC is None and reduced.shared_TC is None and reduced.experts_inputs is None


def test_an_expert_scaled_by_three_adds_three_times_as_much(own):
    ids_BS = torch.arange(3, 43)[None]
    before = ExpertTracer(own).run(ids_BS).routers[-1]
    own.module.model.layers[2].mlp.experts.down_proj[5] *= 3
    after = ExpertTracer(own).run(ids_BS).routers[-1]
    mine_TK = before.ids_TK == 5
    assert mine_TK.any()
    torch.testing.assert_close(after.contribution_TK[mine_TK], 3 * before.contribution_TK[mine_TK])
    torch.testing.assert_close(after.contribution_TK[~mine_TK], before.contribution_TK[~mine_TK])


def test_a_silent_shared_expert_has_no_share_and_one_alone_has_all(own):
    ids_BS = torch.arange(3, 43)[None]
    block = own.module.model.layers[0].mlp
    kept = block.shared_expert.down_proj.weight.clone()
    block.shared_expert.down_proj.weight.zero_()
    share, projection, cosine = ExpertTracer(own).run(ids_BS).routers[0].shared_T3.unbind(-1)
    assert (share == 0).all() and (projection == 0).all() and cosine.isnan().all()
    block.shared_expert.down_proj.weight.copy_(kept)
    block.experts.down_proj.zero_()
    share, projection, _ = ExpertTracer(own).run(ids_BS).routers[0].shared_T3.unbind(-1)
    torch.testing.assert_close(share, torch.ones(40))
    torch.testing.assert_close(projection, torch.ones(40))


def test_what_is_written_step_by_step_is_what_one_pass_gives(moe, tmp_path):
    corpus = tiny.corpus(n_documents=6, shortest=5, longest=8)
    written = record(moe, corpus, tmp_path / "r", fields=FIELDS, generation=Generation(5))
    decode, frame = written.of_phase("decode"), written.tokens().sort_values(["document", "position"])
    tracer = ExpertTracer(moe)
    for document, part in frame.groupby("document"):
        trace = tracer.run(torch.tensor([part["token"].tolist()]))
        mine, n_new = decode.column("document") == document, int((part["phase"] == "decode").sum())
        for router, capture in zip(moe.topology.routers, trace.routers, strict=True):
            np.testing.assert_allclose(
                decode.contribution(router.layer)[mine], capture.contribution_TK[-n_new:].numpy(), rtol=2e-3, atol=1e-5
            )
            share = decode.router_statistic("shared_share", router.layer)[mine]
            np.testing.assert_allclose(share, capture.shared_T3[-n_new:, 0].numpy(), rtol=2e-3)


def test_without_the_field_nothing_more_is_read(moe):
    for router in moe.topology.routers:
        plain = _keys(router, deep=False, outputs=False)
        assert f"out:{router.experts_path}" not in plain and f"out:{router.shared_path}" not in plain
        assert {f"out:{router.experts_path}", f"out:{router.shared_path}"} <= set(
            _keys(router, deep=False, outputs=True)
        )


def test_the_proof_is_in_the_manifest(recording):
    proof = recording.manifest["experts_check"]
    assert proof["routers"] == 2
    assert proof["sum_error"] <= 1e-5 and proof["added_error"] <= 1e-5
    assert proof["routed_scale"] == {"0 mlp": 1.0, "2 mlp": 1.0}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, out: out * out.norm(dim=-1, keepdim=True), "its experts, called one by one, sum to its output with"),
        (lambda x, out: out + 1e-3 * x, "its experts, called one by one, sum to its output with"),
    ],
)
def test_experts_that_do_not_add_up_are_refused_before_anything_is_written(own, tmp_path, broken, message):
    experts = own.module.model.layers[2].mlp.experts
    experts.register_forward_hook(lambda _, args, out: broken(args[0], out))
    with pytest.raises(CaptureError, match=rf"tiny-random-moe \(qwen2_moe\), layer 2 mlp: .*{message}"):
        record(own, tiny.corpus(), tmp_path / "r", fields=FIELDS, check=False)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, out: out / out.norm(dim=-1, keepdim=True), "it is transformed before it is added"),
        (lambda x, out: out + x, "its block puts out more than routed and shared output"),
    ],
)
def test_a_block_that_does_more_than_add_is_refused(own, broken, message):
    own.module.model.layers[0].mlp.register_forward_hook(lambda _, args, out: broken(args[0], out))
    with pytest.raises(CaptureError, match=f"layer 0 mlp: what an expert adds cannot be told: {message}"):
        ExpertTracer(own)


def test_a_block_that_scales_its_output_is_found_out(own):
    plain = ExpertTracer(own).run(torch.arange(3, 43)[None]).routers[0]
    own.module.model.layers[0].mlp.register_forward_hook(lambda _, args, out: 2.5 * out)
    tracer = ExpertTracer(own)
    assert tracer.report.routed_scale["0 mlp"] == pytest.approx(2.5, rel=1e-6)
    scaled = tracer.run(torch.arange(3, 43)[None]).routers[0]
    torch.testing.assert_close(scaled.contribution_TK, 2.5 * plain.contribution_TK)
    torch.testing.assert_close(scaled.shared_T3, plain.shared_T3)


def test_broken_experts_are_named(own, tmp_path):
    tracer_made = record(own, tiny.corpus(n_documents=3), tmp_path / "good", fields=FIELDS)
    assert tracer_made.n_documents == 3
    own.module.model.layers[2].mlp.experts.down_proj[:, 0, 0] = torch.nan
    with pytest.raises(CaptureError):
        record(own, tiny.corpus(n_documents=3), tmp_path / "r", fields=FIELDS, check=False)


def test_experts_go_with_routing(moe, tmp_path):
    with pytest.raises(RecordingError, match="'experts' are those of the routing and go with it; give routing,experts"):
        record(moe, tiny.corpus(), tmp_path / "r", fields=("experts",))
