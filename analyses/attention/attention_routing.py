"""Do tokens that attend to the first key, nearby, or far choose other experts?

Not shown: that attention causes the choice. Tokens are split at the median of their own document and range of
positions, so neither documents nor positions can make the difference; what the token itself is still can. The weights
are means over the heads of the layer, and one head may matter where the mean does not.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.attention import _statistics
from analyses.read.chunks import Chunk, chunks
from analyses.read.design import design, require, sample_words
from analyses.read.tokens import check_draws, document_rows, p_value
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import attention, vocabulary
from workbench.metrics.attention import BIN_EDGES
from workbench.metrics.sets import keyed_hash
from workbench.metrics.vocabulary import count_cells
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import attention_prefix, prefix
from workbench.statistics.jackknife import Bags, bag_interval, deal

INPUT = "recording"
NEEDS = ("routing", "attention", "attention-tokens")
METRICS = (
    attention.by_bin,
    attention.query_statistics,
    attention.repeated_scores,
    attention.sink_windows,
    vocabulary.count_cells,
)
SPLITS = {"first": "weight of the first key", "local32": "weight of the last 32 keys", "distance": "mean distance"}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        n_draws: Permutations of the tokens within document and range of positions.
        level: Coverage of the intervals.
        seed: Of the permutations and of ties.
    """

    n_draws: int = 20
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Overlap of chosen sets, of tokens that attend alike and of others.

    Attributes:
        layers: One row per layer and split: `same` and `other`, the mean share of experts in common of two tokens of
            different documents on the same and on different sides; `value`, their difference, with `low` and `high`;
            `permuted`, its mean when tokens are permuted, `permuted_high` and `p`; the `tokens` split, and those
            `left_out` (alone in their range, or in its middle).
        sample: The sample in words.
        level: Coverage of the intervals.
        n_draws: Permutations.
        note: Why intervals are missing, if they are.
    """

    layers: pd.DataFrame
    sample: str
    level: float
    n_draws: int
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Splits tokens by where they attend, and compares the experts of the two sides.

    Raises:
        AnalysisError: the recording holds no routing or attention of single tokens, no layer has both, or `n_draws` is
            under 1.
    """
    require(recording, NEEDS, "attention_routing", columns=("ids", "position"))
    check_draws("attention_routing", settings.n_draws)
    attends = {facts["layer"] for facts in _statistics.covered(recording)}
    routers = [router for router in recording.topology.routers if router.layer in attends]
    if not routers:
        raise AnalysisError("attention_routing: no layer has both a router and recorded attention.")
    several = len({router.site for router in routers}) > 1
    bags, row_of = deal(design(recording)), document_rows(recording)
    rows = []
    for router in routers:
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        for name, words in SPLITS.items():
            counted = _count(recording, router, name, _Places(bags, row_of), settings)
            rows.append(about | {"split": words} | _row(counted, router, bags, settings.level))
    return Result(
        layers=pd.DataFrame(rows),
        sample=sample_words(recording),
        level=settings.level,
        n_draws=settings.n_draws,
        note=bags.note,
    )


