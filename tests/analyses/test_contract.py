"""Every analysis keeps the contract; the package is walked, so a new one cannot be forgotten."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest

from analyses import catalogue
from analyses.question import Question
from analyses.settings import parse_settings
from tests import tiny
from tests.tiers import often
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.figures.base import Spec
from workbench.figures.matplotlib.draw import paper
from workbench.figures.plotly.draw import screen
from workbench.recordings.corpus import Corpus, Document
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording

NAMES = catalogue.of_recordings()
OF_ROUTING = [name for name in NAMES if "routing" in catalogue.get(name).NEEDS]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Recording:
    """Another model over the same corpus, for analyses that compare."""
    return record(tiny.moe(seed=1), tiny.corpus(), tmp_path_factory.mktemp("other") / "r", fields=FIELDS)


def seconds(name: str, other: Recording) -> list[Recording]:
    """The recording without which an analysis of two has no question."""
    return [other] if catalogue.input_of(name) == "two recordings" else []


def run(name: str, recording: Recording, other: Recording):
    return catalogue.get(name).run(recording, *seconds(name, other))


@pytest.fixture(scope="module")
def result_of(recording, other):
    """Of each analysis by its name: run when a test first wants it, and once."""
    return cache(lambda name: run(name, recording, other))


@pytest.fixture(scope="module")
def recorded_again(moe, recording, tmp_path_factory) -> Recording:
    """The same documents in other batches and shards, so in another order on disk."""
    made = {"fields": recording.fields, "parent": tiny.dense(n_layers=3), "batch_tokens": 64, "shard_tokens": 300}
    return record(moe, tiny.corpus(), tmp_path_factory.mktemp("again") / "r", **made)


@pytest.fixture(scope="module")
def without(moe, tmp_path_factory) -> Recording:
    """A recording of nothing but log-probabilities."""
    return record(moe, tiny.corpus(n_documents=10), tmp_path_factory.mktemp("without") / "r", fields=("logprob",))


@pytest.fixture(scope="module")
def dense_recording(dense, tmp_path_factory) -> Recording:
    return record(dense, tiny.corpus(n_documents=10), tmp_path_factory.mktemp("dense") / "r")


def test_the_analyses_are_found():
    assert {"expert_load", "load_balance", "router_confidence", "domain_load", "token_routing"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_a_question_and_says_what_it_does_not_show(name):
    asks, _, rest = inspect.getdoc(catalogue.get(name)).partition("\n\n")
    assert asks.endswith("?") and "\n" not in asks
    assert rest.startswith("Not shown: ")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_needs_and_how_it_is_set(name):
    module = catalogue.get(name)
    assert set(module.NEEDS) <= set(FIELDS)
    for kind in (module.Settings, module.Result):
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    module.Settings()  # every setting has a default
    assert all(f"{field.name}:" in module.Settings.__doc__ for field in dataclasses.fields(module.Settings))
    assert all(f"{field.name}:" in module.Result.__doc__ for field in dataclasses.fields(module.Result))


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_filled_and_figures_are_specified(name, result_of):
    module, result = catalogue.get(name), result_of(name)
    tables, figures = module.tables(result), module.figures(result)
    assert tables and figures
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in tables.values())
    for figure in figures.values():
        assert isinstance(figure, Spec)
        screen(figure)


@pytest.mark.rest
@pytest.mark.parametrize("width", ["column", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_on_paper(name, width, result_of):
    """Every kind of figure is, in every run, in tests/figures."""
    for figure in catalogue.get(name).figures(result_of(name)).values():
        paper(figure, width=width)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_in_bits_says_so_where_it_is_read_alone(name, result_of):
    """Metrics return nats, and a CSV has no caption: a column `unit` names the columns in bits, or a row's measure."""
    module, result = catalogue.get(name), result_of(name)
    tables, figures = module.tables(result), module.figures(result)
    stated = re.split(r"\n\s+(\w+): ", inspect.getdoc(module.Result))
    about = dict(zip(stated[1::2], stated[2::2], strict=True))
    in_bits = set()
    for table_name, table in tables.items():
        said = table["unit"].astype(str).str.startswith("bits: ") if "unit" in table else pd.Series(data=[False])
        assert said.all() == bool(re.search(r"\bbits\b", about.get(table_name, ""))), table_name
        if said.all():
            in_bits.add(table_name)
            columns = table["unit"].iloc[0].removeprefix("bits: ").split(", ")
            assert list(table)[-1] == "unit" and set(columns) <= set(table.select_dtypes("number"))
        elif "measure" in table and table["measure"].str.contains("(bits)", regex=False).any():
            in_bits.add(table_name)
    labels = [
        str(getattr(f, each.name))
        for f in figures.values()
        for each in dataclasses.fields(f)
        if each.name.endswith("label")
    ]
    assert in_bits or not any("(bits" in label for label in labels)
    converted = re.search(r"\b_BITS\b|np\.log\(2\)", inspect.getsource(module))
    assert bool(in_bits) == bool(converted), "nats become bits, and no table says so"


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_gives_the_same_tables(name, result_of, recording, other):
    module = catalogue.get(name)
    again = module.tables(run(name, recording, other))
    for table_name, table in module.tables(result_of(name)).items():
        pd.testing.assert_frame_equal(table, again[table_name])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_documents_does_not_matter(name, result_of, recorded_again, other):
    """Other batches and shards give other row orders on disk, and the same answers."""
    module = catalogue.get(name)
    tables = module.tables(run(name, recorded_again, other))
    for table_name, table in module.tables(result_of(name)).items():
        keys = [
            column for column in ("layer", "measure", "statistic", "domain", "position", "other") if column in table
        ]
        drawn = {"low", "high", "estimate", "p", "permuted", "permuted_high", "null_high", "note"}  # the draws differ
        kept = [column for column in table if column not in drawn]
        one, two = (
            t.sort_values([*keys, *(["expert"] if "expert" in t else [])], ignore_index=True)[kept]
            for t in (table, tables[table_name])
        )
        pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", OF_ROUTING)
