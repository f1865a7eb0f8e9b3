"""What the running app answers to requests from elsewhere, and how much it lets be uploaded; over HTTP."""

import http.client
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import psutil
import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette.starlette_routes import _METRICS_EXPENSIVE_STATS_TTL_SECONDS as COUNTED_EVERY_S
from websockets.sync.client import connect

from tests.pages.browser import App, serving
from tests.pages.test_pages import PAGES
from workbench.jobs.limits import Limits, Rules, rules_to_json

MIB = 2**20
ENDPOINTS = (
    "/", "/record", "/_stcore/health", "/_stcore/metrics", "/_stcore/host-config", "/media/x.png", "/static/js/x.js",
    "/component/x/index.html", "/_stcore/bidi-components/x/y.js", "/favicon.png", "/auth/login", "/nothing",
)  # fmt: skip


@pytest.fixture(scope="module")
def local(recording, tmp_path_factory) -> Iterator[App]:
    data = tmp_path_factory.mktemp("local")
    shutil.copytree(recording.path, data / "recordings" / "shared")
    with serving(data) as app:
        yield app


@pytest.fixture(scope="module")
def shared(recording, tmp_path_factory) -> Iterator[App]:
    data = tmp_path_factory.mktemp("shared")
    shutil.copytree(recording.path, data / "recordings" / "shared")
    options = ("--shared", "--proxy-header", "X-User", "--host-name", "workbench.example.org")
    with serving(data, *options, "--visitor-upload", str(60 * MIB)) as app:
        yield app


def port(app: App) -> int:
    return int(app.url.rpartition(":")[2])


