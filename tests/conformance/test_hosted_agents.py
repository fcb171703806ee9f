"""What every agent that runs at its vendor must do; a new one is a new row of ``AGENTS_HOSTED``.

Each row names the fixture that starts the vendor's stand-in with a rehearsal script and makes it
the agent's default connection. The scripts know no vendor.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.hooks.agent import HostedAgentHook, HostedRun, get_agent_hook
from airflow_agent_provider.rehearsal.script import Script
from tests.stand_ins import PLAN_PROMPT, Remote, eventually, script

pytestmark = pytest.mark.integration

#: Agent, and the fixture of its stand-in.
AGENTS_HOSTED = {"cursor": "cursor"}

WORKS = ({"write": {"path": "docs/plan.md", "content": "# Plan\n"}}, {"say": "Planned."})
HANGS = ({"fail": {"how": "hang"}},)


class Bench:
    """One agent's hook and the stand-in of its vendor."""

    def __init__(self, agent: str, start: Callable[[Script], Any], remote: Remote) -> None:
        self.agent = agent
        self.start = start
        self.remote = remote

    def hook(self, conn_id: str | None = None) -> HostedAgentHook:
        hook = get_agent_hook(self.agent, conn_id)
        assert isinstance(hook, HostedAgentHook)
        return hook

    def submit(self, **more: Any) -> HostedRun:
        hook = self.hook()
        wanted: dict[str, Any] = {
            "agent_id": hook.agent_id_for("feature/manual__1/plan"),
            "prompt": PLAN_PROMPT,
            "repository": self.remote.url,
            "ref": "main",
            "name": "feature/manual__1/plan",
            **more,
        }
        return hook.submit(**wanted)

    def ended(self, run: HostedRun) -> HostedRun:
        def look() -> HostedRun | None:
            now = self.hook().get_run(run.agent_id, run.run_id)
            return now if now.ended else None

        return eventually(look)


@pytest.fixture(params=AGENTS_HOSTED.items(), ids=AGENTS_HOSTED.keys())
def bench(request: pytest.FixtureRequest, remote: Remote) -> Bench:
    agent, stand_in = request.param
    return Bench(agent, request.getfixturevalue(stand_in), remote)


def test_every_hosted_agent_has_a_row() -> None:
    hosted = {name for name, spec in AGENTS.items() if spec.capabilities.hosted}
    assert hosted == set(AGENTS_HOSTED)


def test_the_same_work_always_gets_the_same_id(bench: Bench) -> None:
    one, other = bench.hook(), bench.hook()
    assert one.agent_id_for("a") == other.agent_id_for("a") != other.agent_id_for("b")


def test_a_run_works_on_a_branch_of_the_repository(bench: Bench) -> None:
    bench.start(script(*WORKS))
    run = bench.submit()
    assert not run.ended
    done = bench.ended(run)
    assert (done.failure, done.message) == (None, "Planned.")
    assert done.branch
    assert bench.remote.git("show", f"{done.branch}:docs/plan.md") == "# Plan"
    capabilities = bench.hook().capabilities
    assert (done.usage is not None) == capabilities.usage
    assert (done.usage is not None and done.usage.cost is not None) == capabilities.cost


def test_who_changes_nothing_has_no_branch(bench: Bench) -> None:
    bench.start(script({"say": "Fine as it is."}))
    done = bench.ended(bench.submit())
    assert (done.failure, done.branch, done.message) == (None, None, "Fine as it is.")


def test_a_second_attempt_attaches(bench: Bench) -> None:
    bench.start(script(*WORKS))
    done = bench.ended(bench.submit())
    assert bench.submit() == done
    assert len(bench.remote.branches()) == 2


def test_a_lost_answer_makes_no_second_agent(bench: Bench) -> None:
    bench.start(script({"fail": {"how": "drop"}}, *WORKS))
    assert bench.ended(bench.submit()).message == "Planned."
    assert len(bench.remote.branches()) == 2


