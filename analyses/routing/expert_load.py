"""How is the load spread over the experts of each layer, and which get more or less than their fair share?

Not shown: whether an uneven load hurts the model; decoding, whose load can differ from that of given text; shared
experts, which every token uses. An expert that this corpus leaves idle may be busy on another.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.chunks import knows_first_choice
from analyses.read.design import design, long_form, rates_note, require, router_stacks, sample_words
from analyses.read.tokens import first_choice_counts
from workbench.figures.spec import Distribution, Figure, HeatMap
from workbench.metrics.balance import max_t_test
from workbench.metrics.load import dead_experts, document_counts, expert_counts, gate_mass, load
from workbench.recordings.recording import Recording
from workbench.statistics.intervals import ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (dead_experts, document_counts, expert_counts, gate_mass, load)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of each expert's interval.
        n_draws: Draws of the test for experts off balance.
        seed: Of the draws.
    """

    level: float = 0.95
    n_draws: int = 999
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Load of every expert, and its spread in every layer.

    Attributes:
        experts: One row per layer and expert: `assignments`, `load`, `load_over_balance` with `low` and `high`,
            `weight_over_balance` (its share of the routing weight times E; where weights were recorded),
            `first_over_balance` (its share of the tokens' first choices, top-1, times E; where those are known), `p` of
            the deviation from balance (family-wise over the layer's experts).
        layers: One row per layer: quantiles of load over balance, experts off balance at p ≤ .05, unused experts, and
            where first choices are known the load of their `highest_first` over balance and `unused_first`.
        sample: The sample in words.
        note: How often such intervals hold the truth, and why some are missing, if they are.
        level: Coverage of the intervals.
    """

    experts: pd.DataFrame
    layers: pd.DataFrame
    sample: str
    note: str
    level: float


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes loads with intervals, and tests each expert against balance.

    Raises:
        AnalysisError: the recording holds no routing.
    """
    require(recording, NEEDS, "expert_load")
    clusters = design(recording)
    experts, layers, note = [], [], ""
    for stack in router_stacks(recording):
        counts_DLE = stack.stacked(recording, "counts")
        share = ratio_interval(
            counts_DLE, counts_DLE.sum(-1, keepdims=True), clusters=clusters, level=settings.level, share=True
        )
        test = max_t_test(counts_DLE, clusters=clusters, n_draws=settings.n_draws, seed=settings.seed)
        over_LE = share.value * stack.n_experts
        weight = {}
        if recording.has("weight_sum"):
            weight_LE = stack.stacked(recording, "weight_sum").astype(np.float64).sum(0)
            weight["weight_over_balance"] = load(weight_LE) * stack.n_experts
        first = {}
        if "ids" not in recording.lacks and knows_first_choice(recording):
            first_LE = first_choice_counts(recording, stack).sum(0)
            weight["first_over_balance"] = load(first_LE) * stack.n_experts
            first = {"highest_first": weight["first_over_balance"].max(1), "unused_first": dead_experts(first_LE)}
        table = long_form(
            stack.labels(),
            "expert",
            {
                "assignments": counts_DLE.sum(0),
                "load": share.value,
                "load_over_balance": over_LE,
                "low": share.low * stack.n_experts,
                "high": share.high * stack.n_experts,
                **weight,
                "p": test.p,
            },
        )
        experts.append(table)
        quantiles = np.quantile(over_LE, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
        layers.append(
            stack.labels().assign(
                experts=stack.n_experts,
                chosen=stack.top_k,
                **dict(zip(("q05", "q25", "q50", "q75", "q95"), quantiles, strict=True)),
                mean=over_LE.mean(1),
                lowest=over_LE.min(1),
                highest=over_LE.max(1),
                above=((test.p <= 0.05) & (over_LE > 1)).sum(1),
                below=((test.p <= 0.05) & (over_LE < 1)).sum(1),
                unused=(counts_DLE.sum(0) == 0).sum(1),
                **first,
            )
        )
        note = share.note
    by_expert = pd.concat(experts, ignore_index=True)
    return Result(
        experts=by_expert,
        layers=pd.concat(layers, ignore_index=True),
        sample=sample_words(recording),
        note=rates_note(by_expert, note),
        level=settings.level,
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`experts` and `layers`."""
    return {"experts": result.experts, "layers": result.layers}


def figures(result: Result) -> dict[str, Figure]:
    """`load_map` of all experts, `load_spread` by layer."""
    least, most = result.experts.loc[[result.experts["load"].idxmin(), result.experts["load"].idxmax()]].itertuples()
    extremes = (
        f"The busiest expert is {most.expert} of layer {most.layer} with {most.load_over_balance:.2f} times the "
        f"balanced load, the idlest {least.expert} of layer {least.layer} with {least.load_over_balance:.2f}."
    )
    off = int((result.layers["above"] + result.layers["below"]).sum())
    return {
        "load_map": HeatMap(
            result.experts,
            "expert",
            "layer",
            "load_over_balance",
            title="Load of each expert",
            x_label="expert",
            y_label="layer",
            value_label="load / balanced load",
            center=1.0,
            log=True,
            hover=tuple(
                name for name in ("assignments", "low", "high", "weight_over_balance", "p") if name in result.experts
            ),
            caption="Share of a layer's assignments that each expert gets, over the balanced share 1/E "
            f"({result.sample}). {off} of {len(result.experts)} experts are off balance at a family-wise 5 % per layer "
            f"(sign flips of document clusters). {result.note}".strip(),
            alt=extremes,
        ),
        "load_spread": Distribution(
            result.layers.assign(balance=1.0),
            "layer",
            title="Spread of the load over experts",
            x_label="layer",
            y_label="load / balanced load",
            null="balance",
            null_label="balanced load",
            caption="Distribution over the experts of a layer of load over the balanced load 1/E "
            f"({result.sample}); box: middle half, whiskers: 5–95 % of experts. Counting noise is part of the spread; "
            "load_balance separates it.",
            alt=extremes,
        ),
    }
