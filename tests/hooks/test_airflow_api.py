"""The connection to Airflow's API, where it is missing or in trouble.

That it works is held by ``tests/mirror/test_live.py``, against a real Airflow.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_agent_provider.hooks import airflow_api
from airflow_agent_provider.hooks.airflow_api import AirflowApiError, AirflowApiHook
from tests.stacks import free_port

STEPS = "/api/v2/dags/shop/dagRuns/~/taskInstances"
NONE = {"task_instances": [], "total_entries": 0, "next_cursor": None}


class Server:
    """Answers each path with what it is given, in order; the last answer stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.calls: list[tuple[str, str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                path = self.path.partition("?")[0]
                server.calls.append((f"{self.command} {path}", self.headers["Authorization"], body))
                answers = server.answers.get(path, [(404, {"detail": "Not Found"})])
                status, value = answers.pop(0) if len(answers) > 1 else answers[0]
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After", "3600")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/af"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, path: str, *answers: tuple[int, Any]) -> None:
        self.answers[f"/af{path}"] = list(answers)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def connect(monkeypatch: pytest.MonkeyPatch, **values: Any) -> AirflowApiHook:
    connection = json.dumps({"conn_type": "airflow_api", **values})
    monkeypatch.setenv("AIRFLOW_CONN_AIRFLOW_API", connection)
    return AirflowApiHook()


def test_a_missing_connection_is_named_and_how_to_add_it() -> None:
    with pytest.raises(AirflowApiError, match="airflow connections add nowhere") as caught:
        AirflowApiHook("nowhere").run("shop", "r")
    assert "'nowhere'" in str(caught.value)


def test_a_connection_without_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowApiError, match="'airflow_api' has no host"):
        connect(monkeypatch, password="token").run("shop", "r")


def test_login_and_password_become_a_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer("/auth/token", (201, {"access_token": "fresh"}))
    server.answer(STEPS, (200, NONE))
    hook = connect(monkeypatch, host=server.url + "/", login="ada", password="secret")
    assert_no_steps(hook)
    assert server.calls == [
        ("POST /af/auth/token", None, {"username": "ada", "password": "secret"}),
        (f"GET /af{STEPS}", "Bearer fresh", None),
    ]


def test_a_password_alone_is_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer(STEPS, (200, NONE))
    assert_no_steps(connect(monkeypatch, host=server.url, password="static"))
    assert server.calls == [(f"GET /af{STEPS}", "Bearer static", None)]


def test_without_either_a_token_is_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer("/auth/token", (201, {"access_token": "everybody"}))
    server.answer(STEPS, (200, NONE))
    assert_no_steps(connect(monkeypatch, host=server.url))
    assert server.calls[0] == ("GET /af/auth/token", None, None)


def test_a_host_in_pieces(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer(STEPS, (200, NONE))
    port = server.http.server_address[1]
    host = "http://127.0.0.1/af"
    assert_no_steps(connect(monkeypatch, host=host, port=port, password="static"))


@pytest.mark.parametrize("answer", [{"detail": "no"}, ["x"], "x", None])
def test_what_is_no_airflow(server: Server, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    server.answer("/auth/token", (200, answer))
    hook = connect(monkeypatch, host=server.url, login="ada", password="secret")
    works, told = hook.test_connection()
    assert not works
    assert "Airflow's base URL" in told
    assert "secret" not in told


def test_a_busy_server_is_asked_again_soon(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer(STEPS, (503, {}), (429, {}), (200, NONE))
    assert_no_steps(connect(monkeypatch, host=server.url, password="static"))
    assert len(server.calls) == 3


def test_a_broken_server_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer("/api/v2/dags/shop/dagRuns/r", (500, {"detail": "database is locked"}))
    with pytest.raises(AirflowApiError, match=r"HTTP 500.*database is locked.*'airflow_api'"):
        connect(monkeypatch, host=server.url, password="static").run("shop", "r")


def test_a_refused_connection_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for credentials in ({"password": "static"}, {"login": "ada", "password": "secret"}):
        hook = connect(monkeypatch, host=f"http://127.0.0.1:{free_port()}", **credentials)
        with pytest.raises(AirflowApiError, match=r"cannot be reached.*is its API server up"):
            hook.run("shop", "r")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(airflow_api, "TIMEOUT", (0.2, 0.2))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(AirflowApiError, match="cannot be reached"):
            connect(monkeypatch, host=url, password="static").run("shop", "r")


def assert_no_steps(hook: AirflowApiHook) -> None:
    assert list(hook.steps("shop")) == []
