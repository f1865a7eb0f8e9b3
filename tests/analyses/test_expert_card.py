"""One expert's card, against plain loops over the recording's tokens."""

from collections import Counter

import numpy as np
import pytest

from analyses.routing import expert_card
from analyses.routing._expert_tokens import by_token, read_tokens
from analyses.routing._partners import partners
from analyses.structure import coactivation
from workbench.errors import AnalysisError
from workbench.metrics.vocabulary import rate_elsewhere
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters


def test_shares_of_tokens_and_domains_by_counting(recording):
    result = expert_card.run(recording, expert_card.Settings(layer=2, expert=4, min_count=3))
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    seen, chosen, in_domain, domain_tokens = Counter(), Counter(), Counter(), Counter()
    frame = recording.tokens()
    for document, token, ids in zip(frame["document"], frame["token"], recording.ids(2), strict=True):
        hit = 4 in ids
        seen[f"<{token}>"] += 1
        chosen[f"<{token}>"] += hit
        in_domain[domain_of[document]] += hit
        domain_tokens[domain_of[document]] += 1
    assert len(result.tokens) > 5
    for row in result.tokens.itertuples():
        assert (row.count, row.chosen) == (seen[row.text], chosen[row.text])
        assert row.share == pytest.approx(chosen[row.text] / seen[row.text])
        assert row.count >= 3
    for row in result.domains.itertuples():
        assert row.rate == pytest.approx(in_domain[row.domain] / domain_tokens[row.domain])
        assert row.low <= row.rate <= row.high


@pytest.mark.parametrize("spanning", [1, 3, 7, 50])
def test_what_a_domains_words_make_of_the_rate_is_that_of_all_tokens_at_once(recording, spanning):
    """Clusters whose documents stand in several parts, and in one: a part alone would take its documents for others."""
    documents = recording.documents()
    clusters = Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["document"].to_numpy() % spanning)
    tokens = read_tokens(recording, 2, 4)
    found = by_token(tokens, clusters).set_index("domain")
    frame, chosen_T = recording.tokens(), (recording.ids(2) == 4).any(axis=1)
    row_T = documents.set_index("document").index.get_indexer(frame["document"])
    rate_T = rate_elsewhere(frame["token"].to_numpy(), chosen_T, cluster_T=clusters.cluster_D[row_T])
    domain_T = documents["domain"].to_numpy()[row_T]
    for domain in clusters.domains:
        mine_T = rate_T[domain_T == domain]
        assert found.loc[domain, "unseen"] == pytest.approx(np.isnan(mine_T).mean())
        assert found.loc[domain, "by_token"] == pytest.approx(np.nan_to_num(mine_T, nan=chosen_T.mean()).mean())
    assert (found["unseen"].mean() == 1) == (spanning == 1)
    assert len(recording.manifest["parts"]) > 2


def test_without_settings_it_is_the_busiest_expert_of_the_middle_layer(recording):
    result = expert_card.run(recording)
    assert (result.layer, result.expert) == (2, int(recording.counts(2).sum(0).argmax()))


def test_tokens_come_by_assignments_beyond_the_corpus_rate(recording):
    result = expert_card.run(recording, expert_card.Settings(layer=0, n_tokens=200))
    beyond = result.tokens["chosen"] - result.tokens["count"] * result.tokens["corpus_rate"]
    assert (np.diff(beyond) <= 1e-9).all()
    chosen_T = (recording.ids(0) == result.expert).any(axis=1)
    assert result.tokens["corpus_rate"].iloc[0] == pytest.approx(chosen_T.mean())
    assert len(expert_card.run(recording, expert_card.Settings(layer=0, n_tokens=3)).tokens) == 3


def test_a_token_of_few_texts_or_without_exception_has_no_interval(recording):
    tokens = expert_card.run(recording, expert_card.Settings(layer=0, n_tokens=200, min_count=1)).tokens
    unknown = (tokens["clusters"] < 8) | (tokens["share"] == 1)
    assert unknown.any() and (~unknown).any()
    assert tokens.loc[unknown, ["low", "high"]].isna().all(axis=None)
    known = tokens[~unknown]
    assert (known["low"] <= known["share"]).all() and (known["share"] <= known["high"]).all()


def test_contexts_are_the_text_around(recording):
    contexts = expert_card.run(recording, expert_card.Settings(layer=2, n_contexts=6, window=2)).contexts
    frame = recording.tokens().merge(recording.documents()[["document", "id"]], on="document")
    for row in contexts.itertuples():
        text = frame[frame["id"] == row.document].sort_values("position")["token"].map("<{}>".format).tolist()
        assert row.text == text[row.position]
        assert row.before == "".join(text[max(row.position - 2, 0) : row.position])
        assert row.after == "".join(text[row.position + 1 : row.position + 3])


