"""Reads and sets what a model's routers and experts see, through nnsight. The only file that knows nnsight.

A model is wrapped once, at its first trace. nnsight wants sites read in the order in which they run, and that order is
found by running the model, not by a table. One lock a model: nnsight traces of one model from two threads fail.

Axes: B rows of the batch, S positions, T = B·S tokens flattened row by row (padding included), E experts, K chosen per
token, C model width, V vocabulary.
"""

import inspect
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from nnsight import NNsight

from workbench.capture.experts_call import Inputs, bound, of_scores, with_ids, with_scores
from workbench.errors import CaptureError
from workbench.models.placement import here
from workbench.models.rope_lengths import forget_lengths, length_borders
from workbench.models.topology import Router, Topology


@dataclass(frozen=True)
class RouterCapture:
    """What one router did in one forward pass, padding rows included, on the model's device.

    Attributes:
        logits_TE: Raw router logits, in the dtype the model computes them in.
        ids_TK: Chosen experts, as given to the experts module.
        weights_TK: Routing weights, as given to the experts module.
        shared_gate_T: The shared expert's gate before its sigmoid; None where there is none.
        bias_E: The correction bias of the choice; None where there is none.
        hidden_TC: Input of the experts; only in a deep trace.
        routed_TC: Output of the experts; only in a deep trace.
        linear_input: Input of the linear map that gives the logits; only in a deep trace.
        block_inputs: Positional and named inputs of the block; only in a deep trace.
        block_output: Output of the block; only in a deep trace.
        experts_inputs: Positional and named inputs of the experts; only in a trace of outputs.
        shared_TC: Output of the shared expert before its gate; only in a trace of outputs, where there is one.
        contribution_TK: What `experts.py` makes of a trace of outputs; so is the next.
        shared_T3: Share, projection and cosine of the shared output.
    """

    logits_TE: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor
    shared_gate_T: torch.Tensor | None
    bias_E: torch.Tensor | None = None
    hidden_TC: torch.Tensor | None = None
    routed_TC: torch.Tensor | None = None
    linear_input: torch.Tensor | None = None
    block_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    block_output: torch.Tensor | None = None
    experts_inputs: Inputs | None = None
    shared_TC: torch.Tensor | None = None
    contribution_TK: torch.Tensor | None = None
    shared_T3: torch.Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """One forward pass: the model's logits_BSV, what each router did, in the order of the topology, and its cache."""

    logits: torch.Tensor
    routers: tuple[RouterCapture, ...]
    cache: Any = None


