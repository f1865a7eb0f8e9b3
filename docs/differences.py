"""Makes the table of docs/differences.md again: our numbers beside those of public code's definitions, on one input.

    python -m docs.differences [RECORDING] [--page docs/differences.md]

Without a recording the bundled model is recorded over the bundled corpus. The other definitions are those of
tests/oracles.py, which the tests hold against the code they describe where it is installed. Axes: T tokens, L layers,
E experts, K chosen per token, V token ids.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analyses.read.chunks import chunks, ranked, routing_columns
from analyses.read.design import router_stacks
from tests import oracles
from workbench.metrics import load, structure, vocabulary
from workbench.metrics.sets import shuffled_within
from workbench.recordings.recording import Recording

BEGIN, END = "<!-- begin: python -m docs.differences -->", "<!-- end -->"
DRAWS = 20


@dataclass(frozen=True, eq=False)
class Routing:
    """The routing of one recording, in the order of the text, ids by falling weight."""

    ids_LTK: np.ndarray
    score_sum_LE: np.ndarray
    token_T: np.ndarray
    document_T: np.ndarray
    position_T: np.ndarray
    layers: list[int]
    n_experts: int

    @classmethod
    def of(cls, recording: Recording) -> "Routing":
        """Reads all of it: for small recordings whose routers have one shape."""
        (stack,) = router_stacks(recording)
        columns = [routing_columns(recording, router) for router in stack.routers]
        (chunk,) = chunks(recording, ["token", *(name for of_one in columns for name in of_one)])
        return cls(
            ids_LTK=np.stack([ranked(chunk, of_one) for of_one in columns]).astype(np.int64),
            score_sum_LE=stack.stacked(recording, "score_sum").sum(axis=0, dtype=np.float64),
            token_T=chunk["token"].astype(np.int64),
            document_T=chunk["document"],
            position_T=chunk["position"],
            layers=[router.layer for router in stack.routers],
            n_experts=stack.n_experts,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    question: str
    theirs: str
    ours: str
    beside: str


def rows(routing: Routing) -> Iterator[Row]:
    """The comparisons, in the order of the page."""
    yield _balance(routing)
    yield from _coactivation(routing)
    yield from _flow(routing)
    yield from _vocabulary(routing)


def _balance(routing: Routing) -> Row:
    n_tokens, top_k = routing.ids_LTK.shape[1:]
    mean_score_LE = routing.score_sum_LE / n_tokens
    counts_LE = np.stack([load.expert_counts(ids_TK, n_experts=routing.n_experts) for ids_TK in routing.ids_LTK])
    theirs = oracles.pooled_balance_loss(routing.ids_LTK, mean_score_LE)
    ours_L = load.balance_loss(counts_LE, mean_score_LE)
    cv_L = load.coefficient_of_variation(counts_LE)
    pooled = float(load.coefficient_of_variation(counts_LE.sum(axis=0)))
    return Row(
        "balance loss",
        f"{theirs:.3f} (over K: {theirs / top_k:.3f})",
        f"{_list(ours_L)}",
        f"CV of the load by layer {_list(cv_L, 2)}; of the layers pooled {pooled:.2f}",
    )


def _coactivation(routing: Routing) -> Iterator[Row]:
    apart_EE = ~np.eye(routing.n_experts, dtype=bool)
    top_k = routing.ids_LTK.shape[2]
    for layer, ids_TK in zip(routing.layers, routing.ids_LTK, strict=True):
        theirs_EE = oracles.adjacent_coactivation(ids_TK, routing.n_experts)
        ours_EE = structure.coactivation(structure.pair_counts(ids_TK, n_experts=routing.n_experts))
        uniform = (top_k - 1) / (routing.n_experts - 1)
        yield Row(
            f"mean P(other expert \\| expert), layer {layer}",
            f"{np.nanmean(theirs_EE[apart_EE]):.4f}; largest {_pair(theirs_EE)}",
            f"{np.nanmean(ours_EE[apart_EE]):.4f}; largest {_pair(ours_EE)}",
            f"uniform routing {uniform:.4f}",
        )


def _pair(of_EE: np.ndarray) -> str:
    expert, other = np.unravel_index(np.nanargmax(np.where(np.eye(len(of_EE), dtype=bool), np.nan, of_EE)), of_EE.shape)
    return f"{of_EE[expert, other]:.3f} ({other} given {expert})"


def _flow(routing: Routing) -> Iterator[Row]:
    top_k = routing.ids_LTK.shape[2]
    for i, layer in enumerate(routing.layers[:-1]):
        one_TK, two_TK = routing.ids_LTK[i], routing.ids_LTK[i + 1]
        theirs_EE = oracles.same_slot_flow(one_TK, two_TK, routing.n_experts)
        ours_EE = structure.flow_counts(one_TK, two_TK, n_experts=routing.n_experts)
        yield Row(
            f"best successor, layer {layer} to {routing.layers[i + 1]}",
            f"{theirs_EE.max(axis=1).sum() / theirs_EE.sum():.3f} (busiest expert of a slot, whatever comes before: "
            f"{theirs_EE.sum(axis=0).max() / theirs_EE.sum():.3f})",
            f"{float(structure.successor_accuracy(ours_EE, top_k=top_k)):.3f}",
            f"busiest expert of the second layer {float(structure.mode_accuracy(ours_EE, top_k=top_k)):.3f}",
        )


def _vocabulary(routing: Routing) -> Iterator[Row]:
    token_T, n_ids = routing.token_T, int(routing.token_T.max()) + 1
    occurrences_V = np.bincount(token_T, minlength=n_ids)
    orders = [shuffled_within(routing.document_T, routing.position_T, seed=0, draw=draw) for draw in range(DRAWS)]
    for layer, ids_TK in zip(routing.layers, routing.ids_LTK, strict=True):
        first_T1 = ids_TK[:, :1]

        def sharpness(first_T1: np.ndarray) -> float:
            counts_VE = vocabulary.label_counts(token_T, first_T1, n_labels=n_ids, n_experts=routing.n_experts)
            return float(vocabulary.vocabulary_specialization(counts_VE, occurrences_V))

        theirs = oracles.type_averaged_specialization(token_T.tolist(), ids_TK.tolist(), top_k=1)
        blind = oracles.type_averaged_specialization(token_T.tolist(), ids_TK[orders[0]].tolist(), top_k=1)
        permuted = float(np.mean([sharpness(first_T1[order_T]) for order_T in orders]))
        yield Row(
            f"vocabulary specialization, first choice, layer {layer}",
            f"{theirs:.3f} (sets permuted in documents: {blind:.3f})",
            f"{sharpness(first_T1):.3f}",
            f"sets permuted in documents {permuted:.3f}",
        )


def _list(values: np.ndarray, digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values.tolist())


def table(recording: Recording) -> str:
    """The table in Markdown, with what it is of."""
    lines = ["| what | theirs | ours | beside it |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.question} | {row.theirs} | {row.ours} | {row.beside} |" for row in rows(Routing.of(recording))]
    of = (
        f"{recording.manifest['identity']['model']}, {recording.n_tokens:,} tokens of {recording.n_documents} documents"
    )
    return "\n".join([*lines, "", f"Of {of}. Several numbers in a cell are of the layers, in order."])


def written(page: str, text: str) -> str:
    """The page with the text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    """Records where there is no recording, and writes the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--page", type=Path, default=Path("docs/differences.md"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording.open(asked.recording) if asked.recording else _recorded(Path(folder))
        text = table(recording)
    asked.page.write_text(written(asked.page.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


def _recorded(folder: Path) -> Recording:
    from workbench.capture.record import record
    from workbench.models.loading import load as load_model

    return record(load_model("tiny-moe", device="cpu"), "demo", folder / "demo")


if __name__ == "__main__":
    main()
