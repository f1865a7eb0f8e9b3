"""The analyses of structure, against plain loops over the recording's tokens, and what they refuse."""

import dataclasses
from collections import Counter, defaultdict
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest

from analyses.comparison import saturation
from analyses.domains import same_token
from analyses.structure import activated, coactivation, layer_flow, repetition, segment_consistency
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.recordings.recording import Recording

K, E = 3, 8


def documents_of(recording, layer):
    """The tokens of each document in the order of its text: (position, token id, ids, top-1)."""
    frame = recording.tokens()
    weights = recording.weights(layer)
    found = defaultdict(list)
    columns = (frame["document"], frame["position"], frame["token"], recording.ids(layer), weights)
    for document, position, token, ids, weight in zip(*columns, strict=True):
        best = min(e for e, w in zip(ids.tolist(), weight.tolist(), strict=True) if w == weight.max())
        found[document].append((position, token, set(ids.tolist()), best))
    return {document: sorted(tokens, key=lambda token: token[0]) for document, tokens in found.items()}


@pytest.fixture(scope="module")
def alone(moe, tmp_path_factory) -> Recording:
    """One document."""
    return record(moe, tiny.corpus(n_documents=1, shortest=30), tmp_path_factory.mktemp("alone") / "r")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Recording:
    """Another model over the same corpus, in other shards."""
    out = tmp_path_factory.mktemp("other") / "r"
    return record(tiny.moe(seed=1), tiny.corpus(), out, batch_tokens=128, shard_tokens=400)


class Quiet(Recording):
    """A recording in which expert 6 is never chosen: expert 5, or 4 where that is taken, stands in."""

    def parts(self, columns, *, table="tokens"):
        for part in super().parts(columns, table=table):
            yield {name: self._without(values) if name.endswith(".ids") else values for name, values in part.items()}

    def _without(self, ids_TK):
        free_TE = ~(ids_TK[:, :, None] == np.arange(E)).any(axis=1)
        free_TE[:, 6] = False
        return np.where(ids_TK == 6, free_TE.argmax(axis=1)[:, None], ids_TK).astype(ids_TK.dtype)

    def counts(self, layer, *, site=None):
        rows = np.unique(self.column("document"), return_inverse=True)[1]
        ids_TK = self.ids(layer)
        return np.stack([np.bincount(ids_TK[rows == d].ravel(), minlength=E) for d in range(rows.max() + 1)])


def test_coactivation_counts_every_pair(recording):
    result = coactivation.run(recording)
    for layer in recording.moe_layers:
        pairs, chosen, n_tokens = Counter(), Counter(), 0
        for tokens in documents_of(recording, layer).values():
            for _, _, ids, _ in tokens:
                n_tokens += 1
                chosen.update(ids)
                pairs.update(combinations(sorted(ids), 2))
        for row in result.matrix[result.matrix["layer"] == layer].itertuples():
            if row.expert == row.other:
                assert np.isnan(row.lift) and row.together == chosen[row.expert]
                continue
            together = pairs[tuple(sorted((row.expert, row.other)))]
            assert row.together == together
            assert row.probability == pytest.approx(together / chosen[row.expert])
            assert row.lift == pytest.approx(together * n_tokens / (chosen[row.expert] * chosen[row.other]))
    known = result.pairs.dropna(subset=["low"])
    assert (
        len(known)
        and ((known["low"] <= known["lift_over_matched"]) & (known["lift_over_matched"] <= known["high"])).all()
    )
    assert (result.layers["never_chosen"] == 0).all()
    assert result.layers["p"].between(1 / 21, 1).all()
    drawn = coactivation.figures(result)["by_layer"].table.set_index(["routing", "layer"])["share"]
    of_layer = result.layers.set_index("layer")
    for name, column in (("model, all text", "estimate"), ("sets swapped in documents, sample", "swapped")):
        assert drawn[name].to_dict() == of_layer[column].to_dict()


