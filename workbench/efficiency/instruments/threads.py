"""How many threads compute on a CPU: as many as asked for, or whichever of all and one is faster for this model here.

Threads of a parallel region wait for the slowest, turning in place. Where others use the machine one of them often does
not run, and small operations then take many times as long with two threads as with one. So both are tried.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TRIES = 2


@contextmanager
def chosen(work: Callable[[], float], *, asked: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """A block in which so many threads compute; yields how many, and what was found out.

    Args:
        work: Runs something and tells its seconds; called only where there is something to find out.
        asked: How many; 0 to find out.
        device: Where the model computes; only a CPU has threads to choose.
    """
    before = torch.get_num_threads()
    told: dict[str, Any] = {"threads": asked or before}
    if device.type == "cpu" and not asked and before > 1:
        least: dict[int, float] = {}
        for number in range(TRIES + 1):
            for threads in (before, 1):
                torch.set_num_threads(threads)
                seconds = work()
                if number:  # the first warms up
                    least[threads] = min(seconds, least.get(threads, float("inf")))
        told = {"threads": min(least, key=lambda n: least[n]), "tried_s": {str(n): s for n, s in least.items()}}
    if device.type == "cpu":
        torch.set_num_threads(int(told["threads"]))
    try:
        yield told
    finally:
        torch.set_num_threads(before)
