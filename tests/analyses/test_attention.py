"""The analyses of attention: their numbers by hand, and the split of tokens against a plain twin."""

import numpy as np
import pytest

from analyses.attention import _statistics, attention_groups, attention_heads, attention_profile, attention_routing
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.metrics.attention import BIN_EDGES, PROFILED, by_bin, query_statistics


def documents(recording, layer, name):
    return recording.column(f"layer{layer:02d}.attention.{name}", table="documents").astype(np.float64)


def test_means_are_of_documents_with_equal_weight(recording):
    result = attention_heads.run(recording)
    for layer in range(3):
        heads = result.heads[result.heads["layer"] == layer]
        assert heads["group"].tolist() == [0, 0, 1, 1]
        np.testing.assert_allclose(heads["entropy"], np.nanmean(documents(recording, layer, "entropy"), axis=0))
        np.testing.assert_allclose(heads["max_logit"], np.nanmax(documents(recording, layer, "max_logit"), axis=0))
    scores = recording.manifest["attention"]["probe"]["scores"]["2"]
    assert result.heads[result.heads["layer"] == 2]["probe_induction"].tolist() == scores["induction"]
    entropy = result.statistics[result.statistics["statistic"] == "entropy"]
    assert (entropy["low"] < entropy["value"]).all() and (entropy["value"] < entropy["high"]).all()


def test_roles_follow_the_thresholds(recording):
    loose = attention_heads.run(recording, attention_heads.Settings(local=0.0, collapsed=2.0, sink=2.0))
    by_role = loose.roles.groupby("role")["heads"].sum()
    assert by_role["local"] == by_role["collapsed"] == 12 and by_role["sink"] == 0


def test_a_head_that_looks_everywhere_alike_has_the_uniform_score(recording):
    probe = recording.manifest["attention"]["probe"]
    length = 1 + probe["n_tokens"] * probe["copies"]
    from workbench.metrics.attention import repeated_scores

    weights = np.tril(np.ones((1, length, length)))
    weights /= weights.sum(-1, keepdims=True)
    wanted = repeated_scores(weights, n_tokens=probe["n_tokens"])["induction"]
    np.testing.assert_allclose(attention_heads.run(recording).uniform_induction, wanted)


@pytest.mark.parametrize("statistic", PROFILED)
def test_the_uniform_curve_is_that_of_uniform_weights(statistic):
    weights = np.tril(np.ones((1, 256, 256)))
    weights /= weights.sum(-1, keepdims=True)
    binned = by_bin(query_statistics(weights, np.arange(256))[statistic], np.arange(256))
    np.testing.assert_allclose(attention_profile.uniform(statistic)[:8], binned[0, :8])


