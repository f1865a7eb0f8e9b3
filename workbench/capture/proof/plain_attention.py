"""The plain twin of the attention columns, for the sampled tokens of a recording: whole rows of weights, by definition.

What a watcher is shown of a sampled document becomes its weights as one softmax over all keys (`metrics/attention.py`
has the statistics); tiles, bands and running sums of `attention.py` are not used. Given text alone.

Axes: H heads, Q sampled queries, T keys, N sampled tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.capture.attention.calls import Call
from workbench.capture.attention.heads import sampled_queries
from workbench.metrics.attention import (
    PROFILED,
    SINK_OVER,
    STATISTICS,
    by_bin,
    head_divergence,
    query_statistics,
    sink_windows,
    weighed_statistics,
)

MOST_WHOLE = 512  # tokens of a document whose weights are made whole


@dataclass(frozen=True)
class SeenAttention:
    """The attention of one layer for sampled queries of one document.

    Attributes:
        position_Q: Positions of the queries.
        statistics: Of `STATISTICS` each [H, Q], float64; NaN where it is not defined.
        weights_HQT: The weights on the document's keys; NaN for a query that sees none.
    """

    position_Q: np.ndarray
    statistics: dict[str, np.ndarray]
    weights_HQT: np.ndarray


def seen_attention(call: Call, row: int, n_tokens: int, position_Q: np.ndarray) -> SeenAttention:
    """What a call did for some queries of one row.

    Args:
        call: The call; its keys are those of the tokens.
        row: Row of the batch.
        n_tokens: Tokens of the row, from its first position on.
        position_Q: The queries' positions.
    """
    at_Q = torch.as_tensor(position_Q, device=call.query.device)
    query_HQD = call.query[row, :, at_Q].double()
    per_group = call.query.shape[1] // call.key.shape[1]
    key_HTD = call.key[row, :, :n_tokens].double().repeat_interleave(per_group, 0)
    score_HQT = query_HQD @ key_HTD.transpose(1, 2) * call.scaling
    if call.softcap is not None:
        score_HQT = call.softcap * torch.tanh(score_HQT / call.softcap)
    if call.bias is not None:
        score_HQT = score_HQT + call.bias[row % len(call.bias)][:, at_Q, :n_tokens].double()
    score_HQT = score_HQT.masked_fill(~_open(call, row, at_Q, n_tokens), -torch.inf)
    weights_HQT = score_HQT.softmax(-1).cpu().numpy()
    best_HQ = score_HQT.amax(-1)
    off_HQ = torch.zeros_like(best_HQ)
    if call.sinks is not None:
        sink = call.sinks[row, :, at_Q, 0] if call.sinks.dim() == 4 else call.sinks[:, None]
        off_HQ = torch.sigmoid(sink.double() - score_HQT.logsumexp(-1))
    best_HQ = best_HQ.masked_fill(torch.isinf(best_HQ), torch.nan)
    found = query_statistics(weights_HQT, position_Q)
    found |= {"max_logit": best_HQ.cpu().numpy(), "off": (off_HQ + best_HQ * 0).cpu().numpy()}
    return SeenAttention(position_Q, {name: found[name] for name in STATISTICS}, weights_HQT)


def _open(call: Call, row: int, at_Q: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Which keys the queries see, [Q, T]."""
    keys_T = torch.arange(n_tokens, device=at_Q.device)
    distance_QT = at_Q[:, None] - keys_T
    mask = call.mask
    if mask is not None and hasattr(mask, "mask_mod"):  # flex attention's
        of_row, zero = torch.tensor(row, device=at_Q.device), torch.tensor(0, device=at_Q.device)
        return mask.mask_mod(of_row, zero, at_Q[:, None], keys_T[None])
    if mask is None or mask.dim() == 2:
        seen_QT = distance_QT >= 0 if call.causal or call.window is not None else torch.ones_like(distance_QT).bool()
        return seen_QT & (distance_QT < call.window) if call.window is not None else seen_QT
    of_row_ST = mask[row if len(mask) > 1 else 0].reshape(-1, *mask.shape[-2:])[0]
    part_QT = of_row_ST[at_Q, :n_tokens]
    return part_QT if part_QT.dtype == torch.bool else part_QT > torch.finfo(part_QT.dtype).min / 2


def attention_of_tokens(seen: SeenAttention) -> dict[str, np.ndarray]:
    """What stands for each token, [N, H]."""
    return {name: seen.statistics[name].T for name in PROFILED}


def attention_of_document(seen: SeenAttention, token_N: np.ndarray, *, weighed: bool) -> dict[str, np.ndarray]:
    """What stands for a document whose queries are all there, each [1, H] or longer."""
    found = {name: _mean(values_HQ) for name, values_HQ in seen.statistics.items()}
    with np.errstate(invalid="ignore"):
        largest_H = np.nan_to_num(seen.statistics["max_logit"], nan=-np.inf).max(-1)
        found["max_logit"] = np.where(np.isinf(largest_H), np.nan, largest_H)
    for name in PROFILED:
        found[f"{name}.profile"] = by_bin(seen.statistics[name], seen.position_Q).reshape(-1)
    windows_HW = sink_windows(seen.statistics["first"])
    over_HW = np.where(np.isnan(windows_HW), np.nan, windows_HW > SINK_OVER)
    found["sink"] = _mean(over_HW)
    found["undefined"] = np.isnan(seen.statistics["entropy"]).sum(-1)
    if weighed:
        of_weights = weighed_statistics(seen.weights_HQT, token_N, positions_S=seen.position_Q)
        found |= {name: _mean(values_HQ) for name, values_HQ in of_weights.items()}
        sample = sampled_queries(len(seen.position_Q))
        found["divergence"] = head_divergence(seen.weights_HQT[:, sample]).reshape(-1)
    return {name: values[None] for name, values in found.items()}


def _mean(values_HQ: np.ndarray) -> np.ndarray:
    """Mean where a value is defined; NaN where none is."""
    known = np.isfinite(values_HQ)
    with np.errstate(invalid="ignore"):
        return np.where(known, values_HQ, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)
