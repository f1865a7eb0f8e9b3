"""Recordings: manifests that were edited, with or without their digest made good, and parts that are not as written."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz import bases
from tests.fuzz.mutate import as_json, damaged, held_object, mutated
from tests.fuzz.tables import mutated_table, written
from tests.fuzz.trial import Trial
from workbench.recordings.manifest import recording_digest, recordings_below
from workbench.recordings.recording import Recording

NAMES = ("whole", "plain", "dense", "written", "imported-npz", "imported-stat")


def prepare(base: Path) -> None:
    """Recordings that differ in what they hold."""
    bases.recordings(base)


def run(trial: Trial) -> None:
    """Damages a recording and asks what can be asked of one."""
    rng = trial.rng
    folder = trial.inputs / "data" / "recordings" / "r"
    name = rng.choice(NAMES)
    shutil.copytree(trial.base / name, folder)
    trial.untouched = rng.random() < 0.03
    change = rng.choice(CHANGES)
    trial.note(f"{name}: {'untouched' if trial.untouched else change.__name__}")
    if not trial.untouched:
        change(trial, folder)
    ask(trial, folder)


def ask(trial: Trial, folder: Path) -> None:
    """What can be asked of a recording."""
    from analyses import catalogue
    from analyses.question import Question
    from workbench.jobs.storage import unfinished

    rng = trial.rng
    names = rng.sample(catalogue.of_recordings(), 2)
    if rng.random() < 0.15:
        trial.command("verify", str(folder))
        trial.command("recordings", str(folder.parent))
        trial.command("analyze", str(folder), names[0], "--out", str(trial.out), "--jobs", "1")
        return
    trial.attempt("list", lambda: list(recordings_below(folder.parent)))
    trial.attempt("unfinished", unfinished, folder.parents[1])
    recording = trial.attempt("open", Recording.open, folder)
    # The command and the pages verify a recording before they ask anything of it.
    if recording is not None and trial.attempt("verify", recording.verify) is not None:
        for name in names:
            settings = _settings(rng, name)
            trial.attempt(f"analysis {name}", Question(recording, name, settings).answer)
        if rng.random() < 0.15:
            trial.attempt(f"written {names[0]}", lambda: Question(recording, names[0]).write(trial.out))
        if rng.random() < 0.15:
            other = Recording.open(trial.base / rng.choice(NAMES))
            trial.attempt(
                "two",
                Question(recording, rng.choice(("differences", "saturation", "expert_load")), against=other).answer,
            )
        if rng.random() < 0.1:
            trial.attempt("phase", recording.of_phase, rng.choice(("prefill", "decode")))
    if rng.random() < 0.2:
        again(trial, folder)


def _settings(rng: Random, name: str) -> list[str]:
    """At times a setting of the analysis, of the right type or not."""
    import dataclasses

    from analyses import catalogue

    known = [field.name for field in dataclasses.fields(catalogue.get(name).Settings)]
    if not known or rng.random() < 0.7:
        return []
    return [
        f"{rng.choice(known)}={rng.choice(('0', '1', '-1', '3', '10000000', 'nan', '1e9', '', 'd0', 'whole', '0.5'))}"
    ]


def again(trial: Trial, folder: Path) -> None:
    """Records on top of what is there, as somebody does who starts the same command again."""
    from tests import tiny
    from workbench.capture.record import record

    out = trial.out / "again"
    shutil.copytree(folder, out, symlinks=True)  # one may lead to itself
    trial.drafts = set(out.rglob("*.tmp"))
    how: dict[str, Any] = {"check": False, "batch_tokens": 96, "shard_tokens": 60}
    trial.attempt(
        "record again", record, bases.model(), tiny.corpus(n_documents=10, shortest=4, longest=24), out, **how
    )


def _rewrite(trial: Trial, folder: Path, manifest: Any, *, signed: bool) -> None:
    if signed and isinstance(manifest, dict):
        with suppress(UnicodeEncodeError):  # half a character has no digest
            manifest["digest"] = recording_digest(json.loads(json.dumps(manifest)))
    (folder / "manifest.json").write_bytes(as_json(trial.rng, manifest))


def manifest_values(trial: Trial, folder: Path) -> None:
    """Anything in the manifest; the digest made good in half of them."""
    rng = trial.rng
    manifest = held_object(folder / "manifest.json")
    if rng.random() < 0.5:  # the parts that the reader leans on
        key = rng.choice(("parts", "topology", "fields", "identity", "corpus", "vocabulary", "phases", "schema",
                          "source", "attention", "model", "status", "settings", "check", "environment"))  # fmt: skip
        if key in manifest:
            manifest[key] = mutated(rng, manifest[key])
    else:
        manifest = mutated(rng, manifest)
    _rewrite(trial, folder, manifest, signed=rng.random() < 0.5)


def manifest_bytes(trial: Trial, folder: Path) -> None:
    """A manifest that was cut or damaged."""
    file = folder / "manifest.json"
    file.write_bytes(damaged(trial.rng, file.read_bytes()))


def unfinished_one(trial: Trial, folder: Path) -> None:
    """A recording that was stopped, its manifest damaged or not."""
    rng = trial.rng
    manifest = held_object(folder / "manifest.json")
    manifest |= {"status": rng.choice(("open", "open", "closing", "", None)), "shards": rng.choice((1, 3, 10, -1, "a"))}
    manifest.pop("digest", None)
    for key in ("parts", "vocabulary", "finished"):
        if rng.random() < 0.5:
            manifest.pop(key, None)
    _rewrite(trial, folder, mutated(rng, manifest) if rng.random() < 0.5 else manifest, signed=False)
    if rng.random() < 0.5:
        file = rng.choice(sorted(folder.rglob("*.parquet")))
        file.rename(file.with_name(f"{file.name}.tmp"))


def part_table(trial: Trial, folder: Path) -> None:
    """A part of other columns, types, widths or rows; the manifest made good in most of them."""
    rng = trial.rng
    file = rng.choice(sorted(folder.rglob("*.parquet")))
    table = pq.read_table(file)
    trial.note(file.name)
    raw = written(mutated_table(rng, table), rng)
    file.write_bytes(raw)
    if rng.random() < 0.8:
        _make_good(trial, folder, file, raw)


def part_bytes(trial: Trial, folder: Path) -> None:
    """A part that was cut or damaged; the manifest made good in some of them."""
    rng = trial.rng
    file = rng.choice(sorted(folder.rglob("*.parquet")))
    raw = damaged(rng, file.read_bytes())
    file.write_bytes(raw)
    if rng.random() < 0.5:
        _make_good(trial, folder, file, raw)


def _make_good(trial: Trial, folder: Path, file: Path, raw: bytes) -> None:
    """Writes into the manifest what the file now is, as another tool would that writes recordings."""
    manifest = held_object(folder / "manifest.json")
    try:
        rows = pq.ParquetFile(pa.BufferReader(raw)).metadata.num_rows
    except (pa.ArrowException, OSError, ValueError):
        rows = 1
    facts = {"rows": rows, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    if file.parent == folder:
        manifest[file.stem] = facts
    else:
        for part in manifest["parts"]:
            if f"part-{part['index']:05d}" == file.stem:
                part[file.parent.name] = facts
    manifest["digest"] = recording_digest(json.loads(json.dumps(manifest)))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def files(trial: Trial, folder: Path) -> None:
    """Files that are missing, swapped, links, folders, or beside those that belong."""
    rng = trial.rng
    held = sorted(found for found in folder.rglob("*") if found.is_file())
    file, other = rng.choice(held), rng.choice(held)
    kind = rng.choice(("delete", "swap", "folder", "link", "extra", "lock", "empty", "rename", "requests"))
    trial.note(f"{kind} {file.name}")
    if kind in ("delete", "folder", "link"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "link":
            file.symlink_to(rng.choice(("/dev/null", file.name, "no", "/etc/passwd", ".")))
    elif kind == "swap":
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
    elif kind == "extra":
        (folder / "tokens").mkdir(exist_ok=True)
        (folder / "tokens" / "part-99999.parquet").write_bytes(rng.randbytes(100))
    elif kind == "lock":
        (folder / "writer.lock").unlink(missing_ok=True)
        (folder / "writer.lock").mkdir()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "rename":
        file.rename(file.with_name("x" + file.name))
    else:
        requests = folder.parents[1] / "requests"
        requests.mkdir()
        stated = {"title": "a", "owner": "", "arguments": {"model": "tiny-moe", "prompt": "a"}}
        (requests / "a.json").write_bytes(as_json(rng, mutated(rng, stated)))


CHANGES = (
    manifest_values, manifest_values, manifest_values, manifest_bytes, unfinished_one, part_table, part_table,
    part_table, part_bytes, files,
)  # fmt: skip
