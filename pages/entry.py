"""The app as `workbench app` serves it: what nobody foresaw becomes a number on the page and a traceback in the log."""

from typing import Any

import streamlit as st
from components import prefetch
from server import errors
from server.back import Back
from server.gate import Gate
from starlette.middleware import Middleware
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner

_run_script = ScriptRunner._run_script


def _unless_its_page_is_gone(runner: ScriptRunner, asked: Any) -> None:
    """Passes over a poll of a job's progress that was sent from a page that has been left since.

    Streamlit 1.67 runs it all the same: nothing is drawn, and the new page, drawn already, is emptied. That happens
    where the server is slow to answer, as with ten visitors at once (`tests/pages/test_browser.py`).
    """
    fragments = asked.fragment_id_queue
    if asked.is_auto_rerun and fragments and not any(map(runner._fragment_storage.contains, fragments)):
        return
    with prefetch.outlook.page():
        _run_script(runner, asked)


ScriptRunner._run_script = _unless_its_page_is_gone
app = st.App("app.py", middleware=[Middleware(Gate), Middleware(Back)], on_script_error=errors.tell)
