"""What the Export page is made of: what can be put aside, what is, at its size on paper, and all of it in one file."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import question
from workbench.errors import AnalysisError, WorkbenchError
from workbench.figures.theme import WIDTHS_IN
from workbench.recordings.recording import Recording

from . import export_basket, recordings, results
from .jobs import plain
from .results import Shown

CHOSEN = ("layer", "expert", "head", "statistic", "document", "first", "last", "min_count", *export_basket.FOLDERS)
"""The settings that pages choose. Others say how much is computed, which no link may make a visitor's machine do."""
WIDTHS = {"column": "column, 3.25 in", "text": "text, 6.75 in"}


def names_for(recording: Recording, against: Recording | None) -> list[str]:
    """The analyses that the fields of a recording, or of two, allow."""
    names = [name for name in question.names() if against is not None or not question.takes_two(question.get(name))]
    both = [recording] if against is None else [recording, against]
    held = set.intersection(*(set(each.fields) - ({"routing"} if not each.moe_layers else set()) for each in both))
    return [name for name in names if held.issuperset(question.get(name).NEEDS)]


def offer(shown: Shown) -> None:
    """What there is of a result, to be put aside: figures, and tables."""
    key = f"offer {shown.key}"
    names = list(dict.fromkeys([*shown.figures, *shown.tables]))
    st.session_state[key] = [each for each in export_basket.names_of(shown) if each in names]
    words = {name: f"{name.replace('_', ' ')}{'' if name in shown.figures else ' (table)'}" for name in names}
    how = {"key": key, "on_change": _take, "args": (shown, key), "format_func": words.get}
    st.pills(plain(results.question_of(shown.name)), names, selection_mode="multi", **how)


def _take(shown: Shown, key: str) -> None:
    export_basket.put(shown, st.session_state[key])


def put_aside() -> list[tuple[Shown, tuple[str, ...]]]:
    """Everything put aside, asked for again where it is only named; what cannot be made is said, and left out."""
    found = []
    for asked in export_basket.told():
        try:
            recording = recordings.named(asked.recording)
            recording = recording.of_phase(asked.phase) if asked.phase else recording
            against = recordings.named(asked.against) if asked.against else None
            shown = results.answered(
                recording, asked.analysis, _settings_of(asked), against=against, experts=asked.experts
            )
        except WorkbenchError as error:
            st.warning(f"{plain(asked.analysis)} of {plain(asked.recording)} is left out: {plain(error)}")
            continue
        if names := tuple(name for name in asked.names if name in shown.figures or name in shown.tables):
            found.append((shown, names))
    return [*found, *export_basket.kept()]


def _settings_of(asked: export_basket.Asked) -> tuple[str, ...]:
    """The settings that an address says, where a page could have chosen them; another recording by its folder.

    Raises:
        AnalysisError: the analysis has no such setting, or it is one that says how much is computed.
        RecordingError: there is no such recording.
    """
    question.parse_settings(question.get(asked.analysis), asked.settings)
    pairs = [pair.partition("=")[::2] for pair in asked.settings]
    if others := [key for key, _ in pairs if key not in CHOSEN]:
        raise AnalysisError(
            f"an address cannot choose {others[0]}; of settings it has {', '.join(CHOSEN)}. "
            f"Ask by command: workbench analyze RECORDING {asked.analysis} --set {others[0]}=…"
        )
    named = [
        (key, str(recordings.named(value).path) if key in export_basket.FOLDERS else value) for key, value in pairs
    ]
    return tuple(f"{key}={value}" for key, value in named)


def title_of(shown: Shown) -> str:
    """A result in words: its analysis, of what, and how it was set."""
    of = [shown.recording.path.name] if shown.recording is not None else [shown.subject.words]
    of += [f"against {shown.against.path.name}"] if shown.against is not None else []
    return plain(f"{shown.name.replace('_', ' ')}: {', '.join([*of, *shown.settings])}")


def preview(shown: Shown, name: str, width: str) -> None:
    """A figure at the size it has on paper, the table of that name, and a way to take it back."""
    if name in shown.figures:
        figure = shown.figures[name]
        with st.spinner(f"Drawing {name.replace('_', ' ')} …"):
            drawn = _paper(shown.key, name, width, shown)
        st.image(drawn, width=round(96 * WIDTHS_IN[width]), alt=figure.alt)
        st.caption(plain(f"{figure.title}. {figure.caption}"))
    if name in shown.tables:
        st.dataframe(
            shown.tables[name], hide_index=True, key=f"{shown.key} {name} preview", height=200, placeholder="–"
        )
    rest = [each for each in export_basket.names_of(shown) if each != name]
    how = {
        "type": "tertiary",
        "icon": ":material/bookmark_remove:",
        "on_click": export_basket.put,
        "args": (shown, rest),
    }
    st.button(f"Take {name.replace('_', ' ')} out", key=f"{shown.key} {name} out", **how)


@st.cache_data(max_entries=64, show_spinner=False)
def _paper(key: tuple[Any, ...], name: str, width: str, _shown: Shown) -> bytes:
    from workbench.export.files import figure_bytes

    with results.DRAWING:
        return figure_bytes(_shown.figures[name], "png", provenance=_shown.provenance(), width=width)


def download_bundle(basket: Sequence[tuple[Shown, Sequence[str]]], width: str) -> None:
    """The button that packs the bundle when it is pressed."""
    count = sum(len(names) for _, names in basket)
    make = partial(_pack, basket, width)
    st.download_button(
        f"Download the bundle ({count} put aside)", make, "bundle.zip", type="primary", key="bundle", on_click="ignore",
        icon=":material/folder_zip:",
    )  # fmt: skip


def labels(basket: Sequence[Shown]) -> list[str]:
    """A folder for each result: its analysis; of several of one, with its settings, and with a number at need."""
    found: list[str] = []
    analyses = [shown.name for shown in basket]
    for shown in basket:
        said = [shown.name]
        if analyses.count(shown.name) > 1:
            said += [re.sub("[^A-Za-z0-9]+", "-", export_basket.in_words(pair)) for pair in shown.settings]
        label = "-".join(said)[:60]
        found.append(label if label not in found else f"{label[:56]}-{len(found) + 1}")
    return found


def _pack(basket: Sequence[tuple[Shown, Sequence[str]]], width: str) -> bytes:
    """The bundle of these figures and tables of results, as one zip file."""
    from workbench.export.bundle import finish, zipped
    from workbench.export.files import write_result

    with tempfile.TemporaryDirectory() as folder, results.DRAWING:
        bundle = Path(folder) / "bundle"
        for (shown, names), label in zip(basket, labels([shown for shown, _ in basket]), strict=True):
            narrowed = {"only": tuple(names), "label": "" if label == shown.name else label, "width": width}
            tables, figures = (_among(held, names) for held in (shown.tables, shown.figures))
            write_result(tables, figures, bundle / label, provenance=shown.provenance(**narrowed), width=width)
        finish(bundle)
        return zipped(bundle)


def _among(held: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name in names}
