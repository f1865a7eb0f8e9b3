"""The overview of two recordings, against plain loops."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analyses.comparison import differences
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.metrics import load, specialization
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Recording:
    """Another model of the same shape over the same corpus, its rows in another order."""
    out = tmp_path_factory.mktemp("other") / "r"
    return record(tiny.moe(seed=1), tiny.corpus(), out, batch_tokens=128, shard_tokens=300)


@pytest.fixture(scope="module")
def result(recording, other) -> differences.Result:
    return differences.run(recording, other, differences.Settings(experts="same"))


def at(result: differences.Result, measure: str, layer: int) -> pd.Series:
    return result.measures.set_index(["measure", "layer"]).loc[(measure, layer)]


def kept_share(recording: Recording, layer: int) -> float:
    frame = recording.tokens().assign(ids=list(recording.ids(layer)))
    shares = []
    for _, document in frame.sort_values("position").groupby("document"):
        sets = [set(ids) for ids in document["ids"]]
        shares += [len(one & two) / 3 for one, two in itertools.pairwise(sets)]
    return float(np.mean(shares))


def test_the_values_are_those_of_the_definitions(recording, other, result):
    for layer in recording.moe_layers:
        for column, each in (("a", recording), ("b", other)):
            clusters = Clusters.of(each.documents()["domain"].to_numpy())
            counts_DE = each.counts(layer)
            row = at(result, differences.IMBALANCE, layer)
            assert row[column] == pytest.approx(float(load.imbalance(counts_DE, clusters=clusters)))
            counts_ME = specialization.domain_counts(counts_DE, clusters=clusters)
            bits = float(specialization.domain_information(counts_ME)) / np.log(2)
            assert at(result, differences.INFORMATION, layer)[column] == pytest.approx(bits)
            assert 0 < at(result, differences.INFORMATION, layer)[f"null_{column}"] < bits
            row = at(result, differences.REPETITION, layer)
            assert row[column] == pytest.approx(kept_share(each, layer))
            p_E = counts_DE.sum(0) / each.n_tokens
            assert row[f"null_{column}"] == pytest.approx((p_E**2).sum() / 3)
            entropy = each.router_statistic("entropy", layer).astype(float).mean() / np.log(8)
            assert at(result, differences.ENTROPY, layer)[column] == pytest.approx(entropy, rel=1e-3)
    assert (result.measures["low"] < result.measures["high"]).all()


def test_loss_is_paired_by_document(recording, other, result):
    frames = [each.tokens().set_index(["document", "position"])["logprob"] for each in (recording, other)]
    gap = (frames[0] - frames[1].loc[frames[0].index]).dropna()
    table = result.loss.set_index("domain")
    assert table.loc["all domains", "difference"] == pytest.approx(gap.mean(), rel=1e-4)
    domain_of = recording.documents().set_index("document")["domain"]
    by_domain = gap.groupby(gap.index.get_level_values("document").map(domain_of)).mean()
    for domain, value in by_domain.items():
        assert table.loc[domain, "difference"] == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert (table["b"] - table["a"]).to_numpy() == pytest.approx(table["difference"].to_numpy(), abs=1e-6)


def test_the_other_way_round_is_the_same_with_the_sign_turned(recording, other, result):
    back = differences.run(other, recording, differences.Settings(experts="same"))
    keys = ["measure", "layer"]
    one, two = (each.measures.set_index(keys).sort_index() for each in (result, back))
    for there, here in (("difference", "difference"), ("estimate", "estimate"), ("low", "high")):
        np.testing.assert_allclose(one[there], -two[here], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.loss["low"], -back.loss["high"], rtol=1e-5, atol=1e-7)


def test_a_recording_does_not_differ_from_itself(recording):
    same = differences.run(recording, recording)
    assert (same.measures[["difference", "estimate", "low", "high"]].abs().to_numpy() < 1e-12).all()
    assert (same.agreement["value"] == 1).all() and (same.loss["difference"] == 0).all()
    assert "0 of 8 differences are clear of 0." in differences.figures(same)["by_layer"].alt


def test_the_figure_hangs_the_interval_at_the_first_recording(result):
    table = differences.figures(result)["by_layer"].table
    assert list(dict.fromkeys(table["measure"])) == [*differences.MEASURES, differences.AGREEMENT]
    rows = table[table["measure"] != differences.AGREEMENT]
    one, two = (rows[rows["recording"] == name].set_index(["measure", "layer"]) for name in result.names)
    assert one["low"].isna().all()
    clear = (two["low"] > one["value"]) | (two["high"] < one["value"])
    measures = result.measures.set_index(["measure", "layer"])
    expected = (measures["low"] > 0) | (measures["high"] < 0)
    assert clear.loc[expected.index].tolist() == expected.tolist() and expected.any()


def test_counts_alone_leave_out_what_needs_tokens(recording, other):
    lacking = [
        Recording(
            each.path, {**each.manifest, "source": {"lacks": ["ids", "weights", "token", "entropy"], "unit": "passes"}}
        )
        for each in (recording, other)
    ]
    found = differences.run(*lacking, differences.Settings(experts="same"))
    assert set(found.measures["measure"]) == {differences.IMBALANCE, differences.INFORMATION}
    assert found.agreement is None and "no agreement" in found.note
    assert "agreement" not in differences.tables(found)


def test_what_makes_no_sense_is_refused(recording):
    with pytest.raises(AnalysisError, match="differences: n_draws is 0; 1 or more was expected"):
        differences.run(recording, recording, differences.Settings(n_draws=0))
