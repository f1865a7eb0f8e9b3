"""The worked example: its sentences hold no results, its numbers are the run's, its page is the one that is there."""

import ast
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from docs import example, story
from workbench.models import bundled
from workbench.models.loading import inspect_topology
from workbench.recordings.corpus import Corpus

DOCS = Path(story.__file__).parent
PAGE = (DOCS / "example.md").read_text(encoding="utf-8")
IMAGE = re.compile(r"figures/(example_\w+)\.png")


@pytest.fixture(scope="module")
def told(recording):
    """The story of the random model of the tests, beside itself."""
    return story.Story.of(recording, recording)


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def sentences(source: str) -> list[str]:
    """The pieces of text in the sections that are written out, without what is filled in and how it is formatted."""
    formats, pieces = set(), []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            formats |= {id(part) for part in ast.walk(node.format_spec)}
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("span", "percent", "each", "with_ends"):
            formats |= {id(part) for part in ast.walk(node)}
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("_"):
            constants = [
                node for node in ast.walk(function) if isinstance(node, ast.Constant) and id(node) not in formats
            ]
            pieces += [node.value for node in constants if isinstance(node.value, str)]
    return pieces


def test_the_sentences_hold_no_number():
    written = sentences(Path(story.__file__).read_text(encoding="utf-8"))
    assert len(written) > 100 and any("Many a paper would stop here" in piece for piece in written)
    assert [piece for piece in written if re.search(r"\d", piece)] == []
    assert sentences("def _a():\n    f\"{span(x, '.2f')} of 7 {y:.3f}\"\n") == [" of 7 "]


@pytest.mark.rest
def test_the_numbers_are_the_analyses(told, recording):
    from analyses.domains import domain_load
    from analyses.structure import coactivation

    known = domain_load.run(recording).information
    row = known.iloc[0]
    assert f"| {row['layer']:.0f} | {row['estimate']:.2f} ({row['low']:.2f} to {row['high']:.2f}) |" in told.text
    pair = coactivation.run(recording).pairs.nlargest(1, "lift_over_matched").iloc[0]
    flat = " ".join(told.text.split())
    assert f"experts {pair['a']:.0f} and {pair['b']:.0f} of layer {pair['layer']:.0f}, stands" in flat
    assert f"over {recording.n_tokens:,} tokens of {recording.n_documents:,} documents" in flat


def test_the_page_is_the_one_that_is_made(told):
    assert headings(PAGE) == headings(told.text)
    assert set(IMAGE.findall(PAGE)) == set(IMAGE.findall(told.text)) == {f"example_{name}" for name in told.figures}
    assert {file.stem for file in (DOCS / "figures").glob("example_*.png")} == set(IMAGE.findall(PAGE))
    asked = [set(re.findall(r"analyze \S+ (\w+)", text)) for text in (PAGE, told.text)]
    assert asked[0] == asked[1]


def test_the_page_is_of_the_bundled_model_and_corpus():
    flat, corpus = " ".join(PAGE.split()), Corpus.read("demo")
    router = inspect_topology(example.MODEL).routers[0]
    layers = len(inspect_topology(example.MODEL).routers)
    assert f"{example.MODEL} has {layers} MoE layers with {router.n_experts} routed experts each" in flat
    assert f"of which a token chooses {router.top_k}" in flat
    assert f"of {len(corpus.documents)} documents in {len({d.domain for d in corpus.documents})} domains" in flat
    assert example.UNTRAINED in bundled.bundled_names() and example.UNTRAINED in flat


def test_where_a_sentence_does_not_hold_nothing_is_written(told, tmp_path):
    assert "the story turns" in told.doubts  # beside itself, nothing was learned or lost
    with pytest.raises(
        SystemExit, match=r"the story says, and this run does not: .*the story turns.* Write docs/story"
    ):
        example.write(told, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_story_that_holds_is_written_with_its_figures(told, tmp_path):
    example.write(story.Story(told.recording, told.untrained, "# a\n", {"load": told.figures["load"]}), tmp_path)
    assert (tmp_path / "example.md").read_text() == "# a\n"
    assert (tmp_path / "figures" / "example_load.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_in_words():
    table = pd.DataFrame(
        {"layer": [0, 2, 5], "value": [0.5, 1.25, 3.0], "low": [0.1, 1.0, np.nan], "high": [0.9, 1.5, np.nan]}
    )
    assert story.with_ends(table, form=".1f") == ["0.5 (0.1 to 0.9)", "1.2 (1.0 to 1.5)", "3.0"]
    assert story.layers(table, table["value"] > 1) == "layers 2 and 5"
    assert story.layers(table, [True, False, False]) == "layer 0"
    assert (story.layers(table, [True] * 3), story.layers(table, [False] * 3)) == ("every layer", "no layer")
    assert story.span(pd.Series([3.14, 2.0]), ".1f") == "2.0 to 3.1"
    assert story.span(pd.Series([0.201, 0.199]), ".1f") == "0.2"
    assert story.span(pd.Series([-0.001, 0.001]), ".1f") == "0.0"
    assert story.span(pd.Series([-0.2, 1234.0]), ",.1f") == "-0.2 to 1,234.0"
    assert story.percent(0.1234) == "12.3 %"
    assert story.each([1, 2], "d") == ["1", "2"]


def test_a_figure_that_a_recording_is_too_small_for_is_left_out(told):
    bare = story.Story(told.recording, told.untrained)
    answer = bare.ask("expert_load")
    bare.show("load", answer, "no such figure")
    assert bare.text == "" and bare.figures == {}
