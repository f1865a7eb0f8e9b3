"""What cannot be meant is refused with a sentence that names it, and nothing is written; padding is masked."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.importers import sources
from tests.importers.sources import IDS_TLK, LAYERS, TOKENS
from workbench.errors import ModelError, RecordingError, TraceError
from workbench.recordings.importers.build import import_trace
from workbench.recordings.importers.checks import checked
from workbench.recordings.importers.layout import layout_of, parse_layers
from workbench.recordings.importers.trace import Trace, TracedDocument

E = sources.E


def changed(row: int, column: int, ids: list[int]) -> np.ndarray:
    ids_TLK = IDS_TLK.copy()
    ids_TLK[row, column] = ids
    return ids_TLK


def refused(tmp_path, kind, source, message, **options):
    before = sorted(tmp_path.rglob("*"))
    options = {"n_experts": E} | options
    with pytest.raises(TraceError, match=message):
        import_trace(kind, source, tmp_path / "r", **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (changed(4, 1, [4, 1]), "document 9, row 4, layer 2: expert 4 is not one of the 4 experts (0 to 3). Check"),
        (changed(1, 0, [-2, 1]), "document 4, row 1, layer 1: expert -2 is not one of the 4 experts"),
        (changed(3, 1, [1, 1]), "document 9, row 3, layer 2: the ids [1, 1] name an expert twice"),
    ],
)
def test_wrong_ids_are_named_by_row_and_layer(tmp_path, ids, message):
    refused(tmp_path, "numpy", sources.numpy_file(tmp_path / "t.npz", ids=ids), re.escape(message))
    line = sources.olmoe_line(ids)
    (tmp_path / "c.jsonl").write_text(f"{sources.olmoe_line()}\n{line}\n")
    in_line = re.sub(r"document ., row", "line 2, row", message)
    refused(tmp_path, "olmoe", tmp_path / "c.jsonl", re.escape(in_line), layers=LAYERS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([sources.olmoe_line(), sources.olmoe_line(IDS_TLK[:, :1])], "line 2: ids have the shape [5, 1, 2]; [tok"),
        ([sources.olmoe_line(), sources.olmoe_line(IDS_TLK[..., :1])], "shape [5, 2, 1]; [tokens, 2 layers, 2"),
        ([sources.olmoe_line(IDS_TLK, TOKENS[:4])], "line 1: 4 token ids (int64) for 5 rows of ids"),
        (['{"input_ids": [1, 2], "exp_ids": [[[1], [2]], [[1]]]}'], "line 1, exp_ids is ragged; lists of one length"),
        (['{"input_ids": [1], "exp_ids": [[1, 2]]}'], "line 1, exp_ids has the shape [1, 2] and the type int64"),
        (['{"input_ids": [1], "exp_ids": [[["a"]]]}'], "line 1, exp_ids has the shape [1, 1, 1] and the type <U1"),
        ([sources.olmoe_line(), sources.olmoe_line()[:50]], "c.jsonl, line 2 is not JSON"),
        (['{"input_ids": [1]}'], "line 1 holds input_ids; an object with input_ids and exp_ids was expected"),
        (["[1]"], "line 1 holds list; an object"),
        ([""], "c.jsonl has no lines"),
        ([sources.olmoe_line(IDS_TLK, [1, 2, -3, 4, 5])], "line 1, row 2: token id -3 is out of range"),
    ],
)  # fmt: skip
def test_lines_that_disagree_are_named(tmp_path, lines, message):
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    refused(tmp_path, "olmoe", tmp_path / "c.jsonl", re.escape(message))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": IDS_TLK.astype(float)}, "has the shape [5, 2, 2] and the type float64; integers"),
        ({"ids": IDS_TLK[0]}, "has the shape [2, 2] and the type int64"),
        ({"tokens": np.arange(4)}, "tokens has the shape [4] and ids [5, 2, 2]; [5] was expected"),
        ({"layers": np.array([1])}, "layers has the shape [1] and ids [5, 2, 2]; [2] was expected"),
        ({"weights": np.ones((5, 2, 1))}, "weights has the shape [5, 2, 1] and ids [5, 2, 2]"),
        ({"weights": np.ones((5, 2, 2), dtype=int)}, "weights are of int64; floating-point numbers were expected"),
        ({"weights": np.full((5, 2, 2), np.nan)}, "document 4, row 0, layer 1: the weights [nan, nan] are not finite"),
        ({"documents": np.array([4, 9, 4, 9, 9])}, "document 4 begins again at row 2; sort the rows by document"),
        ({"expert": np.arange(5)}, "holds ids, tokens, documents, layers, expert; ids, and of weights"),
        ({"ids": None}, "holds tokens, documents, layers; ids, and of weights"),
    ],
)
def test_arrays_that_disagree_are_named(tmp_path, arrays, message):
    refused(tmp_path, "numpy", sources.numpy_file(tmp_path / "t.npz", **arrays), re.escape(message))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layer1.ids": [[1, 2], [1, 2, 3]]}, "row 1: layer1.ids holds 3 values and the rows before 2; k must agree"),
        ({"layer1.ids": [[1, 2]], "layer2.ids": [[1]]}, "the layers disagree in k: 2 in layer1.ids, 1 in layer2.ids"),
        ({"layer1.ids": [[1, 2]], "layer01.ids": [[1, 2]]}, "has two columns of one layer: layer1.ids, layer01.ids"),
        ({"layer1.ids": [[1, 2], None]}, "row 1: layer1.ids is null"),
        ({"experts": [[1, 2]]}, "has no column layerNN.ids; it has experts"),
        (
            {"layer1.ids": [[1, 2]], "layer2.ids": [[1, 2]], "layer1.weights": [[0.5, 0.5]]},
            "has weights of some layers and no layer2.weights",
        ),
        ({"layer1.ids": [[1, 2]] * 3, "document": ["a", "b", "a"]}, "document a: the document begins again"),
        ({"layer1.ids": [[1, 2]], "phase": ["both"]}, "row 0: phase is 'both'; 'prefill' or 'decode' was expected"),
        ({"layer1.ids": [[1, 2]], "token": [0.5]}, "t.parquet: token is of double; integers were expected"),
        ({"layer1.ids": [["a", "b"]]}, "layer1.ids is of list<element: string>; lists of integers were expected"),
    ],
)
def test_tables_that_disagree_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    refused(tmp_path, "parquet", tmp_path / "t.parquet", re.escape(message))


def test_a_weight_belongs_to_each_chosen_expert(tmp_path):
    table = pa.table({"layer1.ids": [[1, 2], [0, 3]], "layer1.weights": [[0.5], [0.5]]})
    pq.write_table(table, tmp_path / "t.parquet")
    refused(
        tmp_path, "parquet", tmp_path / "t.parquet", r"layer1.weights holds \(1,\) values in a row, and layer1.ids \(2"
    )
    columns = {f"layer{n}.ids": [[1, 2], [0, 3]] for n in (1, 2)}
    columns |= {"layer1.weights": [[0.5, 0.5], [0.5, 0.5]], "layer2.weights": [[0.5], [0.5]]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    refused(tmp_path, "parquet", tmp_path / "t.parquet", r"layer2.weights holds \(1,\) values in a row")


def test_ranks_beyond_any_machine_are_refused(tmp_path):
    file = sources.stat_file(tmp_path / "c.pt", np.ones((1, 3, E)))
    refused(tmp_path, "sglang", file, "--ranks is 9{30}; .* 1 to 1,048,576 was expected", ranks=int("9" * 30), top_k=2)


def test_parquet_files_of_one_folder_have_the_same_columns(tmp_path):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"layer1.ids": [[1, 2]]}), tmp_path / "t" / "a.parquet")
    pq.write_table(pa.table({"layer2.ids": [[1, 2]]}), tmp_path / "t" / "b.parquet")
    refused(tmp_path, "parquet", tmp_path / "t", "b.parquet has other columns than a.parquet: layer1.ids, layer2.ids")
    (tmp_path / "t" / "a.parquet").write_bytes(b"no")
    refused(
        tmp_path, "parquet", tmp_path / "t", "a.parquet cannot be read .*; a Parquet file of a row a token was expected"
    )
    pq.write_table(pa.table({"layer1.ids": pa.array([], pa.list_(pa.int8()))}), tmp_path / "e.parquet")
    refused(tmp_path, "parquet", tmp_path / "e.parquet", "e.parquet has no rows")


RECORD = sources.sglang_record(IDS_TLK, TOKENS)


@pytest.mark.parametrize(
    ("records", "other", "message"),
    [
        ([RECORD | {"forward_mode": 3}], {}, "(forward pass 1, rank 0) has forward_mode 3: neither extend (1)"),
        ([RECORD | {"extend_seq_lens": [4, 4]}], {}, "extend_seq_lens add up to 8, from 4, and there are 5 tokens"),
        ([RECORD | {"positions": [0]}], {}, "record 0: 1 positions for 5 tokens; they must agree"),
        ([RECORD | {"input_ids": TOKENS[:4]}], {}, "has the shape [3, 5, 8]; [3 layers of the map, 4"),
        ([RECORD, RECORD | {"topk_ids_of_layer": torch.zeros(3, 5, 4, dtype=torch.int32)}], {}, "3 of 8 before"),
        ([{k: v for k, v in RECORD.items() if k != "positions"}], {}, "record 0 has no positions; it holds"),
        ([RECORD | {"topk_ids_of_layer": torch.full((3, 5, 8), -1)}], {}, "every id is -1; nothing was recorded"),
        ([RECORD | {"topk_ids_of_layer": torch.zeros(3, 5, 8)}], {}, "topk_ids_of_layer is of float32; integers"),
        ([RECORD | {"topk_ids_of_layer": [1]}], {}, "topk_ids_of_layer is a list; a tensor was expected"),
        ([sources.sglang_record(changed(2, 1, [3, 4]), TOKENS)], {}, "row 2, layer 2: expert 4 is not one of the 4 p"),
        ([sources.sglang_record(changed(2, 1, [3, 3]), TOKENS)], {}, "row 2, layer 2: the ids [3, 3] name an expert"),
        ([RECORD], {"last_physical_to_logical_map": torch.zeros(4)}, "last_physical_to_logical_map is of float32"),
        ([RECORD], {"last_physical_to_logical_map": torch.zeros(4, dtype=torch.int32)}, "has the shape [4]"),
        ([], {}, "is no dump of mode stat (logical_count) or per_token (records with"),
        ([{"global_physical_count": torch.zeros(3, 4)}], {}, "is of mode per_pass, which keeps one rank's counts"),
    ],
)  # fmt: skip
def test_wrong_dumps_are_named(tmp_path, records, other, message):
    refused(tmp_path, "sglang", sources.sglang_file(tmp_path / "d.pt", *records, **other), re.escape(message))


def test_a_dump_whose_layers_differ_in_k_is_named(tmp_path):
    ids_LTK = RECORD["topk_ids_of_layer"].clone()
    ids_LTK[2, :, 2] = torch.arange(5) % 2  # a third id in layer 2 alone
    record = RECORD | {"topk_ids_of_layer": ids_LTK}
    file = sources.sglang_file(tmp_path / "d.pt", record)
    refused(tmp_path, "sglang", file, "layer 1 fills 2 of the 3 ids that other layers fill")


def test_physical_experts_without_a_map_are_refused(tmp_path):
    torch.save({"records": [RECORD]}, tmp_path / "d.pt")
    refused(tmp_path, "sglang", tmp_path / "d.pt", "has no last_physical_to_logical_map, and its ids are of physical")


def test_ranks_that_saw_the_same_tokens_are_not_counted_twice(tmp_path):
    (tmp_path / "d").mkdir()
    sources.sglang_file(tmp_path / "d" / "0.pt", RECORD)
    sources.sglang_file(tmp_path / "d" / "1.pt", RECORD | {"rank": 1})
    refused(tmp_path, "sglang", tmp_path / "d", "0.pt and 1.pt hold the same tokens for forward pass 1")
    sources.stat_file(tmp_path / "d" / "1.pt", np.ones((1, 3, E)))
    refused(tmp_path, "sglang", tmp_path / "d", "holds dumps of the modes per_token and stat; import them one by one")


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.zeros((2, 3, E)), {"top_k": 2}, "every count is 0; nothing was recorded"),
        (np.ones((1, 3, E)), {}, "does not say k; give --top-k N, or --model"),
        (np.ones((1, 3, E)), {"top_k": 3}, "pass 0, layer 0: 4 assignments, from 1 to 1 of an expert; 3 for each of 1"),
        (np.array([[[1, 1, 1, 1], [1, 1, 1, 3]]]), {"top_k": 2}, "pass 0, layer 1: 6 assignments, from 1 to 3"),
        (np.array([[[4, 0, 0, 0]]]), {"top_k": 2}, "pass 0, layer 0: 4 assignments, from 0 to 4 of an expert; 2 for"),
        (np.array([[[3, -1, 1, 1]]]), {"top_k": 2}, "pass 0, layer 0: 4 assignments, from -1 to 3"),
        (np.ones((1, 3, E)), {"top_k": 2, "n_experts": 8}, "experts disagree: --experts says 8, .* has 4"),
        (np.ones((1, 1, 3, E)), {"top_k": 2}, "logical_count has the shape .1, 1, 3, 4."),
        (
            np.ones((1, 3, E)),
            {"top_k": 2, "ranks": 2},
            "pass 0, column 0: expert 0 has 1 assignments, no multiple of 2",
        ),
        (np.ones((1, 3, E)), {"top_k": 2, "ranks": 0}, "--ranks is 0; it is for counts"),
        (np.ones((1, 3, E)), {"top_k": 9}, "9 experts of 4 for each token cannot be meant"),
    ],
)
def test_counts_that_cannot_be_are_named(tmp_path, counts, options, message):
    refused(
        tmp_path, "sglang", sources.stat_file(tmp_path / "d.pt", counts), message, **({"n_experts": None} | options)
    )


def test_dumps_of_other_shapes_are_not_joined(tmp_path):
    (tmp_path / "d").mkdir()
    sources.stat_file(tmp_path / "d" / "a.pt", np.ones((1, 3, E)))
    sources.stat_file(tmp_path / "d" / "b.pt", np.ones((1, 3, 8)))
    refused(tmp_path, "sglang", tmp_path / "d", "disagree in shape: 3 layers of 4 experts in .*a.pt; 3 layers of 8")


# Files that are not what they say


class Canary:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_a_dump_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"logical_count": Canary(ran)}, tmp_path / "d.pt")
    refused(tmp_path, "sglang", tmp_path / "d.pt", "holds more than tensors and plain values, .*it was not opened")
    torch.save({"logical_count": Canary(ran)}, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path, "sglang", tmp_path / "d.pt", "holds more than tensors and plain values")
    assert not ran.exists()
    torch.load(tmp_path / "d.pt", weights_only=False)
    assert ran.exists()  # the canary sings where it is opened without care


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
def test_code_in_an_array_is_not_run(tmp_path, name):
    ran = tmp_path / "ran"
    array = np.array([Canary(ran)], dtype=object)
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    np.savez(tmp_path / "t.npz", ids=array)
    refused(tmp_path, "numpy", tmp_path / name, "arrays of Python objects are never opened, for they are pickles")
    assert not ran.exists()


def test_a_file_that_was_cut_is_named(tmp_path):
    whole = sources.sglang_file(tmp_path / "d.pt", RECORD).read_bytes()
    (tmp_path / "d.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "sglang", tmp_path / "d.pt", "d.pt (cannot be read|holds more than tensors and plain values)")
    torch.save([1], tmp_path / "l.pt")
    refused(tmp_path, "sglang", tmp_path / "l.pt", "l.pt holds a list; a dump of SGLang is a dict")
    (tmp_path / "t.npz").write_bytes(b"PK no")
    refused(tmp_path, "numpy", tmp_path / "t.npz", "t.npz cannot be read .File is not a zip file")


def test_places_and_formats_are_named(tmp_path):
    np.save(tmp_path / "t.npy", IDS_TLK)
    refused(tmp_path, "vllm", tmp_path / "t.npy", "format 'vllm' is unknown; there are sglang, routed-experts, olmoe")
    refused(tmp_path, "olmoe", tmp_path / "t.npy", r"t.npy ends in '.npy'; this format is read from .jsonl files")
    refused(tmp_path, "olmoe", tmp_path / "none", "none: no such file; name the trace")
    refused(tmp_path, "olmoe", tmp_path, "holds no file that ends in .jsonl")
    refused(tmp_path, "numpy", tmp_path / "t.npy", "--phase is 'both'; prefill or decode was expected", phase="both")
    refused(tmp_path, "numpy", tmp_path / "t.npy", "--ranks is 2; it is for counts .* has tokens, each", ranks=2)
    refused(tmp_path, "numpy", tmp_path / "t.npy", "--shard-tokens is 0; 1 or more was expected", shard_tokens=0)


def test_a_folder_of_others_is_left_alone(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine").write_text("x")
    with pytest.raises(RecordingError, match="is not empty and holds no recording"):
        import_trace("numpy", file, tmp_path / "r", n_experts=E)
    with pytest.raises(RecordingError, match=r"cannot be made: .*t.npz is a file. Name another --out"):
        import_trace("numpy", file, file / "r", n_experts=E)
    import_trace("numpy", file, tmp_path / "s", n_experts=E)
    with pytest.raises(RecordingError, match="holds another recording .experts is .4. there, .5. here"):
        import_trace("numpy", file, tmp_path / "s", n_experts=5)


# Layers, experts, k


def test_what_a_source_does_not_say_is_asked_for(tmp_path):
    np.save(tmp_path / "t.npy", IDS_TLK)
    file = tmp_path / "t.npy"
    refused(
        tmp_path, "numpy", file, "has 2 columns of layers and does not say which decoder layers they are. Give --lay"
    )
    refused(
        tmp_path,
        "numpy",
        file,
        "does not say how many experts there are; give --experts N",
        n_experts=None,
        layers=(1, 2),
    )
    refused(tmp_path, "numpy", file, "has 2 columns of layers, and --layers names 3 MoE layers", layers=(1, 2, 3))
    refused(tmp_path, "numpy", file, "k disagree: --top-k says 3, .* has 2", layers=LAYERS, top_k=3)


def test_layers_that_a_source_names_are_its_own(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    refused(tmp_path, "numpy", file, "--layers 2, 3: .* has ids of the layers 1, 2", layers=(2, 3))
    assert import_trace("numpy", file, tmp_path / "r", n_experts=E, layers=(2,)).moe_layers == (2,)


def test_a_model_of_other_shape_is_refused(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    refused(tmp_path, "numpy", file, "k disagree|experts disagree|MoE layers are", model="tiny-moe", n_experts=None)
    refused(tmp_path, "numpy", file, "--model tiny-dense has no MoE layer", model="tiny-dense")
    with pytest.raises(ModelError, match="unknown model 'nothing'"):
        import_trace("numpy", file, tmp_path / "r", model="nothing")
    with pytest.raises(ModelError, match="qwen2-57b-a14b has no tokenizer that can be read"):
        import_trace("numpy", file, tmp_path / "r", n_experts=E, tokenizer="qwen2-57b-a14b")


def test_columns_of_a_model(moe):
    topology = moe.topology  # MoE layers 0 and 2 of three
    trace = {"format": "x", "files": ("t",), "documents": list, "top_k": 3}
    assert layout_of(Trace(**trace, n_columns=2), topology=topology).columns == (0, 1)
    every = layout_of(Trace(**trace, n_columns=3), topology=topology)
    assert (every.columns, every.layers) == ((0, 2), (0, 2))
    some = layout_of(Trace(**trace, n_columns=1), topology=topology, layers=(2,))
    assert (some.columns, some.layers) == ((0,), (2,))
    with pytest.raises(TraceError, match="t has 4 columns of layers, and the model has 2 MoE layers .0, 2."):
        layout_of(Trace(**trace, n_columns=4), topology=topology)
    with pytest.raises(TraceError, match="--layers 1: the model's MoE layers are 0, 2"):
        layout_of(Trace(**trace, n_columns=1), topology=topology, layers=(1,))
    with pytest.raises(TraceError, match="t has ids of the layers 1, 2, and the model's MoE layers are 0, 2"):
        layout_of(Trace(**trace, n_columns=2, layers=(1, 2)), topology=topology)


def test_two_routers_of_a_layer_are_refused(moe):
    from dataclasses import replace

    first = moe.topology.routers[0]
    routers = (first, replace(first, site="second"), moe.topology.routers[1])
    trace = Trace(format="x", files=("t",), documents=list, top_k=3, n_columns=2)
    with pytest.raises(TraceError, match="has layers with two routers"):
        layout_of(trace, topology=replace(moe.topology, routers=routers))
    routers = (first, replace(moe.topology.routers[1], n_experts=4))
    with pytest.raises(TraceError, match="the model's layers differ in experts"):
        layout_of(trace, topology=replace(moe.topology, routers=routers))


def test_layers_are_read_from_text():
    assert parse_layers("1-3, 7") == (1, 2, 3, 7)
    for text, message in (
        ("1-", "'1-' is no layer"),
        ("", "'' is no layer"),
        ("2,1", "does not ascend"),
        ("3-1", "does"),
    ):
        with pytest.raises(TraceError, match=f"--layers .*{message}"):
            parse_layers(text)


# What the user says of documents


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}], "--documents has 1 rows and the trace 2 documents, and the ids of the rows do not name them; one"),
        ([{}, {}, {}], "--documents has 3 rows and the trace 2 documents"),
        ([{"id": "a"}, {"id": "a"}], "line 2: the id 'a' stands in line 1 already"),
        ([{"id": 3}, {}], "line 1: id is 3; a string was expected"),
        ([{"name": "a"}, {}], "line 1 holds 'name'; an object with, of id, domain"),
        ([[], {}], "line 1 holds list; an object with"),
        ([{"token_ids": ["a"]}, {}], "line 1: token_ids must be a list of integers"),
        ([{"prompt_tokens": -1}, {}], "line 1: prompt_tokens is -1; a number from 0 was expected"),
        ([{"prompt_tokens": 4}, {}], "document 4: --documents says 4 prompt_tokens; the source has 3 rows"),
        ([{"prompt_tokens": 1}, {}], "differ in what they have: phase. Give it for all documents or for none"),
        ([{"token_ids": [1]}, {}], "document 4: --documents gives 1 token_ids and the source has 3 rows; as many, or"),
        ([{"token_ids": [1, 2, 3]}, {}], "differ in what they have: text_digest, token. Give it for all"),
        ([{"id": "t-9"}, {}], "name 1 of the 2 documents: no row names 't-4' .1., and line 2 .no id. names none"),
    ],
)
def test_wrong_labels_are_named(tmp_path, rows, message):
    file = sources.numpy_file(tmp_path / "t.npz", tokens=None)
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(tmp_path, "numpy", file, message, documents=tmp_path / "l.jsonl")


def test_labels_that_cannot_be_read_are_named(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    refused(tmp_path, "numpy", file, "--documents .*none.jsonl cannot be read", documents=tmp_path / "none.jsonl")
    (tmp_path / "l.jsonl").write_text("{")
    refused(tmp_path, "numpy", file, "l.jsonl, line 1 is not JSON", documents=tmp_path / "l.jsonl")
    (tmp_path / "l.jsonl").write_text('{"token_ids": [1, 2, 3]}\n{}')
    refused(tmp_path, "numpy", file, "with token ids of its own; leave token_ids out", documents=tmp_path / "l.jsonl")


# Padding


def test_padding_in_part_is_masked_counted_and_the_first_named(tmp_path):
    ids = np.concatenate([np.full((1, 2, 2), -1), changed(1, 1, [2, -1]), np.full((1, 2, 2), -1)])
    file = sources.numpy_file(tmp_path / "t.npz", ids=ids, tokens=np.arange(7), documents=np.array([4] * 4 + [9] * 3))
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E)
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK[[0, 2, 3, 4]])
    assert got.manifest["source"]["padding"] == {
        "marks": 9,
        "tokens": 3,
        "tokens_in_part": 1,
        "first_in_part": "t.npz, document 4, row 2, layer 2: ids [2, -1]",
    }
    assert got.tokens()["token"].tolist() == [1, 3, 4, 5]
    assert got.tokens()["position"].tolist() == [1, 3, 0, 1]  # a place in the sequence stays what it is


def test_documents_of_padding_alone_are_counted(tmp_path):
    ids = IDS_TLK.copy()
    ids[:3] = -1
    got = import_trace("numpy", sources.numpy_file(tmp_path / "t.npz", ids=ids), tmp_path / "r", n_experts=E)
    assert got.documents()["id"].tolist() == ["t-9"]
    assert got.manifest["source"]["documents_empty"] == 1
    ids[:] = -1
    refused(
        tmp_path, "numpy", sources.numpy_file(tmp_path / "s.npz", ids=ids), "has no token to record; 5 were padding"
    )


@given(
    ids=st.lists(st.lists(st.integers(-2, 5), min_size=4, max_size=4), min_size=1, max_size=12),
)
def test_a_document_is_refused_or_counted_as_a_plain_loop_does(ids):
    """Against a loop over tokens, layers and ids: what is refused, what is masked, and every count."""
    ids_TLK = np.array(ids).reshape(-1, 2, 2)
    trace = Trace(format="x", files=("t",), documents=list, n_columns=2, top_k=2, layers=LAYERS)
    layout = layout_of(trace, n_experts=E)
    counts, kept, wrong = np.zeros((2, E)), 0, False
    for token in ids_TLK:
        if (token == -1).any():
            continue
        kept += 1
        for layer, chosen in enumerate(token):
            if chosen.min() < 0 or chosen.max() >= E or chosen[0] == chosen[1]:
                wrong = True
                continue
            counts[layer, chosen] += 1
    document = TracedDocument(where="here", name="d", ids_TLK=ids_TLK)
    if wrong:
        with pytest.raises(TraceError, match=r"here, row \d+, layer [12]"):
            checked(document, layout, n_columns=2)
        return
    got = checked(document, layout, n_columns=2)
    assert got.n_tokens == kept
    np.testing.assert_array_equal(np.stack(got.counts_E), counts)
    assert got.padding.marks == (ids_TLK == -1).sum()
    assert got.padding.tokens == len(ids_TLK) - kept