def test_a_recording_without_routing_is_refused(name, dense_recording):
    with pytest.raises(AnalysisError, match=f"{name}: tiny-random-dense has no MoE layer"):
        run(name, dense_recording, dense_recording)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_was_not_recorded_is_named(name, without):
    first = catalogue.get(name).NEEDS[0]
    with pytest.raises(AnalysisError, match=f"{name}: .* was recorded without {first}.*; .*--fields logprob,{first}"):
        run(name, without, without)


@pytest.fixture(scope="module")
def odd(moe, tmp_path_factory):
    """Recordings of little text, and of routers that leave no choice or one, by kind: made when one is first asked."""
    folder = tmp_path_factory.mktemp("odd")
    texts = tiny.corpus(n_documents=16)
    one_domain = dataclasses.replace(
        texts, documents=tuple(dataclasses.replace(document, domain="all") for document in texts.documents)
    )
    asked = {
        "one document": (moe, tiny.corpus(n_documents=1, shortest=40)),
        "one domain": (moe, one_domain),
        "one choice": (tiny.moe(top_k=1), texts),
        "no choice": (tiny.moe(n_experts=4, top_k=4), texts),
        "few tokens": (moe, tiny.corpus(n_documents=16, shortest=1, longest=3)),
        "one expert": (tiny.moe(n_experts=1, top_k=1), texts),
        "one token": (moe, tiny.corpus(n_documents=1, shortest=1, longest=2)),
        "one layer": (tiny.moe(dense_layers=(1, 2)), texts),
        "no token twice": (moe, _texts([list(range(10 * i + 1, 10 * i + 11)) for i in range(16)])),
        "two documents of one token": (moe, _texts([[5], [7]])),
    }
    assert set(asked) == set(ODD)
    return cache(lambda kind: record(*asked[kind], folder / kind, fields=FIELDS, parent=tiny.dense(n_layers=3)))


def _texts(ids: list[list[int]]) -> Corpus:
    return Corpus("odd", tuple(Document(f"d{i}", "all", "odd", f"c{i}", "", tuple(of)) for i, of in enumerate(ids)))


ODD = (
    "one document", "one domain", "one choice", "no choice", "few tokens", "one expert", "one token", "one layer",
    "no token twice", "two documents of one token",
)  # fmt: skip


EXTREMES = ("one document", "no choice", "one token")  # the others lie between them


@pytest.mark.parametrize("kind", often(ODD, EXTREMES))
@pytest.mark.parametrize("name", NAMES)
def test_odd_recordings_are_answered_or_refused_in_a_sentence(name, kind, odd):
    module = catalogue.get(name)
    try:
        result = run(name, odd(kind), odd(kind))
        tables, figures = module.tables(result), module.figures(result)
    except AnalysisError as error:
        assert str(error).startswith(f"{name}: ") and str(error).endswith(".")
        return
    assert tables and figures
    for table in tables.values():
        numbers = table.select_dtypes("number")
        assert not np.isinf(numbers.to_numpy(dtype=float)).any(), numbers.columns[np.isinf(numbers).any()].tolist()
        ends = [column for column in table if re.fullmatch(r"(.*_)?(low|high)", column) and not DRAWN.match(column)]
        if kind in ("one document", "one token"):
            assert table[ends].isna().all(axis=None), f"an interval of one document: {ends}"


