"""From captured tensors to the columns of a recording: what is kept of each token, and each document's sums.

Runs on the model's device; only the small results come back. The definitions are those of `metrics/router.py`, which is
the plain twin that the tests hold this against.

Axes: B rows, S positions, T valid tokens (padding dropped, row by row), E experts, K chosen, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.capture.hooks import RouterCapture, Trace
from workbench.errors import CaptureError
from workbench.models.topology import Router, Topology
from workbench.recordings.schema import id_dtype, prefix

_CHUNK_VALUES = 2**22  # float32 values of a chunk of logits: stays in a CPU's cache and is nothing on a GPU


@dataclass(frozen=True)
class BatchTokens:
    """Where the valid tokens of a padded batch are.

    Attributes:
        ids_BS: Token ids, padded on the right.
        lengths_B: Tokens of each row.
    """

    ids_BS: torch.Tensor
    lengths_B: torch.Tensor

    @property
    def mask_BS(self) -> torch.Tensor:
        """True for tokens."""
        return torch.arange(self.ids_BS.shape[1], device=self.ids_BS.device) < self.lengths_B[:, None]

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return bool((self.lengths_B < self.ids_BS.shape[1]).any())


def router_scores(logits_TE: torch.Tensor, scoring: str, *, divided: bool = True) -> torch.Tensor:
    """Scores of the logits, float32: a softmax, or sigmoids or roots of softplus.

    Args:
        logits_TE: Router logits.
        scoring: Of `Router.scoring`.
        divided: Whether scores that do not sum to 1 by themselves are divided by their sum.
    """
    if scoring == "softmax":
        return logits_TE.float().softmax(-1)
    logits_TE = logits_TE.float()
    score_TE = logits_TE.sigmoid() if scoring == "sigmoid" else torch.nn.functional.softplus(logits_TE).sqrt()
    return score_TE / score_TE.sum(-1, keepdim=True) if divided else score_TE


def selection(router: Router, capture: RouterCapture) -> torch.Tensor:
    """What the top-k compares, [T, E], float32: scores or logits, with the correction bias where there is one.

    Groups and hashes are not in it: they may choose an expert over one that has more of this.
    """
    if router.choice == "logits":
        value_TE = capture.logits_TE.float()
    else:
        value_TE = router_scores(capture.logits_TE, router.scoring, divided=False)
    return value_TE if capture.bias_E is None else value_TE + capture.bias_E.to(value_TE.device)


def routing_columns(
    trace: Trace, batch: BatchTokens, topology: Topology, *, with_logits: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The routing columns of a batch: of its tokens and of its documents.

    Raises:
        CaptureError: router logits or weights of a token are not finite, or a router chose other than K experts; names
            layer and row.
    """
    mask_BS = batch.mask_BS
    index_T = mask_BS.reshape(-1).nonzero().squeeze(-1) if batch.padded else None
    row_T = torch.arange(len(mask_BS), device=mask_BS.device).repeat_interleave(batch.lengths_B)
    tokens: dict[str, np.ndarray] = {}
    documents: dict[str, np.ndarray] = {}
    for router, capture in zip(topology.routers, trace.routers, strict=True):
        at = prefix(router, topology)
        if (found := capture.ids_TK.shape[-1]) != router.top_k:
            raise CaptureError(
                f"layer {router.layer} ({router.router_path}) chose {found} experts for each token, and {router.top_k} "
                "by the model's config. The class has a number of its own; mend the config."
            )
        of_tokens, of_documents = _reduce_router(
            router, capture, index_T, row_T, n_rows=len(mask_BS), with_logits=with_logits
        )
        tokens |= {f"{at}.{name}": value for name, value in of_tokens.items()}
        documents |= {f"{at}.{name}": value for name, value in of_documents.items()}
    return tokens, documents


