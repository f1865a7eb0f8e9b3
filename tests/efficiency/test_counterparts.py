"""Dense counterparts: made on the meta device, as near as they say, with the MoE's skeleton where it is kept."""

import pytest

from workbench.efficiency.costs.comparison import costed, with_published
from workbench.efficiency.costs.counterparts import KINDS, counterpart
from workbench.efficiency.costs.formulas import linear_flops, memory
from workbench.errors import ModelError
from workbench.models.configs import on_meta
from workbench.models.loading import inspect_topology
from workbench.models.topology import topology

MODELS = ("qwen2-57b-a14b", "mixtral-8x7b", "jamba-v0.1", "qwen1.5-moe-a2.7b", "tiny-moe")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_dense_made_from_a_config_and_as_near_as_it_says(name, kind):
    moe = inspect_topology(name)
    found = counterpart(moe, kind, batch=4, context=500)
    made = topology(on_meta(found.config()))
    assert made == found.topology and not made.routers
    wanted = {"iso-active": moe.parameters_active, "iso-total": moe.parameters_total}.get(kind)
    reached = made.parameters_total
    if wanted is None:
        wanted, reached = (memory(t, batch=4, context=500, dtype="bfloat16").total_bytes for t in (moe, made))
    assert (found.wanted, found.reached) == (wanted, reached)
    assert abs(found.off) < 0.002 and found.off == reached / wanted - 1
    assert f"{reached:,.0f} of {wanted:,.0f}" in found.words and f"{found.off:+.2%}" in found.words


@pytest.mark.parametrize(("name", "ffn"), [("qwen2-57b-a14b", 8 * 2560 + 20480), ("mixtral-8x7b", 2 * 14336)])
def test_iso_active_replaces_the_experts_by_one_as_wide(name, ffn):
    """Depth, width, attention and vocabulary stay; what is left of FLOPs is the router's."""
    moe, found = inspect_topology(name), counterpart(inspect_topology(name), "iso-active")
    same = ("n_layers", "width", "n_heads", "n_kv_groups", "head_width", "vocabulary")
    assert all(getattr(found.topology, field) == getattr(moe, field) for field in same)
    assert found.ffn == found.config().intermediate_size == ffn
    theirs, ours = linear_flops(moe), linear_flops(found.topology)
    gate = 28 * 2 * 3584 if name.startswith("qwen") else 0
    assert sum(theirs.values()) - theirs["router"] - gate == sum(ours.values())


def test_iso_total_grows_in_depth_and_width():
    moe, found = (
        inspect_topology("qwen2-57b-a14b"),
        counterpart(inspect_topology("qwen2-57b-a14b"), "iso-total").topology,
    )
    assert found.n_layers > moe.n_layers and found.width > moe.width
    assert found.n_heads // found.n_kv_groups == moe.n_heads // moe.n_kv_groups


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(ModelError, match="counterpart is 'iso-cost'; iso-active, iso-total, iso-memory, or the name"):
        counterpart(inspect_topology("qwen2-57b-a14b"), "iso-cost")
    with pytest.raises(ModelError, match="qwen2: this model has no MoE layer, so it is its own iso-total counterpart"):
        counterpart(inspect_topology("qwen2-7b"), "iso-total")
    with pytest.raises(ModelError, match="bytes|parameters leave no room for an FFN beside .* of attention"):
        counterpart(inspect_topology("tiny-moe"), "iso-memory", batch=10_000, context=1000)
    with pytest.raises(ModelError, match="against is 'iso-cost'; iso-active, .*, or the name of a model was expected"):
        costed("qwen2-57b-a14b", "iso-cost")


def test_a_pair_is_read_from_configs():
    named, made = costed("qwen2-57b-a14b", "qwen1.5-32b"), costed("qwen2-57b-a14b", "iso-active")
    assert named.note == "" and named.other.n_layers == 64 and "FFN 40,960" in made.note
    assert named.digest != made.digest == costed("qwen2-57b-a14b", "iso-active").digest
    assert set(with_published(named).published) == {
        "qwen2-57b-a14b", "qwen1.5-32b", "jamba-v0.1", "mixtral-8x7b", "yi-1.5-34b"
    }  # fmt: skip
