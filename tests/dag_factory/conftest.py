"""An Airflow home of the tests' own, where the whole suite has not set one already."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_agent_provider.agents.contract import AgentCapabilities
from airflow_agent_provider.agents.registry import AGENTS, AgentSpec

# Airflow reads its settings when it is first imported, which is when tests are collected.
if "airflow" not in sys.modules:
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> AgentSpec:
    """Add an agent to the registry that works, and can do nothing else."""
    spec = AgentSpec(
        package="mute-sdk",
        name="mute",
        title="Mute",
        hook="",
        operator="",
        connection="mute_default",
        capabilities=AgentCapabilities(),
    )
    monkeypatch.setitem(AGENTS, spec.name, spec)
    return spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for definitions, with prompts and schemas beside it."""
    dags = tmp_path / "dags"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "schemas").mkdir()
    dags.mkdir()
    (tmp_path / "prompts" / "plan.md").write_text("Plan {{ params.ref }}.\n")
    (tmp_path / "schemas" / "plan.json").write_text('{"type": "object"}\n')
    return dags
