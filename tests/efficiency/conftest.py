"""Small measurements: of the tiny models, and of two servers of our own. Made once, read by all."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.efficiency.endpoint import Script, serving
from workbench.efficiency.measurements.measurement import Measurement
from workbench.efficiency.profiling.profile import profile
from workbench.efficiency.profiling.settings import Asked
from workbench.efficiency.serving.benchmark import Served, serve_bench
from workbench.efficiency.serving.endpoints import reach
from workbench.models.bundled import MODELS
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


BOTH = Served(
    concurrencies=(2,), rates=(40.0,), prompt_lengths=(8,), output_lengths=(4,), requests=4, rounds=2, timeout_s=20
)


@dataclass(frozen=True)
class ServedPair:
    """A measurement of two servers of our own, and what they did."""

    measurement: Measurement
    scripts: dict[str, Script]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedPair:
    """Two served models, `b` slower than `a`."""
    scripts = {"a": Script(first_s=0.02, gap_s=0.005), "b": Script(first_s=0.04, gap_s=0.01)}
    tokenizer = str(MODELS / "tiny-moe")
    with serving(scripts["a"]) as a, serving(scripts["b"]) as b:
        ends = [reach(url, label=label, tokenizer=tokenizer) for label, url in (("a", a), ("b", b))]
        out = tmp_path_factory.mktemp("measurements") / "served"
        return ServedPair(serve_bench(*ends, out, asked=BOTH), scripts)
