"""The format: what is written can be read by anyone, and what was damaged is refused with a sentence."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests import tiny
from workbench.capture.record import record
from workbench.errors import RecordingError
from workbench.files import writing
from workbench.files.writing import write_whole
from workbench.recordings.manifest import read_manifest, recording_digest, recordings_below
from workbench.recordings.recording import Recording
from workbench.recordings.schema import SCHEMA, prefix


@pytest.fixture
def copied(recording, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(recording.path, tmp_path / "copy")


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def close_over(path, manifest):
    """Writes a manifest under its own digest, as somebody would who wants it believed."""
    manifest["digest"] = recording_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_every_accessor_agrees_with_pandas_reading_the_files(recording):
    parts = sorted((recording.path / "tokens").glob("*.parquet"))
    assert len(parts) > 1
    tokens = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    assert recording.n_tokens == len(tokens)
    layer = recording.moe_layers[-1]
    np.testing.assert_array_equal(recording.ids(layer), np.stack(tokens[f"layer{layer:02d}.ids"]))
    np.testing.assert_array_equal(recording.weights(layer), np.stack(tokens[f"layer{layer:02d}.weights"]))
    np.testing.assert_array_equal(
        recording.router_statistic("entropy", layer), tokens[f"layer{layer:02d}.entropy"].to_numpy()
    )
    pd.testing.assert_frame_equal(recording.tokens(), tokens[list(recording.tokens().columns)], check_dtype=False)


def test_sums_of_documents_are_the_sums_of_their_tokens(recording):
    tokens, documents = recording.tokens(), recording.documents()
    assert documents["tokens"].sum() == recording.n_tokens
    row_of = {document: row for row, document in enumerate(documents["document"])}
    row_T = tokens["document"].map(row_of).to_numpy()
    for layer in recording.moe_layers:
        counts_DE = np.zeros_like(recording.counts(layer))
        np.add.at(counts_DE, (row_T[:, None], recording.ids(layer)), 1)
        np.testing.assert_array_equal(recording.counts(layer), counts_DE)
        weight_DE = np.zeros(counts_DE.shape)
        np.add.at(weight_DE, (row_T[:, None], recording.ids(layer)), recording.weights(layer).astype(float))
        np.testing.assert_allclose(recording.weight_sum(layer), weight_DE, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(recording.score_sum(layer).sum(1), documents["tokens"], rtol=1e-5)
    loss = -tokens.groupby("document")["logprob"].mean()
    np.testing.assert_allclose(documents["loss"], documents["document"].map(loss), rtol=1e-5)


def test_the_first_position_has_no_logprob(recording):
    tokens = recording.tokens()
    assert (tokens["logprob"].isna() == (tokens["position"] == 0)).all()


def test_the_vocabulary_holds_every_id_that_occurs(recording):
    tokens = recording.tokens()
    assert set(recording.vocabulary["token"]) == set(tokens["token"]) | set(tokens["predicted"])


def test_verify_reads_every_file(recording):
    result = recording.verify()
    assert result.files == 2 * len(recording.manifest["parts"]) + 2  # the vocabulary, the experts' weights
    assert result.digest == recording.digest


def test_parts_can_be_read_one_by_one(recording):
    whole = recording.column("token")
    np.testing.assert_array_equal(np.concatenate([part["token"] for part in recording.parts(["token"])]), whole)


def test_reading_a_recording_imports_no_torch(recording):
    code = (
        "import sys; from workbench.recordings.recording import Recording; import workbench; "
        f"r = workbench.Recording.open({str(recording.path)!r}); r.ids(0); r.tokens(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_column_that_was_not_recorded_is_named(recording):
    with pytest.raises(RecordingError, match="has no tokens column 'layer00.attention'; it was recorded with fields"):
        recording.column("layer00.attention")


def test_a_layer_without_router_is_named(recording):
    with pytest.raises(RecordingError, match=re.escape("layer 1 of") + ".*has no router; the MoE layers are"):
        recording.ids(1)


def test_an_ambiguous_site_is_refused(recording):
    first = recording.topology.routers[0]
    doubled = Recording(recording.path, json.loads(json.dumps(recording.manifest)))
    from dataclasses import replace

    second = replace(first, site="second")
    doubled.topology = replace(recording.topology, routers=(first, second, *recording.topology.routers[1:]))
    with pytest.raises(
        RecordingError, match=re.escape("layer 0 has routers at ['mlp', 'second']; name one with site=")
    ):
        doubled.ids(0)
    assert prefix(first, doubled.topology) == "layer00"
    assert prefix(second, doubled.topology) == "layer00.second.router"


# Damage


def test_a_truncated_part_is_refused_on_open(copied):
    part = copied / "tokens" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(RecordingError, match=r"tokens/part-00001.parquet has \d+ bytes, \d+ were written"):
        Recording.open(copied)


def test_an_edited_part_is_refused_by_verify(copied):
    part = copied / "documents" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[40] ^= 0xFF
    part.write_bytes(bytes(content))
    with pytest.raises(RecordingError, match=r"documents/part-00000.parquet is not what was written \(its SHA-256"):
        Recording.open(copied).verify()


def test_a_part_with_other_rows_is_refused(copied):
    first, second = (copied / "tokens" / f"part-0000{i}.parquet" for i in (0, 1))
    shutil.copy(first, second)
    manifest = read_manifest(copied)
    manifest["parts"][1]["tokens"]["bytes"] = first.stat().st_size
    close_over(copied, manifest)
    with pytest.raises(RecordingError, match=r"tokens/part-00001.parquet has \d+ rows, the manifest says \d+"):
        Recording.open(copied)


def test_a_part_with_other_columns_is_refused(copied):
    part = copied / "tokens" / "part-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["position"]), part)
    manifest = read_manifest(copied)
    manifest["parts"][0]["tokens"]["bytes"] = part.stat().st_size
    close_over(copied, manifest)
    with pytest.raises(RecordingError, match=re.escape("has other columns than schema 1: ['position']")):
        Recording.open(copied)


def test_a_missing_part_is_named(copied):
    (copied / "documents" / "part-00001.parquet").unlink()
    with pytest.raises(RecordingError, match=r"documents/part-00001.parquet is missing, but the manifest lists it"):
        Recording.open(copied)


def test_a_part_that_is_no_parquet_is_named(copied):
    part = copied / "tokens" / "part-00000.parquet"
    part.write_bytes(b"x" * part.stat().st_size)
    with pytest.raises(RecordingError, match=r"tokens/part-00000.parquet is not a readable Parquet file"):
        Recording.open(copied)


def test_an_edited_manifest_is_refused(copied):
    edit_manifest(copied, padding_share=0.5)
    with pytest.raises(RecordingError, match="was edited after the recording was closed"):
        Recording.open(copied)


def test_a_newer_schema_is_refused(copied):
    edit_manifest(copied, schema=SCHEMA + 1)
    with pytest.raises(RecordingError, match=f"has recording schema {SCHEMA + 1}; this version reads up to {SCHEMA}"):
        Recording.open(copied)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "x"}'])
def test_a_damaged_manifest_is_refused(copied, content):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(RecordingError, match="is damaged: it is not the JSON object of a recording"):
        Recording.open(copied)


def test_a_folder_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"holds no manifest.json, so it is no recording; record one with"):
        Recording.open(tmp_path)
    with pytest.raises(RecordingError, match="is not a folder; a recording is one"):
        Recording.open(tmp_path / "nowhere")


def test_an_unfinished_recording_says_how_to_go_on(copied):
    edit_manifest(copied, status="open")
    with pytest.raises(RecordingError, match=r"is not finished: \d+ of \d+ parts are on disk. Run the same"):
        Recording.open(copied)


def test_recordings_below_a_folder_are_listed(recording, tmp_path):
    shutil.copytree(recording.path, tmp_path / "one")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("no")
    damaged, one = recordings_below(tmp_path)
    assert (damaged.path.name, damaged.manifest) == ("damaged", {}) and "is damaged: it is not" in damaged.damage
    assert (one.path.name, one.manifest, one.damage) == ("one", recording.manifest, "")


# Writing


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_open_for_writing", lambda file: (file.touch(), open("/dev/full", "wb"))[1])  # noqa: SIM115
    with pytest.raises(RecordingError, match=r"the disk is full: .*part needs 6 bytes, [\d,]+ are free"):
        write_whole(tmp_path / "part", b"abcdef", RecordingError)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_recording_can_be_gone_on_with(moe, tmp_path, monkeypatch, recording):
    opened = writing._open_for_writing
    monkeypatch.setattr(
        writing,
        "_open_for_writing",
        lambda file: open("/dev/full", "wb") if "part-00002" in file.name else opened(file),  # noqa: SIM115
    )
    settings = {"fields": recording.fields, "batch_tokens": 256, "shard_tokens": 512, "parent": tiny.dense(n_layers=3)}
    with pytest.raises(RecordingError, match="the disk is full: .*run the same command again"):
        record(moe, tiny.corpus(), tmp_path / "r", **settings)
    monkeypatch.undo()
    assert record(moe, tiny.corpus(), tmp_path / "r", **settings).digest == recording.digest


# Older recordings


def test_a_recording_of_schema_1_stays_readable():
    """Written once by schema 1 and never again: its values are pinned."""
    golden = Recording.open(Path(__file__).parent / "golden" / "schema-1")
    assert golden.digest == "a05e0966a06b79f8b71f959602ef2d9b758778b11bb17e2d7f3cd76e85903bed"
    assert golden.verify().files == 2 * len(golden.manifest["parts"]) + 1
    assert golden.n_tokens == 353
    assert golden.moe_layers == (0, 2)
    assert golden.ids(2)[:3].tolist() == [[2, 1, 5], [2, 7, 1], [7, 5, 6]]
    assert golden.counts(0).sum(0).tolist() == [145, 141, 72, 134, 106, 188, 151, 122]
    assert golden.router_statistic("logits", 0).shape == (353, 8)
    assert set(golden.tokens()["phase"]) == {"prefill"}


def test_what_is_decoded_is_kept_up_to_a_bound(recording, monkeypatch):
    read = []
    original = pq.read_table
    monkeypatch.setattr(
        pq, "read_table", lambda file, columns, **rest: read.extend(columns) or original(file, columns=columns, **rest)
    )
    at = prefix(recording.topology.routers[0], recording.topology)
    columns = ["token", f"{at}.ids", f"{at}.weights"]
    plain = list(recording.parts(columns))
    kept = recording.keeping(1 << 20)
    for _ in range(2):
        read.clear()
        for one, two in zip(plain, kept.parts(columns), strict=True):
            assert all(np.array_equal(one[name], two[name]) for name in columns)
    assert set(read) == {f"{at}.weights"}  # whole numbers are kept
    with pytest.raises(ValueError, match="read-only"):
        next(kept.parts(["token"]))["token"][0] = 1
    size = plain[0]["token"].nbytes
    little = recording.keeping(size)
    for _ in range(2):
        read.clear()
        list(little.parts(["token"]))
    assert read == ["token"] * (len(plain) - 1)  # the first part alone


def test_the_documents_are_read_once_where_they_are_kept_and_nobody_writes_to_what_is_kept(recording, monkeypatch):
    plain = recording.documents()
    kept = recording.keeping(1 << 20)
    first = kept.documents()
    first["loss"] = 0.0
    monkeypatch.setattr(pq, "read_table", None)  # nothing is read from here on
    mine = kept.documents()
    mine.loc[0, "domain"] = "mine"
    pd.testing.assert_frame_equal(kept.documents(), plain)


def test_the_rows_of_a_document_are_the_same_kept_and_read_again(recording):
    columns = ["position", "token", "layer02.weights"]
    kept = recording.keeping(1 << 20)
    for names in (columns[:2], columns, columns):
        for document in (3, 7):
            plain, again = recording.of_document(document, names), kept.of_document(document, names)
            assert list(again) == names
            for name in names:
                np.testing.assert_array_equal(plain[name], again[name])
