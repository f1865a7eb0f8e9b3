"""The proof that a document's result does not depend on its company: alone and in a padded batch it is the same.

Proof 5 of `check.py`. It is made on a short text, and on rows of the batches that a recording will run, in their own
lengths and shapes: what follows the longest row of a batch, or the number of its rows, shows there alone. Two correct
ways differ by rounding; where rounding decides between two experts, what comes behind that token is compared no more.

Axes: B rows, S positions, T tokens, E experts, K chosen per token, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.capture.failures import out_of_memory
from workbench.capture.hooks import RouterCapture, Trace, Tracer
from workbench.capture.proof.router import failure, relative_error
from workbench.capture.routing import BatchTokens, routing_columns, selection
from workbench.models.loading import Model
from workbench.models.topology import Router
from workbench.recordings.schema import prefix

TokenRows = Sequence[Sequence[int]]

_FLOAT32_ROUNDING = 1e-4  # of the largest router logit: sums of other order, through all layers
_FLOAT32_OFF = 1e-3  # of logits that should be equal
_NARROW_SHARE = 0.02  # of tokens whose experts may differ beyond rounding in 16 bits, for a changed one changes others
_NARROW_OFF = 0.1  # of the model's logits, for half of the tokens


@dataclass(frozen=True)
class Compared:
    """One batch that was proved.

    Attributes:
        lengths: Tokens of its rows, longest first.
        rows: How many of its rows were also run alone.
        differences: Chosen ids that differ, all at borders narrower than rounding.
    """

    lengths: tuple[int, ...]
    rows: int
    differences: int


class CompanyProof:
    """The proof over one model.

    Args:
        model: The model.
        tracer: Of the model.
    """

    def __init__(self, model: Model, tracer: Tracer) -> None:
        self.model, self.tracer = model, tracer
        self.exact = model.module.dtype == torch.float32

    def planned(self, rows: TokenRows) -> Compared | None:
        """As `batch`, of every second row as long as memory is short; None where two rows are too many.

        A recording halves such batches too, and where no two rows fit, none has company.
        """
        while len(rows) > 1:
            try:
                return self.batch(rows)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            torch.cuda.empty_cache()
            rows = [*rows[:-1:2], rows[-1]] if len(rows) > 2 else rows[:1]
        return None

    def batch(self, rows: TokenRows) -> Compared:
        """Runs rows together, and the longest and the shortest of them alone.

        Raises:
            CaptureError: a row's result depends on its company.
        """
        ids_BS, mask_BS = padded(rows, self.model.device)
        whole = bool(mask_BS.all())
        # The model's own logits at all positions of a large batch may not fit, where nobody asked for them.
        keep = 1 if self.model.topology.routers and len(rows) > 2 else 0
        together = self.tracer.run(ids_BS, None if whole else mask_BS, logits_to_keep=keep)
        chosen = dict.fromkeys((0, len(rows) - 1))
        differences = sum(self.row(index, len(rows[index]), ids_BS, together) for index in chosen)
        return Compared(tuple(len(row) for row in rows), len(chosen), differences)

    def row(self, index: int, length: int, ids_BS: torch.Tensor, together: Trace) -> int:
        """One row alone against itself in the batch; returns the ids that differ."""
        width = ids_BS.shape[1]
        alone = self.tracer.run(ids_BS[index : index + 1, :length])
        differences, stop = 0, length  # behind `stop` rounding has parted the two
        pairs = zip(self.model.topology.routers, together.routers, alone.routers, strict=True)
        for router, padded_capture, single in pairs:
            rows = slice(index * width, index * width + length)
            differs_S = self.differing(router, padded_capture, single, rows, stop)
            differences += int(differs_S.sum())
            if self.exact:
                stop = min([stop, *differs_S.any(-1).nonzero().reshape(-1).tolist()])
                self.same_logits(router, padded_capture.logits_TE[rows][:stop], single.logits_TE[:stop], length)
        if together.logits.shape[1] == width:
            self.same_output(together.logits[index, :stop].float(), alone.logits[0, :stop].float(), length)
        return differences

    def differing(
        self, router: Router, together: RouterCapture, single: RouterCapture, rows: slice, stop: int
    ) -> torch.Tensor:
        """Which chosen ids differ, bool [S, K], of positions before `stop`: none where rounding does not explain it."""
        together_SK, single_SK = (ids.sort(-1).values[:stop] for ids in (together.ids_TK[rows], single.ids_TK))
        off_SK = together_SK.to(single_SK.device) != single_SK
        differs_S = off_SK.any(-1)
        if not bool(differs_S.any()):
            return off_SK
        border_N, allowed_N = self.borders(router, single, differs_S)
        wrong = int((border_N > allowed_N).sum())
        if wrong > (0 if self.exact else _NARROW_SHARE * len(differs_S)):
            raise failure(
                self.model,
                router,
                proof="padding",
                expected="the same experts for a document alone and in a padded batch",
                found=f"{int(differs_S.sum())} of {len(differs_S)} tokens with others in a row of "
                f"{rows.stop - rows.start} tokens, at logit borders up to {float(border_N.max()):.2g} where "
                f"{float(allowed_N.max()):.2g} could be rounding",
            )
        return off_SK

    def borders(
        self, router: Router, single: RouterCapture, differs_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of tokens with other experts: the gap between the last chosen and the next, and what rounding can move."""
        # Where nothing is added to the scores, logits are compared: there rounding is even.
        value_SE = single.logits_TE.float() if single.bias_E is None else selection(router, single)
        value_NE = value_SE[: len(differs_S)][differs_S].sort(-1, descending=True).values
        border_N = value_NE[:, router.top_k - 1] - value_NE[:, min(router.top_k, value_NE.shape[-1] - 1)]
        rounding = _FLOAT32_ROUNDING if self.exact else 8 * torch.finfo(self.model.module.dtype).eps
        allowed_N = rounding * torch.where(torch.isfinite(value_NE), value_NE, 0).abs().amax(-1)
        return border_N.nan_to_num(0.0, torch.inf), allowed_N  # of masked experts none is nearer than the other

    def same_logits(self, router: Router, together_SE: torch.Tensor, single_SE: torch.Tensor, length: int) -> None:
        """A router's logits are the same."""
        off = relative_error(together_SE, single_SE)
        if off > _FLOAT32_OFF:
            raise failure(
                self.model,
                router,
                proof="padding",
                expected="the same router logits for a document alone and in a padded batch",
                found=f"a relative difference of {off:.2g} in a row of {length} tokens",
            )

    def same_output(self, together_SV: torch.Tensor, single_SV: torch.Tensor, length: int) -> None:
        """The model's logits are the same."""
        if not len(single_SV):
            return
        scale_S = single_SV.abs().amax(-1).clamp(min=1e-30)
        off_S = (together_SV.to(single_SV.device) - single_SV).abs().amax(-1) / scale_S
        off = float(off_S.max() if self.exact else off_S.median())
        if off > (_FLOAT32_OFF if self.exact else _NARROW_OFF):
            raise failure(
                self.model,
                None,
                proof="padding",
                expected="the same logits of the model for a document alone and in a padded batch",
                found=f"a relative difference of {off:.2g} in a row of {length} tokens",
            )

    def left_out(self, trace: Trace, ids_BS: torch.Tensor, mask_BS: torch.Tensor, *, with_logits: bool = False) -> None:
        """What is kept of a padded batch are its tokens, and none of its padding; a recording can keep it."""
        lengths_B = mask_BS.sum(-1)
        batch, facts = BatchTokens(ids_BS, lengths_B), self.model.topology
        tokens, documents = routing_columns(trace, batch, facts, with_logits=with_logits)
        for router in facts.routers:
            at, wanted_B = prefix(router, facts), (lengths_B * router.top_k).tolist()
            kept_B, n_rows = documents[f"{at}.counts"].sum(-1).tolist(), len(tokens[f"{at}.ids"])
            if kept_B != wanted_B or n_rows != int(lengths_B.sum()):
                raise failure(
                    self.model,
                    router,
                    proof="padding",
                    expected=f"{int(lengths_B.sum())} tokens of the padded batch, {wanted_B} assignments a document",
                    found=f"{n_rows} and {kept_B}: padding was kept, or tokens were lost",
                )


def padded(rows: TokenRows, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of rows, padded on the right to the longest."""
    width = max(len(row) for row in rows)
    ids_BS, mask_BS = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    for index, row in enumerate(rows):
        ids_BS[index, : len(row)] = torch.as_tensor(row)
        mask_BS[index, : len(row)] = 1
    return ids_BS.to(device), mask_BS.to(device)
