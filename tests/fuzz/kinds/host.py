"""What a visitor of the app sends: prompts, names, models, fields, token ids and uploads, to the model host.

The host's process follows a script: what is looked at is what the host takes, refuses and keeps.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from tests.fuzz import bases
from tests.fuzz.mutate import NUMBERS, TEXTS, damaged, encoded, mutated
from tests.fuzz.trial import Trial
from workbench.jobs.limits import Limits, Rules
from workbench.jobs.service import Host
from workbench.recordings.fields import FIELDS

_NAMES = ("a.jsonl", "a.txt", "a.parquet", "a", ".jsonl", "../a.jsonl", "a.jsonl.exe", "A.JSONL", "x" * 300 + ".jsonl")


def prepare(base: Path) -> None:
    """A data folder with recordings, one of them stopped, and a request."""
    folder = base / "data" / "recordings"
    folder.mkdir(parents=True)
    bases.recordings(folder)
    shutil.copytree(folder / "plain", folder / "stopped")
    manifest = json.loads((folder / "stopped" / "manifest.json").read_text()) | {"status": "open", "shards": 9}
    (folder / "stopped" / "manifest.json").write_text(json.dumps(manifest))
    (base / "data" / "requests").mkdir()
    stated = {"title": "a", "owner": "", "arguments": {"model": "tiny-moe", "prompt": "a", "name": "asked"}}
    (base / "data" / "requests" / "asked.json").write_text(json.dumps(stated))


def run(trial: Trial) -> None:
    """Sends a few requests, as one visitor or as several."""
    from tests.hosting import ScriptedProcess
    from workbench.jobs import queue

    rng = trial.rng
    data = trial.out / "data"
    shutil.copytree(trial.base / "data", data)
    limits = Limits(jobs=3, jobs_per_minute=20) if rng.random() < 0.5 else None
    with patch.object(queue, "ModelProcess", ScriptedProcess):
        host = trial.attempt("start", Host, data, rules=Rules(limits=limits))
        if host is None:
            return
        for _ in range(rng.choice((1, 2, 4))):
            name, how = _request(rng)
            trial.note(f"{name} {how}"[:400])
            trial.attempt(name, getattr(host, name), **how)
        trial.attempt("unfinished", host.unfinished)
        host.stop()


def _request(rng: Random) -> tuple[str, dict[str, Any]]:
    who = {"owner": rng.choice(("", "", "ann", "bob", _text(rng)))}
    kind = rng.choice(
        ("record", "record", "inspect", "attention", "profile", "resume", "forget", "delete", "keep_upload")
    )
    if kind == "record":
        how: dict[str, Any] = {"model": _model(rng), "prompt": rng.choice(("a text", _text(rng)))}
        if rng.random() < 0.4:
            how |= {"corpus": rng.choice(("demo", "no.jsonl", _text(rng)))}
            how.pop(rng.choice(("prompt", "model")), None)
            how.setdefault("model", "tiny-moe")
        how |= rng.choice(({}, {"name": _text(rng)}, {"fields": (_text(rng),)}, {"max_tokens": _whole(rng)},
                           {"fields": ("weights",), "parent": _model(rng)}, {"fields": tuple(FIELDS[:3])}))  # fmt: skip
        return kind, how | who
    if kind == "attention":
        ids = rng.choice(([1, 2], [], [-1], [2**40], [1] * 10_000))
        return kind, {"model": _model(rng), "token_ids": ids, "layer": _whole(rng), "head": _whole(rng)} | who
    if kind == "keep_upload":
        return kind, {"name": rng.choice((*_NAMES, _text(rng))), "content": _content(rng)} | who
    if kind in ("inspect", "profile"):
        return kind, {"model": _model(rng)} | who
    name = {"name": rng.choice(("plain", "stopped", "asked", "no", "..", ".", "", _text(rng)))}
    return kind, name if kind == "delete" else name | who


def _text(rng: Random) -> str:
    return rng.choice(TEXTS)


def _model(rng: Random) -> str:
    return rng.choice(("tiny-moe", "tiny-moe", "tiny-moe@step-0", "mixtral-8x7b", "no/such", "/tmp", _text(rng)))


def _whole(rng: Random) -> int:
    return rng.choice([number for number in NUMBERS if isinstance(number, int)])


def _content(rng: Random) -> bytes:
    rows = [mutated(rng, row) if rng.random() < 0.3 else row for row in bases.corpus_rows()]
    raw = encoded(rng, "".join(json.dumps(row) + "\n" for row in rows))
    return damaged(rng, raw) if rng.random() < 0.3 else raw
