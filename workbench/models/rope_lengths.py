"""Lengths at which a model changes what it computes for every row of a batch, because one row is longer.

transformers lets two kinds of rotary position embedding follow the longest row of a batch: `longrope` has one set of
frequencies up to a length and another beyond it, and `dynamic` has other frequencies for every length beyond the one it
was trained at, and keeps those of the longest batch so far. A document's result would depend on its company. So batches
do not mix such lengths (`capture/batching.py`), and what a model keeps is forgotten before each batch.
Read from `transformers/modeling_rope_utils.py` (`dynamic_rope_update`) of transformers 5.23.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Borders:
    """Where a row's length decides how all rows of its batch are computed.

    Attributes:
        switches: Lengths up to which one rule holds, and beyond which another one does, for all rows; sorted.
        exact_above: Length beyond which every length has a rule of its own; None for none.
    """

    switches: tuple[int, ...] = ()
    exact_above: int | None = None

    def __bool__(self) -> bool:
        return bool(self.switches) or self.exact_above is not None

    def side(self, n_tokens: int) -> tuple[int, int]:
        """What rows of one batch must have in common: equal for lengths that are computed alike."""
        exact = n_tokens if self.exact_above is not None and n_tokens > self.exact_above else 0
        return sum(n_tokens > switch for switch in self.switches), exact

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the rule in words."""
        words = [f"longrope: lengths up to {n} and beyond it never share a batch" for n in self.switches]
        if self.exact_above is not None:
            words.append(
                f"dynamic rope: rows of more than {self.exact_above} tokens share a batch with no other length"
            )
        return {"switches": list(self.switches), "exact_above": self.exact_above, "rule": "; ".join(words)}


NO_BORDERS = Borders()


def length_borders(model: Any) -> Borders:
    """The borders of a transformers model, read off its rotary embeddings."""
    switches, exact = set(), []
    for module, layer_type, kind in _rotary(model):
        if kind == "longrope":
            stated = module.config.rope_parameters
            stated = stated.get(layer_type, stated) if layer_type else stated
            length = stated.get("original_max_position_embeddings") or module.original_max_seq_len
            switches.add(int(length))
        else:
            exact.append(int(module.original_max_seq_len))
    return Borders(tuple(sorted(switches)), min(exact, default=None))


def forget_lengths(model: Any) -> None:
    """Puts frequencies that follow the longest batch so far back to what they were when the model was loaded."""
    for module, layer_type, kind in _rotary(model):
        if kind == "longrope":
            continue  # chosen anew in every pass
        before = f"{layer_type}_" if layer_type else ""
        frequencies = getattr(module, f"{before}inv_freq")
        original = getattr(module, f"{before}original_inv_freq").to(frequencies.device)
        module.register_buffer(f"{before}inv_freq", original.clone(), persistent=False)
        setattr(module, f"{before}max_seq_len_cached", module.original_max_seq_len)


def _rotary(model: Any) -> Iterator[tuple[Any, str, str]]:
    """(module, layer type or empty, kind) of every rotary embedding that follows the length of a batch."""
    for module in model.modules():
        stated = getattr(module, "rope_type", None)
        if not hasattr(module, "original_max_seq_len"):
            continue
        for layer_type, kind in (stated if isinstance(stated, dict) else {"": stated}).items():
            if kind == "longrope" or "dynamic" in str(kind):
                yield module, layer_type, "longrope" if kind == "longrope" else "dynamic"
