import json
import re
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from workbench.errors import CorpusError
from workbench.recordings import corpus_files
from workbench.recordings.corpus import Corpus


def write(path, *lines: str):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_jsonl_parquet_and_text_give_the_same_documents(tmp_path):
    rows = [{"id": f"x-{i}", "domain": "x", "text": text} for i, text in enumerate(["one two", "drei"])]
    jsonl = Corpus.read(write(tmp_path / "x.jsonl", *map(json.dumps, rows)))
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_text("one two\n\n\ndrei\n", encoding="utf-8")
    assert jsonl.documents == Corpus.read(tmp_path / "x.parquet").documents == Corpus.read(tmp_path / "x.txt").documents
    assert jsonl.digest == Corpus.read(tmp_path / "x.txt").digest


def test_cluster_is_the_id_unless_given(tmp_path):
    corpus = Corpus.read(write(tmp_path / "c.jsonl", '{"text": "a"}', '{"text": "b", "cluster": "k"}'))
    assert [document.cluster for document in corpus.documents] == ["c-0", "k"]
    assert [document.domain for document in corpus.documents] == ["c", "c"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "a"}', "{broken"], "line 2: not JSON"),
        (['{"text": "a"}', '{"text": "  "}'], "line 2: 'text' is empty"),
        (['{"domain": "a"}'], "line 1: 'text' is missing"),
        (["[1, 2]"], "line 1: got a JSON list, expected an object"),
        (['{"text": "a", "domain": 3}'], "'domain' is 3, expected a string"),
        (['{"token_ids": [1, "2"]}'], "'token_ids' must be a list of at least one integer"),
        (['{"token_ids": []}'], "'token_ids' must be a list of at least one integer"),
        (['{"text": "a", "id": "k"}', '{"text": "b", "id": "k"}'], "the id 'k' stands at line 1 already"),
        ([""], "no documents; at least one was expected"),
        (['{"token_ids": [1, true]}'], "'token_ids' must be a list of at least one integer"),
        (['{"token_ids": [1, 2.0]}'], "'token_ids' must be a list of at least one integer"),
        (['{"token_ids": [1, -100]}'], "'token_ids' holds -100; token ids from 0 to 2147483647 were expected"),
        (['{"token_ids": [4294967296]}'], "'token_ids' holds 4294967296; token ids from 0"),
        (['{"token_ids": [' + "9" * 5000 + "]}"], "line 1: not JSON that can be read (ValueError"),
        (["[" * 100_000], "line 1: not JSON that can be read (RecursionError"),
        (['{"text": NaN}'], "'text' is nan, expected a string"),
        (['{"text": "a", "domain": "' + "d" * 1001 + '"}'], "'domain' has 1,001 characters; at most 1,000 were"),
        (['{"text": "a", "cluster": "\\ud800"}'], "'cluster' holds half a character (a lone surrogate)"),
        (['{"input_ids": [1]}'], "It has 'input_ids': write them under 'token_ids'"),
        (['{"messages": []}'], "It has 'messages': render each conversation with the model's chat template"),
        (['{"content": "a", "lang": "c"}'], "It has 'content', 'lang': write the one that holds the text under"),
        (["[", '{"text": "a"}', "]"], "It is one JSON value over many lines; JSONL is one object a line: jq"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, message):
    with pytest.raises(CorpusError, match=re.escape(message)):
        Corpus.read(write(tmp_path / "c.jsonl", *lines))


