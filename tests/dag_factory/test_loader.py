"""A folder of definitions as Airflow loads it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.utils.file import might_contain_dag

from dag_factory import load_workflows, loader

REPOSITORY = Path(__file__).parents[2]
STEPS = "steps: [{id: a, agent: codex, prompt: prompts/plan.md}]\n"


@pytest.fixture(autouse=True)
def _no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a parse before this test may have left in the environment."""
    for name in ("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PROCESS_CONTEXT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def loader_file(folder: Path) -> str:
    """Return the DAG file of the folder, which is that of the repository."""
    shutil.copy(REPOSITORY / "dags" / "workflows.py", folder)
    return str(folder / "workflows.py")


def test_airflow_finds_the_loader_and_loads_the_repositorys_workflows() -> None:
    path = REPOSITORY / "dags" / "workflows.py"
    assert len(path.read_text().splitlines()) == 3
    assert might_contain_dag(str(path), safe_mode=True)

    bag = BundleDagBag(path.parent, bundle_path=REPOSITORY, bundle_name="repository")

    assert bag.import_errors == {}
    assert set(bag.dags) == {"feature-implementation"}
    assert bag.dags["feature-implementation"].relative_fileloc == "dags/workflows.py"


def test_each_definition_beside_the_loader_becomes_a_dag(folder: Path, loader_file: str) -> None:
    for name in ("a.yaml", "b.yml"):
        (folder / name).write_text(f"name: {name[0]}\n{STEPS}")
    step = {"id": "a", "agent": "codex", "prompt": "go"}
    (folder / "c.json").write_text(json.dumps({"name": "c", "steps": [step]}))
    (folder / ".hidden.yaml").write_text("no workflow")
    (folder / "notes.txt").write_text("no workflow")
    (folder / "folder.yaml").mkdir()
    (folder / "folder.yaml" / "d.yaml").write_text("no workflow")

    dags = load_workflows(loader_file)

    assert list(dags) == ["a", "b", "c"]
    assert all(name == dag.dag_id for name, dag in dags.items())


def test_a_broken_definition_costs_no_other_and_is_logged(
    folder: Path, loader_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a.yaml").write_text(f"name: a\n{STEPS}")
    (folder / "b.yaml").write_text(f"nam: b\n{STEPS}")
    (folder / "c.yaml").write_text("{")
    with caplog.at_level(logging.ERROR):
        dags = load_workflows(loader_file)

    assert list(dags) == ["a"]
    assert "b.yaml:1:1: unknown key 'nam'; did you mean 'name'?" in caplog.text
    assert "c.yaml:2:1: no value where one belongs" in caplog.text


def test_what_airflow_objects_to_costs_no_other_either(
    folder: Path,
    loader_file: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = loader.build

    def refuse_b(definition: loader.Definition, loader_file: str) -> loader.DAG:
        if definition.workflow.name == "b":
            raise ValueError("not this one")
        return real(definition, loader_file)

    monkeypatch.setattr(loader, "build", refuse_b)
    for name in "abc":
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{STEPS}")
    with caplog.at_level(logging.ERROR):
        dags = load_workflows(loader_file)

    assert list(dags) == ["a", "c"]
    assert "b.yaml:1:1: Airflow refuses the workflow: not this one; see the log" in caplog.text


def test_a_stem_that_is_there_twice_makes_neither(
    folder: Path, loader_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.yaml", "a.yml", "b.yaml"):
        (folder / name).write_text(f"name: {name[0]}\n{STEPS}")
    assert list(load_workflows(loader_file)) == ["b"]
    assert "a.yaml:1:7: 'a.yaml' and 'a.yml' define the same workflow" in caplog.text
    assert "a.yml:1:7: 'a.yml' and 'a.yaml' define the same workflow" in caplog.text


def test_a_file_name_that_is_not_utf8_costs_no_other(
    folder: Path, loader_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a.yaml").write_text(f"name: a\n{STEPS}")
    (folder / os.fsdecode(b"caf\xe9.yaml")).write_text(f"name: x\n{STEPS}")
    assert list(load_workflows(loader_file)) == ["a"]
    assert "caf\\udce9.yaml:1:7: the name is 'x'" in caplog.text


def test_one_dags_own_parse_makes_one_dag(
    folder: Path, loader_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.yaml", "b.yml"):
        (folder / name).write_text(f"name: {name[0]}\n{STEPS}")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "b")
    assert list(load_workflows(loader_file)) == ["b"]
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "of-another-file")
    assert load_workflows(loader_file) == {}


def test_each_version_of_a_bundle_reads_its_own_prompts(tmp_path: Path) -> None:
    digests = set()
    for version in ("1", "2"):
        (tmp_path / version / "dags").mkdir(parents=True)
        (tmp_path / version / "prompts").mkdir()
        (tmp_path / version / "prompts" / "plan.md").write_text(f"Version {version}.")
        (tmp_path / version / "dags" / "a.yaml").write_text(f"name: a\n{STEPS}")
        task = load_workflows(str(tmp_path / version / "dags" / "workflows.py"))["a"].get_task("a")
        assert task.prompt_folders == (str(tmp_path / version / "dags"), str(tmp_path / version))
        digests.add(task.definition_sha256)
    assert len(digests) == 2


# Runs in a fresh interpreter that has what Airflow's own processes have imported before a parse.
PROBE = """
import json, os, sys
import airflow.sdk.execution_time.task_runner
from airflow.dag_processing.dagbag import BundleDagBag
before = set(sys.modules)
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
loader, folder = sys.argv[1:]
bag = BundleDagBag(loader, bundle_path=folder, bundle_name="b", load_op_links=False)
opened = [os.fspath(name) for name in opened if isinstance(name, str)]
print(json.dumps({
    "dags": sorted(bag.dags),
    "errors": bag.import_errors,
    "new": sorted(set(sys.modules) - before),
    "all": sorted(sys.modules),
    "opened": sorted({name for name in opened if name.startswith(folder)}),
}))
"""


def probe(loader_file: str, folder: Path, **env: str) -> dict[str, list[str]]:
    """Parse in a fresh interpreter; return what was made, imported and opened."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, loader_file, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    result: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.integration
def test_one_tasks_own_parse_opens_its_own_definition_and_prompts_only(
    folder: Path, loader_file: str
) -> None:
    (folder.parent / "prompts" / "other.md").write_text("Other.")
    for number in range(30):
        text = f"name: w{number}\n{STEPS}".replace(
            "plan.md", "plan.md" if number == 7 else "other.md"
        )
        (folder / f"w{number}.yaml").write_text(text)

    result = probe(loader_file, folder.parent, _AIRFLOW_PARSING_CONTEXT_DAG_ID="w7")

    assert result["dags"] == ["w7"]
    code = (loader_file, str(folder / "__pycache__"))
    data = [name for name in result["opened"] if not name.startswith(code)]
    assert data == [str(folder / "w7.yaml"), str(folder.parent / "prompts" / "plan.md")]
    # The DAG processor has checked what its prompts name.
    assert "dag_factory.references" not in result["all"]


def test_references_are_checked_where_all_definitions_are_read(
    folder: Path, loader_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "w.yaml").write_text(f"name: w\n{STEPS}".replace("prompts/plan.md", "'{{ zzz }}'"))
    monkeypatch.delenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", raising=False)
    assert load_workflows(loader_file) == {}
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "w")
    assert list(load_workflows(loader_file)) == ["w"]


@pytest.mark.integration
def test_a_parse_imports_no_vendors_sdk_and_no_boto3() -> None:
    result = probe(str(REPOSITORY / "dags" / "workflows.py"), REPOSITORY)

    assert result["dags"] == ["feature-implementation"]
    assert not result["errors"]
    heavy = ("openai_codex", "boto3", "botocore", "airflow_client", "aiobotocore", "httpx", "git")
    # Of these, what Airflow itself has imported before a parse is none of ours.
    assert [name for name in result["new"] if name.partition(".")[0] in heavy] == []
    for name in ("openai_codex", "boto3", "botocore", "airflow_client"):
        assert name not in result["all"]
