"""How much recording the routing slows the forward pass down: the bare model, then the same batches recorded.

The bare rounds come first, for a model that a capture has wrapped is slower even where nothing is captured; so the two
are not interleaved, and the ceilings before and after say whether the machine changed. A recording's time holds all
that `record` does, down to the files, the proof of the capture left out.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.efficiency.instruments import machine
from workbench.efficiency.instruments.clock import synchronize
from workbench.models.loading import Model
from workbench.recordings.corpus import Corpus, Document

FIELDS = ("routing",)


def recorded_rounds(
    model: Model, *, rounds: int, prompt_tokens: int, batch_tokens: int = 4096, batches: int = 2, seed: int = 0
) -> list[dict[str, Any]]:
    """A row per round and way, `bare` or `recorded`, with the seconds that all batches took.

    Args:
        model: The model, not captured from yet.
        rounds: Of each way, after one that is not kept.
        prompt_tokens: Of a document; random tokens.
        batch_tokens: Of a batch, at most.
        batches: In a round.
        seed: Of the tokens.
    """
    from workbench.capture.record import record

    rows = max(batch_tokens // prompt_tokens, 1)
    ids_DS = np.random.default_rng(seed).integers(0, model.topology.vocabulary, size=(rows * batches, prompt_tokens))
    found = []

    def kept(way: str, number: int, seconds: float) -> None:
        if number:  # the first warms up
            found.append({"way": way, "round": number - 1, "tokens": ids_DS.size, "seconds": seconds})

    given = torch.from_numpy(ids_DS).to(model.device)
    for number in range(rounds + 1):
        synchronize(model.device)
        began = machine.now()
        with torch.inference_mode():
            for ids_BS in given.split(rows):
                model.module(input_ids=ids_BS, use_cache=False)
        synchronize(model.device)
        kept("bare", number, machine.now() - began)
    documents = [
        Document(f"d{i}", "random", "random", f"d{i}", "", tuple(ids)) for i, ids in enumerate(ids_DS.tolist())
    ]
    corpus = Corpus("random", tuple(documents))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            began = machine.now()
            record(
                model, corpus, Path(folder) / str(number), fields=FIELDS, batch_tokens=rows * prompt_tokens, check=False
            )
            kept("recorded", number, machine.now() - began)
    return found
