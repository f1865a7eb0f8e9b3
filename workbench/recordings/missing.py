"""Why a recording does not have something, in one sentence: it was not asked for, or an imported trace never had it.

A word list, not a check: `recording.py` knows which columns there are.
"""

from pathlib import Path
from typing import Any

_RECORD = "Record the model itself to have them: `workbench record MODEL --corpus FILE --out DIR`."
_SCORES = ("router scores, only what they chose", _RECORD)
_WEIGHTS = ("routing weights", _RECORD)
_COUNTS = (
    "experts of single tokens, only counts",
    "Dump the trace again in a mode that keeps tokens (SGLang: per_token), or record the model itself.",
)
_POSITIONS = (
    "word on which tokens stand next to one another in their texts",
    "Import it again with the requests and positions of its rows, or give each sequence a document of its own.",
)
_TOKEN_IDS = ("token ids, so no text", "Import it again with --documents FILE, whose rows hold `token_ids`.")
# What the source of an imported recording lacks, and what to do about it, by column or field.
_LACKED = {
    "ids": _COUNTS,
    "position": _POSITIONS,
    "weights": _WEIGHTS,
    "weight_sum": _WEIGHTS,
    "entropy": _SCORES,
    "margin": _SCORES,
    "topk_mass": _SCORES,
    "logsumexp": _SCORES,
    "score_sum": _SCORES,
    "logits": ("router logits", _RECORD),
    "shared_gate": ("gate of the shared expert", _RECORD),
    "token": _TOKEN_IDS,
    "text_digest": _TOKEN_IDS,
    "phase": (
        "word on which tokens are prefill and which decode",
        "Import it again with --phase, or with --documents FILE, whose rows hold `prompt_tokens`.",
    ),
    **dict.fromkeys(("attention", "attention-tokens", "attention-weights"), ("statistics of attention heads", _RECORD)),
    "logprob": ("log-probabilities", _RECORD),
    "predicted": ("predictions beside log-probabilities", _RECORD),
    "loss": ("log-probabilities", _RECORD),
    "contribution": ("norms of what the experts put out", _RECORD),
    "field experts": ("norms of what the experts put out", _RECORD),
    "field weights": ("parameters of the experts", _RECORD),
    "tokens_cut": ("word on what was cut", "Ask those who made it."),
}


def absent_sentence(path: Path, manifest: dict[str, Any], column: str, *, table: str) -> str:
    """Says that a column or field is not there, why, and what to do.

    Args:
        path: Folder of the recording.
        manifest: Its manifest.
        column: A column's full name, a router's column without its prefix, or a field.
        table: Where it was looked for; `fields` for a field.
    """
    source, kind = manifest.get("source"), column.rpartition(".")[2]
    kind = f"field {kind}" if table == "fields" and f"field {kind}" in _LACKED else kind
    if source is not None and kind in _LACKED:
        counts_alone = kind == "position" and "ids" in source.get("lacks", ())
        what, to_do = _COUNTS if counts_alone else _LACKED[kind]
        of = f"{source['format']} ({source['name']})" if source["name"] else source["format"]
        return f"{path} was imported from {of}, which has no {what}. {to_do}"
    return (
        f"{path} has no {table} column {column!r}; it was recorded with fields {','.join(manifest['fields'])}. "
        "Record again with the field that has it (`workbench record --fields …`)."
    )
