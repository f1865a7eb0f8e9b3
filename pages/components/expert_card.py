"""One expert of one layer: chosen, jumped to by name, pinned beside another, and shown as a card."""

from typing import Any

import streamlit as st

from workbench.recordings.recording import Recording

from . import charts, choices, results, search_box
from .jobs import plain

LEAST = (1, 2, 5, 10, 20, 50, 100)


def choose(recording: Recording) -> tuple[int | None, int | None]:
    """The layer and the expert, chosen in the sidebar or jumped to; None for the busiest expert."""
    search_box.box(recording)
    layer = choices.choose_layer(recording)
    return layer, choices.choose_expert(recording, layer)


def choose_pinned(recording: Recording, layer: int, expert: int) -> tuple[int, int] | None:
    """The expert that is pinned, to be shown beside the chosen one; a button pins the chosen one."""
    every = {f"L{at} E{e}": (at, e) for at in recording.moe_layers for e in range(recording.router(at).n_experts)}
    pinned = choices.choose(
        "Beside it", "pin", list(every), default=None, quiet=True, placeholder="another expert, to compare"
    )
    here = f"L{layer} E{expert}"
    if pinned is None or pinned == here:
        st.button(f"Pin {here}", icon=":material/keep:", on_click=choices.pick, kwargs={"pin": here}, type="tertiary")
        return None
    st.button(
        f"Unpin {pinned}", icon=":material/keep_off:", on_click=choices.pick, kwargs={"pin": None}, type="tertiary"
    )
    return every[pinned]


def choose_least() -> int:
    """How often a token must occur to be listed."""
    return int(
        choices.choose(
            "Tokens that occur at least … times", "least", LEAST, default=5, quiet=True, place=st, kind="select_slider",
            width=360,
        )
    )  # fmt: skip


def card(recording: Recording, layer: int | None, expert: int | None, *, least: int) -> Any:
    """The card of an expert, computed or found."""
    return results.result(recording, "expert_card", layer=layer, expert=expert, min_count=least)


def show_card(shown: Any, *, wide: bool = True, tag: str = "") -> None:
    """Draws a card: over the width of the page, or of half of it; `tag` tells one of two on a page from the other."""
    columns = [*charts.beside(), *charts.beside()] if wide else [st.container() for _ in range(4)]
    for column, figure in zip(columns, ("by_domain", "by_token", "partners"), strict=False):
        with column:
            results.show(shown, figure, tag=tag)
            if figure == "by_token":
                st.caption(plain(shown.result.hidden))
    with columns[3]:
        if "facts" in shown.tables:
            st.markdown("**What it adds, and its parameters**")
            results.table(shown, "facts", tag=tag)
        else:
            st.caption("What it adds and facts of its parameters: record with the fields experts and weights.")


def link(layer: int | None, expert: int) -> None:
    """To the card of the chosen expert."""
    there = {"recording": st.session_state["recording"], "layer": str(layer), "expert": str(expert)}
    st.page_link("utilization.py", label=f"The card of L{layer} E{expert}", query_params=there)
