"""What needs a head's weights, or all heads' at once: keys for a mass, repeated tokens, divergence, and a probe.

The plain twins are in `metrics/attention.py`.

Axes: H heads, S queries, T keys, Q queries of a sample.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.capture.attention.calls import Call, watching
from workbench.capture.attention.tiles import Row, weights
from workbench.capture.failures import forward_errors
from workbench.errors import CaptureError
from workbench.metrics.attention import head_divergence, repeated_scores
from workbench.models.loading import Model

_SAMPLE = 64  # queries of a document whose weights are compared with each other head by head
MOST_MAPPED = 2048
_COPIES, _SEQUENCES, _SEED = 4, 8, 0


def weighed_statistics(row: Row, ids_T: torch.Tensor) -> dict[str, torch.Tensor]:
    """The statistics of `metrics.attention.WEIGHED` of each query, [H, S].

    Args:
        row: The row.
        ids_T: Token ids of its keys.
    """
    n_heads, n_queries, _ = row.query_HSD.shape
    found = {name: torch.empty(n_heads, n_queries, device=row.device) for name in ("keys90", "duplicate", "induction")}
    for tile in row.tiles():
        stop = min(tile.keys.stop, row.n_keys)
        keys_t = torch.arange(tile.keys.start, stop, device=row.device)
        weight_hnt = tile.weight_hnt[..., : len(keys_t)]
        position_n = row.positions_S[tile.queries, None]
        earlier_nt = (ids_T[position_n] == ids_T[keys_t]) & (keys_t < position_n)
        behind_nt = (ids_T[position_n] == ids_T[(keys_t - 1).clamp(min=0)]) & (keys_t > 0) & (keys_t <= position_n)
        total_hnt = weight_hnt.sort(-1, descending=True).values.cumsum(-1)
        nothing_hn = weight_hnt[..., 0] * 0  # NaN for a query that sees no key
        found["keys90"][tile.heads, tile.queries] = (total_hnt < 0.9 - 1e-6).sum(-1) + 1 + nothing_hn
        found["duplicate"][tile.heads, tile.queries] = torch.linalg.vecdot(weight_hnt, earlier_nt.to(weight_hnt.dtype))
        found["induction"][tile.heads, tile.queries] = torch.linalg.vecdot(weight_hnt, behind_nt.to(weight_hnt.dtype))
    return found


def sampled_queries(n_queries: int) -> np.ndarray:
    """The queries whose weights are compared between heads: all of a short row, else evenly spread."""
    return np.unique(np.linspace(0, n_queries - 1, min(_SAMPLE, n_queries)).round().astype(np.int64))


def divergence(row: Row) -> np.ndarray:
    """Jensen-Shannon divergence of each pair of heads, [H, H], over a sample of the row's queries."""
    return head_divergence(weights(row.of_queries(sampled_queries(row.query_HSD.shape[1]))).cpu().numpy()).astype(
        np.float32
    )


def attention_map(model: Model, token_ids: Sequence[int], *, layer: int, head: int) -> np.ndarray:
    """The weights of one head on one text, float32 [S, T]; no other head's are made.

    Args:
        model: From `load`.
        token_ids: Of the text, at most 2,048.
        layer: Attention layer.
        head: Head.

    Raises:
        CaptureError: no token or too many, ids that the model does not know, or no such layer or head.
    """
    if not 1 <= len(token_ids) <= MOST_MAPPED:
        raise CaptureError(f"a map of {len(token_ids):,} tokens was asked; 1 to {MOST_MAPPED:,} are drawn.")
    if not 0 <= min(token_ids) <= max(token_ids) < model.topology.vocabulary:
        raise CaptureError(
            f"token ids go from {min(token_ids)} to {max(token_ids)}; {model.name} knows 0 to "
            f"{model.topology.vocabulary - 1}."
        )
    found: list[np.ndarray] = []
    heads_of: dict[int, int] = {}

    def watch(call: Call) -> None:
        if not call.of_tokens:
            return
        heads_of[call.layer] = call.query.shape[1]
        if call.layer == layer and 0 <= head < call.query.shape[1]:
            row = Row(call, 0, 0, call.query.shape[2])
            found.append(weights(row, heads=slice(head, head + 1))[0].cpu().numpy())

    with forward_errors(model.name, "the text of the map"), torch.no_grad(), watching(model.module, watch):
        model.module(input_ids=torch.tensor([list(token_ids)], device=model.device), use_cache=False)
    if not found:
        there = ", ".join(f"{number} ({heads} heads)" for number, heads in sorted(heads_of.items()))
        raise CaptureError(f"{model.name} has no head {head} in an attention of layer {layer}; it has {there}.")
    return found[0]


