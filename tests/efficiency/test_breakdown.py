"""Parts of a pass: which modules they are, and that their own times sum to no more than the whole."""

import pytest
import torch

from tests import tiny
from tests.families import shrunk
from workbench.efficiency.instruments.clock import Clock
from workbench.efficiency.profiling import breakdown, timed_run
from workbench.efficiency.profiling.breakdown import Marks

CPU = torch.device("cpu")


class Steady:
    """A clock whose marks stand one second apart."""

    def __init__(self) -> None:
        self.marks = 0

    def start(self) -> "Steady":
        self.mark()
        return self

    def mark(self) -> int:
        self.marks += 1
        return self.marks - 1

    def stop(self):
        return torch.arange(self.marks).double().numpy(), float(self.marks - 1)


def test_parts_of_the_tiny_models(moe, dense):
    parts = breakdown.parts_of(moe.module, moe.topology)
    assert parts["model.layers.1.mlp"] == "dense FFN" and "model.layers.0.mlp" not in parts
    names = ("self_attn", "mlp.gate", "mlp.experts", "mlp.shared_expert")
    wanted = ["attention", "router", "routed experts", "shared expert"]
    assert [parts[f"model.layers.0.{name}"] for name in names] == wanted
    assert parts["model.layers.2.mlp.shared_expert_gate"] == "shared expert" and parts["lm_head"] == "lm_head"
    assert set(breakdown.parts_of(dense.module, dense.topology).values()) == {"attention", "dense FFN", "lm_head"}


@pytest.mark.parametrize("family", ["jamba", "mixtral", "deepseek_v3", "gpt_oss"])
def test_every_parameter_of_a_layer_but_the_norms_belongs_to_a_part(family):
    model = shrunk.build(family)
    parts = breakdown.parts_of(model.module, model.topology)
    assert set(parts.values()) <= set(breakdown.PARTS)
    left = [
        name
        for name, parameter in model.module.named_parameters()
        if ".layers." in name and not any(name.startswith(f"{path}.") for path in parts)
    ]
    assert all("norm" in name for name in left), left


def test_own_times_by_hand_nested_parts_leave_the_outer_one_its_own():
    marks = Marks(Clock(CPU))
    marks.events = [
        (0, "attention", True, 1), (0, "attention", False, 3),
        (0, "routed experts", True, 4), (0, "router", True, 5), (0, "router", False, 8),
        (0, "routed experts", False, 9),
        (1, "attention", True, 10), (1, "attention", False, 11),
    ]  # fmt: skip
    own = marks.seconds(torch.arange(12).double().numpy())
    assert own == {
        (0, "attention"): 2.0, (0, "router"): 3.0, (0, "routed experts"): 2.0, (1, "attention"): 1.0,
    }  # fmt: skip


def test_marks_come_in_pairs_and_the_sum_is_the_whole_less_what_lies_between(moe):
    clock, ids_BS = Steady(), torch.ones((2, 5), dtype=torch.long)
    parts = breakdown.parts_of(moe.module, moe.topology)
    with breakdown.watched(moe.module, parts, clock) as marks:

        def before(step: int) -> None:
            marks.step = step

        done = timed_run.run(moe.module, ids_BS, output_tokens=3, before_step=before, clock=clock)
    own = marks.seconds(done.marks_s)
    assert sum(enters for _, _, enters, _ in marks.events) * 2 == len(marks.events) == 3 * 2 * len(parts)
    assert own[0, "attention"] == own[2, "attention"] == 3.0  # three layers, a second between entry and exit
    for step in range(3):
        inside = sum(seconds for (at, _), seconds in own.items() if at == step)
        before_s = done.token_s_N[step - 1] if step else 0.0
        assert inside <= done.token_s_N[step] - before_s


def test_nothing_stays_hooked(moe):
    with breakdown.watched(moe.module, breakdown.parts_of(moe.module, moe.topology), Clock(CPU)):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in moe.module.modules())


def test_a_pair_of_marks_costs_something():
    assert breakdown.hook_seconds(CPU, calls=200, tries=3) > 0


def test_watching_changes_no_token():
    model, ids_BS = tiny.moe(), torch.arange(1, 11).reshape(2, 5)
    plain = timed_run.run(model.module, ids_BS, output_tokens=4).ids_BN
    with breakdown.watched(model.module, breakdown.parts_of(model.module, model.topology), clock := Clock(CPU)):
        watched = timed_run.run(model.module, ids_BS, output_tokens=4, clock=clock).ids_BN
    assert torch.equal(plain, watched)
