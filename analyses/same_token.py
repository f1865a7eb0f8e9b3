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

from analyses._batch import main
from analyses._controls import NAMES, Controls, routed_by_token
from analyses._inputs import RouterStack, as_lines, design, require, router_stacks, sample_words
from analyses._pair import side_by_side
from analyses._tokens import Tokens, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import agreement
from workbench.metrics.clusters import Clusters
from workbench.recording import Recording

NEEDS = ("routing",)
SAME = ("token", "token and domain", "position", "domain")
_TOKEN, _TOKEN_AND_DOMAIN, _PLACE, _DOMAIN = range(len(SAME))
_COUNTED = (_TOKEN_AND_DOMAIN, _PLACE)  # the others follow: from these, or from the documents' counts
_PAIRED = (_TOKEN, _TOKEN_AND_DOMAIN, _PLACE)
WEIGHTS = ("pairs", "tokens")
_CELLS = 1 << 26  # of the tables of labels and experts held at once: 256 MB


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
        AnalysisError: the recording holds no routing of single tokens or no token ids, or no two documents;
            `n_seeds` is under 1, or a control does not fit.
    """
    require(recording, NEEDS, "same_token", columns=("ids", "token"))
    if recording.n_documents < 2:
        raise AnalysisError(
            f"same_token: {recording.path} has one document, and a pair is of two; record a corpus of several."
        )
    if settings.n_seeds < 1:
        raise AnalysisError(f"same_token: n_seeds is {settings.n_seeds}; 1 or more was wanted.")
    controls = Controls.of(recording, settings, "same_token")
    labels = _Labels.of(recording, design(recording))
    found, note = _found(recording, labels, settings.level)
    for column, other in controls.items():
        found = _beside(found, _found(other, labels, settings.level)[0], column)
    found = pd.concat([_by_hash(recording, stack, found, labels, settings) for stack in router_stacks(recording)])
    if "again" in controls.recordings:
        found = found.merge(_ceiling(recording, controls.recordings["again"]), how="left")
    return Result(
        agreement=found.reset_index(drop=True),
        sample=sample_words(recording),
        unpaired=labels.unpaired,
        tokens=int(labels.tokens[0].sum()),
        level=settings.level,
        note=note,
        control=controls.words,
    )


def _found(recording: Recording, labels: "_Labels", level: float) -> tuple[pd.DataFrame, str]:
    """The agreement of every layer, and why intervals are missing."""
    clusters, frames = design(recording), []
    for stack in router_stacks(recording):
        step = max(1, _CELLS // (sum(labels.sizes) * stack.n_experts))
        for start in range(0, len(stack.routers), step):
            some = RouterStack(stack.routers[start : start + step], stack.n_experts, stack.top_k)
            frames.append(_of_layers(recording, some, clusters, labels, level))
    return pd.concat([frame for frame, _ in frames], ignore_index=True), frames[0][1]


def _beside(found: pd.DataFrame, other: pd.DataFrame, column: str) -> pd.DataFrame:
    """The excess of a control as a column; rows of all layers where it has one layer alone."""
    keys = [key for key in ("layer", "site", "same", "weight") if key in found and key in other]
    return found.merge(other[[*keys, "excess"]].rename(columns={"excess": column}), how="left", on=keys)


def _by_hash(
    recording: Recording, stack: RouterStack, found: pd.DataFrame, labels: "_Labels", settings: Settings
) -> pd.DataFrame:
    """The rows of the stack's layers, with the excess of a hash of the token id as router."""
    alone, clusters = RouterStack(stack.routers[:1], stack.n_experts, stack.top_k), design(recording)
    drawn = [
        _of_layers(routed_by_token(recording, stack.routers[0], seed=seed), alone, clusters, labels, settings.level)[0]
        for seed in range(settings.n_seeds)
    ]
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


