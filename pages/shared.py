"""What the pages share: data folder, model host, choices that stand in the address, figures and tables with downloads.

Nothing is computed here. Whatever people wrote (names, prompts, tokens, errors that quote them) is shown letter by
letter: through `plain` where Streamlit reads Markdown, as data everywhere else.
"""

import hashlib
import inspect
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import _batch
from workbench.corpus import Corpus
from workbench.errors import AnalysisError, RecordingError, WorkbenchError
from workbench.figures.screen import screen
from workbench.figures.spec import Figure, TokenStrip
from workbench.figures.theme import DARK, LIGHT
from workbench.host import Host, Job
from workbench.recording import MANIFEST, Recording, read_manifest

TOKENS_SHOWN = 160
_MODEBAR = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "toImage"]}
_DRAWING = threading.Lock()  # matplotlib's settings are one for the whole process


# The process


def data_folder() -> Path:
    """The folder that `workbench app --data` names; else the checkout's."""
    return Path(os.environ.get("WORKBENCH_DATA", Path(__file__).resolve().parent.parent / "data")).resolve()


def host() -> Host:
    """The model host, one for all visitors."""
    return _host(str(data_folder()))


@st.cache_resource(show_spinner=False, on_release=Host.stop)
def _host(data: str) -> Host:
    """Starts the host; in an empty data folder the bundled corpus is recorded, so that no page is ever empty."""
    started = Host(Path(data))
    started.start()
    threading.Thread(target=_import_analyses, daemon=True).start()
    look = partial(started.inspect, "tiny-moe")  # what the first page shows, asked before a queue can form
    _looks(data)["tiny-moe"] = Asked(look(), look)
    if not any((Path(data) / "recordings").glob(f"*/{MANIFEST}")):
        started.record(model="tiny-moe", corpus="demo", name="demo")
    return started


def _import_analyses() -> None:
    """Imports what the pages will need, while the first one is being read."""
    for name in _batch.names():
        _batch.get(name)


@contextmanager
def sentences() -> Iterator[None]:
    """Shows an error of the input's or the machine's making as its sentence."""
    try:
        yield
    except WorkbenchError as error:
        st.error(plain(error), icon=":material/error:")


def plain(text: object) -> str:
    """Text that Markdown shows letter by letter."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text))


def is_dark() -> bool:
    """Whether the visitor's page is dark."""
    return bool(st.context.theme) and st.context.theme.type == "dark"


# Choices, which stand in the address


def enter(page: Any) -> None:
    """Notes where the visitor comes from: what was chosen before holds on a new page, and where the address is bare.

    Between two pages the Back button passes the bare address of the later one. It is left as it is then, for writing
    to it would lead forward again.
    """
    new = st.session_state.get("page") != page.url_path
    st.session_state.update(page=page.url_path, new_page=new, bare=not st.query_params, on_page=set())
    st.session_state.setdefault("chosen", {})


def write_address() -> None:
    """Writes the choices of this page into the address, all at once: each writing is a step of the Back button."""
    here = _chosen_here()
    passing = st.session_state["bare"] and not st.session_state["new_page"]
    if not passing and any(st.query_params.get(name) != text for name, text in here.items()):
        st.query_params.update(here)


def _chosen_here() -> dict[str, str]:
    return {name: text for name, text in st.session_state["chosen"].items() if name in st.session_state["on_page"]}


