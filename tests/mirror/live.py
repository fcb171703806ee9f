"""A running Airflow with the mirror, for the tests that need real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.aws import Aws
from tests.stacks import ROOT, aws_connection, free_port

USER = "admin"
PASSWORD = "admin-of-the-test"
DAGS = Path(__file__).parent / "live_dags"


@dataclass(frozen=True)
class Live:
    """A running Airflow.

    :param url: its base URL.
    :param environment: with which other programs reach the same home and database.
    :param connections: of its database, as JSON by the name of their environment variable.
    """

    url: str
    environment: dict[str, str]
    connections: dict[str, str]

    def request(self, method: str, path: str, **body: Any) -> Any:
        """Call the public API; return the answer's values."""
        headers = {"Authorization": f"Bearer {self._token()}"}
        answer = httpx.request(
            method, f"{self.url}/api/v2/{path}", headers=headers, json=body or None, timeout=30
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run."""
        self.request(
            "POST", f"dags/{dag_id}/dagRuns", dag_run_id=run_id, logical_date=None, conf=conf
        )

    def wait_for_run(self, dag_id: str, run_id: str, *states: str) -> str:
        """Wait until the run is in one of the states, two minutes at most; return the state."""
        return self._wait(f"dags/{dag_id}/dagRuns/{run_id}", states)

    def wait_for_step(self, dag_id: str, run_id: str, step: str, *states: str) -> str:
        """Wait until the step is in one of the states, two minutes at most; return the state."""
        return self._wait(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{step}", states)

    def _wait(self, path: str, states: tuple[str, ...]) -> str:
        state = ""
        for _ in range(400):
            state = str(self.request("GET", path)["state"])
            if state in states:
                return state
            time.sleep(0.3)
        raise AssertionError(f"{path} is {state}, and not in time one of {states}")

    def _token(self) -> str:
        answer = httpx.post(
            f"{self.url}/auth/token", json={"username": USER, "password": PASSWORD}, timeout=30
        )
        return str(answer.raise_for_status().json()["access_token"])


@pytest.fixture(scope="session")
def live(ministack: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Run ``airflow standalone`` with the probe DAGs and a mirror in ministack."""
    home = tmp_path_factory.mktemp("airflow")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (home / "passwords.json").write_text(json.dumps({USER: PASSWORD}))
    connections = {
        "AIRFLOW_CONN_AWS_DEFAULT": aws_connection(
            ministack.endpoint, read_timeout=60, connect_timeout=60
        ),
        "AIRFLOW_CONN_AIRFLOW_API": json.dumps(
            {"conn_type": "airflow_api", "host": url, "login": USER, "password": PASSWORD}
        ),
    }
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")},
        **settings(home, port),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["airflow", "standalone"],
            env=environment,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        made = Live(url, environment, connections)
        _wait_until_healthy(made, process, home / "log")
        _add_connections(made)
        yield made
    finally:
        _end(process)


def settings(home: Path, port: int) -> dict[str, str]:
    """Return an Airflow's settings as its environment."""
    values = {
        "core__dags_folder": str(DAGS),
        "core__load_examples": "False",
        "core__parallelism": "4",
        "core__dags_are_paused_at_creation": "False",
        "core__simple_auth_manager_users": f"{USER}:admin",
        "core__simple_auth_manager_passwords_file": str(home / "passwords.json"),
        "core__execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
        "database__sql_alchemy_conn": f"sqlite:///{home}/airflow.db",
        "api__host": "127.0.0.1",
        "api__port": str(port),
        "api__base_url": f"http://127.0.0.1:{port}",
        "scheduler__enable_health_check": "False",
        "logging__worker_log_server_port": str(free_port()),
        "logging__trigger_log_server_port": str(free_port()),
        "agents__mirror_table": "mirror",
        "agents__artifacts": (home / "artifacts").as_uri(),
    }
    return {
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{name.upper()}": value for name, value in values.items()},
    }


def _add_connections(live: Live) -> None:
    # In the database, since each kind of process reads it there in its own way.
    for name, text in live.connections.items():
        values = json.loads(text)
        values["connection_id"] = name.removeprefix("AIRFLOW_CONN_").lower()
        values["extra"] = json.dumps(values.get("extra", {}))
        live.request("POST", "connections", **values)


def _wait_until_healthy(live: Live, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        if process.poll() is not None:
            pytest.fail(f"airflow standalone ended: {log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.HTTPError, KeyError):
            found = {dag["dag_id"] for dag in live.request("GET", "dags")["dags"]}
            if {"probe", "foreign", "look"} <= found:
                return
        time.sleep(0.3)
    pytest.fail(f"Airflow does not show the probe DAGs: {log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    # SIGINT, since SIGTERM to standalone leaves orphans; then whatever is left of its own group.
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(
                number
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
