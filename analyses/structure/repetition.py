"""Does a token use the experts of the token before it?

Not shown: why. Neighbours are alike in topic and in words, and a document has loads of its own: the rates stand beside
uniform random routing, independent tokens with the same loads, and the document's own sets in another order. Only the
last of the three says something of the order. A caching benefit depends on hardware too.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, as_lines, design, grouped_words, require, router_stacks, sample_words
from analyses.read.neighbours import stretches
from analyses.read.tokens import N_DRAWS, Tokens, check_draws, p_value, token_parts
from workbench.figures.spec import Bars, Figure, Lines
from workbench.metrics import sequence
from workbench.metrics.sequence import any_overlap, load_matched_repetition, repetition, uniform_repetition
from workbench.metrics.sets import keyed_hash, shuffled_within
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import domain_ratio_interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (sequence.any_overlap, sequence.load_matched_repetition, sequence.repetition, sequence.uniform_repetition)
ALL = "all domains"
MEASURES = {"first": "same top-1 expert", "any": "an expert in common", "overlap": "share in common"}
_PAIRED = 1024  # tokens of a domain, all pairs of which give the load-matched rate of any common expert


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        level: Coverage of the intervals.
        n_draws: Shuffles of each document's sets.
        seed: Of the shuffles.
    """

    level: float = 0.95
    n_draws: int = N_DRAWS
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Rates of repetition between neighbouring tokens.

    Attributes:
        rates: One row per layer, domain (and all domains) and measure: `value` with `low` and `high`, `uniform` (random
            routing), `load_matched` (independent tokens with the domain's loads), `permuted` (mean when a document's
            sets are shuffled) with `permuted_high` and `p` of so much repetition, and the `pairs` of neighbours.
            Without routing weights and ranked ids there is no "same top-1 expert".
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why intervals or measures are missing, if they are, and what the uniform rate leaves out.
    """

    rates: pd.DataFrame
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Counts repetitions by document, and in shuffles.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no positions, no document has two neighbouring
            tokens, or a number of draws is under 1.
    """
    require(recording, NEEDS, "repetition", columns=("ids", "position"))
    check_draws("repetition", settings.n_draws)
    known = stretches(recording, "repetition", tokens=2)
    clusters = design(recording)
    ranked = recording.has("weights") or recording.ids_ranked
    rates, notes = (
        [],
        [
            known.note,
            "" if ranked else "no routing weights were recorded: top-1 is not known",
            grouped_words(recording),
        ],
    )
    for stack in router_stacks(recording):
        table, note = _of_stack(recording, stack, clusters, settings, ranked=ranked)
        rates.append(table)
        notes.append(note)
    return Result(
        rates=pd.concat(rates, ignore_index=True),
        sample=sample_words(recording),
        level=settings.level,
        note="; ".join(dict.fromkeys(note for note in notes if note)),
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums by document: pairs [D], measures [D, L, 3], top-1 choices [D, L, E]; measures of shuffles [B, M, L, 3]."""

    pairs_D: np.ndarray
    value_DL3: np.ndarray
    top1_MLE: np.ndarray
    shuffled_BML3: np.ndarray
    any_ML: np.ndarray


def _of_stack(
    recording: Recording, stack: RouterStack, clusters: Clusters, settings: Settings, *, ranked: bool
) -> tuple[pd.DataFrame, str]:
    sums = _count(recording, stack, clusters, settings, ranked=ranked)
    pairs_D11 = sums.pairs_D[:, None, None].astype(np.float64)
    # the overlap is shown as a share of K, so that layers of other shapes can be compared
    scale_3 = np.array([1, 1, 1 / stack.top_k])
    share_DL3 = sums.value_DL3 * scale_3
    whole = ratio_interval(share_DL3, pairs_D11, clusters=clusters, level=settings.level, share=True)
    parts = domain_ratio_interval(share_DL3, pairs_D11, clusters=clusters, level=settings.level, share=True)
    pairs_M = np.bincount(clusters.domain_D, weights=sums.pairs_D, minlength=len(clusters.domains))
    counts_DLE = stack.stacked(recording, "counts")
    counts_MLE = np.stack([counts_DLE[clusters.domain_D == m].sum(axis=0) for m in range(len(clusters.domains))])
    random = uniform_repetition(n_experts=stack.n_experts, top_k=stack.top_k)
    tables = []
    with_all = len(clusters.domains) > 1
    for m, domain in enumerate([*clusters.domains, *([ALL] if with_all else [])]):
        every = m == len(clusters.domains)
        value_L3, low_L3, high_L3 = (
            (whole.value, whole.low, whole.high) if every else (parts.value[m], parts.low[m], parts.high[m])
        )
        chosen_LE, top1_LE = (of.sum(axis=0) if every else of[m] for of in (counts_MLE, sums.top1_MLE))
        matched = load_matched_repetition(top1_LE, chosen_LE, top_k=stack.top_k)
        pairs = float(pairs_M.sum() if every else pairs_M[m])
        shuffled_BL3 = sums.shuffled_BML3.sum(axis=1) if every else sums.shuffled_BML3[:, m]
        drawn_BL3 = shuffled_BL3 / (pairs or np.nan) * scale_3
        p_L3 = p_value(value_L3, drawn_BL3)
        matched_L3 = np.stack([matched.first, sums.any_ML[m], matched.overlap], axis=-1) * scale_3
        for i, measure in enumerate(MEASURES.values()):
            if i or ranked:
                tables.append(
                    stack.labels().assign(
                        domain=str(domain),
                        measure=measure,
                        value=value_L3[:, i],
                        low=low_L3[:, i],
                        high=high_L3[:, i],
                        uniform=float((random.first, random.any, random.overlap)[i] * scale_3[i]),
                        load_matched=matched_L3[:, i],
                        permuted=drawn_BL3[:, :, i].mean(axis=0),
                        permuted_high=np.quantile(drawn_BL3[:, :, i], 0.95, axis=0),
                        p=p_L3[:, i],
                        pairs=int(pairs),
                    )
                )
    return pd.concat(tables, ignore_index=True), whole.note


def _count(recording: Recording, stack: RouterStack, clusters: Clusters, settings: Settings, *, ranked: bool) -> _Sums:
    n_documents, n_layers, n_domains = recording.n_documents, len(stack.routers), len(clusters.domains)
    pairs_D = np.zeros(n_documents, dtype=np.int64)
    value_DL3 = np.zeros((n_documents, n_layers, 3))
    shuffled_BML3 = np.zeros((settings.n_draws, n_domains, n_layers, 3))
    top1_MLE = np.zeros((n_domains, n_layers, stack.n_experts))
    some = _Lottery(n_domains)
    for part in token_parts(recording, stack, top1=ranked):
        domain_T = clusters.domain_D[part.row_T]
        some.take(part, domain_T)
        orders = [
            shuffled_within(part.document_T, part.place_T, seed=settings.seed, draw=draw)
            for draw in range(settings.n_draws)
        ]
        of_part = np.unique(part.row_T)
        local_T = np.searchsorted(of_part, part.row_T)
        for i, bits_TW in enumerate(part.bits_LTW):
            top1_T = part.top1_LT[i] if part.top1_LT is not None else None
            count = partial(repetition, document_T=local_T, follows_T=part.follows_T, n_documents=len(of_part))
            found = count(bits_TW, top1_T=top1_T)
            pairs_D[of_part] = found.pairs_D
            value_DL3[of_part, i] = np.stack([found.first_D, found.any_D, found.overlap_D], axis=-1)
            if top1_T is not None:
                cell_T = domain_T * stack.n_experts + top1_T
                counted = np.bincount(cell_T, minlength=n_domains * stack.n_experts)
                top1_MLE[:, i] += counted.reshape(n_domains, stack.n_experts)
            for draw, order in enumerate(orders):
                # shuffled within documents, so the domains stay where they are
                again = count(bits_TW[order], top1_T=None if top1_T is None else top1_T[order])
                for j, sums_D in enumerate((again.first_D, again.any_D, again.overlap_D)):
                    domains = clusters.domain_D[of_part]
                    shuffled_BML3[draw, :, i, j] += np.bincount(domains, weights=sums_D, minlength=n_domains)
    return _Sums(pairs_D, value_DL3, top1_MLE, shuffled_BML3, some.any_ML())


class _Lottery:
    """Tokens of each domain, drawn by their place in the text, for the rate of common experts of independent tokens."""

    def __init__(self, n_domains: int) -> None:
        self._n_domains = n_domains
        self._key = np.empty(0, dtype=np.uint64)
        self._domain = np.empty(0, dtype=np.int64)
        self._document = np.empty(0, dtype=np.int64)
        self._bits: np.ndarray | None = None

    def take(self, part: Tokens, domain_T: np.ndarray) -> None:
        key_T = keyed_hash(part.document_T, part.place_T, seed=0)
        bits_TLW = np.stack(part.bits_LTW, axis=1)
        key = np.concatenate([self._key, key_T])
        domain = np.concatenate([self._domain, domain_T])
        order = np.lexsort((key, domain))
        start = np.searchsorted(domain[order], np.arange(self._n_domains))
        kept = order[np.arange(len(order)) - start[domain[order]] < _PAIRED]
        self._key, self._domain = key[kept], domain[kept]
        self._document = np.concatenate([self._document, part.document_T])[kept]
        self._bits = (bits_TLW if self._bits is None else np.concatenate([self._bits, bits_TLW]))[kept]

    def any_ML(self) -> np.ndarray:
        """By domain, and last over all of them."""
        assert self._bits is not None
        every = np.argsort(self._key)[:_PAIRED]  # each of them is among the first of its domain: in the corpus' mix
        groups = [np.flatnonzero(self._domain == m) for m in range(self._n_domains)]
        return np.array(
            [
                [
                    any_overlap(np.ascontiguousarray(self._bits[rows, i]), self._document[rows])
                    for i in range(self._bits.shape[1])
                ]
                for rows in (*groups, every)
            ]
        )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`rates`."""
    return {"rates": result.rates}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` over all domains, `by_domain` at the layer with the most repetition."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    rates = result.rates
    whole = rates[rates["domain"] == ALL] if (rates["domain"] == ALL).any() else rates
    nulls = {
        "value": "model",
        "permuted": "document's sets shuffled",
        "load_matched": "independent, same loads",
        "uniform": "uniform routing",
    }
    long = as_lines(whole, nulls, by=["layer", "measure"], line="routing", value="rate")
    shared = rates[rates["measure"] == MEASURES["overlap"]]
    top = whole[whole["measure"] == MEASURES["overlap"]].nlargest(1, "value").iloc[0]
    at = shared[(shared["layer"] == top["layer"]) & ((shared["domain"] != ALL) | (len(shared["domain"].unique()) == 1))]
    how = f"{level}: ratio over clusters of documents, log-odds, t ({result.sample})."
    drawn: dict[str, Figure] = {
        "by_layer": Lines(
            long,
            "layer",
            "rate",
            group="routing",
            panel="measure",
            low="low",
            high="high",
            interval_label=level,
            shared_y=False,
            title="Experts of neighbouring tokens",
            x_label="layer",
            y_label="share",
            caption="Share of neighbouring tokens with the same top-1 expert or with any expert in common, and the "
            "share of a token's experts that the next one chooses too; beside the document's own sets in another "
            f"order, independent tokens with the same loads, and uniform random routing. {how} {result.note}".strip(),
            alt=f"At most {top['value']:.1%} of the experts are used again by the next token, at layer {top['layer']}; "
            f"{top['permuted']:.1%} when a document's sets are shuffled.".replace("%", " %"),
        ),
    }
    if at["value"].notna().any():
        drawn["by_domain"] = Bars(
            at,
            "domain",
            "value",
            low="low",
            high="high",
            interval_label=level,
            null="permuted",
            null_label="document's sets shuffled",
            title=f"Experts used again by the next token, layer {top['layer']}",
            x_label="domain",
            y_label="share of experts",
            hover=("load_matched", "uniform", "p", "pairs"),
            caption=f"Share of a token's experts that the next token chooses too, at layer {top['layer']}, beside the "
            f"same when each document's sets are shuffled. {how} {result.note}".strip(),
            alt="; ".join(f"{row.domain}: {row.value:.1%}" for row in at.itertuples()).replace("%", " %") + ".",
        )
    return drawn
