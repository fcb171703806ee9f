"""An attempt that is killed: the next one continues its session, and nothing is done twice."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import Superseded
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import ArtifactStore
from airflow_agent_provider.hooks.lease import Lease
from infra.local.api import wait_for
from tests.e2e.live import LEASE_TTL, Live, git
from tests.e2e.story import assert_one_story
from tests.e2e.victims import Victim, find_victim, session_home, with_variable

WORKFLOW = "kill-and-resume"
#: The key of work that was kept before the attempt's end.
_KEPT_WORK = re.compile(r"/1/checkpoints/\d+/checkpoint\.bundle$")


@dataclass
class Run:
    """One run of the workflow, on a repository of its own."""

    live: Live
    remote: Path
    run_id: str
    store: ArtifactStore

    def step(self, step_id: str) -> StepKey:
        return StepKey(WORKFLOW, self.run_id, step_id)

    def find_victim(self) -> Victim:
        """Wait until the middle step has kept some work and works on; return its processes."""
        step = self.step("kill-middle")

        def found() -> Victim | None:
            victim = find_victim(session_home(self.live, step))
            kept = any(_KEPT_WORK.search(key) for key in self.artifacts())
            return victim if kept and victim and "sleep" in victim.names() else None

        return wait_for(found, 120, lambda: f"{step.prefix} has kept nothing: {self.artifacts()}")

    def artifacts(self) -> list[str]:
        return list(self.store.keys(self.step("kill-middle").prefix))

    def settled(self) -> bool | None:
        """Return whether the middle step stores nothing more for a while; None if it does."""
        before = self.artifacts()
        time.sleep(2)
        return before == self.artifacts() or None

    def outcome(self, step_id: str, attempt: int) -> dict:
        key = f"{AttemptKey(self.step(step_id), attempt).prefix}/outcome.json"
        return json.loads(self.store.get(key))

    def tries(self, step_id: str) -> list[str]:
        return [t["state"] for t in self.live.api.tries(WORKFLOW, self.run_id, step_id)]


@pytest.fixture
def run(live_airflow: Live, request: pytest.FixtureRequest) -> Run:
    live = live_airflow
    name = request.node.name.replace("_", "-")
    remote = live.repository(name)
    live.api.wait_for_dag(WORKFLOW)
    run_id = live.api.trigger(WORKFLOW, {"repository": str(remote)})
    return Run(live, remote, run_id, live.store())


def assert_nothing_was_redone(run: Run) -> None:
    """The run is as one that nothing disturbed, and its second attempt resumed the first's work."""
    ended = run.live.api.wait_for_run(WORKFLOW, run.run_id, within=240)
    assert ended["state"] == "success"
    assert run.tries("kill-first") == ["success"]
    assert run.tries("kill-last") == ["success"]
    assert run.tries("kill-middle")[-1] == "success"
    branch = run.step("kill-last").run_branch
    assert git(run.remote, "show", f"{branch}:done.txt").split() == ["first", "one", "two", "last"]
    assert git(run.remote, "log", "--format=%s", branch).splitlines()[:-1] == [
        f"kill-last: {WORKFLOW}",
        f"kill-middle: {WORKFLOW}",
        f"kill-first: {WORKFLOW}",
    ]
    session = run.outcome("kill-middle", 2)["session"]
    assert any(session in key for key in run.artifacts() if "/1/checkpoints/0001/session/" in key)
    home = session_home(run.live, run.step("kill-middle"))
    wait_for(
        lambda: not with_variable(f"HOME={home}") or None, 30, lambda: "an agent process is left"
    )


def test_the_task_s_process_is_killed(run: Run) -> None:
    victim = run.find_victim()
    victim.task.kill()
    wait_for(lambda: victim.agent_is_gone() or None, 30, lambda: f"{victim.agent} live on")
    assert_nothing_was_redone(run)
    assert run.tries("kill-middle") == ["failed", "success"]
    assert_one_story(run.live, WORKFLOW, run.run_id, run.remote)
    log = run.live.api.log(WORKFLOW, run.run_id, "kill-middle", try_number=2)
    assert "Interrupted: attempt 1 ended without a word" in log


def test_the_supervisor_is_killed_and_the_orphan_ends_itself(run: Run) -> None:
    victim = run.find_victim()
    victim.supervisor.kill()
    wait_for(lambda: not victim.task.is_running() or None, 60, lambda: "the orphan lives on")
    wait_for(lambda: victim.agent_is_gone() or None, 30, lambda: f"{victim.agent} live on")
    assert_nothing_was_redone(run)


def test_an_attempt_that_wakes_up_late_can_write_nothing(run: Run) -> None:
    victim = run.find_victim()
    # A write that is under way would end after the sleep, and is none that begins then.
    wait_for(run.settled, 15, lambda: f"still writing: {run.artifacts()}")
    # As on a machine that is suspended: neither knows what happens meanwhile.
    stopped = [victim.supervisor, victim.task]
    for process in stopped:
        process.suspend()
    try:
        run.live.api.wait_for_task(
            WORKFLOW, run.run_id, "kill-middle", ["success"], within=200, try_number=2
        )
        before = [key for key in run.artifacts() if "/kill-middle/-1/1/" in key]
    finally:
        for process in stopped:
            process.resume()
    wait_for(lambda: not victim.task.is_running() or None, 60, lambda: "the old one lives on")
    assert [key for key in run.artifacts() if "/kill-middle/-1/1/" in key] == before
    late = Lease(run.store, AttemptKey(run.step("kill-middle"), 1), owner="late", ttl=LEASE_TTL)
    with pytest.raises(Superseded, match="attempt 2"):
        late.acquire(wait=0)
    assert_nothing_was_redone(run)
