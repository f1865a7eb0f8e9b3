"""Is routing by token: how alike do two occurrences of one token route, in documents that share nothing else?

Not shown: what else the occurrences have in common. The words around a token are often alike too, so a router that
reads the context can agree on it: agreement by token is what the token id and all that goes with it tell. Pairs are of
different documents, so a document's own preferences do not enter; domains do.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._inputs import RouterStack, design, require, router_stacks, sample_words
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
        level: Coverage of the intervals.
    """

    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Agreement of pairs of tokens.

    Attributes:
        agreement: One row per layer, what the two tokens have in common (`same`) and what counts once (`weight`: each
            pair, or each token): mean share of experts in common `value`, that of pairs that do not have it in common
            `others`, their difference `excess` with `low` and `high`, the `load_matched` share Σp²/K, and the `pairs`.
            Where each token counts once, the others are still all pairs.
        sample: The sample in words.
        unpaired: Tokens whose id no other document has: they are in no pair of the same token.
        tokens: All tokens.
        level: Coverage of the intervals.
        note: Why intervals are missing, if they are.
    """

    agreement: pd.DataFrame
    sample: str
    unpaired: int
    tokens: int
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes sums over pairs in two passes: counts by label, then each document's part in the pairs.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no token ids, or no two documents.
    """
    require(recording, NEEDS, "same_token", columns=("ids", "token"))
    if recording.n_documents < 2:
        raise AnalysisError(
            f"same_token: {recording.path} has one document, and a pair is of two; record a corpus of several."
        )
    clusters = design(recording)
    labels = _Labels.of(recording, clusters)
    frames = []
    for stack in router_stacks(recording):
        step = max(1, _CELLS // (sum(labels.sizes) * stack.n_experts))
        for start in range(0, len(stack.routers), step):
            some = RouterStack(stack.routers[start : start + step], stack.n_experts, stack.top_k)
            frames.append(_of_layers(recording, some, clusters, labels, settings.level))
    return Result(
        agreement=pd.concat([frame for frame, _ in frames], ignore_index=True),
        sample=sample_words(recording),
        unpaired=labels.unpaired,
        tokens=int(labels.tokens[0].sum()),
        level=settings.level,
        note=frames[0][1],
    )


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
    for layer, router in enumerate(stack.routers):
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
                    {
                        "layer": router.layer,
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
    """`by_layer`, what each thing in common adds, each token counted once."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    once = result.agreement[result.agreement["weight"] == "tokens"]
    of_token = once[once["same"] == "token"]
    if of_token["excess"].isna().all():
        raise AnalysisError("same_token: no two documents have a token in common, so there is no pair to compare.")
    first, last = of_token.iloc[0], of_token.iloc[-1]
    missing = f"{result.unpaired:,} of {result.tokens:,} tokens are of ids that one document alone has, and in no pair."
    return {
        "by_layer": Lines(
            once[once["excess"].notna()],
            "layer",
            "excess",
            group="same",
            low="low",
            high="high",
            interval_label=level,
            title="Agreement of tokens with something in common",
            x_label="layer",
            y_label="share of experts, over other pairs",
            hover=("value", "others", "load_matched", "pairs"),
            caption="Share of experts that two tokens of different documents have in common when they have the same "
            f"token id (and domain), position, or domain, less that share for pairs that do not ({result.sample}); "
            "each token counts once. 0 if it has nothing to do with routing; routing by it alone would give nearly 1. "
            f"{missing} {level}: U-statistic over pairs of documents, t. {result.note}".strip(),
            alt=f"Tokens with the same id agree by {first['excess']:.2f} more than others at layer {first['layer']} "
            f"and by {last['excess']:.2f} at layer {last['layer']}.",
        )
    }


if __name__ == "__main__":
    main()
