"""What the host keeps on disk beside recordings: requests that are not done, logs, and maps and uploads within bounds.

A request to record is a file in the data folder's `requests` from the moment it is asked until its recording is
finished: a recording that was stopped with the app, or never begun, can be asked for again, its prompt included.
"""

import contextlib
import json
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import HostError, RecordingError
from workbench.recordings.manifest import read_manifest
from workbench.recordings.schema import MANIFEST
from workbench.recordings.writer import locked

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}")  # of a recording; no leading dot: `..` names another folder
_LOG_BYTES = 10 * 2**20
_REQUEST_BYTES = 2**20  # a prompt has 20,000 characters at most
_ARGUMENTS = {
    "model": str,
    "corpus": str | None,
    "prompt": str | None,
    "fields": list,
    "max_tokens": int | None,
    "parent": str | None,
    "check": bool,
}


@dataclass(frozen=True)
class Unfinished:
    """A recording that was begun or asked for, and is not finished.

    Attributes:
        name: Its folder's.
        title: For people; it may hold what a visitor typed. Of one that the command line began, model and corpus.
        owner: The visitor who asked for it; empty in an app that is not shared.
        parts: Parts on disk.
        of_parts: Parts in all; 0 where it never began.
        arguments: Of `Host.record`; empty where the app did not ask for it.
        command: What makes it go on, where the app did not ask for it; empty where Python did.
    """

    name: str
    title: str
    owner: str = ""
    parts: int = 0
    of_parts: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    command: str = ""


def keep_request(data: Path, name: str, *, title: str, owner: str, arguments: dict[str, Any]) -> None:
    """Keeps a request until its recording is finished; a later one of the same name takes its place.

    Raises:
        HostError: the data folder cannot be written.
    """
    file = _request_file(data, name)
    draft = file.with_name(f".{name}.{secrets.token_hex(4)}.tmp")  # two apps may ask for the same at once
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"title": title, "owner": owner, "arguments": arguments}), encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise HostError(
            f"{file.parent} cannot be written ({error.strerror}); nothing was begun. Free the disk, or mend the "
            "folder's permissions."
        ) from error


def drop_request(data: Path, name: str, *, also_begun: bool) -> None:
    """Forgets a request; with `also_begun` even where its recording stands unfinished on disk."""
    if also_begun or not (data / "recordings" / name / MANIFEST).is_file():
        with contextlib.suppress(OSError):
            _request_file(data, name).unlink(missing_ok=True)


def unfinished(data: Path) -> list[Unfinished]:
    """The recordings of a data folder that are not finished, by name; what cannot be read is passed over."""
    names = {file.parent.name for file in (data / "recordings").glob(f"*/{MANIFEST}")}
    names |= {file.stem for file in (data / "requests").glob("*.json") if NAME.fullmatch(file.stem)}
    found = (_unfinished(data, name) for name in sorted(names))
    return [each for each in found if each is not None]


def _unfinished(data: Path, name: str) -> Unfinished | None:
    folder = data / "recordings" / name
    manifest: dict[str, Any] = {}
    with contextlib.suppress(RecordingError):
        manifest = read_manifest(folder)
    known = _request(_request_file(data, name))
    if manifest.get("status") == "closed" or not (manifest or known):
        return None
    parts = len(list((folder / "documents").glob("part-*.parquet")))
    try:
        if not known:
            title = f"{manifest['identity']['model']} · {manifest['corpus']['name']}"
            known = {"title": title, "command": str(manifest["environment"]["command"])}
        return Unfinished(name, parts=parts, of_parts=int(manifest.get("shards", 0)), **known)
    except (KeyError, TypeError, ValueError):
        return None


def _request(file: Path) -> dict[str, Any]:
    """What was asked for, as `keep_request` wrote it; nothing where the file is damaged or somebody else's."""
    try:
        if not file.is_file() or file.stat().st_size > _REQUEST_BYTES:
            return {}
        asked = json.loads(file.read_text(encoding="utf-8"))
        arguments = asked["arguments"]
        known = {"title": asked["title"], "owner": asked["owner"], "arguments": arguments}
        sound = (
            isinstance(asked["title"], str)
            and isinstance(asked["owner"], str)
            and {"model", "fields"} <= arguments.keys() <= set(_ARGUMENTS)  # the others have defaults
        )
        sound = sound and all(_is_of(value, _ARGUMENTS[key]) for key, value in arguments.items())
        return known if sound and all(isinstance(each, str) for each in arguments["fields"]) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_of(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _request_file(data: Path, name: str) -> Path:
    return data / "requests" / f"{name}.json"


def delete_recording(data: Path, name: str) -> None:
    """Deletes a recording of the data folder, finished or not, and its request.

    Raises:
        RecordingError: there is none of that name, or it is being written.
    """
    folder = data / "recordings" / name
    is_name = Path(name).name == name and name.isprintable() and len(name.encode()) <= 200
    if not is_name or not (folder / MANIFEST).is_file():
        raise RecordingError(f"there is no recording {name[:200]!r} in {folder.parent} to delete.")
    if folder.is_symlink():
        folder.unlink()  # it lies elsewhere, and stays there
        return
    with locked(folder):
        drop_request(data, name, also_begun=True)
        gone = folder.with_name(f".{name}.{secrets.token_hex(4)}.deleted")  # out of the list at once, and whole
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def trim(folder: Path, n_bytes: int) -> None:
    """Deletes the files below a folder that were used longest ago, until the others have at most so many bytes."""
    files = [(file.stat().st_mtime_ns, file.stat().st_size, file) for file in folder.rglob("*") if file.is_file()]
    held = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if held <= n_bytes:
            return
        with contextlib.suppress(OSError):  # another app on this folder did it in this moment
            file.unlink()
            held -= size


def log_file(data: Path, name: str) -> Path:
    """A log's path, its folder made; what has grown large is put aside, over what was put aside before.

    It is copied and cut, not renamed: a process that writes to it, always at its end, goes on in the same file.
    """
    log = data / "logs" / name
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            shutil.copyfile(log, log.with_name(f"{name}.1"))
            with log.open("r+b") as file:
                file.truncate()
    return log
