"""The app's process: its data folder, the model host, and jobs as a visitor follows them.

Nothing is computed here. Whatever people wrote (names, prompts, errors that quote them) is shown letter by letter:
through `plain` where Streamlit reads Markdown, as data everywhere else.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from analyses import catalogue
from workbench.errors import WorkbenchError
from workbench.figures.theme import printable
from workbench.jobs.limits import Rules
from workbench.jobs.service import Host, Job
from workbench.models import bundled
from workbench.paths import data_folder as _data_folder
from workbench.recordings import demo
from workbench.recordings.schema import MANIFEST

from . import auth

_LOOKS_KEPT = 200
# Markdown makes a link of an address whatever is escaped in it; a joiner that takes no room keeps it text.
_ADDRESS = re.compile(r"https?:(?=//)|www(?=\.)|@(?=[-\w]+\.)", re.IGNORECASE)
_PHASES = {
    "": "starting the model's process",
    "looking": "looking",
    "asking": "asking the hub for its config; without a network this can take a minute",
    "loading": "loading the model",
    "proving": "proving the capture",
    "recording": "recording",
    "measuring": "trying what works here",
}


def plain(text: object) -> str:
    """Text that Markdown shows letter by letter, with what is invisible, or would turn a line around, made visible."""
    seen = "\n".join(map(printable, str(text).split("\n")))
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", _ADDRESS.sub("\\g<0>\u2060", seen))


@contextmanager
def sentences() -> Iterator[None]:
    """Shows an error of the input's or the machine's making as its sentence."""
    try:
        yield
    except WorkbenchError as error:
        st.error(plain(error), icon=":material/error:")


def data_folder() -> Path:
    """The folder that `workbench app --data` names; else that of the commands."""
    return _data_folder().resolve()


def host() -> Host:
    """The model host, one for all visitors."""
    return _host(str(data_folder()), auth.rules())


@st.cache_resource(show_spinner=False, on_release=Host.stop)
def _host(data: str, _rules: Rules) -> Host:
    """Starts the host; in an empty data folder the bundled corpus is recorded, so that no page is ever empty."""
    started = Host(Path(data), rules=_rules)
    started.start()
    threading.Thread(target=_import_analyses, daemon=True).start()
    look = partial(started.inspect, "tiny-moe")  # what the first page shows, asked before a queue can form
    _looks(data)["tiny-moe"] = Asked(look(), look)
    if not any((Path(data) / "recordings").glob(f"*/{MANIFEST}")):
        started.record(
            model=demo.DEMO_MODEL, corpus="demo", name="demo", fields=demo.DEMO_FIELDS, parent=demo.DEMO_PARENT
        )
    return started


def _import_analyses() -> None:
    """Imports what the pages will need, while the first one is being read."""
    for name in catalogue.of_recordings():
        catalogue.get(name)


@dataclass(frozen=True)
class Asked:
    """A job of the host's, and what asks for it again."""

    job: str
    ask: Callable[[], str]


def submit(key: str, ask: Callable[..., str]) -> None:
    """Asks for a job of this visit, in the visitor's name.

    Raises:
        WorkbenchError: what the host refuses.
    """
    _my_jobs()[key] = _asked(ask)


def _asked(ask: Callable[..., str]) -> Asked:
    mine = partial(ask, owner=auth.visitor())
    return Asked(mine(), mine)


def look_at(model: str) -> dict[str, Any] | None:
    """What a model is made of, once it was looked at, for all visitors; until then the progress is shown."""
    looks = _looks(str(data_folder()))
    if model not in looks or looks[model].job not in {job.id for job in host().jobs()}:  # it ended long ago
        looks[model] = _asked(partial(host().inspect, model))
        for old in list(looks)[:-_LOOKS_KEPT]:
            looks.pop(old, None)
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
        _follow(job.id)
        return None
    (st.warning if job.state == "cancelled" else st.error)(plain(_end(job)))
    if st.button("Go on" if job.kind == "record" else "Try again", key=f"again {key}"):
        kept[key] = _asked(kept[key].ask)
        st.rerun()
    return None


def told_of(key: str) -> str:
    """The name of the recording whose failure or cancelling `answer` shows; empty where it shows none."""
    found = [job for job in host().jobs() if key in _my_jobs() and job.id == _my_jobs()[key].job]
    return found[0].name if found and found[0].state in ("failed", "cancelled") else ""


