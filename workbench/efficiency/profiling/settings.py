"""What a measurement is asked for, as one value; refused where it cannot be meant."""

from dataclasses import dataclass
from itertools import product

from workbench.efficiency.profiling.forced_routing import Routing
from workbench.efficiency.profiling.launch import MODES
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        batches: B of the points.
        prompt_lengths: S of the points.
        output_lengths: N of the points.
        routings: Of the measured model; the first stands beside the other model, the rest beside the first.
        experts: Implementations of the measured model's experts, likewise; None for what it runs now, and then all
            others that work here.
        decode: How steps of decoding are launched; the first is how models are compared, the rest stand beside it.
        prompts: `auto`, `random`, `identical`, or a corpus.
        prefill_chunk: Tokens of all rows that one pass over the prompts takes at most; 0 for the whole.
        rounds: Timed runs of each model at each point; of its variants (routings, kernels, watched) 6 at most.
        warm_up: Most runs before them.
        parts: Whether the parts of a pass are timed too.
        checks: Whether tokens are compared with `generate`'s, and kernels against each other.
        recording_rounds: Rounds of recording the routing beside the bare forward pass, for its overhead; 0 for none.
        threads: Of a CPU; 0 for whichever of all and one is faster.
        limit_s: Seconds after which nothing new is begun; 0 for no limit.
        seed: Of prompts and forced routing.
    """

    batches: tuple[int, ...] = (1, 16)
    prompt_lengths: tuple[int, ...] = (64,)
    output_lengths: tuple[int, ...] = (16,)
    routings: tuple[str, ...] = ("natural", "uniform", "worst")
    experts: tuple[str, ...] | None = None
    decode: tuple[str, ...] = ("eager",)
    prompts: str = "auto"
    prefill_chunk: int = 0
    rounds: int = 9
    warm_up: int = 4
    parts: bool = True
    checks: bool = True
    recording_rounds: int = 0
    threads: int = 0
    limit_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "prompt_lengths", "output_lengths", "routings", "decode"):
            if not getattr(self, name):
                raise MeasurementError(f"{name} is empty; one or more was expected.")
        if self.rounds < 1 or self.warm_up < 1:
            raise MeasurementError(f"rounds is {self.rounds}, warm_up {self.warm_up}; 1 or more of each was expected.")
        for name in ("prefill_chunk", "recording_rounds", "threads", "limit_s"):
            if getattr(self, name) < 0:
                raise MeasurementError(f"{name} is {getattr(self, name)}; 0 or more was expected.")
        if unknown := [name for name in self.decode if name not in MODES]:
            raise MeasurementError(f"decode is {unknown[0]!r}; {', '.join(MODES)} were expected.")
        forced = [text for text in self.routings if Routing.parse(text).kind != "natural"]
        if self.decode[0] != "eager" and (forced or self.parts):
            raise MeasurementError(
                f"decode is {self.decode[0]} first, and {forced[0] + ' routing' if forced else 'timing of the parts'} "
                "runs eager, so it would stand beside something else; put eager first (--decode "
                f"eager,{self.decode[0]}), or give --routing natural --no-parts."
            )

    @property
    def points(self) -> list[Point]:
        """Every combination of batch and lengths."""
        sizes = product(self.batches, self.prompt_lengths, self.output_lengths)
        return [Point(*each, self.prefill_chunk) for each in sizes]


def of_point(point: Point) -> dict[str, int]:
    """What names it in the tables."""
    return {"batch": point.batch, "prompt_tokens": point.prompt_tokens, "output_tokens": point.output_tokens}


def words(point: Point) -> str:
    """The point for reading."""
    return f"{point.batch} x {point.prompt_tokens} + {point.output_tokens} tokens"
