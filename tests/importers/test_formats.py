"""Each format, read from a small file in its true shape: the tables, by values counted by hand."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.importers import sources
from tests.importers.sources import COUNTS_LE, IDS_TLK, LAYERS, TOKENS
from workbench.recordings.importers.build import NOT_PROVED, import_trace
from workbench.recordings.recording import Recording

E = sources.E


def counts_of(recording: Recording) -> np.ndarray:
    return np.stack([recording.counts(layer).sum(0) for layer in recording.moe_layers])


def test_numpy_arrays_with_all_that_they_can_hold(tmp_path):
    weights_TLK = np.linspace(0.1, 0.9, IDS_TLK.size).reshape(IDS_TLK.shape)
    file = sources.numpy_file(tmp_path / "t.npz", weights=weights_TLK)
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E, ids_ranked=True)
    assert got.moe_layers == LAYERS
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    np.testing.assert_array_equal(got.counts(1), [[1, 2, 1, 2], [1, 1, 1, 1]])
    np.testing.assert_array_equal(got.counts(2), [[2, 0, 2, 2], [1, 2, 1, 0]])
    np.testing.assert_array_equal(counts_of(got), COUNTS_LE)
    np.testing.assert_allclose(got.weights(2), weights_TLK[:, 1], rtol=1e-3)
    by_hand = np.zeros((2, E))
    for row, document in enumerate([0, 0, 0, 1, 1]):
        for expert, weight in zip(IDS_TLK[row, 0], weights_TLK[row, 0], strict=True):
            by_hand[document, expert] += weight
    np.testing.assert_allclose(got.weight_sum(1), by_hand, rtol=1e-6)
    frame = got.tokens()
    assert list(frame.columns) == ["document", "position", "token"]
    assert frame.to_numpy().tolist() == [[0, 0, 7], [0, 1, 8], [0, 2, 9], [1, 0, 7], [1, 1, 6]]
    documents = got.documents()
    assert documents["id"].tolist() == ["t-4", "t-9"]
    assert documents["tokens"].tolist() == [3, 2]
    assert documents["cluster"].tolist() == ["t-4", "t-9"]
    assert got.vocabulary["text"].tolist() == ["<6>", "<7>", "<8>", "<9>"]
    assert got.ids_ranked
    assert got.manifest["check"] == NOT_PROVED
    assert got.manifest["source"]["files"][0]["sha256"]
    assert got.verify().digest == got.digest


def test_a_plain_array_is_one_document_and_lacks_the_rest(tmp_path):
    np.save(tmp_path / "t.npy", IDS_TLK.astype(np.uint8))
    got = import_trace("numpy", tmp_path / "t.npy", tmp_path / "r", layers=(4, 6), n_experts=E)
    assert got.moe_layers == (4, 6)
    assert set(got.lacks) >= {"weights", "weight_sum", "token", "phase", "entropy", "score_sum", "text_digest"}
    names = pq.read_schema(got.path / "tokens" / "part-00000.parquet").names
    assert names == ["document", "position", "layer04.ids", "layer06.ids"]  # and no column filled with zeros
    assert "layer04.weight_sum" not in pq.read_schema(got.path / "documents" / "part-00000.parquet").names
    assert not got.ids_ranked
    assert got.topology.n_layers == 7


def test_routed_experts_of_several_requests_with_labels(tmp_path):
    folder = tmp_path / "requests"
    folder.mkdir()
    encoded = base64.b64encode(as_npy(IDS_TLK[:3].astype(np.int16)))  # as vLLM's server answers
    (folder / "a.npy").write_bytes(base64.b64decode(encoded))
    (folder / "b.npy").write_bytes(as_npy(IDS_TLK[3:].astype(np.int16)))
    labels = [
        {"id": "first", "domain": "code", "cluster": "x", "token_ids": [7, 8, 9, 5], "prompt_tokens": 2},
        {"id": "second", "domain": "math", "token_ids": [7, 6], "prompt_tokens": 2},
    ]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, labels)))
    got = import_trace("routed-experts", folder, tmp_path / "r", layers=LAYERS, n_experts=E, documents=file)
    documents = got.documents()
    assert documents["id"].tolist() == ["first", "first", "second"]
    assert documents["phase"].tolist() == ["prefill", "decode", "prefill"]
    assert documents["domain"].tolist() == ["code", "code", "math"]
    assert documents["cluster"].tolist() == ["x", "x", "second"]
    assert documents["document"].tolist() == [0, 0, 1]
    assert got.tokens()["position"].tolist() == [0, 1, 2, 0, 1]
    assert got.tokens()["token"].tolist() == [7, 8, 9, 7, 6]
    assert got.manifest["phases"] == ["prefill", "decode"]
    only = import_trace(
        "routed-experts", folder, tmp_path / "p", layers=LAYERS, n_experts=E, documents=file, phase="prefill"
    )
    assert only.manifest["phases"] == ["prefill"]
    np.testing.assert_array_equal(sources.ids_of(only), IDS_TLK[[0, 1, 3, 4]])


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_routed_experts_in_a_padded_stack(tmp_path):
    stack = np.full((2, 3, 2, 2), -1)
    stack[0], stack[1, :2] = IDS_TLK[:3], IDS_TLK[3:]
    np.save(tmp_path / "t.npy", stack)
    got = import_trace("routed-experts", tmp_path / "t.npy", tmp_path / "r", layers=LAYERS, n_experts=E)
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.documents()["tokens"].tolist() == [3, 2]
    assert got.manifest["source"]["padding"] == {"marks": 4, "tokens": 1, "tokens_in_part": 0, "first_in_part": ""}


def test_routed_experts_of_all_decoder_layers(tmp_path):
    with_dense = np.concatenate([np.zeros((5, 1, 2), dtype=int), IDS_TLK], axis=1)  # vLLM leaves dense layers at 0
    np.save(tmp_path / "t.npy", with_dense)
    got = import_trace("routed-experts", tmp_path / "t.npy", tmp_path / "r", layers=LAYERS, n_experts=E)
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.manifest["source"]["columns_taken"] == [1, 2]


def test_olmoe_lines(tmp_path):
    file = tmp_path / "c4_results.jsonl"
    file.write_text(
        sources.olmoe_line(IDS_TLK[:3], TOKENS[:3]) + "\n" + sources.olmoe_line(IDS_TLK[3:], TOKENS[3:]) + "\n"
    )
    got = import_trace("olmoe", file, tmp_path / "r", n_experts=E)
    assert got.moe_layers == (0, 1)
    assert got.ids_ranked
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    np.testing.assert_array_equal(counts_of(got), COUNTS_LE)
    assert got.tokens()["token"].tolist() == TOKENS
    assert got.documents()["id"].tolist() == ["c4_results-1", "c4_results-2"]
    relabelled = import_trace("olmoe", file, tmp_path / "s", n_experts=E, layers=(3, 5))
    assert relabelled.moe_layers == (3, 5)


def test_sglang_tokens_by_segment_and_phase(tmp_path):
    prefill = sources.sglang_record(IDS_TLK[:4], TOKENS[:4], extend_seq_lens=[3, 1], positions=[0, 1, 2, 5])
    decode = sources.sglang_record(
        IDS_TLK[4:], TOKENS[4:], forward_mode=2, extend_seq_lens=None, positions=[9], forward_pass_id=2
    )
    idle = sources.sglang_record(IDS_TLK[:0], [], forward_mode=4, forward_pass_id=3, extend_seq_lens=None)
    file = sources.sglang_file(tmp_path / "d.pt", prefill, decode, idle)
    got = import_trace("sglang", file, tmp_path / "r")
    assert got.moe_layers == LAYERS  # layer 0 is dense: -1 throughout
    assert got.router(1).top_k == 2  # of the dump's eight columns two are filled
    assert got.router(1).n_experts == E
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.documents()["phase"].tolist() == ["prefill", "prefill", "decode"]
    assert got.documents()["tokens"].tolist() == [3, 1, 1]
    assert got.tokens()["position"].tolist() == [0, 1, 2, 5, 9]
    assert got.documents()["cluster"].tolist()[2] == "d-decode"
    assert got.manifest["source"]["ids_mapped"] is False
    assert got.manifest["source"]["empty_passes"] == 1
    only = import_trace("sglang", file, tmp_path / "p", phase="decode")
    assert only.n_tokens == 1


def test_sglang_physical_experts_become_logical(tmp_path):
    """Five physical experts for four: the fifth is a copy of expert 1, and 0 and 2 have changed places."""
    logical = torch.tensor([[2, 1, 0, 3, 1]] * 3)
    physical_of = {0: 2, 1: 4, 2: 0, 3: 3}
    record = sources.sglang_record(np.vectorize(physical_of.get)(IDS_TLK), TOKENS)
    file = sources.sglang_file(tmp_path / "d.pt", record, last_physical_to_logical_map=logical)
    got = import_trace("sglang", file, tmp_path / "r")
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.router(1).n_experts == E
    assert got.manifest["source"]["ids_mapped"] is True
    assert got.manifest["source"]["physical_experts"] == 5


def test_sglang_padded_rows_are_masked_and_counted(tmp_path):
    padded = np.concatenate([IDS_TLK, np.full((2, 2, 2), -1)])
    record = sources.sglang_record(padded, [*TOKENS, 0, 0], extend_seq_lens=[5])
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", record), tmp_path / "r")
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.manifest["source"]["padding"]["tokens"] == 2
    assert got.manifest["source"]["padding"]["marks"] == 8


def test_sglang_counts_have_no_tokens(tmp_path):
    passes = np.zeros((4, 3, E))
    passes[0, 1:], passes[2, 1:] = COUNTS_LE, [[1, 1, 0, 0], [0, 0, 1, 1]]
    file = sources.stat_file(tmp_path / "d.pt", passes)
    got = import_trace("sglang", file, tmp_path / "r", top_k=2)
    assert got.moe_layers == LAYERS
    assert got.n_documents == 2 and got.n_tokens == 6  # passes without counts are left out
    np.testing.assert_array_equal(got.counts(1), [[2, 3, 2, 3], [1, 1, 0, 0]])
    assert got.documents()["tokens"].tolist() == [5, 1]
    assert got.documents()["cluster"].nunique() == 1  # passes over the same requests are not independent
    assert pq.read_table(got.path / "tokens" / "part-00000.parquet").num_rows == 0
    assert len(got.vocabulary) == 0
    assert got.manifest["source"]["empty_passes"] == 2
    assert got.manifest["source"]["unit"] == "forward passes"


def test_sglang_counts_that_ranks_share_are_divided(tmp_path):
    passes = np.zeros((1, 3, E))
    passes[0, 1:] = COUNTS_LE * 8
    file = sources.stat_file(tmp_path / "d.pt", passes)
    got = import_trace("sglang", file, tmp_path / "r", top_k=2, ranks=8)
    assert got.n_tokens == 5
    assert got.manifest["source"]["ranks"] == 8


def test_parquet_with_lists_of_any_kind(tmp_path):
    ids = [pa.array(IDS_TLK[:, column].tolist()) for column in (0, 1)]
    table = {"layer1.ids": ids[0], "layer02.ids": ids[1].cast(pa.list_(pa.int16(), 2)), "document": list("aaabb")}
    pq.write_table(pa.table(table | {"other": [1] * 5}), tmp_path / "t.parquet", row_group_size=2)
    got = import_trace("parquet", tmp_path / "t.parquet", tmp_path / "r", n_experts=E)
    assert got.moe_layers == LAYERS
    np.testing.assert_array_equal(sources.ids_of(got), IDS_TLK)
    assert got.documents()["id"].tolist() == ["a", "b"]
    assert not got.has("token")


def test_a_tokenizer_gives_text(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E, tokenizer="tiny-moe")
    assert got.manifest["tokenizer"]["class"]
    assert not got.vocabulary["text"].str.fullmatch(r"<\d+>").all()


def test_a_model_says_layers_experts_and_k(tmp_path):
    from workbench.models.loading import inspect_topology

    topology = inspect_topology("tiny-moe")
    router = topology.routers[0]
    ids = np.argsort(np.random.default_rng(0).random((9, len(topology.routers), router.n_experts)))[..., : router.top_k]
    np.save(tmp_path / "t.npy", ids)
    got = import_trace("routed-experts", tmp_path / "t.npy", tmp_path / "r", model="tiny-moe")
    assert got.moe_layers == topology.moe_layers
    assert got.topology == topology
    assert got.manifest["identity"]["model"] == "tiny-moe"


# Round trips


@pytest.fixture(scope="module")
def native(recording):
    return sources.documents_of(recording)


def agree(imported: Recording, recording: Recording, *, tokens: bool = True) -> None:
    np.testing.assert_array_equal(sources.ids_of(imported), sources.ids_of(recording))
    for layer in recording.moe_layers:
        np.testing.assert_array_equal(imported.counts(layer), recording.counts(layer))
    assert imported.documents()["tokens"].tolist() == recording.documents()["tokens"].tolist()
    if tokens:
        assert imported.tokens()["token"].tolist() == recording.tokens()["token"].tolist()
        assert imported.documents()["text_digest"].tolist() == recording.documents()["text_digest"].tolist()


def test_parquet_round_trip(recording, tmp_path):
    got = import_trace("parquet", recording.path / "tokens", tmp_path / "r", n_experts=8, shard_tokens=300)
    agree(got, recording)
    assert len(got.manifest["parts"]) > 1
    for layer in recording.moe_layers:
        np.testing.assert_array_equal(got.weights(layer), recording.weights(layer))
        np.testing.assert_allclose(got.weight_sum(layer), recording.weight_sum(layer), rtol=2e-3, atol=1e-6)
    assert set(got.tokens()["phase"]) == {"prefill"}


def test_olmoe_round_trip(recording, native, tmp_path):
    (tmp_path / "c.jsonl").write_text("\n".join(sources.olmoe_line(*document) for document in native))
    agree(import_trace("olmoe", tmp_path / "c.jsonl", tmp_path / "r", layers=(0, 2), n_experts=8), recording)


def test_numpy_round_trip(recording, tmp_path):
    frame = recording.tokens()
    arrays = {"tokens": frame["token"], "documents": frame["document"], "positions": frame["position"]}
    np.savez(tmp_path / "t.npz", ids=sources.ids_of(recording), layers=[0, 2], **arrays)
    agree(import_trace("numpy", tmp_path / "t.npz", tmp_path / "r", n_experts=8), recording)


def test_routed_experts_round_trip(recording, native, tmp_path):
    (tmp_path / "t").mkdir()
    for number, (ids_TLK, _) in enumerate(native):
        np.save(tmp_path / "t" / f"{number:03d}.npy", ids_TLK)
    got = import_trace("routed-experts", tmp_path / "t", tmp_path / "r", layers=(0, 2), n_experts=8)
    agree(got, recording, tokens=False)


def test_sglang_round_trip(recording, native, tmp_path):
    records = []
    for number in range(0, len(native), 7):  # seven prompts to a forward pass
        some = native[number : number + 7]
        ids_TLK = np.concatenate([ids for ids, _ in some])
        tokens = [token for _, of_one in some for token in of_one]
        lengths = [len(of_one) for _, of_one in some]
        records.append(
            sources.sglang_record(ids_TLK, tokens, layers=(0, 2), extend_seq_lens=lengths, forward_pass_id=number)
        )
    file = sources.sglang_file(tmp_path / "d.pt", *records, n_experts=8)
    agree(import_trace("sglang", file, tmp_path / "r"), recording)


def test_sglang_counts_round_trip(recording, tmp_path):
    counts = np.zeros((recording.n_documents, 3, 8))
    counts[:, [0, 2]] = np.stack([recording.counts(layer) for layer in (0, 2)], axis=1)
    got = import_trace("sglang", sources.stat_file(tmp_path / "d.pt", counts), tmp_path / "r", top_k=3)
    for layer in (0, 2):
        np.testing.assert_array_equal(got.counts(layer), recording.counts(layer))
    assert got.n_tokens == recording.n_tokens


# The recording that is made


def test_the_same_import_twice_gives_one_recording(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz")
    first = import_trace("numpy", file, tmp_path / "r", n_experts=E)
    assert import_trace("numpy", file, tmp_path / "r", n_experts=E).digest == first.digest
    other = import_trace("numpy", file, tmp_path / "s", n_experts=E)
    assert other.digest == first.digest


def test_an_import_that_was_stopped_goes_on(recording, tmp_path, monkeypatch):
    from workbench.errors import RecordingError
    from workbench.files import writing

    opened = writing._open_for_writing
    monkeypatch.setattr(
        writing,
        "_open_for_writing",
        lambda file: open("/dev/full", "wb") if "part-00002" in file.name else opened(file),  # noqa: SIM115
    )
    with pytest.raises(RecordingError, match="the disk is full"):
        import_trace("parquet", recording.path / "tokens", tmp_path / "r", n_experts=8, shard_tokens=200)
    monkeypatch.undo()
    agree(import_trace("parquet", recording.path / "tokens", tmp_path / "r", n_experts=8, shard_tokens=200), recording)


def test_any_tool_reads_it(tmp_path):
    got = import_trace("numpy", sources.numpy_file(tmp_path / "t.npz"), tmp_path / "r", n_experts=E)
    frame = pd.read_parquet(got.path / "tokens" / "part-00000.parquet")
    assert np.stack(frame["layer01.ids"]).tolist() == IDS_TLK[:, 0].tolist()
