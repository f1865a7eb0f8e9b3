"""`workbench app`: what it starts, and what it refuses."""

import socket
import subprocess
import sys

import pytest

from workbench import app
from workbench.errors import HostError


def test_it_serves_this_machine_only_and_tells_nobody_about_errors():
    command = app.command(8501)
    assert [part.rpartition("/")[2] for part in command[1:4]] == ["serve.py", "run", "served.py"]
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
    with pytest.raises(HostError, match=r"--data .*file cannot be made .*; name a folder that can be written"):
        app.start(port=port, data=tmp_path / "file")


def test_pages_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "ROOT", tmp_path)
    with pytest.raises(HostError, match=r"served\.py is missing: the app runs from a checkout"):
        app.command(8501)


def test_the_command_is_there_and_imports_neither_streamlit_nor_torch():
    code = (
        "import sys; sys.argv = ['workbench', 'app', '--help']\n"
        "from workbench.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'streamlit'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout and "--data" in done.stdout
