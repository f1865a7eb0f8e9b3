"""Where the time of a pass goes: marks at the borders of its parts, by plain hooks on the bare model.

A part's time is its own: what a part inside it takes is that part's. So the parts never sum to more than the whole, and
`rest` is the whole less the parts (norms, residual sums, embedding, masks, sampling, and the hooks themselves).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from workbench.efficiency.instruments.clock import Clock
from workbench.models.topology import Topology

PARTS = ("attention", "state space", "router", "routed experts", "shared expert", "dense FFN", "lm_head", "rest")
_MIXERS = {"attention": ("Attention", "MLA"), "state space": ("Mixer", "DeltaNet", "ShortConv")}


def parts_of(module: Any, topology: Topology) -> dict[str, str]:
    """The part that each timed module is, by its path."""
    found: dict[str, str] = {}
    for path, child in module.named_modules():
        for part, endings in _MIXERS.items():
            if re.search(r"\.\d+\.", path) and type(child).__name__.endswith(endings):
                found[path] = part
    for router in topology.routers:
        found |= {router.router_path: "router", router.experts_path: "routed experts"}
        if router.shared_path:
            found[router.shared_path] = "shared expert"
        if router.shared_gate_path:
            found[router.shared_gate_path] = "shared expert"
    for path, child in module.named_modules():
        ffn = re.search(r"\.\d+\.(mlp|feed_forward|ffn)$", path)
        holds = any(known.startswith(f"{path}.") for known in found)
        if ffn and path not in found and not holds and next(child.parameters(), None) is not None:
            found[path] = "dense FFN"
    head = module.get_output_embeddings()
    found |= {path: "lm_head" for path, child in module.named_modules() if head is not None and child is head}
    return found


@dataclass
class Marks:
    """Entries and exits of parts, in the order in which they came: (pass, part, whether it is an entry, mark)."""

    clock: Clock
    step: int = 0
    events: list[tuple[int, str, bool, int]] = field(default_factory=list)

    def seconds(self, marks_s: np.ndarray) -> dict[tuple[int, str], float]:
        """Each part's own seconds in each pass."""
        own: dict[tuple[int, str], float] = {}
        stack: list[tuple[str, float]] = []  # part, and since when its own time runs
        for step, part, enters, mark in self.events:
            now = float(marks_s[mark])
            if enters:
                if stack:
                    outer, since = stack[-1]
                    own[step, outer] = own.get((step, outer), 0.0) + now - since
                stack.append((part, now))
            else:
                _, since = stack.pop()
                own[step, part] = own.get((step, part), 0.0) + now - since
                if stack:
                    stack[-1] = (stack[-1][0], now)
        return own


@contextmanager
def watched(module: Any, parts: dict[str, str], clock: Clock) -> Iterator[Marks]:
    """A block in which the borders of parts are marked."""
    marks = Marks(clock)
    handles = []
    for path, part in parts.items():
        child = module.get_submodule(path)

        def enter(_: Any, __: Any, part: str = part) -> None:
            marks.events.append((marks.step, part, True, clock.mark()))

        def leave(_: Any, __: Any, ___: Any, part: str = part) -> None:
            marks.events.append((marks.step, part, False, clock.mark()))

        handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def hook_seconds(device: torch.device, *, calls: int = 500, tries: int = 5) -> float:
    """What marking one part costs: a module that does nothing, called watched and bare; the least of some tries."""
    empty = torch.nn.Sequential(torch.nn.Identity())
    least: dict[bool, float] = {}
    for _ in range(tries):
        for marked in (True, False):
            clock = Clock(device)
            with watched(empty, {"0": "rest"} if marked else {}, clock):
                clock.start()
                for _ in range(calls):
                    empty(0)
            least[marked] = min(clock.stop()[1], least.get(marked, float("inf")))
    return max(least[True] - least[False], 0.0) / calls
