"""Small files that claim much are refused before anything is read, and damaged ones with a sentence."""

import io
import json
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from tests.importers import sources
from workbench.errors import TraceError, WorkbenchError
from workbench.recordings.importers import limits
from workbench.recordings.importers.build import import_trace
from workbench.recordings.importers.layout import parse_layers

E = sources.E
GIVEN = {"n_experts": E, "layers": sources.LAYERS}


def refused(tmp_path, kind, source, message, **options):
    with pytest.raises(TraceError, match=message):
        import_trace(kind, source, tmp_path / "r", **({"n_experts": E} | options))
    assert not (tmp_path / "r").exists()


def npy_header(shape: tuple[int, ...], descr: str = "<i4") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header((2**20, 2, 4096)) + bytes(64), "the header of the array claims 34,359,738,368 bytes .* 64 are th"),
        (npy_header((2**62, 2**62, 2)), "claims .* bytes"),
        (npy_header((5, 2, 2)) + bytes(79), "claims 80 bytes .* and 79 are there"),
        (npy_header((5, 2, 2)) + bytes(160), "claims 80 bytes .* and 160 are there; .* more than one array"),
        (npy_header((5, -2, 2)), "claims"),
        (npy_header((5, 2, 2), "|O"), "is of Python objects.; arrays of Python objects are never opened"),
        (npy_header((5, 2, 2), "<f4") + bytes(80), "integers .tokens, layers, k.*Router logits are not read"),
        (npy_header((5, 2, 2), "|b1") + bytes(20), "the type bool; integers"),
        (npy_header((20,)) + bytes(80), "It is flat: give it its shape with reshape"),
        (npy_header((2**40, 0, 2, 2)), "so no token; sequences of tokens were expected"),
        (npy_header((5, 0, 2)), "has 0 columns of layers"),
        (npy_header((5, 2, 0)), "0 experts of 4 for each token"),
        (npy_header((2, 20_000, 1)) + bytes(160_000), "has 20,000 columns of layers; 1 to 10,000 were expected"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "cannot be read"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 4) + b"{{{{", "cannot be read"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000, "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_that_claim_what_is_not_there(tmp_path, content, message):
    (tmp_path / "t.npy").write_bytes(content)
    refused(tmp_path, "numpy", tmp_path / "t.npy", message, layers=sources.LAYERS)
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", content)
    refused(tmp_path, "numpy", tmp_path / "t.npz", message.replace("the array", "ids.npy"), layers=sources.LAYERS)


def test_an_archive_that_unpacks_to_more_than_the_memory(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "t.npz", ids=np.zeros((100_000, 2, 2), dtype=np.int64))
    monkeypatch.setattr(limits, "free_bytes", lambda: 2_000_000)
    refused(
        tmp_path, "numpy", tmp_path / "t.npz", "claims with the files before it arrays of 3,200,.* 2,000,000 are free"
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.array([7.0, 8, 9, 7, 6])}, "tokens is of float64; integers were expected"),
        ({"tokens": np.array([True] * 5)}, "tokens is of bool; integers were expected"),
        ({"layers": np.array([1.0, np.nan])}, "layers is of float64; integers were expected"),
        ({"layers": np.array([1, 2**40])}, "the layers 1, 1099511627776 cannot be meant; decoder layers from 0"),
        ({"layers": np.array([-1, 2])}, "the layers -1, 2 cannot be meant"),
        ({"layers": np.array([2, 2])}, "the layers 2, 2 cannot be meant"),
        ({"layers": np.array([2, 1])}, "the layers 2, 1 cannot be meant"),
        ({"documents": np.array([4.0, 4, 4, np.nan, np.nan])}, "documents is of float64; integers or text were"),
        ({"documents": np.array(["x" * 1001] * 5)}, "its id has 1,005 characters|its id has 1,003 characters"),
        ({"documents": np.array(["\ud800"] * 5)}, "its id holds half a character"),
        ({"positions": np.array([0, 1, 2, 3, 2**31])}, "position 2147483648 is out of range"),
        ({"positions": np.array([-1, 1, 2, 3, 4])}, "position -1 is out of range"),
        ({"tokens": np.array([1, 2, 3, 4, 2**40])}, "token id 1099511627776 is out of range"),
        ({"ids": sources.IDS_TLK + np.uint64(2**63)}, "expert .* is not one of the 4|integers"),
    ],
)
def test_values_that_no_token_has(tmp_path, arrays, message):
    refused(tmp_path, "numpy", sources.numpy_file(tmp_path / "t.npz", **arrays), message)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.uint64, ">i4", ">u2", np.int64])
