"""The wait for a hosted run, in a trigger and on the worker, against the stand-in for Cursor."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.jobs import triggerer_job_runner
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.triggers.base import TriggerEvent

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import Limits
from airflow_agent_provider.hooks import cursor as cursor_hook
from airflow_agent_provider.hooks.agent import HostedRun
from airflow_agent_provider.hooks.cursor import CursorHook
from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.triggers import hosted
from airflow_agent_provider.triggers.hosted import HostedRunTrigger, wait_for_run
from tests.stand_ins import PLAN_PROMPT, Remote, eventually, script

Start = Callable[..., CursorServer]

pytestmark = pytest.mark.integration

HANGS = {"fail": {"how": "hang"}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor_hook, "LISTEN_TIMEOUT", 0.3)


def submit(remote: Remote) -> HostedRun:
    hook = CursorHook()
    return hook.submit(
        agent_id=hook.agent_id_for("feature/manual__1/plan"),
        prompt=PLAN_PROMPT,
        repository=remote.url,
        ref="main",
        name="feature/manual__1/plan",
    )


def trigger_for(run: HostedRun, **more: Any) -> HostedRunTrigger:
    wanted: dict[str, Any] = {
        "agent": "cursor",
        "conn_id": None,
        "agent_id": run.agent_id,
        "run_id": run.run_id,
        "timeout_at": time.time() + 60,
        "stall": 60,
        **more,
    }
    return HostedRunTrigger(**wanted)


def payload(trigger: HostedRunTrigger) -> dict[str, Any]:
    """Return what the trigger tells, after a round through the database's form of both."""
    path, arguments = trigger.serialize()
    assert path == "airflow_agent_provider.triggers.hosted.HostedRunTrigger"
    again = HostedRunTrigger(**json.loads(json.dumps(arguments)))

    async def wait() -> list[TriggerEvent]:
        return [event async for event in again.run()]

    (event,) = asyncio.run(wait())
    text = json.dumps(event.payload)
    assert len(text) < 8000
    told: dict[str, Any] = json.loads(text)
    return told


def failure_of(told: dict[str, Any]) -> f.AgentFailure:
    assert told["status"] == "failed"
    return f.failure_from_dict(told["failure"])


def test_the_end_is_told(cursor: Start, remote: Remote) -> None:
    cursor(script({"write": {"path": "a", "content": "b"}}, {"say": "Done it."}))
    run = submit(remote)
    assert payload(trigger_for(run)) == {
        "agent_id": run.agent_id,
        "run_id": run.run_id,
        "status": "ended",
        "failure": None,
    }


FAILED_RUNS = [
    ({"code": "model_error", "message": "No model."}, f.AgentFailed),
    ({"code": "usage_limit_exceeded", "message": "Spent."}, f.QuotaExhausted),
    ({"code": "rate_limited", "message": "Slow."}, f.RateLimited),
    ({"code": "provider_error", "message": "Overloaded"}, f.Unavailable),
    ({"code": "unauthorized", "message": "Revoked."}, f.AuthenticationFailed),
    ({"code": "context_length_exceeded", "message": "Long."}, f.ContextExhausted),
]


@pytest.mark.parametrize(("fail", "kind"), FAILED_RUNS)
def test_a_failed_run_is_told_with_its_class(
    cursor: Start, remote: Remote, fail: dict[str, str], kind: type[f.AgentFailure]
) -> None:
    cursor(script({"fail": {"how": "error", **fail}}))
    failure = failure_of(payload(trigger_for(submit(remote))))
    assert type(failure) is kind
    assert failure.raw == f"{fail['code']}: {fail['message']}"


def test_a_run_that_was_cancelled_elsewhere(cursor: Start, remote: Remote) -> None:
    cursor(script(HANGS))
    run = submit(remote)
    CursorHook().cancel(run.agent_id, run.run_id)
    assert type(failure_of(payload(trigger_for(run)))) is f.Interrupted


def test_the_timeout_ends_the_vendors_run(cursor: Start, remote: Remote) -> None:
    cursor(script(HANGS))
    run = submit(remote)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    assert type(failure_of(payload(trigger_for(run, timeout_at=soon)))) is f.TimedOut
    assert CursorHook().get_run(run.agent_id, run.run_id).status == "CANCELLED"


def test_a_stall_ends_the_vendors_run(cursor: Start, remote: Remote) -> None:
    cursor(script(HANGS))
    run = submit(remote)
    assert type(failure_of(payload(trigger_for(run, stall=1)))) is f.Stalled
    assert CursorHook().get_run(run.agent_id, run.run_id).status == "CANCELLED"


def test_a_busy_run_is_no_stalled_one(cursor: Start, remote: Remote) -> None:
    # Its status does not change for longer than the stall; its events do.
    steps = [{"run": "sleep 0.4"} for _ in range(8)]
    server = cursor(script(*steps, {"say": "Long work."}))
    told = payload(trigger_for(submit(remote), stall=1.5))
    assert told["status"] == "ended", told
    assert any(entry["path"].endswith("/stream") for entry in server.requests)


TROUBLE = [{"status": 503, "times": 2}, {"status": 429, "retry_after": 0, "times": 2}]


