"""Does the routing change along the document, beyond what the documents themselves prefer?

Not shown: why. Documents begin alike (titles, openings), and only long ones reach late positions: the drift stands
beside sets permuted within documents, which keeps lengths and what each document prefers. What a text says first is
still in it, its words above all: a random hash of the token id as router shows how much of a drift they make, and a
recording of the untrained model, where one is given, what of it is not learned. The first token, which sees nothing
before it, stands apart from all of it. Positions of a model that reads documents joined end to end are not known here.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from analyses.read.chunks import Chunk, PerChunk, Shuffles
from analyses.read.controls import NAMES, NO_HASH, Controls, routed_by_token
from analyses.read.design import as_lines, design, in_bits, require, sample_words
from analyses.read.order import in_text_order
from analyses.read.tokens import check_draws, document_rows, p_value
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Lines
from workbench.metrics import load, specialization, vocabulary
from workbench.metrics.balance import jackknife_interval
from workbench.metrics.load import position_divergence, position_drift
from workbench.metrics.router import normalized_entropy
from workbench.metrics.vocabulary import count_cells
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import MIN_CLUSTERS, Clusters
from workbench.statistics.intervals import ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    load.document_counts,
    load.effective_experts,
    load.imbalance,
    load.load,
    load.position_divergence,
    load.position_drift,
    normalized_entropy,
    specialization.hash_router_counts,
    vocabulary.count_cells,
)
STARTS = (0, 1, 4, 16, 64, 256, 1024)  # first positions of the bins; the first token stands alone
_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        n_draws: Permutations of the sets within documents.
        untrained: Folder of a recording of the untrained model over the same corpus, as a control.
        ceiling: Folder of a recording of the same model again, in other batches or another dtype.
        n_seeds: Seeds of the hash router.
        level: Coverage of the intervals.
        seed: Of the permutations.
    """

    n_draws: int = 20
    untrained: str | None = None
    ceiling: str | None = None
    n_seeds: int = 3
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Routing by position.

    Attributes:
        drift: One row per layer, in bits: information between the range of positions (the first token left out) and a
            chosen expert, `value`, beside `permuted` (mean when sets are permuted within documents), `permuted_high`
            and `p`; `excess` is what is over it, with that of controls, each over its own permutations: `hashed`, a
            router that is a hash of the token id (mean of seeds; without it where no token ids are known), and where
            they are given the `untrained` router and the model `again`.
        positions: One row per layer and range of positions: tokens, `imbalance` of the load there (unbiased) with
            `low` and `high`, `effective_experts`, `divergence` of the load from that of all positions in bits, `excess`
            over the permuted ones, and the mean router `entropy` (over ln E) with its interval, where it was recorded.
        sample: The sample in words.
        level: Coverage of the intervals.
        n_draws: Permutations.
        note: Why intervals or controls are missing, if they are, and what the controls are.
    """

    drift: pd.DataFrame
    positions: pd.DataFrame
    sample: str
    level: float
    n_draws: int
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes load, entropy and drift by position.

    Raises:
        AnalysisError: the recording holds no routing of single tokens, a number of draws or seeds is
            under 1, or a control does not fit.
    """
    require(recording, NEEDS, "position", columns=("ids", "position"))
    check_draws("position", settings.n_draws)
    if settings.n_seeds < 1:
        raise AnalysisError(f"position: n_seeds is {settings.n_seeds}; 1 or more was expected.")
    controls = Controls.of(recording, settings, "position")
    clusters, row_of, shuffles = design(recording), document_rows(recording), Shuffles(settings.seed)
    known = recording.has("token")
    hashed: dict[tuple[int, int], float] = {}
    several = len({router.site for router in recording.topology.routers}) > 1
    drift, positions = [], []
    places = _places(recording, row_of)
    others = {
        name: (other, _places(other, document_rows(other)), Shuffles(settings.seed)) for name, other in controls.items()
    }
    for router in recording.topology.routers:
        counted = _count(recording, router, places, shuffles, n_draws=settings.n_draws)
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        beside = {}
        if known:
            shape = router.n_experts, router.top_k
            if shape not in hashed:
                hashed[shape] = _by_hash(recording, router, places, shuffles, settings)
            beside["hashed"] = hashed[shape]
        for name, (other, their_places, their_shuffles) in others.items():
            there = _count(other, router, their_places, their_shuffles, n_draws=settings.n_draws)
            beside[name] = _drift(there)["excess"]
        drift.append(about | _drift(counted) | beside)
        positions += [about | row for row in _positions(counted, router, clusters, settings.level)]
    return Result(
        drift=in_bits(pd.DataFrame(drift), "value", "permuted", "permuted_high", "excess", *NAMES),
        positions=in_bits(pd.DataFrame(positions), "divergence", "permuted", "excess"),
        sample=sample_words(recording),
        level=settings.level,
        n_draws=settings.n_draws,
        note=" ".join(part for part in (controls.words, clusters.note, "" if known else NO_HASH) if part),
    )


