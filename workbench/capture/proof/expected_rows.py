"""The plain twin of the recorder's reduction: what must stand in a recording for the tokens that a witness saw.

NumPy in float64, token by token from the definitions of `metrics/router.py`; nothing of `reduce.py` is used, so that a
fault there is not made twice. Slow, and for a few tokens.

Axes: N tokens, E experts, K chosen per token, C the width the experts work in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logsumexp, softmax

from workbench.capture.proof.plain_attention import attention_of_document, attention_of_tokens
from workbench.capture.proof.plain_experts import Rebuild
from workbench.capture.proof.witness import Seen, SeenRouter
from workbench.metrics.router import margin, token_entropy, topk_mass
from workbench.models.placement import here
from workbench.models.topology import Router, Topology
from workbench.recordings.schema import attention_prefix, prefix

HALF = 1e-3  # float16 keeps 11 bits, and the recorder computes in float32
_SUMS = 1e-5
# Counts, and what is left out by a threshold: a rounding can move one query of the document.
_ATTENTION = {"keys90": 0.1, "mostly_first": 0.1, "entropy_rest": 0.1, "distance_rest": 1.0, "undefined": 0.0}


@dataclass(frozen=True)
class Expected:
    """What a column must hold, a row a token or a document.

    Attributes:
        values: The values; NaN where nothing must stand.
        relative: How far off a value may be, of itself.
        absolute: And beside that, in its unit; 0 for both where it must be exact.
    """

    values: np.ndarray
    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class ExpertParts:
    """How the experts of a router are called one by one: by another implementation, and what their block makes of it.

    Attributes:
        experts: The experts module.
        rebuild: The experts' output of hidden states, ids and weights.
        routed: Factor on the routed output.
        shared: Factor on the shared output.
        relative: How far two implementations may differ.
    """

    experts: Any
    rebuild: Rebuild
    routed: float
    shared: float
    relative: float


def token_columns(
    seen: Seen, topology: Topology, fields: tuple[str, ...], parts: Callable[[Router], ExpertParts]
) -> dict[str, Expected]:
    """The columns of a recording's tokens, less document, position and phase, for the tokens seen."""
    columns = {"token": Expected(seen.token_N)}
    if seen.logprob_N is not None and seen.predicted_N is not None:
        columns["logprob"] = Expected(seen.logprob_N, 1e-4, 1e-4)
        columns["predicted"] = Expected(np.where(seen.predicted_N < 0, np.nan, seen.predicted_N))
    for router, found in zip(topology.routers, seen.routers, strict=False):
        of_router = _router_columns(router, found, with_logits="logits" in fields)
        if "experts" in fields:
            of_router |= _experts_columns(router, found, parts(router))
        columns |= {f"{prefix(router, topology)}.{name}": values for name, values in of_router.items()}
    for layer, attention in seen.attention.items() if "attention-tokens" in fields else ():
        at = attention_prefix(layer, topology)
        columns |= {f"{at}.{name}": Expected(v, HALF, 1e-3) for name, v in attention_of_tokens(attention).items()}
    return columns


def document_columns(
    seen: Seen, topology: Topology, fields: tuple[str, ...], parts: Callable[[Router], ExpertParts]
) -> dict[str, Expected]:
    """The sums of a recording's documents over the tokens seen, which must be all of the document and phase."""
    columns = {"tokens": Expected(np.array([len(seen.token_N)]))}
    if seen.logprob_N is not None:
        scored = seen.logprob_N[~np.isnan(seen.logprob_N)]
        columns["loss"] = Expected(np.array([-scored.mean() if len(scored) else np.nan]), 1e-4, 1e-4)
    for router, found in zip(topology.routers, seen.routers, strict=False):
        ids_NK, weights_NK = found.ids_NK.numpy(), found.weights_NK.numpy().astype(np.float64)
        sums = {"weight_sum": _summed(weights_NK, ids_NK, router), "score_sum": _scores(router, found).sum(0)}
        if "experts" in fields:
            added_NK = contributions(router, found, parts(router))
            sums["contribution_sum"] = _summed(added_NK, ids_NK, router)
        at = prefix(router, topology)
        columns[f"{at}.counts"] = Expected(_summed(np.ones_like(weights_NK), ids_NK, router)[None])
        for name, sum_E in sums.items():
            relative = parts(router).relative if name == "contribution_sum" else _SUMS
            columns[f"{at}.{name}"] = Expected(sum_E[None], relative, relative * float(np.abs(sum_E).max()))
    for layer, attention in seen.attention.items():
        at, weighed = attention_prefix(layer, topology), "attention-weights" in fields
        of_document = attention_of_document(attention, seen.token_N, weighed=weighed)
        columns |= {f"{at}.{name}": Expected(v, HALF, _ATTENTION.get(name, 1e-3)) for name, v in of_document.items()}
    return columns


def _summed(values_NK: np.ndarray, ids_NK: np.ndarray, router: Router) -> np.ndarray:
    return np.bincount(ids_NK.reshape(-1), values_NK.reshape(-1), minlength=router.n_experts)


