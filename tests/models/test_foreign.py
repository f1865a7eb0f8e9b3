"""What a library raises becomes one sentence with the next step; bugs of the workbench and lack of memory do not."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from workbench.errors import CorpusError, ModelError
from workbench.models.library_errors import foreign_errors, reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("gate"), "KeyError: 'gate'"),
        (AttributeError("'NoneType' object has no attribute 'shape'"), "AttributeError: 'NoneType' object"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum"),
        (ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)"), "Loading a GPTQ"),
        (ValueError("one\ntwo"), "one"),
        (StrictDataclassFieldValidationError("width", TypeError("expected int, got str")),
         "Validation error for field 'width': TypeError: expected int, got str"),
        (AssertionError(), "AssertionError"),
        (Exception("of Rust"), "of Rust"),
        (RuntimeError("x" * 1000), "x" * 300 + " …"),
    ],
)  # fmt: skip
def test_what_libraries_raise_is_said_in_one_line(error, words):
    assert reason(error).startswith(words)
    with pytest.raises(ModelError) as found, foreign_errors("m: it failed", "Mend it."):
        raise error
    assert str(found.value) == f"m: it failed ({reason(error)}). Mend it."
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt(), CorpusError("ours")])
def test_what_is_no_librarys_error_stays(error):
    with pytest.raises(type(error)) as found, foreign_errors("m: it failed", "Mend it."):
        raise error
    assert found.value is error


def test_a_panic_of_rust_is_an_error_too():
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(CorpusError, match=r"m: it failed \(called `Option::unwrap"),
        foreign_errors("m: it failed", "Mend it.", kind=CorpusError),
    ):
        raise panic("called `Option::unwrap()` on a `None` value")


def test_no_kernel_of_an_old_family_is_compiled(monkeypatch):
    from transformers.models.rwkv import modeling_rwkv

    started = []
    monkeypatch.setattr("subprocess.check_output", lambda *words, **_: started.append(words))
    assert not modeling_rwkv.is_ninja_available()
    assert started == []