def test_profiles_are_means_by_bin(recording):
    result = attention_profile.run(recording, attention_profile.Settings(layer=1, head=3))
    profile_DHb = documents(recording, 1, "entropy.profile").reshape(-1, 4, len(BIN_EDGES))
    with np.errstate(all="ignore"):
        wanted_b = np.nanmean(profile_DHb[:, 3, : int(np.isfinite(profile_DHb).any(axis=(0, 1)).sum())], axis=0)
    one = result.of_head[result.of_head["statistic"] == "entropy"]
    np.testing.assert_allclose(one["value"], wanted_b[np.isfinite(wanted_b)])
    assert one["documents"].tolist() == np.isfinite(profile_DHb[:, 3]).sum(axis=0)[: len(one)].tolist()
    layer = result.layers[(result.layers["layer"] == 1) & (result.layers["statistic"] == "entropy")]
    np.testing.assert_allclose(layer["value"], np.nanmean(profile_DHb[..., : len(layer)], axis=(0, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layer": 9}, "layer 9 has no recorded attention; there are .0, 1, 2."), ({"head": 7}, "heads 0 to 3, and 7")],
)
def test_heads_that_are_not_there_are_refused(recording, settings, message):
    with pytest.raises(AnalysisError, match=message):
        attention_profile.run(recording, attention_profile.Settings(**settings))


def test_an_unknown_statistic_is_named(recording, moe, tmp_path):
    with pytest.raises(AnalysisError, match="no statistic 'vibes'; there are entropy, "):
        attention_heads.run(recording, attention_heads.Settings(statistic="vibes"))
    short = record(moe, tiny.corpus(n_documents=10), tmp_path / "r", fields=("routing", "attention"))
    with pytest.raises(AnalysisError, match="keys90 needs the weights; .*--fields routing,attention,attention-weights"):
        attention_heads.run(short, attention_heads.Settings(statistic="keys90"))


def test_pairs_inside_and_between_groups_by_hand(recording):
    result = attention_groups.run(recording)
    mean = np.nanmean(documents(recording, 2, "divergence"), axis=0).reshape(4, 4) / np.log(2)
    row = result.layers[result.layers["layer"] == 2].iloc[0]
    assert row["inside"] == pytest.approx((mean[0, 1] + mean[2, 3]) / 2)
    assert row["between"] == pytest.approx(mean[:2, 2:].mean())
    assert row["low"] < row["difference"] < row["high"]
    assert result.smallest_p == pytest.approx(1 / 3)  # four heads can be dealt to two pairs in three ways


def test_attention_of_a_dense_model_is_analysed(dense, tmp_path):
    fields = ("logprob", "attention", "attention-weights")
    found = record(dense, tiny.corpus(), tmp_path / "r", fields=fields)
    assert len(attention_heads.run(found).heads) == 8
    assert attention_profile.run(found).layers["layer"].nunique() == 2
    assert len(attention_groups.run(found).layers) == 2


def test_tokens_are_split_in_halves_of_their_document_and_range():
    rng = np.random.default_rng(0)
    chunk = {"document": np.repeat([0, 1], [37, 20]), "position": np.concatenate([np.arange(37), np.arange(20)])}
    value_T = rng.random(57)
    side_T = attention_routing._sides(chunk, value_T, seed=0, draw=0)
    bin_T = np.searchsorted(BIN_EDGES, chunk["position"], side="right")
    for document in (0, 1):
        for b in np.unique(bin_T):
            here = (chunk["document"] == document) & (bin_T == b)
            low, high = value_T[here & (side_T == 0)], value_T[here & (side_T == 1)]
            assert len(low) == len(high) == here.sum() // 2
            assert not len(low) or low.max() < high.min()
    drawn = attention_routing._sides(chunk, None, seed=0, draw=1)
    assert np.array_equal(np.bincount(drawn + 1), np.bincount(side_T + 1)) and not np.array_equal(drawn, side_T)


def test_overlaps_are_those_of_all_pairs(moe, tmp_path):
    found = record(moe, tiny.corpus(n_documents=9), tmp_path / "r", fields=("routing", "attention", "attention-tokens"))
    result = attention_routing.run(found, attention_routing.Settings(n_draws=1))
    for layer in (0, 2):
        tokens = {"document": found.column("document"), "position": found.column("position")}
        value_T = found.column(f"layer{layer:02d}.attention.distance").astype(np.float32).mean(axis=1)
        side_T = attention_routing._sides(tokens, value_T, seed=0, draw=0)
        sets = [set(row) for row in found.ids(layer).tolist()]
        overlaps: dict[tuple[int, int], list[float]] = {}
        for i, one in enumerate(sets):
            for j, other in enumerate(sets):
                if tokens["document"][i] != tokens["document"][j] and side_T[i] >= 0 and side_T[j] >= 0:
                    overlaps.setdefault((side_T[i], side_T[j]), []).append(len(one & other) / 3)
        means = {sides: np.mean(values) for sides, values in overlaps.items()}
        row = result.layers[(result.layers["layer"] == layer) & (result.layers["split"] == "mean distance")].iloc[0]
        assert row["same"] == pytest.approx((means[0, 0] + means[1, 1]) / 2)
        assert row["other"] == pytest.approx(means[0, 1])
        assert row["tokens"] + row["left_out"] == found.n_tokens


def test_experts_that_do_not_follow_attention_are_within_the_permuted(moe, tmp_path, monkeypatch):
    """Ids shuffled within document and range keep everything but the tie to attention; p is then spread evenly."""
    found = record(
        moe, tiny.corpus(n_documents=40), tmp_path / "r", fields=("routing", "attention", "attention-tokens")
    )
    rng = np.random.default_rng(5)
    plain, p = attention_routing.chunks, []

    def shuffled(recording, columns):
        for chunk in plain(recording, columns):
            bin_T = np.searchsorted(BIN_EDGES, chunk["position"], side="right")
            cell_T = chunk["document"].astype(np.int64) * 100 + bin_T
            order = np.lexsort((rng.random(len(cell_T)), cell_T))
            moved = chunk[columns[0]].copy()
            moved[np.argsort(cell_T, kind="stable")] = chunk[columns[0]][order]
            yield {**chunk, columns[0]: moved}

    monkeypatch.setattr(attention_routing, "chunks", shuffled)
    for _ in range(8):
        p += attention_routing.run(found, attention_routing.Settings(n_draws=19)).layers["p"].tolist()
    assert len(p) == 48
    assert 0.3 < np.mean(p) < 0.75  # of a uniform p over .05 to 1 the mean is .525, of 48 that hang together within .1


def test_layers_without_statistics_are_said(recording):
    assert _statistics.not_covered(recording) == ""
    from workbench.recordings.recording import Recording

    facts = recording.manifest["attention"] | {"not_covered": [{"layer": 1, "reason": "no softmax"}] * 1}
    told = Recording(recording.path, recording.manifest | {"attention": facts})
    assert _statistics.not_covered(told) == "Not covered: layer 1 (no softmax)."
