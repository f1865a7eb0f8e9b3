"""The proof that what is captured of a model is what the model did: five checks before anything is recorded.

1. Shapes and ranges of ids and weights. 2. Logits are logits: they equal the router's linear map, and their top-k are
the chosen ids where the family's rule is plain top-k. 3. Rebuild: the experts' output, recomputed from the captured ids
and weights by another implementation than the one that ran, and the whole block with it, equal the model's. 4. Causal:
forcing another expert changes that token's logits and no earlier token's. 5. A padded batch chooses as single documents
do: on a short text, and on rows of the batches that will be run. A model that fails one is refused with family, layer,
expected and found. 1 to 4 are in `check_router.py`, 5 in `check_company.py`; that what is written equals what was
captured is proved while recording (`capture/proof/written_rows.py`).
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from workbench.capture.failures import forward_errors
from workbench.capture.proof.padding import CompanyProof, Compared, TokenRows, padded
from workbench.capture.proof.router import RouterProofs, other_implementation
from workbench.errors import ModelError
from workbench.models.library_errors import foreign_errors
from workbench.models.loading import Model
from workbench.models.rope_lengths import Borders, length_borders

TEXT = (
    "The river rose in the night. By morning 1,204 sandbags lined the bank; def fill(n): return n + 1 — "
    "水位は下がった, и мост стоял."
)
_LENGTHS = (40, 23)  # two rows of unlike length, so that one is padded


@dataclass(frozen=True)
class CheckReport:
    """What the five proofs measured; part of every recording's manifest.

    Attributes:
        routers: Routers that were checked; 0 for a dense model, of which proof 5 alone is made.
        tokens: Tokens of the check's text.
        rebuild_with: Implementation that recomputed the experts.
        logits_error: Largest relative difference of captured logits and the router's linear map.
        experts_error: Largest relative difference of the experts' rebuilt output.
        block_error: Largest relative difference of the rebuilt block's output.
        causal_change: Smallest change of a token's logits when one of its experts is replaced.
        causal_leak: Largest change of an earlier token's logits.
        padding_differences: Chosen ids that differ between a padded batch and single documents, all at borders narrower
            than the dtype's rounding.
        padding_batches: Of each batch that was compared with single documents, how many rows it had, how many of them
            were run alone, and the tokens of its longest and shortest.
        seconds: How long it took; not part of the manifest.
    """

    routers: int
    tokens: int
    rebuild_with: str
    logits_error: float
    experts_error: float
    block_error: float
    causal_change: float
    causal_leak: float
    padding_differences: int
    padding_batches: tuple[dict[str, int], ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the time it took."""
        values = asdict(self)
        del values["seconds"]
        return values


def check_capture(model: Model, *, batches: Sequence[TokenRows] = (), with_logits: bool = False) -> CheckReport:
    """Proves the capture of a model.

    Args:
        model: The model.
        batches: Token ids of rows that will be run together, longest first, for the proof that they are as alone.
        with_logits: Whether every router logit will be recorded, and must be what a recording can keep.

    Raises:
        CaptureError: names the family, the layer, what was expected and what was found, or what its code raised.
    """
    with forward_errors(model.name, "the proof of the capture"):
        return _checked(model, batches, with_logits=with_logits)


def _checked(model: Model, batches: Sequence[TokenRows], *, with_logits: bool) -> CheckReport:
    started = time.perf_counter()
    rows = _sample(model)
    proofs = RouterProofs(model, *padded(rows, model.device))
    logits_error = experts_error = block_error = 0.0
    rebuild_with = ""
    for router, capture in zip(model.topology.routers, proofs.trace.routers, strict=True):
        proofs.shapes(router, capture)
        logits_error = max(logits_error, proofs.logits(router, capture))
        rebuild_with, rebuild = other_implementation(proofs.modules[router.experts_path], router)
        experts, block = proofs.rebuild(router, capture, rebuild)
        experts_error, block_error = max(experts_error, experts), max(block_error, block)
    change, leak = proofs.causality()
    company = CompanyProof(model, proofs.tracer)
    company.left_out(proofs.trace, proofs.ids_BS, proofs.mask_BS, with_logits=with_logits)
    planned = [company.planned(batch) for batch in batches]
    compared = [company.batch(rows), *(one for one in planned if one is not None)]
    return CheckReport(
        routers=len(model.topology.routers),
        tokens=int(proofs.mask_BS.sum()),
        rebuild_with=rebuild_with,
        logits_error=logits_error,
        experts_error=experts_error,
        block_error=block_error,
        causal_change=change,
        causal_leak=leak,
        padding_differences=sum(one.differences for one in compared),
        padding_batches=tuple(_facts(one) for one in compared),
        seconds=time.perf_counter() - started,
    )


def _facts(one: Compared) -> dict[str, int]:
    return {
        "rows": len(one.lengths),
        "alone": one.rows,
        "longest": max(one.lengths),
        "shortest": min(one.lengths),
    }


def _sample(model: Model) -> list[list[int]]:
    """Token ids of two rows of unlike length that the model computes alike."""
    generator = torch.Generator().manual_seed(0)
    text_ids = _text_ids(model)
    rows = []
    for length in _lengths(length_borders(model.module), model.topology.context):
        filler = torch.randint(0, model.topology.vocabulary, (length,), generator=generator).tolist()
        rows.append((text_ids + filler)[:length])
        text_ids = text_ids[::-1]  # the second row reads the text backwards: another text, as short
    return rows


def _text_ids(model: Model) -> list[int]:
    """A text in the model's ids; none where there is no tokenizer, or one that fails on this text and not on others."""
    if model.tokenizer is None:
        return []
    with suppress(ModelError), foreign_errors("", ""):
        ids: list[int] = model.tokenizer(TEXT, verbose=False)["input_ids"]
        return [token for token in ids if token < model.topology.vocabulary]  # a tokenizer may know more
    return []


def _lengths(borders: Borders, context: int | None) -> tuple[int, int]:
    """The lengths of the two rows: those above, shortened until both lie on one side of the model's borders."""
    longest, shortest = (min(length, context or length) for length in _LENGTHS)
    while longest > 2 and borders.side(longest) != borders.side(shortest):
        longest -= 1
        shortest = min(shortest, (longest + 1) // 2)
    return longest, shortest
