"""The app for several people: who is let in, as whom, and what each may do."""

import http.server
import json
import os
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from tests.pages.browser import Visitor, serving
from tests.pages.test_browser import record
from tests.pages.test_pages import PAGES, ROOT, said
from workbench.jobs.limits import Limits, Rules, rules_to_json


@contextmanager
def reverse_proxy(port: int, named: tuple[str, ...]) -> Iterator[int]:
    """A proxy before the app, which names the visitor in a header; it takes one request a connection."""

    class Passing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = []
            while (line := self.rfile.readline()).strip():
                lines.append(line)
            if not lines:
                return
            if b"websocket" not in b"".join(lines).lower():
                lines = [line for line in lines if not line.lower().startswith(b"connection:")]
                lines.append(b"Connection: close\r\n")
            lines += [f"X-Forwarded-User: {name}\r\n".encode() for name in named]
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                upstream.sendall(b"".join(lines) + b"\r\n")
                threading.Thread(target=self.pass_on, args=(upstream,), daemon=True).start()
                while content := upstream.recv(65_536):
                    self.wfile.write(content)

        def pass_on(self, upstream: socket.socket) -> None:
            try:
                while content := self.rfile.read1(65_536):
                    upstream.sendall(content)
            except (OSError, ValueError):  # the other side is done
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A browser that leaves is no error."""

    with Server(("127.0.0.1", 0), Passing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


BUG = """
import inspect
found = inspect.getsource
def getsource(of):
    if getattr(of, "__name__", "") == "analyses.domains.domain_load":
        raise ZeroDivisionError("a secret of the machine")
    return found(of)
