"""How many of a token's experts did another recording of the same text choose too?

Not shown: which of the two is better, or that equal choices compute the same: experts can change while the router does
not. The ceiling is not 1: the same model recorded again, in other batches or another dtype, agrees a little less.
Record it again and give that recording as `ceiling` to know by how much.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.pairing import Pair, matched, pair, same_model, side_by_side, stacks
from analyses.read.chunks import knows_first_choice
from analyses.read.design import RouterStack, design, require, sample_words
from analyses.read.tokens import document_rows
from workbench.errors import AnalysisError, RecordingError
from workbench.figures.spec import Bars, Figure, Lines
from workbench.metrics.agreement import load_matched_agreement, saturation
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval, domain_ratio_interval, ratio_interval

INPUT = "two recordings"
NEEDS = ("routing",)
METRICS = (load_matched_agreement, saturation)
ALL = "all domains"


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        ceiling: Folder of a recording of the first recording's model again: other batches, or another dtype.
        experts: `auto`, `same` or `matched`: whether equal ids are equal experts, or experts are matched first.
        level: Coverage of the intervals.
    """

    ceiling: str = ""
    experts: str = "auto"
    level: float = 0.95


@dataclass(frozen=True, eq=False)
class Result:
    """Agreement of two recordings.

    Attributes:
        agreement: One row per layer and domain (and all domains): mean |S ∩ S′| / max(K, K′), `value` with `low` and
            `high`, `attainable` min(K, K′) / max(K, K′), `load_matched` of independent routers with the same loads,
            `uniform`, the tokens with all experts the same (`whole_sets`) and with the same heaviest expert (`top1`
            with its own `top1_load_matched`; NaN where a token's experts are not ranked), and, where it was given, the
            `ceiling` of the value with its interval, and of `top1`. `experts` says whether equal ids are the same
            experts, or matched.
        sample: The sample in words.
        names: Of both recordings.
        level: Coverage of the intervals.
        note: What was left out, whether experts were matched, how the ceiling was measured, why intervals are missing.
    """

    agreement: pd.DataFrame
    sample: str
    names: tuple[str, str]
    level: float
    note: str


def run(recording: Recording, other: Recording, settings: Settings = Settings()) -> Result:
    """Compares the sets of each token, part by part.

    Raises:
        AnalysisError: the two cannot be compared, a recording holds no routing of single tokens, or the ceiling is no
            recording of the same model.
    """
    for each in (recording, other):
        require(each, NEEDS, "saturation", columns=("ids",))
    both = pair(recording, other, analysis="saturation", experts=settings.experts)
    notes = [both.words]
    theirs = both.other
    if not both.same_experts:
        found = matched(both, analysis="saturation")
        theirs, alike = found.other, found.consistency["alike"]
        notes.append(f"Matched alike in both halves: {alike.min():.0%} to {alike.max():.0%} of the choices by layer.")
    table, note = _table(both.one, theirs, settings.level)
    notes.append(note)
    if settings.ceiling:
        again = _again(both, settings.ceiling)
        limit, _ = _table(again.one, again.other, settings.level)
        columns = {"value": "ceiling", "low": "ceiling_low", "high": "ceiling_high", "top1": "top1_ceiling"}
        keys = [key for key in ("layer", "site", "domain") if key in table]
        table = table.merge(limit[[*keys, *columns]].rename(columns=columns), on=keys, how="left")
        of = f" ({again.words.rstrip('.')})" if again.said else ""
        notes.append(f"Ceiling: {again.names[0]} and {again.names[1]}, {_how_again(again)}{of}.")
    return Result(
        agreement=table.assign(experts="same" if both.same_experts else "matched"),
        sample=sample_words(both.one),
        names=both.names,
        level=settings.level,
        note=" ".join(note for note in notes if note),
    )


def _again(both: Pair, path: str) -> Pair:
    """The first recording and the same model recorded again."""
    try:
        again = Recording.open(path)
    except RecordingError as error:
        raise AnalysisError(f"saturation: ceiling: {error}") from error
    models = [each.manifest["model"] for each in (both.one, again)]
    if not same_model(both.one, again) or models[0].get("revision") != models[1].get("revision"):
        said = [
            f"{model['name']}{'@' if model.get('revision') else ''}{model.get('revision') or ''}" for model in models
        ]
        raise AnalysisError(
            f"saturation: ceiling {path} is of {said[1]}, and the ceiling is how far {said[0]} agrees with itself; "
            f"record {said[0]} again, in other batches or another dtype."
        )
    return pair(both.one, again, analysis="saturation: ceiling", experts="same")