def attention_facts(model: Model) -> dict[str, Any]:
    """What of a model's attention is covered, and its scores on repeated random tokens.

    One run of random tokens is repeated behind a first token, and each head's weight on the keys behind earlier copies
    (`induction`), on the copies (`duplicate`) and on the key before (`previous`) is read off.

    Args:
        model: From `load`.

    Returns:
        For the manifest: `layers` (layer, heads, groups, width), `not_covered` (layer, reason), `probe`.

    Raises:
        CaptureError: the model computes something else when it is watched.
    """
    n_tokens = min(25, (model.topology.context or 1000) // _COPIES - 1)
    ids_BS = _probe_ids(model, n_tokens)
    calls: list[Call] = []
    with torch.no_grad():
        plain = model.module(input_ids=ids_BS, use_cache=False).logits
        with watching(model.module, calls.append):
            watched = model.module(input_ids=ids_BS, use_cache=False).logits
        if not torch.equal(plain, watched) and torch.equal(
            plain, model.module(input_ids=ids_BS, use_cache=False).logits
        ):
            off = float((plain.float() - watched.float()).abs().max())
            raise CaptureError(
                f"{model.name} computes other logits when its attention is watched (by up to {off:.3g}), so its "
                "statistics would be of another model. Record without the attention fields, and please report it."
            )
    covered = {call.layer: call for call in calls if call.of_tokens}
    return {
        "layers": [
            {"layer": layer, "heads": call.query.shape[1], "groups": call.key.shape[1], "width": call.query.shape[3]}
            for layer, call in sorted(covered.items())
        ],
        "not_covered": _not_covered(model, {call.layer for call in calls}, set(covered)),
        "probe": {
            "n_tokens": n_tokens,
            "copies": _COPIES,
            "sequences": _SEQUENCES,
            "seed": _SEED,
            "first": int(ids_BS[0, 0]),
            "scores": {str(layer): _probe_scores(call, n_tokens) for layer, call in sorted(covered.items())},
        },
    }


def _probe_ids(model: Model, n_tokens: int) -> torch.Tensor:
    """The probe's token ids, a row a sequence."""
    tokenizer = model.tokenizer
    ids = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    first = next((i for i in ids if i is not None), 0)
    run_Bn = np.random.default_rng(_SEED).integers(0, model.topology.vocabulary, (_SEQUENCES, n_tokens))
    ids_BS = np.concatenate([np.full((_SEQUENCES, 1), first), np.tile(run_Bn, (1, _COPIES))], axis=1)
    return torch.tensor(ids_BS, device=model.device)


def _probe_scores(call: Call, n_tokens: int) -> dict[str, list[float]]:
    """Each head's scores, mean over the sequences, and the standard error of it."""
    rows = [
        repeated_scores(weights(Row(call, row, 0, call.query.shape[2])).cpu().numpy(), n_tokens=n_tokens)
        for row in range(call.query.shape[0])
    ]
    found: dict[str, list[float]] = {}
    for name in rows[0]:
        score_BH = np.stack([row[name] for row in rows])
        found[name] = score_BH.mean(0).tolist()
        found[f"{name}_error"] = (score_BH.std(0, ddof=1) / np.sqrt(len(score_BH))).tolist()
    return found


def _not_covered(model: Model, called: set[int], covered: set[int]) -> list[dict[str, Any]]:
    """Layers without statistics, and why."""
    reasons = dict.fromkeys(called - covered, "its keys are not the tokens', but compressed ones")
    attends = model.topology.attention_layers or ()
    for layer in set(attends) - called:
        reasons[layer] = "its attention is not dispatched by transformers, so queries and keys cannot be seen"
    for layer in set(range(model.topology.n_layers)) - set(attends) - called:
        reasons[layer] = "no softmax attention (state-space, linear or convolution layer)"
    return [{"layer": layer, "reason": reasons[layer]} for layer in sorted(reasons)]
