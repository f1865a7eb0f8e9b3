"""How many of a token's experts did another recording of the same text choose too?

Not shown: which of the two is better, or that equal choices compute the same: experts can change while the router does
not. The ceiling is not 1: the same model recorded again in other batches or another dtype agrees a little less. Record
it twice and give that recording as `other` to know by how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._inputs import RouterStack, design, require, router_stacks, sample_words
from analyses._tokens import Tokens, document_rows, token_parts
from workbench.errors import AnalysisError, RecordingError
from workbench.figures.spec import Bars, Figure, Lines
from workbench.metrics.agreement import load_matched_agreement, saturation
from workbench.metrics.clusters import Clusters
from workbench.metrics.uncertainty import domain_ratio_interval, ratio_interval
from workbench.recording import Recording

NEEDS = ("routing",)
ALL = "all domains"


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        other: Folder of the recording to compare with: another checkpoint, or the same model again. Needed.
        level: Coverage of the intervals.
    """

    other: str = ""
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Agreement of two recordings.

    Attributes:
        agreement: One row per layer and domain (and all domains): mean share of a token's experts that the other
            recording chose too, `value` with `low` and `high`, `load_matched` Σ p p′/K, `uniform` K/E, and the tokens
            with all experts the same (`whole_sets`).
        sample: The sample in words.
        other: The other recording in words.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    agreement: pd.DataFrame
    sample: str
    other: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Compares the sets of each token, part by part.

    Raises:
        AnalysisError: `other` is not given or cannot be opened; a recording holds no routing of single tokens; or the
            two differ in documents, tokens, MoE layers, experts or chosen experts.
    """
    require(recording, NEEDS, "saturation", columns=("ids",))
    if not settings.other:
        raise AnalysisError(
            "saturation: other is not set, and there is nothing to compare with; give a recording of the same corpus: "
            "--set other=FOLDER."
        )
    try:
        other = Recording.open(settings.other)
    except RecordingError as error:
        raise AnalysisError(f"saturation: other: {error}") from error
    if recording.chosen_phase is not None:
        other = other.of_phase(recording.chosen_phase)
    require(other, NEEDS, "saturation", columns=("ids",))
    _check_alike(recording, other)
    clusters = design(recording)
    frames, note = [], ""
    for stack in router_stacks(recording):
        table, note = _of_stack(recording, other, stack, clusters, settings.level)
        frames.append(table)
    return Result(
        agreement=pd.concat(frames, ignore_index=True),
        sample=sample_words(recording),
        other=other.manifest["identity"]["model"].rstrip("/").rpartition("/")[2],
        level=settings.level,
        note=note,
    )


def _check_alike(recording: Recording, other: Recording) -> None:
    shapes = [
        [(router.layer, router.site, router.n_experts, router.top_k) for router in each.topology.routers]
        for each in (recording, other)
    ]
    if shapes[0] != shapes[1]:
        raise AnalysisError(
            f"saturation: {recording.path} and {other.path} have other MoE layers, experts or chosen experts; compare "
            "recordings of one architecture."
        )
    columns = ["document", "tokens"]
    mine, others = (each.documents()[columns].sort_values("document", ignore_index=True) for each in (recording, other))
    if not mine.equals(others):
        raise AnalysisError(
            f"saturation: {recording.path} has {len(mine):,} documents and {int(mine['tokens'].sum()):,} tokens, "
            f"{other.path} {len(others):,} and {int(others['tokens'].sum()):,}, or of other lengths; record the same "
            "corpus with the same tokenizer and limits."
        )


class _Other:
    """The tokens of another recording, found by document: its parts may be cut elsewhere."""

    def __init__(self, recording: Recording, stack: RouterStack) -> None:
        self._recording, self._stack = recording, stack
        self._part_of = np.full(len(document_rows(recording)), -1, dtype=np.int64)
        for index, part in enumerate(recording.parts(["document"], table="documents")):
            self._part_of[part["document"]] = index
        self._read: dict[int, Tokens] = {}

    def tokens(self, of: Tokens) -> Iterator[tuple[np.ndarray, Tokens]]:
        """For each part that holds some of these documents: which rows of `of` they are, and their tokens."""
        part_T = self._part_of[of.document_T]
        wanted = np.unique(part_T).tolist()
        self._read = {index: tokens for index, tokens in self._read.items() if index in wanted}  # parts go by in order
        for index in wanted:
            if index not in self._read:
                alone = {**self._recording.manifest, "parts": [self._recording.manifest["parts"][index]]}
                only = type(self._recording)(self._recording.path, alone)
                (self._read[index],) = token_parts(only, self._stack, token=self._recording.has("token"))
            here = np.flatnonzero(part_T == index)
            found = self._read[index]
            yield here, found.of(np.flatnonzero(np.isin(found.document_T, of.document_T[here])))


def _of_stack(
    recording: Recording, other: Recording, stack: RouterStack, clusters: Clusters, level: float
) -> tuple[pd.DataFrame, str]:
    n_documents, n_layers = recording.n_documents, len(stack.routers)
    same_DL, whole_DL = np.zeros((n_documents, n_layers)), np.zeros((n_documents, n_layers))
    tokens_D = np.zeros(n_documents)
    known = recording.has("token") and other.has("token")
    others = _Other(other, stack)
    for part in token_parts(recording, stack, token=known):
        for rows, theirs in others.tokens(part):
            mine = part.of(rows)
            _check_tokens(mine, theirs, recording, other, known=known)
            tokens_D += np.bincount(mine.row_T, minlength=n_documents)
            for i, (bits_TW, other_TW) in enumerate(zip(mine.bits_LTW, theirs.bits_LTW, strict=True)):
                share_T = saturation(bits_TW, other_TW, top_k=stack.top_k)
                same_DL[:, i] += np.bincount(mine.row_T, weights=share_T, minlength=n_documents)
                whole_DL[:, i] += np.bincount(mine.row_T, weights=share_T == 1, minlength=n_documents)
    whole = ratio_interval(same_DL, tokens_D[:, None], clusters=clusters, level=level)
    parts = domain_ratio_interval(same_DL, tokens_D[:, None], clusters=clusters, level=level)
    counts_DLE = stack.stacked(recording, "counts")
    other_DLE = stack.stacked(other, "counts")[document_rows(other)[recording.column("document", table="documents")]]
    frames = []
    for m, domain in enumerate([*clusters.domains, *([ALL] if len(clusters.domains) > 1 else [])]):
        every = m == len(clusters.domains)
        of_D = np.ones(n_documents, dtype=bool) if every else clusters.domain_D == m
        ends = (whole.value, whole.low, whole.high) if every else (parts.value[m], parts.low[m], parts.high[m])
        frames.append(
            stack.labels().assign(
                domain=str(domain),
                value=ends[0],
                low=np.maximum(ends[1], 0),
                high=np.minimum(ends[2], 1),
                load_matched=load_matched_agreement(counts_DLE[of_D].sum(0), other_DLE[of_D].sum(0), top_k=stack.top_k),
                uniform=stack.top_k / stack.n_experts,
                whole_sets=whole_DL[of_D].sum(0) / tokens_D[of_D].sum(),
                tokens=int(tokens_D[of_D].sum()),
            )
        )
    return pd.concat(frames, ignore_index=True), whole.note


def _check_tokens(mine: Tokens, theirs: Tokens, recording: Recording, other: Recording, *, known: bool) -> None:
    same = len(mine.row_T) == len(theirs.row_T) and bool((mine.position_T == theirs.position_T).all())
    if same and known:
        differ = np.flatnonzero(mine.token_T != theirs.token_T)
        if len(differ):
            names = recording.documents().set_index("document")["id"]
            first = names[int(mine.document_T[differ[0]])]
            raise AnalysisError(
                f"saturation: {recording.path} and {other.path} have other tokens, first in document {first!r} at "
                f"position {mine.position_T[differ[0]]}; record the same corpus with the same tokenizer."
            )
    if not same:
        raise AnalysisError(
            f"saturation: {recording.path} and {other.path} have other positions in their documents; record the same "
            "corpus with the same limits."
        )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`agreement`."""
    return {"agreement": result.agreement}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` over all domains, `by_domain` at the layer with the least agreement."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    table = result.agreement
    several = (table["domain"] == ALL).any()
    whole = table[table["domain"] == ALL] if several else table
    names = {"value": f"with {result.other}", "load_matched": "independent, same loads", "uniform": "uniform routing"}
    long = whole.melt(id_vars="layer", value_vars=list(names), var_name="routing", value_name="share")
    long = long.merge(whole[["layer", "low", "high"]].assign(routing="value"), how="left", on=["layer", "routing"])
    long["routing"] = long["routing"].map(names)
    least = whole.nsmallest(1, "value").iloc[0]
    at = table[(table["layer"] == least["layer"]) & ((table["domain"] != ALL) | (not several))]
    how = f"{level}: ratio over clusters of documents, t. {result.note}".strip()
    what = f"Share of a token's experts that {result.other} chose too for the same token ({result.sample})"
    return {
        "by_layer": Lines(
            long,
            "layer",
            "share",
            group="routing",
            low="low",
            high="high",
            interval_label=level,
            title="Experts that both recordings chose",
            x_label="layer",
            y_label="share of a token's experts",
            caption=f"{what}, beside two independent routers with the same loads, and uniform random routing. The same "
            f"model recorded again does not reach 1 in other batches or another dtype. {how}",
            alt=f"They agree least at layer {least['layer']}, in {least['value']:.1%} of the experts.".replace(
                "%", " %"
            ),
        ),
        "by_domain": Bars(
            at,
            "domain",
            "value",
            low="low",
            high="high",
            interval_label=level,
            null="load_matched",
            null_label="independent, same loads",
            title=f"Experts that both recordings chose, layer {least['layer']}",
            x_label="domain",
            y_label="share of a token's experts",
            hover=("whole_sets", "uniform", "tokens"),
            caption=f"{what}, at layer {least['layer']}, where they agree least. {how}",
            alt="; ".join(f"{row.domain}: {row.value:.1%}" for row in at.itertuples()).replace("%", " %") + ".",
        ),
    }


if __name__ == "__main__":
    main()