@pytest.mark.parametrize("fail", [*TROUBLE, {"how": "drop", "times": 5}])
def test_trouble_while_polling_is_waited_out(
    cursor: Start, remote: Remote, fail: dict[str, Any]
) -> None:
    cursor(script({"run": "true"}, {"fail": fail}, {"say": "Done it."}))
    assert payload(trigger_for(submit(remote)))["status"] == "ended"


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ({"status": 401, "times": None}, f.AuthenticationFailed),
        ({"status": 402, "times": None}, f.QuotaExhausted),
        ({"status": 400, "times": None}, f.AgentFailed),
        ({"status": 503, "times": None}, f.Unavailable),
        ({"status": 429, "retry_after": 30, "times": None}, f.RateLimited),
    ],
)
def test_lasting_trouble_has_its_class(
    cursor: Start, remote: Remote, fail: dict[str, Any], kind: type[f.AgentFailure]
) -> None:
    cursor(script({"run": "true"}, {"fail": fail}))
    failure = failure_of(payload(trigger_for(submit(remote), stall=1)))
    assert type(failure) is kind
    assert getattr(failure, "retry_after", None) == fail.get("retry_after")


def test_a_vendor_that_is_gone(cursor: Start, remote: Remote) -> None:
    server = cursor(script(HANGS))
    run = submit(remote)
    server.stop()
    assert type(failure_of(payload(trigger_for(run, stall=1)))) is f.Unavailable


def test_no_exception_gets_out(cursor: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor(script())
    run = HostedRun("bc-x", "run-x", "RUNNING", ended=False)
    assert type(failure_of(payload(trigger_for(run)))) is f.AgentFailed
    nobody = trigger_for(run, conn_id="no_such_connection")
    assert type(failure_of(payload(nobody))) is f.AuthenticationFailed
    assert type(failure_of(payload(trigger_for(run, agent="nobody")))) is f.AgentFailed
    monkeypatch.setattr(hosted, "Waiter", None)
    broken = failure_of(payload(trigger_for(run)))
    assert type(broken) is f.AgentFailed
    assert "TypeError" in str(broken.raw)


def test_the_interval_of_the_step_wins(cursor: Start, remote: Remote) -> None:
    server = cursor(script(HANGS), poll_interval=0.05)
    run = submit(remote)
    payload(trigger_for(run, timeout_at=time.time() + 1.5, poll=1.0))
    looks = [entry for entry in server.requests if entry["path"].endswith(run.run_id)]
    assert 1 <= len(looks) <= 4


@pytest.mark.parametrize("how", ["a user's kill", "shutdown"])
def test_only_a_users_kill_ends_the_vendors_run(cursor: Start, remote: Remote, how: str) -> None:
    """Through Airflow's own runner: it decides what is a kill."""
    server = cursor(script(HANGS))
    run = submit(remote)

    async def scenario() -> None:
        runner = TriggerRunner()
        runner.triggers[1] = {"name": "hosted", "events": 0}  # type: ignore[typeddict-item]
        task = asyncio.create_task(runner.run_trigger(1, trigger_for(run)))
        while not any(entry["path"].endswith(run.run_id) for entry in server.requests):
            await asyncio.sleep(0.05)
        if how == "shutdown":
            task.cancel()
        else:
            task.cancel(triggerer_job_runner._USER_ACTION_CANCEL_MSG)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(scenario(), 30))
    status = CursorHook().get_run(run.agent_id, run.run_id).status
    assert (status == "CANCELLED") == (how == "a user's kill")


def test_airflows_runner_gets_the_event(cursor: Start, remote: Remote) -> None:
    cursor(script({"say": "Done it."}))
    run = submit(remote)
    runner = TriggerRunner()
    runner.triggers[1] = {"name": "hosted", "events": 0}  # type: ignore[typeddict-item]
    asyncio.run(asyncio.wait_for(runner.run_trigger(1, trigger_for(run)), 30))
    (entry,) = runner.events
    assert entry.event.payload["status"] == "ended"


def test_waiting_on_the_worker(cursor: Start, remote: Remote) -> None:
    cursor(script({"fail": {"how": "error"}}, {"say": "Done it."}))
    hook, run = CursorHook(), submit(remote)
    failed = wait_for_run(hook, run.agent_id, run.run_id, Limits(timeout=60, stall=60))
    assert (failed.status, type(failed.failure)) == ("ERROR", f.AgentFailed)
    run = submit(remote)
    done = wait_for_run(hook, run.agent_id, run.run_id, Limits(timeout=60, stall=60), poll=0.05)
    assert (done.status, done.message) == ("FINISHED", "Done it.")


@pytest.mark.parametrize(
    ("limits", "kind"),
    [({"timeout": 1, "stall": 60}, f.TimedOut), ({"timeout": 60, "stall": 1}, f.Stalled)],
)
def test_limits_on_the_worker(
    cursor: Start, remote: Remote, limits: dict[str, float], kind: type[f.AgentFailure]
) -> None:
    cursor(script(HANGS))
    hook, run = CursorHook(), submit(remote)
    with pytest.raises(kind):
        wait_for_run(hook, run.agent_id, run.run_id, Limits(**limits))
    eventually(lambda: hook.get_run(run.agent_id, run.run_id).status == "CANCELLED")


def test_trouble_on_the_worker(cursor: Start, remote: Remote) -> None:
    cursor(script({"run": "true"}, {"fail": {"status": 503, "times": 2}}, {"say": "Done it."}))
    hook, run = CursorHook(), submit(remote)
    limits = Limits(timeout=60, stall=60)
    assert wait_for_run(hook, run.agent_id, run.run_id, limits).message == "Done it."
