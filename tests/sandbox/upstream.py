"""A stand-in for a vendor's API, to see what comes through a door."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What the door adds, and what must be nowhere else.
REAL_KEY = "sk-real-4711"


@dataclass(frozen=True)
class Seen:
    """One request that came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class FakeUpstream:
    """Answers every request by ``answer``, and remembers it. A context manager.

    :ivar seen: the requests that came.
    :ivar answer: called with the handler and the request.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Any, Seen], None] = ok
        #: Set by answers that hang, once their client is gone.
        self.cut = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body)
                fake.seen.append(seen)
                fake.answer(self, seen)

            do_GET = do_POST = do_PUT = do_DELETE = do_CONNECT = do_OPTIONS = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(timeout=10)

    def __enter__(self) -> FakeUpstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send(handler: Any, status: int, content: bytes, **headers: str) -> None:
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def ok(handler: Any, seen: Seen) -> None:
    send(handler, 200, b'{"ok": true}', Content_Type="application/json")


def status(code: int, words: str = "no", **headers: str) -> Callable[[Any, Seen], None]:
    return lambda handler, seen: send(handler, code, words.encode(), **headers)


def hang_up(handler: Any, seen: Seen) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


def break_off(handler: Any, seen: Seen) -> None:
    """Answer half of what was promised."""
    handler.send_response_only(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def stream(pieces: list[bytes], between: threading.Event | None = None) -> Any:
    """Answer in pieces, and wait for ``between`` after the first."""

    def answer(handler: Any, seen: Seen) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number, piece in enumerate(pieces):
            if number == 1 and between is not None:
                between.wait(30)
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def endless(fake: FakeUpstream) -> Callable[[Any, Seen], None]:
    """Stream until the client is gone; :attr:`FakeUpstream.cut` tells of it."""

    def answer(handler: Any, seen: Seen) -> None:
        handler.send_response_only(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                handler.wfile.write(b"1\r\n.\r\n")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            fake.cut.set()

    return answer


def silent(fake: FakeUpstream) -> Callable[[Any, Seen], None]:
    """Give no answer; :attr:`FakeUpstream.cut` tells when the client is gone."""

    def answer(handler: Any, seen: Seen) -> None:
        handler.connection.settimeout(60)
        if handler.connection.recv(1) == b"":
            fake.cut.set()
        handler.close_connection = True

    return answer
