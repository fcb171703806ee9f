"""The backend of Cursor's program on the worker, played by a script: Connect over HTTP/1.1.

The program asks for a stream of messages (``agent.v1.AgentService/RunSSE``) and answers them by
requests of their own (``aiserver.v1.BidiService/BidiAppend``); the two are joined by an id that the
program chose. https://connectrpc.com/docs/protocol/
"""

from __future__ import annotations

import base64
import json
import queue
import select
import socket
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from airflow_agent_provider.rehearsal import cursor_local as messages
from airflow_agent_provider.rehearsal.conversation import say_text, step_of
from airflow_agent_provider.rehearsal.protobuf import Field, Message, encode
from airflow_agent_provider.rehearsal.script import Action, Fail, Script

_EXCHANGE = "/auth/exchange_user_api_key"
_APPEND = "/aiserver.v1.BidiService/BidiAppend"
_RUN = "/agent.v1.AgentService/RunSSE"
_PREFIXES = ("/auth/", "/agent.v1.", "/aiserver.v1.")
#: Tokens that the exchange gives begin so; a key itself is worth nothing but there.
_TOKEN = "rehearsal-token"
#: Seconds that a token is said to live.
_TOKEN_SECONDS = 3600
#: Seconds between two looks at whether a program that sends nothing is still there.
_POLL = 0.5
#: Conversations whose messages are kept until they are asked for.
_INBOXES = 1000
#: Tokens that a request is said to have at most, far below a model's limit.
_MOST_TOKENS = 50_000

#: Connect's codes for what a script calls by its HTTP status.
_CODES = {
    400: "invalid_argument",
    401: "unauthenticated",
    402: "resource_exhausted",
    403: "permission_denied",
    404: "not_found",
    408: "deadline_exceeded",
    409: "aborted",
    429: "resource_exhausted",
    500: "internal",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
}
#: Numbers of ``aiserver.v1.ErrorDetails.Error``, by which Cursor tells more than Connect's codes;
#: by OpenAI's code for it, or else by Cursor's own name.
_ERRORS = {
    "model_not_found": 5,
    "insufficient_quota": 10,
    "context_length_exceeded": 43,
    "server_is_overloaded": 57,
    "BAD_API_KEY": 1,
    "RATE_LIMITED": 50,
    "SUSPICIOUS_USAGE_BLOCKED": 54,
}


_NO_STEP = (
    "the rehearsal cannot tell which step this request belongs to: neither is the workspace a "
    "step's, nor does the prompt end in a step's contract; let the script have a step '*'"
)


class Gone(Exception):
    """The program closed its stream, or the stand-in stops."""


