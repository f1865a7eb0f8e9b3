"""Which experts does each domain use, and how much does a chosen expert tell about the domain?

Not shown: why. Domains differ in their words, so a router that looks at the token alone also tells them apart: the
information is read beside a random hash of the token id as router, beside documents whose domains are permuted, and,
where they are given, beside an untrained router and the same model recorded again. What is left when the token is known
is in `specialization`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.controls import NAMES, NO_HASH, Controls
from analyses.read.design import (
    RouterStack,
    as_lines,
    design,
    in_bits,
    long_form,
    rates_note,
    require,
    router_stacks,
    sample_words,
)
from analyses.read.tokens import document_rows, evenly, layers_said
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Lines
from workbench.metrics import load, specialization
from workbench.recordings.recording import Recording
from workbench.statistics import intervals
from workbench.statistics.design import Clusters

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    load.load,
    specialization.domain_counts,
    specialization.domain_information,
    specialization.domain_information_ceiling,
    specialization.domain_information_test,
    specialization.domain_load,
    specialization.hash_router_information,
)
MOST_PANELS = 4  # layers in the map: as many as a column of a paper holds
_BITS = 1 / np.log(2)
_IN_BITS = (
    "value", "estimate", "low", "high", "permuted", "permuted_high", "ceiling", *NAMES
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: Layer of the map; some evenly spaced ones unless given.
        untrained: Folder of a recording of the untrained model over the same corpus, as a further control.
        ceiling: Folder of a recording of the same model again, in other batches or another dtype.
        level: Coverage of the intervals.
        n_resamples: Resamples of clusters of documents.
        n_draws: Permutations of the documents' domains.
        n_seeds: Seeds of the hash router.
        seed: Of resamples and permutations.
    """

    layer: int | None = None
    untrained: str | None = None
    ceiling: str | None = None
    level: float = 0.95
    n_resamples: int = 400
    n_draws: int = 199
    n_seeds: int = 20
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Domains' use of experts, and what it tells.

    Attributes:
        experts: One row per layer, domain and expert: `rate` (share of the domain's tokens that choose it) with `low`
            and `high`, the corpus' rate, `lift` (their ratio), and the balanced rate K/E.
        information: One row per layer, in bits: information of a chosen expert about the domain (`value` of the
            sample, bias-corrected `estimate` with `low` and `high`), `permuted` (mean when documents' domains are
            permuted) with `p`, `hashed` (a random hash of the token id as router; NaN where an imported recording has
            no token ids, with a `note`), `untrained` and `again` (of the sample, as `value` is), where given, and
            `ceiling`.
        shown: The layers of the map.
        sample: The sample in words.
        level: Coverage of the intervals.
        rates_note: How often intervals of rates hold the truth, and why some are missing, if they are.
        note: Why intervals are missing, if they are, and what the controls are.
    """

    experts: pd.DataFrame
    information: pd.DataFrame
    shown: list[int]
    sample: str
    level: float
    rates_note: str
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes rates by domain, and domain information with its controls.

    Raises:
        AnalysisError: the recording holds no routing, there is no such layer, or a control does not fit.
    """
    require(recording, NEEDS, "domain_load")
    shown = _shown(recording.moe_layers, settings)
    controls = Controls.of(recording, settings, "domain_load")
    clusters = design(recording)
    experts, information, note = [], [], ""
    for stack in router_stacks(recording):
        counts_DLE = stack.stacked(recording, "counts")
        tokens_DL1 = counts_DLE.sum(-1, keepdims=True) / stack.top_k
        rate = intervals.domain_ratio_interval(
            counts_DLE, tokens_DL1, clusters=clusters, level=settings.level, share=True
        )
        corpus_LE = counts_DLE.sum(0) / tokens_DL1.sum(0)
        for m, domain in enumerate(clusters.domains):
            table = long_form(
                stack.labels().assign(domain=str(domain)),
                "expert",
                {
                    "rate": rate.value[m],
                    "low": rate.low[m],
                    "high": rate.high[m],
                    "corpus_rate": corpus_LE,
                    "lift": rate.value[m] / np.where(corpus_LE > 0, corpus_LE, np.nan),
                },
            )
            experts.append(table.assign(balanced=stack.top_k / stack.n_experts))
        found = _information(recording, stack, counts_DLE, clusters, settings)
        information.append(found.assign(**{name: _plain(each, stack) for name, each in controls.items()}))
        note = rate.note
    by_layer = pd.concat(experts, ignore_index=True).sort_values(["layer", "domain", "expert"], ignore_index=True)
    return Result(
        experts=by_layer,
        information=in_bits(pd.concat(information, ignore_index=True), *_IN_BITS),
        shown=shown,
        sample=sample_words(recording),
        level=settings.level,
        rates_note=rates_note(by_layer, note),
        note=f"{note} {controls.words}".strip(),
    )


def viewed(result: Result, settings: Settings) -> Result:
    """The same result with the map of another layer: all layers are computed, whichever is shown."""
    return dataclasses.replace(result, shown=_shown(result.information["layer"].tolist(), settings))


def _shown(layers: Sequence[int], settings: Settings) -> list[int]:
    known = sorted(set(layers))
    if settings.layer is None:
        return evenly(known, MOST_PANELS)
    if settings.layer not in known:
        raise AnalysisError(f"domain_load: layer {settings.layer} has no router; set layer to one of {known}.")
    return [settings.layer]


def _information(
    recording: Recording, stack: RouterStack, counts_DLE: np.ndarray, clusters: Clusters, settings: Settings
) -> pd.DataFrame:
    resamples = intervals.cluster_bootstrap(
        counts_DLE, clusters=clusters, n_resamples=settings.n_resamples, seed=settings.seed
    ).domains
    interval = intervals.bias_corrected_interval(specialization.domain_information, resamples, level=settings.level)
    test = specialization.domain_information_test(
        counts_DLE, clusters=clusters, n_draws=settings.n_draws, seed=settings.seed
    )
    hashed = _hashed(recording, stack, clusters, settings) if recording.has("token") else np.nan
    counts_MLE = specialization.domain_counts(counts_DLE, clusters=clusters)
    return stack.labels().assign(
        value=test.statistic * _BITS,
        estimate=interval.value * _BITS,
        low=interval.low * _BITS,
        high=interval.high * _BITS,
        permuted=test.null_mean * _BITS,
        permuted_high=test.null_high * _BITS,
        p=test.p,
        hashed=hashed * _BITS,
        ceiling=specialization.domain_information_ceiling(counts_MLE, top_k=stack.top_k) * _BITS,
        method=interval.method,
        note=[_joined(interval.note, test.note, "" if recording.has("token") else NO_HASH)] * len(stack.routers),
    )


def _plain(recording: Recording, stack: RouterStack) -> np.ndarray:
    """Information of a sample, bits, by layer."""
    counts_MLE = specialization.domain_counts(stack.stacked(recording, "counts"), clusters=design(recording))
    return specialization.domain_information(counts_MLE) * _BITS


def _hashed(recording: Recording, stack: RouterStack, clusters: Clusters, settings: Settings) -> float:
    """Mean information, over seeds, of a router that is a random hash of the token id."""
    row_of, n_domains = document_rows(recording), len(clusters.domains)
    n_ids = int(recording.vocabulary["token"].max()) + 1
    counts_MV = np.zeros((n_domains, n_ids), dtype=np.int64)
    for part in recording.parts(["document", "token"]):
        cell_T = clusters.domain_D[row_of[part["document"]]] * n_ids + part["token"]
        counts_MV += np.bincount(cell_T, minlength=n_domains * n_ids).reshape(n_domains, n_ids)
    domain_P, token_P = np.nonzero(counts_MV)
    hashed_R = specialization.hash_router_information(
        token_P,
        domain_P,
        occurrences_T=counts_MV[domain_P, token_P],
        n_domains=n_domains,
        n_experts=stack.n_experts,
        top_k=stack.top_k,
        n_seeds=settings.n_seeds,
    )
    return float(hashed_R.mean())


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`experts` and `information`."""
    return {"experts": result.experts, "information": result.information}


def figures(result: Result) -> dict[str, Figure]:
    """`domain_map` of every expert's lift, `information` by layer beside its controls."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    names = {"value": "model", "permuted": "domains permuted"} | NAMES
    long = as_lines(result.information, names, by=["layer"], line="router", value="bits")
    hashed = bool(result.information["hashed"].notna().all())
    shown, every = result.shown, result.information["layer"].nunique()
    most = result.experts.nlargest(1, "lift").iloc[0]
    top = result.information.nlargest(1, "value").iloc[0]
    words = {"untrained": "an untrained router", "again": "the model recorded again"}
    given = [said for column, said in words.items() if column in result.information]
    more = f"; and beside {' and '.join(given)}, of the sample too" if given else ""
    beside = "a router that is a random hash of the token id (mean of seeds)" if hashed else f"nothing else: {NO_HASH}"
    hash_alt = f"the hash of the token id {top['hashed']:.3f}" if hashed else NO_HASH
    return {
        "domain_map": HeatMap(
            result.experts[result.experts["layer"].isin(shown)],
            "expert",
            "domain",
            "lift",
            panel="layer",
            title="Use of experts by domain",
            x_label="expert",
            y_label="domain",
            value_label="rate in the domain / rate in the corpus",
            center=1.0,
            log=True,
            hover=("rate", "low", "high", "corpus_rate"),
            caption=f"Share of a domain's tokens that choose each expert, over the corpus' share ({result.sample}). "
            f"{level} in the table: ratio over clusters of documents, log-odds, t. A router that sees the token alone "
            f"also shows such a pattern: compare with the information.{layers_said(shown, every)} "
            f"{result.rates_note}".strip(),
            alt=f"The largest lift is {most['lift']:.1f}: {most['domain']} at expert {most['expert']} of layer "
            f"{most['layer']}.",
        ),
        "information": Lines(
            long,
            "layer",
            "bits",
            group="router",
            low="low",
            high="high",
            interval_label=f"{level} (bias-corrected)",
            title="What a chosen expert tells about the domain",
            x_label="layer",
            y_label="information (bits)",
            caption=f"Information between a token's domain and one of its chosen experts, equal weight per domain "
            f"({result.sample}), beside documents whose domains are permuted within strata of length, and beside "
            f"{beside}{more}. {level}: bias-corrected cluster bootstrap, t. {result.note}".strip(),
            alt=f"The model has at most {top['value']:.3f} bits, at layer {top['layer']}; {hash_alt}.",
        ),
    }
