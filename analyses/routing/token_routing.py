"""Where does every token of one document go, at one layer and across layers?

Not shown: other documents: one document is an example and not a finding. A token's text is what the tokenizer's piece
stands for; pieces that are part of a character are shown as escapes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import require
from analyses.read.order import first_choice
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, TokenStrip
from workbench.metrics import router
from workbench.metrics.router import normalized_entropy, token_entropy, token_entropy_from_logits, topk_mass
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (router.margin, normalized_entropy, token_entropy, token_entropy_from_logits, topk_mass)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        document: Id of the document; the first of the corpus unless given.
        layer: Decoder layer to colour by; the middle one of the MoE layers unless given.
        first: First token shown in the figures.
        last: Tokens shown in the figures end before this one; the table has all.
    """

    document: str = ""
    layer: int | None = None
    first: int = 0
    last: int = 160


@dataclass(frozen=True, eq=False)
class Result:
    """One document's routing.

    Attributes:
        tokens: One row per token: `position`, `text`, `loss` (nats; of this token given its prefix), `predicted`
            (text of the most probable next token), and of the layer `top1`, `chosen` (ids with weights), `entropy`
            (over ln E), `margin`. What the source of an imported recording did not have has no column; without weights
            `top1` is the first of ranked ids.
        layers: One row per token and MoE layer: `top1`, `entropy`.
        document: Its id and domain in words.
        layer: The layer of `tokens`.
        first_by: What `top1` is first by, in words.
        first: First token shown.
        last: End of the tokens shown.
    """

    tokens: pd.DataFrame
    layers: pd.DataFrame
    document: str
    layer: int
    first_by: str
    first: int
    last: int


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Reads one document's routing.

    Raises:
        AnalysisError: the recording holds no routing, no tokens, or neither weights nor ranked ids; or it has no such
            document, layer or range of tokens.
    """
    require(recording, NEEDS, "token_routing", columns=("ids", "token", "position"))
    if not (recording.has("weights") or recording.ids_ranked):
        raise AnalysisError(f"token_routing: its ids are not ranked, and {recording.absent('weights')}")
    documents = recording.documents()
    document = _document(documents, settings.document, recording)
    layer = settings.layer if settings.layer is not None else recording.moe_layers[len(recording.moe_layers) // 2]
    if layer not in recording.moe_layers:
        raise AnalysisError(
            f"token_routing: layer {layer} has no router; set layer to one of {list(recording.moe_layers)}."
        )
    n_tokens = int(document["tokens"])
    if not 0 <= settings.first < min(settings.last, n_tokens):
        raise AnalysisError(
            f"token_routing: first is {settings.first} and last {settings.last}; the document has {n_tokens} tokens, "
            "0 ≤ first < last was expected, with first inside the document."
        )
    read = _read(recording, int(document["document"]), recording.router(layer))
    text_of = recording.vocabulary.set_index("token")["text"]
    tokens = pd.DataFrame({"position": read["position"], "text": text_of.loc[read["token"]].to_numpy()})
    if "logprob" in read:
        tokens["loss"] = -read["logprob"]
        tokens["predicted"] = text_of.loc[read["predicted"]].to_numpy()
    at = prefix(recording.router(layer), recording.topology)
    tokens["top1"] = _top1(read, at, recording)
    tokens["chosen"] = _chosen(read, at)
    tokens = tokens.assign(**_entropy(read, at, recording.router(layer).n_experts))
    if f"{at}.margin" in read:
        tokens["margin"] = read[f"{at}.margin"].astype(np.float64)
    layers = [
        pd.DataFrame(
            {
                "layer": router.layer,
                "position": tokens["position"],
                "text": tokens["text"],
                "top1": _top1(read, at, recording),
                **_entropy(read, at, router.n_experts),
            }
        )
        for at, router in _routers(recording)
    ]
    return Result(
        tokens=tokens,
        layers=pd.concat(layers, ignore_index=True),
        document=f"{document['id']} ({document['domain']})",
        layer=layer,
        first_by="first place among the ranked ids" if recording.ids_ranked else "largest routing weight",
        first=settings.first,
        last=min(settings.last, n_tokens),
    )


def _document(documents: pd.DataFrame, wanted: str, recording: Recording) -> pd.Series:
    found = documents[documents["id"] == wanted] if wanted else documents.nsmallest(1, "document")
    if found.empty:
        some = ", ".join(documents.sort_values("document")["id"].head(5))
        raise AnalysisError(
            f"token_routing: {recording.path} has no document {wanted!r}; set document to one of its "
            f"{len(documents)} ids, such as {some}."
        )
    return found.iloc[0]


def _top1(read: dict[str, np.ndarray], at: str, recording: Recording) -> np.ndarray:
    weights_TK = None if recording.ids_ranked else read.get(f"{at}.weights")
    return first_choice(read[f"{at}.ids"], weights_TK).astype(np.int64)


def _chosen(read: dict[str, np.ndarray], at: str) -> list[str]:
    """Each token's experts, with their weights where they were recorded."""
    ids_TK = read[f"{at}.ids"]
    if f"{at}.weights" not in read:
        return [", ".join(map(str, ids)) for ids in ids_TK]
    return [
        ", ".join(f"{e} ({w:.3f})" for e, w in zip(ids, weights, strict=True))
        for ids, weights in zip(ids_TK, read[f"{at}.weights"].astype(np.float64), strict=True)
    ]


