import re
from dataclasses import replace

import pytest
import torch
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from tests import tiny
from workbench.errors import ModelError
from workbench.models import families
from workbench.models.memory import forecast_memory
from workbench.models.topology import Topology, topology


def test_routers_are_named_by_their_decoder_layer(moe):
    assert moe.topology.moe_layers == (0, 2)
    router = moe.topology.routers[1]
    assert (router.layer, router.site, router.router_path) == (2, "mlp", "model.layers.2.mlp.gate")
    assert (router.n_experts, router.top_k, router.shared_width, router.shared_gate) == (8, 3, 24, True)
    assert not router.normalized


def test_active_parameters_by_counting_what_one_token_meets(moe):
    idle = sum(p.numel() * 5 // 8 for name, p in moe.module.named_parameters() if ".experts." in name)
    assert moe.topology.parameters_total == sum(p.numel() for p in moe.module.parameters())
    assert moe.topology.parameters_active == moe.topology.parameters_total - idle


def test_a_dense_model_has_no_routers(dense):
    assert dense.topology.routers == ()
    assert dense.topology.parameters_active == dense.topology.parameters_total


def test_it_survives_json(moe):
    assert Topology.from_json(moe.topology.to_json()) == moe.topology


@pytest.mark.parametrize("step", [1, 2, 3])
def test_sparse_steps_are_read_off_the_modules(step):
    with torch.device("meta"):
        module = Qwen2MoeForCausalLM(
            Qwen2MoeConfig(vocab_size=50, hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
                           num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=step)
        )  # fmt: skip
    assert topology(module).moe_layers == tuple(i for i in range(6) if (i + 1) % step == 0)


def test_a_router_that_contradicts_its_config_is_refused():
    module = tiny.moe().module
    module.config.num_experts_per_tok = 2
    with pytest.raises(ModelError, match="qwen2_moe: top_k is 3 in the router and 2 in the config; they must agree"):
        topology(module)


def test_a_block_without_experts_is_refused(monkeypatch):
    facts = replace(families.FAMILIES["qwen2_moe"], experts="specialists")
    monkeypatch.setitem(families.FAMILIES, "qwen2_moe", facts)
    with pytest.raises(
        ModelError, match=re.escape("'model.layers.0.mlp' has a router but no module named 'specialists'")
    ):
        topology(tiny.moe().module)


def test_a_model_that_states_no_k_is_refused(monkeypatch):
    monkeypatch.setattr("workbench.models.routers._TOP_K", ())
    module = tiny.moe().module
    del module.model.layers[0].mlp.gate.top_k
    with pytest.raises(
        ModelError, match=r"neither the router of 'model\.layers\.0\.mlp' nor the config states how many"
    ):
        topology(module)


def test_experts_without_a_declared_router_are_refused():
    module = tiny.moe().module
    module.model.layers[1].mlp.experts = type(module.model.layers[0].mlp.experts)(module.config)
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.experts' holds routed experts .* has no router"):
        topology(module)


def test_a_router_outside_the_layers_is_refused():
    module = tiny.moe().module
    module.model.stray = type(module.model.layers[0].mlp.gate)(module.config)
    with pytest.raises(ModelError, match="the router 'model.stray' lies in no numbered layer"):
        topology(module)


def test_modules_are_walked_as_often_for_many_layers_as_for_few(monkeypatch):
    """A walk over all modules for each module took 117 of the 123 seconds of a model of 92 layers."""
    walks: list[torch.nn.Module] = []
    plain = torch.nn.Module.named_modules

    def noted(self, *arguments, **options):
        walks.append(self)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "named_modules", noted)
    counts = []
    for n_layers in (2, 8):
        with torch.device("meta"):
            module = Qwen2MoeForCausalLM(Qwen2MoeConfig(num_hidden_layers=n_layers, num_experts=4))
        walks.clear()
        assert len(topology(module).routers) == n_layers
        counts.append(sum(walked is module or walked is module.model for walked in walks))
    assert counts[0] == counts[1] <= 12


def longcat(**fields) -> LongcatFlashForCausalLM:
    """LongCat-Flash as published (arXiv:2509.01322, table 1, and its config), or some of it."""
    published = {
        "vocab_size": 131072, "hidden_size": 6144, "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048,
        "num_layers": 28, "num_attention_heads": 64, "n_routed_experts": 512, "zero_expert_num": 256, "moe_topk": 12,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        return LongcatFlashForCausalLM(LongcatFlashConfig(**{**published, **fields}))


def test_experts_without_compute_have_no_parameters():
    """560 billion, of which 27 are active on average; transformers allocates 741 for the same model."""
    module = longcat()
    facts = topology(module)
    allocated = sum(p.numel() for p in module.parameters())
    per_expert = 3 * 6144 * 2048
    assert facts.parameters_unused == 28 * 256 * 2 * 6144 * 2048 == allocated - facts.parameters_total
    assert facts.parameters_total == pytest.approx(560e9, rel=2e-3)
    # 12 chosen of 768, of which 512 have compute: 8 on average, and 131,072 x 6,144 of the embedding that is looked up.
    assert facts.parameters_active == facts.parameters_total - 28 * 504 * per_expert
    assert facts.parameters_active - 131_072 * 6_144 == pytest.approx(27e9, rel=0.01)
    parts = facts.parts
    assert {moe.experts.parameters for moe in parts.moe} == {512 * per_expert}
    weights = [parts.embedding, parts.head, parts.other]
    weights += [w for m in parts.moe for w in (m.router, m.experts, m.shared, m.shared_gate)]
    weights += [m.weights for m in parts.mixers] + [w for layer in parts.layers for w in (layer.dense, layer.other)]
    assert sum(w.parameters for w in weights) == facts.parameters_total
    without = topology(longcat(zero_expert_num=0, moe_topk=8))
    assert without.parameters_unused == 0
    # the router then has 256 rows and biases less
    assert facts.parameters_total - without.parameters_total == 28 * 256 * 6144


def test_what_is_allocated_is_what_is_forecast():
    facts = topology(longcat(num_layers=1))
    forecast = forecast_memory(facts, value_bytes=2, device="cpu")
    assert forecast.weights_bytes == 2 * (facts.parameters_total + facts.parameters_unused)
