"""At which scope is the load uneven: in a document, in a batch, or over the whole corpus, and how much of it is chance?

Not shown: what a scope's imbalance costs. Batches mix this corpus' documents at random; a training step or a server
mixes others. A scope's value is cut into what counting so few tokens gives by chance, what the corpus' own load gives,
and what the groups' own preference adds; the last is a difference of means, and small ones are lost in the interval.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.batches import Batches
from analyses.read.design import RouterStack, design, require, router_stacks, sample_words
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure, Lines
from workbench.metrics import load, vocabulary
from workbench.metrics.balance import jackknife_interval
from workbench.recordings.recording import Recording
from workbench.statistics import expected_at_random
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (load.coefficient_of_variation, load.imbalance, load.load, load.max_violation, vocabulary.count_cells)
DOCUMENT, CORPUS = "document", "corpus"
PREFERENCE, CHANCE, OWN, UNSURE = "own preference", "counting noise", "load of the corpus", "not known"
MOSTLY = 0.5  # share of a scope's value from which its largest part gives it its name


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        batch_tokens: Tokens of a batch.
        level: Coverage of the intervals.
        seed: Of the mixing of documents.
    """

    batch_tokens: int = 2048
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Imbalance by scope.

    Attributes:
        scopes: One row per layer and scope: `squared_cv`, the mean squared coefficient of variation of a group's load;
            its parts `chance` (uniform random routing of groups as long), `corpus` (what tokens drawn from the whole
            corpus have beyond it) and `preference` (what the groups have beyond that) with `low` and `high`; the
            `max_violation` and its value under uniform routing; and `mostly`, the part that is at least half of the
            value.
        sample: The sample in words.
        batches: The batches in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    scopes: pd.DataFrame
    sample: str
    batches: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes imbalance within documents, batches and the corpus, each against tokens drawn from the whole corpus.

    Raises:
        AnalysisError: the recording holds no routing of single tokens, or `batch_tokens` is under 1.
    """
    require(recording, NEEDS, "balance_scope", columns=("ids",))
    if settings.batch_tokens < 1:
        raise AnalysisError(f"balance_scope: batch_tokens is {settings.batch_tokens}; 1 or more was expected.")
    clusters = design(recording)
    batches = Batches.of(recording, tokens=settings.batch_tokens, seed=settings.seed)
    rows = []
    for stack in router_stacks(recording):
        counts_DLE = stack.stacked(recording, "counts")
        labels = stack.labels()
        for i, counts_GE in enumerate(batches.counts(recording, stack)):
            about = labels.iloc[i].to_dict()
            found = _scopes(
                stack, counts_DLE[:, i], counts_GE, clusters=clusters, batches=batches, level=settings.level
            )
            rows += [about | row for row in found]
    left = f", {batches.left_out:,} tokens left out" if batches.left_out else ""
    few = f"no interval of {batches.n_batches} batches: 8 are needed" if batches.n_batches < 8 else ""
    return Result(
        scopes=pd.DataFrame(rows),
        sample=sample_words(recording),
        batches=f"{batches.n_batches:,} batches of {batches.tokens:,} tokens{left}",
        level=settings.level,
        note="; ".join(note for note in (clusters.note, few) if note),
    )


def _scopes(
    stack: RouterStack,
    counts_DE: np.ndarray,
    counts_GE: np.ndarray,
    *,
    clusters: Clusters,
    batches: Batches,
    level: float,
) -> Iterator[dict]:
    one = Clusters.of(np.zeros(len(counts_GE), dtype=np.int64))
    yield {"scope": DOCUMENT} | _within(stack, counts_DE, units=clusters, whole_E=counts_DE.sum(axis=0), level=level)
    name = f"batch of {batches.tokens:,}"
    yield {"scope": name} | _within(stack, counts_GE, units=one, whole_E=counts_DE.sum(axis=0), level=level)
    yield {"scope": CORPUS} | _corpus(stack, counts_DE, clusters, level)


def _within(stack: RouterStack, counts_GE: np.ndarray, *, units: Clusters, whole_E: np.ndarray, level: float) -> dict:
    """Of groups of tokens: means over the groups."""
    shape = {"n_experts": stack.n_experts, "top_k": stack.top_k}
    tokens_G = counts_GE.sum(axis=1) / stack.top_k
    value_G = load.coefficient_of_variation(counts_GE) ** 2
    chance_G = expected_at_random.expected_squared_cv(tokens_G, **shape)
    # groups left out (the last batch) are part of the corpus that the others are compared with
    rest_E = np.maximum(whole_E - counts_GE.sum(axis=0), 0)
    drawn_G = expected_at_random.pseudo_document_squared_cv(np.vstack([counts_GE, rest_E[None]]), top_k=stack.top_k)[
        :-1
    ]
    excess: Interval = ratio_interval(value_G - drawn_G, np.ones(len(value_G)), clusters=units, level=level)
    parts = {"chance": chance_G.mean(), "corpus": (drawn_G - chance_G).mean(), "preference": float(excess.value)}
    return {
        "groups": len(counts_GE),
        "tokens": tokens_G.mean(),
        "squared_cv": value_G.mean(),
        **parts,
        "low": float(excess.low),
        "high": float(excess.high),
        "max_violation": load.max_violation(counts_GE).mean(),
        "max_violation_uniform": expected_at_random.expected_max_violation(tokens_G, **shape).mean(),
        "mostly": _mostly(value_G.mean(), parts),
        "method": excess.method,
    }


def _corpus(stack: RouterStack, counts_DE: np.ndarray, clusters: Clusters, level: float) -> dict:
    """Of the whole: chance is what documents, which are alike within, give; what is left is the load's own."""
    shape = {"n_experts": stack.n_experts, "top_k": stack.top_k}
    counts_E = counts_DE.sum(axis=0)
    tokens = np.asarray(counts_E.sum() / stack.top_k)
    value = float(load.coefficient_of_variation(counts_E) ** 2)
    own = jackknife_interval(counts_DE, clusters=clusters, level=level)
    known = bool(np.isfinite(own.value))
    parts = {
        "chance": value - float(own.value) if known else float(expected_at_random.expected_squared_cv(tokens, **shape)),
        "corpus": float(own.value),
        "preference": np.nan,
    }
    return {
        "groups": 1,
        "tokens": float(tokens),
        "squared_cv": value,
        **parts,
        "low": float(own.low),
        "high": float(own.high),
        "max_violation": float(load.max_violation(counts_E)),
        "max_violation_uniform": float(expected_at_random.expected_max_violation(tokens, **shape)),
        "mostly": _mostly(value, parts),
        "method": own.method,
    }