@dataclass(frozen=True, eq=False)
class _Labels:
    """What pairs can have in common: for each kind its number of labels, tokens of each, and Σ_d n² of each."""

    token_of: np.ndarray
    n_tokens: int
    n_domains: int
    sizes: tuple[int, ...]
    tokens: list[np.ndarray]
    squares: list[np.ndarray]

    @classmethod
    def of(cls, recording: Recording, clusters: Clusters) -> "_Labels":
        """Reads tokens and positions once, without any routing."""
        ids, longest = recording.vocabulary["token"].to_numpy(), 0
        token_of = np.zeros(int(ids.max()) + 1, dtype=np.int64)
        token_of[ids] = np.arange(len(ids))
        for positions in recording.parts(["position"]):
            longest = max(longest, int(positions["position"].max()) + 1)
        n_domains = len(clusters.domains)
        sizes = (len(ids), len(ids) * n_domains, longest, n_domains)
        empty = cls(token_of, len(ids), n_domains, sizes, [], [])
        tokens = [np.zeros(n, dtype=np.int64) for n in sizes]
        squares = [np.zeros(n, dtype=np.int64) for n in sizes]
        for part in token_parts(recording, RouterStack((), 1, 1), token=True):
            for i, found in enumerate(empty.in_part(part, clusters)):
                tokens[i][found.present_N] += found.tokens_N
                squares[i][found.present_N] += found.squares_N
        return cls(token_of, len(ids), n_domains, sizes, tokens, squares)

    def in_part(
        self, part: Tokens, clusters: Clusters, *, kinds: tuple[int, ...] = tuple(range(len(SAME)))
    ) -> list[agreement.Labels]:
        domain_T = clusters.domain_D[part.row_T]
        token_T = self.token_of[part.token_T]
        of_kind = (token_T, token_T * self.n_domains + domain_T, part.position_T, domain_T)
        return [
            agreement.labels(of_kind[i], part.row_T, n_labels=self.sizes[i], n_documents=len(clusters.domain_D))
            for i in kinds
        ]

    @property
    def unpaired(self) -> int:
        """Tokens whose id is in one document only."""
        alone_V = self.tokens[0] ** 2 == self.squares[0]
        return int(self.tokens[0][alone_V].sum())


def _of_layers(
    recording: Recording, stack: RouterStack, clusters: Clusters, labels: _Labels, level: float
) -> tuple[pd.DataFrame, str]:
    n_layers, n_documents = len(stack.routers), recording.n_documents
    n_domains = labels.n_domains
    by_domain, by_place = (np.zeros((n_layers, labels.sizes[i], stack.n_experts), dtype=np.int32) for i in _COUNTED)
    for part in token_parts(recording, stack, token=True):
        for of_kind, found in zip((by_domain, by_place), labels.in_part(part, clusters, kinds=_COUNTED), strict=True):
            for layer, ids_TK in enumerate(part.ids_LTK):
                of_kind[layer][found.present_N] += agreement.label_counts(ids_TK, found, n_experts=stack.n_experts)
    # tokens alone are tokens and domains, added up
    by_token = by_domain.reshape(n_layers, -1, n_domains, stack.n_experts).sum(axis=2, dtype=np.int32)
    counts = (by_token, by_domain, by_place)
    weights = [
        np.stack([np.ones(len(tokens)), agreement.token_weights(tokens, squares)], axis=1)
        for tokens, squares in zip(labels.tokens, labels.squares, strict=True)
    ]
    overlap, pairs = (np.zeros((len(SAME), n_layers, n_documents, len(WEIGHTS))) for _ in range(2))
    for part in token_parts(recording, stack, token=True):
        for i, found in enumerate(labels.in_part(part, clusters, kinds=_PAIRED)):
            for layer, ids_TK in enumerate(part.ids_LTK):
                sums = agreement.pair_sums(ids_TK, found, counts_VE=counts[i][layer], weight_Vx=weights[i])
                overlap[i, layer] += sums.overlap_Dx
                pairs[i, layer] += sums.pairs_Dx
    counts_DLE = stack.stacked(recording, "counts")
    for layer in range(n_layers):
        sums = agreement.document_pair_sums(
            counts_DLE[:, layer], clusters.domain_D, weight_Vx=weights[_DOMAIN], top_k=stack.top_k
        )
        overlap[_DOMAIN, layer], pairs[_DOMAIN, layer] = sums.overlap_Dx, sums.pairs_Dx
    rows, note = [], ""
    several = len({router.site for router in recording.topology.routers}) > 1
    for layer, router in enumerate(stack.routers):
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        counts_DE = counts_DLE[:, layer]
        matched = agreement.load_matched_agreement(counts_DE.sum(0), counts_DE.sum(0), top_k=stack.top_k)
        for i, same in enumerate(SAME):
            if labels.n_domains == 1 and "domain" in same:
                continue  # all pairs have it in common
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


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`agreement`."""
    return {"agreement": result.agreement}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer`, what each thing in common adds beside what it adds for the controls, each token counted once."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    once = result.agreement[result.agreement["weight"] == "tokens"]
    of_token = once[once["same"] == "token"]
    if of_token["excess"].isna().all():
        raise AnalysisError("same_token: no two documents have a token in common, so there is no pair to compare.")
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


if __name__ == "__main__":
    main()
