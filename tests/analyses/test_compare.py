"""Any analysis asked of two recordings: tables joined, differences, intervals paired by document."""

import json
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses import catalogue, compare
from analyses.comparison import differences
from analyses.domains import domain_load, same_token
from analyses.question import Question
from analyses.routing import expert_load, load_balance, token_routing
from analyses.settings import parse_settings
from tests import tiny
from tests.tiers import often
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.figures.matplotlib.draw import paper
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.jackknife import deal

ONE_ASKED = [name for name in catalogue.of_recordings() if catalogue.input_of(name) != "two recordings"]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Recording:
    """Another model of the same shape over the same corpus."""
    how = {"fields": FIELDS, "parent": tiny.dense(n_layers=3)}
    return record(tiny.moe(seed=1), tiny.corpus(), tmp_path_factory.mktemp("other") / "r", **how)


CHEAP = {"coactivation": ["n_draws=1"], "specialization": ["n_permutations=1"], "context": ["sample_tokens=500"]}


def settings_of(name: str):
    return parse_settings(catalogue.get(name), CHEAP.get(name, []))


@pytest.fixture(scope="module")
def compared(recording, other):
    """Of each analysis by its name: asked when a test first wants it, and once."""
    return cache(lambda name: compare.compare(catalogue.get(name), recording, other, settings_of(name), experts="same"))


@pytest.fixture(scope="module")
def few(moe, tmp_path_factory) -> tuple[Recording, Recording]:
    """Two models over a few documents: too few for intervals, so that nothing is asked again without some of them."""
    folder = tmp_path_factory.mktemp("few")
    how = {"fields": FIELDS, "parent": tiny.dense(n_layers=3)}
    models = {"a": moe, "b": tiny.moe(seed=1)}
    return tuple(record(model, tiny.corpus(n_documents=7), folder / name, **how) for name, model in models.items())


