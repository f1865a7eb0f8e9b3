"""One timed run: the prompts, whole or in pieces, then token by token with a static cache, over the bare model.

Our own loop and not `generate`, which on a GPU runs the experts of prefill and decode through different kernels, checks
stopping rules on the host, and cannot be marked. The most probable token is taken each time and nothing ends a text, so
every run of a point does the same work. Logits are computed at the last position only. The cache is allocated by the
prefill, as `generate` does. Axes: B rows, S prompt positions, N new tokens, P passes.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.efficiency.costs.workload import prefill_widths
from workbench.efficiency.instruments.clock import Clock
from workbench.efficiency.profiling.launch import Eager, forward
from workbench.errors import MeasurementError


@dataclass(frozen=True)
class Point:
    """The size of a run.

    Attributes:
        batch: B, prompts at once.
        prompt_tokens: S, of each.
        output_tokens: N, new tokens of each.
        prefill_chunk: Tokens of all rows that one pass over the prompts takes at most; 0 for the whole.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    prefill_chunk: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise MeasurementError(f"{name} is {getattr(self, name)}; 1 or more was expected.")

    @property
    def prefill_widths(self) -> list[int]:
        """Positions of each pass over the prompts."""
        return prefill_widths(self.batch, self.prompt_tokens, self.prefill_chunk)

    @property
    def widths(self) -> list[int]:
        """Positions of every pass of a run."""
        return self.prefill_widths + [1] * (self.output_tokens - 1)


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave.

    Attributes:
        ids_BN: The tokens it chose.
        token_s_N: Seconds from the start until the n-th token of every row was there, on the device.
        wall_s: Seconds of the wall clock until the device had done all.
        logits_BV: Behind the prompts, in float32.
        marks_s: Of every mark of the clock, seconds from the start.
        forward_s_P: Seconds of the host in the model's forward, pass by pass: on a CPU the model's work; on a GPU
            launching it, while the device may still be working.
    """

    ids_BN: torch.Tensor
    token_s_N: np.ndarray
    wall_s: float
    logits_BV: torch.Tensor
    marks_s: np.ndarray
    forward_s_P: np.ndarray


def run(
    module: Any, ids_BS: torch.Tensor, *, output_tokens: int, before_step: Callable[[int], None] | None = None,
    clock: Clock | None = None, prefill_chunk: int = 0, launcher: Eager | None = None,
) -> Run:  # fmt: skip
    """Continues prompts of one length, and marks when each token is there.

    Args:
        module: The unwrapped model.
        ids_BS: The prompts.
        output_tokens: N.
        before_step: Told the number of each pass before it: 0 for the first piece of the prompts.
        clock: To be started; a new one unless given.
        prefill_chunk: As of `Point`.
        launcher: Of the steps of decoding; operation by operation unless given.
    """
    rows, prompt = ids_BS.shape
    point = Point(rows, prompt, output_tokens, prefill_chunk)
    launcher = launcher or Eager(module)
    reads = len(point.prefill_widths)
    position_1T = torch.arange(point.prompt_tokens + output_tokens, device=ids_BS.device)[None]
    chosen, marks, host_s, first, tokens, at = [], [], [], None, ids_BS, 0
    with torch.inference_mode(), _undisturbed():
        cache = launcher.cache(_positions(point, ids_BS.device))
        clock = (clock or Clock(ids_BS.device)).start()
        for number, width in enumerate(point.widths):
            if before_step is not None:
                before_step(number)
            given = ids_BS[:, at : at + width] if number < reads else tokens
            began = time.perf_counter()
            position_BS = position_1T[:, at : at + width].expand(point.batch, -1)
            if number < reads:
                logits_BV = forward(module, given, position_BS, cache)
            else:
                logits_BV = launcher.step(given, position_BS, cache)
            host_s.append(time.perf_counter() - began)
            at += width
            if number < reads - 1:
                continue
            tokens = logits_BV.argmax(-1, keepdim=True)
            marks.append(clock.mark())
            chosen.append(tokens)
            first = logits_BV if first is None else first
        seconds, wall_s = clock.stop()
    assert first is not None
    return Run(torch.cat(chosen, 1), seconds[marks], wall_s, first.float(), seconds, np.array(host_s))


def _positions(point: Point, device: torch.device) -> int:
    """Of the cache. On CUDA a multiple of 16, which the attention kernels want of a mask's rows."""
    wanted = point.prompt_tokens + point.output_tokens
    return wanted if device.type != "cuda" else -(-wanted // 16) * 16


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Python's collector runs before, not in between."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
