"""Several analyses of one recording: in one process or in two the same files, and refusals that are told."""

import os

import pytest

from analyses import pool
from analyses.question import Question
from workbench.errors import AnalysisError
from workbench.recordings.recording import Recording

NAMES = ["expert_load", "saturation", "same_token"]


def written(recording, out, *, n_processes: int) -> dict[str, pool.Done]:
    done = pool.run(questions(recording), out, n_processes=n_processes)
    return {one.name: one for one in done}


def questions(recording: Recording) -> list[Question]:
    return [Question(recording, name, ["n_draws=19"] if name == "expert_load" else []) for name in NAMES]


@pytest.mark.rest
def test_two_processes_write_what_one_writes(recording, tmp_path):
    one, two = (written(recording, tmp_path / str(n), n_processes=n) for n in (1, 2))
    assert set(one) == set(two) == set(NAMES)
    for name in NAMES:
        assert [file.name for file in one[name].files] == [file.name for file in two[name].files]
        for mine, other in zip(one[name].files, two[name].files, strict=True):
            assert mine.read_bytes() == other.read_bytes()
        assert list(one[name].figures) == list(two[name].figures)
    assert one["expert_load"].files and not one["expert_load"].refused
    assert (
        two["saturation"].refused.startswith("saturation: it compares two recordings") and not two["saturation"].files
    )


class Deadly(Recording):
    """Ends the process that is about to ask it."""

    def keeping(self, n_bytes: int) -> Recording:
        os._exit(1)


def test_a_process_that_dies_is_told(recording, tmp_path):
    gone = Deadly(recording.path, recording.manifest)
    with pytest.raises(AnalysisError, match="a process died while it analyzed .*shared, most likely for"):
        written(gone, tmp_path / "out", n_processes=2)


def test_a_small_recording_is_not_worth_a_second_process(recording, monkeypatch):
    assert pool.processes(questions(recording)) == 1
    monkeypatch.setattr(Recording, "n_tokens", 10**6)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert pool.processes(questions(recording)) == 2
    assert pool.processes(questions(recording)[:1]) == 1
