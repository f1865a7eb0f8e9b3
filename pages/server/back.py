"""Puts `back.js` into the page that Streamlit serves, so that one press of Back leads one page back.

Streamlit has no way to replace an entry of the browser's history, and its components are drawn after it has pushed one.
"""

from pathlib import Path
from typing import Any

_SCRIPT = b"<script>\n" + Path(__file__).with_name("back.js").read_bytes() + b"</script>\n"
_BEFORE = b"</head>"
_CONDITIONS = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range")


class Back:
    """Adds the script to every HTML page; an ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on; what comes back as a whole HTML page gets the script."""
        if scope["type"] != "http" or scope["method"] != "GET" or not _may_be_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        # Neither packed nor in part nor from the browser's cache: it is to be read here.
        scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() not in _CONDITIONS]}
        start: dict[str, Any] = {}
        body = b""

        async def rewrite(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                if not _is_html(message):
                    await send(message)
            elif message["type"] == "http.response.body" and _is_html(start):
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send_page(start, body.replace(_BEFORE, _SCRIPT + _BEFORE, 1), send)
            else:
                await send(message)

        await self._app(scope, receive, rewrite)


def _may_be_page(path: str) -> bool:
    return "." not in path.rpartition("/")[2] and not path.startswith(("/_stcore/", "/media/", "/component/"))


def _is_html(start: dict[str, Any]) -> bool:
    return any(n.lower() == b"content-type" and v.startswith(b"text/html") for n, v in start["headers"])


async def _send_page(start: dict[str, Any], body: bytes, send: Any) -> None:
    dropped = (b"content-length", b"etag", b"last-modified", b"accept-ranges")
    headers = [pair for pair in start["headers"] if pair[0].lower() not in dropped]
    await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
