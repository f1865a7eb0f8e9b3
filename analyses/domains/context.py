"""What does the choice of experts follow from: the token, its neighbours, its place, its domain, the layer before?

Not shown: mechanism. The gains are those of a simple predictor on held-out documents, a lower bound of what each
context tells; rare combinations tell it nothing, so what comes late in an order is understated, and the two orders need
not end alike: a context's own part lies between what it adds last and what it gains first. The previous layer is known
by its first choice alone. A router that is a hash of the token id stands beside each step: what these texts let such a
predictor learn of the token, after which nothing is left. Computed on a sample of whole documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.chunks import chunks, first_choice, knows_first_choice, previous_token, routing_columns
from analyses.read.controls import NAMES, Controls, hashed_sets
from analyses.read.design import design, in_bits, require, sample_words
from analyses.read.tokens import document_rows, sampled
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import heldout, specialization
from workbench.metrics.heldout import HeldOut, context_gains
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.folds import fold_ratio_interval, folds

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (heldout.context_gains, specialization.hash_router_counts)
TOKEN, PREVIOUS, POSITION, DOMAIN, LAYER = "token", "previous token", "position", "domain", "previous layer"
STARTS = (0, 1, 4, 16, 64, 256, 1024)  # first positions of the ranges
FORWARD, BACKWARD = "token first", "token last"
N_FOLDS = 8
_FOLD = "fold"
_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        sample_tokens: Tokens of the sampled documents.
        untrained: Folder of a recording of the untrained model over the same corpus, as a control.
        ceiling: Folder of a recording of the same model again, in other batches or another dtype.
        level: Coverage of the intervals.
        seed: Of the sample and the folds.
    """

    sample_tokens: int = 32_768
    untrained: str | None = None
    ceiling: str | None = None
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Nested gains.

    Attributes:
        gains: One row per layer, order and step, in bits per assignment: the `context` that the step adds, the `gain`
            of all contexts so far over the load alone, with `low` and `high`, what this one `added`, the `ceiling`
            (the whole set known), and the gain of controls: `hashed`, a router that is a hash of the token id, and
            where they are given the `untrained` router and the model `again`.
        sample: The sample in words.
        sampled: The documents used, in words.
        level: Coverage of the intervals.
        note: What is missing, and why.
        control: The controls that were given, in words.
    """

    gains: pd.DataFrame
    sample: str
    sampled: str
    level: float
    note: str
    control: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes what each context adds to the prediction of a chosen expert, in both orders.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no token ids, `sample_tokens` is under 1, or
            a control does not fit.
    """
    require(recording, NEEDS, "context", columns=("ids", "token"))
    if settings.sample_tokens < 1:
        raise AnalysisError(
            f"context: sample_tokens is {settings.sample_tokens}; 1 or more was expected, 32768 is usual."
        )
    controls = Controls.of(recording, settings, "context")
    found = _found(recording, settings)
    gains = found.gains
    for name, other in controls.items():
        keys = [key for key in ("layer", "site", "order", "step", "context") if key in gains]
        control = _found(other, settings).gains[[*keys, "gain"]].rename(columns={"gain": name})
        gains = gains.merge(control, how="left", on=keys)
    return Result(
        gains=in_bits(gains, "gain", "low", "high", "added", "ceiling", *NAMES),
        sample=sample_words(recording),
        sampled=found.sampled,
        level=settings.level,
        note=_note(recording, found),
        control=controls.words,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """The gains of one recording, and the design of its sample."""

    gains: pd.DataFrame
    clusters: Clusters
    sampled: str


def _found(recording: Recording, settings: Settings) -> _Found:
    clusters, documents = design(recording), recording.documents()
    chosen_D = sampled(recording, n_tokens=settings.sample_tokens, seed=settings.seed)
    inside = documents[chosen_D]
    fold_D = np.zeros(len(documents), dtype=np.int64)
    fold_D[chosen_D] = folds(
        inside["cluster"].to_numpy(), inside["domain"].to_numpy(), n_folds=N_FOLDS, seed=settings.seed
    )
    small = _small(recording, clusters, chosen_D, fold_D)
    several = len({router.site for router in recording.topology.routers}) > 1
    rows: list[dict] = []
    before: np.ndarray | None = None
    hashed: dict[tuple[int, int], dict[tuple[str, str], float]] = {}
    in_sample = Clusters.of(inside["domain"].to_numpy(), cluster_D=inside["cluster"].to_numpy())
    for router in recording.topology.routers:
        ids_TK, first_T = _routing(recording, router, chosen_D)
        contexts = small.contexts | ({LAYER: before} if before is not None else {})
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        shape = router.n_experts, router.top_k
        if shape not in hashed:
            hashed[shape] = _hashed(small, router, settings.seed)
        for order, names, steps in _steps(contexts, ids_TK, small.fold_T, router.n_experts):
            for row in _rows(names, steps, clusters=in_sample, top_k=router.top_k, level=settings.level):
                by_hash = hashed[shape].get((order, row["context"]), np.nan)
                rows.append(about | {"order": order} | row | {"hashed": by_hash})
        before = first_T
    return _Found(pd.DataFrame(rows), in_sample, f"{len(small.fold_T):,} tokens of {len(inside):,} documents")


def _steps(
    contexts: dict[str, np.ndarray], ids_TK: np.ndarray, fold_T: np.ndarray, n_experts: int
) -> Iterator[tuple[str, list[str], list[HeldOut]]]:
    """The gains of each order, with the names of its contexts."""
    for order, names in ((FORWARD, list(contexts)), (BACKWARD, list(contexts)[::-1])):
        taken = [contexts[name] for name in names]
        yield order, names, context_gains(taken, ids_TK, fold_T=fold_T, n_folds=N_FOLDS, n_experts=n_experts)


def _hashed(small: "_Small", router: Router, seed: int) -> dict[tuple[str, str], float]:
    """Of a router by token id alone: the gain in bits at each context of each order, no layer before it."""
    token_T = small.contexts[TOKEN]
    sets_VK = hashed_sets(int(token_T.max()) + 1, n_experts=router.n_experts, top_k=router.top_k, seed=seed)
    return {
        (order, name): step.gain * _BITS
        for order, names, steps in _steps(small.contexts, sets_VK[token_T], small.fold_T, router.n_experts)
        for name, step in zip(names, steps, strict=True)
    }


def _note(recording: Recording, found: "_Found") -> str:
    clusters, contexts = found.clusters, set(found.gains["context"])
    notes = [clusters.note]
    if POSITION not in contexts:
        notes.append("positions are not known: nor is the previous token")
    elif PREVIOUS not in contexts:
        notes.append("no two tokens are known to be neighbours: the previous token is not known")
    if not knows_first_choice(recording):
        notes.append("ids are not ranked: the previous layer is not known")
    if len(clusters.domains) == 1:
        notes.append("one domain, which adds nothing")
    return "; ".join(note for note in notes if note)


@dataclass(frozen=True, eq=False)
class _Small:
    """What is known of the sampled tokens before any layer, in the order in which it is added."""

    contexts: dict[str, np.ndarray]
    fold_T: np.ndarray


def _small(recording: Recording, clusters: Clusters, chosen_D: np.ndarray, fold_D: np.ndarray) -> _Small:
    row_of = document_rows(recording)
    parts = []
    for chunk in chunks(recording, ["token"]):
        row_T = row_of[chunk["document"]]
        columns = {TOKEN: chunk["token"].astype(np.int64)}
        if "position" in chunk:
            columns[PREVIOUS] = previous_token(chunk)
            columns[POSITION] = np.searchsorted(np.array(STARTS), chunk["position"], side="right") - 1
        columns |= {DOMAIN: clusters.domain_D[row_T], _FOLD: fold_D[row_T]}
        parts.append({name: column[chosen_D[row_T]] for name, column in columns.items()})
    contexts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    fold_T = contexts.pop(_FOLD)
    if PREVIOUS in contexts and (contexts[PREVIOUS] < 0).all():
        del contexts[PREVIOUS]  # no token is known to follow another
    return _Small(contexts, fold_T)


def _routing(recording: Recording, router: Router, chosen_D: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    columns, row_of, ranks = routing_columns(recording, router), document_rows(recording), knows_first_choice(recording)
    parts = []
    for chunk in chunks(recording, columns if ranks else columns[:1]):
        inside_T = chosen_D[row_of[chunk["document"]]]
        kept = {name: values[inside_T] for name, values in chunk.items()}
        parts.append((kept[columns[0]], first_choice(kept, columns)[:, 0] if ranks else None))
    ids_TK = np.concatenate([ids for ids, _ in parts])
    return ids_TK, np.concatenate([first for _, first in parts if first is not None]) if ranks else None


def _rows(names: list[str], steps: list[HeldOut], *, clusters: Clusters, top_k: int, level: float) -> list[dict]:
    rows, last = [], 0.0
    for number, (name, step) in enumerate(zip(names, steps, strict=True), start=1):
        interval = fold_ratio_interval(step.gain_F, step.assignments_F, clusters=clusters, level=level)
        rows.append(
            {
                "step": number,
                "context": name,
                "gain": step.gain * _BITS,
                "low": float(interval.low) * _BITS,
                "high": float(interval.high) * _BITS,
                "added": (step.gain - last) * _BITS,
                "ceiling": step.ceiling(top_k) * _BITS,
            }
        )
        last = step.gain
    return rows


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`gains`."""
    return {"gains": result.gains}


def figures(result: Result) -> dict[str, Figure]:
    """`gains` so far, by layer and order, `added` by each context alone, and the gains `beside_controls`."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    how = f"({result.sample}; {result.sampled} used)"
    kinds = [TOKEN, PREVIOUS, POSITION, DOMAIN, LAYER]
    gains = result.gains.assign(
        context=pd.Categorical(result.gains["context"], categories=kinds, ordered=True), nothing=0.0
    )
    last = gains[gains["order"] == FORWARD].groupby("layer")["gain"].max()
    drawn: dict[str, Figure] = {
        "gains": Lines(
            gains,
            "layer",
            "gain",
            group="context",
            panel="order",
            low="low",
            high="high",
            interval_label=level,
            null="nothing",
            null_label="the load alone",
            title="What the choice of experts follows from",
            x_label="layer",
            y_label="held-out gain so far (bits per choice)",
            hover=("added", "ceiling"),
            caption="How much better a chosen expert is predicted than from the load alone, on held-out documents, "
            "when contexts become known one after the other: each line with all before it, from the token to the "
            f"previous layer's first choice, and the other way round {how}. {level}: ratio over {N_FOLDS} folds of "
            f"clusters, t. {result.note}".strip(),
            alt=f"All contexts together gain at most {last.max():.2f} bits, at layer {last.idxmax()}.",
        ),
        "added": Lines(
            gains,
            "layer",
            "added",
            group="context",
            panel="order",
            null="nothing",
            null_label="nothing added",
            title="What each context adds",
            x_label="layer",
            y_label="held-out gain added (bits per choice)",
            caption="What each context adds to those before it, in the order from the token to the previous layer, and "
            f"the other way round {how}. A context that adds much in one order and little in the other tells what the "
            f"others tell, or comes where combinations are too rare to learn from. {result.note}".strip(),
            alt="Two panels, one for each order; a line for each context.",
        ),
    }
    drawn["beside_controls"] = _beside_controls(result, gains[gains["order"] == FORWARD], how, level)
    return drawn


def _beside_controls(result: Result, gains: pd.DataFrame, how: str, level: str) -> Figure:
    """Each step from the token on, of the model and of the controls."""
    gains = gains[gains["context"].isin([TOKEN, DOMAIN, LAYER])]
    given = [column for column in NAMES if column in gains]
    lines = [gains.assign(router="model", shown=gains["gain"])]
    for column in given:
        shown = gains[gains[column].notna()]
        lines.append(shown.assign(router=NAMES[column], shown=shown[column], low=np.nan, high=np.nan))
    token = gains[gains["context"] == TOKEN].nlargest(1, "gain").iloc[0]
    others = "".join(f", {NAMES[column]} {token[column]:.2f}" for column in given)
    return Lines(
        pd.concat(lines, ignore_index=True),
        "layer",
        "shown",
        group="router",
        panel="context",
        low="low",
        high="high",
        null="nothing",
        null_label="the load alone",
        interval_label=level,
        title="The gains beside other routers",
        x_label="layer",
        y_label="held-out gain so far (bits per choice)",
        caption="The gain when contexts become known from the token on: with the token alone, with token, previous "
        "token, position and domain, and with the previous layer too; beside that of a router that is a hash of the "
        f"token id, for which nothing follows after the token {how}. "
        f"{result.control} {level}: ratio over {N_FOLDS} folds of clusters, t. {result.note}".strip(),
        alt=f"From the token alone the model gains {token['gain']:.2f} bits at layer {token['layer']}{others}.",
    )
