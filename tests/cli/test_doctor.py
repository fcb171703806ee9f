"""``airflow agents doctor``, on this machine."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.cli.doctor import Finding, doctor, examine
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AGENTS__ARTIFACTS", (tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("AIRFLOW__AGENTS__WORKSPACES", str(tmp_path / "workspaces"))


def look(*agents: str, online: bool = False) -> dict[str, Finding]:
    """Return the findings by what they are of; of several, the last."""
    return {finding.what: finding for finding in examine(list(agents), online=online)}


def connect(monkeypatch: pytest.MonkeyPatch, agent: str, **values: str) -> None:
    name = f"AIRFLOW_CONN_{agent.upper()}_DEFAULT"
    monkeypatch.setenv(name, json.dumps({"conn_type": agent, **values}))


def test_here_everything_is_installed_and_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which program an ACP agent is, its connection says.
    connect(monkeypatch, "acp", password="sk-doctor-1234567", extra='{"preset": "qwen"}')
    found = look(*AGENTS)
    assert found["git"].words.startswith("git version 2.")
    assert found["git-lfs"].state == "ok"
    for name, spec in AGENTS.items():
        assert found[name].words.startswith(f"{spec.package} ")
        assert found[name].state == "ok"
        if spec.capabilities.local:
            assert found[f"{name} program"].state == "ok", found[f"{name} program"]
        if name != "acp":
            assert f"airflow connections add {name}_default" in found[f"{name} key"].words
    for store in ("artifacts", "workspaces", "prices", "disk"):
        assert found[store].state in ("ok", "warn")
    # Twice: the store's own file is there by now.
    assert look()["artifacts"].state == "ok"


def test_a_key_is_there_or_missing_and_may_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer(Script()) as server:
        connect(monkeypatch, "codex", host=f"{server.url}/v1", password="sk-doctor-1234567")
        found = look("codex", online=True)
        assert found["codex key"].state == found["codex vendor"].state == "ok"
        connect(monkeypatch, "codex", host=f"{server.url}/v1", password="invalid-key-123")
        assert look("codex", online=True)["codex vendor"].state == "FAIL"
    connect(monkeypatch, "codex")
    assert look("codex")["codex key"].state == "FAIL"


def test_what_fails_names_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git") or "")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(SystemExit) as end:
        doctor(Namespace(agent=["codex"], online=False))
    assert end.value.code == 1
    (line,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("FAIL"))
    assert "apt-get install bubblewrap" in line
    monkeypatch.setenv("AIRFLOW__AGENTS__SANDBOX", "auto")
    assert look()["sandbox"].state == "warn"
    monkeypatch.setenv("AIRFLOW__AGENTS__SANDBOX", "perhaps")
    assert "it is one of: required, auto, off" in look()["settings"].words


def test_an_agent_that_nobody_knows() -> None:
    finding = look("codexx")["codexx"]
    assert finding.state == "FAIL"
    assert "codex" in finding.words


def test_stores_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AGENTS__ARTIFACTS", "ftp://nowhere")
    monkeypatch.setenv("AIRFLOW__AGENTS__WORKSPACES", "/proc/nowhere")
    monkeypatch.setenv("AIRFLOW__AGENTS__MIRROR_TABLE", "agents")
    monkeypatch.setenv(
        "AIRFLOW_CONN_AWS_DEFAULT",
        json.dumps(
            {
                "conn_type": "aws",
                "login": "x",
                "password": "y",
                "extra": {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-west-1"},
            }
        ),
    )
    found = look()
    assert {name for name, each in found.items() if each.state == "FAIL"} >= {
        "artifacts",
        "workspaces",
        "mirror",
        "airflow_api",
    }


def test_a_worker_without_git_lfs_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, *a, **k: None if name == "git-lfs" else which(name, *a, **k)
    )
    found = look()["git-lfs"]
    assert found.state == "-"
    assert "apt-get install git-lfs" in found.words