def _places(recording: Recording, row_of: np.ndarray) -> "PerChunk[_Places]":
    return PerChunk(recording, ["document", "position"], partial(_Places.of, row_of))


def _by_hash(
    recording: Recording, router: Router, places: "PerChunk[_Places]", shuffles: Shuffles, settings: Settings
) -> float:
    """The drift of a router by token id alone, over its permutations: bits, mean over seeds."""
    views = (routed_by_token(recording, router, seed=seed) for seed in range(settings.n_seeds))
    counted = (_count(v, router, places.of_view(v), shuffles, n_draws=settings.n_draws) for v in views)
    return float(np.mean([_drift(each)["excess"] for each in counted]))


@dataclass(frozen=True, eq=False)
class _Counted:
    """Counts of a router by range of positions: of documents, of the whole, and permuted. P ranges, B draws."""

    counts_DPE: np.ndarray
    drawn_BPE: np.ndarray
    entropy_DP: np.ndarray | None
    tokens_DP: np.ndarray


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the tokens of a chunk stand: in the order of the text, the same for every router."""

    row_T: np.ndarray
    """Rows of the chunk in the order of the text."""
    small: Chunk
    later: Chunk
    """`document` and `position` of all tokens, and of those after the first."""
    later_T: np.ndarray
    bin_T: np.ndarray
    cell_T: np.ndarray
    """Of the tokens after the first the rows; of all the range, and the pair of document and range."""
    inside: np.ndarray
    """Rows of the documents that are here: their table is small."""
    tokens_DP: np.ndarray

    @classmethod
    def of(cls, row_of: np.ndarray, chunk: Chunk) -> "_Places":
        columns = {name: chunk[name] for name in ("document", "position")}
        text = in_text_order(columns | {"row": np.arange(len(chunk["document"]), dtype=np.int32)})
        bin_T = (np.searchsorted(np.array(STARTS), text["position"], side="right") - 1).astype(np.int8)
        inside, local_T = np.unique(row_of[text["document"]], return_inverse=True)
        cell_T = (local_T * len(STARTS) + bin_T).astype(np.int32)
        tokens_DP = np.bincount(cell_T, minlength=len(inside) * len(STARTS)).reshape(len(inside), len(STARTS))
        small = {name: text[name] for name in columns}
        later_T = np.flatnonzero(bin_T > 0).astype(np.int32)
        later = {name: values[later_T] for name, values in small.items()}
        return cls(text["row"], small, later, later_T, bin_T, cell_T, inside, tokens_DP)

    @property
    def nbytes(self) -> int:
        arrays = [self.row_T, *self.small.values(), *self.later.values(), self.later_T, self.bin_T, self.cell_T]
        return sum(array.nbytes for array in arrays) + self.tokens_DP.nbytes


def _count(
    recording: Recording, router: Router, places: PerChunk[_Places], shuffles: Shuffles, *, n_draws: int
) -> _Counted:
    at, n_experts, n_bins = prefix(router, recording.topology), router.n_experts, len(STARTS)
    shape = (recording.n_documents, n_bins)
    scored = recording.has("entropy")
    counts_DPE = np.zeros((*shape, n_experts), dtype=np.int32)
    entropy_DP, tokens_DP = np.zeros(shape), np.zeros(shape)
    drawn_BPE = np.zeros((n_draws, n_bins, n_experts), dtype=np.int64)
    for here, (as_read_TK, *entropies) in places([f"{at}.ids", *([f"{at}.entropy"] if scored else [])]):
        ids_TK = as_read_TK.take(here.row_T, axis=0)
        counted = count_cells(here.cell_T, ids_TK, n_labels=here.tokens_DP.size, n_experts=n_experts)
        counts_DPE[here.inside] += counted.reshape(*here.tokens_DP.shape, n_experts).astype(np.int32)
        tokens_DP[here.inside] += here.tokens_DP
        for entropy_T in entropies:
            summed = np.bincount(here.cell_T, entropy_T[here.row_T].astype(np.float64), here.tokens_DP.size)
            entropy_DP[here.inside] += summed.reshape(here.tokens_DP.shape)
        later_bin_T, later_ids_TK = here.bin_T[here.later_T], ids_TK.take(here.later_T, axis=0)
        # the counts of the widest range are what the others leave of all
        all_E = counted.reshape(-1, n_bins, n_experts)[:, 1:].sum(axis=(0, 1))
        widest = int(here.tokens_DP[:, 1:].sum(axis=0).argmax()) + 1
        for draw in range(n_draws):
            # one token of each document at random stands for the first; the others are permuted without it
            any_T = shuffles.kept("first", here.small, draw, partial(np.compress, here.bin_T == 0))
            drawn_BPE[draw, 0] += np.bincount(ids_TK[any_T].ravel(), minlength=n_experts)
            moved_T = shuffles.kept("later", here.later, draw, partial(np.take, later_bin_T))
            rest_T = np.flatnonzero(moved_T != widest)
            rest_PE = count_cells(
                moved_T[rest_T], later_ids_TK.take(rest_T, axis=0), n_labels=n_bins, n_experts=n_experts
            )
            rest_PE[widest] += all_E - rest_PE.sum(axis=0)
            drawn_BPE[draw] += rest_PE
    return _Counted(counts_DPE, drawn_BPE, entropy_DP if scored else None, tokens_DP)


def _drift(counted: _Counted) -> dict:
    """Of the positions after the first."""
    value = position_drift(counted.counts_DPE[:, 1:].sum(axis=0)) * _BITS
    drawn_B = position_drift(counted.drawn_BPE[:, 1:]) * _BITS
    return {
        "value": float(value),
        "permuted": drawn_B.mean(),
        "permuted_high": np.quantile(drawn_B, 0.95),
        "excess": float(value) - drawn_B.mean(),
        "p": float(p_value(np.asarray(value), drawn_B)),
    }


def _positions(counted: _Counted, router: Router, clusters: Clusters, level: float) -> list[dict]:
    counts_PE = counted.counts_DPE.sum(axis=0)
    imbalance = jackknife_interval(counted.counts_DPE, clusters=clusters, level=level)
    effective_P = load.effective_experts(counts_PE)
    divergence_P = position_divergence(counts_PE) * _BITS
    permuted_P = position_divergence(counted.drawn_BPE).mean(axis=0) * _BITS
    entropy = None
    if counted.entropy_DP is not None:
        entropy = ratio_interval(
            normalized_entropy(counted.entropy_DP, n_experts=router.n_experts),
            counted.tokens_DP,
            clusters=clusters,
            level=level,
            share=True,
        )
    last = [*(start - 1 for start in STARTS[1:]), None]
    names = [
        f"{one}" if one == end else f"{one}–{end}" if end is not None else f"≥ {one}"
        for one, end in zip(STARTS, last, strict=True)
    ]
    rows = []
    for p in np.flatnonzero(counts_PE.sum(axis=1)).tolist():
        row = {
            "position": names[p],
            "tokens": int(counted.tokens_DP[:, p].sum()),
            "documents": int((counted.tokens_DP[:, p] > 0).sum()),
            "imbalance": float(imbalance.value[p]),
            "low": float(imbalance.low[p]),
            "high": float(imbalance.high[p]),
            "effective_experts": float(effective_P[p]),
            "divergence": float(divergence_P[p]),
            "permuted": float(permuted_P[p]),
            "excess": float(divergence_P[p] - permuted_P[p]),
        }
        if entropy is not None:
            ends = (entropy.value[p], entropy.low[p], entropy.high[p])
            row |= dict(zip(("entropy", "entropy_low", "entropy_high"), map(float, ends), strict=True))
        rows.append(row)
    return rows


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`drift` and `positions`."""
    return {"drift": result.drift, "positions": result.positions}


