"""Many hosted runs and one poller, against the stand-in for Cursor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.jobs import triggerer_job_runner
from airflow.jobs.triggerer_job_runner import TriggerRunner

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.hooks import cursor as cursor_hook
from airflow_agent_provider.hooks import cursor_api as api
from airflow_agent_provider.hooks.cursor import CursorHook
from airflow_agent_provider.rehearsal.cursor_server import CursorServer, RateLimit
from airflow_agent_provider.rehearsal.script import Script
from airflow_agent_provider.triggers import poller, rounds, schedule
from airflow_agent_provider.triggers.hosted import HostedRunTrigger
from airflow_agent_provider.triggers.rounds import Key
from tests.stand_ins import eventually

pytestmark = pytest.mark.integration

#: Steps of the vendor's script: runs that end, each in its way, and runs that never do.
SCRIPT = Script.model_validate(
    {
        "steps": {
            "done": [{"run": "sleep 1"}, {"say": "Done it."}],
            "fails": [{"run": "sleep 1"}, {"fail": {"how": "error", "code": "model_error"}}],
            "hangs": [{"fail": {"how": "hang"}}],
        }
    }
)


class Vendor:
    """The stand-in, and a key of its own to start and end runs with."""

    def __init__(self, limit: RateLimit | None = None, **extra: Any) -> None:
        self.server = CursorServer(SCRIPT, limit=limit).start()
        self.client = httpx.Client(
            base_url=self.server.url, auth=("unlimited_setup", ""), timeout=30
        )
        self.extra = extra

    def connection(self, key: str = "key_1") -> str:
        extra = {"poll_interval": 0.1, "requests_per_minute": 60_000, **self.extra}
        values = {"conn_type": "cursor", "host": self.server.url, "password": key, "extra": extra}
        return json.dumps(values)

    def start(self, step: str, count: int = 1) -> list[Key]:
        """Start agents without a repository; return their runs."""
        keys = []
        for _ in range(count):
            body = {"agentId": f"bc-{uuid.uuid4()}", "prompt": {"text": "Do it."}}
            answer = self.client.post("/v1/agents", json={**body, "name": f"d/r/{step}"})
            run = answer.raise_for_status().json()["run"]
            keys.append(Key(run["agentId"], run["id"]))
        self.started = len(self.server.requests)
        return keys

    def cancel(self, key: Key) -> None:
        path = f"/v1/agents/{key.agent_id}/runs/{key.run_id}/cancel"
        self.client.post(path).raise_for_status()

    def cancel_at_once(self, keys: list[Key]) -> None:
        """Cancel runs so that the next page shows all or none of them."""
        cloud = self.server._cloud
        with cloud._lock:
            for key in keys:
                (run,) = cloud._agents[key.agent_id].runs
                run.to_status("CANCELLED")
                run.processes.end()

    def status(self, key: Key) -> str:
        path = f"/v1/agents/{key.agent_id}/runs/{key.run_id}"
        return str(self.client.get(path).json()["status"])

    def asked(self) -> list[dict[str, Any]]:
        """Return what was asked since the last start."""
        return self.server.requests[self.started :]

    def close(self) -> None:
        self.client.close()
        self.server.stop()


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Vendor]]:
    """Return what starts a vendor and makes it the default connection's host."""
    started: list[Vendor] = []
    monkeypatch.setattr(cursor_hook, "LISTEN_TIMEOUT", 0.3)

    def start(limit: RateLimit | None = None, **extra: Any) -> Vendor:
        started.append(Vendor(limit, **extra))
        monkeypatch.setenv("AIRFLOW_CONN_CURSOR_DEFAULT", started[-1].connection())
        return started[-1]

    yield start
    for each in started:
        each.close()


def trigger(key: Key, **more: Any) -> HostedRunTrigger:
    wanted: dict[str, Any] = {
        "agent": "cursor",
        "conn_id": None,
        "agent_id": key.agent_id,
        "run_id": key.run_id,
        "timeout_at": time.time() + 300,
        "stall": 300,
        **more,
    }
    return HostedRunTrigger(**wanted)


async def event(waiting: HostedRunTrigger) -> dict[str, Any]:
    """Return the one event of a trigger, within a bounded time."""
    async with asyncio.timeout(240):
        (told,) = [told async for told in waiting.run()]
    payload: dict[str, Any] = told.payload
    return payload


async def events(keys: list[Key], **more: Any) -> dict[Key, str]:
    """Return what the triggers of all runs tell: a failure's class, or ``ended``."""
    told = await asyncio.gather(*(event(trigger(key, **more)) for key in keys))
    return {Key(one["agent_id"], one["run_id"]): outcome(one) for one in told}