def _entropy(read: dict[str, np.ndarray], at: str, n_experts: int) -> dict[str, np.ndarray]:
    """The column `entropy`, where it was recorded and there is something to decide."""
    if f"{at}.entropy" not in read or n_experts == 1:
        return {}
    return {"entropy": normalized_entropy(read[f"{at}.entropy"].astype(np.float64), n_experts=n_experts)}


def _routers(recording: Recording) -> list[tuple[str, Router]]:
    """The first router of each MoE layer, after its column prefix."""
    first = {router.layer: router for router in reversed(recording.topology.routers)}
    return [(prefix(first[layer], recording.topology), first[layer]) for layer in recording.moe_layers]


def _read(recording: Recording, document: int, asked: Router) -> dict[str, np.ndarray]:
    """The columns of one document, all at once: opening a part is most of the cost."""
    of_router = [name for name in ("ids", "weights", "entropy") if recording.has(name)]
    names = [f"{at}.{name}" for at, _ in _routers(recording) for name in of_router]
    own = ("logprob", "predicted") if "logprob" in recording.fields else ()
    has_margin = recording.has("margin") and asked.has_margin
    margin = [f"{prefix(asked, recording.topology)}.margin"] if has_margin else []
    read = recording.of_document(document, ["position", "token", *own, *names, *margin])
    order_T = np.argsort(read["position"], kind="stable")
    return {name: values[order_T] for name, values in read.items()}


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`tokens` of the layer, `layers` of all."""
    return {"tokens": result.tokens, "layers": result.layers}


def figures(result: Result) -> dict[str, Figure]:
    """`strip_expert`; where they were recorded `strip_entropy`, the `layer_token_map` of entropy, and `strip_loss`."""
    shown = result.tokens.iloc[result.first : result.last]
    mapped = result.layers[result.layers["position"].between(result.first, result.last - 1)]
    part = f"tokens {result.first}–{result.last - 1} of {len(result.tokens)}, document {result.document}"
    at = f"layer {result.layer}"
    hover = tuple(name for name in ("position", "chosen", "entropy", "loss", "predicted") if name in shown)
    strips: dict[str, Figure] = {
        "strip_expert": TokenStrip(
            shown.assign(expert=shown["top1"].astype(str)),
            "text",
            category="expert",
            value_label=f"expert with the {result.first_by.replace('routing ', '')}",
            title=f"First expert of each token, {at}",
            hover=hover,
            caption=f"Chosen expert with the {result.first_by} at {at}; {part}.",
            alt=f"{shown['top1'].nunique()} experts lead among {len(shown)} tokens.",
        ),
    }
    if "entropy" in shown:
        strips["strip_entropy"] = TokenStrip(
            shown,
            "text",
            value="entropy",
            value_label="router entropy / ln E",
            title=f"Router entropy of each token, {at}",
            hover=hover,
            caption=f"Entropy of the router's scores over that of equal scores, at {at}; {part}.",
            alt=f"Entropy from {shown['entropy'].min():.2f} to {shown['entropy'].max():.2f} of equal scores'.",
        )
        strips["layer_token_map"] = HeatMap(
            mapped,
            "position",
            "layer",
            "entropy",
            title="Router entropy by layer and token",
            x_label="position in the document",
            y_label="layer",
            value_label="router entropy / ln E",
            hover=("text", "top1"),
            caption=f"Entropy of the router's scores over that of equal scores; {part}.",
            alt="A row for each MoE layer, a column for each token.",
        )
    if "loss" in shown and shown["loss"].notna().any():
        strips["strip_loss"] = TokenStrip(
            shown,
            "text",
            value="loss",
            value_label="loss (nats)",
            title="Loss of each token",
            hover=hover,
            caption=f"Negative log-probability of each token given its prefix, in nats; the first has none. {part}.",
            alt=f"Loss from {shown['loss'].min():.1f} to {shown['loss'].max():.1f} nats.",
        )
    return strips
