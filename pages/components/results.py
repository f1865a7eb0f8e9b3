"""Results on a page: an analysis' figures and tables, each with its downloads and the command that makes it again."""

import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import catalogue
from analyses.definitions import definitions
from analyses.question import Answer, Question
from workbench.efficiency.costs.comparison import Costed
from workbench.errors import AnalysisError
from workbench.figures.spec import HeatMap, Points
from workbench.recordings.recording import Recording

from . import charts, export_basket
from .choices import note_opened, opened
from .jobs import plain

DRAWING = threading.Lock()  # matplotlib's settings are one for the whole process


def result(
    recording: Recording, name: str, *, against: Recording | None = None, experts: str = "auto", **settings: Any
) -> Answer:
    """Runs an analysis, or finds its answer, which is kept by the recordings' content, the source and the settings."""
    return answered(Question(recording, name, pairs(settings), against=against, experts=experts))


def pairs(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as a question has them."""
    return tuple(f"{key}={value}" for key, value in settings.items() if value is not None)


def answered(question: Question) -> Answer:
    """The answer to a question, computed or found; where it has no figures, says why."""
    subject = question.of
    over = f" over {subject.n_tokens:,} tokens" if isinstance(subject, Recording) else ""
    with st.spinner(f"Computing {question.analysis.replace('_', ' ')}{over} …"):
        found = computed(question)
    if found.missing:
        kind = "recording" if isinstance(subject, Recording) else "measurement"
        st.info(plain(f"This {kind} holds too little for the figures, so only tables are shown. {found.missing}"))
    return found


def make(recording: Recording, name: str, *, dark: bool, **settings: Any) -> int:
    """Computes an answer and draws it, for pages that will ask for it; the bytes of its tables."""
    shown = computed(Question(recording, name, pairs(settings)))
    for figure in shown.figures:
        charts.drawn(shown.question.key, figure, dark, shown.figures[figure])
    return sum(int(table.memory_usage(deep=True).sum()) for table in shown.tables.values())


def of_costs(subject: Costed, name: str, **settings: Any) -> Answer:
    """Runs an analysis of costs, which takes no time worth keeping its answer for."""
    return Question(subject, name, pairs(settings)).answer()


def computed(question: Question) -> Answer:
    """The answer, or the one that was given before to the same: by content, and by the places in its command."""
    return _computed(question.key, question.command, question)


@st.cache_resource(max_entries=256, show_spinner=False)
def _computed(key: str, command: str, _question: Question) -> Answer:
    module = catalogue.get(_question.analysis)
    if _question.against is None and hasattr(module, "viewed") and any(map(_is_layer, _question.settings)):
        rest = tuple(pair for pair in _question.settings if not _is_layer(pair))  # it says only what is drawn
        whole = computed(replace(_question, settings=rest))
        return replace(_question.answered(module.viewed(whole.result, _question.chosen)), missing=whole.missing)
    return _question.answer()


def _is_layer(pair: str) -> bool:
    return pair.startswith("layer=")


def names_of_one() -> list[str]:
    """The analyses of one recording, which can be asked of two."""
    return catalogue.names("recording")


def ask(title: str, name: str) -> None:
    """The page's title, the analysis' question, and what its numbers do not show."""
    st.title(title)
    header(name)


def header(name: str) -> None:
    """An analysis' question, and what its numbers do not show."""
    st.markdown(f"**{plain(catalogue.asks(name))}**")
    row = st.container(horizontal=True, gap="small")
    with row.popover("Not shown", icon=":material/help:", type="tertiary", key=f"{name}-not-shown"):
        st.markdown(plain(catalogue.not_shown(name)))
    defined = row.popover(
        "Definitions", icon=":material/function:", type="tertiary", key=f"{name}-definitions", on_change="rerun"
    )
    with defined:
        said_of = definitions(name) if defined.open else {}
        if defined.open and not said_of:
            st.markdown("Its formulas and their sources stand in docs/efficiency.md.")
        for metric, (said, source) in said_of.items():
            st.markdown(f"**{plain(metric)}**")
            st.text(said)
            st.caption(f"Source: {plain(source)}")


@contextmanager
def told() -> Iterator[None]:
    """Shows why an analysis has nothing to say of a recording, and lets the page go on."""
    try:
        yield
    except AnalysisError as error:
        st.info(plain(error))


@contextmanager
def part(title: str, name: str, recording: Recording) -> Iterator[bool]:
    """A part of the page about one analysis, folded away at first; whether it is open.

    Where the recording lacks its fields, a sentence stands instead.
    """
    missing = [field for field in catalogue.get(name).NEEDS if field not in recording.fields]
    if missing:
        fields = ",".join([*recording.fields, *missing])
        st.caption(f"**{title}** needs what this recording lacks; record again with the fields {plain(fields)}.")
        yield False
        return
    with folded(title) as is_open:
        if is_open:
            header(name)
        with told():
            yield is_open


def every(shown: Answer, *, follow: Mapping[str, str] | None = None) -> None:
    """All figures of a result, one beside another where neither has panels, and its tables where they are asked for."""
    row: list[str] = []
    for name, figure in [*shown.figures.items(), ("", None)]:
        wide = isinstance(figure, HeatMap) or getattr(figure, "base", None) is not None
        narrow = figure is not None and figure.panel is None and not wide
        row += [name] if narrow else []
        if len(row) == 2 or (row and not narrow):
            for place, each in zip(charts.beside() if len(row) == 2 else [st.container()], row, strict=True):
                with place:
                    show(shown, each, follow=_known(shown, each, follow))
            row = []
        if figure is not None and not narrow:
            show(shown, name, follow=_known(shown, name, follow))
    part = f"{shown.question.analysis}-tables"
    if st.toggle("Tables", key=opened(part), on_change=note_opened, args=(part,)):
        for name in shown.tables:
            table(shown, name)


def _known(shown: Answer, name: str, follow: Mapping[str, str] | None) -> dict[str, str]:
    """What a click can choose: the columns that tell marks apart, or a line's positions."""
    figure = shown.figures[name]
    columns = figure.columns() if isinstance(figure, HeatMap | Points) else [getattr(figure, "x", None)]
    return {column: choice for column, choice in (follow or {}).items() if column in columns}


def show(shown: Answer, name: str, *, follow: Mapping[str, str] | None = None, tag: str = "") -> None:
    """Draws a figure with its caption and downloads.

    Args:
        shown: The result.
        name: The figure; nothing is drawn where the result has none of that name.
        follow: Columns of its marks, with the choices that they are: a click on a mark chooses it, and the mark that
            is chosen is outlined.
        tag: Tells two figures of one name on a page apart.
    """
    figure = shown.figures.get(name)
    if figure is None:
        return
    key = f"{tag}{shown.question.analysis}-{name}"
    kept = charts.drawn(shown.question.key, name, charts.is_dark(), figure)
    charts.draw(figure, key, drawn=type(kept)(kept), follow=follow)  # a copy: choices are outlined in it
    below = st.container(gap=None)
    below.caption(plain(figure.caption))
    with below.container(horizontal=True, gap="small"):
        with st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
            _downloads(key, ("pdf", "svg", "png"), partial(_figure_bytes, shown, name))
            st.code(shown.question.command, language="bash", wrap_lines=True)
        export_basket.button(shown, name, key)


def table(shown: Answer, name: str, rows: Any = None, *, tag: str = "") -> None:
    """Shows a table, or the given rows of it, with downloads of the whole; `tag` as of `show`."""
    key = f"{tag}{shown.question.analysis}-{name}-table"
    st.dataframe(shown.tables[name] if rows is None else rows, hide_index=True, key=key, placeholder="–")
    with st.container(horizontal=True, gap="small"):
        with st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
            _downloads(f"{tag}{shown.question.analysis}-{name}", ("csv", "tex"), partial(_table_bytes, shown, name))
            st.code(shown.question.command, language="bash", wrap_lines=True)
        export_basket.button(shown, name, key)


def facts(named: Mapping[str, str]) -> None:
    """A row of facts, each under its name."""
    row = st.container(horizontal=True)
    for name, value in named.items():
        row.metric(name, plain(value), width="content")


def show_token(at_layer: Any, at_all: Any) -> None:
    """The chosen token: its row at the layer, and its first expert at every layer, to be opened."""
    st.dataframe(at_layer, hide_index=True, key="token-row", placeholder="–")
    row = st.container(horizontal=True)
    for layer, expert in zip(at_all["layer"].tolist(), at_all["top1"].tolist(), strict=True):
        there = {"layer": str(layer), "expert": str(expert), "recording": st.session_state["recording"]}
        row.page_link("utilization.py", label=f"L{layer} E{expert}", query_params=there, width="content")


@contextmanager
def folded(title: str) -> Iterator[bool]:
    """A part of the page that is folded away at first; whether it is open, for what is folded is not made."""
    part = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
    box = st.expander(title, key=opened(part), on_change=note_opened, args=(part,))
    with box:
        yield bool(box.open)


def _downloads(stem: str, kinds: Sequence[str], make: Callable[[str], bytes]) -> None:
    row = st.container(horizontal=True)
    for kind in kinds:  # made when it is clicked, and not before
        file = f"{stem}.{kind}"
        row.download_button(kind.upper(), partial(make, kind), file, key=f"save {file}", on_click="ignore")


def _figure_bytes(shown: Answer, name: str, kind: str) -> bytes:
    from workbench.export.files import figure_bytes

    with DRAWING:
        return figure_bytes(shown.figures[name], kind, provenance=shown.question.provenance)


def _table_bytes(shown: Answer, name: str, kind: str) -> bytes:
    from workbench.export.files import write_table

    with tempfile.TemporaryDirectory() as folder:
        label = f"{shown.question.analysis}-{name}"
        files = write_table(
            shown.tables[name], Path(folder) / name, provenance=shown.question.provenance, caption=label, label=label
        )
        return next(file for file in files if file.suffix == f".{kind}").read_bytes()
