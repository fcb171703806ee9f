"""The Cursor hook against the stand-in, which works on a real git remote."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.hooks import cursor_api as api
from airflow_agent_provider.hooks.agent import HostedRun, get_agent_hook
from airflow_agent_provider.hooks.cursor import CursorHook
from airflow_agent_provider.rehearsal.cursor_server import CursorServer, RateLimit
from tests.stand_ins import PLAN_PROMPT, Remote, eventually, script

Start = Callable[..., CursorServer]
T = TypeVar("T")

pytestmark = pytest.mark.integration

WORKS = ({"write": {"path": "docs/plan.md", "content": "# Plan\n"}}, {"say": "Planned."})
HANGS = ({"fail": {"how": "hang"}},)


@pytest.fixture
def hook() -> CursorHook:
    found = get_agent_hook("cursor")
    assert isinstance(found, CursorHook)
    return found


def submit(hook: CursorHook, remote: Remote, **more: Any) -> HostedRun:
    wanted: dict[str, Any] = {
        "agent_id": hook.agent_id_for("feature/manual__1/plan"),
        "prompt": PLAN_PROMPT,
        "repository": remote.url,
        "ref": "main",
        "name": "feature/manual__1/plan",
        **more,
    }
    return hook.submit(**wanted)


def ended(hook: CursorHook, run: HostedRun) -> HostedRun:
    def look() -> HostedRun | None:
        now = hook.get_run(run.agent_id, run.run_id)
        return now if now.ended else None

    return eventually(look)


def creations(server: CursorServer) -> list[int]:
    return [r["status"] for r in server.requests if (r["method"], r["path"]) == CREATE]


CREATE = ("POST", "/v1/agents")


def test_the_same_work_gets_the_same_agent(cursor: Start, hook: CursorHook, remote: Remote) -> None:
    server = cursor(script(*WORKS))
    first = submit(hook, remote)
    done = ended(hook, first)
    assert done.updated_at > first.updated_at
    assert done.usage is not None
    assert done.usage.output_tokens > 0
    assert done.usage.cost is not None
    assert 0 < done.usage.cost < 0.01
    again = submit(CursorHook(), remote)
    assert again == done
    assert creations(server) == [201, 409]
    assert hook.agent_id_for("a") != hook.agent_id_for("b")


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_makes_no_second_agent(
    cursor: Start, hook: CursorHook, remote: Remote, times: int
) -> None:
    server = cursor(script({"fail": {"how": "drop", "times": times}}, *WORKS))
    run = submit(hook, remote)
    assert ended(hook, run).message == "Planned."
    assert creations(server) == [0, 409]
    assert len(remote.branches()) == 2


def test_a_connection_that_is_refused_for_a_moment_is_tried_again(
    cursor: Start, hook: CursorHook, remote: Remote
) -> None:
    server = cursor(script({"fail": {"how": "refuse", "times": 2}}, *WORKS))
    assert ended(hook, submit(hook, remote)).message == "Planned."
    assert creations(server) == [0, 0, 201]


def test_a_failed_run_is_continued_in_its_conversation(
    cursor: Start, hook: CursorHook, remote: Remote
) -> None:
    error = {"how": "error", "code": "model_error", "message": "No model today."}
    server = cursor(script({"fail": error}, *WORKS))
    failed = ended(hook, submit(hook, remote))
    assert type(failed.failure) is f.AgentFailed
    assert failed.failure.raw == "model_error: No model today."
    second = submit(hook, remote)
    assert second.agent_id == failed.agent_id
    assert second.run_id != failed.run_id
    assert ended(hook, second).message == "Planned."
    assert creations(server) == [201, 409]


def test_a_lost_follow_up_is_found_again(cursor: Start, hook: CursorHook, remote: Remote) -> None:
    server = cursor(script({"fail": {"how": "error"}}, {"fail": {"how": "drop"}}, *WORKS))
    ended(hook, submit(hook, remote))
    run = submit(hook, remote)
    assert ended(hook, run).message == "Planned."
    follow_ups = [r for r in server.requests if r["path"].endswith("/runs")]
    assert len(follow_ups) == 1


def test_a_result_found_wanting_is_followed_up(
    cursor: Start, hook: CursorHook, remote: Remote
) -> None:
    cursor(script({"say": "Half."}, {"say": "Whole."}))
    half = ended(hook, submit(hook, remote))
    assert submit(hook, remote).run_id == half.run_id
    whole = submit(hook, remote, prompt="The output is missing.", after=half.run_id)
    assert ended(hook, whole).message == "Whole."
    # Whoever asks again after a crash attaches to the follow-up.
    assert submit(hook, remote, after=half.run_id).run_id == whole.run_id


def test_attempts_side_by_side_share_one_agent(
    cursor: Start, hook: CursorHook, remote: Remote
) -> None:
    server = cursor(script(*HANGS))
    hook.test_connection()  # Reads the connection here; a thread has no Airflow context.
    runs: list[HostedRun] = []
    threads = [threading.Thread(target=lambda: runs.append(submit(hook, remote))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(runs) == 3
    assert len({run.run_id for run in runs}) == 1
    assert creations(server).count(201) == 1


def test_a_server_that_only_refuses(cursor: Start, hook: CursorHook, remote: Remote) -> None:
    server = cursor(script({"fail": {"how": "refuse", "times": None}}))
    with pytest.raises(f.Unavailable, match=server.url):
        submit(hook, remote)
    assert len(creations(server)) == api.TRIES


@pytest.mark.parametrize(
    "change",
    [
        {"repository": "/nowhere/at/all.git"},
        {"ref": "no-such-branch"},
        {"model": "invalid-model"},
        {"options": {"colour": "red"}},
    ],
)
def test_what_the_definition_gets_wrong_is_told(
    cursor: Start, hook: CursorHook, remote: Remote, change: dict[str, Any]
) -> None:
    cursor(script(*WORKS))
    with pytest.raises(f.InvalidDefinition) as raised:
        submit(hook, remote, **change)
    wrong = next(iter(change.values()))
    assert (wrong if isinstance(wrong, str) else "colour") in str(raised.value)


def test_the_model_of_the_step_wins_over_the_connections(
    cursor: Start, hook: CursorHook, remote: Remote
) -> None:
    server = cursor(script(*HANGS), model="composer-2.5")
    submit(hook, remote)
    submit(hook, remote, agent_id=hook.agent_id_for("other"), model="gpt-5.3-codex")
    models = [r["body"]["model"] for r in server.requests if (r["method"], r["path"]) == CREATE]
    assert models == [{"id": "composer-2.5"}, {"id": "gpt-5.3-codex"}]


def test_a_run_that_is_not_there(cursor: Start, hook: CursorHook) -> None:
    cursor(script())
    with pytest.raises(f.AgentFailed, match="run-x"):
        hook.get_run("bc-x", "run-x")


def test_the_trigger_side_tells_the_same(cursor: Start, hook: CursorHook, remote: Remote) -> None:
    cursor(script(*WORKS))
    run = submit(hook, remote)
    done = ended(hook, run)
    other = CursorHook()

    async def look() -> HostedRun:
        await other.acancel(run.agent_id, run.run_id)
        assert (await other.alimits()).poll_interval == 0.1
        return await other.aget_run(run.agent_id, run.run_id)

    assert asyncio.run(closing(other, look)) == done


def test_the_trigger_side_fails_the_same(cursor: Start) -> None:
    cursor(script())
    other = CursorHook()
    with pytest.raises(f.AgentFailed, match="run-x"):
        asyncio.run(closing(other, lambda: other.aget_run("bc-x", "run-x")))
    missing = CursorHook("no_such_connection")
    with pytest.raises(f.AuthenticationFailed, match="no_such_connection"):
        asyncio.run(closing(missing, lambda: missing.aget_run("bc-x", "run-x")))


async def closing(hook: CursorHook, work: Callable[[], Awaitable[T]]) -> T:
    try:
        return await work()
    finally:
        await hook.aclose()


def test_signs_of_life_are_heard(
    cursor: Start, hook: CursorHook, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_agent_provider.hooks.cursor.LISTEN_TIMEOUT", 0.5)
    cursor(script({"run": "true"}, *HANGS))
    run = submit(hook, remote)
    eventually(lambda: hook.get_run(run.agent_id, run.run_id).status == "RUNNING")
    first = eventually(lambda: hook.sign_of_life(run.agent_id, run.run_id))
    # It hangs from here on: what was heard last stays the newest.
    assert hook.sign_of_life(run.agent_id, run.run_id, first) == first
    other = CursorHook()
    look = closing(other, lambda: other.asign_of_life(run.agent_id, run.run_id))
    assert asyncio.run(look) == first
    assert hook.sign_of_life(run.agent_id, "run-unknown", "x") == "x"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(api, "READ_TIMEOUT", 0.2)


def connect(monkeypatch: pytest.MonkeyPatch, **connection: Any) -> None:
    values = json.dumps({"conn_type": "cursor", **connection})
    monkeypatch.setenv("AIRFLOW_CONN_CURSOR_DEFAULT", values)


def test_nobody_at_the_host(monkeypatch: pytest.MonkeyPatch, hook: CursorHook, quick: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{unused.getsockname()[1]}"
        connect(monkeypatch, host=host, password="key_secret_123")
        with pytest.raises(f.Unavailable, match=host) as raised:
            hook.get_run("bc-1", "run-1")
    assert "refused" in str(raised.value.raw)


def test_a_host_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, hook: CursorHook, quick: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        connect(monkeypatch, host=host, password="key_secret_123")
        with pytest.raises(f.Unavailable) as raised:
            hook.get_run("bc-1", "run-1")
    assert "Timeout" in str(raised.value.raw)


def test_test_connection(
    cursor: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = cursor(script())
    assert CursorHook().test_connection() == (True, "Cursor accepts the key (rehearsal)")
    connect(monkeypatch, host=server.url, password="invalid_key_9")
    works, says = CursorHook().test_connection()
    assert not works
    assert "AuthenticationFailed" in says
    assert "Invalid API key" in says
    connect(monkeypatch, host=server.url)
    assert "'cursor_default' has no password" in CursorHook().test_connection()[1]
    monkeypatch.delenv("AIRFLOW_CONN_CURSOR_DEFAULT")
    assert "airflow connections add cursor_default" in CursorHook().test_connection()[1]


@pytest.mark.parametrize("host", ["ftp://x", "http://u:p@x", "http://x:port", "http://"])
def test_a_host_that_is_no_url(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    connect(monkeypatch, host=host, password="key_secret_123")
    works, says = CursorHook().test_connection()
    assert not works
    assert "'cursor_default' is no base URL" in says


@pytest.mark.parametrize("form", ["host and port", "url with version"])
def test_other_forms_of_the_host(cursor: Start, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    server = cursor(script())
    if form == "host and port":
        connect(
            monkeypatch, host="127.0.0.1", port=server.port, schema="http", password="key_1_secret"
        )
    else:
        connect(monkeypatch, host=f"{server.url}/v1/", password="key_1_secret")
    assert CursorHook().test_connection()[0]


def test_poll_intervals(cursor: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor(script())
    assert CursorHook().poll_interval() == 0.1
    assert CursorHook().poll_interval({"poll_interval": "3"}) == 3.0
    with pytest.raises(f.InvalidDefinition, match="poll_interval"):
        CursorHook().poll_interval({"poll_interval": "often"})
    connect(monkeypatch, password="key_secret_123")
    assert CursorHook().poll_interval() == 10.0


def test_what_the_key_may_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, password="key_secret_123")
    limits = asyncio.run(CursorHook().alimits())
    assert (limits.requests_per_minute, limits.poll_interval) == (20, 10)
    assert "secret" not in repr(limits)
    connect(monkeypatch, password="key_secret_123", extra={"requests_per_minute": "100"})
    more = asyncio.run(CursorHook().alimits())
    assert (more.requests_per_minute, more.account) == (100, limits.account)
    connect(monkeypatch, password="key_other_456")
    assert asyncio.run(CursorHook().alimits()).account != limits.account
    for wrong in ("many", -1, "inf"):
        connect(monkeypatch, password="key_secret_123", extra={"requests_per_minute": wrong})
        with pytest.raises(f.InvalidDefinition, match="requests_per_minute"):
            asyncio.run(CursorHook().alimits())


def test_the_list_in_pages(
    cursor: Start, hook: CursorHook, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PAGE_LENGTH", 2)
    cursor(script(*HANGS))
    runs = [submit(hook, remote, agent_id=hook.agent_id_for(name)) for name in "abc"]
    hook.cancel(runs[0].agent_id, runs[0].run_id)

    async def look() -> None:
        first = await hook.alist()
        assert list(first.agents) == [runs[2].agent_id, runs[1].agent_id]
        assert all(agent.active for agent in first.agents.values())
        assert first.cursor
        last = await hook.alist(first.cursor)
        (agent,) = last.agents.values()
        assert (agent.active, agent.latest_run, last.cursor) == (False, runs[0].run_id, None)

    asyncio.run(closing(hook, look))


def test_a_refusal_to_stream_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a rate limit would have a busy run ended."""
    listening = CursorHook()

    async def listen() -> None:
        assert await listening.asign_of_life("bc-1", "run-1", "7") == "7"
        with pytest.raises(f.RateLimited) as raised:
            await listening.asign_of_life("bc-1", "run-1", "7")
        assert raised.value.retry_after

    with CursorServer(script(), limit=RateLimit(1)) as server:
        connect(monkeypatch, host=server.url, password="key_secret_123")
        asyncio.run(closing(listening, listen))
    gone = CursorHook()
    with pytest.raises(f.Unavailable):
        asyncio.run(closing(gone, lambda: gone.asign_of_life("bc-1", "run-1", "7")))


def test_nor_is_it_on_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with CursorServer(script(), limit=RateLimit(1)) as server:
        connect(monkeypatch, host=server.url, password="key_secret_123")
        assert CursorHook().sign_of_life("bc-1", "run-1", "7") == "7"
        with pytest.raises(f.RateLimited):
            CursorHook().sign_of_life("bc-1", "run-1", "7")
    with pytest.raises(f.Unavailable):
        CursorHook().sign_of_life("bc-1", "run-1", "7")


def test_the_key_reaches_no_error_and_no_log(
    cursor: Start, hook: CursorHook, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fail = {"status": 401, "message": "The key key_secret_123 was revoked"}
    cursor(script({"fail": fail}))
    with pytest.raises(f.AuthenticationFailed) as raised:
        submit(hook, remote)
    assert "The key *** was revoked" in str(raised.value)
    assert "key_secret_123" not in repr(hook.__dict__)
    assert "key_secret_123" not in caplog.text
