"""Attention statistics as columns of a recording: a watcher that reduces each call as it comes.

Given text is reduced row by row in one call a layer; text that the model writes comes as one query a step, and is put
together before it is reduced. The plain twins are in `metrics/attention.py`.

Axes: B rows, S queries, T keys, H heads.
"""

from typing import Any

import numpy as np
import torch

from workbench.capture.attention.calls import Call
from workbench.capture.attention.heads import divergence, weighed_statistics
from workbench.capture.attention.tiles import Row, query_statistics
from workbench.capture.routing import BatchTokens, as_half
from workbench.errors import CaptureError
from workbench.metrics.attention import BIN_EDGES, PROFILED, SINK_OVER, SINK_WINDOW, STATISTICS, WEIGHED
from workbench.models.topology import Topology
from workbench.recordings.schema import attention_prefix

Values = dict[str, torch.Tensor]  # of each statistic its [H, S]


class AttentionColumns:
    """The watcher of a recording.

    Args:
        topology: Of the model.
        layers: The manifest's attention layers; calls of others are passed over.
        fields: Recorded fields.
    """

    def __init__(self, topology: Topology, layers: list[dict[str, Any]], fields: tuple[str, ...]) -> None:
        self._topology = topology
        self._heads = {int(facts["layer"]): int(facts["heads"]) for facts in layers}
        self._of_tokens, self._weighed = "attention-tokens" in fields, "attention-weights" in fields
        self._batch: BatchTokens | None = None
        self._given: dict[int, list[Values]] = {}
        self._further: dict[int, list[dict[str, np.ndarray]]] = {}
        self._steps: dict[int, list[list[Values]]] = {}

    def begin(self, batch: BatchTokens) -> None:
        """Names the rows whose forward passes come next."""
        self._batch = batch
        self._given, self._further, self._steps = {}, {}, {}

    def __call__(self, call: Call) -> None:
        """Takes in one call: of the given text first, then of one step after the other."""
        if call.layer not in self._heads or self._batch is None:
            return
        if call.layer in self._given:
            self._step(call)
            return
        if call.query.shape[0] != len(self._batch.lengths_B) or call.query.shape[2] != self._batch.ids_BS.shape[1]:
            raise CaptureError(
                f"layer {call.layer} attends with queries {tuple(call.query.shape)}, but the batch is "
                f"{tuple(self._batch.ids_BS.shape)}; its rows cannot be told apart. Record without attention fields."
            )
        self._given[call.layer], self._further[call.layer] = [], []
        for index, length in enumerate(self._batch.lengths_B.tolist()):
            if not call.of_tokens:
                self._given[call.layer].append(_nothing(self._heads[call.layer], length, call.query.device))
                self._further[call.layer].append(self._unweighed(call.layer))
                continue
            row = Row(call, index, 0, length)
            self._given[call.layer].append(query_statistics(row))
            if self._weighed:
                ids_T = self._batch.ids_BS[index, :length].to(row.device)
                means = {name: _mean(values) for name, values in weighed_statistics(row, ids_T).items()}
                self._further[call.layer].append(means | {"divergence": divergence(row).reshape(-1)})

    def _step(self, call: Call) -> None:
        assert self._batch is not None
        steps = self._steps.setdefault(call.layer, [])
        position = self._batch.ids_BS.shape[1] + len(steps)  # prompts of a batch have one length
        n_keys = call.key.shape[2]
        before = position + 1 - n_keys
        rows = range(call.query.shape[0])
        if before < 0:
            steps.append([_nothing(self._heads[call.layer], 1, call.query.device) for _ in rows])
        else:
            steps.append([query_statistics(Row(call, index, 0, n_keys, n_before=before)) for index in rows])

    def _unweighed(self, layer: int) -> dict[str, np.ndarray]:
        heads = self._heads[layer]
        names = (*WEIGHED, "divergence") if self._weighed else ()
        return {name: np.full(heads**2 if name == "divergence" else heads, np.nan, np.float32) for name in names}

    def given(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The columns of the given text: of its tokens and of its documents."""
        return self._columns(self._given, 0, self._further)

    def written(self, lengths_B: torch.Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The columns of what the model wrote.

        Args:
            lengths_B: Tokens written in each row.
        """
        assert self._batch is not None
        rows = {
            layer: [
                {name: torch.cat([step[index][name] for step in steps[:length]], -1) for name in STATISTICS}
                for index, length in enumerate(lengths_B.tolist())
            ]
            for layer, steps in self._steps.items()
        }
        return self._columns(rows, self._batch.ids_BS.shape[1], {})

    def _columns(
        self, found: dict[int, list[Values]], start: int, further: dict[int, list[dict[str, np.ndarray]]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        tokens: dict[str, np.ndarray] = {}
        documents: dict[str, np.ndarray] = {}
        for layer, rows in found.items():
            at = attention_prefix(layer, self._topology)
            more = further.get(layer) or [{}] * len(rows)
            reduced = [_reduced(values, start) | of_row for values, of_row in zip(rows, more, strict=True)]
            documents |= {f"{at}.{name}": np.stack([row[name] for row in reduced]) for name in reduced[0]}
            if self._of_tokens:
                tokens |= {
                    f"{at}.{name}": np.concatenate([as_half(v[name].T, name, layer=layer) for v in rows])
                    for name in PROFILED
                }
        return tokens, documents


def _nothing(heads: int, length: int, device: torch.device) -> Values:
    return {name: torch.full((heads, length), torch.nan, device=device) for name in STATISTICS}


def _reduced(values: Values, start: int) -> dict[str, np.ndarray]:
    """A document's row: means over its queries, where they are defined, whole and by bins of positions.

    Args:
        values: Of each statistic its [H, S].
        start: Position of the first query.
    """
    entropy_HS = values["entropy"]
    bins_Sb = _bins(start, entropy_HS.shape[1], entropy_HS.device)
    found = {name: _mean(values[name]) for name in STATISTICS}
    found["max_logit"] = values["max_logit"].nan_to_num(-torch.inf).amax(-1).cpu().numpy()
    found["max_logit"][np.isneginf(found["max_logit"])] = np.nan
    for name in PROFILED:
        known_HS = values[name].isfinite()
        sum_Hb = values[name].nan_to_num(0, 0, 0) @ bins_Sb
        found[f"{name}.profile"] = (sum_Hb / (known_HS.float() @ bins_Sb)).reshape(-1).cpu().numpy()
    found["sink"] = _sink(values["first"]).cpu().numpy() if start == 0 else _none(entropy_HS)
    found["undefined"] = (~entropy_HS.isfinite()).sum(-1).to(torch.int32).cpu().numpy()
    return found


def _mean(values_HS: torch.Tensor) -> np.ndarray:
    """Mean over the queries where the statistic is defined; NaN where it is for none."""
    return torch.where(values_HS.isfinite(), values_HS, torch.nan).double().nanmean(-1).float().cpu().numpy()


def _none(values_HS: torch.Tensor) -> np.ndarray:
    return np.full(len(values_HS), np.nan, np.float32)


def _sink(first_HS: torch.Tensor) -> torch.Tensor:
    """Share of whole windows of queries whose mean weight on the first key is over the threshold; NaN without one."""
    windows_HW = first_HS.unfold(-1, SINK_WINDOW, SINK_WINDOW).mean(-1) if first_HS.shape[1] >= SINK_WINDOW else None
    if windows_HW is None:
        return torch.full(first_HS.shape[:1], torch.nan)
    return torch.where(windows_HW.isfinite(), (windows_HW > SINK_OVER).float(), torch.nan).nanmean(-1)


def _bins(start: int, length: int, device: torch.device) -> torch.Tensor:
    """1 where a position lies in a bin, [S, bins]."""
    edges = torch.tensor(BIN_EDGES, device=device)
    index_S = torch.searchsorted(edges, torch.arange(start, start + length, device=device), right=True) - 1
    return torch.nn.functional.one_hot(index_S, len(BIN_EDGES)).float()
