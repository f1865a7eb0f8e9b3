"""Which decoder layer each column of a source is, and how many experts it has: from the user, the model, or the source.

A source that counts its layers counts them in its own way (MoE layers alone, or all decoder layers); a number is never
guessed where the source does not say it.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from workbench.errors import TraceError
from workbench.models.topology import Router, Topology
from workbench.recordings.importers.limits import MOST_COUNTERS, MOST_EXPERTS, MOST_LAYERS
from workbench.recordings.importers.trace import Trace

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Layout:
    """What the columns are.

    Attributes:
        columns: Columns of the source that are taken, one for each router of the topology, in its order.
        topology: The model's, with the routers of these layers alone. Where no model was named only layers, experts and
            k are known; other numbers are 0.
    """

    columns: tuple[int, ...]
    topology: Topology

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layer of each column."""
        return tuple(router.layer for router in self.topology.routers)

    @property
    def top_k(self) -> int:
        """K, the same in all of them."""
        return self.topology.routers[0].top_k


def parse_layers(text: str) -> tuple[int, ...]:
    """Decoder layers from a text such as `1-27` or `0,2,4-6`.

    Raises:
        TraceError: it is no such list, does not ascend, or names a layer that no model has.
    """
    layers: list[int] = []
    quoted = repr(text if len(text) <= 60 else f"{text[:59]}…")
    for piece in text.split(","):
        found = re.fullmatch(r"\s*([0-9]+)(?:\s*[-–]\s*([0-9]+))?\s*", piece)
        if not found:
            raise TraceError(
                f"--layers {quoted}: {piece.strip()[:60]!r} is no layer; a list such as 1-27 or 0,2,4-6 was expected."
            )
        first, last = (int(digits.lstrip("0")[:9] or 0) for digits in (found[1], found[2] or found[1]))
        if last >= MOST_LAYERS or first >= MOST_LAYERS or len(layers) > MOST_LAYERS:
            raise TraceError(f"--layers {quoted}: decoder layers from 0 to {MOST_LAYERS - 1:,} were expected.")
        layers += range(first, last + 1)
    if not layers or any(later <= earlier for earlier, later in pairwise(layers)):
        raise TraceError(f"--layers {quoted} does not ascend; name each layer once, in order.")
    return tuple(layers)


def layout_of(
    trace: Trace,
    *,
    layers: tuple[int, ...] | None = None,
    topology: Topology | None = None,
    n_experts: int | None = None,
    top_k: int | None = None,
) -> Layout:
    """Joins what the user, the model and the source say.

    Args:
        trace: The source.
        layers: Decoder layers of its columns; or, of a source whose columns are all decoder layers, those to take.
        topology: Of the model, from its config.
        n_experts: E.
        top_k: K, where the source does not say it.

    Raises:
        TraceError: they disagree, or none of them says it; names the option to give.
    """
    if not 1 <= trace.n_columns <= MOST_LAYERS:
        raise TraceError(
            f"{trace.files[0]} has {trace.n_columns:,} columns of layers; 1 to {MOST_LAYERS:,} were expected."
        )
    columns, named = _columns(trace, layers, topology)
    if named[0] < 0 or named[-1] >= MOST_LAYERS or any(later <= earlier for earlier, later in pairwise(named)):
        raise TraceError(
            f"the layers {_listed(named)} cannot be meant; decoder layers from 0 to {MOST_LAYERS - 1:,} were expected, "
            "each once, in order."
        )
    routers = {router.layer: router for router in topology.routers} if topology else {}
    if topology and len(routers) < len(topology.routers):
        raise TraceError(
            f"{topology.family} has layers with two routers, and the columns of {trace.files[0]} do not say whose they "
            "are; such traces cannot be imported with --model. Give --layers and --experts."
        )
    file = trace.files[0]
    of_model = {what: {getattr(router, what) for router in routers.values()} for what in ("top_k", "n_experts")}
    k = _agreed("k", "--top-k", file, said=top_k, source=trace.top_k, of_model=of_model["top_k"])
    experts = _agreed(
        "experts", "--experts", file, said=n_experts, source=trace.n_experts, of_model=of_model["n_experts"]
    )
    if not 1 <= k <= experts <= MOST_EXPERTS:
        raise TraceError(f"{k} experts of {experts} for each token cannot be meant; check --top-k and --experts.")
    if len(named) * experts > MOST_COUNTERS:
        raise TraceError(
            f"{len(named):,} layers of {experts:,} experts are {len(named) * experts:,}; {MOST_COUNTERS:,} experts in "
            "all were expected at most. Check --layers and --experts."
        )
    if topology:
        return Layout(columns, replace(topology, routers=tuple(routers[layer] for layer in named)))
    return Layout(columns, _bare_topology(named, n_experts=experts, top_k=k))


