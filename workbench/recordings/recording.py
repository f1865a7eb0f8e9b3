"""The format of recordings: what was recorded of one model over one corpus, as Parquet and one manifest.

This file is the format: its schema, the reader, and the checks. `writer.py` writes it. Any tool that reads
Parquet can open a recording; nothing here needs torch.

Axes: T tokens (rows of `tokens`, in plan order), D documents (rows of `documents`, in the same order), E experts,
K chosen per token.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workbench.errors import RecordingError
from workbench.models.topology import Router, Topology
from workbench.recordings.cache import Kept, decoded_column
from workbench.recordings.checks import (
    AGAIN,
    MOST_DOCUMENTS,
    check_counts,
    check_documents,
    check_ids,
    check_part,
    check_token_counts,
    check_values,
    read_columns,
    read_whole,
    verify_file,
)
from workbench.recordings.manifest import read_manifest
from workbench.recordings.missing import absent_sentence
from workbench.recordings.schema import (
    DOCUMENT_COLUMNS,
    EXPERT_SCHEMA,
    EXPERT_WEIGHTS,
    TOKEN_COLUMNS,
    VOCABULARY,
    VOCABULARY_SCHEMA,
    document_schema,
    lacks_of,
    part_name,
    prefix,
    prefixes,
    token_schema,
)
from workbench.recordings.selection import Selection


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
        self.selection = Selection()
        self._kept = Kept(0)

    def selected(self, **changes: Any) -> "Recording":
        """The same recording, of which other rows are read: `selection` with these attributes changed."""
        part = copy.copy(self)
        part.selection = replace(self.selection, **changes)
        return part

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
        if recording.manifest["status"] != "closed":
            done = sum(1 for _ in (path / "documents").glob("part-*.parquet"))
            raise RecordingError(
                f"{path} is not finished: {done} of {recording.manifest['shards']} parts are on disk. "
                "Run the same `workbench record` command again; it resumes where it stopped."
            )
        schemas = recording._schemas()
        for part in recording.manifest["parts"]:
            for table, schema in schemas.items():
                check_part(path, part_name(table, part["index"]), part[table], schema)
        return recording

    def _schemas(self) -> dict[str, pa.Schema]:
        return {
            "tokens": token_schema(self.topology, self.manifest),
            "documents": document_schema(self.topology, self.manifest),
        }

    def verify(self, *, values: bool = False) -> Verification:
        """Reads every byte, checks every digest, and whether tokens and documents belong together.

        Args:
            values: Also whether every chosen expert is one, and every document's counts those of its tokens; it takes
                as long as a few analyses.

        Raises:
            RecordingError: names the first file whose digest is not what was written, or whose values contradict
                others.
        """
        parts = self.manifest["parts"]
        listed = [(part_name(table, part["index"]), part[table]) for part in parts for table in self._schemas()]
        listed.append((VOCABULARY, self.manifest["vocabulary"]))
        if "weights" in self.fields:
            listed.append((EXPERT_WEIGHTS, self.manifest["expert_weights"]))
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            sizes = list(
                pool.map(lambda name, stated: verify_file(self.path, name, stated), *zip(*listed, strict=True))
            )
        corpus = MOST_DOCUMENTS if "source" in self.manifest else self.manifest["corpus"]["documents"]
        check_documents(self.path, self.documents(), n_documents=corpus, phases=self.phases)
        if "ids" not in self.lacks:
            check_token_counts(self)
        if values:
            check_values(self)
        return Verification(files=len(sizes), size_bytes=sum(sizes), digest=self.digest)

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
        part = self.selected(phase=phase)
        part.manifest = {**self.manifest, "phases": [phase]}
        return part

    @property
    def chosen_phase(self) -> str | None:
        """The phase that `of_phase` chose of several; None for a whole recording."""
        return self.selection.phase

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Decoder indices of the layers with a router."""
        return self.topology.moe_layers

    @property
    def n_tokens(self) -> int:
        """T, tokens of all phases; where the source had counts alone, those that the counts are of."""
        if "ids" in self.lacks or self.selection:
            return int(self.column("tokens", table="documents").sum())
        return sum(part["tokens"]["rows"] for part in self.manifest["parts"])

    @property
    def n_documents(self) -> int:
        """Rows of the documents table."""
        if self.selection:
            return len(self.column("document", table="documents"))
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
        chosen = self.selection
        if chosen.changes_documents:
            return None
        return f"phase {chosen.phase}" if chosen.phase else "whole"

    def parts(self, columns: list[str], *, table: str = "tokens") -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns part by part, so that nothing needs the whole in memory.

        Raises:
            RecordingError: a column that was not recorded, with the fields that were; or that the source of an
                imported recording did not have, with what to do.
        """
        if self.selection:
            whole = copy.copy(self)
            whole.selection = Selection()
            yield from (self.selection.of(p, columns) for p in whole.parts(self.selection.needs(columns), table=table))
            return
        known = self._schemas()[table].names
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise RecordingError(self.absent(unknown[0], table=table))
        for part in self.manifest["parts"]:
            name = part_name(table, part["index"])
            kept = self._kept.of(self.path / name)
            wanted = [column for column in columns if column not in kept]
            read = read_columns(self.path, name, wanted, memory_map=True) if wanted else {}
            decoded = {column: decoded_column(read[column]) for column in wanted}
            for column, n_experts in self._n_experts_of(wanted).items():
                check_ids(self.path, name, column, decoded[column], n_experts)
            for column in wanted:
                if column.endswith(".counts"):
                    check_counts(self.path, name, column, decoded[column])
            self._kept.keep(self.path / name, decoded)
            yield {column: decoded[column] if column in decoded else kept[column] for column in columns}

    def _n_experts_of(self, columns: list[str]) -> dict[str, int]:
        """E of the routers whose chosen ids are among some columns."""
        if not any(column.endswith(".ids") for column in columns):
            return {}
        of = {f"{at}.ids": router.n_experts for router, at in prefixes(self.topology).items()}
        return {column: of[column] for column in columns if column in of}

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
        names = [part_name(table, part["index"]) for part in self.manifest["parts"]]
        files = tuple(self.path / name for name in names)
        kept = self._kept.frame(files)
        if kept is None:
            read = [read_columns(self.path, name, there) for name in names]
            kept = pa.concat_tables(read, promote_options="permissive").to_pandas()
            if table == "documents":
                self._kept.keep_frame(files, kept)
        frame = kept.copy(deep=False)  # pandas copies what is written to
        return self.selection.frame(frame) if self.selection else frame

    @cached_property
    def vocabulary(self) -> pd.DataFrame:
        """The token ids that occur: `token`, `bytes`, and `text` that is always printable."""
        read = self._whole_file("vocabulary", VOCABULARY, VOCABULARY_SCHEMA).to_pandas()
        if (twice := read["token"].duplicated()).any():
            raise RecordingError(
                f"{self.path}: {VOCABULARY} holds the id {read['token'][twice].iloc[0]} twice. {AGAIN}"
            )
        return read

    @cached_property
    def expert_weights(self) -> pd.DataFrame:
        """Facts of the experts' parameters, a row per router and expert (`capture/expert_weights.py` has the columns).

        Raises:
            RecordingError: the field `weights` was not recorded, or the file cannot be read.
        """
        if "weights" not in self.fields:
            raise RecordingError(self.absent("weights", table="fields"))
        return self._whole_file("expert_weights", EXPERT_WEIGHTS, EXPERT_SCHEMA).to_pandas()

    def _whole_file(self, key: str, name: str, schema: pa.Schema) -> pa.Table:
        """A file that is small and read at once, so that its digest is compared first."""
        verify_file(self.path, name, self.manifest[key])
        return read_whole(self.path, name, schema)
