"""What a number about specialization stands beside: an untrained router, the model again, a hash of the token id.

Each control is a recording of the same text, and gets the same number: `untrained` says what the training changed,
`again` how far the number moves when nothing changed (other batches, another dtype), `hashed` what a router that sees
the token id alone would show on this text. Not here: what is permuted, which belongs to each question.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.pairing import same_model
from analyses.read.tokens import document_rows
from workbench.errors import AnalysisError, RecordingError
from workbench.metrics.load import document_counts
from workbench.metrics.specialization import hash_router_counts
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.schema import prefix

NAMES = {"untrained": "untrained router", "again": "the model recorded again", "hashed": "hash of the token id"}
"""Columns of controls, and what figures call them."""
NO_HASH = "no token ids were recorded: the hash of the token id is not known"


@dataclass(frozen=True, eq=False)
class Controls:
    """The recordings that were given as controls, by column: `untrained` and `again`; none or some."""

    recordings: Mapping[str, Recording]

    @classmethod
    def of(cls, recording: Recording, settings: Any, analysis: str) -> "Controls":
        """Those that the settings `untrained` and `ceiling` name.

        Raises:
            AnalysisError: there is no such recording, it holds other text or other routers, or the ceiling is no
                recording of the same model.
        """
        found = {}
        for column, name, next_step in (
            ("untrained", "untrained", "record the untrained model (such as tiny-moe@step-0) over the same corpus"),
            ("again", "ceiling", "record the model again over the same corpus, in other batches or another dtype"),
        ):
            path = getattr(settings, name)
            if path:
                found[column] = _beside(recording, path, f"{analysis}: {name}", next_step)
        if "again" in found and not _again(recording, found["again"]):
            raise AnalysisError(
                f"{analysis}: ceiling {settings.ceiling} is of {_model(found['again'])}, and the ceiling is how far "
                f"{_model(recording)} agrees with itself; record {_model(recording)} again, in other batches or "
                "another dtype."
            )
        return cls(found)

    def items(self) -> Iterator[tuple[str, Recording]]:
        """Column and recording."""
        yield from self.recordings.items()

    @property
    def words(self) -> str:
        """What each of them is, for captions."""
        said = {
            "untrained": "Untrained router: {}, before training of its own (of an upcycled model the rest comes "
            "trained).",
            "again": "Recorded again: {}, another recording of it.",
        }
        return " ".join(said[column].format(_model(each)) for column, each in self.items())


def _beside(recording: Recording, path: str, asked: str, next_step: str) -> Recording:
    """A recording of a model of the same shape over the same text."""
    try:
        other = Recording.open(path)
    except RecordingError as error:
        raise AnalysisError(f"{asked}: {error}") from error
    if recording.chosen_phase is not None:
        other = other.of_phase(recording.chosen_phase)
    for what, one, two in (
        ("corpus", recording.manifest["corpus"].get("digest"), other.manifest["corpus"].get("digest")),
        ("number of tokens", recording.n_tokens, other.n_tokens),
        ("set of phases", recording.phases, other.phases),
        ("set of routers", _shapes(recording), _shapes(other)),
    ):
        if one != two:
            raise AnalysisError(f"{asked} is {path}, whose {what} differs from that of {recording.path}; {next_step}.")
    return other


def _again(recording: Recording, other: Recording) -> bool:
    models = [each.manifest["model"] for each in (recording, other)]
    return same_model(recording, other) and models[0].get("revision") == models[1].get("revision")


def _model(recording: Recording) -> str:
    model = recording.manifest["model"]
    return f"{model['name']}@{model['revision']}" if model.get("revision") else str(model["name"])


def _shapes(recording: Recording) -> list[tuple[int, str, int, int]]:
    return [(r.layer, r.site, r.n_experts, r.top_k) for r in recording.topology.routers]


def hashed_sets(n_ids: int, *, n_experts: int, top_k: int, seed: int) -> np.ndarray:
    """The K experts of each token id 0 … n − 1, from a hash of it."""
    id_V = np.arange(n_ids)
    sets_VE = hash_router_counts(id_V, id_V, n_documents=n_ids, n_experts=n_experts, top_k=top_k, seed=seed)
    return np.nonzero(sets_VE)[1].reshape(n_ids, top_k)


def routed_by_token(recording: Recording, router: Router, *, seed: int) -> Recording:
    """The recording as it would be were this router a hash of the token id; `seed` says which hash."""
    n_ids = int(recording.vocabulary["token"].max()) + 1
    sets_VK = hashed_sets(n_ids, n_experts=router.n_experts, top_k=router.top_k, seed=seed)
    n_numbers = len(document_rows(recording))
    counts_NE = np.zeros((n_numbers, router.n_experts), dtype=np.int64)
    for part in recording.parts(["document", "token"]):
        counts_NE += document_counts(
            sets_VK[part["token"]], part["document"], n_documents=n_numbers, n_experts=router.n_experts
        )
    at = prefix(router, recording.topology)
    by_token = {f"{at}.ids": ("token", sets_VK.astype(np.int32)), f"{at}.counts": ("document", counts_NE)}
    return recording.selected(looked_up=by_token)