inspect.getsource = getsource
"""


@pytest.mark.rest
def test_behind_a_proxy_each_is_known_and_limited_and_nobody_comes_past_it(chrome, tmp_path, recording, monkeypatch):
    import shutil

    shutil.copytree(recording.path, tmp_path / "recordings" / "shared")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BUG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", str(ROOT))]))
    options = ("--shared", "--proxy-header", "X-Forwarded-User", "--visitor-rate", "1")
    with serving(tmp_path, *options) as app:
        port = int(app.url.rpartition(":")[2])
        with reverse_proxy(port, ("ada",)) as ada, reverse_proxy(port, ("bob",)) as bob, \
             reverse_proxy(port, ("mallory", "ada")) as forged:  # fmt: skip
            for way in (port, forged):
                outside = Visitor(chrome, replace(app, url=f"http://127.0.0.1:{way}"))
                outside.open("/record")
                assert "named nobody, or more than one" in outside.heard()
                assert outside.page.get_by_role("button", name="Record").count() == 0
                assert outside.page.get_by_role("heading").count() == 0
                outside.close()
            visitors = [Visitor(chrome, replace(app, url=f"http://127.0.0.1:{way}")) for way in (ada, bob)]
            for visitor, name in zip(visitors, ("ada", "bob"), strict=True):
                record(visitor, f"{name} was here.")
                visitor.page.wait_for_url("**/tokens?*recording=tiny-moe-prompt-*", timeout=90_000)
                visitor.go("Record")
                assert visitor.page.get_by_text(f"Signed in as {name}").is_visible()
                assert visitor.page.get_by_text("Jobs since the app was started (1)").is_visible()
                assert visitor.page.get_by_role("button", name="Release it").count() == 0
                if name == "ada":  # at once: within the minute also where the machine is slow
                    record(visitor, "ada again.")
                    visitor.page.get_by_test_id("stAlert").first.wait_for()
                    assert "jobs were asked for by you within a minute" in visitor.heard()
            visitors[0].open("/specialization?recording=shared&layer=2")
            visitors[0].page.get_by_test_id("stAlert").first.wait_for()
            number = re.search(r"Error ([0-9a-f]{8}): something went wrong that nobody", visitors[0].heard())[1]
            assert "Traceback" not in visitors[0].page.content()
            log = (tmp_path / "logs" / "app.log").read_text()
            assert "Traceback (most recent call last)" in log.partition(f"error {number}\n")[2]
            assert "secret" not in visitors[0].page.content() and "a secret of the machine" in log
            visitors[0].page.get_by_role("button", name="Start anew").click()
            visitors[0].settle()
            assert "layer=" not in visitors[0].address(), "what was chosen is forgotten"
            for visitor in visitors:
                assert visitor.troubles == []
                visitor.close()


@contextmanager
def provider() -> Iterator[str]:
    """An OpenID provider, as far as its door."""

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            base = f"http://127.0.0.1:{self.server.server_address[1]}"
            ways = {f"{way}_endpoint": f"{base}/{way}" for way in ("authorization", "token")}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"issuer": base, "jwks_uri": f"{base}/jwks", **ways}).encode())

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.rest
def test_streamlits_log_in_leads_to_the_provider(chrome, tmp_path):
    with provider() as url:
        secrets = tmp_path / "secrets.toml"
        secrets.write_text(
            '[auth]\nredirect_uri = "http://127.0.0.1:8501/oauth2callback"\nclient_id = "workbench"\n'
            f'cookie_secret = "{"long and random " * 3}"\nclient_secret = "s"\n'
            f'server_metadata_url = "{url}/.well-known/openid-configuration"\n'
        )
        with serving(tmp_path, "--shared", "--secrets", str(secrets)) as app:
            visitor = Visitor(chrome, app)
            visitor.open("/record")
            assert visitor.page.get_by_role("heading").all_inner_texts() == ["MoE workbench"]
            visitor.page.get_by_role("button", name="Sign in").click()
            visitor.page.wait_for_url(f"{url}/authorization?*client_id=workbench*", timeout=60_000)
            visitor.close()


def test_what_nobody_foresaw_is_a_number_and_what_was_foreseen_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(PAGES))
    script = "from server import errors; from workbench.errors import HostError; errors.tell({})"
    told = AppTest.from_string(script.format("ValueError('a secret of the machine')"), default_timeout=60).run()
    assert "a secret" not in told.error[0].value and not told.exception
    number = re.match(r"Error ([0-9a-f]{8}): something went wrong", told.error[0].value)[1]
    assert number in (tmp_path / "logs" / "app.log").read_text()
    assert "a secret of the machine" in (tmp_path / "logs" / "app.log").read_text()
    told = AppTest.from_string(script.format("HostError('no *such* job')"), default_timeout=60).run()
    assert told.error[0].value == r"no \*such\* job"
    troubles = sys.modules.pop("server.errors")
    for handler in list(troubles._log().handlers):
        handler.close()
        troubles._log().removeHandler(handler)


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The app with a log-in of Streamlit's, not yet run."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_RULES", rules_to_json(Rules(limits=Limits())))
    monkeypatch.delenv("WORKBENCH_PROXY_HEADER", raising=False)
    monkeypatch.syspath_prepend(str(PAGES))
    app = AppTest.from_file(str(PAGES / "app.py"), default_timeout=60)
    app.secrets["auth"] = {
        "redirect_uri": "https://x/oauth2callback", "cookie_secret": "s" * 32, "client_id": "i", "client_secret": "c",
        "server_metadata_url": "https://x/.well-known/openid-configuration",
    }  # fmt: skip
    yield app
    sys.modules["components.jobs"]._host.clear()


def test_who_is_not_signed_in_sees_the_way_in_and_nothing_else(shared):
    shared.user = {"is_logged_in": False}
    shared.run()
    assert not shared.exception and not shared.error
    assert [button.label for button in shared.button] == ["Sign in"]
    assert not shared.selectbox and not shared.dataframe and not shared.sidebar.text


def test_each_provider_has_its_button(shared):
    shared.secrets["auth"] = {"redirect_uri": "https://x", "cookie_secret": "s", "google": {}, "okta": {}}
    shared.user = {"is_logged_in": False}
    shared.run()
    assert [button.label for button in shared.button] == ["Sign in with google", "Sign in with okta"]


def test_who_is_signed_in_is_the_owner_of_their_jobs(shared):
    shared.user = {"is_logged_in": True, "iss": "https://x", "sub": "7", "email": "ada@x.org"}
    shared.run()
    shared.switch_page("record.py").run()
    assert [text.value for text in shared.sidebar.text] == ["Signed in as ada@x.org"]
    shared.text_area(key="prompt").set_value("a few words")
    next(button for button in shared.button if button.label == "Record").click().run()
    assert not shared.exception and not shared.error, said(shared)
    host = sys.modules["components.jobs"].host()
    assert {job.owner for job in host.jobs() if job.name.startswith("tiny-moe-prompt")} == {"https://x 7 ada@x.org"}
    assert host.rules.limits == Limits()


@pytest.mark.parametrize(
    ("address", "values", "name"),
    [
        ("127.0.0.1", ["ada"], "ada"),
        ("127.0.0.1", [], ""),
        ("127.0.0.1", ["ada", "mallory"], ""),
        ("127.0.0.1", ["  "], ""),
        ("127.0.0.1", ["a\x1bb"], ""),
        ("127.0.0.1", ["a" * 201], ""),
        ("0.0.0.0", ["ada"], ""),
        (None, ["ada"], ""),
    ],
)
def test_the_proxys_header_counts_on_loopback_and_once(monkeypatch, address, values, name):
    monkeypatch.syspath_prepend(str(PAGES))
    from components import auth

    headers = SimpleNamespace(get_all=lambda header: values if header == "X-User" else [])
    fake = SimpleNamespace(get_option=lambda option: address, context=SimpleNamespace(headers=headers))
    monkeypatch.setattr(auth, "st", fake)
    monkeypatch.setenv("WORKBENCH_RULES", rules_to_json(Rules(limits=Limits())))
    monkeypatch.setenv("WORKBENCH_PROXY_HEADER", "X-User")
    assert auth.visitor() == name
    monkeypatch.delenv("WORKBENCH_RULES")
    assert auth.visitor() == "", "on one's own machine nobody is asked"
