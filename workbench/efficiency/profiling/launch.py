"""How a step of decoding is launched: operation by operation, as compiled code, or as one recorded CUDA graph.

A step of one token per row holds hundreds of small operations; where the device is faster than the host launches them,
the host is what takes time. `compile` fuses operations (torch.compile, any device with a compiler for it), `graphs`
records the step's kernels once and replays them with one launch (CUDA). The prefill is always eager: its shapes change
and its operations are large. Neither lets a Python hook run between two replays, so a forced or watched run is eager.
Axes: B rows, V vocabulary.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from workbench.errors import MeasurementError

MODES = ("eager", "compile", "graphs")
_WARMED = 3
"""Steps before a capture, so that libraries have chosen their kernels and allocated what they keep."""


def forward(module: Any, tokens_BS: torch.Tensor, position_BS: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits [B, V] at the last position."""
    keeps = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}
    found = module(input_ids=tokens_BS, position_ids=position_BS, past_key_values=cache, use_cache=True, **keeps)
    return found.logits[:, -1]


def new_cache(module: Any, positions: int) -> Any:
    """A static cache; a growing one where the family has layers that transformers keeps no static cache for."""
    try:
        return StaticCache(config=module.config, max_cache_len=positions)
    except (KeyError, ValueError, AttributeError, NotImplementedError):
        return DynamicCache(config=module.config)


class Eager:
    """Operation by operation, with a new cache in each run."""

    mode = "eager"

    def __init__(self, module: Any) -> None:
        self._module = module

    def cache(self, positions: int) -> Any:
        """The cache of a run, empty."""
        return new_cache(self._module, positions)

    def step(self, tokens_B1: torch.Tensor, position_B1: torch.Tensor, cache: Any) -> torch.Tensor:
        """One step of decoding."""
        return forward(self._module, tokens_B1, position_B1, cache)


class Compiled(Eager):
    """The step compiled for its shapes; the first step of the first run compiles."""

    mode = "compile"

    def __init__(self, module: Any, *, backend: str = "inductor") -> None:
        super().__init__(module)
        self._compiled = torch.compile(forward, dynamic=False, backend=backend)

    def step(self, tokens_B1: torch.Tensor, position_B1: torch.Tensor, cache: Any) -> torch.Tensor:
        """One step of decoding."""
        return self._compiled(self._module, tokens_B1, position_B1, cache)


class Graph(Eager):
    """The step recorded in the first run and replayed after that, over one cache that is emptied before each run."""

    mode = "graphs"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._cache: Any = None
        self._replay: Callable[[], object] | None = None

    def cache(self, positions: int) -> Any:
        """The one cache, empty.

        Raises:
            MeasurementError: the family has no static cache without windows, and a graph cannot grow or turn one.
        """
        if self._cache is None:
            self._cache = new_cache(self._module, positions)
            if not isinstance(self._cache, StaticCache) or any(
                getattr(layer, "is_sliding", False) for layer in self._cache.layers
            ):
                raise MeasurementError(
                    f"decode is graphs, but {self._module.config.model_type} keeps a cache that grows or turns, which "
                    "no recorded graph follows; take eager or compile."
                )
        self._cache.reset()
        return self._cache

    def step(self, tokens_B1: torch.Tensor, position_B1: torch.Tensor, cache: Any) -> torch.Tensor:
        """One step: what the graph reads is copied to where it reads it, and it is replayed."""
        if self._replay is None:
            self._tokens_B1, self._position_B1 = tokens_B1.clone(), position_B1.clone()
            self._record()
        self._tokens_B1.copy_(tokens_B1)
        self._position_B1.copy_(position_B1)
        assert self._replay is not None
        self._replay()
        return self._logits_BV.clone()

    def _record(self) -> None:
        lengths = [layer.cumulative_length.clone() for layer in self._cache.layers]
        self._warm()
        for layer, length in zip(self._cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)  # what the warming wrote lies behind it and is written over
        self._replay = self._captured()

    def _once(self) -> None:
        self._logits_BV = forward(self._module, self._tokens_B1, self._position_B1, self._cache)

    def _warm(self) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARMED):
                self._once()
                for layer in self._cache.layers:
                    layer.cumulative_length.sub_(1)  # the same place each time: the cache is no longer than the run
        torch.cuda.current_stream().wait_stream(beside)

    def _captured(self) -> Callable[[], object]:
        """Records a step, which does not run it; what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._once()
        return graph.replay


def launcher(module: Any, mode: str) -> Eager:
    """What launches the steps of a run.

    Args:
        module: The unwrapped model.
        mode: One of `MODES`.

    Raises:
        MeasurementError: none of them.
    """
    ways = {way.mode: way for way in (Eager, Compiled, Graph)}
    if mode not in ways:
        raise MeasurementError(f"decode is {mode!r}; {', '.join(MODES)} were expected.")
    return ways[mode](module)


def why_not(module: Any, mode: str, ids_BS: torch.Tensor) -> str:
    """Why a way to launch does not work here, found by taking two steps with it; empty where it does."""
    if mode == "graphs" and ids_BS.device.type != "cuda":
        return f"a CUDA graph needs a CUDA GPU, and the model is on {ids_BS.device.type}"
    ids_BS = ids_BS[:1, :2]
    try:
        with torch.inference_mode():
            way = launcher(module, mode)
            cache = way.cache(4)
            forward(module, ids_BS, torch.arange(2, device=ids_BS.device)[None], cache)
            for at in (2, 3):
                way.step(ids_BS[:, -1:], torch.full((1, 1), at, device=ids_BS.device), cache)
    except Exception as error:  # whatever a compiler or a capture raises where it does not work is its reason
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
