"""A broken definition in Airflow's list of import errors, and what that rests on."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.dag_processing.processor import _serialize_dags

from dag_factory import load_workflows
from dag_factory.errors import InvalidWorkflow, Problem
from dag_factory.import_errors import in_dag_processor, placeholder

REPOSITORY = Path(__file__).parents[2]
GOOD = "name: {name}\nsteps: [{{id: a, agent: codex, prompt: go}}]\n"
BROKEN = "name: {name}\nsteps: [{{id: a, agent: codx, prompt: go}}]\n"
CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"
DAG_ID = "_AIRFLOW_PARSING_CONTEXT_DAG_ID"


@pytest.fixture
def dag_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like the DAG processor's parser."""
    monkeypatch.delenv(DAG_ID, raising=False)
    monkeypatch.setenv(CONTEXT, "client")


@pytest.fixture
def broken_folder(folder: Path) -> Path:
    """Return a folder of a good definition, two broken ones, and the repository's loader."""
    shutil.copy(REPOSITORY / "dags" / "workflows.py", folder)
    (folder / "good.yaml").write_text(GOOD.format(name="good"))
    (folder / "bad.yaml").write_text(BROKEN.format(name="bad"))
    (folder / "no name.json").write_text("[]")
    return folder


def test_only_the_dag_processors_parser_gets_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for context in ("client", "server", None):
        for dag_id in ("a", None):
            for name, value in ((CONTEXT, context), (DAG_ID, dag_id)):
                if value is None:
                    monkeypatch.delenv(name, raising=False)
                else:
                    monkeypatch.setenv(name, value)
            found[context, dag_id] = in_dag_processor()
    assert [key for key, value in found.items() if value] == [("client", None)]


@pytest.mark.usefixtures("dag_processor")
def test_airflow_files_the_errors_under_the_definitions_and_keeps_the_siblings(
    broken_folder: Path,
) -> None:
    bundle = broken_folder.parent
    bag = BundleDagBag(broken_folder, bundle_path=bundle, bundle_name="b", load_op_links=False)
    assert bag.import_errors == {}

    serialized, errors = _serialize_dags(bag, structlog.get_logger())

    assert [dag.dag_id for dag in serialized] == ["good"]
    assert sorted(errors) == ["dags/bad.yaml", "dags/no name.json"]
    said = "bad.yaml:2:24: unknown agent 'codx'; did you mean 'codex'?"
    assert errors["dags/bad.yaml"].splitlines()[-1] == said
    assert "no name.json:1:1: the file is a list" in errors["dags/no name.json"]


@pytest.mark.usefixtures("dag_processor")
def test_an_error_in_a_prompt_is_filed_under_the_definition(broken_folder: Path) -> None:
    prompt = "{id: a, agent: codex, prompt: prompts/plan.md}"
    (broken_folder / "bad.yaml").write_text(f"name: bad\nsteps: [{prompt}]\n")
    (broken_folder.parent / "prompts" / "plan.md").write_text("Do\n{{ steps.b.output }}\n")
    bundle = broken_folder.parent
    bag = BundleDagBag(broken_folder, bundle_path=bundle, bundle_name="b", load_op_links=False)

    serialized, errors = _serialize_dags(bag, structlog.get_logger())

    assert [dag.dag_id for dag in serialized] == ["good"]
    said = "../prompts/plan.md:2:10: for 'a' of bad.yaml: unknown step 'b'; there are none"
    assert errors["dags/bad.yaml"].splitlines()[-1] == said


@pytest.mark.usefixtures("dag_processor")
def test_one_tasks_parse_gets_no_placeholder(
    broken_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DAG_ID, "bad")
    assert load_workflows(str(broken_folder / "workflows.py")) == {}


def test_placeholders_have_ids_that_clash_with_none() -> None:
    error = InvalidWorkflow([Problem("x", 1, 1, "wrong; right")])
    names = ("a.yaml", "a.yml", "a b.yaml", "a_b.yaml", "a_20b.yaml", "é.yaml")
    ids = [placeholder(name, error).dag_id for name in names]
    assert len(set(ids)) == len(names)
    assert all(dag_id.startswith("_") for dag_id in ids)


class Airflow:
    """A real Airflow with a home of its own.

    :param home: its home.
    :param bundle: the folder of its DAGs.
    """

    def __init__(self, home: Path, bundle: Path) -> None:
        self.home = home
        self.bundle = bundle
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.env = {
            **kept,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(bundle),
            "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "0",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "0",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "0",
            "PYTHONPATH": str(REPOSITORY),
        }

    def run(self, *args: str) -> str:
        """Run an ``airflow`` command; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Return what stands in the database."""
        with closing(sqlite3.connect(self.home / "airflow.db")) as database:
            return database.execute(sql).fetchall()

    def import_errors(self) -> dict[object, str]:
        """Return the last line of each import error by its file."""
        rows = self.query("SELECT filename, stacktrace FROM import_error")
        return {name: str(text).splitlines()[-1] for name, text in rows}

    def dags(self) -> set[object]:
        """Return the ids of the DAGs that can run."""
        sql = "SELECT dag.dag_id FROM dag JOIN serialized_dag USING (dag_id) WHERE NOT is_stale"
        return {dag_id for (dag_id,) in self.query(sql)}


@pytest.fixture
def airflow(tmp_path: Path, broken_folder: Path) -> Iterator[Airflow]:
    """Return an Airflow whose DAGs are those of the broken folder."""
    (tmp_path / "home").mkdir()
    installed = Airflow(tmp_path / "home", tmp_path / "bundle")
    installed.bundle.mkdir()
    broken_folder.rename(installed.bundle / "dags")
    installed.run("db", "migrate")
    yield installed
    shutil.rmtree(installed.home)


@pytest.mark.integration
def test_reserialize_list_processor_refresh_and_mending(airflow: Airflow) -> None:
    # A command that would end at the first DAG that does not serialize.
    airflow.run("dags", "reserialize")
    assert airflow.dags() == {"good"}
    assert airflow.import_errors() == {}

    listed = airflow.run("dags", "list", "--output", "json")
    # Airflow's warnings, as of a missing graphviz, stand before the table.
    table = json.loads(listed[listed.index("[{") :])
    assert [dag["dag_id"] for dag in table] == ["good"]

    # Each round scans the folder anew and drops the errors; the parse after it brings them back.
    airflow.run("dag-processor", "--num-runs", "2")
    assert airflow.dags() == {"good"}
    assert airflow.import_errors() == {
        "dags/bad.yaml": "bad.yaml:2:24: unknown agent 'codx'; did you mean 'codex'?",
        "dags/no name.json": (
            "no name.json:1:1: the file is a list, not a mapping; "
            "a workflow is a mapping that has a name and steps"
        ),
    }

    (airflow.bundle / "dags" / "bad.yaml").write_text(GOOD.format(name="bad"))
    (airflow.bundle / "dags" / "no name.json").unlink()
    airflow.run("dag-processor", "--num-runs", "1")
    assert airflow.dags() == {"good", "bad"}
    assert airflow.import_errors() == {}
