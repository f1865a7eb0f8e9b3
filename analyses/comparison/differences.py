"""How do two recordings of one corpus differ, layer by layer?

Not shown: why, or which is better. The intervals say whether a difference would stay with other documents of the same
kinds, not whether it would stay with another run of training: for that, compare several runs. Measures that noise
raises (domain information) have its bias taken out of the difference, and not out of the two values beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.compare import MOST_GROUPS, design_of
from analyses.comparison import saturation
from analyses.comparison._loss import loss_by_domain
from analyses.pairing import Pair, pair, stacks
from analyses.read.design import RouterStack, require, sample_words
from analyses.read.tokens import document_rows, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure, Lines
from workbench.metrics import agreement, load, sequence, specialization
from workbench.metrics.agreement import load_matched_agreement
from workbench.metrics.router import normalized_entropy
from workbench.metrics.sequence import load_matched_repetition, repetition
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters
from workbench.statistics.jackknife import Bags, deal, left_out_interval

INPUT = "two recordings"
NEEDS = ("routing",)
METRICS = (
    load_matched_agreement,
    agreement.saturation,
    load.imbalance,
    load.load,
    normalized_entropy,
    sequence.load_matched_repetition,
    sequence.repetition,
    specialization.domain_counts,
    specialization.domain_information,
    specialization.domain_information_test,
)
IMBALANCE = "imbalance (CV²)"
INFORMATION = "information (bits)"
REPETITION = "experts kept (share)"
ENTROPY = "router entropy / ln E"
AGREEMENT = "agreement (share)"
MEASURES = (IMBALANCE, INFORMATION, REPETITION, ENTROPY)
NO_NEIGHBOURS = "No two tokens are known to be neighbours: no measure of experts kept."
_BITS = 1 / np.log(2)


def _order(value: str | int) -> int:
    return MEASURES.index(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        ceiling: Folder of a recording of the first recording's model again: the ceiling of the agreement.
        experts: `auto`, `same` or `matched`: whether equal ids are equal experts, or experts are matched first.
        n_draws: Permutations of the documents' domains.
        level: Coverage of the intervals.
        seed: Of the permutations.
    """

    ceiling: str = ""
    experts: str = "auto"
    n_draws: int = 99
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Differences of two recordings.

    Attributes:
        measures: One row per layer and measure: `a`, `b`, `difference` b − a, its `estimate` with the bias of finite
            text taken out, with `low` and `high`; `null_a` and `null_b` (imbalance: 0; domain information: documents'
            domains permuted; experts kept: independent tokens with the same loads).
        agreement: As the analysis `saturation` gives it, over all domains; None without experts of single tokens.
        loss: One row per domain, and of all: `a`, `b`, `difference` in nats per token with `low` and `high`; None where
            log-probabilities are not known in both.
        sample: The sample in words.
        names: Of both recordings.
        level: Coverage of the intervals.
        note: What was left out, whether experts were matched, why intervals or measures are missing.
    """

    measures: pd.DataFrame
    agreement: pd.DataFrame | None
    loss: pd.DataFrame | None
    sample: str
    names: tuple[str, str]
    level: float
    note: str


def run(recording: Recording, other: Recording, settings: Settings = Settings()) -> Result:
    """Computes every measure of both, of all documents and without each group of them.

    Raises:
        AnalysisError: the two cannot be compared, or the ceiling is no recording of the same model.
    """
    for each in (recording, other):
        require(each, NEEDS, "differences")
    if settings.n_draws < 1:
        raise AnalysisError(f"differences: n_draws is {settings.n_draws}; 1 or more was expected.")
    both = pair(recording, other, analysis="differences", experts=settings.experts)
    groups = _Groups.of(both.one)
    frames = [_measures(both, stack, theirs, groups, settings) for stack, theirs in stacks(both.one, both.other)]
    of_tokens = not ({"ids"} & {*recording.lacks, *other.lacks})
    how = saturation.Settings(ceiling=settings.ceiling, experts=settings.experts, level=settings.level)
    alike = saturation.run(recording, other, how) if of_tokens else None
    agreement = None
    if alike is not None:
        table = alike.agreement
        agreement = table[(table["domain"] == saturation.ALL) | (table["domain"].nunique() == 1)]
    loss = loss_by_domain(both, settings.level)
    notes = [
        alike.note if alike is not None else f"{both.words} Experts of single tokens are not known: no agreement.",
        "" if loss is not None else "Log-probabilities were not recorded in both: no loss.",
        "" if any(REPETITION in set(frame["measure"]) for frame in frames) else NO_NEIGHBOURS,
        groups.bags.note if groups.bags.note not in (alike.note if alike is not None else "") else "",
    ]
    return Result(
        measures=pd.concat(frames, ignore_index=True).sort_values(
            ["measure", "layer"], key=lambda column: column.map(_order), ignore_index=True
        ),
        agreement=agreement,
        loss=loss,
        sample=sample_words(both.one),
        names=both.names,
        level=settings.level,
        note=" ".join(note.strip() for note in notes if note.strip()),
    )


@dataclass(frozen=True, eq=False)
class _Groups:
    """Groups of documents, the rows of the first recording in each, and the design of those that are left."""

    domain_D: np.ndarray
    cluster_D: np.ndarray
    bags: Bags
    group_D: np.ndarray

    @classmethod
    def of(cls, recording: Recording) -> "_Groups":
        documents = recording.documents()
        order = np.argsort(documents["document"].to_numpy(), kind="stable")
        bags = deal(design_of(documents.iloc[order]), most=MOST_GROUPS)
        group_D = np.empty(len(documents), dtype=np.int64)
        group_D[order] = bags.bag_D  # dealt by the documents' numbers, whatever the order of rows
        return cls(documents["domain"].to_numpy(), documents["cluster"].to_numpy(), bags, group_D)

    def clusters(self, kept_D: np.ndarray) -> Clusters:
        return Clusters.of(self.domain_D[kept_D], cluster_D=self.cluster_D[kept_D])


_Statistic = Callable[[np.ndarray, Clusters], np.ndarray]  # of the documents that are kept: [2, L]


def _measures(both: Pair, stack: RouterStack, theirs: RouterStack, groups: _Groups, settings: Settings) -> pd.DataFrame:
    rows_D = document_rows(both.other)[both.one.column("document", table="documents")]
    counts_D2LE = np.stack([stack.stacked(both.one, "counts"), theirs.stacked(both.other, "counts")[rows_D]], axis=1)
    everything = groups.clusters(np.ones(len(rows_D), dtype=bool))
    several = len(everything.domains) > 1
    measures: dict[str, tuple[_Statistic, np.ndarray | float]] = {
        IMBALANCE: (lambda kept_D, clusters: load.imbalance(counts_D2LE[kept_D], clusters=clusters), 0.0)
    }
    if several:
        test = specialization.domain_information_test(
            counts_D2LE, clusters=everything, n_draws=settings.n_draws, seed=settings.seed
        )
        measures[INFORMATION] = (
            lambda kept_D, clusters: (
                _BITS
                * specialization.domain_information(
                    specialization.domain_counts(counts_D2LE[kept_D], clusters=clusters)
                )
            ),
            np.asarray(test.null_mean) * _BITS,
        )
    for name, sums in _ratios(both, stack, theirs, rows_D, counts_D2LE).items():
        measures[name] = (sums.of, sums.null_2L)
    frames = []
    for name, (statistic, null) in measures.items():
        value_2L = statistic(np.ones(len(rows_D), dtype=bool), everything)
        kept_GD = groups.group_D != np.arange(groups.bags.n_bags)[:, None]
        left_GL = np.stack(
            [np.diff(statistic(kept_D, groups.clusters(kept_D)), axis=0)[0] if kept_D.any() else value_2L[0] * np.nan
             for kept_D in kept_GD]
        )  # fmt: skip
        found = left_out_interval(value_2L[1] - value_2L[0], left_GL, bags=groups.bags, level=settings.level)
        null_2L = np.broadcast_to(null, value_2L.shape)
        frames.append(
            stack.labels().assign(
                measure=name,
                a=value_2L[0],
                b=value_2L[1],
                difference=found.plug_in,
                estimate=found.value,
                low=found.low,
                high=found.high,
                null_a=null_2L[0],
                null_b=null_2L[1],
            )
        )
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True, eq=False)
class _Ratio:
    """Sums by document whose ratio is the measure: [D, 2, L] over [D]."""

    sum_D2L: np.ndarray
    over_D: np.ndarray
    null_2L: np.ndarray

    def of(self, kept_D: np.ndarray, clusters: Clusters) -> np.ndarray:
        over = self.over_D[kept_D].sum()
        return np.asarray(self.sum_D2L[kept_D].sum(axis=0) / (over or np.nan))


def _ratios(
    both: Pair, stack: RouterStack, theirs: RouterStack, rows_D: np.ndarray, counts_D2LE: np.ndarray
) -> dict[str, _Ratio]:
    """Measures of single tokens: what the recordings know of them."""
    sides = ((both.one, stack, None), (both.other, theirs, rows_D))
    found: dict[str, _Ratio] = {}
    if all(not {"ids", "position"} & {*recording.lacks} for recording, _, _ in sides):
        (kept_DL, pairs_D), (their_kept_DL, _) = (_kept(recording, stack_of) for recording, stack_of, _ in sides)
        if pairs_D.any():  # the same tokens at the same positions, so the pairs of both
            null_2L = np.stack([_independent(counts_D2LE[:, h].sum(0), of.top_k) for h, (_, of, _) in enumerate(sides)])
            found[REPETITION] = _Ratio(np.stack([kept_DL, their_kept_DL[rows_D]], axis=1), pairs_D, null_2L)
    if all(recording.has("entropy") for recording, _, _ in sides) and stack.n_experts > 1:
        tokens_D = both.one.column("tokens", table="documents").astype(np.float64)
        entropy = [_entropy(recording, stack_of) for recording, stack_of, _ in sides]
        sum_D2L = np.stack([entropy[0], entropy[1][rows_D]], axis=1)
        found[ENTROPY] = _Ratio(sum_D2L, tokens_D, np.full(sum_D2L.shape[1:], np.nan))
    return found


def _kept(recording: Recording, stack: RouterStack) -> tuple[np.ndarray, np.ndarray]:
    """Share of a token's experts that the token before it chose too, summed by document: [D, L]; and the pairs, [D]."""
    n_documents = recording.n_documents
    sum_DL, pairs_D = np.zeros((n_documents, len(stack.routers))), np.zeros(n_documents)
    for part in token_parts(recording, stack):
        for i, bits_TW in enumerate(part.bits_LTW):
            found = repetition(bits_TW, part.row_T, follows_T=part.follows_T, n_documents=n_documents)
            sum_DL[:, i] += found.overlap_D / stack.top_k
            pairs_D += found.pairs_D if i == 0 else 0
    return sum_DL, pairs_D


