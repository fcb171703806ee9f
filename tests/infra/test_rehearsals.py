"""The rehearsal scripts that come with the project do work that stands up, in any repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from airflow_agent_provider.rehearsal.script import Script, load_script
from infra.local.aws import ROOT

SEED = ROOT / "infra" / "rehearsals" / "feature-implementation.yaml"
REPOSITORIES: dict[str, Mapping[str, str]] = {
    "empty": {},
    "python": {"pyproject.toml": '[project]\nname = "a"\nversion = "4.5.6"\n', "docs/index.md": ""},
    "node": {"package.json": '{"version": "4.5.6"}', "tests/a.test.js": "", "test.py": "1/0"},
}


def _play(script: Script, step: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    done = []
    for action in script.actions(step):
        if action.write is not None:
            path = folder / action.write.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(action.write.content)
        if action.run is not None:
            done.append(_run(["sh", "-c", action.run], folder))
    return done


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    identity = {
        f"GIT_{who}_{what}": "ada" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **identity},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_seed_has_a_script_for_each_step() -> None:
    workflow = yaml.safe_load((ROOT / "dags" / "feature-implementation.yaml").read_text())

    assert list(load_script(SEED).steps) == [step["id"] for step in workflow["steps"]]


@pytest.mark.integration
@pytest.mark.skipif(not shutil.which("git"), reason="git is missing")
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_the_work_of_the_seed_stands_up(repository: str, tmp_path: Path) -> None:
    for path, text in REPOSITORIES[repository].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    _run(["git", "init", "-q"], tmp_path)
    script = load_script(SEED)

    for step in script.steps:
        _run(["git", "add", "-A"], tmp_path)
        _run(["git", "commit", "-q", "--allow-empty", "-m", step], tmp_path)
        for done in _play(script, step, tmp_path):
            assert done.returncode == 0, done.stderr

    made = set(REPOSITORIES[repository]) | {
        "docs/plan.md",
        "version_command/README.md",
        "version_command/test_version.py",
        "version_command/version.py",
    }
    files = _run(["git", "ls-files"], tmp_path).stdout.split()
    assert set(files) == made
    command = ["python3", "-B", "version_command/version.py"]
    version = _run(command, tmp_path).stdout.strip()
    assert version == ("4.5.6" if REPOSITORIES[repository] else _describe(tmp_path))


def _describe(folder: Path) -> str:
    return _run(["git", "describe", "--always"], folder).stdout.strip()
