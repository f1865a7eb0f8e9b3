"""A dense Qwen2 model made into a Qwen2-MoE model, by the recipe published for Qwen2-57B-A14B.

The dense FFN of each layer is replicated, each copy is shuffled along its intermediate dimension, the copies are cut
into fine-grained experts, and part of each expert is drawn anew. Attention, norms and embeddings are carried over.

Source: Qwen2 Technical Report, arXiv:2407.10671, section 2.2.2. The report does not say how the shared expert and the
routers start; here the shared expert keeps a random subset of the dense neurons, its gate starts at zero (a sigmoid of
one half), and the routers start as transformers initializes them.

Axes: E routed experts, M expert width, F dense FFN width, C model width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from workbench.errors import ModelError


@dataclass(frozen=True)
class UpcyclingRecipe:
    """The shape of the MoE that a dense model becomes.

    Attributes:
        n_experts: E, routed experts a layer.
        expert_width: M, FFN width of one routed expert.
        top_k: Experts chosen per token.
        shared_width: FFN width of the shared expert; at most the dense width.
        reinit_fraction: Share of each routed expert's parameters that is drawn anew, element by element.
    """

    n_experts: int
    expert_width: int
    top_k: int
    shared_width: int
    reinit_fraction: float = 0.5

    def copies(self, dense_width: int) -> int:
        """Copies of the dense FFN that are needed: ceil(E·M / F)."""
        return -(-self.n_experts * self.expert_width // dense_width)


def neuron_sources(recipe: UpcyclingRecipe, *, dense_width: int, layer: int, seed: int) -> np.ndarray:
    """The dense neuron that each neuron of each routed expert was copied from.

    Args:
        recipe: The shape of the MoE.
        dense_width: F, the dense FFN width.
        layer: Decoder layer.
        seed: The seed given to `upcycle`.

    Returns:
        sources_EM: int64 ids in [0, F). Within one copy of the FFN a neuron is used once; what the last copy has
        left over is discarded.
    """
    rng = np.random.default_rng([seed, layer, 0])
    shuffled = [rng.permutation(dense_width) for _ in range(recipe.copies(dense_width))]
    used = np.concatenate(shuffled)[: recipe.n_experts * recipe.expert_width]
    return used.reshape(recipe.n_experts, recipe.expert_width)


def shared_sources(recipe: UpcyclingRecipe, *, dense_width: int, layer: int, seed: int) -> np.ndarray:
    """The dense neuron that each neuron of the shared expert was copied from: int64, [shared width]."""
    return np.random.default_rng([seed, layer, 1]).permutation(dense_width)[: recipe.shared_width]


def upcycle(dense: Qwen2ForCausalLM, recipe: UpcyclingRecipe, *, seed: int) -> Qwen2MoeForCausalLM:
    """Makes the MoE that the recipe describes from a dense model, which is left as it is.

    Args:
        dense: A dense Qwen2 model, in float32.
        recipe: The shape of the MoE.
        seed: Of the shuffles, of the re-initialization and of the routers.

    Returns:
        The MoE in float32, every decoder layer with a router, `norm_topk_prob` false as in the reference model.

    Raises:
        ModelError: the shared expert is wider than the dense FFN, or the re-initialized share is outside [0, 1].

    Source:
        arXiv:2407.10671 section 2.2.2; differs where the report is silent (module docstring).
    """
    config = dense.config
    dense_width = config.intermediate_size
    if recipe.shared_width > dense_width:
        raise ModelError(
            f"upcycle: shared_width is {recipe.shared_width}, the dense FFN has {dense_width} neurons to copy; "
            f"give a shared_width of at most {dense_width}."
        )
    if not 0.0 <= recipe.reinit_fraction <= 1.0:
        raise ModelError(f"upcycle: reinit_fraction is {recipe.reinit_fraction}; give a share between 0 and 1.")
    torch.manual_seed(seed)
    moe = Qwen2MoeForCausalLM(_moe_config(config, recipe)).to(torch.float32)
    carried = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    missing, unexpected = moe.load_state_dict(carried, strict=False)
    stray = [name for name in missing if ".mlp." not in name and name != "lm_head.weight"] + list(unexpected)
    assert not stray, f"upcycling carried the wrong tensors: {stray}"

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, (old, new) in enumerate(zip(dense.model.layers, moe.model.layers, strict=True)):
            routed = neuron_sources(recipe, dense_width=dense_width, layer=layer, seed=seed)
            shared = shared_sources(recipe, dense_width=dense_width, layer=layer, seed=seed)
            _fill_routed(new.mlp.experts, old.mlp, torch.from_numpy(routed))
            _fill_shared(new.mlp.shared_expert, old.mlp, torch.from_numpy(shared))
            new.mlp.shared_expert_gate.weight.zero_()
            for parameter in (new.mlp.experts.gate_up_proj, new.mlp.experts.down_proj):
                _reinitialize(parameter, recipe.reinit_fraction, config.initializer_range, generator)
    return moe


def _moe_config(config: Any, recipe: UpcyclingRecipe) -> Qwen2MoeConfig:
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
        "tie_word_embeddings", "rope_parameters", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    return Qwen2MoeConfig(
        **{name: getattr(config, name) for name in kept},
        qkv_bias=True,
        num_experts=recipe.n_experts,
        num_experts_per_tok=recipe.top_k,
        moe_intermediate_size=recipe.expert_width,
        shared_expert_intermediate_size=recipe.shared_width,
        norm_topk_prob=False,
        decoder_sparse_step=1,
    )


def _fill_routed(experts: Any, ffn: Any, sources_EM: torch.Tensor) -> None:
    gate_EMC, up_EMC = ffn.gate_proj.weight[sources_EM], ffn.up_proj.weight[sources_EM]
    experts.gate_up_proj.copy_(torch.cat([gate_EMC, up_EMC], dim=1))
    experts.down_proj.copy_(ffn.down_proj.weight[:, sources_EM].permute(1, 0, 2))


def _fill_shared(expert: Any, ffn: Any, sources: torch.Tensor) -> None:
    expert.gate_proj.weight.copy_(ffn.gate_proj.weight[sources])
    expert.up_proj.weight.copy_(ffn.up_proj.weight[sources])
    expert.down_proj.weight.copy_(ffn.down_proj.weight[:, sources])


def _reinitialize(parameter: nn.Parameter, fraction: float, std: float, generator: torch.Generator) -> None:
    chosen = torch.rand(parameter.shape, generator=generator) < fraction
    drawn = torch.randn(parameter.shape, generator=generator) * std
    parameter.copy_(torch.where(chosen.to(parameter.device), drawn.to(parameter.device), parameter))
