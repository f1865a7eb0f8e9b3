"""What a trace says is neither lost nor taken for something else: zeros, unsigned marks, weights, predictions."""

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.importers import sources
from workbench.cli.main import command_line
from workbench.errors import TraceError
from workbench.recordings.importers.build import import_trace
from workbench.recordings.importers.notes import import_notes

E = sources.E
GIVEN = {"n_experts": E, "layers": sources.LAYERS}


def refused(tmp_path, file, message, **options):
    with pytest.raises(TraceError, match=message):
        import_trace("numpy", file, tmp_path / "refused", **({"n_experts": E} | options))
    assert not (tmp_path / "refused").exists()


# Rows of zeros


def test_rows_of_zeros_are_suspected_and_counted_where_k_is_1(tmp_path):
    ids = sources.IDS_TLK[..., :1].copy()  # expert 0 stands in row 1 of layer 2 … never in both
    ids[:2] = 0
    np.save(tmp_path / "t.npy", ids)
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", **GIVEN)
    assert got.n_tokens == 5
    assert got.manifest["source"]["zero_rows"] == {
        "tokens": 2, "of_tokens": 5, "masked": 0, "first": "t.npy, row 0",
    }  # fmt: skip
    (line,) = [line for line in import_notes(got.manifest) if line.startswith("suspect")]
    assert "2 of 5 tokens (40.0%; 0.062 of them at balance)" in line and "--mask-zero-rows" in line
    masked = import_trace("numpy", tmp_path / "t.npy", tmp_path / "m", mask_zero_rows=True, **GIVEN)
    np.testing.assert_array_equal(sources.ids_of(masked), ids[2:])
    assert masked.tokens()["position"].tolist() == [2, 3, 4]
    assert masked.manifest["source"]["zero_rows"]["masked"] == 2
    assert masked.digest != got.digest


def test_a_zero_in_one_layer_is_an_expert(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[[0], [1]], [[2], [0]]]))
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", mask_zero_rows=True, **GIVEN)
    assert got.n_tokens == 2
    assert not any(line.startswith(("suspect", "masked")) for line in import_notes(got.manifest))


def test_rows_of_zeros_are_named_where_k_is_more(tmp_path):
    ids = sources.IDS_TLK.copy()
    ids[1:3] = 0
    np.save(tmp_path / "t.npy", ids)
    refused(tmp_path, tmp_path / "t.npy", "2 rows are 0 in every layer, .*--mask-zero-rows", **GIVEN)
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", mask_zero_rows=True, **GIVEN)
    np.testing.assert_array_equal(sources.ids_of(got), ids[[0, 3, 4]])
    ids[1] = sources.IDS_TLK[1]
    ids[2] = [[0, 0], [1, 2]]  # one layer alone: a dense one
    np.save(tmp_path / "t.npy", ids)
    refused(tmp_path, tmp_path / "t.npy", "Is it a layer with a router. A dense one", **GIVEN)


def test_rows_of_zeros_and_padding_are_told_apart(tmp_path):
    ids = sources.IDS_TLK.copy()
    ids[0], ids[1] = -1, 0
    np.save(tmp_path / "t.npy", ids)
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", mask_zero_rows=True, **GIVEN)
    assert got.manifest["source"]["padding"]["tokens"] == 1
    assert got.manifest["source"]["zero_rows"]["masked"] == 1
    ids[2:] = 0
    np.save(tmp_path / "s.npy", ids)
    refused(tmp_path, tmp_path / "s.npy", "1 were padding, and 4 were 0 in every layer", mask_zero_rows=True, **GIVEN)


def test_the_command_masks_rows_of_zeros_and_says_so(tmp_path):
    ids = sources.IDS_TLK[..., :1].copy()
    ids[:2] = 0
    np.save(tmp_path / "t.npy", ids)
    arguments = ["import", "numpy", str(tmp_path / "t.npy"), "--layers", "1-2", "--experts", str(E), "--out"]
    plain = CliRunner().invoke(command_line(), [*arguments, str(tmp_path / "a")])
    masked = CliRunner().invoke(command_line(), [*arguments, str(tmp_path / "b"), "--mask-zero-rows"])
    assert "suspect: 2 of 5 tokens" in plain.output
    assert "masked: 2 of 5 tokens, whose ids are 0 in every layer" in masked.output
    assert "positions are taken from the order of the rows" in plain.output


