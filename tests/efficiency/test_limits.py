"""What a measurement leaves out, and says: memory, time, a dtype, energy; and how threads are chosen."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.measured import throughput
from tests import tiny
from tests.efficiency.test_machine import FakeNvml
from tests.efficiency.test_measure import small
from workbench.efficiency.instruments import energy, kernel_time, machine, threads
from workbench.efficiency.profiling import kernels, run_memory
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import Cancelled, MeasurementError
from workbench.models.loading import inspect_topology

CPU = torch.device("cpu")
BARE = {"parts": False, "checks": False, "routings": ("natural",), "experts": ("eager",)}


def test_a_forecast_by_hand(dense):
    """Two rows of five tokens: keys and values of two layers, and one pass at its widest, the FFN 48 wide."""
    found = run_memory.of_run(dense.topology, Point(2, 5, 3), value_bytes=4)
    assert found.cache == 2 * 8 * 2 * 2 * 2 * 8 * 4  # rows, tokens, layers, keys and values, groups, width, bytes
    assert found.widest == 2 * 5 * (6 * 32 + 3 * 48) * 4 + 2 * 211 * 8
    pieces = run_memory.of_run(dense.topology, Point(2, 5, 3, prefill_chunk=2), value_bytes=4)
    assert pieces.cache == found.cache and pieces.widest < found.widest


def test_the_large_model_at_256_rows_does_not_fit_one_h200_in_one_pass():
    """139 GiB less the weights; as the sizes were worked out before: the prefill in pieces, or 128 rows."""
    topology = inspect_topology("qwen2-57b-a14b")
    free = 139 * 2**30 - 2 * topology.parameters_total
    whole = run_memory.of_run(topology, Point(256, 1000, 100), value_bytes=2)
    assert run_memory.refusal("it", "256", whole, free)
    pieces = run_memory.of_run(topology, Point(256, 1000, 100, prefill_chunk=32_768), value_bytes=2)
    assert run_memory.refusal("it", "256", pieces, free) == ""


def test_a_point_that_will_not_fit_is_left_out_with_the_figures_and_what_to_change(dense, tmp_path, monkeypatch):
    needed = run_memory.of_run(dense.topology, Point(1, 2, 2), value_bytes=4).total
    monkeypatch.setattr(kernels, "free_bytes", lambda device: needed)
    found = profile(dense, tmp_path / "m", asked=small(batches=(1, 2), **{**BARE, "experts": None}))
    assert set(found.table("samples")["batch"]) == {1}
    (line,) = found.manifest["left_out"]
    assert line.startswith("tiny-random-dense at 2 x 2 + 2 tokens: it needs 0.0 GiB beside the weights (0.0 GiB cache")
    assert line.endswith("take a smaller --batch, or read the prompts in pieces with --prefill-chunk")
    with pytest.raises(MeasurementError, match="no point fits into memory: tiny-random-dense at 8 x 2"):
        profile(dense, tmp_path / "n", asked=small(batches=(8,), **{**BARE, "experts": None}))


def test_a_cache_that_stays_is_counted_beside_the_runs_of_the_others():
    """A graph keeps its cache of 10 while an eager run takes 10 and 5 more; and an eager one alone takes 15."""
    eager, graph = run_memory.Forecast(10, 5), run_memory.Forecast(10, 5)
    assert run_memory.together([(eager, False), (eager, False)]).total == 15
    assert run_memory.together([(eager, False), (graph, True)]).total == 25
    assert run_memory.together([(graph, True)]).total == 15


def test_what_has_no_formula_has_no_forecast(moe):
    unknown = replace(moe.topology, parts=replace(moe.topology.parts, unknown=("a: B",)))
    assert run_memory.of_run(unknown, Point(1, 1, 1), value_bytes=4) is None


def test_when_the_time_is_up_what_was_measured_is_written_and_the_rest_named(dense, tmp_path, monkeypatch):
    """The clock is ours: a second passes at each look at it."""
    seconds = iter(np.arange(0.0, 1e6))
    monkeypatch.setattr(machine, "now", lambda: float(next(seconds)))
    asked = small(batches=(1, 2), rounds=50, limit_s=60.0, **{**BARE, "experts": None})
    found = profile(dense, tmp_path / "m", asked=asked)
    samples = found.table("samples")
    assert set(samples["batch"]) == {1} and 0 < samples["round"].max() < 49
    said = "; ".join(found.manifest["left_out"])
    assert "later of 1 x 2 + 2 tokens: the limit of 60 s was reached" in said and "2 x 2 + 2 tokens, and what" in said
    seconds = iter(np.arange(0.0, 1e6))
    with pytest.raises(MeasurementError, match="nothing was measured: 1 x 2 .* the limit of 0.5 s was reached"):
        profile(dense, tmp_path / "n", asked=replace(asked, limit_s=0.5))


def test_a_measurement_can_be_cancelled_and_writes_nothing(dense, tmp_path):
    with pytest.raises(Cancelled, match="nothing of the measurement was written"):
        profile(dense, tmp_path / "m", asked=small(**{**BARE, "experts": None}), should_cancel=lambda: True)
    assert not (tmp_path / "m").exists()


def test_a_dtype_that_the_device_cannot_do_is_a_sentence(tmp_path, monkeypatch):
    dense = tiny.dense()

    def forward(*_: object, **__: object) -> None:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(dense.module, "forward", forward)
    with pytest.raises(MeasurementError, match=r"does not run as float32 on cpu: .*for 'Half'. Give another"):
        profile(dense, tmp_path / "m", asked=small())


def test_sizes_below_zero_are_refused():
    with pytest.raises(MeasurementError, match="prefill_chunk is -1; 0 or more was expected"):
        small(prefill_chunk=-1)


class Spent(FakeNvml):
    """A GPU that uses 2 J with every look."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, millijoules: ctypes.c_ulonglong) -> int:
        self.joules = getattr(self, "joules", 0.0) + 2.0
        millijoules._obj.value = int(self.joules * 1000)
        return 0


