"""What share of the assignments would a limit on each expert drop, and where in the text?

Not shown: what a model does that was trained with a limit, or what dropping costs: these models drop nothing, and the
limit is laid over choices made without one. Groups are single documents, and batches of mixed documents; a batch of a
training step or a server is mixed otherwise. Drops of the routing skip to other experts in some systems, here they are
lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analyses.read.batches import Batches
from analyses.read.chunks import knows_first_choice, ranked, routing_columns
from analyses.read.design import RouterStack, design, require, router_stacks, sample_words
from analyses.read.order import text_columns
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import capacity, vocabulary
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    capacity.capacity,
    capacity.drop_fraction,
    capacity.dropped_by_group,
    capacity.expected_drop_fraction,
    capacity.queue_places,
    vocabulary.count_cells,
)
FACTORS = (1.0, 1.25, 1.5, 2.0)
SHOWN_FACTOR = 1.25  # of the figure by place: what published models were trained with
BINS = 10  # tenths of a group
MOST_LENGTHS = 64  # lengths of documents for which the floors are computed; more are represented by their quantiles
DOCUMENT = "document"
PRIORITIES: dict[str, Literal["rank", "token"]] = {"first choices first": "rank", "token by token": "token"}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        group_tokens: Tokens of a batch.
        sample_tokens: Tokens of the whole batches and documents in which it is looked up who is dropped.
        level: Coverage of the intervals.
        seed: Of the mixing of documents.
    """

    group_tokens: int = 2048
    sample_tokens: int = 65_536
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Drops under a limit.

    Attributes:
        shares: One row per layer, kind of group and capacity factor: share of the assignments `dropped` with `low` and
            `high`; `uniform`, what uniform random routing would drop of groups as long, and `mixed`, what the corpus'
            load would drop of tokens drawn from it at random.
        places: One row per layer, kind of group, factor, order of service and tenth of the group: share `dropped`, of
            the sampled tokens. Without rows where positions are not known.
        sample: The sample in words.
        batches: The batches in words.
        level: Coverage of the intervals.
        note: What is missing, and why.
    """

    shares: pd.DataFrame
    places: pd.DataFrame
    sample: str
    batches: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes drops by capacity factor, for documents and for batches.

    Raises:
        AnalysisError: the recording holds no routing of single tokens, or a number of tokens is under 1.
    """
    require(recording, NEEDS, "capacity", columns=("ids",))
    for name in ("group_tokens", "sample_tokens"):
        if getattr(settings, name) < 1:
            raise AnalysisError(
                f"capacity: {name} is {getattr(settings, name)}; 1 or more was expected, 2048 is usual."
            )
    clusters = design(recording)
    batches = Batches.of(recording, tokens=settings.group_tokens, seed=settings.seed)
    shares, places = [], []
    for stack in router_stacks(recording):
        counts_DLE = stack.stacked(recording, "counts")
        labels = stack.labels()
        sample = _sampled(recording, stack.routers, batches, settings.sample_tokens)
        for i, counts_GE in enumerate(batches.counts(recording, stack)):
            about = labels.iloc[i].to_dict()
            one = _shares(
                stack, counts_DLE[:, i], counts_GE, clusters=clusters, name=_batch_name(batches), level=settings.level
            )
            shares += [about | row for row in one]
            if "position" not in recording.lacks:
                places += [about | row for row in _places(recording, stack.routers[i], batches, sample, i)]
    left = f", {batches.left_out:,} tokens left out" if batches.left_out else ""
    return Result(
        shares=pd.DataFrame(shares),
        places=pd.DataFrame(places),
        sample=sample_words(recording),
        batches=f"{batches.n_batches:,} batches of {batches.tokens:,} tokens{left}",
        level=settings.level,
        note=_note(recording, clusters, batches),
    )


def _note(recording: Recording, clusters: Clusters, batches: Batches) -> str:
    notes = [clusters.note]
    if "position" in recording.lacks:
        notes.append("positions are not known: nor is who is dropped")
    if batches.n_batches < 8:
        notes.append(f"no interval of {batches.n_batches} batches: 8 are needed")
    if not knows_first_choice(recording):
        notes.append("ids are not ranked: only service token by token is known")
    return "; ".join(note for note in notes if note)


def _batch_name(batches: Batches) -> str:
    return f"batch of {batches.tokens:,}"


