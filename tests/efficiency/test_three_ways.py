"""Formula, counter and meta device give the same FLOPs, module by module; parameters are all accounted for."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import shrunk
from workbench.efficiency.costs.formulas import linear_flops, parameters, prefill_flops
from workbench.efficiency.costs.torch_counter import count_flops
from workbench.errors import ModelError
from workbench.models.topology import topology

TOKENS = 8  # the shrunk models' sliding windows are as long
DENSE = ("qwen2", "llama", "mistral", "gemma2", "gemma3_text", "phi3", "qwen3", "olmo2")
CORE = ("qwen2_moe", "mixtral", "olmoe", "qwen2", "llama", "deepseek_v3", "gpt_oss")

# No formula for them, by what is in the way: costs are refused, with its name.
REFUSED = {
    "afmoe": "AfmoeAttention",
    "axk2": "AXK2Attention",
    "bailing_hybrid": "DeltaAttention",
    "beam": "BeamAttention",
    "dbrx": "DbrxNormAttentionNorm",
    "deepseek_v32": "DeepseekV32Attention",
    "deepseek_v4": "DeepseekV4",
    "dots3_note": "Dots3NoteTextAttention",
    "dots3_note_text": "Dots3NoteTextAttention",
    "gemma4": "Gemma4TextScaledWordEmbedding",
    "gemma4_text": "Gemma4TextScaledWordEmbedding",
    "glm_moe_dsa": "GlmMoeDsaAttention",
    "granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "hy_v4": "HYV4HyperConnection",
    "inkling2_text": "Inkling2",
    "inkling_text": "Inkling",
    "kimi_linear": "KimiLinearDeltaAttention",
    "laguna": "LagunaAttention",
    "lfm2_moe": "Lfm2MoeShortConv",
    "llama4": "Llama4TextAttention",
    "llama4_text": "Llama4TextAttention",
    "minimax": "MiniMaxLightningAttention",
    "nemotron_h": "NemotronH",
    "qwen3_5_moe": "Qwen3_5MoeGatedDeltaNet",
    "qwen3_5_moe_text": "Qwen3_5MoeGatedDeltaNet",
    "qwen3_next": "Qwen3NextGatedDeltaNet",
    "qwen4_exp": "ple",
    "qwen4_exp_text": "ple",
    "zaya": "ZayaAttention",
}
NO_TOPOLOGY = ("doge", "jetmoe")  # tests/families/table.py says why
FAMILIES = [name for name in (*shrunk.declared_families(), *DENSE) if name not in (*REFUSED, *NO_TOPOLOGY)]


def made(family, device="cpu", dtype=torch.float32):
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shrunk.config(family), dtype=dtype).eval()


def routed_past_experts(facts):
    """Routers of longcat choose experts without compute too, which the formula takes at their share: none chosen."""
    return any(router.n_zero for router in facts.routers)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "jamba"])
def test_the_formula_is_what_the_counter_counts(family):
    module = made(family)
    facts = topology(module)
    counted = count_flops(module, tokens=TOKENS)
    expected = prefill_flops(facts, tokens=TOKENS, causal=False)
    if routed_past_experts(facts):
        experts = sum(counted[r.experts_path] for r in facts.routers)
        assert counted[""] - experts == sum(expected.values()) - expected["routed experts"]
    else:
        assert counted[""] == sum(expected.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_parameters_are_accounted_for(family):
    facts = topology(made(family, "meta"))
    shares = parameters(facts).values()
    assert sum(share.total for share in shares) == facts.parameters_total
    assert round(sum(share.active for share in shares)) == facts.parameters_active


@pytest.mark.parametrize("family", CORE)
def test_the_meta_device_counts_the_same_of_every_module(family):
    real, unreal = made(family, dtype=torch.bfloat16), made(family, "meta", torch.bfloat16)
    assert count_flops(unreal, tokens=TOKENS) == count_flops(real, tokens=TOKENS)


@pytest.mark.parametrize("family", CORE)
def test_module_by_module(family):
    module = made(family, "meta", torch.bfloat16)
    facts = topology(module)
    counted = count_flops(module, tokens=TOKENS)
    for layer in facts.parts.layers:
        for mixer in layer.mixers:
            scores = 2 * mixer.n_heads * mixer.score_width * TOKENS**2
            assert counted[mixer.path] == 2 * TOKENS * mixer.weights.products + scores
        if not layer.moe:
            assert counted[f"model.layers.{layer.layer}.mlp"] == 2 * TOKENS * layer.dense.products
    for router, moe in zip(facts.routers, facts.parts.moe, strict=True):
        assert counted[router.router_path] == 2 * TOKENS * moe.router.products
        share = moe.experts.products * moe.top_k // moe.n_experts
        assert counted[router.experts_path] == 2 * TOKENS * share
        if router.shared_path:
            assert counted[router.shared_path] == 2 * TOKENS * moe.shared.products
        if router.shared_gate_path:
            assert counted[router.shared_gate_path] == 2 * TOKENS * moe.shared_gate.products
    assert counted["lm_head"] == 2 * TOKENS * facts.parts.head.products


def test_jamba_but_for_the_padding_of_its_convolution():
    """transformers convolves d_conv − 1 positions past the end and throws them away; the formula does not."""
    module = made("jamba")
    facts = topology(module)
    counted = count_flops(module, tokens=TOKENS)
    convolutions = [m.conv1d.weight for m in module.modules() if hasattr(m, "conv1d")]
    padding = sum(2 * weight.numel() * (weight.shape[-1] - 1) for weight in convolutions)
    assert counted[""] == sum(prefill_flops(facts, tokens=TOKENS, causal=False).values()) + padding
    attention = next(m for m in facts.parts.mixers if m.kind == "attention")
    scores = 2 * attention.n_heads * attention.score_width * TOKENS**2
    assert counted[attention.path] == 2 * TOKENS * attention.weights.products + scores
    for router, moe in zip(facts.routers, facts.parts.moe, strict=True):
        assert counted[router.experts_path] == 2 * TOKENS * moe.experts.products * moe.top_k // moe.n_experts


def test_stock_counters_take_routed_experts_and_cpu_attention_for_free():
    module = made("qwen2_moe")
    module.set_experts_implementation("grouped_mm")
    facts, expected = topology(module), prefill_flops(topology(module), tokens=TOKENS, causal=False)
    stock = count_flops(module, tokens=TOKENS, stock=True)
    free = expected["routed experts"] + expected["attention scores"]
    assert stock[""] == sum(expected.values()) - free < sum(linear_flops(facts).values()) * TOKENS


@pytest.mark.parametrize("family", REFUSED)
def test_what_has_no_formula_is_refused_by_name(family):
    facts = topology(made(family, "meta"))
    with pytest.raises(ModelError, match=f"no formula for .*{REFUSED[family]}.*its costs would be wrong"):
        parameters(facts)
