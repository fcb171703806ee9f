"""The repository of a run through real Airflow: what it may be, and what of it a step gets."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bench import Bench, load, one_step
from tests.e2e.live import git, make_repository

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


def test_a_step_sees_some_files_and_those_of_submodules(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - run: "ls > seen; cat libs/one/lib.py >> seen; echo new > src/app.py"
        - run: "echo mine > libs/one/lib.py"
        - say: Done.
        - run: "echo lib > libs/one/lib.py"
        - say: Undone.
    """)
    library = bench.folder / "library.git"
    make_repository(library, {"lib.py": "lib\n"})
    remote = bench.repository({"src/app.py": "app\n", "docs/plan.md": "plan\n"})
    add_submodule(remote, library)
    bench.monkeypatch.setenv(SETTING, f"{bench.folder}/*")
    dag = workflow(
        bench,
        f"""
        repository: {{url: {remote}, submodules: true, sparse: ["src/**", libs/one]}}
        steps: [{{id: work, agent: codex, prompt: go, retry: 0}}]
        """,
    )
    assert dag.test().state == "success"
    outcome = bench.outcomes()["work"]
    branch = outcome["branch"]
    assert git(remote, "show", f"{branch}:src/app.py") == "new\n"
    assert git(remote, "show", f"{branch}:docs/plan.md") == "plan\n"
    assert git(remote, "diff", "--name-only", "main", branch).split() == ["seen", "src/app.py"]
    assert git(remote, "show", f"{branch}:seen").split() == ["libs", "seen", "src", "lib"]
    assert bench.server is not None
    told = json.dumps([entry.body for entry in bench.server.requests])
    assert "libs/one/lib.py changed; undo that" in told


def add_submodule(remote: Path, library: Path) -> None:
    clone = remote.with_name("user")
    git(remote.parent, "clone", "-q", str(remote), str(clone))
    local = ("-c", "protocol.file.allow=always")
    git(clone, *local, "submodule", "add", "-q", str(library), "libs/one")
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "Add it")
    git(clone, "push", "-q", "origin", "HEAD:main")
