"""Could an expert stay for a whole stretch of text, without many tokens missing or wasting it?

Not shown: what a cache of experts saves on a given machine. A window keeps an expert on for all its tokens if they
choose it often enough; F1 weighs tokens that miss an expert against tokens that have it for nothing. Keeping all
experts on has an F1 too, so values are read over it, and over a document's own sets in another order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd

from analyses.read.chunks import Chunk, PerChunk
from analyses.read.design import RouterStack, as_lines, design, long_form, require, router_stacks, sample_words
from analyses.read.neighbours import stretches
from analyses.read.order import follows, place, text_columns
from analyses.read.tokens import N_DRAWS, SAMPLE_TOKENS, Sampler, check_draws, document_rows, p_value, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Distribution, Figure, Lines
from workbench.metrics import sequence
from workbench.metrics.sets import as_bits, shuffled_within
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.jackknife import Bags, bag_interval, deal
from workbench.statistics.neighbours import stretches as stretch_numbers

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    sequence.expert_segment_consistency,
    sequence.segment_consistency,
    sequence.uniform_segment_consistency,
    sequence.window_histogram,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        window: Tokens of a window.
        level: Coverage of the intervals.
        n_draws: Shuffles of each document's sets.
        sample_tokens: Tokens that these shuffles are made of, whole documents.
        seed: Of bags, sample and shuffles.
    """

    window: int = 16
    level: float = 0.95
    n_draws: int = N_DRAWS
    sample_tokens: int = SAMPLE_TOKENS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """F1 of keeping experts for whole windows.

    Attributes:
        layers: One row per layer: `value` of the sample at the layer's best threshold, `estimate` with `low` and `high`
            corrected for noise, `permuted` when each document's sets are shuffled once, `uniform` (random routing),
            `all_on` 2K/(E + K), and of the sample `value_sample`, `permuted_sample` over all shuffles and `p`; the
            mean and the quantiles over experts that each have a threshold of their own; experts `never_chosen`.
        experts: One row per layer and expert: `value` at its own best threshold, and `all_on` 2p/(1 + p).
        window: Tokens of a window.
        windows: How many there are.
        left_out: Documents without a stretch of neighbouring tokens as long as a window.
        sample: The sample in words.
        draws: The shuffles in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    experts: pd.DataFrame
    window: int
    windows: int
    left_out: int
    sample: str
    draws: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Counts choices in windows in one pass, by bags of documents.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no positions, or no stretch of neighbouring
            tokens as long as a window; or a number is out of its range.
    """
    require(recording, NEEDS, "segment_consistency", columns=("ids", "position"))
    check_draws("segment_consistency", settings.n_draws)
    if not 2 <= settings.window <= 255:
        raise AnalysisError(f"segment_consistency: window is {settings.window}; 2 to 255 tokens were expected.")
    if settings.sample_tokens < 1:
        raise AnalysisError(f"segment_consistency: sample_tokens is {settings.sample_tokens}; 1 or more was expected.")
    known = stretches(recording, "segment_consistency", tokens=2)
    longest = int(known.longest_D.max())
    if longest < settings.window:
        raise AnalysisError(
            f"segment_consistency: the longest stretch of neighbouring tokens has {longest}, and a window "
            f"{settings.window}; set window to fewer."
        )
    bags = deal(design(recording), seed=settings.seed)
    found = [_of_stack(recording, stack, bags, settings) for stack in router_stacks(recording)]
    return Result(
        layers=pd.concat([each.layers for each in found], ignore_index=True),
        experts=pd.concat([each.experts for each in found], ignore_index=True),
        window=settings.window,
        windows=found[0].windows,
        left_out=int((known.longest_D < settings.window).sum()),
        sample=sample_words(recording),
        draws=f"{settings.n_draws} shuffles of {found[0].sampled:,} tokens",
        level=settings.level,
        note="; ".join(note for note in (bags.note, known.note) if note),
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """The tables of routers of one shape, how many windows there are, and of how many tokens the shuffles are."""

    layers: pd.DataFrame
    experts: pd.DataFrame
    windows: int
    sampled: int


def _of_stack(recording: Recording, stack: RouterStack, bags: Bags, settings: Settings) -> _Found:
    shape = {"n_experts": stack.n_experts, "window": settings.window}
    n_layers = len(stack.routers)
    counts_LGEN = np.zeros((n_layers, bags.n_bags, stack.n_experts, settings.window + 1), dtype=np.int64)
    shuffled_LEN = np.zeros((n_layers, stack.n_experts, settings.window + 1), dtype=np.int64)
    chunks = PerChunk(recording, text_columns(recording), partial(_Order.of, recording, bags=bags, seed=settings.seed))
    for i, router in enumerate(stack.routers):
        for order, (ids_TK,) in chunks([f"{prefix(router, recording.topology)}.ids"]):
            bits_TW = as_bits(ids_TK, n_experts=stack.n_experts)
            shuffled_LEN[i] += sequence.window_histogram(bits_TW[order.shuffled_T], order.stretch_T, **shape)
            in_bags_TW = bits_TW[order.in_bags_T]
            for bag, run in order.bags():
                counts_LGEN[i, bag] += sequence.window_histogram(in_bags_TW[run], order.stretch_T[run], **shape)
    sampler = Sampler(recording, n_tokens=settings.sample_tokens, seed=settings.seed)
    for part in token_parts(recording, stack):
        sampler.take(part)
    sample = sampler.joined()
    orders = [
        shuffled_within(sample.document_T, sample.place_T, seed=settings.seed, draw=draw)
        for draw in range(settings.n_draws)
    ]
    sample_stretch_T = stretch_numbers(sample.follows_T)
    rows, by_expert = [], []
    for counts_GEN, shuffled_EN, bits_TW in zip(counts_LGEN, shuffled_LEN, sample.bits_LTW, strict=True):
        interval = bag_interval(sequence.segment_consistency, counts_GEN, bags=bags, level=settings.level)
        observed, *drawn = (
            float(sequence.segment_consistency(sequence.window_histogram(bits, sample_stretch_T, **shape)))
            for bits in (bits_TW, *(bits_TW[order] for order in orders))
        )
        histogram_EN = counts_GEN.sum(axis=0)
        own_E = sequence.expert_segment_consistency(histogram_EN)
        by_expert.append(own_E)
        known = own_E[np.isfinite(own_E)]
        rows.append(
            {
                "value": float(interval.plug_in),
                "estimate": float(interval.value),
                "low": float(interval.low),
                "high": float(interval.high),
                "permuted": float(sequence.segment_consistency(shuffled_EN)),
                "value_sample": observed,
                "permuted_sample": float(np.mean(drawn)),
                "p": float(p_value(np.array(observed), np.array(drawn))),
                "mean": known.mean(),
                **dict(zip(("q05", "q25", "q50", "q75", "q95"), np.quantile(known, _QUANTILES), strict=True)),
                "never_chosen": int(np.isnan(own_E).sum()),
            }
        )
    layers = stack.labels().join(pd.DataFrame(rows))
    layers["uniform"] = sequence.uniform_segment_consistency(top_k=stack.top_k, **shape)
    layers["all_on"] = 2 * stack.top_k / (stack.n_experts + stack.top_k)
    histogram_LEN = counts_LGEN.sum(axis=1)
    chosen_LE = (histogram_LEN * np.arange(settings.window + 1)).sum(-1)
    rate_LE = chosen_LE / (settings.window * histogram_LEN.sum(-1))
    experts = long_form(
        stack.labels(), "expert", {"value": np.stack(by_expert), "all_on": 2 * rate_LE / (1 + rate_LE), "rate": rate_LE}
    )
    return _Found(layers, experts, int(histogram_LEN[0, 0].sum()), len(sample.row_T))


@dataclass(frozen=True, eq=False)
class _Order:
    """The rows of a chunk, bag by bag: each document in the order of its text, and shuffled."""

    in_bags_T: np.ndarray
    shuffled_T: np.ndarray
    stretch_T: np.ndarray
    """Number of each token's stretch in that order; windows lie in one."""
    edges_G: np.ndarray

    @classmethod
    def of(cls, recording: Recording, chunk: Chunk, *, bags: Bags, seed: int) -> "_Order":
        row_T = document_rows(recording)[chunk["document"]]
        order_T = np.lexsort((chunk["position"], row_T, bags.bag_D[row_T]))
        text = {name: chunk[name][order_T] for name in text_columns(recording)}
        shuffled_T = shuffled_within(text["document"], place(text), seed=seed)
        edges_G = np.searchsorted(bags.bag_D[row_T[order_T]], np.arange(bags.n_bags + 1))
        stretch_T = stretch_numbers(follows(text)).astype(np.int32)
        return cls(order_T.astype(np.int32), order_T[shuffled_T].astype(np.int32), stretch_T, edges_G)

    def bags(self) -> Iterator[tuple[int, slice]]:
        """Each bag that has tokens here."""
        for bag, (start, end) in enumerate(pairwise(self.edges_G.tolist())):
            if start < end:
                yield bag, slice(start, end)

    @property
    def nbytes(self) -> int:
        return self.in_bags_T.nbytes + self.shuffled_T.nbytes + self.stretch_T.nbytes


_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers` and `experts`."""
    return {"layers": result.layers, "experts": result.experts}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` at one threshold for a layer, `experts` with a threshold each."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    names = {
        "estimate": "model",
        "permuted": "document's sets shuffled",
        "uniform": "uniform routing",
        "all_on": "all experts on",
    }
    long = as_lines(result.layers, names, by=["layer"], line="routing", value="f1")
    top = result.layers.nlargest(1, "estimate").iloc[0]
    short = f" {result.left_out} documents have no {result.window} neighbouring tokens." if result.left_out else ""
    never = int(result.layers["never_chosen"].sum())
    unseen = f" {never} experts are never chosen and left out." if never else ""
    what = f"F1 of keeping an expert for all {result.window} tokens of a window that chooses it often enough"
    return {
        "by_layer": Lines(
            long,
            "layer",
            "f1",
            group="routing",
            low="low",
            high="high",
            interval_label=level,
            title=f"Keeping experts for {result.window} tokens",
            x_label="layer",
            y_label="F1 (unit 1)",
            caption=f"{what}, at the best threshold of each layer: {result.windows:,} windows with stride 1 "
            f"({result.sample}). Tested with {result.draws}.{short} {level}: jackknife over bags of documents, t; "
            f"values are corrected for noise. {result.note}".strip(),
            alt=f"The highest F1 is {top['estimate']:.2f}, at layer {top['layer']:.0f}; {top['permuted']:.2f} when a "
            f"document's sets are shuffled, {top['all_on']:.2f} with all experts on.",
        ),
        "experts": Distribution(
            result.layers,
            "layer",
            title=f"Keeping single experts for {result.window} tokens",
            x_label="layer",
            y_label="F1 of an expert (unit 1)",
            null="all_on",
            null_label="all experts on",
            caption=f"{what}, at the best threshold of each expert ({result.sample}); box: middle half, whiskers: "
            f"5–95 % of experts. Not comparable with the layer's F1 at one threshold.{short}{unseen}",
            alt=f"The median over experts is {result.layers['q50'].min():.2f} to {result.layers['q50'].max():.2f}.",
        ),
    }
