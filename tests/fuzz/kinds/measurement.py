"""Measurements: manifests and tables that were edited, with or without their digests made good."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.fuzz.mutate import as_json, damaged, held_object, mutated
from tests.fuzz.tables import mutated_table, written
from tests.fuzz.trial import Trial
from workbench.efficiency.measurements.measurement import Measurement
from workbench.recordings.manifest import file_digest, json_digest

_NOT_IN_DIGEST = ("created", "digest")


def prepare(base: Path) -> None:
    """Times of two models, and answers of two servers."""
    from tests.analyses.test_measured import made, sample
    from tests.analyses.test_served import made as served
    from tests.analyses.test_served import pair

    rows = [sample(model, number, [0.1 * number + 0.1, 0.3, 0.4]) for model in "ab" for number in range(7)]
    made(base / "timed", rows)
    served(base / "served", [row for number in range(7) for row in pair(number)])


def run(trial: Trial) -> None:
    """Damages a measurement and asks what can be asked of one."""
    rng = trial.rng
    folder = trial.inputs / "m"
    shutil.copytree(trial.base / rng.choice(("timed", "served")), folder)
    trial.untouched = rng.random() < 0.05
    change = rng.choice((manifest, manifest, manifest, table, table, bytes_of, missing))
    trial.note("untouched" if trial.untouched else change.__name__)
    if not trial.untouched:
        change(trial, folder)
    from analyses import catalogue
    from analyses.question import Question

    names = catalogue.names("measurement")
    if rng.random() < 0.15:
        trial.command("analyze", str(folder), rng.choice(names), "--out", str(trial.out), "--jobs", "1")
        return
    opened = trial.attempt("open", Measurement.open, folder)
    if opened is not None:
        trial.attempt("verify", opened.verify)
        for name in rng.sample(names, 3):
            trial.attempt(f"analysis {name}", Question(opened, name).answer)


def _sign(folder: Path, held: Any) -> None:
    if isinstance(held, dict):
        with suppress(UnicodeEncodeError):  # half a character has no digest
            held["digest"] = json_digest({key: value for key, value in held.items() if key not in _NOT_IN_DIGEST})


def manifest(trial: Trial, folder: Path) -> None:
    """Anything in the manifest; the digest made good in most of them."""
    held = mutated(trial.rng, held_object(folder / "manifest.json"))
    if trial.rng.random() < 0.7:
        _sign(folder, held)
    (folder / "manifest.json").write_bytes(as_json(trial.rng, held))


def table(trial: Trial, folder: Path) -> None:
    """Columns of another type, width or name; the manifest made good in most of them."""
    file = trial.rng.choice(sorted(folder.glob("*.parquet")))
    file.write_bytes(written(mutated_table(trial.rng, pq.read_table(file)), trial.rng))
    if trial.rng.random() < 0.8:
        held = held_object(folder / "manifest.json")
        held["tables"][file.stem]["sha256"] = file_digest(file)
        _sign(folder, held)
        (folder / "manifest.json").write_text(json.dumps(held))


def bytes_of(trial: Trial, folder: Path) -> None:
    """A file that was cut or damaged."""
    file = trial.rng.choice(sorted(folder.iterdir()))
    file.write_bytes(damaged(trial.rng, file.read_bytes()))


def missing(trial: Trial, folder: Path) -> None:
    """A file that is gone, or a folder."""
    file = trial.rng.choice(sorted(folder.iterdir()))
    file.unlink()
    if trial.rng.random() < 0.4:
        file.mkdir()
