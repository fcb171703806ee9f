"""The door: the one way out of a box, which leads to the model and adds the real key outside.

One upstream, some paths of it, two methods. So a box has no use for the network, no credential is
ever inside, and what an agent is told of its model's address is the same on every worker.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import httpx

#: Bytes that a request may have; a long session with images stays far below.
_MOST_BODY = 64 * 1024**2
#: Requests at a time; more are refused.
_MOST_REQUESTS = 32
#: Seconds until the upstream accepts a connection, and between two pieces of its answer.
_CONNECT_SECONDS = 15.0
_READ_SECONDS = 900.0
#: Seconds that a client may take for its request's next line or piece.
_CLIENT_SECONDS = 900.0
#: Characters of the upstream's words that are kept of a failure.
_WORDS = 4000

#: Headers of one connection, which say nothing about the next (RFC 9110, 7.6.1).
_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "expect",
}  # fmt: skip
#: Headers in which agents send their key.
_KEYS = {"authorization", "x-api-key", "api-key", "x-goog-api-key"}


@dataclass(frozen=True)
class Upstream:
    """The vendor's API that a door leads to.

    :param url: its base URL.
    :param headers: set on every request in place of the agent's: the real key.
    :param paths: prefixes of the paths below ``url`` that may be asked for.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    paths: tuple[str, ...] = ("/",)

    @property
    def path(self) -> str:
        """The base URL's own path, without a slash at its end."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def origin(self) -> str:
        """The base URL without its path."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True)
class UpstreamFailure:
    """What the upstream last answered, if that was no success.

    Agents may hide it behind retries of their own.

    :param status: its HTTP status; None where it gave no answer at all.
    :param words: what it said, or the error on the way to it.
    :param retry_after: seconds that it asks to wait, if it does.
    """

    status: int | None
    words: str
    retry_after: float | None = None


class Door:
    """Listens for one session's requests and forwards them. A context manager.

    :param upstream: where it leads.
    :param place: path of the unix socket to listen at; None listens on a free port of the loopback
        interface, where each request must show :attr:`key`.
    """

    def __init__(self, upstream: Upstream, place: Path | None = None) -> None:
        self.upstream = upstream
        self.place = place
        #: What the agent takes for its key; worth nothing but at this door.
        self.key = f"sk-box-{secrets.token_hex(24)}"
        #: How the last request failed; None after one that did not.
        self.last_failure: UpstreamFailure | None = None
        self._client: httpx.Client | None = None
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        self._server = self._make_server()
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="agent door",
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int | None:
        """The port on the loopback interface, if it listens there."""
        return self._server.port

    def admits(self, target: str, headers: Mapping[str, str]) -> str | None:
        """Return why a request may not pass, None if it may.

        :param target: the request's target, as the agent wrote it.
        :param headers: the request's headers, names in small letters.
        """
        path = unquote(target.partition("?")[0])
        if not target.startswith("/") or target.startswith("//") or "\\" in path or "\0" in path:
            return "only paths of the model's API are let through"
        if any(part in (".", "..") for part in path.split("/")):
            return "a path with '..' is not let through"
        base = self.upstream.path
        if not any(_below(path, base + prefix) for prefix in self.upstream.paths):
            return f"{path} is no path of the model's API that agents need"
        if self.place is None and not any(self._shown(headers.get(name, "")) for name in _KEYS):
            return "this door is another session's"
        return None

    def client(self) -> httpx.Client:
        """Return the client of all requests."""
        if self._client is None:
            import httpx

            timeout = httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
            limits = httpx.Limits(max_connections=_MOST_REQUESTS)
            self._client = httpx.Client(
                base_url=self.upstream.origin, timeout=timeout, limits=limits
            )
        return self._client

    @contextlib.contextmanager
    def passing(self) -> Iterator[bool]:
        """Count one request; yields whether it may pass now."""
        free = self._free.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._free.release()

    def close(self) -> None:
        """Stop listening, and cut every answer under way; harmless a second time."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self.place is not None:
            self.place.unlink(missing_ok=True)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shown(self, value: str) -> bool:
        return hmac.compare_digest(value.removeprefix("Bearer ").encode(), self.key.encode())

    def _make_server(self) -> _TcpServer | _UnixServer:
        if self.place is None:
            return _TcpServer(("127.0.0.1", 0), self)
        return _UnixServer(self.place, self)


def _below(path: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(f"{prefix}/")


class _Server(ThreadingMixIn):
    daemon_threads = True
    request_queue_size = 64
    door: Door
    port: int | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent: an agent that goes away in mid-answer is no error."""


