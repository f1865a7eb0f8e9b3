"""What a visitor puts aside for a paper, on any page: figures and tables of results, until the Export page packs them.

What is of recordings stands in the address, as texts that say how to ask for it again; the rest (costs, the map of a
head) is kept for the visit. Nothing here asks an analysis: `results` does.
"""

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from analyses.address import Address
from analyses.question import Answer, Question

from . import jobs

NAME = "aside"  # of the choice in the address


def read(text: str) -> list[Address]:
    """What an address says; whatever cannot be meant is left out."""
    return [found for each in filter(None, text.split("|")) if (found := Address.read(each)) is not None]


def address_of(shown: Answer, names: Sequence[str]) -> Address | None:
    """How an answer is asked for again; None where no address can say it."""
    if not isinstance(shown.question, Question):
        return None
    return Address.of(replace(shown.question, only=tuple(names)), jobs.data_folder() / "recordings")


def _kept() -> dict[str, tuple[Answer, tuple[str, ...]]]:
    """What no address can say, by the result's key."""
    return st.session_state.setdefault("kept_aside", {})


def kept() -> list[tuple[Answer, tuple[str, ...]]]:
    """Results that are kept for the visit, with the names put aside."""
    return list(_kept().values())


def told() -> list[Address]:
    """What the address says, or said on another page."""
    return read(st.session_state["chosen"].get(NAME, ""))


def names_of(shown: Answer) -> tuple[str, ...]:
    """The figures and tables of a result that are put aside."""
    asked = address_of(shown, ())
    if asked is None:
        return _kept().get(shown.question.key, (shown, ()))[1]
    return next((each.names for each in told() if _same(each, asked)), ())


def _same(one: Address, other: Address) -> bool:
    return replace(one, names=()) == replace(other, names=())


def put(shown: Answer, names: Sequence[str]) -> None:
    """Puts these figures and tables of a result aside, and no others of it; as a callback, before the page is drawn."""
    asked = address_of(shown, names)
    if asked is None:
        _kept().pop(shown.question.key, None)
        if names:
            _kept()[shown.question.key] = (shown, tuple(names))
        return
    others = told()
    at = next((index for index, each in enumerate(others) if _same(each, asked)), len(others))
    others[at : at + 1] = [asked] if names else []
    tell(others)


def tell(asked: Sequence[Address]) -> None:
    """Writes what is put aside into the choices and the address."""
    text = "|".join(map(str, asked))
    st.session_state["chosen"].pop(NAME, None)
    st.query_params.pop(NAME, None)
    if text:
        st.session_state["chosen"][NAME] = text
        st.query_params[NAME] = text


def button(shown: Answer, name: str, key: str) -> None:
    """Puts one figure or table aside, or takes it back."""
    names = names_of(shown)
    if name in names:
        label, icon, then = "In the export", ":material/bookmark_added:", [each for each in names if each != name]
    else:
        label, icon, then = "Add to export", ":material/bookmark_add:", [*names, name]
    st.button(label, icon=icon, type="tertiary", key=f"{key}-aside", on_click=put, args=(shown, then))
