"""Are experts chosen by the token itself, and what does the domain add once the token is known?

Not shown: why, or whether it helps. A token's own id, the id that the model predicts after it and the id that does
come next are correlated, so a router that sees the input id alone scores on all three: each number stands beside such a
router (a hash of the input id), beside sets permuted within documents, and, where they are given, beside an untrained
router and the same model recorded again. Sharing of an id's routing across contexts is counted by its foremost expert;
groups of like ids are not sought. Held-out gains are those of a simple predictor, a lower bound. Ids under `min_count`
are left out of the sharpness, and counted.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.chunks import knows_first_choice
from analyses.read.controls import NAMES, Controls
from analyses.read.design import as_lines, in_bits, require, sample_words
from analyses.read.token_tables import ALL, FIRST, INPUT_TOKEN, N_FOLDS, Measured, Plan, of_hash, of_router
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import heldout, specialization
from workbench.metrics.vocabulary import (
    count_cells,
    domain_information_given_token,
    label_counts,
    vocabulary_specialization,
)
from workbench.recordings.recording import Recording
from workbench.statistics.folds import fold_jackknife_interval, fold_ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    heldout.token_predictability,
    specialization.hash_router_counts,
    count_cells,
    domain_information_given_token,
    label_counts,
    vocabulary_specialization,
)
_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        min_count: Occurrences that an id needs to count in the sharpness.
        n_permutations: Permutations of the sets within documents; 0 leaves the null out.
        n_seeds: Seeds of the hash router.
        untrained: Folder of a recording of the untrained model over the same corpus, as a further control.
        ceiling: Folder of a recording of the same model again, in other batches or another dtype.
        level: Coverage of the intervals.
        seed: Of folds and permutations.
    """

    min_count: int = 10
    n_permutations: int = 20
    n_seeds: int = 5
    untrained: str | None = None
    ceiling: str | None = None
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Specialization by token, and by domain when the token is known.

    Attributes:
        vocabulary: One row per layer, label of the token (input, predicted, true next) and choices (the first of a
            token, or all K): `value`, the share of an id's occurrences that its foremost expert takes, with `low` and
            `high`; `permuted` (mean when sets are permuted within documents) with `permuted_high` and `p`; `hashed` (a
            router that is a hash of the input id); `untrained` and `again`, where given; `balanced` (1/E or K/E); the
            ids counted and the share of tokens that they are.
        predictability: One row per layer and label, in bits per assignment: held-out gain of predicting a chosen expert
            from the id (`value`, with `low` and `high`), beside `hashed`, `untrained`, `again`, and `ceiling` (the
            whole set known). Without an effect of the id it is 0.
        given_token: One row per layer: what the domain says about the set when the token id is known (`value`) and when
            it is not (`alone`), in overlap of sets, with intervals; 0 where it says nothing. No rows with one domain,
            or where no id stands in two.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: Why something is missing, if it is.
        control: The controls that were given, in words.
    """

    vocabulary: pd.DataFrame
    predictability: pd.DataFrame
    given_token: pd.DataFrame
    sample: str
    level: float
    note: str
    control: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes sharpness and predictability of the routing by token id, and what the domain adds.

    Raises:
        AnalysisError: the recording holds no routing or no token ids, a setting is out of range, or a control does
            not fit.
    """
    require(recording, NEEDS, "specialization", columns=("ids", "token"))
    for name, least in (("min_count", 1), ("n_permutations", 0), ("n_seeds", 1)):
        if getattr(settings, name) < least:
            raise AnalysisError(f"specialization: {name} is {getattr(settings, name)}; {least} or more was expected.")
    controls = Controls.of(recording, settings, "specialization")
    plan = Plan.of(recording, min_count=settings.min_count, seed=settings.seed)
    plans = {name: Plan.of(each, min_count=settings.min_count, seed=settings.seed) for name, each in controls.items()}
    hashes = {
        (n_experts, top_k): [
            of_hash(recording, plan, n_experts=n_experts, top_k=top_k, seed=seed) for seed in range(settings.n_seeds)
        ]
        for n_experts, top_k in {(router.n_experts, router.top_k) for router in recording.topology.routers}
    }
    several = len({router.site for router in recording.topology.routers}) > 1
    sharpness, predictable, given = [], [], []
    for router in recording.topology.routers:
        here = of_router(recording, plan, router, draws=settings.n_permutations)
        there = {name: of_router(each, plans[name], router, draws=0) for name, each in controls.items()}
        beside = _Beside(plan, hashes[router.n_experts, router.top_k], there, settings.level)
        about = {"layer": router.layer} | ({"site": router.site} if several else {})
        sharpness += [about | row for row in _sharpness(here, beside, router.n_experts, router.top_k)]
        predictable += [about | row for row in _predictability(here, beside, router.top_k)]
        given += [about | row for row in _given_token(here, beside)]
    return Result(
        vocabulary=pd.DataFrame(sharpness),
        predictability=in_bits(pd.DataFrame(predictable), "value", "low", "high", "ceiling", *NAMES),
        given_token=pd.DataFrame(given),
        sample=sample_words(recording),
        level=settings.level,
        note=_note(recording, plan, any_given=bool(given)),
        control=controls.words,
    )


