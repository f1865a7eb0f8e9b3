"""Which experts are chosen together, beyond what their loads and the documents explain?

Not shown: that two experts need each other. Words that call for both are enough, and the experts of a token are
distinct, so even random choices are not independent: the lift is read over that of random sets with the same loads.
Pairs are the strongest of many, picked after looking: their values lean upwards. Three experts at a time are not here.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, design, grouped_words, require, router_stacks, sample_words
from analyses.read.tokens import (
    N_DRAWS,
    SAMPLE_TOKENS,
    Sampler,
    Tokens,
    by_bag,
    check_draws,
    evenly,
    layers_said,
    p_value,
    token_parts,
)
from analyses.structure._pair_matrix import Pairs
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure, HeatMap, Lines
from workbench.metrics import structure
from workbench.metrics.sets import Pairings, joint_counts, swapped_within
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_layers
from workbench.statistics.jackknife import Bags, bag_interval, deal

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    structure.coactivation,
    structure.coactivation_lift,
    structure.displaced_pairs,
    structure.matched_pairs,
    structure.pair_counts,
)
MOST_PANELS = 4  # layers in the map: as many as a column of a paper holds
PAIRS_DRAWN = 10
_FORGET = 20  # steps of swaps between draws


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: The one decoder layer that is counted. Unless given all are, and the figures show some, evenly spaced.
        n_pairs: Strongest pairs of each layer.
        min_count: Tokens that both experts of a pair must have by chance for it to be ranked.
        level: Coverage of the intervals.
        n_draws: Draws of swaps within documents.
        sample_tokens: Tokens that these draws are made of, whole documents.
        seed: Of bags, sample and draws.
    """

    layer: int | None = None
    n_pairs: int = 20
    min_count: int = 20
    level: float = 0.95
    n_draws: int = N_DRAWS
    sample_tokens: int = SAMPLE_TOKENS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Pairs of experts.

    Attributes:
        matrix: One row per shown layer and ordered pair: tokens with both (`together`), `probability` P(other |
            expert), `matched_probability` (random sets with the same loads), their difference `excess`, `lift`,
            `matched_lift`, `lift_over_matched`.
        pairs: One row per layer and strongest pair: `lift_over_matched` with `low` and `high`, P(b | a) and P(a | b),
            `within_documents`: the pair's count in the sample over its mean when sets are swapped within documents.
        layers: One row per layer: `displaced`, the share of pairs that differ from random sets with the same loads,
            with `low` and `high`; in the sample `displaced_sample`, when sets are swapped within documents `swapped`
            and `swapped_high`, `p` of the difference; uniform probability (K−1)/(E−1); experts `never_chosen`.
        sample: The sample in words.
        swaps: The draws in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are, and what random sets leave out.
    """

    matrix: pd.DataFrame
    pairs: pd.DataFrame
    layers: pd.DataFrame
    sample: str
    swaps: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Counts pairs of experts in one pass, by bags of documents.

    Raises:
        AnalysisError: the recording holds no routing of single tokens, there is no such layer, no layer chooses two
            experts a token, or a number is under 1.
    """
    require(recording, NEEDS, "coactivation", columns=("ids",))
    check_draws("coactivation", settings.n_draws)
    for name in ("n_pairs", "sample_tokens"):
        if getattr(settings, name) < 1:
            raise AnalysisError(f"coactivation: {name} is {getattr(settings, name)}; 1 or more was expected.")
    if settings.layer is not None and settings.layer not in recording.moe_layers:
        raise AnalysisError(
            f"coactivation: layer {settings.layer} has no router; set layer to one of {list(recording.moe_layers)}."
        )
    if settings.layer is not None:
        recording = of_layers(recording, (settings.layer,))
    stacks = [stack for stack in router_stacks(recording) if 1 < stack.top_k < stack.n_experts]
    if not stacks:
        said = "every layer" if settings.layer is None else f"layer {settings.layer}"
        raise AnalysisError(f"coactivation: {said} chooses one expert a token, or all; there are no pairs to count.")
    bags = deal(design(recording), seed=settings.seed)
    with_pairs = sorted({router.layer for stack in stacks for router in stack.routers})
    shown = evenly(with_pairs, MOST_PANELS)
    tables = [_of_stack(recording, stack, bags, shown, settings) for stack in stacks]
    matrix, pairs, layers, sizes = zip(*tables, strict=True)
    return Result(
        matrix=pd.concat([each for of_stack in matrix for each in of_stack], ignore_index=True),
        pairs=pd.concat(pairs, ignore_index=True),
        layers=pd.concat(layers, ignore_index=True).sort_values("layer", ignore_index=True),
        sample=sample_words(recording),
        swaps=f"{settings.n_draws} draws of {sizes[0]:,} tokens",
        level=settings.level,
        note="; ".join(note for note in (bags.note, grouped_words(recording)) if note),
    )


