"""The tables of a measurement, row by row: what one run of a seat adds to each.

Only `sample` is timed. Memory, coverage, the device's own time, checks and energy are taken in runs beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from workbench.efficiency.instruments import energy, kernel_time, machine
from workbench.efficiency.instruments.peak_memory import peak_of
from workbench.efficiency.profiling import breakdown, kernels
from workbench.efficiency.profiling.settings import of_point
from workbench.efficiency.profiling.variants import Seat
from workbench.metrics.sequence import expected_activated_experts, uniform_activated_experts
from workbench.models.topology import Router

ENERGY_WINDOW_S = 2.0


@dataclass(eq=False)
class Rows:
    """Rows by table.

    Attributes:
        first: The label of the measured model.
        base: How its experts run where it is compared.
        decode: How its steps are launched there.
        began: When the measurement began.
        found: The rows.
    """

    first: str
    base: str
    decode: str
    began: float
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def sample(self, seat: Seat, number: int, order: int) -> None:
        """One timed run, and its parts where it is watched."""
        started = machine.now() - self.began
        run, parts = seat.run()
        self._row(
            "samples", seat, round=number, order=order, started_s=started, wall_s=run.wall_s,
            token_s=run.token_s_N.tolist(), forward_s=run.forward_s_P.tolist(),
        )  # fmt: skip
        if not seat.contestant.watched:
            return
        reads = len(seat.point.prefill_widths)
        whole = {"prefill": float(run.token_s_N[0]), "decode": float(run.token_s_N[-1] - run.token_s_N[0])}
        for phase, whole_s in whole.items():
            if phase == "decode" and seat.point.output_tokens == 1:
                continue
            own: dict[str, float] = {}
            for (step, part), seconds in parts.items():
                if (step < reads) == (phase == "prefill"):
                    own[part] = own.get(part, 0.0) + seconds
            own["rest"] = whole_s - sum(own.values())
            for part in breakdown.PARTS:
                if part in own:
                    self._row("parts", seat, round=number, phase=phase, part=part, seconds=own[part], whole_s=whole_s)

    def memory(self, seat: Seat) -> None:
        """The most memory of a run."""
        peak = peak_of(seat.run, seat.contestant.model.device)
        self._row(
            "memory", seat, before_bytes=peak.before_bytes, peak_bytes=peak.peak_bytes, counter=peak.counter,
        )  # fmt: skip

    def coverage(self, seat: Seat) -> None:
        """Distinct experts of the passes; other kernels and launches meet the same."""
        who = seat.contestant
        routers = who.model.topology.routers
        if not routers or who.decode != self.decode or (who.label == self.first and who.experts != self.base):
            return
        counts, reads = seat.counts(), len(seat.point.prefill_widths)
        for router in routers:
            counts_SE = np.stack(counts[router.experts_path])
            self._row("coverage", seat, **_coverage("prefill", router, counts_SE[:reads]))
            if len(counts_SE) > reads:
                self._row("coverage", seat, **_coverage("decode", router, counts_SE[reads:]))

    def device(self, seat: Seat) -> None:
        """How long the device worked in prefill and decode; on a CPU no row, for it has no time of its own."""
        device = seat.contestant.model.device
        if device.type != "cuda":
            return
        prefill_s = kernel_time.busy_seconds(seat.prefill, device)
        self._row("device", seat, phase="prefill", busy_s=prefill_s)
        if seat.point.output_tokens > 1:
            self._row("device", seat, phase="decode", busy_s=kernel_time.busy_seconds(seat.run, device) - prefill_s)

    def checks(self, seats: Sequence[Seat]) -> None:
        """Our loop beside `generate`, each implementation of the experts and each way to launch beside the first."""
        base = seats[0]
        first, _ = base.run()
        for seat in seats:
            who = seat.contestant
            mine = who.label == self.first
            if who.decode == self.decode and who.routing.kind == "natural" and (not mine or who.experts == self.base):
                ours, written = seat.run()[0].ids_BN, _generated(seat)
                self._row(
                    "checks", seat, check="generate", tokens_same=float((ours == written).float().mean()),
                    logit_difference=float("nan"), largest_logit=float("nan"),
                )  # fmt: skip
            elif mine and who.routing == base.contestant.routing:
                run, _ = seat.run()
                name = self.base if who.experts != self.base else f"decode {self.decode}"
                self._row(
                    "checks", seat, check=f"as {name}",
                    tokens_same=float((run.ids_BN == first.ids_BN).float().mean()),
                    logit_difference=float((run.logits_BV - first.logits_BV).abs().max()),
                    largest_logit=float(first.logits_BV.abs().max()),
                )  # fmt: skip

    def energy(self, seats: Sequence[Seat], counters: Sequence[energy.Counter], idle_watts: Sequence[float]) -> None:
        """Joules of as many runs as fill the window, beside what the machine takes while it does nothing."""
        if not counters:
            return
        for seat in seats:
            runs, began = 0, machine.now()
            before = [counter.read_joules() for counter in counters]
            while machine.now() - began < ENERGY_WINDOW_S:
                seat.run()
                runs += 1
            window_s = machine.now() - began
            for counter, start, idle in zip(counters, before, idle_watts, strict=True):
                joules = counter.between(start, counter.read_joules())
                self._row(
                    "energy", seat, counter=counter.name, runs=runs, window_s=window_s, joules=joules, idle_watts=idle,
                )  # fmt: skip

    def _row(self, table: str, seat: Seat, **values: Any) -> None:
        self.found.setdefault(table, []).append({**seat.contestant.key(), **of_point(seat.point), **values})


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
