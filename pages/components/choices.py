"""What a visitor chooses: choices stand in the address and hold on every page.

`enter` comes before a page and `write_address` after it; a page itself only asks for its choices.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from workbench.models import bundled
from workbench.recordings.recording import Recording

from . import export_basket, jobs, recordings
from .jobs import plain

TOKENS_SHOWN = 160


def enter(page: Any) -> None:
    """Notes where the visitor comes from: what was chosen before holds on a new page, and where the address is bare.

    Between two pages the Back button passes the bare address of the later one. It is left as it is then, for writing
    to it would lead forward again.
    """
    new = st.session_state.get("written") != page.url_path
    st.session_state.update(page=page.url_path, new_page=new, bare=not st.query_params, on_page=set())
    chosen = st.session_state.setdefault("chosen", {})
    if new:
        chosen.pop("open", None)  # what was opened there belongs to that page
    _keep(export_basket.NAME, _asked(export_basket.NAME))  # on every page, so that no reload loses it


def write_address() -> None:
    """Writes the choices of this page into the address, all at once: each writing is a step of the Back button."""
    here = _chosen_here()
    passing = st.session_state["bare"] and not st.session_state["new_page"]
    if not passing and any(st.query_params.get(name) != text for name, text in here.items()):
        st.query_params.update(here)
    st.session_state["written"] = st.session_state["page"]  # a page that stopped half-way is still new


def _chosen_here() -> dict[str, str]:
    return {name: text for name, text in st.session_state["chosen"].items() if name in st.session_state["on_page"]}


def choose(
    label: str, name: str, options: Sequence[Any], *, default: Any, quiet: bool = False, place: Any = None,
    kind: str = "selectbox", **how: Any,
) -> Any:  # fmt: skip
    """A choice that stands in the address as `name`, and holds on every page that has it.

    Streamlit's own binding of widgets to the address loses what came with an address when the page changes, and drops
    defaults from it; so the address is written here.

    Args:
        label: What is chosen.
        name: Of the choice in the address.
        options: Their texts stand in the address.
        default: What is chosen at first; None for nothing.
        quiet: Whether a choice made on another page, and not there here, is dropped without a word.
        place: Where it is shown; the sidebar unless given.
        kind: The widget: `selectbox`, `segmented_control` or `select_slider`.
        how: As of the widget.
    """
    by_text = {str(option): option for option in options}
    asked = _asked(name)
    if how.get("accept_new_options") and asked:
        by_text.setdefault(asked, asked)
    if asked is not None and asked not in by_text:
        _tell_unknown(label, name, list(by_text), quiet=quiet)
    st.session_state[name] = by_text.get(asked or "", default)
    index = {"index": None} if default is None and kind == "selectbox" else {}
    widget = getattr(place or st.sidebar, kind)
    chosen = widget(label, options, key=name, on_change=_note, args=(name,), **index, **how)
    return _keep(name, chosen)


def choose_number(label: str, name: str, *, least: int, most: int, default: int, place: Any) -> int:
    """A whole number that stands in the address as `name`; what is out of reach is the nearest in reach."""
    wanted = _whole(_asked(name))
    st.session_state[name] = min(max(default if wanted is None else wanted, least), most)
    return int(_keep(name, place.number_input(label, least, most, key=name, on_change=_note, args=(name,))))


def _whole(text: str | None) -> int | None:
    """A whole number of an address; None for anything else, and for more digits than numbers here have."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,12}", text) else None


def opened(part: str) -> str:
    """The key of a part that can be opened, with what the address says of it as its state."""
    key = f"open {part}"
    st.session_state[key] = part in (_asked("open") or "").split(",")
    return key


def note_opened(part: str) -> None:
    """Takes over that a visitor opened a part, or closed it."""
    others = [each for each in (_asked("open") or "").split(",") if each not in ("", part)]
    names = [*others, part] if st.session_state[f"open {part}"] else others
    st.session_state["chosen"].pop("open", None)
    pick(open=",".join(names) or None)
    _keep("open", ",".join(names) or None)


def _asked(name: str) -> str | None:
    """What the address says, or what was chosen before."""
    st.session_state["on_page"].add(name)
    before = st.session_state["new_page"] or st.session_state["bare"]
    return st.query_params.get(name, st.session_state["chosen"].get(name) if before else None)


def _keep(name: str, chosen: Any) -> Any:
    if chosen is None:
        st.session_state["chosen"].pop(name, None)
    else:
        st.session_state["chosen"][name] = str(chosen)
    return chosen


def _note(name: str) -> None:
    """Takes over what a visitor chose in a widget."""
    pick(**{name: st.session_state[name]})


def pick(**choices: Any) -> None:
    """Chooses, in the address; to be called before the widgets of the choices are there, as callbacks are."""
    given = {name: str(value) for name, value in choices.items() if value is not None}
    st.query_params.update({**_chosen_here(), **given})
    for name in choices.keys() - given.keys():
        st.query_params.pop(name, None)


