"""The published configs give the published parameters exactly, without weights, and small copies of them are proved."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.shrunk import decide
from tests.tiers import often
from workbench.capture.proof.model import check_capture
from workbench.models import bundled
from workbench.models.loading import from_module, inspect_topology
from workbench.models.topology import topology

# total, active per token (the embedding whole), MoE layers, attention layers; the first two from the models' cards and
# counted on meta-device models by others (published in the workbench's design).
PUBLISHED = {
    "qwen2-57b-a14b": (57_408_658_944, 14_249_270_784, range(28), range(28)),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, range(24), range(24)),
    "qwen1.5-32b": (32_512_218_112, 32_512_218_112, (), range(64)),
    "qwen2-7b": (7_615_616_512, 7_615_616_512, (), range(28)),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, range(32), range(32)),
    "jamba-v0.1": (51_570_323_328, 12_110_311_296, range(1, 32, 2), range(4, 32, 8)),
    "yi-1.5-34b": (34_388_917_248, 34_388_917_248, (), range(60)),
}


def test_all_published_configs_are_held_against_something():
    assert set(PUBLISHED) == set(bundled.published_configs())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_layers(name):
    total, active, moe_layers, attention_layers = PUBLISHED[name]
    facts = inspect_topology(name)
    assert (facts.parameters_total, facts.parameters_active) == (total, active)
    assert facts.moe_layers == tuple(moe_layers)
    assert facts.attention_layers == tuple(attention_layers)


# Total and active in 10^9 as they are printed, where a card or a report prints them; each holds to its last digit.
CARDS = {
    "qwen2-57b-a14b": ("57", "14"),  # Qwen2 Technical Report, arXiv:2407.10671, table 1
    "qwen1.5-moe-a2.7b": ("14.3", "2.7"),  # model card
    "mixtral-8x7b": ("46.7", "12.9"),  # Mistral AI, "Mixtral of experts", 11 December 2023
    "jamba-v0.1": ("52", "12"),  # Jamba, arXiv:2403.19887, section 3.1
    "yi-1.5-34b": ("34", "34"),  # model card
}


OF_EXPERTS = [name for name, (_, _, moe_layers, _) in PUBLISHED.items() if moe_layers]


@pytest.mark.parametrize("name", CARDS)
def test_the_totals_are_those_of_the_cards(name):
    facts = inspect_topology(name)
    for printed, counted in zip(CARDS[name], (facts.parameters_total, facts.parameters_active), strict=True):
        digits = len(printed.partition(".")[2])
        assert f"{counted / 1e9:.{digits}f}" == printed


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 211, "max_position_embeddings": 256, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 24, "mamba_d_state": 8, "mamba_dt_rank": 4}  # fmt: skip


@pytest.mark.parametrize("name", often(OF_EXPERTS, OF_EXPERTS[:1]))
def test_a_narrow_copy_with_all_its_layers_is_proved(name):
    """As deep, with as many experts and the same pattern of layers as the published model, but narrow."""
    config = AutoConfig.from_pretrained(bundled.CONFIGS / f"{name}.json")
    for key, value in SMALL.items():
        if hasattr(config, key):
            setattr(config, key, value)
    config.dtype = None
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    decide(module, topology(module))
    model = from_module(module, name=f"narrow-{name}")
    published = inspect_topology(name)
    same = ("n_experts", "top_k", "scoring", "normalized", "layer")
    assert [[getattr(r, n) for n in same] for r in model.topology.routers] == [
        [getattr(r, n) for n in same] for r in published.routers
    ]
    assert check_capture(model).routers == len(published.routers)
