"""The recordings of the data folder: which there are, what each holds, and the one that is opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from workbench.errors import RecordingError
from workbench.recordings.manifest import read_manifest
from workbench.recordings.recording import Recording
from workbench.recordings.schema import MANIFEST

from . import jobs

_KEPT_BYTES = 64 << 20
"""Of decoded columns of each open recording: what a redraw reads again."""


def named(name: str) -> Recording:
    """A recording that an address names.

    Raises:
        RecordingError: there is none of that name, or it is not finished.
    """
    if name not in finished():
        _refuse_recording(name)
    return opened(name)


def opened(name: str) -> Recording:
    """A recording of the data folder, its manifest and row counts checked, and every digest once.

    Raises:
        RecordingError: it is damaged, or was deleted meanwhile.
    """
    folder = jobs.data_folder() / "recordings" / name
    changed = changed_ns(folder / MANIFEST)
    if changed is None:
        raise RecordingError(f"the recording {name!r} is gone: it was deleted or moved meanwhile. Choose another.")
    return _recording(str(folder), changed)


def changed_ns(file: Path) -> int | None:
    """When a file was changed; None where it is gone, or is a link that leads nowhere."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


@st.cache_resource(max_entries=8, show_spinner="Checking the recording …")
def _recording(path: str, changed_ns: int) -> Recording:
    recording = Recording.open(path)
    recording.verify()
    return recording.keeping(_KEPT_BYTES)


def _refuse_recording(name: str) -> None:
    folder = jobs.data_folder() / "recordings" / Path(name).name
    if Path(name).name == name and name.isprintable() and len(name.encode()) <= 255 and folder.is_dir():
        Recording.open(folder)  # says what is wrong with it
    raise RecordingError(
        f"there is no recording {name[:200]!r} in {folder.parent}. Choose another in the sidebar, or record it."
    )


def finished() -> dict[str, dict[str, Any]]:
    """The manifests of the recordings that can be opened, newest first."""
    return {name: found for name, found in every().items() if found.get("status") == "closed"}


def every() -> dict[str, dict[str, Any]]:
    """The manifests of all recordings, newest first; of one that cannot be read an `error`."""
    found = (jobs.data_folder() / "recordings").glob(f"*/{MANIFEST}")
    times = [(changed, file.parent) for file in found if (changed := changed_ns(file)) is not None]
    return {folder.name: _manifest(str(folder), changed) for changed, folder in sorted(times, reverse=True)}


@st.cache_data(max_entries=500, show_spinner=False)
def _manifest(folder: str, changed_ns: int) -> dict[str, Any]:
    try:
        manifest = read_manifest(Path(folder))
    except RecordingError as error:
        return {"error": str(error)}
    missing = [key for key in ("status", "identity", "model", "corpus", "fields", "check") if key not in manifest]
    return (
        {"error": f"its manifest is damaged: it has no {missing[0]}; restore it from a copy"} if missing else manifest
    )


def source_of(model: Mapping[str, Any]) -> str:
    """How the weights on disk were quantized, and whether an adapter lay beside them; empty where neither was so.

    Recordings that are older say nothing of either.
    """
    quantization, adapter = (model.get(key) for key in ("quantization", "adapter"))
    words = []
    if isinstance(quantization, dict) and quantization.get("method"):
        how = "dequantized" if quantization.get("dequantized") else "not dequantized"
        words.append(f"{str(quantization['method'])[:100]}, {how}")
    if isinstance(adapter, dict):
        name = str(adapter.get("file") or adapter.get("name") or "beside them")[:100]
        words.append(f"adapter {name} {'applied' if adapter.get('applied') else 'not applied'}")
    return "; ".join(words)


def rows() -> list[dict[str, Any]]:
    """What each recording holds, for a table."""
    found = []
    for name, manifest in every().items():
        if "error" in manifest:
            found.append({"recording": name, "state": manifest["error"]})
            continue
        closed, made = manifest["status"] == "closed", manifest.get("finished", manifest["created"])
        found.append(
            {
                "recording": name,
                "state": "finished" if closed else "not finished",
                "model": manifest["identity"]["model"],
                "corpus": manifest["corpus"]["name"],
                "documents": sum(part["documents"]["rows"] for part in manifest["parts"]) if closed else None,
                "tokens": sum(part["tokens"]["rows"] for part in manifest["parts"]) if closed else None,
                "fields": ", ".join(manifest["fields"]),
                "weights": source_of(manifest["model"]) or None,
                "capture": manifest["check"].split()[0].rstrip(":") if isinstance(manifest["check"], str) else "proved",
                "made": made[:16].replace("T", " ") + " UTC",
            }
        )
    return found
