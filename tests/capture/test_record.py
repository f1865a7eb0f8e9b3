"""The main job: what is recorded is what plain hooks see, whatever interrupts it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from tests.capture.test_hooks import plain_hooks
from tests.tiers import often
from workbench.capture.batching import make_plan
from workbench.capture.record import record
from workbench.capture.runner import RowRunner
from workbench.errors import Cancelled, CaptureError, CorpusError, RecordingError
from workbench.models.loading import load
from workbench.recordings.corpus import Corpus, Document
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording
from workbench.recordings.writer import RecordingWriter

SETTINGS = {
    "fields": FIELDS,
    "parent": tiny.dense(n_layers=3),
    "batch_tokens": 256,
    "shard_tokens": 512,
}  # as the recording in conftest.py
ON_DISK = {"rtol": 1e-3, "atol": 6e-8}  # float16


def tables(recording: Recording) -> dict[str, pd.DataFrame]:
    return {
        table: pd.concat([pd.read_parquet(part) for part in sorted((recording.path / table).glob("*.parquet"))])
        for table in ("tokens", "documents")
    }


def assert_same_tables(one: Recording, other: Recording) -> None:
    for name, table in tables(one).items():
        pd.testing.assert_frame_equal(table, tables(other)[name])


def test_recorded_columns_equal_plain_hooks_document_by_document(recording):
    """Ids exactly; entropies, margins and weights to the precision of float16 on disk; every document alone."""
    module = tiny.moe().module
    tokens = recording.tokens()
    corpus = tiny.corpus()
    layers = recording.moe_layers
    columns = {
        (layer, name): recording.router_statistic(name, layer)
        for layer in layers
        for name in ("entropy", "margin", "topk_mass", "logsumexp", "shared_gate", "logits")
    }
    for document in (0, 7, 23, 49):
        rows = np.flatnonzero(tokens["document"] == document)
        ids_BS = torch.tensor([corpus.documents[document].token_ids])
        np.testing.assert_array_equal(tokens["token"].to_numpy()[rows], ids_BS[0])
        logits, seen = plain_hooks(module, ids_BS, None)
        logprob = logits[0, :-1].log_softmax(-1).gather(-1, ids_BS[0, 1:, None])[:, 0]
        np.testing.assert_allclose(tokens["logprob"].to_numpy()[rows][1:], logprob, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(tokens["predicted"].to_numpy()[rows], logits[0].argmax(-1))
        for layer, plain in zip(layers, seen, strict=True):
            np.testing.assert_array_equal(recording.ids(layer)[rows], plain["ids"])
            np.testing.assert_allclose(recording.weights(layer)[rows], plain["weights"], **ON_DISK)
            score_TE = plain["logits"].double().softmax(-1).numpy()
            ordered_TE = -np.sort(-score_TE, axis=1)
            expected = {
                "entropy": -(score_TE * np.log(score_TE)).sum(1),
                "margin": ordered_TE[:, 2] - ordered_TE[:, 3],
                "topk_mass": ordered_TE[:, :3].sum(1),
                "logsumexp": plain["logits"].double().logsumexp(-1),
                "shared_gate": plain["gate"].double().sigmoid(),
                "logits": plain["logits"],
            }
            for name, values in expected.items():
                # A batch adds up in another order than a single document; float32 sums differ in the last bits.
                np.testing.assert_allclose(columns[layer, name][rows], values, rtol=1e-3, atol=2e-6, err_msg=name)


def test_the_bundled_model_is_recorded_as_plain_hooks_see_it(tmp_path):
    """The real model over real text, the same batches through an unwrapped copy: ids exactly, float16 as it rounds."""
    model, untouched = load("tiny-moe", device="cpu"), load("tiny-moe", device="cpu").module
    corpus = Corpus.read("demo")
    made = record(model, corpus, tmp_path / "r", max_tokens=9000, batch_tokens=2048)
    encoded = [model.tokenizer(document.text)["input_ids"] for document in corpus.documents]
    plan = make_plan(
        [len(ids) for ids in encoded],
        [document.domain for document in corpus.documents],
        batch_tokens=2048, shard_tokens=65_536, context=2048, max_tokens=9000,
    )  # fmt: skip
    assert made.n_tokens == plan.n_tokens > 8000
    start = 0
    columns = {
        (layer, name): made.router_statistic(name, layer)
        for layer in made.moe_layers
        for name in ("ids", "weights", "entropy", "margin", "topk_mass", "shared_gate")
    }
    for batch in plan.batches:
        ids_BS = torch.zeros(len(batch.rows), batch.width, dtype=torch.long)
        mask_BS = torch.zeros_like(ids_BS)
        for i, row in enumerate(batch.rows):
            ids_BS[i, : row.n_tokens] = torch.tensor(encoded[row.document][: row.n_tokens])
            mask_BS[i, : row.n_tokens] = 1
        _, seen = plain_hooks(untouched, ids_BS, None if mask_BS.all() else mask_BS)
        valid_T = mask_BS.reshape(-1).bool()
        rows = slice(start, start + batch.n_tokens)
        start += batch.n_tokens
        for layer, plain in zip(made.moe_layers, seen, strict=True):
            score_TE = plain["logits"][valid_T].double().softmax(-1)
            ids_TK = plain["ids"][valid_T]
            chosen_TK = score_TE.gather(-1, ids_TK)
            left_TE = score_TE.scatter(-1, ids_TK, -1.0)
            np.testing.assert_array_equal(columns[layer, "ids"][rows], ids_TK)
            for name, expected in {
                "weights": plain["weights"][valid_T],
                "entropy": torch.special.entr(score_TE).sum(-1),
                "margin": chosen_TK.amin(-1) - left_TE.amax(-1),
                "topk_mass": chosen_TK.sum(-1),
                "shared_gate": plain["gate"][valid_T].double().sigmoid(),
            }.items():
                np.testing.assert_allclose(columns[layer, name][rows], expected, **ON_DISK, err_msg=name)


@pytest.mark.parametrize("seed", often(range(3), [1]))
def test_a_cancelled_run_goes_on_to_the_same_tables(moe, recording, tmp_path, seed):
    asked = iter([False] * (2 + 2 * seed))
    with pytest.raises(Cancelled, match=r"cancelled after [\d,]+ of [\d,]+ tokens; the parts in .* are whole"):
        record(moe, tiny.corpus(), tmp_path / "r", should_cancel=lambda: next(asked, True), **SETTINGS)
    again = record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)
    assert_same_tables(again, recording)
    assert again.digest == recording.digest


def test_a_finished_recording_is_not_recorded_again(moe, recording, tmp_path):
    copy = shutil.copytree(recording.path, tmp_path / "copy")
    seen = []
    again = record(moe, tiny.corpus(), copy, on_progress=seen.append, **SETTINGS)
    assert (seen, again.digest) == ([], recording.digest)


def test_progress_counts_up_to_the_whole(moe, tmp_path):
    seen = []
    made = record(moe, tiny.corpus(n_documents=12), tmp_path / "r", on_progress=seen.append, **SETTINGS)
    assert [p.done_tokens for p in seen] == sorted(p.done_tokens for p in seen)
    assert seen[-1].done_tokens == seen[-1].total_tokens == made.n_tokens
    assert seen[-1].left_s == 0


def test_halved_batches_are_logged_and_change_no_table(moe, recording, tmp_path, monkeypatch):
    run_rows = RowRunner.run

    def small(self, rows, witness=None):
        if len(rows) > 4:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return run_rows(self, rows, witness)

    monkeypatch.setattr(RowRunner, "run", small)
    halved = record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)
    assert halved.manifest["halved_batches"]
    for layer in recording.moe_layers:
        np.testing.assert_array_equal(halved.ids(layer), recording.ids(layer))
    np.testing.assert_allclose(halved.column("logprob"), recording.column("logprob"), rtol=1e-4, atol=1e-5)


def test_a_single_document_that_does_not_fit_says_what_to_do(moe, tmp_path, monkeypatch):
    def never(self, rows, witness=None):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(RowRunner, "run", never)
    with pytest.raises(RecordingError, match="out of GPU memory with a single document of .* smaller --batch-tokens"):
        record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)


def test_a_dense_model_is_recorded_with_its_logprobs(dense, tmp_path):
    made = record(dense, tiny.corpus(), tmp_path / "r")
    assert made.moe_layers == ()
    assert np.isfinite(made.documents()["loss"]).all()


def test_without_logprob_no_such_column_is_written(moe, tmp_path):
    made = record(moe, tiny.corpus(n_documents=8), tmp_path / "r", fields=("routing",))
    assert "logprob" not in made.tokens()
    assert "loss" not in made.documents()


def test_a_skipped_check_stands_in_the_manifest(moe, tmp_path):
    made = record(moe, tiny.corpus(n_documents=8), tmp_path / "r", check=False)
    assert made.manifest["check"] == "skipped (--no-check)"


def test_another_recording_in_the_folder_is_left_alone(moe, recording, tmp_path):
    copy = shutil.copytree(recording.path, tmp_path / "copy")
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    with pytest.raises(RecordingError, match=r"holds another recording \(batch_tokens is 256 there, 128 here\)"):
        record(moe, tiny.corpus(), copy, **{**SETTINGS, "batch_tokens": 128})
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


def test_changed_weights_are_another_recording(recording, tmp_path):
    copy = shutil.copytree(recording.path, tmp_path / "copy")
    with pytest.raises(RecordingError, match="holds another recording .*weights_digest is"):
        record(tiny.moe(seed=1), tiny.corpus(), copy, **SETTINGS)


def test_a_folder_with_other_files_is_left_alone(moe, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RecordingError, match=r"is not empty and holds no recording \(thesis.tex"):
        record(moe, tiny.corpus(), tmp_path, **SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_named(moe, tmp_path):
    (tmp_path / "r").write_text("x")
    with pytest.raises(RecordingError, match="cannot be made: .*r is a file. Name another --out"):
        record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)
    with pytest.raises(RecordingError, match="cannot be made: .* is a file"):
        record(moe, tiny.corpus(), tmp_path / "r" / "below", **SETTINGS)


def test_a_second_writer_is_refused(moe, recording, tmp_path):
    of_closed = ("status", "digest", "parts", "vocabulary", "created", "finished", "shards", "written_rows")
    manifest = {key: value for key, value in recording.manifest.items() if key not in of_closed}
    fields = recording.fields
    writer = RecordingWriter(tmp_path / "r", manifest, topology=moe.topology, fields=fields, n_shards=1)
    with writer, pytest.raises(RecordingError, match="is being written by another process"):
        record(moe, tiny.corpus(), tmp_path / "r", **SETTINGS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("routing", "vibes"), "'vibes' is unknown; known are routing, logprob, logits"),
        ((), "none were given"),
        (("logits",), "'logits' are the router's and go with 'routing'"),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_written(moe, tmp_path, fields, message):
    with pytest.raises(RecordingError, match=message):
        record(moe, tiny.corpus(), tmp_path / "r", fields=fields)
    assert not (tmp_path / "r").exists()


def test_text_without_a_tokenizer_is_refused(moe, tmp_path):
    with pytest.raises(CorpusError, match="is text, but tiny-random-moe has no tokenizer"):
        record(moe, Corpus.from_texts(["hello"]), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_tokens_of_another_model_are_refused(moe, tmp_path):
    corpus = Corpus("c", (Document("a", "x", "", "a", "", (1, 9999)),))
    with pytest.raises(CorpusError, match="token ids from 1 to 9999; tiny-random-moe knows 0 to 210"):
        record(moe, corpus, tmp_path / "r")


def test_nan_on_the_way_is_named_with_its_layer(tmp_path):
    model = tiny.moe()
    model.module.model.layers[1].register_forward_hook(lambda m, args, out: out * float("nan"))
    with pytest.raises(CaptureError, match="layer 2 .*router logits or weights are NaN or infinite in row 0"):
        record(model, tiny.corpus(), tmp_path / "r", check=False)


def test_nan_logits_of_a_dense_model_are_refused(tmp_path):
    model = tiny.dense()
    model.module.model.norm.register_forward_hook(lambda m, args, out: out * float("nan"))
    with pytest.raises(CaptureError, match="the model's logits are NaN or infinite in row 0"):
        record(model, tiny.corpus(), tmp_path / "r")
