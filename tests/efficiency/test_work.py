"""The work of a phase: by hand, in the limit, cut into pieces, and the peaks that it is compared with."""

import dataclasses

import numpy as np
import pytest

from workbench.efficiency.costs import formulas
from workbench.efficiency.costs.devices import DEVICES, known_as
from workbench.efficiency.costs.workload import Task, prefill_widths, seconds_at
from workbench.errors import ModelError


def task(model, phase: str, **changed) -> Task:
    sizes = {"batch": 2, "prompt_tokens": 5, "output_tokens": 4, "dtype": "float32"}
    return Task(model.topology, phase, **{**sizes, **changed})


def test_prefill_by_hand(moe):
    """Two rows of five tokens, logits at the last position, the weights read once, the cache written."""
    found = task(moe, "prefill").work
    assert found.active_flops == 2 * sum(formulas.prefill_flops(moe.topology, tokens=5, logits=1).values())
    read = sum(formulas.weights_read(moe.topology, tokens=10, weight_bytes=4).values())
    # the attention of three layers keeps 2 · 2 groups · 8 values of each token
    assert found.met_bytes == pytest.approx(read + 2 * 5 * 3 * 2 * 2 * 8 * 4)


def test_decode_is_the_sum_of_its_steps_each_a_token_longer(moe):
    steps = [formulas.decode_flops(moe.topology, context=context) for context in (6, 7, 8)]
    found = task(moe, "decode")
    assert found.work.active_flops == pytest.approx(2 * sum(sum(step.values()) for step in steps))
    moved = [formulas.step_bytes(moe.topology, batch=2, context=context, weight_bytes=4) for context in (6, 7, 8)]
    assert found.work.met_bytes == pytest.approx(sum(sum(step.values()) for step in moved))


def test_met_everywhere_all_experts_are_read_and_idle_ones_are_all_less_active(moe):
    every = task(moe, "decode", experts_R=np.array([8.0, 8.0])).work
    assert every.met_bytes == every.all_bytes
    few = task(moe, "decode", experts_R=np.array([3.0, 3.0])).work
    # two MoE layers, five experts of 3 · 32 · 16 weights more, in three steps
    assert every.met_bytes - few.met_bytes == pytest.approx(3 * 2 * 5 * 3 * 32 * 16 * 4)
    assert few.all_flops - few.active_flops == pytest.approx(2 * 3 * 2 * 5 * 2 * 3 * 32 * 16)


def test_a_dense_model_has_no_idle_experts(dense):
    found = task(dense, "prefill").work
    assert found.all_flops == found.active_flops and found.all_bytes == found.met_bytes


def test_prompts_in_pieces_read_the_weights_once_a_piece(dense):
    whole, pieces = (task(dense, "prefill", prefill_passes=n) for n in (1, 5))
    assert pieces.weights_bytes == 5 * whole.weights_bytes and pieces.cache_bytes == whole.cache_bytes
    head = 2 * 2 * 32 * 211  # two rows; each piece has logits at its last position
    assert pieces.work.active_flops - whole.work.active_flops == 4 * head


@pytest.mark.parametrize(
    ("batch", "tokens", "chunk", "widths"),
    [(4, 10, 0, [10]), (4, 10, 12, [3, 3, 3, 1]), (4, 10, 1, [1] * 10), (1, 10, 100, [10])],
)
def test_pieces_of_a_prompt(batch, tokens, chunk, widths):
    assert prefill_widths(batch, tokens, chunk) == widths


def test_a_phase_that_is_none_is_refused(dense):
    with pytest.raises(ModelError, match="phase is 'middle'; prefill or decode was expected"):
        task(dense, "middle")


def test_the_floor_is_the_longer_of_computing_and_moving():
    assert seconds_at(6.0, 8.0, flops_per_s=3.0, bytes_per_s=2.0) == 4.0
    assert seconds_at(12.0, 8.0, flops_per_s=3.0, bytes_per_s=4.0) == 4.0


def test_a_device_is_known_by_its_drivers_name_and_not_by_one_that_is_near():
    assert known_as(["NVIDIA H200"]) == DEVICES["h200"]
    two = known_as(["NVIDIA A100-SXM4-80GB"] * 2)
    assert two is not None and two.count == 2 and two.bandwidth_bytes == 2 * DEVICES["a100-80gb"].bandwidth_bytes
    for names in ([], ["NVIDIA H200 NVL"], ["NVIDIA H100 PCIe"], ["NVIDIA H200", "NVIDIA L40S"]):
        assert known_as(names) is None
    assert all(dataclasses.is_dataclass(each) for each in DEVICES.values())
