"""What the manifest of a recording holds, declared once, and checked before anything of it is used.

Its digest is compared first (`recording.py`): this check is for manifests that have none yet, that were made by hand,
or that were closed over. Names that are not declared here are allowed: a later version may say more.
"""

from collections.abc import Iterator
from typing import Any

from workbench.files.shapes import Either, Flag, Keys, Maybe, Named, Number, Rows, Shape, Text, Whole, of_dataclass
from workbench.models.topology import Router, Topology
from workbench.recordings.fields import FIELDS
from workbench.recordings.schema import PHASES, lacks_of

MOST_LAYERS = 10_000
MOST_ROUTERS = 20_000
MOST_EXPERTS = 65_536  # ids are stored in 16 bits
MOST_HEADS = 16_384
MOST_ROWS = 2**40

_COUNT = Whole(0, MOST_ROWS)
_DIGEST = Text(least=1)
_FILE = Keys({"rows": _COUNT, "bytes": Whole(), "sha256": _DIGEST})
_ROUTER = of_dataclass(
    Router,
    layer=Whole(0, MOST_LAYERS - 1),
    site=Text(least=1),
    n_experts=Whole(1, MOST_EXPERTS),
    top_k=Whole(1, MOST_EXPERTS),
    shared_width=Whole(),
    expert_width=Whole(),
    n_groups=Whole(1, MOST_EXPERTS),
    groups_chosen=Whole(1, MOST_EXPERTS),
    n_zero=Whole(0, MOST_EXPERTS),
    scale=Number(),
    logits_index=Maybe(Whole(-64, 64)),
)
_OF_TOPOLOGY: dict[str, Shape] = {
    "n_layers": Whole(1, MOST_LAYERS),
    "routers": Rows(_ROUTER, most=MOST_ROUTERS),
    "attention_layers": Maybe(Rows(Whole(0, MOST_LAYERS - 1), most=MOST_LAYERS)),
    **dict.fromkeys(
        ("width", "n_heads", "n_kv_groups", "head_width", "parameters_total", "parameters_active", "parameters_unused"),
        Whole(),
    ),
    "vocabulary": Whole(0, 2**31),
    "context": Maybe(Whole()),
}
TOPOLOGY = of_dataclass(Topology, **_OF_TOPOLOGY)
_HEADS_OF_LAYER = Keys(
    {
        "layer": Whole(0, MOST_LAYERS - 1),
        "heads": Whole(1, MOST_HEADS),
        "groups": Whole(1, MOST_HEADS),
        "width": Whole(1),
    }
)
_ATTENTION = Keys(
    {
        "layers": Rows(_HEADS_OF_LAYER, most=MOST_LAYERS),
        "not_covered": Rows(Keys({"layer": Whole(0, MOST_LAYERS - 1), "reason": Text()}), most=MOST_LAYERS),
        "probe": Keys({
            **dict.fromkeys(("n_tokens", "copies", "sequences", "first"), Whole()),
            "scores": Named(Named(Rows(Number(or_nan=True), most=MOST_HEADS))),
        }),
    }
)  # fmt: skip
_SOURCE = Keys(
    {"format": Text(least=1), "name": Text(), "unit": Text(least=1), "lacks": Rows(Text(least=1), most=1000)},
    {
        "files": Rows(Keys({"name": Text(least=1), "bytes": Whole(), "sha256": _DIGEST})),
        "padding": Keys({**dict.fromkeys(("marks", "tokens", "tokens_in_part"), Whole()), "first_in_part": Text()}),
        "documents_empty": Whole(),
    },
)
_MODEL = Keys(
    {"name": Text(least=1), "revision": Maybe(Text()), "weights": Text()},
    dict.fromkeys(("dtype", "device", "config_digest", "weights_digest"), Text(least=1))
    | dict.fromkeys(("attention_implementation", "experts_implementation"), Maybe(Text())),
)
_CORPUS = Keys(
    {
        "name": Text(), "digest": _DIGEST, "domains": Rows(Text()),
        **dict.fromkeys(("documents", "documents_left_out", "documents_cut", "tokens_cut"), Whole()),
    }
)  # fmt: skip
_SETTINGS = Keys(
    {},
    {
        "batch_tokens": Whole(1), "shard_tokens": Whole(1), "max_tokens": Maybe(Whole()),
        "parent": Keys({"name": Text(least=1)}, {"revision": Maybe(Text()), "weights": Text()}),
        "generation": Named(),
    },
)  # fmt: skip
_IDENTITY = Keys({"model": Text(least=1)}, {"weights_digest": Text(least=1), "fields": Rows(Text())})
_ALWAYS: dict[str, Shape] = {
    "schema": Whole(1),
    "status": Text(of=("open", "closed")),
    "identity": _IDENTITY,
    "model": _MODEL,
    "corpus": _CORPUS,
    "fields": Rows(Text(of=FIELDS), least=1, most=len(FIELDS)),
    "phases": Rows(Text(of=PHASES), most=len(PHASES)),
    "settings": _SETTINGS,
    "topology": TOPOLOGY,
    "check": Either(Named(), Text(least=1)),
    "shards": Whole(0, 10_000_000),
    "created": Text(least=1),
}
_SOMETIMES: dict[str, Shape] = {
    "attention": _ATTENTION,
    "source": _SOURCE,
    "ids_ranked": Flag(),
    "tokenizer": Maybe(Keys({}, {"class": Maybe(Text()), "digest": Maybe(Text())})),
    "halved_batches": Rows(Whole()),
    "padding_share": Number(or_nan=True),
    "environment": Keys({}, {"command": Text()}),
    "versions": Named(),
    "expert_weights": _FILE,
    # Which parts are to be read back, and what was found of those that were (`capture/proof/written_rows.py`).
    "written_rows": Either(Keys({}, {"sampled": Rows(Whole()), "of_parts": Named(Named())}), Text(least=1)),
}
_OF_CLOSED: dict[str, Shape] = {
    "digest": _DIGEST,
    "finished": Text(least=1),
    "vocabulary": _FILE,
    "parts": Rows(Keys({"index": Whole(), "tokens": _FILE, "documents": _FILE})),
}
OPEN = Keys(_ALWAYS, _SOMETIMES)
CLOSED = Keys({**_ALWAYS, **_OF_CLOSED}, _SOMETIMES)


