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

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.efficiency.measurements.shape import KIND, TABLES, fault_of, table_fault
from workbench.errors import MeasurementError
from workbench.files.json_file import object_of, read_object
from workbench.files.writing import reason, refuse_unwritable, shortened, write_whole
from workbench.recordings.manifest import file_digest, json_digest

MANIFEST = "manifest.json"
SCHEMA = 1
_NOT_IN_DIGEST = ("created", "digest")


def is_measurement(path: Path) -> bool:
    """Whether a folder holds a measurement, so that a command can tell it from a recording."""
    try:
        return read_object(Path(path) / MANIFEST).get("kind") == KIND
    except (OSError, ValueError):
        return False


def refuse_occupied(path: Path) -> None:
    """Refuses a place where no measurement can be written, before an hour is spent on one.

    Raises:
        MeasurementError: it is a file, or a folder that is not empty, or cannot be written.
    """
    refuse_unwritable(path, MeasurementError)
    if path.is_dir() and any(path.iterdir()):
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
    contents = {}
    for name, table in tables.items():
        written = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), written)
        contents[name] = written.getvalue()
    files = {
        name: {"rows": len(tables[name]), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    facts = {key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST}
    whole = object_of(json.dumps({"kind": KIND, "schema": SCHEMA, **facts, "tables": files}))
    whole |= {"created": datetime.now(UTC).isoformat(timespec="seconds"), "digest": json_digest(whole)}
    if fault := fault_of(whole):
        raise MeasurementError(f"nothing was written: the manifest would not be one of a measurement ({fault}).")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeasurementError(f"{shortened(path)} cannot be made ({reason(error)}); name another --out.") from error
    for name, content in contents.items():
        write_whole(path / f"{name}.parquet", content, MeasurementError)
    text = json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
    write_whole(path / MANIFEST, text.encode(), MeasurementError)
    return Measurement.open(path)


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
                f"{shortened(path)} holds no measurement (a {MANIFEST} of kind {KIND!r}); make one with `workbench "
                "profile MODEL --out DIR` or `workbench serve-bench`."
            )
        manifest = read_object(path / MANIFEST)
        schema = manifest.get("schema")
        if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
            raise MeasurementError(f"{path} has schema {schema}, and this workbench reads up to {SCHEMA}; update it.")
        if json_digest({key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST}) != manifest.get(
            "digest"
        ):
            raise MeasurementError(
                f"{path / MANIFEST} was edited after the measurement: its digest does not match. Measure again."
            )
        if fault := fault_of(manifest):
            raise MeasurementError(f"{path / MANIFEST} is damaged: {fault}. Measure again.")
        for name in manifest["tables"]:
            if not (path / f"{name}.parquet").is_file():
                raise MeasurementError(f"{path} lacks {name}.parquet, which its manifest names; measure again.")
        return cls(path, manifest)

    def verify(self) -> int:
        """Reads every table and checks its digest; the number of tables.

        Raises:
            MeasurementError: names the first table that is not as it was written.
        """
        for name in self.manifest["tables"]:
            self._read(name)
        return len(self.manifest["tables"])

    def table(self, name: str) -> pd.DataFrame:
        """A table as it was written.

        Raises:
            MeasurementError: there is none of that name (lists those that there are), it is not as it was written, or
                has other columns than such a table.
        """
        if name not in self.manifest["tables"]:
            known = ", ".join(self.manifest["tables"])
            raise MeasurementError(f"{self.path} has no table {name!r}; it has {known}.")
        return self._read(name).to_pandas()

    def _read(self, name: str) -> pa.Table:
        file, stated = self.path / f"{name}.parquet", self.manifest["tables"][name]
        try:
            if file_digest(file) != stated["sha256"]:
                raise MeasurementError(f"{file} is not as it was written: its digest does not match. Measure again.")
            read = pq.read_table(file)
            read.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise MeasurementError(f"{file} cannot be read ({error}). Measure again.") from error
        rows = read.num_rows
        fault = f"it has {rows:,} rows, and the manifest says {stated['rows']:,}" if rows != stated["rows"] else None
        if fault := fault or table_fault(name, read):
            raise MeasurementError(f"{file} is damaged: {fault}. Measure again.")
        return read

    @property
    def digest(self) -> str:
        """Of the manifest, with the tables' digests in it and without times."""
        return str(self.manifest["digest"])

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """What is known of each model, by the name that stands in the tables; the measured one first."""
        return dict(self.manifest["models"])
