"""Published costs to the last digit, costs worked out by hand, and what is refused."""

import json

import numpy as np
import pytest

from workbench.efficiency.costs import formulas
from workbench.efficiency.costs.devices import DEVICES, device, measured
from workbench.efficiency.costs.formulas import (
    cache_bytes,
    decode_flops,
    linear_flops,
    memory,
    parameters,
    prefill_flops,
    step_bytes,
    uniform_coverage,
)
from workbench.efficiency.costs.roofline import decode_floor, decode_ratio, floor, prefill_floor
from workbench.errors import ModelError
from workbench.models.loading import inspect_topology
from workbench.models.topology import Topology

# keys and values per token in bfloat16, as the models' published shapes give them
CACHE = {
    "qwen2-57b-a14b": 57_344,
    "qwen1.5-moe-a2.7b": 196_608,
    "qwen1.5-32b": 262_144,
    "qwen2-7b": 57_344,
    "mixtral-8x7b": 131_072,
    "jamba-v0.1": 16_384,
    "yi-1.5-34b": 245_760,
}
# h, layers, heads, groups, head width, dense FFN, expert, shared FFN, E, k, vocabulary: as published
SHAPES = {
    "qwen2-57b-a14b": (3584, 28, 28, 4, 128, 0, 2560, 20480, 64, 8, 151936),
    "qwen1.5-moe-a2.7b": (2048, 24, 16, 16, 128, 0, 1408, 5632, 60, 4, 151936),
    "qwen1.5-32b": (5120, 64, 40, 8, 128, 27392, 0, 0, 0, 0, 152064),
    "qwen2-7b": (3584, 28, 28, 4, 128, 18944, 0, 0, 0, 0, 152064),
    "mixtral-8x7b": (4096, 32, 32, 8, 128, 0, 14336, 0, 8, 2, 32000),
    "yi-1.5-34b": (7168, 60, 56, 8, 128, 20480, 0, 0, 0, 0, 64000),
}


@pytest.fixture(scope="module")
def published():
    return {name: inspect_topology(name) for name in CACHE}


@pytest.mark.parametrize("name", CACHE)
def test_cache_and_parameters_as_published(published, name):
    facts = published[name]
    per_token = cache_bytes(facts, context=2, value_bytes=2) - cache_bytes(facts, context=1, value_bytes=2)
    assert per_token == CACHE[name]
    shares = parameters(facts).values()
    assert sum(s.total for s in shares) == facts.parameters_total
    assert sum(s.active for s in shares) == facts.parameters_active


@pytest.mark.parametrize("name", SHAPES)
def test_flops_follow_from_the_published_widths(published, name):
    h, layers, n, g, d, f, m, s, e, k, v = SHAPES[name]
    found = decode_flops(published[name], context=1000)
    by_hand = {
        "attention maps": layers * (4 * h * n * d + 4 * h * g * d),
        "dense FFN": layers * 6 * h * f,
        "router": layers * 2 * h * e,
        "routed experts": layers * 6 * k * h * m,
        "shared expert": layers * (6 * h * s + (2 * h if s else 0)),
        "head": 2 * h * v,
        "attention scores": layers * 4 * n * d * 1000,
    }
    assert found == {name: flops for name, flops in by_hand.items() if flops}


def test_the_reference_pair(published):
    moe, dense = (sum(linear_flops(published[name]).values()) for name in ("qwen2-57b-a14b", "qwen1.5-32b"))
    assert (moe, dense) == (27_408_797_696, 63_465_062_400)
    assert round(dense / moe, 4) == 2.3155
    prefill = prefill_flops(published["qwen2-57b-a14b"], tokens=128, causal=False)
    assert sum(prefill.values()) == 3_514_902_773_760


