"""What was measured of models on a machine, on disk: raw samples in Parquet and one manifest.

This file is the format: it writes whole measurements, reads and checks them. Nothing is averaged here; every statistic
is an analysis'. A measurement is a folder:

    manifest.json    schema, models, what was asked, machine, versions, warm-up, what could not be measured, digests
    samples.parquet  a row per timed run: who ran, with what batch, in which round, when each token was there
    parts.parquet    a row per watched run and part of the model: its seconds
    memory.parquet, coverage.parquet, device.parquet, checks.parquet, energy.parquet, recording.parquet
    requests.parquet a row per request to a served model: when each chunk of its answer came, what became of it

A measurement has the tables of what it measured, not all.

The manifest is written last: a folder without one is no measurement.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import MeasurementError
from workbench.recording import file_digest, json_digest

MANIFEST = "manifest.json"
KIND = "measurement"
SCHEMA = 1
TABLES = ("samples", "parts", "memory", "coverage", "device", "checks", "energy", "recording", "requests")
_NOT_IN_DIGEST = ("created", "digest")


def is_measurement(path: Path) -> bool:
    """Whether a folder holds a measurement, so that a command can tell it from a recording."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


def refuse_occupied(path: Path) -> None:
    """Refuses a place where no measurement can be written, before an hour is spent on one.

    Raises:
        MeasurementError: it is a file, or a folder that is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise MeasurementError(f"{path} is not an empty folder; nothing was measured. Name a new folder with --out.")


def write_measurement(path: Path, tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> "Measurement":
    """Writes a measurement; the folder is one when its manifest is there.

    Args:
        path: A new or empty folder.
        tables: By name; an empty one is written too, so that nothing measured and nothing kept look different.
        manifest: What is known of the run, as JSON values.

    Raises:
        MeasurementError: the folder holds something, or a table is none of `TABLES`.
    """
    refuse_occupied(path)
    if unknown := set(tables) - set(TABLES):
        raise MeasurementError(f"{sorted(unknown)[0]!r} is no table of a measurement; there are {', '.join(TABLES)}.")
    path.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, table in tables.items():
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), content)
        _write(path / f"{name}.parquet", content.getvalue())
        files[name] = {"rows": len(table), "sha256": file_digest(path / f"{name}.parquet")}
    whole = {"kind": KIND, "schema": SCHEMA, **manifest, "tables": files}
    digest = json_digest(whole)
    whole |= {"created": datetime.now(UTC).isoformat(timespec="seconds"), "digest": digest}
    _write(path / MANIFEST, (json.dumps(whole, ensure_ascii=False, indent=1) + "\n").encode())
    return Measurement.open(path)


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(f"{file.name}.tmp")
    with draft.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement on disk.

    Attributes:
        path: Its folder.
        manifest: What is known of the run.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Measurement":
        """Reads the manifest and checks that each table is there.

        Raises:
            MeasurementError: no measurement is there, it is of a newer schema, its manifest was edited, or a table is
                missing.
        """
        path = Path(path)
        if not is_measurement(path):
            raise MeasurementError(
                f"{path} holds no measurement (a {MANIFEST} of kind {KIND!r}); make one with `workbench profile MODEL "
                "--out DIR` or `workbench serve-bench`."
            )
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] > SCHEMA:
            raise MeasurementError(
                f"{path} has schema {manifest['schema']}, and this workbench reads up to {SCHEMA}; update it."
            )
        if json_digest({k: v for k, v in manifest.items() if k not in _NOT_IN_DIGEST}) != manifest["digest"]:
            raise MeasurementError(
                f"{path / MANIFEST} was edited after the measurement: its digest does not match. Measure again."
            )
        for name in manifest["tables"]:
            if not (path / f"{name}.parquet").is_file():
                raise MeasurementError(f"{path} lacks {name}.parquet, which its manifest names; measure again.")
        return cls(path, manifest)

    def verify(self) -> int:
        """Reads every table and checks its digest; the number of tables.

        Raises:
            MeasurementError: names the first table that is not as it was written.
        """
        for name, stated in self.manifest["tables"].items():
            if file_digest(self.path / f"{name}.parquet") != stated["sha256"]:
                raise MeasurementError(
                    f"{self.path / f'{name}.parquet'} is not as it was written: its digest does not match. "
                    "Measure again."
                )
        return len(self.manifest["tables"])

    def table(self, name: str) -> pd.DataFrame:
        """A table as it was written.

        Raises:
            MeasurementError: there is none of that name; lists those that there are.
        """
        if name not in self.manifest["tables"]:
            known = ", ".join(self.manifest["tables"])
            raise MeasurementError(f"{self.path} has no table {name!r}; it has {known}.")
        return pd.read_parquet(self.path / f"{name}.parquet")

    @property
    def digest(self) -> str:
        """Of the manifest, with the tables' digests in it and without times."""
        return str(self.manifest["digest"])

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """What is known of each model, by the name that stands in the tables; the measured one first."""
        return dict(self.manifest["models"])
