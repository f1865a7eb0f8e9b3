"""Which ways transformers knows to run the experts, which of them work here, and whether they agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError
from workbench.models.topology import Topology


def in_use(module: Any) -> str:
    """The experts implementation that a model runs; empty where it has no experts that can be switched."""
    return str(module.config.get_text_config()._experts_implementation or "") if _switches(module) else ""


def known(module: Any) -> list[str]:
    """The names that can be asked for, the plain loop over experts first."""
    return ["eager", *sorted(ALL_EXPERTS_FUNCTIONS.valid_keys())] if _switches(module) else []


def _switches(module: Any) -> bool:
    return any(hasattr(type(child), "_apply_gate") for child in module.modules())


@contextmanager
def using(module: Any, name: str) -> Iterator[None]:
    """A block in which the experts run by one implementation, in prefill and in decode."""
    if not name or name == in_use(module):
        yield
        return
    before = module.get_experts_implementation()
    try:
        module.set_experts_implementation(name)
    except (ValueError, ImportError, KeyError) as error:
        raise MeasurementError(
            f"experts implementation is {name!r}, which cannot be set here: {str(error).splitlines()[0]} "
            f"Known: {', '.join(known(module))}."
        ) from error
    try:
        yield
    finally:
        module.set_experts_implementation(before)


def why_not(module: Any, name: str, ids_BS: torch.Tensor) -> str:
    """Why an implementation does not run here, found by running it over two tokens; empty where it does."""
    try:
        with using(module, name), torch.inference_mode():
            module(input_ids=ids_BS[:1, :2], use_cache=False)
    except Exception as error:  # whatever a kernel raises where it does not belong is its reason
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def copied_bytes(topology: Topology, point: Point, *, value_bytes: int) -> int:
    """What `batched_mm` copies at once in a prefill: gate and up matrices for every token and choice of one layer."""
    return max(
        (
            point.batch * max(point.widths) * router.top_k * 2 * router.expert_width * topology.width * value_bytes
            for router in topology.routers
        ),
        default=0,
    )


def free_bytes(device: torch.device) -> int:
    """What could be allocated now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later is free for what comes
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