@dataclass(frozen=True, eq=False)
class _Counted:
    """Assignments of documents, sides (0 low, 1 high) and experts, summed as pairs of documents need them.

    Attributes:
        sums: Of each bag its totals [G, sides, 1 + E], tokens first, as they were and, after them, as drawn.
        squares: Σ over documents of the products within one, [1 + B, G, 2, 2, 2]: of experts, and of tokens.
        left_out: Tokens on no side.
    """

    sums: np.ndarray
    squares: np.ndarray
    left_out: int


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the documents stand: their bags, and their rows by number."""

    bags: Bags
    row_of: np.ndarray


def _count(recording: Recording, router: Router, split: str, places: _Places, settings: Settings) -> _Counted:
    ids = f"{prefix(router, recording.topology)}.ids"
    value = f"{attention_prefix(router.layer, recording.topology)}.{split}"
    bags = places.bags
    shape = (1 + settings.n_draws, bags.n_bags)
    sums = np.zeros((*shape, 2, 1 + router.n_experts))
    squares = np.zeros((*shape, 2, 2, 2))
    left_out = 0
    for chunk in chunks(recording, [ids, value]):
        row_T = places.row_of[chunk["document"]]
        inside, local_T = np.unique(row_T, return_inverse=True)
        value_T = chunk[value].astype(np.float32).mean(axis=1)
        for draw in range(1 + settings.n_draws):
            side_T = _sides(chunk, value_T if draw == 0 else None, seed=settings.seed, draw=draw)
            cell_T = np.where(side_T < 0, -1, 2 * local_T + side_T)
            counted = count_cells(cell_T, chunk[ids], n_labels=2 * len(inside), n_experts=router.n_experts)
            tokens = np.bincount(cell_T[cell_T >= 0], minlength=2 * len(inside))
            of_documents = np.concatenate([tokens[:, None], counted], axis=1).reshape(len(inside), 2, -1).astype(float)
            np.add.at(sums[draw], bags.bag_D[inside], of_documents)
            experts, each = of_documents[..., 1:], of_documents[..., 0]
            products = np.stack([experts @ experts.swapaxes(1, 2), each[:, :, None] * each[:, None, :]], axis=1)
            np.add.at(squares[draw], bags.bag_D[inside], products)
            left_out += int((side_T < 0).sum()) if draw == 0 else 0
    return _Counted(sums, squares, left_out)


def _sides(chunk: Chunk, value_T: np.ndarray | None, *, seed: int, draw: int) -> np.ndarray:
    """The lower and the upper half of each document and range of positions: 0, 1, and −1 for a token in the middle.

    Without values the halves are drawn at random, which is the permutation of tokens within document and range.
    """
    document_T, position_T = chunk["document"].astype(np.int64), chunk["position"].astype(np.int64)
    bin_T = np.searchsorted(np.array(BIN_EDGES), position_T, side="right")
    cell_T = document_T * (len(BIN_EDGES) + 1) + bin_T
    tie_T = keyed_hash(document_T, position_T, seed=seed + draw)
    order_T = np.lexsort((tie_T, cell_T) if value_T is None else (tie_T, value_T, cell_T))
    ordered_T = cell_T[order_T]
    begin_T = np.searchsorted(ordered_T, ordered_T, side="left")
    size_T = np.searchsorted(ordered_T, ordered_T, side="right") - begin_T
    rank_T = np.arange(len(ordered_T)) - begin_T
    side_T = np.full(len(ordered_T), -1, dtype=np.int64)
    side_T[order_T] = np.where(rank_T < size_T // 2, 0, np.where(rank_T >= size_T - size_T // 2, 1, -1))
    return side_T


def _row(counted: _Counted, router: Router, bags: Bags, level: float) -> dict:
    n_experts = router.n_experts

    def parts(sums_x2E: np.ndarray, squares_x222: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean overlap over pairs of different documents, of tokens on one side and of tokens on two."""
        experts_x2E, tokens_x2 = sums_x2E[..., 1:], sums_x2E[..., 0]
        met_x22 = experts_x2E @ experts_x2E.swapaxes(-1, -2) - squares_x222[..., 0, :, :]
        pairs_x22 = tokens_x2[..., :, None] * tokens_x2[..., None, :] - squares_x222[..., 1, :, :]
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap_x22 = met_x22 / pairs_x22 / router.top_k
        return (overlap_x22[..., 0, 0] + overlap_x22[..., 1, 1]) / 2, overlap_x22[..., 0, 1]

    def difference(packed: np.ndarray) -> np.ndarray:
        same, other = parts(
            packed[..., : 2 * (1 + n_experts)].reshape(*packed.shape[:-1], 2, 1 + n_experts),
            packed[..., 2 * (1 + n_experts) :].reshape(*packed.shape[:-1], 2, 2, 2),
        )
        return same - other

    packed = np.concatenate(
        [counted.sums.reshape(*counted.sums.shape[:2], -1), counted.squares.reshape(*counted.squares.shape[:2], -1)], -1
    )
    interval = bag_interval(difference, packed[0], bags=bags, level=level, corrected=False)
    same, other = parts(counted.sums[0].sum(axis=0), counted.squares[0].sum(axis=0))
    drawn_B = difference(packed[1:].sum(axis=1))
    return {
        "same": float(same),
        "other": float(other),
        "value": float(interval.value),
        "low": float(interval.low),
        "high": float(interval.high),
        "permuted": float(drawn_B.mean()),
        "permuted_high": float(np.quantile(drawn_B, 0.95)),
        "p": float(p_value(np.asarray(interval.value), drawn_B)),
        "tokens": int(counted.sums[0, ..., 0].sum()),
        "left_out": counted.left_out,
    }


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`."""
    return {"layers": result.layers}


def figures(result: Result) -> dict[str, Figure]:
    """`overlap`: what attending alike adds to the overlap of chosen sets, by layer and split.

    Raises:
        AnalysisError: there are no two documents to compare.
    """
    if not result.layers["value"].notna().any():
        raise AnalysisError("attention_routing: overlaps are of tokens of different documents, and there is only one.")
    level = f"{result.level:.0%} interval".replace("%", " %")
    most = result.layers.nlargest(1, "value").iloc[0]
    beyond = int((result.layers["p"] <= 0.05).sum())
    return {
        "overlap": Lines(
            result.layers,
            "layer",
            "value",
            group="split",
            low="low",
            high="high",
            interval_label=level,
            null="permuted",
            null_label="tokens permuted",
            title="Attention and the choice of experts",
            x_label="layer",
            y_label="overlap, same less other side",
            hover=("same", "other", "p", "tokens"),
            caption="Mean share of experts that two tokens of different documents have in common, where both attend "
            "more (or both less) than the middle token of their document and range of positions, less where one does "
            f"and the other does not ({result.sample}). Null: tokens permuted within document and range, mean of "
            f"{result.n_draws}; {beyond} of {len(result.layers)} are beyond 19 of 20. {level}: jackknife over bags of "
            f"documents. {result.note}".strip(),
            alt=f"Most at layer {most['layer']} by {most['split']}: {most['value']:.4f}.",
        )
    }