def _raw_scores(router: Router, logits_NE: np.ndarray) -> np.ndarray:
    """The scores as the router's rule has them, before any division by their sum."""
    if router.scoring == "softmax":
        return np.asarray(softmax(logits_NE, axis=1))
    if router.scoring == "sigmoid":
        return np.asarray(expit(logits_NE))
    return np.sqrt(np.logaddexp(0, logits_NE))


def _scores(router: Router, found: SeenRouter) -> np.ndarray:
    """Scores that sum to 1."""
    score_NE = _raw_scores(router, found.logits_NE.numpy().astype(np.float64))
    return score_NE / score_NE.sum(1, keepdims=True)


def _margin(router: Router, found: SeenRouter) -> Expected:
    logits_NE, ids_NK = found.logits_NE.numpy().astype(np.float64), found.ids_NK.numpy()
    if not router.has_margin:
        return Expected(np.full(len(ids_NK), np.nan))
    value_NE = logits_NE if router.choice == "logits" else _raw_scores(router, logits_NE)
    if found.bias_E is not None:
        value_NE = value_NE + found.bias_E.numpy().astype(np.float64)
    margin_N = margin(value_NE, ids_NK)
    margin_N[~np.isfinite(margin_N)] = np.nan  # every expert not chosen is masked: there is none to be next to
    largest = np.abs(np.where(np.isfinite(value_NE), value_NE, 0)).max(initial=1.0)
    return Expected(margin_N, HALF, 2e-6 * float(largest))


def _router_columns(router: Router, found: SeenRouter, *, with_logits: bool) -> dict[str, Expected]:
    ids_NK = found.ids_NK.numpy()
    score_NE, logits_NE = _scores(router, found), found.logits_NE.numpy().astype(np.float64)
    is_softmax = router.scoring == "softmax"
    columns = {
        "ids": Expected(ids_NK),
        "weights": Expected(found.weights_NK.numpy().astype(np.float16).astype(np.float64)),
        "entropy": Expected(token_entropy(score_NE), HALF, 2e-6),
        "margin": _margin(router, found),
        "topk_mass": Expected(topk_mass(score_NE, ids_NK), HALF, 2e-6),
        "logsumexp": Expected(
            np.asarray(logsumexp(logits_NE, axis=1)) if is_softmax else np.full(len(ids_NK), np.nan), 1e-5, 1e-5
        ),
    }
    if found.gate_N is not None:
        columns["shared_gate"] = Expected(expit(found.gate_N.numpy().astype(np.float64)), HALF, 2e-6)
    if with_logits:
        columns["logits"] = Expected(found.logits_NE.numpy().astype(np.float16).astype(np.float64))
    return columns


def _experts_columns(router: Router, found: SeenRouter, parts: ExpertParts) -> dict[str, Expected]:
    added_NK = contributions(router, found, parts)
    near = {"relative": parts.relative, "absolute": parts.relative * 0.1}
    columns = {"contribution": Expected(added_NK, parts.relative, parts.relative * float(added_NK.max()))}
    if found.shared_NC is None:
        return columns
    assert found.routed_NC is not None
    gate_N1: Any = 1.0 if found.gate_N is None else expit(found.gate_N.numpy().astype(np.float64))[:, None]
    s_NC = parts.shared * gate_N1 * found.shared_NC.double().cpu().numpy()
    r_NC = parts.routed * found.routed_NC.double().cpu().numpy()
    s_N, r_N, y_NC = np.linalg.norm(s_NC, axis=1), np.linalg.norm(r_NC, axis=1), s_NC + r_NC
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = {
            "shared_share": s_N / (s_N + r_N),
            "shared_projection": (s_NC * y_NC).sum(1) / (y_NC**2).sum(1),
            "shared_cosine": (s_NC * r_NC).sum(1) / (s_N * r_N),
        }
    return columns | {name: Expected(values, **near) for name, values in shared.items()}


def contributions(router: Router, found: SeenRouter, parts: ExpertParts) -> np.ndarray:
    """Norm of what each chosen expert adds, one choice after the other, by another implementation: [N, K]."""
    hidden = found.hidden_NC
    assert hidden is not None
    n_tokens, top_k = found.ids_NK.shape
    device, dtype = hidden.device, hidden.dtype
    added = []
    with torch.no_grad(), here(parts.experts):
        for k in range(top_k):
            ids_N1, weights_N1 = found.ids_NK[:, k : k + 1].to(device), found.weights_NK[:, k : k + 1].to(device, dtype)
            out = parts.rebuild(hidden.reshape(-1, hidden.shape[-1]), ids_N1, weights_N1)
            if router.way == "scores":
                rows_N = torch.arange(n_tokens, device=out.device)
                out = out.reshape(router.n_experts, n_tokens, -1)[ids_N1[:, 0].to(out.device), rows_N]
            added.append(out.reshape(n_tokens, -1).float().norm(dim=-1).double().cpu().numpy())
    return abs(parts.routed) * np.stack(added, 1)
