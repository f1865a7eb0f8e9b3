"""Do heads that share keys and values attend alike?

Not shown: whether they compute alike. Heads of one group read the same values by different weights; a small divergence
says that they read the same places, not that one of them could be left out. Divergence is between weights of the same
query, over a sample of each document's queries.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.attention import _statistics
from analyses.read.design import in_bits, require, sample_words
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Lines
from workbench.metrics import attention
from workbench.metrics.attention import group_similarity
from workbench.recordings.recording import Recording
from workbench.recordings.schema import attention_prefix

INPUT = "recording"
NEEDS = ("attention", "attention-weights")
METRICS = (
    attention.by_bin,
    attention.group_similarity,
    attention.head_divergence,
    attention.query_statistics,
    attention.repeated_scores,
    attention.sink_windows,
    attention.weighed_statistics,
)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: Layer whose pairs of heads are shown; the one with the largest difference unless given.
        n_draws: Random assignments of heads to groups.
        level: Coverage of the intervals.
        seed: Of the assignments.
    """

    layer: int | None = None
    n_draws: int = 999
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Divergence inside and between groups.

    Attributes:
        layers: One row per layer: mean divergence of pairs `inside` a group and `between` groups, bits, `difference`
            (between less inside) with `low` and `high`, and `p` of as large a one when heads are dealt to groups at
            random. NaN where each head has keys of its own, or all share one.
        pairs: One row per layer and pair of heads: `divergence`, bits, and whether they are of the `same_group`.
        layer: The layer that is shown.
        smallest_p: What `p` can be at least with so few heads and groups, of the layer that is shown.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    pairs: pd.DataFrame
    layer: int
    smallest_p: float
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes the divergence of pairs of heads, inside and between groups of keys and values.

    Raises:
        AnalysisError: the recording holds no weights' statistics, or the layer was not recorded.
    """
    require(recording, NEEDS, "attention_groups", columns=())
    layers, pairs, note = [], [], ""
    facts_of = {facts["layer"]: facts for facts in _statistics.covered(recording)}
    if settings.layer is not None and settings.layer not in facts_of:
        raise AnalysisError(
            f"attention_groups: layer {settings.layer} has no recorded attention; there are {list(facts_of)}."
        )
    for layer, facts in facts_of.items():
        heads, groups = facts["heads"], facts["groups"]
        flat_DN = recording.column(f"{attention_prefix(layer, recording.topology)}.divergence", table="documents")
        bits_DHH = flat_DN.reshape(-1, heads, heads).astype(np.float64) / np.log(2)
        mean = _statistics.mean_interval(recording, bits_DHH, level=settings.level)
        group_H = np.arange(heads) * groups // heads
        first, second = np.triu_indices(heads, 1)
        same = group_H[first] == group_H[second]
        found = group_similarity(mean.value, n_groups=groups, n_permutations=settings.n_draws, seed=settings.seed)
        row = {"layer": layer, "heads": heads, "groups": groups} | found | {"low": np.nan, "high": np.nan}
        if same.any() and not same.all():
            of_pairs_DP = bits_DHH[:, first, second]
            difference_D = of_pairs_DP[:, ~same].mean(axis=1) - of_pairs_DP[:, same].mean(axis=1)
            interval = _statistics.mean_interval(recording, difference_D, level=settings.level)
            row |= {"low": float(interval.low), "high": float(interval.high)}
        note = mean.note
        layers.append(row)
        pairs.append(
            pd.DataFrame(
                {
                    "layer": layer, "head": first, "other": second, "divergence": mean.value[first, second],
                    "low": mean.low[first, second], "high": mean.high[first, second], "same_group": same,
                }
            )
        )  # fmt: skip
    table = pd.DataFrame(layers)
    shown = settings.layer
    if shown is None:
        shown = int(table["layer"].iloc[int(table["difference"].fillna(-np.inf).to_numpy().argmax())])
    return Result(
        layers=in_bits(table, "inside", "between", "difference", "low", "high"),
        pairs=in_bits(pd.concat(pairs, ignore_index=True), "divergence", "low", "high"),
        layer=shown,
        smallest_p=_smallest_p(facts_of[shown]["heads"], facts_of[shown]["groups"]),
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


def _smallest_p(heads: int, groups: int) -> float:
    """One over the number of ways in which heads can be dealt to groups of one size."""
    ways, left, size = 1.0, heads, heads // groups
    for group in range(groups):
        for i in range(size):
            ways *= (left - i) / (i + 1)
        left -= size
        ways /= group + 1
    return 1 / ways


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers` and `pairs`."""
    return {"layers": result.layers, "pairs": result.pairs}


def figures(result: Result) -> dict[str, Figure]:
    """`divergence` of the pairs of a layer, and `groups` by layer."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    pairs = result.pairs[result.pairs["layer"] == result.layer]
    square = pd.concat([pairs, pairs.rename(columns={"head": "other", "other": "head"})], ignore_index=True)
    near = pairs.nsmallest(1, "divergence")
    drawn: dict[str, Figure] = {}
    if len(near) and near["divergence"].notna().all():
        one = near.iloc[0]
        drawn["divergence"] = HeatMap(
            square,
            "head",
            "other",
            "divergence",
            title=f"Heads of layer {result.layer}",
            x_label="head",
            y_label="head",
            value_label="divergence (bits)",
            square=True,
            hover=("same_group", "low", "high"),
            caption=f"Jensen-Shannon divergence between the weights of each pair of heads of layer {result.layer}, "
            f"mean over queries and documents ({result.sample}); 0: the same weights, 1: no key in common.",
            alt=f"The most alike are heads {one['head']} and {one['other']}: {one['divergence']:.2f} bits.",
        )
    known = result.layers[result.layers["difference"].notna()]
    if len(known):
        long = known.melt("layer", ["inside", "between"], var_name="pairs", value_name="divergence")
        words = {"inside": "of one group", "between": "of different groups"}
        drawn["groups"] = Lines(
            long.assign(pairs=[words[kind] for kind in long["pairs"]]),
            "layer",
            "divergence",
            group="pairs",
            title="Inside and between groups",
            x_label="layer",
            y_label="divergence (bits)",
            caption=f"Mean Jensen-Shannon divergence of pairs of heads that share keys and values, and of others "
            f"({result.sample}). {int((known['p'] <= 0.05).sum())} of {len(known)} layers differ by more than 19 of 20 "
            f"random assignments of heads to groups; p cannot be under {result.smallest_p:.2g} with so many heads. "
            f"{level} of the difference in the table. {result.note}".strip(),
            alt=f"Inside {known['inside'].mean():.2f} bits, between {known['between'].mean():.2f}, on average.",
        )
    return drawn
