"""Memory, energy, ceilings and kernels: what this machine tells, and what it says when it does not."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from workbench.efficiency.costs.utilization import Work, utilization
from workbench.efficiency.instruments import energy, machine, peak_memory
from workbench.efficiency.profiling import kernels
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError

CPU = torch.device("cpu")
MIB = 2**20


def test_a_run_that_takes_memory_shows_it_and_one_after_it_does_not():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel tells no high-water mark here")
    large = peak_memory.peak_of(lambda: torch.ones(200 * MIB, dtype=torch.uint8), CPU)
    small = peak_memory.peak_of(lambda: torch.ones(8, dtype=torch.uint8), CPU)
    assert large.peak_bytes - large.before_bytes > 190 * MIB
    assert small.peak_bytes - small.before_bytes < 50 * MIB


def test_where_no_mark_can_be_reset_nothing_is_claimed(tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t100 kB\nVmHWM:\t300 kB\n")
    (tmp_path / "clear_refs").mkdir()  # nothing can be written into it
    done: list[int] = []
    found = peak_memory.peak_of(lambda: done.append(1), CPU, process=tmp_path)
    assert (found.before_bytes, found.peak_bytes, done) == (None, None, [1])
    assert "the high-water mark cannot be reset here" in found.counter
    (tmp_path / "clear_refs").rmdir()
    found = peak_memory.peak_of(lambda: None, CPU, process=tmp_path)
    assert (found.before_bytes, found.peak_bytes) == (100 * 1024, 300 * 1024)


def rapl(folder: Path, name: str, joules: float) -> None:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (folder / "max_energy_range_uj").write_text("100000000\n")


def test_rapl_counts_packages_and_not_their_parts_and_wraps(tmp_path):
    rapl(tmp_path / "intel-rapl:0", "package-0", 99.0)
    rapl(tmp_path / "intel-rapl:0:0", "core", 5.0)
    found, missing = energy.counters("cpu", powercap=tmp_path)
    assert [counter.name for counter in found] == ["RAPL package-0"] and not missing
    before = found[0].read_joules()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1500000")
    assert before == 99.0 and found[0].between(before, found[0].read_joules()) == pytest.approx(2.5)
    assert found[0].between(1.0, 4.0) == 3.0


def test_without_a_counter_the_reason_is_said(tmp_path):
    assert energy.counters("cpu", powercap=tmp_path) == ([], "this machine shows no RAPL counter")


class FakeNvml:
    """NVIDIA's library with one GPU that has used 12.5 J."""

    def __init__(self, state: int = 0) -> None:
        self.state = state

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle) -> int:
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, millijoules) -> int:
        millijoules._obj.value = 12_500
        return self.state


def test_nvml_gives_joules_or_says_that_the_gpu_has_no_counter():
    found, missing = energy.counters("cuda", nvml=FakeNvml())
    assert (found[0].name, found[0].read_joules(), missing) == ("NVML GPU 0", 12.5, "")
    assert energy.counters("cuda", nvml=FakeNvml(state=3)) == (
        [], "GPU 0 has no energy counter (Volta or newer has one)",
    )  # fmt: skip


def test_the_ceiling_and_the_facts_are_of_this_machine():
    found = machine.ceiling(CPU, torch.float32, tries=1)
    assert found.flops_per_s > 1e8 and found.bytes_per_s > 1e7
    facts = machine.facts(CPU)
    assert facts["threads"] == torch.get_num_threads() and facts["memory_bytes"] > 0 and facts["cpu"]


def test_utilization_by_hand():
    """64 experts, 8 chosen, 2 s: each share is its work over what the peak does in the time."""
    work = Work(active_flops=10.0, all_flops=80.0, met_bytes=6.0, all_bytes=12.0)
    found = utilization(work, seconds=2.0, peak_flops_per_s=100.0, peak_bytes_per_s=30.0)
    assert (found.mfu, found.s_mfu, found.mbu, found.s_mbu) == (0.4, 0.05, 0.2, 0.1)
    assert (found.peak_flops_per_s, found.peak_bytes_per_s) == (100.0, 30.0)


def test_utilization_of_a_dense_model_has_one_value_of_each_kind():
    found = utilization(Work(5.0, 5.0, 7.0, 7.0), seconds=1.0, peak_flops_per_s=10.0, peak_bytes_per_s=10.0)
    assert found.mfu == found.s_mfu and found.mbu == found.s_mbu


@pytest.mark.parametrize("name", ["seconds", "peak_flops_per_s", "peak_bytes_per_s"])
def test_utilization_refuses_what_divides_by_nothing(name):
    given = {"seconds": 1.0, "peak_flops_per_s": 1.0, "peak_bytes_per_s": 1.0, name: 0.0}
    with pytest.raises(ValueError, match=f"{name} is 0.0, more than 0 was expected"):
        utilization(Work(1.0, 1.0, 1.0, 1.0), **given)


def test_kernels_are_switched_for_a_block_and_back(moe, dense):
    before = kernels.in_use(moe.module)
    with kernels.using(moe.module, "eager"):
        assert kernels.in_use(moe.module) == "eager"
    assert kernels.in_use(moe.module) == before
    assert kernels.in_use(dense.module) == "" and kernels.known(dense.module) == []
    assert {"eager", "grouped_mm", "batched_mm"} <= set(kernels.known(moe.module))
    with pytest.raises(MeasurementError, match="experts implementation is 'magic', which cannot be set here"):
        kernels.using(moe.module, "magic").__enter__()


def test_a_kernel_that_does_not_run_says_why_and_leaves_the_model_as_it_was():
    model = tiny.moe()
    before, probe = kernels.in_use(model.module), torch.ones((1, 2), dtype=torch.long)
    assert kernels.why_not(model.module, "eager", probe) == ""
    if not torch.cuda.is_available():
        assert kernels.why_not(model.module, "sonicmoe", probe)
    assert kernels.in_use(model.module) == before


def test_what_batched_mm_copies_is_what_it_selects(moe, monkeypatch):
    """The formula beside the tensor that the kernel makes."""
    from transformers.integrations import moe as integration

    made: list[int] = []
    plain = integration._batched_linear

    def spy(x, weight, **keywords):
        made.append(weight.numel() * weight.element_size())
        return plain(x, weight, **keywords)

    monkeypatch.setattr(integration, "_batched_linear", spy)
    with kernels.using(moe.module, "batched_mm"):
        moe.module(input_ids=torch.ones((2, 7), dtype=torch.long), use_cache=False)
    assert max(made) == kernels.copied_bytes(moe.topology, Point(2, 7, 1), value_bytes=4)


def test_a_gpus_memory_is_the_allocators(monkeypatch):
    fake = SimpleNamespace(
        synchronize=lambda i=None: None, empty_cache=lambda: None, device_count=lambda: 2,
        reset_peak_memory_stats=lambda i: None, memory_allocated=lambda i: 10 + i,
        max_memory_allocated=lambda i: 50 + i,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", fake)
    found = peak_memory.peak_of(lambda: None, torch.device("cuda"))
    assert (found.before_bytes, found.peak_bytes) == (21, 101)
