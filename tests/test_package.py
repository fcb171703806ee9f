"""The package as Airflow and pip see it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_agent_provider import __version__
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.provider_info import get_provider_info

ROOT = Path(__file__).parents[1]
NAME = "airflow-agent-provider"
TYPES = ("acp", "claude", "codex", "copilot", "cursor", "airflow_api")
#: What no parse of a DAG may import: vendors' SDKs, and what opens a connection to AWS.
HEAVY = (
    "acp",
    "claude_agent_sdk",
    "openai_codex",
    "copilot",
    "cursor_sdk",
    "boto3",
    "botocore",
    "airflow_client",
    "moto",
)


def _python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_entry_points_are_registered() -> None:
    entries = metadata.distribution(NAME).entry_points
    found = {(entry.group, entry.value) for entry in entries}

    assert found == {
        ("apache_airflow_provider", "airflow_agent_provider.provider_info:get_provider_info"),
        ("airflow.plugins", "airflow_agent_provider.plugin:AgentsPlugin"),
    }


def test_the_distribution_says_what_it_is() -> None:
    about = metadata.metadata(NAME)

    assert about["Version"] == __version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert {"acp", "claude", "codex", "copilot", "cursor", "all", "dev"} <= set(
        about.get_all("Provides-Extra") or []
    )


def test_airflow_knows_the_provider() -> None:
    info = ProvidersManager().providers[NAME]

    assert info.version == __version__
    assert info.data["name"] == get_provider_info()["name"]


@pytest.mark.parametrize("kind", TYPES)
def test_each_connection_type_has_a_hook_with_a_test_button(kind: str) -> None:
    hook: Any = ProvidersManagerTaskRuntime().hooks[kind]

    assert hook is not None, "the hook cannot be imported"
    assert hook.connection_type == kind
    assert hook.connection_testable


@pytest.mark.parametrize("agent", AGENTS)
def test_each_agent_has_a_connection_form(agent: str) -> None:
    manager = ProvidersManager()

    assert f"extra__{agent}__model" in manager.connection_form_widgets
    behaviour = manager.field_behaviours[agent]
    assert behaviour["relabeling"]["password"] == "API key"


def test_the_settings_have_defaults_and_descriptions() -> None:
    told = get_provider_info()["config"]["agents"]["options"]
    read = _python(
        # What the suite itself sets.
        "import os; del os.environ['AIRFLOW__AGENTS__PROGRAMS']\n"
        "del os.environ['AIRFLOW__AGENTS__REPOSITORIES']\n"
        "import json; from airflow.configuration import conf\n"
        f"print(json.dumps({{name: conf.get('agents', name) for name in {list(told)!r}}}))"
    )

    assert read.splitlines()[-1] == str(
        {name: option["default"] for name, option in told.items()}
    ).replace("'", '"')
    assert all(option["description"].strip() for option in told.values())


@pytest.mark.integration
def test_the_command_line_has_our_commands() -> None:
    airflow = Path(sys.executable).with_name("airflow")
    done = subprocess.run(
        [airflow, "agents", "--help"], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout
    assert "mirror" in done.stdout


def test_what_every_process_loads_imports_nothing_heavy() -> None:
    modules = (
        "airflow_agent_provider.plugin",
        "airflow_agent_provider.provider_info",
        "airflow_agent_provider.operators.acp",
        "airflow_agent_provider.operators.codex",
        "airflow_agent_provider.operators.copilot",
        "airflow_agent_provider.operators.cursor",
        "dag_factory",
    )
    found = _python(
        f"import sys, {', '.join(modules)}\n"
        f"print(sorted({set(HEAVY)!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )

    assert found.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("table", "listeners"), [("", 0), ("airflow-agents", 1)])
def test_listeners_are_registered_only_where_there_is_a_mirror(table: str, listeners: int) -> None:
    found = _python(
        "from airflow_agent_provider.plugin import AgentsPlugin\n"
        "print(len(AgentsPlugin.listeners))",
        AIRFLOW__AGENTS__MIRROR_TABLE=table,
    )

    assert found.splitlines()[-1] == str(listeners)


@pytest.mark.integration
def test_the_wheel_has_both_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")

    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names} == {
        "airflow_agent_provider",
        "dag_factory",
        f"airflow_agent_provider-{__version__}.dist-info",
    }
    assert "dag_factory/__init__.py" in names
    assert f"airflow_agent_provider-{__version__}.dist-info/licenses/LICENSE" in names