@dataclass(frozen=True, eq=False)
class _Layer:
    """Pair counts of one router: by bag, in the sample, and in the sample with sets swapped."""

    of_all: Pairs
    counts_GEE: np.ndarray
    sample_EE: np.ndarray
    swapped_BEE: np.ndarray


def _of_stack(
    recording: Recording, stack: RouterStack, bags: Bags, shown: list[int], settings: Settings
) -> tuple[list[pd.DataFrame], pd.DataFrame, pd.DataFrame, int]:
    n_experts, n_layers = stack.n_experts, len(stack.routers)
    counts_LGEE = np.zeros((n_layers, bags.n_bags, n_experts, n_experts), dtype=np.int32)
    sampler = Sampler(recording, n_tokens=settings.sample_tokens, seed=settings.seed)
    for part in token_parts(recording, stack):
        sampler.take(part)
        bag_T = bags.bag_D[part.row_T]
        for counts_GEE, bits_TW in zip(counts_LGEE, part.bits_LTW, strict=True):

            def count(rows: np.ndarray, bits_TW: np.ndarray = bits_TW) -> np.ndarray:
                picked_TW = bits_TW[rows]
                return joint_counts(picked_TW, picked_TW, n_experts=n_experts)

            by_bag(bag_T, bags.n_bags, count, counts_GEE)
    sample = sampler.joined()
    swapped_BLEE = _swapped(sample, settings)
    labels = stack.labels()
    matrices, pairs, layers = [], [], []
    for i, counts_GEE in enumerate(counts_LGEE):
        bits_TW = sample.bits_LTW[i]
        sample_EE = joint_counts(bits_TW, bits_TW, n_experts=n_experts)
        of_all = Pairs(labels.iloc[[i]], stack.top_k, counts_GEE.sum(axis=0, dtype=np.int64))
        matrices += [of_all.matrix()] if stack.routers[i].layer in shown else []
        layer = _Layer(of_all, counts_GEE, sample_EE, swapped_BLEE[:, i])
        layers.append(_summary(layer, bags, settings))
        pairs.append(_strongest(layer, bags, settings))
    return matrices, pd.concat(pairs), pd.concat(layers), len(sample.row_T)


def _swapped(sample: Tokens, settings: Settings) -> np.ndarray:
    """Pair counts of the sample when sets are swapped within documents: [B, L, E, E]."""
    bits_TLW = np.stack(sample.bits_LTW, axis=1)
    pairings, drawn = Pairings.of(sample.document_T, sample.place_T, seed=settings.seed), []
    for draw in range(settings.n_draws):
        steps = _FORGET if draw else 2 * _FORGET
        first = _FORGET * (draw + 1) if draw else 0
        bits_TLW = swapped_within(bits_TLW, pairings, n_steps=steps, first_step=first)
        each = (np.ascontiguousarray(bits_TLW[:, i]) for i in range(bits_TLW.shape[1]))
        drawn.append([joint_counts(bits_TW, bits_TW, n_experts=sample.n_experts) for bits_TW in each])
    return np.array(drawn)


def _displaced(pairs_EE: np.ndarray, top_k: int) -> np.ndarray:
    chosen_E = np.diagonal(pairs_EE, axis1=-2, axis2=-1)
    return structure.displaced_pairs(pairs_EE, structure.matched_pairs(chosen_E, top_k=top_k))


