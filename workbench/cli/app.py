"""The command `workbench app`: starts the app on this machine, and for this machine only.

Streamlit runs in a process of its own, which this one waits for; nothing here imports it. What keeps the app to itself
is said on the command line, for a configuration file counts only where Streamlit happens to look for it. Shared or not,
it listens to this machine alone: what others reach is the reverse proxy before it (`docs/guide.md`).
"""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import HostError
from workbench.extras import require
from workbench.files.writing import make_folder
from workbench.jobs.limits import Limits, Rules, rules_to_json
from workbench.paths import PAGES, data_folder, data_folder_option

FLAGS = (
    "--server.address=127.0.0.1",
    "--server.allowedHosts=localhost",
    "--server.allowedHosts=127.0.0.1",
    "--server.allowedHosts=::1",
    "--server.enableCORS=true",
    "--server.enableXsrfProtection=true",
    "--server.maxUploadSize=20",
    "--server.maxWidgetStateSize=4",  # of what a page sends: a session keeps it, whoever it is
    "--server.fileWatcherType=none",
    "--server.headless=true",
    "--server.showEmailPrompt=false",
    "--server.enableAgentApi=false",
    "--server.enableStaticServing=false",
    # Two quick steps back can ask for a large message that Streamlit no longer holds in its cache; then the page dies.
    "--global.minCachedMessageSize=1e12",
    "--browser.gatherUsageStats=false",
    "--client.disableDataExport=true",  # tables are saved as ours, with no cell that a spreadsheet would run
    "--client.showErrorDetails=none",
    "--client.showErrorLinks=false",
    "--client.toolbarMode=viewer",
)
_LIMITS = Limits()
_AUTH = ("redirect_uri", "cookie_secret")  # of the secrets, beside a provider
_PROVIDER = ("client_id", "client_secret", "server_metadata_url")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="app")(start)


def start(
    port: Annotated[int, typer.Option(help="of the page, on this machine")] = 8501,
    data: Annotated[
        Path | None,
        typer.Option(help="data folder: its recordings, uploads and logs; WORKBENCH_DATA, or data here, unless given"),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option(help="folder below which local models may lie; repeatable")
    ] = None,
    corpora: Annotated[list[Path] | None, typer.Option(help="folder below which corpora may lie; repeatable")] = None,
    hub: Annotated[
        bool | None,
        typer.Option(help="fetch models from the hub; else take what its cache has; off where shared, unless given"),
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="for several people, who sign in")] = False,
    proxy_header: Annotated[
        str | None, typer.Option(help="with --shared: the header in which the reverse proxy names the visitor")
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(help=r"with --shared: TOML with \[auth], as st.login wants it")
    ] = None,
    host_name: Annotated[str | None, typer.Option(help="under which the reverse proxy is reached")] = None,
    visitor_jobs: Annotated[int, typer.Option(help="with --shared: of one visitor, at once")] = _LIMITS.jobs,
    visitor_rate: Annotated[
        int, typer.Option(help="with --shared: jobs of one visitor a minute")
    ] = _LIMITS.jobs_per_minute,
    visitor_upload: Annotated[
        int, typer.Option(help="with --shared: bytes that one visitor uploads an hour")
    ] = _LIMITS.upload_bytes_per_hour,
    visitor_tokens: Annotated[int, typer.Option(help="with --shared: tokens of one job")] = _LIMITS.tokens_per_job,
) -> None:
    """Opens the app at http://localhost:PORT; the first start records the bundled corpus with the bundled model."""
    require("streamlit", needed_for="the app")
    _refuse_taken(port)
    limits = Limits(visitor_jobs, visitor_rate, visitor_upload, visitor_tokens) if shared else None
    rules = Rules(
        _folders("--models", models), _folders("--corpora", corpora), not shared if hub is None else hub, limits
    )
    more = log_in(shared=shared, proxy_header=proxy_header, secrets=secrets, host_name=host_name)
    option = "--data" if data is not None else data_folder_option()
    data = data or data_folder()
    make_folder(data, HostError, option=option)
    settings = {"WORKBENCH_DATA": str(data.resolve()), "WORKBENCH_RULES": rules_to_json(rules)}
    settings["WORKBENCH_PROXY_HEADER"] = proxy_header or ""
    raise typer.Exit(_serve([*command(port), *more], settings))


