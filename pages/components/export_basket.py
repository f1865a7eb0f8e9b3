"""What a visitor puts aside for a paper, on any page: figures and tables of results, until the Export page packs them.

What is of recordings stands in the address, as texts that say how to ask for it again; the rest (costs, the map of a
head) is kept for the visit. Nothing here asks an analysis: `showing` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from . import jobs

NAME = "aside"  # of the choice in the address
FOLDERS = ("untrained", "ceiling")  # settings that name another recording


@dataclass(frozen=True)
class Asked:
    """What makes a result again, as an address can say it.

    Attributes:
        recording: Its name in the data folder.
        analysis: The analysis.
        names: Figures and tables of it.
        against: Name of the second recording.
        experts: As of `showing.result`.
        phase: Of the recording.
        settings: `key=value` texts.
    """

    recording: str
    analysis: str
    names: tuple[str, ...]
    against: str = ""
    experts: str = "auto"
    phase: str = ""
    settings: tuple[str, ...] = ()

    def text(self) -> str:
        """As it stands in the address."""
        said = {"of": self.recording, "analysis": self.analysis, "names": ",".join(self.names)}
        said |= {"against": self.against, "experts": self.experts, "phase": self.phase}
        pairs = [(key, value) for key, value in said.items() if value and (key, value) != ("experts", "auto")]
        return urlencode([*pairs, *(("set", pair) for pair in self.settings)])


def read(text: str) -> list[Asked]:
    """What an address says; whatever cannot be meant is left out."""
    found = []
    for each in filter(None, text.split("|")):
        pairs = parse_qsl(each)
        said = {key: value for key, value in pairs if key != "set"}
        names = tuple(dict.fromkeys(filter(None, said.get("names", "").split(","))))
        if said.get("of") and said.get("analysis") and names:
            rest = {key: said[key] for key in ("against", "experts", "phase") if key in said}
            settings = tuple(value for key, value in pairs if key == "set")
            found.append(Asked(said["of"], said["analysis"], names, settings=settings, **rest))
    return found


def asked_for(shown: Any, names: Sequence[str]) -> Asked | None:
    """How a result is asked for again; None where no address can say it."""
    if shown.recording is None or shown.made_by or not hasattr(shown.recording, "chosen_phase"):
        return None
    folder = jobs.data_folder() / "recordings"
    if any(each is not None and each.path.parent != folder for each in (shown.recording, shown.against)):
        return None
    return Asked(
        recording=shown.recording.path.name,
        analysis=shown.name,
        names=tuple(names),
        against=shown.against.path.name if shown.against is not None else "",
        experts=shown.experts,
        phase=shown.recording.chosen_phase or "",
        settings=tuple(in_words(pair) for pair in shown.settings),
    )


def in_words(pair: str) -> str:
    """A setting as it can be said: of one that names another recording, the recording's name."""
    key, _, value = pair.partition("=")
    return f"{key}={Path(value).name}" if key in FOLDERS else pair


def _kept() -> dict[Any, tuple[Any, tuple[str, ...]]]:
    """What no address can say, by the result's key."""
    return st.session_state.setdefault("kept_aside", {})


def kept() -> list[tuple[Any, tuple[str, ...]]]:
    """Results that are kept for the visit, with the names put aside."""
    return list(_kept().values())


def told() -> list[Asked]:
    """What the address says, or said on another page."""
    return read(st.session_state["chosen"].get(NAME, ""))


def names_of(shown: Any) -> tuple[str, ...]:
    """The figures and tables of a result that are put aside."""
    asked = asked_for(shown, ())
    if asked is None:
        return _kept().get(shown.key, (shown, ()))[1]
    return next((each.names for each in told() if _same(each, asked)), ())


def _same(one: Asked, other: Asked) -> bool:
    return replace(one, names=()) == replace(other, names=())


def put(shown: Any, names: Sequence[str]) -> None:
    """Puts these figures and tables of a result aside, and no others of it; as a callback, before the page is drawn."""
    asked = asked_for(shown, names)
    if asked is None:
        _kept().pop(shown.key, None)
        if names:
            _kept()[shown.key] = (shown, tuple(names))
        return
    others = told()
    at = next((index for index, each in enumerate(others) if _same(each, asked)), len(others))
    others[at : at + 1] = [asked] if names else []
    tell(others)


def tell(asked: Sequence[Asked]) -> None:
    """Writes what is put aside into the choices and the address."""
    text = "|".join(each.text() for each in asked)
    st.session_state["chosen"].pop(NAME, None)
    st.query_params.pop(NAME, None)
    if text:
        st.session_state["chosen"][NAME] = text
        st.query_params[NAME] = text


def button(shown: Any, name: str, key: str) -> None:
    """Puts one figure or table aside, or takes it back."""
    names = names_of(shown)
    if name in names:
        label, icon, then = "In the export", ":material/bookmark_added:", [each for each in names if each != name]
    else:
        label, icon, then = "Add to export", ":material/bookmark_add:", [*names, name]
    st.button(label, icon=icon, type="tertiary", key=f"{key}-aside", on_click=put, args=(shown, then))