class CursorBackend:
    """Plays a script to every program that asks.

    :param script: what the model does, by step.
    :param journal: gets an entry for each request and, for a stream, one for each action of it.
    :param stopping: set when the stand-in stops.
    """

    def __init__(
        self, script: Script, journal: deque[dict[str, Any]], stopping: threading.Event
    ) -> None:
        self.script = script
        self.journal = journal
        self.stopping = stopping
        self._lock = threading.Lock()
        self._failures: Counter[tuple[str, str, int]] = Counter()
        self._inboxes: OrderedDict[str, _Inbox] = OrderedDict()

    def serves(self, path: str) -> bool:
        """Return whether a path is one of the backend's."""
        return path.startswith(_PREFIXES)

    def serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer one request.

        :param handler: the request, its body read already.
        :param body: its body.
        """
        scheme, _, key = str(handler.headers.get("Authorization") or "").partition(" ")
        known = key.startswith(_TOKEN) or handler.path == _EXCHANGE
        if scheme != "Bearer" or not key or key.startswith("invalid") or not known:
            self._note(handler, 401)
            _send_error(handler, 401, "unauthenticated", "Invalid API key")
        elif handler.path == _RUN:
            self._run(handler, body)
        elif handler.path == _APPEND:
            self._append(body)
            _send(handler, 200, "application/proto", b"")
        elif handler.path == _EXCHANGE:
            self._note(handler, 200)
            _send(handler, 200, "application/json", json.dumps(_token()).encode())
        else:
            # What else it looks up, such as its team's settings: there is none of that.
            self._note(handler, 200)
            kind = str(handler.headers.get("Content-Type") or "application/proto")
            _send(handler, 200, kind, b"{}" if "json" in kind else b"")

    def inbox(self, stream: str) -> _Inbox:
        """Return where the messages of a stream arrive."""
        with self._lock:
            inbox = self._inboxes.setdefault(stream, _Inbox())
            if len(self._inboxes) > _INBOXES:
                self._inboxes.popitem(last=False)
            return inbox

    def next_action(self, key: tuple[str, str], position: int) -> tuple[int, Action]:
        """Return the action that comes now; counts the failures that it hands out.

        :param key: workspace and step.
        :param position: index of the first action that is not done.
        """
        actions = self.script.actions(key[1])
        while position < len(actions) and (fail := actions[position].fail) is not None:
            if self._fails_again((*key, position), fail):
                return position, actions[position]
            position += 1
        # After the last action, every further turn hears the last message again.
        return (position, actions[position]) if position < len(actions) else (-1, actions[-1])

    def _fails_again(self, key: tuple[str, str, int], fail: Fail) -> bool:
        with self._lock:
            self._failures[key] += 1
            return fail.times is None or self._failures[key] <= fail.times

    def _append(self, body: bytes) -> None:
        request = Message(body)
        data = request.data(4) or bytes.fromhex(request.text(1))
        self.inbox(request.at(2).text(1)).put(request.number(3), Message(data))

    def _note(self, handler: BaseHTTPRequestHandler, status: int, **more: Any) -> None:
        entry = {"method": handler.command, "path": handler.path, "status": status, **more}
        self.journal.append(entry)

    def _run(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        # Connect's envelope: a byte of flags, four of length.
        stream = Message(body[5:]).text(1)
        try:
            _Stream(self, handler, self.inbox(stream)).play()
        except (Gone, OSError):
            handler.close_connection = True
        finally:
            with self._lock:
                self._inboxes.pop(stream, None)


class _Inbox:
    """The messages of one stream, in the order of their numbers: they arrive side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: dict[int, Message] = {}
        self._next = 0
        self._ready: queue.Queue[Message] = queue.Queue()

    def put(self, number: int, message: Message) -> None:
        """Take a message in."""
        with self._lock:
            self._early[number] = message
            while self._next in self._early:
                self._ready.put(self._early.pop(self._next))
                self._next += 1

    def get(self, seconds: float) -> Message | None:
        """Return the next message, None if there is none in time."""
        try:
            return self._ready.get(timeout=seconds)
        except queue.Empty:
            return None


