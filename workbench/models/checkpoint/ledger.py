"""What transformers does with each tensor of a checkpoint, written down while it loads; and adapters are kept out."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, core_model_loading, modeling_utils
from transformers.models.auto import auto_factory


@dataclass
class Ledger:
    """What transformers did with each tensor while it loaded.

    Attributes:
        place_of: Of each tensor on disk the parameter it went to, or would have.
        merged: Tensors that became part of a parameter, with others or changed in layout.
        missing: Parameters that no tensor went to, before the class's own exceptions.
        mismatched: Parameters whose tensor has another shape: name, shape on disk, shape wanted.
        unconverted: Parameters whose tensors could not be joined, with the error.
    """

    place_of: dict[str, str] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    missing: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    unconverted: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def written_down() -> Iterator[Ledger]:
    """Sees, while the block loads, where transformers puts each tensor, and keeps adapters out.

    transformers 5 has no public way to either: its report names parameters and not tensors, less what the class
    ignores, and an adapter's file beside the weights is applied as soon as the package peft is installed.
    """
    ledger = Ledger()
    rename, adjust = core_model_loading.rename_source_key, PreTrainedModel._adjust_missing_and_unexpected_keys

    def renamed(source_key: str, *arguments: Any, **keywords: Any) -> tuple[str, str | None]:
        place, pattern = rename(source_key, *arguments, **keywords)
        ledger.place_of[source_key] = place
        (ledger.merged.discard if pattern is None else ledger.merged.add)(source_key)
        return place, pattern

    def adjusted(module: Any, info: Any) -> None:
        ledger.missing = tuple(sorted(info.missing_keys))
        ledger.mismatched = tuple((key, tuple(found), tuple(wanted)) for key, found, wanted in info.mismatched_keys)
        ledger.unconverted = dict(info.conversion_errors)
        adjust(module, info)

    def without_adapter(name: Any, _: Any, **keywords: Any) -> tuple[None, Any, dict[str, Any]]:
        return None, name, keywords

    with (
        _replaced(core_model_loading, "rename_source_key", renamed),
        _replaced(PreTrainedModel, "_adjust_missing_and_unexpected_keys", adjusted),
        _replaced(modeling_utils, "maybe_load_adapters", without_adapter),
        _replaced(auto_factory, "is_peft_available", lambda: False),
    ):
        yield ledger


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
