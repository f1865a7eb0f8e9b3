"""How much recording slows a model down, and whether its memory stays flat.

    python -m tests.benchmarks.recording [--rounds 5] [--copies 1] [--memory-tokens 1000000]

Rounds interleave the bare model's plain forward (an unwrapped copy in this process, default kernels, no cache, logits
at all positions) with `record` to disk over the same batches: text of the bundled corpus, 4,096 padded tokens a batch.
A recording's time holds all that `record` does: tokenizing, digests, writing, closing, opening again; only the capture
check, made once per model, is left out and timed apart. Attention is recorded over the same text cut into documents of
1,024 tokens. The ratio of a round is its result; the median is printed with
the range of the middle half of the rounds.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

from workbench.capture.batching import make_plan
from workbench.capture.proof.model import check_capture
from workbench.capture.record import record
from workbench.models.loading import Model, load
from workbench.recordings.corpus import Corpus, Document

BATCH_TOKENS = 4096


def repeated(corpus: Corpus, copies: int) -> Corpus:
    """The corpus several times over, under other ids."""
    documents = [
        replace(document, id=f"{document.id}/{copy}", cluster=f"{document.cluster}/{copy}")
        for copy in range(copies)
        for document in corpus.documents
    ]
    return Corpus(f"{corpus.name}x{copies}", tuple(documents))


def of_length(model: Model, corpus: Corpus, n_tokens: int) -> Corpus:
    """The corpus as one text cut into documents of one length; what is left at the end is not used."""
    ids = [i for document in corpus.documents for i in model.tokenizer(document.text, verbose=False)["input_ids"]]
    cut = [tuple(ids[begin : begin + n_tokens]) for begin in range(0, len(ids) - n_tokens + 1, n_tokens)]
    documents = [Document(f"cut {i}", "text", "", f"{i}", "", part) for i, part in enumerate(cut)]
    return Corpus(f"{corpus.name}, {n_tokens} tokens each", tuple(documents))


def batches(model: Model, corpus: Corpus) -> tuple[list[dict[str, torch.Tensor]], int, float]:
    """The very batches that `record` runs, their tokens, and the share of padding."""
    encoded = [
        list(document.token_ids) if document.token_ids else model.tokenizer(document.text, verbose=False)["input_ids"]
        for document in corpus.documents
    ]
    plan = make_plan(
        [len(ids) for ids in encoded],
        [document.domain for document in corpus.documents],
        batch_tokens=BATCH_TOKENS,
        shard_tokens=65_536,
        context=model.topology.context,
    )
    made = []
    for batch in plan.batches:
        ids_BS = torch.zeros(len(batch.rows), batch.width, dtype=torch.long)
        mask_BS = torch.zeros_like(ids_BS)
        for i, row in enumerate(batch.rows):
            ids_BS[i, : row.n_tokens] = torch.tensor(encoded[row.document][: row.n_tokens])
            mask_BS[i, : row.n_tokens] = 1
        made.append({"input_ids": ids_BS, **({} if mask_BS.all() else {"attention_mask": mask_BS})})
    return made, plan.n_tokens, plan.padding_share


def forward_s(module, inputs: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of the plain forward over all batches."""
    started = time.perf_counter()
    with torch.no_grad():
        for given in inputs:
            module(**given, use_cache=False)
    return time.perf_counter() - started


def record_s(model: Model, corpus: Corpus, folder: Path, fields: tuple[str, ...]) -> float:
    """Seconds of recording the corpus to disk."""
    out = folder / "recording"
    started = time.perf_counter()
    record(model, corpus, out, fields=fields, batch_tokens=BATCH_TOKENS, check=False)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def middle_half(values: list[float]) -> str:
    """Median and quartiles."""
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{statistics.median(values):.3f} ({low:.3f}–{high:.3f})"


def main() -> None:
    """Prints the ratios and the growth of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-moe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--memory-tokens", type=int, default=1_000_000)
    asked = parser.parse_args()
    bare, traced = load(asked.model, device="cpu"), load(asked.model, device="cpu")
    check = check_capture(traced)
    corpus = repeated(Corpus.read("demo"), asked.copies)
    inputs, n_tokens, padding = batches(bare, corpus)
    print(f"{asked.model}, {torch.get_num_threads()} threads, {len(inputs)} batches, {n_tokens:,} tokens, "
          f"{padding:.1%} padding; capture check {check.seconds:.2f} s")  # fmt: skip
    long = of_length(bare, corpus, 1024)
    ways = {
        "routing": (corpus, inputs, ("routing",)),
        "routing,logprob": (corpus, inputs, ("routing", "logprob")),
        "routing,attention at 1,024 tokens": (long, batches(bare, long)[0], ("routing", "attention")),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        forward_s(bare.module, inputs[:8])
        record_s(traced, repeated(Corpus.read("demo"), 1), folder, ("routing", "logprob"))
        for _ in range(asked.rounds):
            for name, (text, given, fields) in ways.items():
                before = forward_s(bare.module, given)
                recorded = record_s(traced, text, folder, fields)
                after = forward_s(bare.module, given)
                ratios[name].append((before + after) / 2 / recorded)
        for name, values in ratios.items():
            print(f"recording {name}: {middle_half(values)} of the bare forward's tokens/s, {asked.rounds} rounds")
        memory(traced, folder, asked.memory_tokens)


def memory(model: Model, folder: Path, n_tokens: int) -> None:
    """Prints how much the process grows over a long recording, after its first tenth."""
    corpus = Corpus.read("demo")
    size = sum(len(model.tokenizer(document.text, verbose=False)["input_ids"]) for document in corpus.documents)
    process = psutil.Process()
    seen: list[tuple[int, int]] = []
    record(
        model,
        repeated(corpus, -(-n_tokens // size)),
        folder / "long",
        check=False,
        on_progress=lambda progress: seen.append((progress.done_tokens, process.memory_info().rss)),
    )
    warm = next(rss for done, rss in seen if done >= seen[-1][0] / 10)
    growth = (max(rss for _, rss in seen) - warm) / 2**20
    print(f"memory: {growth:+.0f} MiB at most over {seen[-1][0]:,} tokens, after the first tenth")


if __name__ == "__main__":
    main()
