"""What does each expert add to a token, beside how often it is chosen?

Not shown: what it is good for. The norm of what an expert adds says nothing of its direction: large outputs can cancel,
and a small one can decide. Tokens differ in their scale, so an expert is compared with the other experts that its own
tokens chose; the routing weight is part of what it adds, so a small contribution can be a small weight. A router by
token id alone adds nothing, so no hash stands beside it: `--against` a recording of the untrained model with the field
`experts` shows what was there before.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analyses.read.chunks import chunks
from analyses.read.design import RouterStack, design, long_form, require, router_stacks, sample_words
from analyses.read.tokens import document_rows
from workbench.figures.spec import Figure, HeatMap, Lines, Points
from workbench.metrics import contribution
from workbench.metrics.contribution import peer_contribution
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.intervals import Interval, domain_ratio_interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing", "experts")
METRICS = (contribution.contribution, contribution.peer_contribution, contribution.shared_share)
ALONE = "one expert a token has no peers: compared with the layer's mean over all tokens"
MOST_PANELS = 4  # layers drawn: as many as a column of a paper holds


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
        small: An expert adds little where its interval lies under this multiple of what its peers add.
        large: It adds much where its interval lies over this multiple.
    """

    level: float = 0.95
    small: float = 0.2
    large: float = 5.0


@dataclass(frozen=True, eq=False)
class Result:
    """What experts add.

    Attributes:
        experts: One row per layer and expert: `contribution` (mean norm of what it adds, per token that chooses it),
            `peers` (what an average chosen expert adds on the same tokens), `relative` (their ratio, 1 where experts
            add alike) with `low` and `high`, `load` (share of the assignments), `balanced` (1/E), `part` (share of the
            sum of norms), `weight` (mean routing weight; NaN where not recorded). NaN for experts never chosen.
        domains: One row per layer, domain and expert: `relative` with `low` and `high`, `contribution`.
        layers: One row per layer: experts `never_chosen`, and of the chosen `small` and `large` (as the settings say,
            by their interval's far end) and `small_at_most`, `large_at_most` (by its near end), of intervals that hold
            for all experts of the layer at once; NaN without intervals. Smallest and largest `relative`; `spearman`,
            rank correlation of load and relative contribution over experts.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are, and what stands for peers where a token has one expert.
        limits: `small` and `large` of the settings.
    """

    experts: pd.DataFrame
    domains: pd.DataFrame
    layers: pd.DataFrame
    sample: str
    level: float
    note: str
    limits: tuple[float, float]


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes mean contributions by expert and domain, relative to the experts chosen for the same tokens.

    Raises:
        AnalysisError: the recording holds no routing or no field `experts`.
    """
    require(recording, NEEDS, "contribution", columns=("ids", "contribution"))
    clusters, row_of = design(recording), document_rows(recording)
    experts, domains, layers, note, alone = [], [], [], "", ""
    for stack in router_stacks(recording):
        labels = stack.labels()
        counts_DLE, added_DLE = (stack.stacked(recording, name) for name in ("counts", "contribution_sum"))
        if stack.top_k > 1:
            peers_DLE = _peers(recording, stack, row_of)
        else:
            mean_L = added_DLE.sum((0, 2)) / counts_DLE.sum((0, 2))
            peers_DLE = counts_DLE * mean_L[:, None]
            alone = ALONE
        relative = ratio_interval(added_DLE, peers_DLE, clusters=clusters, level=settings.level)
        counts_LE, added_LE, peers_LE = (values.sum(0, dtype=float) for values in (counts_DLE, added_DLE, peers_DLE))
        chosen_LE = np.where(counts_LE > 0, counts_LE, np.nan)
        weights_LE = stack.stacked(recording, "weight_sum").sum(0) if recording.has("weight_sum") else np.nan
        low_LE = np.maximum(relative.low, 0)
        experts.append(
            long_form(
                labels,
                "expert",
                {
                    "contribution": added_LE / chosen_LE,
                    "peers": peers_LE / chosen_LE,
                    "relative": relative.value,
                    "low": low_LE,
                    "high": relative.high,
                    "load": counts_LE / counts_LE.sum(-1, keepdims=True),
                    "balanced": np.full(counts_LE.shape, 1 / stack.n_experts),
                    "part": added_LE / added_LE.sum(-1, keepdims=True),
                    "weight": weights_LE / chosen_LE,
                },
            )
        )
        by_domain = domain_ratio_interval(added_DLE, peers_DLE, clusters=clusters, level=settings.level)
        by_count = domain_ratio_interval(added_DLE, counts_DLE, clusters=clusters, level=settings.level)
        for m, domain in enumerate(clusters.domains):
            values = {
                "relative": by_domain.value[m],
                "low": np.maximum(by_domain.low[m], 0),
                "high": by_domain.high[m],
                "contribution": by_count.value[m],
            }
            domains.append(long_form(labels.assign(domain=str(domain)), "expert", values))
        # Many experts are looked at: Bonferroni's share of the error for each, so that all hold at once.
        level = 1 - (1 - settings.level) / stack.n_experts
        at_once = ratio_interval(added_DLE, peers_DLE, clusters=clusters, level=level)
        layers.append(
            labels.assign(
                never_chosen=(counts_LE == 0).sum(-1),
                small=_number(at_once.high < settings.small, at_once),
                small_at_most=_number(at_once.low < settings.small, at_once),
                large=_number(at_once.low > settings.large, at_once),
                large_at_most=_number(at_once.high > settings.large, at_once),
                smallest=np.nanmin(relative.value, axis=-1),
                largest=np.nanmax(relative.value, axis=-1),
                spearman=[_spearman(load, value) for load, value in zip(counts_LE, relative.value, strict=True)],
            )
        )
        note = "; ".join(words for words in (relative.note, alone) if words)
    order = ["layer", "domain", "expert"]
    return Result(
        experts=pd.concat(experts, ignore_index=True),
        domains=pd.concat(domains, ignore_index=True).sort_values(order, ignore_index=True),
        layers=pd.concat(layers, ignore_index=True),
        sample=sample_words(recording),
        level=settings.level,
        note=note,
        limits=(settings.small, settings.large),
    )


def _peers(recording: Recording, stack: RouterStack, row_of: np.ndarray) -> np.ndarray:
    """What an average chosen expert of the same tokens adds, summed over each expert's tokens: [D, L, E]."""
    sum_DLE = np.zeros((recording.n_documents, len(stack.routers), stack.n_experts))
    for place, router in enumerate(stack.routers):
        at = prefix(router, recording.topology)
        names = (f"{at}.ids", f"{at}.contribution")
        for chunk in chunks(recording, list(names)):
            sum_DLE[:, place] += peer_contribution(
                chunk[names[0]].astype(np.int64),
                chunk[names[1]].astype(np.float64),
                document_T=row_of[chunk["document"]],
                n_documents=recording.n_documents,
                n_experts=stack.n_experts,
            )
    return sum_DLE


