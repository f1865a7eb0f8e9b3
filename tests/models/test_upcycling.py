import numpy as np
import pytest
import torch

from tests import tiny
from workbench.errors import ModelError
from workbench.models.upcycling import UpcyclingRecipe, neuron_sources, shared_sources, upcycle

RECIPE = UpcyclingRecipe(n_experts=6, expert_width=20, top_k=2, shared_width=24, reinit_fraction=0.5)


@pytest.fixture(scope="module")
def parent():
    return tiny.dense().module


def test_each_copy_of_the_ffn_uses_a_neuron_once():
    sources_EM = neuron_sources(RECIPE, dense_width=48, layer=0, seed=1)
    assert sources_EM.shape == (6, 20)
    assert RECIPE.copies(48) == 3  # ceil(6 * 20 / 48)
    flat = sources_EM.reshape(-1)
    for copy in (flat[:48], flat[48:96], flat[96:]):
        assert len(set(copy)) == len(copy)


def test_layers_and_seeds_are_shuffled_apart():
    draws = [neuron_sources(RECIPE, dense_width=48, layer=layer, seed=seed) for layer, seed in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_without_reinitialization_every_neuron_is_its_source(parent):
    moe = upcycle(parent, UpcyclingRecipe(6, 20, 2, 24, reinit_fraction=0.0), seed=0)
    for layer in range(2):
        sources_EM = neuron_sources(RECIPE, dense_width=48, layer=layer, seed=0)
        ffn, block = parent.model.layers[layer].mlp, moe.model.layers[layer].mlp
        for expert in range(6):
            at = torch.from_numpy(sources_EM[expert])
            expected = torch.cat([ffn.gate_proj.weight[at], ffn.up_proj.weight[at]])
            assert torch.equal(block.experts.gate_up_proj[expert], expected)
            assert torch.equal(block.experts.down_proj[expert], ffn.down_proj.weight[:, at])
        shared = torch.from_numpy(shared_sources(RECIPE, dense_width=48, layer=layer, seed=0))
        assert torch.equal(block.shared_expert.up_proj.weight, ffn.up_proj.weight[shared])
        assert torch.equal(block.shared_expert.down_proj.weight, ffn.down_proj.weight[:, shared])


def test_all_copies_together_compute_the_dense_ffn(parent):
    """Limit case: one copy cut into experts that are all chosen with weight one is the dense FFN."""
    whole = UpcyclingRecipe(n_experts=4, expert_width=12, top_k=4, shared_width=24, reinit_fraction=0.0)
    moe = upcycle(parent, whole, seed=0)
    x = torch.randn(5, 32)
    ids = torch.arange(4).expand(5, 4)
    mixed = moe.model.layers[1].mlp.experts(x, ids, torch.ones(5, 4))
    torch.testing.assert_close(mixed, parent.model.layers[1].mlp(x))


def test_the_reinitialized_share_is_as_asked(parent):
    moe = upcycle(parent, RECIPE, seed=0)
    kept = upcycle(parent, UpcyclingRecipe(6, 20, 2, 24, reinit_fraction=0.0), seed=0)
    same = [
        (getattr(a.mlp.experts, name) == getattr(b.mlp.experts, name)).float().mean().item()
        for a, b in zip(moe.model.layers, kept.model.layers, strict=True)
        for name in ("gate_up_proj", "down_proj")
    ]
    assert all(0.46 < share < 0.54 for share in same)


def test_attention_embeddings_and_output_are_carried_over(parent):
    moe = upcycle(parent, RECIPE, seed=0)
    old, new = parent.state_dict(), moe.state_dict()
    carried = [name for name in old if ".mlp." not in name]
    assert len(carried) > 10
    assert all(torch.equal(old[name], new[name]) for name in carried)


def test_the_same_seed_gives_the_same_model(parent):
    one, two, other = (upcycle(parent, RECIPE, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_shared_expert_wider_than_the_ffn_is_refused(parent):
    with pytest.raises(ModelError, match="shared_width is 49, the dense FFN has 48 neurons to copy"):
        upcycle(parent, UpcyclingRecipe(6, 20, 2, 49), seed=0)


def test_a_share_outside_zero_to_one_is_refused(parent):
    with pytest.raises(ModelError, match="reinit_fraction is 1.5; give a share between 0 and 1"):
        upcycle(parent, UpcyclingRecipe(6, 20, 2, 24, reinit_fraction=1.5), seed=0)