def outcome(told: dict[str, Any]) -> str:
    if told["failure"] is None:
        return str(told["status"])
    return f.failure_from_dict(told["failure"]).failure_class


def kinds(asked: list[dict[str, Any]]) -> Counter[str]:
    """Return how many requests there were of each kind."""

    def kind(entry: dict[str, Any]) -> str:
        path = entry["path"].partition("?")[0]
        return "list" if path == "/v1/agents" else path.rpartition("/")[2].partition("-")[0]

    return Counter(kind(entry) for entry in asked)


def nothing_left() -> bool:
    """Whether the loop has no other task than the caller's."""
    return asyncio.all_tasks() == {asyncio.current_task()}


def test_hundreds_of_runs_share_a_list(vendor: Callable[..., Vendor]) -> None:
    cursor = vendor(poll_interval=1.0)
    hangs = cursor.start("hangs", 220)
    keys = [*cursor.start("done", 20), *hangs, *cursor.start("fails", 20)]

    async def scenario() -> dict[Key, str]:
        waiting = asyncio.create_task(events(keys))
        await asyncio.sleep(3)
        for key in hangs:
            await asyncio.to_thread(cursor.cancel, key)
        told = await waiting
        assert nothing_left()
        return told

    told = asyncio.run(scenario())
    assert Counter(told.values()) == {"ended": 20, "AgentFailed": 20, "Interrupted": 220}
    assert {key for key in keys if told[key] == "Interrupted"} == set(hangs)
    asked = [entry for entry in cursor.asked() if not entry["path"].endswith("/cancel")]
    seconds = asked[-1]["at"] - asked[0]["at"]
    # Three pages a second where there would have been hundreds of looks; one look at each end.
    assert kinds(asked)["run"] <= len(keys) + seconds / rounds.BACKSTOP + 1
    assert kinds(asked)["list"] <= 3.5 * seconds + 3


