"""How decided are the routers, by layer, by domain, and by position in the document?

Not shown: whether a decided router is a right one. Scores are the router's own: a family without softmax has its scores
normalized first. Tokens with massive activations other than the first are not told apart. The margin is in the units
that the family's top-k compares (probability, for softmax) and is undefined where groups of experts are chosen first.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._inputs import design, require, sample_words
from workbench.figures.spec import Distribution, Figure, HeatMap, Lines
from workbench.metrics.clusters import Clusters
from workbench.metrics.router import normalized_entropy
from workbench.metrics.uncertainty import domain_ratio_interval, ratio_interval
from workbench.models.topology import Router
from workbench.recording import Recording

NEEDS = ("routing",)
POSITIONS = (0, 1, 4, 16, 64, 256, 1024)
ENTROPY, MARGIN, MASS = "entropy / ln E", "margin", "top-k mass"


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Confidence of every router.

    Attributes:
        layers: One row per layer and statistic: mean with `low`, `high`, quantiles over tokens, and `undecided`, the
            value of a router whose scores are all equal.
        domains: The same means by domain.
        positions: The same means by position in the document; the first token stands alone.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    domains: pd.DataFrame
    positions: pd.DataFrame
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes mean confidence with intervals, over documents and not over tokens.

    Raises:
        AnalysisError: the recording holds no routing.
    """
    require(recording, NEEDS, "router_confidence", columns=("entropy", "margin", "topk_mass"))
    clusters = design(recording)
    row_T = _document_rows(recording)
    position_T = recording.column("position")
    bin_T = np.searchsorted(np.array(POSITIONS), position_T, side="right") - 1
    layers, domains, positions, note = [], [], [], ""
    for router in recording.topology.routers:
        for statistic, value_T, undecided in _statistics(recording, router):
            about = {"layer": router.layer, "statistic": statistic}
            sums = _sums(value_T, row_T, bin_T, n_documents=recording.n_documents)
            whole = ratio_interval(sums[0].sum(1), sums[1].sum(1), clusters=clusters, level=settings.level)
            quantiles = np.quantile(value_T, [0.05, 0.25, 0.5, 0.75, 0.95])
            layers.append(
                {
                    **about,
                    "mean": float(whole.value),
                    "low": float(whole.low),
                    "high": float(whole.high),
                    **dict(zip(("q05", "q25", "q50", "q75", "q95"), quantiles, strict=True)),
                    "undecided": undecided,
                }
            )
            domains.append(_by_domain(about, sums, clusters, settings.level))
            positions.append(_by_position(about, sums, clusters, settings.level))
            note = whole.note
    return Result(
        layers=pd.DataFrame(layers),
        domains=pd.concat(domains, ignore_index=True),
        positions=pd.concat(positions, ignore_index=True),
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


def _document_rows(recording: Recording) -> np.ndarray:
    """Row of the documents table that each token belongs to: [T]."""
    documents = recording.column("document", table="documents")
    row_of = np.empty(documents.max() + 1, dtype=np.int64)
    row_of[documents] = np.arange(len(documents))
    return row_of[recording.column("document")]


def _statistics(recording: Recording, router: Router) -> list[tuple[str, np.ndarray, float]]:
    def read(name: str) -> np.ndarray:
        return recording.router_statistic(name, router.layer, site=router.site).astype(np.float64)

    return [
        (ENTROPY, normalized_entropy(read("entropy"), n_experts=router.n_experts), 1.0),
        (MARGIN, read("margin"), 0.0),
        (MASS, read("topk_mass"), router.top_k / router.n_experts),
    ]


def _sums(
    value_T: np.ndarray, row_T: np.ndarray, bin_T: np.ndarray, *, n_documents: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of tokens, by document and position bin: two arrays [D, bins]."""
    cell_T, shape = row_T * len(POSITIONS) + bin_T, (n_documents, len(POSITIONS))
    size = n_documents * len(POSITIONS)
    total = np.bincount(cell_T, weights=value_T, minlength=size).reshape(shape)
    return total, np.bincount(cell_T, minlength=size).reshape(shape).astype(np.float64)


def _by_domain(about: dict, sums: tuple[np.ndarray, np.ndarray], clusters: Clusters, level: float) -> pd.DataFrame:
    interval = domain_ratio_interval(sums[0].sum(1), sums[1].sum(1), clusters=clusters, level=level)
    frame = pd.DataFrame(
        {"domain": clusters.domains, "mean": interval.value, "low": interval.low, "high": interval.high}
    )
    return frame.sort_values("domain").assign(**about)[["layer", "statistic", "domain", "mean", "low", "high"]]


def _by_position(about: dict, sums: tuple[np.ndarray, np.ndarray], clusters: Clusters, level: float) -> pd.DataFrame:
    interval = ratio_interval(*sums, clusters=clusters, level=level)
    last = [*(start - 1 for start in POSITIONS[1:]), None]
    names = [
        f"{first}" if first == end else f"{first}–{end}" if end is not None else f"≥ {first}"
        for first, end in zip(POSITIONS, last, strict=True)
    ]
    frame = pd.DataFrame(
        {
            **about,
            "position": names,
            "tokens": sums[1].sum(0).astype(np.int64),
            "mean": interval.value,
            "low": interval.low,
            "high": interval.high,
        }
    )
    return frame[frame["tokens"] > 0]


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`, `domains` and `positions`."""
    return {"layers": result.layers, "domains": result.domains, "positions": result.positions}


def figures(result: Result) -> dict[str, Figure]:
    """`entropy` over tokens by layer, `confidence_by_domain`, `entropy_by_position`."""
    entropy = result.layers[result.layers["statistic"] == ENTROPY]
    level = f"{result.level:.0%} interval".replace("%", " %")
    how = f"{level}: ratio over clusters of documents, t ({result.sample}). {result.note}".strip()
    by_position = result.positions[result.positions["statistic"] == ENTROPY]
    lowest = entropy.nsmallest(1, "mean").iloc[0]
    return {
        "entropy": Distribution(
            entropy,
            "layer",
            title="Router entropy",
            x_label="layer",
            y_label="entropy / ln E",
            null="undecided",
            null_label="all scores equal",
            caption=f"Entropy of a token's router scores over that of equal scores ({result.sample}); box: middle half "
            "of the tokens, whiskers: 5–95 %.",
            alt=f"Most decided is layer {lowest['layer']}, with a mean of {lowest['mean']:.2f}.",
        ),
        "confidence_by_domain": Lines(
            result.domains,
            "layer",
            "mean",
            group="domain",
            panel="statistic",
            shared_y=False,
            low="low",
            high="high",
            interval_label=level,
            title="Confidence by domain",
            x_label="layer",
            y_label="mean over tokens (unit 1)",
            caption="Means by domain of normalized router entropy, margin between the last chosen and the first not "
            f"chosen expert, and score mass of the chosen. {how}",
            alt="Three panels by layer, a line for each domain.",
        ),
        "entropy_by_position": HeatMap(
            by_position,
            "position",
            "layer",
            "mean",
            title="Router entropy by position",
            x_label="position in the document",
            y_label="layer",
            value_label="mean entropy / ln E",
            hover=("tokens", "low", "high"),
            caption="Mean normalized router entropy by position in the document; the first token, which often routes "
            f"atypically, stands alone. {how}",
            alt="A row for each layer, a column for each range of positions.",
        ),
    }


if __name__ == "__main__":
    main()
