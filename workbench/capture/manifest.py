"""What a recording says of itself before the first token: model, corpus, settings, versions, and its identity."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from workbench.capture.batching import Plan
from workbench.models.loading import Model, config_digest, weights_digest
from workbench.models.rope_lengths import NO_BORDERS, Borders
from workbench.recordings.corpus import Corpus
from workbench.recordings.manifest import command_text, json_digest
from workbench.recordings.schema import SCHEMA
from workbench.version import workbench_version


def manifest_of(
    model: Model,
    corpus: Corpus,
    plan: Plan,
    *,
    fields: tuple[str, ...],
    settings: dict[str, Any],
    borders: Borders = NO_BORDERS,
    n_marked: int = 0,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest as it stands before the proof; `identity` decides whether a folder holds the same recording.

    Args:
        model: The model.
        corpus: The corpus.
        plan: Its batches.
        fields: Recorded fields.
        settings: What else was asked for.
        borders: Lengths that never share a batch.
        n_marked: Texts with marks of their own, to which the tokenizer's were not added.
        command: What makes the recording again.
    """
    config = model.module.config
    described = {
        "name": model.name,
        "revision": model.revision,
        "weights": model.weights,
        "config_digest": config_digest(model.module),
        "weights_digest": weights_digest(model.module),
        "dtype": model.dtype,
        "device": model.device.type,
        "attention_implementation": config._attn_implementation,
        "experts_implementation": getattr(config, "_experts_implementation", None),
        "output_attentions": bool(getattr(config, "output_attentions", False)),
        **_source(model),
    }
    tokenizer = _tokenizer_digest(model)
    same = ("config_digest", "weights_digest", "dtype", "device", "attention_implementation", "experts_implementation")
    return {
        "schema": SCHEMA,
        "identity": {
            **{key: described[key] for key in same},
            "model": f"{model.name}@{model.revision}" if model.revision else model.name,
            "tokenizer_digest": tokenizer,
            "corpus_digest": corpus.digest,
            "fields": list(fields),
            **settings,
            # Other batches and other ids are another recording; those without either are as they always were.
            **({"length_borders": borders.to_json()} if borders else {}),
            **({"marks_not_doubled": n_marked} if n_marked else {}),
        },
        "model": described,
        "tokenizer": {
            "class": type(model.tokenizer).__name__ if model.tokenizer else None,
            "digest": tokenizer,
            "marks_not_doubled": n_marked,
        },
        "corpus": {
            "name": corpus.name,
            "digest": corpus.digest,
            "documents": len(corpus.documents),
            "domains": list(corpus.domains),
            "documents_left_out": plan.n_documents_left_out,
            "documents_cut": plan.n_cut_documents,
            "tokens_cut": sum(row.n_cut for batch in plan.batches for row in batch.rows),
        },
        "fields": list(fields),
        "phases": ["prefill", "decode"] if "generation" in settings else ["prefill"],
        "settings": settings,
        "length_borders": borders.to_json() if borders else None,
        "padding_share": round(plan.padding_share, 4),
        "halved_batches": [],
        "topology": model.topology.to_json(),
        # Nothing is drawn where the text is given, or the most probable token is taken.
        "seed": settings.get("generation", {}).get("seed")
        if settings.get("generation", {}).get("temperature")
        else None,
        "versions": {
            "workbench": workbench_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "nnsight", "numpy", "pyarrow")},
        },
        "environment": {
            "command": command_text(command),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _source(model: Model) -> dict[str, Any]:
    """What the weights were read from: the accounting of the checkpoint, its quantization, an adapter beside it."""
    facts = model.checkpoint
    if facts is None:
        return {"checkpoint": None, "quantization": None, "adapter": None}
    return {
        "checkpoint": facts.to_json(),
        "quantization": facts.quantized.to_json() if facts.quantized is not None else None,
        "adapter": {"file": facts.adapter, "applied": False} if facts.adapter is not None else None,
    }


def _tokenizer_digest(model: Model) -> str | None:
    """SHA-256 of what the tokenizer does; None without one."""
    if model.tokenizer is None:
        return None
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    return json_digest(model.tokenizer.get_vocab())
