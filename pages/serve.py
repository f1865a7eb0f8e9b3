"""Starts Streamlit in this process, and readies meanwhile what the first visitor would else wait for.

    python pages/serve.py run pages/entry.py [OPTIONS OF STREAMLIT]

`workbench app` runs it. Under `streamlit run pages/app.py` all is the same, but for the first page's wait.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from streamlit.web.cli import main

from workbench.errors import WorkbenchError

_HEAD_START_S = 0.5
"""Of the server, so that it answers before the imports here keep the process busy."""
_GRACE_S = 10.0


def _ready() -> None:
    """The host, the recording that opens by itself, what is first shown of it; what goes wrong is said where needed."""
    time.sleep(_HEAD_START_S)
    from components import jobs, prefetch, prefetch_plan, recordings

    with contextlib.suppress(WorkbenchError):
        jobs.host()
        for name in list(recordings.finished())[-1:]:
            prefetch_plan.ready(recordings.opened(name))
    prefetch.outlook.begin()


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone: then its end of a pipe is closed."""
    with contextlib.suppress(OSError):
        os.set_inheritable(parent, False)
        while os.read(parent, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    if started_by := os.environ.pop("WORKBENCH_PARENT", ""):
        threading.Thread(target=_end_with, args=(int(started_by),), daemon=True).start()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    threading.Thread(target=_ready, daemon=True).start()
    sys.exit(main(prog_name="streamlit"))
