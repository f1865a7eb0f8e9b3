"""Measures a model on this machine, beside another one: the whole of `workbench profile`.

At each point all contestants are warmed up and then timed in rounds; memory, coverage, the device's own time, checks
and energy are taken in runs of their own, which are not timed. Raw samples are kept; what they say is the analyses'
business.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.efficiency.instruments import energy, machine, threads
from workbench.efficiency.measurements.measurement import Measurement, refuse_occupied, write_measurement
from workbench.efficiency.profiling import breakdown, kernels, launch, run_memory, tables
from workbench.efficiency.profiling.capture_overhead import recorded_rounds
from workbench.efficiency.profiling.forced_routing import Routing
from workbench.efficiency.profiling.prompts import kind_of
from workbench.efficiency.profiling.settings import Asked, of_point, words
from workbench.efficiency.profiling.tables import Rows
from workbench.efficiency.profiling.timed_run import Point
from workbench.efficiency.profiling.variants import Contestant, Seat, order_of, warm_up
from workbench.errors import Cancelled, MeasurementError
from workbench.export.files import software_versions
from workbench.models.loading import Model, config_digest

SLOW = 4.0
"""A contestant whose first run takes this many times the first one's is not warmed up further."""
RUNS_BEFORE = 6
"""Of a point, before its first round and in it: a point is not begun that has no time for them, were tokens as long."""
FEWEST_ROUNDS = 6
"""That give a 95 % interval of a median."""


def profile(
    model: Model, out: Path, *, against: Model | None = None, asked: Asked | None = None,
    on_progress: Callable[[int, int, str], None] | None = None, should_cancel: Callable[[], bool] | None = None,
    command: Sequence[str] = (),
) -> Measurement:  # fmt: skip
    """Measures a model, and another one beside it.

    Args:
        model: The measured model, unwrapped.
        out: A new or empty folder.
        against: A model to compare with, in memory at the same time.
        asked: What is measured; the defaults unless given.
        on_progress: Told steps done, steps in all, and what is being done.
        should_cancel: Asked between the steps.
        command: What is noted in the manifest as what makes the measurement again.

    Raises:
        MeasurementError: the folder is occupied; a routing or an implementation that is unknown or does not run here;
            a text longer than a model's context; no point fits into memory, or into the time.
        Cancelled: it was; nothing is written.
    """
    refuse_occupied(out)
    with _still_heap():
        return _Profile(
            model, against, asked or Asked(), on_progress or (lambda *_: None), should_cancel, command
        ).write(out)


