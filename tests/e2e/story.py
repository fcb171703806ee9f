"""One run told three ways: by Airflow's API, by the mirror in DynamoDB, and by the git branch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow_agent_provider.agents.identity import StepKey
from airflow_agent_provider.hooks.mirror_table import MirrorTable
from infra.local.stack import TABLE
from tests.e2e.live import Live, git
from tests.mirror.story import Story, airflow_story, mirror_story


@dataclass(frozen=True)
class Told:
    """What all three tell of a run.

    :param steps: state by step.
    :param attempts: state by step and attempt number.
    :param commits: the succeeded steps' commits, by step.
    """

    steps: dict[str, str]
    attempts: dict[tuple[str, int], str]
    commits: dict[str, str]


def told_by_airflow(live: Live, dag_id: str, run_id: str) -> tuple[Story, dict[str, str]]:
    """Return what Airflow's public API tells, and the commits of the steps that succeeded."""
    story = airflow_story(lambda path: live.api.request("GET", f"/{path}"), dag_id, run_id)
    green = [step for (step, _), (_, state) in story.steps.items() if state == "success"]
    return story, {step: live.api.xcom(dag_id, run_id, step)["commit"] for step in green}


def told_by_the_mirror(live: Live, dag_id: str, run_id: str) -> tuple[Story, dict[str, str]]:
    """Return what DynamoDB tells, and the commits of the steps that succeeded."""
    live.store()  # leads aws_default to the stand-in
    table = MirrorTable(TABLE)
    green = [item for item in table.read_run(dag_id, run_id).steps if item.state == "success"]
    commits = {item.step[0]: str(item.values.get("commit")) for item in green}
    return mirror_story(table, dag_id, run_id), commits


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


def assert_one_story(live: Live, dag_id: str, run_id: str, remote: Path) -> Told:
    """Reconcile the run by the command line; all three tell the same then. Return it."""
    done = live.stack.airflow(
        *("agents", "mirror", "reconcile", "--dag-id", dag_id, "--run-id", run_id)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told, commits = told_by_airflow(live, dag_id, run_id)
    assert told_by_the_mirror(live, dag_id, run_id) == (told, commits)
    assert told_by_the_branch(remote, dag_id, run_id) == commits
    return Told(
        {step: state for (step, _), (_, state) in told.steps.items()},
        {(step, number): state for step, _, number, state in told.attempts},
        commits,
    )
