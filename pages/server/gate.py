"""What comes before every request: whose address it was sent to, from which page, and how much it uploads.

A page of another site can make a browser send requests to this machine, and with a name that is made to point here
(DNS rebinding) read the answers. So a request is answered only where its Host is one that the app was started for, and
where it names an Origin, only where that is the same place. Streamlit checks the Host of WebSockets alone, and takes
any port of this machine for its own. Uploads are bounded here, before a byte of one is read (`uploads.py`).
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from components import auth
from streamlit.runtime import Runtime
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from .uploads import LARGEST_BYTES, Uploads

_UPLOAD = re.compile(r"/_stcore/upload_file/([^/]+)/([^/]+)/?")
_LONGEST_UPLOAD_S = 600.0
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Gate:
    """Refuses requests before Streamlit sees them; an ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app
        limits = auth.rules().limits
        self._uploads = Uploads(_held, _release, bytes_per_hour=limits.upload_bytes_per_hour if limits else None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with a sentence."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif refusal := refused(headers := _headers(scope)):
            await _answer(scope, send, *refusal)
        elif scope["type"] == "http" and (upload := _UPLOAD.search(scope["path"])):
            await self._upload((scope, receive, send), headers, session=upload[1], file=upload[2])
        else:
            await self._app(scope, receive, send)

    async def _upload(
        self, request: tuple[Any, Any, Any], headers: Mapping[str, Sequence[str]], *, session: str, file: str
    ) -> None:
        scope, _, send = request
        visitor = _visitor(headers, session)
        if auth.is_shared() and not visitor and scope["method"] != "OPTIONS":
            await _answer(scope, send, 403, "Nobody is signed in, so nothing is uploaded. Sign in, and try again.")
            return
        if scope["method"] != "PUT":
            await self._app(*request)
            return
        if refusal := self._uploads.begin(visitor, session, file, _size(headers)):
            await _answer(scope, send, *refusal)
            return
        try:
            async with asyncio.timeout(_LONGEST_UPLOAD_S):  # who sends slowly must not keep others out
                await self._app(*request)
        except TimeoutError:
            await _answer(scope, send, 408, "The file was sent too slowly, so it was dropped. Try again.")
        finally:
            self._uploads.end(session, file)


def refused(headers: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
    """Status and sentence where a request was sent to another place, or from another one."""
    hosts, origins = headers.get("host", []), headers.get("origin", [])
    if len(hosts) != 1 or not is_host_allowed(hosts[0]):
        return 421, (
            "This app is not served under that name. Open it at the address that it printed when it was started, or "
            "start it with the name: workbench app --host-name NAME."
        )
    if any(not _same_place(origin, hosts[0]) and origin not in _origins() for origin in origins):
        return 403, "The request comes from a page of another site or another port, which this app does not answer."
    return None


def _same_place(origin: str, host: str) -> bool:
    """Whether an Origin names the host and port that a request was sent to; a proxy may have taken TLS away."""
    try:
        there = urlsplit(origin)
        here = urlsplit(f"//{host}")
        port = _PORTS[there.scheme]
        return bool(there.hostname) and (there.hostname, there.port or port) == (here.hostname, here.port or port)
    except (KeyError, ValueError):
        return False


def _origins() -> list[str]:
    return list(st.get_option("server.corsAllowedOrigins"))


def _headers(scope: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin1").lower(), []).append(value.decode("latin1"))
    return found


def _size(headers: Mapping[str, Sequence[str]]) -> int:
    """The bytes that a request says it has; the most that it may have where it says none."""
    sizes = headers.get("content-length", [])
    return int(sizes[0]) if len(sizes) == 1 and re.fullmatch("[0-9]{1,18}", sizes[0]) else LARGEST_BYTES


def _visitor(headers: Mapping[str, Sequence[str]], session: str) -> str:
    """Who uploads: whom the proxy names, or who is signed in in the session that the file is for."""
    if not auth.is_shared():
        return ""
    if header := auth.proxy_header():
        return auth.named_by_proxy(headers.get(header.lower(), []))
    found = Runtime.instance()._session_mgr.get_active_session_info(session)
    return auth.signed_in(found.session._user_info) if found is not None else ""


def _held() -> dict[tuple[str, str], int]:
    """The bytes of every uploaded file that Streamlit keeps in memory, by session and file."""
    storage = _files().file_storage
    return {(s, f): len(kept.data) for s, files in list(storage.items()) for f, kept in list(files.items())}


def _files() -> Any:
    """Streamlit's own store in memory, of which its interface says less."""
    return Runtime.instance().uploaded_file_mgr


def _release(session: str, file: str) -> None:
    _files().remove_file(session_id=session, file_id=file)


async def _answer(scope: Any, send: Any, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": sentence[:120]})
        return
    body = f"{sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),  # what is still being sent is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
