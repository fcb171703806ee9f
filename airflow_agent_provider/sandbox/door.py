"""The door: the one way out of a box, which leads to the model and adds the real key outside.

One upstream, some paths of it, two methods. So a box has no use for the network, no credential is
ever inside, and what an agent is told of its model's address is the same on every worker.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airflow_agent_provider.agents.failures import AgentFailure

if TYPE_CHECKING:
    import httpx

#: Bytes that a request may have; a long session with images stays far below.
_MOST_BODY = 64 * 1024**2
#: Bytes that all requests under way may have together, since they are held in the worker's memory.
_MOST_BODIES = 4 * _MOST_BODY
#: Requests at a time; more are refused.
_MOST_REQUESTS = 32
#: Connections at a time, each of which takes a thread of the worker; more are closed at once.
_MOST_CONNECTIONS = 128
#: Seconds until the upstream accepts a connection, and between two pieces of its answer.
_CONNECT_SECONDS = 15.0
_READ_SECONDS = 900.0
#: Seconds that a client may take for its request's next line or piece.
_CLIENT_SECONDS = 900.0
#: Characters of the upstream's words that are kept of a failure.
_WORDS = 4000
#: What the last events of a stream have in them that was sent to its end: OpenAI's chat and
#: responses, Anthropic's messages, Google's.
_ENDED = re.compile(
    rb'\[DONE\]|"finish_?[rR]eason":\s*"|message_stop|response\.(completed|incomplete)'
)
#: An error that came when the answer's status was already sent.
_ERROR = re.compile(rb'^(event: error|event: response\.failed|data: \{"error")', re.MULTILINE)

#: Bytes that such a mark has at most.
_MARK_SIZE = 32

#: Headers of one connection, which say nothing about the next (RFC 9110, 7.6.1).
_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade", "content-length", "host", "expect",
}  # fmt: skip
#: Headers in which agents send their key.
_KEYS = {"authorization", "x-api-key", "api-key", "x-goog-api-key"}

#: What a target, and a header's value, may consist of: the rest would be read in two ways.
_TARGET = re.compile(r"/[!-~]*")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")


@dataclass(frozen=True)
class Upstream:
    """The vendor's API that a door leads to.

    :param url: its base URL.
    :param headers: set on every request in place of the agent's: the real key. For keys that end, a
        function, which is asked with each request; what it raises, the agent hears as an error.
    :param paths: prefixes of the paths below ``url`` that may be asked for.
    :param answers: what the door answers itself, as JSON, by path: what the agent would be given
        there must not be inside the box.
    :param tap: gets the path and the pieces of each good answer, and yields them on: for failures
        that the vendor tells within.
    :param key: what the agent takes for its key; None lets the door make one.
    """

    url: str
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] = field(
        default_factory=dict, repr=False
    )
    paths: tuple[str, ...] = ("/",)
    answers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tap: Callable[[str, Iterator[bytes]], Iterator[bytes]] | None = None
    key: str | None = None

    def headers_now(self) -> Mapping[str, str]:
        """Return the headers for the next request."""
        return self.headers() if callable(self.headers) else self.headers

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

    :param status: its HTTP status; None where it gave no answer, or none to its end.
    :param words: what it said, or the error on the way to it.
    :param retry_after: seconds that it asks to wait, if it does.
    :param since: the monotonic clock's seconds of the first failure in a row without a success.
    :param at: the monotonic clock's seconds of this failure.
    """

    status: int | None
    words: str
    retry_after: float | None = None
    since: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.monotonic)


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
        self.key = upstream.key or new_key()
        #: How the last request for work failed; None after one that did not.
        self.last_failure: UpstreamFailure | None = None
        #: How the last look-up failed, as of the list of models; None after one that did not.
        self.last_lookup: UpstreamFailure | None = None
        self._client: httpx.Client | None = None
        self._free = threading.BoundedSemaphore(_MOST_REQUESTS)
        #: Bytes of requests under way.
        self.bodies = _Budget(_MOST_BODIES)
        #: Connections of the agent's.
        self.connections = _Connections(_MOST_CONNECTIONS)
        self._upstreams = _Connections(_MOST_CONNECTIONS)
        self._server = self._make_server()
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            # Closing waits for the next look: every step has that at its end.
            kwargs={"poll_interval": 0.02},
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
        if not _TARGET.fullmatch(target) or target.startswith("//") or "\\" in path or "\0" in path:
            return "only paths of the model's API are let through"
        # Some servers take parameters off each part (``..;x``) before they resolve it.
        if any(part.partition(";")[0] in (".", "..") for part in path.split("/")):
            return "a path with '..' is not let through"
        if not all(_VALUE.fullmatch(value) for value in headers.values()):
            return "a header's value is no text"
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
                base_url=self.upstream.origin,
                timeout=timeout,
                limits=limits,
                event_hooks={"request": [self._follow]},
            )
        return self._client

    def note(self, failure: UpstreamFailure | None) -> None:
        """Remember how a request ended.

        :param failure: how it failed; None if it did not.
        """
        last = self.last_failure
        if failure is not None and last is not None:
            failure = replace(failure, since=last.since)
        self.last_failure = failure

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
        # Closing a socket does not wake who waits for it; and a model whose answer nobody reads
        # any more should not go on with it.
        for each in (*self.connections.open, *self._upstreams.open):
            _cut(each)
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self.place is not None:
            self.place.unlink(missing_ok=True)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, request: httpx.Request) -> None:
        request.extensions = {**request.extensions, "trace": self._trace}

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        # Of httpcore: https://www.encode.io/httpcore/extensions/#trace
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._upstreams.add(info["return_value"].get_extra_info("socket"))

    def _shown(self, value: str) -> bool:
        return hmac.compare_digest(value.removeprefix("Bearer ").encode(), self.key.encode())

    def _make_server(self) -> _TcpServer | _UnixServer:
        if self.place is None:
            return _TcpServer(("127.0.0.1", 0), self)
        return _UnixServer(self.place, self)