@pytest.mark.parametrize(("module", "layer"), [(coactivation, 2), (layer_flow, 0)])
def test_a_layer_counted_alone_is_as_among_all(recording, module, layer):
    alone, among = module.run(recording, module.Settings(layer=layer)), module.run(recording)
    for name, frame in module.tables(alone).items():
        same = module.tables(among)[name]
        same = same[same["layer"] == layer].reset_index(drop=True) if "layer" in same else same
        if "layer" in same or among.layer == layer:
            pd.testing.assert_frame_equal(frame, same)
        assert len(frame)
    several = {"by_layer"} if among.layers["layer"].nunique() > 1 else set()
    assert set(module.figures(among)) - set(module.figures(alone)) == several
    with pytest.raises(AnalysisError, match=r"layer 99 has no .*; set layer to one of \[0"):
        module.run(recording, module.Settings(layer=99))


def test_coactivation_of_an_expert_that_is_never_chosen(recording):
    result = coactivation.run(Quiet(recording.path, recording.manifest))
    assert (result.layers["never_chosen"] == 1).all()
    quiet = result.matrix[(result.matrix["expert"] == 6) | (result.matrix["other"] == 6)]
    assert quiet["lift_over_matched"].isna().all()
    assert "2 experts are never chosen" in coactivation.figures(result)["pair_map"].caption


def test_repetition_by_counting(recording):
    result = repetition.run(recording)
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    for layer in recording.moe_layers:
        sums = defaultdict(lambda: np.zeros(4))
        for document, tokens in documents_of(recording, layer).items():
            for (_, _, one, first), (_, _, two, second) in pairwise(tokens):
                pair = (first == second, bool(one & two), len(one & two) / K, 1)
                for domain in (domain_of[document], "all domains"):
                    sums[domain] += pair
        for row in result.rates[result.rates["layer"] == layer].itertuples():
            i = list(repetition.MEASURES.values()).index(row.measure)
            assert row.value == pytest.approx(sums[row.domain][i] / sums[row.domain][3])
            assert row.pairs == sums[row.domain][3]
    whole = result.rates[result.rates["domain"] == "all domains"]
    np.testing.assert_allclose(whole[whole["measure"] == "share in common"]["uniform"], K / E)
    np.testing.assert_allclose(whole[whole["measure"] == "same top-1 expert"]["uniform"], 1 / E)


def test_layer_flow_by_counting(recording):
    result = layer_flow.run(recording)
    one, two = (documents_of(recording, layer) for layer in recording.moe_layers)
    flow, chosen, successor = Counter(), Counter(), Counter()
    for document, tokens in one.items():
        for (_, _, before, _), (_, _, after, _) in zip(tokens, two[document], strict=True):
            chosen.update(before)
            successor.update(after)
            flow.update((i, j) for i in before for j in after)
    n_tokens = sum(chosen.values()) / K
    for row in result.flow.itertuples():
        assert row.tokens == flow[row.expert, row.next_expert]
        assert row.probability == pytest.approx(flow[row.expert, row.next_expert] / chosen[row.expert])
    best = sum(max(flow[i, j] for j in range(E)) for i in range(E)) / (K * n_tokens)
    row = result.layers.set_index("measure").loc["best successor"]
    assert row["value"] == pytest.approx(best)
    assert row["marginal"] == pytest.approx(max(successor.values()) / n_tokens)
    assert (row["layer"], row["next_layer"]) == recording.moe_layers
    np.testing.assert_allclose(result.flow.groupby("expert")["permuted"].sum(), K)


def test_same_token_goes_over_all_pairs(recording):
    result = same_token.run(recording)
    layer = recording.moe_layers[0]
    tokens = [
        (document, token, position, ids)
        for document, of in documents_of(recording, layer).items()
        for position, token, ids, _ in of
    ]
    same, others, at_position = [], [], []
    for i, (document, token, position, ids) in enumerate(tokens):
        for other_document, other_token, other_position, other_ids in tokens[i + 1 :]:
            if document != other_document:
                (same if token == other_token else others).append(len(ids & other_ids) / K)
                if position == other_position:
                    at_position.append(len(ids & other_ids) / K)
    rows = result.agreement[(result.agreement["layer"] == layer) & (result.agreement["weight"] == "pairs")]
    rows = rows.set_index("same")
    assert rows.loc["token", "value"] == pytest.approx(np.mean(same))
    assert rows.loc["token", "others"] == pytest.approx(np.mean(others))
    assert rows.loc["token", "pairs"] == len(same)
    assert rows.loc["position", "value"] == pytest.approx(np.mean(at_position))
    assert rows.loc["token", "excess"] > 0.1 > abs(rows.loc["position", "excess"])
    assert (rows["low"] <= rows["excess"]).all() and (rows["excess"] <= rows["high"]).all()