def of(table: pd.DataFrame, **where) -> pd.Series:
    """The one row with these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize("name", ONE_ASKED)
def test_every_analysis_can_be_asked_of_two(name, few):
    found = compare.compare(catalogue.get(name), *few, settings_of(name), experts="same")
    as_promised(name, found, few[0])
    assert all(table["low"].isna().all() for table in found.tables.values())


@pytest.mark.parametrize("name", often(ONE_ASKED, ["expert_load"]))
def test_every_difference_has_an_interval_or_the_reason_why_not(name, compared, recording):
    as_promised(name, compared(name), recording)


def as_promised(name: str, found: compare.Comparison, first: Recording) -> None:
    """Rows told apart, differences of what the analysis says of either, intervals around their estimates, figures."""
    assert found.tables
    module = catalogue.get(name)
    for table_name, table in found.tables.items():
        keys = [*found.keys[table_name], "quantity"]
        assert not table.duplicated(keys).any()
        np.testing.assert_allclose(table["difference"], table["b"] - table["a"], equal_nan=True)
        ends = table[table["low"].notna()]
        assert (ends["low"] <= ends["estimate"]).all() and (ends["estimate"] <= ends["high"]).all()
        assert (ends["interval"] == "95 %").all()
        assert table.loc[table["low"].isna(), "interval"].str.startswith("none: ").all()
        assert not set(table["quantity"]) & {"low", "high", "estimate", "top1"}
    if not {"layer", "expert", "document"} & set(vars(module.Settings())):  # those depend on what the first chose
        for table_name, table in module.tables(module.run(first, settings_of(name))).items():
            mine = found.tables[table_name]
            for quantity in set(mine["quantity"]):
                rows = mine[mine["quantity"] == quantity]
                keys = list(found.keys[table_name])
                there = rows[keys].merge(table, on=keys)[quantity]
                np.testing.assert_allclose(rows["a"], there.astype(float), equal_nan=True)
    for figure in compare.figures(name, found).values():
        paper(figure, width="column")


@pytest.mark.parametrize("module", often([expert_load, same_token], [expert_load]))
def test_a_recording_does_not_differ_from_itself(module, recording):
    for table in compare.compare(module, recording, recording).tables.values():
        assert (table["difference"] == 0).all()
        assert table["interval"].str.startswith("none: ").all()
        assert table["interval"].str.contains("the same whichever documents are left out").any()


def test_the_interval_is_that_of_the_plain_jackknife(recording, other, compared):
    """By hand, from the counts of the documents: the load of an expert without each of the groups."""
    documents = recording.documents().sort_values("document")
    bags = deal(Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["cluster"].to_numpy()), most=16)
    counts = []
    for each in (recording, other):
        order = np.argsort(each.column("document", table="documents"))
        counts.append(each.counts(2)[order].astype(float))

    def difference(kept_D):
        shares = [counts_DE[kept_D].sum(0) / counts_DE[kept_D].sum() for counts_DE in counts]
        return shares[1] - shares[0]

    left_GE = np.stack([difference(bags.bag_D != g) for g in range(bags.n_bags)])
    n = bags.n_bags
    assert n == 10  # documents of each domain
    estimate_E = n * difference(np.ones(50, dtype=bool)) - (n - 1) * left_GE.mean(0)
    reach_E = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((left_GE - left_GE.mean(0)) ** 2).sum(0))
    table = compared("expert_load").tables["experts"]
    for expert in range(8):
        row = of(table, layer=2, expert=expert, quantity="load")
        assert row["estimate"] == pytest.approx(estimate_E[expert])
        assert row["high"] - row["estimate"] == pytest.approx(reach_E[expert])
        total = of(table, layer=2, expert=expert, quantity="assignments")
        # a total grows with the documents: its difference is not halved or doubled by leaving some out
        assert total["estimate"] == pytest.approx(total["difference"])
        assert total["low"] < total["estimate"] < total["high"]
    assert compared("expert_load").headlines["experts"] == "load"  # and no total


@pytest.mark.rest
def test_the_overview_says_the_same(recording, other, compared):
    overview = differences.run(recording, other, differences.Settings(experts="same")).measures
    for measure, name, table, where in (
        (differences.IMBALANCE, "load_balance", "layers", {"measure": "imbalance", "quantity": "value"}),
        (differences.INFORMATION, "domain_load", "information", {"quantity": "value"}),
        (differences.ENTROPY, "router_confidence", "layers", {"statistic": "entropy / ln E", "quantity": "mean"}),
    ):
        for layer in recording.moe_layers:
            row = of(compared(name).tables[table], layer=layer, **where)
            ours = of(overview, layer=layer, measure=measure)
            columns = ["a", "b", "difference", "estimate", "low", "high"]
            np.testing.assert_allclose(ours[columns].astype(float), row[columns].astype(float), rtol=1e-5, atol=1e-9)


@pytest.mark.rest
def test_what_has_no_interval_says_why(compared):
    measures = compared("load_balance").tables["layers"]
    for measure, reason in (("max violation", "none: an extreme"), ("dead experts", "none: a count over a threshold")):
        assert set(measures[measures["measure"] == measure]["interval"]) == {reason}
    assert set(measures[(measures["measure"] == "imbalance") & (measures["quantity"] == "value")]["interval"]) == {
        "95 %"
    }
    information = compared("domain_load").tables["information"].groupby("quantity")["interval"].first()
    assert information["p"] == "none: a p value" and information["permuted"] == "none: a null"
    drift = compared("position").tables["drift"].groupby("quantity")["interval"].first()
    assert drift["excess"] == "none: against a null that is drawn" and drift["value"] == "95 %"
    tokens = compared("token_routing")
    assert "No intervals: without some of the documents it has no answer" in tokens.said
    assert tokens.tables["tokens"]["low"].isna().all()


def test_few_documents_have_differences_and_no_interval(moe, other, tmp_path):
    few = record(moe, tiny.corpus(n_documents=7), tmp_path / "r")
    found = compare.compare(load_balance, few, other, experts="same")
    assert "fewer than 8 clusters in a domain" in found.said and "Documents in common: 7" in found.said
    table = found.tables["layers"]
    assert table["difference"].notna().any() and table["low"].isna().all()
    assert table["interval"].str.contains("fewer than 8 clusters").any()
    assert compare.figures("load_balance", found) == {}


def test_experts_of_different_models_are_matched_where_rows_are_experts(recording, other):
    plain = compare.compare(domain_load, recording, other, experts="same")
    matched = compare.compare(domain_load, recording, other, experts="matched")
    assert "Experts were matched" in matched.said and "Matched alike in both halves" in matched.said
    assert "Experts were matched" in compare.figures("domain_load", matched)["information"].caption
    # what does not depend on the experts' names is the same
    columns = ["layer", "quantity", "a", "b", "low", "high"]
    pd.testing.assert_frame_equal(plain.tables["information"][columns], matched.tables["information"][columns])
    gaps = [each.tables["experts"].query("quantity == 'rate'")["difference"].abs().mean() for each in (plain, matched)]
    assert gaps[1] < gaps[0]
    assert set(matched.tables["experts"]["experts"]) == {"matched"} and set(plain.tables["experts"]["experts"]) == {
        "same"
    }
    # an expert's rates are those of the other's experts, under other names in either half: the totals stay
    for m in ("a", "b"):
        sums = matched.tables["experts"].query("quantity == 'rate'").groupby(["layer", "domain"])[m].sum()
        np.testing.assert_allclose(sums, 3)


@pytest.mark.rest
def test_the_card_of_an_expert_is_of_the_expert_the_first_one_chose(recording, other):
    card = catalogue.get("expert_card")
    found = compare.compare(card, recording, other, experts="same")
    first = card.run(recording)
    second = card.run(other, card.Settings(layer=first.layer, expert=first.expert))
    rows = found.tables["domains"].query("quantity == 'rate'").set_index("domain")["b"]
    np.testing.assert_allclose(rows, second.domains.set_index("domain")["rate"].loc[rows.index])


def test_a_pair_of_experts_keeps_its_names_beside_the_two_recordings(few):
    """Its columns are named a and b, as the recordings are."""
    table = compare.compare(catalogue.get("coactivation"), *few, experts="same").tables["pairs"]
    assert set(table["expert_a"]) <= set(range(8)) and (table["expert_a"] < table["expert_b"]).all()


def test_the_same_document_is_shown_of_both(recording, other):
    found = compare.compare(token_routing, recording, other, experts="same")
    first = recording.documents().sort_values("document")["id"].iloc[0]
    mine = token_routing.run(recording, token_routing.Settings(document=first)).tokens
    assert found.tables["tokens"]["position"].nunique() == len(mine)


def test_tables_without_a_row_in_common_are_refused(recording):
    def shifted(result):
        return {"t": pd.DataFrame({"layer": [result], "value": [1.0]})}

    calls = iter([0, 1])
    module = SimpleNamespace(__name__="analyses.x", Settings=same_token.Settings, tables=shifted)
    module.run = lambda *_: next(calls)
    with pytest.raises(AnalysisError, match="x: the tables of .* have no row in common"):
        compare.compare(module, recording, recording)


def test_two_are_asked_from_the_command_line(recording, other, tmp_path):
    code = "from workbench.cli.main import main; main()"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code, "analyze", *arguments], capture_output=True, text=True, check=False
        )

    here, there = str(recording.path), str(other.path)
    done = run(here, "expert_load", "saturation", "--against", there, "--ceiling", here, "--out", str(tmp_path / "o"))
    assert done.returncode == 0, done.stderr
    provenance = json.loads((tmp_path / "o" / "expert_load" / "provenance.json").read_text())
    assert [source["digest"] for source in provenance["sources"]] == [recording.digest, other.digest]
    assert f"expert_load --against {there}" in provenance["command"]
    of_three = json.loads((tmp_path / "o" / "saturation" / "provenance.json").read_text())
    assert len(of_three["sources"]) == 3 and f"--set ceiling={here}" in of_three["command"]
    assert "and tiny-random-moe on" in (tmp_path / "o" / "index.html").read_text()
    script = (tmp_path / "o" / "reproduce.sh").read_text()
    assert script.count("--against") == 2


@pytest.mark.rest
def test_an_analysis_of_two_is_asked_from_the_command_line(recording, other, tmp_path):
    words = ["analyze", recording.path, "differences", "--against", other.path, "--out", tmp_path, "--experts", "same"]
    command = [sys.executable, "-m", "workbench.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"measures.csv", "agreement.csv", "loss.csv", "by_layer.pdf", "loss.pdf"} <= {
        file.name for file in (tmp_path / "differences").iterdir()
    }
    assert "--experts same" in (tmp_path / "reproduce.sh").read_text()


@pytest.mark.parametrize("name", ["saturation", "differences"])
def test_an_analysis_of_two_wants_two(name, recording):
    with pytest.raises(
        AnalysisError, match=f"{name}: it compares two recordings, and one was given.*--against RECORDI"
    ):
        Question(recording, name).answer()


def test_options_of_two_without_the_second_are_refused(recording, tmp_path):
    from workbench.cli.analyze import analyze

    with pytest.raises(AnalysisError, match="--experts is about two recordings; .*--against RECORDING"):
        analyze(recording.path, ["expert_load"], tmp_path, experts="same")
