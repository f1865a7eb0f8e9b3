"""Labels are joined to documents by what names them; where nothing does, by order, and the recording says which."""

import json

import numpy as np
import pytest

from tests.importers import sources
from workbench.errors import TraceError
from workbench.recordings.importers.build import import_trace
from workbench.recordings.importers.notes import import_notes

E = sources.E
GIVEN = {"n_experts": E, "layers": sources.LAYERS}


def folder_of(tmp_path, names: list[str]):
    """A file of each name, whose first id says which it is."""
    folder = tmp_path / "t"
    folder.mkdir()
    for number, name in enumerate(names):
        ids = np.roll(sources.IDS_TLK[:1], 0, axis=0).repeat(number + 1, axis=0)  # as many rows as its number says
        np.save(folder / f"{name}.npy", ids)
    return folder


def labels_of(tmp_path, rows: list[dict]):
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "l.jsonl"


def joined(tmp_path, names, rows):
    got = import_trace(
        "routed-experts", folder_of(tmp_path, names), tmp_path / "r", documents=labels_of(tmp_path, rows), **GIVEN
    )
    documents = got.documents()
    return got, dict(zip(documents["tokens"] - 1, documents["domain"], strict=True))


NAMES = [f"req_{number}" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("ids", "rule"),
    [
        (NAMES, "name"),
        (NAMES[::-1], "name"),
        ([f"{name}.npy" for name in NAMES[::-1]], "name"),
        ([f"some/folder/{name}.npy" for name in NAMES], "name"),
        ([str(number) for number in range(12, 0, -1)], "number in the name"),
        ([f"chatcmpl-{number:04d}" for number in range(12, 0, -1)], "number in the name"),
        ([f"run7/doc-{number}" for number in range(12, 0, -1)], "number in the name"),
    ],
)
def test_labels_join_by_what_names_the_documents(tmp_path, ids, rule):
    number_of = {identity: int(identity.removesuffix(".npy").rpartition("_")[2].rpartition("-")[2]) for identity in ids}
    rows = [{"id": identity, "domain": f"domain {number_of[identity]}"} for identity in ids]
    got, domain_of = joined(tmp_path, NAMES, rows)
    assert domain_of == {number: f"domain {number + 1}" for number in range(12)}
    assert got.manifest["source"]["documents"] == {"name": "l.jsonl", "joined_by": rule}
    assert f"rows of l.jsonl joined to the documents by {rule}" in list(import_notes(got.manifest))


@pytest.mark.parametrize("ids", [None, [f"text {'abcdefghijkl'[number]}" for number in range(12)]])
def test_labels_that_name_nothing_join_in_natural_order(tmp_path, ids):
    rows = [{"domain": f"domain {n}"} | ({"id": ids[n]} if ids else {}) for n in range(12)]
    got, domain_of = joined(tmp_path, NAMES, rows)
    assert domain_of == {number: f"domain {number}" for number in range(12)}
    assert got.manifest["source"]["documents"]["joined_by"] == "natural order"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["req_1", "req_2", "req_4"], "name 2 of the 3 sequences: no row names 'req_3' (1), and line 3 (id 'req_4')"),
        (["req_1", "req_2"], "name 2 of the 3 sequences: no row names 'req_3' (1). Give every one a row"),
        (["req_1", "req_2", "req_3", "x"], "name 3 of the 3 sequences: line 4 (id 'x') names none (1 rows do not)"),
        (["req_1", "req_2", None], "no row names 'req_3' (1), and line 3 (no id) names none"),
        (["a", "b"], "--documents has 2 rows and the trace 3 sequences, and the ids of the rows do not name them"),
    ],
)
def test_labels_that_name_some_are_refused_by_name(tmp_path, ids, message):
    import re

    folder = folder_of(tmp_path, ["req_1", "req_2", "req_3"])
    rows = [{"domain": "d"} | ({"id": identity} if identity else {}) for identity in ids]
    if ids == ["req_1", "req_2", None]:
        rows = [rows[1], rows[0], rows[2]]  # in other places, so that the order says something else
    with pytest.raises(TraceError, match=re.escape(message)):
        import_trace("routed-experts", folder, tmp_path / "r", documents=labels_of(tmp_path, rows), **GIVEN)
    assert not (tmp_path / "r").exists()


def test_documents_in_a_file_are_named_too(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz", documents=np.array(["x", "x", "x", "y", "y"]))
    rows = [{"id": "y", "domain": "of y"}, {"id": "x", "domain": "of x"}]
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E, documents=labels_of(tmp_path, rows))
    assert got.documents()["domain"].tolist() == ["of x", "of y"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "' + "i" * 1001 + '"}', "line 1: id has 1,001 characters; at most 1,000 were expected"),
        ('{"domain": "\\ud800"}', "line 1: domain holds half a character"),
        ('{"start": -1}', "line 1: start is -1; a number from 0 was expected"),
        ('{"start": true}', "line 1: start is True; a number from 0 was expected"),
        ('{"prompt_tokens": 1e3}', "line 1: prompt_tokens is 1000.0; a number from 0"),
        ('{"token_ids": [1, true]}', "line 1: token_ids must be a list of integers"),
        ('{"token_ids": [99999999999]}', "line 1: token_ids must be a list of integers from 0 to 2147483647"),
        ('{"start": ' + "9" * 5000 + "}", r"line 1 is not JSON that can be read \(ValueError"),
        ("[" * 100_000, r"line 1 is not JSON that can be read \(RecursionError"),
    ],
)
def test_labels_of_other_types_are_named(tmp_path, line, message):
    file = sources.numpy_file(tmp_path / "t.npz", documents=None)
    (tmp_path / "l.jsonl").write_text(line)
    with pytest.raises(TraceError, match=message):
        import_trace("numpy", file, tmp_path / "r", n_experts=E, documents=tmp_path / "l.jsonl")