def test_jambas_state_space(published):
    """28 layers: in 4096 → 2·8192, convolution 4, 8192 → 256 + 2·16, 256 → 8192, out 8192 → 4096."""
    found = decode_flops(published["jamba-v0.1"], context=1)
    products = 4096 * 16384 + 8192 * 4 + 8192 * 288 + 256 * 8192 + 8192 * 4096
    assert found["state space"] == 28 * 2 * products
    assert found["state read-out"] == 28 * 2 * 8192 * 16
    assert cache_bytes(published["jamba-v0.1"], context=0, value_bytes=2) == 28 * 8192 * (16 + 4) * 2


def test_causal_prefill_counts_earlier_tokens_alone(published):
    one = prefill_flops(published["qwen2-7b"], tokens=1)
    assert one == decode_flops(published["qwen2-7b"], context=1)
    many = prefill_flops(published["qwen2-7b"], tokens=50, logits=1)
    steps = [decode_flops(published["qwen2-7b"], context=t) for t in range(1, 51)]
    assert many["attention scores"] == sum(step["attention scores"] for step in steps)
    assert many["head"] == one["head"] and many["dense FFN"] == 50 * one["dense FFN"]


def test_a_window_bounds_scores_and_cache(published):
    facts = with_window(published["qwen2-7b"], 10)
    assert cache_bytes(facts, context=25, value_bytes=2) == 10 * CACHE["qwen2-7b"]
    pairs = sum(min(t, 10) for t in range(1, 26))
    assert prefill_flops(facts, tokens=25)["attention scores"] == 28 * 4 * 28 * 128 * pairs


def with_window(facts, window):
    stated = json.loads(json.dumps(facts.to_json()))
    for layer in stated["parts"]["layers"]:
        layer["mixers"][0]["window"] = window
    return Topology.from_json(stated)


def test_bytes_of_a_step_as_the_formula_says(published):
    """W(B) = b·[P − P_embed − P_experts + P_experts·C(B)/E] + B·context·KV."""
    facts = published["qwen2-57b-a14b"]
    experts, embedding = 28 * 64 * 3 * 3584 * 2560, 151936 * 3584
    met = 64 * (1 - (1 - 8 / 64) ** 8)
    assert round(met, 1) == 42.0
    read = step_bytes(facts, batch=8, context=100, weight_bytes=2)
    expected = 2 * (facts.parameters_total - embedding - experts + experts * met / 64) + 8 * 100 * 57_344
    assert sum(read.values()) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(uniform_coverage(facts, tokens=1), 8)


def test_identical_tokens_meet_k_experts_and_all_at_most_everything(published):
    facts = published["qwen2-57b-a14b"]
    few, all_ = (step_bytes(facts, batch=64, context=1, weight_bytes=2, experts_R=np.full(28, c)) for c in (8, 64))
    assert all_["routed experts"] == 8 * few["routed experts"] == 2 * parameters(facts)["routed experts"].total


def test_a_tied_embedding_is_read_as_the_head(published):
    """Llama 3.2 and others: the matrix counts once as parameters, and is read by every step."""
    stated = json.loads(json.dumps(published["qwen2-7b"].to_json()))
    stated["parts"]["head"]["parameters"] = 0
    stated["parameters_total"] -= 152064 * 3584
    tied = Topology.from_json(stated)
    assert step_bytes(tied, batch=1, context=1, weight_bytes=2) == step_bytes(
        published["qwen2-7b"], batch=1, context=1, weight_bytes=2
    )
    assert sum(s.total for s in parameters(tied).values()) == tied.parameters_total


def test_memory_by_dtype(published):
    facts = published["qwen2-57b-a14b"]
    wide, narrow = (memory(facts, batch=4, context=10, dtype=dtype) for dtype in ("bfloat16", "int4"))
    assert wide.total_bytes == 2 * facts.parameters_total + 4 * 10 * 57_344
    assert narrow.weights_bytes == facts.parameters_total / 2 and narrow.cache_bytes == wide.cache_bytes