def choose(
    label: str, name: str, options: Sequence[Any], *, default: Any, quiet: bool = False, place: Any = None, **how: Any
) -> Any:
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
        how: As of `st.selectbox`.
    """
    by_text = {str(option): option for option in options}
    asked = _asked(name)
    if how.get("accept_new_options") and asked:
        by_text.setdefault(asked, asked)
    if asked is not None and asked not in by_text:
        _tell_unknown(label, name, list(by_text), quiet=quiet)
    st.session_state[name] = by_text.get(asked or "", default)
    index = {"index": None} if default is None else {}
    chosen = (place or st.sidebar).selectbox(label, options, key=name, on_change=_note, args=(name,), **index, **how)
    return _keep(name, chosen)


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
    asked = st.query_params.get(name, st.session_state["chosen"].get(name))
    st.warning(
        f"There is no {plain(label.lower())} “{plain(asked)}” here; there are {plain(there)}. Choose another.",
        icon=":material/link_off:",
    )


def choose_recording() -> Recording:
    """The recording chosen in the sidebar, checked and open.

    Stops the page where there is none yet, and shows how the first one comes along.

    Raises:
        RecordingError: the address names a recording that is not there, is damaged, unfinished, or of a newer schema.
    """
    names = list(finished_recordings())
    if not names:
        _wait_for_the_first()
    asked = _asked("recording")
    if asked is not None and asked not in names:
        st.session_state["recording"] = None
        st.sidebar.selectbox("Recording", names, index=None, key="recording", on_change=_note, args=("recording",))
        _refuse_recording(asked)
    # Newest on top; the oldest unless the address says otherwise, for it is the one that stays the same.
    return open_recording(choose("Recording", "recording", names, default=names[-1]))


def open_recording(name: str) -> Recording:
    """A recording of the data folder, its manifest and row counts checked, and every digest once."""
    folder = data_folder() / "recordings" / name
    return _recording(str(folder), (folder / MANIFEST).stat().st_mtime_ns)


@st.cache_resource(max_entries=8, show_spinner="Checking the recording …")
def _recording(path: str, changed_ns: int) -> Recording:
    recording = Recording.open(path)
    recording.verify()
    return recording


def _refuse_recording(name: str) -> None:
    folder = data_folder() / "recordings" / Path(name).name
    if Path(name).name == name and folder.is_dir():
        Recording.open(folder)  # says what is wrong with it
    raise RecordingError(
        f"there is no recording {name!r} in {folder.parent}. Choose another in the sidebar, or record it."
    )


def finished_recordings() -> dict[str, dict[str, Any]]:
    """The manifests of the recordings that can be opened, newest first."""
    return {name: found for name, found in all_recordings().items() if found.get("status") == "closed"}


def all_recordings() -> dict[str, dict[str, Any]]:
    """The manifests of all recordings, newest first; of one that cannot be read an `error`."""
    found = (data_folder() / "recordings").glob(f"*/{MANIFEST}")
    times = sorted(((file.stat().st_mtime_ns, file.parent) for file in found), reverse=True)
    return {folder.name: _manifest(str(folder), changed) for changed, folder in times}


@st.cache_data(max_entries=500, show_spinner=False)
def _manifest(folder: str, changed_ns: int) -> dict[str, Any]:
    try:
        return read_manifest(Path(folder))
    except RecordingError as error:
        return {"error": str(error)}


def choose_layer(recording: Recording) -> int | None:
    """The MoE layer chosen in the sidebar, the middle one at first; None where there is none."""
    layers = recording.moe_layers
    return choose("Layer", "layer", layers, default=layers[len(layers) // 2]) if layers else None


def choose_expert(recording: Recording, layer: int | None) -> int | None:
    """The expert chosen in the sidebar; None for the busiest."""
    experts = range(recording.router(layer).n_experts) if layer is not None else ()
    return choose("Expert", "expert", list(experts), default=None, placeholder="the busiest")


def choose_document(recording: Recording) -> tuple[str, int, int | None]:
    """The document chosen in the sidebar, the first of its tokens that are shown, and the token chosen, if any."""
    lengths = _lengths(recording.digest, recording)
    document = choose("Document", "document", list(lengths), default=next(iter(lengths)), quiet=True)
    n_tokens = lengths[document]
    asked = _asked("token")
    known = asked is None or (asked.isdecimal() and int(asked) < n_tokens)
    if not known:
        _tell_unknown("Token", "token", ["0", *["…"] * 5, str(n_tokens - 1)], quiet=True)
    st.session_state["token"] = int(asked) if asked is not None and known else None
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


@st.cache_data(max_entries=8, show_spinner=False)
def _lengths(digest: str, _recording: Recording) -> dict[str, int]:
    documents = _recording.documents().sort_values("document")
    return dict(zip(documents["id"].tolist(), documents["tokens"].tolist(), strict=True))


# Results


@dataclass(frozen=True, eq=False)
class Shown:
    """An analysis' result, ready to be shown.

    Attributes:
        name: Of the analysis.
        recording: What it was asked of.
        settings: As `key=value`, those that are not defaults.
        result: As the analysis gave it.
        tables: By name.
        figures: By name; none where the recording holds too little for them.
        missing: Why there are no figures.
        key: Says all that it depends on.
    """

    name: str
    recording: Recording
    settings: tuple[str, ...]
    result: Any
    tables: Mapping[str, Any]
    figures: Mapping[str, Figure]
    missing: str
    key: tuple[Any, ...]

    @property
    def command(self) -> str:
        """What makes it again."""
        return _batch.command(self.recording, self.name, settings=self.settings)


def result(recording: Recording, name: str, **settings: Any) -> Shown:
    """Runs an analysis, or finds its result, which is kept by the recording's content, the source and the settings."""
    module = _batch.get(name)
    pairs = tuple(f"{key}={value}" for key, value in settings.items() if value is not None)
    source = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    found = _result(recording.digest, str(recording.path), source, name, pairs, recording)
    if found.missing:
        st.info(plain(f"This recording holds too little for the figures, so only tables are shown. {found.missing}"))
    return found


