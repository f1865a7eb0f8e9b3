"""How wide does the shared expert's gate stand open, by layer and domain?

Not shown: how much of the output the shared expert gives. The gate is a factor of its output; the norms of the shared
and the routed outputs are not recorded, so an open gate may belong to a small output. Shared experts without a gate are
always on, and have nothing to show here.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._chunks import chunks
from analyses._inputs import design, require, sample_words
from analyses._tokens import document_rows
from workbench.errors import AnalysisError
from workbench.figures.spec import Distribution, Figure, Lines
from workbench.metrics.clusters import Clusters
from workbench.metrics.uncertainty import domain_ratio_interval, ratio_interval
from workbench.models.topology import Router
from workbench.recording import Recording, prefix

NEEDS = ("routing",)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """The gate, after its sigmoid.

    Attributes:
        layers: One row per layer: `mean` over tokens with `low` and `high`, quantiles over tokens, and `first`, the
            mean of the documents' first tokens.
        domains: The same by domain, without `first`.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    domains: pd.DataFrame
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes the gate's distribution over tokens, and its means with intervals over clusters of documents.

    Raises:
        AnalysisError: the recording holds no routing, or the model has no gated shared expert.
    """
    require(recording, NEEDS, "shared_expert", columns=("ids", "shared_gate"))
    gated = [router for router in recording.topology.routers if router.shared_gate]
    if not gated:
        name = recording.manifest["identity"]["model"]
        shared = any(router.shared_width for router in recording.topology.routers)
        what = "a shared expert without a gate, which is always on" if shared else "no shared expert"
        raise AnalysisError(
            f"shared_expert: {name} has {what}; record a model with a gated one, such as tiny-moe or a Qwen2-MoE."
        )
    clusters, row_of = design(recording), document_rows(recording)
    several = len({router.site for router in gated}) > 1
    layers, domains, note = [], [], ""
    for router in gated:
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        counted = _count(recording, router, clusters, row_of)
        whole = ratio_interval(counted.sum_D, counted.tokens_D, clusters=clusters, level=settings.level)
        by_domain = domain_ratio_interval(counted.sum_D, counted.tokens_D, clusters=clusters, level=settings.level)
        layers.append(
            about
            | _row(counted.bits_MN.sum(axis=0), float(whole.value), float(whole.low), float(whole.high))
            | {"first": counted.first_sum / counted.first_tokens if counted.first_tokens else np.nan}
        )
        domains += [
            about
            | {"domain": str(domain)}
            | _row(counted.bits_MN[m], by_domain.value[m], by_domain.low[m], by_domain.high[m])
            for m, domain in enumerate(clusters.domains)
        ]
        note = whole.note
    return Result(
        layers=pd.DataFrame(layers),
        domains=pd.DataFrame(domains).sort_values(["layer", "domain"], ignore_index=True),
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


@dataclass(frozen=True, eq=False)
class _Counted:
    """A gate's values, counted: of each domain how often each float16 stands, by its bits (N)."""

    bits_MN: np.ndarray
    sum_D: np.ndarray
    tokens_D: np.ndarray
    first_sum: float
    first_tokens: int


def _count(recording: Recording, router: Router, clusters: Clusters, row_of: np.ndarray) -> _Counted:
    name = f"{prefix(router, recording.topology)}.shared_gate"
    n_domains, n_documents, n_bits = len(clusters.domains), recording.n_documents, 1 << 15
    bits_MN = np.zeros((n_domains, n_bits), dtype=np.int64)
    sum_D, tokens_D = np.zeros(n_documents), np.zeros(n_documents)
    first_sum, first_tokens = 0.0, 0
    for chunk in chunks(recording, [name]):
        gate_T = chunk[name]
        row_T = row_of[chunk["document"]]
        sum_D += np.bincount(row_T, weights=gate_T.astype(np.float64), minlength=n_documents)
        tokens_D += np.bincount(row_T, minlength=n_documents)
        # bits of float16 that is not negative rise with its value, so counting them gives exact quantiles
        cell_T = clusters.domain_D[row_T] * n_bits + np.abs(gate_T).view(np.uint16)
        bits_MN += np.bincount(cell_T, minlength=n_domains * n_bits).reshape(n_domains, n_bits)
        first_T = chunk["position"] == 0
        first_sum, first_tokens = first_sum + float(gate_T[first_T].sum(dtype=np.float64)), first_tokens + first_T.sum()
    return _Counted(bits_MN, sum_D, tokens_D, first_sum, int(first_tokens))


def _row(bits_N: np.ndarray, mean: float, low: float, high: float) -> dict:
    below_N, total = np.cumsum(bits_N), int(bits_N.sum())
    at = np.searchsorted(below_N, np.maximum(np.ceil(np.array(QUANTILES) * total), 1))
    values = at.astype(np.uint16).view(np.float16).astype(np.float64) if total else np.full(len(QUANTILES), np.nan)
    return {
        "mean": float(mean),
        "low": float(low),
        "high": float(high),
        **dict(zip(("q05", "q25", "q50", "q75", "q95"), values.tolist(), strict=True)),
        "tokens": total,
    }


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers` and `domains`."""
    return {"layers": result.layers, "domains": result.domains}


def figures(result: Result) -> dict[str, Figure]:
    """`gate` over tokens by layer, and `gate_by_domain`."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    widest = result.layers.nlargest(1, "mean").iloc[0]
    closest = result.layers.nsmallest(1, "mean").iloc[0]
    said = "The norms of the outputs are not recorded: this is a factor, not a share of the output."
    return {
        "gate": Distribution(
            result.layers,
            "layer",
            title="Gate of the shared expert",
            x_label="layer",
            y_label="gate (after its sigmoid)",
            caption=f"Gate of the shared expert over tokens ({result.sample}); box: middle half, whiskers: 5–95 %. "
            f"{said}",
            alt=f"Widest open at layer {widest['layer']}, mean {widest['mean']:.2f}; least at layer "
            f"{closest['layer']}, {closest['mean']:.2f}.",
        ),
        "gate_by_domain": Lines(
            result.domains,
            "layer",
            "mean",
            group="domain",
            low="low",
            high="high",
            interval_label=level,
            title="Gate of the shared expert by domain",
            x_label="layer",
            y_label="mean gate (after its sigmoid)",
            hover=("q05", "q50", "q95", "tokens"),
            caption=f"Mean gate of the shared expert over the tokens of each domain ({result.sample}). {said} {level}: "
            f"ratio over clusters of documents, t. {result.note}".strip(),
            alt="A line for each domain, by layer.",
        ),
    }


if __name__ == "__main__":
    main()
