from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
    PolicyViolation,
    RateLimited,
    Unavailable,
)
from airflow_agent_provider.workspace.git import GitError
from airflow_agent_provider.workspace.remote import remote_failure
from airflow_agent_provider.workspace.repository import Repository, resolve_base


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fatal: unable to access 'https://h/x/': Could not resolve host: h", Unavailable),
        (
            "fatal: unable to access 'https://h/x/': The requested URL returned error: 502",
            Unavailable,
        ),
        (
            "fatal: unable to access 'https://h/': The requested URL returned error: 429",
            RateLimited,
        ),
        ("fatal: unable to access 'x': Failed to connect to h port 443", Unavailable),
        ("fetch-pack: unexpected disconnect while reading sideband packet", Unavailable),
        ("ssh: connect to host h port 22: Connection timed out", Unavailable),
        ("ssh: connect to host h port 22: No route to host", Unavailable),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from", AuthenticationFailed),
        ("Host key verification failed.\nfatal: Could not read from", AuthenticationFailed),
        ("fatal: Authentication failed for 'https://h/x/'", AuthenticationFailed),
        ("fatal: could not read Username for 'https://h': terminal prompts", AuthenticationFailed),
        ("remote: Permission to o/r.git denied to ada.\nfatal: unable", AuthenticationFailed),
        ("remote: Write access to repository not granted.", AuthenticationFailed),
        (
            "remote: Repository not found.\nfatal: repository 'https://h/' not found",
            InvalidDefinition,
        ),
        ("fatal: '/nowhere' does not appear to be a git repository", InvalidDefinition),
        ("fatal: transport 'ext' not allowed", InvalidDefinition),
        ("fatal: detected dubious ownership in repository at '/x'", InvalidDefinition),
        ("remote: error: GH006: Protected branch update failed for main.", PolicyViolation),
        ("! [remote rejected] a -> a (pre-receive hook declined)", PolicyViolation),
        ("fatal: something new", AgentFailed),
    ],
)
def test_gits_words_have_one_class(words: str, expected: type[AgentFailure]) -> None:
    failure = remote_failure(GitError("git fetch: x", stderr=words, returncode=128), "https://h/x")
    assert type(failure) is expected
    assert "https://h/x" in failure.reason
    assert "\n" not in failure.reason
    assert failure.raw == words


def test_a_call_that_never_ended_is_unavailable() -> None:
    assert type(remote_failure(GitError("git fetch did not end"), "u")) is Unavailable


def test_refused_credentials_name_the_connection() -> None:
    error = GitError("x", stderr="fatal: Authentication failed for 'u'", returncode=128)
    assert "connection 'git_team'" in remote_failure(error, "u", "git_team").reason
    assert "repository_conn_id" in remote_failure(error, "u").reason


@pytest.fixture()
def http_status() -> Iterator[ThreadingHTTPServer]:
    """A git server that answers everything with the status in the URL's first folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = int(self.path.split("/")[1])
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, AuthenticationFailed),
        (403, AuthenticationFailed),
        (404, InvalidDefinition),
        (429, RateLimited),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_a_real_git_and_an_http_status(
    http_status: ThreadingHTTPServer, tmp_path: Path, status: int, expected: type[AgentFailure]
) -> None:
    url = f"http://127.0.0.1:{http_status.server_port}/{status}/team/repo.git"
    for ref in ("", "main"):
        with pytest.raises(AgentFailure) as caught:
            resolve_base(Repository(url, ref), tmp_path / "mirrors")
        assert type(caught.value) is expected
        assert url in caught.value.reason


@pytest.mark.integration
def test_a_refused_connection_is_unavailable(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/repo.git"
        with pytest.raises(Unavailable, match="cannot be reached"):
            resolve_base(Repository(url), tmp_path / "mirrors")
