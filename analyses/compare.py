"""Any analysis asked of two recordings: its tables side by side, with intervals of the differences.

Not a test of one number against another's interval: documents are the same in both recordings, so they stay paired.
The analysis is run again without each of up to 16 groups of documents, the same in both; how its differences vary is
the interval (delete-a-group jackknife: docs/decisions/0010-differences.md). Axes: N rows of a table, Q its quantities,
G groups.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from analyses.pairing import Pair, matched, pair
from analyses.read.design import sample_words
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Lines
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_documents
from workbench.statistics.design import Clusters
from workbench.statistics.jackknife import Bags, deal, left_out_interval

MOST_GROUPS = 16
MOST_PANELS = 6
LEVEL = 0.95

# Keys that are experts: rows of equal keys mean something only where experts are the same, or matched.
_EXPERT_KEYS = {"expert", "other", "expert_a", "expert_b", "next_expert"}
# Of a pair of experts: here `a` and `b` are the recordings, whose values would take the place of the experts.
_OF_A_PAIR = {"a": "expert_a", "b": "expert_b"}
# Columns that are about one recording alone: ends of its intervals, ids, an `estimate` that the one here replaces.
_ONE_ALONE = re.compile(r"(.*_)?(low|high)|top1|predicted|token|estimate")
_DRAWN = r"permuted|shuffled|swapped|mixed|within_documents"
# Statistics that are no smooth function of the documents, or not of the recording: a difference, and no interval.
_NO_INTERVAL = {
    r"p": "a p value",
    rf"({_DRAWN}|hashed|uniform|load_matched|matched|null|floor|chance|anywhere|balanced|marginal|drawn_from).*|"
    r".*_(uniform|permuted)|others": "a null",
    r".*_sample": "of a sample that is drawn",
    r"ceiling|all_on": "a ceiling or a trivial answer",
    r"max.*|min.*|highest|lowest": "an extreme",
    r"q\d\d|undecided": "a quantile or a limit",
    r"dead.*|unused|never_chosen|above|below|ids|clusters|share_counted": "a count over a threshold",
    r"effective_tokens": "grows with the documents",
}
_EXTREMES = {"max violation": "an extreme", "min violation": "an extreme", "dead experts": "a count over a threshold"}
_EXTREMES |= {f"{measure} of first choices": reason for measure, reason in _EXTREMES.items()}
# Whose numbers depend on how documents fall into folds or batches: such a draw is no bias, and would be magnified.
_UNCORRECTED = {"balance_scope", "capacity", "context", "specialization"}
_UNNAMED = {"value", "mean", "gain"}  # quantities that say nothing without the analysis' name


@dataclass(frozen=True, eq=False)
class Comparison:
    """An analysis of two recordings.

    Attributes:
        tables: As the analysis names them. One row per key and `quantity`: `a` and `b` as the analysis gives them,
            `difference` b − a, `estimate` of it with the bias of finite text taken out, with `low` and `high`, and
            `interval`, which says why there is none; `experts` says whether equal ids are the same experts, or matched.
        keys: Of each table.
        headlines: Of each table, the quantity that is shown: the first with an interval that is no total.
        names: Of both recordings.
        sample: The sample in words.
        said: What was left out, how experts correspond, how intervals were made.
        level: Coverage of the intervals.
    """

    tables: Mapping[str, pd.DataFrame]
    keys: Mapping[str, tuple[str, ...]]
    headlines: Mapping[str, str]
    names: tuple[str, str]
    sample: str
    said: str
    level: float


def compare(
    module: ModuleType, one: Recording, other: Recording, settings: Any = None, *, experts: str = "auto"
) -> Comparison:
    """Asks an analysis of both recordings, and of both without each group of documents.

    Args:
        module: The analysis.
        one: The first, a.
        other: The second, b.
        settings: Of the analysis.
        experts: As of `pair`.

    Raises:
        AnalysisError: the recordings cannot be compared, the analysis refuses one, or the two have no row in common.
    """
    name = module.__name__.rpartition(".")[2]
    settings = module.Settings() if settings is None else settings
    for control in ("untrained", "ceiling"):
        if getattr(settings, control, None):
            raise AnalysisError(
                f"{name}: {control} is a control of one recording, and two are compared; leave it out, or compare with "
                "that recording itself: --against RECORDING."
            )
    both = pair(one, other, analysis=name, experts=experts)
    documents = both.one.documents().sort_values("document", ignore_index=True)
    if getattr(settings, "document", None) == "":
        settings = dataclasses.replace(settings, document=documents["id"].iloc[0])
    first = module.run(both.one, settings)
    settings = _pinned(settings, first)
    asked = _Asked(module, settings, both)
    mine, theirs = _tables(module, first), asked.tables_of_other(both.other)
    frames = {table: _Side(mine[table], theirs[table]) for table in mine if table in theirs}
    kept = {table: side for table, side in frames.items() if side.keys and len(side.both)}
    if not kept:
        raise AnalysisError(f"{name}: the tables of {both.one.path} and {both.other.path} have no row in common.")
    bags = deal(design_of(documents), most=MOST_GROUPS)
    left, why = asked.without_each(documents["document"].to_numpy(), bags, kept)
    level = float(getattr(settings, "level", LEVEL))
    tables = {
        table: side.long(
            left.get(table), why or bags.too_few, bags, level=level, corrected=name not in _UNCORRECTED
        ).assign(experts="same" if both.same_experts else "matched")
        for table, side in kept.items()
    }
    dropped = [f"{table}: {side.dropped}" for table, side in kept.items() if side.dropped]
    method = f"Intervals ({level:.0%}): jackknife over {bags.n_bags} groups of documents, the same left out of both; t."
    said = [
        both.words,
        *asked.said,
        *([] if why or bags.too_few else [method.replace("%)", " %)")]),
        why,
        bags.note,
        *dropped,
    ]
    return Comparison(
        tables=tables,
        keys={table: side.keys for table, side in kept.items()},
        headlines={table: side.headline(tables[table]) for table, side in kept.items()},
        names=both.names,
        sample=sample_words(both.one),
        said=" ".join(part for part in said if part),
        level=level,
    )


def design_of(documents: pd.DataFrame) -> Clusters:
    """The sampling design of documents in the order of their numbers, whatever the order of rows on disk."""
    return Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["cluster"].to_numpy())


def _pinned(settings: Any, result: Any) -> Any:
    """Settings whose default depends on the recording (the busiest expert), as the first recording chose them."""
    chosen = {
        field.name: getattr(result, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) is None and getattr(result, field.name, None) is not None
    }
    return dataclasses.replace(settings, **chosen)


class _Asked:
    """An analysis and its settings, asked of both recordings and of parts of them."""

    def __init__(self, module: ModuleType, settings: Any, both: Pair) -> None:
        self._module, self._settings, self._pair = module, settings, both
        self._name = module.__name__.rpartition(".")[2]
        self._of_expert = getattr(settings, "expert", None) is not None
        self._renamed: Recording | None = None
        self.said: list[str] = []

    def tables_of(self, recording: Recording) -> dict[str, pd.DataFrame]:
        return _tables(self._module, self._module.run(recording, self._settings))

    def tables_of_other(self, recording: Recording, numbers: np.ndarray | None = None) -> dict[str, pd.DataFrame]:
        """The other's tables; those of experts after matching, where the models are different."""
        if self._pair.same_experts:
            return self.tables_of(_some(recording, numbers))
        plain = self.tables_of(_some(recording, numbers)) if not self._of_expert else {}
        about_experts = [name for name, table in plain.items() if _EXPERT_KEYS & set(_prefix(table))]
        if not about_experts and not self._of_expert:
            return plain
        if self._renamed is None:
            found = matched(self._pair, analysis=self._name)
            alike = found.consistency["alike"]
            self.said.append(
                f"Matched alike in both halves: {alike.min():.0%} to {alike.max():.0%} of the choices by layer."
            )
            self._renamed = found.other
        renamed = self.tables_of(_some(self._renamed, numbers))
        return renamed if self._of_expert else {**plain, **{name: renamed[name] for name in about_experts}}

    def without_each(
        self, document_D: np.ndarray, bags: Bags, sides: "Mapping[str, _Side]"
    ) -> tuple[dict[str, np.ndarray], str]:
        """Both recordings' values [G, 2, N, Q] of each table without each group; or why there are none."""
        left: dict[str, list[np.ndarray]] = {name: [] for name in sides}
        if bags.too_few:
            return {}, ""
        for g in range(bags.n_bags):
            numbers = document_D[bags.bag_D != g]
            try:
                mine = self.tables_of(_some(self._pair.one, numbers))
                theirs = self.tables_of_other(self._pair.other, numbers)
            except AnalysisError as error:
                return {}, f"No intervals: without some of the documents it has no answer ({error})"
            for name, side in sides.items():
                left[name].append(np.stack([side.values(mine[name]), side.values(theirs[name])]))
        return {name: np.stack(values) for name, values in left.items()}, ""


