"""A tokenizer that cannot be read says why, and token ids are recorded without it."""

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from workbench.capture.record import record
from workbench.efficiency.serving.prompts import counter
from workbench.errors import CorpusError, MeasurementError, ModelError
from workbench.models.loading import load, load_tokenizer
from workbench.recordings.corpus import Corpus, Document
from workbench.recordings.vocabulary import TokenBytes

ADDED = ("        ", "  ", "|||IP_ADDRESS|||", "<｜tool▁calls▁begin｜>", "<tool call>", "→", "é", "水")


def byte_level(*, added: tuple[str, ...] = ADDED) -> PreTrainedTokenizerFast:
    """Bytes, one special token, and tokens that were added as they stand, some outside the alphabet of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, **{character: 1 + i for i, character in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model whose vocabulary has room for the tokenizer, with the tokenizer's files beside the weights."""
    folder = tmp_path_factory.mktemp("models") / "moe"
    model = tiny.moe()
    model.module.resize_token_embeddings(300)
    model.module.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "moe")


def corpus(*texts: str) -> Corpus:
    return Corpus.from_texts(list(texts), domain="code", name="texts")


def test_added_tokens_outside_the_alphabet_of_bytes_are_recorded(saved, tmp_path):
    text = "def f(x):\n        return é + 水 → |||IP_ADDRESS||| <tool call><｜tool▁calls▁begin｜>  ü"
    recording = record(load(str(saved)), corpus(text, "second"), tmp_path / "r", check=False)
    recording.verify()
    vocabulary = recording.vocabulary.set_index("token")["bytes"]
    tokens = recording.of_document(0, ["position", "token"])
    order = np.argsort(tokens["position"])
    assert b"".join(vocabulary[token] for token in tokens["token"][order]).decode() == text


@pytest.mark.parametrize("token", [-1, 10**6, 2**31 - 1, 299])
def test_an_id_that_only_pads_the_vocabulary_has_no_bytes(token):
    assert TokenBytes(byte_level())(token) == b""


def test_a_tokenizer_without_a_table_of_ids_is_asked_once_and_believed():
    class Slow:
        all_special_ids = (0,)
        added_tokens_decoder = MappingProxyType({0: "<s>"})

        def convert_ids_to_tokens(self, token: int) -> object:
            return ["<s>", "▁word", "<0x0A>", "\ud83d", b"raw", 7][token]  # IndexError beyond

    found = [TokenBytes(Slow())(token) for token in range(7)]
    assert found == [b"<s>", b" word", b"\n", b"\\ud83d", b"raw", b"", b""]


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def of_tomorrow(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", model=content["model"] | {"merges": [{"left": "a", "right": "b"}]})


def far_id(folder: Path) -> None:
    """The library would write down two thousand million ids that are missing, and end the process."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["!"] = 2**31
    edit(folder / "tokenizer.json", model=content["model"])


def unknown_mark(folder: Path) -> None:
    mark = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    edit(folder / "tokenizer.json", post_processor=mark | {"single": single})


BROKEN = {
    "far id": (
        far_id,
        r"tokenizer.json cannot be read by .*\(its vocabulary has the id 2147483648; ids below 4,194,304 were expected",
    ),
    "unknown mark": (unknown_mark, r"tokenizer.json cannot be read by tokenizers .*\(no entry found for key"),
    "length": (
        lambda f: edit(f / "tokenizer_config.json", model_max_length="x"),
        r"tokenizer.json cannot be read by .*TypeError",
    ),
    "cut": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:900]),
        r"tokenizer.json is cut or no JSON \(.*\)\. Give 'token_ids' instead of 'text', or copy the file again, whole",
    ),
    "empty": (lambda f: (f / "tokenizer.json").write_bytes(b""), "tokenizer.json is cut or no JSON"),
    "latin": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe{}"), "tokenizer.json is cut or no JSON"),
    "config cut": (
        lambda f: (f / "tokenizer_config.json").write_text('{"tok'),
        "tokenizer_config.json is cut or no JSON",
    ),
    "newer": (
        of_tomorrow,
        r"tokenizer.json cannot be read by tokenizers [\d.]+, transformers [\d.]+ \(data did not match any variant of",
    ),
    "model missing": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        r"tokenizer.json cannot be read by tokenizers .*\(KeyError",
    ),
    "a list": (lambda f: (f / "tokenizer.json").write_text("[1]"), "tokenizer.json cannot be read by tokenizers"),
    "class": (lambda f: edit(f / "tokenizer_config.json", tokenizer_class=5), "tokenizer.json cannot be read by"),
    "none": (
        lambda f: drop(f, "tokenizer.json", "tokenizer_config.json"),
        r"none of a tokenizer's files \(tokenizer.json, .*\) lies in .*moe\. .* put the tokenizer's files beside",
    ),
    "tiktoken": (
        lambda f: (drop(f, "tokenizer.json", "tokenizer_config.json"), (f / "tokenizer.model").write_bytes(b"IQ== 0")),
        r"tokenizer.model cannot be read by tokenizers .*tiktoken.*save it where it can be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_tokenizer_that_cannot_be_read_says_why_and_ids_are_recorded(folder, tmp_path, case):
    damage, message = BROKEN[case]
    damage(folder)
    model = load(str(folder))
    assert model.tokenizer is None
    with pytest.raises(
        CorpusError, match=f"document '.*' is text, but moe has no tokenizer that can be read: {message}"
    ):
        record(model, corpus("a text"), tmp_path / "r", check=False)
    assert not (tmp_path / "r").exists()
    with pytest.raises(ModelError, match=f"has no tokenizer that can be read: {message}"):
        load_tokenizer(str(folder))
    ids = Corpus("ids", (Document("d", "x", "ids", "c", "", (5, 6, 7, 5)),))
    recording = record(model, ids, tmp_path / "r", check=False)
    assert {"<5>", "<6>", "<7>"} <= set(recording.vocabulary["text"])


def test_a_tokenizer_of_another_model_is_named_with_its_numbers(tmp_path):
    """The vocabulary has 211 rows, and the tokenizer gives ids to 264."""
    tiny.moe().module.save_pretrained(tmp_path / "moe")
    byte_level().save_pretrained(tmp_path / "moe")
    with pytest.raises(CorpusError, match=r"token ids from \d+ to 26\d; moe knows 0 to 210"):
        record(load(str(tmp_path / "moe")), corpus("→ é"), tmp_path / "r", check=False)
    assert not (tmp_path / "r").exists()


def test_a_servers_tokenizer_that_cannot_be_read_asks_for_another(folder):
    of_tomorrow(folder)
    with pytest.raises(
        MeasurementError, match=r"has no tokenizer that can be read here, .*data did not.*--moe-tokenizer"
    ):
        counter(str(folder))


def of_few_words(folder: Path) -> None:
    """A tokenizer that fails on every word but two."""
    words = Tokenizer(models.WordLevel({"the": 0, "rain": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def test_a_tokenizer_that_knows_few_words_records_them(folder, tmp_path):
    """The proof's own text has others."""
    of_few_words(folder)
    recording = record(load(str(folder)), corpus("the rain the"), tmp_path / "r")
    assert {"the", "rain"} <= set(recording.vocabulary["text"])
    with pytest.raises(MeasurementError, match=r"the tokenizer of '.*' fails on a piece .*--moe-tokenizer"):
        counter(str(folder))("snow")
