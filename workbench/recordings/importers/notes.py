"""What an import took for granted, masked or suspects, in lines of text, from the manifest of its recording."""

from collections.abc import Iterator
from typing import Any


def import_notes(manifest: dict[str, Any]) -> Iterator[str]:
    """The lines, those that there is reason for."""
    source = manifest["source"]
    padding, zero = source["padding"], source["zero_rows"]
    if source["documents"] is not None:
        yield f"rows of {source['documents']['name']} joined to the documents by {source['documents']['joined_by']}"
    if source["positions"]["from"] == "the order of the rows":
        yield "positions are taken from the order of the rows: the trace states none"
    if source["positions"]["because"]:
        yield (
            "which tokens stand next to one another is not known, so there are no positions: "
            f"{source['positions']['because']}, so rows of several sequences stand in one document. Give each sequence "
            "a document of its own."
        )
    if padding["tokens"]:
        yield f"padding masked: {padding['tokens']:,} tokens ({padding['marks']:,} marks)"
    if padding["tokens_in_part"]:
        yield f"of them padding in part: {padding['tokens_in_part']:,}; first: {padding['first_in_part']}"
    if zero["masked"]:
        yield f"masked: {zero['masked']:,} of {zero['of_tokens']:,} tokens, whose ids are 0 in every layer"
    elif zero["tokens"]:
        yield _suspicion(zero, manifest["topology"]["routers"])


def _suspicion(zero: dict[str, Any], routers: list[dict[str, Any]]) -> str:
    at_balance = 1.0
    for router in routers:
        at_balance *= router["top_k"] / router["n_experts"]
    return (
        f"suspect: {zero['tokens']:,} of {zero['of_tokens']:,} tokens ({zero['tokens'] / zero['of_tokens']:.1%}; "
        f"{at_balance:.2g} of them at balance) have expert 0 in every layer, as a server writes for tokens that it did "
        f"not route; first: {zero['first']}. --mask-zero-rows leaves them out."
    )
