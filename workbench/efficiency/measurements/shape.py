"""What a measurement holds, declared once: its manifest's keys, and the columns of each table with their kinds."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from workbench.files.shapes import Either, Keys, Maybe, Named, Number, Rows, Text, Whole
from workbench.recordings.manifest_shape import TOPOLOGY, topology_contradictions

KIND = "measurement"
_WHO = {"model": "text", "routing": "text", "experts": "text", "watched": "flag"}
_POINT = {"batch": "whole", "prompt_tokens": "whole", "output_tokens": "whole"}
_SEAT = {**_WHO, **_POINT}
TABLES: dict[str, dict[str, str]] = {
    "samples": {**_SEAT, "round": "whole", "order": "whole", "started_s": "number", "wall_s": "number",
                "token_s": "times"},
    "parts": {**_SEAT, "round": "whole", "phase": "text", "part": "text", "seconds": "number", "whole_s": "number"},
    "memory": {**_SEAT, "before_bytes": "whole", "peak_bytes": "whole", "counter": "text"},
    "coverage": {**_SEAT, "phase": "text", "layer": "whole", "site": "text", "tokens": "whole", "passes": "whole",
                 "distinct": "number", "uniform": "number", "independent": "number", "n_experts": "whole",
                 "top_k": "whole"},
    "device": {**_SEAT, "phase": "text", "busy_s": "number"},
    "checks": {**_SEAT, "check": "text", "tokens_same": "number", "logit_difference": "number",
               "largest_logit": "number"},
    "energy": {**_SEAT, "counter": "text", "runs": "whole", "window_s": "number", "joules": "number",
               "idle_watts": "number"},
    "recording": {"model": "text", "way": "text", "round": "whole", "tokens": "whole", "seconds": "number"},
    "requests": {"model": "text", "prompts": "text", "load": "text", "level": "number", "prompt_tokens": "whole",
                 "output_tokens": "whole", "round": "whole", "order": "whole", "request": "whole", "outcome": "text",
                 "error": "text", "due_s": "number", "sent_s": "number", "end_s": "number", "read_tokens": "number",
                 "cached_tokens": "number", "written_tokens": "number", "chunk_s": "list", "chunk_chars": "list"},
}  # fmt: skip
"""Of each table the columns that it has, and of what kind each is; a table may have more. A number may be missing."""

_CEILING = Keys({"flops_per_s": Number(), "bytes_per_s": Number()})
_MODEL = Keys(
    {"name": Text(least=1)},
    {
        "revision": Maybe(Text()),
        **dict.fromkeys(("weights", "dtype", "device", "attention", "experts", "config_digest", "url"), Text()),
        "devices": Rows(Text()),
        "weights_bytes": Whole(),
        "topology": TOPOLOGY,
    },
)
MANIFEST_SHAPE = Keys(
    {
        "kind": Text(of=(KIND,)),
        "schema": Whole(1),
        "tables": Named(Keys({"rows": Whole(), "sha256": Text(least=1)})),
        "created": Text(least=1),
        "digest": Text(least=1),
        "models": Named(_MODEL, least=1),
        "machine": Keys({}, {"cpu": Text(), "device": Text(), "threads": Whole(),
                             "gpus": Rows(Keys({"name": Text()}))}),
        "settings": Keys(
            {}, {"rounds": Whole(1), "prefill_chunk": Whole(), "prompts": Either(Named(Text()), Rows(Text()))}
        ),
        "left_out": Rows(Text()),
    },
    {
        "base": Keys({"routing": Text(), "experts": Text()}, {"launch": Text()}),
        "hook_s": Number(),
        "ceiling": Keys({"before": _CEILING, "after": _CEILING}),
        "launched": Either(Keys({}, {"server": Text(), "threads": Whole()}), Text()),
        "seconds": Number(),
        "warm_up": Rows(Named()),
        "energy": Text(),
        "command": Rows(Text()),
        "versions": Named(),
        "pieces": Rows(Named()),
    },
)  # fmt: skip


def fault_of(manifest: dict[str, Any]) -> str | None:
    """What is wrong with the manifest of a measurement; None where nothing is."""
    return next(MANIFEST_SHAPE.faults(manifest, ""), None) or next(_contradictions(manifest), None)


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    for name in manifest["tables"]:
        if name not in TABLES:
            yield f"tables names {name[:80]!r}; {', '.join(TABLES)} are known"
    needed: dict[str, tuple[str, ...]] = {"samples": ("base", "hook_s"), "requests": ("launched",)}
    for table, keys in needed.items():
        for key in keys if table in manifest["tables"] else ():
            if key not in manifest:
                yield f"{key} is missing, and {table} were measured"
    if "samples" in manifest["tables"] and "device" not in manifest["machine"]:
        yield "machine.device is missing, and samples were measured"
    if manifest.get("launched") and not {"server", "threads", "continuous_batching"} <= set(manifest["launched"]):
        yield "launched does not say server, threads and continuous_batching"
    if "requests" in manifest["tables"] and not manifest["launched"]:
        yield from (
            f"models.{name[:80]}.url is missing" for name, each in manifest["models"].items() if "url" not in each
        )
    for name, each in manifest["models"].items():
        for fault in topology_contradictions(each["topology"]) if "topology" in each else ():
            yield f"models.{name[:80]}.{fault}"


def table_fault(name: str, table: pa.Table) -> str | None:
    """What is wrong with a table's columns; None where nothing is, and of a table without a row."""
    return next(_table_faults(name, table), None) if table.num_rows else None


def _table_faults(name: str, table: pa.Table) -> Iterator[str]:
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    for column, kind in TABLES[name].items():
        if column not in types:
            yield f"it has no column {column!r}"
        elif not _KINDS[kind](types[column]):
            yield f"column {column!r} is of type {types[column]}, and a {_WORDS[kind]} was expected"
        elif kind != "number" and table[column].null_count:
            yield f"column {column!r} lacks {table[column].null_count:,} values"
        elif kind in ("times", "list"):
            chunks = table[column].chunks
            if any(chunk.flatten().null_count for chunk in chunks):
                yield f"column {column!r} lacks a number"
            if kind == "times" and any(chunk.value_lengths().to_numpy().min(initial=1) < 1 for chunk in chunks):
                yield f"column {column!r} holds an empty list"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_number(kind.value_type))


_KINDS: dict[str, Any] = {
    "text": _is_text, "flag": pa.types.is_boolean, "whole": pa.types.is_integer, "number": _is_number,
    "times": _is_list, "list": _is_list,
}  # fmt: skip
_WORDS = {
    "text": "text", "flag": "true or false", "whole": "whole number", "number": "number", "times": "list of times",
    "list": "list of numbers",
}  # fmt: skip
