"""Prompts of one length for a timed run: pieces of a corpus, random tokens, or one prompt in every row.

What the prompts are decides which experts a batch meets, so it stands in the manifest. Axes: B rows, S positions.
"""

import numpy as np
import torch

from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError
from workbench.models.library_errors import foreign_errors
from workbench.models.loading import Model
from workbench.recordings.corpus import Corpus


def kind_of(model: Model, asked: str) -> str:
    """What `auto` means for a model: the bundled corpus where it has weights and a tokenizer, else random tokens."""
    if asked != "auto":
        return asked
    return "demo" if model.weights == "checkpoint" and model.tokenizer is not None else "random"


def prompts(model: Model, point: Point, *, kind: str = "auto", seed: int = 0) -> torch.Tensor:
    """Token ids [B, S] on the model's device.

    Args:
        model: Whose tokens they are.
        point: How many, how long.
        kind: `random` (each token drawn evenly), `identical` (one such row, B times), a corpus' name or file (its
            documents joined, each row from a place of its own), or `auto`.
        seed: Of the drawing.

    Raises:
        MeasurementError: a corpus is named and the model has no tokenizer, or it is shorter than one prompt.
        CorpusError: the corpus cannot be read.
    """
    kind = kind_of(model, kind)
    rng = np.random.default_rng(seed)
    shape = (point.batch, point.prompt_tokens)
    if kind in ("random", "identical"):
        ids_BS = rng.integers(0, model.topology.vocabulary, size=shape)
        ids_BS = np.broadcast_to(ids_BS[:1], shape) if kind == "identical" else ids_BS
    else:
        ids_BS = _of_corpus(model, kind, shape)
    return torch.from_numpy(np.array(ids_BS, dtype=np.int64)).to(model.device)


def _of_corpus(model: Model, name: str, shape: tuple[int, int]) -> np.ndarray:
    corpus = Corpus.read(name)
    joined: list[int] = []
    for document in corpus.documents:
        if document.token_ids is None and model.tokenizer is None:
            raise MeasurementError(
                f"{model.name} has no tokenizer to read the corpus {name!r} with: {model.tokenizer_problem} Or give "
                "--prompts random or identical."
            )
        if document.token_ids is not None:
            joined += document.token_ids
            continue
        with foreign_errors(
            f"{model.name}: the tokenizer fails on document {document.id!r} of {name!r}",
            "Take it out, or give --prompts random or identical.",
            kind=MeasurementError,
        ):
            joined += model.tokenizer(document.text, verbose=False)["input_ids"]  # type: ignore[misc]
    largest, known = max(joined, default=0), model.topology.vocabulary
    if largest >= known:
        raise MeasurementError(
            f"the corpus {name!r} has the token id {largest}, and {model.name} knows 0 to {known - 1}: its tokenizer "
            "or its ids are of another model. Give --prompts random or identical."
        )
    rows, width = shape
    if len(joined) < width:
        raise MeasurementError(
            f"the corpus {name!r} has {len(joined):,} tokens, fewer than one prompt of {width:,}; shorten it with "
            "--prompt-length, or give --prompts random."
        )
    # spread over the whole text, so that rows are of different documents and domains; a row starts where another
    # ends only if there is too little text for all
    start_B = np.linspace(0, len(joined) - width, rows).astype(int)
    return np.array(joined)[start_B[:, None] + np.arange(width)]
