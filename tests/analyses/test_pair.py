"""Two recordings: what is compared, what is said, what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import pairing
from analyses.comparison import differences, saturation
from analyses.read.design import router_stacks
from tests import tiny
from tests.importers import sources
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.metrics.sets import as_bits, overlap
from workbench.models.loading import Model, from_module
from workbench.recordings.importers.build import import_trace
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_documents, renamed


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Recording:
    """Another model of the same shape over the same corpus."""
    return record(tiny.moe(seed=1), tiny.corpus(), tmp_path_factory.mktemp("stranger") / "r")


def named(recording: Recording, **model) -> Recording:
    """The recording, said to be of another model."""
    manifest = {**recording.manifest, "model": {**recording.manifest["model"], **model}}
    if "name" in model:
        manifest["identity"] = {**manifest["identity"], "model": model["name"]}
    return Recording(recording.path, manifest)


def shuffled(model: Model, seed: int) -> tuple[Model, dict[int, np.ndarray]]:
    """The same model with its experts in another order, and the old id of each expert."""
    rng, orders = np.random.default_rng(seed), {}
    for i, layer in enumerate(model.module.model.layers):
        if not hasattr(layer.mlp, "gate"):
            continue
        order = torch.as_tensor(rng.permutation(8))
        layer.mlp.gate.weight.data = layer.mlp.gate.weight.data[order]
        for parameter in layer.mlp.experts.parameters():
            parameter.data = parameter.data[order]
        orders[i] = order.numpy()
    return from_module(model.module, name="tiny-shuffled"), orders


def test_the_same_recording_is_compared_whole(recording):
    both = pairing.pair(recording, recording, analysis="x")
    assert both.one is recording and both.other is recording
    assert both.same_experts and both.said == ()
    assert both.names == ("tiny-random-moe", "tiny-random-moe again")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),  # recorded again
        ({"revision": "step-9", "weights_digest": "other"}, True),
        ({"dtype": "bfloat16", "weights_digest": "other"}, True),
        ({"weights_digest": "other"}, False),  # nothing says why the weights are others
        ({"name": "somebody/else"}, False),
    ],
)
def test_which_experts_are_the_same(recording, change, same):
    both = pairing.pair(recording, named(recording, **change), analysis="x")
    assert both.same_experts == same
    assert ("Experts were matched (the models are different)" in both.words) == (not same)


def test_a_setting_forces_either(recording, stranger):
    assert "as asked" in pairing.pair(recording, recording, analysis="x", experts="matched").words
    forced = pairing.pair(recording, stranger, analysis="x", experts="same")
    assert forced.same_experts and "taken as the same, as asked, though the models are different" in forced.words
    with pytest.raises(AnalysisError, match="x: experts is 'any'; auto, same, matched were expected"):
        pairing.pair(recording, recording, analysis="x", experts="any")


def test_documents_in_common_are_used_and_said(moe, recording, tmp_path):
    corpus = tiny.corpus()
    first = corpus.documents[7]
    changed = list(corpus.documents)
    changed[7] = dataclasses.replace(first, token_ids=((first.token_ids[0] + 1) % 211, *first.token_ids[1:]))
    edited = record(moe, dataclasses.replace(corpus, documents=tuple(changed)), tmp_path / "edited")
    both = pairing.pair(recording, edited, analysis="x")
    assert both.words == "Documents in common: 49; one has 50, the other 50, and 1 differ in their tokens."
    assert 7 not in both.one.documents()["document"].tolist()
    # another corpus that holds a few of the documents, in another order
    few = dataclasses.replace(corpus, documents=tuple(corpus.documents[i] for i in (30, 4, 12)))
    both = pairing.pair(recording, record(moe, few, tmp_path / "few"), analysis="x")
    assert "Documents in common: 3; one has 50, the other 3." in both.words
    ids = [each.documents().sort_values("document")["id"].tolist() for each in (both.one, both.other)]
    assert ids == [["d4", "d12", "d30"]] * 2
    assert (saturation.run(both.one, both.other).agreement["value"] == 1).all()


def test_layers_in_common_are_used_and_said(recording, tmp_path):
    one_layer = record(tiny.moe(dense_layers=(1, 2)), tiny.corpus(), tmp_path / "r")
    both = pairing.pair(recording, one_layer, analysis="x")
    assert "Layers in common: 0; one has 2 MoE layers, the other 1." in both.words
    assert both.one.moe_layers == both.other.moe_layers == (0,)


def test_what_cannot_be_compared_is_refused_with_a_reason(recording, moe, dense, tmp_path):
    corpus = tiny.corpus()
    other_text = tiny.corpus(seed=5)
    relabelled = dataclasses.replace(
        corpus, documents=tuple(dataclasses.replace(d, domain="all one") for d in corpus.documents)
    )
    elsewhere = tiny.moe(dense_layers=(0, 2))
    tokenizer = Recording(recording.path, {**recording.manifest, "tokenizer": {"class": "X", "digest": "ab" * 20}})
    known_only = Recording(tokenizer.path, {**tokenizer.manifest, "source": {"lacks": ["token"]}})
    for other, message in (
        (record(tiny.moe(n_experts=10), corpus, tmp_path / "a"), "one has 8 experts at layer 0, the other 10. Compare"),
        (record(elsewhere, corpus, tmp_path / "b"), r"MoE layers at \[0, 2\], the other at \[1\]. Compare models with"),
        (record(moe, other_text, tmp_path / "c"), "have the same id, and none of them the same tokens. Record the"),
        (record(moe, relabelled, tmp_path / "d"), "their documents have other domains. Record both with the same"),
        (record(dense, corpus, tmp_path / "e"), "tiny-random-dense has no MoE layer"),
        (known_only, "tokenizer not stated, the other with abababababab, and token ids are not known. Record the same"),
    ):
        with pytest.raises(AnalysisError, match=message):
            pairing.pair(recording, other, analysis="x")
    assert pairing.pair(recording, tokenizer, analysis="x").said == ()  # the token ids are the same


def test_other_tokenizers_with_other_tokens_are_refused(recording, moe, tmp_path):
    corpus = tiny.corpus()
    first = corpus.documents[7]
    changed = (
        *corpus.documents[:7],
        dataclasses.replace(first, token_ids=first.token_ids[::-1]),
        *corpus.documents[8:],
    )
    edited = record(moe, dataclasses.replace(corpus, documents=changed), tmp_path / "r")
    other = Recording(edited.path, {**edited.manifest, "tokenizer": {"class": "X", "digest": "ab" * 20}})
    with pytest.raises(AnalysisError, match="abababababab, and 1 of 50 documents have other tokens. Record the same"):
        pairing.pair(recording, other, analysis="x")


def test_phases_are_never_mixed(recording):
    def with_phases(*phases):
        return Recording(recording.path, {**recording.manifest, "phases": list(phases)})

    with pytest.raises(AnalysisError, match="one holds prefill, the other decode, which are never averaged"):
        pairing.pair(recording, with_phases("decode"), analysis="x")
    both = pairing.pair(recording, with_phases("prefill", "decode"), analysis="x")
    assert "only prefill is compared" in both.words and both.other.chosen_phase == "prefill"


def test_k_may_differ(recording, tmp_path):
    fewer = record(tiny.moe(top_k=2), tiny.corpus(), tmp_path / "r")
    table = saturation.run(recording, fewer, saturation.Settings(experts="same")).agreement
    assert (table["attainable"] == 2 / 3).all() and (table["uniform"] == 2 / 8).all()
    at_0 = table[(table["layer"] == 0) & (table["domain"] == "all domains")].iloc[0]
    both = [tokens_by_place(each, 0) for each in (recording, fewer)]
    shares = [len(set(both[0][place]) & set(both[1][place])) / 3 for place in both[0]]
    assert at_0["value"] == pytest.approx(np.mean(shares))
    p_E, q_E = (each.counts(0).sum(0) / each.n_tokens for each in (recording, fewer))
    assert at_0["load_matched"] == pytest.approx((p_E * q_E).sum() / 3)
    assert differences.run(recording, fewer, differences.Settings(experts="same")).measures["a"].notna().any()


def tokens_by_place(recording: Recording, layer: int) -> dict[tuple[int, int], list[int]]:
    frame = recording.tokens()
    return dict(zip(zip(frame["document"], frame["position"], strict=True), recording.ids(layer).tolist(), strict=True))


def test_a_model_with_its_experts_in_another_order_is_found_again(recording, tmp_path):
    model, _ = shuffled(tiny.moe(), seed=3)
    other = record(model, tiny.corpus(), tmp_path / "r", batch_tokens=128, shard_tokens=700)
    unmatched = saturation.run(recording, other, saturation.Settings(experts="same")).agreement
    assert (unmatched["value"] < 0.9).all()
    result = saturation.run(recording, other)
    assert (result.agreement["value"] == 1).all() and (result.agreement["top1"] == 1).all()
    assert "Experts were matched" in result.note and "Matched alike in both halves: 100% to 100%" in result.note


def test_matching_is_fitted_on_the_other_half(recording, stranger):
    """The plain way: each half's documents under the matching that maximizes the other half's overlap."""
    both = pairing.pair(recording, stranger, analysis="x")
    found = pairing.matched(both, analysis="x")
    half_of = found.other.selection.half_of
    assert set(half_of) == {0, 1}
    mine, theirs, after = (tokens_by_place(each, 0) for each in (recording, stranger, found.other))
    for half in (0, 1):
        together_EE = np.zeros((8, 8), dtype=int)
        for (document, position), ids in mine.items():
            if half_of[document] != half:
                together_EE[np.ix_(ids, theirs[document, position])] += 1
        from scipy.optimize import linear_sum_assignment

        one_E, other_E = linear_sum_assignment(-together_EE)
        label = dict(zip(other_E.tolist(), one_E.tolist(), strict=True))
        for (document, position), ids in theirs.items():
            if half_of[document] == half:
                assert after[document, position] == [label[e] for e in ids]


def test_one_document_cannot_be_matched(recording, stranger):
    views = [of_documents(each, np.array([3])) for each in (recording, stranger)]
    with pytest.raises(AnalysisError, match="has one document alone; record more, or take equal ids as equal: --exper"):
        saturation.run(*views)


def test_the_ceiling_is_the_same_model_again(recording, moe, stranger, tmp_path):
    again = record(moe, tiny.corpus(), tmp_path / "again", batch_tokens=128)
    settings = saturation.Settings(ceiling=str(again.path))
    result = saturation.run(recording, stranger, settings)
    assert (
        result.agreement["ceiling"].between(0.99, 1).all() and result.agreement["top1_ceiling"].between(0.99, 1).all()
    )
    assert "Ceiling: shared and again" in result.note and "padded positions of a batch 256 and 128" in result.note
    assert saturation.figures(result)["by_layer"].table["routing"].str.contains("ceiling").any()
    wrong = saturation.Settings(ceiling=str(stranger.path))
    with pytest.raises(AnalysisError, match="saturation: ceiling .* and the ceiling is how far tiny-random-moe agrees"):
        saturation.run(recording, recording, wrong)
    with pytest.raises(AnalysisError, match="saturation: ceiling: .*no is not a folder"):
        saturation.run(recording, recording, saturation.Settings(ceiling=str(tmp_path / "no")))


def test_stacks_pair_the_routers_of_both(recording, tmp_path):
    fewer = record(tiny.moe(top_k=2), tiny.corpus(n_documents=10), tmp_path / "r")
    ((mine, theirs),) = pairing.stacks(recording, fewer)
    assert (mine.top_k, theirs.top_k) == (3, 2)
    assert [r.layer for r in mine.routers] == [r.layer for r in theirs.routers] == [0, 2]
    assert mine.routers == next(router_stacks(recording)).routers


def test_renaming_changes_no_agreement_of_a_recording_with_itself(recording):
    label = {(layer, "mlp"): np.stack([np.roll(np.arange(8), 3)] * 2) for layer in recording.moe_layers}
    view = renamed(recording, np.zeros(50, dtype=int), label)
    bits = [as_bits(each.ids(0), n_experts=8) for each in (view, view)]
    assert (overlap(*bits) == 3).all()


# ---- traces of checkpoints, whose documents go by the names of their files ----


def checkpoint(folder: Path, name: str, lines: list[tuple[list[int], np.ndarray]], **options) -> Recording:
    """An import of OLMoE's format, one document a line."""
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(sources.olmoe_line(ids_TLK, tokens) for tokens, ids_TLK in lines) + "\n")
    return import_trace("olmoe", file, folder / name, n_experts=8, **options)