def _tables(module: ModuleType, result: Any) -> dict[str, pd.DataFrame]:
    return {name: table.rename(columns=_OF_A_PAIR) for name, table in module.tables(result).items()}


def _some(recording: Recording, numbers: np.ndarray | None) -> Recording:
    return recording if numbers is None else of_documents(recording, numbers)


def _prefix(table: pd.DataFrame) -> tuple[str, ...]:
    """The first columns, as few as tell every row apart: tables name their rows before they say anything of them."""
    for n in range(1, len(table.columns) + 1):
        if not table.duplicated(list(table.columns[:n])).any():
            return tuple(table.columns[:n])
    return ()


class _Side:
    """A table of both recordings: rows in common, keys, labels, quantities."""

    def __init__(self, mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
        self.keys = max(_prefix(mine), _prefix(theirs), key=len)
        shared = [column for column in mine.columns if column in theirs.columns]
        if not set(self.keys) <= set(shared):
            self.keys = ()
        rest = [column for column in shared if column not in self.keys]
        numeric = [
            c for c in rest if pd.api.types.is_numeric_dtype(mine[c]) and pd.api.types.is_numeric_dtype(theirs[c])
        ]
        self.quantities = [c for c in numeric if not _ONE_ALONE.fullmatch(c)]
        if not self.keys or not self.quantities:
            self.keys, self.both, self.dropped = (), mine.iloc[:0], ""
            return
        keys = list(self.keys)
        texts = [c for c in rest if c not in numeric and c not in ("method", "note")]
        joined = mine[[*keys, *texts]].merge(theirs[[*keys, *texts]], on=keys, suffixes=("", "_b"))
        labels = [c for c in texts if (joined[c] == joined[f"{c}_b"]).all()]
        self.both = joined[[*keys, *labels]]
        lost = len(mine) + len(theirs) - 2 * len(joined)
        self.dropped = f"{lost:,} rows are in one recording alone and left out." if lost else ""
        self._mine, self._theirs = self.values(mine), self.values(theirs)
        self._totals: set[str] = set()

    def values(self, table: pd.DataFrame) -> np.ndarray:
        """The quantities of the common rows, [N, Q]; NaN where the table has none."""
        rows = self.both[list(self.keys)].merge(table, on=list(self.keys), how="left", validate="one_to_one")
        return rows.reindex(columns=self.quantities).to_numpy(dtype=np.float64, na_value=np.nan)

    def long(
        self, left_G2NQ: np.ndarray | None, why: str, bags: Bags, *, level: float, corrected: bool
    ) -> pd.DataFrame:
        """The comparison, one row per common row and quantity."""
        difference_NQ = self._theirs - self._mine
        left_GNQ = None if left_G2NQ is None else np.diff(self._scaled(left_G2NQ), axis=1)[:, 0]
        reason_NQ = self._reasons(left_GNQ, why, difference_NQ)
        estimate_NQ, low_NQ, high_NQ = (np.full_like(difference_NQ, np.nan) for _ in range(3))
        if left_GNQ is not None:
            found = left_out_interval(difference_NQ, left_GNQ, bags=bags, level=level, corrected=corrected)
            given_NQ = reason_NQ == ""
            for into_NQ, values_NQ in (
                (estimate_NQ, found.value), (low_NQ, found.low), (high_NQ, found.high),
            ):  # fmt: skip
                into_NQ[given_NQ] = values_NQ[given_NQ]
        n, q = difference_NQ.shape
        frame = self.both.loc[self.both.index.repeat(q)].reset_index(drop=True)
        frame["quantity"] = np.tile(np.array(self.quantities, dtype=object), n)
        columns = {"a": self._mine, "b": self._theirs, "difference": difference_NQ, "estimate": estimate_NQ}
        for name, values_NQ in {**columns, "low": low_NQ, "high": high_NQ}.items():
            frame[name] = values_NQ.reshape(-1)
        frame["interval"] = np.where(reason_NQ == "", f"{level:.0%}".replace("%", " %"), "none: " + reason_NQ).ravel()
        return frame

    def headline(self, rows: pd.DataFrame) -> str:
        """The first quantity with an interval that is no total; empty where none has one."""
        given = dict.fromkeys(rows[rows["estimate"].notna()]["quantity"])
        return next((quantity for quantity in given if quantity not in self._totals), next(iter(given), ""))

    def _scaled(self, left_G2NQ: np.ndarray) -> np.ndarray:
        """Totals (counts of tokens) grow with the documents: without a group they are scaled to the whole's size."""
        n_groups = len(left_G2NQ)
        expected_2NQ = np.stack([self._mine, self._theirs]) * (n_groups - 1) / n_groups
        mean_2NQ = left_G2NQ.mean(axis=0)
        total_Q = (np.isclose(mean_2NQ, expected_2NQ, rtol=1e-9, atol=0) | np.isnan(mean_2NQ)).all(axis=(0, 1))
        self._totals = {quantity for quantity, total in zip(self.quantities, total_Q, strict=True) if total}
        return left_G2NQ * np.where(total_Q, n_groups / (n_groups - 1), 1.0)

    def _reasons(self, left_GNQ: np.ndarray | None, why: str, difference_NQ: np.ndarray) -> np.ndarray:
        """Why there is no interval, [N, Q]; empty where there is one."""
        reason_NQ = np.full(difference_NQ.shape, "", dtype=object)
        if left_GNQ is None:
            reason_NQ[:] = why.partition(" (")[0].removeprefix("No intervals: ").removeprefix("no interval: ")
        else:
            reason_NQ[np.isnan(left_GNQ).any(axis=0)] = "not known without some of the documents"
            reason_NQ[np.ptp(np.nan_to_num(left_GNQ), axis=0) == 0] = "the same whichever documents are left out"
        reason_NQ[np.isnan(difference_NQ)] = "not known in both"
        for column, quantity in enumerate(self.quantities):
            for pattern, reason in _NO_INTERVAL.items():
                if re.fullmatch(pattern, quantity) or (quantity == "excess" and self._against_drawn()):
                    reason_NQ[:, column] = reason if quantity != "excess" else "against a null that is drawn"
        if "measure" in self.both:
            for measure, reason in _EXTREMES.items():
                reason_NQ[(self.both["measure"] == measure).to_numpy()] = reason
        return reason_NQ

    def _against_drawn(self) -> bool:
        return any(re.fullmatch(f"({_DRAWN}).*", quantity) for quantity in self.quantities)


# What is shown


def figures(name: str, comparison: Comparison) -> dict[str, Figure]:
    """One figure of each table that has layers: lines of the differences, or a map where there are experts."""
    drawn = {table: _figure(name, table, comparison) for table in comparison.tables}
    return {table: figure for table, figure in drawn.items() if figure is not None}


def _figure(name: str, table: str, comparison: Comparison) -> Figure | None:
    rows, keys = comparison.tables[table], comparison.keys[table]
    given = rows[rows["estimate"].notna()]
    if given.empty or "layer" not in keys:
        return None
    quantity = comparison.headlines[table]
    shown = given[given["quantity"] == quantity]
    by_layer = shown.groupby("layer")
    rest = [key for key in keys if key not in ("layer", "expert") and by_layer[key].nunique().max() > 1]
    panel = next((key for key in reversed(rest) if shown[key].nunique() > 1), None)
    for key in (*(key for key in rest if key != panel), *((panel,) if panel else ())):
        values = list(dict.fromkeys(shown[key]))
        wanted = [value for value in values if str(value).startswith("all ")] or values
        most = MOST_PANELS if key == panel else 1
        shown = shown[shown[key].isin(values[:most] if key == panel else wanted[:most])]
    one, other = comparison.names
    what = f"{name.replace('_', ' ')}" if quantity in _UNNAMED else quantity.replace("_", " ")
    fixed = [f"{key.replace('_', ' ')} {shown[key].iloc[0]}" for key in rest if key != panel]
    where = f" at {', '.join(fixed)}" if fixed else ""
    some = " The table has all." if len(shown) < len(given) else ""
    caption = (
        f"{what[0].upper()}{what[1:]}{where} (analysis {name}, table {table}): {other} less {one}, with the bias of "
        f"finite text taken out ({comparison.sample}). {comparison.said}{some}"
    )
    most_row = shown.iloc[int(np.argmax(shown["estimate"].abs()))]
    alt = f"The largest difference is {most_row['estimate']:+.3g}, at layer {most_row['layer']}."
    title = f"{other} less {one}: {what}"
    words: dict[str, Any] = {"title": title, "caption": caption, "alt": alt, "panel": panel}
    if "expert" in keys:
        return HeatMap(
            shown, "expert", "layer", "estimate", x_label="expert", y_label="layer", center=0.0,
            value_label=f"difference in {what}", hover=("a", "b", "low", "high"), **words,
        )  # fmt: skip
    return Lines(
        shown.assign(none=0.0), "layer", "estimate", low="low", high="high", null="none", null_label="no difference",
        interval_label=f"{comparison.level:.0%} interval".replace("%", " %"), x_label="layer",
        y_label="difference" if quantity in _UNNAMED else f"difference in {what}", shared_y=False,
        hover=("a", "b"), **words,
    )  # fmt: skip
