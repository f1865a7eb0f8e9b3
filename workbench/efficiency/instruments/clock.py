"""Marks in time on the device that computes. On a CPU the wall clock; on CUDA events in the stream, read at the end.

Nothing waits for the device between two marks: a pass is timed as it would run unwatched.
"""

import time
from typing import Any

import numpy as np
import torch


class Clock:
    """Collects marks; `stop` waits for the device and gives the time of each since the first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = device.type == "cuda"
        self._marks: list[Any] = []

    def start(self) -> "Clock":
        """Waits until the device is idle and makes the first mark."""
        synchronize(self._device)
        self._marks.clear()
        self._began = time.perf_counter()
        self.mark()
        return self

    def mark(self) -> int:
        """Marks this moment of the device's work; the mark's number."""
        if self._events:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())
        return len(self._marks) - 1

    def stop(self) -> tuple[np.ndarray, float]:
        """Seconds of each mark since the first, on the device; and of the wall clock, until the device was done."""
        synchronize(self._device)
        wall_s = time.perf_counter() - self._began
        first = self._marks[0]
        if self._events:
            return np.array([first.elapsed_time(mark) / 1e3 for mark in self._marks]), wall_s
        return np.array(self._marks) - first, wall_s


def synchronize(device: torch.device) -> None:
    """Waits until all devices of a kind have done what they were given; a model may be spread over several."""
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
