"""The most memory that a run takes. On CUDA the allocator's own count; on a CPU the process's high-water mark, reset.

On a CPU the count is of pages: memory that the process already held and used again is not seen, so free memory is given
back to the system first, and a run of some megabytes is below what this can tell.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.efficiency.instruments.clock import synchronize


@dataclass(frozen=True)
class Peak:
    """Memory of a run, in bytes; None where this machine does not tell.

    Attributes:
        before_bytes: In use before it, weights included.
        peak_bytes: The most during it.
        counter: What counted, or why nothing did.
    """

    before_bytes: int | None
    peak_bytes: int | None
    counter: str


def peak_of(work: Callable[[], object], device: torch.device, *, process: Path = Path("/proc/self")) -> Peak:
    """Runs something and tells the most memory that was in use meanwhile.

    Args:
        work: What is run, once.
        device: Where it computes.
        process: The process's folder of the kernel.
    """
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        indices = range(torch.cuda.device_count())
        for index in indices:
            torch.cuda.reset_peak_memory_stats(index)
        before = sum(torch.cuda.memory_allocated(index) for index in indices)
        work()
        synchronize(device)
        return Peak(before, sum(torch.cuda.max_memory_allocated(index) for index in indices), "torch's CUDA allocator")
    try:
        _give_back()
        before = _status(process, "VmRSS")
        (process / "clear_refs").write_text("5")
    except OSError as error:
        work()
        return Peak(None, None, f"not measured: the high-water mark cannot be reset here ({error.strerror})")
    work()
    return Peak(before, _status(process, "VmHWM"), "resident set of the process, high-water mark reset before the run")


def _status(process: Path, name: str) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise FileNotFoundError(2, f"{name} is not stated", str(process / "status"))


def _give_back() -> None:
    """Returns freed memory to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
