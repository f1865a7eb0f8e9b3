"""Is routing by token: how alike do two occurrences of one token route, in documents that share nothing else?

Not shown: what else the occurrences have in common. The words around a token are often alike too, so a router that
reads the context can agree on it: agreement by token is what the token id and all that goes with it tell. Pairs are of
different documents, so a document's own preferences do not enter; domains do. Places and domains share words: what a
random hash of the token id as router shows of them is of the words alone. No agreement can exceed that of the model
with itself: give a recording of it made again as `ceiling`, and one of the untrained model as `untrained`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.pairing import side_by_side
from analyses.read.controls import NAMES, Controls, routed_by_token
from analyses.read.design import RouterStack, as_lines, design, require, router_stacks, sample_words
from analyses.read.token_pairs import DOMAIN, PAIRED, PLACE, SAME, TOKEN, TOKEN_AND_DOMAIN, WEIGHTS, PairLabels
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import agreement, load, specialization
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    agreement.agreement_rate,
    agreement.document_pair_sums,
    agreement.label_counts,
    agreement.load_matched_agreement,
    agreement.other_pair_sums,
    agreement.overlap_within,
    agreement.pair_numbers,
    agreement.pair_overlap,
    agreement.pair_sums,
    agreement.same_token_agreement,
    agreement.saturation,
    agreement.token_weights,
    load.document_counts,
    specialization.hash_router_counts,
)
_CELLS = 1 << 24  # of the tables of labels and experts held at once: 64 MB


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        untrained: Folder of a recording of the untrained model over the same corpus, as a control.
        ceiling: Folder of a recording of the same model again, in other batches or another dtype.
        n_seeds: Seeds of the hash router.
        level: Coverage of the intervals.
    """

    untrained: str | None = None
    ceiling: str | None = None
    n_seeds: int = 3
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Agreement of pairs of tokens.

    Attributes:
        agreement: One row per layer, what the two tokens have in common (`same`) and what counts once (`weight`: each
            pair, or each token): mean share of experts in common `value`, that of pairs that do not have it in common
            `others`, their difference `excess` with `low` and `high`, the `load_matched` share Σp²/K, and the `pairs`.
            Where each token counts once, the others are still all pairs. Beside it the excess of controls: `hashed`, a
            router that is a hash of the token id (mean of seeds), and where they are given the `untrained` router and
            the model `again`, with `ceiling`, the share of experts that a token keeps when it is recorded again.
        sample: The sample in words.
        unpaired: Tokens whose id no other document has: they are in no pair of the same token.
        tokens: All tokens.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
        control: The controls that were given, in words.
    """

    agreement: pd.DataFrame
    sample: str
    unpaired: int
    tokens: int
    level: float
    note: str
    control: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes sums over pairs in two passes: counts by label, then each document's part in the pairs.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no token ids, or no two documents with a
            token in common; `n_seeds` is under 1, or a control does not fit.
    """
    require(recording, NEEDS, "same_token", columns=("ids", "token"))
    if recording.n_documents < 2:
        raise AnalysisError(
            f"same_token: {recording.path} has one document, and a pair is of two; record a corpus of several."
        )
    if settings.n_seeds < 1:
        raise AnalysisError(f"same_token: n_seeds is {settings.n_seeds}; 1 or more was expected.")
    controls = Controls.of(recording, settings, "same_token")
    labels = PairLabels(recording, design(recording))
    if not len(labels.tokens[TOKEN]):
        raise AnalysisError("same_token: no two documents have a token in common, so there is no pair to compare.")
    found, note = _found(recording, labels, settings.level)
    for column, other in controls.items():
        theirs, _ = _found(other, PairLabels(other, design(other)), settings.level)
        found = _beside(found, theirs, column)
    found = pd.concat([_by_hash(recording, stack, found, labels, settings) for stack in router_stacks(recording)])
    if "again" in controls.recordings:
        found = found.merge(_ceiling(recording, controls.recordings["again"]), how="left")
    return Result(
        agreement=found.reset_index(drop=True),
        sample=sample_words(recording),
        unpaired=labels.unpaired,
        tokens=recording.n_tokens,
        level=settings.level,
        note="; ".join(part for part in (note, "" if labels.places_known else "positions are not known") if part),
        control=controls.words,
    )


