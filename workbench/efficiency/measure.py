"""Measures a model on this machine, beside another one: the whole of `workbench profile`.

At each point all contestants are warmed up and then timed in rounds; memory, coverage, checks and energy are taken in
runs of their own, which are not timed. Raw samples are kept; what they say is the analyses' business.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.efficiency import breakdown, energy, kernels, machine
from workbench.efficiency.contest import Contestant, Seat, order_of, warm_up
from workbench.efficiency.decode import Point
from workbench.efficiency.peak import peak_of
from workbench.efficiency.prompts import kind_of
from workbench.efficiency.routing import Routing
from workbench.errors import MeasurementError
from workbench.export import software_versions
from workbench.measurement import Measurement, refuse_occupied, write_measurement
from workbench.metrics.sequence import expected_activated_experts, uniform_activated_experts
from workbench.models.loading import Model, config_digest
from workbench.models.topology import Router

ENERGY_WINDOW_S = 2.0
SLOW = 4.0
"""A contestant whose first run takes this many times the first one's is not warmed up further."""
FEWEST_ROUNDS = 6
"""That give a 95 % interval of a median."""


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        batches: B of the points.
        prompt_lengths: S of the points.
        output_lengths: N of the points.
        routings: Of the measured model; the first stands beside the other model, the rest beside the first.
        experts: Implementations of the measured model's experts, likewise; None for what it runs now, and then all
            others that work here.
        prompts: `auto`, `random`, `identical`, or a corpus.
        rounds: Timed runs of each model at each point; of its variants (routings, kernels, watched) 6 at most.
        warm_up: Most runs before them.
        parts: Whether the parts of a pass are timed too.
        seed: Of prompts and forced routing.
    """

    batches: tuple[int, ...] = (1, 16)
    prompt_lengths: tuple[int, ...] = (64,)
    output_lengths: tuple[int, ...] = (16,)
    routings: tuple[str, ...] = ("natural", "uniform", "worst")
    experts: tuple[str, ...] | None = None
    prompts: str = "auto"
    rounds: int = 9
    warm_up: int = 4
    parts: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "prompt_lengths", "output_lengths", "routings"):
            if not getattr(self, name):
                raise MeasurementError(f"{name} is empty; one or more was wanted.")
        if self.rounds < 1 or self.warm_up < 1:
            raise MeasurementError(f"rounds is {self.rounds}, warm_up {self.warm_up}; 1 or more of each was wanted.")

    @property
    def points(self) -> list[Point]:
        """Every combination of batch and lengths."""
        return [Point(*sizes) for sizes in product(self.batches, self.prompt_lengths, self.output_lengths)]


def profile(
    model: Model, out: Path, *, against: Model | None = None, asked: Asked = Asked(),
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Measurement:  # fmt: skip
    """Measures a model, and another one beside it.

    Args:
        model: The measured model, unwrapped.
        out: A new or empty folder.
        against: A model to compare with, in memory at the same time.
        asked: What is measured.
        on_progress: Told steps done, steps in all, and what is being done.

    Raises:
        MeasurementError: the folder is occupied; a routing or an implementation that is unknown or does not run here;
            a text longer than a model's context.
    """
    refuse_occupied(out)
    with _still_heap():
        return _Profile(model, against, asked, on_progress or (lambda *_: None)).write(out)


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
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warm_ups: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rounds_of: dict[Seat, int] = field(default_factory=dict)
    done: int = 0
    total: int = 0

    def write(self, out: Path) -> Measurement:
        """Measures, and writes what was found."""
        contestants = self._contestants()
        self._check_context()
        device = self.model.device
        load_before, first = machine.load_average(), machine.ceiling(device, self.model.module.dtype)
        began = machine.now()
        counters, no_energy = energy.counters(device.type)
        self.total = len(self.asked.points) * (self.asked.rounds + 3)
        for point in self.asked.points:
            seats = [seat for who in contestants if (seat := self._seat(who, point)) is not None]
            self._step(f"warming up {_words(point)}")
            self._warm_up(seats)
            for number in range(self.asked.rounds):
                self._step(f"round {number + 1} of {self.asked.rounds}, {_words(point)}")
                here = [seat for seat in seats if number < self.rounds_of[seat]]
                for order, i in enumerate(order_of(len(here), number)):
                    self._sample(here[i], number, order, began)
            plain = [seat for seat in seats if not seat.contestant.watched]
            self._step(f"memory and coverage, {_words(point)}")
            for seat in plain:
                self._memory(seat)
                self._coverage(seat)
            self._step(f"checks, {_words(point)}")
            self._checks(plain)
            self._energy(plain, counters)
        last = machine.ceiling(device, self.model.module.dtype)
        prompts = {label: kind_of(each, self.asked.prompts) for label, each in self._models().items()}
        manifest = {
            "models": {label: _facts(each) for label, each in self._models().items()},
            "settings": {**self.asked.__dict__, "prompts": prompts},
            "base": {"routing": str(contestants[0].routing), "experts": contestants[0].experts},
            "machine": machine.facts(device),
            "load_average": {"before": load_before, "after": machine.load_average()},
            "ceiling": {"before": first.__dict__, "after": last.__dict__, "dtype": self.model.dtype},
            "hook_s": breakdown.hook_seconds(device),
            "warm_up": self.warm_ups,
            "left_out": self.left_out,
            "energy": no_energy or ", ".join(counter.name for counter in counters),
            "versions": software_versions(),
        }  # fmt: skip
        tables = {name: pd.DataFrame(rows) for name, rows in self.rows.items()}
        return write_measurement(out, tables, manifest)

    def _models(self) -> dict[str, Model]:
        """By the names that stand in the tables; two of one name are told apart by revision, or by a number."""
        both = [self.model, *([self.against] if self.against is not None else [])]
        names = [each.name for each in both]
        if len(set(names)) < len(names):
            names = [f"{each.name}@{each.revision}" if each.revision else each.name for each in both]
        if len(set(names)) < len(names):
            names[1] += " again"
        return dict(zip(names, both, strict=True))

    def _contestants(self) -> list[Contestant]:
        (label, model), *others = self._models().items()
        routings = [Routing.parse(text) for text in self.asked.routings]
        experts = self._implementations()
        if not model.topology.routers:
            wrong = [str(each) for each in routings if each.kind != "natural"]
            if wrong and self.asked.routings != Asked.routings:
                raise MeasurementError(f"routing is {wrong[0]}, but {label} has no router to force.")
            routings = routings[:1] if not wrong else [Routing("natural")]
        base = Contestant(label, model, routings[0], experts[0])
        beside = [Contestant(name, other, experts=kernels.in_use(other.module)) for name, other in others]
        found = [base, *beside]
        found += [Contestant(label, model, each, experts[0]) for each in routings[1:]]
        found += [Contestant(label, model, routings[0], each) for each in experts[1:]]
        if self.asked.parts:
            found += [
                Contestant(who.label, who.model, who.routing, who.experts, watched=True) for who in (base, *beside)
            ]
        return found

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
                f"experts implementation is {unknown[0]!r}; {', '.join(kernels.known(module))} were wanted."
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

    def _check_context(self) -> None:
        longest = max(point.prompt_tokens + point.output_tokens for point in self.asked.points)
        for label, model in self._models().items():
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
                    f"batched_mm at {_words(point)}: it would copy {copied / 2**30:.1f} GiB of experts at once, and "
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
            compared = who is seats[0].contestant or (who.label != self._first and not who.watched)
            self.rounds_of[seat] = self.asked.rounds if compared else min(self.asked.rounds, FEWEST_ROUNDS)
            self.warm_ups.append({**who.key(), **_of(seat.point), "runs": warmed.runs, "settled": warmed.settled})

    def _step(self, words: str) -> None:
        self.on_progress(self.done, self.total, words)
        self.done += 1

    def _row(self, table: str, seat: Seat, **values: Any) -> None:
        self.rows.setdefault(table, []).append({**seat.contestant.key(), **_of(seat.point), **values})

    def _sample(self, seat: Seat, number: int, order: int, began: float) -> None:
        started = machine.now() - began
        run, parts = seat.run()
        self._row(
            "samples", seat, round=number, order=order, started_s=started, wall_s=run.wall_s,
            token_s=run.token_s_N.tolist(),
        )  # fmt: skip
        if not seat.contestant.watched:
            return
        whole = {"prefill": float(run.token_s_N[0]), "decode": float(run.token_s_N[-1] - run.token_s_N[0])}
        for phase, whole_s in whole.items():
            if phase == "decode" and seat.point.output_tokens == 1:
                continue
            own: dict[str, float] = {}
            for (step, part), seconds in parts.items():
                if (step == 0) == (phase == "prefill"):
                    own[part] = own.get(part, 0.0) + seconds
            own["rest"] = whole_s - sum(own.values())
            for part in breakdown.PARTS:
                if part in own:
                    self._row("parts", seat, round=number, phase=phase, part=part, seconds=own[part], whole_s=whole_s)

    def _memory(self, seat: Seat) -> None:
        peak = peak_of(seat.run, seat.contestant.model.device)
        self._row(
            "memory", seat, before_bytes=peak.before_bytes, peak_bytes=peak.peak_bytes, counter=peak.counter,
        )  # fmt: skip

    def _coverage(self, seat: Seat) -> None:
        routers, base = seat.contestant.model.topology.routers, self.rows["samples"][0]["experts"]
        if not routers or (seat.contestant.label == self._first and seat.contestant.experts != base):
            return  # other kernels meet the same experts
        counts = seat.counts()
        for router in routers:
            counts_SE = np.stack(counts[router.experts_path])
            self._row("coverage", seat, **_coverage("prefill", router, counts_SE[:1]))
            if len(counts_SE) > 1:
                self._row("coverage", seat, **_coverage("decode", router, counts_SE[1:]))

    @property
    def _first(self) -> str:
        return next(iter(self._models()))

    def _checks(self, seats: Sequence[Seat]) -> None:
        """Our loop beside `generate`, and each implementation of the experts beside the first."""
        base = seats[0]
        first, _ = base.run()
        for seat in seats:
            who = seat.contestant
            if who.routing.kind == "natural" and (who.label != self._first or who.experts == base.contestant.experts):
                ours, written = seat.run()[0].ids_BN, _generated(seat)
                self._row(
                    "checks", seat, check="generate", tokens_same=float((ours == written).float().mean()),
                    logit_difference=float("nan"), largest_logit=float("nan"),
                )  # fmt: skip
            elif who.label == self._first and who.routing == base.contestant.routing:
                run, _ = seat.run()
                self._row(
                    "checks", seat, check=f"as {base.contestant.experts}",
                    tokens_same=float((run.ids_BN == first.ids_BN).float().mean()),
                    logit_difference=float((run.logits_BV - first.logits_BV).abs().max()),
                    largest_logit=float(first.logits_BV.abs().max()),
                )  # fmt: skip

    def _energy(self, seats: Sequence[Seat], counters: Sequence[energy.Counter]) -> None:
        if not counters:
            return
        for seat in seats:
            runs, began = 0, machine.now()
            before = [counter.read_joules() for counter in counters]
            while machine.now() - began < ENERGY_WINDOW_S:
                seat.run()
                runs += 1
            for counter, start in zip(counters, before, strict=True):
                joules = counter.between(start, counter.read_joules())
                self._row(
                    "energy", seat, counter=counter.name, runs=runs, window_s=machine.now() - began, joules=joules
                )


def _generated(seat: Seat) -> torch.Tensor:
    """The new tokens of transformers' own greedy `generate` for a seat's prompts."""
    module, ids_BS = seat.contestant.model.module, seat.ids_BS
    with kernels.using(module, seat.contestant.experts), torch.inference_mode():
        whole = module.generate(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), do_sample=False, eos_token_id=None,
            max_new_tokens=seat.point.output_tokens, min_new_tokens=seat.point.output_tokens, pad_token_id=0,
        )  # fmt: skip
    return whole[:, ids_BS.shape[1] :]


def _coverage(phase: str, router: Router, counts_SE: np.ndarray) -> dict[str, Any]:
    """Distinct experts in the passes of one phase, beside what even and independent choices would meet."""
    distinct_S = (counts_SE > 0).sum(1)
    tokens = int(counts_SE[0].sum()) // router.top_k
    independent = float("nan")  # one pass says nothing of its own expectation
    if len(counts_SE) > 1:
        pooled = expected_activated_experts(counts_SE.sum(0), tokens_B=np.array([tokens]), top_k=router.top_k)
        independent = float(pooled[0])
    uniform = uniform_activated_experts(tokens_B=np.array([tokens]), n_experts=router.n_experts, top_k=router.top_k)
    return {
        "phase": phase, "layer": router.layer, "site": router.site, "tokens": tokens, "passes": len(counts_SE),
        "distinct": float(distinct_S.mean()), "lowest": int(distinct_S.min()), "highest": int(distinct_S.max()),
        "uniform": float(uniform[0]), "independent": independent, "n_experts": router.n_experts, "top_k": router.top_k,
    }  # fmt: skip


def _of(point: Point) -> dict[str, int]:
    return {"batch": point.batch, "prompt_tokens": point.prompt_tokens, "output_tokens": point.output_tokens}


def _words(point: Point) -> str:
    return f"{point.batch} x {point.prompt_tokens} + {point.output_tokens} tokens"


def _facts(model: Model) -> dict[str, Any]:
    module = model.module
    return {
        "name": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "dtype": model.dtype,
        "device": str(model.device),
        "attention": module.config.get_text_config()._attn_implementation,
        "experts": kernels.in_use(module),
        "weights_bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
        "config_digest": config_digest(module),
        "topology": model.topology.to_json(),
    }