def _independent(counts_LE: np.ndarray, top_k: int) -> np.ndarray:
    return np.asarray(load_matched_repetition(counts_LE, counts_LE, top_k=top_k).overlap) / top_k


def _entropy(recording: Recording, stack: RouterStack) -> np.ndarray:
    """Entropy of the router's scores over ln E, summed by document: [D, L]."""
    row_of, n_documents = document_rows(recording), recording.n_documents
    names = [f"{prefix(router, recording.topology)}.entropy" for router in stack.routers]
    sum_DL = np.zeros((n_documents, len(names)))
    for part in recording.parts(["document", *names]):
        row_T = row_of[part["document"]]
        for i, name in enumerate(names):
            share_T = normalized_entropy(part[name].astype(np.float64), n_experts=stack.n_experts)
            sum_DL[:, i] += np.bincount(row_T, weights=share_T, minlength=n_documents)
    return sum_DL


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`measures`; `agreement` and `loss` where they are known."""
    known = {"measures": result.measures, "agreement": result.agreement, "loss": result.loss}
    return {name: table for name, table in known.items() if table is not None}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer`, every measure of both by layer; `differences` of the measures; `loss` by domain."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    one, other = result.names
    rows = result.measures
    clear = rows[(rows["low"] > 0) | (rows["high"] < 0)]
    layers = "; ".join(f"{measure} at {len(found)} layers" for measure, found in clear.groupby("measure", sort=False))
    alt = f"{len(clear)} of {len(rows)} differences are clear of 0{f': {layers}' if layers else ''}."
    beside = ""
    if result.agreement is not None:
        beside = f" Agreement: experts that both chose for the same token, {other} with {one}, and "
        beside += (
            f"{one} with itself recorded again, the ceiling."
            if "ceiling" in result.agreement
            else "no ceiling was measured (the same model recorded again is below 1)."
        )
    drawn: dict[str, Figure] = {
        "by_layer": Lines(
            _by_layer(result),
            "layer",
            "value",
            panel="measure",
            group="recording",
            low="low",
            high="high",
            interval_label=f"{level} of the difference, drawn from {one}",
            null="null",
            null_label="null",
            title=f"{one} and {other}, layer by layer",
            x_label="layer",
            y_label="value",
            shared_y=False,
            caption=f"Measures of routing of {one} and of {other} ({result.sample}). A bar is the {level} of the "
            f"difference, drawn from the value of {one}: where it does not reach that value, the two differ. Jackknife "
            "over groups of documents, the same left out of both, t. Experts kept: of a token's experts, those that "
            f"the token before it chose too. Information: of a chosen expert about the domain.{beside} "
            "Nulls, in the colour of their recording: "
            "imbalance 0; documents' domains permuted; independent tokens, and independent routers, with the same "
            f"loads. {result.note}".strip(),
            alt=alt,
        ),
    }
    known = rows[rows["estimate"].notna()]
    if len(known):
        drawn["differences"] = Lines(
            known.assign(none=0.0),
            "layer",
            "estimate",
            panel="measure",
            low="low",
            high="high",
            interval_label=level,
            null="none",
            null_label="no difference",
            title=f"{other} less {one}, layer by layer",
            x_label="layer",
            y_label="difference",
            shared_y=False,
            hover=("a", "b"),
            caption=f"Measures of routing in {other} less those in {one}, the bias of finite text taken out "
            f"({result.sample}). Experts kept: from the token before; information: of a chosen expert about the "
            f"domain. {level}: jackknife over groups of documents, the same left out of both, t. "
            f"{result.note}".strip(),
            alt=alt,
        )
    if result.loss is not None:
        worst = result.loss.nlargest(1, "difference").iloc[0]
        drawn["loss"] = Bars(
            result.loss,
            "domain",
            "difference",
            low="low",
            high="high",
            interval_label=level,
            title=f"Loss by domain: {other} less {one}",
            x_label="domain",
            y_label="difference in loss (nats per token)",
            hover=("a", "b", "tokens"),
            caption=f"Mean loss of a token in {other} less that in {one}, the same tokens ({result.sample}). {level}: "
            f"ratio over clusters of documents, paired, t. {result.note}".strip(),
            alt=f"Highest in {worst['domain']}: {worst['difference']:+.3f} nats per token.",
        )
    return drawn


def _by_layer(result: Result) -> pd.DataFrame:
    """In long form, a row per layer, measure and recording; ends of the interval stand with the second recording."""
    one, other = result.names
    rows = result.measures
    frames = []
    for name, value, null in ((one, "a", "null_a"), (other, "b", "null_b")):
        frame = rows[["layer", "measure"]].assign(
            recording=name, value=rows[value], null=rows[null], low=np.nan, high=np.nan
        )
        if value == "b":
            frame["low"], frame["high"] = rows["a"] + rows["low"], rows["a"] + rows["high"]
        frames.append(frame)
    if result.agreement is not None:
        of = result.agreement
        base = of[["layer"]].assign(measure=AGREEMENT, null=of["load_matched"])
        frames.append(base.assign(recording=other, value=of["value"], low=of["low"], high=of["high"]))
        if "ceiling" in of:
            frames.append(
                base.assign(recording=one, value=of["ceiling"], low=of["ceiling_low"], high=of["ceiling_high"])
            )
    long = pd.concat(frames, ignore_index=True)
    return long[long["value"].notna()].reset_index(drop=True)
