"""A stand-in on loopback for Cursor's Cloud Agents API v1 that really works on a git remote.

It clones the repository that it is given, plays the rehearsal script's actions of the step,
commits, pushes its branch, and answers as Cursor does. An agent without a repository works in an
empty folder. The key is any text; one that starts with ``invalid`` is refused, and so is a model
whose id starts so. Where a rate limit is set, a key that starts with ``unlimited`` has none. State
lives in memory. At the same address it plays the script to Cursor's program on the worker
(:mod:`.cursor_backend`).

``GET /_rehearsal/requests`` tells what was asked of it, and when.

Source: https://cursor.com/docs/cloud-agent/api/endpoints, read in November 2026.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from airflow_agent_provider.rehearsal.cursor_agents import (
    Agent,
    Play,
    Run,
    perform,
    plays_of,
    remote_refuses,
)
from airflow_agent_provider.rehearsal.cursor_backend import CursorBackend
from airflow_agent_provider.rehearsal.processes import Ended, Processes
from airflow_agent_provider.rehearsal.script import Fail, Script

#: Seconds that stop() waits for a run whose processes were killed.
STOP_TIMEOUT = 10.0
HEARTBEAT = 15.0
_JOURNAL_LENGTH = 10_000
_MODELS = ("composer-2.5", "claude-4-sonnet-thinking", "gpt-5.3-codex")
_AGENT_ID = re.compile(r"^bc-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class Refusal(Exception):
    """An answer that is not what was asked for."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message}}
        self.headers = dict(headers or {})


class CutOff(Exception):
    """The connection is closed without an answer."""


@dataclass(frozen=True)
class Request:
    """A request as the routes see it."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class RateLimit:
    """How many requests a key may send.

    :param requests: as many are granted in any ``seconds``.
    :param seconds: the length of the window.
    """

    requests: int
    seconds: float = 60.0


class CursorServer:
    """Plays a script to everyone who asks for ``url``, hosted or local. A context manager.

    :param script: what the agents do.
    :param host: the address to listen on.
    :param port: the port; 0 lets the kernel choose a free one.
    :param limit: what each key is granted; more is refused with 429. None grants everything.
    """

    def __init__(
        self,
        script: Script,
        host: str = "127.0.0.1",
        port: int = 0,
        limit: RateLimit | None = None,
    ) -> None:
        self._cloud = _Cloud(script)
        self._meter = _Meter(limit)
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin to listen."""
        self._server = _Server(self._address, self._cloud, self._meter)
        self._cloud.open()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="cursor-stand-in", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every run and its processes, stop listening and remove the clones."""
        self._cloud.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._running().server_address[1])

    @property
    def url(self) -> str:
        """The base URL: the host of a ``cursor`` connection."""
        host = str(self._running().server_address[0])
        return f"http://{host}:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What was asked, oldest first: method, path, status of the answer, body, time."""
        return list(self._cloud.journal)

    def _running(self) -> _Server:
        if self._server is None:
            raise RuntimeError("the stand-in for Cursor is not started")
        return self._server