def _tell_unknown(label: str, name: str, options: Sequence[str], *, quiet: bool) -> None:
    if quiet and name not in st.query_params:
        return
    there = f"{options[0]} to {options[-1]}" if len(options) > 5 else ", ".join(options) or "none"
    asked = st.query_params.get(name, st.session_state["chosen"].get(name))[:200]
    st.warning(
        f"There is no {plain(label.lower())} “{plain(asked)}” here; there are {plain(there)}. Choose another.",
        icon=":material/link_off:",
    )


def choose_layer(recording: Recording) -> int | None:
    """The MoE layer chosen in the sidebar, the middle one at first; None where there is none."""
    layers = recording.moe_layers
    return choose("Layer", "layer", layers, default=layers[len(layers) // 2]) if layers else None


def with_next(recording: Recording, layer: int | None) -> int | None:
    """The layer, or the one before it where none comes after."""
    layers = list(recording.moe_layers)
    return layers[min(layers.index(layer), len(layers) - 2)] if layer is not None and len(layers) > 1 else layer


def choose_head(recording: Recording) -> tuple[int, int]:
    """The attention layer and head chosen in the sidebar; the middle layer's first at first."""
    heads_of = {facts["layer"]: facts["heads"] for facts in recording.manifest["attention"]["layers"]}
    layers = list(heads_of)
    layer = choose("Layer", "layer", layers, default=layers[len(layers) // 2], quiet=True)
    return layer, choose("Head", "head", range(heads_of[layer]), default=0, quiet=True)


def choose_expert(recording: Recording, layer: int | None) -> int | None:
    """The expert chosen in the sidebar; None for the busiest."""
    experts = range(recording.router(layer).n_experts) if layer is not None else ()
    return choose("Expert", "expert", list(experts), default=None, placeholder="the busiest")


def choose_text(recording: Recording, *, place: Any = None) -> tuple[str, int]:
    """The chosen document, the first at first, and its tokens."""
    lengths = _lengths(f"{recording.digest} {recording.chosen_phase}", recording)
    document = choose("Document", "document", list(lengths), default=next(iter(lengths)), quiet=True, place=place)
    return document, lengths[document]


def choose_document(recording: Recording) -> tuple[str, int, int | None]:
    """The document chosen in the sidebar, the first of its tokens that are shown, and the token chosen, if any."""
    document, n_tokens = choose_text(recording)
    asked = _asked("token")
    wanted = _whole(asked)
    at = wanted if wanted is not None and wanted < n_tokens else None
    if asked is not None and at is None:
        _tell_unknown("Token", "token", ["0", *["…"] * 5, str(n_tokens - 1)], quiet=True)
    st.session_state["token"] = at
    token = st.sidebar.number_input(
        "Token",
        *(0, n_tokens - 1, None),
        key="token",
        placeholder="click one",
        on_change=_note_token,
        help="Position in the document, from 0.",
    )
    starts = list(range(0, n_tokens, TOKENS_SHOWN))
    first = choose("Shown from token", "from", starts, default=0, quiet=True) if len(starts) > 1 else 0
    return document, first, _keep("token", token)


def _note_token() -> None:
    """Takes over the token that a visitor typed, and shows the piece of the document that holds it."""
    token = st.session_state["token"]
    pick(token=token, **({} if token is None else {"from": token - token % TOKENS_SHOWN}))


def place() -> tuple[str, int | None]:
    """The document and the token that were chosen last, on whatever page."""
    chosen = st.session_state["chosen"]
    return chosen.get("document", ""), _whole(chosen.get("token"))


def go_to_token(document: str, token: int) -> None:
    """Chooses a token of a document, here or for the page Tokens; as `pick`."""
    there = {"document": document, "token": str(token), "from": str(token - token % TOKENS_SHOWN)}
    st.session_state["chosen"].update(there)
    if st.session_state["page"] == "tokens":
        pick(**there)


@st.cache_data(max_entries=8, show_spinner=False)
def _lengths(digest: str, _recording: Recording) -> dict[str, int]:
    documents = _recording.documents().sort_values("document")
    return dict(zip(documents["id"].tolist(), documents["tokens"].tolist(), strict=True))


# Recordings


def choose_recording(*, routed: bool = False) -> Recording:
    """The recording chosen in the sidebar, checked and open.

    Stops the page where there is none yet, and shows how the first one comes along; where the page is about routing
    (`routed`), also at a recording of a model without routers.

    Raises:
        RecordingError: the address names a recording that is not there, is damaged, unfinished, or of a newer schema.
    """
    names = list(recordings.finished())
    if not names:
        jobs.wait_for_the_first()
    asked = _asked("recording")
    if asked is not None and asked not in names:
        st.session_state["recording"] = None
        st.sidebar.selectbox("Recording", names, index=None, key="recording", on_change=_note, args=("recording",))
        recordings.named(asked)  # says why it cannot be
    # Newest on top; the oldest unless the address says otherwise, for it is the one that stays the same.
    recording = recordings.opened(choose("Recording", "recording", names, default=names[-1]))
    if source := recordings.source_of(recording.manifest["model"]):
        st.sidebar.caption(f"Weights: {plain(source)}")
    if routed and not recording.moe_layers:
        _stop_without_routers(recording)
    if len(recording.phases) <= 1:  # of some imported traces none is known
        return recording
    return recording.of_phase(
        choose("Phase", "phase", recording.phases, default="prefill", help="Given text, or text that the model wrote.")
    )


def _stop_without_routers(recording: Recording) -> None:
    model = plain(recording.manifest["identity"]["model"])
    st.info(f"{model} is dense: no layer has a router, so there is no routing to show. Choose another recording.")
    if "attention" in recording.fields:
        st.page_link("attention.py", label="Its attention heads")
    st.stop()


def choose_other(recording: Recording, *, optional: bool = False) -> Recording | None:
    """The recording to compare with, chosen in the sidebar; None where there is no second one.

    At first the oldest of the same corpus, if there is any; where it is optional, none.
    """
    names = {name: found for name, found in recordings.finished().items() if name != st.session_state["recording"]}
    if not names:
        return None
    corpus = recording.manifest["corpus"].get("digest")
    alike = [name for name, found in names.items() if found["corpus"].get("digest") == corpus]
    first = None if optional else (alike or list(names))[-1]
    hint = {"placeholder": "none"} if optional else {}
    chosen = choose("Against", "against", list(names), default=first, quiet=optional, **hint)
    return None if chosen is None else recordings.opened(chosen)


def choose_ceiling(recording: Recording) -> str | None:
    """The folder of a recording of the same model again, chosen in the sidebar; None where none is."""
    model = recording.manifest["model"]
    alike = [
        name
        for name, found in recordings.finished().items()
        if name != st.session_state["recording"]
        and all(found["model"].get(key) == model.get(key) for key in ("name", "revision"))
    ]
    if not alike:
        return None
    chosen = choose("Ceiling", "ceiling", alike, default=None, quiet=True, placeholder="the same model again")
    return None if chosen is None else str(jobs.data_folder() / "recordings" / chosen)


def choose_controls(recording: Recording) -> dict[str, str | None]:
    """What numbers of specialization stand beside, as settings: the untrained router, and the same model again."""
    return {"untrained": choose_untrained(recording), "ceiling": choose_ceiling(recording)}


def choose_untrained(recording: Recording) -> str | None:
    """The folder of a recording of the untrained model over the same corpus, chosen in the sidebar; None where none is.

    Which of the others is untrained only the visitor knows.
    """
    corpus = recording.manifest["corpus"].get("digest")
    alike = [
        name
        for name, found in recordings.finished().items()
        if name != st.session_state["recording"] and found["corpus"].get("digest") == corpus
    ]
    if not alike:
        return None
    chosen = choose(
        "Untrained router", "untrained", alike, default=None, quiet=True, placeholder="none",
        help="A recording of the model before training, such as tiny-moe@step-0.",
    )  # fmt: skip
    return None if chosen is None else str(jobs.data_folder() / "recordings" / chosen)


def stop_without(recording: Recording, field: str) -> None:
    """Of a recording without a field that a page needs: says so, and where to record it; the page ends there."""
    if field in recording.fields:
        return
    model, corpus = recording.manifest["identity"]["model"], recording.manifest["corpus"]["name"]
    st.info(
        f"This recording of {plain(model)} over {plain(corpus)} has no {plain(field)}; it holds "
        f"{plain(', '.join(recording.fields))}. Record it again with the field, or choose another recording.",
        icon=":material/add_circle:",
    )
    st.page_link("record.py", label="Record")
    st.stop()


def offer_second(recording: Recording) -> None:
    """Says that a comparison needs a second recording, and records one where the first is of the bundled corpus."""
    model, corpus = recording.manifest["identity"]["model"], recording.manifest["corpus"]
    st.info(
        f"There is one recording, {plain(model)} over {plain(corpus['name'])}, and a comparison needs two of one "
        "corpus: checkpoints of a model, two dtypes, two models.",
        icon=":material/compare_arrows:",
    )
    others = [name for name in bundled.bundled_names() if name.partition("@")[0] == "tiny-moe" and name != model]
    row = st.container(horizontal=True, vertical_alignment="bottom")
    if corpus["name"] == "demo":
        second = row.selectbox("Another checkpoint of the bundled model", others, key="second-model", width=360)
        if row.button(f"Record {plain(second)} over demo", type="primary", icon=":material/radio_button_checked:"):
            jobs.submit("second", partial(jobs.host().record, model=second, corpus="demo"))
        made = jobs.answer("second")
        if made is not None:
            jobs.forget("second")
            pick(against=Path(made["recording"]).name)
            st.rerun()
    else:
        row.page_link("record.py", label="Record another model over the same corpus")


def open_tokens(recording: str) -> None:
    """Opens the page of a recording's tokens."""
    st.switch_page("tokens.py", query_params={"recording": recording})
