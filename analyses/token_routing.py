"""Where does every token of one document go, at one layer and across layers?

Not shown: other documents: one document is an example and not a finding. A token's text is what the tokenizer's piece
stands for; pieces that are part of a character are shown as escapes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._batch import main
from analyses._inputs import require
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, TokenStrip
from workbench.metrics.router import normalized_entropy
from workbench.recording import Recording

NEEDS = ("routing",)


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
            (over ln E), `margin`.
        layers: One row per token and MoE layer: `top1`, `entropy`.
        document: Its id and domain in words.
        layer: The layer of `tokens`.
        first: First token shown.
        last: End of the tokens shown.
    """

    tokens: pd.DataFrame
    layers: pd.DataFrame
    document: str
    layer: int
    first: int
    last: int


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Reads one document's routing.

    Raises:
        AnalysisError: the recording holds no routing, or has no such document, layer or range of tokens.
    """
    require(recording, NEEDS, "token_routing")
    documents = recording.documents()
    document = _document(documents, settings.document, recording)
    layer = settings.layer if settings.layer is not None else recording.moe_layers[len(recording.moe_layers) // 2]
    if layer not in recording.moe_layers:
        raise AnalysisError(
            f"token_routing: layer {layer} has no router; set layer to one of {list(recording.moe_layers)}."
        )
    rows = np.flatnonzero(recording.column("document") == document["document"])
    if not 0 <= settings.first < min(settings.last, len(rows)):
        raise AnalysisError(
            f"token_routing: first is {settings.first} and last {settings.last}; the document has {len(rows)} tokens, "
            "0 ≤ first < last was wanted, with first inside the document."
        )
    text_of = recording.vocabulary.set_index("token")["text"]
    frame = recording.tokens().iloc[rows].reset_index(drop=True)
    tokens = pd.DataFrame({"position": frame["position"], "text": frame["token"].map(text_of)})
    if "logprob" in frame:
        tokens["loss"] = -frame["logprob"]
        tokens["predicted"] = frame["predicted"].map(text_of)
    router = recording.router(layer)
    ids_TK, weights_TK = recording.ids(layer)[rows], recording.weights(layer)[rows].astype(np.float64)
    tokens["top1"] = _top1(ids_TK, weights_TK)
    tokens["chosen"] = [
        ", ".join(f"{e} ({w:.3f})" for e, w in zip(ids, weights, strict=True))
        for ids, weights in zip(ids_TK, weights_TK, strict=True)
    ]
    tokens["entropy"] = _entropy(recording, layer, router.n_experts)[rows]
    tokens["margin"] = recording.router_statistic("margin", layer)[rows].astype(np.float64)
    layers = [
        pd.DataFrame(
            {
                "layer": at,
                "position": tokens["position"],
                "text": tokens["text"],
                "top1": _top1(recording.ids(at)[rows], recording.weights(at)[rows].astype(np.float64)),
                "entropy": _entropy(recording, at, recording.router(at).n_experts)[rows],
            }
        )
        for at in recording.moe_layers
    ]
    return Result(
        tokens=tokens,
        layers=pd.concat(layers, ignore_index=True),
        document=f"{document['id']} ({document['domain']})",
        layer=layer,
        first=settings.first,
        last=min(settings.last, len(rows)),
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


def _top1(ids_TK: np.ndarray, weights_TK: np.ndarray) -> np.ndarray:
    """The chosen expert with the largest weight; of equal ones the lowest id."""
    best_TK = weights_TK == weights_TK.max(axis=1, keepdims=True)
    return np.where(best_TK, ids_TK.astype(np.int64), np.iinfo(np.int64).max).min(axis=1)


def _entropy(recording: Recording, layer: int, n_experts: int) -> np.ndarray:
    return normalized_entropy(recording.router_statistic("entropy", layer).astype(np.float64), n_experts=n_experts)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`tokens` of the layer, `layers` of all."""
    return {"tokens": result.tokens, "layers": result.layers}


def figures(result: Result) -> dict[str, Figure]:
    """`strip_expert`, `strip_entropy`, `strip_loss` where it was recorded, and the `layer_token_map`."""
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
            value_label="expert with the largest weight",
            title=f"First expert of each token, {at}",
            hover=hover,
            caption=f"Chosen expert with the largest routing weight at {at}; {part}.",
            alt=f"{shown['top1'].nunique()} experts lead among {len(shown)} tokens.",
        ),
        "strip_entropy": TokenStrip(
            shown,
            "text",
            value="entropy",
            value_label="router entropy / ln E",
            title=f"Router entropy of each token, {at}",
            hover=hover,
            caption=f"Entropy of the router's scores over that of equal scores, at {at}; {part}.",
            alt=f"Entropy from {shown['entropy'].min():.2f} to {shown['entropy'].max():.2f} of equal scores'.",
        ),
        "layer_token_map": HeatMap(
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
        ),
    }
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


if __name__ == "__main__":
    main()
