"""What cost analyses are asked of: a model, what it is compared with, and how; read from configs, without a weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from workbench.efficiency.costs.claims import published_claims
from workbench.efficiency.costs.counterparts import KINDS, counterpart
from workbench.errors import ModelError
from workbench.extras import extra_named
from workbench.models.topology import Topology

QUALITY_CONFIGS: Mapping[str, str] = {
    "Jamba": "jamba-v0.1",
    "Mixtral-8x7B": "mixtral-8x7b",
    "Yi-1.5-34B": "yi-1.5-34b",
    "Qwen1.5-32B": "qwen1.5-32b",
    "Qwen2-57B-A14B": "qwen2-57b-a14b",
}
"""The published config of each column of `data/reference/quality.csv`."""


@dataclass(frozen=True)
class Costed:
    """Two models whose costs are compared.

    Attributes:
        name: Of the model.
        topology: What it is made of.
        against: Name of what it is compared with.
        other: What that is made of.
        note: How near a counterpart comes to what it shares with the model; empty for a named model.
        published: Topologies of the published configs, by name, where they are asked for.
    """

    name: str
    topology: Topology
    against: str
    other: Topology
    note: str = ""
    published: Mapping[str, Topology] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Both, for captions."""
        return f"{self.name} against {self.against}" + (f" ({self.note})" if self.note else "")

    @property
    def digest(self) -> str:
        """SHA-256 over both topologies."""
        both = json.dumps([self.topology.to_json(), self.other.to_json()], sort_keys=True)
        return hashlib.sha256(both.encode()).hexdigest()


def costed(
    model: str, against: str = "iso-active", *, batch: int = 1, context: int = 1024, dtype: str = "bfloat16"
) -> Costed:
    """Reads a model and what it is compared with.

    Args:
        model: Bundled, a local folder, a published config, or a hub id.
        against: `iso-active`, `iso-total`, `iso-memory`, or another model's name.
        batch: Sequences whose cache counts, for `iso-memory`.
        context: Tokens in each.
        dtype: Of weights, for `iso-memory`.

    Raises:
        ModelError: an unknown name, or a model that has no counterpart of the kind.
    """
    with extra_named("the config of a model"):
        from workbench.models.loading import inspect_topology

    topology = inspect_topology(model)
    if against in KINDS:
        return with_counterpart(model, topology, against, batch=batch, context=context, dtype=dtype)
    if against.startswith("iso-"):
        raise ModelError(f"against is {against!r}; {', '.join(KINDS)}, or the name of a model was expected.")
    return Costed(model, topology, against, inspect_topology(against))


def with_counterpart(
    model: str, topology: Topology, kind: str, *, batch: int = 1, context: int = 1024, dtype: str = "bfloat16"
) -> Costed:
    """A model whose make-up is known, and its dense counterpart. Arguments and errors as of `counterpart`."""
    found = counterpart(topology, kind, batch=batch, context=context, dtype=dtype)
    return Costed(model, topology, kind, found.topology, found.words)


def published_names() -> tuple[str, ...]:
    """The published configs that the published tables are about."""
    return tuple(sorted({*(claim.config for claim in published_claims()), *QUALITY_CONFIGS.values()}))


def with_published(subject: Costed) -> Costed:
    """The same with the topologies of the published configs, which the published tables are about."""
    with extra_named("the config of a model"):
        from workbench.models.loading import inspect_topology

    found = {name: inspect_topology(name) for name in published_names()}
    return Costed(subject.name, subject.topology, subject.against, subject.other, subject.note, found)
