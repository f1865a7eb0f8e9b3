"""The timed loop: it writes what `generate` writes, and marks every token."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.families import shrunk
from tests.tiers import often
from workbench.efficiency.instruments.clock import Clock
from workbench.efficiency.profiling import timed_run
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError

CPU = torch.device("cpu")


def prompts(rows: int = 3, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, tiny.VOCABULARY, (rows, width), generator=torch.Generator().manual_seed(seed))


def generated(module, ids_BS: torch.Tensor, tokens: int) -> torch.Tensor:
    whole = module.generate(
        input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), do_sample=False, max_new_tokens=tokens,
        min_new_tokens=tokens, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return whole[:, ids_BS.shape[1] :]


@pytest.mark.parametrize("attention", often(["eager", "sdpa"], ["sdpa"]))
@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_it_writes_what_generate_writes(kind, attention):
    model = {"moe": tiny.moe, "dense": tiny.dense}[kind]()
    model.module.set_attn_implementation(attention)
    ids_BS = prompts()
    done = timed_run.run(model.module, ids_BS, output_tokens=12)
    assert torch.equal(done.ids_BN, generated(model.module, ids_BS, 12))


@pytest.mark.parametrize("family", often(["mixtral", "jamba", "gpt_oss", "deepseek_v3"], ["gpt_oss"]))
def test_it_does_so_for_other_families(family):
    """Sliding windows, state-space layers, other caches: what the loop knows of a family is nothing."""
    model = shrunk.build(family)
    ids_BS = prompts(rows=2) % model.topology.vocabulary
    done = timed_run.run(model.module, ids_BS, output_tokens=6)
    assert torch.equal(done.ids_BN, generated(model.module, ids_BS, 6))


def test_a_row_does_not_see_the_others(moe):
    ids_BS = prompts()
    together = timed_run.run(moe.module, ids_BS, output_tokens=8).ids_BN
    alone = torch.cat([timed_run.run(moe.module, row[None], output_tokens=8).ids_BN for row in ids_BS])
    assert torch.equal(together, alone)


def test_each_token_has_its_time_and_the_first_logits_are_the_prompts(moe):
    ids_BS = prompts()
    steps: list[int] = []
    done = timed_run.run(moe.module, ids_BS, output_tokens=5, before_step=steps.append)
    assert steps == [0, 1, 2, 3, 4]
    assert done.token_s_N.shape == (5,) and done.token_s_N[0] > 0 and (np.diff(done.token_s_N) > 0).all()
    assert done.wall_s >= done.token_s_N[-1]
    torch.testing.assert_close(done.logits_BV, moe.module(input_ids=ids_BS, use_cache=False).logits[:, -1])


def test_sizes_below_one_are_refused():
    with pytest.raises(MeasurementError, match="output_tokens is 0; 1 or more"):
        Point(1, 1, 0)


def test_a_clock_counts_from_its_start(monkeypatch):
    now = iter([10.0, 10.0, 10.5, 12.0, 13.0])
    monkeypatch.setattr("workbench.efficiency.instruments.clock.time.perf_counter", lambda: next(now))
    clock = Clock(CPU).start()
    assert (clock.mark(), clock.mark()) == (1, 2)
    marks_s, wall_s = clock.stop()
    assert marks_s.tolist() == [0.0, 0.5, 2.0] and wall_s == 3.0


class FakeEvent:
    """A CUDA event whose time is set by the order of recording."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        FakeEvent.now += 250.0
        self.at = FakeEvent.now

    def elapsed_time(self, other: "FakeEvent") -> float:
        return other.at - self.at


def test_on_cuda_marks_are_events_and_the_host_waits_only_at_both_ends(monkeypatch):
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = Clock(torch.device("cuda")).start()
    clock.mark()
    clock.mark()
    assert waits == [0, 1]
    marks_s, _ = clock.stop()
    assert waits == [0, 1, 0, 1] and marks_s.tolist() == [0.0, 0.25, 0.5]
