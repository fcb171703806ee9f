"""The listeners and their writer: what they leave alone, and that nobody waits for them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.mirror import listener
from airflow_agent_provider.mirror.writer import Writer
from tests.stacks import ROOT, aws_connection

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def row(**values: Any) -> Any:
    """A task instance as the scheduler and the API server have it."""
    given = {
        "dag_id": "shop",
        "run_id": "r",
        "task_id": "plan",
        "map_index": -1,
        "try_number": 1,
        "operator_name": STEP_OPERATOR_NAME,
        "start_date": NOW,
        "end_date": None,
        "state": "failed",
        **values,
    }
    return SimpleNamespace(**given)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[listener.Seen]:
    """What reaches the writer's thread."""
    seen: list[listener.Seen] = []
    monkeypatch.setattr(listener, "_table", lambda: None)
    monkeypatch.setattr(listener, "_store", lambda: None)
    monkeypatch.setattr(listener, "tell_step", lambda table, store, step: seen.append(step))
    return seen


def settled(seen: list[Any], count: int) -> list[Any]:
    end = time.monotonic() + 10
    while len(seen) < count and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    return seen


class TestWhatIsTold:
    def test_a_retry_is_told_as_such(self, told: list[listener.Seen]) -> None:
        listener.on_task_instance_failed("running", row(state="up_for_retry"), "gone")
        listener.on_task_instance_failed(None, row(), "marked")
        listener.on_task_instance_success(None, row(map_index=3))
        assert [(seen.state, seen.attempt.step.map_index) for seen in settled(told, 3)] == [
            ("up_for_retry", -1),
            ("failed", -1),
            ("success", 3),
        ]

    @pytest.mark.parametrize(
        "other", [{"operator_name": "PythonOperator"}, {"operator_name": None}, {"try_number": 0}]
    )
    def test_what_is_no_step_or_never_began_is_left_alone(
        self, told: list[listener.Seen], other: dict[str, Any]
    ) -> None:
        listener.on_task_instance_success(None, row(**other))
        assert settled(told, 0) == []

    def test_a_run_without_our_steps_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listener, "_writer", None)
        for dag in (None, SimpleNamespace(tasks=[SimpleNamespace(operator_name="Bash")])):
            listener.on_dag_run_success(SimpleNamespace(dag=dag), "")

    def test_nothing_is_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            listener.on_task_instance_success(None, object())
            listener.on_dag_run_running(SimpleNamespace(dag=SimpleNamespace(tasks=3)), "")
        assert caplog.text.count("which the reconcile repairs") == 2


class TestTheWriter:
    def test_nobody_waits_and_the_overflow_is_dropped_and_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate, done = threading.Event(), []
        writer = Writer(limit=10)
        writer.submit(lambda: gate.wait(30))
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            for number in range(1_000):
                writer.submit(lambda n=number: done.append(n))
        assert time.monotonic() - began < 5
        assert "has dropped 1 change(s)" in caplog.text
        assert "has dropped 900 change(s)" in caplog.text
        assert caplog.text.count("has dropped") < 15
        gate.set()
        # Ten waited, or nine and the one that the thread had not taken yet.
        assert settled(done, 10) in (list(range(9)), list(range(10)))
        assert writer.submit(lambda: None).wait(10)

    def test_a_job_that_fails_stops_no_other(self, caplog: pytest.LogCaptureFixture) -> None:
        writer = Writer()
        with caplog.at_level(logging.WARNING):
            writer.submit(lambda: 1 / 0)
            assert writer.submit(lambda: None).wait(10)
        assert "division by zero" in caplog.text

    def test_a_forked_child_has_its_own_thread(self) -> None:
        writer = Writer()
        assert writer.submit(lambda: None).wait(10)
        child = os.fork()
        if child == 0:
            os._exit(0 if writer.submit(lambda: None).wait(10) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An Airflow home with a database, as its environment."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "dags").mkdir()
    script = (ROOT / "tests" / "mirror" / "dead_table.py").read_text()
    (folder / "dags" / "dead.py").write_text(script)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__AGENTS__MIRROR_TABLE": "mirror",
        "PYTHONPATH": str(ROOT),
    }
    python(environment, "-m", "airflow", "db", "migrate")
    return environment


def python(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=environment["AIRFLOW_HOME"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.integration
def test_a_dead_table_costs_a_step_half_a_second_at_most(home: dict[str, str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connection = aws_connection(f"http://127.0.0.1:{silent.getsockname()[1]}")
        output = python({**home, "AIRFLOW_CONN_AWS_DEFAULT": connection}, "dags/dead.py")
    told = json.loads(output.strip().splitlines()[-1])
    assert told["state"] == "success"
    assert set(told["taken"]) >= {"on_task_instance_running", "on_task_instance_success"}
    # The wait is bounded by 0.4 s; the rest is room for a busy machine.
    assert max(told["taken"].values()) < 2
    assert "which the reconcile repairs" in output
