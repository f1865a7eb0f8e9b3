"""The tokens of a recording as one expert sees them: where it was chosen, beside which, and what their ids make of it.

Used by `expert_card`. Of a token that does not choose the expert one bit is held. Axes: T tokens of a part, N tokens
that choose the expert, K chosen per token, V token ids, M domains.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.order import place, text_columns
from analyses.read.tokens import document_rows
from workbench.metrics.vocabulary import rate_elsewhere
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters


@dataclass(frozen=True, eq=False)
class ExpertTokens:
    """Where the expert was chosen.

    Attributes:
        document_N: Document number of each token that chooses it, rows as they stand.
        place_N: Position in the document, or the rank of the row where positions are not known.
        weight_N: Its routing weight; 1 where none were recorded.
        ids_NK: The token's experts.
        row_N: Row of the document in the documents table.
        count_V: Occurrences of each id.
        chosen_V: Those that choose it.
    """

    document_N: np.ndarray
    place_N: np.ndarray
    weight_N: np.ndarray
    ids_NK: np.ndarray
    row_N: np.ndarray
    count_V: np.ndarray
    chosen_V: np.ndarray
    _recording: Recording
    _row_of: np.ndarray
    _chosen_bits: list[np.ndarray]

    @property
    def rate(self) -> float:
        """Share of all tokens that choose it."""
        return float(self.chosen_V.sum() / self.count_V.sum())

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of all tokens, part by part: the row of their document, their id, and whether they choose it."""
        for part, bits in zip(self._recording.parts(["document", "token"]), self._chosen_bits, strict=True):
            chosen_T = np.unpackbits(bits, count=len(part["token"])).astype(bool)
            yield self._row_of[part["document"]], part["token"], chosen_T


def read_tokens(recording: Recording, layer: int, expert: int) -> ExpertTokens:
    """Part by part, each opened once, and of ids and weights only this expert's tokens' kept."""
    at = prefix(recording.router(layer), recording.topology)
    weights = [f"{at}.weights"] if recording.has("weights") else []
    n_ids, row_of = int(recording.vocabulary["token"].max()) + 1, document_rows(recording)
    count_V, chosen_V, bits = np.zeros(n_ids, dtype=np.int64), np.zeros(n_ids, dtype=np.int64), []
    read: list[list[np.ndarray]] = []
    for part in recording.parts([*text_columns(recording), "token", f"{at}.ids", *weights]):
        mine_TK = part[f"{at}.ids"] == expert
        chosen_T = mine_TK.any(axis=1)
        rows = np.flatnonzero(chosen_T)
        weight_N = part[weights[0]][rows][mine_TK[rows]] if weights else np.ones(len(rows))
        row_N = row_of[part["document"][rows]]
        where = [part["document"][rows], place(part)[rows]]
        read.append([*where, weight_N.astype(np.float32), part[f"{at}.ids"][rows], row_N])
        count_V += np.bincount(part["token"], minlength=n_ids)
        chosen_V += np.bincount(part["token"][rows], minlength=n_ids)
        bits.append(np.packbits(chosen_T))
    document_N, place_N, weight_N, ids_NK, row_N = (np.concatenate(column) for column in zip(*read, strict=True))
    return ExpertTokens(document_N, place_N, weight_N, ids_NK, row_N, count_V, chosen_V, recording, row_of, bits)


def by_token(tokens: ExpertTokens, clusters: Clusters) -> pd.DataFrame:
    """What the domains' words make of the expert's rate, by domain."""
    n = len(clusters.domains)
    tokens_M, rate_M, unseen_M = np.zeros(n), np.zeros(n), np.zeros(n)
    for row_T, token_T, chosen_T in _whole_clusters(tokens, clusters):
        of_all_2V = tokens.count_V, tokens.chosen_V
        rate_T = rate_elsewhere(token_T, chosen_T, cluster_T=clusters.cluster_D[row_T], of_all_2V=of_all_2V)
        unseen_T, domain_T = np.isnan(rate_T), clusters.domain_D[row_T]
        tokens_M += np.bincount(domain_T, minlength=n)
        rate_M += np.bincount(domain_T, np.where(unseen_T, tokens.rate, rate_T), n)
        unseen_M += np.bincount(domain_T, unseen_T, n)
    tokens_M = np.maximum(tokens_M, 1)
    return pd.DataFrame({"domain": clusters.domains, "by_token": rate_M / tokens_M, "unseen": unseen_M / tokens_M})


def _whole_clusters(tokens: ExpertTokens, clusters: Clusters) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`ExpertTokens.parts`, but a cluster whose documents stand in several parts comes with the last."""
    parts_U = np.zeros(clusters.n_clusters, dtype=np.int64)
    for row_T, _, _ in tokens.parts():
        here_D = np.zeros(len(clusters.cluster_D), dtype=bool)
        here_D[row_T] = True
        parts_U[np.unique(clusters.cluster_D[here_D])] += 1
    alone_D = (parts_U == 1)[clusters.cluster_D]
    held = []
    for row_T, token_T, chosen_T in tokens.parts():
        alone_T = alone_D[row_T]
        held.append((row_T[~alone_T], token_T[~alone_T], chosen_T[~alone_T]))
        yield row_T[alone_T], token_T[alone_T], chosen_T[alone_T]
    rows, ids, chosen = zip(*held, strict=True)
    yield np.concatenate(rows), np.concatenate(ids), np.concatenate(chosen)
