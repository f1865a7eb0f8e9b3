"""Routed experts as a plain loop: the other implementation for experts that transformers does not dispatch.

Axes: T tokens, E experts, K chosen per token, N tokens of one expert, F neurons of an expert, C model width.
"""

from collections.abc import Callable
from typing import Any

import torch

from workbench.models.topology import Router

Rebuild = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def plain_experts(experts: Any, router: Router) -> Rebuild:
    """The routed experts as a loop over tokens and experts, for classes that transformers does not dispatch.

    Raises:
        CaptureError: the experts hold their weights in a form that is not known.
    """
    n_real = router.n_experts - router.n_zero

    def one(expert: int, x_NC: torch.Tensor) -> torch.Tensor:
        if expert >= n_real:
            return x_NC  # an identity
        gate_up, down = _matrices(experts, expert, router)
        gate_NF, up_NF = (x_NC @ gate_up).chunk(2, -1)
        act = getattr(experts, "act_fn", None) or experts.mlp.activation_fn
        return (act(gate_NF) * up_NF) @ down

    def rebuild(hidden: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        if router.way == "scores":
            return scaled_inputs(hidden, ids_TK)
        flat_TC = hidden.reshape(-1, hidden.shape[-1])
        out_TC = torch.zeros_like(flat_TC)
        for expert in range(router.n_experts):
            token_N, slot_N = (ids_TK == expert).nonzero(as_tuple=True)
            if len(token_N):
                out = one(expert, flat_TC[token_N]) * weights_TK[token_N, slot_N, None]
                out_TC.index_add_(0, token_N, out.to(out_TC.dtype))
        return out_TC.reshape(hidden.shape)

    def scaled_inputs(hidden: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
        """Every token for every expert, scaled before: rows of experts not chosen are zero."""
        x_ETC = hidden.reshape(router.n_experts, -1, hidden.shape[-1])
        out_ETC = torch.zeros_like(x_ETC)
        for expert in range(router.n_experts):
            token_N = (ids_TK == expert).any(-1).nonzero().squeeze(-1)
            out_ETC[expert, token_N] = one(expert, x_ETC[expert, token_N])
        return out_ETC.reshape(hidden.shape)

    return rebuild


def _matrices(experts: Any, expert: int, router: Router) -> tuple[torch.Tensor, torch.Tensor]:
    """[C, 2F] (gate, then up) and [F, C] of one expert."""
    if hasattr(experts, "gate_up_proj"):
        gate_up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
        return (gate_up, down) if router.way == "scores" else (gate_up.T, down.T)
    glu = experts.mlp
    w1, v1, w2 = (getattr(glu, name).view(-1, router.expert_width, glu.hidden_size)[expert] for name in _DBRX)
    return torch.cat([w1.T, v1.T], dim=1), w2


_DBRX = ("w1", "v1", "w2")
