"""One timed run: the prompts in one pass, then token by token with a static cache, over the bare model.

Our own loop and not `generate`, which on a GPU runs the experts of prefill and decode through different kernels, checks
stopping rules on the host, and cannot be marked. The most probable token is taken each time and nothing ends a text, so
every run of a point does the same work. Logits are computed at the last position only. The cache is allocated by the
prefill, as `generate` does. Axes: B rows, S prompt positions, N new tokens.
"""

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, StaticCache

from workbench.efficiency.clock import Clock
from workbench.errors import MeasurementError


@dataclass(frozen=True)
class Point:
    """The size of a run.

    Attributes:
        batch: B, prompts at once.
        prompt_tokens: S, of each.
        output_tokens: N, new tokens of each.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name in ("batch", "prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise MeasurementError(f"{name} is {getattr(self, name)}; 1 or more was wanted.")


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave.

    Attributes:
        ids_BN: The tokens it chose.
        token_s_N: Seconds from the start until the n-th token of every row was there, on the device.
        wall_s: Seconds of the wall clock until the device had done all.
        logits_BV: Behind the prompts, in float32.
        marks_s: Of every mark of the clock, seconds from the start.
    """

    ids_BN: torch.Tensor
    token_s_N: np.ndarray
    wall_s: float
    logits_BV: torch.Tensor
    marks_s: np.ndarray


def run(
    module: Any, ids_BS: torch.Tensor, *, output_tokens: int, before_step: Callable[[int], None] | None = None,
    clock: Clock | None = None,
) -> Run:  # fmt: skip
    """Continues prompts of one length, and marks when each token is there.

    Args:
        module: The unwrapped model.
        ids_BS: The prompts.
        output_tokens: N.
        before_step: Told the number of each pass before it: 0 for the prompts.
        clock: To be started; a new one unless given.
    """
    rows, prompt = ids_BS.shape
    keeps = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}
    position_1T = torch.arange(prompt + output_tokens, device=ids_BS.device)[None]
    cache = new_cache(module, prompt + output_tokens)
    chosen, marks, first, tokens, at = [], [], None, ids_BS, 0
    with torch.inference_mode(), _undisturbed():
        clock = (clock or Clock(ids_BS.device)).start()
        for step in range(output_tokens):
            if before_step is not None:
                before_step(step)
            width = tokens.shape[1]
            logits_BV = module(
                input_ids=tokens, position_ids=position_1T[:, at : at + width].expand(rows, -1),
                past_key_values=cache, use_cache=True, **keeps,
            ).logits[:, -1]  # fmt: skip
            tokens = logits_BV.argmax(-1, keepdim=True)
            marks.append(clock.mark())
            chosen.append(tokens)
            first = logits_BV if first is None else first
            at += width
        seconds, wall_s = clock.stop()
    assert first is not None
    return Run(torch.cat(chosen, 1), seconds[marks], wall_s, first.float(), seconds)


def new_cache(module: Any, positions: int) -> Any:
    """A static cache; a growing one where the family has layers that transformers keeps no static cache for."""
    try:
        return StaticCache(config=module.config, max_cache_len=positions)
    except (KeyError, ValueError, AttributeError, NotImplementedError):
        return DynamicCache(config=module.config)


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
