"""How long a step takes at least on a device: the longer of computing and of reading, each at its peak.

A floor, not a forecast: no kernel reaches the peaks, and launching, communicating and scheduling take no time here.
"""

from dataclasses import dataclass

import numpy as np

from workbench.efficiency.costs.devices import Device
from workbench.efficiency.costs.formulas import (
    cache_bytes,
    decode_flops,
    dtype_bytes,
    prefill_flops,
    step_bytes,
    weights_read,
)
from workbench.models.topology import Topology


@dataclass(frozen=True)
class Floor:
    """The least time of some work.

    Attributes:
        flops: Floating-point operations.
        n_bytes: Bytes read and written.
        compute_s: Time of the operations at the peak.
        memory_s: Time of the bytes at full bandwidth.
    """

    flops: float
    n_bytes: float
    compute_s: float
    memory_s: float

    @property
    def time_s(self) -> float:
        """The longer one: computing and reading overlap at best."""
        return max(self.compute_s, self.memory_s)

    @property
    def bound(self) -> str:
        """Which one it is: `compute` or `memory`."""
        return "compute" if self.compute_s >= self.memory_s else "memory"

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.n_bytes


def floor(flops: float, n_bytes: float, device: Device, dtype: str) -> Floor:
    """The least time of so many operations and bytes."""
    return Floor(flops, n_bytes, flops / device.peak(dtype), n_bytes / device.bandwidth_bytes)


def decode_floor(
    topology: Topology,
    device: Device,
    *,
    batch: int,
    context: int,
    dtype: str = "bfloat16",
    experts_R: np.ndarray | None = None,
) -> Floor:
    """One step that gives each of `batch` sequences a token, with `context` tokens in each one's cache.

    Args:
        topology: Of the model.
        device: What it runs on.
        batch: Sequences.
        context: Tokens met by each.
        dtype: Of weights; the cache is bfloat16 where they are narrower.
        experts_R: Distinct experts of each router; of uniform random routing unless given.

    Raises:
        ModelError: as `step_bytes`, `decode_flops`, and `Device.peak`.
    """
    width = dtype_bytes(dtype)
    read = step_bytes(
        topology, batch=batch, context=context, weight_bytes=width, value_bytes=max(width, 2), experts_R=experts_R
    )
    flops = batch * sum(decode_flops(topology, context=context).values())
    return floor(flops, sum(read.values()), device, dtype)


def prefill_floor(topology: Topology, device: Device, *, batch: int, tokens: int, dtype: str = "bfloat16") -> Floor:
    """Reading `batch` sequences of `tokens` tokens, with logits at the last position of each and causal attention.

    Weights are read once, of the experts those that so many tokens meet under uniform routing; the cache is written.

    Raises:
        ModelError: as `prefill_flops` and `Device.peak`.
    """
    width = dtype_bytes(dtype)
    read = sum(weights_read(topology, tokens=batch * tokens, weight_bytes=width).values())
    written = batch * cache_bytes(topology, context=tokens, value_bytes=max(width, 2))
    flops = batch * sum(prefill_flops(topology, tokens=tokens, logits=1).values())
    return floor(flops, read + written, device, dtype)


def decode_ratio(
    moe: Topology, dense: Topology, device: Device, *, batch: int, context: int, dtype: str = "bfloat16"
) -> float:
    """How many times as fast the MoE's decode step could be, by both floors. Over 1: the MoE is faster."""
    times = [
        decode_floor(topology, device, batch=batch, context=context, dtype=dtype).time_s for topology in (dense, moe)
    ]
    return times[0] / times[1]
