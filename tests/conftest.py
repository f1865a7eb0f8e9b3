"""Fixtures of all tests: tiny random models that bite, and a recording of one of them."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import beartype  # noqa: F401  before nnsight, which hangs a method on `object` that beartype cannot hash
import hypothesis
import pytest
import torch

from tests import tiny
from workbench.capture.record import record
from workbench.models.loading import Model
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording

# No deadline: a busy machine is no failure. In CI the examples are fixed, for a red run must be the change's doing.
hypothesis.settings.register_profile("here", derandomize=bool(os.environ.get("CI")), deadline=None)
hypothesis.settings.load_profile("here")
torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much where cores are shared


@pytest.fixture(autouse=True)
def _main_module() -> Iterator[None]:
    """AppTest leaves the app's entry as `__main__`, which processes that are started later would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def moe() -> Model:
    """A random Qwen2-MoE of three layers, the middle one dense."""
    return tiny.moe()


@pytest.fixture(scope="session")
def dense() -> Model:
    """A random dense Qwen2."""
    return tiny.dense()


@pytest.fixture(scope="session")
def recording(moe: Model, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The tiny MoE over a small corpus of five domains, in several parts, all fields. Read only."""
    out: Path = tmp_path_factory.mktemp("recordings") / "shared"
    how = {"fields": FIELDS, "parent": tiny.dense(n_layers=3), "batch_tokens": 256, "shard_tokens": 512}
    return record(moe, tiny.corpus(), out, **how)


@pytest.fixture(scope="session")
def pdflatex() -> str:
    """The program, which may be missing on a developer's machine only."""
    found = shutil.which("pdflatex")
    if found is None:
        missing = "there is no pdflatex (apt-get install texlive-latex-recommended)"
        if os.environ.get("CI"):
            pytest.fail(f"{missing}, and CI is set: what compiles LaTeX must not be left out")
        pytest.skip(missing)
    return found
