"""Which tokens of a trace stand next to one another: by request id or position, and unknown where neither says it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.importers import sources
from workbench.errors import RecordingError, TraceError
from workbench.recordings.importers.build import import_trace
from workbench.recordings.importers.notes import import_notes
from workbench.recordings.recording import Recording

E = sources.E


def choices(tokens: list[int]) -> np.ndarray:
    """Ids of each token that tell it: of one request the same in the first layer, so repetition is 1."""
    return np.array([[[token // 100 % E, (token // 100 + 1) % E], [token % E, (token + 1) % E]] for token in tokens])


def decode(number: int, tokens: list[int], positions: list[int], **other) -> dict:
    """A pass of decoding: a token of every request."""
    given = {"forward_pass_id": number, "forward_mode": 2, "extend_seq_lens": None, "positions": positions} | other
    return sources.sglang_record(choices(tokens), tokens, **given)


def prefill(number: int, tokens: list[int], positions: list[int], lengths: list[int] | None, **other) -> dict:
    given = {"forward_pass_id": number, "positions": positions, "extend_seq_lens": lengths} | other
    return sources.sglang_record(choices(tokens), tokens, **given)


def texts(recording: Recording) -> list[list[int]]:
    """The tokens of each document and phase, in the order of the recording."""
    frame = recording.tokens()
    keys = ["document", "phase"] if "phase" in frame else ["document"]
    return [found["token"].tolist() for _, found in frame.groupby(keys, sort=False, observed=True)]


def adjacent(recording: Recording) -> list[tuple[int, int]]:
    """Tokens that are neighbours: rows of one document and phase whose positions differ by 1."""
    frame = recording.tokens().sort_values(["document", "position"])
    pairs = []
    for _, found in frame.groupby(["document", "phase"], observed=True):
        steps = np.flatnonzero(np.diff(found["position"]) == 1)
        pairs += [(found["token"].iloc[at], found["token"].iloc[at + 1]) for at in steps]
    return pairs


def test_decoding_of_requests_at_different_positions_is_put_together(tmp_path):
    starts = [10, 31, 11, 70]
    passes = [
        decode(number, [100 * request + number for request in order], [starts[request] + number for request in order])
        for number, order in enumerate([[0, 1, 2, 3]] * 5 + [[3, 1, 0]] * 5)  # request 2 ends; the others change places
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    assert sorted(texts(got)) == [
        list(range(10)), list(range(100, 110)), list(range(200, 205)), list(range(300, 310)),
    ]  # fmt: skip
    assert set(got.documents()["cluster"]) == {"d-decode"}
    assert got.manifest["source"]["requests_by"] == "position"


def test_decoding_of_requests_at_one_position_has_no_neighbours(tmp_path):
    passes = [decode(n, [n, 100 + n, 200 + n, 300 + n], [10 + n] * 4) for n in range(40)]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    assert got.n_tokens == 160
    assert adjacent(got) == []
    np.testing.assert_array_equal(got.counts(1).sum(0), [80] * 4)


def test_only_those_that_cannot_be_told_apart_are_parted(tmp_path):
    passes = [decode(n, [n, 100 + n, 200 + n], [10 + n, 10 + n, 50 + n]) for n in range(6)]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    assert list(range(200, 206)) in texts(got)
    assert adjacent(got) == [(200 + n, 201 + n) for n in range(5)]


def test_a_prompt_that_waits_is_not_taken_for_a_request_that_goes_on(tmp_path):
    """Request 0 ends at position 11 where request 1, whose prompt has 12 tokens, begins."""
    passes = [
        decode(0, [0], [10]),
        decode(1, [1], [11]),
        prefill(2, list(range(100, 112)), list(range(12)), [12]),
        decode(3, [112], [12]),
        decode(4, [113], [13]),
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    assert (1, 112) not in adjacent(got)
    assert [0, 1] in texts(got) and [112, 113] in texts(got)


def test_ids_of_requests_put_prompt_and_decoding_together(tmp_path):
    passes = [
        prefill(0, [0, 1, 100, 101, 102], [0, 1, 0, 1, 2], [2, 3], rids=["a", "b"]),
        prefill(1, [103, 104], [3, 4], [2], rids=["b"]),
        decode(2, [2, 105], [2, 5], rids=["a", "b"]),
        decode(3, [106, 3], [6, 3], rids=["b", "a"]),
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    assert texts(got) == [[0, 1], [2, 3], [100, 101, 102, 103, 104], [105, 106]]
    documents = got.documents()
    assert documents["document"].tolist() == [0, 0, 1, 1]
    assert documents["cluster"].tolist() == ["d-a", "d-a", "d-b", "d-b"]
    assert got.manifest["source"]["unit"] == "requests"


def test_chunks_of_one_prompt_are_one_cluster(tmp_path):
    passes = [
        prefill(0, [0, 1, 2, 3], [0, 1, 2, 3], [4]),
        prefill(1, [4, 5, 6, 7], [4, 5, 6, 7], [4]),
        prefill(2, [8, 9, 100, 101], [8, 9, 0, 1], [2, 2]),
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    clusters = got.documents()["cluster"].tolist()
    assert clusters[0] == clusters[1] == clusters[2] != clusters[3]
    assert got.tokens()["position"].tolist() == [*range(10), 0, 1]


def test_chunks_that_two_prompts_could_have_are_one_cluster_with_both(tmp_path):
    passes = [
        prefill(0, [0, 1, 100, 101], [0, 1, 0, 1], [2, 2]),
        prefill(1, [2, 3], [2, 3], [2]),
        prefill(2, [200, 201], [0, 1], [2]),
    ]
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", *passes), tmp_path / "r")
    first, second, third, other = got.documents()["cluster"]
    assert first == second == third != other


def test_prompts_without_lengths_end_where_positions_do_not_follow(tmp_path):
    record = prefill(0, [0, 1, 2, 100, 101], [0, 1, 2, 0, 1], None)
    got = import_trace("sglang", sources.sglang_file(tmp_path / "d.pt", record), tmp_path / "r")
    assert texts(got) == [[0, 1, 2], [100, 101]]


@pytest.mark.parametrize("document", [["batch"] * 8, [f"pass {n // 4}" for n in range(8)]])
def test_rows_of_several_sequences_in_one_document_have_no_positions(tmp_path, document):
    positions = [10, 10, 11, 10, 11, 11, 12, 11] if document[0] != "batch" else [10, 10, 10, 10, 11, 11, 11, 11]
    ids = [[n % E, (n + 1) % E] for n in range(8)]
    table = {"layer1.ids": ids, "document": document, "position": positions, "token": list(range(8))}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    got = import_trace("parquet", tmp_path / "t.parquet", tmp_path / "r", n_experts=E)
    assert "position" in got.lacks
    assert "position" not in got.tokens()
    assert "rows have position 1" in got.manifest["source"]["positions"]["because"]
    assert any("which tokens stand next to one another is not known" in line for line in import_notes(got.manifest))
    with pytest.raises(RecordingError, match="has no word on which tokens stand next to one another"):
        got.column("position")
    np.testing.assert_array_equal(got.counts(1).sum(), 16)
    assert got.verify()


def test_masked_rows_leave_a_gap(tmp_path):
    ids = sources.IDS_TLK.copy()
    ids[1] = 0
    file = sources.numpy_file(tmp_path / "t.npz", ids=ids, documents=None)
    got = import_trace("numpy", file, tmp_path / "r", n_experts=E, mask_zero_rows=True)
    assert got.tokens()["position"].tolist() == [0, 2, 3, 4]


def test_phases_of_a_document_without_positions_follow_one_another(tmp_path):
    table = {"layer1.ids": [[0, 1]] * 4, "phase": ["prefill", "prefill", "decode", "decode"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    got = import_trace("parquet", tmp_path / "t.parquet", tmp_path / "r", n_experts=E)
    assert got.tokens()["position"].tolist() == [0, 1, 2, 3]
    assert got.manifest["source"]["positions"]["from"] == "the order of the rows"


# Completions apart from their prompts


def completions(tmp_path, **label):
    (tmp_path / "t").mkdir()
    for number in (0, 1):
        np.save(tmp_path / "t" / f"r{number}.npy", sources.IDS_TLK)
    rows = [{"id": f"r{number}"} | {key: value + number for key, value in label.items()} for number in (0, 1)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "t"


GIVEN = {"n_experts": E, "layers": sources.LAYERS}


def test_a_start_that_is_stated_places_the_rows(tmp_path):
    folder = completions(tmp_path, start=30)
    got = import_trace(
        "routed-experts", folder, tmp_path / "r", phase="decode", documents=tmp_path / "l.jsonl", **GIVEN
    )
    assert got.tokens()["position"].tolist() == [*range(30, 35), *range(31, 36)]
    assert set(got.tokens()["phase"]) == {"decode"}


@pytest.mark.parametrize("label", [{}, {"prompt_tokens": 0}])
def test_a_start_is_asked_for_where_decoding_would_begin_at_0(tmp_path, label):
    folder = completions(tmp_path)
    rows = [{"id": f"r{number}"} | label for number in (0, 1)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    phase = None if label else "decode"
    with pytest.raises(TraceError, match=r'r0.npy: its decoding would begin at position 0, .* \{"start": N\}'):
        import_trace("routed-experts", folder, tmp_path / "r", phase=phase, documents=tmp_path / "l.jsonl", **GIVEN)
    assert not (tmp_path / "r").exists()
    known = [row | {"start": 0} for row in rows]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, known)))
    got = import_trace("routed-experts", folder, tmp_path / "r", phase=phase, documents=tmp_path / "l.jsonl", **GIVEN)
    assert got.tokens()["position"].tolist() == [0, 1, 2, 3, 4] * 2


def test_a_start_beside_positions_of_the_trace_is_refused(tmp_path):
    file = sources.numpy_file(tmp_path / "t.npz", documents=None, positions=np.arange(5))
    (tmp_path / "l.jsonl").write_text('{"start": 3}')
    with pytest.raises(TraceError, match="the source has positions of its own; leave start out of --documents"):
        import_trace("numpy", file, tmp_path / "r", n_experts=E, documents=tmp_path / "l.jsonl")
