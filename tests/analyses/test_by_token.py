"""Specialization, context, capacity, position, gate and scopes: their tables against plain loops over the tokens."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analyses.domains import context, position, same_token, specialization
from analyses.read import order, token_tables
from analyses.read.chunks import chunks, ranked
from analyses.routing import balance_scope, capacity, router_confidence, shared_expert
from analyses.structure import segment_consistency
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.metrics import load
from workbench.recordings.corpus import Corpus
from workbench.recordings.recording import Recording

FEW = specialization.Settings(min_count=3, n_permutations=5, n_seeds=2)


def tokens_of(recording, layer):
    """document → [(token, predicted, ids by falling weight)] in order."""
    found = defaultdict(list)
    frame = recording.tokens()
    rows = zip(
        frame["document"], frame["position"], frame["token"], frame["predicted"], recording.ids(layer),
        recording.weights(layer), strict=True,
    )  # fmt: skip
    for document, place, token, predicted, ids, weights in rows:
        ranks = sorted(range(len(ids)), key=lambda k: (-float(weights[k]), int(ids[k])))
        found[document].append((place, token, predicted, [int(ids[k]) for k in ranks]))
    return {document: [row[1:] for row in sorted(rows)] for document, rows in found.items()}


@pytest.fixture(scope="module")
def by_token(recording):
    return specialization.run(recording, FEW)


@pytest.fixture(scope="module")
def one_domain(moe, tmp_path_factory) -> Recording:
    documents = tuple(replace(d, domain="all") for d in tiny.corpus(n_documents=12).documents)
    return record(moe, Corpus("one", documents), tmp_path_factory.mktemp("one") / "r")


@pytest.fixture(scope="module")
def one_document(moe, tmp_path_factory) -> Recording:
    documents = tiny.corpus(n_documents=1, shortest=40).documents
    return record(moe, Corpus("single", documents), tmp_path_factory.mktemp("single") / "r")


# ---- specialization ----


@pytest.mark.parametrize("layer", [0, 2])
def test_sharpness_by_counting(recording, by_token, layer):
    seen, chosen = defaultdict(Counter), defaultdict(Counter)
    for rows in tokens_of(recording, layer).values():
        for t, (token, predicted, ids) in enumerate(rows):
            labels = {"input token": token, "predicted next token": predicted}
            if t + 1 < len(rows):
                labels["true next token"] = rows[t + 1][0]
            for label, v in labels.items():
                seen[label][v] += 1
                for e in ids:
                    chosen[label, "all"][v, e] += 1
                chosen[label, "first"][v, ids[0]] += 1
    table = by_token.vocabulary
    for row in table[table["layer"] == layer].itertuples():
        kept = [v for v, n in seen[row.label].items() if n >= 3]
        most = sum(max(chosen[row.label, row.choices][v, e] for e in range(8)) for v in kept)
        total = sum(seen[row.label][v] for v in kept)
        assert row.value == pytest.approx(most / total)
        assert row.ids == len(kept)
        assert row.share_counted == pytest.approx(total / sum(seen[row.label].values()))
        assert row.balanced == pytest.approx(1 / 8 if row.choices == "first" else 3 / 8)
        assert row.balanced < row.permuted <= row.permuted_high
    assert set(table["label"]) == {"input token", "predicted next token", "true next token"}


def test_controls_are_what_they_say(recording, by_token):
    table = by_token.vocabulary.set_index(["layer", "label", "choices"])
    assert (table.xs("input token", level="label")["hashed"] == 1).all()
    # layer 0 sees the token and its surroundings: far over the null, under the hash
    first = table.loc[0, "input token", "first"]
    assert first["permuted_high"] < first["value"] < 1
    assert first["p"] == pytest.approx(1 / 6)
    gains = by_token.predictability.set_index(["layer", "label"])
    assert 0 < gains.loc[(0, "input token"), "value"] < gains.loc[(0, "input token"), "ceiling"]
    assert (by_token.given_token["hashed"] == 0).all()


def test_the_model_beside_itself_as_untrained(recording, by_token):
    beside = specialization.run(recording, replace(FEW, n_permutations=0, untrained=str(recording.path)))
    for table, value in (("vocabulary", "value"), ("predictability", "value"), ("given_token", "value")):
        frame = specialization.tables(beside)[table]
        np.testing.assert_allclose(frame["untrained"], frame[value])
    assert beside.vocabulary["permuted"].isna().all()
    drawn = specialization.figures(beside)
    assert "untrained router" in set(drawn["vocabulary"].table["router"])
    assert "sets permuted in documents" not in set(drawn["vocabulary"].table["router"])


def test_the_contexts_of_the_model_beside_itself_as_untrained(recording):
    beside = context.run(recording, context.Settings(untrained=str(recording.path)))
    np.testing.assert_allclose(beside.gains["untrained"], beside.gains["gain"])
    plain = context.run(recording)
    pd.testing.assert_frame_equal(beside.gains.drop(columns=["untrained", "unit"]), plain.gains.drop(columns="unit"))
    assert beside.gains["unit"].str.contains("untrained").all()  # which is in bits too
    figure = context.figures(beside)["beside_controls"]
    assert set(figure.table["router"]) == {"model", "untrained router", "hash of the token id"}
    assert "tiny-random-moe, before training of its own" in figure.caption
    assert "untrained router" not in set(context.figures(plain)["beside_controls"].table["router"])


def test_an_untrained_recording_of_other_text_or_shape_is_refused(recording, one_document, moe, tmp_path):
    with pytest.raises(AnalysisError, match="specialization: untrained is .*, whose corpus differs from that of"):
        specialization.run(recording, replace(FEW, untrained=str(one_document.path)))
    with pytest.raises(AnalysisError, match="context: untrained is .*, whose corpus differs from that of"):
        context.run(recording, context.Settings(untrained=str(one_document.path)))
    other = record(tiny.moe(n_experts=4, top_k=2), tiny.corpus(), tmp_path / "r")
    with pytest.raises(AnalysisError, match="whose set of routers differs from that of"):
        specialization.run(recording, replace(FEW, untrained=str(other.path)))


def test_one_domain_or_one_document_is_answered_as_far_as_it_goes(one_domain, one_document):
    for recording in (one_domain, one_document):
        result = specialization.run(recording, FEW)
        assert set(specialization.tables(result)) == {"vocabulary", "predictability"}
        assert "no token id stands in two domains" in result.note
        assert specialization.figures(result)
    assert (specialization.run(one_document, FEW).predictability["value"] == 0).all()  # nothing to learn from
    assert specialization.run(one_document, FEW).vocabulary["low"].isna().all()


# ---- context ----


def test_the_first_step_is_token_predictability(recording, by_token):
    gains = context.run(recording).gains
    token = gains[(gains["context"] == "token") & (gains["step"] == 1)].set_index("layer")["gain"]
    alone = by_token.predictability.set_index(["label", "layer"]).loc["input token", "value"]
    np.testing.assert_allclose(token, alone.loc[token.index])
    assert gains[(gains["order"] == "token first") & (gains["layer"] == 2)]["context"].tolist() == [
        "token", "previous token", "position", "domain", "previous layer",
    ]  # fmt: skip
    assert gains[(gains["order"] == "token last") & (gains["layer"] == 0)]["context"].tolist() == [
        "domain", "position", "previous token", "token",
    ]  # fmt: skip
    summed = gains.groupby(["layer", "order"])["added"].sum()
    np.testing.assert_allclose(summed, gains.groupby(["layer", "order"])["gain"].last().loc[summed.index])


def test_a_sample_is_of_whole_documents(recording):
    small = context.run(recording, context.Settings(sample_tokens=200))
    n_tokens = int(small.sampled.split()[0].replace(",", ""))
    assert 200 <= n_tokens < 260
    assert context.run(recording).sampled.startswith(f"{recording.n_tokens:,} tokens of 50")


# ---- capacity ----


def test_drops_of_documents_by_one_queue(recording):
    result = capacity.run(recording, capacity.Settings(group_tokens=300))
    for layer in (0, 2):
        documents = tokens_of(recording, layer).values()
        total = sum(3 * len(rows) for rows in documents)
        for factor in capacity.FACTORS:
            dropped = 0
            for rows in documents:
                room = int(np.ceil(factor * 3 * len(rows) / 8 - 1e-9))
                dropped += sum(max(n - room, 0) for n in Counter(e for *_, ids in rows for e in ids).values())
            found = result.shares.set_index(["layer", "groups", "factor"]).loc[(layer, "document", factor)]
            assert found["dropped"] == pytest.approx(dropped / total)
            assert found["uniform"] <= found["dropped"]


def test_places_add_up_to_the_share_and_lean_to_the_end(recording):
    result = capacity.run(recording, capacity.Settings(group_tokens=300))
    assert (
        result.batches
        == f"{recording.n_tokens // 300} batches of 300 tokens, {recording.n_tokens % 300} tokens left out"
    )
    by = ["layer", "groups", "factor"]
    places = result.places.assign(weighted=result.places["dropped"] * result.places["tokens"])
    for served in ("first choices first", "token by token"):
        sums = places[places["served"] == served].groupby(by)[["weighted", "tokens"]].sum()
        share = (sums["weighted"] / sums["tokens"]).xs("batch of 300", level="groups")
        whole = result.shares.set_index(by)["dropped"].xs("batch of 300", level="groups")
        np.testing.assert_allclose(share, whole.loc[share.index])  # the sample holds every batch
    queue = places[(places["served"] == "token by token") & (places["factor"] == 1.0)]
    ends = queue.groupby("tenth")["dropped"].mean()
    assert ends[10] > ends[1]
    assert (queue[(queue["tenth"] == 1)]["dropped"] < 0.05).all()


def test_a_recording_of_fewer_tokens_is_one_batch(one_document):
    result = capacity.run(one_document)
    assert result.batches == f"1 batches of {one_document.n_tokens} tokens"
    assert "no interval of 1 batches: 8 are needed" in result.note
    assert result.shares["low"].isna().all()
    assert capacity.figures(result)


# ---- position ----


def test_positions_by_counting(recording):
    table = position.run(recording).positions
    for layer in (0, 2):
        first = Counter(e for rows in tokens_of(recording, layer).values() for e in rows[0][-1])
        row = table[(table["layer"] == layer) & (table["position"] == "0")].iloc[0]
        counts_E = np.array([first[e] for e in range(8)])
        assert row["tokens"] == row["documents"] == recording.n_documents
        assert row["effective_experts"] == pytest.approx(float(load.effective_experts(counts_E)))
        whole_E = recording.counts(layer).sum(axis=0)
        share_E, all_E = counts_E / counts_E.sum(), whole_E / whole_E.sum()
        kept = share_E > 0
        bits = (share_E[kept] * np.log2(share_E[kept] / all_E[kept])).sum()
        assert row["divergence"] == pytest.approx(bits)
        assert 0 < row["permuted"] < 1


def test_sets_permuted_beforehand_do_not_drift(recording):
    """A recording whose sets were permuted within documents, first tokens in their place: its p is any of 21."""

    class Permuted(Recording):
        def parts(self, columns, *, table="tokens"):
            for part in super().parts(columns, table=table):
                moved = [name for name in columns if name.endswith(".ids")]
                if moved:
                    later = part["position"] > 0
                    shuffled = np.arange(len(later))
                    rng = np.random.default_rng(7)
                    for document in np.unique(part["document"]):
                        inside = np.flatnonzero((part["document"] == document) & later)
                        shuffled[inside] = rng.permutation(inside)
                    part |= {name: part[name][shuffled] for name in moved}
                yield part

    drift = position.run(Permuted(recording.path, recording.manifest)).drift
    assert (drift["value"] < 1.5 * drift["permuted_high"]).all()
    assert drift["p"].max() > 1 / 21


# ---- the shared expert's gate ----


def test_the_gate_is_read_off_every_token(recording):
    result = shared_expert.run(recording)
    domain_of = dict(zip(recording.documents()["document"], recording.documents()["domain"], strict=True))
    frame = recording.tokens()
    for layer in (0, 2):
        gate_T = recording.router_statistic("shared_gate", layer).astype(float)
        row = result.layers.set_index("layer").loc[layer]
        assert row["mean"] == pytest.approx(gate_T.mean())
        assert row["low"] < row["mean"] < row["high"]
        for quantile in (5, 25, 50, 75, 95):
            found = np.quantile(gate_T, quantile / 100, method="inverted_cdf")
            assert row[f"q{quantile:02d}"] == pytest.approx(found)
        assert row["first"] == pytest.approx(gate_T[frame["position"] == 0].mean())
        by_domain = frame.assign(gate=gate_T).groupby(frame["document"].map(domain_of))["gate"].mean()
        rows = result.domains[result.domains["layer"] == layer].set_index("domain")
        np.testing.assert_allclose(rows["mean"], by_domain.loc[rows.index])


def test_a_model_without_a_gate_is_refused(recording):
    manifest = {**recording.manifest, "topology": _without_gate(recording), "fields": ["routing"]}
    with pytest.raises(AnalysisError, match="shared_expert: tiny-random-moe has a shared expert without a gate, which"):
        shared_expert.run(Recording(recording.path, manifest))


def _without_gate(recording: Recording) -> dict:
    routers = tuple(replace(router, shared_gate=False) for router in recording.topology.routers)
    return replace(recording.topology, routers=routers).to_json()


# ---- scopes ----


def test_scopes_by_their_definitions(recording):
    result = balance_scope.run(recording, balance_scope.Settings(batch_tokens=300))
    for layer in (0, 2):
        counts_DE = recording.counts(layer).astype(float)
        rows = result.scopes[result.scopes["layer"] == layer].set_index("scope")
        squared = [(c.std() / c.mean()) ** 2 for c in counts_DE]
        assert rows.loc["document", "squared_cv"] == pytest.approx(np.mean(squared))
        tokens_D = counts_DE.sum(axis=1) / 3
        assert rows.loc["document", "chance"] == pytest.approx(np.mean((8 / 3 - 1) / tokens_D))
        whole = counts_DE.sum(axis=0)
        assert rows.loc["corpus", "squared_cv"] == pytest.approx((whole.std() / whole.mean()) ** 2)
        assert rows.loc["batch of 300", "groups"] == recording.n_tokens // 300
        parts = rows[["chance", "corpus", "preference"]].sum(axis=1)
        np.testing.assert_allclose(parts, rows["squared_cv"])
        assert rows.loc["document", "mostly"] in {"own preference", "counting noise", "load of the corpus", "no part"}


def test_routing_without_tastes_is_counting_noise_in_documents(recording):
    """Sets dealt at random: what a document shows is chance, and its interval holds 0."""

    rng = np.random.default_rng(3)

    def dealt(n_tokens: int) -> np.ndarray:
        return np.argsort(rng.random((n_tokens, 8)), axis=1)[:, :3].astype(np.uint8)

    class Dealt(Recording):
        def parts(self, columns, *, table="tokens"):
            for part in super().parts(columns, table=table):
                for name in columns:
                    if name.endswith(".ids"):
                        part[name] = dealt(len(part[name]))
                    elif name.endswith(".counts"):
                        sets = [dealt(int(row.sum()) // 3) for row in part[name]]
                        part[name] = np.stack([np.bincount(ids.ravel(), minlength=8) for ids in sets])
                yield part

    result = balance_scope.run(Dealt(recording.path, recording.manifest), balance_scope.Settings(batch_tokens=300))
    documents = result.scopes[result.scopes["scope"] == "document"]
    assert (documents["mostly"] == "counting noise").all()
    assert (documents["low"] < 0.02).all()


# ---- chunks ----


def test_ranked_ids_are_by_falling_weight_then_id():
    chunk = {
        "ids": np.array([[4, 1, 2], [3, 0, 5], [7, 6, 5]], dtype=np.uint8),
        "weights": np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.1], [0.2, 0.2, 0.2]], dtype=np.float16),
    }
    np.testing.assert_array_equal(ranked(chunk, ["ids", "weights"]), [[4, 1, 2], [0, 3, 5], [5, 6, 7]])
    np.testing.assert_array_equal(ranked(chunk, ["ids"]), chunk["ids"])


def test_chunks_hold_documents_whole_and_in_order(recording):
    parts = list(chunks(recording, ["token"], tokens=300))
    assert len(parts) > 1
    together = np.concatenate([chunk["token"] for chunk in parts])
    assert len(together) == recording.n_tokens
    of_chunk = [set(chunk["document"].tolist()) for chunk in parts]
    assert len(set.union(*of_chunk)) == sum(map(len, of_chunk))
    for chunk in parts:
        for document in np.unique(chunk["document"]):
            inside = chunk["position"][chunk["document"] == document]
            np.testing.assert_array_equal(inside, np.arange(len(inside)))


@pytest.mark.parametrize(
    "module", [same_token, segment_consistency, position, balance_scope, specialization, router_confidence]
)
def test_what_is_kept_does_not_change_what_is_found(recording, monkeypatch, module):
    """In one chunk with all of it kept, as it is read here; and in many, of which nothing is kept."""
    settings = FEW if module is specialization else module.Settings()
    whole = module.tables(module.run(recording, settings))
    monkeypatch.setattr("analyses.read.chunks.CHUNK_TOKENS", 300)
    monkeypatch.setattr("analyses.read.chunks.KEPT_BYTES", 0)
    monkeypatch.setattr(token_tables, "TABLE_TOKENS", 300)
    monkeypatch.setattr(token_tables, "_DRAWN_BYTES", 1)
    monkeypatch.setattr(router_confidence, "_HELD_BYTES", 1)
    for name, table in module.tables(module.run(recording, settings)).items():
        pd.testing.assert_frame_equal(table, whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_first_choice_is_the_heaviest_and_of_equal_ones_the_first_of_the_router_or_the_lowest(dtype):
    """Of the first 200 tokens the weights fall along the ids, so the router told equal ones apart."""
    rng = np.random.default_rng(0)
    ids_TK = np.argsort(rng.random((400, 9)), axis=1)[:, :4].astype(np.uint8)
    weights_TK = rng.integers(-1 if dtype == np.float32 else 0, 4, (400, 4)).astype(dtype) / dtype(4)
    weights_TK[:200] = -np.sort(-weights_TK[:200], axis=1)  # as most routers give them
    for rows in (slice(None), slice(0, 200)):
        of_token = [
            sorted(zip(-weights.astype(float), ids.tolist(), strict=True))
            for ids, weights in zip(ids_TK[rows], weights_TK[rows], strict=True)
        ]
        expected = np.array([[i for _, i in pairs] for pairs in of_token])
        expected = ids_TK[rows] if rows.stop else expected
        np.testing.assert_array_equal(order.first_choice(ids_TK[rows], weights_TK[rows]), expected[:, 0])
        np.testing.assert_array_equal(order.ranked(ids_TK[rows], weights_TK[rows]), expected)


# ---- refusals ----


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (specialization, {"min_count": 0}, "specialization: min_count is 0; 1 or more was expected"),
        (specialization, {"n_permutations": -1}, "specialization: n_permutations is -1; 0 or more was expected"),
        (specialization, {"n_seeds": 0}, "specialization: n_seeds is 0; 1 or more was expected"),
        (context, {"sample_tokens": 0}, "context: sample_tokens is 0; 1 or more was expected"),
        (capacity, {"group_tokens": 0}, "capacity: group_tokens is 0; 1 or more was expected, 2048 is usual"),
        (capacity, {"sample_tokens": 0}, "capacity: sample_tokens is 0; 1 or more was expected"),
        (position, {"n_draws": 0}, "position: n_draws is 0; 1 or more was expected"),
        (balance_scope, {"batch_tokens": 0}, "balance_scope: batch_tokens is 0; 1 or more was expected"),
    ],
)
def test_settings_out_of_range_are_refused(recording, module, settings, message):
    with pytest.raises(AnalysisError, match=message):
        module.run(recording, module.Settings(**settings))


@pytest.mark.parametrize("module", [context, capacity, position, shared_expert, balance_scope])
def test_one_domain_and_one_document_are_answered(module, one_domain, one_document):
    for recording in (one_domain, one_document):
        result = module.run(recording)
        assert all(len(table) for table in module.tables(result).values())
        assert module.figures(result)