def figures(result: Result) -> dict[str, Figure]:
    """`drift` by layer beside its null, `divergence` and `imbalance_by_position` by layer and position."""
    drawn: dict[str, Figure] = {}
    level = f"{result.level:.0%} interval".replace("%", " %")
    if result.drift["value"].notna().any():
        most = result.drift.nlargest(1, "excess").iloc[0]
        found = int((result.drift["p"] <= 0.05).sum())
        by = [key for key in ("layer", "site") if key in result.drift]
        beside = [NAMES[column] for column in NAMES if column in result.drift]
        also = f" Beside it {', '.join(beside)}, each over its own permutations." if beside else ""
        no_interval = result.drift.assign(low=np.nan, high=np.nan)
        drawn["drift"] = Lines(
            as_lines(no_interval, {"excess": "model"} | NAMES, by=by, line="router", value="shown").assign(nothing=0.0),
            "layer",
            "shown",
            group="router",
            panel="site" if "site" in by else None,
            null="nothing",
            null_label="sets permuted in documents",
            title="Drift of the routing along the document",
            x_label="layer",
            y_label="information over permuted (bits)",
            caption="Information between a token's range of positions "
            f"({', '.join(result.positions['position'].unique()[1:])}; without the first token) and one of its chosen "
            f"experts ({result.sample}), less the mean of {result.n_draws} permutations of the sets within "
            f"documents, in which no order of the text is left; {found} of {len(result.drift)} layers have p ≤ .05."
            f"{also} {result.note}".strip(),
            alt=f"Most over the permuted is layer {most['layer']}: {most['value']:.4f} bits, permuted "
            f"{most['permuted']:.4f}.",
        )
    enough = result.positions["documents"] >= MIN_CLUSTERS  # two long documents are no position
    shown = result.positions[enough] if enough.any() else result.positions
    short = f" Ranges that fewer than {MIN_CLUSTERS} documents reach are in the table only." if not enough.all() else ""
    far = shown.nlargest(1, "excess").iloc[0]
    drawn["divergence"] = HeatMap(
        shown,
        "position",
        "layer",
        "excess",
        title="Where the load differs",
        x_label="position in the document",
        y_label="layer",
        value_label="divergence over permuted (bits)",
        center=0.0,
        hover=("divergence", "permuted", "tokens", "documents"),
        caption="How far the load at each range of positions is from that of all, KL divergence in bits, less its mean "
        f"when sets are permuted within documents ({result.sample}). The first token stands alone; later ranges are of "
        f"longer documents only.{short}",
        alt=f"The farthest is position {far['position']} at layer {far['layer']}: {far['excess']:.2f} bits.",
    )
    if shown["imbalance"].notna().any():
        drawn["imbalance_by_position"] = Lines(
            shown.assign(position=_ordered("position " + shown["position"])),
            "layer",
            "imbalance",
            group="position",
            low="low",
            high="high",
            interval_label=level,
            title="Imbalance by position",
            x_label="layer",
            y_label="imbalance (unbiased CV²)",
            hover=("effective_experts", "tokens", "documents"),
            caption="Unbiased squared coefficient of variation of the load of all tokens in a range of positions, over "
            f"pairs of documents; 0 is balance ({result.sample}).{short} {level}: stratified jackknife. "
            f"{result.note}".strip(),
            alt="A line by layer for each range of positions, the first token alone.",
        )
    return drawn


def _ordered(position: pd.Series) -> pd.Categorical:
    return pd.Categorical(position, categories=list(dict.fromkeys(position)), ordered=True)
