"""How far is each layer's load from balance, beyond what counting a finite text would give, and at which scope?

Not shown: why the load is uneven, or whether it costs quality or speed; a serving batch, whose mix of texts differs
from this corpus. Floors assume independent tokens; tokens of one text are not, so an excess over the floor is not yet a
finding: the test and the intervals, which resample whole clusters of documents, say that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analyses.read.chunks import knows_first_choice
from analyses.read.design import RouterStack, design, require, router_stacks, sample_words, with_interval
from analyses.read.tokens import first_choice_counts
from workbench.figures.spec import Figure, Lines
from workbench.metrics import balance, load
from workbench.recordings.recording import Recording
from workbench.statistics import expected_at_random, extremes, intervals
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    load.balance_loss,
    load.coefficient_of_variation,
    load.dead_experts,
    load.document_counts,
    load.effective_experts,
    load.effective_tokens,
    load.expert_counts,
    load.gini,
    load.imbalance,
    load.load,
    load.load_entropy,
    load.max_violation,
    load.min_violation,
)
HEADLINE = "imbalance"
OF_FIRST = "of first choices"
FIRST = (HEADLINE, "max violation", "dead experts")


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
        n_resamples: Resamples of clusters of documents.
        n_draws: Draws of the test of balance.
        seed: Of resamples and draws.
    """

    level: float = 0.95
    n_resamples: int = 400
    n_draws: int = 999
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Measures of imbalance.

    Attributes:
        layers: One row per layer and measure, over the corpus: `value` of the sample, `estimate` (bias-corrected
            where the method corrects), `low`, `high`, `floor` (expected of uniform random routing with as many tokens),
            `excess` (value less floor), `method`, `note`. The balance loss only where scores were recorded. Measures
            "of first choices" count the first choice of each token alone, as training logs do (top-1); NaN, with the
            reason in `note`, where first choices are not known. Max violation is MaxVio, the busiest expert's load over
            the mean load, minus 1.
        tests: One row per layer: the unbiased imbalance, the 95 % quantile under balance, `p`, tokens, and effective
            tokens (how many independent tokens would tell as much).
        documents: One row per layer: mean squared coefficient of variation of a document's load, against documents of
            the same lengths drawn from the whole corpus, and against uniform random routing.
        sample: The sample in words.
        level: Coverage of the intervals.
    """

    layers: pd.DataFrame
    tests: pd.DataFrame
    documents: pd.DataFrame
    sample: str
    level: float


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes every measure of balance with its interval, floor and test.

    Raises:
        AnalysisError: the recording holds no routing.
    """
    require(recording, NEEDS, "load_balance")
    clusters = design(recording)
    layers, tests, documents = [], [], []
    for stack in router_stacks(recording):
        counts_DLE = stack.stacked(recording, "counts")
        tokens_L = counts_DLE.sum((0, 2)) / stack.top_k
        test = balance.balance_test(counts_DLE, clusters=clusters, n_draws=settings.n_draws, seed=settings.seed)
        scored = recording.has("score_sum")
        score_LE = stack.stacked(recording, "score_sum").astype(np.float64).sum(0) if scored else None
        layers.append(_measures(stack, counts_DLE, score_LE, clusters=clusters, settings=settings))
        layers.append(_of_first_choices(recording, stack, clusters, settings))
        tests.append(
            stack.labels().assign(
                imbalance=test.statistic,
                null_high=test.null_high,
                p=test.p,
                tokens=tokens_L.astype(np.int64),
                effective_tokens=load.effective_tokens(counts_DLE, clusters=clusters, top_k=stack.top_k),
                note=test.note,
            )
        )
        documents.append(_documents(stack, counts_DLE, clusters, settings))
    return Result(
        layers=pd.concat(layers, ignore_index=True),
        tests=pd.concat(tests, ignore_index=True),
        documents=pd.concat(documents, ignore_index=True),
        sample=sample_words(recording),
        level=settings.level,
    )


