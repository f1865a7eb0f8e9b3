"""The format of recordings as names and columns: which files, which fields, and what each field adds to a table.

Axes: E experts, K chosen per token, H attention heads.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from workbench.metrics.attention import BIN_EDGES, PROFILED, STATISTICS, WEIGHED
from workbench.models.topology import Router, Topology

SCHEMA = 1
PHASES = ("prefill", "decode")
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.parquet"
EXPERT_WEIGHTS = "expert_weights.parquet"
VOCABULARY_SCHEMA = pa.schema([("token", pa.int32()), ("bytes", pa.binary()), ("text", pa.string())])
EXPERT_SCHEMA = pa.schema([("layer", pa.int32()), ("site", pa.string()), ("expert", pa.int32())])
"""Columns that name the expert of a row; the facts beside them are the table's own."""
TOKEN_COLUMNS = ("document", "position", "token", "phase", "logprob", "predicted")
DOCUMENT_COLUMNS = (
    "document", "id", "domain", "source", "cluster", "text_digest", "tokens", "tokens_cut", "phase", "loss",
)  # fmt: skip


def prefix(router: Router, topology: Topology) -> str:
    """The column prefix of a router: `layer03`, or `layer03.SITE.router` for the second router of a layer on."""
    digits = max(2, len(str(topology.n_layers - 1)))
    sites = [other.site for other in topology.routers if other.layer == router.layer]
    name = f"layer{router.layer:0{digits}d}"
    return name if router.site == sites[0] else f"{name}.{router.site}.router"


def prefixes(topology: Topology) -> dict[Router, str]:
    """The column prefix of every router, as `prefix` gives each, in one pass."""
    digits = max(2, len(str(topology.n_layers - 1)))
    first: dict[int, str] = {}
    found = {}
    for router in topology.routers:
        name = f"layer{router.layer:0{digits}d}"
        own = first.setdefault(router.layer, router.site) == router.site
        found[router] = name if own else f"{name}.{router.site}.router"
    return found


def attention_prefix(layer: int, topology: Topology) -> str:
    """The column prefix of an attention: `layer03.attention`."""
    return f"layer{layer:0{max(2, len(str(topology.n_layers - 1)))}d}.attention"


def id_dtype(n_experts: int) -> np.dtype:
    """The narrowest unsigned integer that holds every expert id."""
    return np.dtype(np.uint8 if n_experts <= 256 else np.uint16)


def _list_of(dtype: Any, width: int) -> pa.DataType:
    return pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)


def lacks_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The columns that the source of an imported recording did not have; none of a model's own recording."""
    return tuple(manifest.get("source", {}).get("lacks", ()))


def _without(lacks: tuple[str, ...], columns: list[tuple[str, pa.DataType]]) -> pa.Schema:
    """The columns less those lacked: a router's column is lacked under its last name, for all layers alike."""
    return pa.schema([column for column in columns if column[0].rpartition(".")[2] not in lacks])


def token_schema(topology: Topology, manifest: dict[str, Any]) -> pa.Schema:
    """Columns of the `tokens` table."""
    fields = manifest["fields"]
    columns: list[tuple[str, pa.DataType]] = [
        ("document", pa.int32()), ("position", pa.int32()), ("token", pa.int32()),
        ("phase", pa.dictionary(pa.int8(), pa.string())),
    ]  # fmt: skip
    if "logprob" in fields:
        columns.append(("logprob", pa.float32()))
    if "logprob" in fields or "predicted" in manifest.get("source", {}).get("has", ()):
        columns.append(("predicted", pa.int32()))
    for router, at in prefixes(topology).items() if "routing" in fields else ():
        columns += [
            (f"{at}.ids", _list_of(id_dtype(router.n_experts), router.top_k)),
            (f"{at}.weights", _list_of(np.float16, router.top_k)),
            (f"{at}.entropy", pa.float16()),
            (f"{at}.margin", pa.float16()),
            (f"{at}.topk_mass", pa.float16()),
            (f"{at}.logsumexp", pa.float32()),
        ]
        if router.shared_gate:
            columns.append((f"{at}.shared_gate", pa.float16()))
        if "logits" in fields:
            columns.append((f"{at}.logits", _list_of(np.float16, router.n_experts)))
        if "experts" in fields:
            columns += _experts_columns(at, router)
    for watched in manifest["attention"]["layers"] if "attention-tokens" in fields else ():
        at = attention_prefix(watched["layer"], topology)
        columns += [(f"{at}.{name}", _list_of(np.float16, watched["heads"])) for name in PROFILED]
    return _without(lacks_of(manifest), columns)


def _experts_columns(at: str, router: Router) -> list[tuple[str, pa.DataType]]:
    shared = ("shared_share", "shared_projection", "shared_cosine") if router.shared_path else ()
    return [
        (f"{at}.contribution", _list_of(np.float16, router.top_k)),
        *((f"{at}.{name}", pa.float16()) for name in shared),
    ]


def document_schema(topology: Topology, manifest: dict[str, Any]) -> pa.Schema:
    """Columns of the `documents` table."""
    fields = manifest["fields"]
    text = ("id", "domain", "source", "cluster", "text_digest")
    columns: list[tuple[str, pa.DataType]] = [("document", pa.int32()), *((name, pa.string()) for name in text)]
    columns += [("tokens", pa.int32()), ("tokens_cut", pa.int32()), ("phase", pa.dictionary(pa.int8(), pa.string()))]
    if "logprob" in fields:
        columns.append(("loss", pa.float32()))
    for router, at in prefixes(topology).items() if "routing" in fields else ():
        columns += [
            (f"{at}.counts", _list_of(np.int32, router.n_experts)),
            (f"{at}.score_sum", _list_of(np.float32, router.n_experts)),
            (f"{at}.weight_sum", _list_of(np.float32, router.n_experts)),
        ]
        if "experts" in fields:
            columns.append((f"{at}.contribution_sum", _list_of(np.float32, router.n_experts)))
    for watched in manifest["attention"]["layers"] if "attention" in fields else ():
        at, heads = attention_prefix(watched["layer"], topology), watched["heads"]
        columns += [(f"{at}.{name}", _list_of(np.float32, heads)) for name in STATISTICS]
        columns += [(f"{at}.{name}.profile", _list_of(np.float32, heads * len(BIN_EDGES))) for name in PROFILED]
        columns += [(f"{at}.sink", _list_of(np.float32, heads)), (f"{at}.undefined", _list_of(np.int32, heads))]
        if "attention-weights" in fields:
            columns += [(f"{at}.{name}", _list_of(np.float32, heads)) for name in WEIGHED]
            columns.append((f"{at}.divergence", _list_of(np.float32, heads**2)))
    return _without(lacks_of(manifest), columns)


def part_name(table: str, index: int) -> str:
    """Path of a part inside the recording."""
    return f"{table}/part-{index:05d}.parquet"
