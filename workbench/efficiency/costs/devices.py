"""What machines can do at most, as their makers state it: the roof that a cost is held under.

Dense peaks: makers also print numbers twice as large for matrices half of whose values are zero, which no model here
has. Nothing reaches the stated peaks; a large copy and a large matrix product measured on the machine at hand say more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.errors import ModelError


@dataclass(frozen=True)
class Device:
    """One machine.

    Attributes:
        name: By which it is asked for.
        peak_flops: FLOP per second of dense matrix products, by dtype.
        bandwidth_bytes: Bytes per second of its memory.
        memory_bytes: Of its memory.
        source: Where the figures stand.
        count: How many of them work together, without any loss by it.
    """

    name: str
    peak_flops: Mapping[str, float]
    bandwidth_bytes: float
    memory_bytes: float
    source: str
    count: int = 1

    def peak(self, dtype: str) -> float:
        """FLOP per second; weights of 4 bits are multiplied as bfloat16.

        Raises:
            ModelError: the source states no peak for the dtype.
        """
        of = "bfloat16" if dtype == "int4" else dtype
        if of not in self.peak_flops:
            raise ModelError(
                f"{self.name}: its source states no peak for {dtype}; it does for {', '.join(self.peak_flops)}."
            )
        return self.peak_flops[of]

    def ridge(self, dtype: str) -> float:
        """FLOP per byte at which computing takes as long as reading."""
        return self.peak(dtype) / self.bandwidth_bytes

    def times(self, count: int) -> "Device":
        """So many of them, with no loss by working together: a bound, which communication keeps them from.

        Raises:
            ModelError: `count` is under 1.
        """
        if count < 1:
            raise ModelError(f"count is {count}; 1 or more devices were expected.")
        return Device(
            name=f"{count}x{self.name}" if count > 1 else self.name,
            peak_flops={dtype: count * flops for dtype, flops in self.peak_flops.items()},
            bandwidth_bytes=count * self.bandwidth_bytes,
            memory_bytes=count * self.memory_bytes,
            source=self.source,
            count=self.count * count,
        )


def _nvidia(  # noqa: PLR0917  one row of a table
    name: str, tensor: float, single: float, eight: float | None, bandwidth: float, memory: float, source: str
) -> Device:
    """A row: TFLOP/s of 16-bit tensor cores, of float32 outside them, of float8; GB/s; GB."""
    peaks = {"bfloat16": tensor, "float16": tensor, "float32": single} | ({"float8": eight} if eight else {})
    return Device(name, {k: v * 1e12 for k, v in peaks.items()}, bandwidth * 1e9, memory * 1e9, source)


_A100 = "NVIDIA A100 Tensor Core GPU datasheet, 2021"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet and Hopper architecture whitepaper, 2022"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet, 2023"
_L40S = "NVIDIA L40S datasheet, 2023"

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _nvidia("a100-40gb", 312, 19.5, None, 1555, 40, _A100),
        _nvidia("a100-80gb", 312, 19.5, None, 2039, 80, _A100),
        _nvidia("a100-80gb-pcie", 312, 19.5, None, 1935, 80, _A100),
        _nvidia("h100", 989.4, 66.9, 1978.9, 3350, 80, _H100),
        _nvidia("h200", 989.4, 66.9, 1978.9, 4800, 141, _H200),
        _nvidia("l40s", 362.05, 91.6, 733, 864, 48, _L40S),
    )
}


_DRIVER_NAMES: Mapping[str, str] = {
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
}
"""What the driver calls them. Only these: an H100 on PCIe or an H200 NVL has other figures than its namesake."""


def known_as(names: Sequence[str]) -> Device | None:
    """The device that GPUs are by their driver's names, all of one kind; None where the table has none of that name."""
    if len(set(names)) != 1 or names[0] not in _DRIVER_NAMES:
        return None
    return DEVICES[_DRIVER_NAMES[names[0]]].times(len(names))


def device(name: str) -> Device:
    """A device by name, several as `2xa100-80gb`.

    Raises:
        ModelError: there is none of that name; lists those that there are.
    """
    count, times, bare = name.partition("x")
    if times and count.isdecimal():
        return device(bare).times(int(count))
    if name not in DEVICES:
        raise ModelError(f"unknown device {name!r}; there are {', '.join(DEVICES)}, and several of one as 2xh100.")
    return DEVICES[name]


def measured(*, name: str, dtype: str, peak_flops: float, bandwidth_bytes: float, memory_bytes: float) -> Device:
    """A device by what a large matrix product and a large copy reached on it.

    Raises:
        ModelError: a figure is not positive.
    """
    for what, value in (("peak_flops", peak_flops), ("bandwidth_bytes", bandwidth_bytes)):
        if not value > 0:
            raise ModelError(f"{what} is {value}; what was measured on {name}, more than 0, was expected.")
    return Device(name, {dtype: peak_flops}, bandwidth_bytes, memory_bytes, "measured: a large matmul, a large copy")
