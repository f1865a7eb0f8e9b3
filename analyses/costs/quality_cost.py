"""What quality do the reference model and those it was published beside have for what a token costs?

Not shown: a law. Five models of four makers differ in data and training, not in their cost alone, so nothing is fitted
and no model's place says why it stands there. Scores are as published, of base models with differing numbers of shots;
what was not reported is left out, and models are compared on the same benchmark only within a panel.
"""

import csv
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.costs._checks import check
from workbench.efficiency.costs.comparison import QUALITY_CONFIGS as CONFIGS
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.formulas import cache_bytes, linear_flops
from workbench.efficiency.costs.roofline import decode_floor
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Points
from workbench.paths import BUNDLED

INPUT = "costs"
METRICS = ()
QUALITY = BUNDLED / "reference" / "quality.csv"


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        benchmarks: Of the table, by commas; a panel each.
        device: Name of a device, several as `2xh100`, for the step's floor.
        dtype: Of the weights.
        batch: Sequences decoded together, for the step's floor.
        context: Tokens in the cache of each.
    """

    benchmarks: str = "MMLU,BBH,HumanEval,GSM8K"
    device: str = "h200"
    dtype: str = "bfloat16"
    batch: int = 32
    context: int = 1024


@dataclass(frozen=True, eq=False)
class Result:
    """Costs beside published scores.

    Attributes:
        models: One row per model: parameters as published and as counted, FLOP per token, bytes of the cache per token
            (growing with the text), floor of a decode step per sequence.
        scores: One row per benchmark and model that reported it, with the model's costs.
        missing: Benchmarks shown, and how many of the five reported them.
        words: Device and batch in words.
    """

    models: pd.DataFrame
    scores: pd.DataFrame
    missing: str
    words: str


def run(subject: Costed, settings: Settings = Settings()) -> Result:
    """Joins published scores with costs.

    Raises:
        AnalysisError: settings that cannot be meant, or topologies of published configs that were not read.
    """
    check("quality_cost", on=settings.device, dtype=settings.dtype, batch=settings.batch, context=settings.context)
    absent = [config for config in CONFIGS.values() if config not in subject.published]
    if absent:
        raise AnalysisError(f"quality_cost: the published configs were not read ({absent[0]}); give with_published().")
    with QUALITY.open(encoding="utf-8", newline="") as file:
        published = list(csv.DictReader(file))
    known = [row["benchmark"] for row in published if row["category"] != "model"]
    wanted = [name.strip() for name in settings.benchmarks.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise AnalysisError(f"quality_cost: no scores of {unknown[0]!r}; there are {', '.join(known)}.")
    stated = {row["benchmark"]: row for row in published}
    on = device(settings.device)
    how: dict[str, Any] = {"batch": settings.batch, "context": settings.context, "dtype": settings.dtype}
    models = []
    for model, config in CONFIGS.items():
        facts = subject.published[config]
        per_token = cache_bytes(facts, context=2, value_bytes=2) - cache_bytes(facts, context=1, value_bytes=2)
        models.append(
            {
                "model": model,
                "architecture": stated["architecture"][model],
                "published_total_b": float(stated["parameters (B)"][model]),
                "published_active_b": float(stated["activated parameters (B)"][model]),
                "total_b": facts.parameters_total / 1e9,
                "active_b": facts.parameters_active / 1e9,
                "gflop_per_token": sum(linear_flops(facts).values()) / 1e9,
                "cache_kib_per_token": per_token / 1024,
                "floor_ms_per_token": decode_floor(facts, on, **how).time_s * 1e3 / settings.batch,
            }
        )
    found = pd.DataFrame(models)
    scores = pd.DataFrame(
        [
            {"category": row["category"], "benchmark": row["benchmark"], "model": model, "score": float(row[model])}
            for row in published
            if row["category"] != "model"
            for model in CONFIGS
            if row[model]
        ]
    ).merge(found, on="model")
    counts = scores.groupby("benchmark")["model"].size()
    few = [f"{name} {counts[name]} of {len(CONFIGS)}" for name in wanted if counts[name] < len(CONFIGS)]
    return Result(
        models=found,
        scores=scores.assign(shown=scores["benchmark"].isin(wanted)),
        missing=f"Reported by fewer: {', '.join(few)}. " if few else "",
        words=f"{on.name}, {settings.dtype}, {settings.batch} sequences with {settings.context:,} tokens each",
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`models`, `scores`."""
    return {"models": result.models, "scores": result.scores}


def figures(result: Result) -> dict[str, Figure]:
    """Scores `by_flops`, `by_active` parameters, and `by_floor` of a decode step."""
    shown = result.scores[result.scores["shown"]]
    drawn: dict[str, Figure] = {}
    for name, column, label, named, what in (
        (
            "by_active",
            "active_b",
            "active parameters, 10⁹",
            "active parameters",
            "active parameters, the embedding whole",
        ),
        ("by_flops", "gflop_per_token", "GFLOP per token", "FLOP per token", "FLOP per token of products with weights"),
        (
            "by_floor",
            "floor_ms_per_token",
            "ms per token and sequence",
            "the floor of a decoded token",
            f"the floor of decoding a token ({result.words})",
        ),
    ):
        drawn[name] = Points(
            shown,
            column,
            "score",
            group="model",
            panel="benchmark",
            hover=("architecture", "total_b", "active_b"),
            title=f"Published quality by {named}",
            x_label=label,
            y_label="published score",
            caption=f"Scores as published in the reference model's card, by {what}. {result.missing}Five models differ "
            "in data and training too: nothing is fitted.",
            alt="; ".join(
                f"{row.benchmark}: {row.model} {row.score:g} at {getattr(row, column):.3g}"
                for row in shown.itertuples()
            ),
        )
    return drawn