def _how_again(again: Pair) -> str:
    """In what the two recordings of one model differ."""
    differs = []
    for words, get in (
        ("dtype", lambda m: m["model"].get("dtype")),
        ("device", lambda m: m["model"].get("device")),
        ("attention", lambda m: m["model"].get("attention_implementation")),
        ("experts' implementation", lambda m: m["model"].get("experts_implementation")),
        ("padded positions of a batch", lambda m: m.get("settings", {}).get("batch_tokens")),
    ):
        mine, theirs = get(again.one.manifest), get(again.other.manifest)
        if mine != theirs:
            differs.append(f"{words} {mine} and {theirs}")
    return "; ".join(differs) or "recorded alike"


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the tokens of each document, by the first recording's rows: [D, L]; top-1 choices by domain."""

    tokens_D: np.ndarray
    same_DL: np.ndarray
    whole_DL: np.ndarray
    first_DL: np.ndarray
    top1_2MLE: np.ndarray


def _table(one: Recording, other: Recording, level: float) -> tuple[pd.DataFrame, str]:
    clusters = design(one)
    ranked = knows_first_choice(one) and knows_first_choice(other)
    frames, note = [], ""
    for stack, theirs in stacks(one, other):
        sums = _count(one, other, stack, theirs, clusters, ranked=ranked)
        table, note = _rows((one, other), (stack, theirs), sums, clusters, level)
        frames.append(table if ranked else table.assign(**dict.fromkeys(_TOP1, np.nan)))
    return pd.concat(frames, ignore_index=True), note


_TOP1 = ("top1", "top1_low", "top1_high", "top1_load_matched")


def _count(
    one: Recording, other: Recording, stack: RouterStack, theirs: RouterStack, clusters: Clusters, *, ranked: bool
) -> _Sums:
    n_documents, shape = one.n_documents, (one.n_documents, len(stack.routers))
    tokens_D, same_DL, whole_DL, first_DL = np.zeros(n_documents), np.zeros(shape), np.zeros(shape), np.zeros(shape)
    top1_2MLE = np.zeros((2, len(clusters.domains), len(stack.routers), stack.n_experts))
    most = max(stack.top_k, theirs.top_k)
    for mine, tokens in side_by_side(one, other, stack, theirs, top1=ranked):
        row_T = mine.row_T
        domain_T = clusters.domain_D[row_T]
        tokens_D += np.bincount(row_T, minlength=n_documents)
        for i, (bits_TW, other_TW) in enumerate(zip(mine.bits_LTW, tokens.bits_LTW, strict=True)):
            share_T = saturation(bits_TW, other_TW, top_k=most)
            same_DL[:, i] += np.bincount(row_T, weights=share_T, minlength=n_documents)
            whole_DL[:, i] += np.bincount(row_T, weights=share_T == 1, minlength=n_documents)
            if mine.top1_LT is not None and tokens.top1_LT is not None:
                pair_2T = (mine.top1_LT[i], tokens.top1_LT[i])
                first_DL[:, i] += np.bincount(row_T, weights=pair_2T[0] == pair_2T[1], minlength=n_documents)
                for h, top1_T in enumerate(pair_2T):
                    chosen = np.bincount(domain_T * stack.n_experts + top1_T, minlength=top1_2MLE[h, :, i].size)
                    top1_2MLE[h, :, i] += chosen.reshape(-1, stack.n_experts)
    return _Sums(tokens_D, same_DL, whole_DL, first_DL, top1_2MLE)


