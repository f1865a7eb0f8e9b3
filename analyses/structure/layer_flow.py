"""Does the expert chosen in one layer tell which are chosen in the next MoE layer?

Not shown: that one causes the other. Both layers see the same token, and a router that looked at the token alone would
flow perfectly. What documents alone give is taken out by permuting one layer's sets within documents; words are not.
Told is what single experts tell of each other, not what the whole set does. Layers of different shapes are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, as_lines, design, require, router_stacks, sample_words
from analyses.read.tokens import N_DRAWS, SAMPLE_TOKENS, Sampler, Tokens, by_bag, check_draws, p_value, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Flow, HeatMap, Lines
from workbench.metrics import structure
from workbench.metrics.sets import joint_counts, shuffled_within
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_layers
from workbench.statistics.jackknife import Bags, bag_interval, deal

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    structure.flow_counts,
    structure.flow_information,
    structure.mode_accuracy,
    structure.permuted_flow,
    structure.successor_accuracy,
)
MEASURES = {"best successor": structure.successor_accuracy, "information": structure.flow_information}
STREAMS = 24  # as many as can be told apart in a column


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: First of the two decoder layers that are counted. Unless given all are, and the pair with the most
            information is shown.
        level: Coverage of the intervals.
        n_draws: Permutations of one layer's sets within documents.
        sample_tokens: Tokens that these permutations are made of, whole documents.
        seed: Of bags, sample and permutations.
    """

    layer: int | None = None
    level: float = 0.95
    n_draws: int = N_DRAWS
    sample_tokens: int = SAMPLE_TOKENS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Flow between successive MoE layers.

    Attributes:
        layers: One row per pair of layers and measure: "best successor", how often the most frequent successor of a
            chosen expert is chosen too, beside the busiest expert's rate (`marginal`), and "information", what single
            experts tell about the next layer's over its maximum (`marginal` 0). `value` is of the sample, `estimate`
            with `low` and `high` is corrected for noise, `permuted` what documents alone give (exact), and of the
            sample `value_sample`, `permuted_sample` and `p`.
        flow: One row per expert of the shown layer and expert of the next: `tokens` with both, `probability` P(next |
            expert), what is expected when documents alone decide (`permuted`), their difference `excess` and ratio
            `lift`.
        layer: The shown layer.
        next_layer: The one after it.
        n_experts: E of both.
        sample: The sample in words.
        draws: The permutations in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    flow: pd.DataFrame
    layer: int
    next_layer: int
    n_experts: int
    sample: str
    draws: str
    level: float
    note: str


