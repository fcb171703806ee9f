"""A bench for steps: real Airflow in this process, and the real agent programs' scripted models."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from airflow_agent_provider.hooks.artifacts import ArtifactStore
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script
from tests.e2e.live import make_repository


@dataclass
class Bench:
    """Where a test runs its DAGs.

    :param folder: what it may write.
    :param store: the artifacts.
    :param dags: Airflow's DAG folder, emptied after the test.
    """

    folder: Path
    store: ArtifactStore
    dags: Path
    monkeypatch: pytest.MonkeyPatch
    server: ModelServer | None = None

    def rehearse(self, steps: str) -> None:
        """Let the scripted model play ``steps``, YAML."""
        self.server = ModelServer(Script.model_validate({"steps": yaml.safe_load(steps)}))
        self.server.start()
        for agent in ("codex", "copilot"):
            connection = {
                "conn_type": agent,
                "host": f"{self.server.url}/v1",
                "password": "sk-rehearsal-3f9d2c71a8",
                "extra": {"model": "gpt-5.5"},
            }
            name = f"AIRFLOW_CONN_{agent.upper()}_DEFAULT"
            self.monkeypatch.setenv(name, json.dumps(connection))

    def repository(self, files: dict[str, str]) -> Path:
        """Return a new bare repository with one commit on ``main``."""
        bare = self.folder / "remote.git"
        make_repository(bare, files)
        return bare

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Return the outcome of the last attempt of each step."""
        found = {}
        for key in self.store.keys(""):
            if key.endswith("/outcome.json"):
                outcome = json.loads(self.store.get(key))
                found[outcome["step"]] = outcome
        return found

    def artifact(self, uri: str) -> str:
        """Return the text of an artifact."""
        return self.store.get(self.store.key(uri)).decode()


def load(bench: Bench, file: Path) -> Any:
    """Return the ``dag`` of a DAG file, from Airflow's DAG folder: elsewhere it is not known."""
    copy = bench.dags / file.name
    shutil.copyfile(file, copy)
    return _module(copy).dag


def workflow(bench: Bench, name: str, text: str) -> Any:
    """Return the DAG of a workflow's definition, through the factory.

    :param name: the workflow's name.
    :param text: the definition, without its name.
    """
    (bench.dags / f"{name}.yaml").write_text(f"name: {name}\n{textwrap.dedent(text)}")
    loader = bench.dags / "workflows.py"
    loader.write_text(
        "from dag_factory import load_workflows  # an Airflow DAG for each definition\n"
        "globals().update(load_workflows(__file__))\n"
    )
    return vars(_module(loader))[name]


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"test_dag_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_step(bench: Bench, operator: str = "codex.CodexAgentOperator", **arguments: Any) -> Any:
    """Return a DAG of one step, without retries unless they are asked for."""
    module, _, name_of_class = operator.rpartition(".")
    name = f"one-{os.urandom(4).hex()}"
    file = bench.folder / f"{name}.py"
    file.write_text(
        "import datetime\n"
        "from airflow.sdk import DAG\n"
        f"from airflow_agent_provider.operators.{module} import {name_of_class} as Operator\n"
        f"with DAG({name!r}, schedule=None) as dag:\n"
        f"    Operator(task_id='work', "
        f"**{ {'prompt': 'Do the work.', 'retries': 0, 'retry_delay': 0.1, **arguments}!r})\n"
    )
    return load(bench, file)
