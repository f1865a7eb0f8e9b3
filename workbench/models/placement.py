"""Weights of a model that is spread over devices: brought here for as long as they are looked at.

accelerate keeps the weights of offloaded modules on the CPU or on disk and brings them in for their forward pass;
outside of it they lie on the meta device and hold nothing.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import align_module_device


def here(module: Any) -> AbstractContextManager[None]:
    """A block in which a module's own parameters and buffers hold their values."""
    return align_module_device(module)


def named_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a model under their names, sorted by them, each with its values while it is looked at."""
    owners: dict[str, tuple[Any, str]] = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            owners.setdefault(f"{path}.{name}" if path else name, (module, name))
    named = sorted(name for name, _ in model.named_parameters())  # tied ones once
    for full in named:
        module, name = owners[full]
        with here(module):
            yield full, getattr(module, name)