def test_same_token_holds_few_layers_at_once(recording, monkeypatch):
    whole = same_token.run(recording)
    monkeypatch.setattr(same_token, "_CELLS", 1)
    assert same_token.run(recording).agreement.equals(whole.agreement)


def test_in_one_domain_all_pairs_have_it_in_common(moe, tmp_path):
    corpus = tiny.corpus(n_documents=12)
    documents = tuple(dataclasses.replace(document, domain="code") for document in corpus.documents)
    single = record(moe, dataclasses.replace(corpus, documents=documents), tmp_path / "r")
    assert same_token.run(single).agreement["same"].unique().tolist() == ["token", "position"]
    assert set(repetition.run(single).rates["domain"]) == {"code"}


def test_segment_consistency_by_counting(recording):
    result = segment_consistency.run(recording, segment_consistency.Settings(window=5))
    layer = recording.moe_layers[1]
    windows = []
    for tokens in documents_of(recording, layer).values():
        sets_ = [ids for _, _, ids, _ in tokens]
        windows += [Counter(e for ids in sets_[s : s + 5] for e in ids) for s in range(len(sets_) - 4)]
    assert result.windows == len(windows)

    def f1(tau: int, experts=range(E)) -> float:
        on = sum(window[e] >= tau for window in windows for e in experts)
        found = sum(window[e] for window in windows for e in experts if window[e] >= tau)
        return 2 * found / (5 * on + sum(window[e] for window in windows for e in experts))

    row = result.layers.set_index("layer").loc[layer]
    assert row["value"] == pytest.approx(max(f1(tau) for tau in range(6)))
    assert row["all_on"] == pytest.approx(2 * K / (E + K))
    own = result.experts[result.experts["layer"] == layer].set_index("expert")["value"]
    for expert in range(E):
        assert own[expert] == pytest.approx(max(f1(tau, [expert]) for tau in range(6)))
    short = sum(len(tokens) < 5 for tokens in documents_of(recording, layer).values())
    assert result.left_out == short


def test_activated_by_counting(recording):
    result = activated.run(recording, activated.Settings(largest=16))
    layer = recording.moe_layers[0]
    rows = result.runs[result.runs["layer"] == layer].set_index("tokens")
    assert rows.index.tolist() == [1, 2, 4, 8, 16]
    for n, row in rows.iterrows():
        found = [
            len(set().union(*(ids for _, _, ids, _ in tokens[s : s + n])))
            for tokens in documents_of(recording, layer).values()
            for s in range(0, len(tokens) - n + 1, n)
        ]
        assert row["value"] == pytest.approx(np.mean(found)) and row["runs"] == len(found)
        assert row["uniform"] == pytest.approx(E * (1 - (1 - K / E) ** n))
    assert rows.loc[1, ["value", "shuffled", "anywhere"]].tolist() == pytest.approx([K] * 3)
    long = activated.run(recording)
    caption = activated.figures(long)["by_tokens"].caption
    assert long.left_out == (64, 128, 256) and "No document has 64 neighbouring tokens" in caption


