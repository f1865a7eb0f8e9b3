"""How long the device itself works in a run: the sum of its kernels, by torch's profiler, in runs of their own.

Events in the stream span what lies between them, and a device that waits for the host is idle within that span; only
its kernels say how long it worked. On a CPU there is no such thing: host and device are one.
"""

from collections.abc import Callable
from typing import Any

import torch

from workbench.efficiency.instruments.clock import synchronize


def busy_seconds(work: Callable[[], object], device: torch.device, *, profiler: Any = None) -> float:
    """Seconds of all kernels and copies of some work on a CUDA device, one stream of them.

    Args:
        work: What is run, once.
        device: Where it computes.
        profiler: torch's, unless given.
    """
    profiler = profiler or torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    synchronize(device)
    with profiler:
        work()
        synchronize(device)
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
