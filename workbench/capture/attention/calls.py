"""Shows every softmax attention of a model to a watcher while the model runs, and leaves the model as it is.

transformers calls an attention function by name. While a model is watched, that name is one of ours, whose function
calls the very function that the model would have used, with the mask made by that one's own mask function, returns its
output as it is, and hands queries, keys and mask to the watcher.

Axes: B rows, S queries, T keys, H heads, G key/value groups, D width of a head.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "workbench_"
Watcher = Callable[["Call"], None]


@dataclass(frozen=True)
class Call:
    """One attention call.

    Attributes:
        layer: Decoder layer.
        query: [B, H, S, D], positions already turned in (post-RoPE).
        key: [B, G, T, D], groups not repeated; T counts cached keys too.
        mask: What the model's own mask function made: None (causal); bool or added to the scores, [B, 1, S, T]; a
            flash kernel's mask of padding, [B, T]; or flex attention's block mask.
        scaling: Factor on the scores.
        softcap: Bound of the scores by a tanh; None for none.
        bias: [B, H, S, T], added to the scores by the model's own rule (relative positions); None for none.
        sinks: Logits that take weight from all keys, learned, [H], or of each query, [B, H, S, 1]; None for none.
        causal: Whether, without a mask, a query sees the keys up to its own.
        window: Keys a query sees at most, its own counted, where the mask does not say it; None for all.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    bias: torch.Tensor | None
    sinks: torch.Tensor | None
    causal: bool
    window: int | None = None

    @property
    def of_tokens(self) -> bool:
        """Whether the keys are those of the tokens: without a cache there are as many as queries."""
        return self.key.shape[2] == self.query.shape[2]


@dataclass
class _Watched:
    watcher: Watcher | None = None
    models: list[Any] = field(default_factory=list)


_STATE = _Watched()


@contextmanager
def watching(model: Any, watcher: Watcher) -> Iterator[None]:
    """A block in which every softmax attention of a model is shown to a watcher, and runs as it would have run.

    One model at a time: the functions of transformers are one table for all.
    """
    if _STATE.watcher is not None:
        raise RuntimeError("a model is being watched already; its block must end first")
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    try:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = _registered(name or "eager")
        _STATE.watcher = watcher
        yield
    finally:
        _STATE.watcher = None
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _configs(model: Any) -> list[Any]:
    """Every config that a module of the model holds: layers may hold copies of their own."""
    found = {id(config): config for m in model.modules() if hasattr(config := getattr(m, "config", None), "to_dict")}
    return list(found.values())


def _registered(name: str) -> str:
    """The name under which an implementation is watched; registered at its first use, with its own mask function."""
    if name.startswith(PREFIX):
        return name
    ours = PREFIX + name
    if ours not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(ours, _watched(name))
        if name in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(ours, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return ours


def _watched(name: str) -> Callable[..., Any]:
    def forward(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        plain = ALL_ATTENTION_FUNCTIONS.get(name, None) if name != "eager" else None
        if plain is None:  # a family's own eager function is not in the table
            plain = sys.modules[type(module).__module__].eager_attention_forward
        result = plain(module, query, key, value, *rest, **options)
        if _STATE.watcher is not None and getattr(module, "layer_idx", None) is not None:
            scaling = options.get("scaling")
            sinks, bias = options.get("s_aux", options.get("sinks")), options.get("position_bias")
            _STATE.watcher(
                Call(
                    layer=int(module.layer_idx),
                    query=query.detach(),
                    key=key.detach(),
                    mask=rest[0] if rest else options.get("attention_mask"),
                    scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
                    softcap=options.get("softcap"),
                    bias=None if bias is None else bias.detach(),
                    sinks=None if sinks is None else sinks.detach(),
                    causal=bool(getattr(module, "is_causal", True) if options.get("is_causal") is None
                                else options["is_causal"]),
                    window=options.get("sliding_window"),
                )
            )  # fmt: skip
        return result

    return forward