DRAWN = re.compile(r"null|permuted|swapped|shuffled|matched")


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_decode_are_never_averaged(name, recording):
    mixed = Recording(recording.path, {**recording.manifest, "phases": ["prefill", "decode"]})
    with pytest.raises(AnalysisError, match=f"{name}: .* holds prefill and decode, which are never averaged"):
        run(name, mixed, mixed)


def test_the_command_imports_no_torch(recording, tmp_path):
    code = (
        "import sys; from workbench.cli.main import main;"
        "sys.argv = ['workbench', 'analyze', sys.argv[1], 'expert_load', '--out', sys.argv[2], '--set', 'n_draws=19']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recording.path), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "expert_load").iterdir()}
    assert {"experts.csv", "experts.tex", "load_map.pdf", "load_map.svg", "load_map.png"} <= written
    provenance = json.loads((tmp_path / "expert_load" / "provenance.json").read_text())
    assert provenance["sources"][0]["digest"] == recording.digest
    assert provenance["settings"]["n_draws"] == 19
    assert "--set n_draws=19" in provenance["command"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_the_tables_say(name, result_of, recording, other, tmp_path):
    tables = catalogue.get(name).tables(result_of(name))
    against = next(iter(seconds(name, other)), None)
    files, _ = Question(recording, name, against=against, only=list(tables)).write(tmp_path)
    for table_name, table in tables.items():
        written = pd.read_csv(tmp_path / name / f"{table_name}.csv", keep_default_na=False, na_values=[""])
        assert list(written.columns) == list(table.columns)
        assert len(written) == len(table)
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize("name", often(NAMES, ["expert_load"]))
def test_every_figure_is_written(name, result_of, recording, other, tmp_path):
    files, figures = Question(recording, name, against=next(iter(seconds(name, other)), None)).write(tmp_path)
    expected = set(catalogue.get(name).figures(result_of(name)))
    assert set(figures) == expected
    assert {f"{figure}.{kind}" for figure in expected for kind in ("pdf", "svg", "png")} <= {f.name for f in files}
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["level"], "expert_load: --set 'level' has no '='; key=value was expected"),
        (["size=3"], "expert_load: unknown setting 'size'; there are level, n_draws, seed"),
        (["n_draws=many"], "expert_load: n_draws is 'many'; a value of type int (a whole number) was expected"),
    ],
)
def test_wrong_settings_are_refused(pairs, message):
    with pytest.raises(AnalysisError, match=re.escape(message)):
        parse_settings(catalogue.get("expert_load"), pairs)


def test_settings_are_read_by_their_types():
    settings = parse_settings(catalogue.get("token_routing"), ["layer=2", "document=d3"])
    assert (settings.layer, settings.document) == (2, "d3")


def test_an_unknown_analysis_is_met_with_the_likely_name():
    with pytest.raises(AnalysisError, match="unknown analysis 'vibes'; `workbench analyze RECORDING` without a name"):
        catalogue.get("vibes")
    with pytest.raises(AnalysisError, match="unknown analysis 'Expert-Lod'; did you mean expert_load"):
        catalogue.get("Expert-Lod")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"only": ["load_map", "maps"]},
            "expert_load: --only 'maps' is neither a figure nor a table; there are load_map",
        ),
        (
            {"label": "../out"},
            "--label is '../out'; letters, digits, '_', '-' and '.' were expected, no blank or slash",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(recording, tmp_path, how, message):
    with pytest.raises(AnalysisError, match=re.escape(message)):
        Question(recording, "expert_load", **how).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_some_figures_and_tables_of_one_analysis_under_a_name(recording, tmp_path):
    files, figures = Question(recording, "expert_load", only=["layers"], label="loads").write(tmp_path)
    assert [file.name for file in files] == ["layers.csv", "layers.tex", "provenance.json"] and not figures
    assert {file.parent for file in files} == {tmp_path / "loads"}
    assert json.loads(files[-1].read_text())["command"].endswith("expert_load --only layers --label loads --out out")
    assert r"\label{tab:loads-layers}" in files[1].read_text()
