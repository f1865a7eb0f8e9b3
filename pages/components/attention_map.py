"""The map of one attention head on one recorded text: asked of the model's process, and shown."""

from functools import partial
from pathlib import Path

import streamlit as st

from analyses import head_map
from analyses.question import Answer
from workbench.recordings.recording import Recording

from . import choices, jobs, results

_LONGEST = 2048


def show(recording: Recording, *, layer: int, head: int) -> None:
    """Asks for the map of the chosen document's beginning, and shows it when it is there."""
    model = recording.manifest["identity"]["model"]
    of_document, of_length = st.columns(2)
    document, n_tokens = choices.choose_text(recording, place=of_document)
    longest = max(1, min(n_tokens, _LONGEST))
    tokens = choices.choose_number(
        "Tokens from the beginning", "tokens", least=1, most=longest, default=min(64, longest), place=of_length
    )
    text = head_map.text_of(recording, document, n_tokens=tokens)
    what = (model, document, tokens, layer, head)
    if st.session_state.get("mapped") != what:
        st.session_state["mapped"] = what
        ask = partial(jobs.host().attention, model=model, token_ids=text.token_ids, layer=layer, head=head)
        jobs.submit("attention", ask)
    made = jobs.answer("attention")
    if made is None:
        return
    if made["weights_digest"] != recording.manifest["identity"]["weights_digest"]:
        st.warning(f"{jobs.plain(model)} has other weights now than when it was recorded; this map is of those.")
    table = head_map.cells_of(Path(made["file"]), text.texts)
    figure = head_map.figure(table, layer=layer, head=head, model=model, text=text)
    asked = head_map.HeadMap(recording, document, layer, head, tokens, weights=made["weights_digest"])
    results.show(Answer(asked, None, {"weights": table}, {"map": figure}), "map")
