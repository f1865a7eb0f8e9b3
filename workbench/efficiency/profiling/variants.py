"""Who runs beside whom: models, each with a routing and a way to run its experts, and how one run of each is made.

Contestants of one round run one after the other, and every other round in the opposite order, so that a slow drift of
the machine meets all of them alike. Axes: B rows, S positions.
"""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from workbench.efficiency.instruments.clock import Clock
from workbench.efficiency.profiling import breakdown, forced_routing, kernels, launch, timed_run
from workbench.efficiency.profiling.forced_routing import Plan, Routing
from workbench.efficiency.profiling.launch import Eager
from workbench.efficiency.profiling.prompts import prompts
from workbench.efficiency.profiling.timed_run import Point, Run
from workbench.errors import MeasurementError
from workbench.models.library_errors import foreign_errors
from workbench.models.loading import Model

Parts = dict[tuple[int, str], float]
WINDOW = 3


@dataclass(frozen=True, eq=False)
class Contestant:
    """One way to run one model.

    Attributes:
        label: The model's name in the tables.
        model: The model, unwrapped.
        routing: How its experts are chosen.
        experts: How they are run; empty for a model without experts that can be switched.
        watched: Whether the borders of its parts are marked.
        decode: How its steps of decoding are launched.
    """

    label: str
    model: Model
    routing: Routing = field(default_factory=lambda: Routing("natural"))
    experts: str = ""
    watched: bool = False
    decode: str = "eager"

    def key(self) -> dict[str, Any]:
        """What names it in the tables."""
        return {
            "model": self.label, "routing": str(self.routing), "experts": self.experts, "watched": self.watched,
            "launch": self.decode,
        }  # fmt: skip


@dataclass(eq=False)
class Seat:
    """A contestant at a point: its prompts and forced ids are made once, before anything is timed."""

    contestant: Contestant
    point: Point
    prompts_kind: str = "auto"
    seed: int = 0
    ids_BS: torch.Tensor = field(init=False)
    planned: Plan | None = field(init=False)
    launcher: Eager = field(init=False)

    def __post_init__(self) -> None:
        who = self.contestant
        self.ids_BS = prompts(who.model, self.point, kind=self.prompts_kind, seed=self.seed)
        self.planned = forced_routing.plan(
            who.routing, who.model.topology, self.point, device=who.model.device, seed=self.seed
        )
        self.launcher = launch.launcher(who.model.module, who.decode)

    def run(self) -> tuple[Run, Parts]:
        """One run, and the parts' own seconds in each pass where it is watched."""
        who, parts = self.contestant, Parts()
        module = who.model.module
        with ExitStack() as stack:
            stack.enter_context(kernels.using(module, who.experts))
            tell = stack.enter_context(forced_routing.forced(module, who.model.topology, self.planned))
            if not who.watched:
                return self._go(tell), parts
            clock = Clock(self.ids_BS.device)
            named = breakdown.parts_of(module, who.model.topology)
            marks = stack.enter_context(breakdown.watched(module, named, clock))

            def before(step: int) -> None:
                marks.step = step
                tell(step)

            done = self._go(before, clock)
            return done, marks.seconds(done.marks_s)

    def prefill(self) -> Run:
        """A run that ends with the first token."""
        who = self.contestant
        with (
            kernels.using(who.model.module, who.experts),
            forced_routing.forced(who.model.module, who.model.topology, self.planned) as tell,
            self._failing(),
        ):
            return timed_run.run(
                who.model.module, self.ids_BS, output_tokens=1, before_step=tell,
                prefill_chunk=self.point.prefill_chunk,
            )  # fmt: skip

    def counts(self) -> dict[str, list[np.ndarray]]:
        """How often each expert was chosen in each pass of a run, by the path of the experts."""
        who = self.contestant
        module, topology = who.model.module, who.model.topology
        with (
            kernels.using(module, who.experts),
            forced_routing.forced(module, topology, self.planned) as tell,
            forced_routing.counted(module, topology.routers) as counts,
        ):
            self._go(tell, launcher=Eager(module))
        return counts

    def _go(self, before_step: Any, clock: Clock | None = None, launcher: Eager | None = None) -> Run:
        with self._failing():
            return timed_run.run(
                self.contestant.model.module, self.ids_BS, output_tokens=self.point.output_tokens,
                before_step=before_step, clock=clock, prefill_chunk=self.point.prefill_chunk,
                launcher=launcher or self.launcher,
            )  # fmt: skip

    def _failing(self) -> AbstractContextManager[None]:
        """A run's block, whose errors are the model's: around the whole run, for a step has no time to lose."""
        model = self.contestant.model
        return foreign_errors(
            f"{model.name} ({model.topology.family}) does not read and write {self.point.batch} × "
            f"{self.point.prompt_tokens} + {self.point.output_tokens} tokens with a cache",
            "Give another --attention, --experts-implementation or --decode, or mend its config.json.",
            kind=MeasurementError,
        )


@dataclass(frozen=True)
class WarmUp:
    """How a seat was warmed up.

    Attributes:
        runs: That were not kept.
        settled: Whether their rolling median had come to rest.
        last_s: The median of the last ones.
    """

    runs: int
    settled: bool
    last_s: float


def warm_up(seat: Seat, *, most: int, limit_s: float = 0.0, tolerance: float = 0.02) -> WarmUp:
    """Runs until the median of the last three moves by less than the tolerance.

    Args:
        seat: Who runs.
        most: Runs at most.
        limit_s: A first run that takes longer is the only one; 0 for no limit.
        tolerance: Of the median, relative.
    """
    seconds: list[float] = []
    settled = False
    while len(seconds) < most and not settled and not (limit_s and seconds and seconds[0] > limit_s):
        seconds.append(seat.run()[0].wall_s)
        if len(seconds) > WINDOW:
            before, after = np.median(seconds[-WINDOW - 1 : -1]), np.median(seconds[-WINDOW:])
            settled = bool(abs(after / before - 1) < tolerance)
    return WarmUp(len(seconds), settled, float(np.median(seconds[-WINDOW:])))


def order_of(n: int, round_number: int) -> list[int]:
    """Who goes when: forwards in even rounds, backwards in odd ones."""
    return list(range(n)) if round_number % 2 == 0 else list(range(n))[::-1]