def _rows(
    recordings: tuple[Recording, Recording],
    both_stacks: tuple[RouterStack, RouterStack],
    sums: _Sums,
    clusters: Clusters,
    level: float,
) -> tuple[pd.DataFrame, str]:
    (one, other), (stack, theirs) = recordings, both_stacks
    tokens_D1 = sums.tokens_D[:, None]
    whole, parts = (
        ratio_interval(sums.same_DL, tokens_D1, clusters=clusters, level=level, share=True),
        domain_ratio_interval(sums.same_DL, tokens_D1, clusters=clusters, level=level, share=True),
    )
    first, firsts = (
        ratio_interval(sums.first_DL, tokens_D1, clusters=clusters, level=level, share=True),
        domain_ratio_interval(sums.first_DL, tokens_D1, clusters=clusters, level=level, share=True),
    )
    counts_DLE = stack.stacked(one, "counts")
    other_DLE = theirs.stacked(other, "counts")[document_rows(other)[one.column("document", table="documents")]]
    fewest, most = sorted((stack.top_k, theirs.top_k))
    frames = []
    for m, domain in enumerate([*clusters.domains, *([ALL] if len(clusters.domains) > 1 else [])]):
        every = m == len(clusters.domains)
        of_D = np.ones(len(sums.tokens_D), dtype=bool) if every else clusters.domain_D == m
        of_M = slice(None) if every else slice(m, m + 1)
        top1_2LE = sums.top1_2MLE[:, of_M].sum(axis=1)
        frames.append(
            stack.labels().assign(
                domain=str(domain),
                **_ends("value", whole if every else parts, None if every else m),
                attainable=fewest / most,
                load_matched=load_matched_agreement(counts_DLE[of_D].sum(0), other_DLE[of_D].sum(0), top_k=fewest),
                uniform=fewest / stack.n_experts,
                whole_sets=sums.whole_DL[of_D].sum(0) / sums.tokens_D[of_D].sum(),
                **_ends("top1", first if every else firsts, None if every else m),
                top1_load_matched=load_matched_agreement(*top1_2LE, top_k=1),
                tokens=int(sums.tokens_D[of_D].sum()),
            )
        )
    return pd.concat(frames, ignore_index=True), whole.note


def _ends(name: str, interval: Interval, m: int | None) -> dict[str, np.ndarray]:
    value, low, high = (end if m is None else end[m] for end in (interval.value, interval.low, interval.high))
    at = "" if name == "value" else f"{name}_"
    return {name: value, f"{at}low": low, f"{at}high": high}


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`agreement`."""
    return {"agreement": result.agreement}


def figures(result: Result) -> dict[str, Figure]:
    """`by_layer` over all domains: sets and heaviest experts; `by_domain` at the layer with the least agreement."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    table, (one, other) = result.agreement, result.names
    several = (table["domain"] == ALL).any()
    whole = table[table["domain"] == ALL] if several else table
    least = whole.nsmallest(1, "value").iloc[0]
    at = table[(table["layer"] == least["layer"]) & ((table["domain"] != ALL) | (not several))]
    how = f"{level}: ratio over clusters of documents, log-odds, t. {result.note}".strip()
    what = f"Share of a token's experts that {one} and {other} both chose ({result.sample})"
    ceiling = "" if "ceiling" in table else " The ceiling was not measured: the same model recorded again is below 1."
    return {
        "by_layer": Lines(
            _by_layer(whole, one, other),
            "layer",
            "share",
            panel="choices",
            group="routing",
            low="low",
            high="high",
            interval_label=level,
            title=f"Experts that {one} and {other} both chose",
            x_label="layer",
            y_label="share",
            caption=f"{what}, of all experts of a token and of its heaviest one, beside two independent routers with "
            f"the same loads.{ceiling} {how}",
            alt=f"They agree least at layer {least['layer']}, in {least['value']:.1%} of the experts.".replace(
                "%", " %"
            ),
        ),
        "by_domain": Bars(
            at,
            "domain",
            "value",
            low="low",
            high="high",
            interval_label=level,
            null="load_matched",
            null_label="independent, same loads",
            title=f"Agreement at layer {least['layer']}, by domain",
            x_label="domain",
            y_label="share of a token's experts",
            hover=("whole_sets", "uniform", "tokens", *(("ceiling",) if "ceiling" in table else ())),
            caption=f"{what}, at layer {least['layer']}, where they agree least.{ceiling} {how}",
            alt="; ".join(f"{row.domain}: {row.value:.1%}" for row in at.itertuples()).replace("%", " %") + ".",
        ),
    }


def _by_layer(whole: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """In long form: a row per layer, choices and line."""
    lines = []
    for choices, value, at in (("all experts of a token", "value", ""), ("the heaviest expert", "top1", "top1_")):
        low, high = (f"{at}low", f"{at}high")
        for routing, share, ends in (
            (f"{one} and {other}", value, (low, high)),
            (f"{one} again (ceiling)", f"{at}ceiling", ("ceiling_low", "ceiling_high") if not at else None),
            ("independent, same loads", f"{at}load_matched", None),
        ):
            if share not in whole or whole[share].isna().all():
                continue
            frame = whole[["layer"]].assign(
                choices=choices, routing=routing, share=whole[share], low=np.nan, high=np.nan
            )
            if ends is not None:
                frame["low"], frame["high"] = whole[ends[0]], whole[ends[1]]
            lines.append(frame)
    return pd.concat(lines, ignore_index=True)