def lines_of(seed: int, n: int = 10) -> list[tuple[list[int], np.ndarray]]:
    """Documents whose tokens are the same for every seed, and whose experts are not."""
    rng = np.random.default_rng(seed)
    return [([100 + d, *range(6)], np.argsort(rng.random((7, 2, 8)), axis=-1)[..., :2]) for d in range(n)]


def test_checkpoints_are_joined_by_their_tokens_and_their_experts_are_the_same(tmp_path):
    early, late = lines_of(0), lines_of(1)
    one, other = (
        checkpoint(tmp_path, "step-1", early),
        checkpoint(tmp_path, "step-2", late[::-1] + lines_of(2, 12)[10:]),
    )
    result = saturation.run(one, other)
    expected = np.mean(
        [len(set(a) & set(b)) / 2 for (_, x), (_, y) in zip(early, late, strict=True)
         for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True)]
    )  # fmt: skip
    assert result.agreement["value"].iloc[0] == pytest.approx(expected)
    assert (result.agreement["experts"] == "same").all()
    assert "Documents were joined by their tokens" in result.note and "Documents in common: 10" in result.note
    assert "taken as checkpoints of one" in result.note
    matched_too = saturation.run(one, other, saturation.Settings(experts="matched"))
    assert (matched_too.agreement["experts"] == "matched").all()


def test_documents_of_the_same_tokens_are_paired_in_their_order(tmp_path):
    lines = lines_of(0, 3)
    twice = [lines[0], (lines[0][0], lines[1][1]), lines[2]]
    one, other = checkpoint(tmp_path, "a", twice), checkpoint(tmp_path, "b", twice)
    assert (saturation.run(one, other).agreement["value"] == 1).all()


def test_traces_that_name_different_models_are_matched(tmp_path):
    one, other = (
        Recording(each.path, {**each.manifest, "model": {**each.manifest["model"], "name": name}})
        for name in ("a", "b")
        for each in (checkpoint(tmp_path, name, lines_of(0)),)
    )
    assert (saturation.run(one, other).agreement["experts"] == "matched").all()


def test_traces_of_other_tokens_are_refused(tmp_path):
    one = checkpoint(tmp_path, "a", lines_of(0))
    other = checkpoint(tmp_path, "b", [([7, *tokens[1:]], ids_TLK) for tokens, ids_TLK in lines_of(0)])
    with pytest.raises(AnalysisError, match="have the same id, and none of them the same tokens"):
        saturation.run(one, other)
