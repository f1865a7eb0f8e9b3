"""What bounds a decode step, and a prefill, of this model and the one it is compared with?

Not shown: what a machine reaches. The roof is the maker's, no kernel gets there, and launching, communicating and
scheduling take no time here: the times are floors. Experts are met as under uniform random routing; a model whose
choices are skewed or alike reads fewer (the analysis `coverage` measures how many).
"""

from dataclasses import dataclass

import pandas as pd

from analyses.costs._checks import check, doublings
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.roofline import decode_floor, prefill_floor
from workbench.figures.spec import Figure, Lines

INPUT = "costs"
METRICS = ()


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        device: Name of a device, several as `2xh100`.
        dtype: Of the weights.
        context: Tokens in the cache of each sequence.
        largest: Largest batch; 1, 2, 4 … up to it are drawn.
    """

    device: str = "h200"
    dtype: str = "bfloat16"
    context: int = 1024
    largest: int = 1024


@dataclass(frozen=True, eq=False)
class Result:
    """Floors of steps.

    Attributes:
        steps: One row per model, kind (decode step, prefill of one sequence of `tokens`) and size: `flops`, `bytes`,
            `intensity` (FLOP per byte), `compute_ms`, `memory_ms`, `floor_ms`, what it is bound by, `tokens_per_s`.
        words: The models and the device in words.
        ridge: FLOP per byte at which the device computes as long as it reads.
    """

    steps: pd.DataFrame
    words: str
    ridge: float


def run(subject: Costed, settings: Settings = Settings()) -> Result:
    """Works out the floors.

    Raises:
        AnalysisError: settings that cannot be meant.
    """
    check("roofline", on=settings.device, dtype=settings.dtype, context=settings.context, largest=settings.largest)
    on = device(settings.device)
    rows = []
    for name, topology in ((subject.name, subject.topology), (subject.against, subject.other)):
        for size in doublings(settings.largest):
            decode = decode_floor(topology, on, batch=size, context=settings.context, dtype=settings.dtype)
            prefill = prefill_floor(topology, on, batch=1, tokens=size, dtype=settings.dtype)
            for kind, found in (("decode", decode), ("prefill", prefill)):
                rows.append(
                    {
                        "model": name,
                        "kind": kind,
                        "batch": size if kind == "decode" else 1,
                        "tokens": size,
                        "flops": found.flops,
                        "bytes": found.n_bytes,
                        "intensity": found.intensity,
                        "compute_ms": found.compute_s * 1e3,
                        "memory_ms": found.memory_s * 1e3,
                        "floor_ms": found.time_s * 1e3,
                        "bound": found.bound,
                        "tokens_per_s": size / found.time_s,
                    }
                )
    peak, bandwidth = on.peak(settings.dtype), on.bandwidth_bytes
    return Result(
        steps=pd.DataFrame(rows),
        words=f"{subject.words}; {on.name}, {settings.dtype}: {peak / 1e12:,.0f} TFLOP/s and {bandwidth / 1e12:.2f} "
        f"TB/s by {on.source}; context {settings.context:,}",
        ridge=on.ridge(settings.dtype),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`steps`."""
    return {"steps": result.steps}


def figures(result: Result) -> dict[str, Figure]:
    """`intensity`: FLOP per byte by size; `throughput`: tokens per second by batch."""
    steps = result.steps.assign(
        doublings=result.steps["tokens"].map(lambda size: size.bit_length() - 1),
        ridge=result.ridge,
        step=result.steps["kind"].map({"decode": "decode step of a batch", "prefill": "prefill of one sequence"}),
    )
    decode = steps[steps["kind"] == "decode"]
    largest = decode[decode["batch"] == decode["batch"].max()].set_index("model")["bound"]
    return {
        "intensity": Lines(
            steps,
            "doublings",
            "intensity",
            group="model",
            panel="step",
            null="ridge",
            null_label="ridge of the device",
            log=True,
            hover=("tokens", "bound", "floor_ms"),
            title="What bounds a step",
            x_label="tokens (power of 2)",
            y_label="FLOP per byte",
            caption="Arithmetic intensity of decode steps (batches of 1, 2, 4 …) and of prefills of one sequence (1, "
            f"2, 4 … tokens). Below the ridge, {result.ridge:,.0f} FLOP per byte, reading takes longer than computing. "
            f"{result.words}. Experts met as under uniform routing.",
            alt="At the largest batch "
            + "; ".join(f"{name} is bound by {bound}" for name, bound in largest.items())
            + ".",
        ),
        "throughput": Lines(
            decode,
            "doublings",
            "tokens_per_s",
            group="model",
            log=True,
            hover=("batch", "bound"),
            title="Tokens per second at the floor",
            x_label="sequences decoded together, as a power of 2",
            y_label="tokens/s",
            caption=f"Decoding, at most. {result.words}. Experts met as under uniform routing; memory for the caches "
            "is taken to be there.",
            alt="; ".join(
                f"{name} from {part['tokens_per_s'].iloc[0]:,.0f} to {part['tokens_per_s'].iloc[-1]:,.0f} tokens/s"
                for name, part in decode.groupby("model")
            )
            + ".",
        ),
    }