def test_ids_of_every_integer_type_are_read(tmp_path, dtype):
    file = sources.numpy_file(tmp_path / "t.npz", ids=sources.IDS_TLK.astype(dtype))
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E)
    np.testing.assert_array_equal(sources.ids_of(got), sources.IDS_TLK)


# Parquet


def long_run(value, n: int) -> pa.Array:
    return pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(pa.array([n], pa.int32()), pa.array([value])))


def test_a_few_bytes_of_many_rows_are_refused_before_they_are_read(tmp_path, monkeypatch):
    n = 17_000_000
    ids = pa.FixedSizeListArray.from_arrays(long_run(1, n), 1)
    pq.write_table(pa.table({"layer1.ids": ids}), tmp_path / "t.parquet")
    pq.write_table(pa.table({"layer1.ids": ids, "document": long_run("d", n)}), tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 500_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was read"))
    monkeypatch.setattr(limits, "_SMALL_BYTES", 2**40)
    refused(tmp_path, "parquet", tmp_path / "t.parquet", "has 17,000,000 rows in one document; 16,777,216 at most")
    monkeypatch.setattr(limits, "_SMALL_BYTES", 2**26)
    refused(tmp_path, "parquet", tmp_path / "d.parquet", "claims 17,000,000 rows of .* bytes: over 256 times as much")
    monkeypatch.setattr(limits, "_SMALL_BYTES", 2**40)
    monkeypatch.setattr(limits, "free_bytes", lambda: 2**20)
    refused(tmp_path, "parquet", tmp_path / "d.parquet", "a row group of .* Write it with smaller row groups")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layer1.ids": [[0.5, 1.0]]}, "layer1.ids is of list<element: double>; lists of integers were expected"),
        ({"layer1.ids": [[True, False]]}, "layer1.ids is of list<element: bool>; lists of integers"),
        ({"layer1.ids": [[[1, 2]]]}, "lists of integers were expected"),
        ({"layer1.ids": [1]}, "layer1.ids is of int64; lists of integers were expected"),
        ({"layer1.ids": [[1, None], [1, 2]]}, "row 0: layer1.ids holds a null; numbers were expected"),
        ({"layer1.ids": pa.array([[], []], pa.list_(pa.int8()))}, "0 experts of 4 for each token"),
        ({"layer1.ids": [[1, 2]], "document": [0.5]}, "document is of double; integers or text were expected"),
        ({"layer1.ids": [[1, 2]], "document": ["x" * 1001]}, "document has 1,001 characters; 1,000 at most"),
        ({"layer1.ids": [[1, 2]], "position": ["a"]}, "position is of string; integers were expected"),
        ({"layer1.ids": [[1, 2]], "position": [2**40]}, "position 1099511627776 is out of range"),
        ({"layer1.ids": [[1, 2]], "phase": [1]}, "phase is of int64; text"),
        ({"layer1.ids": [[1, 2]], "layer1.weights": [[1, 2]]}, "layer1.weights is of .*; lists of floating-point"),
        ({"layer99999.ids": [[1, 2]]}, "the layers 99999 cannot be meant; decoder layers from 0 to 9,999"),
        ({"layer999999999999999.ids": [[1, 2]]}, "has no column layerNN.ids"),
        (
            {"layer1.ids": [[1, 2]], "document": pa.array([b"\xff"], pa.binary()).view(pa.string())},
            "cannot be read",
        ),
    ],
)  # fmt: skip
def test_columns_of_other_types(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    refused(tmp_path, "parquet", tmp_path / "t.parquet", message)


def test_k_that_changes_between_row_groups_is_named(tmp_path):
    (tmp_path / "t").mkdir()
    for name, k in (("a", 1), ("b", 2)):
        ids = pa.array([list(range(k))] * 3)
        pq.write_table(pa.table({"layer1.ids": ids, "document": ["d"] * 3}), tmp_path / "t" / f"{name}.parquet")
    refused(tmp_path, "parquet", tmp_path / "t", "document d: layer1.ids holds .1, 2. values; k must agree")


def test_damaged_pages_are_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"layer1.ids": np.argsort(rng.random((2000, 4)))[:, :2].tolist(), "document": ["d"] * 2000})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    for at in range(8, 1200, 97):
        damaged = whole.copy()
        damaged[at : at + 9] = rng.bytes(9)
        (tmp_path / "t.parquet").write_bytes(damaged)
        try:
            import_trace("parquet", tmp_path / "t.parquet", tmp_path / f"r{at}", n_experts=E)
        except TraceError:
            assert not (tmp_path / f"r{at}").exists()


# Dumps


