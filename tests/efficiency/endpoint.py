"""An OpenAI-compatible server of our own: streams at given times, and fails as it is told to."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Script:
    """What the server does.

    Attributes:
        first_s: Until the first chunk.
        gap_s: Between chunks.
        per_chunk: Tokens of a chunk.
        short_by: Tokens that are missing at the end.
        status: Of the answer; other than 200 is an error.
        refuses: Fields of the body that are answered with 422, as `transformers serve` does.
        silent: Counts tokens and streams no text.
        counts: Whether usage is told.
        breaks: An error in the middle of the stream.
        good: Requests that are answered well before the faults begin.
        takes_models: Whether /v1/models answers.
    """

    first_s: float = 0.02
    gap_s: float = 0.005
    per_chunk: int = 1
    short_by: int = 0
    status: int = 200
    refuses: tuple[str, ...] = ()
    silent: bool = False
    counts: bool = True
    breaks: bool = False
    good: int = 0
    takes_models: bool = True
    bodies: list[dict] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0


class _Answer(BaseHTTPRequestHandler):
    server: "_Server"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        script = self.server.script
        if self.path == "/v1/models" and script.takes_models:
            return self._whole(200, {"object": "list", "data": [{"id": "fake-model"}]})
        if self.path == "/version":
            return self._whole(200, {"version": "fake 1.0"})
        return self._whole(500 if self.path == "/v1/models" else 404, {})

    def do_POST(self) -> None:
        script, server = self.server.script, self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            script.bodies.append(body)
            fine = len(script.bodies) <= script.good
            script.in_flight += 1
            script.most_in_flight = max(script.most_in_flight, script.in_flight)
        try:
            self._complete(Script(first_s=script.first_s, gap_s=script.gap_s) if fine else script, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client ran out of patience
        finally:
            with server.lock:
                script.in_flight -= 1

    def _complete(self, script: Script, body: dict) -> None:
        if self.path != "/v1/completions":
            return self._whole(404, {})
        if any(name in body for name in script.refuses):
            return self._whole(422, {"detail": "Unexpected fields in the request"})
        if script.status != 200:
            return self._whole(script.status, {"error": "told to"})
        asked = body["max_tokens"]
        tokens = asked - script.short_by
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": tokens}
        if not body.get("stream"):
            time.sleep(script.first_s + script.gap_s * (tokens - 1))
            return self._whole(200, {"choices": [{"text": "a" * tokens}], "usage": usage if script.counts else None})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        due = time.monotonic() + script.first_s
        for at in range(0, tokens, script.per_chunk):
            time.sleep(max(0.0, due - time.monotonic()))
            due += script.gap_s
            if script.breaks and at:
                return self._line({"error": {"message": "out of memory"}})
            if not script.silent:
                self._line({"choices": [{"text": "ab" * min(script.per_chunk, tokens - at)}]})
        self._line({"choices": [{"text": "", "finish_reason": "length"}]})
        if script.counts:
            self._line({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _line(self, content: dict) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def _whole(self, status: int, content: dict) -> None:
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.script, self.lock = script, threading.Lock()


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The URL of a server that does what the script says, until the end."""
    with _Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
