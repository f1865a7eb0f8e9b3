"""What every analysis takes from a recording: the sampling design, and counts of routers of one shape, stacked.

Axes: D documents, L routers of one shape, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.errors import AnalysisError
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import Interval


def require(
    recording: Recording, needs: tuple[str, ...], analysis: str, *, columns: tuple[str, ...] = ("counts",)
) -> None:
    """Refuses a recording that lacks what an analysis needs.

    Args:
        recording: What is asked.
        needs: Fields.
        analysis: Its name.
        columns: Columns without which it has no answer; an imported recording may lack some of a field's.

    Raises:
        AnalysisError: the model has no MoE layer, a field was not recorded, the source of an imported recording did not
            have a column, or prefill and decode are mixed.
    """
    if "routing" in needs and not recording.moe_layers:
        name = recording.manifest["identity"]["model"]
        raise AnalysisError(
            f"{analysis}: {name} has no MoE layer, so {recording.path} holds log-probabilities and no routing; "
            "record a model with routers (`workbench inspect MODEL` shows whether it has any)."
        )
    missing = [field for field in needs if field not in recording.fields]
    if missing and "source" in recording.manifest:
        raise AnalysisError(f"{analysis}: {recording.absent(missing[0], table='fields')}")
    if missing:
        wanted = ",".join([*recording.fields, *missing])
        raise AnalysisError(
            f"{analysis}: {recording.path} was recorded without {', '.join(missing)}; "
            f"record again with --fields {wanted}."
        )
    if len(recording.manifest["phases"]) > 1:
        raise AnalysisError(
            f"{analysis}: {recording.path} holds {' and '.join(recording.manifest['phases'])}, which are never "
            "averaged; choose one: --phase prefill or --phase decode."
        )
    lacked = [column for column in columns if column in recording.lacks]
    if lacked:
        raise AnalysisError(f"{analysis}: {recording.absent(lacked[0])}")


def design(recording: Recording) -> Clusters:
    """Which documents are resampled together, and within which domain."""
    documents = recording.documents()
    return Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["cluster"].to_numpy())


@dataclass(frozen=True, eq=False)
class RouterStack:
    """Routers with the same number of experts and of choices, so that their counts are one array.

    Attributes:
        routers: The routers, by layer.
        n_experts: E of each.
        top_k: K of each.
    """

    routers: tuple[Router, ...]
    n_experts: int
    top_k: int

    def stacked(self, recording: Recording, what: str) -> np.ndarray:
        """`counts`, `score_sum` or `weight_sum` of all routers: [D, L, E]."""
        names = [f"{prefix(router, recording.topology)}.{what}" for router in self.routers]
        # Part by part: a part is opened once for all layers, which is most of the cost of a document's small columns.
        parts = recording.parts(names, table="documents")
        return np.concatenate([np.stack([part[name] for name in names], axis=1) for part in parts])

    def labels(self) -> pd.DataFrame:
        """`layer` and, where a layer has several routers, `site`: one row per router."""
        frame = pd.DataFrame({"layer": [router.layer for router in self.routers]})
        if len({router.site for router in self.routers}) > 1:
            frame["site"] = [router.site for router in self.routers]
        return frame


def router_stacks(recording: Recording) -> Iterator[RouterStack]:
    """The recording's routers, grouped by (E, K); most models give one group."""
    shapes = dict.fromkeys((router.n_experts, router.top_k) for router in recording.topology.routers)
    for n_experts, top_k in shapes:
        same = tuple(r for r in recording.topology.routers if (r.n_experts, r.top_k) == (n_experts, top_k))
        yield RouterStack(same, n_experts, top_k)


def grouped_words(recording: Recording) -> str:
    """What nulls of random sets leave out for a router that chooses within groups; nothing where none does."""
    rules = {router.rule for router in recording.topology.routers if router.n_groups > 1}
    if not rules:
        return ""
    return f"random sets are drawn from all experts, though the model chooses {' or '.join(sorted(rules))}"


def long_form(labels: pd.DataFrame, axis: str, values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Arrays [L, n] as a long table: the labels of L repeated, the index along n under `axis`, a column per array."""
    n = next(iter(values.values())).shape[1]
    frame = labels.loc[labels.index.repeat(n)].reset_index(drop=True)
    frame[axis] = np.tile(np.arange(n), len(labels))
    for name, value in values.items():
        frame[name] = np.asarray(value).reshape(-1)
    return frame


def as_lines(
    table: pd.DataFrame, names: dict[str, str], *, by: list[str], line: str, value: str, of: str | None = None
) -> pd.DataFrame:
    """Columns of a table one below the other, for a figure with a line each; the interval stays with the line it is of.

    Args:
        table: With `low` and `high`.
        names: What each column is called in the figure; those that the table lacks or does not know are left out.
        by: Columns that tell points of a line apart.
        line: Column for the names.
        value: Column for the values.
        of: The column that `low` and `high` belong to; the first of the names unless given.
    """
    shown = [column for column in names if column in table and table[column].notna().any()] or list(names)[:1]
    long = table.melt(id_vars=by, value_vars=shown, var_name=line, value_name=value)
    ends = table[[*by, "low", "high"]].assign(**{line: of or next(iter(names))})
    long = long.merge(ends, how="left", on=[*by, line])
    long = long.assign(**{line: long[line].map(names)})
    known = long[value].notna()
    return long[known] if known.any() else long


def with_interval(frame: pd.DataFrame, interval: Interval, *, scale: float = 1.0) -> pd.DataFrame:
    """The frame with `value`, `low` and `high` of an interval over its rows."""
    return frame.assign(
        value=np.ravel(interval.value) * scale, low=np.ravel(interval.low) * scale, high=np.ravel(interval.high) * scale
    )


RATES_HELD = (
    "In simulations, intervals of nominal 95 % held a true rate in 92–99 % of data sets (8 and 24 documents, "
    "log-normal lengths of sd 0 to 1), in 89–91 % at worst for an expert that few documents use, in bursts "
    "(docs/coverage.md)."
)


def rates_note(table: pd.DataFrame, *notes: str) -> str:
    """Notes on a table of rates, and where it has intervals, how often such intervals hold the truth.

    The figures are those of docs/coverage.md, for `ratio_interval(…, share=True)` and the one by domain.
    """
    said = "; ".join(note for note in notes if note)
    held = RATES_HELD if table["low"].notna().any() else ""
    return f"{said}. {held}" if said and held else said or held


def in_bits(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with a last column `unit` that says which of its columns are in bits: metrics return nats."""
    return table.assign(unit=f"bits: {', '.join(name for name in columns if name in table)}")


def sample_words(recording: Recording) -> str:
    """The sample in words, for captions."""
    domains = recording.manifest["corpus"]["domains"]
    kinds = f" in {len(domains)} domains" if len(domains) > 1 else ""
    name = recording.manifest["identity"]["model"].rstrip("/").rpartition("/")[2]
    source = recording.manifest.get("source", {"unit": "documents"})
    words = f"{name}; {recording.n_tokens:,} tokens of {recording.n_documents:,} {source['unit']}{kinds}"
    if recording.chosen_phase is not None:
        words += {"prefill": ", given text", "decode": ", text the model wrote"}[recording.chosen_phase]
    if "format" not in source:
        return words
    unsaid = ", prefill and decoding not told apart" if "phase" in recording.lacks else ""
    return f"{words}, imported from {source['format']}{unsaid}"