@dataclass(frozen=True, eq=False)
class _Counted:
    """The flow from a layer to the next, and what documents alone give."""

    layer: int
    next_layer: int
    top_k: int
    flow_EE: np.ndarray
    permuted_EE: np.ndarray


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Counts pairs of experts of successive layers in one pass, by bags of documents.

    Raises:
        AnalysisError: the recording holds no routing of single tokens, no two MoE layers of one shape, or none after
            `layer`; or a number is under 1.
    """
    require(recording, NEEDS, "layer_flow", columns=("ids",))
    check_draws("layer_flow", settings.n_draws)
    if settings.sample_tokens < 1:
        raise AnalysisError(f"layer_flow: sample_tokens is {settings.sample_tokens}; 1 or more was expected.")
    stacks = [stack for stack in router_stacks(recording) if len(stack.routers) > 1]
    if not stacks:
        raise AnalysisError(
            f"layer_flow: {recording.path} has no two MoE layers with as many experts and choices, so none follows "
            "another."
        )
    if settings.layer is not None:
        next_of = {one.layer: two.layer for stack in stacks for one, two in pairwise(stack.routers)}
        if settings.layer not in next_of:
            raise AnalysisError(
                f"layer_flow: layer {settings.layer} has no MoE layer of its shape after it; set layer to one of "
                f"{list(next_of)}."
            )
        recording = of_layers(recording, (settings.layer, next_of[settings.layer]))
        stacks = [stack for stack in router_stacks(recording) if len(stack.routers) > 1]
    bags = deal(design(recording), seed=settings.seed)
    found = [_of_stack(recording, stack, bags, settings) for stack in stacks]
    layers = pd.concat([table for table, _, _ in found], ignore_index=True)
    information = layers[layers["measure"] == "information"]
    most = int(information["layer"].to_numpy()[information["value"].fillna(-1).to_numpy().argmax()])
    shown, size = next((each, size) for _, flows, size in found for each in flows if each.layer == most)
    return Result(
        layers=layers,
        flow=_flow(shown.flow_EE, shown.permuted_EE, shown.top_k),
        layer=shown.layer,
        next_layer=shown.next_layer,
        n_experts=len(shown.flow_EE),
        sample=sample_words(recording),
        draws=f"{settings.n_draws} permutations of {size:,} tokens",
        level=settings.level,
        note=bags.note,
    )


def _of_stack(
    recording: Recording, stack: RouterStack, bags: Bags, settings: Settings
) -> tuple[pd.DataFrame, list[_Counted], int]:
    n_experts, n_pairs = stack.n_experts, len(stack.routers) - 1
    flow_PGEE = np.zeros((n_pairs, bags.n_bags, n_experts, n_experts), dtype=np.int32)
    sampler = Sampler(recording, n_tokens=settings.sample_tokens, seed=settings.seed)
    for part in token_parts(recording, stack):
        sampler.take(part)
        bag_T = bags.bag_D[part.row_T]
        for i in range(n_pairs):
            one_TW, two_TW = part.bits_LTW[i : i + 2]

            def count(rows: np.ndarray, one_TW: np.ndarray = one_TW, two_TW: np.ndarray = two_TW) -> np.ndarray:
                return joint_counts(one_TW[rows], two_TW[rows], n_experts=n_experts)

            by_bag(bag_T, bags.n_bags, count, flow_PGEE[i])
    sample = sampler.joined()
    counts_DLE = stack.stacked(recording, "counts")
    tables, flows = [], []
    for i, flow_GEE in enumerate(flow_PGEE):
        permuted_EE = structure.permuted_flow(counts_DLE[:, i], counts_DLE[:, i + 1], top_k=stack.top_k)
        drawn_BEE = _permuted(sample, i, settings)
        one, two = (router.layer for router in stack.routers[i : i + 2])
        flows.append(_Counted(one, two, stack.top_k, flow_GEE.sum(axis=0, dtype=np.int64), permuted_EE))
        for measure, statistic in MEASURES.items():

            def of(flow: np.ndarray, statistic: Callable[..., np.ndarray] = statistic) -> np.ndarray:
                return statistic(flow, top_k=stack.top_k)

            interval = bag_interval(of, flow_GEE, bags=bags, level=settings.level)
            observed, drawn_B = of(drawn_BEE[0]), of(drawn_BEE[1:])
            marginal = (
                structure.mode_accuracy(flows[-1].flow_EE, top_k=stack.top_k) if measure != "information" else 0.0
            )
            tables.append(
                {
                    "layer": stack.routers[i].layer,
                    "next_layer": stack.routers[i + 1].layer,
                    "measure": measure,
                    "value": float(interval.plug_in),
                    "estimate": float(interval.value),
                    "low": float(interval.low),
                    "high": float(interval.high),
                    "marginal": float(marginal),
                    "permuted": float(of(permuted_EE)),
                    "value_sample": float(observed),
                    "permuted_sample": float(drawn_B.mean()),
                    "p": float(p_value(observed, drawn_B)),
                }
            )
    return pd.DataFrame(tables), flows, len(sample.row_T)


def _permuted(sample: Tokens, at: int, settings: Settings) -> np.ndarray:
    """The sample's flow, then that of each permutation of the second layer's sets within documents: [1 + B, E, E]."""
    one_TW, two_TW = sample.bits_LTW[at : at + 2]
    flows = [joint_counts(one_TW, two_TW, n_experts=sample.n_experts)]
    for draw in range(settings.n_draws):
        order = shuffled_within(sample.document_T, sample.place_T, seed=settings.seed, draw=draw)
        flows.append(joint_counts(one_TW, two_TW[order], n_experts=sample.n_experts))
    return np.stack(flows)


def _flow(flow_EE: np.ndarray, permuted_EE: np.ndarray, top_k: int) -> pd.DataFrame:
    expert, following = (axis.ravel() for axis in np.indices(flow_EE.shape))
    chosen_E1 = flow_EE.sum(axis=1, keepdims=True) / top_k
    known_E1 = np.where(chosen_E1 > 0, chosen_E1, np.nan)
    return pd.DataFrame(
        {
            "expert": expert,
            "next_expert": following,
            "tokens": flow_EE.ravel(),
            "probability": (flow_EE / known_E1).ravel(),
            "permuted": (permuted_EE / known_E1).ravel(),
            "excess": ((flow_EE - permuted_EE) / known_E1).ravel(),
            "lift": (flow_EE / np.where(permuted_EE > 0, permuted_EE, np.nan)).ravel(),
        }
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers` and `flow`."""
    return {"layers": result.layers, "flow": result.flow}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` where several were counted; of one pair of layers `flow_map` and, if any, `strongest_streams`."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    names = {"estimate": "model", "permuted": "sets permuted in documents", "marginal": "the layer not looked at"}
    long = as_lines(result.layers, names, by=["layer", "measure"], line="routing", value="share")
    of_pair = result.layers[(result.layers["layer"] == result.layer)].set_index("measure")["estimate"]
    between = f"layer {result.layer} to layer {result.next_layer}"
    never = int(result.flow.groupby("expert")["tokens"].sum().eq(0).sum())
    unseen = f" {never} experts of layer {result.layer} are never chosen and have no value." if never else ""
    by_layer = Lines(
        long,
        "layer",
        "share",
        group="routing",
        panel="measure",
        low="low",
        high="high",
        interval_label=level,
        shared_y=False,
        title="What a layer tells about the next one's experts",
        x_label="first layer of the two",
        y_label="share",
        caption="How often the most frequent successor of a chosen expert is chosen too, and what single experts "
        f"tell about the next MoE layer's, over its maximum ({result.sample}); beside what documents alone give, "
        f"and the rate of the busiest expert. {level}: jackknife over bags of documents, t; values are corrected "
        f"for noise. Tested with {result.draws}. {result.note}".strip(),
        alt=f"From {between} the best successor is right in {of_pair['best successor']:.1%}; the information is "
        f"{of_pair['information']:.1%} of its maximum.".replace("%", " %"),
    )
    drawn: dict[str, Figure] = {"by_layer": by_layer} if result.layers["layer"].nunique() > 1 else {}
    drawn |= {
        "flow_map": HeatMap(
            result.flow,
            "next_expert",
            "expert",
            "excess",
            title=f"Flow of experts, {between}",
            x_label=f"expert of layer {result.next_layer}",
            y_label=f"expert of layer {result.layer}",
            value_label="P(next | expert) − documents alone",
            center=0.0,
            hover=("probability", "permuted", "lift", "tokens"),
            caption=f"Share of the tokens of an expert of layer {result.layer} that choose an expert of layer "
            f"{result.next_layer}, less that share when sets are permuted within documents ({result.sample}); all "
            f"pairs of experts of a token.{unseen}",
            alt=f"From {between} the information is {of_pair['information']:.1%} of its maximum.".replace("%", " %"),
        ),
    }
    streams = result.flow[result.flow["excess"] > 0].nlargest(STREAMS, "excess")
    if len(streams):
        first = streams.iloc[0]
        drawn["strongest_streams"] = Flow(
            streams,
            "expert",
            "next_expert",
            "tokens",
            source_label=f"expert of layer {result.layer}",
            target_label=f"of layer {result.next_layer}",
            value_label="tokens with both",
            title=f"Strongest flow, {between}",
            hover=("probability", "permuted", "lift"),
            caption=f"The {len(streams)} pairs of an expert of layer {result.layer} and one of layer "
            f"{result.next_layer} with the largest P(next | expert) over what documents alone give ({result.sample}); "
            "picked after looking. The other flow is not drawn.",
            alt=f"Expert {first['expert']:.0f} leads: {first['probability']:.1%} of its tokens go on to expert "
            f"{first['next_expert']:.0f}; {first['permuted']:.1%} by their documents alone.".replace("%", " %"),
        )
    return drawn
