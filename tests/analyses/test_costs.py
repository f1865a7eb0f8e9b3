"""Analyses of costs keep the contract of those of recordings, and say what was published and worked out by hand."""

import copy
import dataclasses
import inspect
import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analyses import catalogue
from analyses.question import Question
from analyses.structure import coverage
from tests import tiny
from workbench.capture.record import record
from workbench.cli.main import command_line
from workbench.efficiency.costs.comparison import Costed, costed, with_published
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.roofline import decode_ratio
from workbench.errors import AnalysisError, ModelError
from workbench.figures.matplotlib.draw import paper
from workbench.figures.plotly.draw import screen
from workbench.recordings.corpus import Corpus, Document

NAMES = catalogue.names("costs")


@pytest.fixture(scope="module")
def subject() -> Costed:
    return with_published(costed("qwen2-57b-a14b", "qwen1.5-32b"))


@pytest.fixture(scope="module")
def answers(subject):
    return {name: Question(subject, name).answer() for name in NAMES}


def test_the_analyses_are_found_and_recordings_pass_over_them():
    assert set(NAMES) == {"roofline", "crossover", "quality_cost", "card_claim"}
    assert not set(NAMES) & set(catalogue.of_recordings())


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name):
    module = catalogue.get(name)
    asks, _, rest = inspect.getdoc(module).partition("\n\n")
    assert asks.endswith("?") and "\n" not in asks and rest.startswith("Not shown: ")
    for kind in (module.Settings, module.Result):
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
        assert all(f"{field.name}:" in kind.__doc__ for field in dataclasses.fields(kind))
    module.Settings()


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_filled_and_figures_drawn(name, answers):
    assert answers[name].tables and answers[name].figures
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in answers[name].tables.values())
    for figure in answers[name].figures.values():
        screen(figure)
        for width in ("column", "text"):
            paper(figure, width=width)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_written_with_its_provenance(name, subject, tmp_path):
    settings = ["dtype=float16"]
    files = Question(subject, name, settings).write(tmp_path)[0]
    provenance = json.loads(files[-1].read_text())
    assert provenance["sources"][0]["digest"] == subject.digest
    assert provenance["settings"]["dtype"] == "float16"
    asked = f"workbench analyze qwen2-57b-a14b {name} --against qwen1.5-32b --set dtype=float16 --out out"
    assert provenance["command"] == asked


def test_the_command_asks_them_of_a_model(tmp_path):
    def ask(model: str):
        words = ["analyze", model, "roofline", "--out", str(tmp_path), "--set", "largest=4"]
        return CliRunner().invoke(command_line(), words)

    done = ask("tiny-moe")
    assert done.exit_code == 0, done.output
    assert {"steps.csv", "intensity.pdf", "throughput.svg"} <= {f.name for f in (tmp_path / "roofline").iterdir()}
    assert isinstance(ask("nobody").exception, ModelError)


def test_the_command_says_that_a_recording_has_no_costs(recording):
    refused = CliRunner().invoke(command_line(), ["analyze", str(recording.path), "roofline"]).exception
    assert "roofline: it is asked of costs, not of a recording; run workbench analyze MODEL roofline" in str(refused)


def test_the_map_is_the_roofline_and_its_crossings_lie_between(subject, answers):
    found = answers["crossover"].tables["map"]
    row = found[(found["batch"] == 32) & (found["context"] == 1024)].iloc[0]
    assert round(row["ratio"], 2) == 0.63 and row["fits"]
    crossings = answers["crossover"].tables["crossings"]
    at = crossings[crossings["context"] == 1024].set_index("beyond")["batch"]
    assert 4 < at["slower"] < 8 and 128 < at["faster"] < 256
    for beyond, (below, above) in {"slower": (4, 8), "faster": (128, 256)}.items():
        ratios = [
            decode_ratio(subject.topology, subject.other, device("h200"), batch=b, context=1024) for b in (below, above)
        ]
        assert (ratios[1] > ratios[0]) == (beyond == "faster")


def test_a_model_against_itself_is_equally_fast_everywhere():
    one = costed("tiny-moe", "tiny-moe")
    found = Question(one, "crossover", ["largest_batch=8", "largest_context=256"]).answer()
    assert (found.tables["map"]["ratio"] == 1).all() and "crossings" not in found.tables


