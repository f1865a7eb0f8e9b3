"""A measurement through the model host: in a process that captured nothing, with its progress told."""

import functools
from pathlib import Path

import pytest

from tests import tiny
from workbench.efficiency.measurements.measurement import Measurement
from workbench.efficiency.profiling import settings
from workbench.errors import HostError
from workbench.jobs.service import LONGEST_PROFILE_S, Host
from workbench.jobs.worker import Owner

SMALL = {
    "batches": (1,), "prompt_lengths": (3,), "output_lengths": (2,), "routings": ("natural",), "experts": ("eager",),
    "rounds": 1, "warm_up": 1, "parts": False, "checks": False,
}  # fmt: skip


@pytest.fixture
def model(tmp_path) -> str:
    tiny.moe().module.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def request(model: str, out: Path, **more) -> dict:
    return {"id": "j", "kind": "profile", "model": model, "against": None, "weights": "checkpoint", "limit_s": 60.0,
            "out": str(out), **more}  # fmt: skip


def test_it_measures_tells_its_steps_and_names_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "Asked", functools.partial(settings.Asked, **SMALL))
    events: list[dict] = []
    owner = Owner(lambda event, **facts: events.append({"event": event, **facts}), lambda job: False)
    owner.answer(request(model, tmp_path / "m", against=model, weights="dummy"))
    *steps, last = events
    assert (last["event"], last["state"]) == ("ended", "done"), last
    found = Measurement.open(last["result"]["measurement"])
    assert found.manifest["command"] == ["profile", model, "--against", model, "--weights", "dummy"]
    assert list(found.models) == ["model", "model again"] and found.manifest["settings"]["limit_s"] == 60
    assert steps[0] == {"event": "phase", "phase": "loading"} and steps[-1]["total_tokens"] == 4
    owner.answer(request(model, tmp_path / "n"))
    assert events[-1] == {"event": "replace"}  # a process measures once: what ran before must not be in its memory


def test_a_cancelled_one_writes_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "Asked", functools.partial(settings.Asked, **SMALL))
    events: list[dict] = []
    Owner(lambda event, **facts: events.append(facts), lambda job: True).answer(request(model, tmp_path / "m"))
    assert events[-1]["state"] == "cancelled" and "nothing of the measurement was written" in events[-1]["message"]
    assert not (tmp_path / "m").exists()


def test_a_job_is_asked_for_by_names_and_has_a_folder_of_its_own(tmp_path, monkeypatch):
    sent: list[tuple] = []
    monkeypatch.setattr(Host, "_submit", lambda self, *job, owner: sent.append((*job, owner)) or "id")
    Host(tmp_path).profile(model="tiny-moe", against="owner/name", weights="dummy", owner="ada")
    ((kind, title, asked_for, owner),) = sent
    assert (kind, title, owner) == ("profile", "tiny-moe beside owner/name", "ada")
    assert asked_for["limit_s"] == LONGEST_PROFILE_S and asked_for["weights"] == "dummy"
    out = Path(asked_for["out"])
    assert out.parent == tmp_path / "measurements" and out.name.startswith("tiny-moe-name-20")
    with pytest.raises(HostError, match="model is ''"):
        Host(tmp_path).profile(model="tiny-moe", against="")