@dataclass(frozen=True, eq=False)
class _Beside:
    """What a router's numbers stand beside."""

    plan: Plan
    hashed: list[Measured]
    controls: dict[str, Measured]
    level: float


def _sharpness(here: Measured, beside: _Beside, n_experts: int, top_k: int) -> list[dict]:
    rows = []
    of_label = {label.name: label for label in beside.plan.labels}
    for (name, choices), values in here.sharpness.items():
        drawn_B = values[1 + N_FOLDS :]
        interval = fold_jackknife_interval(
            np.asarray(values[0]), values[1 : 1 + N_FOLDS], clusters=beside.plan.clusters, level=beside.level
        )
        known = len(drawn_B) > 0
        rows.append(
            {
                "label": name,
                "choices": choices,
                "value": values[0],
                "low": float(interval.low),
                "high": float(interval.high),
                "permuted": drawn_B.mean() if known else np.nan,
                "permuted_high": np.quantile(drawn_B, 0.95) if known else np.nan,
                "p": (1 + (drawn_B >= values[0]).sum()) / (len(drawn_B) + 1) if known else np.nan,
                "hashed": np.mean([one.sharpness[name, choices][0] for one in beside.hashed]),
                **{control: one.sharpness[name, choices][0] for control, one in beside.controls.items()},
                "balanced": (1 if choices == FIRST else top_k) / n_experts,
                "ids": of_label[name].n_often,
                "share_counted": of_label[name].occurrences_FV.sum() / max(of_label[name].tokens, 1),
            }
        )
    return rows


def _predictability(here: Measured, beside: _Beside, top_k: int) -> list[dict]:
    rows = []
    for name, found in here.held_out.items():
        interval = fold_ratio_interval(
            found.gain_F, found.assignments_F, clusters=beside.plan.clusters, level=beside.level
        )
        rows.append(
            {
                "label": name,
                "value": found.gain * _BITS,
                "low": float(interval.low) * _BITS,
                "high": float(interval.high) * _BITS,
                "hashed": np.mean([one.held_out[name].gain for one in beside.hashed]) * _BITS,
                **{control: one.held_out[name].gain * _BITS for control, one in beside.controls.items()},
                "ceiling": found.ceiling(top_k) * _BITS,
                "method": interval.method,
            }
        )
    return rows


def _given_token(here: Measured, beside: _Beside) -> list[dict]:
    found = here.given
    if np.isnan(found.value):
        return []
    known, alone = (
        fold_jackknife_interval(np.asarray(value), without_F, clusters=beside.plan.clusters, level=beside.level)
        for value, without_F in ((found.value, found.value_without_F), (found.alone, found.alone_without_F))
    )
    row = {
        "value": found.value,
        "low": float(known.low),
        "high": float(known.high),
        "alone": found.alone,
        "alone_low": float(alone.low),
        "alone_high": float(alone.high),
        "hashed": 0.0,  # for good: the same id has the same set in every domain
        "hashed_alone": np.mean([one.given.alone for one in beside.hashed]),
        "tokens": found.tokens,
        "method": known.method,
    }
    for name, one in beside.controls.items():
        row |= {name: one.given.value, f"{name}_alone": one.given.alone}
    return [row]


def _note(recording: Recording, plan: Plan, *, any_given: bool) -> str:
    notes = [plan.clusters.note]
    if not recording.has("predicted"):
        notes.append("no predictions were recorded")
    if "position" in recording.lacks:
        notes.append("positions are not known: nor is the true next token")
    if not knows_first_choice(recording):
        notes.append("ids are not ranked and no weights were recorded: the first choice is not known")
    if not any_given:
        notes.append("no token id stands in two domains: what a domain adds to the token is not known")
    return "; ".join(note for note in notes if note)