RECORD = sources.sglang_record(sources.IDS_TLK, sources.TOKENS)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"forward_mode": "1"}, "forward_mode is 1 .str.; an integer was expected"),
        ({"forward_mode": True}, "forward_mode is True .bool.; an integer was expected"),
        ({"forward_pass_id": [1]}, "forward_pass_id is .1. .list.; an integer"),
        ({"rank": None}, "rank is None .NoneType.; an integer"),
        ({"input_ids": 5}, "input_ids is a int; a tensor was expected"),
        ({"input_ids": [1, 2, "a", 4, 5]}, "input_ids holds something else than integers"),
        ({"input_ids": [1, 2, True, 4, 5]}, "input_ids holds something else than integers"),
        ({"input_ids": torch.ones(5, 1, dtype=torch.int64)}, "input_ids has the shape .5, 1.; one number for each"),
        ({"input_ids": torch.ones(5)}, "input_ids is of float32; integers were expected"),
        ({"positions": {"a": 1}}, "positions is a dict; a tensor was expected"),
        ({"positions": [0, 1, 2, 3, 10**30]}, "positions holds something else than integers"),
        ({"positions": [0, 1, 2, 3, -5]}, "position -5 is out of range"),
        ({"extend_seq_lens": [6, -1]}, "extend_seq_lens add up to 5, from -1"),
        ({"extend_seq_lens": [2.5, 2.5]}, "extend_seq_lens holds something else than integers"),
        ({"extend_seq_lens": 5}, "extend_seq_lens is a int; a tensor was expected"),
        ({"rids": [1]}, "rids is a list; a list of the requests' ids was expected"),
        ({"rids": ["a", "b"]}, "2 rids for 1 requests; they must agree"),
        ({"topk_ids_of_layer": torch.zeros(3, 5, 8, dtype=torch.bfloat16)}, "is of bfloat16; integers were expected"),
        ({"topk_ids_of_layer": torch.zeros(3, 5, 8, dtype=torch.int32).to_sparse()}, "a plain tensor of integers"),
        ({"topk_ids_of_layer": torch.zeros(5, dtype=torch.int32)}, "has the shape .5.; .3 layers of the map"),
    ],
)
def test_records_of_other_types(tmp_path, record, message):
    refused(tmp_path, "sglang", sources.sglang_file(tmp_path / "d.pt", RECORD | record), message)


def test_numbers_as_tensors_are_read(tmp_path):
    record = RECORD | {"extend_seq_lens": torch.tensor([3, 2]), "input_ids": torch.tensor(sources.TOKENS)}
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", record), tmp_path / "r")
    assert got.documents()["tokens"].tolist() == [3, 2]
    assert got.tokens()["token"].tolist() == sources.TOKENS


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_counts_beyond_what_is_stored_are_named(tmp_path, dtype):
    count = torch.full((1, 3, E), 2**31 - 1, dtype=dtype) * (2 if dtype == torch.int64 else 1)
    torch.save({"logical_count": count}, tmp_path / "d.pt")
    message = (
        "assignments of an expert; 2,147,483,647 at most" if dtype == torch.int64 else "assignments, from|tokens; "
    )
    refused(tmp_path, "sglang", tmp_path / "d.pt", message, n_experts=None, top_k=1)


