"""``airflow agents new``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from jsonschema import Draft202012Validator

from airflow_agent_provider.agents.registry import AGENTS
from dag_factory.json_schema import schema_text
from dag_factory.reader import read_definition
from dag_factory.source import read_source
from tests.cli.command import run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, str]:
    """Return the texts of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_what_it_writes_is_valid_as_it_stands(
    agent: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, "new", "fix-bug", "--in", "dags", "--agent", agent)
    assert (done.status, done.err) == (0, "")
    written = tree(here)
    assert list(written) == [
        "dags/fix-bug.yaml",
        "dags/workflows.py",
        "prompts/fix-bug/implement.md",
        "prompts/fix-bug/plan.md",
        "prompts/fix-bug/review.md",
        "schemas/workflow.schema.json",
    ]
    for name in written:
        assert f"  {name}\n" in done.out
    assert "airflow agents validate dags/fix-bug.yaml" in done.out
    workflow = read_definition(here / "dags" / "fix-bug.yaml").workflow
    assert [step.id for step in workflow.steps] == ["plan", "implement", "review"]
    value = read_source((here / "dags/fix-bug.yaml").read_bytes(), "", json=False).value
    Draft202012Validator(json.loads(schema_text())).validate(value)


def test_editors_find_the_schema_where_the_first_line_says(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one/dags", "two/work"):
        run(capsys, "new", "x", "--in", folder)
        first = (here / folder / "x.yaml").read_text().splitlines()[0]
        schema = here / folder / first.removeprefix("# yaml-language-server: $schema=")
        assert schema.read_text() == schema_text()
    # Of a folder that is not called so, what is beside it may not be deployed.
    assert [path.name for path in (here / "two").iterdir()] == ["work"]


def test_airflow_loads_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "new", "fix-bug", "--in", "dags")
    bag = BundleDagBag(here / "dags", bundle_path=here, bundle_name="here")
    assert bag.import_errors == {}
    assert set(bag.dags) == {"fix-bug"}


def test_it_goes_to_the_dags_folder_by_default(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(here / "dags"))
    run(capsys, "new", "fix-bug")
    assert run(capsys, "show", "fix-bug").out.startswith("fix-bug: 3 steps\n")


def test_no_file_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "dags").mkdir()
    (here / "dags" / "load.py").write_text("from dag_factory import load_workflows")
    run(capsys, "new", "a", "--in", "dags")
    assert not (here / "dags" / "workflows.py").exists(), "there is one that loads workflows"
    (here / "schemas" / "workflow.schema.json").write_text("{}")
    (here / "dags" / "b.json").write_text("{}")
    before = tree(here)
    for name, taken in (("a", "dags/a.yaml"), ("b", "dags/b.json")):
        done = run(capsys, "new", name, "--in", "dags")
        assert (done.status, done.out) == (1, "")
        assert f"agents new: {taken} is there already; nothing was written\n" in done.err
    assert tree(here) == before
    assert run(capsys, "new", "c", "--in", "dags").status == 0
    assert {name: text for name, text in tree(here).items() if name in before} == before


def test_bad_input_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "new", "../x", "--in", "dags")
    assert done.status == 1
    assert "'../x' is no name" in done.err
    done = run(capsys, "new", "x", "--in", "dags", "--agent", "codx")
    said = "airflow agents new: unknown agent 'codx'; did you mean 'codex'?\n"
    assert done == (1, "", said)
    (here / "file").write_text("")
    done = run(capsys, "new", "x", "--in", "file/dags")
    assert done.err == "airflow agents new: file/dags/x.yaml cannot be written: Not a directory\n"
    assert tree(here) == {"file": ""}