def _measures(
    stack: RouterStack,
    counts_DLE: np.ndarray,
    score_LE: np.ndarray | None,
    *,
    clusters: Clusters,
    settings: Settings,
) -> pd.DataFrame:
    """All measures over the corpus, long."""
    n_experts, top_k, level = stack.n_experts, stack.top_k, settings.level
    tokens_L = counts_DLE.sum((0, 2)) / top_k
    shape = {"n_experts": n_experts, "top_k": top_k}
    resamples = intervals.cluster_bootstrap(
        counts_DLE, clusters=clusters, n_resamples=settings.n_resamples, seed=settings.seed
    ).corpus
    band = extremes.max_t_band(resamples, level=level, seed=settings.seed)

    def corrected(statistic: Callable[[np.ndarray], np.ndarray], scale: Literal["plain", "square"]) -> Interval:
        return intervals.bias_corrected_interval(statistic, resamples, scale=scale, level=level)

    deficit_L = expected_at_random.expected_entropy_deficit(tokens_L, **shape)
    measured = {
        HEADLINE: (balance.jackknife_interval(counts_DLE, clusters=clusters, level=level), np.zeros(len(tokens_L))),
        "coefficient of variation": (
            corrected(load.coefficient_of_variation, "square"),
            np.sqrt(expected_at_random.expected_squared_cv(tokens_L, **shape)),
        ),
        "max violation": (
            extremes.max_violation_interval(band), expected_at_random.expected_max_violation(tokens_L, **shape)
        ),
        "min violation": (
            extremes.min_violation_interval(band), expected_at_random.expected_min_violation(tokens_L, **shape)
        ),
        "Gini": (corrected(load.gini, "square"), expected_at_random.expected_gini(tokens_L, **shape)),
        "entropy / ln E": (corrected(load.load_entropy, "plain"), 1 - deficit_L),
        "effective experts": (corrected(load.effective_experts, "plain"), np.exp((1 - deficit_L) * np.log(n_experts))),
        "dead experts": (
            extremes.dead_experts_interval(band), expected_at_random.expected_dead_experts(tokens_L, **shape)
        ),
    }  # fmt: skip
    if score_LE is not None:
        loss_L = load.balance_loss(counts_DLE.sum(0), score_LE / tokens_L[:, None])
        measured["balance loss"] = (_without_interval(loss_L, clusters, level), np.full(len(tokens_L), np.nan))
    return _long(stack, measured)


def _of_first_choices(recording: Recording, stack: RouterStack, clusters: Clusters, settings: Settings) -> pd.DataFrame:
    """The same measures of one choice per token, long: the field reports both."""
    if "ids" in recording.lacks or not knows_first_choice(recording):
        why = "experts of single tokens" if "ids" in recording.lacks else "which of a token's experts came first"
        unknown_L = np.full(len(stack.routers), np.nan)
        missing = Interval(
            value=unknown_L, low=unknown_L, high=unknown_L, plug_in=unknown_L, method="none", level=settings.level,
            n_clusters=clusters.n_clusters, note=f"not known: {why}",
        )  # fmt: skip
        return _long(stack, {f"{name} {OF_FIRST}": (missing, unknown_L) for name in FIRST})
    counts_DLE = first_choice_counts(recording, stack)
    tokens_L = counts_DLE.sum((0, 2))
    shape = {"n_experts": stack.n_experts, "top_k": 1}
    resamples = intervals.cluster_bootstrap(
        counts_DLE, clusters=clusters, n_resamples=settings.n_resamples, seed=settings.seed
    ).corpus
    band = extremes.max_t_band(resamples, level=settings.level, seed=settings.seed)
    balanced = balance.jackknife_interval(counts_DLE, clusters=clusters, level=settings.level)
    found = (
        (balanced, np.zeros(len(tokens_L))),
        (extremes.max_violation_interval(band), expected_at_random.expected_max_violation(tokens_L, **shape)),
        (extremes.dead_experts_interval(band), expected_at_random.expected_dead_experts(tokens_L, **shape)),
    )
    return _long(stack, {f"{name} {OF_FIRST}": each for name, each in zip(FIRST, found, strict=True)})


def _long(stack: RouterStack, measured: dict[str, tuple[Interval, np.ndarray]]) -> pd.DataFrame:
    """One row per layer and measure."""
    frames = []
    for name, (interval, floor_L) in measured.items():
        frame = with_interval(stack.labels(), interval).rename(columns={"value": "estimate"})
        frame.insert(1, "measure", name)
        frame.insert(2, "value", interval.plug_in)
        frame["floor"] = floor_L
        frame["excess"] = frame["value"] - floor_L
        frame["method"] = interval.method
        frame["note"] = interval.note
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _without_interval(value_L: np.ndarray, clusters: Clusters, level: float) -> Interval:
    """The balance loss is a training objective, 1 at a uniform mean score and no minimum there; it gets no interval."""
    nan_L = np.full_like(value_L, np.nan)
    return Interval(
        value=value_L, low=nan_L, high=nan_L, plug_in=value_L, method="none", level=level,
        n_clusters=clusters.n_clusters, note="a training objective: no interval, and no floor",
    )  # fmt: skip