def ask(app: App, path: str, *, method: str = "GET", host: str | None = "", body: bytes = b"", **headers: str):
    """Status and text; `host` as it stands in the request, the app's own unless given, None for none."""
    connection = http.client.HTTPConnection("127.0.0.1", port(app), timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host or f"127.0.0.1:{port(app)}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    try:
        if body:
            connection.send(body)
    except OSError:  # it was refused before all of it was sent
        pass
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", errors="replace")
    connection.close()
    return answer.status, text


def ask_for_a_socket(app: App, *, host: str = "", **headers: str) -> int:
    key = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    return ask(app, "/_stcore/stream", host=host, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", **key, **headers)[0]


# From where


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_name_that_only_points_here_is_answered_nowhere(local, path):
    assert ask(local, path)[0] != 421
    for host in ("evil.example", f"evil.example:{port(local)}", "127.0.0.1.evil.example", "localhost.evil.example"):
        status, text = ask(local, path, host=host)
        assert status == 421 and "not served under that name" in text, (host, text[:200])


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.2", "a@localhost", "localhost:99999", "[::1", "*", "null"])
def test_a_host_that_is_none_of_ours_is_refused(local, host):
    host = host or "workbench.example.org"  # a name that this app was not started with
    assert ask(local, "/_stcore/metrics", host=host)[0] == 421
    assert ask_for_a_socket(local, host=host) == 403


def test_the_apps_own_names_are_answered(local):
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        for host in (name, f"{name}:{port(local)}", f"{name}:1234"):  # another port: a tunnel's
            assert ask(local, "/_stcore/health", host=host) == (200, "ok")
            assert ask_for_a_socket(local, host=host, Origin=f"http://{host}") == 101


def test_a_page_of_another_port_or_site_is_refused(local):
    here = port(local)
    for origin in (
        "http://localhost:1", f"http://127.0.0.1:{here + 1}", "http://127.0.0.1", f"http://localhost:{here}",
        "http://evil.example", "null", f"http://127.0.0.1:{here}.evil.example", f"file://127.0.0.1:{here}", "x",
        f"http://127.0.0.1:{here}@evil.example",
    ):  # fmt: skip
        assert ask_for_a_socket(local, Origin=origin) == 403, origin
        assert ask(local, "/_stcore/metrics", Origin=origin)[0] == 403, origin
    assert ask_for_a_socket(local, Origin=f"http://127.0.0.1:{here}") == 101
    assert ask(local, "/_stcore/health", Origin=f"http://127.0.0.1:{here}")[0] == 200


def test_the_name_of_the_reverse_proxy_is_answered_where_it_was_given(shared):
    name = "workbench.example.org"
    for host in (name, f"{name}:8443"):
        assert ask(shared, "/_stcore/health", host=host)[0] == 200
        assert ask_for_a_socket(shared, host=host, Origin=f"https://{host}") == 101
    assert ask_for_a_socket(shared, Origin=f"https://{name}") == 101, "a proxy that does not pass the Host on"
    assert ask_for_a_socket(shared, Origin=f"https://{name}:8443") == 403
    assert ask_for_a_socket(shared, host=name, Origin=f"https://sub.{name}") == 403
    assert ask(shared, "/", host=f"sub.{name}")[0] == 421


# How much


@contextmanager
def visiting(app: App, user: str | None) -> Iterator[dict[str, str]]:
    """A session of a visitor, by its WebSocket: what an upload of it sends along."""
    named = {} if user is None else {"X-User": user}
    connection = http.client.HTTPConnection("127.0.0.1", port(app), timeout=60)
    connection.request("GET", "/_stcore/health", headers=named)
    cookie = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
    connection.close()
    token = cookie.partition("=")[2].strip('"')
    how = {"additional_headers": {**named, "Cookie": cookie}, "subprotocols": ["streamlit", token]}
    # A WebSocket's offers are joined with ", ", which Streamlit takes by their places.
    with connect(f"ws://127.0.0.1:{port(app)}/_stcore/stream", origin=app.url, max_size=None, **how) as socket:
        ask_to_run = BackMsg()
        ask_to_run.rerun_script.query_string = ""
        socket.send(ask_to_run.SerializeToString())
        while True:
            said = ForwardMsg()
            said.ParseFromString(socket.recv(timeout=60))
            if said.WhichOneof("type") == "new_session":
                break
        yield {"session": said.new_session.initialize.session_id, "Cookie": cookie, "X_Xsrftoken": token, **{
            name.replace("-", "_"): value for name, value in named.items()}}  # fmt: skip


def upload(app: App, visit: dict[str, str], file: str, n_bytes: int, **changed: str):
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="c.jsonl"\r\n\r\n'
    headers = {name: value for name, value in {**visit, **changed}.items() if name != "session"}
    body = head + b"x" * n_bytes + b"\r\n--b--\r\n"
    path = f"/_stcore/upload_file/{visit['session']}/{file}"
    return ask(app, path, method="PUT", body=body, Content_Type="multipart/form-data; boundary=b", **headers)


def kept(app: App) -> int:
    """The bytes of uploads in the server's memory, as it counts them itself; it counts again after a while."""
    time.sleep(COUNTED_EVERY_S)
    lines = [line for line in ask(app, "/_stcore/metrics")[1].splitlines() if "UploadedFileManager" in line]
    return sum(int(float(line.split()[-1])) for line in lines)


@contextmanager
def little_more_memory(app: App) -> Iterator[None]:
    """That the server grows by no more than what else it does meanwhile: importing the analyses, about 100 MiB."""
    server = psutil.Process(app.server().pid)
    before = server.memory_info().rss
    yield
    assert server.memory_info().rss - before < 250 * MIB


def test_who_is_not_named_uploads_nothing(shared):
    with visiting(shared, None) as nobody, little_more_memory(shared):
        for n in range(29):
            status, text = upload(shared, nobody, f"f{n}", 19 * MIB)
            assert status == 403 and "Nobody is signed in" in text
        assert ask(shared, f"/_stcore/upload_file/{nobody['session']}/x", method="DELETE")[0] == 403
        assert kept(shared) == 0


def test_a_session_keeps_one_file_and_a_visitor_uploads_so_much_in_an_hour(shared):
    with visiting(shared, "ada") as ada:
        for n in range(3):
            assert upload(shared, ada, f"f{n}", 19 * MIB)[0] == 204
        assert 19 * MIB <= kept(shared) < 20 * MIB
        status, text = upload(shared, ada, "f3", 19 * MIB)
        assert status == 429 and "62,914,560 bytes may be uploaded by you in an hour; ask again in 3," in text
        assert upload(shared, ada, "f4", 21 * MIB)[0] == 413
        assert upload(shared, ada, "f5", 1000, X_User="")[0] == 403
    with visiting(shared, "bob") as bob:
        assert upload(shared, bob, "f0", 1000)[0] == 204


@pytest.mark.rest
def test_on_ones_own_machine_a_session_keeps_one_file_too(local):
    with visiting(local, None) as me, little_more_memory(local):
        for n in range(29):
            assert upload(local, me, f"f{n}", 19 * MIB)[0] == 204
        assert 19 * MIB <= kept(local) < 20 * MIB
        assert upload(local, me, "f", 1000, X_Xsrftoken="x")[0] == 403


# The counts


@pytest.fixture
def uploads(monkeypatch):
    monkeypatch.syspath_prepend(str(PAGES))
    from server import uploads

    return uploads


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.syspath_prepend(str(PAGES))
    monkeypatch.setenv("WORKBENCH_RULES", rules_to_json(Rules(limits=Limits())))
    monkeypatch.delenv("WORKBENCH_PROXY_HEADER", raising=False)
    from server import gate

    return gate


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"is_logged_in": True, "iss": "https://x", "sub": "7", "email": "ada@x.org"}, "https://x 7 ada@x.org"),
        ({"is_logged_in": False, "sub": "7"}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_with_streamlits_log_in_the_session_says_who_uploads(gate, monkeypatch, claims, name):
    session = SimpleNamespace(session=SimpleNamespace(_user_info=claims))
    known = {} if claims is None else {"s": session}
    runtime = SimpleNamespace(_session_mgr=SimpleNamespace(get_active_session_info=known.get))
    monkeypatch.setattr(gate, "Runtime", SimpleNamespace(instance=lambda: runtime))
    assert gate._visitor({}, "s") == name
    assert gate._visitor({}, "of somebody else") == ""


def test_a_request_that_does_not_say_its_size_counts_as_the_largest(gate, uploads):
    assert gate._size({"content-length": ["7"]}) == 7
    for sizes in ([], [""], ["-1"], ["1", "2"], ["9" * 5_000], ["٣"], ["1e3"]):
        assert gate._size({"content-length": sizes}) == uploads.LARGEST_BYTES


def counted(uploads, **how):
    held: dict[tuple[str, str], int] = {}
    return held, uploads.Uploads(lambda: held, lambda *at: held.pop(at), **how)


def sent(held, count, visitor, at, n_bytes):
    refusal = count.begin(visitor, *at, n_bytes)
    if refusal is None:
        held[at] = n_bytes
        count.end(*at)
    return refusal


def test_a_second_file_takes_the_place_of_the_first(uploads):
    held, count = counted(uploads)
    assert sent(held, count, "", ("s", "a"), 10) is None and sent(held, count, "", ("s", "b"), 20) is None
    assert held == {("s", "b"): 20}
    assert count.begin("", "s", "c", 1) is None
    assert count.begin("", "s", "d", 1)[0] == 429, "one at a time"
    count.end("s", "c")
    assert count.begin("", "s", "d", 1) is None


def test_all_together_and_one_visitor_are_bounded(uploads):
    held, count = counted(uploads, total_bytes=100, visitor_bytes=50, bytes_per_hour=10**9)
    assert sent(held, count, "ada", ("1", "a"), 30) is None
    assert sent(held, count, "ada", ("2", "a"), 30)[0] == 429, "over all tabs of a visitor"
    assert sent(held, count, "bob", ("3", "a"), 40) is None
    assert sent(held, count, "eve", ("4", "a"), 31)[0] == 503
    held.pop(("1", "a"))  # the session ended
    assert sent(held, count, "ada", ("2", "a"), 30) is None
    assert count.begin("eve", "4", "a", 30) is None
    assert count.begin("eve", "5", "a", 1)[0] == 503, "what is on its way counts"


def test_an_hours_bytes_count_small_files_too(uploads):
    held, count = counted(uploads, bytes_per_hour=3 * 2**16)
    assert [sent(held, count, "ada", ("s", f"f{n}"), 10) for n in range(3)] == [None] * 3
    assert count.begin("ada", "s", "g", 10)[0] == 429
    assert not sent(held, count, "bob", ("t", "f"), 10)
    assert count.begin("bob", "t", "f", uploads.LARGEST_BYTES + 1)[0] == 413
