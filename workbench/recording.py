"""The format of recordings: what was recorded of one model over one corpus, as Parquet and one manifest.

This file is the format: its schema, the reader, and the checks. `recording_writer.py` writes it. Any tool that reads
Parquet can open a recording; nothing here needs torch.

Axes: T tokens (rows of `tokens`, in plan order), D documents (rows of `documents`, in the same order), E experts,
K chosen per token.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.absent import absent_sentence
from workbench.errors import RecordingError
from workbench.models.topology import Router, Topology
from workbench.recording_kept import Kept
from workbench.recording_schema import (
    DOCUMENT_COLUMNS,
    EXPERT_WEIGHTS,
    MANIFEST,
    SCHEMA,
    TOKEN_COLUMNS,
    VOCABULARY,
    document_schema,
    lacks_of,
    part_name,
    prefix,
    token_schema,
)

# Times and places say when and where, not what; they stay out of the digest.
_NOT_IN_DIGEST = ("created", "finished", "digest", "status", "environment")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, written in one canonical way."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def recording_digest(manifest: dict[str, Any]) -> str:
    """The digest of a closed recording: its manifest, with the parts' digests in it, without times."""
    return json_digest({key: value for key, value in manifest.items() if key not in _NOT_IN_DIGEST})


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks the manifest of a recording folder.

    Raises:
        RecordingError: no folder, no manifest, one that is no JSON object, or one of a newer schema.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise RecordingError(f"{path} is not a folder; a recording is one. `workbench recordings` lists what there is.")
    if not file.is_file():
        raise RecordingError(
            f"{path} holds no {MANIFEST}, so it is no recording; record one with "
            f"`workbench record MODEL --corpus FILE --out {path}`."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        schema = int(manifest["schema"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise RecordingError(
            f"{file} is damaged: it is not the JSON object of a recording ({type(error).__name__}: {error}). "
            "Restore it from a copy, or record again."
        ) from error
    if schema > SCHEMA:
        raise RecordingError(
            f"{path} has recording schema {schema}; this version reads up to {SCHEMA}. "
            "Update moe-workbench to open it: pip install --upgrade moe-workbench."
        )
    return manifest


@dataclass(frozen=True)
class Verification:
    """What `Recording.verify` read: how many files, how many bytes, and the digest they make."""

    files: int
    size_bytes: int
    digest: str


class Recording:
    """A recording on disk, read on demand. Open one with `Recording.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.topology = Topology.from_json(manifest["topology"])
        self._kept = Kept(0)

    def keeping(self, n_bytes: int) -> "Recording":
        """The same recording for several questions in a row: of the ids decoded the first so many bytes stay in memory.

        Decoding lists is most of the cost of many questions. What is over the bound is decoded each time, so memory
        does not grow with the tokens. Arrays that are kept are read-only.
        """
        kept = copy.copy(self)
        kept._kept = Kept(n_bytes)
        return kept

    @classmethod
    def open(cls, path: str | Path) -> "Recording":
        """Opens a closed recording after checking manifest, parts and row counts.

        Args:
            path: Folder of the recording.

        Raises:
            RecordingError: what `read_manifest` refuses; a recording that is not finished; a part that is missing, is
                no Parquet file, has other columns or another number of rows than the manifest says.
        """
        path = Path(path)
        recording = cls(path, read_manifest(path))
        if recording.manifest.get("status") != "closed":
            done = sum(1 for _ in (path / "documents").glob("part-*.parquet"))
            raise RecordingError(
                f"{path} is not finished: {done} of {recording.manifest.get('shards', '?')} parts are on disk. "
                "Run the same `workbench record` command again; it goes on where it stopped."
            )
        for part in recording.manifest["parts"]:
            for table, schema in recording._schemas().items():
                recording._check_part(part_name(table, part["index"]), part[table], schema)
        if recording_digest(recording.manifest) != recording.manifest["digest"]:
            raise RecordingError(
                f"{path / MANIFEST} was edited after the recording was closed: its digest does not match. "
                "Restore it from a copy, or record again."
            )
        return recording

    def _schemas(self) -> dict[str, pa.Schema]:
        return {
            "tokens": token_schema(self.topology, self.manifest),
            "documents": document_schema(self.topology, self.manifest),
        }

    def _check_part(self, name: str, expected: dict[str, Any], schema: pa.Schema) -> None:
        file = self.path / name
        again = "Restore it from a copy, or record again into an empty folder."
        if not file.is_file():
            raise RecordingError(f"{self.path}: {name} is missing, but the manifest lists it. {again}")
        if file.stat().st_size != expected["bytes"]:
            raise RecordingError(
                f"{self.path}: {name} has {file.stat().st_size} bytes, {expected['bytes']} were written; it was "
                f"truncated or edited. {again}"
            )
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise RecordingError(f"{self.path}: {name} is not a readable Parquet file ({error}). {again}") from error
        with parquet:
            if parquet.metadata.num_rows != expected["rows"]:
                raise RecordingError(
                    f"{self.path}: {name} has {parquet.metadata.num_rows} rows, the manifest says "
                    f"{expected['rows']}. {again}"
                )
            if parquet.schema_arrow.names != schema.names:
                wrong = sorted(set(parquet.schema_arrow.names) ^ set(schema.names))
                raise RecordingError(f"{self.path}: {name} has other columns than schema {SCHEMA}: {wrong}. {again}")

    def verify(self) -> Verification:
        """Reads every byte and checks every digest.

        Raises:
            RecordingError: names the first file whose digest is not what was written.
        """
        listed = [(part_name(table, p["index"]), p[table]) for p in self.manifest["parts"] for table in self._schemas()]
        listed.append((VOCABULARY, self.manifest["vocabulary"]))
        if "weights" in self.fields:
            listed.append((EXPERT_WEIGHTS, self.manifest["expert_weights"]))
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            sizes = list(pool.map(self._verify_file, *zip(*listed, strict=True)))
        return Verification(files=len(sizes), size_bytes=sum(sizes), digest=self.digest)

    def _verify_file(self, name: str, expected: dict[str, Any]) -> int:
        file = self.path / name
        if not file.is_file() or file_digest(file) != expected["sha256"]:
            raise RecordingError(
                f"{self.path}: {name} is not what was written (its SHA-256 differs). "
                "Restore it from a copy, or record again into an empty folder."
            )
        return file.stat().st_size

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest without its times and the digests of all parts."""
        return str(self.manifest["digest"])

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that were recorded."""
        return tuple(self.manifest["fields"])

    @property
    def lacks(self) -> tuple[str, ...]:
        """Columns that an imported recording does not have because its source did not (`weights`, `token` …)."""
        return lacks_of(self.manifest)

    @property
    def ids_ranked(self) -> bool:
        """Whether a token's ids stand in the order of their scores, though the weights may be lacking."""
        return bool(self.manifest.get("ids_ranked", False))

    def has(self, column: str) -> bool:
        """Whether a column is there: `token`, `phase`, … or a router's (`weights`, `entropy`, `score_sum` …)."""
        names = (name for schema in self._schemas().values() for name in schema.names)
        return any(name.rpartition(".")[2] == column for name in names)

    def absent(self, column: str, *, table: str = "tokens") -> str:
        """Why a column or field is not there and what to do, as a sentence."""
        return absent_sentence(self.path, self.manifest, column, table=table)

    @property
    def phases(self) -> tuple[str, ...]:
        """Of `prefill` (given text) and `decode` (text that the model wrote, token by token) those it holds."""
        return tuple(self.manifest["phases"])

    def of_phase(self, phase: str) -> "Recording":
        """The tokens and documents of one phase alone: analyses never average the two.

        Raises:
            RecordingError: it holds no such phase.
        """
        if phase not in self.phases:
            raise RecordingError(f"{self.path} holds no phase {phase!r}, only {' and '.join(self.phases)}.")
        if len(self.phases) == 1:
            return self
        from workbench.recording_views import of_phase  # a view is a recording

        return of_phase(self, phase)

    @property
    def chosen_phase(self) -> str | None:
        """The phase that `of_phase` chose of several; None for a whole recording."""
        return None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Decoder indices of the layers with a router."""
        return self.topology.moe_layers

    @property
    def n_tokens(self) -> int:
        """T, tokens of all phases; where the source had counts alone, those that the counts are of."""
        if "ids" in self.lacks:
            return int(self.column("tokens", table="documents").sum())
        return sum(part["tokens"]["rows"] for part in self.manifest["parts"])

    @property
    def n_documents(self) -> int:
        """Rows of the documents table."""
        return sum(part["documents"]["rows"] for part in self.manifest["parts"])

    def router(self, layer: int, *, site: str | None = None) -> Router:
        """The router of a layer.

        Raises:
            RecordingError: the layer has none, or several and no site was named.
        """
        found = [r for r in self.topology.routers if r.layer == layer and site in (None, r.site)]
        if not found:
            raise RecordingError(
                f"layer {layer}{f' site {site!r}' if site else ''} of {self.path} has no router; "
                f"the MoE layers are {list(self.moe_layers)}."
            )
        if len(found) > 1:
            raise RecordingError(f"layer {layer} has routers at {[r.site for r in found]}; name one with site=.")
        return found[0]

    def column(self, name: str, *, table: str = "tokens") -> np.ndarray:
        """One column of all parts: [T] or, of a list column, [T, width]; documents in the same order."""
        return np.concatenate([chunk[name] for chunk in self.parts([name], table=table)])

    def of_part(self, index: int) -> "Recording":
        """The tokens and documents of one part alone."""
        alone = copy.copy(self)
        alone.manifest = {**self.manifest, "parts": [self.manifest["parts"][index]]}
        return alone

    def of_document(self, document: int, columns: list[str]) -> dict[str, np.ndarray]:
        """Columns of the tokens of one document, by its number, in order; reads the one part that holds it.

        Raises:
            RecordingError: no part holds it; else as `parts`.
        """
        for index, part in enumerate(self.parts(["document"], table="documents")):
            if document in part["document"]:
                place = self.path / f"part {index} document {document} {self._rows_of_document}"
                kept = self._kept.of(place) if self._rows_of_document is not None else {}
                if wanted := [name for name in columns if name not in kept]:
                    (read,) = self.of_part(index).parts(["document", *wanted])
                    here = read["document"] == document
                    kept = {**kept, **{name: read[name][here] for name in wanted}}
                    if self._rows_of_document is not None:
                        self._kept.keep(place, {name: kept[name] for name in wanted}, kinds="iuf")
                return {name: kept[name] for name in columns}
        raise RecordingError(f"{self.path} has no document number {document}; it has {self.n_documents}.")

    @property
    def _rows_of_document(self) -> str | None:
        """Which rows of a document, in which form, are here: under this they are kept; None where they are not."""
        return "whole"

    def parts(self, columns: list[str], *, table: str = "tokens") -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns part by part, so that nothing needs the whole in memory.

        Raises:
            RecordingError: a column that was not recorded, with the fields that were; or that the source of an
                imported recording did not have, with what to do.
        """
        known = self._schemas()[table].names
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise RecordingError(self.absent(unknown[0], table=table))
        for part in self.manifest["parts"]:
            file = self.path / part_name(table, part["index"])
            kept = self._kept.of(file)
            wanted = [name for name in columns if name not in kept]
            try:
                read = pq.read_table(file, columns=wanted, memory_map=True) if wanted else pa.table({})
            except (pa.ArrowException, OSError) as error:
                raise RecordingError(
                    f"{self.path}: {file.name} of {table} cannot be read ({error}). Run `workbench verify {self.path}`."
                ) from error
            decoded = {name: _to_numpy(read[name]) for name in wanted}
            self._kept.keep(file, decoded)
            yield {name: decoded[name] if name in decoded else kept[name] for name in columns}

    def _routing(self, what: str, layer: int, site: str | None, *, table: str = "tokens") -> np.ndarray:
        return self.column(f"{prefix(self.router(layer, site=site), self.topology)}.{what}", table=table)

    def ids(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Chosen experts ids_TK, in the order the model gave them."""
        return self._routing("ids", layer, site)

    def weights(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Routing weights weights_TK (float16 on disk), in the order of the ids."""
        return self._routing("weights", layer, site)

    def router_statistic(self, name: str, layer: int, *, site: str | None = None) -> np.ndarray:
        """`entropy`, `margin`, `topk_mass`, `logsumexp`, `shared_gate` or `logits` of every token: [T] or [T, E]."""
        return self._routing(name, layer, site)

    def counts(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Assignments counts_DE of each document."""
        return self._routing("counts", layer, site, table="documents")

    def score_sum(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Sum over each document's tokens of the normalized scores, [D, E]."""
        return self._routing("score_sum", layer, site, table="documents")

    def weight_sum(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Sum over each document's tokens of the routing weights, [D, E]."""
        return self._routing("weight_sum", layer, site, table="documents")

    def contribution(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Norm of what each chosen expert adds, [T, K] (float16 on disk), in the order of the ids; field `experts`."""
        return self._routing("contribution", layer, site)

    def contribution_sum(self, layer: int, *, site: str | None = None) -> np.ndarray:
        """Sum over each document's tokens of what each expert adds in norm, [D, E]; field `experts`."""
        return self._routing("contribution_sum", layer, site, table="documents")

    def tokens(self) -> pd.DataFrame:
        """The scalar columns of every token; `logprob` and `predicted` where they were recorded.

        Raises:
            RecordingError: the source of an imported recording had counts and no tokens.
        """
        if "ids" in self.lacks:
            raise RecordingError(self.absent("ids"))
        return self._frame("tokens", TOKEN_COLUMNS)

    def documents(self) -> pd.DataFrame:
        """The scalar columns of every document."""
        return self._frame("documents", DOCUMENT_COLUMNS)

    def _frame(self, table: str, columns: tuple[str, ...]) -> pd.DataFrame:
        there = [name for name in columns if name in self._schemas()[table].names]
        files = tuple(self.path / part_name(table, part["index"]) for part in self.manifest["parts"])
        kept = self._kept.frame(files)
        if kept is None:
            read = [pq.read_table(file, columns=there) for file in files]
            kept = pa.concat_tables(read, promote_options="permissive").to_pandas()
            if table == "documents":
                self._kept.keep_frame(files, kept)
        return kept.copy(deep=False)  # pandas copies what is written to

    @cached_property
    def vocabulary(self) -> pd.DataFrame:
        """The token ids that occur: `token`, `bytes`, and `text` that is always printable."""
        return pq.read_table(self.path / VOCABULARY).to_pandas()

    @cached_property
    def expert_weights(self) -> pd.DataFrame:
        """Facts of the experts' parameters, a row per router and expert (`models/expert_weights.py` has the columns).

        Raises:
            RecordingError: the field `weights` was not recorded, or the file cannot be read.
        """
        if "weights" not in self.fields:
            raise RecordingError(self.absent("weights", table="fields"))
        try:
            return pq.read_table(self.path / EXPERT_WEIGHTS).to_pandas()
        except (pa.ArrowException, OSError) as error:
            raise RecordingError(
                f"{self.path}: {EXPERT_WEIGHTS} cannot be read ({error}). Run `workbench verify {self.path}`."
            ) from error


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
        return np.concatenate(chunks) if len(chunks) != 1 else chunks[0]
    return column.to_numpy()


def recordings_below(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The recordings directly below a folder, with their manifests; folders that hold none are passed over."""
    for found in sorted(folder.glob(f"*/{MANIFEST}")):
        with contextlib.suppress(RecordingError):
            yield found.parent, read_manifest(found.parent)
