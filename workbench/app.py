"""The command `workbench app`: starts the app on this machine, and for this machine only.

Streamlit runs in a process of its own, which this one waits for; nothing here imports it. What keeps the app to itself
is said on the command line, for a configuration file counts only where Streamlit happens to look for it.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.errors import HostError

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--server.address=127.0.0.1",
    "--server.allowedHosts=localhost",
    "--server.allowedHosts=127.0.0.1",
    "--server.enableCORS=true",
    "--server.enableXsrfProtection=true",
    "--server.maxUploadSize=20",
    "--server.fileWatcherType=none",
    "--server.headless=true",
    "--server.showEmailPrompt=false",
    # Two quick steps back can ask for a large message that Streamlit no longer holds in its cache; then the page dies.
    "--global.minCachedMessageSize=1e12",
    "--browser.gatherUsageStats=false",
    "--browser.serverAddress=localhost",
    "--client.disableDataExport=true",  # tables are saved as ours, with no cell that a spreadsheet would run
    "--client.showErrorDetails=none",
    "--client.showErrorLinks=false",
    "--client.toolbarMode=viewer",
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="app")(start)


def start(
    port: Annotated[int, typer.Option(help="of the page, on this machine")] = 8501,
    data: Annotated[Path, typer.Option(help="data folder: its recordings, uploads and logs")] = ROOT / "data",
) -> None:
    """Opens the app at http://localhost:PORT; the first start records the bundled corpus with the bundled model."""
    _refuse_taken(port)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"--data {data} cannot be made ({error.strerror}); name a folder that can be written."
        ) from error
    with subprocess.Popen(command(port), env={**os.environ, "WORKBENCH_DATA": str(data.resolve())}) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the server too, which ends itself
        status = server.wait()
    raise typer.Exit(max(status, 0))


def command(port: int) -> list[str]:
    """What starts the server.

    Raises:
        HostError: the pages are not there.
    """
    serve, entry = ROOT / "pages" / "serve.py", ROOT / "pages" / "served.py"
    if not entry.is_file():
        raise HostError(f"{entry} is missing: the app runs from a checkout, installed with pip install --editable.")
    return [sys.executable, str(serve), "run", str(entry), *FLAGS, f"--server.port={port}"]


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise HostError(
                f"--port {port} cannot be used ({error}); end what uses it, or name another, such as 8601."
            ) from error
