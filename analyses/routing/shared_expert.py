"""How much does the shared expert give beside the routed ones, by layer and domain?

Not shown: what it is good for. Norms do not add: two outputs that cancel have large norms and a small sum, so the share
is read beside the cosine of the two and the projection on their sum. Without the field `experts` only the gate is
known, a factor of an output of unknown size; a shared expert without a gate then has nothing to show. It is not chosen,
so no router by token id stands beside it: `--against` a recording of the untrained model shows what was there before.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.chunks import chunks
from analyses.read.design import design, require, sample_words
from analyses.read.quantiles import HalfCounts
from analyses.read.tokens import document_rows
from workbench.errors import AnalysisError
from workbench.figures.spec import Distribution, Figure, Lines
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import domain_ratio_interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = ()


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """The shared expert's gate (after its sigmoid) and share of the output, ‖s‖/(‖s‖+‖r‖) of shared and routed output.

    Attributes:
        layers: The gate, one row per layer: `mean` over tokens with `low` and `high`, quantiles over tokens, and
            `first`, the mean of the documents' first tokens. Without rows where there is no gate.
        domains: The same by domain, without `first`.
        share_layers: The share, in the columns of `layers`. Without rows where the field `experts` was not recorded.
        share_domains: The same by domain, without `first`.
        directions: One row per layer: mean `cosine` of shared and routed output, and mean `projection` of the shared
            output on their sum, ⟨s, y⟩/‖y‖², each with its interval (`cosine_low` …).
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    domains: pd.DataFrame
    share_layers: pd.DataFrame
    share_domains: pd.DataFrame
    directions: pd.DataFrame
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes the distributions over tokens of gate and share, and means with intervals over clusters of documents.

    Raises:
        AnalysisError: the recording holds no routing, or the model has no shared expert; or it has no gate, and the
            field `experts` was not recorded.
    """
    with_share = "experts" in recording.fields
    require(recording, NEEDS, "shared_expert", columns=("ids",) if with_share else ("ids", "shared_gate"))
    routers = recording.topology.routers
    gated = [router for router in routers if router.shared_gate]
    shared = [router for router in routers if router.shared_path] if with_share else []
    if not gated and not shared:
        name = recording.manifest["identity"]["model"]
        if any(router.shared_width for router in routers):
            raise AnalysisError(
                f"shared_expert: {name} has a shared expert without a gate, which is always on; record again with the "
                "field experts (--fields routing,experts) to see its share of the output."
            )
        raise AnalysisError(
            f"shared_expert: {name} has no shared expert; record a model with one, such as tiny-moe or a Qwen2-MoE."
        )
    design_of = _Design(recording, design(recording), document_rows(recording), settings.level)
    layers, domains, note = design_of.of("shared_gate", gated)
    share_layers, share_domains, note = (
        design_of.of("shared_share", shared) if shared else (layers[:0], domains[:0], note)
    )
    return Result(
        layers=layers,
        domains=domains,
        share_layers=share_layers,
        share_domains=share_domains,
        directions=design_of.directions(shared),
        sample=sample_words(recording),
        level=settings.level,
        note=note,
    )


@dataclass(frozen=True, eq=False)
class _Design:
    """A recording with its design."""

    recording: Recording
    clusters: Clusters
    row_of: np.ndarray
    level: float

    def of(self, column: str, routers: list[Router]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
        """A column that is never negative: by layer, by layer and domain, and why intervals are missing."""
        layers, domains, note = [], [], ""
        for router, about in _labelled(routers):
            counted = _count(self.recording, router, column, self.clusters, self.row_of)
            sums = (counted.sum_D, counted.tokens_D)
            whole = ratio_interval(*sums, clusters=self.clusters, level=self.level)
            by_domain = domain_ratio_interval(*sums, clusters=self.clusters, level=self.level)
            layers.append(
                about
                | _row(counted.values, None, float(whole.value), float(whole.low), float(whole.high))
                | {"first": counted.first_sum / counted.first_tokens if counted.first_tokens else np.nan}
            )
            domains += [
                about
                | {"domain": str(domain)}
                | _row(counted.values, m, by_domain.value[m], by_domain.low[m], by_domain.high[m])
                for m, domain in enumerate(self.clusters.domains)
            ]
            note = whole.note
        by_layer = pd.DataFrame(domains)
        if len(by_layer):
            by_layer = by_layer.sort_values(["layer", "domain"], ignore_index=True)
        return pd.DataFrame(layers), by_layer, note

    def directions(self, routers: list[Router]) -> pd.DataFrame:
        """Mean cosine and projection by layer; tokens where one of the outputs is zero are left out and counted."""
        rows = []
        for router, about in _labelled(routers):
            at = prefix(router, self.recording.topology)
            names = {"cosine": f"{at}.shared_cosine", "projection": f"{at}.shared_projection"}
            sum_2D, tokens_2D = (np.zeros((2, self.recording.n_documents)) for _ in range(2))
            for chunk in chunks(self.recording, list(names.values())):
                row_T = self.row_of[chunk["document"]]
                for i, name in enumerate(names.values()):
                    value_T = chunk[name].astype(np.float64)
                    known_T = np.isfinite(value_T)
                    n_documents = self.recording.n_documents
                    sum_2D[i] += np.bincount(row_T[known_T], weights=value_T[known_T], minlength=n_documents)
                    tokens_2D[i] += np.bincount(row_T[known_T], minlength=n_documents)
            row: dict = dict(about)
            for i, name in enumerate(names):
                mean = ratio_interval(sum_2D[i], tokens_2D[i], clusters=self.clusters, level=self.level)
                ends = (("", mean.value), ("_low", mean.low), ("_high", mean.high))
                row |= {f"{name}{end}": float(value) for end, value in ends}
            rows.append(row | {"tokens": int(tokens_2D[0].sum())})
        return pd.DataFrame(rows)


def _labelled(routers: list[Router]) -> list[tuple[Router, dict]]:
    several = len({router.site for router in routers}) > 1
    return [(r, {"layer": r.layer} | ({"site": r.site} if several else {})) for r in routers]


@dataclass(frozen=True, eq=False)
class _Counted:
    """A column's values counted by domain, and summed by document."""

    values: HalfCounts
    sum_D: np.ndarray
    tokens_D: np.ndarray
    first_sum: float
    first_tokens: int