def _shares(
    stack: RouterStack, counts_DE: np.ndarray, counts_GE: np.ndarray, *, clusters: Clusters, name: str, level: float
) -> Iterator[dict]:
    top_k, n_experts = stack.top_k, stack.n_experts
    one = Clusters.of(np.zeros(len(counts_GE), dtype=np.int64))
    rate_E = counts_DE.sum(axis=0) / max(counts_DE.sum() / top_k, 1)
    rates_2E = np.stack([np.full(n_experts, top_k / n_experts), rate_E])
    for groups, counts_xE, units in ((DOCUMENT, counts_DE, clusters), (name, counts_GE, one)):
        assigned_x = counts_xE.sum(axis=1).astype(np.float64)
        for factor in FACTORS:
            dropped_x = capacity.dropped_by_group(counts_xE, top_k=top_k, capacity_factor=factor)
            interval: Interval = ratio_interval(dropped_x, assigned_x, clusters=units, level=level, share=True)
            uniform, mixed = _expected(rates_2E, assigned_x / top_k, top_k=top_k, factor=factor)
            yield {
                "groups": groups,
                "factor": factor,
                "dropped": float(interval.value),
                "low": float(interval.low),
                "high": float(interval.high),
                "uniform": uniform,
                "mixed": mixed,
                "n_groups": len(counts_xE),
                "mean_tokens": assigned_x.mean() / top_k,
                "method": interval.method.replace("ratio", "ratio" if groups == DOCUMENT else "ratio over batches"),
            }


def _expected(rates_2E: np.ndarray, tokens_G: np.ndarray, *, top_k: int, factor: float) -> np.ndarray:
    """Drops expected of random routing, over groups of these lengths, weighted by their tokens."""
    length_N, groups_N = np.unique(np.round(tokens_G[tokens_G > 0]).astype(np.int64), return_counts=True)
    weight_N: np.ndarray = (groups_N * length_N).astype(np.float64)
    if len(length_N) > MOST_LENGTHS:
        share_N = (np.cumsum(weight_N) - weight_N / 2) / weight_N.sum()
        wanted = (np.arange(MOST_LENGTHS) + 0.5) / MOST_LENGTHS
        length_N = length_N[np.minimum(np.searchsorted(share_N, wanted), len(length_N) - 1)]
        weight_N = np.ones(MOST_LENGTHS)
    found_N2 = np.array(
        [
            capacity.expected_drop_fraction(rates_2E, int(length), top_k=top_k, capacity_factor=factor)
            for length in length_N
        ]
    )
    return np.asarray(weight_N @ found_N2 / weight_N.sum())