def test_published_costs_agree_with_the_cards_billions(answers):
    models = answers["quality_cost"].tables["models"]
    np.testing.assert_allclose(models["total_b"], models["published_total_b"], atol=0.6)
    np.testing.assert_allclose(models["active_b"], models["published_active_b"], atol=0.9)
    scores = answers["quality_cost"].tables["scores"]
    assert len(scores) == 87 and not scores["score"].isna().any()  # of 105 cells 18 are empty
    assert scores.set_index(["benchmark", "model"]).loc[("MMLU", "Jamba"), "score"] == 67.4


def test_the_card(answers):
    result = answers["card_claim"].result
    assert result.lengths == (1100, 1101) and round(result.flop_ratio, 4) == 2.3155
    ratios = result.ratios[result.ratios["requests"] == "different"]
    assert ratios["serial"].is_monotonic_increasing and ratios["published"].round(3).eq(1.815).all()
    assert ratios["impossible"].tolist()[0] and not ratios["impossible"].tolist()[-1]
    same = result.ratios[result.ratios["requests"] == "identical"]
    assert (same["serial"] > same["published"]).all() and not same["impossible"].any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("roofline", ["device=tpu"], "roofline: unknown device 'tpu'; there are a100-40gb"),
        ("roofline", ["context=0"], "roofline: context is 0; 1 to 100,000,000 was expected"),
        ("crossover", ["dtype=fp4"], "crossover: dtype is 'fp4'; one of float32"),
        ("quality_cost", ["benchmarks=IQ"], "quality_cost: no scores of 'IQ'; there are MMLU"),
        ("card_claim", ["device=2xa100-40gb"], "card_claim: qwen2_moe: 115 GB of weights and one request do not fit"),
        (
            "expert_load",
            [],
            "expert_load: it is not asked of costs, but of a recording; of costs these are: card_claim, crossover",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(subject, name, settings, message):
    with pytest.raises(AnalysisError, match=re.escape(message)):
        Question(subject, name, settings).answer()


def test_published_configs_that_were_not_read_are_asked_for():
    for name in ("card_claim", "quality_cost"):
        with pytest.raises(AnalysisError, match=f"{name}: the published configs were not read"):
            Question(costed("tiny-moe"), name).answer()


def test_a_recording_is_not_what_they_are_asked_of(recording):
    with pytest.raises(
        AnalysisError, match="roofline: it is asked of costs, not of a recording; run workbench analyze"
    ):
        Question(recording, "roofline").answer()


# The analysis of a recording's batches, and the command


def test_batches_of_equal_texts_meet_k_experts(moe, tmp_path):
    """The same text in 16 documents: no batch meets more experts than the text alone."""
    text = tuple(range(3, 40))
    documents = tuple(Document(f"d{i}", "one", "made", f"c{i}", "", text) for i in range(16))
    table = coverage.run(record(moe, Corpus("same", documents), tmp_path / "r")).batches
    np.testing.assert_allclose(table["measured"], 3)
    np.testing.assert_allclose(table["skew"] + table["correlation"], table["measured"] - table["uniform"])
    assert (table.loc[table["batch"] > 1, "correlation"] < 0).all()


def test_one_document_of_each_cluster_is_dealt(moe, tmp_path):
    base = tiny.corpus(n_documents=12).documents
    paired = tuple(dataclasses.replace(d, cluster=f"c{i // 2}") for i, d in enumerate(base))
    result = coverage.run(record(moe, Corpus("paired", paired), tmp_path / "r"))
    assert result.used == 6 and result.batches["batch"].max() == 4
    assert result.batches["low"].isna().all()  # six documents are too few for an interval


def test_batches_are_of_a_sample_where_there_are_many_tokens(recording):
    whole = coverage.run(recording)
    some = coverage.run(recording, coverage.Settings(largest=2, sample_tokens=200))
    tokens_D = recording.documents()["tokens"].to_numpy()
    assert 2 <= some.used < whole.used and some.used * tokens_D.min() <= 200
    all_of_them = coverage.run(recording, coverage.Settings(sample_tokens=int(tokens_D.sum())))
    pd.testing.assert_frame_equal(all_of_them.batches, whole.batches)
    fewest = coverage.run(recording, coverage.Settings(largest=2, sample_tokens=1))
    assert fewest.used == 2 and fewest.batches["batch"].max() == 2


@pytest.fixture(scope="module")
def command():
    return lambda *words: CliRunner().invoke(command_line(), ["costs", *words])


def test_the_command_prints_the_known_answers_as_json(command):
    done = command("qwen2-57b-a14b", "--against", "qwen1.5-32b", "--batch", "8", "--json")
    assert done.exit_code == 0, done.output
    moe, dense = json.loads(done.stdout)["models"].values()
    assert (moe["parameters_total"], moe["parameters_active"]) == (57_408_658_944, 14_249_270_784)
    assert sum(moe["linear_flops_per_token"].values()) == 27_408_797_696
    assert sum(dense["linear_flops_per_token"].values()) == 63_465_062_400
    assert (moe["cache_bytes_per_token"], dense["cache_bytes_per_token"]) == (57_344, 262_144)
    (point,) = moe["points"]
    assert round(point["experts_met_uniform"][0], 1) == 42.0
    assert not point["memory_bytes"]["float32"]["fits"] and point["memory_bytes"]["bfloat16"]["fits"]


def test_the_command_shows_a_table_with_the_counterpart(command):
    done = command("qwen2-57b-a14b", "--against", "iso-active", "--parts")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "routed experts" in words and "FFN 40,960" in words and "229.8 ✗" in words and "the card" not in words


def test_the_command_tells_the_cards_story_in_one_screen(command):
    done = command("qwen2-57b-a14b", "--against", "qwen1.5-32b")
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) <= 30
    words = " ".join(done.output.split())
    for told in (
        "57.41", "14.25", "32.51",  # parameters
        "8.0 experts", "26.5 experts", "63.1 experts", "0.631",  # what a batch meets, and does to the ratio
        "2.32 × as fast at batch 1, slower from 5, faster from 237",
        "9.40 over 5.18 requests/s = 1.815, of 1100 or 1101 tokens", "nearest at 880 read + 220 written",
    ):  # fmt: skip
        assert told in words, told


