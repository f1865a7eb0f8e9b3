"""Damage: whatever stands in the files of a recording, it is read as it was written or refused with a sentence."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import RecordingError
from workbench.recordings import checks
from workbench.recordings.fields import FIELDS
from workbench.recordings.manifest import file_digest, read_manifest, recording_digest, recordings_below
from workbench.recordings.manifest_shape import fault_of
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix, prefixes


@pytest.fixture
def copied(recording, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(recording.path, tmp_path / "copy")


def close_over(path, manifest):
    """Writes a manifest under its own digest, as somebody would who wants it believed."""
    manifest["digest"] = recording_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def rewrite(path, name, table):
    """Replaces a part by a table, and states its bytes, rows and digest in the manifest."""
    pq.write_table(table, path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    kind, index = name.split("/")[0], int(name[-13:-8])
    manifest["parts"][index][kind] = {
        "rows": table.num_rows, "bytes": (path / name).stat().st_size, "sha256": file_digest(path / name),
    }  # fmt: skip
    close_over(path, manifest)


def places(value, at=()):
    """Every place of a JSON value."""
    yield at
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*at, key))


def put(value, place, new):
    """A copy of a JSON value with another one at a place; `...` takes it out."""
    value = json.loads(json.dumps(value))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if new is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = new
    return value


# The manifest


VALUES = [None, True, -1, 0, 3, 2**70, 1.5, float("nan"), "", "x", [], [1], {}, {"a": 1}, ...]


@given(data=st.data())
def test_whatever_stands_in_a_manifest_it_opens_or_is_refused(recording, tmp_path_factory, data):
    """Every place, every kind of value, closed over with its own digest: never an exception of another kind."""
    place = data.draw(st.sampled_from([at for at in places(recording.manifest) if at and at != ("digest",)]))
    manifest = put(recording.manifest, place, data.draw(st.sampled_from(VALUES)))
    folder = tmp_path_factory.mktemp("m") / "r"
    shutil.copytree(recording.path, folder)
    close_over(folder, manifest)
    try:
        opened = Recording.open(folder)
        opened.verify(values=True)
    except RecordingError as error:
        assert str(folder) in str(error)
    else:
        assert opened.tokens().shape == recording.tokens().shape


def test_the_digest_is_compared_before_anything_else_is_believed(copied):
    manifest = read_manifest(copied)
    manifest["topology"]["n_layers"] = "many"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordingError, match="was edited after the recording was closed: its digest does not match"):
        Recording.open(copied)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("topology", "n_layers"), 10**7, "topology.n_layers is 10000000; 1 to 10000 was expected"),
        (("topology", "routers", 0, "n_experts"), "8", "topology.routers[0].n_experts is '8'; a whole number was"),
        (("topology", "routers", 0, "top_k"), 9, "topology.routers[0].top_k is 9; it has 8 experts"),
        (("topology", "routers", 1, "layer"), 3, "topology.routers[1].layer is 3; there are 3 layers"),
        (("topology", "routers", 1, "layer"), 0, "topology.routers[1] is a second router at mlp of layer 0"),
        (("topology", "routers", 0, "more"), 1, "topology.routers[0].more is unknown"),
        (("topology", "width"), ..., "topology.width is missing"),
        (("parts", 1, "index"), 7, "parts does not count from 0"),
        (("parts", 0, "tokens", "rows"), -1, "parts[0].tokens.rows is -1; 0 to"),
        (("parts",), [], "parts has 0 entries; shards is 3"),
        (("fields",), ["routing", "routing"], "fields names one of them twice"),
        (("fields", 0), "rooting", "fields[0] is 'rooting'; one of routing,"),
        (("attention",), ..., "attention is missing, and the field attention was recorded"),
        (("attention", "layers", 0, "heads"), 5, "attention.probe.scores.0 is not of 5 heads"),
        (("corpus", "domains"), "all", "corpus.domains is 'all'; a list was expected"),
        (("status",), 1, "status is 1; a text was expected"),
        (("phases",), [], "phases is empty, and the source does not lack them"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_manifest_is_named(recording, place, new, message):
    assert message in fault_of(put(recording.manifest, place, new))
    assert fault_of(recording.manifest) is None


def test_a_manifest_that_is_open_is_checked_too(copied):
    manifest = read_manifest(copied)
    (copied / "manifest.json").write_text(json.dumps({**manifest, "status": "open", "shards": "three"}))
    with pytest.raises(RecordingError, match="is damaged: shards is 'three'; a whole number was expected"):
        Recording.open(copied)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"schema": 1, "schema": 1}', "'schema' stands in it twice"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"schema": 1, "a": "\xff"}', "can't decode byte 0xff"),
        (rb'{"schema": 1, "a": "\ud800"}', "surrogates not allowed"),
        (b'{"schema": true}', "its schema is no whole number"),
        (b'{"schema": 1.0}', "its schema is no whole number"),
        (b"null", "it is no object, but null"),
    ],
)
def test_json_that_is_none_is_refused(copied, content, reason):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(RecordingError, match=r"is damaged: it is not the JSON object of a recording") as refused:
        Recording.open(copied)
    assert reason in str(refused.value)


def test_a_manifest_that_is_too_large_or_no_file_is_not_read(copied):
    with (copied / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # of holes: nothing is on the disk
    with pytest.raises(RecordingError, match="are the most that is read"):
        Recording.open(copied)
    (copied / "manifest.json").unlink()
    os.mkfifo(copied / "manifest.json")
    with pytest.raises(RecordingError, match=r"holds no manifest.json"):
        Recording.open(copied)


def test_a_path_that_cannot_be_is_refused(tmp_path):
    for name in ("x" * 300, "a/" * 3000):
        with pytest.raises(RecordingError, match=r"\([\d,]+ characters\) cannot be read: File name too long"):
            Recording.open(tmp_path / name)


def test_one_damaged_manifest_does_not_hide_the_others(recording, tmp_path):
    shutil.copytree(recording.path, tmp_path / "whole")
    for name, content in (("deep", b"[" * 100_000), ("text", b"\xff"), ("other", b'{"schema": 1}'), ("pipe", None)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "manifest.json"
        os.mkfifo(file) if content is None else file.write_bytes(content)
    found = {each.path.name: each for each in recordings_below(tmp_path)}
    assert set(found) == {"whole", "deep", "text", "other", "pipe"}
    assert found["whole"].manifest == recording.manifest and not found["whole"].damage
    assert all(found[name].damage and not found[name].manifest for name in ("deep", "text", "other", "pipe"))


# Parts


@pytest.mark.parametrize("what", ["folder", "pipe", "loop"])
def test_a_part_that_is_no_file_is_refused(copied, what):
    part = copied / "tokens" / "part-00001.parquet"
    part.unlink()
    {"folder": part.mkdir, "pipe": lambda: os.mkfifo(part), "loop": lambda: part.symlink_to(part)}[what]()
    with pytest.raises(RecordingError, match=r"tokens/part-00001.parquet is missing"):
        Recording.open(copied)


def test_columns_of_another_type_or_width_are_refused(copied):
    name = "tokens/part-00000.parquet"
    table = pq.read_table(copied / name)
    at = table.schema.get_field_index("layer00.ids")
    narrow = pa.array(np.stack(table["layer00.ids"].to_numpy())[:, :2].tolist(), pa.list_(pa.uint8(), 2))
    rewrite(copied, name, table.set_column(at, "layer00.ids", narrow))
    with pytest.raises(RecordingError, match=r"has column layer00.ids of type .*\[2\]; .*\[3\] was written"):
        Recording.open(copied)
    text = table.set_column(0, "document", table["document"].cast(pa.string()))
    rewrite(copied, name, text)
    with pytest.raises(RecordingError, match="has column document of type string; int32 was written"):
        Recording.open(copied)


def test_a_part_that_claims_what_no_file_of_its_size_holds_is_not_read(copied, monkeypatch):
    name = "tokens/part-00000.parquet"
    schema = pq.read_schema(copied / name)
    rewrite(copied, name, pa.table([pa.nulls(200_000, field.type) for field in schema], schema=schema))
    assert Recording.open(copied)
    monkeypatch.setattr(checks, "_EXPANDED_BYTES", 1 << 20)
    with pytest.raises(RecordingError, match=r"claims 200,000 rows, [\d,]+ bytes in memory, in a file of [\d,]+ bytes"):
        Recording.open(copied)


def test_values_that_are_missing_are_refused_where_they_are_read(copied):
    name = "tokens/part-00000.parquet"
    table = pq.read_table(copied / name)
    for column in ("token", "layer00.ids", "phase"):
        at = table.schema.get_field_index(column)
        holed = pa.chunked_array([pa.array([None], table.schema.field(at).type), table[column].combine_chunks()[1:]])
        rewrite(copied, name, table.set_column(at, table.schema.field(at), holed))
        opened = Recording.open(copied)
        with pytest.raises(RecordingError, match=rf"tokens/part-00000.parquet lacks 1 values of {column}"):
            opened.column(column)
    with pytest.raises(RecordingError, match="lacks 1 values of phase"):
        opened.tokens()


def test_texts_that_are_none_are_refused_where_they_are_read(copied):
    name = "documents/part-00000.parquet"
    table = pq.read_table(copied / name)
    at = table.schema.get_field_index("domain")
    wrong = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    rewrite(copied, name, table.set_column(at, "domain", wrong))
    opened = Recording.open(copied)
    with pytest.raises(RecordingError, match=r"documents/part-00000.parquet cannot be read \(.*UTF8"):
        opened.documents()
    with pytest.raises(RecordingError, match="UTF8"):
        opened.column("domain", table="documents")


def changed(copied, name, column, change):
    """A part with a column changed as numpy values."""
    table = pq.read_table(copied / name)
    at = table.schema.get_field_index(column)
    field = table.schema.field(at)
    values = table[column].to_numpy()
    values = np.stack(values) if pa.types.is_fixed_size_list(field.type) else values.copy()
    change(values)
    rewrite(copied, name, table.set_column(at, field, pa.array(values.tolist(), field.type)))
    return Recording.open(copied)


def test_an_expert_that_a_token_names_twice_is_refused_where_it_is_read(copied):
    def again(ids_TK):
        ids_TK[3] = ids_TK[3, 0]

    opened = changed(copied, "tokens/part-00001.parquet", "layer02.ids", again)
    with pytest.raises(RecordingError, match=r"part-00001.parquet names an expert twice in layer02.ids, row 3: \["):
        opened.ids(2)


def test_a_count_below_zero_is_refused_where_it_is_read(copied):
    def below(counts_DE):
        counts_DE[0, 1] = -5

    opened = changed(copied, "documents/part-00000.parquet", "layer02.counts", below)
    with pytest.raises(RecordingError, match=r"part-00000.parquet holds -5 in layer02.counts; counts from 0"):
        opened.counts(2)


def test_an_id_that_stands_in_the_vocabulary_twice_is_refused(copied):
    table = pq.read_table(copied / "vocabulary.parquet")
    pq.write_table(pa.concat_tables([table, table[:1]]), copied / "vocabulary.parquet")
    manifest = json.loads((copied / "manifest.json").read_text())
    file = copied / "vocabulary.parquet"
    manifest["vocabulary"] |= {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    close_over(copied, manifest)
    with pytest.raises(RecordingError, match=r"vocabulary.parquet holds the id \d+ twice"):
        Recording.open(copied).vocabulary


def test_experts_that_there_are_not_are_refused_where_they_are_read(copied):
    def far(ids_TK):
        ids_TK[3, 1] = 8

    opened = changed(copied, "tokens/part-00001.parquet", "layer02.ids", far)
    with pytest.raises(RecordingError, match=r"part-00001.parquet names expert 8 in layer02.ids; there are 8, from 0"):
        opened.ids(2)
    assert opened.ids(0).shape == (opened.n_tokens, 3)


def test_counts_that_are_not_those_of_the_tokens_are_refused_by_verify(copied):
    def moved(counts_DE):
        counts_DE[2, [0, 1]] += (1, -1)

    opened = changed(copied, "documents/part-00001.parquet", "layer00.counts", moved)
    assert opened.verify().files  # the bytes are as stated
    with pytest.raises(RecordingError, match=r"part 1 has layer00.counts of document \d+ that are not those of its"):
        opened.verify(values=True)


@pytest.mark.parametrize(
    ("table", "column", "change", "message"),
    [
        ("documents", "document", lambda x: x.__setitem__(0, 50), "documents holds number 50; 0 to 49 were expected"),
        ("documents", "document", lambda x: x.__setitem__(0, x[1]), r"documents holds number \d+ twice"),
        ("documents", "tokens", lambda x: x.__setitem__(0, -1), "documents holds one of -1 tokens"),
        ("documents", "tokens", lambda x: x.__setitem__(0, 999), r"part 0 has \d+ tokens of document \d+; .* 999"),
        ("tokens", "document", lambda x: x.__setitem__(0, -3), "part 0 has 1 tokens of document -3; .* say 0"),
        ("documents", "phase", lambda x: x.__setitem__(0, "later"), "documents holds phase 'later'; .* says prefill"),
    ],
)
def test_tokens_and_documents_that_do_not_belong_together_are_refused(copied, table, column, change, message):
    opened = changed(copied, f"{table}/part-00000.parquet", column, change)
    with pytest.raises(RecordingError, match=message):
        opened.verify()


@pytest.mark.parametrize("name", ["vocabulary", "expert_weights"])
def test_files_beside_the_parts_are_compared_before_they_are_read(recording, copied, name):
    opened = Recording.open(copied)
    file = copied / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(RecordingError, match=rf"{name}.parquet is not what was written \(its SHA-256 differs\)"):
        getattr(opened, name)
    manifest = read_manifest(copied)
    pq.write_table(pq.read_table(recording.path / f"{name}.parquet").drop_columns(["text" if name == "vocabulary" else "site"]), file)  # fmt: skip  # noqa: E501
    manifest[name]["sha256"] = file_digest(file)
    close_over(copied, manifest)
    with pytest.raises(RecordingError, match=rf"{name}.parquet has no whole column (text|site) of type string"):
        getattr(Recording.open(copied), name)
    file.unlink()
    with pytest.raises(RecordingError, match=rf"{name}.parquet cannot be read \(there is no such file\)"):
        Recording.open(copied).verify()


def test_prefixes_of_all_routers_are_those_of_each(recording):
    topology = recording.topology
    assert prefixes(topology) == {router: prefix(router, topology) for router in topology.routers}
    assert set(recording.fields) == set(FIELDS)