class _Meter:
    """Counts the requests of each key in a sliding window."""

    def __init__(self, limit: RateLimit | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._granted: dict[str, deque[float]] = {}

    def admit(self, key: str) -> None:
        """Count a request.

        :raises Refusal: if the key has no more for now; it says how long to wait.
        """
        if self._limit is None or key.startswith("unlimited"):
            return
        now = time.monotonic()
        with self._lock:
            granted = self._granted.setdefault(key, deque())
            while granted and granted[0] <= now - self._limit.seconds:
                granted.popleft()
            if len(granted) >= self._limit.requests:
                wait = max(1, math.ceil(granted[0] + self._limit.seconds - now))
                headers = {"Retry-After": str(wait)}
                raise Refusal(429, "rate_limit_exceeded", "Too many requests", headers)
            granted.append(now)


class _Cloud:
    """The agents, their runs and the threads that perform them."""

    def __init__(self, script: Script) -> None:
        self.journal: deque[dict[str, Any]] = deque(maxlen=_JOURNAL_LENGTH)
        self.closed = threading.Event()
        self.backend = CursorBackend(script, self.journal, self.closed)
        self._script = script
        self._lock = threading.RLock()
        self._agents: dict[str, Agent] = {}
        # Kept apart from the agents, since a script may refuse to create one a few times.
        self._plays: dict[str, Play] = {}
        #: What looks at a repository before its agent exists.
        self._checks: set[Processes] = set()
        self._root = Path()
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
            (method, re.compile(f"^{path}$"), answer)
            for method, path, answer in (
                ("GET", "/v1/me", self._me),
                ("GET", "/v1/models", self._models),
                ("GET", "/v1/agents", self._list_agents),
                ("POST", "/v1/agents", self._create_agent),
                ("GET", "/v1/agents/([^/]+)", self._get_agent),
                ("DELETE", "/v1/agents/([^/]+)", self._delete_agent),
                ("GET", "/v1/agents/([^/]+)/usage", self._usage),
                ("GET", "/v1/agents/([^/]+)/runs", self._list_runs),
                ("POST", "/v1/agents/([^/]+)/runs", self._create_run),
                ("GET", "/v1/agents/([^/]+)/runs/([^/]+)", self._get_run),
                ("POST", "/v1/agents/([^/]+)/runs/([^/]+)/cancel", self._cancel_run),
                ("POST", "/v1/agents/([^/]+)/archive", self._archive),
                ("POST", "/v1/agents/([^/]+)/unarchive", self._unarchive),
            )
        ]

    def open(self) -> None:
        """Make the folder of the clones."""
        self._root = Path(tempfile.mkdtemp(prefix="cursor-stand-in-"))

    def close(self) -> None:
        """End all runs, wait for their threads and remove the clones."""
        self.closed.set()
        with self._lock:
            runs = [run for agent in self._agents.values() for run in agent.runs]
            for processes in [*self._checks, *(run.processes for run in runs)]:
                processes.end()
        for run in runs:
            if run.thread is not None:
                run.thread.join(STOP_TIMEOUT)
        if self._root != Path():
            shutil.rmtree(self._root, ignore_errors=True)

    def answer(self, request: Request) -> tuple[int, Any]:
        """Return status and body of the answer.

        :raises Refusal: for an answer that grants nothing.
        :raises CutOff: for none at all.
        """
        for method, path, handler in self._routes:
            match = path.match(request.path)
            if match and method == request.method:
                answer: tuple[int, Any] = handler(request, *match.groups())
                return answer
        raise Refusal(404, "not_found", f"there is no {request.method} {request.path}")

    def stream(self, agent_id: str, run_id: str) -> Run:
        """Return the run whose events are asked for."""
        return self._run(agent_id, run_id)

    def _me(self, request: Request) -> tuple[int, Any]:
        return 200, {"apiKeyName": "rehearsal", "userEmail": "rehearsal@example.invalid"}

    def _models(self, request: Request) -> tuple[int, Any]:
        return 200, {"items": [{"id": model, "displayName": model} for model in _MODELS]}

    def _list_agents(self, request: Request) -> tuple[int, Any]:
        archived = request.query.get("includeArchived", "true") != "false"
        with self._lock:
            agents = [_agent_body(agent) for agent in reversed(self._agents.values())]
        # As Cursor does: the list has what identifies an agent, the agent itself has the rest.
        short = [
            {k: v for k, v in agent.items() if k != "repos"}
            for agent in agents
            if archived or agent["status"] != "ARCHIVED"
        ]
        return 200, _page(short, request.query)

    def _create_agent(self, request: Request) -> tuple[int, Any]:
        wanted = _read_creation(request.body)
        with self._lock:
            self._refuse_taken(wanted["id"])
            play = self._plays.setdefault(
                wanted["id"], plays_of(self._script, wanted["prompt"], wanted["name"])
            )
        fail = play.failing_request()
        if fail is not None and fail.how != "drop":
            raise _refusal(fail)
        self._refuse_repository(wanted)
        with self._lock:
            self._refuse_taken(wanted["id"])
            agent = Agent(
                id=wanted["id"],
                name=wanted["name"],
                repository=wanted["repository"],
                ref=wanted["ref"],
                folder=self._root / wanted["id"],
                play=play,
            )
            self._agents[agent.id] = agent
            run = self._start(agent, wanted["prompt"])
            answer = {"agent": _agent_body(agent), "run": _run_body(agent, run)}
        if fail is not None:
            raise _refusal(fail)
        return 201, answer

    def _get_agent(self, request: Request, agent_id: str) -> tuple[int, Any]:
        return 200, _agent_body(self._agent(agent_id))

    def _delete_agent(self, request: Request, agent_id: str) -> tuple[int, Any]:
        agent = self._agent(agent_id)
        with self._lock:
            del self._agents[agent_id], self._plays[agent_id]
        for run in agent.runs:
            run.processes.end()
            if run.thread is not None:
                run.thread.join(STOP_TIMEOUT)
        shutil.rmtree(agent.folder, ignore_errors=True)
        return 200, {"id": agent_id}

    def _archive(self, request: Request, agent_id: str) -> tuple[int, Any]:
        self._agent(agent_id).archived = True
        return 200, {"id": agent_id}

    def _unarchive(self, request: Request, agent_id: str) -> tuple[int, Any]:
        self._agent(agent_id).archived = False
        return 200, {"id": agent_id}

    def _list_runs(self, request: Request, agent_id: str) -> tuple[int, Any]:
        agent = self._agent(agent_id)
        runs = [_run_body(agent, run) for run in reversed(agent.runs)]
        # As Cursor does: the list leaves out what only the run itself tells.
        short = [{k: v for k, v in run.items() if k not in ("result", "git")} for run in runs]
        return 200, _page(short, request.query)

    def _create_run(self, request: Request, agent_id: str) -> tuple[int, Any]:
        agent = self._agent(agent_id)
        prompt = _prompt(request.body)
        _refuse_busy(agent)
        fail = agent.play.failing_request()
        if fail is not None and fail.how != "drop":
            raise _refusal(fail)
        with self._lock:
            _refuse_busy(agent)
            run = self._start(agent, prompt)
        if fail is not None:
            raise _refusal(fail)
        return 201, {"run": _run_body(agent, run)}

    def _get_run(self, request: Request, agent_id: str, run_id: str) -> tuple[int, Any]:
        run, agent = self._run(agent_id, run_id), self._agent(agent_id)
        if run.active:
            fail = agent.play.failing_request()
            if fail is not None:
                raise _refusal(fail)
        return 200, _run_body(agent, run)

    def _cancel_run(self, request: Request, agent_id: str, run_id: str) -> tuple[int, Any]:
        run = self._run(agent_id, run_id)
        with self._lock:
            if not run.active:
                raise Refusal(409, "run_not_cancellable", f"run {run_id} is {run.status}")
            run.to_status("CANCELLED")
        run.processes.end()
        if run.thread is not None:
            # The clone is at rest before a follow-up run may use it.
            run.thread.join(STOP_TIMEOUT)
        return 200, {"id": run_id}

    def _usage(self, request: Request, agent_id: str) -> tuple[int, Any]:
        agent, wanted = self._agent(agent_id), request.query.get("runId")
        runs = [run.usage() for run in agent.runs if wanted in (None, run.id)]
        totals: dict[str, int] = {}
        for entry in runs:
            for name, tokens in entry["usage"].items():
                totals[name] = totals.get(name, 0) + tokens
        cents = sum(entry["cost"]["chargedCents"] for entry in runs)
        cost = {"rawCostCents": cents, "chargedCents": cents}
        return 200, {"totalUsage": totals, "cost": cost, "runs": runs}

    def _start(self, agent: Agent, prompt: str) -> Run:
        if self.closed.is_set():
            raise Refusal(503, "unavailable", "the stand-in is stopping")
        run = Run(agent.id, prompt)
        agent.runs.append(run)
        run.thread = threading.Thread(
            target=perform, args=(agent, run), name=f"cursor-{run.id}", daemon=True
        )
        run.thread.start()
        return run

    def _refuse_taken(self, agent_id: str) -> None:
        if agent_id in self._agents:
            raise Refusal(409, "agent_id_conflict", f"agent {agent_id} exists already")

    def _refuse_repository(self, wanted: Mapping[str, str]) -> None:
        if not wanted["repository"]:
            return
        processes = Processes()
        with self._lock:
            self._checks.add(processes)
        try:
            reason = remote_refuses(wanted["repository"], wanted["ref"], processes, self._root)
        finally:
            self._checks.discard(processes)
        if reason:
            raise Refusal(400, "validation_error", reason)

    def _agent(self, agent_id: str) -> Agent:
        with self._lock:
            agent = self._agents.get(agent_id)
        if agent is None:
            raise Refusal(404, "agent_not_found", f"there is no agent {agent_id}")
        return agent

    def _run(self, agent_id: str, run_id: str) -> Run:
        for run in self._agent(agent_id).runs:
            if run.id == run_id:
                return run
        raise Refusal(404, "run_not_found", f"agent {agent_id} has no run {run_id}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], cloud: _Cloud, meter: _Meter) -> None:
        super().__init__(address, _Handler)
        self.cloud = cloud
        self.meter = meter

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: tests and kills do that on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet; the journal has every request."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        if url.path == "/_rehearsal/requests":
            self._send(200, list(self.server.cloud.journal))
            return
        if self.server.cloud.backend.serves(url.path):
            self.server.cloud.backend.serve(self, body)
            return
        entry: dict[str, Any] = {
            "method": self.command,
            "path": self.path,
            "status": 0,
            "at": time.time(),
        }
        self.server.cloud.journal.append(entry)
        try:
            self.server.meter.admit(self._authorize())
            request = Request(
                self.command,
                url.path,
                {k: v[-1] for k, v in parse_qs(url.query).items()},
                _json(body),
            )
            entry["body"] = request.body
            stream = re.match(r"^/v1/agents/([^/]+)/runs/([^/]+)/stream$", url.path)
            if stream and self.command == "GET":
                entry["status"] = 200
                self._stream(self.server.cloud.stream(*stream.groups()))
                return
            entry["status"], answer = self.server.cloud.answer(request)
            self._send(entry["status"], answer)
        except Refusal as refusal:
            entry["status"] = refusal.status
            self._send(refusal.status, refusal.body, refusal.headers)
        except (CutOff, Ended):
            self._cut()

    def _body(self) -> bytes:
        if "chunked" not in str(self.headers.get("Transfer-Encoding") or "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline(64), 16):
            body += self.rfile.read(size)
            self.rfile.readline(64)
        self.rfile.readline(64)
        return bytes(body)

    def _authorize(self) -> str:
        """Return the key."""
        scheme, _, value = str(self.headers.get("Authorization") or "").partition(" ")
        key = value.strip() if scheme == "Bearer" else ""
        if scheme == "Basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                key = base64.b64decode(value).decode().partition(":")[0]
        if not key or key.startswith("invalid"):
            raise Refusal(401, "unauthorized", "Invalid API key")
        return key

    def _stream(self, run: Run) -> None:
        """Send the run's events after the one that the client saw last, until the run ends."""
        seen = self.headers.get("Last-Event-ID")
        start = next((i + 1 for i, e in enumerate(run.events) if e["id"] == seen), 0)
        if seen and not start:
            raise Refusal(400, "invalid_last_event_id", f"run {run.id} has no event {seen}")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event(None, "status", {"status": run.status})
        beat = time.monotonic()
        while not self.server.cloud.closed.is_set():
            active = run.active
            for event in run.events[start:]:
                self._event(event["id"], event["event"], event["data"])
                start += 1
            if not active:
                result = {"status": run.status, "text": run.result}
                self._event(f"{run.id}:result", "result", result)
                self._event(None, "done", {})
                return
            if time.monotonic() - beat > HEARTBEAT:
                self._event(None, "heartbeat", {})
                beat = time.monotonic()
            self.server.cloud.closed.wait(0.2)

    def _event(self, event_id: str | None, name: str, data: Any) -> None:
        head = f"id: {event_id}\n" if event_id else ""
        self.wfile.write(f"{head}event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _refuse_busy(agent: Agent) -> None:
    if agent.runs and agent.runs[-1].active:
        raise Refusal(409, "agent_busy", f"agent {agent.id} already has an active run")


def _refusal(fail: Fail) -> Exception:
    if fail.how in ("drop", "refuse"):
        return CutOff()
    status = fail.status or 500
    headers = {} if fail.retry_after is None else {"Retry-After": f"{fail.retry_after:g}"}
    code = fail.code or {
        401: "unauthorized",
        402: "usage_limit_exceeded",
        403: "forbidden",
        404: "not_found",
        429: "rate_limit_exceeded",
    }.get(status, "internal_error" if status >= 500 else "validation_error")
    return Refusal(status, code, fail.message or "the rehearsal script says so", headers)


def _json(body: bytes) -> Mapping[str, Any]:
    if not body:
        return {}
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, "validation_error", "the body is no JSON object")
    return value


def _read_creation(body: Mapping[str, Any]) -> dict[str, str]:
    """Return what an agent is created from: id, name, prompt, repository, ref."""
    prompt = _prompt(body)
    agent_id = body.get("agentId")
    if agent_id is not None and not _AGENT_ID.match(str(agent_id)):
        raise Refusal(400, "validation_error", f"agentId {agent_id} is not of the form bc-<uuid>")
    if agent_id is not None and body.get("envVars"):
        raise Refusal(400, "validation_error", "agentId and envVars exclude each other")
    model = body.get("model")
    if isinstance(model, dict) and str(model.get("id") or "invalid").startswith("invalid"):
        raise Refusal(400, "validation_error", f"unknown model {model.get('id')}")
    repos = body.get("repos", [{"url": ""}])
    first = repos[0] if isinstance(repos, list) and repos else None
    if not isinstance(first, dict) or ("repos" in body and not first.get("url")):
        raise Refusal(400, "validation_error", "repos[0].url is missing")
    return {
        "id": str(agent_id or f"bc-{uuid.uuid4()}"),
        "name": str(body.get("name") or "Agent"),
        "prompt": prompt,
        "repository": str(first["url"]),
        "ref": str(first.get("startingRef") or ""),
    }


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    text = prompt.get("text") if isinstance(prompt, dict) else None
    if not isinstance(text, str) or not text:
        raise Refusal(400, "validation_error", "prompt.text is missing")
    return text


def _page(items: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of ``items`` that is asked for. A cursor is the id of the next item, so that
    newer ones do not move the page.
    """
    limit, cursor = min(_number(query, "limit", 20), 100), query.get("cursor")
    ids = [item["id"] for item in items]
    if cursor and cursor not in ids:
        raise Refusal(400, "validation_error", f"there is no page at the cursor {cursor}")
    start = ids.index(cursor) if cursor else 0
    page: dict[str, Any] = {"items": items[start : start + limit]}
    if start + limit < len(items):
        page["nextCursor"] = ids[start + limit]
    return page


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name, str(default))
    if not value.isdigit():
        raise Refusal(400, "validation_error", f"{name} must be a number")
    return int(value)


def _agent_body(agent: Agent) -> dict[str, Any]:
    repos = [{"url": agent.repository, "startingRef": agent.ref}] if agent.repository else []
    at_work = bool(agent.runs) and agent.runs[-1].active
    return {
        "id": agent.id,
        "name": agent.name,
        "status": "ARCHIVED" if agent.archived else "ACTIVE" if at_work else "IDLE",
        "url": f"https://cursor.com/agents/{agent.id}",
        "repos": repos,
        "createdAt": agent.created_at,
        "updatedAt": agent.runs[-1].updated_at if agent.runs else agent.created_at,
        "latestRunId": agent.runs[-1].id if agent.runs else None,
    }


def _run_body(agent: Agent, run: Run) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": run.id,
        "agentId": agent.id,
        "status": run.status,
        "createdAt": run.created_at,
        "updatedAt": run.updated_at,
    }
    if not run.active:
        branches = [{"repoUrl": agent.repository, "branch": agent.pushed}] if agent.pushed else []
        body |= {"durationMs": run.duration_ms, "git": {"branches": branches}}
    if run.result and run.status == "FINISHED":
        body["result"] = run.result
    if run.error:
        body["error"] = run.error
    return body
