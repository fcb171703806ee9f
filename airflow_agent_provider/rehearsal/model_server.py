"""A scripted stand-in for the vendors' model APIs on loopback, for the agents' real programs.

One server, one script, one wire per vendor's API; the path of a request tells which.
"""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from airflow_agent_provider.rehearsal.conversation import Conversation, Move, next_move
from airflow_agent_provider.rehearsal.script import Action, Fail, Script
from airflow_agent_provider.rehearsal.wires.chat import ChatWire
from airflow_agent_provider.rehearsal.wires.messages import MessagesWire
from airflow_agent_provider.rehearsal.wires.responses import ResponsesWire
from airflow_agent_provider.rehearsal.wires.wire import Answer, Stream, Whole, Wire

_RESPONSES = ResponsesWire()
_MESSAGES = MessagesWire()
#: The wire of each path.
_WIRES: dict[str, Wire] = {
    "/v1/responses": _RESPONSES,
    "/v1/chat/completions": ChatWire(),
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _MESSAGES,
}
#: How many requests the journal keeps.
_JOURNAL_LENGTH = 1000
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
    :param action: ``write``, ``run``, ``say`` or ``fail``; ``aside`` for what an agent's program
        asks beside the conversation, such as a title for it, which plays nothing of the script.
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

    It answers ``/v1/responses`` (Codex), ``/v1/chat/completions`` (Copilot, OpenCode, Qwen Code),
    ``/v1/messages`` (Claude Code) and ``/v1/models``, each in its vendor's words. Any key is
    accepted but an empty one and those that start with ``invalid``, so that a connection's test can
    be rehearsed too. ``GET /_rehearsal/requests`` returns the journal.

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
        """The server's address: an Anthropic base URL; with ``/v1`` after it, an OpenAI one."""
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
            entries = [asdict(entry) for entry in self.server.journal_entries()]
            self._send(Whole(200, entries))
        elif self._plain_path() == "/v1/models":
            self._models()
        else:
            self._refuse_path()

    def do_POST(self) -> None:
        body = self._read_body()
        path = self._plain_path()
        wire = _WIRES.get(path)
        if wire is None:
            self._refuse_path()
        elif body is None:
            message = "the request's body is no JSON object"
            self._refuse(wire.refuse(400, message, "invalid_request_error"))
        elif not wire.authorized(self.headers):
            self._refuse(wire.refuse_key(), body)
        elif path.endswith("/count_tokens"):
            self._answer_aside(_MESSAGES.count(body), body)
        elif (text := wire.aside(body)) is not None:
            self._answer_aside(wire.answer(body, Move("msg_aside", text)), body)
        else:
            self._play(wire, body)

    def _plain_path(self) -> str:
        return self.path.partition("?")[0]

    def _read_body(self) -> dict[str, Any] | None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _wire_of_headers(self) -> Wire:
        theirs = ("x-api-key", "anthropic-version")
        return _MESSAGES if any(name in self.headers for name in theirs) else _RESPONSES

    def _refuse_path(self) -> None:
        message = f"the rehearsal has no {self.command} {self.path}"
        self._refuse(self._wire_of_headers().refuse(404, message, "not_found"))

    def _models(self) -> None:
        wire = self._wire_of_headers()
        if wire.authorized(self.headers):
            self._note(200)
            self._send(Whole(200, wire.models()))
        else:
            self._refuse(wire.refuse_key())

    def _refuse(self, answer: Whole, body: object = None) -> None:
        self._note(answer.status, body)
        self._send(answer)

    def _answer_aside(self, answer: Answer, body: object) -> None:
        self._note(answer.status, body, action="aside")
        self._send(answer)

    def _note(self, status: int, body: object = None, **told: Any) -> None:
        """Write the request to the journal, before its answer: who has that finds it there."""
        self.server.record(JournalEntry(self.command, self.path, status, body=body, **told))

    def _play(self, wire: Wire, body: dict[str, Any]) -> None:
        script = self.server.script
        conversation = wire.read(body, script.actions)
        if not conversation.step and "*" not in script.steps:
            message = (
                "the rehearsal cannot tell which step this request belongs to: neither is the "
                "workspace a step's, nor does the prompt end in a step's contract; let the script "
                "have a step '*'"
            )
            self._refuse(wire.refuse(400, message, "invalid_request_error"), body)
            return
        position, action = self.server.next_action(conversation)
        answer = _answer(wire, body, conversation, position, action)
        self._note(
            0 if answer is None else answer.status,
            body,
            step=conversation.step,
            workspace=conversation.workspace,
            position=position,
            action=next(iter(action.model_fields_set)),
        )
        how = action.fail.how if action.fail is not None else ""
        if answer is not None:
            self._send(answer)
            if how == "silence":
                self._hang()
        elif how == "hang":
            self._hang()
        else:
            self._cut()

    def _send(self, answer: Answer) -> None:
        if isinstance(answer, Stream):
            self._send_stream(answer)
        else:
            self._send_whole(answer)

    def _send_stream(self, stream: Stream) -> None:
        self.close_connection = True
        self.send_response(stream.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in stream.events:
            self.wfile.write(event.encode())
            self.wfile.flush()

    def _send_whole(self, answer: Whole) -> None:
        content = json.dumps(answer.value).encode()
        self.close_connection = True
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        for name, text in answer.headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer.cut else content)

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


def _answer(
    wire: Wire, body: Mapping[str, Any], conversation: Conversation, position: int, action: Action
) -> Answer | None:
    """Return the answer that plays ``action``; None where the script says to give none."""
    fail = action.fail
    if fail is None:
        return wire.answer(body, next_move(conversation, action, position))
    if fail.status is None and fail.how in ("hang", "refuse"):
        return None
    return wire.fail(body, fail)
