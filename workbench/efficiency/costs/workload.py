"""What a phase of a timed run had to do: FLOPs and bytes of a point, by the formulas, with the experts that it met.

The work is what routing and lengths ask for. A loop may do more (a static cache is read at its full length, a masked
score is computed and thrown away), and what it does on top counts as time that its work did not need. Axes: R routers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.efficiency.costs.formulas import (
    cache_bytes,
    decode_flops,
    dtype_bytes,
    known_parts,
    prefill_flops,
    step_bytes,
    weights_read,
)
from workbench.efficiency.costs.utilization import Work
from workbench.errors import ModelError
from workbench.models.topology import Topology

PHASES = ("prefill", "decode")


def prefill_widths(batch: int, prompt_tokens: int, chunk: int) -> list[int]:
    """Positions of each pass over prompts that are read in pieces of at most so many tokens of all rows; 0: whole."""
    width = max(chunk // batch, 1) if chunk else prompt_tokens
    return [min(width, prompt_tokens - at) for at in range(0, prompt_tokens, width)]


@dataclass(frozen=True, eq=False)
class Task:
    """One phase of a point.

    Attributes:
        topology: Of the model.
        phase: `prefill` or `decode`.
        batch: Rows.
        prompt_tokens: S, of each.
        output_tokens: N, new tokens of each; the prefill writes the first.
        dtype: Of weights and cache.
        prefill_passes: Into how many passes the prompts are cut; each reads the weights.
        experts_R: Distinct experts that a pass met, of each router; of uniform random routing where it is None.
    """

    topology: Topology
    phase: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    dtype: str
    prefill_passes: int = 1
    experts_R: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ModelError(f"phase is {self.phase!r}; {' or '.join(PHASES)} was expected.")

    @cached_property
    def flops(self) -> dict[str, float]:
        """FLOP by part, with the k experts of each token."""
        if self.phase == "prefill":
            of_row = prefill_flops(self.topology, tokens=self.prompt_tokens, logits=self.prefill_passes)
            return {part: self.batch * flops for part, flops in of_row.items()}
        found: dict[str, float] = {}
        for context in self._contexts:
            for part, flops in decode_flops(self.topology, context=context).items():
                found[part] = found.get(part, 0.0) + self.batch * flops
        return found

    @cached_property
    def weights_bytes(self) -> float:
        """Of weights read, each once in a pass."""
        return self._weights(self.experts_R)

    @cached_property
    def cache_bytes(self) -> float:
        """Of the cache: read in every step of decoding, written by the prefill."""
        width = dtype_bytes(self.dtype)
        if self.phase == "prefill":
            return self.batch * cache_bytes(self.topology, context=self.prompt_tokens, value_bytes=width)
        steps = [
            step_bytes(self.topology, batch=self.batch, context=context, weight_bytes=width)["cache"]
            for context in self._contexts
        ]
        return float(sum(steps))

    @cached_property
    def work(self) -> Work:
        """All of it, and what it were if every token met every expert."""
        flops = self.flops
        all_R = np.array([float(moe.n_experts) for moe in known_parts(self.topology).moe])
        return Work(
            active_flops=sum(flops.values()),
            all_flops=sum(flops.values()) + self._idle_flops,
            met_bytes=self.weights_bytes + self.cache_bytes,
            all_bytes=self._weights(all_R) + self.cache_bytes,
        )

    @property
    def _idle_flops(self) -> float:
        """Of the experts that were not chosen."""
        tokens = self.batch * (self.prompt_tokens if self.phase == "prefill" else len(self._contexts))
        return tokens * sum(
            2 * moe.experts.products * (1 - moe.top_k / moe.n_experts) for moe in known_parts(self.topology).moe
        )

    def _weights(self, experts_R: np.ndarray | None) -> float:
        passes = self.prefill_passes if self.phase == "prefill" else len(self._contexts)
        tokens = self.batch * self.prompt_tokens // passes if self.phase == "prefill" else self.batch
        read = weights_read(
            self.topology, tokens=max(tokens, 1), weight_bytes=dtype_bytes(self.dtype), experts_R=experts_R
        )
        return passes * sum(read.values())

    @property
    def _contexts(self) -> range:
        """The tokens that each step of decoding meets, its own among them."""
        return range(self.prompt_tokens + 1, self.prompt_tokens + self.output_tokens)


def seconds_at(flops: float, n_bytes: float, *, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time of some work: the longer of computing and of moving, which overlap at best.

    Source: Williams et al. 2009 (roofline) †. As commonly given.
    """
    return max(flops / flops_per_s, n_bytes / bytes_per_s)