def _columns(
    trace: Trace, layers: tuple[int, ...] | None, topology: Topology | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The columns taken, and the decoder layer of each."""
    file, n_columns = trace.files[0], trace.n_columns
    every = tuple(range(n_columns))
    if topology and layers and not set(layers) <= set(topology.moe_layers):
        raise TraceError(f"--layers {_listed(layers)}: the model's MoE layers are {_listed(topology.moe_layers)}.")
    if trace.layers is not None:
        return _of_known(trace.layers, file, layers, topology)
    wanted = layers or (topology.moe_layers if topology else every if trace.every_layer else None)
    if wanted is None:
        raise TraceError(
            f"{file} has {n_columns} columns of layers and does not say which decoder layers they are. Give --layers, "
            f"such as 0-{n_columns - 1}, or 1-{n_columns} where layer 0 is dense; or --model."
        )
    if len(wanted) == n_columns:
        return every, wanted
    if set(wanted) <= set(every) and (topology is None or n_columns == topology.n_layers):
        return wanted, wanted  # the columns are all decoder layers, dense ones among them
    raise TraceError(
        f"{file} has {n_columns} columns of layers, and {'--layers names' if layers else 'the model has'} "
        f"{len(wanted)} MoE layers ({_listed(wanted)}); they must agree in number, or the columns be all decoder "
        "layers."
    )


def _of_known(
    known: tuple[int, ...], file: Path, layers: tuple[int, ...] | None, topology: Topology | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The columns and layers of a source that says itself which decoder layers its columns are."""
    wanted = layers or known
    if not set(wanted) <= set(known):
        raise TraceError(f"--layers {_listed(wanted)}: {file} has ids of the layers {_listed(known)}.")
    if topology and not set(wanted) <= set(topology.moe_layers):
        raise TraceError(
            f"{file} has ids of the layers {_listed(wanted)}, and the model's MoE layers are "
            f"{_listed(topology.moe_layers)}. Name the model that the trace is of, or the layers with --layers."
        )
    return tuple(known.index(layer) for layer in wanted), wanted


def _agreed(what: str, option: str, file: Path, *, said: int | None, source: int | None, of_model: set[int]) -> int:
    if len(of_model) > 1:
        raise TraceError(
            f"the model's layers differ in {what} ({sorted(of_model)}); a trace of one shape cannot be of it."
        )
    quoted = {f"{option} says": said, f"{file} has": source, "the model has": next(iter(of_model), None)}
    told_numbers = {who: number for who, number in quoted.items() if number is not None}
    if not told_numbers:
        raise TraceError(f"{file} does not say {'how many experts there are' if what == 'experts' else 'k'}; give "
                         f"{option} N, or --model.")  # fmt: skip
    if len(set(told_numbers.values())) > 1:
        words = ", ".join(f"{who} {number}" for who, number in told_numbers.items())
        raise TraceError(f"{what} disagree: {words}. Name the model that the trace is of, or mend the option.")
    return next(iter(told_numbers.values()))


def _bare_topology(layers: tuple[int, ...], *, n_experts: int, top_k: int) -> Topology:
    """A topology that knows layers, experts and k; nothing else is known, and what is a number is 0."""
    routers = tuple(
        Router(
            layer=layer, site="mlp", n_experts=n_experts, top_k=top_k, scoring=_UNKNOWN, normalized=False,
            shared_width=0, shared_gate=False, expert_width=0, router_path="", experts_path="", block_path="",
            shared_gate_path="", logits_index=None,
        )
        for layer in layers
    )  # fmt: skip
    return Topology(
        family=_UNKNOWN, n_layers=int(np.max(layers)) + 1, width=0, vocabulary=0, n_heads=0, n_kv_groups=0,
        head_width=0, context=None, routers=routers, parameters_total=0, parameters_active=0,
    )  # fmt: skip


def _listed(layers: tuple[int, ...]) -> str:
    return (
        ", ".join(map(str, layers)) if len(layers) <= 6 else f"{layers[0]}, {layers[1]}, … {layers[-1]} ({len(layers)})"
    )