def _number(said_LE: np.ndarray, of: Interval) -> np.ndarray:
    """How many experts of each layer; not known without intervals."""
    number_L = said_LE.sum(-1)
    return np.full(number_L.shape, np.nan) if np.isnan(of.low).all() else number_L


def _spearman(load_E: np.ndarray, relative_E: np.ndarray) -> float:
    known_E = np.isfinite(relative_E)
    load_E, relative_E = load_E[known_E], relative_E[known_E]
    if len(load_E) < 3 or np.ptp(load_E) == 0 or np.ptp(relative_E) == 0:
        return float("nan")
    return float(stats.spearmanr(load_E, relative_E).statistic)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`experts`, `domains` and `layers`."""
    return {"experts": result.experts, "domains": result.domains, "layers": result.layers}


def figures(result: Result) -> dict[str, Figure]:
    """`against_load` by expert, `relative` of each expert by layer's range, and `by_domain` as a map."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    layers = result.layers["layer"].unique()
    shown = layers[np.unique(np.linspace(0, len(layers) - 1, MOST_PANELS).round().astype(int))]
    some = f" Layers {', '.join(map(str, shown))} of {len(layers)} are drawn." if len(shown) < len(layers) else ""
    drawn = result.experts[result.experts["layer"].isin(shown) & result.experts["relative"].notna()]
    drawn = drawn.assign(load_balanced=drawn["load"] / drawn["balanced"])
    least, most = (result.experts.sort_values("relative").dropna(subset="relative").iloc[i] for i in (0, -1))
    names = {"smallest": "smallest", "largest": "largest"}
    ends = result.layers.melt("layer", list(names), var_name="expert", value_name="relative").replace({"expert": names})
    what = "what an average chosen expert adds on the same tokens"
    counted = f"Never chosen: {int(result.layers['never_chosen'].sum())}."
    if result.layers["small"].notna().all():
        counted = (
            f"Experts whose interval, made to hold for all of a layer at once, ends under {result.limits[0]:g}: "
            f"{int(result.layers['small'].sum())}; begins over {result.limits[1]:g}: "
            f"{int(result.layers['large'].sum())}. {counted}"
        )
    extremes = (
        f"Least is expert {least['expert']:.0f} of layer {least['layer']:.0f}, {least['relative']:.2f} of its peers; "
        f"most expert {most['expert']:.0f} of layer {most['layer']:.0f}, {most['relative']:.2f}."
    )
    return {
        "against_load": Points(
            drawn,
            "load_balanced",
            "relative",
            panel="layer",
            label="expert",
            title="What experts add, beside their load",
            x_label="load / balanced load",
            y_label="contribution / that of peers",
            hover=("contribution", "low", "high", "weight"),
            caption=f"Norm of what an expert adds to a token that chooses it, over {what} (1: experts add alike), by "
            f"its load; a point an expert ({result.sample}). Intervals in the table ({level}: ratio over clusters of "
            f"documents, t).{some} {result.note}".strip(),
            alt=extremes,
        ),
        "extremes": Lines(
            ends.assign(alike=1.0),
            "layer",
            "relative",
            group="expert",
            null="alike",
            null_label="experts add alike",
            title="The experts that add least and most",
            x_label="layer",
            y_label="contribution / that of peers",
            caption=f"Smallest and largest contribution of a layer's experts, over {what} ({result.sample}). Picked "
            f"after looking: they lean outwards. {counted} {result.note}".strip(),
            alt=extremes,
        ),
        "by_domain": HeatMap(
            result.domains[result.domains["layer"].isin(shown)],
            "expert",
            "domain",
            "relative",
            panel="layer",
            title="What experts add, by domain",
            x_label="expert",
            y_label="domain",
            value_label="contribution / that of peers",
            center=1.0,
            log=True,
            hover=("contribution", "low", "high"),
            caption=f"Norm of what an expert adds to a domain's tokens that choose it, over {what} ({result.sample}). "
            f"Intervals in the table.{some} {result.note}".strip(),
            alt=extremes,
        ),
    }
