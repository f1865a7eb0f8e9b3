"""The proof that a loaded model holds what is on disk: its parameters, taken apart again, against each tensor.

transformers renames, stacks and joins tensors while it loads (an expert's matrices become one parameter of all
experts). Here a model's parameters go the way back, and each tensor that comes out is compared with the one on disk: to
the last bit where it was stored as numbers, within rounding where it was stored as codes, which are turned into numbers
once more by `quantized.plain_numbers`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from transformers import core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping

from workbench.errors import ModelError
from workbench.models.checkpoint.ledger import Ledger
from workbench.models.checkpoint.quantization import block_size, codes_and_scales, plain_numbers
from workbench.models.checkpoint.tensor_files import TensorFiles
from workbench.models.configs import quantization_method
from workbench.models.placement import here

WHOLE_UP_TO_BYTES = 4 * 2**30
"""Checkpoints up to this size are compared whole; of larger ones the tensors of some layers and of none."""
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def compare(name: str, module: Any, config: Any, files: TensorFiles, ledger: Ledger) -> tuple[int, int]:
    """Compares a model with its checkpoint.

    Args:
        name: For errors.
        module: The model, as it was loaded.
        config: Its config, as it stands on disk.
        files: The checkpoint.
        ledger: Where each tensor went.

    Returns:
        How many tensors were compared, and of how many the codes were turned into numbers.

    Raises:
        ModelError: a value is not the one on disk, or lies beyond the dtype that was asked for.
    """
    held, place_of, merged = set(module.state_dict()), ledger.place_of, ledger.merged
    method = quantization_method(config)
    dtypes = {tensor: stored.dtype for tensor, stored in files.tensors.items()}
    scales_of = codes_and_scales(dtypes) if method is not None else {}
    block = block_size(config)
    conversions = _conversions(module, files.tensors)
    groups: dict[int, list[str]] = {}
    for tensor, place in place_of.items():
        if place in held and tensor in files.tensors and tensor not in set(scales_of.values()):
            groups.setdefault(_layer_of(place), []).append(tensor)
    compared = 0
    for layer in _looked_at(groups, files):
        tensors = groups[layer]
        places = sorted(key for key in held if _layer_of(key) == layer)
        alone = Counter(place_of[tensor] for tensor in tensors)  # codes of one parameter went through a conversion too
        apart = _taken_apart(module, conversions, places, [tensor for tensor in tensors if tensor in merged])
        for tensor in tensors:
            whole = tensor not in merged or (tensor not in apart and alone[place_of[tensor]] == 1)
            found = _value(module, place_of[tensor]) if whole else apart.get(tensor)
            if found is None:
                continue
            stored = files.value(tensor)
            if tensor in scales_of:
                stored = plain_numbers(stored, files.value(scales_of[tensor]), block=block)
            _hold_against(name, tensor, stored, found.cpu(), exact=tensor not in scales_of)
            compared += 1
    return compared, len(scales_of)


def _hold_against(name: str, tensor: str, stored: torch.Tensor, found: torch.Tensor, *, exact: bool) -> None:
    expected = stored.to(found.dtype)
    if found.is_floating_point():
        beyond = expected.isinf() & stored.isfinite()
        if bool(beyond.any()):
            largest = float(stored[beyond].abs().double().max())
            dtype = str(found.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name}: {tensor} holds {largest:.4g}, which is beyond {dtype} (up to "
                f"{torch.finfo(found.dtype).max:.4g}). Load it as --dtype bfloat16 or float32."
            )
    same_shape = expected.shape == found.shape
    if same_shape:
        same = torch.isclose(found, expected, rtol=0, atol=0, equal_nan=True)  # NaN is refused elsewhere, by name
        if not exact:
            rounding = 4 * torch.finfo(found.dtype).eps * expected.float().abs()
            same |= (expected.float() - found.float()).abs() <= rounding
        if bool(same.all()):
            return
    difference = (
        f"{int((~same).sum()):,} of {same.numel():,} values" if same_shape else f"the shape {list(found.shape)}"
    )
    raise ModelError(
        f"{name}: {tensor} is not in the model as it is on disk: {difference} differ after transformers "
        f"{transformers.__version__} loaded it"
        f"{'' if exact else ' and turned its codes into numbers'}. What this model computes would not be what the "
        "checkpoint says. If two tensors of the checkpoint claim the same place, keep one; else report it to "
        "transformers, or save the weights anew."
    )


def _layer_of(name: str) -> int:
    """The number of the layer that a parameter belongs to, -1 for none."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else -1


def _looked_at(groups: Mapping[int, list[str]], files: TensorFiles) -> list[int]:
    """The layers that are compared: all, or the first two, the middle one and the last where that would take long."""
    layers = sorted(groups)
    size = sum(file.stat().st_size for file in files.read)
    if size <= WHOLE_UP_TO_BYTES:
        return layers
    inner = [layer for layer in layers if layer >= 0]
    chosen = {*inner[:2], *inner[len(inner) // 2 : len(inner) // 2 + 1], *inner[-1:]}
    return [layer for layer in layers if layer < 0 or layer in chosen]


def _conversions(module: Any, tensors: Iterable[str]) -> list[Any]:
    """The conversions of transformers that these tensors go through, without those of a quantizer."""
    known = get_model_conversion_mapping(module)
    renamings = [entry for entry in known if not hasattr(entry, "operations")]
    converters = [entry for entry in known if hasattr(entry, "operations")]
    shapes = module.state_dict()
    for tensor in tensors:
        core_model_loading.rename_source_key(tensor, renamings, converters, module.base_model_prefix, shapes)
    return [entry for entry in known if entry.was_used()]


def _taken_apart(module: Any, conversions: list[Any], places: list[str], wanted: list[str]) -> dict[str, torch.Tensor]:
    """The tensors that some parameters were made of, by their names on disk; those that cannot be had are left out."""
    if not wanted:
        return {}
    values = {place: _value(module, place) for place in places}
    before = getattr(module, "_weight_conversions", None)
    module._weight_conversions = conversions
    try:
        apart = core_model_loading.revert_weight_conversion(module, values)
    except Exception:  # what a library's conversion cannot undo is not compared, and the manifest counts what was
        return {}
    finally:
        module._weight_conversions = before
    return {
        tensor: apart[key]
        for tensor in wanted
        if (
            key := next((k for k in apart if tensor == k or tensor.endswith(f".{k}") or k.endswith(f".{tensor}")), None)
        )
    }


def _value(module: Any, place: str) -> torch.Tensor:
    path, _, last = place.rpartition(".")
    owner = module.get_submodule(path) if path else module
    with here(owner):
        return getattr(owner, last).detach()