def _mostly(value: float, parts: dict[str, float]) -> str:
    names = {"chance": CHANCE, "corpus": OWN, "preference": PREFERENCE}
    if not value > 0:
        return UNSURE
    largest = max(parts, key=lambda part: np.nan_to_num(parts[part], nan=-np.inf))
    return names[largest] if parts[largest] >= MOSTLY * value else "no part"


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`scopes`."""
    return {"scopes": result.scopes}


def figures(result: Result) -> dict[str, Figure]:
    """`imbalance` by layer and scope with its floors, and the `parts` of each scope."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    scopes = result.scopes.assign(drawn=result.scopes["chance"] + result.scopes["corpus"].clip(lower=0))
    within = scopes[scopes["scope"] != CORPUS]
    long = within.melt(
        id_vars=["layer", "scope"], value_vars=["squared_cv", "drawn", "chance"], var_name="line", value_name="value"
    )
    names = {"squared_cv": "as it is", "drawn": "tokens drawn from the corpus", "chance": "uniform random routing"}
    parts = scopes.groupby("scope", as_index=False, sort=False)[["chance", "corpus", "preference"]].mean()
    shown = parts.melt(id_vars="scope", var_name="part", value_name="value").dropna(subset="value")
    shown["part"] = shown["part"].map({"chance": CHANCE, "corpus": OWN, "preference": PREFERENCE})
    said = ", ".join(
        f"{scope}: {kinds.value_counts().idxmax()}" for scope, kinds in scopes.groupby("scope", sort=False)["mostly"]
    )
    how = f"({result.sample}; {result.batches})"
    return {
        "imbalance": Lines(
            long.assign(line=long["line"].map(names)),
            "layer",
            "value",
            group="line",
            panel="scope",
            shared_y=False,
            title="Imbalance within a scope",
            x_label="layer",
            y_label="mean CV²",
            caption="Mean squared coefficient of variation of the load within documents, and within batches of mixed "
            "documents, against groups of the same lengths whose tokens are drawn from the whole corpus, and against "
            f"uniform random routing, both exact expectations {how}. Most of the value in most layers: {said}. "
            f"{result.note}".strip(),
            alt="A panel for documents and one for batches; three lines each by layer.",
        ),
        "parts": Bars(
            shown,
            "scope",
            "value",
            group="part",
            title="What the imbalance of a scope is made of",
            x_label="scope",
            y_label="CV², mean over layers",
            caption=f"Mean over layers of the parts of each scope's CV² {how}: counting noise of groups so short under "
            "uniform routing (of the corpus: what its documents' likeness gives), the corpus' own uneven load (of the "
            "corpus: the unbiased imbalance), and the groups' own preference. "
            f"Intervals ({level}) by layer are in the table. {result.note}".strip(),
            alt=f"Most of the value: {said}.",
        ),
    }
