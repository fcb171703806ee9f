"""The seed's workflow with each agent in each step, by changing nothing but ``agent:``."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script
from infra.local.agents import rehearsal_connections
from infra.local.aws import ROOT
from tests.e2e.bench import Bench
from tests.e2e.live import git

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("airflow_db")]

SEED = ROOT / "dags" / "feature-implementation.yaml"
STEPS = ("plan", "implement", "test", "review")
REHEARSAL = ROOT / "infra" / "rehearsals" / "feature-implementation.yaml"


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Play the seed's script to every agent."""
    script = Script.model_validate(yaml.safe_load(REHEARSAL.read_text()))
    with ModelServer(script) as model, CursorServer(script) as cursor:
        for name, value in rehearsal_connections(model.url, cursor.url).items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", value)
        yield


@pytest.mark.parametrize("agent", [*AGENTS, "{name: cursor, options: {hosted: false}}"])
def test_the_seed_with_one_agent(bench: Bench, vendors: None, agent: str) -> None:
    name = agent if agent in AGENTS else "cursor"
    text = re.sub(r"(?m)^    agent: .*$", f"    agent: {agent}", SEED.read_text())
    (bench.dags / SEED.name).write_text(text)
    # The prompts lie beside the folder of definitions.
    prompts = bench.dags.parent / "prompts"
    shutil.copytree(ROOT / "prompts", prompts, dirs_exist_ok=True)
    loader = bench.dags / "workflows.py"
    shutil.copyfile(ROOT / "dags" / loader.name, loader)
    remote = bench.repository({"README.md": "# Project\n"})

    dag = dags_of(loader)[SEED.stem]
    try:
        run = dag.test(run_conf={"repository": str(remote)})
    finally:
        shutil.rmtree(prompts)

    outcomes = bench.outcomes()
    assert run.state == "success", json.dumps(outcomes, indent=1)
    assert {step: outcomes[step]["agent"] for step in STEPS} == dict.fromkeys(STEPS, name)
    assert {outcomes[step]["attempt"] for step in STEPS} == {1}
    branch = outcomes["review"]["branch"]
    subjects = git(remote, "log", "--format=%s", branch).split("\n")[:4]
    assert subjects == [f"{step}: {SEED.stem}" for step in reversed(STEPS)]
    assert git(remote, "show", f"{branch}:docs/plan.md").startswith("#")
    for step in STEPS:
        assert outcomes[step]["usage"]["total_tokens"] > 0
        assert outcomes[step]["session"]


def dags_of(loader: Path) -> dict:
    """Return the DAGs of a DAG file."""
    spec = importlib.util.spec_from_file_location("seed_workflows", loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)
