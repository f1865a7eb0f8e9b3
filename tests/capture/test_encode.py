"""From text to ids: one mark where a text brings its own, and what a tokenizer cannot read is named."""

from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests import tiny
from workbench.capture import encode as encoding
from workbench.capture.encode import encode
from workbench.capture.record import record
from workbench.errors import CorpusError
from workbench.models.loading import from_module
from workbench.recordings.corpus import Corpus, Document

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "<lang>": 5}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One that puts marks around a text, as `template` says, in which $A is the text."""
    plain = Tokenizer(WordLevel(WORDS, "<unk>"))
    plain.pre_tokenizer = WhitespaceSplit()
    plain.post_processor = TemplateProcessing(
        single=template, special_tokens=[(name, WORDS[name]) for name in ("<s>", "</s>", "<lang>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<lang>"],
    )  # fmt: skip


def model(template: str):
    return from_module(tiny.moe().module, name="tiny", tokenizer=tokenizer(template))


@pytest.mark.parametrize(
    ("template", "text", "ids", "n_marked"),
    [
        ("<s> $A", "a b", [1, 3, 4], 0),
        ("<s> $A", "<s> a b", [1, 3, 4], 1),
        ("<s> $A", "<s>a b", [1, 3, 4], 1),
        ("<s> $A", "<s>", [1], 1),
        ("<s> $A", "<s> <s> a", [1, 1, 3], 1),  # the text's own second one is kept
        ("<s> $A", "a <s> b", [1, 3, 1, 4], 0),
        ("<s> $A </s>", "<s> a </s>", [1, 3, 2], 1),
        ("<s> $A </s>", "a </s>", [1, 3, 2], 1),
        ("$A </s>", "a </s> b </s>", [3, 2, 4, 2], 1),
        ("<s> <lang> $A", "<s> <lang> a", [1, 5, 3], 1),
        ("<s> <lang> $A", "<s> a", [1, 5, 3], 1),
        ("$A", "<s> a", [1, 3], 0),
        ("$A", "<s> <s> a", [1, 1, 3], 0),
    ],
)
def test_marks_that_the_text_brings_are_not_added_again(template, text, ids, n_marked):
    found = encode(Corpus.from_texts([text]), model(template))
    assert found.ids[0].tolist() == ids
    assert (found.n_marked, found.lengths) == (n_marked, (len(ids),))


def test_how_many_texts_brought_marks_stands_in_the_manifest(tmp_path):
    marked, plain = Corpus.from_texts(["<s> a b", "a b"]), Corpus.from_texts(["b a", "a b"])
    made = record(model("<s> $A"), marked, tmp_path / "marked")
    assert made.manifest["tokenizer"]["marks_not_doubled"] == made.manifest["identity"]["marks_not_doubled"] == 1
    assert (made.column("token") == 1).sum() == 2
    other = record(model("<s> $A"), plain, tmp_path / "plain")
    assert other.manifest["tokenizer"]["marks_not_doubled"] == 0
    assert "marks_not_doubled" not in other.manifest["identity"]


@pytest.mark.parametrize(
    "error",
    [KeyError("Ġ"), ValueError("bad text\nsecond line"), TypeError("x"), RecursionError("deep"), MemoryError(),
     type("PanicException", (BaseException,), {})("range end index 4")],
)  # fmt: skip
def test_a_tokenizer_that_fails_names_the_document(tmp_path, error):
    def failing(text, **_):
        if "b" in text:
            raise error
        return {"input_ids": [1, 3]}

    broken = from_module(tiny.moe().module, name="tiny")
    object.__setattr__(broken, "tokenizer", failing)
    corpus = Corpus("mine", (Document("x1", "d", "", "x1", "a"), Document("x2", "d", "", "x2", "b")))
    with pytest.raises(CorpusError, match=r"mine: the tokenizer of tiny fails on document 'x2' \(\w+: .*\)\. Look for"):
        encode(corpus, broken)


def test_a_user_who_interrupts_is_not_told_of_the_tokenizer():
    def interrupted(text, **_):
        raise KeyboardInterrupt

    broken = SimpleNamespace(name="tiny", tokenizer=interrupted, topology=tiny.moe().topology)
    with pytest.raises(KeyboardInterrupt):
        encode(Corpus.from_texts(["a"]), broken)


def test_of_a_long_text_only_what_can_be_recorded_is_kept():
    found = encode(Corpus.from_texts(["a " * 5000, "b"]), model("<s> $A"), limit=100)
    assert [len(ids) for ids in found.ids] == [100, 2]
    assert found.lengths == (5001, 2)
    assert found.ids[0].dtype == np.int32


def test_a_text_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(encoding, "_MOST_CHARACTERS", 20)
    with pytest.raises(CorpusError, match="has 24 characters; at most 20 are read. Cut it into documents"):
        encode(Corpus.from_texts(["a b " * 6]), model("$A"))
