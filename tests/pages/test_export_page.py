"""The Export page through Streamlit's own harness: what is put aside, and what the bundle holds."""

import io
import os
import shlex
import subprocess
import sys
import time
import zipfile

import pytest

from tests.pages.test_pages import ROOT, app, data, opened, said

__all__ = ("app", "data")  # fixtures

ASIDE = "of=shared&analysis=expert_load&names=load_map%2Clayers"


def test_nothing_put_aside_is_said(app):
    opened(app, "export")
    assert "Nothing is put aside yet" in said(app) and not app.exception


def test_what_an_address_puts_aside_is_shown(app):
    opened(app, "export", aside=ASIDE, width="text")
    assert not app.exception and not app.error
    assert [each.value for each in app.subheader] == ["expert load\\: shared"]
    assert [button.label for button in app.button] == ["Take load map out", "Take layers out"]
    app.button[0].click().run()
    assert app.query_params["aside"] == "of=shared&analysis=expert_load&names=layers"
    app.button[0].click().run()
    assert "aside" not in app.query_params and "Nothing is put aside yet" in said(app)


@pytest.mark.parametrize(
    ("aside", "sentence"),
    [
        ("of=nowhere&analysis=expert_load&names=load_map", "expert_load of nowhere is left out"),
        ("of=../shared&analysis=expert_load&names=load_map", "is left out"),
        ("of=shared&analysis=vibes&names=load_map", "unknown analysis 'vibes'"),
        ("of=shared&analysis=expert_load&names=load_map&set=size%3D3", "unknown setting 'size'"),
        ("of=shared&analysis=expert_load&names=nothing", "Nothing is put aside yet"),
        ("|||=&of=shared", "Nothing is put aside yet"),
    ],
)
def test_an_address_that_puts_aside_what_is_not_there_is_a_sentence(app, aside, sentence):
    opened(app, "export", aside=aside)
    assert not app.exception and not app.error
    assert sentence in said(app)


def test_a_figure_of_any_page_is_put_aside_and_its_settings_with_it(app):
    opened(app, "utilization", layer="2", expert="4")
    next(button for button in app.button if button.key == "expert_card-by_domain-aside").click().run()
    assert app.session_state["chosen"]["aside"] == (
        "of=shared&analysis=expert_card&names=by_domain&set=layer%3D2&set=expert%3D4&set=min_count%3D5"
    )
    assert next(b.label for b in app.button if b.key == "expert_card-by_domain-aside") == "In the export"
    app.selectbox(key="expert").select(1).run()
    assert next(b.label for b in app.button if b.key == "expert_card-by_domain-aside") == "Add to export"
    app.switch_page("export.py").run()
    assert [each.value.replace("\\", "") for each in app.subheader] == [
        "expert card: shared, layer=2, expert=4, min_count=5"
    ]
    assert "aside" in app.query_params


def test_what_no_address_can_say_is_kept_for_the_visit(app):
    opened(app, "efficiency", model="tiny-moe", beside="tiny-dense")
    for _ in range(60):  # the model host looks at the configs
        if found := [button for button in app.button if button.key == "roofline-throughput-aside"]:
            break
        time.sleep(0.5)
        app.run()
    found[0].click().run()
    app.switch_page("export.py").run()
    assert not app.exception and len(app.subheader) == 1 and "roofline" in app.subheader[0].value


@pytest.mark.rest
def test_the_bundle_is_what_the_command_writes(app, data, tmp_path):
    """Its files are byte by byte those that its own reproduce.sh makes."""
    both = f"{ASIDE}|of=shared&analysis=expert_load&against=second&names=layers"
    opened(app, "export", aside=both)
    printing = sys.modules["components.export_preview"]
    with zipfile.ZipFile(io.BytesIO(printing._pack(list(results_of(both)), "text"))) as archive:
        archive.extractall(tmp_path)
    bundle = tmp_path / "bundle"
    assert {path.name for path in bundle.iterdir()} == {"expert_load", "expert_load-2", "paper.tex", "reproduce.sh"}
    assert {path.name for path in (bundle / "expert_load").iterdir()} == {
        "load_map.pdf", "load_map.svg", "load_map.png", "layers.csv", "layers.tex", "provenance.json",
    }  # fmt: skip
    commands = (bundle / "reproduce.sh").read_text().splitlines()[3:]
    assert len(commands) == 2 and "--only load_map --only layers --width text" in commands[0]
    for command in commands:
        words = [sys.executable, "-m", "workbench.cli", *shlex.split(command)[1:]]
        subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    for file in (path for path in bundle.rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(bundle)).read_bytes(), file.name


def results_of(text):
    names = ("results", "recordings", "export_basket")
    results, recordings, export_basket = (sys.modules[f"components.{name}"] for name in names)
    for asked in export_basket.read(text):
        yield results.computed(asked.question(recordings.named)), asked.names