@st.cache_resource(max_entries=64, show_spinner="Computing …")
def _result(digest: str, path: str, source: str, name: str, pairs: tuple[str, ...], _recording: Recording) -> Shown:
    module = _batch.get(name)
    found = module.run(_recording, _batch.parse_settings(module, pairs))
    figures, missing = {}, ""
    try:
        figures = module.figures(found)
    except AnalysisError as error:  # one short prompt has no pairs of documents to compare
        missing = str(error)
    return Shown(name, _recording, pairs, found, module.tables(found), figures, missing, (digest, source, name, pairs))


def ask(title: str, name: str) -> None:
    """The page's title, the analysis' question, and what its numbers do not show."""
    question, _, rest = (inspect.getdoc(_batch.get(name)) or "").partition("\n\n")
    st.title(title)
    left, right = st.columns([5, 1], vertical_alignment="center")
    left.markdown(f"**{plain(question)}**")
    with right.popover("Not shown", icon=":material/help:", type="tertiary"):
        st.markdown(plain(rest.removeprefix("Not shown:").strip()))


def facts(named: Mapping[str, str]) -> None:
    """A row of facts, each under its name."""
    row = st.container(horizontal=True)
    for name, value in named.items():
        row.metric(name, plain(value), width="content")


def show(shown: Shown, name: str, *, follow: Mapping[str, str] | None = None) -> None:
    """Draws a figure with its caption and downloads.

    Args:
        shown: The result.
        name: The figure; nothing is drawn where the result has none of that name.
        follow: Columns of its marks, with the choices that they are: a click on a mark chooses it, and the mark that
            is chosen is outlined.
    """
    figure = shown.figures.get(name)
    if figure is None:
        return
    key = f"{shown.name}-{name}"
    drawn = _drawn(shown.key, name, is_dark(), figure)
    draw(figure, key, drawn=type(drawn)(drawn), follow=follow)  # a copy: choices are outlined in it
    below = st.container(gap=None)
    below.caption(plain(figure.caption))
    with below.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
        _downloads(key, ("pdf", "svg", "png"), partial(_figure_bytes, shown, name))
        st.code(shown.command, language="bash", wrap_lines=True)


@st.cache_resource(max_entries=32, show_spinner=False)
def _drawn(result: tuple[Any, ...], name: str, dark: bool, _figure: Figure) -> Any:
    return screen(_figure, dark=dark)


def draw(
    figure: Figure, key: str, *, drawn: Any = None, follow: Mapping[str, str] | None = None, gaps: bool = False
) -> None:
    """Draws a figure in the page's colours.

    Args:
        figure: What to draw.
        key: Of the chart.
        drawn: It, drawn already.
        follow: As of `show`.
        gaps: Whether the cells of a heat map are kept apart.
    """
    ink = DARK if is_dark() else LIGHT
    drawn = screen(figure, dark=is_dark()) if drawn is None else drawn
    drawn.update_layout(modebar={"bgcolor": "rgba(0,0,0,0)", "color": ink.faint, "activecolor": ink.text})
    if isinstance(figure, TokenStrip):
        drawn.update_layout(margin={"l": 0})  # it has no axis to leave room for, and its letters want the width
    if gaps:
        drawn.update_traces(xgap=2, ygap=2, selector={"type": "heatmap"})
        drawn.update_layout(plot_bgcolor=ink.missing)
    if follow:
        _outline(drawn, {column: st.session_state["chosen"].get(choice) for column, choice in follow.items()})
    st.plotly_chart(
        drawn,
        key=key,
        theme=None,
        on_select=partial(_follow, key, follow) if follow else "ignore",
        selection_mode="points",
        config=_MODEBAR,
        alt=figure.alt,
    )


def _follow(key: str, follow: Mapping[str, str]) -> None:
    points = st.session_state[key]["selection"]["points"]
    if points:
        pick(**{choice: points[0]["customdata"][column] for column, choice in follow.items()})


