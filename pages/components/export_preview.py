"""What the Export page is made of: what can be put aside, what is, at its size on paper, and all of it in one file."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import catalogue
from analyses.address import Address, in_words
from analyses.question import CONTROLS, Answer
from analyses.settings import parse_settings
from workbench.efficiency.costs.comparison import Costed
from workbench.errors import AnalysisError, WorkbenchError
from workbench.figures.theme import WIDTHS_IN, Width
from workbench.recordings.recording import Recording

from . import export_basket, recordings, results
from .jobs import plain

CHOSEN = ("layer", "expert", "head", "statistic", "document", "first", "last", "min_count", *CONTROLS)
"""The settings that pages choose. Others say how much is computed, which no link may make a visitor's machine do."""
WIDTHS = {"column": "column, 3.25 in", "text": "text, 6.75 in"}


def names_for(recording: Recording, against: Recording | None) -> list[str]:
    """The analyses that the fields of a recording, or of two, allow."""
    names = catalogue.of_recordings() if against is not None else results.names_of_one()
    both = [recording] if against is None else [recording, against]
    held = set.intersection(*(set(each.fields) - ({"routing"} if not each.moe_layers else set()) for each in both))
    return [name for name in names if held.issuperset(catalogue.get(name).NEEDS)]


def offer(shown: Answer) -> None:
    """What there is of a result, to be put aside: figures, and tables."""
    key = f"offer {shown.question.key}"
    names = list(dict.fromkeys([*shown.figures, *shown.tables]))
    st.session_state[key] = [each for each in export_basket.names_of(shown) if each in names]
    words = {name: f"{name.replace('_', ' ')}{'' if name in shown.figures else ' (table)'}" for name in names}
    st.pills(
        plain(catalogue.asks(shown.question.analysis)), names, selection_mode="multi", default=None, key=key,
        on_change=_take, args=(shown, key), format_func=lambda name: words[name],
    )  # fmt: skip


def _take(shown: Answer, key: str) -> None:
    export_basket.put(shown, st.session_state[key])


def put_aside() -> list[tuple[Answer, tuple[str, ...]]]:
    """Everything put aside, asked for again where it is only named; what cannot be made is said, and left out."""
    found = []
    for asked in export_basket.told():
        try:
            _refuse_other_settings(asked)
            shown = results.answered(asked.question(recordings.named))
        except WorkbenchError as error:
            st.warning(f"{plain(asked.analysis)} of {plain(asked.recording)} is left out: {plain(error)}")
            continue
        if names := tuple(name for name in asked.names if name in shown.figures or name in shown.tables):
            found.append((shown, names))
    return [*found, *export_basket.kept()]


def _refuse_other_settings(asked: Address) -> None:
    """Refuses settings that no page could have chosen.

    Raises:
        AnalysisError: the analysis has no such setting, or it is one that says how much is computed.
    """
    parse_settings(catalogue.get(asked.analysis), asked.settings)
    if others := [key for key in (pair.partition("=")[0] for pair in asked.settings) if key not in CHOSEN]:
        raise AnalysisError(
            f"an address cannot choose {others[0]}; of settings it has {', '.join(CHOSEN)}. "
            f"Ask by command: workbench analyze RECORDING {asked.analysis} --set {others[0]}=…"
        )


def title_of(shown: Answer) -> str:
    """An answer in words: its analysis, of what, and how it was set."""
    subject, against = shown.question.of, getattr(shown.question, "against", None)
    of = [subject.words if isinstance(subject, Costed) else subject.path.name]
    of += [f"against {against.path.name}"] if against is not None else []
    return plain(f"{shown.question.analysis.replace('_', ' ')}: {', '.join([*of, *shown.question.settings])}")


def preview(shown: Answer, name: str, width: Width) -> None:
    """A figure at the size it has on paper, the table of that name, and a way to take it back."""
    if name in shown.figures:
        figure = shown.figures[name]
        with st.spinner(f"Drawing {name.replace('_', ' ')} …"):
            drawn = _paper(shown.question.key, name, width, shown)
        st.image(drawn, width=round(96 * WIDTHS_IN[width]), alt=figure.alt)
        st.caption(plain(f"{figure.title}. {figure.caption}"))
    if name in shown.tables:
        st.dataframe(
            shown.tables[name], hide_index=True, key=f"{shown.question.key} {name} preview", height=200, placeholder="–"
        )
    rest = [each for each in export_basket.names_of(shown) if each != name]
    st.button(
        f"Take {name.replace('_', ' ')} out", key=f"{shown.question.key} {name} out", type="tertiary",
        icon=":material/bookmark_remove:", on_click=export_basket.put, args=(shown, rest),
    )  # fmt: skip


@st.cache_data(max_entries=64, show_spinner=False)
def _paper(key: str, name: str, width: Width, _shown: Answer) -> bytes:
    from workbench.export.files import figure_bytes

    with results.DRAWING:
        return figure_bytes(_shown.figures[name], "png", provenance=_shown.question.provenance, width=width)


def download_bundle(basket: Sequence[tuple[Answer, Sequence[str]]], width: Width) -> None:
    """The button that packs the bundle when it is pressed."""
    count = sum(len(names) for _, names in basket)
    make = partial(_pack, basket, width)
    st.download_button(
        f"Download the bundle ({count} put aside)", make, "bundle.zip", type="primary", key="bundle", on_click="ignore",
        icon=":material/folder_zip:",
    )  # fmt: skip


def labels(basket: Sequence[Answer]) -> list[str]:
    """A folder for each result: its analysis; of several of one, with its settings, and with a number at need."""
    found: list[str] = []
    analyses = [shown.question.analysis for shown in basket]
    for shown in basket:
        said = [shown.question.analysis]
        if analyses.count(shown.question.analysis) > 1:
            said += [re.sub("[^A-Za-z0-9]+", "-", in_words(pair)) for pair in shown.question.settings]
        label = "-".join(said)[:60]
        found.append(label if label not in found else f"{label[:56]}-{len(found) + 1}")
    return found


def _pack(basket: Sequence[tuple[Answer, Sequence[str]]], width: Width) -> bytes:
    """The bundle of these figures and tables of results, as one zip file."""
    from workbench.export.bundle import finish, zipped
    from workbench.export.files import write_result

    with tempfile.TemporaryDirectory() as folder, results.DRAWING:
        bundle = Path(folder) / "bundle"
        for (shown, names), label in zip(basket, labels([shown for shown, _ in basket]), strict=True):
            own = "" if label == shown.question.analysis else label
            asked = shown.question.narrowed(only=names, label=own, width=width)
            tables, figures = (_among(held, names) for held in (shown.tables, shown.figures))
            write_result(tables, figures, bundle / label, provenance=asked.provenance, width=width)
        finish(bundle)
        return zipped(bundle)


def _among(held: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name in names}
