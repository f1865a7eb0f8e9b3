"""What the recorder computes on the device, against the plain definitions of the metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import tiny
from workbench.capture.hooks import RouterCapture, Trace
from workbench.capture.routing import BatchTokens, logprob_columns, router_scores, routing_columns
from workbench.errors import CaptureError
from workbench.metrics import load
from workbench.metrics import router as plain
from workbench.models.loading import load as load_model
from workbench.recordings.vocabulary import TokenBytes, printable, vocabulary_table

LENGTHS = (9, 4, 1)


def captured(*, n_experts: int, top_k: int, scoring: str):
    """One router over three padded rows, with a topology that has only it."""
    generator = torch.Generator().manual_seed(0)
    n_positions = len(LENGTHS) * max(LENGTHS)
    logits_TE = 2 * torch.randn(n_positions, n_experts, generator=generator)
    score_TE = router_scores(logits_TE, scoring)
    weights_TK, ids_TK = score_TE.topk(top_k, dim=-1)
    facts = tiny.moe().topology
    router = replace(facts.routers[0], n_experts=n_experts, top_k=top_k, scoring=scoring, shared_gate=False)
    trace = Trace(torch.empty(0), (RouterCapture(logits_TE, ids_TK, weights_TK, None),))
    batch = BatchTokens(torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long), torch.tensor(LENGTHS))
    valid_T = batch.mask_BS.reshape(-1).numpy()
    return trace, batch, replace(facts, routers=(router,)), valid_T


def test_a_margin_that_means_nothing_is_not_known():
    """Of groups, the first not chosen may never have been a candidate; by token id, no score decides."""
    trace, batch, facts, _ = captured(n_experts=8, top_k=2, scoring="softmax")
    for changed in ({"n_groups": 4, "groups_chosen": 2}, {"choice": "hash"}):
        other = replace(facts, routers=(replace(facts.routers[0], **changed),))
        tokens, _ = routing_columns(trace, batch, other, with_logits=False)
        assert np.isnan(tokens["layer00.margin"]).all() and np.isfinite(tokens["layer00.entropy"]).all()


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 2), (64, 8), (300, 3), (4, 1), (4, 4)])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_columns_equal_the_plain_metrics(n_experts, top_k, scoring):
    trace, batch, facts, valid_T = captured(n_experts=n_experts, top_k=top_k, scoring=scoring)
    tokens, documents = routing_columns(trace, batch, facts, with_logits=True)
    capture = trace.routers[0]
    logits_TE = capture.logits_TE.numpy()[valid_T].astype(np.float64)
    ids_TK = capture.ids_TK.numpy()[valid_T]
    exp_TE = np.exp(logits_TE) if scoring == "softmax" else 1 / (1 + np.exp(-logits_TE))
    score_TE = exp_TE / exp_TE.sum(1, keepdims=True)
    selection_TE = score_TE if scoring == "softmax" else exp_TE
    half = {"rtol": 1e-3, "atol": 2e-6}
    np.testing.assert_array_equal(tokens["layer00.ids"], ids_TK)
    assert tokens["layer00.ids"].dtype == (np.uint8 if n_experts <= 256 else np.uint16)
    np.testing.assert_allclose(tokens["layer00.entropy"], plain.token_entropy(score_TE), **half)
    np.testing.assert_allclose(tokens["layer00.margin"], plain.margin(selection_TE, ids_TK), **half)
    np.testing.assert_allclose(tokens["layer00.topk_mass"], plain.topk_mass(score_TE, ids_TK), **half)
    assert np.isnan(tokens["layer00.logsumexp"]).all() == (scoring == "sigmoid")
    document_T = np.repeat(np.arange(3), LENGTHS)
    counts_DE = load.document_counts(ids_TK, document_T, n_documents=3, n_experts=n_experts)
    np.testing.assert_array_equal(documents["layer00.counts"], counts_DE)
    for d in range(3):
        inside = document_T == d
        np.testing.assert_allclose(documents["layer00.score_sum"][d], score_TE[inside].sum(0), rtol=1e-5, atol=1e-6)
        mass_E = load.gate_mass(ids_TK[inside], capture.weights_TK.numpy()[valid_T][inside], n_experts=n_experts)
        np.testing.assert_allclose(documents["layer00.weight_sum"][d], mass_E, rtol=1e-5, atol=1e-6)


def masked(*, n_experts: int, top_k: int, closed: tuple[int, ...], scoring: str = "softmax", **facts):
    """As `captured`, with experts that a bias of minus infinity closes."""
    trace, batch, topology, valid_T = captured(n_experts=n_experts, top_k=top_k, scoring=scoring)
    logits_TE = trace.routers[0].logits_TE.clone()
    logits_TE[:, list(closed)] = -torch.inf
    score_TE = router_scores(logits_TE, scoring)
    weights_TK, ids_TK = score_TE.topk(top_k, dim=-1)
    topology = replace(topology, routers=(replace(topology.routers[0], **facts),))
    return Trace(torch.empty(0), (RouterCapture(logits_TE, ids_TK, weights_TK, None),)), batch, topology, valid_T


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_experts_that_are_masked_leave_the_columns_finite(scoring):
    trace, batch, facts, valid_T = masked(n_experts=8, top_k=2, closed=(1, 5), scoring=scoring)
    tokens, documents = routing_columns(trace, batch, facts, with_logits=True)
    score_TE = router_scores(trace.routers[0].logits_TE, scoring).double().numpy()[valid_T]
    np.testing.assert_allclose(tokens["layer00.entropy"], plain.token_entropy(score_TE), rtol=1e-3, atol=2e-6)
    assert np.isfinite(tokens["layer00.margin"]).all() and np.isfinite(tokens["layer00.topk_mass"]).all()
    assert np.isfinite(tokens["layer00.logsumexp"]).all() == (scoring == "softmax")
    assert np.isneginf(tokens["layer00.logits"][:, [1, 5]]).all()
    assert not documents["layer00.counts"][:, [1, 5]].any() and not documents["layer00.score_sum"][:, [1, 5]].any()


def test_a_margin_to_masked_experts_alone_is_not_known():
    """Two of four are open and chosen: by logits, the first not chosen is infinitely far, and was no candidate."""
    trace, batch, facts, _ = masked(n_experts=4, top_k=2, closed=(0, 3), choice="logits")
    tokens, _ = routing_columns(trace, batch, facts, with_logits=False)
    assert np.isnan(tokens["layer00.margin"]).all()


def test_a_router_that_chooses_by_a_number_of_its_own_is_refused():
    """As phimoe, which always chooses two; without the proofs nothing else says so."""
    trace, batch, facts, _ = captured(n_experts=8, top_k=2, scoring="softmax")
    of_one = replace(facts, routers=(replace(facts.routers[0], top_k=1),))
    with pytest.raises(CaptureError, match=r"layer 0 .* chose 2 experts for each token, and 1 by the model's config"):
        routing_columns(trace, batch, of_one, with_logits=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_scores_that_mean_nothing_are_refused(value):
    trace, batch, facts, _ = captured(n_experts=8, top_k=2, scoring="softmax")
    logits_TE = trace.routers[0].logits_TE
    logits_TE[3] = -torch.inf if value is None else logits_TE[3]  # every expert masked
    logits_TE[3, 2] = -torch.inf if value is None else value
    with pytest.raises(CaptureError, match=r"layer 0 .*: router logits or weights are NaN or infinite in row 0"):
        routing_columns(trace, batch, facts, with_logits=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logits_TE", "layer 0: logits reach 1e\\+30, .* Record without the field 'logits'"),
        ("weights_TK", "layer 0: weights reach 1e\\+30, and a recording keeps weights as float16, up to 65,504"),
    ],
)
def test_what_float16_cannot_hold_is_refused(name, message):
    trace, batch, facts, _ = captured(n_experts=8, top_k=2, scoring="softmax")
    getattr(trace.routers[0], name)[2, 1] = 1e30
    with pytest.raises(CaptureError, match=message):
        routing_columns(trace, batch, facts, with_logits=True)


def test_scores_beyond_float16_are_recorded_where_they_are_not_kept():
    """Without the field, only what is made of them stands on disk, and that is exact."""
    trace, batch, facts, _ = captured(n_experts=8, top_k=2, scoring="softmax")
    trace.routers[0].logits_TE[2, 1] = 1e30
    tokens, _ = routing_columns(trace, batch, facts, with_logits=False)
    assert tokens["layer00.logsumexp"][2] == pytest.approx(1e30)


def test_a_row_of_one_token_has_no_loss():
    logits_BSV = torch.randn(2, 3, 11)
    batch = BatchTokens(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    tokens, documents = logprob_columns(logits_BSV, batch)
    expected = logits_BSV[0].log_softmax(-1)
    np.testing.assert_allclose(tokens["logprob"], [np.nan, expected[0, 2], expected[1, 3], np.nan], rtol=1e-5)
    assert tokens["predicted"].tolist() == [*logits_BSV[0].argmax(-1).tolist(), int(logits_BSV[1, 0].argmax())]
    assert documents["loss"][0] == pytest.approx(-(expected[0, 2] + expected[1, 3]).item() / 2, rel=1e-5)
    assert np.isnan(documents["loss"][1])


def test_chunks_do_not_change_logprobs(monkeypatch):
    logits_BSV = torch.randn(2, 50, 11)
    batch = BatchTokens(torch.randint(0, 11, (2, 50)), torch.tensor([50, 37]))
    whole, _ = logprob_columns(logits_BSV, batch)
    monkeypatch.setattr("workbench.capture.routing._CHUNK_VALUES", 77)
    parts, _ = logprob_columns(logits_BSV, batch)
    np.testing.assert_array_equal(parts["logprob"], whole["logprob"])
    np.testing.assert_array_equal(parts["predicted"], whole["predicted"])


def test_pieces_of_tokens_join_to_the_text():
    tokenizer = load_model("tiny-moe").tokenizer
    text = "naïve 水位 <b>&amp;</b>\n\tdef f(x): return 42  # привет 😀"
    ids = tokenizer(text)["input_ids"]
    assert b"".join(TokenBytes(tokenizer)(token) for token in ids).decode() == text
    table = vocabulary_table(tokenizer, np.array(ids)).to_pandas()
    assert table["token"].is_monotonic_increasing
    assert all(piece.isprintable() for piece in table["text"])


def test_what_cannot_be_printed_becomes_a_sign():
    assert printable(b"a\n\tb\r") == "a⏎⇥b␍"
    assert printable("水".encode()[:2]) == "\\xe6\\xb0"
    assert printable(b"\x00\x1b") == "\\x00\\x1b"
    assert printable(b"<script>") == "<script>"


def test_without_a_tokenizer_ids_stand_for_themselves():
    table = vocabulary_table(None, np.array([7, 3, 7])).to_pandas()
    assert table["text"].tolist() == ["<3>", "<7>"]
