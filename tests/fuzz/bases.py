"""What is damaged: whole models, tokenizers, corpora and recordings, tiny and made in code."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests import tiny
from workbench.recordings.corpus import Corpus

FAMILIES = (
    "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "llama4_text", "jamba", "gpt_oss", "granitemoe",
    "phimoe", "glm4_moe", "qwen3_next",
)  # fmt: skip
"""Rules of choice, attention and block shapes that differ: groups, biases, sinks, states, shared experts."""
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>")
SENTENCES = (
    "the rain in spain stays mainly in the plain", "def area(r): return 3.14 * r ** 2", "2 + 2 = 4, and 7 * 6 = 42",
    "le chat est sur la table", "ein Haus am See", "there is no more bread\nin the house",
)  # fmt: skip


def model_folder(folder: Path, family: str = "qwen2_moe", tokenizer: str = "bpe") -> None:
    """A model of a family as `save_pretrained` leaves it, with a tokenizer beside it."""
    from tests.families import shrunk

    shrunk.build(family).module.save_pretrained(folder)
    tokenizer_files(folder, tokenizer)


def tokenizer_files(folder: Path, kind: str = "bpe") -> None:
    """A tokenizer of at most 211 ids: byte-level BPE, whole words, or pieces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    how: dict[str, Any] = {"vocab_size": 200, "special_tokens": list(SPECIAL), "show_progress": False}
    trainer: Any
    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**how)
    elif kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<pad>"))
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**how)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<pad>", **how)
    made.train_from_iterator(SENTENCES, trainer)
    made.add_tokens([AddedToken("été", normalized=False), AddedToken("中", normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    whole.save_pretrained(folder)


def short_corpus(n_documents: int = 3) -> Corpus:
    """A few short documents of token ids."""
    return tiny.corpus(n_documents=n_documents, shortest=2, longest=12)


def corpus_rows(*, with_ids: bool = False) -> list[dict[str, Any]]:
    """Documents as a corpus file has them."""
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(SENTENCES):
        row: dict[str, Any] = {"id": f"d{number}", "domain": "ab"[number % 2], "source": "made", "cluster": "c"}
        row |= {"token_ids": [number, 2, 3, 200]} if with_ids else {"text": text}
        rows.append(row)
    return rows


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    """JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@cache
def model() -> Any:
    """A tiny MoE in this process, without a tokenizer."""
    return tiny.moe()


@cache
def model_with_tokenizer(folder: str) -> Any:
    """A tiny MoE of a folder, with its tokenizer."""
    from workbench.models.loading import load

    return load(folder, device="cpu")


def recordings(base: Path) -> tuple[str, ...]:
    """Recordings that differ in what they hold; their names."""
    from workbench.capture.generate import Generation
    from workbench.capture.record import record
    from workbench.recordings.fields import FIELDS
    from workbench.recordings.importers.build import import_trace

    made = tiny.corpus(n_documents=10, shortest=4, longest=24)
    how: dict[str, Any] = {"check": False, "batch_tokens": 96, "shard_tokens": 60}
    record(tiny.moe(), made, base / "whole", fields=FIELDS, parent=tiny.dense(n_layers=3), **how)
    record(tiny.moe(), made, base / "plain", **how)
    record(tiny.dense(), tiny.corpus(n_documents=3), base / "dense", fields=("logprob",), check=False)
    record(tiny.moe(), bases_text(3), base / "written", generation=Generation(3, 0.0, 0), check=False)
    traces = base.parent / "traces"
    traces.mkdir(exist_ok=True)
    for name, (kind, file, options) in write_traces(traces).items():
        if name in ("npz", "stat"):
            import_trace(kind, file, base / f"imported-{name}", **options)
    shutil.rmtree(traces)
    return tuple(sorted(found.name for found in base.iterdir()))


def bases_text(n_documents: int) -> Corpus:
    """Documents of one length, as writing behind them wants it."""
    return tiny.corpus(n_documents=n_documents, shortest=6, longest=7)


def write_traces(folder: Path) -> dict[str, tuple[str, Path, dict[str, Any]]]:
    """A small trace of every format: name → format, file and the options it needs."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.importers import sources

    ids_TLK, layers = sources.IDS_TLK, sources.LAYERS
    np.save(folder / "experts.npy", ids_TLK.astype(np.int16))
    (folder / "lines.jsonl").write_text(f"{sources.olmoe_line()}\n{sources.olmoe_line(ids_TLK[:2], [1, 2])}\n")
    columns = {f"layer{layer:02d}.ids": ids_TLK[:, at].tolist() for at, layer in enumerate(layers)}
    columns |= {"token": sources.TOKENS, "position": [0, 1, 2, 0, 1], "document": ["a", "a", "a", "b", "b"]}
    columns |= {"phase": ["prefill"] * 5, "layer01.weights": [[0.5, 0.25]] * 5, "layer02.weights": [[0.5, 0.25]] * 5}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    given: dict[str, Any] = {"layers": layers, "n_experts": sources.E}
    return {
        "npz": ("numpy", sources.numpy_file(folder / "arrays.npz"), {"n_experts": sources.E}),
        "npy": ("routed-experts", folder / "experts.npy", given),
        "olmoe": ("olmoe", folder / "lines.jsonl", {"n_experts": sources.E}),
        "parquet": ("parquet", folder / "rows.parquet", {"n_experts": sources.E}),
        "token": ("sglang", sources.sglang_file(
            folder / "token.pt", sources.sglang_record(ids_TLK[:3], [7, 8, 9]),
            sources.sglang_record(ids_TLK[3:], [7, 6], extend_seq_lens=None, forward_mode=2, forward_pass_id=2),
        ), {}),
        "rids": ("sglang", sources.sglang_file(
            folder / "rids.pt",
            sources.sglang_record(
                ids_TLK[:3], [7, 8, 9], positions=[0, 1, 0], extend_seq_lens=[2, 1], rids=["req_1", "req_2"]
            ),
            sources.sglang_record(
                ids_TLK[3:], [7, 6], positions=[2, 1], extend_seq_lens=None, forward_mode=2, forward_pass_id=2,
                rids=["req_1", "req_2"],
            ),
        ), {}),
        "stat": ("sglang", sources.stat_file(
            folder / "stat.pt", np.stack([np.concatenate([np.zeros((1, 4)), sources.COUNTS_LE])] * 2)), {"top_k": 2}),
    }  # fmt: skip