class _Wrapped:
    """The wrapping of one model, kept on the model itself: a table beside it would keep every model alive."""

    def __init__(self, module: Any) -> None:
        self.envoy = NNsight(module)
        self.lock = threading.Lock()
        self.order: dict[str, int] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model is another model, and not wrapped yet."""


_WRAPPED = "_workbench_wrapped"
_WRAPPING = threading.Lock()


class Tracer:
    """Runs one model and reads its routers. Cheap to make; the wrapping is done once per model."""

    def __init__(self, module: Any, topology: Topology) -> None:
        self._module = module
        self._topology = topology
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._remembers = length_borders(module).exact_above is not None
        with _WRAPPING:
            if getattr(module, _WRAPPED, None) is None:
                setattr(module, _WRAPPED, _Wrapped(module))
            self._wrapped: _Wrapped = getattr(module, _WRAPPED)

    def prepare(self, ids_BS: torch.Tensor) -> None:
        """Finds the order in which the sites run, by a short pass, so that the next run is nothing but itself."""
        with self._wrapped.lock:
            if self._wrapped.order is None:
                self._wrapped.order = self._observed_order(ids_BS)

    def run(
        self,
        ids_BS: torch.Tensor,
        mask_BS: torch.Tensor | None = None,
        *,
        routers: Iterable[Router] | None = None,
        logits_to_keep: int = 0,
        deep: bool = False,
        outputs: bool = False,
        cache: Any = None,
        keep_cache: bool = False,
    ) -> Trace:
        """One forward pass.

        Args:
            ids_BS: Token ids.
            mask_BS: 1 for tokens, 0 for padding; None where nothing is padded.
            routers: Which to read; all of the topology unless given.
            logits_to_keep: 0 for the model's logits at all positions, n for the last n.
            deep: Also read inputs and outputs of the blocks and experts, for the proofs.
            outputs: Also read what experts and shared experts are given and put out.
            cache: Keys, values and states of the tokens before these, from an earlier trace.
            keep_cache: Whether the model keeps a cache, to be found in the trace.

        Raises:
            CaptureError: a site that the topology names was never reached, or gave something else than ids and weights.
        """
        wanted = tuple(self._topology.routers if routers is None else routers)
        with self._wrapped.lock, torch.no_grad():
            sites = self._sites(wanted, deep=deep, outputs=outputs, ids_BS=ids_BS)
            shared = {f"out:{router.shared_path}" for router in wanted if outputs}
            read: dict[str, Any] = {}
            inputs = self._inputs(ids_BS, mask_BS, logits_to_keep) | {"use_cache": keep_cache}
            if cache is not None:
                inputs["past_key_values"] = cache
            elif self._remembers:
                forget_lengths(self._module)
            with self._wrapped.envoy.trace(**inputs):
                for key, envoy, side in sites:
                    value = envoy.inputs if side == "in" else envoy.output
                    # llama4 adds the routed output into the shared one, in place
                    read[key] = (value.clone() if key in shared else value).save()
                output = self._wrapped.envoy.output.save()
        kept = output.past_key_values if keep_cache else None
        return Trace(output.logits, tuple(self._capture(router, read) for router in wanted), kept)

    def forced(
        self, ids_BS: torch.Tensor, mask_BS: torch.Tensor | None, *, router: Router, chosen_TK: torch.Tensor
    ) -> torch.Tensor:
        """The model's logits_BSV when one router's chosen experts are replaced; the weights stay.

        Args:
            ids_BS: Token ids.
            mask_BS: 1 for tokens, 0 for padding; None where nothing is padded.
            router: Whose choice is replaced.
            chosen_TK: Expert ids for every token, padding included.
        """
        with self._wrapped.lock, torch.no_grad():
            if self._remembers:
                forget_lengths(self._module)
            site = self._envoy(router.router_path if router.way == "scores" else router.experts_path)
            with self._wrapped.envoy.trace(**self._inputs(ids_BS, mask_BS, 0)):
                if router.way == "scores":
                    given = site.output
                    site.output = (with_scores(given[0], chosen_TK), *given[1:])
                else:
                    given = site.inputs
                    site.inputs = with_ids(given, chosen_TK)
                logits = self._wrapped.envoy.output.logits.save()
        return logits

    def _capture(self, router: Router, read: Mapping[str, Any]) -> RouterCapture:
        owner, _, name = router.bias_path.rpartition(".")
        if not owner:
            return _capture(router, read)
        module = self._module.get_submodule(owner)
        with here(module):
            bias_E = getattr(module, name).float().reshape(-1)
        return replace(_capture(router, read), bias_E=bias_E)

    def _inputs(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor | None, logits_to_keep: int) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids_BS, "use_cache": False}
        if mask_BS is not None:
            inputs["attention_mask"] = mask_BS
        if logits_to_keep and self._keeps_logits:
            inputs["logits_to_keep"] = logits_to_keep
        return inputs

    def _envoy(self, path: str) -> Any:
        envoy = self._wrapped.envoy
        for name in path.split("."):
            envoy = envoy[int(name)] if name.isdigit() else getattr(envoy, name)
        return envoy

    def _sites(
        self, routers: tuple[Router, ...], *, deep: bool, outputs: bool, ids_BS: torch.Tensor
    ) -> list[tuple[str, Any, str]]:
        """(key, envoy, side) of everything to read, in the order in which it runs."""
        keys = [key for router in routers for key in _keys(router, deep=deep, outputs=outputs)]
        if self._wrapped.order is None or any(key not in self._wrapped.order for key in keys):
            self._wrapped.order = self._observed_order(ids_BS)
        missing = [key for key in keys if key not in self._wrapped.order]
        if missing:
            raise CaptureError(
                f"{self._topology.family}: {missing[0]!r} was declared but never ran in a forward pass. The family's "
                "facts in workbench/models/families.py name the wrong module, or the layer is skipped."
            )
        ordered = sorted(keys, key=self._wrapped.order.__getitem__)
        return [(key, self._envoy(key.partition(":")[2]), key.partition(":")[0]) for key in ordered]

    def _observed_order(self, ids_BS: torch.Tensor) -> dict[str, int]:
        """When each site's input and output come by in a forward pass, by plain hooks on the bare module."""
        modules = dict(self._module.named_modules())
        keys = {key for router in self._topology.routers for key in _keys(router, deep=True, outputs=True)}
        events: list[str] = []
        handles = []
        for key in keys:
            side, _, path = key.partition(":")
            hook = lambda *_, key=key: events.append(key)  # noqa: E731
            register = modules[path].register_forward_pre_hook if side == "in" else modules[path].register_forward_hook
            handles.append(register(hook))
        try:
            with torch.no_grad():
                self._module(input_ids=ids_BS[:1, :2], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        repeated = [key for key in keys if events.count(key) > 1]
        if repeated:
            raise CaptureError(
                f"{self._topology.family}: {repeated[0]!r} ran {events.count(repeated[0])} times in one forward pass; "
                "once was expected, so its calls cannot be told apart."
            )
        return {key: i for i, key in enumerate(events)}


def _logits_path(router: Router) -> str:
    return router.logits_path or router.router_path


def _keys(router: Router, *, deep: bool, outputs: bool) -> list[str]:
    keys = [f"out:{_logits_path(router)}"]
    if router.way == "scores":
        keys.append(f"out:{router.router_path}")
    if router.way == "experts" or deep:
        keys.append(f"in:{router.experts_path}")
    if router.shared_gate_path:
        keys.append(f"out:{router.shared_gate_path}")
    if outputs:
        keys += [f"in:{router.experts_path}", f"out:{router.experts_path}"]
        keys += [f"out:{router.shared_path}"] if router.shared_path else []
    if deep:
        keys += [f"in:{router.linear_input_path or router.router_path}", f"out:{router.experts_path}"]
        keys += [f"in:{router.block_path}", f"out:{router.block_path}"]
    return list(dict.fromkeys(keys))


def _capture(router: Router, read: Mapping[str, Any]) -> RouterCapture:
    output = read[f"out:{_logits_path(router)}"]
    logits = output if router.logits_index is None else output[router.logits_index]
    if router.way == "scores":
        ids, weights = of_scores(read[f"out:{router.router_path}"][0], router)
        hidden = _first_tensor(read[f"in:{router.experts_path}"]) if f"in:{router.experts_path}" in read else None
    else:
        hidden, ids, weights = bound(read[f"in:{router.experts_path}"], router)
        ids, weights = ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, weights.shape[-1])
    if router.skips:
        ids = torch.where(weights == 0, torch.full_like(ids, router.n_experts - 1), ids)
    gate = read.get(f"out:{router.shared_gate_path}")
    block_output = read.get(f"out:{router.block_path}")
    deep = block_output is not None
    return RouterCapture(
        logits_TE=logits.reshape(-1, logits.shape[-1]),
        ids_TK=ids,
        weights_TK=weights,
        shared_gate_T=None if gate is None else gate.reshape(-1),
        hidden_TC=hidden if deep else None,
        routed_TC=read.get(f"out:{router.experts_path}"),
        linear_input=_first_tensor(read[f"in:{router.linear_input_path or router.router_path}"]) if deep else None,
        block_inputs=read[f"in:{router.block_path}"] if deep else None,
        block_output=block_output[0] if isinstance(block_output, tuple) else block_output,
        experts_inputs=read.get(f"in:{router.experts_path}"),
        shared_TC=read.get(f"out:{router.shared_path}"),
    )


def _first_tensor(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    return next(value for value in (*inputs[0], *inputs[1].values()) if isinstance(value, torch.Tensor))
