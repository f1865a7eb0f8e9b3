"""What a model is made of, as plain data: layers, routers, experts, heads, parameters.

The dataclasses need no torch, so that costs and analyses can use them; `topology(module)` reads them off a loaded (or
meta-device) transformers model through what its class itself declares. It is no list of families: what transformers
does not declare stands in `families.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.models.families import family_facts
from workbench.models.routers import TOWERS, Router, of_layer, read_routers, unused_parameters
from workbench.models.weights import Parts, read_parts

__all__ = ["Router", "Topology", "topology"]


@dataclass(frozen=True)
class Topology:
    """A model's make-up.

    Attributes:
        family: transformers' `model_type`.
        n_layers: Decoder layers.
        width: C, model width.
        vocabulary: V, rows of the output.
        n_heads: H, attention heads of a layer; of the first one where layers differ, as are the next two.
        n_kv_groups: G, key/value groups of a layer.
        head_width: Width of one head.
        context: Longest sequence that the config states; None where it states none.
        routers: Every router, by layer and site; empty for a dense model.
        parameters_total: All parameters, tied ones once, less those that no token can meet.
        parameters_active: Those one token meets: of each router's experts K in E; the embedding counts whole.
        attention_layers: Decoder indices of the layers that keep keys and values of earlier tokens; None where it is
            not known (a recording of an earlier version). State-space, convolution and linear attention layers do not.
        parts: Weights by purpose, which costs are made of; None in recordings of an earlier version.
        parameters_unused: Values that transformers allocates and nothing reads, which are in no other number: rows of
            experts without compute.
    """

    family: str
    n_layers: int
    width: int
    vocabulary: int
    n_heads: int
    n_kv_groups: int
    head_width: int
    context: int | None
    routers: tuple[Router, ...]
    parameters_total: int
    parameters_active: int
    attention_layers: tuple[int, ...] | None = None
    parts: Parts | None = None
    parameters_unused: int = 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Decoder indices of the layers that have a router."""
        return tuple(sorted({router.layer for router in self.routers}))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Topology":
        """From `to_json`."""
        layers = value.get("attention_layers")
        return cls(
            **{
                **value,
                "routers": tuple(Router(**router) for router in value["routers"]),
                "attention_layers": None if layers is None else tuple(layers),
                "parts": Parts.from_json(value["parts"]) if value.get("parts") else None,
            }
        )


def topology(module: Any) -> Topology:
    """Reads what a transformers causal language model is made of.

    Args:
        module: The model; its weights may be on the meta device.

    Raises:
        ModelError: a router is declared whose experts or numbers cannot be found; nothing is left out silently.
    """
    config = module.config.get_text_config()
    modules = dict(module.named_modules())
    routers = read_routers(module, modules, config, family_facts(config.model_type))
    total = sum(parameter.numel() for parameter in module.parameters())
    unused = sum(unused_parameters(router, p) for router in routers for p in modules[router.experts_path].parameters())
    idle = sum(_idle(modules[router.experts_path], router) for router in routers)
    first = of_layer(config, 0)
    heads = first.num_attention_heads
    return Topology(
        family=config.model_type,
        n_layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        n_heads=heads,
        n_kv_groups=getattr(first, "num_key_value_heads", None) or heads,
        head_width=getattr(first, "head_dim", None) or config.hidden_size // heads,
        context=_context(config),
        routers=routers,
        parameters_total=total - unused,
        parameters_active=round(total - unused - idle),
        parameters_unused=unused,
        attention_layers=_attention_layers(modules),
        parts=read_parts(module, routers),
    )


def _idle(experts: Any, router: Router) -> float:
    """Parameters of a router's experts that one token does not meet."""
    read = sum(p.numel() - unused_parameters(router, p) for p in experts.parameters())
    return read * (1 - router.top_k / router.n_experts)


def _context(config: Any) -> int | None:
    """The longest sequence that a config states; some state none, or one without end."""
    stated = getattr(config, "max_position_embeddings", None)
    return int(stated) if isinstance(stated, int | float) and 0 < stated < 2**31 else None


def _attention_layers(modules: Mapping[str, Any]) -> tuple[int, ...]:
    """The decoder layers that hold an attention over keys and values, by the names of their modules' classes."""
    layers = set()
    for path, candidate in modules.items():
        name, numbers = type(candidate).__name__, re.findall(r"\.(\d+)\.", path)
        attends = name.endswith(("Attention", "MLA"))
        elsewhere = any(word in name for word in _NO_CACHE) or any(tower in path for tower in TOWERS)
        if attends and numbers and not elsewhere:
            # A decoder layer of longcat attends twice; transformers numbers its attentions one by one.
            layers.add(int(getattr(candidate, "layer_idx", None) or numbers[0]))
    return tuple(sorted(layers))


_NO_CACHE = ("Linear", "Lightning", "Delta")
