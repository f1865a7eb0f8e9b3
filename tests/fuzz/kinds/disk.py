"""Disks: files that may not grow, and places that cannot be written; whatever writes is asked to write there."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz import bases
from tests.fuzz.trial import Trial

_LIMITS = (0, 1, 100, 1_000, 4_096, 10_000, 30_000)


def prepare(base: Path) -> None:
    """A model, a corpus, a trace and a recording."""
    from workbench.capture.record import record

    bases.model_folder(base / "model")
    bases.write_rows(base / "corpus.jsonl", bases.corpus_rows())
    record(bases.model(), bases.short_corpus(8), base / "recording", check=False)
    bases.write_traces(base)


def run(trial: Trial) -> None:
    """Writes where there is no room, or no place."""
    rng = trial.rng
    out, limit = _place(trial)
    write = rng.choice((_record, _import, _command_record, _command_import, _command_analyze, _command_costs))
    trial.note(f"{write.__name__} {out} {limit}")
    with _small_files(limit):
        write(trial, out)


def _place(trial: Trial) -> tuple[Path, int | None]:
    """Where to write, and how large a file may grow there."""
    rng = trial.rng
    if rng.random() < 0.6:
        return trial.out / "recording", rng.choice(_LIMITS)
    (trial.inputs / "file").write_text("a")
    (trial.inputs / "loop").symlink_to("loop")
    system = Path("/sys/kernel/none")  # where nothing can be made, by anybody
    trial.also_allowed += [system, Path("/proc/none"), trial.inputs, Path("/dev/null")]
    return rng.choice((
        system / "recording", Path("/proc/none/recording"), trial.inputs / "file" / "recording", trial.inputs / "file",
        trial.inputs / "loop", trial.out / ("z" * 300), trial.out / "/".join(["y" * 200] * 25), Path("/dev/null"),
        Path("/dev/null/under"),
    )), None  # fmt: skip


@contextlib.contextmanager
def _small_files(limit: int | None) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _record(trial: Trial, out: Path) -> None:
    from workbench.capture.record import record

    trial.attempt("record", record, bases.model(), bases.short_corpus(8), out, check=False, shard_tokens=20)


def _import(trial: Trial, out: Path) -> None:
    from workbench.recordings.importers.build import import_trace

    trial.attempt("import", import_trace, "numpy", trial.base / "arrays.npz", out, n_experts=4)


def _command_record(trial: Trial, out: Path) -> None:
    words: tuple[Any, ...] = (trial.base / "model", "--corpus", trial.base / "corpus.jsonl", "--out", out)
    trial.command("record", *map(str, words))


def _command_import(trial: Trial, out: Path) -> None:
    words: tuple[Any, ...] = ("numpy", trial.base / "arrays.npz", "--out", out, "--experts", 4)
    trial.command("import", *map(str, words))


def _command_analyze(trial: Trial, out: Path) -> None:
    name = trial.rng.choice(("expert_load", "coactivation"))
    trial.command("analyze", str(trial.base / "recording"), name, "--out", str(out), "--jobs", "1")


def _command_costs(trial: Trial, out: Path) -> None:
    trial.command("costs", str(trial.base / "model"), "--out", str(out))
