import re
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from tests import tiny
from workbench.errors import ModelError
from workbench.models import families
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
