"""The box to jump with: an expert by its name, or the next token that reads as what was typed."""

import re

import streamlit as st

from analyses.read import search
from workbench.recordings.recording import Recording

from . import choices
from .jobs import plain

_NAME = re.compile(r"\s*L?\s*(\d{1,6})\s*[,;:/ ]?\s*E?\s*(\d{1,6})\s*", re.IGNORECASE)


def box(recording: Recording) -> None:
    """The box in the sidebar; says what was jumped to, or why nothing was."""
    st.sidebar.text_input(
        "Jump to", key="jump", placeholder="L17 E42, or a token", on_change=_jump, args=(recording,),
        help="An expert by layer and number; or a token's text: the next one in the recording, on the page Tokens.",
    )  # fmt: skip
    if asked := st.session_state.pop("not_found", None):
        st.warning(f"“{plain(asked)}” is neither an expert, such as L17 E42, nor a token of this recording.")
    if said := st.session_state.pop("found", None):
        if st.session_state["page"] != "tokens":
            st.session_state["found"] = said
            st.switch_page("tokens.py")
        st.toast(plain(said))


def _jump(recording: Recording) -> None:
    """Chooses what a visitor typed; whether an expert of that name is there is said where it is chosen."""
    asked, st.session_state["jump"] = st.session_state["jump"], ""
    if not asked.strip():
        return
    if expert := _NAME.fullmatch(asked):
        choices.pick(layer=int(expert[1]), expert=int(expert[2]))
        return
    document, token = choices.place()
    found = search.find(recording, asked[:100], document=document, position=token)
    if found is None:
        st.session_state["not_found"] = asked[:60]
        return
    how = "read" if found.exact else "hold"
    st.session_state["found"] = f"{found.place:,} of {found.count:,} tokens that {how} “{asked[:60]}”"
    choices.go_to_token(found.document, found.position)