def test_energy_of_a_token_with_and_without_the_idle_machines(dense, tmp_path, monkeypatch):
    counted, _ = energy.counters("cuda", nvml=Spent())
    monkeypatch.setattr(energy, "counters", lambda device_type: (counted, ""))
    monkeypatch.setattr("workbench.efficiency.profiling.tables.ENERGY_WINDOW_S", 0.05)
    found = profile(dense, tmp_path / "m", asked=small(**{**BARE, "experts": None}))
    raw = found.table("energy").iloc[0]
    table = throughput.tables(throughput.run(found))["energy"].iloc[0]
    tokens = raw["runs"] * 1 * 2
    assert raw["joules"] == pytest.approx(2.0) and raw["idle_watts"] > 0
    assert table["joules_per_token"] == pytest.approx(2.0 / tokens)
    over = (2.0 - raw["idle_watts"] * raw["window_s"]) / tokens
    assert table["joules_per_token_over_idle"] == pytest.approx(over)
    assert found.manifest["energy"] == "NVML GPU 0"


def test_without_nvml_the_reason_stands_where_the_counter_would(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert energy.counters("cuda") == ([], "NVIDIA's management library is not installed")


def test_the_faster_number_of_threads_is_kept_for_the_block(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with threads.chosen(lambda: 3.0 if set_to[-1] == 4 else 1.0, asked=0, device=CPU) as told:
        assert told == {"threads": 1, "tried_s": {"4": 3.0, "1": 1.0}} and set_to[-1] == 1
    assert set_to[-1] == 4
    with threads.chosen(lambda: 1.0, asked=2, device=CPU) as told:
        assert told == {"threads": 2} and set_to[-1] == 2


class FakeProfiler:
    """torch's profiler after a run of two kernels."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def key_averages(self) -> list:
        return [type("Event", (), {"self_device_time_total": each})() for each in (1500.0, 500.0)]


def test_a_device_is_busy_for_as_long_as_its_kernels():
    ran: list[int] = []
    assert kernel_time.busy_seconds(lambda: ran.append(1), CPU, profiler=FakeProfiler()) == pytest.approx(2e-3)
    assert ran == [1]
