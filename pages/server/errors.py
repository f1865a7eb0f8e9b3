"""Errors that nobody foresaw: the visitor sees a number, the log has the traceback under it."""

import logging
import secrets
import threading
import traceback
from logging.handlers import RotatingFileHandler

import streamlit as st

from workbench.errors import WorkbenchError

_LOG_BYTES, _LOGS_KEPT = 10 * 2**20, 3
_OPENING = threading.Lock()


def tell(error: Exception) -> bool:
    """Notes an error in the data folder's `logs/app.log`, and shows its number in the place of Streamlit's message."""
    from components import jobs  # not above: the server would answer its first request only after all that it imports

    if isinstance(error, WorkbenchError):  # of a callback or a fragment
        st.error(jobs.plain(error), icon=":material/error:")
        return True
    number = secrets.token_hex(4)
    _log().error("error %s\n%s", number, "".join(traceback.format_exception(error)))
    st.error(
        f"Error {number}: something went wrong that nobody foresaw. The log of the app has it under this number "
        "(logs/app.log in the data folder). Reload the page to go on; if it comes again, start the page anew, without "
        "what was chosen.",
        icon=":material/error:",
    )
    st.button("Start anew", key="start-anew", on_click=_start_anew, icon=":material/restart_alt:")
    return True


def _start_anew() -> None:
    """Forgets what the address and this visit chose: one of it may be what the page cannot be drawn with."""
    for name in ("chosen", "written", "kept_aside", "mapped", "found", "not_found"):
        st.session_state.pop(name, None)
    st.query_params.clear()


def _log() -> logging.Logger:
    from components import jobs

    log = logging.getLogger("moe-workbench.app")
    with _OPENING:
        if not log.handlers:
            folder = jobs.data_folder() / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(
                folder / "app.log", maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT, encoding="utf-8"
            )
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            log.addHandler(handler)
            log.propagate = False  # it stands in Streamlit's own output already, without the number
    return log