# Marks in unsigned ids


@pytest.mark.parametrize(("dtype", "mark"), [(np.uint8, 255), (np.uint16, 65_535), (np.uint32, 2**32 - 1)])
@pytest.mark.parametrize("n_experts", [E, 256, 65_536])
def test_minus_one_in_unsigned_ids_is_named(tmp_path, dtype, mark, n_experts):
    ids = sources.IDS_TLK.astype(dtype)
    ids[3] = mark
    np.save(tmp_path / "t.npy", ids)
    options = {"layers": sources.LAYERS, "n_experts": n_experts}
    refused(tmp_path, tmp_path / "t.npy", f"hold {mark}, which is what -1 becomes in {np.dtype(dtype)}", **options)


def test_the_last_of_256_experts_is_an_expert(tmp_path):
    ids = sources.IDS_TLK.astype(np.uint8)
    ids[3, 0] = [255, 1]
    np.save(tmp_path / "t.npy", ids)
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", layers=sources.LAYERS, n_experts=256)
    np.testing.assert_array_equal(sources.ids_of(got), ids)


# Weights


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (986_139.0, "row 2, layer 2: the largest weight is 986139, and weights are stored as float16"),
        (-70_000.0, "the largest weight is 70000"),
        (1e30, r"the largest weight is 1e\+30"),
        (65_520.0, "the largest weight is 65520"),
        (np.inf, "are not finite"),
        (np.nan, "are not finite"),
    ],
)
def test_weights_that_float16_does_not_hold_are_named(tmp_path, weight, message):
    weights_TLK = np.full(sources.IDS_TLK.shape, 0.5)
    weights_TLK[2, 1, 0] = weight
    refused(tmp_path, sources.numpy_file(tmp_path / "t.npz", weights=weights_TLK), message)


def test_weights_that_would_all_become_0_are_named(tmp_path):
    weights_TLK = np.full(sources.IDS_TLK.shape, 0.5)
    weights_TLK[4, 0] = [1e-9, 2e-9]
    refused(tmp_path, sources.numpy_file(tmp_path / "t.npz", weights=weights_TLK), "row 4, layer 1: the largest weight")
    weights_TLK[4, 0] = [0.7, 1e-9]  # one that hardly counts beside another is what float16 is for
    file = sources.numpy_file(tmp_path / "t.npz", weights=weights_TLK)
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E)
    np.testing.assert_allclose(got.weights(1)[4], [0.7, 0], atol=1e-3)


@pytest.mark.parametrize("weight", [65_504.0, 0.0, -1.0])
def test_weights_that_float16_holds_are_kept(tmp_path, weight):
    weights_TLK = np.full(sources.IDS_TLK.shape, 0.5)
    weights_TLK[2, 1] = weight
    file = sources.numpy_file(tmp_path / "t.npz", weights=weights_TLK)
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E)
    assert got.weights(2)[2].tolist() == [weight, weight]


# Predictions


def test_olmoe_predictions_are_kept_and_named(tmp_path):
    import json

    line = json.loads(sources.olmoe_line()) | {"predicted_token_ids": [8, 9, 11, 6, 3]}
    (tmp_path / "c.jsonl").write_text(json.dumps(line))
    got = import_trace("olmoe", tmp_path / "c.jsonl", tmp_path / "r", n_experts=E)
    assert got.tokens()["predicted"].tolist() == [8, 9, 11, 6, 3]
    assert got.has("predicted") and not got.has("logprob")
    assert "predicted" not in got.lacks
    assert got.vocabulary["token"].tolist() == [3, 6, 7, 8, 9, 11]
    del line["predicted_token_ids"]
    (tmp_path / "c.jsonl").write_text(json.dumps(line))
    without = import_trace("olmoe", tmp_path / "c.jsonl", tmp_path / "s", n_experts=E)
    assert "predicted" in without.lacks and "predicted" not in without.tokens()
    assert without.verify()
