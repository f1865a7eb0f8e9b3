"""Every page runs through Streamlit's own test harness over a real recording, and says what an address asks wrongly."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ("models", "record", "tokens", "utilization", "load_balance")


@pytest.fixture
def app(recording, tmp_path, monkeypatch) -> AppTest:
    """The app over a data folder with one recording, `shared`."""
    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "pages"))
    return AppTest.from_file(str(ROOT / "pages" / "app.py"), default_timeout=60)


def said(app: AppTest) -> str:
    return " ".join(element.value for kind in (app.error, app.warning, app.info) for element in kind)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_an_exception(app, page):
    app.run()
    app.switch_page(f"{page}.py").run()
    assert not app.exception
    assert not app.error
    assert app.title


@pytest.mark.parametrize("page", ["tokens", "utilization", "load_balance"])
@pytest.mark.parametrize(("key", "value"), [("recording", "nowhere"), ("layer", "99"), ("layer", "x")])
def test_an_address_that_names_nothing_is_a_sentence(app, page, key, value):
    app.query_params[key] = value
    app.run()
    app.switch_page(f"{page}.py").run()
    assert not app.exception
    if key == "recording" or page != "load_balance":  # that page has no layer to choose
        assert value in said(app)


def test_a_damaged_recording_is_a_sentence(app, tmp_path):
    part = tmp_path / "recordings" / "shared" / "tokens" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    app.run()
    app.switch_page("tokens.py").run()
    assert not app.exception
    assert "was truncated or edited" in said(app)


def test_no_page_imports_torch(recording, tmp_path):
    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    code = (
        "import sys; sys.path.insert(0, 'pages'); from streamlit.testing.v1 import AppTest;"
        "app = AppTest.from_file('pages/app.py', default_timeout=60).run();"
        f"[app.switch_page(f'{{page}}.py').run() for page in {PAGES}];"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {"WORKBENCH_DATA": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
