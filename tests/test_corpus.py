import json
import re
from collections import Counter

import pandas as pd
import pytest

from workbench.corpus import Corpus
from workbench.errors import CorpusError


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
        (["[1, 2]"], "line 1: got a JSON list, wanted an object"),
        (['{"text": "a", "domain": 3}'], "'domain' is 3, wanted a string"),
        (['{"token_ids": [1, "2"]}'], "'token_ids' must be a list of at least one integer"),
        (['{"token_ids": []}'], "'token_ids' must be a list of at least one integer"),
        (['{"text": "a", "id": "k"}', '{"text": "b", "id": "k"}'], "the id 'k' stands at line 1 already"),
        ([""], "no documents; at least one was wanted"),
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


def test_an_unknown_file_lists_the_bundled_corpora():
    with pytest.raises(CorpusError, match="no such file; bundled corpora: demo"):
        Corpus.read("nowhere.jsonl")


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=re.escape("the ending is '.csv'; .jsonl, .parquet, .txt can be read")):
        Corpus.read(write(tmp_path / "c.csv", "text"))


def test_a_broken_parquet_file_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="not a readable Parquet file"):
        Corpus.read(write(tmp_path / "c.parquet", "no parquet"))


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