def test_the_vendors_limit_is_kept(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its twenty requests a minute, with minutes of two seconds on both sides."""
    monkeypatch.setattr(schedule, "MINUTE", 2.0)
    cursor = vendor(RateLimit(20, 2.0), requests_per_minute=20, poll_interval=0.05)
    hangs = cursor.start("hangs", 20)
    keys = [*hangs, *cursor.start("done", 100)]

    async def scenario() -> dict[Key, str]:
        return await events(keys, timeout_at=time.time() + 6)

    told = asyncio.run(scenario())
    # All timeouts come at once, while the ends of the others are being confirmed.
    assert {told[key] for key in hangs} == {"TimedOut"}
    assert {cursor.status(key) for key in hangs} == {"CANCELLED"}
    assert {outcome for key, outcome in told.items() if key not in hangs} <= {"ended", "TimedOut"}
    asked = [entry for entry in cursor.server.requests if entry["status"] == 429]
    assert asked == []


def test_nobody_asks_while_the_vendor_wants_to_be_left_alone(
    vendor: Callable[..., Vendor],
) -> None:
    cursor = vendor(RateLimit(40, 3.0), poll_interval=0.02)
    keys = cursor.start("done", 60)
    told = asyncio.run(events(keys))
    assert set(told.values()) == {"ended"}
    asked = cursor.asked()
    refused = [number for number, entry in enumerate(asked) if entry["status"] == 429]
    assert refused
    times = [entry["at"] for entry in asked]
    for number in refused:
        # What was under way still arrives; every refusal asks to wait for a second at least.
        after = [at for at in times[number + 1 :] if at < times[number] + 0.99]
        assert len(after) <= poller.MAX_IN_FLIGHT


def test_ends_are_confirmed_next_and_a_cancel_goes_first(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MINUTE", 6.0)
    cursor = vendor(requests_per_minute=20, poll_interval=0.05)
    (killed,) = cursor.start("hangs")
    keys = [*cursor.start("hangs", 300), killed]
    ends = keys[7:13]

    async def scenario() -> int:
        waiting = [asyncio.create_task(event(trigger(key))) for key in keys]
        await asyncio.sleep(2)
        await asyncio.to_thread(cursor.cancel_at_once, ends)
        told = await asyncio.gather(*waiting[7:13])
        assert {outcome(one) for one in told} == {"Interrupted"}
        waiting[-1].cancel()
        asked = len(cursor.asked())
        await trigger(killed).on_kill()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return asked

    asked = asyncio.run(scenario())
    paths = [entry["path"] for entry in cursor.asked()]
    runs = {key.run_id for key in ends}
    looks = [i for i, path in enumerate(paths) if path.rpartition("/")[2] in runs]
    # Whatever else is due: the page that shows them, and then they.
    assert paths[looks[0] - 1].startswith("/v1/agents?")
    assert [path.rpartition("/")[2] in runs for path in paths[looks[0] :][:6]] == [True] * 6
    assert f"{killed.run_id}/cancel" in "".join(paths[asked : asked + 2])
    assert cursor.status(killed) == "CANCELLED"


def test_quiet_runs_are_asked_and_the_dead_ones_ended(vendor: Callable[..., Vendor]) -> None:
    cursor = vendor()
    hangs, busy = cursor.start("hangs", 12), cursor.start("done", 12)
    told = asyncio.run(events([*hangs, *busy], stall=2))
    assert {told[key] for key in hangs} == {"Stalled"}
    assert {told[key] for key in busy} == {"ended"}
    assert {cursor.status(key) for key in hangs} == {"CANCELLED"}
    assert kinds(cursor.asked())["stream"] >= 12


def test_a_run_that_the_list_hides_is_seen(vendor: Callable[..., Vendor]) -> None:
    cursor = vendor()
    keys = [*cursor.start("done", 3), *cursor.start("hangs", 2)]
    for key in keys[:4]:
        cursor.client.post(f"/v1/agents/{key.agent_id}/archive").raise_for_status()
    cursor.client.delete(f"/v1/agents/{keys[4].agent_id}").raise_for_status()
    told = asyncio.run(events(keys, timeout_at=time.time() + 4))
    outcomes = [told[key] for key in keys]
    assert outcomes == ["ended", "ended", "ended", "TimedOut", "AgentFailed"]


def test_a_list_that_is_refused_costs_no_run(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PAGE_LENGTH", "many")
    cursor = vendor()
    told = asyncio.run(events(cursor.start("done", 5)))
    assert set(told.values()) == {"ended"}
    assert {e["status"] for e in cursor.asked() if e["path"].startswith("/v1/agents?")} == {400}


def test_a_run_that_is_not_the_agents_last_is_over(vendor: Callable[..., Vendor]) -> None:
    cursor = vendor(poll_interval=0.5)
    first, other = cursor.start("hangs", 2)
    cursor.cancel(first)
    body = {"prompt": {"text": "Again."}}
    cursor.client.post(f"/v1/agents/{first.agent_id}/runs", json=body).raise_for_status()
    told = asyncio.run(events([first, other], timeout_at=time.time() + 4))
    assert told == {first: "Interrupted", other: "TimedOut"}


def test_an_agent_that_stays_active_is_looked_at_in_the_end(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that waits for work in the background: its run is over all the same."""
    monkeypatch.setattr(rounds, "BACKSTOP", 0.2)
    parse = api.parse_page

    def active(body: Any) -> Any:
        items = [{**item, "status": "ACTIVE", "updatedAt": "1"} for item in body["items"]]
        return parse({**body, "items": items})

    monkeypatch.setattr(api, "parse_page", active)
    told = asyncio.run(events(vendor().start("done", 5)))
    assert set(told.values()) == {"ended"}


def test_one_poller_for_a_key_whatever_the_connection(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = vendor()
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_NAME", cursor.connection())
    monkeypatch.setenv("AIRFLOW_CONN_OTHER_KEY", cursor.connection("key_2"))
    key = Key("bc-1", "run-1")

    async def poller_of(name: str) -> poller.Poller:
        hook = CursorHook(name)
        limits = await hook.alimits()
        assert "key_" not in repr(limits)
        return poller.shared_poller(hook, limits)

    async def scenario() -> None:
        found = await poller_of("cursor_default")
        async with found.watch(key, 10):
            assert await poller_of("other_name") is found
            assert await poller_of("other_key") is not found
        assert not found.alive

    asyncio.run(scenario())


@asynccontextmanager
async def waiting_for(keys: list[Key]) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    tasks = [asyncio.create_task(event(trigger(key))) for key in keys]
    await asyncio.sleep(1)
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_nothing_is_left_of_a_poller(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = vendor()
    keys = cursor.start("hangs", 20)
    closed = []
    close = CursorHook.aclose

    async def aclose(hook: CursorHook) -> None:
        await close(hook)
        closed.append(hook)

    monkeypatch.setattr(CursorHook, "aclose", aclose)

    async def scenario() -> None:
        for _ in range(3):
            async with waiting_for(keys):
                assert not nothing_left()
            assert nothing_left()

    asyncio.run(scenario())
    assert len(closed) == 3
    # A shutdown ends no run.
    assert {cursor.status(key) for key in keys} == {"RUNNING"}


def test_those_who_come_and_go_have_the_rate_of_those_who_stay(
    vendor: Callable[..., Vendor],
) -> None:
    cursor = vendor(requests_per_minute=20)
    (key,) = cursor.start("hangs")

    async def scenario() -> None:
        for _ in range(8):
            async with waiting_for([key]):
                pass

    began = time.monotonic()
    asyncio.run(scenario())
    assert len(cursor.asked()) <= 2 + (time.monotonic() - began) * 18 / 60 + 1


def test_a_poller_that_fails_lets_nobody_hang(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = vendor()
    keys = cursor.start("hangs", 10)

    async def scenario() -> None:
        with monkeypatch.context() as broken:
            async with waiting_for(keys) as tasks:
                broken.setattr(rounds.Rounds, "next", lambda _: 1 / 0)
                told = await asyncio.gather(*tasks)
        assert {outcome(one) for one in told} == {"AgentFailed"}
        assert all("ZeroDivisionError" in one["failure"]["raw"] for one in told)
        # The next ones get a new poller.
        assert set((await events(cursor.start("done", 3))).values()) == {"ended"}
        assert nothing_left()

    asyncio.run(scenario())


def test_a_poller_that_is_ended_from_outside_lets_nobody_hang(
    vendor: Callable[..., Vendor],
) -> None:
    cursor = vendor()
    keys = cursor.start("hangs", 3)

    async def scenario() -> None:
        async with waiting_for(keys) as tasks:
            (found,) = [t for t in asyncio.all_tasks() if t.get_name() == "hosted runs' poller"]
            found.cancel()
            told = await asyncio.gather(*tasks)
        assert {outcome(one) for one in told} == {"Interrupted"}

    asyncio.run(scenario())


def test_a_kill_is_carried_out_though_airflow_no_longer_waits(
    vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow gives each trigger some seconds; the vendor's rate allows fewer cancels than that."""
    monkeypatch.setattr(schedule, "MINUTE", 6.0)
    monkeypatch.setattr(triggerer_job_runner, "_ON_CANCEL_TIMEOUT", 1)
    cursor = vendor(requests_per_minute=20)
    keys = cursor.start("hangs", 20)

    async def scenario() -> None:
        runner = TriggerRunner()
        tasks = []
        for number, key in enumerate(keys):
            runner.triggers[number] = {"name": "x", "events": 0}  # type: ignore[typeddict-item]
            tasks.append(asyncio.create_task(runner.run_trigger(number, trigger(key))))
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel(triggerer_job_runner._USER_ACTION_CANCEL_MSG)
        await asyncio.wait(tasks, timeout=30)
        assert all(task.done() for task in tasks)
        assert "RUNNING" in {cursor.status(key) for key in keys}
        async with asyncio.timeout(60):
            while not nothing_left():
                await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert {cursor.status(key) for key in keys} == {"CANCELLED"}


def test_a_restarted_triggerer_loses_none(vendor: Callable[..., Vendor], tmp_path: Path) -> None:
    cursor = vendor(poll_interval=0.3)
    early, late = cursor.start("hangs", 20), cursor.start("hangs", 20)
    meanwhile = cursor.start("hangs", 20)
    waiting = {key: trigger(key).serialize() for key in [*early, *late, *meanwhile]}
    told = tmp_path / "events"
    told.touch()

    def run() -> subprocess.Popen[bytes]:
        (tmp_path / "triggers.json").write_text(json.dumps(list(waiting.values())))
        program = Path(__file__).with_name("live_triggers.py")
        return subprocess.Popen(
            [sys.executable, program, tmp_path / "triggers.json", told],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in told.read_text().splitlines() if line.endswith("}")]

    first = run()
    try:
        eventually(lambda: kinds(cursor.asked())["list"], 60)
        for key in early:
            cursor.cancel(key)
        eventually(lambda: len(lines()) >= 5, 60)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    # Airflow has stored what was told by then, and starts the others anew.
    for one in lines():
        del waiting[Key(one["agent_id"], one["run_id"])]
    assert len(waiting) >= 40
    for key in meanwhile:
        cursor.cancel(key)
    cursor.started = len(cursor.server.requests)
    second = run()
    try:
        eventually(lambda: kinds(cursor.asked())["list"], 60)
        for key in late:
            cursor.cancel(key)
        assert second.wait(120) == 0
    finally:
        second.kill()
        second.wait(30)
    found = Counter(Key(one["agent_id"], one["run_id"]) for one in lines())
    assert found == Counter([*early, *late, *meanwhile])
    assert {outcome(one) for one in lines()} == {"Interrupted"}