def fault_of(manifest: dict[str, Any]) -> str | None:
    """What is wrong with a manifest, the first of it and where; None where it is one of a recording."""
    shape = CLOSED if manifest.get("status") == "closed" else OPEN
    return next(shape.faults(manifest, ""), None) or next(_contradictions(manifest), None)


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Where two values of the right kind cannot both be true."""
    fields = manifest["fields"]
    for what in ("fields", "phases"):
        if len(set(manifest[what])) < len(manifest[what]):
            yield f"{what} names one of them twice"
    if not manifest["phases"] and "phase" not in lacks_of(manifest):
        yield "phases is empty, and the source does not lack them"
    yield from topology_contradictions(manifest["topology"])
    for field, key in (("attention", "attention"), ("weights", "expert_weights")):
        if field in fields and key not in manifest and (key == "attention" or manifest["status"] == "closed"):
            yield f"{key} is missing, and the field {field} was recorded"
    if "attention-tokens" in fields and "attention" not in manifest:
        yield "attention is missing, and the field attention-tokens was recorded"
    if "attention" in manifest:
        yield from _attention_contradictions(manifest["attention"], manifest["topology"]["n_layers"])
    if manifest["status"] == "closed":
        yield from _part_contradictions(manifest)


def topology_contradictions(topology: dict[str, Any]) -> Iterator[str]:
    """Where a topology contradicts itself."""
    n_layers = topology["n_layers"]
    seen = set()
    for number, router in enumerate(topology["routers"]):
        at = f"topology.routers[{number}]"
        if router["layer"] >= n_layers:
            yield f"{at}.layer is {router['layer']}; there are {n_layers} layers"
        if router["top_k"] > router["n_experts"]:
            yield f"{at}.top_k is {router['top_k']}; it has {router['n_experts']} experts"
        if (key := (router["layer"], router["site"])) in seen:
            yield f"{at} is a second router at {router['site']} of layer {router['layer']}"
        seen.add(key)
    if any(layer >= n_layers for layer in topology.get("attention_layers") or ()):
        yield f"topology.attention_layers names a layer over {n_layers - 1}"


def _attention_contradictions(attention: dict[str, Any], n_layers: int) -> Iterator[str]:
    heads_of = {each["layer"]: each["heads"] for each in attention["layers"]}
    if len(heads_of) < len(attention["layers"]):
        yield "attention.layers names a layer twice"
    if any(layer >= n_layers for layer in heads_of):
        yield f"attention.layers names a layer over {n_layers - 1}"
    scores = attention["probe"]["scores"]
    if scores.keys() != {str(layer) for layer in heads_of}:
        yield "attention.probe.scores is not of the layers of attention.layers"
        return
    for layer, heads in heads_of.items():
        if any(len(values) != heads for values in scores[str(layer)].values()):
            yield f"attention.probe.scores.{layer} is not of {heads} heads"


def _part_contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    parts = manifest["parts"]
    if [part["index"] for part in parts] != list(range(len(parts))):
        yield "parts does not count from 0"
    if len(parts) != manifest["shards"]:
        yield f"parts has {len(parts)} entries; shards is {manifest['shards']}"
    if not parts:
        yield "parts is empty; at least 1 was expected"
    for part in parts:
        if part["documents"]["rows"] == 0:
            yield f"parts[{part['index']}].documents.rows is 0; a part is of whole documents"
            return
