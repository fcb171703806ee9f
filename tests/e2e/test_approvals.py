"""A person's decisions, in a running Airflow."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_agent_provider.hooks.mirror_table import MirrorTable
from infra.local.stack import TABLE
from tests.e2e.live import Live

WORKFLOW = "approvals"
#: Longer than Airflow's ``[workers] min_heartbeat_interval``, 5 s.
READING_SECONDS = 8.0


def asked(live: Live, run_id: str, step: str) -> dict[str, Any]:
    """Wait until a step waits for its answer; return what Airflow shows."""
    live.api.wait_for_task(WORKFLOW, run_id, step, ["awaiting_input"])
    path = f"/dags/{WORKFLOW}/dagRuns/{run_id}/taskInstances/{step}/-1/hitlDetails"
    return dict(live.api.request("GET", path))


def answer(live: Live, run_id: str, step: str, option: str, comment: str = "") -> None:
    """Answer as a user does in the UI."""
    path = f"/dags/{WORKFLOW}/dagRuns/{run_id}/taskInstances/{step}/-1/hitlDetails"
    values = {"chosen_options": [option], "params_input": {"comment": comment}}
    live.api.request("PATCH", path, json=values)


def read_on() -> None:
    """Take the time that a person needs to read a question.

    Airflow 3.3.2 may notice only after a heartbeat's interval that the process which asked has
    ended; a step that is resumed before that it takes for dead.
    """
    time.sleep(READING_SECONDS)


def states(live: Live, run_id: str, workflow: str = WORKFLOW) -> dict[str, str]:
    """Return the states of a run's steps."""
    return {ti["task_id"]: ti["state"] for ti in live.api.task_instances(workflow, run_id)}


def mirrored(live: Live, run_id: str, step: str) -> dict[str, Any]:
    """Return what the mirror says of a step, after a reconcile."""
    which = ("--dag-id", WORKFLOW, "--run-id", run_id)
    done = live.stack.airflow("agents", "mirror", "reconcile", *which)
    assert done.returncode == 0, done.stdout + done.stderr
    live.store()  # leads aws_default to the stand-in
    steps = MirrorTable(TABLE).read_run(WORKFLOW, run_id).steps
    return dict(next(item.values for item in steps if item.step[0] == step))


@pytest.fixture
def live(live_airflow: Live) -> Live:
    live_airflow.api.wait_for_dag(WORKFLOW)
    return live_airflow


def test_the_run_goes_on_as_people_decide(live: Live) -> None:
    run_id = live.api.trigger(WORKFLOW, {"what": "the boat"})
    question = asked(live, run_id, "go")
    assert question["subject"] == "Ship the boat?"
    assert question["options"] == ["Now", "Later", "Reject"]
    # Without a body of its own it shows what came before.
    assert "### propose" in question["body"]
    assert "It costs little." in question["body"]
    assert "+proposal" in question["body"]
    assert "Cost: 0.00 USD, 0 tokens" in question["body"]
    assert asked(live, run_id, "perhaps")["body"].strip() == "It costs little."
    asked(live, run_id, "anyway")
    read_on()
    answer(live, run_id, "go", "Later", "in June")
    answer(live, run_id, "perhaps", "Reject", "no")
    answer(live, run_id, "anyway", "Reject")
    live.api.wait_for_run(WORKFLOW, run_id)
    assert states(live, run_id) == {
        "propose": "success",
        "go": "success",
        "ship": "success",
        "perhaps": "skipped",
        "announce": "skipped",
        "anyway": "success",
        # A join runs where one of its paths was taken.
        "join": "success",
    }
    decided = live.api.xcom(WORKFLOW, run_id, "go")["output"]
    assert decided == {"approved": True, "option": "Later", "by": "admin", "comment": "in June"}
    assert mirrored(live, run_id, "go")["answer"] == decided
    shipped = live.api.xcom(WORKFLOW, run_id, "ship")["output"]
    # The work of the steps before the approval is there after it.
    assert shipped.splitlines() == ["proposal", "admin said Laterin June"]
    assert live.api.xcom(WORKFLOW, run_id, "perhaps")["output"]["comment"] == "no"
    assert live.api.xcom(WORKFLOW, run_id, "join")["output"].split() == ["proposal.txt", "False"]


def test_a_rejection_fails_the_run_for_good(live: Live) -> None:
    run_id = live.api.trigger(WORKFLOW, {"what": "nothing"})
    asked(live, run_id, "go")
    asked(live, run_id, "perhaps")
    read_on()
    answer(live, run_id, "go", "Reject", "not now")
    answer(live, run_id, "perhaps", "Approve")
    assert live.api.wait_for_run(WORKFLOW, run_id)["state"] == "failed"
    found = states(live, run_id)
    assert (found["go"], found["ship"]) == ("failed", "upstream_failed")
    # Nobody was asked where the condition was false.
    assert found["anyway"] == "skipped"
    failure = live.api.xcom(WORKFLOW, run_id, "go", key="failure")
    assert failure["failure_class"] == "PolicyViolation"
    assert failure["reason"] == "admin rejected it: not now"
    assert len(live.api.tries(WORKFLOW, run_id, "go")) == 1


def test_an_answer_is_waited_for_so_long(live: Live) -> None:
    live.api.wait_for_dag("approval-in-time")
    run_id = live.api.trigger("approval-in-time")
    assert live.api.wait_for_run("approval-in-time", run_id)["state"] == "failed"
    assert states(live, run_id, "approval-in-time") == {"go": "failed", "after": "upstream_failed"}
    failure = live.api.xcom("approval-in-time", run_id, "go", key="failure")
    assert failure["failure_class"] == "TimedOut"
    assert "nobody answered within" in failure["reason"]
