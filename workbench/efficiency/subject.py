"""What cost analyses are asked of: a model, what it is held against, and how; read from configs, without a weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from workbench.efficiency.claims import published_claims
from workbench.efficiency.counterparts import KINDS, counterpart
from workbench.errors import ModelError
from workbench.models.topology import Topology


@dataclass(frozen=True)
class Costed:
    """Two models whose costs are compared.

    Attributes:
        name: Of the model.
        topology: What it is made of.
        against: Name of what it is held against.
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
    """Reads a model and what it is held against.

    Args:
        model: Bundled, a local folder, a published config, or a hub id.
        against: `iso-active`, `iso-total`, `iso-memory`, or another model's name.
        batch: Sequences whose cache counts, for `iso-memory`.
        context: Tokens in each.
        dtype: Of weights, for `iso-memory`.

    Raises:
        ModelError: an unknown name, or a model that has no counterpart of the kind.
    """
    from workbench.models.loading import inspect_topology

    topology = inspect_topology(model)
    if against in KINDS:
        found = counterpart(topology, against, batch=batch, context=context, dtype=dtype)
        return Costed(model, topology, against, found.topology, found.words)
    if against.startswith("iso-"):
        raise ModelError(f"against is {against!r}; {', '.join(KINDS)}, or the name of a model was wanted.")
    return Costed(model, topology, against, inspect_topology(against))


def with_published(subject: Costed) -> Costed:
    """The same with the topologies of the published configs, which the published tables are about."""
    from workbench.models.loading import inspect_topology

    names = {*(claim.config for claim in published_claims()), "jamba-v0.1", "mixtral-8x7b", "yi-1.5-34b"}
    found = {name: inspect_topology(name) for name in sorted(names)}
    return Costed(subject.name, subject.topology, subject.against, subject.other, subject.note, found)
