"""A scripted stand-in for OpenAI's Responses API on loopback, for the real Codex program."""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import struct
import threading
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from airflow_agent_provider.rehearsal.conversation import (
    Conversation,
    answer_item,
    read_conversation,
)
from airflow_agent_provider.rehearsal.script import Action, Fail, Script

#: Model that the stand-in names where a request names none.
_MODEL = "rehearsal"
#: How many requests the journal keeps.
_JOURNAL_LENGTH = 1000
#: Characters of a message that are streamed at once.
_DELTA = 40
#: Tokens that a request is said to have at most: near the model's limit, Codex would ask for a
#: summary of the session, which no script tells.
_MOST_TOKENS = 50_000
#: Seconds between two looks at whether a client that is left without an answer is still there.
_HANG_POLL = 0.5


@dataclass(frozen=True)
class JournalEntry:
    """A request that the server got.

    :param method: ``GET`` or ``POST``.
    :param path: the path that was asked for.
    :param status: HTTP status of the answer; 0 where there was none.
    :param step: id of the step, where the request tells it.
    :param workspace: folder of the step.
    :param position: index of the action that answered, in the step's list.
    :param action: ``write``, ``run``, ``say`` or ``fail``.
    :param body: the request's body, parsed.
    """

    method: str
    path: str
    status: int
    step: str = ""
    workspace: str = ""
    position: int | None = None
    action: str = ""
    body: Any = None


