"""What every test gets: an Airflow home of its own, and no settings or keys of the user's."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

_FOREIGN = (
    "AIRFLOW__",
    "AIRFLOW_CONN_",
    "AIRFLOW_VAR_",
    "AWS_",
    "OPENAI_",
    "CODEX_",
    "CURSOR_",
    "ANTHROPIC_",
    "CLAUDE",
)

# Airflow reads its settings when it is first imported, which is when tests are collected.
for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]
_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = _HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__AGENTS__PROGRAMS"] = str(Path(__file__).parents[1] / ".programs")
# Runs of tests name repositories on disk.
os.environ["AIRFLOW__AGENTS__REPOSITORIES"] = "https://* /*"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(Path(_HOME) / "dags")
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

from airflow_agent_provider.rehearsal.cursor_server import CursorServer  # noqa: E402
from airflow_agent_provider.rehearsal.script import Script  # noqa: E402
from infra.local.aws import Aws, start_ministack  # noqa: E402
from infra.local.processes import Processes  # noqa: E402
from tests.git_server import GitServer  # noqa: E402
from tests.stand_ins import Remote, make_remote  # noqa: E402


def pytest_unconfigure() -> None:
    """Remove the Airflow home."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Make the tables of Airflow's database, for tests that run tasks in this process."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """Return an account at a running stand-in for S3 and DynamoDB."""
    with Processes(tmp_path_factory.mktemp("ministack")) as processes:
        yield start_ministack(processes)


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """Return a bare git repository on disk, with one commit."""
    return make_remote(tmp_path / "remote")


@pytest.fixture
def cursor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], CursorServer]]:
    """Return what starts the stand-in for Cursor and makes it the default connection's host."""
    with ExitStack() as servers:

        def start(script: Script, key: str = "key_secret_123", **extra: object) -> CursorServer:
            server = servers.enter_context(CursorServer(script))
            connection = {
                "conn_type": "cursor",
                "host": server.url,
                "password": key,
                "extra": {"poll_interval": 0.1, "requests_per_minute": 60_000, **extra},
            }
            monkeypatch.setenv("AIRFLOW_CONN_CURSOR_DEFAULT", json.dumps(connection))
            return server

        yield start


@pytest.fixture
def aws(ministack: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """Lead the connection ``aws_default`` to a fresh account of the stand-in; return it."""
    account = Aws(ministack.endpoint, f"{random.randrange(10**11, 10**12)}")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", account.connection())
    return account


@pytest.fixture
def s3_bucket(ministack: Aws) -> str:
    """Return a new bucket."""
    name = f"agents-{uuid.uuid4().hex}"
    ministack.create_bucket(name)
    return name


@pytest.fixture
def git_server() -> Iterator[GitServer]:
    """Return a git server over HTTP that serves nothing yet."""
    server = GitServer()
    yield server
    server.close()