def _found(recording: Recording, labels: PairLabels, level: float) -> tuple[pd.DataFrame, str]:
    """The agreement of every layer, and why intervals are missing."""
    clusters, frames = design(recording), []
    for stack in router_stacks(recording):
        step = max(1, _CELLS // (labels.n_rows * stack.n_experts))
        for start in range(0, len(stack.routers), step):
            some = RouterStack(stack.routers[start : start + step], stack.n_experts, stack.top_k)
            frames.append(_of_layers(recording, some, clusters, labels, level))
    return pd.concat([frame for frame, _ in frames], ignore_index=True), frames[0][1]


def _beside(found: pd.DataFrame, other: pd.DataFrame, column: str) -> pd.DataFrame:
    """The excess of a control as a column; rows of all layers where it has one layer alone."""
    keys = [key for key in ("layer", "site", "same", "weight") if key in found and key in other]
    return found.merge(other[[*keys, "excess"]].rename(columns={"excess": column}), how="left", on=keys)


def _by_hash(
    recording: Recording, stack: RouterStack, found: pd.DataFrame, labels: PairLabels, settings: Settings
) -> pd.DataFrame:
    """The rows of the stack's layers, with the excess of a hash of the token id as router."""
    alone, clusters = RouterStack(stack.routers[:1], stack.n_experts, stack.top_k), design(recording)
    views = [routed_by_token(recording, stack.routers[0], seed=seed) for seed in range(settings.n_seeds)]
    drawn = [_of_layers(view, alone, clusters, labels.of_view(view), settings.level)[0] for view in views]
    mean = pd.concat(drawn).groupby(["same", "weight"], sort=False)["excess"].mean().reset_index()
    return _beside(found.merge(stack.labels()), mean, "hashed")


def _ceiling(recording: Recording, again: Recording) -> pd.DataFrame:
    """The share of experts that a token keeps when the same text is recorded again, by layer."""
    frames = []
    for stack in router_stacks(recording):
        kept_L, tokens = np.zeros(len(stack.routers)), 0
        for mine, theirs in side_by_side(recording, again, stack, stack):
            tokens += len(mine.row_T)
            for i, (bits_TW, other_TW) in enumerate(zip(mine.bits_LTW, theirs.bits_LTW, strict=True)):
                kept_L[i] += agreement.saturation(bits_TW, other_TW, top_k=stack.top_k).sum()
        frames.append(stack.labels().assign(ceiling=kept_L / tokens))
    return pd.concat(frames, ignore_index=True)


def _of_layers(
    recording: Recording, stack: RouterStack, clusters: Clusters, labels: PairLabels, level: float
) -> tuple[pd.DataFrame, str]:
    n_layers, n_documents, n_experts = len(stack.routers), recording.n_documents, stack.n_experts
    names = [f"{prefix(router, recording.topology)}.ids" for router in stack.routers]
    counts = [[np.zeros((len(labels.tokens[i]), n_experts), dtype=np.int32) for i in PAIRED] for _ in names]
    for chunk, ids_LTK in labels.chunks(names):
        first_N = chunk.first_of_token()
        domains_N = np.diff(first_N, append=len(chunk.token_and_domain.present_N))
        for of_kind, ids_TK in zip(counts, ids_LTK, strict=True):
            by_domain_TK = ids_TK.take(chunk.order_T, axis=0)
            by_domain = agreement.label_counts(by_domain_TK, chunk.token_and_domain, n_experts=n_experts)
            _add(of_kind[TOKEN_AND_DOMAIN], chunk.token_and_domain.present_N, by_domain)
            # tokens alone are tokens and domains, added up
            for nth in range(labels.n_domains):
                these = np.flatnonzero(domains_N > nth)
                _add(of_kind[TOKEN], chunk.token.present_N[these], by_domain[first_N[these] + nth])
            by_place = agreement.label_counts(ids_TK, chunk.place, n_experts=n_experts)
            _add(of_kind[PLACE], chunk.place.present_N, by_place)
    overlap, pairs = (np.zeros((len(SAME), n_layers, n_documents, len(WEIGHTS))) for _ in range(2))
    for chunk, ids_LTK in labels.chunks(names):
        pairs_3Dx = [
            agreement.pair_numbers(found, labels.tokens[i], weight_Vx=labels.weights[i])[labels.rank_D]
            for i, found in enumerate(chunk.kinds)
        ]
        for layer, ids_TK in enumerate(ids_LTK):
            ordered_TK = ids_TK.take(chunk.order_T, axis=0)
            within_P = agreement.overlap_within(ordered_TK, chunk.token, n_experts=n_experts)
            for i, found in enumerate(chunk.kinds):
                sums_Dx = agreement.pair_overlap(
                    ids_TK if i == PLACE else ordered_TK,
                    found,
                    counts_VE=counts[layer][i],
                    weight_Vx=labels.weights[i],
                    within_P=None if i == PLACE else within_P,
                )
                overlap[i, layer] += sums_Dx[labels.rank_D]
                pairs[i, layer] += pairs_3Dx[i]
    counts_DLE = stack.stacked(recording, "counts")
    for layer in range(n_layers):
        sums = agreement.document_pair_sums(
            counts_DLE[:, layer], clusters.domain_D, weight_Vx=labels.weights[DOMAIN], top_k=stack.top_k
        )
        overlap[DOMAIN, layer], pairs[DOMAIN, layer] = sums.overlap_Dx, sums.pairs_Dx
    rows, note = [], ""
    several = len({router.site for router in recording.topology.routers}) > 1
    for layer, router in enumerate(stack.routers):
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        counts_DE = counts_DLE[:, layer]
        matched = agreement.load_matched_agreement(counts_DE.sum(0), counts_DE.sum(0), top_k=stack.top_k)
        for i, same in enumerate(SAME):
            if labels.n_domains == 1 and "domain" in same:
                continue  # all pairs have it in common
            if i == PLACE and not labels.places_known:
                continue
            once = agreement.PairSums(overlap[i, layer, :, 0], pairs[i, layer, :, 0])
            other = agreement.other_pair_sums(counts_DE, once, top_k=stack.top_k)
            for w, weight in enumerate(WEIGHTS):
                sums = agreement.PairSums(overlap[i, layer, :, w], pairs[i, layer, :, w])
                value, others = (agreement.agreement_rate(each, top_k=stack.top_k) for each in (sums, other))
                excess = agreement.same_token_agreement(sums, other, top_k=stack.top_k, clusters=clusters, level=level)
                note = excess.note
                rows.append(
                    about
                    | {
                        "same": same,
                        "weight": weight,
                        "value": float(value),
                        "others": float(others),
                        "excess": float(excess.value),
                        "low": float(excess.low),
                        "high": float(excess.high),
                        "load_matched": float(matched),
                        "pairs": int(once.pairs_Dx.sum() // 2),
                    }
                )
    return pd.DataFrame(rows), note


def _add(counts_VE: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> None:
    """Adds to distinct rows, in the quick way where they are all."""
    if len(rows) == len(counts_VE):
        counts_VE += counts
    else:
        counts_VE[rows] += counts


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`agreement`."""
    return {"agreement": result.agreement}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer`, what each thing in common adds beside what it adds for the controls, each token counted once."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    once = result.agreement[result.agreement["weight"] == "tokens"]
    of_token = once[once["same"] == "token"]
    first, last = of_token.iloc[0], of_token.iloc[-1]
    missing = f"{result.unpaired:,} of {result.tokens:,} tokens are of ids that one document alone has, and in no pair."
    kept = ""
    if "ceiling" in of_token:
        least, most = of_token["ceiling"].min(), of_token["ceiling"].max()
        kept = f" Recorded again, a token keeps {least:.1%} to {most:.1%} of its experts.".replace("%", " %")
    keys = [key for key in ("layer", "site", "same") if key in once]
    return {
        "by_layer": Lines(
            as_lines(once, {"excess": "model"} | NAMES, by=keys, line="router", value="shown").assign(nothing=0.0),
            "layer",
            "shown",
            group="router",
            panel="same",
            low="low",
            high="high",
            null="nothing",
            null_label="nothing in common matters",
            interval_label=level,
            shared_y=False,
            title="Agreement of tokens with something in common",
            x_label="layer",
            y_label="share of experts, over other pairs",
            caption="Share of experts that two tokens of different documents have in common when they have the same "
            f"token id (and domain), position, or domain, less that share for pairs that do not ({result.sample}); "
            "each token counts once. Beside it a router that is a hash of the token id, which agrees on every token "
            f"id, and on places and domains by their words alone.{kept} {missing} {level}: U-statistic over pairs of "
            f"documents, t. {result.control} {result.note}".strip(),
            alt=f"Tokens with the same id agree by {first['excess']:.2f} more than others at layer {first['layer']} "
            f"and by {last['excess']:.2f} at layer {last['layer']}; with a hash of the id {first['hashed']:.2f}.",
        )
    }
