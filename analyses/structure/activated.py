"""How many distinct experts do B neighbouring tokens need?

Not shown: what loading them costs (that depends on the machine), and batches of several texts that are decoded
together: those are near the value for tokens from anywhere. What is left over at a document's end, or before a gap, is
in no run.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, as_lines, design, require, router_stacks, sample_words
from analyses.read.neighbours import stretches
from analyses.read.tokens import evenly, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import sequence
from workbench.metrics.sequence import activated_experts, expected_activated_experts, uniform_activated_experts
from workbench.recordings.recording import Recording
from workbench.statistics import neighbours
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (activated_experts, expected_activated_experts, uniform_activated_experts)
MOST_PANELS = 4


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        largest: Tokens of the longest runs; runs of 1, 2, 4 … up to it are counted.
        level: Coverage of the intervals.
    """

    largest: int = 256
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Distinct experts in runs of tokens.

    Attributes:
        runs: One row per layer and number of tokens B: mean number of distinct experts `value` with `low` and `high`,
            `shuffled` (B tokens of the same document in any order, exact; of the documents that have such runs, each
            weighed by its runs), `anywhere` (B tokens from anywhere in the corpus), `uniform` (random routing),
            `share` of all experts, and the `runs`.
        sample: The sample in words.
        left_out: Numbers of tokens for which no stretch of neighbouring tokens is long enough.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    runs: pd.DataFrame
    sample: str
    left_out: tuple[int, ...]
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Counts distinct experts in runs of tokens in one pass.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no positions, or `largest` is
            under 1.
    """
    require(recording, NEEDS, "activated", columns=("ids", "position"))
    if settings.largest < 1:
        raise AnalysisError(f"activated: largest is {settings.largest}; 1 or more was expected.")
    clusters = design(recording)
    doublings = settings.largest.bit_length() - 1
    stretched = stretches(recording, "activated")
    known = min(doublings, int(stretched.longest_D.max()).bit_length() - 1)
    tables = [_of_stack(recording, stack, clusters, known, settings.level) for stack in router_stacks(recording)]
    return Result(
        runs=pd.concat(tables, ignore_index=True),
        sample=sample_words(recording),
        left_out=tuple(2**n for n in range(known + 1, doublings + 1)),
        level=settings.level,
        note="; ".join(note for note in (clusters.note, stretched.note) if note),
    )


def _of_stack(
    recording: Recording, stack: RouterStack, clusters: Clusters, doublings: int, level: float
) -> pd.DataFrame:
    shape = (recording.n_documents, len(stack.routers), doublings + 1)
    distinct_DLB, runs_DLB = np.zeros(shape), np.zeros(shape)
    for part in token_parts(recording, stack):
        of_part = np.unique(part.row_T)
        local_T = np.searchsorted(of_part, part.row_T)
        stretch_T = neighbours.stretches(part.follows_T)
        for i, bits_TW in enumerate(part.bits_LTW):
            found = sequence.activated_experts(
                bits_TW, local_T, stretch_T=stretch_T, n_documents=len(of_part), doublings=doublings
            )
            distinct_DLB[of_part, i], runs_DLB[of_part, i] = found.distinct_DB, found.runs_DB
    interval = ratio_interval(distinct_DLB, runs_DLB, clusters=clusters, level=level)
    tokens_B = 2 ** np.arange(doublings + 1)
    counts_DLE = stack.stacked(recording, "counts")
    by_layer = np.moveaxis(counts_DLE, 1, 0)  # a layer at a time, which bounds the memory
    shuffled_DLB = np.stack(
        [sequence.expected_activated_experts(each, tokens_B=tokens_B, top_k=stack.top_k) for each in by_layer], axis=1
    )
    # each document's expectation as often as it has runs, so that only the order differs from the value
    shuffled_LB = np.nansum(shuffled_DLB * runs_DLB, axis=0) / runs_DLB.sum(axis=0)
    anywhere_LB = sequence.expected_activated_experts(counts_DLE.sum(axis=0), tokens_B=tokens_B, top_k=stack.top_k)
    uniform_B = sequence.uniform_activated_experts(tokens_B=tokens_B, n_experts=stack.n_experts, top_k=stack.top_k)
    labels = stack.labels()
    frame = labels.loc[labels.index.repeat(len(tokens_B))].reset_index(drop=True)
    return frame.assign(
        tokens=np.tile(tokens_B, len(labels)),
        value=interval.value.ravel(),
        low=interval.low.ravel(),
        high=np.minimum(interval.high, stack.n_experts).ravel(),
        shuffled=shuffled_LB.ravel(),
        anywhere=anywhere_LB.ravel(),
        uniform=np.tile(uniform_B, len(labels)),
        share=interval.value.ravel() / stack.n_experts,
        runs=runs_DLB.sum(axis=0).astype(int).ravel(),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`runs`."""
    return {"runs": result.runs}


def figures(result: Result) -> dict[str, Figure]:
    """`by_tokens` at some layers."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    layers = sorted(result.runs["layer"].unique().tolist())
    shown = evenly(layers, MOST_PANELS)
    names = {
        "value": "model",
        "shuffled": "document's tokens in any order",
        "anywhere": "tokens from anywhere",
        "uniform": "uniform routing",
    }
    some = result.runs[result.runs["layer"].isin(shown)]
    long = as_lines(some, names, by=["layer", "tokens"], line="routing", value="experts")
    long["doublings"] = np.log2(long["tokens"]).round().astype(int)
    of_all = f" Layers {', '.join(map(str, shown))} of {len(layers)}." if len(shown) < len(layers) else ""
    left = f" No document has {result.left_out[0]} neighbouring tokens or more." if result.left_out else ""
    middle = some[some["layer"] == shown[len(shown) // 2]]
    at = middle.iloc[len(middle) // 2]
    return {
        "by_tokens": Lines(
            long,
            "doublings",
            "experts",
            group="routing",
            panel="layer",
            low="low",
            high="high",
            interval_label=level,
            title="Distinct experts in a run of tokens",
            x_label="tokens in the run, as a power of 2",
            y_label="experts",
            hover=("tokens",),
            caption=f"Mean number of distinct experts in runs of 1, 2, 4 … neighbouring tokens ({result.sample}); "
            "beside as many tokens of the same document in any order, from anywhere in the corpus, and uniform random "
            f"routing.{of_all}{left} {level}: ratio over clusters of documents, t. {result.note}".strip(),
            alt=f"At layer {at['layer']:.0f}, {at['tokens']:.0f} neighbouring tokens need {at['value']:.1f} experts, "
            f"{at['shuffled']:.1f} in any order, {at['uniform']:.1f} with uniform routing.",
        )
    }
