"""One run told three ways: by Airflow's API, by the mirror in DynamoDB, and by the git branch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.hooks.mirror_table import MirrorTable
from infra.local.stack import TABLE
from tests.e2e.live import Live, git


@dataclass
class Story:
    """What a teller says of a run.

    :param run: the run's state.
    :param steps: state by step.
    :param attempts: state by step and attempt number.
    :param commits: the succeeded steps' commits, by step.
    """

    run: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    attempts: dict[tuple[str, int], str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)


def told_by_airflow(live: Live, dag_id: str, run_id: str) -> Story:
    """Return what Airflow's public API tells."""
    story = Story(run=live.api.run(dag_id, run_id)["state"])
    for step in live.api.task_instances(dag_id, run_id):
        name = step["task_id"]
        story.steps[name] = step["state"]
        for attempt in live.api.tries(dag_id, run_id, name):
            if attempt["start_date"]:
                story.attempts[name, attempt["try_number"]] = attempt["state"]
        if step["state"] == "success":
            story.commits[name] = live.api.xcom(dag_id, run_id, name)["commit"]
    return story


def told_by_the_mirror(live: Live, dag_id: str, run_id: str) -> Story:
    """Return what DynamoDB tells."""
    live.store()  # leads aws_default to the stand-in
    found = MirrorTable(TABLE).read_run(dag_id, run_id)
    story = Story(run=found.run.state if found.run else "")
    for item in found.steps:
        name = item.step[0]
        story.steps[name] = item.state
        if item.state == "success":
            story.commits[name] = str(item.values.get("commit"))
    for item in found.attempts:
        name, _, number = item.step
        story.attempts[name, number] = item.state
    return story


def told_by_the_branch(remote: Path, dag_id: str, run_id: str) -> dict[str, str]:
    """Return the commit of each step on the run's branch, in the order of the history."""
    branch = StepKey(dag_id, run_id, "any").run_branch
    listing = git(
        remote,
        *("log", "--reverse", "--no-merges"),
        "--format=%H %(trailers:key=Agents-Step,valueonly,separator=%x20)",
        branch,
    )
    commits = [line.split() for line in listing.splitlines()]
    return {line[1]: line[0] for line in commits if len(line) == 2}


def assert_one_story(live: Live, dag_id: str, run_id: str, remote: Path) -> Story:
    """Reconcile the run by the command line; all three tell the same then. Return it."""
    done = live.stack.airflow(
        *("agents", "mirror", "reconcile", "--dag-id", dag_id, "--run-id", run_id)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    airflow = told_by_airflow(live, dag_id, run_id)
    assert told_by_the_mirror(live, dag_id, run_id) == airflow
    assert told_by_the_branch(remote, dag_id, run_id) == airflow.commits
    return airflow