def test_another_encoding_is_named_with_its_line(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(CorpusError, match="line 2: byte 30 is not UTF-8"):
        Corpus.read(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(tmp_path, encoding):
    (tmp_path / "c.jsonl").write_bytes('{"text": "caf\u00e9"}\n'.encode(encoding))
    with pytest.raises(CorpusError, match=r"c.jsonl is in UTF-(16|32)(LE|BE)?, not UTF-8. .*iconv -f UTF-"):
        Corpus.read(tmp_path / "c.jsonl")


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", ["", " ", "\t", " \t  ", "\u00a0"])
def test_lines_of_blanks_part_documents_whatever_lines_end_in(tmp_path, line_end, blank):
    lines = ["", blank, "one", "goes on", blank, "two", "", blank, "", " three", blank]
    (tmp_path / "c.txt").write_bytes(line_end.join(lines).encode())
    texts = [document.text for document in Corpus.read(tmp_path / "c.txt").documents]
    assert texts == ["one\ngoes on", "two", " three"]
    (tmp_path / "c.jsonl").write_bytes(line_end.join(['{"text": "a"}', blank, '{"text": "b"}']).encode("utf-8-sig"))
    assert len(Corpus.read(tmp_path / "c.jsonl").documents) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [{"meta": {"pile_set_name": "ArXiv"}}, {"meta": {"pile_set_name": "Github"}}],
        [{"metadata": {"domain": "a"}}, {"metadata": {"domain": "b"}}],
        [{"lang": "c"}, {"lang": "python"}],
        [{"subset": "a"}, {"subset": "a"}, {"subset": "b"}],
        [{"redpajama_set_name": "a"}, {"redpajama_set_name": "b"}],
    ],
)
def test_a_domain_under_another_key_is_not_dropped_in_silence(tmp_path, rows):
    rows = [{"text": "a"} | row for row in rows]
    pd.DataFrame(rows).to_parquet(tmp_path / "c.parquet")
    write(tmp_path / "c.jsonl", *map(json.dumps, rows))
    for name in ("c.jsonl", "c.parquet"):
        with pytest.raises(CorpusError, match=r"rows without 'domain' differ in '.*' \(.*Write it there"):
            Corpus.read(tmp_path / name)
    named = [row | {"domain": "d"} for row in rows]
    assert Corpus.read(write(tmp_path / "c.jsonl", *map(json.dumps, named))).domains == ("d",)


def test_other_keys_drop_nothing(tmp_path):
    rows = [{"text": "a", "url": f"u{i}", "license": "ab"[i % 2], "lang": "en", "meta": {"n": i}} for i in range(4)]
    assert len(Corpus.read(write(tmp_path / "c.jsonl", *map(json.dumps, rows))).documents) == 4


def test_an_unknown_file_lists_the_bundled_corpora():
    with pytest.raises(CorpusError, match="no such file; bundled corpora: demo"):
        Corpus.read("nowhere.jsonl")


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=re.escape("the ending is '.csv'; .jsonl, .parquet, .txt can be read")):
        Corpus.read(write(tmp_path / "c.csv", "text"))


def test_a_broken_parquet_file_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="not a readable Parquet file"):
        Corpus.read(write(tmp_path / "c.parquet", "no parquet"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": pa.array([b"a", b"caf\xe9"], pa.binary()).view(pa.string())}, "row 2: a value cannot be read"),
        ({"text": ["a"], "id": [7]}, "the column 'id' is of int64; strings were expected"),
        ({"text": ["a"], "domain": pa.array([2**62], pa.timestamp("us"))}, "'domain' is of timestamp[us]; strings"),
        ({"token_ids": [[0.5]]}, "the column 'token_ids' is of list<element: double>; lists of integers were expected"),
        ({"token_ids": [[1, None]]}, "row 1: 'token_ids' must be a list of at least one integer"),
        ({"token_ids": [[[1]]]}, "'token_ids' is of list<element: list<element: int64>>; lists of integers"),
        ({"text": ["a", None]}, "row 2: 'text' is missing"),
        ({"text": ["a", ""]}, "row 2: 'text' is empty"),
        ({"input_ids": [[1]]}, "It has 'input_ids': write them under 'token_ids'"),
        ({"text": pa.array([], pa.string())}, "no documents; at least one was expected"),
    ],
)
def test_columns_that_are_no_documents_are_named(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    with pytest.raises(CorpusError, match=re.escape(message)):
        Corpus.read(tmp_path / "c.parquet")


def test_what_is_not_read_cannot_refuse_a_file(tmp_path):
    never = pa.array([2**62], pa.timestamp("us"))
    meta = pa.StructArray.from_arrays([never, pa.array(["x"])], ["added", "set"])
    pq.write_table(pa.table({"text": ["a"], "added": never, "meta": meta}), tmp_path / "c.parquet")
    assert Corpus.read(tmp_path / "c.parquet").documents[0].text == "a"


def test_a_few_bytes_that_claim_many_rows_are_refused_before_they_are_read(tmp_path, monkeypatch):
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1_000_001], pa.int32()), pa.array(["a"]))
    pq.write_table(pa.table({"text": pc.run_end_decode(runs)}), tmp_path / "c.parquet")
    assert (tmp_path / "c.parquet").stat().st_size < 100_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CorpusError, match="has 1,000,001 rows; 1,000,000 documents are read at most"):
        Corpus.read(tmp_path / "c.parquet")


