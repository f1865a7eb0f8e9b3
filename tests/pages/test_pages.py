"""Every page through Streamlit's own harness over a real recording, and what its helpers promise.

The harness draws no figure and writes no address: `test_browser` sees to both.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from analyses import catalogue
from tests.efficiency.conftest import measurement  # noqa: F401  the fixture
from tests.hostile import HOSTILE
from tests.tiers import often
from workbench.errors import RecordingError
from workbench.jobs.service import Host
from workbench.recordings.fields import FIELDS
from workbench.recordings.manifest import recording_digest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "pages"
HELPERS = ("app", "serve", "entry")
NAMES = sorted(file.stem for file in PAGES.glob("*.py") if file.stem not in HELPERS)
EXPLORING = ("attention", "tokens", "utilization", "load_balance", "specialization", "structure")


@pytest.fixture(scope="module")
def data(recording, tmp_path_factory):
    """A data folder, with one recording as it should be and some that are not. One model host serves all tests."""
    data = tmp_path_factory.mktemp("data")
    for name in ("truncated", "newer", "unfinished", "garbled", "second", "shared"):
        shutil.copytree(recording.path, data / "recordings" / name)
    part = data / "recordings" / "truncated" / "tokens" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    for name, change in (("newer", {"schema": 99}), ("unfinished", {"status": "open"})):
        file = data / "recordings" / name / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    (data / "recordings" / "garbled" / "manifest.json").write_text("{")
    os.utime(data / "recordings" / "second" / "manifest.json", (1, 1))
    os.utime(data / "recordings" / "shared" / "manifest.json", (0, 0))  # the oldest is the one that opens by itself
    yield data
    if "components.jobs" in sys.modules:
        sys.modules["components.jobs"]._host.clear()  # ends the host's process


@pytest.fixture
def app(data, monkeypatch) -> AppTest:
    """The app, not yet run."""
    monkeypatch.setenv("WORKBENCH_DATA", str(data))
    monkeypatch.syspath_prepend(str(PAGES))
    return AppTest.from_file(str(PAGES / "app.py"), default_timeout=60)


def opened(app: AppTest, page: str, **address: str) -> AppTest:
    for name, value in address.items():
        app.query_params[name] = value
    app.run()
    return app.switch_page(f"{page}.py").run()


def said(app: AppTest) -> str:
    return " ".join(element.value for kind in (app.error, app.warning, app.info) for element in kind).replace("\\", "")


def test_a_recording_that_goes_while_pages_look_at_it_is_a_sentence(app, data):
    (data / "recordings" / "gone").mkdir()
    (data / "recordings" / "gone" / "manifest.json").symlink_to("nowhere")
    try:
        for page in ("record", "tokens", "efficiency"):
            opened(app, page)
            assert not app.exception and app.title, said(app)
    finally:
        shutil.rmtree(data / "recordings" / "gone")
    with pytest.raises(RecordingError, match="the recording 'gone' is gone: it was deleted or moved meanwhile"):
        sys.modules["components.recordings"].opened("gone")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, ""),
        ({"quantization": None, "adapter": None}, ""),
        ({"quantization": {"method": "mxfp4", "dequantized": True, "tensors": 3}}, "mxfp4, dequantized"),
        ({"adapter": {"file": "adapter_model.safetensors", "applied": False}},
         "adapter adapter_model.safetensors not applied"),
        ({"quantization": {"method": "fp8", "dequantized": True}, "adapter": {"name": "a", "applied": False}},
         "fp8, dequantized; adapter a not applied"),
        ({"quantization": "fp8", "adapter": ["a"]}, ""),
    ],
)  # fmt: skip
def test_what_the_weights_came_from_is_said(app, model, words):
    app.run()
    assert sys.modules["components.recordings"].source_of(model) == words


def test_a_recording_of_a_quantized_source_says_so_where_it_is_chosen_and_listed(app, data):
    folder = data / "recordings" / "fp8"
    shutil.copytree(data / "recordings" / "shared", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["quantization"] = {"method": "fp8", "dequantized": True, "tensors": 12, "note": "weights alone"}
    manifest["digest"] = recording_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        opened(app, "tokens", recording="fp8")
        assert not app.exception and not app.error, said(app)
        assert [each.value for each in app.sidebar.caption] == [r"Weights: fp8\, dequantized"]
        app.switch_page("record.py").run()
        rows = app.dataframe[0].value.set_index("recording")
        assert rows.loc["fp8", "weights"] == "fp8, dequantized" and not isinstance(rows.loc["shared", "weights"], str)
    finally:
        shutil.rmtree(folder)


def test_all_pages_are_known():
    assert set(EXPLORING) | {"models", "record"} <= set(NAMES)


@pytest.mark.parametrize("page", NAMES)
def test_a_page_opens_without_an_exception(app, page):
    opened(app, page)
    assert not app.exception
    assert not app.error
    assert app.title


@pytest.mark.parametrize("page", NAMES)
def test_a_page_is_thin_and_computes_nothing(page):
    text = (PAGES / f"{page}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("file", sorted(PAGES.rglob("*.py")), ids=lambda file: file.stem)
def test_no_page_writes_markup(file):
    text = file.read_text(encoding="utf-8")
    assert not any(way in text for way in ("unsafe_allow", "st.html", "st.components", "components.v1", "unsafe_"))


@pytest.mark.parametrize("page", often(EXPLORING, ["utilization"]))
@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ({"recording": "nowhere"}, "there is no recording 'nowhere'"),
        ({"recording": "../shared"}, "there is no recording '../shared'"),
        ({"recording": "truncated"}, "was truncated or edited"),
        ({"recording": "newer"}, "has recording schema 99; this version reads up to"),
        ({"recording": "unfinished"}, "is not finished"),
        ({"recording": "garbled"}, "is damaged"),
        ({"layer": "99"}, "There is no layer “99” here; there are 0, "),
        ({"layer": "x"}, "There is no layer “x” here"),
    ],
)
def test_an_address_that_names_nothing_is_a_sentence(app, page, address, sentence):
    opened(app, page, **address)
    assert not app.exception
    assert sentence in said(app)
    assert app.title and app.selectbox(key="recording").options == ["truncated", "second", "shared"]


# An address cannot hold half a letter.
ADDRESSED = {kind: text for kind, text in HOSTILE.items() if kind != "malformed"}
ADDRESSED_OFTEN = ("markup", "traversal")


@pytest.mark.parametrize(
    "text", often(ADDRESSED.values(), [ADDRESSED[kind] for kind in ADDRESSED_OFTEN]), ids=ADDRESSED
)
def test_hostile_text_in_the_address_is_a_sentence(app, text):
    """Every class of hostile text in every choice; `test_hostile_browser` sees to what a browser makes of it."""
    app.query_params["recording"] = text
    app.run()
    for page in ("tokens", "utilization", "attention", "compare", "structure", "specialization"):
        app.switch_page(f"{page}.py").run()
        assert "there is no recording" in said(app) and not app.exception
    app = AppTest.from_file(str(PAGES / "app.py"), default_timeout=60)
    for choice in ("layer", "expert", "document", "token", "from", "head", "against", "pin", "untrained", "phase"):
        app.query_params[choice] = text
    app.run()
    for page in ("tokens", "utilization", "attention", "compare"):
        app.switch_page(f"{page}.py").run()
        assert "There is no" in said(app) and not app.exception
        assert all(len(each.value) < 2_000 for kind in (app.error, app.warning, app.info) for each in kind)


@pytest.mark.parametrize("text", ADDRESSED.values(), ids=ADDRESSED)
def test_a_hostile_name_of_a_model_is_a_sentence(app, text):
    app.query_params["model"] = text
    app.run()
    assert not app.exception and len(app.error[0].value) < 2_000
    assert re.search("is no model folder below|is no hub id|printable and no longer", said(app))


def test_a_choice_is_taken_from_the_address_and_written_to_it(app):
    opened(app, "tokens", layer="0", document="d7", token="3")
    assert (app.selectbox(key="layer").value, app.selectbox(key="document").value) == (0, "d7")
    assert app.number_input(key="token").value == 3
    app.selectbox(key="layer").select(2).run()
    assert app.query_params["layer"] == "2"
    assert app.query_params["recording"] == "shared"


def test_a_choice_holds_on_other_pages(app):
    opened(app, "tokens", layer="0", document="d7", token="3")
    app.switch_page("load_balance.py").run()
    assert app.selectbox(key="layer").value == 0
    app.switch_page("tokens.py").run()
    assert (app.selectbox(key="document").value, app.number_input(key="token").value) == ("d7", 3)


def test_the_chosen_token_is_shown_at_every_layer(app):
    opened(app, "tokens", token="3", layer="0")
    row = app.dataframe[0].value
    assert row["position"].tolist() == [3]
    assert [link.value[:2] for link in app.page_link] == ["L0", "L2"]
    assert app.page_link[0].value == f"L0 E{row['top1'].iloc[0]}"


def test_the_experts_card_follows_the_expert(app):
    opened(app, "utilization", layer="2")
    assert "The busiest of the layer" in app.caption[1].value
    app.selectbox(key="expert").select(4).run()
    assert app.header[0].value == "Expert 4 of layer 2"
    assert app.query_params["expert"] == "4"


def test_an_expert_is_jumped_to_by_its_name(app):
    opened(app, "utilization")
    for typed, layer, expert in (("L2 E5", 2, 5), (" l0e7 ", 0, 7), ("2,1", 2, 1)):
        app.text_input(key="jump").set_value(typed).run()
        assert (app.selectbox(key="layer").value, app.selectbox(key="expert").value) == (layer, expert)
        assert app.header[0].value == f"Expert {expert} of layer {layer}"
        assert app.text_input(key="jump").value == ""
    app.text_input(key="jump").set_value("the *fox*").run()
    assert "“the *fox*” is neither an expert, such as L17 E42, nor a token of this recording." in said(app)
    app.text_input(key="jump").set_value("L99 E5").run()
    assert "There is no layer “99” here; there are 0, 2" in said(app)


def test_an_expert_is_pinned_and_shown_beside_another(app):
    opened(app, "utilization", layer="2", expert="4")
    next(button for button in app.button if button.label == "Pin L2 E4").click().run()
    assert app.query_params["pin"] == "L2 E4"
    app.selectbox(key="expert").select(1).run()
    assert [header.value for header in app.header] == ["Expert 1 of layer 2", "Expert 4 of layer 2"]
    facts = [frame.value for frame in app.dataframe if "fact" in frame.value]
    assert len(facts) == 2 and not facts[0]["value"].equals(facts[1]["value"])
    next(button for button in app.button if button.label == "Unpin L2 E4").click().run()
    assert "pin" not in app.query_params and [header.value for header in app.header] == ["Expert 1 of layer 2"]


def test_a_slider_says_how_much_it_hides(app):
    opened(app, "utilization", layer="2", expert="4")
    for least in (1, 20):
        app.select_slider(key="least").set_value(least).run()
        assert any(f"occur fewer than {least} times and are hidden" in each.value for each in app.caption)


def test_a_choice_of_any_widget_is_taken_from_the_address(app):
    opened(app, "tokens", colour="loss")
    assert app.button_group(key="colour").value == "loss"
    opened(app, "utilization", least="20", open="tables")
    assert app.select_slider(key="least").value == 20
    assert len(app.dataframe) > 2  # the tables of the part that is open
    assert not app.exception and not app.error


def test_what_was_opened_stays_with_its_page(app):
    opened(app, "utilization", open="tables")
    del app.query_params["open"]
    app.switch_page("load_balance.py").run()
    assert "open" not in app.query_params and "open" not in app.session_state["chosen"]


def test_a_token_is_jumped_to_by_its_text(app):
    opened(app, "tokens", document="d7", token="3")
    text = app.dataframe[0].value["text"].iloc[0].strip()
    app.text_input(key="jump").set_value(text.upper()).run()
    assert not app.exception and app.toast[0].value.replace("\\", "").endswith(f"tokens that read “{text.upper()}”")
    row = app.dataframe[0].value
    assert row["text"].iloc[0].strip() == text
    assert (app.query_params["document"], app.query_params["token"]) != ("d7", "3")
    app.switch_page("utilization.py").run()
    app.text_input(key="jump").set_value(text).run()
    assert app.title[0].value == "Tokens" and not app.exception


@pytest.mark.parametrize("page", ["tokens", "utilization", "load_balance", "specialization", "structure"])
def test_a_dense_model_has_no_routing_and_the_page_says_so(app, data, dense, page):
    from tests import tiny
    from workbench.capture.record import record

    folder = data / "recordings" / "dense"
    record(dense, tiny.corpus(n_documents=10), folder, check=False)
    try:
        opened(app, page, recording="dense")
        assert not app.exception and not app.error
        assert "tiny-random-dense is dense: no layer has a router" in said(app)
    finally:
        shutil.rmtree(folder)


def test_definitions_are_those_of_the_analysis():
    from analyses.definitions import definitions

    said, source = definitions("load_balance")["load.coefficient_of_variation"]
    assert said.startswith("Spread of the load over its mean, std(c) / mean(c)") and "Args" not in said
    assert source
    assert "attention.query_statistics" in definitions("attention_heads")
    assert "load.coefficient_of_variation" not in definitions("attention_heads")
    assert definitions("roofline") == {}  # of costs: docs/efficiency.md


PARTS = {
    "load_balance": ("Scope: one document, a batch, the corpus", "How decided the routers are, and their z-loss",
                     "Distinct experts that a decoded batch meets"),
    "structure": ("Flow to the next layer", "Repetition: the experts of the token before",
                  "Segments: an expert kept for a stretch of text", "Experts that neighbouring tokens need",
                  "Two occurrences of one token"),
    "specialization": ("The token, and the domain once the token is known", "The place", "What each expert adds",
                       "Token, neighbours, place, domain, the layer before", "The shared expert",
                       "What a limit on each expert would drop", "What is left of the dense parent",
                       "How alike the experts of the layer are"),
}  # fmt: skip


@pytest.mark.parametrize(("page", "part"), [(page, part) for page, parts in PARTS.items() for part in parts])
def test_a_part_that_is_opened_asks_its_question_and_draws(app, page, part, monkeypatch):
    app.run()
    shown = []
    monkeypatch.setattr(
        sys.modules["components.charts"], "draw", lambda figure, key, **how: shown.append((key, how["follow"]))
    )
    monkeypatch.setattr(sys.modules["components.results"], "folded", opening(part))
    app = opened(app, page, layer="2", expert="1")
    assert not app.exception and not app.error, said(app)
    assert len(shown) > 2 or part == "Two occurrences of one token"
    assert sum(element.value.startswith("**") for element in app.markdown) == 2  # the page's question and the part's
    assert [toggle.label for toggle in app.toggle] == ["Tables"]
    app.toggle[0].set_value(True).run()
    assert app.dataframe and not app.exception


def opening(part):
    @contextmanager
    def folded(title):
        yield title == part

    return folded


def test_what_was_not_recorded_is_a_sentence_that_says_which_field(app, data, moe):
    from tests import tiny
    from workbench.capture.record import record

    record(moe, tiny.corpus(n_documents=20), data / "recordings" / "bare", fields=("routing",), check=False)
    try:
        opened(app, "specialization", recording="bare")
        assert not app.exception and not app.error
        told = [each.value.replace("\\", "") for each in app.caption if "record again" in each.value]
        assert [each.split("**")[1] for each in told] == [
            "What each expert adds", "What is left of the dense parent", "How alike the experts of the layer are",
        ]  # fmt: skip
        assert told[0].endswith("needs what this recording lacks; record again with the fields routing,experts.")
        assert app.selectbox(key="layer").value == 2
    finally:
        shutil.rmtree(data / "recordings" / "bare")


def test_an_untrained_router_is_chosen_as_a_control(app):
    opened(app, "specialization")
    assert "untrained" not in app.code[0].value
    app.selectbox(key="untrained").select("second").run()
    assert app.query_params["untrained"] == "second"
    assert "--set untrained=" in app.code[0].value and not app.exception
    app.selectbox(key="ceiling").select("second").run()
    assert app.query_params["ceiling"] == "second"
    assert "--set ceiling=" in app.code[0].value and not app.exception and not app.error


def test_another_layer_is_counted_alone(app, data, monkeypatch):
    from analyses.structure import coactivation
    from tests import tiny
    from workbench.capture.record import record

    asked, run = [], coactivation.run
    monkeypatch.setattr(
        coactivation, "run", lambda recording, settings: asked.append(settings.layer) or run(recording, settings)
    )
    record(tiny.moe(), tiny.corpus(n_documents=20), data / "recordings" / "unseen", check=False)
    try:
        opened(app, "structure", recording="unseen", layer="0")
        app.selectbox(key="layer").select(2).run()
        assert not app.exception and [each.value for each in app.header] == ["Layer 2"]
        assert "coactivation --set layer=2" in app.code[0].value
        assert asked == [0, 2]  # and all of them where “Layer by layer” is opened
    finally:
        shutil.rmtree(data / "recordings" / "unseen")


def test_one_expert_a_token_has_no_pairs_and_the_other_parts_stay(app, data):
    from tests import tiny
    from workbench.capture.record import record

    record(tiny.moe(top_k=1), tiny.corpus(n_documents=20), data / "recordings" / "one", check=False)
    try:
        opened(app, "structure", recording="one")
        assert not app.exception and not app.error
        assert "layer 2 chooses one expert a token, or all; there are no pairs to count" in said(app)
        assert next(each.label for each in app.expander) == "Flow to the next layer"
    finally:
        shutil.rmtree(data / "recordings" / "one")


def test_load_balance_shows_every_measure_of_the_layer(app):
    opened(app, "load_balance", layer="2")
    measures = app.dataframe[0].value
    assert set(measures["layer"]) == {2}
    assert {"imbalance", "Gini", "dead experts", "balance loss"} <= set(measures["measure"])
    assert {"low", "high", "floor", "note"} <= set(measures.columns)


def test_the_models_page_shows_what_a_model_is_made_of(app):
    opened(app, "models", model="qwen2-57b-a14b")
    for _ in range(200):
        if app.metric or app.error:
            break
        time.sleep(0.3)
        app.run()
    shown = {metric.label: metric.value.replace("\\", "") for metric in app.metric}
    assert shown["parameters"] == "57.41 B" and shown["active per token"] == "14.25 B"
    assert shown["experts"] == "64, top-8"
    told = [each.value for each in app.markdown if "it would be refused" in each.value or "are free" in each.value]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("  ", "prompt is empty; at least one word was expected"),
        ("a" * 20_001, "prompt has 20,001 characters, at most"),
    ],
)
def test_a_prompt_that_cannot_be_recorded_is_a_sentence(app, prompt, sentence):
    opened(app, "record")
    app.text_area(key="prompt").set_value(prompt)
    app.button[0].click().run()
    assert not app.exception
    assert sentence in said(app)


def test_a_dense_parent_is_asked_for_where_weights_are_recorded(app, monkeypatch):
    asked = []
    monkeypatch.setattr(Host, "record", lambda self, **what: asked.append(what) or "job")
    opened(app, "record")
    assert not [box for box in app.selectbox if box.key == "parent"]
    app.multiselect(key="fields").set_value(["routing", "weights"]).run()
    app.selectbox(key="parent").select("tiny-dense")
    app.text_area(key="prompt").set_value("a few words")
    app.button[0].click().run()
    assert asked[0]["parent"] == "tiny-dense" and "weights" in asked[0]["fields"]


def test_the_list_says_what_each_recording_holds(app):
    opened(app, "record")
    rows = app.dataframe[0].value.set_index("recording")
    assert rows.loc["shared", ["state", "model", "fields"]].tolist() == [
        "finished",
        "tiny-random-moe",
        ", ".join(FIELDS),
    ]
    assert rows.loc["unfinished", "state"] == "not finished"
    assert "schema 99" in rows.loc["newer", "state"] and "damaged" in rows.loc["garbled", "state"]


def test_compare_shows_two_recordings_and_any_analysis(app, data):
    opened(app, "compare", analysis="expert_load", experts="same")
    assert not app.exception and not app.error
    assert app.selectbox(key="against").options == ["truncated", "second"]
    assert [header.value for header in app.header] == ["Token by token", "In any analysis"]
    assert app.query_params["against"] == "second"
    assert any("the same whichever documents" in str(frame.value) for frame in app.dataframe)
    command = next(code.value for code in app.code if "differences" in code.value)
    folder = data / "recordings"
    assert command.startswith(f"workbench analyze {folder / 'shared'} differences --against {folder / 'second'}")
    assert "--experts same" in command
    app.selectbox(key="ceiling").select("second").run()
    assert not app.exception and "Ceiling" in app.caption[0].value
    app.selectbox(key="against").select("truncated").run()
    assert "was truncated or edited" in said(app)


def test_what_cannot_be_compared_is_a_sentence(app, data, tmp_path):
    from tests import tiny
    from workbench.capture.record import record

    record(tiny.moe(n_experts=10), tiny.corpus(n_documents=10), data / "recordings" / "wider")
    try:
        opened(app, "compare", against="wider", recording="shared")
        assert not app.exception
        assert "cannot be compared: one has 8 experts at layer 0, the other 10. Compare models with as many" in said(
            app
        )
        assert app.selectbox(key="against").value == "wider"
    finally:
        shutil.rmtree(data / "recordings" / "wider")


@pytest.mark.parametrize("corpus", ["demo", "random"])
def test_one_recording_alone_cannot_be_compared_and_the_page_says_how_to_go_on(
    app, recording, monkeypatch, tmp_path, corpus
):
    alone = tmp_path / "recordings" / "alone"
    shutil.copytree(recording.path, alone)
    manifest = json.loads((alone / "manifest.json").read_text())
    manifest["corpus"]["name"] = corpus
    manifest["digest"] = recording_digest(manifest)
    (alone / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    opened(app, "compare")
    assert not app.exception and not app.error
    assert f"There is one recording, tiny-random-moe over {corpus}, and a comparison needs two" in said(app)
    if corpus == "demo":
        assert "tiny-moe@step-226" in app.selectbox(key="second-model").options
        assert any(button.label.startswith("Record tiny") for button in app.button)
    else:
        assert [link.label for link in app.page_link] == ["Record another model over the same corpus"]
    sys.modules["components.jobs"]._host.clear()


def test_costs_of_a_model_are_shown_beside_its_counterpart(app):
    opened(app, "efficiency", model="tiny-moe", beside="iso-active", device="2xh100")
    for _ in range(60):  # the model host looks at the config
        captions = " ".join(caption.value for caption in app.caption).replace("\\", "")
        if "against" in captions:
            break
        time.sleep(0.5)
        app.run()
    assert not app.exception and not app.error
    assert "tiny-moe against iso-active (4 layers, width 128, FFN 331; 1,231,488 of 1,231,488 parameters" in captions
    assert "2xh100, bfloat16" in captions
    assert any("analyze tiny-moe crossover --against iso-active --set device=2xh100" in c.value for c in app.code)


def test_a_device_that_is_not_there_is_said(app):
    opened(app, "efficiency", model="tiny-moe", beside="tiny-dense", device="abacus")
    assert "There is no device “abacus” here" in said(app)


def test_measurements_are_shown_with_every_analysis_that_their_tables_allow(app, data, measurement):  # noqa: F811
    shutil.copytree(measurement.path, data / "measurements" / "pair")
    try:
        opened(app, "efficiency", model="tiny-moe", beside="tiny-dense", measurement="pair")
        assert not app.exception and not app.error
        assert app.selectbox(key="measurement").value == "pair"
        titles = {expander.label for expander in app.expander}
        first = next(name for name in sys.modules["components.measurements"].FIRST)
        known = {name.replace("_", " ").capitalize() for name in catalogue.names("measurement") if name != first}
        lacking = [caption.value.replace("\\", "") for caption in app.caption if caption.value.startswith("Not asked")]
        assert {title for title in known if not any(title in line for line in lacking)} <= titles
        commands, folder = [code.value for code in app.code], data / "measurements"
        assert any(command.startswith(f"workbench analyze {folder / 'pair'} {first}") for command in commands)
        assert f"workbench profile tiny-moe --against tiny-dense --out {folder / 'tiny-moe-tiny-dense'}" in commands
    finally:
        shutil.rmtree(data / "measurements")


def test_without_a_measurement_the_command_that_makes_one_is_said(app, data):
    opened(app, "efficiency", model="qwen2-57b-a14b", beside="iso-active")
    assert "Nothing was measured into this data folder yet" in said(app)
    assert "Measure" in [button.label for button in app.button]
    out = data / "measurements" / "qwen2-57b-a14b"
    words = f"workbench profile qwen2-57b-a14b --weights dummy --dtype bfloat16 --out {out}"
    assert words in [code.value for code in app.code]


def test_a_damaged_measurement_is_a_sentence(app, data, measurement):  # noqa: F811
    shutil.copytree(measurement.path, data / "measurements" / "cut")
    file = data / "measurements" / "cut" / "samples.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    try:
        opened(app, "efficiency", model="tiny-moe", beside="tiny-dense", measurement="cut")
        assert not app.exception and "samples.parquet is not as it was written" in said(app)
    finally:
        shutil.rmtree(data / "measurements")


def test_text_is_shown_letter_by_letter(app):
    app.run()
    plain = sys.modules["components.jobs"].plain
    assert plain("<b> *a* $x$ :red[y] `c` \\") == r"\<b\> \*a\* \$x\$ \:red\[y\] \`c\` \\"
    assert plain("l’été 中文 12") == "l’été 中文 12"
    assert plain("a\u202eb\x00\nc") == "a⟨202E⟩b⟨0000⟩\nc"
    assert [plain(t).replace("\\", "") for t in ("https://a.b", "WWW.a.b", "a@b.c")] == [
        "https:\u2060//a.b", "WWW\u2060.a.b", "a@\u2060b.c",
    ]  # fmt: skip


def test_the_command_on_the_page_makes_what_is_shown(app, data):
    opened(app, "tokens", document="d7", layer="0")
    command = app.code[0].value
    assert command.startswith(f"workbench analyze {data / 'recordings' / 'shared'} token_routing")
    assert "document=d7" in command and "layer=0" in command


def test_the_app_imports_no_torch(data):
    code = (
        "import sys; sys.path.insert(0, 'pages'); from streamlit.testing.v1 import AppTest;"
        "app = AppTest.from_file('pages/app.py', default_timeout=60).run();"
        f"[app.switch_page(f'{{page}}.py').run() for page in {NAMES}];"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "WORKBENCH_DATA": str(data)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
