"""A published throughput compared with what can be: how long the requests were, and what the roofline allows.

Two published numbers, requests and tokens per second, give the tokens of a request; they do not say how many of them
were read and how many written. For each split the roofline bounds the throughput: a claim over the bound cannot be true
of that split, and a claim far below it is only not impossible.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.efficiency.costs.devices import Device
from workbench.efficiency.costs.formulas import (
    cache_bytes,
    decode_flops,
    dtype_bytes,
    known_parts,
    prefill_flops,
    step_bytes,
    weights_read,
)
from workbench.errors import ModelError
from workbench.models.topology import Topology
from workbench.paths import BUNDLED

SERVING = BUNDLED / "reference" / "serving.csv"


@dataclass(frozen=True)
class Claim:
    """One published row.

    Attributes:
        model: As published.
        config: The published config of it.
        requests_per_s: As printed, for its decimals say how far it was rounded.
        tokens_per_s: As printed.
        devices: What it ran on.
    """

    model: str
    config: str
    requests_per_s: str
    tokens_per_s: str
    devices: str

    @property
    def tokens_per_request(self) -> tuple[float, float]:
        """The least and the most tokens of a request that both numbers allow, by their rounding."""
        requests, tokens = _interval(self.requests_per_s), _interval(self.tokens_per_s)
        return tokens[0] / requests[1], tokens[1] / requests[0]


def published_claims(path: Path = SERVING) -> tuple[Claim, ...]:
    """The published rows of `data/reference`."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(Claim(**row) for row in csv.DictReader(file))


def common_lengths(claims: Sequence[Claim]) -> tuple[int, ...]:
    """Whole numbers of tokens that every row allows, were all requests equally long; none where they differ.

    Raises:
        ModelError: no row was given.
    """
    if not claims:
        raise ModelError("no claim was given; at least one row of requests and tokens per second was expected.")
    low = max(claim.tokens_per_request[0] for claim in claims)
    high = min(claim.tokens_per_request[1] for claim in claims)
    return tuple(range(math.ceil(low), math.floor(high) + 1))


@dataclass(frozen=True)
class Bound:
    """What the roofline allows for requests of a length.

    Attributes:
        read: Tokens of a request that are given.
        written: Tokens that the model writes.
        batch: Sequences decoded together.
        prefill_s: Least time of reading a request.
        decode_s: Least time of writing, its share of the steps that all sequences of the batch take together.
        overlapped_s: Least time if reading some and writing others overlap perfectly, whatever the schedule.
    """

    read: int
    written: int
    batch: int
    prefill_s: float
    decode_s: float
    overlapped_s: float

    @property
    def serial_per_s(self) -> float:
        """Requests per second where reading and writing take turns, each at its peak."""
        return 1 / (self.prefill_s + self.decode_s)

    @property
    def most_per_s(self) -> float:
        """Requests per second that no schedule exceeds on this device, with this dtype, batch and routing."""
        return 1 / self.overlapped_s


def bound(
    topology: Topology, device: Device, *, read: int, written: int, dtype: str = "bfloat16", most: int | None = None,
    memory_share: float = 1.0, identical: bool = False,
) -> Bound:  # fmt: skip
    """The roofline of serving equal requests, many of them, on a device.

    The batch is the largest whose weights and caches fit, caches being half grown on average; a larger one is never
    slower here. Each batch reads its weights once per step, of the experts those that uniform random routing meets:
    requests that choose alike meet fewer, and prompts that are all the same no more than K at any batch (`identical`).

    Args:
        topology: Of the model.
        device: What it runs on.
        read: Tokens given, 1 or more.
        written: Tokens written, 0 or more.
        dtype: Of weights and cache.
        most: Sequences that a server lets run together; no limit unless given.
        memory_share: Of the memory that may be used.
        identical: Whether all requests are the same text, so that a step meets K experts of each router.

    Raises:
        ModelError: the weights do not fit, or a length cannot be meant.
    """
    if read < 1 or written < 0:
        raise ModelError(f"read is {read} and written {written}; at least 1 and at least 0 tokens were expected.")
    width = dtype_bytes(dtype)
    middle = read + written // 2
    room = device.memory_bytes * memory_share - topology.parameters_total * width
    batch = int(room // cache_bytes(topology, context=middle, value_bytes=max(width, 2)))
    if batch < 1:
        raise ModelError(
            f"{topology.family}: {topology.parameters_total * width / 1e9:.0f} GB of weights and one request do not "
            f"fit into {device.memory_bytes * memory_share / 1e9:.0f} GB of {device.name}; take more devices."
        )
    batch = min(batch, most) if most is not None else batch
    reading = sum(prefill_flops(topology, tokens=read, logits=1).values())
    writing = written * sum(decode_flops(topology, context=middle).values())
    met_R = np.array([float(moe.top_k) for moe in known_parts(topology).moe]) if identical else None
    how: dict[str, Any] = {"weight_bytes": width, "value_bytes": max(width, 2), "experts_R": met_R}
    step = sum(step_bytes(topology, batch=batch, context=middle, **how).values())
    # Requests are read together, so that weights cost little: a batch of them for one pass over the weights.
    passed = sum(weights_read(topology, tokens=batch * read, weight_bytes=width).values()) / batch
    stored = cache_bytes(topology, context=read, value_bytes=max(width, 2))
    peak, bandwidth = device.peak(dtype), device.bandwidth_bytes
    return Bound(
        read=read,
        written=written,
        batch=batch,
        prefill_s=max(reading / peak, (passed + stored) / bandwidth),
        decode_s=max(writing / peak, written * step / batch / bandwidth),
        overlapped_s=max((reading + writing) / peak, written * step / batch / bandwidth),
    )


def _interval(text: str) -> tuple[float, float]:
    """What a rounded decimal may stand for."""
    decimals = len(text.partition(".")[2])
    half = 0.5 * 10.0**-decimals
    return float(text) - half, float(text) + half