def test_a_long_text_that_is_stored_once_is_counted_each_time(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a" * 100_000] * 500}), tmp_path / "c.parquet")
    assert (tmp_path / "c.parquet").stat().st_size < 1_000_000
    few = SimpleNamespace(available=40_000_000)
    monkeypatch.setattr(corpus_files.psutil, "virtual_memory", lambda: few)
    with pytest.raises(CorpusError, match="bytes of memory as documents, and 40,000,000 are free"):
        Corpus.read(tmp_path / "c.parquet")


def test_token_ids_that_are_stored_once_are_counted_each_time(tmp_path, monkeypatch):
    pq.write_table(pa.table({"token_ids": [[1] * 1_000_000]}), tmp_path / "c.parquet")
    monkeypatch.setattr(corpus_files.psutil, "virtual_memory", lambda: SimpleNamespace(available=40_000_000))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CorpusError, match="needs about 40,001,000 bytes of memory"):
        Corpus.read(tmp_path / "c.parquet")


def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "c.jsonl").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(CorpusError, match="needs about 5,497,558,138,880 bytes of memory"):
        Corpus.read(tmp_path / "c.jsonl")


def test_folders_and_other_endings_say_how_to_convert_them(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for name, message in (
        ("saved", r"is a folder; .*datasets.load_from_disk\('FOLDER'\).to_json"),
        (".", "is a folder; a corpus is one file"),
        ("n" * 300, "cannot be read .File name too long."),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(CorpusError, match=message):
            Corpus.read(tmp_path / name)
    for ending, message in ((".jsonl.gz", "gunzip -k"), (".csv", "pandas.read_csv"), (".json", "rename it to .jsonl")):
        (tmp_path / f"c{ending}").write_text("{}")
        with pytest.raises(CorpusError, match=message):
            Corpus.read(tmp_path / f"c{ending}")


# The bundled corpus


def words(document) -> int:
    """A word: a blank-separated piece, or 1.5 characters of Chinese."""
    if document.domain == "chinese":
        return round(len(re.sub(r"\s", "", document.text)) / 1.5)
    return len(document.text.split())


def shingles(document, size: int = 8) -> Counter:
    pieces = re.sub(r"\s", "", document.text) if document.domain == "chinese" else document.text.split()
    size = size if document.domain != "chinese" else 12  # eight words of 1.5 characters
    return Counter(tuple(pieces[i : i + size]) for i in range(len(pieces) - size + 1))


def test_the_demo_corpus_has_the_documents_it_promises():
    corpus = Corpus.read("demo")
    by_domain = Counter(document.domain for document in corpus.documents)
    assert set(by_domain) == {"chinese", "code", "english", "math", "multilingual"}
    assert min(by_domain.values()) >= 24
    assert all(80 <= words(document) <= 300 for document in corpus.documents)
    languages = {
        document.source.partition(":")[0] for document in corpus.documents if document.domain == "multilingual"
    }
    assert len(languages) >= 6


def test_no_passage_of_the_demo_corpus_stands_twice():
    seen: Counter = Counter()
    for document in Corpus.read("demo").documents:
        seen.update(shingles(document))
    repeated = [" ".join(shingle) for shingle, count in seen.items() if count > 1]
    assert repeated == []
