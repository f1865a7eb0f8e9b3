"""A part of a recording reads like a recording of that part."""

import numpy as np
import pandas as pd
import pytest

from tests import tiny
from workbench.capture.record import record
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_documents, of_layers, renamed

KEPT = np.array([3, 7, 11, 40])


def same(one: Recording, two: Recording) -> None:
    """Equal rows, whatever their order on disk."""
    for table in ("tokens", "documents"):
        frames = [getattr(each, table)() for each in (one, two)]
        keys = ["document", *(["position"] if table == "tokens" else [])]
        frames = [frame.sort_values(keys, ignore_index=True) for frame in frames]
        pd.testing.assert_frame_equal(*frames, check_dtype=False, check_categorical=False, rtol=1e-4)
    for layer in one.moe_layers:
        orders = [np.argsort(each.column("document", table="documents")) for each in (one, two)]
        np.testing.assert_array_equal(one.counts(layer)[orders[0]], two.counts(layer)[orders[1]])


def test_some_documents_are_those_rows_alone(recording):
    view = of_documents(recording, KEPT)
    tokens, documents = recording.tokens(), recording.documents()
    mask = tokens["document"].isin(KEPT).to_numpy()
    pd.testing.assert_frame_equal(view.tokens(), tokens[mask].reset_index(drop=True))
    pd.testing.assert_frame_equal(view.documents(), documents[documents["document"].isin(KEPT)].reset_index(drop=True))
    np.testing.assert_array_equal(view.ids(0), recording.ids(0)[mask])
    assert (view.n_documents, view.n_tokens) == (4, mask.sum())
    assert view.digest == recording.digest and view.chosen_phase is None
    np.testing.assert_array_equal(view.of_document(7, ["token"])["token"], recording.of_document(7, ["token"])["token"])


def test_a_view_of_a_view_and_other_numbers(recording):
    view = of_documents(recording, KEPT, as_numbers=np.array([0, 1, 2, 3]))
    assert sorted(view.column("document", table="documents")) == [0, 1, 2, 3]
    inner = of_documents(view, np.array([1, 3, 99]))
    assert sorted(inner.documents()["id"]) == ["d40", "d7"]
    assert set(inner.tokens()["document"]) == {1, 3}
    same(of_documents(recording, np.arange(50)), recording)


def test_the_rows_of_a_document_that_are_kept_are_those_of_its_number(recording):
    kept = recording.keeping(1 << 20)
    view = of_documents(kept, KEPT, as_numbers=np.array([0, 1, 2, 3]))
    for _ in range(2):
        for document, whole in ((0, 3), (3, 40)):
            for each in (kept, recording):
                plain = each.of_document(whole, ["token"])["token"]
                np.testing.assert_array_equal(view.of_document(document, ["token"])["token"], plain)


def test_a_view_of_fewer_documents_is_the_recording_of_them(moe, recording, tmp_path):
    ten = record(moe, tiny.corpus(n_documents=10), tmp_path / "r", fields=recording.fields)
    same(of_documents(recording, np.arange(10)), ten)


def test_a_part_is_of_the_view(recording):
    view = of_documents(recording, KEPT)
    parts = [view.of_part(index) for index in range(len(recording.manifest["parts"]))]
    assert len(parts) > 1 and sum(part.n_tokens for part in parts) == view.n_tokens


def test_layers_that_are_left_keep_their_columns(recording):
    view = of_layers(recording, (2,))
    assert view.moe_layers == (2,) and recording.moe_layers == (0, 2)
    np.testing.assert_array_equal(view.ids(2), recording.ids(2))
    with pytest.raises(Exception, match="layer 0 of .* has no router; the MoE layers are .2."):
        view.ids(0)


def test_experts_under_other_ids(recording):
    rng = np.random.default_rng(0)
    label_of = {(layer, "mlp"): np.stack([rng.permutation(8), rng.permutation(8)]) for layer in recording.moe_layers}
    half_of = np.arange(50) % 2
    view = renamed(recording, half_of, label_of)
    document_T = recording.tokens()["document"].to_numpy()
    for layer in recording.moe_layers:
        label_2E = label_of[layer, "mlp"]
        expected = [[label_2E[d % 2][e] for e in ids] for d, ids in zip(document_T, recording.ids(layer), strict=True)]
        np.testing.assert_array_equal(view.ids(layer), expected)
        np.testing.assert_array_equal(view.weights(layer), recording.weights(layer))
        for read in ("counts", "score_sum", "weight_sum"):
            old_DE, new_DE = getattr(recording, read)(layer), getattr(view, read)(layer)
            for row, d in enumerate(recording.documents()["document"]):
                np.testing.assert_array_equal(new_DE[row][label_2E[d % 2]], old_DE[row])
        logits_TE = view.router_statistic("logits", layer)
        np.testing.assert_array_equal(
            np.take_along_axis(logits_TE, view.ids(layer).astype(int), axis=1),
            np.take_along_axis(recording.router_statistic("logits", layer), recording.ids(layer).astype(int), axis=1),
        )
    some = of_documents(view, KEPT)
    rows = np.flatnonzero(np.isin(document_T, KEPT))
    np.testing.assert_array_equal(some.ids(0), view.ids(0)[rows])
