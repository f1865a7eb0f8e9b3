"""Measures two served models, round by round: the whole of `workbench serve-bench`.

A round at a point is one run of requests against each of them, one after the other, every other round in the opposite
order. Every request is kept, also those that failed; what they say is the analyses' business.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.efficiency.measurements.measurement import Measurement, refuse_occupied, write_measurement
from workbench.efficiency.serving.endpoints import Endpoint
from workbench.efficiency.serving.guidellm import COMPLETE, OUTCOMES, Load, require_guidellm, send
from workbench.errors import MeasurementError

PROMPTS = ("identical", "unique")
FEWEST_PER_STREAM = 2
"""Requests of a run for each one in flight, so that a level is held for a while and not only reached."""


@dataclass(frozen=True)
class Served:
    """What is measured.

    Attributes:
        prompts: `identical` (one text for all), `unique`, or both.
        concurrencies: Requests in flight of the points with a closed loop.
        rates: Requests per second of the points with Poisson arrivals.
        prompt_lengths: Tokens of a prompt.
        output_lengths: Tokens asked of an answer.
        requests: Of a run; twice the concurrency where that is more.
        rounds: Runs of each model at each point.
        corpus: Where prompts are cut from.
        timeout_s: Without a byte, until a request is given up.
        limit_s: Until a run is ended.
        seed: Of prompts and arrivals.
    """

    prompts: tuple[str, ...] = PROMPTS
    concurrencies: tuple[int, ...] = (1, 8, 32)
    rates: tuple[float, ...] = ()
    prompt_lengths: tuple[int, ...] = (1000,)
    output_lengths: tuple[int, ...] = (100,)
    requests: int = 64
    rounds: int = 7
    corpus: str = "demo"
    timeout_s: float = 60.0
    limit_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_lengths", "output_lengths"):
            if not getattr(self, name):
                raise MeasurementError(f"{name} is empty; one or more was expected.")
        if unknown := [kind for kind in self.prompts if kind not in PROMPTS]:
            raise MeasurementError(f"prompts is {unknown[0]!r}; {' or '.join(PROMPTS)} was expected.")
        if not self.concurrencies and not self.rates:
            raise MeasurementError("neither a concurrency nor a rate was given; one or more was expected.")
        numbers = {
            "concurrency": self.concurrencies, "rate": self.rates, "prompt length": self.prompt_lengths,
            "output length": self.output_lengths, "requests": (self.requests,), "rounds": (self.rounds,),
            "timeout": (self.timeout_s,), "limit": (self.limit_s,),
        }  # fmt: skip
        for what, values in numbers.items():
            if wrong := [value for value in values if not value > 0]:
                raise MeasurementError(f"{what} is {wrong[0]:g}; a number above zero was expected.")

    @property
    def loads(self) -> list[Load]:
        """How requests come, closed loops first."""
        return [
            *(Load("concurrency", n) for n in self.concurrencies),
            *(Load("rate", rate) for rate in self.rates),
        ]

    @property
    def points(self) -> list["ServedPoint"]:
        """Every combination."""
        every = itertools.product(self.loads, self.prompt_lengths, self.output_lengths, self.prompts)
        return [ServedPoint(*each) for each in every]

    def requests_of(self, load: Load) -> int:
        """Requests of a run."""
        return max(self.requests, FEWEST_PER_STREAM * int(load.level)) if load.kind == "concurrency" else self.requests


@dataclass(frozen=True)
class ServedPoint:
    """A load with its prompts and lengths."""

    load: Load
    prompt_tokens: int
    output_tokens: int
    prompts: str

    def key(self) -> dict[str, Any]:
        """What names it in the table."""
        return {
            "prompts": self.prompts, "load": self.load.kind, "level": float(self.load.level),
            "prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.load}, {self.prompt_tokens} + {self.output_tokens} tokens, {self.prompts} prompts"


def serve_bench(
    moe: Endpoint, dense: Endpoint, out: Path, *, asked: Served = Served(),
    on_progress: Callable[[int, int, str], None] | None = None, launched: dict[str, Any] | None = None,
) -> Measurement:  # fmt: skip
    """Measures two endpoints beside each other.

    Args:
        moe: The first; ratios are its over the other's.
        dense: The second.
        out: A new or empty folder.
        asked: What is measured.
        on_progress: Told steps done, steps in all, and what is being done.
        launched: How the servers were started, where this machine did.

    Raises:
        MeasurementError: the folder is occupied; guidellm is missing; a tokenizer cannot be read; the corpus is too
            small; no request of either was answered whole.
    """
    refuse_occupied(out)
    require_guidellm()
    if moe.label == dense.label:
        raise MeasurementError(
            f"both endpoints serve {moe.label!r}; give them names of their own: --moe-name, --dense-name."
        )
    return _Bench((moe, dense), asked, on_progress or (lambda *_: None)).write(out, launched)


@dataclass(eq=False)
class _Bench:
    endpoints: tuple[Endpoint, Endpoint]
    asked: Served
    on_progress: Callable[[int, int, str], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    done: int = 0

    def write(self, out: Path, launched: dict[str, Any] | None) -> Measurement:
        """Measures, and writes what was found; nothing is on disk before."""
        import torch

        from workbench.efficiency.instruments import machine
        from workbench.efficiency.profiling.variants import order_of
        from workbench.efficiency.serving.prompts import Texts, counter
        from workbench.export.files import software_versions

        counts = {each.label: counter(each.tokenizer) for each in self.endpoints}
        texts = Texts(self.asked.corpus, counts, self.asked.seed)
        same = {length: texts.take(length) for length in self.asked.prompt_lengths}
        before, began_s = machine.load_average(), time.time()
        points = self.asked.points
        total = len(points) * self.asked.rounds + 1
        self._step(total, "priming both")
        self._prime(points[0], same)
        for point in points:
            n = self.asked.requests_of(point.load)
            for number in range(self.asked.rounds):
                self._step(total, f"round {number + 1} of {self.asked.rounds}, {point}")
                unique = [texts.take(point.prompt_tokens) for _ in range(n if point.prompts == "unique" else 0)]
                for order, i in enumerate(order_of(2, number)):
                    who = self.endpoints[i]
                    prompts = [each[who.label] for each in unique] or [same[point.prompt_tokens][who.label]] * n
                    self._run(who, point, prompts, {"round": number, "order": order}, began_s)
                if silent := self._silent(point, number):
                    self.left_out.append(
                        f"{point}, after round {number + 1}: no request of {silent} was answered whole"
                    )
                    self.done += self.asked.rounds - number - 1
                    break
        table = pd.DataFrame(self.rows)
        if not (table["outcome"] == COMPLETE).any():
            counted = ", ".join(f"{n} {what}" for what, n in table["outcome"].value_counts().items())
            first = next((row["error"] for row in self.rows if row["error"]), "")
            raise MeasurementError(
                f"none of {len(table)} requests was answered whole ({counted}"
                f"{f'; the first: {first[:200]}' * bool(first)}); nothing was written. Look at the servers' logs."
            )
        facts = machine.facts(torch.device("cpu"))
        manifest = {
            "models": {each.label: each.facts() for each in self.endpoints},
            "settings": asdict(self.asked),
            "outcomes": list(OUTCOMES),
            "machine": facts | ({"threads": launched["threads"]} if launched else {}),
            "launched": launched or {},
            "load_average": {"before": before, "after": machine.load_average()},
            "left_out": self.left_out,
            "versions": software_versions() | {"guidellm": version("guidellm")},
        }
        return write_measurement(out, {"requests": table}, manifest)

    def _step(self, total: int, words: str) -> None:
        self.on_progress(self.done, total, words)
        self.done += 1

    def _prime(self, point: ServedPoint, same: dict[int, dict[str, str]]) -> None:
        """Requests that are not kept: a server's first ones take long, and so does the load generator's first run."""
        for who in self.endpoints:
            self._send(who, point, [same[point.prompt_tokens][who.label]] * 2, 0)

    def _send(self, who: Endpoint, point: ServedPoint, prompts: list[str], number: int) -> list[dict[str, Any]]:
        return send(
            who, prompts, point.load, output_tokens=point.output_tokens, seed=self.asked.seed + number,
            timeout_s=self.asked.timeout_s, limit_s=self.asked.limit_s,
        )  # fmt: skip

    def _run(self, who: Endpoint, point: ServedPoint, prompts: list[str], at: dict[str, int], began_s: float) -> None:
        key = {"model": who.label, **point.key(), **at}
        for i, row in enumerate(self._send(who, point, prompts, at["round"])):
            times = {name: row[name] - began_s for name in ("due_s", "sent_s", "end_s")}
            self.rows.append({**key, "request": i, **row, **times})

    def _silent(self, point: ServedPoint, number: int) -> str:
        """Whose requests all failed in a round, if somebody's did."""
        here = [row for row in self.rows if row["round"] == number and point.key().items() <= row.items()]
        whole = {row["model"] for row in here if row["outcome"] == COMPLETE}
        return ", ".join(each.label for each in self.endpoints if each.label not in whole)