def test_an_expert_that_is_never_chosen_has_a_card_of_zeros(recording):
    class Quiet(Recording):
        def counts(self, layer, *, site=None):
            return super().counts(layer, site=site) * (np.arange(8) != 6)

        def parts(self, columns, *, table="tokens"):
            for part in super().parts(columns, table=table):
                yield {
                    name: np.where(part[name] == 6, 5, part[name]) if ".ids" in name else part[name] for name in part
                }

    result = expert_card.run(Quiet(recording.path, recording.manifest), expert_card.Settings(expert=6))
    assert (result.domains["rate"] == 0).all() and result.domains["lift"].isna().all()
    assert set(expert_card.figures(result)) == {"by_domain"}
    assert all(
        len(result_table) == 0
        for name, result_table in expert_card.tables(result).items()
        if name not in ("domains", "facts")
    )


def test_contexts_hold_the_expert_where_they_say(recording):
    result = expert_card.run(recording, expert_card.Settings(layer=0, expert=1, n_contexts=5, window=3))
    assert len(result.contexts) == 5
    assert (result.contexts["weight"] > 0).all()
    assert np.isfinite(result.context_tokens["weight"]).sum() >= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (expert_card.Settings(layer=1), r"expert_card: layer 1 has no router; set layer to one of \[0, 2\]"),
        (expert_card.Settings(layer=0, expert=8), "layer 0 has no expert 8; set expert to one of 0 to 7"),
        (expert_card.Settings(n_tokens=0), "expert_card: n_tokens is 0; 1 or more was expected"),
        (expert_card.Settings(window=0), "expert_card: window is 0; 1 or more was expected"),
    ],
)
def test_it_refuses_what_is_not_there(recording, settings, message):
    with pytest.raises(AnalysisError, match=message):
        expert_card.run(recording, settings)


def test_partners_by_counting_and_as_the_matrix_of_pairs_has_them(recording):
    found = expert_card.run(recording, expert_card.Settings(layer=2, expert=4)).partners.set_index("other")
    beside = Counter(int(other) for ids in recording.ids(2) if 4 in ids for other in ids if other != 4)
    assert found["together"].to_dict() == {other: beside[other] for other in range(8) if other != 4}
    chosen = int(recording.counts(2)[:, 4].sum())
    assert found["probability"].to_numpy() == pytest.approx(found["together"].to_numpy() / chosen)
    assert ((found["low"] <= found["probability"]) & (found["probability"] <= found["high"])).all()
    matrix = coactivation.run(recording, coactivation.Settings(layer=2, n_draws=1)).matrix
    row = matrix[(matrix["expert"] == 4) & (matrix["other"] != 4)].set_index("other").loc[found.index]
    for column in ("probability", "matched_probability", "lift_over_matched"):
        assert found[column].to_numpy() == pytest.approx(row[column].to_numpy())


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_under_random_routing_partners_are_those_of_random_sets(top_k):
    rng = np.random.default_rng(0)
    n_documents, n_tokens, n_experts = 40, 500, 6
    ids_TK = rng.random((n_documents * n_tokens, n_experts)).argsort(axis=1)[:, :top_k]
    row_T = np.repeat(np.arange(n_documents), n_tokens)
    counts_DE = np.stack([np.bincount(ids_TK[row_T == d].ravel(), minlength=n_experts) for d in range(n_documents)])
    mine_T = (ids_TK == 2).any(axis=1)
    clusters = Clusters.of(np.repeat(["a", "b"], n_documents // 2))
    found = partners(ids_TK[mine_T], row_T[mine_T], counts_DE, 2, clusters=clusters, level=0.999)
    assert len(found) == (0 if top_k == 1 else n_experts - 1)
    assert ((found["low"] < found["matched_probability"]) & (found["matched_probability"] < found["high"])).all()
    if top_k > 1:
        assert found["matched_probability"].to_numpy() == pytest.approx((top_k - 1) / (n_experts - 1), abs=0.02)
        renamed = partners((ids_TK[mine_T] + 1) % 6, row_T[mine_T], np.roll(counts_DE, 1, axis=1), 3,
                           clusters=clusters, level=0.999)  # fmt: skip
        assert sorted(renamed["probability"]) == pytest.approx(sorted(found["probability"]))


def test_what_the_list_of_tokens_hides_is_said(recording):
    token_T, chosen_T = recording.tokens()["token"].to_numpy(), (recording.ids(0) == 1).any(axis=1)
    count_V = np.bincount(token_T)
    chosen_V = np.bincount(token_T[chosen_T], minlength=len(count_V))
    rare = (count_V < 8) & (chosen_V > 0)
    assert rare.any()
    said = expert_card.run(recording, expert_card.Settings(layer=0, expert=1, min_count=8, n_tokens=2)).hidden
    share = 100 * chosen_V[rare].sum() / chosen_V.sum()
    assert said.startswith(f"{rare.sum()} of the {(chosen_V > 0).sum()} token ids that choose it occur fewer than 8")
    assert f"with {share:.1f} % of its assignments" in said
    assert f"{max((chosen_V > 0).sum() - rare.sum() - 2, 0)} more are below" in said
    assert "hidden" in expert_card.run(recording, expert_card.Settings(layer=0, expert=1, min_count=1)).hidden
