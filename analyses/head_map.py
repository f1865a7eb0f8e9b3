"""A map of one head on one text: table and figure of its weights, cut to cells where the text is long."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.question import sources_of
from workbench.errors import AnalysisError
from workbench.export.files import Provenance
from workbench.figures.spec import Figure, HeatMap
from workbench.figures.theme import Width
from workbench.recordings.recording import Recording

MOST_CELLS = 128  # along each side of the figure


@dataclass(frozen=True, eq=False)
class MappedText:
    """The tokens of a recorded document, and what they read as.

    Attributes:
        document: Its id.
        token_ids: Of its first tokens.
        texts: Printable, one a token.
    """

    document: str
    token_ids: list[int]
    texts: list[str]


@dataclass(frozen=True, eq=False)
class HeadMap:
    """What is asked for a map, as `Question` is for an analysis: the weights themselves come from the model.

    Attributes:
        of: The recording.
        document: Id of a recorded document.
        layer: Attention layer.
        head: Head.
        tokens: Of the document's beginning.
        weights: Digest of the model's weights, where they may be others than when it was recorded.
    """

    of: Recording
    document: str
    layer: int
    head: int
    tokens: int
    weights: str = ""
    analysis: str = "attention-map"

    @property
    def key(self) -> str:
        """All that the map depends on."""
        return f"{self.of.digest} {self.weights} {self.document} {self.layer} {self.head} {self.tokens}"

    @property
    def command(self) -> str:
        """The command that draws it again."""
        words = ["workbench", "attention-map", str(self.of.path), "--document", self.document]
        words += ["--layer", str(self.layer), "--head", str(self.head), "--tokens", str(self.tokens)]
        return shlex.join([*words, "--out", "out"])

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""
        asked = {"document": self.document, "layer": self.layer, "head": self.head, "tokens": self.tokens}
        return Provenance(analysis=self.analysis, command=self.command, sources=sources_of([self.of]), settings=asked)

    def narrowed(self, *, only: Sequence[str] = (), label: str = "", width: Width = "column") -> "HeadMap":
        """The same: a map is written whole."""
        return self

    @property
    def settings(self) -> tuple[str, ...]:
        """None of an analysis."""
        return ()


def text_of(recording: Recording, document: str, *, n_tokens: int) -> MappedText:
    """The first tokens of a document.

    Raises:
        AnalysisError: there is no such document, or its tokens are not known.
    """
    documents = recording.documents()
    found = documents.loc[documents["id"] == document, "document"]
    if found.empty:
        raise AnalysisError(f"{recording.path} has no document {document!r}; it has {len(documents)}.")
    read = recording.of_document(int(found.iloc[0]), ["position", "token"])
    order = np.argsort(read["position"])[: max(n_tokens, 0)]
    token_ids = read["token"][order].tolist()
    text_by_id = dict(zip(recording.vocabulary["token"], recording.vocabulary["text"], strict=True))
    return MappedText(document, token_ids, [text_by_id.get(token, "") for token in token_ids])


def refuse_unknown(recording: Recording, text: MappedText, *, layer: int, head: int, most: int) -> None:
    """Refuses by the recording what its model would refuse once it is in memory.

    Args:
        recording: Of the model.
        text: What is to be mapped.
        layer: Attention layer.
        head: Head.
        most: Tokens that a map has at most.

    Raises:
        AnalysisError: no such layer or head, no token, or too many.
    """
    topology = recording.topology
    attends = topology.attention_layers
    layers = range(topology.n_layers) if attends is None else attends
    if layer not in layers:
        raise AnalysisError(f"layer is {layer}; {recording.path} has attention in {', '.join(map(str, layers))}.")
    mixers = topology.parts.mixers if topology.parts else ()
    heads = max((m.n_heads for m in mixers if f".{layer}." in m.path), default=0) or topology.n_heads
    if not 0 <= head < heads:
        raise AnalysisError(f"head is {head}; layer {layer} of {recording.path} has heads 0 to {heads - 1}.")
    if not 1 <= len(text.token_ids) <= most:
        raise AnalysisError(f"a map of {len(text.token_ids):,} tokens was asked; --tokens 1 to {most:,} are drawn.")


def cells_of(file: Path, texts: list[str]) -> pd.DataFrame:
    """`cells` of the weights that the model's process left in a file."""
    return cells(np.load(file).astype(np.float32), texts)


def cells(weights_ST: np.ndarray, texts: list[str]) -> pd.DataFrame:
    """The weights as a table, one row per cell on or under the diagonal.

    Of a long text neighbouring queries and keys share a cell: its value is the mean over its queries of the weight that
    they give its keys together, so that a row still sums to 1.
    """
    n = len(weights_ST)
    step = -(-n // MOST_CELLS)
    begins = np.arange(0, n, step)
    of_keys_Sc = np.add.reduceat(weights_ST.astype(np.float64), begins, axis=1)
    sizes = np.diff([*begins, n])
    value_cc = np.add.reduceat(of_keys_Sc, begins, axis=0) / sizes[:, None]
    row, column = np.tril_indices(len(begins))
    shown = ["".join(texts[begin : begin + step])[:40] for begin in begins]
    return pd.DataFrame(
        {
            "query": begins[row],
            "key": begins[column],
            "weight": value_cc[row, column],
            "query_text": [shown[r] for r in row],
            "key_text": [shown[c] for c in column],
        }
    )


def figure(table: pd.DataFrame, *, layer: int, head: int, model: str, text: MappedText) -> Figure:
    """The map."""
    step = -(-len(text.token_ids) // MOST_CELLS)
    shared = f" Cells are of {step} tokens: mean over queries of the weight on all keys." if step > 1 else ""
    later = table[table["key"] > 0]
    strong = (later if len(later) else table).nlargest(1, "weight").iloc[0]
    return HeatMap(
        table,
        "key",
        "query",
        "weight",
        title=f"Layer {layer}, head {head}",
        x_label="key (position)",
        y_label="query (position)",
        value_label="attention weight",
        square=True,
        hover=("query_text", "key_text"),
        caption=f"Attention weights of layer {layer}, head {head} of {model} on the first {len(text.token_ids):,} "
        f"tokens of {text.document}.{shared}",
        alt=f"The strongest beside the first key is from position {strong['query']} to {strong['key']}: "
        f"{strong['weight']:.2f}.",
    )
