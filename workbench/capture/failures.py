"""What libraries raise while a model runs, as sentences: which model, what was run, what was said, what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.errors import CaptureError, WorkbenchError

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was short, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def forward_errors(name: str, running: str, *, short_of_memory: bool = False) -> Iterator[None]:
    """A block in which a model runs; what its code raises becomes a sentence.

    Args:
        name: The model's.
        running: What is run, for the sentence.
        short_of_memory: Whether the caller deals with a lack of memory itself.

    Raises:
        CaptureError: the model's code, or a library under it, raised something.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        if out_of_memory(error):
            if short_of_memory:
                raise
            raise CaptureError(
                f"{name}: out of memory while running {running}. Use a narrower dtype (--dtype bfloat16), a smaller "
                "--batch-tokens, or a machine with more memory."
            ) from error
        raise CaptureError(
            f"{name}: its forward pass failed while running {running} ({type(error).__name__}: {_said(error)}). Check "
            "that config.json and weights belong together, and that transformers runs this model here (try "
            "--attention eager, or --device cpu)."
        ) from error


def _said(error: BaseException) -> str:
    """The sentence of an exception in one line: nnsight puts the traceback before it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return "no message"
    line = lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
    return line if len(line) <= 200 else f"{line[:199]}…"
