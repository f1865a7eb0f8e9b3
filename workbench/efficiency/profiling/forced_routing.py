"""Which experts a run meets: its own choice, or one that is forced; and how many distinct ones that were.

A forced run computes what it would, with other experts: the router runs, its weights stay, its ids are replaced on the
way into the experts by plain hooks on the bare model. The forced ids are drawn before the run, on the model's device.
Axes: T tokens of a pass (row by row), E experts, K chosen per token, S passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.capture.experts_call import bound, of_scores, with_ids, with_scores
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError
from workbench.models.topology import Router, Topology
from workbench.recordings.recording import Recording

KINDS = ("natural", "uniform", "round-robin", "zipf:ALPHA", "worst", "replay:RECORDING")
Plan = list[dict[str, torch.Tensor]]
"""For each pass the ids of each router, by the path of its experts."""


@dataclass(frozen=True)
class Routing:
    """A way to choose experts.

    Attributes:
        kind: `natural`, `uniform` (k distinct ones at random), `round-robin` (the next k, as even as can be), `zipf` (k
            distinct ones, the r-th in each layer's own order with weight r^−α), `worst` (the first k for every token)
            or `replay` (as a recording's tokens did).
        alpha: Of `zipf`.
        recording: Of `replay`.
    """

    kind: str
    alpha: float = 0.0
    recording: str = ""

    @classmethod
    def parse(cls, text: str) -> "Routing":
        """From `uniform`, `zipf:1.2`, `replay:FOLDER` ….

        Raises:
            MeasurementError: none of the kinds, or a zipf without a number.
        """
        kind, _, more = text.partition(":")
        if kind == "zipf":
            try:
                alpha = float(more)
            except ValueError:
                alpha = -1.0
            if not 0 <= alpha < float("inf"):
                raise MeasurementError(f"routing is {text!r}; zipf wants its exponent, 0 or more, e.g. zipf:1.2.")
            return cls(kind, alpha)
        if kind == "replay" and more:
            return cls(kind, recording=more)
        if text not in ("natural", "uniform", "round-robin", "worst"):
            raise MeasurementError(f"routing is {text!r}; {', '.join(KINDS)} were expected.")
        return cls(kind)

    def __str__(self) -> str:
        return f"zipf:{self.alpha:g}" if self.kind == "zipf" else self.kind


def plan(routing: Routing, topology: Topology, point: Point, *, device: torch.device, seed: int = 0) -> Plan | None:
    """The ids of every pass of a run; None where the model chooses itself.

    Args:
        routing: How.
        topology: Of the model.
        point: The run's size.
        device: Where the ids go.
        seed: Of what is drawn.

    Raises:
        MeasurementError: the model has no router, or the recording to replay has other layers, E or K.
    """
    if routing.kind == "natural":
        return None
    if not topology.routers:
        raise MeasurementError(f"routing is {routing}, but this {topology.family} model has no router to force.")
    per_router = {
        router.experts_path: _ids(routing, router, point, np.random.default_rng([seed, number]))
        for number, router in enumerate(topology.routers)
    }
    starts = np.cumsum([0, *point.widths])
    return [
        {
            path: torch.from_numpy(ids_BPK[:, start : start + width].reshape(-1, ids_BPK.shape[-1])).to(device)
            for path, ids_BPK in per_router.items()
        }
        for start, width in zip(starts[:-1], point.widths, strict=True)
    ]


def _ids(routing: Routing, router: Router, point: Point, rng: np.random.Generator) -> np.ndarray:
    """Ids of every row and position, [B, P, K] with P all positions that are given to the model."""
    positions = point.prompt_tokens + point.output_tokens - 1
    shape, top_k = (point.batch, positions), router.top_k
    n_experts = router.n_experts - router.n_zero
    if routing.kind == "worst":
        return np.broadcast_to(np.arange(top_k), (*shape, top_k)).copy()
    if routing.kind == "round-robin":
        # rows of one decoding step stand beside each other in the queue
        order_BP = np.arange(point.batch)[:, None] + point.batch * np.arange(positions)[None]
        return (order_BP[..., None] * top_k + np.arange(top_k)) % n_experts
    if routing.kind == "replay":
        return _replayed(routing, router, shape)
    weight_E = np.ones(n_experts)
    if routing.kind == "zipf":
        weight_E = rng.permutation(np.arange(1, n_experts + 1) ** -routing.alpha)
    # the k largest of Gumbel keys are k draws without replacement
    key_BPE = np.log(weight_E) + rng.gumbel(size=(*shape, n_experts))
    return np.argpartition(key_BPE, n_experts - top_k, axis=-1)[..., n_experts - top_k :]


def _replayed(routing: Routing, router: Router, shape: tuple[int, int]) -> np.ndarray:
    recording = Recording.open(Path(routing.recording))
    if router.layer not in recording.moe_layers:
        raise MeasurementError(
            f"{routing.recording} has no routing of layer {router.layer}; replay a recording of the model itself."
        )
    site = router.site if sum(known.layer == router.layer for known in recording.topology.routers) > 1 else None
    ids_TK = np.asarray(recording.ids(router.layer, site=site)).astype(np.int64)
    if ids_TK.shape[1] != router.top_k or int(ids_TK.max()) >= router.n_experts:
        raise MeasurementError(
            f"{routing.recording} has {ids_TK.shape[1]} experts a token and ids up to {ids_TK.max()} at layer "
            f"{router.layer}; the model chooses {router.top_k} of {router.n_experts}. Replay a recording of the model."
        )
    rows, positions = shape
    start_B = np.arange(rows) * (len(ids_TK) // rows)  # each row a stretch of its own, as far apart as there is text
    return ids_TK[(start_B[:, None] + np.arange(positions)) % len(ids_TK)]


@contextmanager
def forced(module: Any, topology: Topology, planned: Plan | None) -> Iterator[Callable[[int], None]]:
    """A block in which the planned ids are used; yields what must be told the number of each pass."""
    if planned is None:
        yield lambda step: None
        return
    now = {"ids": planned[0]}
    handles = []
    for router in topology.routers:
        path = router.experts_path
        if router.way == "scores":

            def rescore(_: Any, __: Any, output: Any, path: str = path) -> Any:
                return (with_scores(output[0], now["ids"][path]), *output[1:])

            handles.append(module.get_submodule(router.router_path).register_forward_hook(rescore))
        else:

            def replace(_: Any, args: Any, kwargs: Any, path: str = path) -> Any:
                return with_ids((args, kwargs), now["ids"][path])

            handles.append(module.get_submodule(path).register_forward_pre_hook(replace, with_kwargs=True))
    try:
        yield lambda step: now.update(ids=planned[step])
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counted(module: Any, routers: Sequence[Router]) -> Iterator[dict[str, list[np.ndarray]]]:
    """A block in which each pass's assignments are counted: by the path of the experts, [E] per pass.

    Goes inside `forced`, so that what the experts were given is counted. Copies to the host: never in a timed run.
    """
    counts: dict[str, list[np.ndarray]] = {router.experts_path: [] for router in routers}
    handles = []
    for router in routers:

        def count(_: Any, args: Any, kwargs: Any, router: Router = router) -> None:
            counts[router.experts_path].append(_counts(bound((args, kwargs), router)[1], router))

        def count_scores(_: Any, __: Any, output: Any, router: Router = router) -> None:
            counts[router.experts_path].append(_counts(of_scores(output[0], router)[0], router))

        if router.way == "scores":
            handles.append(module.get_submodule(router.router_path).register_forward_hook(count_scores))
        else:
            path = router.experts_path
            handles.append(module.get_submodule(path).register_forward_pre_hook(count, with_kwargs=True))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _counts(ids_TK: torch.Tensor, router: Router) -> np.ndarray:
    return np.bincount(ids_TK.reshape(-1).cpu().numpy(), minlength=router.n_experts)
