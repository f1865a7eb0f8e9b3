"""Ways to launch a step of decoding, and prompts in pieces: the same tokens as the plain loop."""

import shutil
from collections.abc import Callable

import pytest
import torch

from tests import tiny
from tests.efficiency.test_decode import prompts
from tests.families import shrunk
from tests.tiers import often
from workbench.efficiency.profiling import launch, timed_run
from workbench.efficiency.profiling.launch import Compiled, Graph
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.settings import Asked
from workbench.errors import MeasurementError


@pytest.mark.parametrize("kind", often(["moe", "dense"], ["moe"]))
def test_a_traced_step_writes_what_the_plain_one_writes(kind):
    """Traced and not compiled, which is where torch.compile can go wrong by our hand; twice, for a second cache."""
    model = {"moe": tiny.moe, "dense": tiny.dense}[kind]()
    ids_BS, way = prompts(), Compiled(model.module, backend="eager")
    plain = timed_run.run(model.module, ids_BS, output_tokens=5).ids_BN
    for _ in range(2):
        assert torch.equal(timed_run.run(model.module, ids_BS, output_tokens=5, launcher=way).ids_BN, plain)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, where its compiler is imported
@pytest.mark.rest
def test_a_compiled_step_writes_what_the_plain_one_writes():
    model = tiny.dense(n_layers=1)
    ids_BS = prompts()
    plain = timed_run.run(model.module, ids_BS, output_tokens=4)
    compiled = timed_run.run(model.module, ids_BS, output_tokens=4, launcher=launch.launcher(model.module, "compile"))
    assert torch.equal(compiled.ids_BN, plain.ids_BN)


class Replayed(Graph):
    """A graph on a machine without CUDA: what would be replayed is run again, on the same tensors."""

    def _warm(self) -> None:
        self._once()

    def _captured(self) -> Callable[[], object]:
        logits_BV = self._logits_BV

        def again() -> None:
            self._once()
            logits_BV.copy_(self._logits_BV)  # a graph writes where it wrote when it was recorded
            self._logits_BV = logits_BV

        return again


def test_a_recorded_step_reads_its_own_tensors_over_one_cache_in_every_run(moe):
    way = Replayed(moe.module)
    for seed in (0, 1):
        ids_BS = prompts(seed=seed)
        plain = timed_run.run(moe.module, ids_BS, output_tokens=6)
        assert torch.equal(timed_run.run(moe.module, ids_BS, output_tokens=6, launcher=way).ids_BN, plain.ids_BN)


def test_a_cache_that_turns_is_refused():
    way = Replayed(shrunk.build("gpt_oss").module)
    with pytest.raises(MeasurementError, match="decode is graphs, but gpt_oss keeps a cache that grows or turns"):
        way.cache(20)


def test_where_a_way_does_not_work_it_says_why(dense, monkeypatch):
    probe = torch.zeros((1, 2), dtype=torch.long)
    assert launch.why_not(dense.module, "graphs", probe) == "a CUDA graph needs a CUDA GPU, and the model is on cpu"
    assert launch.why_not(dense.module, "eager", probe) == ""

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C++ compiler. Please specify via CXX environment variable.\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    reason = launch.why_not(dense.module, "compile", probe)
    assert reason == "Failed to find C++ compiler. Please specify via CXX environment variable."


def test_an_unknown_way_is_refused(dense):
    with pytest.raises(MeasurementError, match="decode is 'magic'; eager, compile, graphs were expected"):
        launch.launcher(dense.module, "magic")
    with pytest.raises(MeasurementError, match="decode is 'magic'; eager, compile, graphs were expected"):
        Asked(decode=("magic",))


def test_forced_and_watched_runs_are_eager_and_so_is_what_they_stand_beside():
    with pytest.raises(MeasurementError, match=r"decode is graphs first, and uniform routing runs eager.*eager,graphs"):
        Asked(decode=("graphs", "eager"))
    with pytest.raises(MeasurementError, match="decode is compile first, and timing of the parts runs eager"):
        Asked(decode=("compile",), routings=("natural",))
    assert Asked(decode=("compile",), routings=("natural",), parts=False).decode == ("compile",)


def test_a_measurement_falls_back_to_eager_and_says_so(dense, tmp_path):
    asked = Asked(
        batches=(1,), prompt_lengths=(2,), output_lengths=(2,), rounds=1, warm_up=1, parts=False, checks=False,
        routings=("natural",), decode=("graphs",),
    )  # fmt: skip
    found = profile(dense, tmp_path / "m", asked=asked)
    assert found.manifest["base"]["launch"] == "eager" and set(found.table("samples")["launch"]) == {"eager"}
    assert found.manifest["left_out"] == ["decode graphs: a CUDA graph needs a CUDA GPU, and the model is on cpu"]


@pytest.mark.parametrize("chunk", often([1, 6, 7, 12, 100], [1, 7]))
@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_prompts_read_in_pieces_give_what_the_whole_gives(kind, chunk):
    model = {"moe": tiny.moe, "dense": tiny.dense}[kind]()
    ids_BS = prompts()
    whole = timed_run.run(model.module, ids_BS, output_tokens=5)
    steps: list[int] = []
    pieces = timed_run.run(model.module, ids_BS, output_tokens=5, prefill_chunk=chunk, before_step=steps.append)
    assert torch.equal(pieces.ids_BN, whole.ids_BN)
    torch.testing.assert_close(pieces.logits_BV, whole.logits_BV)
    assert len(steps) == len(pieces.forward_s_P) == -(-9 // max(chunk // 3, 1)) + 4
    assert pieces.token_s_N.shape == (5,)


def test_a_family_whose_state_cannot_be_read_in_pieces_is_refused(tmp_path):
    asked = Asked(batches=(1,), prompt_lengths=(4,), output_lengths=(2,), prefill_chunk=2)
    with pytest.raises(MeasurementError, match="prefill_chunk is 2, but .* has layers that keep a state instead"):
        profile(shrunk.build("jamba"), tmp_path / "m", asked=asked)


def test_the_host_is_in_the_forward_for_no_longer_than_the_run(moe):
    done = timed_run.run(moe.module, prompts(), output_tokens=5)
    assert 0 < done.forward_s_P.sum() <= done.wall_s and (done.forward_s_P > 0).all()
