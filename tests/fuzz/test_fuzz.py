"""The fuzzer on itself, with faults on purpose, and a small share of it on everything else."""

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz import pool
from tests.fuzz.kinds import SHARES
from tests.fuzz.kinds.planted import PLANTED
from tests.fuzz.trial import Trial
from tests.fuzz.worker import Place

SHARE = 200
"""Inputs in CI. `python -m tests.fuzz --inputs 10000` is the whole."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, pool.Outcome]:
    """What became of each fault on purpose; the deadline is short, so that the hang is no wait."""
    place = Place(tmp_path_factory.mktemp("planted"), deadline_s=5.0)
    outcomes = pool.run([("planted", index) for index in range(len(PLANTED))], place)
    return dict(zip(PLANTED, outcomes, strict=True))


@pytest.mark.parametrize(
    ("name", "what", "where"),
    [
        ("traceback", "traceback", "ZeroDivisionError"),
        ("hang", "hang", "planted.py:_hang"),
        ("died", "died", "SIGKILL"),
        ("write", "write", "/elsewhere"),
        ("change", "write", "changed: "),
        ("network", "network", "connects to 192.0.2.1"),
        ("memory", "memory", "MemoryError"),
        ("leftover", "leftover", "a draft manifest.json.tmp"),
        ("empty", "message", "empty"),
        ("long", "message", "over 2,000 characters"),
        ("surrogate", "message", "cannot be shown"),
    ],
)
def test_a_fault_on_purpose_is_counted(planted, name, what, where):
    assert (what, True) in [(failure.what, where in failure.where) for failure in planted[name].failures]


def test_every_fault_on_purpose_is_looked_for(planted):
    failed = {name for name, outcome in planted.items() if outcome.failures}
    assert failed == set(PLANTED) - {"sentence", "accepted"}
    assert planted["sentence"].sentences == [("sentence", "the file is empty; give one that is not.")]


def test_a_worker_that_hung_or_died_is_followed_by_another(planted):
    assert planted["accepted"].accepted == 1  # the last of them, behind a hang, a death and a want of memory


@pytest.mark.rest
def test_an_input_follows_from_seed_kind_and_number_alone(tmp_path):
    def notes(inputs, folder, *, jobs):
        place = Place(tmp_path / folder, seed=3)
        return {(each.kind, each.index): each.notes for each in pool.run(inputs, place, jobs=jobs)}

    inputs = [("measurement", index) for index in range(4)]
    assert notes(inputs[::-1], "b", jobs=1) == notes(inputs, "a", jobs=1)
    drawn = {
        (seed, kind, index): Trial(kind, index, seed=seed, base=tmp_path, folder=tmp_path / "t").rng.random()
        for seed in (0, 1) for kind in "ab" for index in (0, 1)
    }  # fmt: skip
    assert len(set(drawn.values())) == len(drawn)


def test_inputs_are_dealt_by_shares_and_named_so_that_they_can_be_run_again():
    names = [name for name, share in SHARES.items() if share]
    dealt = command.dealt(names, 1_000)
    assert len(dealt) == len(set(dealt)) == 1_000 and {kind for kind, _ in dealt} == set(names)
    assert command.dealt(["model"], 2, first=123) == [("model", 123), ("model", 124)]


def test_the_report_counts_inputs_and_distinct_failures_and_says_how_to_run_one_again(planted):
    text = command.report(list(planted.values()), seed=7)
    assert "1 × traceback: ZeroDivisionError" in text
    assert "python -m tests.fuzz --seed 7 --kind planted --first 1 --inputs 1" in text
    assert text.splitlines()[1].split()[:5] == ["planted", "13", "1", "1", "11"]


@pytest.mark.rest
def test_a_share_of_all_inputs_is_taken_or_refused_in_a_sentence(tmp_path):
    names = [name for name, share in SHARES.items() if share]
    outcomes = pool.run(command.dealt(names, SHARE), Place(tmp_path))
    assert not any(outcome.failures for outcome in outcomes), command.report(outcomes, seed=0)
    assert sum(1 for outcome in outcomes if outcome.accepted) > SHARE / 4  # not all is refused at the door
