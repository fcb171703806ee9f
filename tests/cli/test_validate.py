"""``airflow agents validate``."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from airflow_agent_provider.cli.validate import validate

REPOSITORY = Path(__file__).parents[2]
STEP = "{id: a, agent: codex, prompt: go}"
GOOD = f"name: good\nsteps: [{STEP}]\n"


@pytest.fixture
def dags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder ``dags`` of the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dags").mkdir()
    return tmp_path / "dags"


def lines(capsys: pytest.CaptureFixture[str], *paths: str) -> tuple[int, list[str]]:
    """Return the command's exit status and what it printed."""
    status = 0
    try:
        validate(Namespace(paths=list(paths)))
    except SystemExit as end:
        status = int(str(end.code))
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out.splitlines()


def test_one_line_per_good_workflow(dags: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dags / "good.yaml").write_text(GOOD)
    (dags / "two.yml").write_text(f"name: two\nsteps: [{STEP}, {STEP.replace('id: a', 'id: b')}]\n")
    expected = [
        "dags/good.yaml: workflow good is valid: 1 step",
        "dags/two.yml: workflow two is valid: 2 steps",
    ]
    assert lines(capsys, "dags") == (0, expected)
    assert lines(capsys, "dags/two.yml", "dags/good.yaml") == (0, expected[::-1])


def test_the_errors_of_all_files_and_nothing_else(
    dags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dags / "good.yaml").write_text(GOOD)
    (dags / "bad.yaml").write_text(f"nam: bad\nsteps: [{STEP}]\n")
    (dags / "worse.json").write_text("[")
    expected = [
        "dags/bad.yaml:1:1: the workflow has no 'name'; add it",
        "dags/bad.yaml:1:1: unknown key 'nam'; did you mean 'name'?",
        "dags/worse.json:1:2: the JSON text ends too early; go on",
        "missing.yaml:1:1: there is no such file or folder; check the path",
    ]
    assert lines(capsys, "dags", "missing.yaml") == (1, expected)


def test_errors_in_prompts_are_named_by_the_prompts_own_files(
    dags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dags.parent / "prompts").mkdir()
    (dags.parent / "prompts" / "a.md").write_text("{{ params.x }}\n{{ 1 | uper }}\n")
    for name in ("one", "two"):
        step = "{id: a, agent: codex, prompt: prompts/a.md}"
        (dags / f"{name}.yaml").write_text(f"name: {name}\nsteps: [{step}]\n")
    text = "the param 'x' is not declared; declare it under 'params', beside ref, repository"
    expected = [
        f"prompts/a.md:1:11: for 'a' of dags/one.yaml: {text}",
        "prompts/a.md:2:8: unknown filter 'uper'; did you mean 'upper'?",
        f"prompts/a.md:1:11: for 'a' of dags/two.yaml: {text}",
    ]
    assert lines(capsys, "dags") == (1, expected)


def test_folders_are_searched_as_a_loader_would(
    dags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dags / "schemas").mkdir()
    (dags / "schemas" / "plan.json").write_text("{}")
    (dags / ".hidden.yaml").write_text("{}")
    (dags / "workflows.py").write_text("")
    text = "dags:1:1: the folder holds no workflows; they end in .yaml, .yml or .json"
    assert lines(capsys, "dags") == (1, [text])

    (dags / "good.yaml").write_text(GOOD)
    assert lines(capsys, "dags") == (0, ["dags/good.yaml: workflow good is valid: 1 step"])


def test_a_twin_is_found_where_only_one_is_named(
    dags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dags / "good.yaml").write_text(GOOD)
    (dags / "good.yml").write_text(GOOD)
    text = (
        "dags/good.yaml:1:7: 'good.yaml' and 'good.yml' define the same workflow; "
        "remove or rename one"
    )
    assert lines(capsys, "dags/good.yaml") == (1, [text])


def test_a_name_that_is_not_utf8_is_escaped(dags: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.yaml")
    (dags / name).write_text("[]")
    status, printed = lines(capsys, f"dags/{name}")
    assert status == 1
    assert printed[0].startswith("dags/caf\\udce9.yaml:1:1: the file is a list")


@pytest.mark.integration
def test_the_command_of_airflow(dags: Path) -> None:
    (dags / "good.yaml").write_text(GOOD.replace("codex", "codx"))
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "agents", "validate", "dags"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    expected = "dags/good.yaml:2:24: unknown agent 'codx'; did you mean 'codex'?\n"
    assert (done.stdout, done.returncode) == (expected, 1), done.stderr
