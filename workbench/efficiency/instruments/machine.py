"""The machine at hand: what it is, what its load was, and what a large copy and a large product reach on it."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from workbench.efficiency.instruments.clock import Clock


def facts(device: torch.device) -> dict[str, Any]:
    """What a reader needs to place a timing, as JSON values."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device.type,
    }
    if device.type == "cuda":
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = [{"name": each.name, "memory_bytes": each.total_memory} for each in properties]
        found["cuda"] = torch.version.cuda
    return found


def load_average() -> float:
    """Processes that wanted a CPU during the last minute: this one, and all others."""
    return psutil.getloadavg()[0]


def _cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@dataclass(frozen=True)
class Ceiling:
    """What the machine reached, the best of some tries.

    Attributes:
        flops_per_s: Of a large product in the dtype.
        bytes_per_s: Of a large copy, read and written.
        product: The product's side.
        copied_bytes: The copy's size.
    """

    flops_per_s: float
    bytes_per_s: float
    product: int
    copied_bytes: int


def ceiling(device: torch.device, dtype: torch.dtype, *, tries: int = 5) -> Ceiling:
    """Times a large product and a large copy; not the vendor's peak, which the machine at hand may never reach."""
    large = device.type == "cuda"
    side, size = (8192, 2**30) if large else (1024, 2**27)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product_s = min(_seconds(device, lambda: one @ other) for _ in range(tries))
        copy_s = min(_seconds(device, lambda: target.copy_(source)) for _ in range(tries))
    return Ceiling(2 * side**3 / product_s, 2 * size / copy_s, side, size)


def _seconds(device: torch.device, work: Any) -> float:
    clock = Clock(device).start()
    work()
    clock.mark()
    return float(clock.stop()[0][-1])


def now() -> float:
    """The wall clock, for the order of things."""
    return time.perf_counter()
