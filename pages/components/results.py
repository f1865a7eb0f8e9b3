"""Results on a page: an analysis' figures and tables, each with its downloads and the command that makes it again."""

import hashlib
import inspect
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import compare, question
from analyses.costs import _run
from analyses.definitions import definitions
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.measurements.measurement import Measurement
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Points
from workbench.recordings.recording import Recording

from . import charts, export_basket
from .choices import note_opened, opened
from .jobs import plain

DRAWING = threading.Lock()  # matplotlib's settings are one for the whole process


@dataclass(frozen=True, eq=False)
class Shown:
    """An analysis' result, ready to be shown.

    Attributes:
        name: Of the analysis.
        recording: What it was asked of, a recording or a measurement; None where it was asked of costs.
        settings: As `key=value`, those that are not defaults.
        result: As the analysis gave it.
        tables: By name.
        figures: By name; none where the recording holds too little for them.
        missing: Why there are no figures.
        key: Says all that it depends on.
        against: The second recording that it was asked of.
        experts: Whether equal ids are equal experts in both.
        subject: The models whose costs it was asked of.
        made_by: The command that makes it again, where it is no analysis.
        asked: What was asked, where it is no analysis.
    """

    name: str
    recording: Recording | Measurement | None
    settings: tuple[str, ...]
    result: Any
    tables: Mapping[str, Any]
    figures: Mapping[str, Figure]
    missing: str
    key: tuple[Any, ...]
    against: Recording | None = None
    experts: str = "auto"
    subject: Costed | None = None
    made_by: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What makes it again."""
        return self._command()

    def _command(self, **narrowed: Any) -> str:
        if self.subject is not None:
            return _run.command(self.subject, self.name, settings=self.settings, **narrowed)
        how = {"against": self.against, "experts": self.experts, "settings": self.settings}
        return self.made_by or question.command(self.recording, self.name, **how, **narrowed)

    def provenance(self, **narrowed: Any) -> Any:
        """Where it comes from; `narrowed` says what of it is written: `only`, `label`, `width`."""
        from workbench.export.files import Provenance

        if self.subject is not None:
            return _run.provenance(self.subject, self.name, settings=self.settings, **narrowed)
        said = {"analysis": self.name, "command": self._command(**narrowed)}
        if self.made_by:
            return Provenance(**said, sources=question.sources(self.recording), settings=self.asked)
        settings = question.parse_settings(question.get(self.name), self.settings)
        return Provenance(
            **said, sources=question.sources(self.recording, self.against, settings), settings=asdict(settings)
        )


def result(
    recording: Recording, name: str, *, against: Recording | None = None, experts: str = "auto", **settings: Any
) -> Shown:
    """Runs an analysis, or finds its result, which is kept by the recordings' content, the source and the settings."""
    pairs = tuple(f"{key}={value}" for key, value in settings.items() if value is not None)
    return answered(recording, name, pairs, against=against, experts=experts)


def answered(
    recording: Recording, name: str, pairs: tuple[str, ...], *, against: Recording | None = None, experts: str = "auto"
) -> Shown:
    """As `result`, with the settings as `key=value` texts, whatever their keys are."""
    with st.spinner(f"Computing {name.replace('_', ' ')} over {recording.n_tokens:,} tokens …"):
        found = _found(recording, name, against, experts, pairs)
    if found.missing:
        st.info(plain(f"This recording holds too little for the figures, so only tables are shown. {found.missing}"))
    return found


def make(recording: Recording, name: str, *, dark: bool, **settings: Any) -> int:
    """Computes a result and draws it, for pages that will ask for it; the bytes of its tables."""
    pairs = tuple(f"{key}={value}" for key, value in settings.items() if value is not None)
    shown = _found(recording, name, None, "auto", pairs)
    for figure in shown.figures:
        charts.drawn(shown.key, figure, dark, shown.figures[figure])
    return sum(int(table.memory_usage(deep=True).sum()) for table in shown.tables.values())


def of_costs(subject: Costed, name: str, **settings: Any) -> Shown:
    """Runs an analysis of costs, which takes no time worth keeping its result for."""
    pairs = tuple(f"{key}={value}" for key, value in settings.items() if value is not None)
    said = _run.ask(subject, name, settings=pairs)
    key = (subject.digest, name, pairs)
    return Shown(name, None, pairs, said.result, said.tables, said.figures, "", key, subject=subject)


def _found(recording: Recording, name: str, against: Recording | None, experts: str, pairs: tuple[str, ...]) -> Shown:
    code = [question.get(name), *([] if against is None else [compare])]
    source = hashlib.sha256("".join(map(inspect.getsource, code)).encode()).hexdigest()
    digest, path = f"{recording.digest} {recording.chosen_phase}", str(recording.path)
    if against is not None:
        digest, path = f"{digest} against {against.digest} experts {experts}", f"{path} {against.path}"
    return _result(digest, path, source, name, pairs, recording, against, experts)


def of_measurement(measurement: Measurement, name: str) -> Shown:
    """Runs an analysis of a measurement, or finds its result."""
    source = hashlib.sha256(inspect.getsource(question.get(name)).encode()).hexdigest()
    with st.spinner(f"Computing {name.replace('_', ' ')} …"):
        found = _of_measurement(measurement.digest, str(measurement.path), source, name, measurement)
    if found.missing:
        st.info(plain(f"This measurement holds too little for the figures, so only tables are shown. {found.missing}"))
    return found