def forget(key: str) -> None:
    """Forgets a job of this visit."""
    _my_jobs().pop(key, None)


def _my_jobs() -> dict[str, Asked]:
    return st.session_state.setdefault("jobs", {})


@st.cache_resource(show_spinner=False)
def _looks(data: str) -> dict[str, Asked]:
    return {}


def _follow(job_id: str) -> None:
    """Shows a job's progress twice a second; where many are waiting less often, for all their pages ask one server."""
    waiting = sum(job.state in ("queued", "running") for job in host().jobs())
    st.fragment(_progress, run_every=max(0.5, 0.25 * waiting))(job_id)


def _progress(job_id: str) -> None:
    job = host().job(job_id)
    if job.state not in ("queued", "running"):
        st.rerun()
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.progress(job.done_tokens / job.total_tokens if job.total_tokens else 0.0, text=plain(_words(job)))
    if job.owner == auth.visitor():
        right.button("Cancel", key=f"cancel {job_id}", on_click=_cancel, args=(job_id,))


def _cancel(job_id: str) -> None:
    with sentences():
        host().cancel(job_id, owner=auth.visitor())


def _words(job: Job) -> str:
    title = job.title if job.owner in ("", auth.visitor()) else "Another visitor's job"
    if job.state == "queued":
        return f"{title}: waiting, place {job.place} in the queue"
    if not job.total_tokens:
        return f"{title}: {_PHASES[job.phase]} …"
    if job.kind == "profile":
        return f"{title}: measuring, step {job.done_tokens + 1:,} of {job.total_tokens:,}"
    left = f", {job.left_s:,.0f} s left" if job.left_s is not None else ""
    done = f"{job.done_tokens:,} of {job.total_tokens:,} tokens"
    loaded = f" (the model was loaded in {job.load_s:,.1f} s)" if job.load_s is not None else ""
    return f"{title}: {done}, {job.tokens_per_s:,.0f} tokens/s{left}{loaded}"


def _end(job: Job) -> str:
    if job.state != "cancelled" or not job.total_tokens:
        return job.message
    done = f"{job.done_tokens:,} of {job.total_tokens:,} tokens"
    return f"Cancelled after {done}. The parts that are whole by then are kept, and “Go on” records the rest."


def rows() -> list[dict[str, Any]]:
    """The jobs of the visitor, newest first, for a table."""
    return [
        {
            "asked": job.submitted[:19].replace("T", " ") + " UTC",
            "job": f"{job.kind}: {job.title}",
            "state": job.state if job.state != "queued" else f"place {job.place} in the queue",
            "tokens": job.done_tokens or None,
            "tokens/s": round(job.tokens_per_s) or None,
            "loading, s": job.load_s,
            "then, s": job.run_s,
            "told": job.message,
        }
        for job in host().jobs()
        if job.owner == auth.visitor()
    ]


def wait_for_the_first() -> None:
    """Shows how the first recording comes along, where there is none yet, and stops the page."""
    if _active():
        st.info("There is no recording yet. The first one is being made; this page opens by itself.")
        _follow(_active()[-1].id)
    else:
        st.info("There is no recording yet. Make one on the Record page.")
        st.page_link("record.py", label="Record")
    st.stop()


def follow_first() -> None:
    """Shows how a recording comes along that is not this visit's own, where there is one."""
    mine = {asked.job for asked in _my_jobs().values()}
    others = [job for job in _active() if job.id not in mine]
    if others:
        _follow(others[-1].id)


def _active() -> list[Job]:
    return [job for job in host().jobs() if job.kind == "record" and job.state in ("queued", "running")]


def known_models() -> list[str]:
    """What can be chosen without typing: bundled models, and the folders below those that the app was started with."""
    return [*bundled.bundled_names(), *host().rules.local_models(data_folder())]


def known_corpora() -> list[str]:
    """The bundled corpus, and the files in the folders that the app was started with."""
    return ["demo", *host().rules.local_corpora(data_folder())]


def uploaded_corpus(upload: Any) -> str:
    """Keeps an uploaded corpus in the data folder, once it is one.

    Raises:
        CorpusError: it is no corpus; the line is named.
        HostError: the visitor uploaded too much.
    """
    return host().keep_upload(upload.name, upload.getvalue(), owner=auth.visitor())
