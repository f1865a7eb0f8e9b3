"""Every MoE family of the installed transformers as a tiny random model.

The families are found by walking transformers' registry of causal language models. A config is shrunk by what its
values mean; where that is not enough, `VALUES` adds what a family needs. Weights are drawn so that proofs bite.
"""

import inspect
import math
import sys
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workbench.capture.routing import router_scores
from workbench.models.loading import Model, from_module
from workbench.models.topology import Router, Topology, topology

VOCABULARY = 211
E, K, LAYERS = 8, 3, 4

# What a config's value becomes, by its name.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # attention
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "sliding_window": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64, "o_lora_rank": 16, "rel_extent": 32,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    # feed-forward blocks and experts
    "intermediate_size": 48, "ffn_hidden_size": 48, "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 24, "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "shared_intermediate_size": 24,
    "num_experts": E, "num_local_experts": E, "n_routed_experts": E, "num_experts_per_tok": K, "top_k_experts": K,
    "moe_topk": K, "moe_top_k": K, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    # state-space and linear attention
    "linear_num_heads": 4, "linear_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_num_heads": 8,
    "mamba_head_dim": 8, "mamba_dt_rank": 4, "ssm_state_size": 8, "n_groups": 2, "use_mamba_kernels": False,
}  # fmt: skip

_LATENT: dict[str, Any] = {"num_key_value_heads": 4}  # latent attention has as many key/value heads as heads
_SLIDING = {name: SMALL[name] for name in (
    "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)} | {"head_dim": 16}  # fmt: skip
_LAYER_TYPES = ["conv", "full_attention", "conv", "full_attention"]
VALUES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32"), _LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa"), _LATENT),
    "dbrx": {
        "n_layers": LAYERS, "d_model": 32, "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": E, "moe_top_k": K},
    },
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {**_LATENT, "per_layer_config": {layer: {**_SLIDING, **_LATENT} for layer in (2, 3)}},
    "gemma4_text": {"enable_moe_block": True, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_offset": 2, "attn_layer_period": 4},
    "lfm2_moe": {"layer_types": _LAYER_TYPES},
    "longcat_flash": {**_LATENT, "num_layers": 2, "zero_expert_num": 4},
    "nemotron_h": {"moe_latent_size": 16},
    "phimoe": {"num_experts_per_tok": 2},  # its rule is written for two
    "qwen4_exp_text": {
        "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "ple_layer_ids": [1], "ngram_vocab_size_base": 101, "split_ngram_parts": 1,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


def declared_families() -> list[str]:
    """Model types whose causal-LM class, or a class of its module, declares a router recorder."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if _declares(name)]


def _declares(model_type: str) -> bool:
    try:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    except KeyError:
        return False
    classes = model_class if isinstance(model_class, tuple) else (model_class,)
    of_module = vars(sys.modules[classes[0].__module__]).values()
    own = [c for c in of_module if inspect.isclass(c) and c.__module__ == classes[0].__module__]
    return any("router_logits" in (getattr(c, "_can_record_outputs", None) or {}) for c in (*classes, *own))


def config(model_type: str) -> Any:
    """A family's config, shrunk; of a family that wraps a text model, the text model's."""
    config_class = CONFIG_MAPPING[model_type]
    of_text = getattr(config_class, "sub_configs", {}).get("text_config")
    if of_text is not None:
        return config(of_text.model_type)
    stated = config_class().to_dict()
    known = {**stated, **dict.fromkeys(getattr(config_class, "attribute_map", {}))}
    values = {name: value for name, value in SMALL.items() if name in known}
    per_layer = {n: v[:LAYERS] for n, v in stated.items() if isinstance(v, list) and len(v) == _depth(stated)}
    return config_class(**{**per_layer, **values, **VALUES.get(model_type, {})})


def _depth(stated: dict[str, Any]) -> int:
    return stated.get("num_hidden_layers") or stated.get("num_layers") or -1


def build(model_type: str) -> Model:
    """A tiny random model of a family, in float32, whose routers are decided and biased."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config(model_type)).eval().requires_grad_(False)
    decide(module, topology(module))
    return from_module(module, name=f"tiny-{model_type}")


def decide(module: Any, facts: Topology) -> None:
    """Draws routers that prefer some experts, correction biases that change the choice, and lively other weights."""
    generator = torch.Generator().manual_seed(1)
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    for name, tensor in tensors.items():
        if tensor.dim() >= 2 and tensor.is_floating_point() and float(tensor.float().std()) < 0.1:
            tensor.normal_(0, 0.15, generator=generator)  # trained weights would differ by expert; 0.02 hides faults
        if "tid2eid" in name:
            tensor.copy_(torch.rand(len(tensor), E, generator=generator).argsort(-1)[:, : tensor.shape[1]])
    for router in facts.routers:
        if router.bias_path:
            tensors[router.bias_path].normal_(0, 0.2, generator=generator)
        tensors[f"{router.linear_path or router.router_path}.weight"].normal_(0, 0.5, generator=generator)
    for _ in range(8):
        undecided = [r for r, entropy in zip(facts.routers, entropies(module, facts), strict=True) if entropy > 0.83]
        for router in undecided:
            tensors[f"{router.linear_path or router.router_path}.weight"].mul_(1.5)
        if not undecided:
            return


def entropies(module: Any, facts: Topology) -> list[float]:
    """Mean entropy of each router's scores over ln E, on random tokens, seen by plain hooks."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for router in facts.routers:

        def note(_: Any, args: Any, output: Any, router: Router = router) -> None:
            logits_TE = output if router.logits_index is None else output[router.logits_index]
            score_TE = router_scores(logits_TE.reshape(-1, router.n_experts), router.scoring)
            seen[router.router_path] = torch.special.entr(score_TE).sum(-1).mean() / math.log(router.n_experts)

        handles.append(module.get_submodule(router.logits_path or router.router_path).register_forward_hook(note))
    with torch.no_grad():
        module(input_ids=torch.arange(3, 23)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [float(seen[router.router_path]) for router in facts.routers]
