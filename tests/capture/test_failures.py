"""What a model's code raises while it runs becomes a sentence, and nothing half-written stays."""

import pytest
import torch

from tests import tiny
from workbench.capture.failures import out_of_memory
from workbench.capture.generate import Generation
from workbench.capture.proof.model import check_capture
from workbench.capture.record import record
from workbench.errors import CaptureError, RecordingError

ERRORS = [
    IndexError("index out of range in self"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x32 and 16x8)\nsecond line"),
    ValueError("`position_ids` is wrong"),
    AttributeError("'NoneType' object has no attribute 'size'"),
    TypeError("unsupported operand"),
    KeyError("full_attention"),
    NotImplementedError("this kernel needs a GPU"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
]


def failing(error, *, above: int = 0):
    """A model whose second layer raises for rows of more than so many positions."""
    model = tiny.moe()

    def fail(_, args):
        if args[0].shape[1] > above:
            raise error

    model.module.model.layers[1].register_forward_pre_hook(fail)
    return model


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_proof_says_what_the_model_raised(error, tmp_path):
    kind = type(error).__name__
    with pytest.raises(CaptureError, match=rf"tiny-random-moe: its forward pass failed while running the proof of the capture \({kind}: [^\n]+\)\. Check that"):  # fmt: skip # noqa: E501
        record(failing(error), tiny.corpus(), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    with pytest.raises(CaptureError):
        check_capture(failing(error))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_run_says_what_the_model_raised(error, tmp_path):
    with pytest.raises(CaptureError, match=r"tiny-random-moe: its forward pass failed while running a batch of \d+ documents of up to 59 tokens \("):  # fmt: skip # noqa: E501
        record(failing(error, above=50), tiny.corpus(), tmp_path / "r", check=False)


@pytest.mark.parametrize("fields", [("attention",), ("routing", "experts")])
def test_the_proofs_of_fields_say_so_too(fields, tmp_path):
    model = failing(RuntimeError("no kernel"), above=44)  # both run longer rows than the proof of the capture does
    with pytest.raises(CaptureError, match="while running the proof of the fields asked for .RuntimeError: no kernel"):
        record(model, tiny.corpus(longest=30), tmp_path / "r", fields=fields)
    assert not (tmp_path / "r").exists()


def test_a_step_that_fails_is_told(tmp_path):
    model = tiny.moe()

    def fail(_, args):
        if args[0].shape[1] == 1:
            raise IndexError("the cache is full")

    model.module.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(CaptureError, match="and what is written behind them .IndexError: the cache is full"):
        record(model, tiny.corpus(n_documents=3), tmp_path / "r", generation=Generation(3))


SHORT = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CPU out of memory. Tried to allocate 12.00 GiB"),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", SHORT)
def test_short_memory_in_the_proof_is_told(error, tmp_path):
    assert out_of_memory(error)
    with pytest.raises(CaptureError, match="tiny-random-moe: out of memory while running the proof of the capture"):
        record(failing(error), tiny.corpus(), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("error", SHORT)
def test_batches_that_are_too_large_for_the_cpu_are_halved(error, tmp_path):
    """Four rows are too many for it, two are not."""
    model = tiny.moe()

    def fail(_, args):
        if args[0].shape[0] > 2:
            raise error

    model.module.model.layers[1].register_forward_pre_hook(fail)
    made = record(model, tiny.corpus(), tmp_path / "r", batch_tokens=256, check=False)
    assert made.manifest["halved_batches"]
    with pytest.raises(RecordingError, match="out of .*memory with a single document of 59 tokens in the batch"):
        record(failing(error, above=50), tiny.corpus(), tmp_path / "s", batch_tokens=256, check=False)
