"""A second look at a few tokens of the very passes that are recorded: plain PyTorch hooks, beside the tracer.

What the hooks see of the sampled tokens is kept as it is, before anything is reduced, so that what was written can be
compared with it (`written.py`). Nothing of the tracer or of the recorder's reduction is used.

Axes: N sampled tokens, E experts, K chosen per token, C the width the experts work in, B rows, S positions, V
vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from workbench.capture.attention.calls import Call
from workbench.capture.batching import Row
from workbench.capture.experts_call import Inputs, bound, of_scores
from workbench.capture.proof.plain_attention import SeenAttention, seen_attention
from workbench.models.loading import Model
from workbench.models.placement import here
from workbench.models.topology import Router

_CHUNK_VALUES = 2**22  # logits of the model that are looked at at once


@dataclass(frozen=True)
class SeenRouter:
    """What a router and its experts did for the sampled tokens.

    Attributes:
        logits_NE: Router logits, float32.
        ids_NK: Chosen experts.
        weights_NK: Routing weights, float32.
        bias_E: Correction bias of the choice; None where there is none.
        gate_N: The shared expert's gate before its sigmoid; None where there is none.
        hidden_NC: Input of the experts ([E, N, C] where they see every token); None unless asked for, as are the next.
        routed_NC: Output of the experts.
        shared_NC: Output of the shared expert before its gate; None where there is none.
    """

    logits_NE: torch.Tensor
    ids_NK: torch.Tensor
    weights_NK: torch.Tensor
    bias_E: torch.Tensor | None
    gate_N: torch.Tensor | None
    hidden_NC: torch.Tensor | None = None
    routed_NC: torch.Tensor | None = None
    shared_NC: torch.Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """The sampled tokens of one document in one phase.

    Attributes:
        document: Number of the document.
        decoded: Whether the model wrote the tokens.
        whole: Whether they are all tokens of the document in this phase.
        position_N: Positions in the document.
        token_N: Token ids, as the model was given them.
        logprob_N: Of each token given those before it, nats; NaN where nothing is before it. None unless asked for.
        predicted_N: Most probable next token; −1 where several are equally probable. None unless asked for.
        routers: In the order of the topology.
        attention: Of each layer whose attention is recorded, for given text.
    """

    document: int
    decoded: bool
    whole: bool
    position_N: np.ndarray
    token_N: np.ndarray
    logprob_N: np.ndarray | None
    predicted_N: np.ndarray | None
    routers: tuple[SeenRouter, ...]
    attention: dict[int, SeenAttention] = field(default_factory=dict)


@dataclass
class _Pass:
    """One forward pass: its input, and of each site what was kept of it."""

    ids_BS: torch.Tensor
    sites: dict[str, Any] = field(default_factory=dict)
    logprob_N: torch.Tensor | None = None
    predicted_N: torch.Tensor | None = None
    last_BV: torch.Tensor | None = None


class Witness:
    """Looks at sampled tokens while rows are run.

    Args:
        model: The model.
        fields: Recorded fields.
        positions: Of each document to look at the positions of its given text; None for all of them, and for all that
            the model writes behind it.
        stop: Ids that end a text the model writes.
    """

    def __init__(
        self,
        model: Model,
        fields: tuple[str, ...],
        positions: Mapping[int, Sequence[int] | None],
        *,
        stop: set[int] = frozenset(),  # type: ignore[assignment]  # an empty set that nobody can change
    ) -> None:
        self._model, self._positions, self._stop = model, positions, stop
        self._routers: tuple[Router, ...] = model.topology.routers if "routing" in fields else ()
        self._logprob, self._experts = "logprob" in fields, "experts" in fields
        self._rows: tuple[Row, ...] = ()
        self._places: list[tuple[int, int]] = []  # (row of the batch, position)
        self._passes: list[_Pass] = []
        self._inside = False
        self._attention: dict[tuple[int, int], SeenAttention] = {}  # of (row of the batch, layer)
        self.seen: list[Seen] = []

    @contextmanager
    def watching(self, rows: tuple[Row, ...]) -> Iterator[None]:
        """A block in which rows are run once, in one batch; what was seen is in `seen` behind it."""
        self._rows = rows
        self._places = [(index, at) for index, row in enumerate(rows) for at in self._wanted(row)]
        if not self._places:
            yield
            return
        self._passes, self._inside, self._attention = [], False, {}
        root = self._model.module
        handles = [
            root.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(self._handle(path, side) for path, side in self._sites()),
            root.register_forward_hook(self._end, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._gather()
        self._passes, self._attention = [], {}

    def attend(self, call: Call) -> None:
        """Looks at an attention call, where attention is recorded: of given text, its sampled queries."""
        if not self._inside or len(self._passes) > 1 or not call.of_tokens:
            return
        for index, row in enumerate(self._rows):
            positions = np.array([at for place, at in self._places if place == index])
            if len(positions):
                self._attention[index, call.layer] = seen_attention(call, index, row.n_tokens, positions)

    def _wanted(self, row: Row) -> Sequence[int]:
        if row.document not in self._positions:
            return ()
        chosen = self._positions[row.document]
        return range(row.n_tokens) if chosen is None else chosen

    def _sites(self) -> dict[tuple[str, str], None]:
        sites: dict[tuple[str, str], None] = {}
        for router in self._routers:
            sites[router.logits_path or router.router_path, "out"] = None
            sites[(router.router_path, "out") if router.way == "scores" else (router.experts_path, "in")] = None
            if router.shared_gate_path:
                sites[router.shared_gate_path, "out"] = None
            if self._experts:
                sites[router.experts_path, "in"] = sites[router.experts_path, "out"] = None
                if router.shared_path:
                    sites[router.shared_path, "out"] = None
        return sites

    def _handle(self, path: str, side: str) -> Any:
        module = self._model.module.get_submodule(path)
        keep = self._keeper(path)
        if side == "in":
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: keep("in", (args, kwargs)), with_kwargs=True
            )
        return module.register_forward_hook(lambda _, __, out: keep("out", out))

    def _keeper(self, path: str) -> Callable[[str, Any], None]:
        """Keeps what the routers of a path need of the sampled tokens, at once: what is in place changes later."""
        routers = [router for router in self._routers if path in _paths(router)]

        def keep(side: str, value: Any) -> None:
            if self._inside:
                for router in routers:
                    self._keep(router, path, side, value)

        return keep

    def _keep(self, router: Router, path: str, side: str, value: Any) -> None:
        sites, at = self._passes[-1].sites, f"{router.layer} {router.site} "
        if side == "out" and path == (router.logits_path or router.router_path):
            logits = value if router.logits_index is None else value[router.logits_index]
            sites[at + "logits"] = self._of(logits)
        if side == "out" and path == router.router_path and router.way == "scores":
            ids, weights = of_scores(value[0], router)
            sites[at + "ids"], sites[at + "weights"] = self._of(ids), self._of(weights)
        if side == "in" and path == router.experts_path:
            self._keep_inputs(router, value, at)
        if side == "out" and path == router.experts_path and self._experts:
            routed = _by_expert(router, value).sum(0) if router.way == "scores" else value
            sites[at + "routed"] = self._of(routed)
        if side == "out" and path == router.shared_gate_path:
            sites[at + "gate"] = self._of(value.reshape(-1, 1))
        if side == "out" and path == router.shared_path and self._experts:
            sites[at + "shared"] = self._of(value)

    def _keep_inputs(self, router: Router, inputs: Inputs, at: str) -> None:
        sites = self._passes[-1].sites
        if router.way == "scores":
            if self._experts:
                hidden = next(v for v in (*inputs[0], *inputs[1].values()) if isinstance(v, torch.Tensor))
                sites[at + "hidden"] = _by_expert(router, hidden)[:, self._index(hidden.device)]
            return
        hidden, ids, weights = bound(inputs, router)
        sites[at + "ids"], sites[at + "weights"] = self._of(ids), self._of(weights)
        if self._experts:
            sites[at + "hidden"] = self._of(hidden)

    def _of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sampled tokens of a tensor whose last axis is not of tokens."""
        flat = tensor.reshape(-1, tensor.shape[-1])
        return flat[self._index(flat.device)].detach()

    def _index(self, device: torch.device) -> torch.Tensor:
        """Where the sampled tokens are among all of the pass, flattened row by row: of a step, its rows."""
        width = self._passes[-1].ids_BS.shape[1]
        if len(self._passes) == 1:
            return torch.tensor([row * width + at for row, at in self._places], device=device)
        return torch.tensor(self._written_rows(), device=device)

    def _written_rows(self) -> list[int]:
        return [i for i, row in enumerate(self._rows) if self._positions.get(row.document, ()) is None]

    def _begin(self, _: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._passes.append(_Pass(keywords["input_ids"] if "input_ids" in keywords else args[0]))
        self._inside = True

    def _end(self, _: Any, __: Any, ___: Any, output: Any) -> None:
        self._inside = False
        if not self._logprob:
            return
        one = self._passes[-1]
        if len(self._passes) == 1:
            one.logprob_N, one.predicted_N = self._scored(output.logits, one.ids_BS)
        rows = self._written_rows()
        one.last_BV = output.logits[rows, -1].detach().double()

    def _scored(self, logits_BSV: torch.Tensor, ids_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and prediction of the sampled tokens of given text, a few at a time."""
        logprob, predicted = [], []
        step = max(1, _CHUNK_VALUES // logits_BSV.shape[-1])
        for start in range(0, len(self._places), step):
            rows, places = (list(part) for part in zip(*self._places[start : start + step], strict=True))
            before = [max(at - 1, 0) for at in places]
            target_N = ids_BS[rows, places].to(logits_BSV.device)
            share_N = logits_BSV[rows, before].double().log_softmax(-1).gather(-1, target_N[:, None])[:, 0]
            first_N = torch.tensor([at == 0 for at in places], device=share_N.device)
            logprob.append(share_N.masked_fill(first_N, torch.nan))
            predicted.append(_most_probable(logits_BSV[rows, places]))
        return torch.cat(logprob).cpu(), torch.cat(predicted).cpu()

    def _gather(self) -> None:
        """What was seen, document by document."""
        given = self._passes[0]
        captured = tuple(self._router(router, given) for router in self._routers)
        for index, row in enumerate(self._rows):
            chosen = [n for n, (at, _) in enumerate(self._places) if at == index]
            if not chosen:
                continue
            positions = [self._places[n][1] for n in chosen]
            self.seen.append(
                Seen(
                    row.document,
                    decoded=False,
                    whole=self._positions[row.document] is None,
                    position_N=np.array(positions),
                    token_N=given.ids_BS[index, positions].cpu().numpy(),
                    logprob_N=None if given.logprob_N is None else given.logprob_N[chosen].numpy(),
                    predicted_N=None if given.predicted_N is None else given.predicted_N[chosen].numpy(),
                    routers=tuple(_taken(one, chosen) for one in captured),
                    attention={layer: one for (at, layer), one in self._attention.items() if at == index},
                )
            )
        if len(self._passes) > 1:
            self._gather_written()

    def _gather_written(self) -> None:
        steps = self._passes[1:]
        routers = [[self._router(router, step) for router in self._routers] for step in steps]
        for place, index in enumerate(self._written_rows()):
            tokens = [int(step.ids_BS[index, 0]) for step in steps]
            ends = [n + 1 for n, token in enumerate(tokens) if token in self._stop]
            length = min([*ends, len(tokens)])
            logprob = predicted = None
            if self._logprob:
                before = [one.last_BV[place].log_softmax(-1) for one in self._passes[:length]]  # type: ignore[index]
                logprob = np.array([float(v[token]) for v, token in zip(before, tokens, strict=False)])
                behind = [one.last_BV[place] for one in steps[:length]]  # type: ignore[index]
                predicted = np.array([int(_most_probable(v[None])[0]) for v in behind])
            joined = [
                _joined([_taken(step[number], [place]) for step in routers[:length]])
                for number in range(len(self._routers))
            ]
            row = self._rows[index]
            self.seen.append(
                Seen(
                    row.document,
                    decoded=True,
                    whole=True,
                    position_N=np.arange(row.n_tokens, row.n_tokens + length),
                    token_N=np.array(tokens[:length]),
                    logprob_N=logprob,
                    predicted_N=predicted,
                    routers=tuple(joined),
                )
            )

    def _router(self, router: Router, one: _Pass) -> SeenRouter:
        at = f"{router.layer} {router.site} "
        owner, _, name = router.bias_path.rpartition(".")
        bias_E = None
        if owner:
            module = self._model.module.get_submodule(owner)
            with here(module):
                bias_E = getattr(module, name).detach().float().cpu().reshape(-1)
        kept = {key: one.sites.get(at + key) for key in ("logits", "ids", "weights", "gate")}
        further = {f"{key}_NC": one.sites.get(at + key) for key in ("hidden", "routed", "shared")}
        ids, weights, logits = kept["ids"], kept["weights"], kept["logits"]
        assert ids is not None and weights is not None and logits is not None
        if router.skips:
            ids = torch.where(weights == 0, torch.full_like(ids, router.n_experts - 1), ids)
        gate = kept["gate"]
        return SeenRouter(
            logits.float().cpu(),
            ids.long().cpu(),
            weights.float().cpu(),
            bias_E,
            None if gate is None else gate[:, 0].float().cpu(),
            **further,
        )


def _paths(router: Router) -> set[str]:
    named = (router.logits_path, router.router_path, router.experts_path, router.shared_gate_path, router.shared_path)
    return {path for path in named if path}


def _by_expert(router: Router, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(router.n_experts, -1, tensor.shape[-1])


def _most_probable(logits_NV: torch.Tensor) -> torch.Tensor:
    """The id of the largest logit of each row; −1 where several are the largest."""
    best_N, id_N = logits_NV.max(-1)
    return id_N.masked_fill((logits_NV == best_N[:, None]).sum(-1) > 1, -1)


def _taken(router: SeenRouter, places: list[int]) -> SeenRouter:
    def of(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else tensor[..., places, :]

    gate_N = router.gate_N
    return SeenRouter(
        router.logits_NE[places],
        router.ids_NK[places],
        router.weights_NK[places],
        router.bias_E,
        None if gate_N is None else gate_N[places],
        of(router.hidden_NC),
        of(router.routed_NC),
        of(router.shared_NC),
    )


def _joined(steps: list[SeenRouter]) -> SeenRouter:
    def of(name: str, axis: int) -> Any:
        parts = [getattr(step, name) for step in steps]
        return None if parts[0] is None else torch.cat(parts, axis)

    return SeenRouter(
        of("logits_NE", 0),
        of("ids_NK", 0),
        of("weights_NK", 0),
        steps[0].bias_E,
        of("gate_N", 0),
        of("hidden_NC", -2),
        of("routed_NC", -2),
        of("shared_NC", -2),
    )
