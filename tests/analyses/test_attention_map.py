"""The map of one head: its cells, its text, and the command; and the same through the model's process."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from analyses import head_map
from tests.capture.test_attention import eager_weights
from workbench.capture.attention.heads import MOST_MAPPED, attention_map
from workbench.capture.record import record
from workbench.cli import analyze
from workbench.errors import AnalysisError, CaptureError
from workbench.models.loading import load
from workbench.recordings.corpus import Corpus, Document


def test_it_is_that_head_of_eager_attention(moe):
    ids = list(range(3, 60))
    for layer, weights_HST in eager_weights(moe.module, torch.tensor([ids])).items():
        for head in (0, 3):
            np.testing.assert_allclose(attention_map(moe, ids, layer=layer, head=head), weights_HST[head], atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "where", "message"),
    [
        ([], (0, 0), "a map of 0 tokens was asked; 1 to 2,048"),
        ([1] * (MOST_MAPPED + 1), (0, 0), "a map of 2,049 tokens"),
        ([5, 999], (0, 0), "token ids go from 5 to 999; tiny-random-moe knows 0 to 210"),
        ([5, 6], (7, 0), "no head 0 in an attention of layer 7; it has 0 .4 heads., 1 .4 heads., 2 "),
        ([5, 6], (1, 4), "no head 4 in an attention of layer 1"),
    ],
)
def test_what_there_is_not_is_refused(moe, ids, where, message):
    with pytest.raises(CaptureError, match=message):
        attention_map(moe, ids, layer=where[0], head=where[1])


def test_a_long_text_is_cut_to_cells_whose_rows_sum_to_one():
    rng = np.random.default_rng(0)
    weights = np.tril(rng.random((300, 300)))
    weights /= weights.sum(-1, keepdims=True)
    table = head_map.cells(weights, ["x"] * 300)
    assert table["query"].nunique() == 100 and len(table) == 100 * 101 // 2
    np.testing.assert_allclose(table.groupby("query")["weight"].sum(), 1)
    by_hand = weights[6:9, 3:6].sum() / 3
    assert table.query("query == 6 and key == 3")["weight"].item() == pytest.approx(by_hand)
    short = head_map.cells(weights[:5, :5], list("abcde"))
    assert short.query("query == 4 and key == 2")[["weight", "key_text"]].to_numpy().tolist() == [[weights[4, 2], "c"]]


def test_a_document_that_is_not_there_is_named(recording):
    with pytest.raises(AnalysisError, match="has no document 'nobody'; it has 50"):
        head_map.text_of(recording, "nobody", n_tokens=5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("layer", 7), "layer is 7; .* has attention in 0, 1, 2"),
        (("layer", -1), "layer is -1"),
        (("head", 4), "head is 4; layer 1 of .* has heads 0 to 3"),
        (("head", -1), "head is -1"),
        (("tokens", 0), "a map of 0 tokens was asked; --tokens 1 to 2,048"),
        (("tokens", -4), "a map of 0 tokens was asked"),
    ],
)
def test_what_the_recording_knows_to_be_wrong_loads_no_model(recording, monkeypatch, tmp_path, asked, message):
    def loads(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("workbench.models.loading.load", loads)
    given = {"layer": 1, "head": 0, "tokens": 128} | {asked[0]: asked[1]}
    document = recording.documents()["id"][0]
    with pytest.raises(AnalysisError, match=message):
        analyze.attention_map(recording.path, document, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.rest
def test_the_command_writes_figure_table_and_provenance(tmp_path):
    text = Document("one", "english", "us", "one", "The quick brown fox jumps over the lazy dog. The quick brown fox.")
    recording = record(load("tiny-moe"), Corpus("one", (text,)), tmp_path / "r")
    given = [str(recording.path), "--document", "one", "--layer", "3", "--head", "0", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "workbench.cli", "attention-map", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = tmp_path / "out" / "attention-map"
    assert {"map.pdf", "map.svg", "map.png", "weights.csv"} <= {file.name for file in written.iterdir()}
    provenance = json.loads((written / "provenance.json").read_text())
    assert provenance["command"].startswith("workbench attention-map") and provenance["settings"]["layer"] == 3
