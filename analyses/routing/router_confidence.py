"""How decided are the routers, by layer, by domain, and by position in the document?

Not shown: whether a decided router is a right one. Scores are the router's own: a family without softmax has its scores
normalized first. Tokens with massive activations other than the first are not told apart. The margin is in the units
that the family's top-k compares (softmax: probability; sigmoid: score and correction bias, not normalized) and is left
out where it is not defined: where groups of experts are chosen first, all experts, or experts by the token id.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import design, require, sample_words
from analyses.read.quantiles import HalfCounts
from analyses.read.tokens import document_rows
from workbench.errors import AnalysisError
from workbench.figures.spec import Distribution, Figure, HeatMap, Lines
from workbench.metrics import load
from workbench.metrics.router import margin, token_entropy, token_entropy_from_logits, topk_mass
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import domain_ratio_interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (load.z_loss, margin, token_entropy, token_entropy_from_logits, topk_mass)
POSITIONS = (0, 1, 4, 16, 64, 256, 1024)
_HELD_BYTES = 1 << 26  # of sums by document held at once
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
        z_loss: One row per layer whose scores are a softmax: the mean squared log-partition `mean` with `low` and
            `high` (nats²), the mean log-partition `logsumexp`, and `undecided`, the z-loss of a router whose logits are
            all 0, (ln E)². None where the log-partition was not recorded.
        margin_of: What the margin is a difference of, in words.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals or the margin are missing, if they are.
    """

    layers: pd.DataFrame
    domains: pd.DataFrame
    positions: pd.DataFrame
    z_loss: pd.DataFrame
    margin_of: str
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes mean confidence with intervals, over documents and not over tokens.

    Raises:
        AnalysisError: the recording holds no routing, or its routers have one expert each.
    """
    require(recording, NEEDS, "router_confidence", columns=("entropy", "margin", "topk_mass", "position"))
    if all(router.n_experts == 1 for router in recording.topology.routers):
        raise AnalysisError(
            f"router_confidence: every router of {recording.path} has one expert, so nothing is left to decide. Record "
            "a model with more."
        )
    clusters = design(recording)
    layers, domains, positions, z_loss, note = [], [], [], [], ""
    for router, counted in _counted(recording):
        for statistic, (name, scale, undecided, share) in _statistics(router).items():
            about = {"layer": router.layer, "statistic": statistic}
            sums = counted.sums_DP[name] * scale, counted.tokens_DP
            of_all = sums[0].sum(1), sums[1].sum(1)
            whole = ratio_interval(*of_all, clusters=clusters, level=settings.level, share=share)
            ends = {"mean": float(whole.value), "low": float(whole.low), "high": float(whole.high)}
            quantiles = {quantile: value * scale for quantile, value in counted.values[name].quantiles().items()}
            layers.append({**about, **ends, **quantiles, "undecided": undecided})
            domains.append(_by_domain(about, of_all, clusters, settings.level, share=share))
            positions.append(_by_position(about, sums, clusters, settings.level, share=share))
            note = whole.note
        if counted.squares_D is not None:
            z_loss.append(_z_loss(router, counted, clusters, settings.level))
    return Result(
        layers=pd.DataFrame(layers),
        domains=pd.concat(domains, ignore_index=True),
        positions=pd.concat(positions, ignore_index=True),
        z_loss=pd.DataFrame(z_loss),
        margin_of=_units(recording),
        sample=sample_words(recording),
        level=settings.level,
        note="; ".join(part for part in (note, _without_margin(recording)) if part),
    )


def _statistics(router: Router) -> dict[str, tuple[str, float, float, bool]]:
    """Of each statistic its column, the factor to its unit, its value where all scores are equal, and if it is a share.

    Entropy and mass lie between 0 and 1, and so do the ends of their means; the mass of all experts is 1 by definition,
    and a margin may be negative.
    """
    return {
        **({ENTROPY: ("entropy", 1 / np.log(router.n_experts), 1.0, True)} if router.n_experts > 1 else {}),
        **({MARGIN: ("margin", 1.0, 0.0, False)} if router.has_margin else {}),
        MASS: ("topk_mass", 1.0, router.top_k / router.n_experts, router.top_k < router.n_experts),
    }


def _without_margin(recording: Recording) -> str:
    rules = {router.rule for router in recording.topology.routers if not router.has_margin}
    return f"no margin where a router chooses {' or '.join(sorted(rules))}" if rules else ""


def _units(recording: Recording) -> str:
    """What the margin is a difference of."""
    of = {"softmax": "probabilities", "sigmoid": "sigmoid scores and correction biases, not normalized"}
    scoring = sorted({router.scoring for router in recording.topology.routers if router.has_margin})
    return " or ".join(of.get(each, f"{each} scores") for each in scoring)


class _Counted:
    """Of each column of a router its values, and by document and range of positions (P) their sums and numbers."""

    def __init__(self, names: Iterable[str], tokens_DP: np.ndarray, *, partition: bool) -> None:
        self.values = {name: HalfCounts() for name in names}
        self.sums_DP = {name: np.zeros(tokens_DP.shape) for name in names}
        self.tokens_DP = tokens_DP
        self.squares_D = np.zeros(len(tokens_DP)) if partition else None
        self.logsumexp_D = np.zeros(len(tokens_DP)) if partition else None


def _counted(recording: Recording) -> Iterator[tuple[Router, _Counted]]:
    """Reads the columns of some routers at a time, as many as the sums by document leave room for."""
    routers, bytes_each = recording.topology.routers, 3 * recording.n_documents * len(POSITIONS) * 8
    step = max(1, _HELD_BYTES // bytes_each)
    for start in range(0, len(routers), step):
        yield from _of_routers(recording, routers[start : start + step])


def _of_routers(recording: Recording, routers: tuple[Router, ...]) -> Iterator[tuple[Router, _Counted]]:
    row_of, shape = document_rows(recording), (recording.n_documents, len(POSITIONS))
    tokens_DP = np.zeros(shape)
    partition = [router.scoring == "softmax" and recording.has("logsumexp") for router in routers]
    at = [prefix(router, recording.topology) for router in routers]
    names = [[name for name, *_ in _statistics(router).values()] for router in routers]
    counted = [_Counted(each, tokens_DP, partition=known) for each, known in zip(names, partition, strict=True)]
    columns = [
        f"{where}.{name}"
        for where, each, known in zip(at, names, partition, strict=True)
        for name in [*each, *(["logsumexp"] if known else [])]
    ]
    for part in recording.parts(["document", "position", *columns]):
        # the part's documents are few, and so are the cells that its sums go to
        inside, local_T = np.unique(row_of[part["document"]], return_inverse=True)
        cell_T = local_T * shape[1] + np.searchsorted(np.array(POSITIONS), part["position"], side="right") - 1
        by_bin, by_document = _Sum(cell_T, (len(inside), shape[1])), _Sum(local_T, (len(inside),))
        tokens_DP[inside] += by_bin(None)
        for where, one in zip(at, counted, strict=True):
            for name, values in one.values.items():
                value_T = part[f"{where}.{name}"]
                values.add(value_T)
                one.sums_DP[name][inside] += by_bin(value_T)
            if one.squares_D is not None and one.logsumexp_D is not None:
                value_T = part[f"{where}.logsumexp"].astype(np.float64)
                one.squares_D[inside] += by_document(value_T**2)
                one.logsumexp_D[inside] += by_document(value_T)
    yield from zip(routers, counted, strict=True)


@dataclass(frozen=True, eq=False)
class _Sum:
    """Sums of values, or numbers of tokens, by cell."""

    cell_T: np.ndarray
    shape: tuple[int, ...]

    def __call__(self, value_T: np.ndarray | None) -> np.ndarray:
        return np.bincount(self.cell_T, weights=value_T, minlength=int(np.prod(self.shape))).reshape(self.shape)


def _z_loss(router: Router, counted: _Counted, clusters: Clusters, level: float) -> dict:
    """The z-loss of a softmax router, a mean over tokens (`metrics.load.z_loss`), with its interval."""
    tokens_D = counted.tokens_DP.sum(axis=1)
    assert counted.squares_D is not None and counted.logsumexp_D is not None
    found = ratio_interval(counted.squares_D, tokens_D, clusters=clusters, level=level)
    return {
        "layer": router.layer,
        "mean": float(found.value),
        "low": float(found.low),
        "high": float(found.high),
        "logsumexp": counted.logsumexp_D.sum() / tokens_D.sum(),
        "undecided": np.log(router.n_experts) ** 2,
    }


def _by_domain(
    about: dict, sums: tuple[np.ndarray, np.ndarray], clusters: Clusters, level: float, *, share: bool
) -> pd.DataFrame:
    interval = domain_ratio_interval(*sums, clusters=clusters, level=level, share=share)
    frame = pd.DataFrame(
        {"domain": clusters.domains, "mean": interval.value, "low": interval.low, "high": interval.high}
    )
    return frame.sort_values("domain").assign(**about)[["layer", "statistic", "domain", "mean", "low", "high"]]


def _by_position(
    about: dict, sums: tuple[np.ndarray, np.ndarray], clusters: Clusters, level: float, *, share: bool
) -> pd.DataFrame:
    interval = ratio_interval(*sums, clusters=clusters, level=level, share=share)
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
    """`layers`, `domains`, `positions`, and `z_loss` where scores are a softmax whose partition was recorded."""
    found = {"layers": result.layers, "domains": result.domains, "positions": result.positions}
    return found | ({"z_loss": result.z_loss} if len(result.z_loss) else {})


def figures(result: Result) -> dict[str, Figure]:
    """`entropy` over tokens by layer, `confidence_by_domain`, `entropy_by_position`."""
    entropy = result.layers[result.layers["statistic"] == ENTROPY]
    level = f"{result.level:.0%} interval".replace("%", " %")
    how = f"{level}: ratio over clusters of documents, log-odds (not the margin), t ({result.sample}). {result.note}"
    how = how.strip()
    by_position = result.positions[result.positions["statistic"] == ENTROPY]
    lowest = entropy.nsmallest(1, "mean").iloc[0]
    words = {
        ENTROPY: "router entropy over that of equal scores",
        MARGIN: f"margin between the last chosen and the first not chosen expert ({result.margin_of})",
        MASS: "score mass of the chosen",
    }
    said = [words[statistic] for statistic in result.layers["statistic"].unique()]
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
            caption=f"Means by domain of {', '.join(said)}. {how}",
            alt="A panel for each measure, by layer, with a line for each domain.",
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