def _serve(command: Sequence[str], settings: Mapping[str, str]) -> int:
    """Runs the server until it ends or this process does, however it does: the exit status.

    The server holds the reading end of a pipe whose other end is here alone. When it is read to its end, this process
    is gone, killed perhaps, and the server ends (`pages/serve.py`), and with it the model's process.
    """
    reading, writing = os.pipe()
    env = {**os.environ, **settings, "WORKBENCH_PARENT": str(reading)}
    try:
        with subprocess.Popen(command, env=env, pass_fds=(reading,)) as server:
            for interruption in (signal.SIGTERM, signal.SIGINT):  # of a Ctrl-C the server may know already
                signal.signal(interruption, lambda *_: server.terminate())
            return max(server.wait(), 0)
    finally:
        os.close(reading)
        os.close(writing)


def command(port: int) -> list[str]:
    """What starts the server.

    Raises:
        HostError: the pages are not there.
    """
    serve, entry = PAGES / "serve.py", PAGES / "entry.py"
    if not entry.is_file():
        raise HostError(f"{entry} is missing, which came with the workbench; install it again.")
    return [sys.executable, str(serve), "run", str(entry), *FLAGS, f"--server.port={port}"]


def log_in(*, shared: bool, proxy_header: str | None, secrets: Path | None, host_name: str | None) -> list[str]:
    """The server's flags for who may come in, and under which name it is reached.

    Raises:
        HostError: a shared app that would know nobody, or would not know whom to believe.
    """
    if host_name is not None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host_name):
        raise HostError(
            f"--host-name is {host_name!r}; a name such as workbench.example.org was expected, without https."
        )
    named = [f"--browser.serverAddress={host_name or 'localhost'}"]
    if host_name is not None:
        named += [f"--server.allowedHosts={host_name}", f"--server.corsAllowedOrigins=https://{host_name}"]
    if not shared:
        if proxy_header is not None or secrets is not None:
            raise HostError(
                "--proxy-header and --secrets say who visits a shared app; add --shared, or leave them out."
            )
        return named
    files = [secrets] if secrets is not None else _usual_secrets()
    auth = [file for file in files if _has_auth(file)]
    if secrets is not None and not auth:
        raise HostError(
            f"--secrets {secrets} has no [auth] with {', '.join(_AUTH)}, and {', '.join(_PROVIDER)} there or below it."
        )
    if (proxy_header is None) == (not auth):
        what = "is told both by --proxy-header and by [auth] in " + str(auth[0]) if auth else "would not be known"
        raise HostError(
            f"--shared: who visits {what}. Give one of the two: --proxy-header X-Forwarded-User, where a reverse proxy "
            "signs people in and sets it, or --secrets FILE with the [auth] of an OpenID provider, as st.login wants "
            "it."
        )
    if auth and importlib.util.find_spec("authlib") is None:
        raise HostError("--shared: st.login needs Authlib, which is not installed: pip install 'moe-workbench[login]'.")
    if proxy_header is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", proxy_header):
        raise HostError(
            f"--proxy-header is {proxy_header!r}; the name of a header, such as X-Forwarded-User, was expected."
        )
    return [*named, *(f"--secrets.files={file.resolve()}" for file in auth[:1])]


def _usual_secrets() -> list[Path]:
    return [folder / ".streamlit" / "secrets.toml" for folder in (Path.cwd(), Path.home(), PAGES)]


def _has_auth(file: Path) -> bool:
    try:
        auth: Any = tomllib.loads(file.read_text(encoding="utf-8")).get("auth", {})
    except (OSError, ValueError):
        return False
    if not isinstance(auth, dict) or not all(auth.get(name) for name in _AUTH):
        return False
    return any(all(each.get(name) for name in _PROVIDER) for each in (auth, *auth.values()) if isinstance(each, dict))


def _folders(option: str, given: Sequence[Path] | None) -> tuple[Path, ...]:
    for folder in given or ():
        if not folder.is_dir():
            raise HostError(f"{option} {folder} is no folder; name one that is there.")
    return tuple(folder.resolve() for folder in given or ())


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise HostError(
                f"--port {port} cannot be used ({error}); end what uses it, or name another, such as 8601."
            ) from error
