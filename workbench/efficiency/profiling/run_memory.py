"""The memory that a run will take, before it is tried: the cache of all rows, and what one pass holds at its widest."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.efficiency.costs.formulas import cache_bytes, known_parts
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import ModelError
from workbench.models.memory import gib
from workbench.models.topology import Topology


@dataclass(frozen=True)
class Forecast:
    """Bytes beside the weights. A forecast, not a measurement: kernels differ in what they keep.

    Attributes:
        cache: Of all rows at their full length.
        widest: Of one pass: the hidden states, what the widest layer makes of them, and the logits.
    """

    cache: int
    widest: int

    @property
    def total(self) -> int:
        """Both."""
        return self.cache + self.widest


def of_run(topology: Topology, point: Point, *, value_bytes: int) -> Forecast | None:
    """What a run of a point takes; None where the model's parts are not known.

    A layer is taken to hold its tokens six times over (residual, normed, queries, keys, values, output) and its FFN's
    intermediates: of an MoE layer for each choice of each token, as grouped kernels sort them, two hidden states and
    three expert widths; scores of attention are never whole.
    """
    try:
        parts = known_parts(topology)
    except ModelError:
        return None
    width = topology.width
    ffn = 0.0
    for layer in parts.layers:
        ffn = max(ffn, layer.dense.products / width)
        for moe in layer.moe:
            of_expert = moe.experts.products / moe.n_experts / width
            ffn = max(ffn, moe.top_k * (2 * width + of_expert) + moe.shared.products / width)
    tokens = point.batch * max(point.widths)
    logits = point.batch * topology.vocabulary * (value_bytes + 4)
    kept = cache_bytes(topology, context=point.prompt_tokens + point.output_tokens, value_bytes=value_bytes)
    return Forecast(int(point.batch * kept), int(tokens * (6 * width + ffn) * value_bytes + logits))


def together(runs: Sequence[tuple[Forecast, bool]]) -> Forecast:
    """What runs take that are made one after the other; a run's cache stays meanwhile where its second is true."""
    kept = sum(each.cache for each, stays in runs if stays)
    most = max(runs, key=lambda run: run[0].widest + (0 if run[1] else run[0].cache))
    return Forecast(kept + (0 if most[1] else most[0].cache), most[0].widest)


def refusal(label: str, point_words: str, found: Forecast, free: int) -> str:
    """Why a point is not run, with the figures and what to change; empty where it fits."""
    if found.total <= free:
        return ""
    return (
        f"{label} at {point_words}: it needs {gib(found.total)} beside the weights ({gib(found.cache)} cache, "
        f"{gib(found.widest)} in one pass) and {gib(free)} are free; take a smaller --batch, or read the prompts in "
        "pieces with --prefill-chunk"
    )
