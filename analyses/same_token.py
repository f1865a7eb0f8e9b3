"""Is routing by token: how alike do two occurrences of one token route, in documents that share nothing else?

Not shown: what else the occurrences have in common. The words around a token are often alike too, so a router that
reads the context can agree on it: agreement by token is what the token id and all that goes with it tell. Pairs are of
different documents, so a document's own preferences do not enter; domains do.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._chunks import Chunk, PerChunk, chunks
from analyses._inputs import RouterStack, design, require, router_stacks, sample_words
from analyses._tokens import document_rows
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import agreement
from workbench.metrics.clusters import Clusters
from workbench.recording import Recording
from workbench.recording_schema import prefix

NEEDS = ("routing",)
SAME = ("token", "token and domain", "position", "domain")
_TOKEN, _TOKEN_AND_DOMAIN, _PLACE, _DOMAIN = range(len(SAME))
_PAIRED = (_TOKEN, _TOKEN_AND_DOMAIN, _PLACE)
WEIGHTS = ("pairs", "tokens")
_CELLS = 1 << 24  # of the tables of labels and experts held at once: 64 MB


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
    labels = _Labels(recording, clusters)
    frames = []
    for stack in router_stacks(recording):
        step = max(1, _CELLS // (labels.n_rows * stack.n_experts))
        for start in range(0, len(stack.routers), step):
            some = RouterStack(stack.routers[start : start + step], stack.n_experts, stack.top_k)
            frames.append(_of_layers(recording, some, clusters, labels, settings.level))
    return Result(
        agreement=pd.concat([frame for frame, _ in frames], ignore_index=True),
        sample=sample_words(recording),
        unpaired=labels.unpaired,
        tokens=recording.n_tokens,
        level=settings.level,
        note=frames[0][1],
    )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The labels of a chunk's tokens, in `_PAIRED`'s order."""

    order_T: np.ndarray
    """Rows of the tokens whose id two documents have, by id, then by domain, then by document."""
    token: agreement.Labels
    token_and_domain: agreement.Labels
    """Of the same cells, since a document is of one domain."""
    place: agreement.Labels

    @property
    def kinds(self) -> tuple[agreement.Labels, ...]:
        return self.token, self.token_and_domain, self.place

    def first_of_token(self) -> np.ndarray:
        """The first label of token and domain of each token that occurs."""
        label_P = self.token.cell_label_P
        first_P = np.flatnonzero(np.diff(label_P, prepend=-1))
        return self.token_and_domain.cell_label_P[first_P]

    @property
    def nbytes(self) -> int:
        return self.order_T.nbytes + sum(each.nbytes for each in self.kinds)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The numbers of what tokens can have in common: ids that two documents have, these by domain, and places."""

    row_of: np.ndarray
    rank_D: np.ndarray
    """Each document's place when those of one domain stand together."""
    domain_D: np.ndarray
    id_of: np.ndarray
    """Of each token id; −1 where one document alone has it."""
    pair_of: np.ndarray
    """Of each id and domain, flat."""
    sizes: tuple[int, int, int, int]
    """Of each kind of `SAME`."""
    unpaired: int

    @classmethod
    def of(cls, recording: Recording, clusters: Clusters) -> "_Numbers":
        ids = recording.vocabulary["token"].to_numpy()
        row_of, domain_D, n_domains = document_rows(recording), clusters.domain_D, len(clusters.domains)
        tokens_VM = np.zeros((int(ids.max()) + 1, n_domains), dtype=np.int64)
        documents_V, longest = np.zeros(len(tokens_VM), dtype=np.int64), 0
        for chunk in chunks(recording, ["token"]):
            token_T, row_T = chunk["token"].astype(np.int64), row_of[chunk["document"]]
            tokens_VM += np.bincount(token_T * n_domains + domain_D[row_T], minlength=tokens_VM.size).reshape(
                tokens_VM.shape
            )
            in_document = np.unique(token_T * len(domain_D) + row_T) // len(domain_D)
            documents_V += np.bincount(in_document, minlength=len(documents_V))
            longest = max(longest, int(chunk["position"].max()) + 1)
        shared_V = documents_V > 1
        id_of = np.where(shared_V, np.cumsum(shared_V) - 1, -1)
        paired = ((tokens_VM > 0) & shared_V[:, None]).ravel()
        rank_D = np.empty(len(domain_D), dtype=np.int64)
        rank_D[np.argsort(domain_D, kind="stable")] = np.arange(len(domain_D))
        sizes = int(shared_V.sum()), int(paired.sum()), longest, n_domains
        return cls(row_of, rank_D, domain_D, id_of, np.cumsum(paired) - 1, sizes, int(tokens_VM[~shared_V].sum()))

    def chunk(self, chunk: Chunk) -> _Chunk:
        """The labels of a chunk's tokens."""
        row_T = self.row_of[chunk["document"]]
        token_T, n_domains = chunk["token"].astype(np.int64), self.sizes[_DOMAIN]
        order_T = np.flatnonzero(self.id_of[token_T] >= 0)
        # documents by rank stand domain by domain, so that both kinds have one order
        order_T = order_T[np.argsort(token_T[order_T] * len(self.rank_D) + self.rank_D[row_T[order_T]])]
        token_T, row_of_T = token_T[order_T], row_T[order_T]
        pair_T = self.pair_of[token_T * n_domains + self.domain_D[row_of_T]]
        found = [
            agreement.labels(label_T, self.rank_D[rows_T], n_labels=size, n_documents=len(self.rank_D))
            for label_T, rows_T, size in (
                (self.id_of[token_T], row_of_T, self.sizes[_TOKEN]),
                (pair_T, row_of_T, self.sizes[_TOKEN_AND_DOMAIN]),
                (chunk["position"].astype(np.int64), row_T, self.sizes[_PLACE]),
            )
        ]
        return _Chunk(order_T.astype(np.int32), *found)