def new_key() -> str:
    """Return what an agent may take for its key: worth nothing but at one door."""
    return f"sk-box-{secrets.token_hex(24)}"


class _Budget:
    """Bytes, or whatever else there is a bounded amount of."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self, amount: int) -> bool:
        """Take ``amount``; return False, and take none, if less is left."""
        with self._lock:
            if amount > self._left:
                return False
            self._left -= amount
            return True

    def give_back(self, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += amount


class _Connections:
    """The connections that are open, which are bounded; one that was closed counts no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def open(self) -> list[socket.socket]:
        """Those that are open now."""
        with self._lock:
            return list(self._open)

    def add(self, connection: socket.socket) -> bool:
        """Return False, and add none, if there are too many."""
        with self._lock:
            self._open = {each for each in self._open if each.fileno() >= 0}
            if len(self._open) >= self._most:
                return False
            self._open.add(connection)
            return True

    def discard(self, connection: socket.socket) -> None:
        """Forget one that is closed."""
        with self._lock:
            self._open.discard(connection)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _below(path: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(f"{prefix}/")


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    request_queue_size = 64
    door: Door
    port: int | None = None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, unless there are too many."""
        if self.door.connections.add(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self.door.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent: an agent that goes away in mid-answer is no error."""


class _TcpServer(_Server):
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
    #: Bytes of the door's budget that the request's body takes.
    _held = 0

    def handle_expect_100(self) -> bool:
        """Promise nothing yet: the body is asked for once it may come."""
        return True

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
            try:
                body = self._body(headers)
                own = door.upstream.answers.get(self.path.partition("?")[0])
                if body is not None and own is not None:
                    self._send_json(200, own)
                elif body is not None:
                    self._forward(door, headers, body)
            finally:
                door.bodies.give_back(self._held)
                self._held = 0

    def _body(self, headers: Mapping[str, str]) -> bytes | None:
        """Return the request's body; None if it was refused, or the agent went away."""
        if headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                self._refuse(400, "a body is either chunked or has a length")
                return None
            return self._chunks()
        length = headers.get("content-length") or "0"
        if not (length.isascii() and length.isdigit()):
            self._refuse(400, "the request's body has no length")
            return None
        return self._read(int(length))

    def _chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            size = self.rfile.readline(64).split(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(size):
                self._refuse(400, "the request's body is not chunked as it says")
                return None
            piece = self._read(int(size, 16), len(body))
            if piece is None:
                return None
            if not piece:
                break
            body += piece
            self.rfile.readline(64)
        while self.rfile.readline(65536).strip():
            pass
        return bytes(body)

    def _read(self, size: int, before: int = 0) -> bytes | None:
        """Read ``size`` bytes of a body of which ``before`` are read already."""
        if before + size > _MOST_BODY:
            self._refuse(413, f"a request has {_MOST_BODY:,} bytes at most")
            return None
        if not self.server.door.bodies.take(size):
            self._refuse(429, f"all requests under way have {_MOST_BODIES:,} bytes at most")
            return None
        self._held += size
        content = self.rfile.read(size)
        if len(content) < size:
            # The agent went away: half a request is none.
            self.close_connection = True
            return None
        return content

    def _forward(self, door: Door, headers: dict[str, str], body: bytes) -> None:
        import httpx

        kept = {
            name: value for name, value in headers.items() if name not in _HOP and name not in _KEYS
        }
        try:
            kept |= {n.lower(): value for n, value in door.upstream.headers_now().items()}
        except AgentFailure as failure:
            self._note(UpstreamFailure(None, str(failure)))
            self._refuse(502, failure.reason)
            return
        request = door.client().build_request(self.command, self.path, headers=kept, content=body)
        try:
            answer = door.client().send(request, stream=True)
        except httpx.HTTPError as error:
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            self._note(UpstreamFailure(None, words))
            self._refuse(502, f"the model's API gives no answer: {words}")
            return
        try:
            self._answer(answer)
        except httpx.HTTPError as error:
            # The agent sees what it would see without a door: an answer that breaks off.
            self._note(UpstreamFailure(None, f"the answer broke off: {error}"))
            self._cut()
        finally:
            answer.close()

    def _answer(self, answer: httpx.Response) -> None:
        self.send_response_only(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ending = _Ending(answer)
        pieces = answer.iter_raw()
        if tap := self.server.door.upstream.tap if answer.is_success else None:
            pieces = tap(self.path.partition("?")[0], pieces)
        for piece in pieces:
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
                ending.take(piece)
        # Before the agent sees the end, and tells of it.
        self._note(ending.failure())
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _note(self, failure: UpstreamFailure | None) -> None:
        # What is looked up with GET, as the list of models, says nothing about the work.
        if self.command == "POST":
            self.server.door.note(failure)
        else:
            self.server.door.last_lookup = failure

    def _cut(self) -> None:
        self.close_connection = True
        _cut(self.connection)

    def _refuse(self, status: int, reason: str) -> None:
        self._send_json(status, {"error": {"message": reason, "type": "door", "code": None}})

    def _send_json(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.close_connection = True
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


class _Ending:
    """Tells how an answer ended: by its status, or by what the pieces of a stream hold.

    :param answer: the upstream's answer.
    """

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        headers = answer.headers
        self._streams = (
            answer.is_success
            and headers.get("content-type", "").startswith("text/event-stream")
            # What is compressed is passed on as it is.
            and "content-encoding" not in headers
        )
        self._ended = False
        self._words = b""
        self._rest = b""

    def take(self, piece: bytes) -> None:
        """Look at one piece."""
        if self._streams and not self._words:
            # A mark may be cut in two.
            window = self._rest + piece
            self._rest = window[-_MARK_SIZE:]
            self._ended = self._ended or _ENDED.search(window) is not None
            error = _ERROR.search(window)
            if error is None:
                return
            piece = window[error.start() :]
        elif self._answer.is_success and not self._streams:
            return
        self._words = (self._words + piece)[:_WORDS]

    def failure(self) -> UpstreamFailure | None:
        """Return how it failed, None if it did not."""
        text = self._words.decode(errors="replace")
        if not self._answer.is_success:
            wait = _seconds(self._answer.headers.get("retry-after"))
            return UpstreamFailure(self._answer.status_code, text, wait)
        if not self._streams or (self._ended and not text):
            return None
        return UpstreamFailure(None, text or "the answer broke off")


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None  # An HTTP date; vendors of models send seconds.