def _outline(drawn: Any, chosen: Mapping[str, Any]) -> None:
    """Outlines the marks of what is chosen."""
    ink = DARK if is_dark() else LIGHT
    for trace in drawn.data:
        rows = trace.customdata if trace.customdata is not None else ()
        at = [i for i, row in enumerate(rows) if all(str(row[column]) == text for column, text in chosen.items())]
        if not at:
            continue
        if trace.type == "bar":  # a token: plotly gives selected bars no border of their own
            borders = [(3, ink.text) if i in at else (1, ink.faint) for i in range(len(rows))]
            trace.marker.line.width, trace.marker.line.color = map(list, zip(*borders, strict=True))
        elif trace.mode == "markers":  # the unseen squares over the cells of a heat map
            for i in at:
                cell = {"x0": trace.x[i] - 0.5, "x1": trace.x[i] + 0.5, "y0": trace.y[i] - 0.5, "y1": trace.y[i] + 0.5}
                for line in ({"color": "black", "width": 5}, {"color": "white", "width": 2}):  # seen on any colour
                    drawn.add_shape(type="rect", xref=trace.xaxis, yref=trace.yaxis, **cell, line=line)
        else:
            trace.marker.size = [2 * trace.marker.size if i in at else trace.marker.size for i in range(len(rows))]


def table(shown: Shown, name: str, rows: Any = None) -> None:
    """Shows a table, or the given rows of it, with downloads of the whole."""
    key = f"{shown.name}-{name}-table"
    st.dataframe(shown.tables[name] if rows is None else rows, hide_index=True, key=key)
    with st.popover("Save", icon=":material/download:", type="tertiary", key=f"{key}-save"):
        _downloads(f"{shown.name}-{name}", ("csv", "tex"), partial(_table_bytes, shown, name))
        st.code(shown.command, language="bash", wrap_lines=True)


@contextmanager
def folded(title: str) -> Iterator[bool]:
    """A part of the page that is folded away at first; whether it is open, for what is folded is not made."""
    box = st.expander(title, key=title, on_change="rerun")
    with box:
        yield bool(box.open)


def show_token(at_layer: Any, at_all: Any) -> None:
    """The chosen token: its row at the layer, and its first expert at every layer, to be opened."""
    st.dataframe(at_layer, hide_index=True, key="token-row")
    row = st.container(horizontal=True)
    for layer, expert in zip(at_all["layer"].tolist(), at_all["top1"].tolist(), strict=True):
        there = {"layer": str(layer), "expert": str(expert), "recording": st.session_state["recording"]}
        row.page_link("utilization.py", label=f"L{layer} E{expert}", query_params=there, width="content")


def _downloads(stem: str, kinds: Sequence[str], make: Callable[[str], bytes]) -> None:
    row = st.container(horizontal=True)
    for kind in kinds:  # made when it is clicked, and not before
        file = f"{stem}.{kind}"
        row.download_button(kind.upper(), partial(make, kind), file, key=f"save {file}", on_click="ignore")


def _figure_bytes(shown: Shown, name: str, kind: str) -> bytes:
    from workbench.export import write_figure

    with tempfile.TemporaryDirectory() as folder, _DRAWING:
        files = write_figure(shown.figures[name], Path(folder) / name, provenance=_provenance(shown))
        return next(file for file in files if file.suffix == f".{kind}").read_bytes()


def _table_bytes(shown: Shown, name: str, kind: str) -> bytes:
    from workbench.export import write_table

    with tempfile.TemporaryDirectory() as folder:
        label = f"{shown.name}-{name}"
        files = write_table(
            shown.tables[name], Path(folder) / name, provenance=_provenance(shown), caption=label, label=label
        )
        return next(file for file in files if file.suffix == f".{kind}").read_bytes()


def _provenance(shown: Shown) -> Any:
    from workbench.export import Provenance, Source

    model, module = shown.recording.manifest["model"], _batch.get(shown.name)
    return Provenance(
        analysis=shown.name,
        command=shown.command,
        sources=(Source(digest=shown.recording.digest, model=model["name"], revision=model["revision"] or None),),
        settings=asdict(_batch.parse_settings(module, shown.settings)),
    )


# Jobs


@dataclass(frozen=True)
class Asked:
    """A job of the host's, and what asks for it again."""

    job: str
    ask: Callable[[], str]


def submit(key: str, ask: Callable[[], str]) -> None:
    """Asks for a job of this visit.

    Raises:
        WorkbenchError: what the host refuses.
    """
    _my_jobs()[key] = Asked(ask(), ask)