def _said(result: Result) -> str:
    return " ".join(part for part in (result.control, result.note) if part)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`vocabulary`, `predictability`, and `given_token` where there are two domains."""
    found = {"vocabulary": result.vocabulary, "predictability": result.predictability}
    return found | ({"given_token": result.given_token} if len(result.given_token) else {})


def figures(result: Result) -> dict[str, Figure]:
    """`vocabulary` and `predictability` by layer beside their controls, and `given_token` where there are domains."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    names = {"value": "model", "permuted": "sets permuted in documents"} | NAMES
    names["hashed"] = "hash of the input token"
    first = FIRST in set(result.vocabulary["choices"])
    shown = result.vocabulary[result.vocabulary["choices"] == (FIRST if first else ALL)]
    drawn: dict[str, Figure] = {}
    if shown["value"].notna().any():
        most = shown[shown["label"] == INPUT_TOKEN].nlargest(1, "value")
        said = f"{most['value'].iloc[0]:.2f} at layer {most['layer'].iloc[0]}" if len(most) else "not known"
        drawn["vocabulary"] = Lines(
            as_lines(shown, names, by=["layer", "label"], line="router", value="shown"),
            "layer",
            "shown",
            group="router",
            panel="label",
            low="low",
            high="high",
            interval_label=level,
            title="How sharply token ids are routed",
            x_label="layer",
            y_label="share of occurrences",
            caption="Share of a token id's occurrences that its foremost expert takes"
            f"{', first choices' if first else ', all K choices'}, mean over occurrences of ids that occur often "
            f"enough ({result.sample}): of the token's own id, the id predicted after it, and the id that comes next. "
            "Beside it the same after sets of experts are permuted within documents, and a router that is a hash of "
            f"the input id. {level}: jackknife over folds of clusters; the maximum's bias is in the value as in the "
            f"null. {_said(result)}".strip(),
            alt=f"For the input token the largest share is {said}.",
        )
    top = result.predictability.nlargest(1, "value").iloc[0]
    drawn["predictability"] = Lines(
        as_lines(result.predictability, names, by=["layer", "label"], line="router", value="shown").assign(nothing=0.0),
        "layer",
        "shown",
        group="router",
        panel="label",
        low="low",
        high="high",
        null="nothing",
        null_label="nothing predicted",
        interval_label=level,
        title="What a token id predicts of its experts",
        x_label="layer",
        y_label="held-out gain (bits per choice)",
        caption="How much better a chosen expert is predicted from the id than from the load alone, on documents held "
        f"out ({result.sample}); 0 where the id says nothing. A hash of the input id shows what a router by token "
        f"alone would reach with these texts. {level}: ratio over {N_FOLDS} folds of clusters, t. "
        f"{_said(result)}".strip(),
        alt=f"The largest gain is {top['value']:.2f} bits, for the {top['label']} at layer {top['layer']}, where "
        f"knowing the whole set would give {top['ceiling']:.2f}.",
    )
    if len(result.given_token):
        drawn["given_token"] = _given_figure(result, level)
    return drawn


def _given_figure(result: Result, level: str) -> Figure:
    table = result.given_token
    parts = [
        table[["layer"]].assign(router=f"{who}{known}", shown=table[column], low=table.get(low), high=table.get(high))
        for who, known, column, low, high in (
            ("", "token known", "value", "low", "high"),
            ("", "token not known", "alone", "alone_low", "alone_high"),
            ("untrained, ", "token known", "untrained", "", ""),
            ("untrained, ", "token not known", "untrained_alone", "", ""),
            ("again, ", "token known", "again", "", ""),
            ("again, ", "token not known", "again_alone", "", ""),
        )
        if column in table
    ]
    most = table.nlargest(1, "value").iloc[0]
    return Lines(
        pd.concat(parts, ignore_index=True).astype({"low": float, "high": float}).assign(nothing=0.0),
        "layer",
        "shown",
        group="router",
        low="low",
        high="high",
        null="nothing",
        null_label="router by token id alone",
        interval_label=level,
        title="What the domain adds to the token",
        x_label="layer",
        y_label="overlap within less across domains",
        caption="Overlap of the sets of two tokens of one domain, less that of tokens of two domains, in different "
        f"documents: of tokens with the same id, and of the same tokens whatever their id ({result.sample}; ids that "
        f"stand in two domains). 0: the domain says nothing. {level}: jackknife over {N_FOLDS} folds of clusters, t. "
        f"{_said(result)}".strip(),
        alt=f"With the token known at most {most['value']:.3f}, at layer {most['layer']}, where it is "
        f"{most['alone']:.3f} without.",
    )
