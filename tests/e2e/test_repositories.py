"""The repository of a run through real Airflow: what it may be, and what of it a step gets."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bench import Bench, load, one_step

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("airflow_db")]

SETTING = "AIRFLOW__AGENTS__REPOSITORIES"


def workflow(bench: Bench, text: str) -> Any:
    """Return the DAG of a workflow."""
    name = "repositories"
    (bench.dags / f"{name}.yaml").write_text(f"name: {name}\n{textwrap.dedent(text)}")
    loader = bench.folder / "workflows.py"
    loader.write_text(
        "from dag_factory import load_workflows  # an Airflow DAG each\n"
        "globals().update(load_workflows(__file__))\n"
        f"dag = globals()[{name!r}]\n"
    )
    return load(bench, loader)


def failure(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.outcomes()["work"]["failure"]
    return found


def fetched(bench: Bench) -> list[Path]:
    return [path for path in (bench.folder / "workspaces" / "mirrors").glob("*") if path.is_dir()]


@pytest.mark.parametrize(
    ("allowed", "given"),
    [
        ("https://*", "{remote}"),
        ("https://*", "file://{remote}"),
        ("https://*", "ext::sh -c 'touch {folder}/canary' %G"),
        ("*", "ext::sh -c 'touch {folder}/canary' %G"),
        ("", "https://example.org/it.git"),
        ("https://example.org/you/*", "https://example.org/you/../they/it.git"),
    ],
)
def test_a_run_may_not_name_any_repository(bench: Bench, allowed: str, given: str) -> None:
    bench.rehearse("work: [{say: Done.}]")
    bench.monkeypatch.setenv(SETTING, allowed)
    remote = bench.repository({"secret.txt": "canary"})
    url = given.format(remote=remote, folder=bench.folder)
    dag = workflow(bench, "steps: [{id: work, agent: codex, prompt: go, retry: 0}]")
    assert dag.test(run_conf={"repository": url}).state == "failed"
    assert failure(bench)["failure_class"] == "PolicyViolation"
    assert "which this run names and its workflow does not" in failure(bench)["reason"]
    assert "[agents] repositories" in failure(bench)["reason"]
    assert not fetched(bench)
    assert not (bench.folder / "canary").exists()


def test_what_the_workflow_names_is_always_allowed(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}]")
    bench.monkeypatch.setenv(SETTING, "")
    remote = bench.repository({"a": "b"})
    dag = workflow(
        bench,
        f"""
        repository: {remote}
        steps: [{{id: work, agent: codex, prompt: go, retry: 0}}]
        """,
    )
    assert dag.test().state == "success"
    assert dag.test(run_conf={"repository": str(remote)}).state == "success"
    assert dag.test(run_conf={"repository": f"{remote}/"}).state == "failed"
    # None at all is the run's own empty one.
    assert dag.test(run_conf={"repository": None}).state == "success"


def test_the_same_holds_for_a_dag_by_hand(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}]")
    bench.monkeypatch.setenv(SETTING, "")
    remote = bench.repository({"a": "b"})
    dag = one_step(bench, repository="{{ dag_run.conf.repository }}")
    assert dag.test(run_conf={"repository": str(remote)}).state == "failed"
    assert failure(bench)["failure_class"] == "PolicyViolation"
    assert one_step(bench, repository=str(remote)).test().state == "success"