class _Labels:
    """The labels of all tokens, the same for every layer.

    Attributes:
        chunks: Of each chunk its labels, with the columns that are asked for.
        n_domains: M.
        n_rows: Labels whose choices are counted, in all.
        unpaired: Tokens whose id is in one document only.
        tokens: Of each kind of `SAME`, tokens of each label, of which two documents have the id.
        weights: Of the pairs of each label, in the order of `WEIGHTS`.
    """

    def __init__(self, recording: Recording, clusters: Clusters) -> None:
        self._numbers = _Numbers.of(recording, clusters)
        self.chunks = PerChunk(recording, ["document", "position", "token"], self._numbers.chunk)
        self.n_domains, self.n_rows = len(clusters.domains), sum(self._numbers.sizes)
        self.unpaired, self.rank_D = self._numbers.unpaired, self._numbers.rank_D
        self.tokens, squares = ([np.zeros(n, dtype=np.int64) for n in self._numbers.sizes] for _ in range(2))
        tokens_D = recording.column("tokens", table="documents").astype(np.int64)
        np.add.at(self.tokens[_DOMAIN], clusters.domain_D, tokens_D)
        np.add.at(squares[_DOMAIN], clusters.domain_D, tokens_D**2)
        for chunk, _ in self.chunks([]):
            for i, found in enumerate(chunk.kinds):
                self.tokens[i][found.present_N] += found.tokens_N
                squares[i][found.present_N] += found.squares_N
        self.weights = [
            np.stack([np.ones(len(tokens)), agreement.token_weights(tokens, each)], axis=1)
            for tokens, each in zip(self.tokens, squares, strict=True)
        ]


def _of_layers(
    recording: Recording, stack: RouterStack, clusters: Clusters, labels: _Labels, level: float
) -> tuple[pd.DataFrame, str]:
    n_layers, n_documents, n_experts = len(stack.routers), recording.n_documents, stack.n_experts
    names = [f"{prefix(router, recording.topology)}.ids" for router in stack.routers]
    counts = [[np.zeros((len(labels.tokens[i]), n_experts), dtype=np.int32) for i in _PAIRED] for _ in names]
    for chunk, ids_LTK in labels.chunks(names):
        first_N = chunk.first_of_token()
        domains_N = np.diff(first_N, append=len(chunk.token_and_domain.present_N))
        for of_kind, ids_TK in zip(counts, ids_LTK, strict=True):
            by_domain_TK = ids_TK.take(chunk.order_T, axis=0)
            by_domain = agreement.label_counts(by_domain_TK, chunk.token_and_domain, n_experts=n_experts)
            _add(of_kind[_TOKEN_AND_DOMAIN], chunk.token_and_domain.present_N, by_domain)
            # tokens alone are tokens and domains, added up
            for nth in range(labels.n_domains):
                these = np.flatnonzero(domains_N > nth)
                _add(of_kind[_TOKEN], chunk.token.present_N[these], by_domain[first_N[these] + nth])
            by_place = agreement.label_counts(ids_TK, chunk.place, n_experts=n_experts)
            _add(of_kind[_PLACE], chunk.place.present_N, by_place)
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
                    ids_TK if i == _PLACE else ordered_TK,
                    found,
                    counts_VE=counts[layer][i],
                    weight_Vx=labels.weights[i],
                    within_P=None if i == _PLACE else within_P,
                )
                overlap[i, layer] += sums_Dx[labels.rank_D]
                pairs[i, layer] += pairs_3Dx[i]
    counts_DLE = stack.stacked(recording, "counts")
    for layer in range(n_layers):
        sums = agreement.document_pair_sums(
            counts_DLE[:, layer], clusters.domain_D, weight_Vx=labels.weights[_DOMAIN], top_k=stack.top_k
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
