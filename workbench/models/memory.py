"""The memory a model will take, compared with what is free before a weight is read. A forecast, not a measurement."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from workbench.models.topology import Topology


@dataclass(frozen=True)
class MemoryForecast:
    """What loading and recording a model will take, in bytes, against what is free.

    Attributes:
        weights_bytes: Parameters in the asked dtype.
        kv_cache_bytes: Keys and values of one batch, were they cached (recording does not cache).
        buffers_bytes: Logits, their float32 copy and router logits of one batch.
        free_bytes: Free on the device; of several GPUs their sum.
        device: Where.
    """

    weights_bytes: int
    kv_cache_bytes: int
    buffers_bytes: int
    free_bytes: int
    device: str

    @property
    def needed_bytes(self) -> int:
        """Weights and recording buffers: what `load` asks for before it reads a weight."""
        return self.weights_bytes + self.buffers_bytes

    @property
    def fits(self) -> bool:
        """Whether what is needed is free."""
        return self.needed_bytes <= self.free_bytes


def _cached(topology: Topology) -> Sequence[int]:
    """The layers that keep keys and values."""
    return range(topology.n_layers) if topology.attention_layers is None else topology.attention_layers


def forecast_memory(topology: Topology, *, value_bytes: int, device: str, batch_tokens: int = 4096) -> MemoryForecast:
    """What loading a model and recording with it will take.

    Args:
        topology: What it is made of.
        value_bytes: Bytes of one parameter in the dtype it is loaded in.
        device: `cpu`, `cuda` (all GPUs together) or `cuda:N`.
        batch_tokens: Padded positions of a batch.
    """
    return MemoryForecast(
        weights_bytes=(topology.parameters_total + topology.parameters_unused) * value_bytes,
        kv_cache_bytes=2
        * len(_cached(topology))
        * topology.n_kv_groups
        * topology.head_width
        * value_bytes
        * batch_tokens,
        buffers_bytes=batch_tokens
        * (topology.vocabulary * (value_bytes + 4) + sum(router.n_experts * 4 for router in topology.routers)),
        free_bytes=_free_bytes(device),
        device=device,
    )


def gib(n_bytes: int) -> str:
    """Bytes for reading."""
    return f"{n_bytes / 2**30:.1f} GiB"


def _free_bytes(device: str) -> int:
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    devices = range(torch.cuda.device_count()) if device == "cuda" else [int(device.partition(":")[2])]
    return sum(torch.cuda.mem_get_info(index)[0] for index in devices)