def _sampled(recording: Recording, routers: Sequence[Router], batches: Batches, n_tokens: int) -> "_Sample":
    """Reads the first batches of the drawn order."""
    columns = [routing_columns(recording, router) for router in routers]
    n_sampled = min(max(n_tokens // batches.tokens, 1), batches.n_batches) * batches.tokens
    places, documents, ids = [], [], []
    for part in recording.parts([*text_columns(recording), *(name for names in columns for name in names)]):
        place_T = batches.placed(part).place_T
        inside = np.flatnonzero(place_T < n_sampled)
        places.append(place_T[inside])
        documents.append(part["document"][inside])
        ids.append([ranked({name: part[name][inside] for name in names}, names) for names in columns])
    order_T = np.argsort(np.concatenate(places))
    document_T = np.concatenate(documents)[order_T]
    document_T = np.cumsum(np.diff(document_T, prepend=document_T[:1]) != 0)
    return _Sample(document_T, [np.concatenate(each)[order_T] for each in zip(*ids, strict=True)])


@dataclass(frozen=True, eq=False)
class _Sample:
    """Tokens of whole batches, in their order: the number of each one's document, and its choices of each router."""

    document_T: np.ndarray
    ids_LTK: list[np.ndarray]


def _places(recording: Recording, router: Router, batches: Batches, sample: _Sample, layer: int) -> Iterator[dict]:
    """Who is dropped, over the sampled batches and the documents that lie in them whole."""
    document_T, ids_TK = sample.document_T, sample.ids_LTK[layer]
    size_G = np.bincount(document_T)
    whole_T = document_T < (len(size_G) - 1 if len(size_G) > 1 else 1)  # the last document may be cut
    kinds = (
        (DOCUMENT, document_T[whole_T], ids_TK[whole_T]),
        (_batch_name(batches), np.arange(len(ids_TK)) // batches.tokens, ids_TK),
    )
    for name, group_T, of_group_TK in kinds:
        for served, priority in PRIORITIES.items():
            if priority == "token" or knows_first_choice(recording):
                yield from _tenths(
                    {"groups": name, "served": served}, of_group_TK, group_T, router=router, priority=priority
                )


def _tenths(
    about: dict, ids_TK: np.ndarray, group_T: np.ndarray, *, router: Router, priority: Literal["rank", "token"]
) -> Iterator[dict]:
    place_TK = capacity.queue_places(ids_TK, n_experts=router.n_experts, group_T=group_T, priority=priority)
    size_G = np.bincount(group_T)
    start_G = np.cumsum(size_G) - size_G
    bin_T = (np.arange(len(group_T)) - start_G[group_T]) * BINS // size_G[group_T]
    tokens_S = np.bincount(bin_T, minlength=BINS)
    for factor in FACTORS:
        room_G = capacity.capacity(size_G, n_experts=router.n_experts, top_k=router.top_k, capacity_factor=factor)
        room_T = room_G[group_T]
        dropped_T = np.zeros(len(room_T), dtype=np.int64)
        for place_T in place_TK.T:
            dropped_T += place_T >= room_T
        dropped_S = np.bincount(bin_T, weights=dropped_T, minlength=BINS)
        for tenth in np.flatnonzero(tokens_S).tolist():
            yield about | {
                "factor": factor,
                "tenth": tenth + 1,
                "dropped": dropped_S[tenth] / (tokens_S[tenth] * router.top_k),
                "tokens": int(tokens_S[tenth]),
            }


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`shares`, and `places` where positions are known."""
    return {"shares": result.shares, **({"places": result.places} if len(result.places) else {})}


def figures(result: Result) -> dict[str, Figure]:
    """`dropped` by layer and factor, and where positions are known `dropped_by_place` in the group."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    shares = result.shares.assign(capacity=[f"factor {factor:g}" for factor in result.shares["factor"]])
    first = shares[shares["factor"] == FACTORS[0]]
    most = first.nlargest(1, "dropped").iloc[0]
    drawn: dict[str, Figure] = {
        "dropped": Lines(
            shares,
            "layer",
            "dropped",
            group="capacity",
            panel="groups",
            low="low",
            high="high",
            interval_label=level,
            null="uniform",
            null_label="uniform random routing",
            title="Drops under a limit per expert",
            x_label="layer",
            y_label="share of assignments dropped",
            hover=("mixed", "n_groups", "mean_tokens"),
            caption="Share of the assignments over an expert's capacity, factor · K · n / E rounded up, in groups of n "
            f"tokens: single documents, and mixed documents in {result.batches} ({result.sample}). Dashed: uniform "
            "random routing of groups as long, which drops by chance alone. Hypothetical: the model itself drops "
            f"nothing. {level}: ratio over clusters of documents, or over batches, log-odds, t. {result.note}".strip(),
            alt=f"At factor {most['factor']:g} at most {most['dropped']:.1%} is dropped, at layer {most['layer']} by "
            f"{most['groups']}; uniform random routing would drop {most['uniform']:.1%}.".replace("%", " %"),
        ),
    }
    if not len(result.places):
        return drawn
    at_factor = result.places[result.places["factor"] == SHOWN_FACTOR]
    places = at_factor.groupby(["groups", "served", "tenth"], sort=False)["dropped"].mean().reset_index()
    drawn["dropped_by_place"] = Lines(
        places,
        "tenth",
        "dropped",
        group="served",
        panel="groups",
        title="Who is dropped",
        x_label="tenth of the group",
        y_label="share of assignments dropped",
        caption=f"Share dropped at capacity factor {SHOWN_FACTOR:g} by place in the group, mean over layers, by "
        "order of service: all first choices of a group before all second ones, or token by token "
        f"({result.sample}; the first {_tokens_looked_up(result):,} tokens of the drawn order). "
        f"{result.note}".strip(),
        alt="A panel for documents and one for batches, a line for each order of service.",
    )
    return drawn


def _tokens_looked_up(result: Result) -> int:
    """Tokens of the batches in which it was looked up who is dropped."""
    by = ["layer", "groups", "served", "factor"]
    return int(result.places.groupby(by)["tokens"].sum().max())
