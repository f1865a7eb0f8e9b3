"""Quantized checkpoints: which of them are loaded, and what their codes stand for, worked out once more, plainly.

A recording is of ordinary weights: a quantized checkpoint is loaded only where transformers turns its codes into
numbers while it loads and where this module can do the same by another way, so that the two can be compared. Everything
else is refused by the name of its method.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ModelError

METHODS = ("fp8", "mxfp4", "mxfp8")
"""The methods that are loaded: transformers dequantizes them on every device, and `plain_numbers` does it once more."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes on disk whose values are weights as they stand; every other holds codes or integers."""

# Files in which other tools say how a checkpoint was quantized, where config.json does not.
_BESIDE_CONFIG = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json")
# The values of the 16 codes of a float of 4 bits (OCP Microscaling Formats 1.0, section 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class QuantizedSource:
    """How the weights on disk were quantized, and what was done about it.

    Attributes:
        method: As config.json names it: `fp8`, `mxfp4`, …
        dequantized: Whether the model holds ordinary numbers of the asked dtype.
        tensors: Tensors whose codes were turned into numbers.
        note: What is not as in the engine that the checkpoint was made for.
    """

    method: str
    dequantized: bool
    tensors: int
    note: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


NOTE = "weights alone: activations are not quantized, as an engine that runs the codes would"


def method_beside(folder: Path) -> str | None:
    """What another tool's file beside config.json says: its name and the method in it."""
    for name in _BESIDE_CONFIG:
        file = folder / name
        if not file.is_file():
            continue
        try:
            stated = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError):
            return f"{name}, which cannot be read"
        stated = stated.get("quantization", stated) if isinstance(stated, dict) else {}
        method = (stated.get("quant_algo") or stated.get("quant_method")) if isinstance(stated, dict) else None
        return f"{method or 'a method'} of {name}"
    return None


def dequantizing(config: Any) -> Any:
    """The config with the wish that its codes be turned into numbers, whatever the device could do with them."""
    config = copy.deepcopy(config)
    for part in filter(None, (config, getattr(config, "text_config", None))):
        if isinstance(getattr(part, "quantization_config", None), dict):
            part.quantization_config = {**part.quantization_config, "dequantize": True}
    return config


def block_size(config: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as a config states them."""
    for part in (config, getattr(config, "text_config", None)):
        stated = getattr(part, "quantization_config", None)
        size = stated.get("weight_block_size") if isinstance(stated, Mapping) else None
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def refuse_unknown_method(name: str, method: str | None) -> None:
    """Refuses what cannot be turned into numbers here.

    Raises:
        ModelError: names the method, and what to do.
    """
    if method is not None and method not in METHODS:
        raise ModelError(
            f"{name} is quantized ({method}), and its codes cannot be turned into weights here: that is done for "
            f"{', '.join(METHODS)}. Give the checkpoint it was made from, or dequantize it with the tool that "
            "made it, save that (model.save_pretrained(NEW_FOLDER)), and give the new folder."
        )


def codes_and_scales(names: Mapping[str, str]) -> dict[str, str]:
    """Of each tensor of codes the name of its scales, for the methods that are loaded.

    Args:
        names: dtype of each tensor on disk, by name.
    """
    found = {}
    for name, dtype in names.items():
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in names:
            found[name] = f"{name.removesuffix('_blocks')}_scales"
        elif name.endswith("weight") and dtype not in FLOATS:
            stem = name.removesuffix("weight")
            for ending in ("weight_scale_inv", "scale", "qscale_weight"):
                if f"{stem}{ending}" in names:
                    found[name] = f"{stem}{ending}"
    return found


def plain_numbers(codes: torch.Tensor, scales: torch.Tensor, *, block: tuple[int, int] | None = None) -> torch.Tensor:
    """What codes stand for, in float32: code times the scale of its block.

    Args:
        codes: Float8 codes [rows, columns]; or float4 codes, two in a byte: [rows, columns / 2] of int8, or [experts,
            rows, blocks, 16] of uint8 with a scale for each block of 32, which give [experts, columns, rows].
        scales: One for each block of the grid, or one alone. A scale of one byte is an exponent, 2**(byte - 127).
        block: Rows and columns of a block, as the config states them; the last of each may be smaller. Where the grid
            does not fit it, blocks are of equal size.
    """
    steps = torch.exp2(scales.view(torch.uint8).float() - 127) if scales.element_size() == 1 else scales.float()
    if codes.dtype == torch.uint8 and codes.ndim == steps.ndim + 1:
        blocks = _nibbles(codes) * steps[..., None]
        return blocks.reshape(*blocks.shape[:-2], -1).transpose(-1, -2)
    grid = codes.float() if codes.is_floating_point() else _nibbles(codes.view(torch.uint8))
    if steps.ndim < 2:
        return grid * steps.reshape(-1)[0]
    for axis in (-2, -1):
        n_values, n_steps = grid.shape[axis], steps.shape[axis]
        stated = block[axis] if block is not None else 0
        size = stated if stated and -(-n_values // stated) == n_steps else n_values // n_steps
        steps = steps.index_select(axis, torch.arange(n_values) // size)
    return grid * steps


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The two floats of 4 bits in each byte, the low half first; the last axis becomes twice as long."""
    table = torch.tensor(_E2M1)
    both = torch.stack([table[(packed & 15).long()], table[(packed >> 4).long()]], dim=-1)
    return both.reshape(*packed.shape[:-1], -1)