def _count(recording: Recording, router: Router, column: str, clusters: Clusters, row_of: np.ndarray) -> _Counted:
    name = f"{prefix(router, recording.topology)}.{column}"
    n_documents, values = recording.n_documents, HalfCounts(len(clusters.domains))
    sum_D, tokens_D = np.zeros(n_documents), np.zeros(n_documents)
    first_sum, first_tokens = 0.0, 0
    for chunk in chunks(recording, [name]):
        known_T = ~np.isnan(chunk[name])  # a share of nothing, where both outputs are zero
        value_T, row_T = chunk[name][known_T], row_of[chunk["document"][known_T]]
        sum_D += np.bincount(row_T, weights=value_T.astype(np.float64), minlength=n_documents)
        tokens_D += np.bincount(row_T, minlength=n_documents)
        values.add(value_T, clusters.domain_D[row_T])
        first_T = chunk["position"][known_T] == 0 if "position" in chunk else np.zeros(len(value_T), dtype=bool)
        first_sum += float(value_T[first_T].sum(dtype=np.float64))
        first_tokens += int(first_T.sum())
    return _Counted(values, sum_D, tokens_D, first_sum, first_tokens)


def _row(values: HalfCounts, group: int | None, mean: float, low: float, high: float) -> dict:
    counted = values.counts_MN if group is None else values.counts_MN[group]
    ends = {"mean": float(mean), "low": float(low), "high": float(high)}
    return ends | values.quantiles(group) | {"tokens": int(counted.sum())}


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers` and `domains` of the gate, `share_layers`, `share_domains` and `directions`; of what is known."""
    named = {
        "layers": result.layers,
        "domains": result.domains,
        "share_layers": result.share_layers,
        "share_domains": result.share_domains,
        "directions": result.directions,
    }
    return {name: table for name, table in named.items() if len(table)}


def figures(result: Result) -> dict[str, Figure]:
    """`share` over tokens by layer, `share_by_domain`, `directions`, and `gate`, `gate_by_domain`; of what is known."""
    drawn: dict[str, Figure] = {}
    level = f"{result.level:.0%} interval".replace("%", " %")
    if len(result.share_layers):
        drawn |= _pair(
            result,
            result.share_layers,
            result.share_domains,
            name="share",
            what="Share of the shared expert",
            unit="‖s‖ / (‖s‖ + ‖r‖)",
            said="Shared (s, after its gate) and routed (r) output by their norms, which do not add: read it beside "
            "the cosine.",
        )
        both = result.directions.melt("layer", ["cosine", "projection"], var_name="measure", value_name="value")
        for end in ("low", "high"):
            ends = result.directions.melt("layer", [f"cosine_{end}", f"projection_{end}"], value_name=end)
            both[end] = ends[end]
        both["measure"] = both["measure"].map({"cosine": "cos(s, r)", "projection": "⟨s, y⟩ / ‖y‖²"})
        first = result.directions.iloc[0]
        drawn["directions"] = Lines(
            both.assign(none=0.0),
            "layer",
            "value",
            group="measure",
            low="low",
            high="high",
            interval_label=level,
            null="none",
            null_label="at right angles",
            title="Shared and routed output: their directions",
            x_label="layer",
            y_label="mean over tokens",
            caption=f"Cosine of shared output s and routed output r, and projection of s on y = s + r "
            f"({result.sample}). {level}: ratio over clusters of documents, t. {result.note}".strip(),
            alt=f"Layer {first['layer']:.0f}: cosine {first['cosine']:.2f}, projection {first['projection']:.2f}.",
        )
    if len(result.layers):
        drawn |= _pair(
            result,
            result.layers,
            result.domains,
            name="gate",
            what="Gate of the shared expert",
            unit="gate (after its sigmoid)",
            said="This is a factor of its output, not a share of the sum.",
        )
    return drawn


def _pair(
    result: Result, layers: pd.DataFrame, domains: pd.DataFrame, *, name: str, what: str, unit: str, said: str
) -> dict[str, Figure]:
    """The distribution over tokens by layer, and the means by domain."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    most, least = layers.nlargest(1, "mean").iloc[0], layers.nsmallest(1, "mean").iloc[0]
    return {
        name: Distribution(
            layers,
            "layer",
            title=what,
            x_label="layer",
            y_label=unit,
            caption=f"{what} over tokens ({result.sample}); box: middle half, whiskers: 5–95 %. {said}",
            alt=f"Most at layer {most['layer']}, mean {most['mean']:.2f}; least at layer {least['layer']}, "
            f"{least['mean']:.2f}.",
        ),
        f"{name}_by_domain": Lines(
            domains,
            "layer",
            "mean",
            group="domain",
            low="low",
            high="high",
            interval_label=level,
            title=f"{what} by domain",
            x_label="layer",
            y_label=f"mean {unit}",
            hover=("q05", "q50", "q95", "tokens"),
            caption=f"{what}, mean over the tokens of each domain ({result.sample}). {said} {level}: ratio over "
            f"clusters of documents, t. {result.note}".strip(),
            alt="A line for each domain, by layer.",
        ),
    }
