"""`workbench app`: what it starts, and what it refuses."""

import shutil
import signal
import socket
import subprocess
import sys

import pytest
import typer
from rich.text import Text

from tests.hosting import gone, until
from tests.pages.browser import serving
from tests.tiers import often
from workbench.cli import app, main
from workbench.errors import HostError


def test_it_serves_this_machine_only_and_tells_nobody_about_errors():
    command = app.command(8501)
    assert [part.rpartition("/")[2] for part in command[1:4]] == ["serve.py", "run", "entry.py"]
    assert {
        "--server.address=127.0.0.1",
        "--server.allowedHosts=localhost",
        "--server.enableXsrfProtection=true",
        "--server.maxUploadSize=20",
        "--client.disableDataExport=true",
        "--client.showErrorDetails=none",
        "--browser.gatherUsageStats=false",
        "--server.port=8501",
    } <= set(command)


def test_a_taken_port_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"--port {port} cannot be used .* name another, such as 8601"):
            app.start(port=port, data=tmp_path)
    with pytest.raises(HostError, match="--port 99999 cannot be used"):
        app.start(port=99_999, data=tmp_path)


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(HostError, match=r"file cannot be made: .*file is a file\. Name another --data"):
        app.start(port=port, data=tmp_path / "file")


def test_pages_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "PAGES", tmp_path)
    with pytest.raises(HostError, match=r"entry\.py is missing, which came with the workbench; install it again"):
        app.command(8501)


def test_the_command_is_there_and_imports_neither_streamlit_nor_torch():
    code = (
        "import sys; sys.argv = ['workbench', 'app', '--help']\n"
        "from workbench.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'streamlit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout and "--data" in done.stdout


def test_no_help_loses_words_to_markup():
    def commands(command):
        yield command
        for each in getattr(command, "commands", {}).values():
            yield from commands(each)

    texts = [
        text
        for command in commands(typer.main.get_command(main.command_line()))
        for text in (command.help, *(getattr(each, "help", None) for each in command.params))
        if text
    ]
    assert len(texts) > 100
    for text in texts:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), "a bracket wants a backslash before it"


# How it ends


@pytest.mark.parametrize("how", often([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [signal.SIGKILL]))
def test_however_the_command_ends_its_processes_end_with_it(tmp_path, recording, how):
    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    with serving(tmp_path) as running:
        until(running.has_model_process, "the model's process")
        server, worker = running.server().pid, running.model_process().pid
        running.process.send_signal(how)
        until(lambda: gone(server) and gone(worker), "the end of the server and of the model's process")
        assert running.process.wait(30) == (-how if how == signal.SIGKILL else 0)


def test_a_server_that_is_killed_takes_the_models_process_with_it(tmp_path, recording):
    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    with serving(tmp_path) as running:
        until(running.has_model_process, "the model's process")
        server, worker = running.server(), running.model_process().pid
        server.kill()
        until(lambda: gone(worker), "the end of the model's process")


# Who may come in

AUTH = """
[auth]
redirect_uri = "https://workbench.example.org/oauth2callback"
cookie_secret = "long and random"
"""
PROVIDER = """
client_id = "i"
client_secret = "s"
server_metadata_url = "https://login.example.org/.well-known/openid-configuration"
"""


def asked(**how):
    return app.log_in(**{"shared": True, "proxy_header": None, "secrets": None, "host_name": None} | how)


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path, monkeypatch):
    """No secrets of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_shared_app_that_would_know_nobody_is_refused(tmp_path):
    with pytest.raises(
        HostError, match="--shared: who visits would not be known. Give one of the two: --proxy-header X"
    ):
        asked()
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(AUTH)  # without a provider nobody could sign in
    with pytest.raises(HostError, match="who visits would not be known"):
        asked()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(AUTH + PROVIDER)
    assert asked()[-1] == f"--secrets.files={tmp_path / '.streamlit' / 'secrets.toml'}"
    with pytest.raises(HostError, match="who visits is told both by --proxy-header and by .auth. in .*secrets.toml"):
        asked(proxy_header="X-Forwarded-User")


def test_a_log_in_is_the_proxys_or_streamlits(tmp_path):
    assert asked(proxy_header="X-Forwarded-User") == ["--browser.serverAddress=localhost"]
    file = tmp_path / "mine.toml"
    file.write_text(AUTH + "[auth.okta]" + PROVIDER)
    assert asked(secrets=file) == ["--browser.serverAddress=localhost", f"--secrets.files={file}"]
    for text in ("not toml", "auth = 5", AUTH, "[auth]" + PROVIDER):
        file.write_text(text)
        with pytest.raises(HostError, match="mine.toml has no .auth. with redirect_uri, cookie_secret, and client_id"):
            asked(secrets=file)


def test_a_log_in_needs_its_library(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(AUTH + PROVIDER)
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        HostError, match=r"st.login needs Authlib, which is not installed: pip install 'moe-workbench\[log"
    ):
        asked(secrets=tmp_path / "mine.toml")


@pytest.mark.parametrize("how", [{"proxy_header": "X-Forwarded-User"}, {"secrets": "mine.toml"}])
def test_a_log_in_without_sharing_is_refused(how):
    with pytest.raises(HostError, match="say who visits a shared app; add --shared, or leave them out"):
        asked(shared=False, **how)


@pytest.mark.parametrize("header", ["", "X Y", "X:Y", "X\nY", "é"])
def test_a_header_has_a_headers_name(header):
    with pytest.raises(
        HostError, match="--proxy-header is .*; the name of a header, such as X-Forwarded-User, was expected"
    ):
        asked(proxy_header=header)


def test_the_name_of_the_proxy_is_let_in():
    assert asked(proxy_header="X-User", host_name="workbench.example.org") == [
        "--browser.serverAddress=workbench.example.org",
        "--server.allowedHosts=workbench.example.org",
        "--server.corsAllowedOrigins=https://workbench.example.org",
    ]
    for name in ("https://x", "*", "*.x.org", "a b", "x/y", ""):
        with pytest.raises(HostError, match="--host-name is .*; a name such as workbench.example.org was expected"):
            asked(proxy_header="X-User", host_name=name)


def test_shared_or_not_it_listens_to_this_machine_alone():
    assert [flag for flag in app.command(8501) if "server.address" in flag] == ["--server.address=127.0.0.1"]
    assert not [flag for flag in asked(proxy_header="X-User", host_name="x.org") if "server.address" in flag]


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    assert app._folders("--models", [tmp_path / "."]) == (tmp_path,)
    with pytest.raises(HostError, match="--corpora .*none is no folder; name one that is there"):
        app._folders("--corpora", [tmp_path, tmp_path / "none"])