def _reduce_router(
    router: Router,
    capture: RouterCapture,
    index_T: torch.Tensor | None,
    row_T: torch.Tensor,
    *,
    n_rows: int,
    with_logits: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    def valid(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(row_T.device)
        return tensor if index_T is None else tensor[index_T]

    logits_TE = valid(capture.logits_TE).float()
    ids_TK = valid(capture.ids_TK).long()
    weights_TK = valid(capture.weights_TK).float()
    # Minus infinity masks an expert, and is as it should be; not all of a token's experts can be masked.
    known_T = (torch.isfinite(logits_TE) | torch.isneginf(logits_TE)).all(-1) & torch.isfinite(logits_TE).any(-1)
    known_T &= torch.isfinite(weights_TK).all(-1)
    if not bool(known_T.all()):
        row = int(row_T[~known_T][0])
        raise CaptureError(
            f"layer {router.layer} ({router.router_path}): router logits or weights are NaN or infinite in row "
            f"{row} of a batch. The weights are broken or the dtype is too narrow; try --dtype float32 or bfloat16."
        )
    score_TE = router_scores(logits_TE, router.scoring)
    selection_TE = valid(selection(router, capture))
    chosen_TK = selection_TE.gather(-1, ids_TK)
    others_TE = selection_TE.scatter(-1, ids_TK, -torch.inf)
    margin_T = chosen_TK.amin(-1) - others_TE.amax(-1)
    if not router.has_margin:
        margin_T = torch.full_like(margin_T, torch.nan)
    # Where every expert not chosen is masked, there is none to be next to.
    margin_T = torch.where(torch.isfinite(others_TE).any(-1), margin_T, torch.nan)
    counts = torch.bincount(
        (row_T[:, None] * router.n_experts + ids_TK).reshape(-1), minlength=n_rows * router.n_experts
    )
    weight_sum = torch.zeros(n_rows * router.n_experts, dtype=torch.float64, device=row_T.device)
    weight_sum.index_add_(0, (row_T[:, None] * router.n_experts + ids_TK).reshape(-1), weights_TK.reshape(-1).double())
    score_sum = torch.zeros(n_rows, router.n_experts, dtype=torch.float64, device=row_T.device)
    score_sum.index_add_(0, row_T, score_TE.double())

    def half(values: torch.Tensor, name: str) -> np.ndarray:
        return as_half(values, name, layer=router.layer)

    tokens = {
        "ids": ids_TK.to(torch.int32).cpu().numpy().astype(id_dtype(router.n_experts)),
        "weights": half(weights_TK, "weights"),
        "entropy": half(torch.special.entr(score_TE).sum(-1), "entropy"),
        "margin": half(margin_T, "margin"),
        "topk_mass": half(score_TE.gather(-1, ids_TK).sum(-1), "topk_mass"),
        "logsumexp": (
            logits_TE.logsumexp(-1)
            if router.scoring == "softmax"
            else torch.full((len(logits_TE),), torch.nan, device=logits_TE.device)
        )
        .cpu()
        .numpy(),
    }
    if capture.shared_gate_T is not None:
        tokens["shared_gate"] = half(valid(capture.shared_gate_T).float().sigmoid(), "shared_gate")
    if with_logits:
        tokens["logits"] = half(logits_TE, "logits")
    documents = {
        "counts": counts.reshape(n_rows, -1).to(torch.int32).cpu().numpy(),
        "score_sum": score_sum.float().cpu().numpy(),
        "weight_sum": weight_sum.reshape(n_rows, -1).float().cpu().numpy(),
    }
    return tokens, documents


def as_half(values: torch.Tensor, name: str, *, layer: int) -> np.ndarray:
    """Values as a recording keeps them on disk: float16.

    Raises:
        CaptureError: a finite value is beyond float16; names layer and column.
    """
    found = values.to(torch.float16)
    lost = torch.isinf(found) & torch.isfinite(values)
    if bool(lost.any()):
        advice = {
            "logits": "Record without the field 'logits': ids, weights and entropies are kept then.",
            "contribution": "Record without the field 'experts'.",
            "distance": "Record without the field 'attention-tokens', or with a smaller --batch-tokens.",
        }.get(name, "Scale the router's weights, or pass them on as shares; a recording cannot keep these.")
        raise CaptureError(
            f"layer {layer}: {name} reach {float(values[lost].abs().max()):.3g}, and a recording keeps {name} as "
            f"float16, up to 65,504: they would stand as infinite on disk. {advice}"
        )
    return found.cpu().numpy()


def logprob_columns(
    logits_BSV: torch.Tensor, batch: BatchTokens
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`logprob` and `predicted` of every token, and `loss` of every document.

    Raises:
        CaptureError: a log-probability is not finite; names the row.
    """
    n_rows, width, _ = logits_BSV.shape
    device = logits_BSV.device
    logprob_BS = torch.full((n_rows, width), torch.nan, device=device)
    predicted_BS = torch.zeros((n_rows, width), dtype=torch.int32, device=device)
    ids_BS = batch.ids_BS.to(device)
    step = max(1, _CHUNK_VALUES // logits_BSV.shape[-1])
    for row in range(n_rows):
        length = int(batch.lengths_B[row])
        for start in range(0, length, step):
            stop = min(start + step, length)
            chunk_SV = logits_BSV[row, start:stop].float()
            predicted_BS[row, start:stop] = chunk_SV.argmax(-1)
            targets = ids_BS[row, start + 1 : min(stop + 1, length)]
            chunk_SV = chunk_SV[: len(targets)]
            logprob_BS[row, start + 1 : start + 1 + len(targets)] = chunk_SV.gather(-1, targets[:, None]).squeeze(
                -1
            ) - chunk_SV.logsumexp(-1)
    mask_BS = batch.mask_BS.to(device)
    scored_BS = mask_BS.clone()
    scored_BS[:, 0] = False
    broken = (scored_BS & ~torch.isfinite(logprob_BS)).any(-1)
    if bool(broken.any()):
        raise CaptureError(
            f"the model's logits are NaN or infinite in row {int(broken.nonzero()[0])} of a batch. "
            "The weights are broken or the dtype is too narrow; try --dtype float32 or bfloat16."
        )
    total_B = torch.where(scored_BS, -logprob_BS, 0).double().sum(-1)
    loss_B = total_B / scored_BS.sum(-1)  # 0 / 0 is NaN: a document of one token has no loss
    tokens = {"logprob": logprob_BS[mask_BS].cpu().numpy(), "predicted": predicted_BS[mask_BS].cpu().numpy()}
    return tokens, {"loss": loss_B.float().cpu().numpy()}
