"""Counts FLOPs as a model runs, by torch's own counter, with the formulas it lacks: to hold the cost formulas against.

torch's `FlopCounterMode` knows nothing of grouped matrix products, the default way of computing experts, nor of the
attention kernel that a CPU takes: both count as nothing, silently. It counts attention scores of all pairs of tokens,
causal or not. On the meta device nothing is computed and the count is the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _grouped(a_shape: Any, b_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Each row meets the matrix of one group: 2·S·K·N."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[-1]


def _attention(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Scores and values of all pairs: 2·B·H·Q·S·(key width + value width)."""
    batch, heads, queries, width = query_shape
    return 2 * batch * heads * queries * key_shape[-2] * (width + value_shape[-1])


def missing_formulas() -> Mapping[Any, Callable[..., int]]:
    """Formulas for the operations that torch's counter takes for free."""
    from transformers.integrations import moe  # noqa: F401  registers its operation

    aten = torch.ops.aten
    return {
        aten._grouped_mm: _grouped,
        torch.ops.transformers.grouped_mm_fallback: _grouped,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    }


def count_flops(module: Any, *, tokens: int, batch: int = 1, stock: bool = False) -> dict[str, int]:
    """FLOP of one forward pass over sequences of `tokens` tokens, by module path; `` is the whole model.

    Args:
        module: A transformers causal language model, on any device, the meta device too.
        tokens: Length of each sequence.
        batch: Sequences.
        stock: Whether to count as torch does, without the formulas it lacks.
    """
    where = next(module.parameters()).device
    ids = torch.arange(batch * tokens, device=where).reshape(batch, tokens) % module.config.get_text_config().vocab_size
    positions = torch.arange(tokens, device=where)[None].expand(batch, tokens)
    counter = FlopCounterMode(display=False, custom_mapping=None if stock else dict(missing_formulas()))
    with torch.no_grad(), counter:
        module(input_ids=ids, position_ids=positions, use_cache=False, **_masks(module, tokens, batch))
    name = type(module).__name__
    return {
        "" if path in ("Global", name) else path.removeprefix(f"{name}."): sum(counts.values())
        for path, counts in counter.get_flop_counts().items()
    }


def _masks(module: Any, tokens: int, batch: int) -> dict[str, Any]:
    """A mask that is used as it is: on the meta device none can be looked into, to see whether it may be left out."""
    where = next(module.parameters()).device
    if where.type != "meta":
        return {}
    kinds = getattr(module.config.get_text_config(), "layer_types", None)
    whole = torch.zeros(batch, 1, tokens, tokens, dtype=module.dtype, device=where)
    return {"attention_mask": dict.fromkeys(kinds, whole) if kinds else whole}
