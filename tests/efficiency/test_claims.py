"""The published throughput: tokens per request by rounding, bounds by hand, and claims that are known impossible."""

import numpy as np
import pytest

from workbench.efficiency.costs.claims import Claim, bound, common_lengths, published_claims
from workbench.efficiency.costs.devices import device, measured
from workbench.efficiency.costs.formulas import cache_bytes, decode_flops, prefill_flops, step_bytes
from workbench.errors import ModelError
from workbench.models.loading import inspect_topology


def test_the_cards_rows_allow_requests_of_1100_or_1101_tokens():
    claims = published_claims()
    assert [claim.model for claim in claims] == ["Qwen2-57B-A14B", "Qwen1.5-32B"]
    assert common_lengths(claims) == (1100, 1101)
    ratio = float(claims[0].requests_per_s) / float(claims[1].requests_per_s)
    assert round(ratio, 3) == 1.815


def test_rounding_widens_the_length():
    """2.0 requests may be 1.95 to 2.05, and 100 tokens 99.5 to 100.5."""
    low, high = Claim("m", "c", "2.0", "100", "d").tokens_per_request
    assert (low, high) == pytest.approx((99.5 / 2.05, 100.5 / 1.95))
    exact = Claim("m", "c", "2.000000", "100.000000", "d")
    assert common_lengths([exact]) == (50,)
    assert common_lengths([exact, Claim("m", "c", "1.000000", "60.000000", "d")]) == ()
    with pytest.raises(ModelError, match="no claim was given; at least one row"):
        common_lengths([])


def test_a_bound_by_hand():
    facts = inspect_topology("qwen2-7b")
    room = facts.parameters_total * 2 + 10.5 * cache_bytes(facts, context=60, value_bytes=2)
    toy = measured(name="toy", dtype="bfloat16", peak_flops=1e14, bandwidth_bytes=1e12, memory_bytes=room)
    found = bound(facts, toy, read=50, written=20)
    assert found.batch == 10
    reading = sum(prefill_flops(facts, tokens=50, logits=1).values())
    writing = 20 * sum(decode_flops(facts, context=60).values())
    step = sum(step_bytes(facts, batch=10, context=60, weight_bytes=2).values())
    assert found.decode_s == pytest.approx(20 * step / 10 / 1e12)
    assert found.overlapped_s == pytest.approx(max((reading + writing) / 1e14, found.decode_s))
    assert found.serial_per_s <= found.most_per_s


def test_no_schedule_is_bounded_below_serial():
    facts = inspect_topology("qwen2-57b-a14b")
    for read in np.linspace(1, 1099, 7).astype(int).tolist():
        found = bound(facts, device("2xa100-80gb"), read=read, written=1100 - read, most=256)
        assert found.serial_per_s <= found.most_per_s * (1 + 1e-12)


def test_identical_requests_meet_k_experts_and_are_never_slower():
    facts = inspect_topology("qwen2-57b-a14b")
    different, same = (
        bound(facts, device("2xa100-80gb"), read=100, written=1000, most=256, identical=i) for i in (False, True)
    )
    assert same.decode_s < different.decode_s / 2
    dense = [
        bound(inspect_topology("qwen1.5-32b"), device("2xa100-80gb"), read=9, written=9, identical=i) for i in (0, 1)
    ]
    assert dense[0] == dense[1]


def test_what_is_known_impossible_is():
    """A thousand requests per second; and of the card, almost only writing with 256 sequences of different texts."""
    facts = inspect_topology("qwen2-57b-a14b")
    found = bound(facts, device("2xa100-80gb"), read=11, written=1089, most=256, memory_share=0.9)
    assert found.most_per_s < 9.40 < bound(facts, device("2xa100-80gb"), read=11, written=1089).most_per_s < 1000


def test_what_cannot_be_meant_is_refused():
    facts = inspect_topology("qwen2-57b-a14b")
    with pytest.raises(
        ModelError, match="qwen2_moe: 115 GB of weights and one request do not fit into 80 GB of 2xa100-40gb"
    ):
        bound(facts, device("2xa100-40gb"), read=10, written=10)
    with pytest.raises(ModelError, match="read is 0 and written 5; at least 1 and at least 0 tokens were expected"):
        bound(facts, device("h200"), read=0, written=5)
