"""Writes recordings: one writer at a time, whole parts only, in the background.

A part is written under a temporary name, fsynced and renamed, `tokens` first and `documents` second: a `documents` part
on disk means that its shard is complete. What a killed run left behind is kept where it is whole and removed where not.
The format itself is `recording.py`.
"""

import contextlib
import fcntl
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import RecordingError
from workbench.files.writing import reason, refuse_unwritable, shortened, write_whole
from workbench.models.topology import Topology
from workbench.recordings.checks import check_part
from workbench.recordings.manifest import file_digest, read_manifest, recording_digest
from workbench.recordings.manifest_shape import fault_of
from workbench.recordings.schema import (
    EXPERT_WEIGHTS,
    MANIFEST,
    PHASES,
    VOCABULARY,
    document_schema,
    part_name,
    token_schema,
)

LOCK = "writer.lock"
Columns = Mapping[str, Sequence[np.ndarray]]  # of each column its pieces, in order
Proof = Callable[[Path, Path], dict[str, Any]]  # of a part's files when they are on disk; gives facts of it


class RecordingWriter:
    """The one writer of a recording folder; use it as a context manager.

    Args:
        path: Folder; made if it is missing, resumed if it holds the same recording unfinished.
        manifest: What the recording is; `identity` keys decide whether a folder holds the same one.
        topology: Of the model.
        fields: Recorded fields.
        n_shards: Shards of the plan.

    Raises:
        RecordingError: the folder holds another recording or other files, another writer is at work, or the disk is
            full.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], *, topology: Topology, fields: tuple[str, ...], n_shards: int
    ) -> None:
        self.path = path
        self.n_shards = n_shards
        self._schemas = {
            "tokens": token_schema(topology, manifest),
            "documents": document_schema(topology, manifest),
        }
        adopted = {**manifest, "status": "open", "shards": n_shards, "created": _now()}
        if fault := fault_of(json.loads(json.dumps(adopted))):
            raise RecordingError(f"nothing was written: the manifest would not be one of a recording ({fault}).")
        refuse_unwritable(path, RecordingError)
        self._refuse_foreign_folder()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        except OSError as error:
            raise RecordingError(f"{shortened(path)} cannot be made ({reason(error)}); name another --out.") from error
        try:
            self.manifest = self._adopt(adopted)
            self.parts = {} if self.closed else self._whole_parts()
        except BaseException:
            self._lock.close()
            raise
        self._queue: queue.Queue[tuple[int, Columns, Columns, Proof | None] | None] = queue.Queue(maxsize=2)
        self._noting = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="recording-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._lock.close()

    @property
    def closed(self) -> bool:
        """Whether the folder held this very recording complete."""
        return bool(self.manifest.get("status") == "closed")

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RecordingError(f"{self.path} is a file; a recording is a folder. Name another --out.")
        if self.path.is_dir() and not (self.path / MANIFEST).exists():
            ours = (LOCK, f"{MANIFEST}.tmp")  # what a run killed in its first moment leaves behind
            others = [entry.name for entry in self.path.iterdir() if entry.name not in ours]
            if others:
                raise RecordingError(
                    f"{self.path} is not empty and holds no recording ({', '.join(sorted(others)[:3])} …); "
                    "nothing was written. Name a new or empty folder."
                )

    def _adopt(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if (self.path / MANIFEST).exists():
            found = read_manifest(self.path)
            there, here = found.get("identity", {}), manifest["identity"]
            differing = [key for key in here if there.get(key) != here[key]]
            if differing:
                told = "; ".join(f"{k} is {_short(there.get(k))} there, {_short(here[k])} here" for k in differing)
                raise RecordingError(
                    f"{self.path} holds another recording ({told}); nothing was written. Name another --out, or delete "
                    "that folder."
                )
            return found
        self._write_manifest(manifest)
        return manifest

    def _whole_parts(self) -> dict[int, dict[str, Any]]:
        for table in self._schemas:
            (self.path / table).mkdir(exist_ok=True)
            for leftover in (self.path / table).glob("*.tmp"):
                leftover.unlink()
        parts = {}
        unproved = self._unproved()
        for index in range(self.n_shards):
            if index in unproved:
                continue  # ended between writing and proving: it is written again
            with contextlib.suppress(RecordingError, pa.ArrowException, OSError):  # what is not whole is recorded again
                facts = {table: _facts_of(self.path / part_name(table, index)) for table in self._schemas}
                for table, schema in self._schemas.items():
                    check_part(self.path, part_name(table, index), facts[table], schema)
                parts[index] = {"index": index, **facts}
        return parts

    def _unproved(self) -> set[int]:
        """Parts that were to be proved and are not: those of `written_rows` without facts."""
        proved = self.manifest.get("written_rows")
        if not isinstance(proved, dict):
            return set()
        return {index for index in proved.get("sampled", ()) if str(index) not in proved.get("of_parts", {})}

    def note(self, **facts: Any) -> None:
        """Adds facts to the open manifest, on disk at once (an out-of-memory halving, to be replayed)."""
        with self._noting:
            self.manifest.update(facts)
            self._write_manifest(self.manifest)

    def submit(self, index: int, tokens: Columns, documents: Columns, proof: Proof | None = None) -> None:
        """Hands a shard over to the writing thread; waits while two are waiting already.

        Args:
            index: Of the shard.
            tokens: Its columns.
            documents: Its columns.
            proof: What is asked of its files when they are on disk; its facts stand in the manifest's `written_rows`,
                and a part that fails is removed.

        Raises:
            RecordingError: the thread met a full disk, now or before.
            CaptureError: a part failed its proof.
        """
        self._raise_failure()
        self._queue.put((index, tokens, documents, proof))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # drain, so that submit never waits for a thread that has failed
            index, tokens, documents, proof = item
            try:
                part: dict[str, Any] = {"index": index}
                for table, columns in (("tokens", tokens), ("documents", documents)):
                    part[table] = self._write_part(part_name(table, index), columns, self._schemas[table])
                if proof is not None:
                    self._prove(index, proof)
                self.parts[index] = part
            except BaseException as error:
                self._failure = error

    def _prove(self, index: int, proof: Proof) -> None:
        tokens, documents = (self.path / part_name(table, index) for table in ("tokens", "documents"))
        try:
            facts = proof(tokens, documents)
        except BaseException:
            for file in (documents, tokens):
                file.unlink(missing_ok=True)
            raise
        proved = self.manifest["written_rows"]
        self.note(written_rows={**proved, "of_parts": {**proved.get("of_parts", {}), str(index): facts}})

    def _write_part(self, name: str, columns: Columns, schema: pa.Schema) -> dict[str, Any]:
        table = pa.Table.from_arrays(
            [_arrow(np.concatenate(columns[field.name]), field) for field in schema], schema=schema
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=_text_columns(schema))
        content = memoryview(sink.getvalue())
        write_whole(self.path / name, content, RecordingError)
        return {"rows": table.num_rows, "bytes": content.nbytes, "sha256": hashlib.sha256(content).hexdigest()}

    def wait(self) -> None:
        """Waits until everything handed over is on disk.

        Raises:
            RecordingError: the thread met a full disk.
        """
        self._stop()
        self._raise_failure()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def close(self, vocabulary: pa.Table, *, expert_weights: pa.Table | None = None, **facts: Any) -> None:
        """Waits for the parts, writes the vocabulary (and the experts' weights), closes the manifest with every digest.

        Raises:
            RecordingError: a part is missing or could not be written.
        """
        self.wait()
        missing = [index for index in range(self.n_shards) if index not in self.parts]
        if missing:
            raise RecordingError(f"{self.path}: parts {missing} were never written; record again to write them.")
        whole = {"vocabulary": self._write_table(VOCABULARY, vocabulary)}
        if expert_weights is not None:
            whole["expert_weights"] = self._write_table(EXPERT_WEIGHTS, expert_weights)
        closed = {
            **self.manifest,
            **facts,
            **whole,
            "parts": [self.parts[index] for index in range(self.n_shards)],
            "status": "closed",
            "finished": _now(),
        }
        closed["digest"] = recording_digest(json.loads(json.dumps(closed)))
        self._write_manifest(closed)
        self.manifest = closed

    def _write_table(self, name: str, table: pa.Table) -> dict[str, Any]:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = memoryview(sink.getvalue())
        write_whole(self.path / name, content, RecordingError)
        return {"rows": table.num_rows, "bytes": content.nbytes, "sha256": hashlib.sha256(content).hexdigest()}

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        content = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
        write_whole(self.path / MANIFEST, content, RecordingError)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps every writer out of a recording's folder while the block runs.

    Raises:
        RecordingError: a writer is at work.
    """
    handle = _lock(path)
    try:
        yield
    finally:
        handle.close()


def _lock(path: Path) -> IO[str]:
    handle = (path / LOCK).open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        raise RecordingError(
            f"{path} is being written by another process; wait for it, or name another --out."
        ) from error
    return handle


def _facts_of(file: Path) -> dict[str, Any]:
    with pq.ParquetFile(file) as parquet:
        rows = parquet.metadata.num_rows
    return {"rows": rows, "bytes": file.stat().st_size, "sha256": file_digest(file)}


def _text_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)]


def _arrow(values: np.ndarray, field: pa.Field) -> pa.Array:
    if pa.types.is_fixed_size_list(field.type):
        flat = np.ascontiguousarray(values).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=field.type.value_type), field.type.list_size)
    if pa.types.is_dictionary(field.type):
        return pa.DictionaryArray.from_arrays(pa.array(values, type=pa.int8()), pa.array(PHASES))
    return pa.array(values, type=field.type)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