def test_the_command_takes_several_batches_and_contexts(command):
    done = command("qwen2-57b-a14b", "--batch", "1,8", "--context", "1024,4096", "--json")
    (moe,) = json.loads(done.stdout)["models"].values()
    assert [(p["context"], p["batch"]) for p in moe["points"]] == [(1024, 1), (1024, 8), (4096, 1), (4096, 8)]
    one = json.loads(command("qwen2-57b-a14b", "--batch", "8", "--context", "4096", "--json").stdout)
    assert one["models"]["qwen2-57b-a14b"]["points"] == moe["points"][3:]
    with pytest.raises(AnalysisError, match="--batch is '1,x'; whole numbers from 1 with commas were expected"):
        _reraise(command("qwen2-57b-a14b", "--batch", "1,x"))


def test_the_command_takes_a_recordings_loads(command, moe, recording, tmp_path):
    folder = tmp_path / "model"
    copy.deepcopy(moe.module).save_pretrained(folder)  # saving notes things in the config, which the session shares
    done = command(str(folder), "--rates", str(recording.path), "--batch", "4", "--json")
    assert done.exit_code == 0, done.output
    (facts,) = json.loads(done.stdout)["models"].values()
    (point,) = facts["points"]
    uniform, independent, measured = (point["measured"][n] for n in ("uniform", "independent", "measured"))
    np.testing.assert_allclose(uniform["experts_met"], point["experts_met_uniform"])
    assert uniform["bytes"] > independent["bytes"] > 0 and measured["bytes"] > 0
    with pytest.raises(AnalysisError, match="--rates: .*, whose routers differ from this model's in layers, experts"):
        _reraise(command("qwen2-57b-a14b", "--batch", "1", "--rates", str(recording.path)))
    with pytest.raises(
        AnalysisError, match="--rates: batches of 1, 2, 4 … to 4 are measured from .*, and --batch is 5"
    ):
        _reraise(command(str(folder), "--rates", str(recording.path), "--batch", "5"))


def _reraise(done):
    raise done.exception
