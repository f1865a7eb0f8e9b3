"""A small measurement of the tiny models: made once, read by all."""

from pathlib import Path

import pytest

from workbench.efficiency.asked import Asked
from workbench.efficiency.measure import profile
from workbench.measurement import Measurement
from workbench.models.loading import Model

ASKED = Asked(
    batches=(1, 4), prompt_lengths=(6,), output_lengths=(4,), routings=("natural", "uniform", "zipf:1.5", "worst"),
    rounds=7, warm_up=1, recording_rounds=1,
)  # fmt: skip


@pytest.fixture(scope="session")
def measurement(moe: Model, dense: Model, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """The tiny MoE beside the tiny dense model."""
    out: Path = tmp_path_factory.mktemp("measurements") / "shared"
    return profile(moe, out, against=dense, asked=ASKED)
