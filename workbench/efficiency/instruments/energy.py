"""Energy from a counter of the hardware: RAPL on a CPU, NVML on NVIDIA GPUs. Never an estimate.

Counters run from the machine's start and are read twice. They count a whole package or board, whoever uses it.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORTEST_S = 1.0
"""A window below this says little: counters move in steps of up to a tenth of a second."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy.

    Attributes:
        name: What it counts.
        read_joules: Its state.
        wraps_joules: Where it starts again from 0; None where it does not.
    """

    name: str
    read_joules: Callable[[], float]
    wraps_joules: float | None = None

    def between(self, before: float, after: float) -> float:
        """Joules between two readings, at most one turn of the counter apart."""
        return after - before + (self.wraps_joules or 0.0 if after < before else 0.0)


def idle_watts(found: Sequence[Counter], *, window_s: float) -> list[float]:
    """What each counter shows while this process does nothing; others may use the machine meanwhile."""
    began, before = time.perf_counter(), [counter.read_joules() for counter in found]
    time.sleep(window_s)
    after = [counter.read_joules() for counter in found]
    seconds = time.perf_counter() - began
    return [c.between(start, end) / seconds for c, start, end in zip(found, before, after, strict=True)]


def counters(
    device_type: str, *, powercap: Path = Path("/sys/class/powercap"), nvml: Any = None
) -> tuple[list[Counter], str]:
    """The counters of this machine's packages, or of its GPUs, and why there are none.

    Args:
        device_type: `cpu` or `cuda`.
        powercap: The kernel's folder of RAPL domains.
        nvml: NVIDIA's management library, opened; found by itself unless given.
    """
    if device_type == "cuda":
        return _of_gpus(nvml)
    found = []
    for folder in sorted(powercap.glob("*-rapl:*")):
        if folder.name.count(":") > 1:
            continue  # a part of a package
        file = folder / "energy_uj"
        try:
            int(file.read_text())
            name = (folder / "name").read_text().strip()
            wraps = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except PermissionError:
            return [], f"RAPL is there and may not be read by this user ({file})"
        except (OSError, ValueError):
            continue
        found.append(Counter(f"RAPL {name}", lambda file=file: int(file.read_text()) / 1e6, wraps))  # type: ignore[misc]
    return found, "" if found else "this machine shows no RAPL counter"


def _of_gpus(nvml: Any) -> tuple[list[Counter], str]:
    try:
        library = nvml or ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return [], "NVML does not start"
    except OSError:
        return [], "NVIDIA's management library is not installed"
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
            continue

        def read(handle: ctypes.c_void_p = handle) -> float:
            millijoules = ctypes.c_ulonglong()
            state = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
            if state != 0:
                raise OSError(f"NVML error {state}")
            return millijoules.value / 1e3

        try:
            read()
        except OSError:
            return [], f"GPU {index} has no energy counter (Volta or newer has one)"
        found.append(Counter(f"NVML GPU {index}", read))
    return found, "" if found else "NVML shows no GPU"
