"""Transformers and what it uses, as the workbench wants them: quiet, and their errors in its own sentences.

Libraries raise whatever comes up from inside them: validation errors of configs, missing packages of quantizers, a
`KeyError` of a constructor. Only calls into libraries are wrapped here, so that a bug of the workbench stays visible.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import transformers.utils
from transformers.integrations import hub_kernels
from transformers.utils import logging as transformers_logging

from workbench.errors import ModelError, WorkbenchError

_LONGEST = 300
# Errors of Python's own whose message is written for readers; of the others the kind is half of what they say.
_PLAIN = (Exception, ValueError, RuntimeError, ImportError, ModuleNotFoundError)


@contextmanager
def foreign_errors(what: str, advice: str, *, kind: type[WorkbenchError] = ModelError) -> Iterator[None]:
    """Turns whatever a library raises into one error of the workbench's: what failed, the library's words, the advice.

    Running out of memory stays what it is: who called knows what to do about it.

    Args:
        what: What failed, as the beginning of a sentence: `NAME: the config cannot be read`.
        advice: The next step, as a sentence.
        kind: Of the error.

    Raises:
        WorkbenchError: of the kind, from the library's.
    """
    try:
        yield
    except (WorkbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        # A panic of a library in Rust (tokenizers, safetensors) is no Exception, and harms nothing outside its call.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what} ({reason(error)}). {advice}") from error


def reason(error: BaseException) -> str:
    """An error's own words in one line, its kind before them where they would not be understood alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    following = next((i for i, line in enumerate(lines) if not line.endswith(":")), 0)
    words = " ".join(lines[: following + 1]).rstrip(".")
    if not words:
        return type(error).__name__
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]} …"
    named = type(error).__module__ == "builtins" and type(error) not in _PLAIN and not isinstance(error, OSError)
    return f"{type(error).__name__}: {words}" if named else words


@contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' progress bars and advice: the workbench says itself what matters."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _refuse_kernel(kernel_name: str, *_: Any, **__: Any) -> NoReturn:
    raise ModelError(
        f"{kernel_name!r} is a kernel of the hub: code of others, which is never fetched and run here. "
        "Choose an attention or a quantization that needs none (--attention eager or sdpa)."
    )


# A field of a config, an option or a quantizer can ask for a kernel; all of them come by here, whatever is installed.
hub_kernels.get_kernel = _refuse_kernel
hub_kernels._kernels_enabled = False
# Some old families look for a compiler's helper, a process, and build a kernel of theirs where there is one.
transformers.utils.is_ninja_available = lambda: False
