from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.agents.failures import (
    AuthenticationFailed,
    InvalidDefinition,
    PolicyViolation,
)
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.repository import given_repository, repository_access
from airflow_agent_provider.workspace.allowed import AllowList
from airflow_agent_provider.workspace.repository import resolve_base
from airflow_agent_provider.workspace.workspace import Workspace
from tests.git_server import GitServer

TOKEN = "token-canary-4711"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that adds a git connection, and returns its id."""

    def add(**values: Any) -> str:
        monkeypatch.setenv("AIRFLOW_CONN_GIT_TEAM", json.dumps({"conn_type": "git", **values}))
        return "git_team"

    return add


@pytest.fixture
def private(tmp_path: Path, git_server: GitServer) -> str:
    """The URL of a repository with one commit that asks for ada's token."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "a@b",
    }

    def git(*args: str, cwd: Path = tmp_path) -> None:
        subprocess.run(["git", *args], cwd=cwd, env=env, check=True, capture_output=True)

    git("init", "-q", "-b", "main", "clone")
    git("commit", "-q", "--allow-empty", "-m", "first", cwd=tmp_path / "clone")
    git("clone", "-q", "--bare", "clone", "private.git")
    git_server.serve(tmp_path / "private.git", login=f"ada:{TOKEN}")
    return git_server.url("private.git")


def test_without_a_connection_the_url_is_all(tmp_path: Path) -> None:
    for url in (str(tmp_path), tmp_path.as_uri(), "https://git.example/x.git", ""):
        repository = repository_access(url, "main", None)
        assert (repository.url, repository.ref, repository.conn_id) == (url, "main", "")
    home = repository_access("~/x", "", "").url
    assert Path(home).is_absolute()


def test_a_missing_connection_says_how_to_add_it() -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        repository_access("https://git.example/x.git", "", "git_nowhere")
    reason = caught.value.reason
    assert "the connection 'git_nowhere', which does not exist" in reason
    assert "airflow connections add git_nowhere --conn-type git" in reason


@pytest.mark.parametrize(
    "url", ["https://ada:s3cret@git.example/x.git", "http://:s3cret@git.example/x"]
)
def test_a_password_in_the_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        repository_access(url, "", None)
    assert "s3cret" not in str(caught.value)


def test_the_url_may_come_from_the_connection(connect: Callable[..., str]) -> None:
    conn_id = connect(host="https://git.example/x.git")
    assert repository_access("", "", conn_id).url == "https://git.example/x.git"
    assert repository_access("https://other/y.git", "", conn_id).url == "https://other/y.git"


def test_no_url_anywhere(connect: Callable[..., str]) -> None:
    with pytest.raises(InvalidDefinition, match="'git_team' names no repository"):
        repository_access("", "", connect(password="x"))


def test_a_connection_that_contradicts_itself(connect: Callable[..., str]) -> None:
    conn_id = connect(host="git@h:x.git", extra={"key_file": "/a", "private_key": "b"})
    with pytest.raises(AuthenticationFailed, match="connection 'git_team' cannot be used: Both"):
        repository_access("", "", conn_id)


@pytest.mark.integration
def test_a_private_repository_is_read_and_pushed_to(
    private: str, connect: Callable[..., str], tmp_path: Path
) -> None:
    conn_id = connect(host=private, login="ada", password=TOKEN)
    repository = repository_access("", "", conn_id)
    root = tmp_path / "worker"
    base = resolve_base(repository, root / "mirrors")
    workspace = Workspace.prepare(
        root=root,
        attempt=AttemptKey(StepKey("demo", "run", "plan"), 1),
        repository=repository,
        base=base,
    )
    (workspace.path / "x").write_text("x")
    commit = workspace.commit_step("x", {})
    assert workspace.push(commit, "agents/demo") == commit
    assert workspace.fetch_branch("agents/demo") == commit
    # Nothing of the credentials is left anywhere.
    assert TOKEN not in repr(repository)
    assert TOKEN not in os.environ.values()
    for path in root.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.integration
@pytest.mark.parametrize("password", ["wrong-canary", ""])
def test_refused_credentials_name_the_connection(
    private: str, connect: Callable[..., str], tmp_path: Path, password: str
) -> None:
    repository = repository_access(private, "main", connect(login="ada", password=password))
    with pytest.raises(AuthenticationFailed) as caught:
        resolve_base(repository, tmp_path / "mirrors")
    assert "the connection 'git_team'" in caught.value.reason
    assert "wrong-canary" not in str(caught.value)


@pytest.mark.integration
def test_no_connection_for_a_private_repository(private: str, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationFailed, match="name a connection of type git"):
        resolve_base(repository_access(private, "main", None), tmp_path / "mirrors")


def test_credentials_are_there_only_while_git_runs(
    connect: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.proxy")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "http://proxy:3128")
    conn_id = connect(
        host="https://git.example/x.git",
        login="ada",
        password=TOKEN,
        extra={"private_key": "KEY", "strict_host_key_checking": "yes"},
    )
    repository = repository_access("", "", conn_id)
    before = dict(os.environ)
    with repository.credentials() as env:
        assert env["AIRFLOW_GIT_TOKEN"] == TOKEN
        # Numbered after the deployment's own settings.
        assert env["GIT_CONFIG_COUNT"] == "3"
        assert "GIT_CONFIG_KEY_1" in env
        assert dict(os.environ) == before
        key = Path(env["GIT_SSH_COMMAND"].split("-i ")[1].split()[0])
        assert key.read_text() == "KEY"
        assert key.stat().st_mode & 0o777 == 0o600
    assert not key.exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("url", "own", "allowed", "conn_id"),
    [
        ("https://git.example/y", "https://git.example/x", "https://git.example/*", "git_team"),
        ("https://git.example/y", "", "https://git.example/*", "git_team"),
        # A host that nobody vouched for.
        ("https://git.example/y", "https://git.example/x", "https://*", ""),
        ("https://git.example/y", "", "https://*", ""),
        # Another host, another port, another scheme than the credentials are for.
        ("https://other.example/y", "https://git.example/x", "https://other.example/*", ""),
        ("https://git.example:444/y", "https://git.example/x", "https://git.example:444/*", ""),
        ("http://git.example/y", "https://git.example/x", "http://git.example/*", ""),
        ("/srv/git/y", "/srv/git/x", "/srv/git/*", ""),
    ],
)
def test_a_connection_serves_its_own_host_alone(
    connect: Callable[..., str], url: str, own: str, allowed: str, conn_id: str
) -> None:
    connection = connect(login="ada", password=TOKEN)
    repository = given_repository(url, "", connection, own=own, allowed=AllowList([allowed]))
    assert (repository.url, repository.conn_id) == (url, conn_id)


def test_what_a_run_may_not_name_is_refused_without_its_credentials() -> None:
    with pytest.raises(PolicyViolation) as caught:
        given_repository(
            f"http://ada:{TOKEN}@git.example/y", "", None, own="", allowed=AllowList(["https://*"])
        )
    assert "repository http://***@git.example/y, which this run names" in caught.value.reason
    assert TOKEN not in str(caught.value)


@pytest.mark.integration
def test_the_token_does_not_reach_a_server_that_a_run_names(
    private: str, connect: Callable[..., str], tmp_path: Path
) -> None:
    conn_id = connect(login="ada", password=TOKEN)
    own = "https://git.example/x.git"
    given = given_repository(private, "main", conn_id, own=own, allowed=AllowList(["*"]))
    with pytest.raises(AuthenticationFailed, match="refused the credentials"):
        resolve_base(given, tmp_path / "mirrors")