@contextmanager
def _still_heap() -> Iterator[None]:
    """What is in memory now is left out of every collection: a large heap takes longer to walk than a run takes."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(eq=False)
class _Profile:
    model: Model
    against: Model | None
    asked: Asked
    on_progress: Callable[[int, int, str], None]
    should_cancel: Callable[[], bool] | None = None
    command: Sequence[str] = ()
    warm_ups: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rounds_of: dict[Seat, int] = field(default_factory=dict)
    is_late: bool = False
    token_s: float = 0.0
    done: int = 0
    total: int = 0

    def write(self, out: Path) -> Measurement:
        """Measures, and writes what was found."""
        self.began = machine.now()
        self._check_dtype()
        contestants = self._contestants()
        self._check_context()
        smallest = min(self.asked.points, key=lambda point: point.batch * (point.prompt_tokens + point.output_tokens))
        with threads.chosen(
            lambda: Seat(contestants[0], smallest, self.asked.prompts, self.asked.seed).run()[0].wall_s,
            asked=self.asked.threads, device=self.model.device,
        ) as told:  # fmt: skip
            return self._write(out, contestants, told)

    def _write(self, out: Path, contestants: Sequence[Contestant], threads_told: dict[str, Any]) -> Measurement:
        device = self.model.device
        load_before, first = machine.load_average(), machine.ceiling(device, self.model.module.dtype)
        base = contestants[0]
        self.rows = Rows(self._first, base.experts, base.decode, machine.now())
        self.counters, no_energy = energy.counters(device.type)
        self.idle_watts = energy.idle_watts(self.counters, window_s=tables.ENERGY_WINDOW_S) if self.counters else []
        self.total = len(self.asked.points) * (self.asked.rounds + 3)
        for point in self._points(contestants):
            tokens = point.batch * (point.prompt_tokens + point.output_tokens)
            if self._late(f"{words(point)}, and what comes after it", needs_s=RUNS_BEFORE * self.token_s * tokens):
                break
            self._measure(contestants, point)
        if not self.rows.found.get("samples"):
            raise MeasurementError(f"nothing was measured: {'; '.join(self.left_out)}.")
        if self.asked.recording_rounds and not self._late("recording beside the bare forward pass"):
            self._step("recording beside the bare forward pass")
            longest = max(self.asked.prompt_lengths)
            how = {"rounds": self.asked.recording_rounds, "seed": self.asked.seed}
            found = recorded_rounds(self.model, prompt_tokens=longest, **how)
            self.rows.found["recording"] = [{"model": self._first, **row} for row in found]
        last = machine.ceiling(device, self.model.module.dtype)
        prompts = {label: kind_of(each, self.asked.prompts) for label, each in self._models().items()}
        manifest = {
            "models": {label: _facts(each) for label, each in self._models().items()},
            "settings": {**asdict(self.asked), "prompts": prompts},
            "base": {"routing": str(base.routing), "experts": base.experts, "launch": base.decode},
            "machine": machine.facts(device) | {"threads_found": threads_told},
            "load_average": {"before": load_before, "after": machine.load_average()},
            "ceiling": {"before": first.__dict__, "after": last.__dict__, "dtype": self.model.dtype},
            "hook_s": breakdown.hook_seconds(device),
            "warm_up": self.warm_ups,
            "left_out": self.left_out,
            "energy": no_energy or ", ".join(counter.name for counter in self.counters),
            "seconds": machine.now() - self.began,
            "versions": software_versions(),
            "command": list(self.command),
        }  # fmt: skip
        frames = {name: pd.DataFrame(rows) for name, rows in self.rows.found.items()}
        return write_measurement(out, frames, manifest)

    def _measure(self, contestants: Sequence[Contestant], point: Point) -> None:
        """One point: coverage first, so that what is timed has it whenever time runs out."""
        seats = [seat for who in contestants if (seat := self._seat(who, point)) is not None]
        self._step(f"warming up {words(point)}")
        self._warm_up(seats)
        plain = [seat for seat in seats if not seat.contestant.watched]
        self._step(f"memory and coverage, {words(point)}")
        for seat in plain:
            self.rows.memory(seat)
            self.rows.coverage(seat)
            self.rows.device(seat)
        longest_s = 0.0
        for number in range(self.asked.rounds):
            if self._late(f"round {number + 1} and later of {words(point)}", needs_s=longest_s):
                return
            self._step(f"round {number + 1} of {self.asked.rounds}, {words(point)}")
            here, began = [seat for seat in seats if number < self.rounds_of[seat]], machine.now()
            for order, i in enumerate(order_of(len(here), number)):
                self.rows.sample(here[i], number, order)
            longest_s = max(longest_s, machine.now() - began)
        self.token_s = longest_s / (point.batch * (point.prompt_tokens + point.output_tokens))
        self._step(f"checks, {words(point)}")
        if self.asked.checks and not self._late(f"checks and energy of {words(point)}"):
            self.rows.checks(plain)
        if not self._late(f"energy of {words(point)}"):
            self.rows.energy(plain, self.counters, self.idle_watts)
        self.rounds_of.clear()  # a seat may hold a cache

    def _points(self, contestants: Sequence[Contestant]) -> list[Point]:
        """The points whose runs fit into memory; the others are left out by name."""
        found, who = [], " and ".join(self._models())
        for point in self.asked.points:
            runs = []
            for each in contestants:
                size = each.model.module.dtype.itemsize
                needed = run_memory.of_run(each.model.topology, point, value_bytes=size)
                runs += [(needed, each.decode == "graphs")] if needed is not None else []
            free = kernels.free_bytes(self.model.device)
            reason = run_memory.refusal(who, words(point), run_memory.together(runs), free) if runs else ""
            self.left_out += [reason] if reason else []
            found += [] if reason else [point]
        if not found:
            raise MeasurementError(f"no point fits into memory: {'; '.join(self.left_out)}.")
        return found

    def _late(self, what: str, *, needs_s: float = 0.0) -> bool:
        """Whether the time is up, or would be; what is then not begun is said."""
        limit_s = self.asked.limit_s
        self.is_late = self.is_late or (bool(limit_s) and machine.now() - self.began + needs_s > limit_s)
        if self.is_late:
            self.left_out.append(f"{what}: the limit of {limit_s:g} s was reached")
        return self.is_late

    def _models(self) -> dict[str, Model]:
        """By the names that stand in the tables; two of one name are told apart by revision, or by a number."""
        both = [self.model, *([self.against] if self.against is not None else [])]
        names = [each.name for each in both]
        if len(set(names)) < len(names):
            names = [f"{each.name}@{each.revision}" if each.revision else each.name for each in both]
        if len(set(names)) < len(names):
            names[1] += " again"
        return dict(zip(names, both, strict=True))

    @property
    def _first(self) -> str:
        return next(iter(self._models()))

    def _contestants(self) -> list[Contestant]:
        (label, model), *others = self._models().items()
        routings = [Routing.parse(text) for text in self.asked.routings]
        experts = self._implementations()
        decode, *launches = self._launches()
        if not model.topology.routers:
            wrong = [str(each) for each in routings if each.kind != "natural"]
            if wrong and self.asked.routings != Asked.routings:
                raise MeasurementError(f"routing is {wrong[0]}, but {label} has no router to force.")
            routings = routings[:1] if not wrong else [Routing("natural")]
        base = Contestant(label, model, routings[0], experts[0], decode=decode)
        beside = [
            Contestant(name, other, experts=kernels.in_use(other.module), decode=decode) for name, other in others
        ]
        found = [base, *beside]
        found += [Contestant(label, model, each, experts[0]) for each in routings[1:]]
        found += [Contestant(label, model, routings[0], each, decode=decode) for each in experts[1:]]
        if base.routing.kind == "natural":
            found += [
                Contestant(who.label, who.model, who.routing, who.experts, decode=each)
                for each in launches
                for who in (base, *beside)
            ]
        if self.asked.parts:
            found += [
                Contestant(who.label, who.model, who.routing, who.experts, watched=True) for who in (base, *beside)
            ]
        return found

    def _launches(self) -> list[str]:
        """The ways to launch a step that work here; eager where none of those asked for does."""
        works = []
        for name in self.asked.decode:
            reasons = [
                launch.why_not(each.module, name, torch.zeros((1, 2), dtype=torch.long, device=each.device))
                for each in (self._models().values() if name != "eager" else ())
            ]
            reason = next(filter(None, reasons), "")
            self.left_out += [f"decode {name}: {reason}"] if reason else []
            works += [] if reason else [name]
        return works or ["eager"]

    def _implementations(self) -> list[str]:
        module, now = self.model.module, kernels.in_use(self.model.module)
        wanted = self.asked.experts
        if not now:
            if wanted:
                raise MeasurementError(
                    f"experts implementation is {wanted[0]!r}, but {self.model.name} has no experts to switch."
                )
            return [""]
        if wanted is not None and (unknown := [name for name in wanted if name not in kernels.known(module)]):
            raise MeasurementError(
                f"experts implementation is {unknown[0]!r}; {', '.join(kernels.known(module))} were expected."
            )
        names = list(wanted) if wanted is not None else [now, *(n for n in kernels.known(module) if n != now)]
        probe = torch.zeros((1, 2), dtype=torch.long, device=self.model.device)
        works = []
        for name in names:
            reason = kernels.why_not(module, name, probe)
            if reason and wanted is not None:
                raise MeasurementError(f"experts implementation {name!r} does not run here: {reason}")
            if reason:
                self.left_out.append(f"experts implementation {name}: {reason}")
            else:
                works.append(name)
        return works

    def _check_dtype(self) -> None:
        """Runs two tokens through each model: what a device cannot do in a dtype is told before anything is timed."""
        for label, model in self._models().items():
            device, dtype = model.device, model.dtype
            try:
                if device.type == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
                    raise RuntimeError("its tensor cores know no bfloat16")
                with torch.inference_mode():
                    model.module(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise MeasurementError(
                    f"{label} does not run as {dtype} on {device.type}: {reason}. Give another --dtype (float32, "
                    "bfloat16, float16) or another --device."
                ) from error

    def _check_context(self) -> None:
        longest = max(point.prompt_tokens + point.output_tokens for point in self.asked.points)
        for label, model in self._models().items():
            mixed = model.topology.attention_layers
            if self.asked.prefill_chunk and mixed is not None and len(mixed) < model.topology.n_layers:
                raise MeasurementError(
                    f"prefill_chunk is {self.asked.prefill_chunk}, but {label} has layers that keep a state instead of "
                    "keys and values, and transformers begins them anew with every piece; leave --prefill-chunk out."
                )
            context = model.topology.context
            if context is not None and longest > context:
                raise MeasurementError(
                    f"{longest:,} tokens of prompt and output exceed {label}'s context of {context:,}; shorten "
                    "--prompt-length or --output-length."
                )

    def _seat(self, who: Contestant, point: Point) -> Seat | None:
        if who.experts == "batched_mm":
            topology, free = who.model.topology, kernels.free_bytes(who.model.device)
            copied = kernels.copied_bytes(topology, point, value_bytes=who.model.module.dtype.itemsize)
            if 2 * copied > free:
                self.left_out.append(
                    f"batched_mm at {words(point)}: it would copy {copied / 2**30:.1f} GiB of experts at once, and "
                    f"{free / 2**30:.1f} GiB are free"
                )
                return None
        return Seat(who, point, self.asked.prompts, self.asked.seed)

    def _warm_up(self, seats: Sequence[Seat]) -> None:
        """Warms up; the variants of a model get the fewest rounds that give an interval."""
        first_s = 0.0
        for seat in seats:
            who = seat.contestant
            warmed = warm_up(seat, most=self.asked.warm_up, limit_s=SLOW * first_s)
            first_s = first_s or warmed.last_s
            same = who.decode == self.rows.decode and not who.watched
            compared = who is seats[0].contestant or (who.label != self._first and same)
            self.rounds_of[seat] = self.asked.rounds if compared else min(self.asked.rounds, FEWEST_ROUNDS)
            self.warm_ups.append({**who.key(), **of_point(seat.point), "runs": warmed.runs, "settled": warmed.settled})

    def _step(self, what: str) -> None:
        if self.should_cancel is not None and self.should_cancel():
            raise Cancelled("cancelled; nothing of the measurement was written. Ask again to start it.")
        self.on_progress(self.done, self.total, what)
        self.done += 1


def _facts(model: Model) -> dict[str, Any]:
    module = model.module
    return {
        "name": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "dtype": model.dtype,
        "device": str(model.device),
        "devices": sorted({str(p.device) for p in module.parameters()}),
        "attention": module.config.get_text_config()._attn_implementation,
        "experts": kernels.in_use(module),
        "weights_bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
        "config_digest": config_digest(module),
        "topology": model.topology.to_json(),
    }
