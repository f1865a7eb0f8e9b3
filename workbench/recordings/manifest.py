"""Reads the manifest of a recording: its digest first, then whether it holds what a manifest holds; and lists folders.

What comes from `read_manifest` can be used without looking again: every key is there, of its kind and in its range.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RecordingError
from workbench.files.json_file import read_object
from workbench.files.writing import reason, shortened
from workbench.recordings.manifest_shape import fault_of
from workbench.recordings.schema import MANIFEST, SCHEMA

# Times and places say when and where, not what; they stay out of the digest.
_NOT_IN_DIGEST = ("created", "finished", "digest", "status", "environment")
_AGAIN = "Restore it from a copy, or record again."


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, written in one canonical way."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def command_text(words: Sequence[str]) -> str:
    """The words of a command as one that can be run; what is no text in a path is shown as an escape."""
    return shlex.join(words).encode("utf-8", "backslashreplace").decode()


def recording_digest(manifest: dict[str, Any]) -> str:
    """The digest of a closed recording: its manifest, with the parts' digests in it, without times."""
    return json_digest({key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST})


class _OfSomethingElse(RecordingError):
    """A manifest that says itself what it is of."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a recording folder, closed or not.

    Raises:
        RecordingError: no folder, no manifest; one that is no JSON object, is of a newer schema, was edited after it
            was closed, or does not hold what a manifest holds.
    """
    file = path / MANIFEST
    try:
        if not path.is_dir():
            raise RecordingError(
                f"{shortened(path)} is not a folder; a recording is one. `workbench recordings` lists what there is."
            )
        if not file.is_file():
            raise RecordingError(
                f"{path} holds no {MANIFEST}, so it is no recording; record one with "
                f"`workbench record MODEL --corpus FILE --out {path}`."
            )
        manifest = read_object(file)
        if isinstance(manifest.get("kind"), str):
            raise _OfSomethingElse(f"{path} holds a {manifest['kind'][:40]}, and a recording was expected.")
        if "schema" not in manifest:
            raise ValueError("it states no schema")
        schema = manifest["schema"]
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise ValueError("its schema is no whole number")
    except OSError as error:
        raise RecordingError(f"{shortened(path)} cannot be read: {reason(error)}.") from error
    except ValueError as error:
        raise RecordingError(
            f"{file} is damaged: it is not the JSON object of a recording ({error}). {_AGAIN}"
        ) from error
    if schema > SCHEMA:
        raise RecordingError(
            f"{path} has recording schema {schema}; this version reads up to {SCHEMA}. "
            "Update moe-workbench to open it: pip install --upgrade moe-workbench."
        )
    if manifest.get("status") == "closed" and recording_digest(manifest) != manifest.get("digest"):
        raise RecordingError(f"{file} was edited after the recording was closed: its digest does not match. {_AGAIN}")
    if fault := fault_of(manifest):
        raise RecordingError(f"{file} is damaged: {fault}. {_AGAIN}")
    return manifest


@dataclass(frozen=True)
class Found:
    """A folder that holds a manifest.

    Attributes:
        path: The folder.
        manifest: Checked; empty where it is damaged.
        damage: What is wrong with it; empty where nothing is.
    """

    path: Path
    manifest: dict[str, Any]
    damage: str = ""


def recordings_below(folder: Path) -> Iterator[Found]:
    """The folders directly below a folder that hold a manifest, the damaged ones too, by name."""
    for file in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            yield Found(file.parent, read_manifest(file.parent))
        except _OfSomethingElse:
            continue
        except RecordingError as error:
            yield Found(file.parent, {}, str(error))