def look_at(model: str) -> dict[str, Any] | None:
    """What a model is made of, once it was looked at, for all visitors; until then the progress is shown."""
    looks = _looks(str(data_folder()))
    if model not in looks:
        ask = partial(host().inspect, model)
        looks[model] = Asked(ask(), ask)
    return answer(model, looks)


def look_again(model: str) -> None:
    """Forgets what was seen of a model: its folder or the free memory may have changed."""
    _looks(str(data_folder())).pop(model, None)


def answer(key: str, jobs: dict[str, Asked] | None = None) -> dict[str, Any] | None:
    """The result of a job that was asked for; while it has none, None, and its progress or its failure is shown."""
    kept = _my_jobs() if jobs is None else jobs
    if key not in kept:
        return None
    job = host().job(kept[key].job)
    if job.state == "done":
        return job.result
    if job.state in ("queued", "running"):
        st.fragment(_progress, run_every=0.5)(job.id)
        return None
    (st.warning if job.state == "cancelled" else st.error)(plain(job.message))
    if st.button("Go on" if job.kind == "record" else "Try again", key=f"again {key}"):
        kept[key] = Asked(kept[key].ask(), kept[key].ask)
        st.rerun()
    return None


def forget(key: str) -> None:
    """Forgets a job of this visit."""
    _my_jobs().pop(key, None)


def _my_jobs() -> dict[str, Asked]:
    return st.session_state.setdefault("jobs", {})


@st.cache_resource(show_spinner=False)
def _looks(data: str) -> dict[str, Asked]:
    return {}


def _progress(job_id: str) -> None:
    job = host().job(job_id)
    if job.state not in ("queued", "running"):
        st.rerun()
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.progress(job.done_tokens / job.total_tokens if job.total_tokens else 0.0, text=plain(_words(job)))
    right.button("Cancel", key=f"cancel {job_id}", on_click=host().cancel, args=(job_id,))


def _words(job: Job) -> str:
    if job.state == "queued":
        return f"{job.title}: waiting, place {job.place} in the queue"
    if not job.total_tokens:
        return f"{job.title}: {'loading the model, proving the capture' if job.kind == 'record' else 'looking'} …"
    left = f", {job.left_s:,.0f} s left" if job.left_s is not None else ""
    done = f"{job.done_tokens:,} of {job.total_tokens:,} tokens"
    return f"{job.title}: {done}, {job.tokens_per_s:,.0f} tokens/s{left}"


def _wait_for_the_first() -> None:
    active = [job for job in host().jobs() if job.kind == "record" and job.state in ("queued", "running")]
    if active:
        st.info("There is no recording yet. The first one is being made; this page opens by itself.")
        st.fragment(_progress, run_every=0.5)(active[-1].id)
    else:
        st.info("There is no recording yet. Make one on the Record page.")
        st.page_link("record.py", label="Record")
    st.stop()


def uploaded_corpus(upload: Any) -> str:
    """Keeps an uploaded corpus in the data folder, once it is one.

    Raises:
        CorpusError: it is no corpus; the line is named.
    """
    content = upload.getvalue()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(upload.name).stem)[:40] or "corpus"
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"{stem}.jsonl"
        draft.write_bytes(content)
        Corpus.read(draft)
    kept = data_folder() / "uploads" / hashlib.sha256(content).hexdigest()[:12] / f"{stem}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return str(kept)


def open_tokens(recording: str) -> None:
    """Opens the page of a recording's tokens."""
    st.switch_page("tokens.py", query_params={"recording": recording})


def recording_rows() -> list[dict[str, Any]]:
    """What each recording holds, for a table."""
    rows = []
    for name, manifest in all_recordings().items():
        if "error" in manifest:
            rows.append({"recording": name, "state": manifest["error"]})
            continue
        closed, made = manifest["status"] == "closed", manifest.get("finished", manifest["created"])
        rows.append(
            {
                "recording": name,
                "state": "finished" if closed else "not finished",
                "model": manifest["identity"]["model"],
                "corpus": manifest["corpus"]["name"],
                "documents": sum(part["documents"]["rows"] for part in manifest["parts"]) if closed else None,
                "tokens": sum(part["tokens"]["rows"] for part in manifest["parts"]) if closed else None,
                "fields": ", ".join(manifest["fields"]),
                "capture": "skipped" if isinstance(manifest["check"], str) else "proved",
                "made": made[:16].replace("T", " ") + " UTC",
            }
        )
    return rows