@st.cache_resource(max_entries=64, show_spinner=False)
def _of_measurement(digest: str, path: str, source: str, name: str, _measurement: Measurement) -> Shown:
    said = question.ask(_measurement, name)
    key = (digest, source, name, ())
    return Shown(name, _measurement, (), said.result, said.tables, said.figures, said.missing, key)


@st.cache_resource(max_entries=256, show_spinner=False)
def _result(
    digest: str, path: str, source: str, name: str, pairs: tuple[str, ...],
    _recording: Recording, _against: Recording | None, _experts: str,
) -> Shown:  # fmt: skip
    key, module = (digest, source, name, pairs), question.get(name)
    if _against is None and hasattr(module, "viewed") and any(pair.startswith("layer=") for pair in pairs):
        rest = tuple(pair for pair in pairs if not pair.startswith("layer="))  # it says only what is drawn
        kept = _result(digest, path, source, name, rest, _recording, None, _experts)
        seen = module.viewed(kept.result, question.parse_settings(module, pairs))
        return Shown(name, _recording, pairs, seen, module.tables(seen), module.figures(seen), kept.missing, key)
    said = question.ask(_recording, name, settings=pairs, against=_against, experts=_experts)
    return Shown(name, _recording, pairs, said.result, said.tables, said.figures, said.missing, key, _against, _experts)


def names_of_one() -> list[str]:
    """The analyses of one recording, which can be asked of two."""
    return [name for name in question.names() if not question.takes_two(question.get(name))]


def ask(title: str, name: str) -> None:
    """The page's title, the analysis' question, and what its numbers do not show."""
    st.title(title)
    header(name)


def header(name: str) -> None:
    """An analysis' question, and what its numbers do not show."""
    _, _, rest = (inspect.getdoc(question.get(name)) or "").partition("\n\n")
    st.markdown(f"**{plain(question_of(name))}**")
    row = st.container(horizontal=True, gap="small")
    with row.popover("Not shown", icon=":material/help:", type="tertiary", key=f"{name}-not-shown"):
        st.markdown(plain(rest.removeprefix("Not shown:").strip()))
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


def question_of(name: str) -> str:
    """What an analysis asks."""
    return (inspect.getdoc(question.get(name)) or "").partition("\n\n")[0]


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
    missing = [field for field in question.get(name).NEEDS if field not in recording.fields]
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


def every(shown: Shown, *, follow: Mapping[str, str] | None = None) -> None:
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
    part = f"{shown.name}-tables"
    if st.toggle("Tables", key=opened(part), on_change=note_opened, args=(part,)):
        for name in shown.tables:
            table(shown, name)


def _known(shown: Shown, name: str, follow: Mapping[str, str] | None) -> dict[str, str]:
    """What a click can choose: the columns that tell marks apart, or a line's positions."""
    figure = shown.figures[name]
    columns = figure.columns() if isinstance(figure, HeatMap | Points) else [getattr(figure, "x", None)]
    return {column: choice for column, choice in (follow or {}).items() if column in columns}


def show(shown: Shown, name: str, *, follow: Mapping[str, str] | None = None, tag: str = "") -> None:
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
    key = f"{tag}{shown.name}-{name}"
    kept = charts.drawn(shown.key, name, charts.is_dark(), figure)
    charts.draw(figure, key, drawn=type(kept)(kept), follow=follow)  # a copy: choices are outlined in it
    below = st.container(gap=None)
    below.caption(plain(figure.caption))
    with below.container(horizontal=True, gap="small"):
        with st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
            _downloads(key, ("pdf", "svg", "png"), partial(_figure_bytes, shown, name))
            st.code(shown.command, language="bash", wrap_lines=True)
        export_basket.button(shown, name, key)


def table(shown: Shown, name: str, rows: Any = None, *, tag: str = "") -> None:
    """Shows a table, or the given rows of it, with downloads of the whole; `tag` as of `show`."""
    key = f"{tag}{shown.name}-{name}-table"
    st.dataframe(shown.tables[name] if rows is None else rows, hide_index=True, key=key, placeholder="–")
    with st.container(horizontal=True, gap="small"):
        with st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
            _downloads(f"{tag}{shown.name}-{name}", ("csv", "tex"), partial(_table_bytes, shown, name))
            st.code(shown.command, language="bash", wrap_lines=True)
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


def _figure_bytes(shown: Shown, name: str, kind: str) -> bytes:
    from workbench.export.files import figure_bytes

    with DRAWING:
        return figure_bytes(shown.figures[name], kind, provenance=shown.provenance())


def _table_bytes(shown: Shown, name: str, kind: str) -> bytes:
    from workbench.export.files import write_table

    with tempfile.TemporaryDirectory() as folder:
        label = f"{shown.name}-{name}"
        files = write_table(
            shown.tables[name], Path(folder) / name, provenance=shown.provenance(), caption=label, label=label
        )
        return next(file for file in files if file.suffix == f".{kind}").read_bytes()