def test_a_failed_run_is_followed_up(bench: Bench) -> None:
    bench.start(script({"fail": {"how": "error", "message": "Not today."}}, *WORKS))
    failed = bench.ended(bench.submit())
    assert isinstance(failed.failure, f.AgentFailure)
    assert "Not today." in str(failed.failure)
    again = bench.submit()
    assert (again.agent_id == failed.agent_id, again.run_id == failed.run_id) == (True, False)
    assert bench.ended(again).message == "Planned."


def test_a_result_found_wanting_is_followed_up(bench: Bench) -> None:
    bench.start(script({"say": "Half."}, {"say": "Whole."}))
    half = bench.ended(bench.submit())
    whole = bench.submit(prompt="The output is missing.", after=half.run_id)
    assert bench.ended(whole).message == "Whole."


def test_cancel_is_final_and_harmless(bench: Bench) -> None:
    bench.start(script(*HANGS))
    run, hook = bench.submit(), bench.hook()
    hook.cancel(run.agent_id, run.run_id)
    hook.cancel(run.agent_id, run.run_id)
    gone = bench.ended(run)
    assert type(gone.failure) is f.Interrupted


def test_the_trigger_side_tells_the_same(bench: Bench) -> None:
    bench.start(script(*HANGS))
    run, hook = bench.submit(), bench.hook()

    async def cancel() -> tuple[HostedRun, HostedRun]:
        try:
            assert not (await hook.alook(run.agent_id, run.run_id)).ended
            assert await hook.acancel(run.agent_id, run.run_id)
            assert not await hook.acancel(run.agent_id, run.run_id)
            looked = await hook.alook(run.agent_id, run.run_id)
            return looked, await hook.aget_run(run.agent_id, run.run_id)
        finally:
            await hook.aclose()

    told, read = asyncio.run(cancel()), bench.ended(run)
    for one in told:
        assert (one.status, one.ended, type(one.failure)) == (read.status, True, f.Interrupted)


def test_the_list_tells_who_is_at_work(bench: Bench) -> None:
    bench.start(script(*HANGS))
    run, hook = bench.submit(), bench.hook()

    async def look() -> None:
        try:
            page = await hook.alist()
            if page is None:
                return
            listed = page.agents[run.agent_id]
            assert listed.active
            assert listed.latest_run in ("", run.run_id)
            await hook.acancel(run.agent_id, run.run_id)
            page = await hook.alist()
            assert page is not None
            assert page.agents[run.agent_id] != listed
        finally:
            await hook.aclose()

    asyncio.run(look())


def test_connections_with_one_key_are_one_account(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start(script())
    default = f"AIRFLOW_CONN_{AGENTS[bench.agent].connection.upper()}"
    monkeypatch.setenv("AIRFLOW_CONN_THE_SAME", os.environ[default])
    one, other = (asyncio.run(hook.alimits()) for hook in (bench.hook(), bench.hook("the_same")))
    assert one == other
    assert one.requests_per_minute > 0
    assert one.poll_interval > 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, f.AuthenticationFailed),
        (403, f.AuthenticationFailed),
        (402, f.QuotaExhausted),
        (429, f.RateLimited),
        (500, f.Unavailable),
        (503, f.Unavailable),
        (400, f.AgentFailed),
    ],
)
def test_every_failure_has_one_class_and_the_vendors_words(
    bench: Bench, status: int, kind: type[f.AgentFailure]
) -> None:
    fail = {"status": status, "message": "As the vendor says", "retry_after": 42, "times": None}
    bench.start(script({"fail": fail}))
    with pytest.raises(f.AgentFailure) as raised:
        bench.submit()
    assert type(raised.value) is kind
    assert "As the vendor says" in str(raised.value.raw)
    if isinstance(raised.value, f.RateLimited):
        assert raised.value.retry_after == 42


def test_the_connection_is_tested(bench: Bench) -> None:
    bench.start(script())
    assert bench.hook().test_connection()[0]
    works, says = bench.hook("no_such_connection").test_connection()
    assert not works
    assert "no_such_connection" in says
