"""The tokens of a recording as one expert sees them: where it was chosen, beside which, and what their ids make of it.

Used by `expert_card`. Axes: T tokens, N tokens that choose the expert, K chosen per token, M domains.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.metrics.clusters import Clusters
from workbench.metrics.vocabulary import rate_elsewhere
from workbench.recording import Recording
from workbench.recording_schema import prefix


@dataclass(frozen=True, eq=False)
class ExpertTokens:
    """Where the expert was chosen, with what weight (NaN where not; 1 where none were recorded), and beside which."""

    document_T: np.ndarray
    position_T: np.ndarray
    token_T: np.ndarray
    chosen_T: np.ndarray
    weight_T: np.ndarray
    ids_NK: np.ndarray


def rows_of(documents: pd.DataFrame, document_T: np.ndarray) -> np.ndarray:
    """Each token's document as a row of `documents`."""
    row_of = np.empty(int(documents["document"].max()) + 1, dtype=np.int64)
    row_of[documents["document"]] = np.arange(len(documents))
    return row_of[document_T]


def read_tokens(recording: Recording, layer: int, expert: int) -> ExpertTokens:
    """Part by part, each opened once, and of ids and weights only this expert's tokens' kept."""
    at = prefix(recording.router(layer), recording.topology)
    names = ["document", "position", "token"]
    weights = [f"{at}.weights"] if recording.has("weights") else []
    read = []
    for part in recording.parts([*names, f"{at}.ids", *weights]):
        mine_TK = part[f"{at}.ids"] == expert
        chosen_T = mine_TK.any(axis=1)
        weights_TK = part[weights[0]].astype(np.float32) if weights else np.float32(1)
        weight_T = np.where(mine_TK, weights_TK, 0).sum(axis=1)
        read.append([*(part[name] for name in names), chosen_T, np.where(chosen_T, weight_T, np.nan)])
        read[-1].append(part[f"{at}.ids"][chosen_T])
    return ExpertTokens(*(np.concatenate(column) for column in zip(*read, strict=True)))


def by_token(tokens: ExpertTokens, row_T: np.ndarray, clusters: Clusters) -> pd.DataFrame:
    """What the domains' words make of the expert's rate, by domain."""
    rate_T = rate_elsewhere(tokens.token_T, tokens.chosen_T, cluster_T=clusters.cluster_D[row_T])
    unseen_T, domain_T, n = np.isnan(rate_T), clusters.domain_D[row_T], len(clusters.domains)
    rate_T = np.where(unseen_T, tokens.chosen_T.mean(), rate_T)
    tokens_M = np.maximum(np.bincount(domain_T, minlength=n), 1)
    return pd.DataFrame(
        {
            "domain": clusters.domains,
            "by_token": np.bincount(domain_T, rate_T, n) / tokens_M,
            "unseen": np.bincount(domain_T, unseen_T, n) / tokens_M,
        }
    )
