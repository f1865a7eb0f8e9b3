"""Tokenizers: vocabularies with holes, added tokens outside the alphabet, rules of another version, damaged files."""

import json
import shutil
from pathlib import Path
from random import Random

from tests.fuzz import bases
from tests.fuzz.kinds.model import record_with
from tests.fuzz.mutate import NUMBERS, TEXTS, as_json, damaged, held_object, mutated
from tests.fuzz.trial import Trial
from workbench.models.loading import load, load_tokenizer
from workbench.recordings.corpus import Corpus

KINDS = ("bpe", "words", "pieces")


def prepare(base: Path) -> None:
    """A model with a tokenizer of each kind."""
    for kind in KINDS:
        bases.model_folder(base / kind, tokenizer=kind)


def run(trial: Trial) -> None:
    """Damages a tokenizer, reads it, and records text with it."""
    rng = trial.rng
    folder = trial.inputs / "model"
    shutil.copytree(trial.base / rng.choice(KINDS), folder)
    trial.untouched = rng.random() < 0.03
    for _ in range(0 if trial.untouched else rng.choice((1, 1, 2))):
        change = rng.choice(CHANGES)
        trial.note(change.__name__)
        change(rng, folder)
    out = trial.out / "recording"
    if rng.random() < 0.15:
        corpus = bases.write_rows(trial.inputs / "corpus.jsonl", bases.corpus_rows(with_ids=rng.random() < 0.5))
        if not trial.command("record", str(folder), "--corpus", str(corpus), "--out", str(out)):
            trial.refuse_leftovers(out, whole=False)
        return
    trial.attempt("tokenizer", load_tokenizer, str(folder))
    model = trial.attempt("load", load, str(folder), device="cpu")
    if model is not None:
        record_with(trial, model, out, trial.attempt("texts", Corpus.from_texts, _texts(rng)))


def _texts(rng: Random) -> list[str]:
    plain = [text for text in TEXTS if text.strip() and "\ud800" not in text and len(text) < 400]
    return [*rng.sample(bases.SENTENCES, 2), f"été 中 {rng.choice(plain)}", "<s></s><|im_start|> a"]


def tokenizer_json(rng: Random, folder: Path) -> None:
    """Anything in tokenizer.json."""
    file = folder / "tokenizer.json"
    file.write_bytes(as_json(rng, mutated(rng, held_object(file))))


def parts(rng: Random, folder: Path) -> None:
    """A rule that is not known, or of another kind."""
    file = folder / "tokenizer.json"
    held = held_object(file)
    part = rng.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "truncation", "padding"))
    held[part] = rng.choice((
        None, {}, {"type": "No"}, {"type": "ByteLevel"}, {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "Sequence", "normalizers": []},
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False},
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, {"type": "Prepend", "prepend": "▁"},
        {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}, mutated(rng, held.get(part)),
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}, {"type": "Unigram", "vocab": [], "unk_id": 5},
    ))  # fmt: skip
    file.write_text(json.dumps(held), encoding="utf-8")


def vocabulary(rng: Random, folder: Path) -> None:
    """Ids that are missing, doubled, negative or too large; tokens that are no text."""
    file = folder / "tokenizer.json"
    held = held_object(file)
    model = held.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict) and vocab:
        for token in rng.sample(sorted(vocab), min(len(vocab), rng.choice((1, 3, 50)))):
            kind = rng.choice(("drop", "number", "double", "name"))
            value = vocab.pop(token)
            if kind == "number":
                vocab[token] = rng.choice([each for each in NUMBERS if isinstance(each, int)])
            elif kind == "double":
                vocab[token] = 0
            elif kind == "name":
                vocab[rng.choice(TEXTS)] = value
    elif isinstance(vocab, list) and vocab:
        vocab[rng.randrange(len(vocab))] = rng.choice((["a", "b"], ["", 0.0], "a", ["a", -1e308], []))
    file.write_text(json.dumps(held), encoding="utf-8")


def added(rng: Random, folder: Path) -> None:
    """Added tokens: outside the alphabet, without text, at ids that are taken or beyond."""
    file = folder / "tokenizer.json"
    held = held_object(file)
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": rng.random() < 0.3}
    if not isinstance(held.get("added_tokens"), list):
        held["added_tokens"] = []
    for _ in range(rng.choice((1, 2, 20))):
        place = rng.choice((len(held["added_tokens"]), 0, 205, 210, 211, 10**6, 2**32 - 1))
        held["added_tokens"].append({**token, "id": place, "content": rng.choice((*TEXTS, "the", "日本", "\u200d"))})
    file.write_text(json.dumps(held), encoding="utf-8")


def stated(rng: Random, folder: Path) -> None:
    """Anything in tokenizer_config.json: classes, special tokens, lengths, templates."""
    file = folder / "tokenizer_config.json"
    held = held_object(file)
    if rng.random() < 0.5:
        held |= rng.choice((
            {"tokenizer_class": rng.choice(("LlamaTokenizer", "GPT2Tokenizer", "NoSuch", "", None, 3, "Qwen2Tokenizer",
                                            "T5Tokenizer", "BertTokenizer", "MistralCommonTokenizer"))},
            {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, {"model_max_length": rng.choice(NUMBERS)},
            {"bos_token": rng.choice((None, "", "no such", {"content": "<s>"}, {"__type": "AddedToken"}, 3, ["a"]))},
            {"add_bos_token": True, "add_eos_token": True}, {"chat_template": "{{ 1/0 }}"},
            {"extra_special_tokens": ["a"]},
            {"added_tokens_decoder": {"0": {"content": "x"}, "a": {"content": "y"}, "999999": {"content": "z"}}},
            {"padding_side": "up"}, {"model_input_names": "input_ids"}, {"clean_up_tokenization_spaces": "maybe"},
            {"backend": "sentencepiece"}, {"tokenizer_file": "/etc/passwd"}, {"vocab_file": "../../x"},
        ))  # fmt: skip
        file.write_text(json.dumps(held), encoding="utf-8")
    else:
        file.write_bytes(as_json(rng, mutated(rng, held)))


def files(rng: Random, folder: Path) -> None:
    """Files that are missing, damaged, or of another tokenizer."""
    file = folder / rng.choice(("tokenizer.json", "tokenizer_config.json"))
    kind = rng.choice(("delete", "damage", "damage", "empty", "vocab", "sentencepiece", "special", "template"))
    if kind == "delete":
        file.unlink(missing_ok=True)
    elif kind == "damage" and file.is_file():
        file.write_bytes(damaged(rng, file.read_bytes()))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "vocab":
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "vocab.json").write_bytes(as_json(rng, mutated(rng, {"a": 0, "b": 1, "ab": 2})))
        (folder / "merges.txt").write_text(rng.choice(("#version: 0.2\na b\n", "a b", "a", "a b c\n", "")))
    elif kind == "sentencepiece":
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "tokenizer.model").write_bytes(rng.randbytes(rng.choice((0, 100, 5_000))))
    elif kind == "special":
        (folder / "special_tokens_map.json").write_bytes(as_json(rng, mutated(rng, {"bos_token": "<s>", "a": ["b"]})))
        (folder / "added_tokens.json").write_bytes(as_json(rng, mutated(rng, {"<x>": 205, "<y>": 206})))
    else:
        (folder / "chat_template.jinja").write_bytes(rng.choice((b"{{ 1/0 }}", b"{%", b"\xff\xfe", b"")))


CHANGES = (tokenizer_json, tokenizer_json, parts, vocabulary, vocabulary, added, added, stated, files)