class ModelServer:
    """Plays a script to every agent that asks for ``url``. A context manager.

    Any key is accepted but an empty one and those that start with ``invalid``, so that a
    connection's test can be rehearsed too. ``GET /_rehearsal/requests`` returns the journal.

    :param script: what the model does, by step.
    :param host: address to listen at; a loopback address, since the server trusts its clients.
    :param port: port to listen at; 0 takes a free one.
    """

    def __init__(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"a rehearsal listens on loopback only, not at {host!r}")
        self._script = script
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Listen, and answer from a thread of its own; OSError if the port is taken."""
        self._server = _Server((self._host, self._port), self._script)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            # Seconds that a stop may take to be seen.
            kwargs={"poll_interval": 0.1},
            name="rehearsal-model",
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and cut every answer under way; harmless if it has stopped already."""
        if self._server is None or self._thread is None:
            return
        self._server.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
        self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that the server listens at."""
        return int(self._running().server_address[1])

    @property
    def url(self) -> str:
        """The server's address; with ``/v1`` after it, the host of a ``codex`` connection."""
        return f"http://{self._host}:{self.port}"

    @property
    def requests(self) -> list[JournalEntry]:
        """The latest requests, oldest first."""
        return self._running().journal_entries()

    def _running(self) -> _Server:
        if self._server is None:
            raise RuntimeError("the rehearsal's model server is not running")
        return self._server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A restarted rehearsal gets its port back at once.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], script: Script) -> None:
        super().__init__(address, _Handler)
        self.script = script
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._journal: deque[JournalEntry] = deque(maxlen=_JOURNAL_LENGTH)
        self._failures: Counter[tuple[str, str, int]] = Counter()

    def record(self, entry: JournalEntry) -> None:
        with self._lock:
            self._journal.append(entry)

    def journal_entries(self) -> list[JournalEntry]:
        with self._lock:
            return list(self._journal)

    def next_action(self, conversation: Conversation) -> tuple[int, Action]:
        """Return the action that answers now; counts the failures that it hands out."""
        actions = self.script.actions(conversation.step)
        position = conversation.position
        while position < len(actions) and (fail := actions[position].fail) is not None:
            if self._fails_again((conversation.workspace, conversation.step, position), fail):
                return position, actions[position]
            position += 1
        # After the last action, every further turn hears the last message again.
        return (position, actions[position]) if position < len(actions) else (-1, actions[-1])

    def _fails_again(self, key: tuple[str, str, int], fail: Fail) -> bool:
        with self._lock:
            self._failures[key] += 1
            return fail.times is None or self._failures[key] <= fail.times

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away in mid-answer is part of the play: agents get killed here.
        return


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep silent: the journal has it all."""

    def do_GET(self) -> None:
        if self.path == "/_rehearsal/requests":
            self._send_json(200, [asdict(entry) for entry in self.server.journal_entries()])
        elif self.path.split("?")[0] == "/v1/models":
            self._models()
        else:
            self._refuse_path()

    def do_POST(self) -> None:
        if self.path != "/v1/responses":
            self._refuse_path()
            return
        body = self._read_body()
        if isinstance(body, dict) and self._authorized(body):
            self._respond(body)

    def _refuse_path(self) -> None:
        self._send_error(404, f"the rehearsal has no {self.command} {self.path}", "not_found")

    def _read_body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._send_error(400, "the request's body is no JSON object", "invalid_request_error")
        return body

    def _authorized(self, body: object = None) -> bool:
        scheme, _, key = (self.headers.get("Authorization") or "").partition(" ")
        if scheme == "Bearer" and key.strip() and not key.startswith("invalid"):
            return True
        self.server.record(JournalEntry(self.command, self.path, 401, body=body))
        self._send_error(401, "Incorrect API key provided.", "invalid_api_key")
        return False

    def _models(self) -> None:
        if self._authorized():
            self.server.record(JournalEntry(self.command, self.path, 200))
            model = {"id": _MODEL, "object": "model", "created": 0, "owned_by": "rehearsal"}
            self._send_json(200, {"object": "list", "data": [model]})

    def _respond(self, body: dict[str, Any]) -> None:
        script = self.server.script
        conversation = read_conversation(body, script.actions)
        if not conversation.step and "*" not in script.steps:
            self._send_error(
                400,
                "the rehearsal cannot tell which step this request belongs to: neither is the "
                "workspace a step's, nor does the prompt end in a step's contract; let the script "
                "have a step '*'",
                "invalid_request_error",
            )
            return
        position, action = self.server.next_action(conversation)
        fail = action.fail
        self.server.record(
            JournalEntry(
                self.command,
                self.path,
                200 if fail is None else _status(fail),
                conversation.step,
                conversation.workspace,
                position,
                next(iter(action.model_fields_set)),
                body,
            )
        )
        if fail is None:
            item = answer_item(conversation, action, position)
            self._stream(body, item)
        else:
            self._fail(body, fail)

    def _stream(self, body: Mapping[str, Any], item: dict[str, Any]) -> None:
        response = self._open_stream(body)
        self._event("response.output_item.added", output_index=0, item=_begun(item))
        if item["type"] == "message":
            text = item["content"][0]["text"]
            for start in range(0, len(text), _DELTA):
                self._event(
                    "response.output_text.delta",
                    item_id=item["id"],
                    output_index=0,
                    content_index=0,
                    delta=text[start : start + _DELTA],
                )
        self._event("response.output_item.done", output_index=0, item=item)
        done = {**response, "status": "completed", "output": [item], "usage": _usage(body, item)}
        self._event("response.completed", response=done)

    def _open_stream(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        model = body.get("model") or _MODEL
        response = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "model": model}
        self._event("response.created", response={**response, "status": "in_progress"})
        return response

    def _event(self, name: str, **values: Any) -> None:
        data = json.dumps({"type": name, **values})
        self.wfile.write(f"event: {name}\ndata: {data}\n\n".encode())
        self.wfile.flush()

    def _fail(self, body: Mapping[str, Any], fail: Fail) -> None:
        if fail.status is not None:
            self._send_error(fail.status, fail.message, fail.code, fail.retry_after)
        elif fail.how == "hang":
            self._hang()
        elif fail.how == "drop":
            self._open_stream(body)
        elif fail.how == "error":
            response = self._open_stream(body)
            error = {
                "code": fail.code or "server_error",
                "message": fail.message or "The rehearsal's script fails here.",
            }
            self._event(
                "response.failed", response={**response, "status": "failed", "error": error}
            )
        else:
            self._cut()

    def _hang(self) -> None:
        self.close_connection = True
        while not self.server.stopping.is_set():
            readable, _, _ = select.select([self.connection], [], [], _HANG_POLL)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return

    def _cut(self) -> None:
        self.close_connection = True
        # Lingering for zero seconds makes the close a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send_error(
        self, status: int, message: str, code: str, retry_after: float | None = None
    ) -> None:
        words = message or f"The rehearsal's script answers {status} {_phrase(status)}."
        error = {"message": words, "type": code or "rehearsal", "param": None, "code": code or None}
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        self._send_json(status, {"error": error}, headers)

    def _send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)


def _status(fail: Fail) -> int:
    if fail.status is not None:
        return fail.status
    return 0 if fail.how in ("hang", "refuse") else 200


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _begun(item: Mapping[str, Any]) -> dict[str, Any]:
    begun = {**item, "status": "in_progress"}
    return {**begun, "content": []} if item["type"] == "message" else begun


def _usage(body: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    """Count about as a vendor does: four characters a token, all but the last item cached."""
    read = [len(json.dumps(part)) // 4 for part in body.get("input") or []]
    tokens, cached = min(sum(read), _MOST_TOKENS), min(sum(read[:-1]), _MOST_TOKENS)
    written = min(len(json.dumps(item)) // 4, _MOST_TOKENS)
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": written // 5},
        "total_tokens": tokens + written,
    }