def test_labels_that_are_no_file_or_too_large_are_refused(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    with (tmp_path / "l.jsonl").open("wb") as labels:
        labels.truncate(2**40)
    refused(tmp_path, "numpy", file, "claims lines of 5,497,558,138,880 bytes", documents=tmp_path / "l.jsonl")
    refused(tmp_path, "numpy", file, "--documents /dev/zero is no file", documents="/dev/zero")
    refused(tmp_path, "numpy", file, "--documents .* is no file", documents=tmp_path)


def test_tensors_that_repeat_one_number_are_refused(tmp_path):
    torch.save({"logical_count": torch.ones(1, dtype=torch.int32).expand(2**10, 2**10, 2**13)}, tmp_path / "d.pt")
    assert (tmp_path / "d.pt").stat().st_size < 5_000
    refused(tmp_path, "sglang", tmp_path / "d.pt", "its tensors claim 34,359,738,368: they repeat what is there once")


def test_a_dump_that_is_compressed_is_refused(tmp_path):
    sources.sglang_file(tmp_path / "whole.pt", RECORD | {"more": torch.zeros(2**16)})
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "d.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    refused(tmp_path, "sglang", tmp_path / "d.pt", "torch.save does not compress")


def test_the_end_of_an_archive_that_is_damaged_is_a_sentence(tmp_path):
    whole = sources.sglang_file(tmp_path / "d.pt", RECORD).read_bytes()
    end = whole.rindex(b"PK\x06\x07")  # where the archive says on how many disks it is
    (tmp_path / "d.pt").write_bytes(whole[: end + 16] + b"\x07\0\0\0" + whole[end + 20 :])
    refused(tmp_path, "sglang", tmp_path / "d.pt", "cannot be read .zipfiles that span multiple disks")


def test_saved_logits_say_what_to_save_instead(tmp_path):
    torch.save({"router_logits": (torch.zeros(5, 4),)}, tmp_path / "d.pt")
    refused(tmp_path, "sglang", tmp_path / "d.pt", "holds router_logits. Router logits are not read: save the ids")


# OLMoE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"input_ids": [' + "9" * 5000 + '], "exp_ids": [[[1]]]}', "line 1 is not JSON"),
        ('{"input_ids": [99999999999999999999], "exp_ids": [[[1]]]}', "input_ids has the shape"),
        ('{"input_ids": [true], "exp_ids": [[[1]]]}', "input_ids has the shape .1. and the type bool"),
        ('{"input_ids": [1, true], "exp_ids": [[[1]], [[1]]]}', "input_ids has the shape"),
        ('{"input_ids": [1], "exp_ids": [[[1, true]]]}', "exp_ids has the shape"),
        ('{"input_ids": [1], "exp_ids": [[[NaN]]]}', "exp_ids has the shape .1, 1, 1. and the type float64"),
        ('{"input_ids": [1], "exp_ids": {"a": 1}}', "exp_ids has the shape .. and the type object"),
        ('{"input_ids": [1], "exp_ids": [[[1]]], "predicted_token_ids": [0.5]}', "predicted_token_ids has the shape"),
        (
            '{"input_ids": [1], "exp_ids": [[[1]]], "predicted_token_ids": [1, 2]}',
            "2 predicted token ids .* for 1 rows",
        ),
    ],
)
def test_lines_of_other_types(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_text(line)
    refused(tmp_path, "olmoe", tmp_path / "c.jsonl", message)


def test_a_line_without_end_is_refused(tmp_path):
    with (tmp_path / "c.jsonl").open("wb") as file:
        file.truncate(2**40)
    refused(tmp_path, "olmoe", tmp_path / "c.jsonl", "line 1 has over 67,108,864 bytes; one object a line was expected")


# Arguments


@pytest.mark.parametrize("text", ["0-99999999999", "9" * 5000, "0-9999,0-9999,0-9999", f"0-{'9' * 50}", "10000"])
def test_layers_without_end_are_refused(text):
    with pytest.raises(TraceError, match=r"--layers .{1,70}: decoder layers from 0 to 9,999|does not ascend"):
        parse_layers(text)


def test_experts_without_end_are_refused(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((1, 200, 1), dtype=np.int8))
    layers = tuple(range(200))
    refused(tmp_path, "numpy", tmp_path / "t.npy", "200 layers of 65,536 experts", n_experts=65_536, layers=layers)
    refused(tmp_path, "numpy", tmp_path / "t.npy", "cannot be meant", n_experts=2**70, layers=layers)
    refused(tmp_path, "numpy", tmp_path / "t.npy", "16,777,216 or less was expected", layers=layers, shard_tokens=2**70)


def test_names_that_no_file_system_takes_are_a_sentence(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    refused(tmp_path, "numpy", tmp_path / ("n" * 300), "cannot be read .File name too long.")
    refused(tmp_path, "numpy", "a\0b", "cannot be read|no such file")
    with pytest.raises(WorkbenchError, match=r"cannot be made .File name too long.; name another --out"):
        import_trace("numpy", file, tmp_path / ("n" * 300), n_experts=E)
    with pytest.raises(TraceError, match=r"--documents n+… cannot be read .File name too long."):
        import_trace("numpy", file, tmp_path / "r", n_experts=E, documents="n" * 300)


def test_a_folder_named_by_a_dot_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "traces").mkdir()
    np.save(tmp_path / "traces" / "t.npy", sources.IDS_TLK)
    monkeypatch.chdir(tmp_path / "traces")
    got = import_trace("numpy", ".", tmp_path / "r", **GIVEN)
    assert got.manifest["source"]["name"] == "traces"
    assert got.documents()["domain"].tolist() == ["traces"]


def test_answers_of_servers_say_how_to_save_them(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "answer.json").write_text(json.dumps({"choices": []}))
    for path in (tmp_path / "t", tmp_path / "t" / "answer.json"):
        refused(tmp_path, "routed-experts", path, "decode it .base64.b64decode")


def test_documents_of_many_experts_make_smaller_parts(tmp_path, monkeypatch):
    from workbench.recordings.importers import pieces

    monkeypatch.setattr(pieces, "_SHARD_COUNTERS", 2 * 2 * E)  # two documents of two layers
    np.save(tmp_path / "t.npy", np.stack([sources.IDS_TLK] * 5))
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", **GIVEN)
    assert [part["documents"]["rows"] for part in got.manifest["parts"]] == [2, 2, 1]
    assert got.n_documents == 5