def test_a_topology_keeps_its_parts_as_json(published):
    for facts in published.values():
        assert Topology.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_what_cannot_be_meant_is_refused(published):
    facts = published["qwen2-57b-a14b"]
    old = Topology.from_json({**facts.to_json(), "parts": None})
    with pytest.raises(ModelError, match="qwen2_moe: this topology is of an earlier version .* workbench costs MODEL"):
        parameters(old)
    with pytest.raises(ModelError, match="context is 0; 1 or more was expected"):
        decode_flops(facts, context=0)
    with pytest.raises(
        ModelError, match="experts_R is .*; one number of distinct experts, 0 to E, was expected for each"
    ):
        step_bytes(facts, batch=1, context=1, weight_bytes=2, experts_R=np.full(28, 65))
    with pytest.raises(ModelError, match="dtype is 'fp4'; one of float32, bfloat16, .* was expected"):
        memory(facts, batch=1, context=1, dtype="fp4")


def test_crossover_of_the_reference_pair(published):
    """On an H200 with 1,024 tokens of context: faster alone, slower in small batches, faster again in large ones."""
    moe, dense = published["qwen2-57b-a14b"], published["qwen1.5-32b"]
    ratio = {
        batch: round(decode_ratio(moe, dense, device("h200"), batch=batch, context=1024), 2)
        for batch in (1, 4, 32, 256)
    }
    assert ratio == {1: 2.32, 4: 1.15, 32: 0.63, 256: 1.03}


def test_the_roof(published):
    """A toy device: 100 FLOP/s and 10 bytes/s; 10 FLOP per byte is the ridge."""
    toy = measured(name="toy", dtype="bfloat16", peak_flops=100, bandwidth_bytes=10, memory_bytes=1000)
    assert toy.ridge("bfloat16") == 10
    reads, computes = floor(50, 10, toy, "bfloat16"), floor(500, 10, toy, "bfloat16")
    assert (reads.time_s, reads.bound, computes.time_s, computes.bound) == (1.0, "memory", 5.0, "compute")
    assert floor(100, 10, toy.times(2), "bfloat16").time_s == 0.5
    assert computes.intensity == 50


def test_decode_reads_and_prefill_computes(published):
    facts = published["qwen1.5-32b"]
    assert decode_floor(facts, device("h100"), batch=1, context=100).bound == "memory"
    assert prefill_floor(facts, device("h100"), batch=1, tokens=4096).bound == "compute"


def test_a_prefill_by_hand(published):
    facts = published["qwen2-7b"]
    found = prefill_floor(facts, device("h100"), batch=2, tokens=100)
    assert found.n_bytes == 2 * (facts.parameters_total - 152064 * 3584) + 2 * 100 * 57_344
    assert found.flops == 2 * sum(prefill_flops(facts, tokens=100, logits=1).values())


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_its_figures_and_source(name):
    found = DEVICES[name]
    assert found.source and found.memory_bytes > 0 and 10 < found.ridge("bfloat16") < 1000
    assert found.peak("int4") == found.peak("bfloat16") > found.peak("float32")


def test_devices_that_cannot_be_meant():
    assert device("2xa100-80gb").memory_bytes == 160e9
    with pytest.raises(ModelError, match="unknown device 'tpu'; there are a100-40gb, .* and several of one as 2xh100"):
        device("tpu")
    with pytest.raises(ModelError, match="a100-80gb: its source states no peak for float8; it does for bfloat16"):
        device("a100-80gb").peak("float8")
    with pytest.raises(ModelError, match="count is 0; 1 or more devices were expected"):
        device("0xh100")
    with pytest.raises(ModelError, match="peak_flops is 0; what was measured on toy, more than 0, was expected"):
        measured(name="toy", dtype="bfloat16", peak_flops=0, bandwidth_bytes=1, memory_bytes=1)


def test_every_dtype_has_its_bytes():
    assert formulas.dtype_bytes("float32") == 4 and formulas.dtype_bytes("float8") == 1
