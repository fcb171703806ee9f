"""The maintenance DAG: where there is a mirror, and cheap to parse."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from airflow_agent_provider.mirror.maintenance import (
    HORIZON,
    OVERLAP,
    maintenance_dag,
    since_last_look,
)
from tests.stacks import ROOT


def test_without_a_mirror_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AGENTS__MIRROR_TABLE", "")
    assert maintenance_dag() is None


def test_with_a_mirror_it_runs_every_minute_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AGENTS__MIRROR_TABLE", "mirror")
    dag = maintenance_dag()
    assert dag is not None
    assert dag.max_active_runs == 1
    assert not dag.catchup
    assert dag.is_paused_upon_creation is False
    # Airflow's lists of workflows leave it out, and so does the mirror.
    assert "agents" not in dag.tags
    assert [task.operator_name for task in dag.tasks] == ["ReconcileOperator"]


def test_looks_overlap_and_have_a_horizon() -> None:
    now = datetime.now(UTC)
    last = now - timedelta(minutes=1)
    assert since_last_look(last) == last - OVERLAP
    for far in (None, now - 3 * HORIZON):
        assert abs(since_last_look(far) - (now - HORIZON)) < timedelta(minutes=1)


def test_parsing_it_imports_no_client() -> None:
    program = (
        "import runpy, sys; runpy.run_path('dags/agents_mirror.py'); "
        "print([m for m in ('boto3', 'botocore', 'airflow_client') if m in sys.modules])"
    )
    environment = {**os.environ, "AIRFLOW__AGENTS__MIRROR_TABLE": "mirror", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