class _Stream:
    """One stream to one program, which hears the script's next actions and performs them."""

    def __init__(
        self,
        backend: CursorBackend,
        handler: BaseHTTPRequestHandler,
        inbox: _Inbox,
    ) -> None:
        self._backend = backend
        self._handler = handler
        self._inbox = inbox
        self._workspace = ""
        self._rules = ""
        self._step = ""
        self._written = 0

    def play(self) -> None:
        """Perform actions until one ends the turn."""
        self._open()
        first = self._receive(messages.RUN_REQUEST)
        run = messages.read_run(first.data(messages.RUN_REQUEST))
        if run.model.startswith("invalid"):
            self._end(Fail(status=400, code="model_not_found", message="there is no such model"))
            return
        self._send(messages.ask_context())
        context = self._receive_result(messages.CONTEXT_ID)
        self._workspace = messages.workspace_of(context)
        self._rules = messages.rules_of(context)
        self._step = step_of(self._workspace, [run.prompt]) or run.step
        if not self._step and "*" not in self._backend.script.steps:
            self._end(Fail(status=400, message=_NO_STEP))
            return
        position = run.position
        while position >= 0:
            position = self._play_next(run, position)

    def _play_next(self, run: messages.Run, position: int) -> int:
        """Perform the next action; return the index of the one after it, -1 after the last."""
        place, action = self._backend.next_action((self._workspace, self._step), position)
        self._note(run, place, action)
        if action.fail is not None:
            self._fail(action.fail)
            return -1
        after = place + 1 if place >= 0 else position
        if action.say is None:
            return after if self._call(messages.Call(action, place, self._workspace)) else -1
        words = say_text(action.say)
        self._written += len(words)
        for message in messages.text(words):
            self._send(message)
        self._send(messages.state(self._step, after))
        self._send(messages.turn_ended(*self._tokens(run)))
        self._end()
        return -1

    def _call(self, call: messages.Call) -> bool:
        """Let the program perform a call; return whether it did."""
        self._written += call.size
        self._send(call.started())
        self._send(call.execution())
        done = False
        while not done:
            message = self._receive(messages.EXEC_RESULT, messages.EXEC_CONTROL)
            result = message.at(messages.EXEC_RESULT)
            if result.number(1) == call.id:
                call.take(result)
            if message.has(messages.EXEC_CONTROL):
                ended, finished = messages.ended_call(message.at(messages.EXEC_CONTROL))
                done = ended == call.id
                if done and not finished:
                    raise Gone
        if call.lost:
            raise Gone
        self._send(call.completed())
        self._send(messages.state(self._step, call.position + 1))
        return True

    def _receive_result(self, number: int) -> Message:
        found = Message()
        while True:
            message = self._receive(messages.EXEC_RESULT, messages.EXEC_CONTROL)
            result = message.at(messages.EXEC_RESULT)
            if result.number(1) == number:
                found = result
            if message.has(messages.EXEC_CONTROL):
                ended, _ = messages.ended_call(message.at(messages.EXEC_CONTROL))
                if ended == number:
                    return found

    def _receive(self, *kinds: int) -> Message:
        """Return the program's next message of one of ``kinds``; Gone if there will be none."""
        while True:
            message = self._inbox.get(_POLL)
            if message is None:
                self._look()
            elif message.has(messages.CANCEL):
                raise Gone
            elif any(message.has(kind) for kind in kinds):
                return message

    def _look(self) -> None:
        if self._backend.stopping.is_set():
            raise Gone
        connection = self._handler.connection
        readable, _, _ = select.select([connection], [], [], 0)
        if readable and not connection.recv(1, socket.MSG_PEEK):
            raise Gone

    def _open(self) -> None:
        self._handler.close_connection = True
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", "application/connect+proto")
        self._handler.send_header("Connection", "close")
        self._handler.end_headers()

    def _send(self, message: list[Field]) -> None:
        self._frame(0, encode(message))

    def _frame(self, flags: int, content: bytes) -> None:
        self._handler.wfile.write(struct.pack(">BI", flags, len(content)) + content)
        self._handler.wfile.flush()

    def _fail(self, fail: Fail) -> None:
        if fail.how == "hang":
            while True:
                self._receive()
        if fail.how == "refuse":
            # Lingering for zero seconds makes the close a reset.
            linger = struct.pack("ii", 1, 0)
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._handler.connection.close()
        elif fail.how != "drop":
            self._end(fail)

    def _end(self, fail: Fail | None = None) -> None:
        self._frame(2, json.dumps({} if fail is None else _error(fail)).encode())

    def _note(self, run: messages.Run, place: int, action: Action) -> None:
        self._backend.journal.append(
            {
                "method": "POST",
                "path": _RUN,
                "status": 200,
                "step": self._step,
                "workspace": self._workspace,
                "position": place,
                "action": next(iter(action.model_fields_set)),
                "body": {"prompt": run.prompt, "model": run.model, "rules": self._rules},
            }
        )

    def _tokens(self, run: messages.Run) -> tuple[int, int, int]:
        """Count about as a vendor does: four characters a token, half of what is read cached."""
        read = min((run.size + self._written) // 4 + 2, _MOST_TOKENS)
        return read, read // 2, min(self._written // 4 + 1, _MOST_TOKENS)


def _error(fail: Fail) -> dict[str, Any]:
    code = _CODES.get(fail.status or 500, "unknown")
    words = fail.message or "The rehearsal's script fails here."
    error: dict[str, Any] = {"code": code, "message": words}
    if fail.code in _ERRORS:
        details = encode([(1, _ERRORS[fail.code]), (2, [(1, fail.code), (2, words)])])
        value = base64.b64encode(details).decode().rstrip("=")
        error["details"] = [{"type": "aiserver.v1.ErrorDetails", "value": value}]
    answer: dict[str, Any] = {"error": error}
    if fail.retry_after is not None:
        answer["metadata"] = {"retry-after": [f"{fail.retry_after:g}"]}
    return answer


def _token() -> dict[str, str]:
    # As the real one: it says itself when it ends.
    claims = json.dumps({"exp": int(time.time()) + _TOKEN_SECONDS}).encode()
    middle = base64.urlsafe_b64encode(claims).decode().rstrip("=")
    return {"accessToken": f"{_TOKEN}.{middle}.x", "refreshToken": f"{_TOKEN}.refresh"}


def _send_error(handler: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    answer: Mapping[str, Any] = {"code": code, "message": message}
    _send(handler, status, "application/json", json.dumps(answer).encode())


def _send(handler: BaseHTTPRequestHandler, status: int, kind: str, content: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