def test_a_recording_agrees_with_itself_and_less_with_another(recording, other):
    itself = saturation.run(recording, recording).agreement
    assert (itself["value"] == 1).all() and (itself["whole_sets"] == 1).all()
    result = saturation.run(recording, other, saturation.Settings(experts="same"))
    rows = result.agreement.set_index(["layer", "domain"])
    for layer in recording.moe_layers:
        mine, theirs = documents_of(recording, layer), documents_of(other, layer)
        shares = [
            len(one[2] & two[2]) / K
            for document, tokens in mine.items()
            for one, two in zip(tokens, theirs[document], strict=True)
        ]
        row = rows.loc[(layer, "all domains")]
        assert row["value"] == pytest.approx(np.mean(shares)) and row["tokens"] == len(shares)
        assert row["whole_sets"] == pytest.approx(np.mean([share == 1 for share in shares]))
        assert abs(row["value"] - row["load_matched"]) < 0.1  # two unrelated models
    back = saturation.run(other, recording, saturation.Settings(experts="same")).agreement
    np.testing.assert_allclose(back.set_index(["layer", "domain"]).loc[rows.index, "value"], rows["value"])


@pytest.mark.parametrize("module", [coactivation, layer_flow, repetition, segment_consistency, activated])
def test_one_document_has_values_and_no_interval(module, alone):
    result = module.run(alone)
    tables = module.tables(result)
    assert "fewer than 8 clusters" in result.note
    assert all(table["low"].isna().all() for table in tables.values() if "low" in table)
    assert module.figures(result)


def test_one_document_has_no_pairs_of_documents(alone):
    with pytest.raises(AnalysisError, match="same_token: .* has one document, and a pair is of two"):
        same_token.run(alone)


def test_texts_of_one_token_have_no_neighbours(moe, tmp_path):
    short = record(moe, tiny.corpus(n_documents=10, shortest=1, longest=2), tmp_path / "r")
    with pytest.raises(AnalysisError, match=r"repetition: no document of .* has 2 tokens at neighbouring positions\. "):
        repetition.run(short)
    with pytest.raises(AnalysisError, match=r"segment_consistency: no document of .* has 2 tokens at neighbouring"):
        segment_consistency.run(short)
    assert activated.run(short).runs["tokens"].unique().tolist() == [1]


def test_one_expert_a_token_has_no_pairs(tmp_path):
    single = record(tiny.moe(top_k=1), tiny.corpus(n_documents=10), tmp_path / "r")
    with pytest.raises(AnalysisError, match="every layer chooses one expert a token, or all; there are no pairs"):
        coactivation.run(single)
    for module in (layer_flow, repetition, segment_consistency, same_token, activated):
        assert module.figures(module.run(single))


def test_one_moe_layer_has_no_flow(tmp_path):
    one = record(tiny.moe(dense_layers=(1, 2)), tiny.corpus(n_documents=10), tmp_path / "r")
    with pytest.raises(AnalysisError, match="layer_flow: .* has no two MoE layers with as many experts"):
        layer_flow.run(one)


def test_a_shown_layer_is_chosen(recording):
    assert coactivation.run(recording, coactivation.Settings(layer=2)).matrix["layer"].unique().tolist() == [2]
    assert layer_flow.run(recording, layer_flow.Settings(layer=0)).next_layer == 2


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (coactivation, {"layer": 1}, r"coactivation: layer 1 has no router; set layer to one of \[0, 2\]"),
        (coactivation, {"n_pairs": 0}, "coactivation: n_pairs is 0; 1 or more was expected"),
        (layer_flow, {"layer": 2}, r"layer 2 has no MoE layer of its shape after it; set layer to one of \[0\]"),
        (layer_flow, {"sample_tokens": 0}, "layer_flow: sample_tokens is 0; 1 or more"),
        (repetition, {"n_draws": 0}, "repetition: n_draws is 0; 1 or more was expected, 20 gives p down to .05"),
        (segment_consistency, {"window": 1}, "window is 1; 2 to 255 tokens were expected"),
        (segment_consistency, {"sample_tokens": 0}, "segment_consistency: sample_tokens is 0"),
        (activated, {"largest": 0}, "activated: largest is 0; 1 or more was expected"),
    ],
)
def test_what_makes_no_sense_is_refused(recording, module, settings, message):
    with pytest.raises(AnalysisError, match=message):
        module.run(recording, module.Settings(**settings))
