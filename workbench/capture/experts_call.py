"""What an experts module is called with: hidden states, chosen ids and weights, read and replaced.

Families name and order the three differently, so they are told apart by what they are. Nothing is hooked here.
Axes: T tokens, E experts, K chosen per token.
"""

from typing import Any

import torch

from workbench.errors import CaptureError
from workbench.models.topology import Router

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def of_scores(score_TE: torch.Tensor, router: Router) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen ids and weights of scores that are zero for every expert not chosen."""
    chosen_TE = score_TE != 0
    if not bool((chosen_TE.sum(-1) == router.top_k).all()):
        counts = sorted(set(chosen_TE.sum(-1).tolist()))
        raise CaptureError(
            f"layer {router.layer} {router.router_path}: a token's scores are not zero for {counts} experts; "
            f"{router.top_k} were expected. Correct the family's facts in workbench/models/families.py (way)."
        )
    ids_TK = chosen_TE.nonzero()[:, 1].reshape(-1, router.top_k)
    return ids_TK, score_TE.gather(-1, ids_TK)


def with_scores(score_TE: torch.Tensor, chosen_TK: torch.Tensor) -> torch.Tensor:
    """The scores given to other experts, each token's in their order."""
    given_TK = score_TE[score_TE != 0].reshape(chosen_TK.shape)
    return torch.zeros_like(score_TE).scatter(-1, chosen_TK.long(), given_TK)


def bound(inputs: Inputs, router: Router) -> tuple[torch.Tensor, ...]:
    """(hidden, ids, weights) of an experts call.

    Told apart by what they are, not by name or place, since families name and order them differently: the ids are the
    integers, the weights the floats of the ids' shape, the hidden states what is left.
    """
    tensors = [value for value in (*inputs[0], *inputs[1].values()) if isinstance(value, torch.Tensor)]
    ids = [t for t in tensors if not t.is_floating_point() and t.dtype != torch.bool]
    weights = [t for t in tensors if t.is_floating_point() and ids and t.shape == ids[0].shape]
    hidden = [t for t in tensors if t.is_floating_point() and not any(t is w for w in weights)]
    if (len(ids), len(weights), len(hidden)) != (1, 1, 1):
        got = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors) or "no tensor"
        raise CaptureError(
            f"layer {router.layer} {router.experts_path}: the experts were called with {got}; hidden states, "
            "ids and weights were expected. Add how the family calls its experts to workbench/models/families.py."
        )
    return hidden[0], ids[0], weights[0]


def with_ids(inputs: Inputs, chosen_TK: torch.Tensor) -> Inputs:
    """The inputs of an experts call with other ids; the weights stay."""
    arguments, keywords = inputs

    def swap(value: Any) -> Any:
        is_ids = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
        return chosen_TK.to(value.dtype).reshape(value.shape) if is_ids else value

    return tuple(swap(value) for value in arguments), {name: swap(value) for name, value in keywords.items()}
