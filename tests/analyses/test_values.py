"""What the analyses' tables say, against plain loops over the recording's tokens."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest

from analyses.domains import domain_load
from analyses.routing import expert_load, load_balance, router_confidence, token_routing
from analyses.structure import coactivation, repetition
from tests import tiny
from tests.importers import sources
from workbench.errors import AnalysisError
from workbench.metrics import load
from workbench.recordings.importers.build import import_trace
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters


def tokens_of(recording, layer):
    """(document, position, ids, weights) of each token, one by one."""
    frame = recording.tokens()
    columns = frame["document"], frame["position"], recording.ids(layer), recording.weights(layer)
    return zip(*columns, strict=True)


def test_expert_load_counts_every_choice(recording):
    table = expert_load.run(recording).experts
    for layer in recording.moe_layers:
        counted: Counter = Counter()
        mass: Counter = Counter()
        for _, _, ids, weights in tokens_of(recording, layer):
            counted.update(ids.tolist())
            for expert, weight in zip(ids.tolist(), weights.tolist(), strict=True):
                mass[expert] += weight
        rows = table[table["layer"] == layer].set_index("expert")
        total, total_mass = sum(counted.values()), sum(mass.values())
        for expert in range(8):
            assert rows.loc[expert, "assignments"] == counted[expert]
            assert rows.loc[expert, "load_over_balance"] == pytest.approx(8 * counted[expert] / total)
            assert rows.loc[expert, "weight_over_balance"] == pytest.approx(8 * mass[expert] / total_mass, rel=2e-3)
            assert rows.loc[expert, "low"] <= rows.loc[expert, "load_over_balance"] <= rows.loc[expert, "high"]


def test_load_balance_by_its_definitions(recording):
    result = load_balance.run(recording)
    layer = recording.moe_layers[0]
    counts_DE = recording.counts(layer).astype(float)
    count_E = counts_DE.sum(0)
    rows = result.layers[result.layers["layer"] == layer].set_index("measure")
    share_E = count_E / count_E.sum()
    assert rows.loc["coefficient of variation", "value"] == pytest.approx(count_E.std() / count_E.mean())
    assert rows.loc["max violation", "value"] == pytest.approx(count_E.max() / count_E.mean() - 1)
    assert rows.loc["min violation", "value"] == pytest.approx(1 - count_E.min() / count_E.mean())
    entropy = -(share_E[share_E > 0] * np.log(share_E[share_E > 0])).sum()
    assert rows.loc["entropy / ln E", "value"] == pytest.approx(entropy / np.log(8))
    assert rows.loc["effective experts", "value"] == pytest.approx(np.exp(entropy))
    gaps = np.abs(count_E[:, None] - count_E[None]).mean() / (2 * count_E.mean())
    assert rows.loc["Gini", "value"] == pytest.approx(gaps)
    mean_score_E = recording.score_sum(layer).sum(0) / recording.n_tokens
    assert rows.loc["balance loss", "value"] == pytest.approx(8 * (share_E * mean_score_E).sum(), rel=1e-5)
    test = result.tests.set_index("layer").loc[layer]
    assert test["tokens"] == recording.n_tokens
    assert 0 < test["effective_tokens"] < recording.n_tokens  # documents of one domain look alike
    clusters = Clusters.of(recording.documents()["domain"].to_numpy())
    assert test["imbalance"] == pytest.approx(float(load.imbalance(recording.counts(layer), clusters=clusters)))
    assert 0.001 <= test["p"] <= 0.2  # fifty documents, and routers that are far from balance


def test_documents_prefer_experts_beyond_what_their_length_explains(recording):
    documents = load_balance.run(recording).documents
    assert (documents["squared_cv"] > documents["drawn_from_corpus"]).all()
    assert (documents["drawn_from_corpus"] > documents["uniform_routing"]).all()
    gap = documents["squared_cv"] - documents["drawn_from_corpus"]
    np.testing.assert_allclose(documents["preference"], gap)


def test_router_confidence_is_the_mean_over_tokens(recording):
    result = router_confidence.run(recording)
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    layer = recording.moe_layers[1]
    entropy_T = recording.router_statistic("entropy", layer).astype(float) / np.log(8)
    frame = recording.tokens().assign(entropy=entropy_T)
    by_domain = frame.groupby(frame["document"].map(domain_of))["entropy"].mean()
    rows = result.domains[(result.domains["layer"] == layer) & (result.domains["statistic"] == "entropy / ln E")]
    np.testing.assert_allclose(rows.set_index("domain")["mean"], by_domain.loc[rows["domain"]], rtol=1e-6)
    whole = result.layers[(result.layers["layer"] == layer) & (result.layers["statistic"] == "entropy / ln E")].iloc[0]
    assert whole["mean"] == pytest.approx(entropy_T.mean())
    assert whole["q50"] == pytest.approx(np.quantile(entropy_T, 0.5, method="inverted_cdf"))
    first = result.positions[(result.positions["layer"] == layer) & (result.positions["position"] == "0")]
    assert first.iloc[0]["mean"] == pytest.approx(frame[frame["position"] == 0]["entropy"].mean())
    assert first.iloc[0]["tokens"] == recording.n_documents


def chosen_by(recording, **rule) -> Recording:
    """The recording, said to be of routers that choose in another way."""
    stated = recording.topology.to_json()
    routers = [{**router, **rule} for router in stated["routers"]]
    return Recording(recording.path, {**recording.manifest, "topology": {**stated, "routers": routers}})


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"n_groups": 4, "groups_chosen": 2}, "no margin where a router chooses 3 of 8 by softmax, in 2 of 4 groups"),
        ({"choice": "hash"}, "no margin where a router chooses 3 of 8 by a hash of the token id"),
        ({"top_k": 8}, "no margin where a router chooses 8 of 8 by softmax"),
    ],
)
def test_a_margin_that_is_not_defined_is_left_out_and_that_is_said(recording, rule, words):
    result = router_confidence.run(chosen_by(recording, **rule))
    assert set(result.layers["statistic"]) == {"entropy / ln E", "top-k mass"} and result.note.startswith(words)
    by_domain = router_confidence.figures(result)["confidence_by_domain"]
    assert "margin between" not in by_domain.caption and words in by_domain.caption
    assert "margin" not in token_routing.run(chosen_by(recording, **rule)).tokens


def test_the_margin_says_what_it_is_a_difference_of(recording):
    for scoring, words in (
        ("softmax", "(probabilities)"),
        ("sigmoid", "sigmoid scores and correction biases, not"),
    ):
        result = router_confidence.run(chosen_by(recording, scoring=scoring))
        assert words in router_confidence.figures(result)["confidence_by_domain"].caption and not result.note


def test_nulls_of_random_sets_say_that_they_know_no_groups(recording):
    grouped = chosen_by(recording, n_groups=4, groups_chosen=2)
    for module in (repetition, coactivation):
        assert "random sets are drawn from all experts, though the model chooses 3 of 8" in module.run(grouped).note
        assert not module.run(recording).note


def test_z_loss_is_that_of_all_tokens_and_only_of_softmax_routers(recording):
    result = router_confidence.run(recording)
    assert tuple(result.z_loss["layer"]) == recording.moe_layers
    for row in result.z_loss.itertuples():
        logsumexp_T = recording.router_statistic("logsumexp", row.layer)
        assert row.mean == pytest.approx(load.z_loss(logsumexp_T))
        assert row.logsumexp == pytest.approx(logsumexp_T.mean(dtype=float))
        assert row.low < row.mean < row.high and row.undecided == pytest.approx(np.log(8) ** 2)
    sigmoid = chosen_by(recording, scoring="sigmoid")
    assert "z_loss" not in router_confidence.tables(router_confidence.run(sigmoid))


def test_domain_load_is_the_rate_within_the_domain(recording):
    result = domain_load.run(recording)
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    layer = recording.moe_layers[0]
    chosen: dict[str, Counter] = defaultdict(Counter)
    n_tokens: Counter = Counter()
    for document, _, ids, _ in tokens_of(recording, layer):
        chosen[domain_of[document]].update(ids.tolist())
        n_tokens[domain_of[document]] += 1
    for row in result.experts[result.experts["layer"] == layer].itertuples():
        assert row.rate == pytest.approx(chosen[row.domain][row.expert] / n_tokens[row.domain])
        assert row.balanced == pytest.approx(3 / 8)
    share_ME = np.array([[chosen[m][e] / (3 * n_tokens[m]) for e in range(8)] for m in tiny.DOMAINS])

    def bits(share):
        return -(share[share > 0] * np.log2(share[share > 0])).sum()

    information = bits(share_ME.mean(0)) - np.mean([bits(share_E) for share_E in share_ME])
    row = result.information.set_index("layer").loc[layer]
    assert row["value"] == pytest.approx(information)
    assert row["p"] <= 0.01  # the corpus' domains use other token ids
    assert 0 < row["permuted"] < row["value"] <= row["ceiling"]


def test_domain_information_of_the_model_beside_itself_as_untrained(recording):
    result = domain_load.run(recording, domain_load.Settings(layer=2, untrained=str(recording.path)))
    assert result.information["untrained"].to_numpy() == pytest.approx(result.information["value"].to_numpy())
    drawn = domain_load.figures(result)
    assert "untrained router" in set(drawn["information"].table["router"])
    assert set(drawn["domain_map"].table["layer"]) == {2}
    assert "untrained" not in domain_load.run(recording).information
    with pytest.raises(AnalysisError, match=r"domain_load: layer 1 has no router; set layer to one of \[0, 2\]"):
        domain_load.run(recording, domain_load.Settings(layer=1))


def test_token_routing_shows_the_document_in_its_order(recording):
    corpus = tiny.corpus()
    result = token_routing.run(recording, token_routing.Settings(document="d7", layer=2))
    assert result.tokens["text"].tolist() == [f"<{token}>" for token in corpus.documents[7].token_ids]
    assert result.tokens["position"].tolist() == list(range(len(result.tokens)))
    rows = np.flatnonzero(recording.tokens()["document"] == 7)
    ids_TK, weights_TK = recording.ids(2)[rows], recording.weights(2)[rows]
    for i, row in result.tokens.iterrows():
        assert row["top1"] == ids_TK[i][0] and weights_TK[i][0] == max(weights_TK[i])
        assert row["chosen"].startswith(f"{ids_TK[i][0]} ({weights_TK[i][0]:.3f})")
    assert set(result.layers["layer"]) == {0, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            token_routing.Settings(document="none"),
            "has no document 'none'; set document to one of its 50 ids, such as d0",
        ),
        (token_routing.Settings(layer=1), r"layer 1 has no router; set layer to one of \[0, 2\]"),
        (token_routing.Settings(first=900), "first is 900 and last 160; the document has"),
    ],
)
def test_token_routing_refuses_what_is_not_there(recording, settings, message):
    with pytest.raises(AnalysisError, match=message):
        token_routing.run(recording, settings)


def test_the_map_of_another_layer_is_that_of_a_run_for_it(recording):
    from analyses.domains import domain_load

    everything, wanted = domain_load.run(recording), domain_load.Settings(layer=2)
    for seen in (domain_load.viewed(everything, wanted), domain_load.run(recording, wanted)):
        assert seen.shown == [2]
        assert set(domain_load.figures(seen)["domain_map"].table["layer"]) == {2}
        pd.testing.assert_frame_equal(seen.experts, everything.experts)


def test_first_choices_have_their_own_load_and_violation(recording):
    """By hand from ids and weights: the busiest first choice over the mean, minus 1, and experts that never are one."""
    layer, n_experts = recording.moe_layers[0], 8
    chosen = zip(recording.ids(layer), recording.weights(layer), strict=True)
    first_T = [int(ids[weights.argmax()]) for ids, weights in chosen]
    counts_E = np.bincount(first_T, minlength=n_experts)
    rows = load_balance.run(recording).layers
    found = rows[rows["layer"] == layer].set_index("measure")
    at = f"max violation {load_balance.OF_FIRST}"
    assert found.loc[at, "value"] == pytest.approx(counts_E.max() / counts_E.mean() - 1)
    assert found.loc[at, "low"] <= found.loc[at, "value"] <= found.loc[at, "high"]
    assert found.loc[f"dead experts {load_balance.OF_FIRST}", "value"] == (counts_E == 0).sum()
    result = expert_load.run(recording)
    of_layer = result.experts[result.experts["layer"] == layer].sort_values("expert")
    np.testing.assert_allclose(of_layer["first_over_balance"], counts_E / counts_E.mean())
    at = result.layers[result.layers["layer"] == layer].iloc[0]
    assert at["highest_first"] == pytest.approx(counts_E.max() / counts_E.mean())
    assert at["unused_first"] == (counts_E == 0).sum()


def test_without_ranks_first_choices_are_absent_with_the_reason(tmp_path):
    file = sources.numpy_file(tmp_path / "trace.npz")
    unranked, ranked = (
        import_trace("numpy", file, tmp_path / str(known), n_experts=4, ids_ranked=known) for known in (False, True)
    )
    rows = load_balance.run(unranked).layers
    rows = rows[rows["measure"].str.endswith(load_balance.OF_FIRST)]
    assert rows["value"].isna().all() and (rows["note"] == "not known: which of a token's experts came first").all()
    assert "first_over_balance" not in expert_load.run(unranked).experts
    known = load_balance.run(ranked).layers.set_index(["layer", "measure"])["value"]
    first_T = sources.IDS_TLK[:, 0, 0]
    assert known[1, f"max violation {load_balance.OF_FIRST}"] == np.bincount(first_T).max() / (len(first_T) / 4) - 1