def _documents(stack: RouterStack, counts_DLE: np.ndarray, clusters: Clusters, settings: Settings) -> pd.DataFrame:
    """A document's own imbalance, and how much of it its length and the corpus' load explain."""
    tokens_DL = counts_DLE.sum(-1) / stack.top_k
    squared_DL = load.coefficient_of_variation(counts_DLE) ** 2
    drawn_DL = expected_at_random.pseudo_document_squared_cv(counts_DLE, top_k=stack.top_k)
    uniform_DL = expected_at_random.expected_squared_cv(tokens_DL, n_experts=stack.n_experts, top_k=stack.top_k)
    one_D = np.ones(len(counts_DLE))
    excess = intervals.ratio_interval(squared_DL - drawn_DL, one_D, clusters=clusters, level=settings.level)
    return stack.labels().assign(
        squared_cv=squared_DL.mean(0),
        drawn_from_corpus=drawn_DL.mean(0),
        uniform_routing=uniform_DL.mean(0),
        preference=excess.value,
        low=excess.low,
        high=excess.high,
        method=excess.method,
        note=excess.note,
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`, `tests` and `documents`."""
    return {"layers": result.layers, "tests": result.tests, "documents": result.documents}


def figures(result: Result) -> dict[str, Figure]:
    """`imbalance` (the headline; of two clusters or more), `measures` of all kinds, `documents` against the corpus."""
    headline = result.layers[result.layers["measure"] == HEADLINE]
    shown = result.layers[
        result.layers["measure"].isin(["coefficient of variation", "max violation", "Gini", "entropy / ln E"])
    ]
    long = result.documents.melt(
        id_vars=["layer"],
        value_vars=["squared_cv", "drawn_from_corpus", "uniform_routing"],
        var_name="documents",
        value_name="value",
    )
    names = {
        "squared_cv": "as they are",
        "drawn_from_corpus": "tokens drawn from the corpus",
        "uniform_routing": "uniform random routing",
    }
    long["documents"] = long["documents"].map(names)
    level = f"{result.level:.0%} interval".replace("%", " %")
    rejected = int((result.tests["p"] <= 0.05).sum())
    few = next((note for note in headline["note"] if note), "")
    drawn: dict[str, Figure] = {}
    if headline["value"].notna().any():  # one cluster has no pairs
        worst = headline.nlargest(1, "value").iloc[0]
        drawn["imbalance"] = Lines(
            headline,
            "layer",
            "value",
            title="Imbalance of the load",
            x_label="layer",
            y_label="imbalance (unbiased CV²)",
            low="low",
            high="high",
            interval_label=f"{level} (jackknife)",
            null="floor",
            null_label="balanced routing",
            caption="Unbiased squared coefficient of variation of the experts' load, over pairs of documents: 0 for "
            f"balanced routing at any length ({result.sample}). {level}: stratified jackknife over clusters of "
            f"documents. Balance is rejected at 5 % in {rejected} of {len(result.tests)} layers (sign flips of "
            f"clusters). {few}".strip(),
            alt=f"The largest imbalance is {worst['value']:.2f}, at layer {worst['layer']}; balanced routing has 0.",
        )
    return drawn | {
        "measures": Lines(
            shown,
            "layer",
            "value",
            panel="measure",
            shared_y=False,
            title="Measures of balance",
            x_label="layer",
            y_label="value (unit 1)",
            low="low",
            high="high",
            interval_label=level,
            null="floor",
            null_label="uniform random routing, same tokens",
            caption=f"Measures of balance over the corpus ({result.sample}), with the value that uniform random "
            "routing of as many independent tokens has. Intervals: bias-corrected bootstrap of clusters, t; for max "
            "violation a max-t band over experts, conservative. They aim at the value with unlimited documents, which "
            "noise pushes the sample's value away from.",
            alt="One panel for each measure, by layer, with its floor.",
        ),
        "documents": Lines(
            long,
            "layer",
            "value",
            group="documents",
            title="Imbalance within a document",
            x_label="layer",
            y_label="mean CV² of a document",
            caption="Mean over documents of the squared coefficient of variation of a document's load "
            f"({result.sample}), against documents of the same lengths whose tokens are drawn from the whole "
            "corpus (exact expectation), and against uniform random routing. What lies over the second "
            "line is the documents' own preference.",
            alt="Three lines by layer: documents as they are, drawn from the corpus, and uniform random routing.",
        ),
    }