def _summary(layer: _Layer, bags: Bags, settings: Settings) -> pd.DataFrame:
    top_k, sample_EE = layer.of_all.top_k, layer.sample_EE
    interval = bag_interval(
        lambda pairs_EE: _displaced(pairs_EE, top_k), layer.counts_GEE, bags=bags, level=settings.level
    )
    observed = _displaced(sample_EE, top_k)
    # swaps keep the sample's loads, so one null serves all draws
    matched_EE = structure.matched_pairs(np.diag(sample_EE), top_k=top_k)
    drawn_B = structure.displaced_pairs(layer.swapped_BEE, np.broadcast_to(matched_EE, layer.swapped_BEE.shape))
    n_experts = sample_EE.shape[0]
    return layer.of_all.about.assign(
        displaced=float(interval.plug_in),
        estimate=float(interval.value),
        low=max(float(interval.low), 0) if np.isfinite(interval.low) else np.nan,
        high=float(interval.high),
        displaced_sample=float(observed),
        swapped=float(drawn_B.mean()),
        swapped_high=float(np.quantile(drawn_B, 0.95)),
        p=float(p_value(observed, drawn_B)),
        uniform_probability=(top_k - 1) / (n_experts - 1),
        never_chosen=int((layer.of_all.pairs_EE.diagonal() == 0).sum()),
    )