class _TcpServer(_Server, TCPServer):
    def __init__(self, address: tuple[str, int], door: Door) -> None:
        self.door = door
        super().__init__(address, _Handler)
        self.port = int(self.socket.getsockname()[1])


class _UnixServer(_Server, UnixStreamServer):
    def __init__(self, place: Path, door: Door) -> None:
        self.door = door
        super().__init__(str(place), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _TcpServer | _UnixServer
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_SECONDS

    def address_string(self) -> str:
        """Return no address: a unix socket's client has none."""
        return "box"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep silent: requests may hold what no log may."""

    def do_GET(self) -> None:
        self._pass()

    def do_POST(self) -> None:
        self._pass()

    def _pass(self) -> None:
        door = self.server.door
        headers = {name.lower(): value for name, value in self.headers.items()}
        refusal = door.admits(self.path, headers)
        if refusal is not None:
            self._refuse(403, refusal)
            return
        if "upgrade" in headers:
            self._refuse(426, "the door speaks plain HTTP only")
            return
        with door.passing() as free:
            if not free:
                self._refuse(429, f"more than {_MOST_REQUESTS} requests at a time")
                return
            body = self._body(headers)
            if body is not None:
                self._forward(door, headers, body)

    def _body(self, headers: Mapping[str, str]) -> bytes | None:
        if headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        try:
            if "chunked" in headers.get("transfer-encoding", "").lower():
                return self._chunks()
            length = int(headers.get("content-length") or 0)
            if 0 <= length <= _MOST_BODY:
                return self.rfile.read(length)
        except ValueError:
            self._refuse(400, "the request's body has no length")
            return None
        self._refuse(413, f"a request has {_MOST_BODY:,} bytes at most")
        return None

    def _chunks(self) -> bytes | None:
        body = bytearray()
        while size := int(self.rfile.readline(64).split(b";")[0], 16):
            if len(body) + size > _MOST_BODY:
                self._refuse(413, f"a request has {_MOST_BODY:,} bytes at most")
                return None
            body += self.rfile.read(size)
            self.rfile.readline(64)
        while self.rfile.readline(65536).strip():
            pass
        return bytes(body)

    def _forward(self, door: Door, headers: dict[str, str], body: bytes) -> None:
        import httpx

        kept = {
            name: value for name, value in headers.items() if name not in _HOP and name not in _KEYS
        }
        kept |= {name.lower(): value for name, value in door.upstream.headers.items()}
        request = door.client().build_request(self.command, self.path, headers=kept, content=body)
        try:
            answer = door.client().send(request, stream=True)
        except httpx.HTTPError as error:
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            door.last_failure = UpstreamFailure(None, words)
            self._refuse(502, f"the model's API gives no answer: {words}")
            return
        try:
            self._answer(door, answer)
        except httpx.HTTPError as error:
            # The agent sees what it would see without a door: an answer that breaks off.
            door.last_failure = UpstreamFailure(None, f"the answer broke off: {error}")
            self._cut()
        finally:
            answer.close()

    def _answer(self, door: Door, answer: httpx.Response) -> None:
        self.send_response_only(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = bytearray()
        for piece in answer.iter_raw():
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            if not answer.is_success and len(words) < _WORDS:
                words += piece
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        door.last_failure = None if answer.is_success else _failure(answer, bytes(words))

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, status: int, reason: str) -> None:
        content = json.dumps({"error": {"message": reason, "type": "door", "code": None}}).encode()
        self.close_connection = True
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _failure(answer: httpx.Response, words: bytes) -> UpstreamFailure:
    text = words.decode(errors="replace")[:_WORDS]
    return UpstreamFailure(answer.status_code, text, _seconds(answer.headers.get("retry-after")))


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None  # An HTTP date; vendors of models send seconds.