def _strongest(layer: _Layer, bags: Bags, settings: Settings) -> pd.DataFrame:
    """The pairs with the largest excess of the lift, counted in standard deviations of independent tokens."""
    pairs_EE, matched_EE, top_k, counts_GEE = (
        layer.of_all.pairs_EE,
        layer.of_all.matched_EE,
        layer.of_all.top_k,
        layer.counts_GEE,
    )
    one, two = np.triu_indices(len(pairs_EE), 1)
    expected_P = matched_EE[one, two]
    ranked = np.flatnonzero(expected_P >= settings.min_count)
    surprise = (pairs_EE[one, two][ranked] - expected_P[ranked]) / np.sqrt(expected_P[ranked])
    best = ranked[np.lexsort((ranked, -surprise))][: settings.n_pairs]
    one, two = one[best], two[best]
    # of a pair the lift needs N_ab, N_a, N_b and the matched count, whose own change between bags is of second order
    chosen_GE = np.diagonal(counts_GEE, axis1=1, axis2=2)
    columns = (
        counts_GEE[:, one, two],
        chosen_GE[:, one],
        chosen_GE[:, two],
        np.tile(chosen_GE.sum(1), (len(one), 1)).T,
    )
    counts_G4P = np.stack(columns, axis=1).astype(np.float64)
    chosen_E, tokens = np.diag(pairs_EE), np.trace(pairs_EE) / top_k
    matched_P = matched_EE[one, two] * tokens / (chosen_E[one] * chosen_E[two])

    def ratio(sums_4P: np.ndarray) -> np.ndarray:
        together, of_a, of_b, assignments = np.moveaxis(sums_4P, -2, 0)
        return together * assignments / top_k / np.where(of_a * of_b > 0, of_a * of_b, np.nan) / matched_P

    interval = bag_interval(ratio, counts_G4P, bags=bags, level=settings.level, corrected=False)
    within_P = layer.swapped_BEE.mean(axis=0)[one, two]
    frame = layer.of_all.about.loc[layer.of_all.about.index.repeat(len(one))].reset_index(drop=True)
    return frame.assign(
        a=one,
        b=two,
        together=pairs_EE[one, two],
        lift_over_matched=interval.value,
        low=np.maximum(interval.low, 0),
        high=interval.high,
        b_given_a=pairs_EE[one, two] / chosen_E[one],
        a_given_b=pairs_EE[one, two] / chosen_E[two],
        lift=interval.value * matched_P,
        matched_lift=matched_P,
        within_documents=layer.sample_EE[one, two] / np.where(within_P > 0, within_P, np.nan),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`, `pairs` and `matrix`."""
    return {"layers": result.layers, "pairs": result.pairs, "matrix": result.matrix}


def _by_layer(result: Result, level: str) -> Lines:
    names = {"displaced_sample": "model", "swapped": "sets swapped in documents"}
    keys = [key for key in ("layer", "site") if key in result.layers]
    table = result.layers.melt(id_vars=keys, value_vars=list(names), var_name="routing", value_name="share")
    all_text = result.layers.assign(routing="all", share=result.layers["estimate"])
    names = {"all": "model, all text", **{name: f"{said}, sample" for name, said in names.items()}}
    table = pd.concat([all_text[[*keys, "routing", "share", "low", "high"]], table], ignore_index=True)
    most = result.layers.nlargest(1, "estimate").iloc[0]
    return Lines(
        table.assign(routing=table["routing"].map(names)),
        "layer",
        "share",
        group="routing",
        panel="site" if "site" in keys else None,
        low="low",
        high="high",
        interval_label=level,
        title="How far pairs of experts are from random sets",
        x_label="layer",
        y_label="share of pairs",
        caption="Share of the pairs of a token's experts that would have to change for the pairs of random sets with "
        f"the same loads ({result.sample}); of all text corrected for noise, with its {level} (jackknife over bags of "
        f"documents, t). Not corrected, of a sample, beside sets swapped within documents ({result.swaps}): what "
        f"documents alone give. {result.note}".strip(),
        alt=f"At most {most['estimate']:.1%} of the pairs, at layer {most['layer']:.0f}.".replace("%", " %"),
    )


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` where there are several, `pair_map` of some layers, and their `strongest_pairs` that can be ranked."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    of_layers = result.matrix["layer"].unique().tolist()
    every = result.layers["layer"].nunique()
    some = layers_said(of_layers, every)
    most = result.layers.nlargest(1, "displaced").iloc[0]
    never = int(result.layers["never_chosen"].sum())
    unseen = f" {never} experts are never chosen and have no value." if never else ""
    drawn: dict[str, Figure] = {"by_layer": _by_layer(result, level)} if every > 1 else {}
    drawn |= {
        "pair_map": HeatMap(
            result.matrix,
            "other",
            "expert",
            "excess",
            panel="layer",
            title="Experts chosen together",
            x_label="other expert",
            y_label="expert",
            value_label="P(other | expert) − random sets",
            center=0.0,
            square=True,
            hover=("probability", "matched_probability", "lift_over_matched", "together"),
            caption="Share of an expert's tokens that also choose another expert, less that share in random sets with "
            f"the same loads ({result.sample}); all pairs of a token, whatever their rank.{some}{unseen} Documents "
            "have loads of their own, which also makes pairs: the table has each layer beside swaps within documents "
            f"({result.swaps}).",
            alt=f"Layer {most['layer']:.0f} differs most from random sets: {most['displaced']:.1%} of its pairs would "
            f"have to change; of a sample {most['displaced_sample']:.1%}, and {most['swapped']:.1%} when sets are "
            "swapped within documents.".replace("%", " %"),
        ),
    }
    shown = result.pairs[result.pairs["layer"].isin(of_layers)]
    if len(shown):
        best = shown.nlargest(PAIRS_DRAWN, "lift_over_matched")
        label = best["a"].astype(str) + "–" + best["b"].astype(str)
        if len(of_layers) > 1:
            label = "L" + best["layer"].astype(str) + " " + label
        first = best.iloc[0]
        drawn["strongest_pairs"] = Bars(
            best.assign(pair=label, random=1.0),
            "pair",
            "lift_over_matched",
            low="low",
            high="high",
            interval_label=level,
            null="random",
            null_label="random sets, same loads",
            title="Pairs most often chosen together",
            x_label="layer and experts" if len(of_layers) > 1 else "experts",
            y_label="lift / lift of random sets",
            hover=("together", "b_given_a", "a_given_b", "within_documents"),
            caption=f"The pairs with the largest lift over that of random sets with the same loads ({result.sample}); "
            f"picked after looking, so values lean upwards. {level}: jackknife over bags of documents, t. "
            f"{result.note}".strip(),
            alt=f"Experts {first['a']:.0f} and {first['b']:.0f} of layer {first['layer']:.0f} are chosen together "
            f"{first['lift_over_matched']:.1f} times as often as at random.",
        )
    return drawn
