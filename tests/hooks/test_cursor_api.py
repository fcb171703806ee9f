"""What Cursor's answers mean, without a server: the conversations are driven by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.hooks import cursor_api as api
from airflow_agent_provider.hooks.agent import ListedAgent

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
WANTED = api.Submission("bc-1", "Do it.", "https://example.invalid/a/b", "main", "d/r/s")
LOST = api.NoAnswer("lost")

Reply = api.Answer | api.NoAnswer


def ok(**body: Any) -> api.Answer:
    return api.Answer(200, json.dumps(body))


def refused(status: int, code: str = "", message: str = "", **headers: str) -> api.Answer:
    return api.Answer(status, json.dumps({"error": {"code": code, "message": message}}), headers)


def run(run_id: str, status: str, **more: Any) -> api.Answer:
    return ok(id=run_id, status=status, **more)


def talk(flow: api.Flow[Any], replies: Iterable[Reply]) -> tuple[Any, list[str]]:
    """Drive a conversation; return its result and the calls that were made."""
    replies, calls = iter(replies), []
    try:
        step = next(flow)
        while True:
            if isinstance(step, api.Pause):
                assert 0 < step.seconds < 10
                step = next(flow)
                continue
            calls.append(f"{step.method} {step.path}")
            reply = next(replies)
            step = flow.throw(reply) if isinstance(reply, Exception) else flow.send(reply)
    except StopIteration as stop:
        return stop.value, calls


def test_a_busy_agent_is_attached_to() -> None:
    got, calls = talk(
        api.submit(WANTED),
        [
            refused(409, "agent_id_conflict"),
            ok(id="bc-1", latestRunId="run-1"),
            run("run-1", "ERROR"),
            ok(),
            refused(409, "agent_busy"),
            ok(id="bc-1", latestRunId="run-2"),
            run("run-2", "RUNNING"),
        ],
    )
    assert (got.run_id, got.ended) == ("run-2", False)
    assert calls.count("POST /v1/agents/bc-1/runs") == 1


def test_a_lost_follow_up_is_looked_up_before_it_is_sent_again() -> None:
    agent, failed = ok(id="bc-1", latestRunId="run-1"), run("run-1", "CANCELLED")
    got, calls = talk(
        api.submit(WANTED),
        [
            refused(409, "agent_id_conflict"),
            *(agent, failed, ok(), LOST),
            *(agent, failed, ok(), ok(run={"id": "run-2", "status": "CREATING"})),
        ],
    )
    assert got.run_id == "run-2"
    assert calls.count("POST /v1/agents/bc-1/runs") == 2


def test_a_lost_follow_up_that_failed_meanwhile_starts_no_third_run() -> None:
    got, calls = talk(
        api.submit(WANTED),
        [
            refused(409, "agent_id_conflict"),
            *(ok(id="bc-1", latestRunId="run-1"), run("run-1", "ERROR"), ok(), LOST),
            *(ok(id="bc-1", latestRunId="run-2"), run("run-2", "ERROR"), ok()),
        ],
    )
    assert (got.run_id, type(got.failure)) == ("run-2", f.AgentFailed)
    assert calls.count("POST /v1/agents/bc-1/runs") == 1


def test_an_agent_without_a_run_yet_is_waited_for() -> None:
    got, _ = talk(
        api.submit(WANTED),
        [
            *(LOST, refused(409, "agent_id_conflict"), ok(id="bc-1")),
            *(ok(id="bc-1", latestRunId="run-1"), run("run-1", "CREATING")),
        ],
    )
    assert got.run_id == "run-1"
    with pytest.raises(f.Unavailable, match="bc-1"):
        talk(api.submit(WANTED), [refused(409, "agent_id_conflict"), *[ok(id="bc-1")] * api.TRIES])


def test_tries_are_bounded() -> None:
    with pytest.raises(api.NoAnswer):
        talk(api.submit(WANTED), [LOST] * api.TRIES)


def test_a_finished_run_is_continued_only_where_it_was_found_wanting() -> None:
    answers = [
        refused(409, "agent_id_conflict"),
        ok(id="bc-1", latestRunId="run-1"),
        run("run-1", "FINISHED", result="Bad."),
        ok(),
    ]
    got, _ = talk(api.submit(WANTED), answers)
    assert got.run_id == "run-1"
    wanting = api.Submission("bc-1", "Do it.", "u", "main", "n", after="run-1")
    got, _ = talk(api.submit(wanting), [*answers, ok(run={"id": "run-2", "status": "CREATING"})])
    assert got.run_id == "run-2"


def test_the_branch_is_the_one_of_the_agents_repository() -> None:
    branches = [
        {"repoUrl": "github.com/acme/other", "branch": "cursor/other"},
        {"repoUrl": "github.com/Acme/api", "branch": "cursor/api"},
    ]
    got, _ = talk(
        api.get_run("bc-1", "run-1"),
        [
            run("run-1", "FINISHED", git={"branches": branches}),
            ok(repos=[{"url": "https://github.com/acme/api.git"}]),
            refused(500),
        ],
    )
    assert (got.branch, got.usage) == ("cursor/api", None)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refused(401), f.AuthenticationFailed),
        (refused(403, "plan_required"), f.AuthenticationFailed),
        (refused(402), f.QuotaExhausted),
        (refused(429), f.RateLimited),
        (refused(429, "usage_limit_exceeded"), f.QuotaExhausted),
        (refused(500), f.Unavailable),
        (api.Answer(502, "<html>Bad gateway</html>"), f.Unavailable),
        (refused(400, "validation_error", "Unknown model x"), f.InvalidDefinition),
        (refused(400, "validation_error", "Branch x does not exist"), f.InvalidDefinition),
        (refused(404, "not_found", "Repository not found"), f.InvalidDefinition),
        (refused(400, "validation_error", "prompt.text is too long"), f.AgentFailed),
        (refused(409, "agent_archived"), f.AgentFailed),
        (api.Answer(200, "<html>A login page</html>"), f.Unavailable),
        (api.Answer(200, '{"run": {}}'), f.AgentFailed),
    ],
)
def test_every_refused_creation_has_its_class(
    answer: api.Answer, kind: type[f.AgentFailure]
) -> None:
    with pytest.raises(f.AgentFailure) as raised:
        talk(api.submit(WANTED), [answer])
    assert type(raised.value) is kind
    message = answer.error.get("message")
    assert not message or message in str(raised.value.raw)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"status": "FINISHED"}, type(None)),
        ({"status": "CANCELLED"}, f.Interrupted),
        ({"status": "EXPIRED"}, f.AgentFailed),
        ({"status": "ERROR"}, f.AgentFailed),
        ({"status": "ERROR", "errorCode": "usage_limit_exceeded"}, f.QuotaExhausted),
        ({"status": "ERROR", "error": {"code": "rate_limited"}}, f.RateLimited),
        ({"status": "ERROR", "error": {"message": "Unauthorized"}}, f.AuthenticationFailed),
        ({"status": "ERROR", "error": "the model is overloaded"}, f.Unavailable),
        ({"status": "ERROR", "errorCode": "context_length_exceeded"}, f.ContextExhausted),
    ],
)
def test_every_ended_run_has_its_class(body: dict[str, Any], kind: type) -> None:
    parsed = api.parse_run("bc-1", {"id": "run-1", **body})
    assert parsed.ended
    assert type(parsed.failure) is kind


def test_unknown_status_is_no_end() -> None:
    assert not api.parse_run("bc-1", {"id": "run-1", "status": "PAUSED"}).ended


def test_a_page_of_the_list() -> None:
    first = {"id": "bc-1", "status": "ACTIVE", "updatedAt": "t", "latestRunId": "run-1"}
    body = ok(items=[first, {"id": "bc-2", "status": "IDLE"}, {"name": "?"}, 7], nextCursor="bc-3")
    page, calls = talk(api.list_agents("bc-1"), [body])
    assert page.cursor == "bc-3"
    assert page.agents == {
        "bc-1": ListedAgent("ACTIVE", active=True, updated_at="t", latest_run="run-1"),
        "bc-2": ListedAgent("IDLE", active=False),
    }
    assert calls == ["GET /v1/agents?limit=100&includeArchived=false&cursor=bc-1"]
    last, calls = talk(api.list_agents(), [ok(items=[])])
    assert (last.agents, last.cursor) == ({}, None)
    assert "cursor" not in calls[0]


def test_who_shares_a_key_sends_one_request_at_a_time() -> None:
    for flow in (api.look("bc-1", "run-1"), api.list_agents(), api.cancel("bc-1", "run-1", 1)):
        with pytest.raises(api.NoAnswer):
            talk(flow, [LOST])
    got, calls = talk(api.look("bc-1", "run-1"), [run("run-1", "FINISHED", result="Done.")])
    assert (got.message, got.usage, len(calls)) == ("Done.", None, 1)


def test_a_cancel_tells_whether_the_run_was_under_way() -> None:
    assert talk(api.cancel("bc-1", "run-1"), [LOST, ok(id="run-1")])[0] is True
    for answer in (refused(409, "run_not_cancellable"), refused(404, "run_not_found")):
        assert talk(api.cancel("bc-1", "run-1"), [answer])[0] is False
    with pytest.raises(f.Unavailable):
        talk(api.cancel("bc-1", "run-1"), [refused(503)])


def test_usage() -> None:
    tokens = {"inputTokens": 10, "outputTokens": 5, "cacheReadTokens": 80, "cacheWriteTokens": 10}
    by_run = {
        "totalUsage": {"inputTokens": 999},
        "runs": [
            {"id": "run-1", "usage": tokens, "cost": {"chargedCents": 12.5}},
            {"id": "run-2", "usage": {**tokens, "totalTokens": 105}},
        ],
    }
    assert api.parse_usage(by_run, "run-1") == Usage(100, 80, 5, cost=0.125)
    assert api.parse_usage(by_run, "run-2") == Usage(100, 80, 5, cost=None)
    # Of the agent's sum, a run's share is not known.
    assert api.parse_usage(by_run, "run-3") is None
    included = {"inputTokens": 100, "outputTokens": 5, "cacheReadTokens": 80, "totalTokens": 105}
    whole = {"totalUsage": included, "cost": {"rawCostCents": 3}}
    assert api.parse_usage(whole, "run-1") == Usage(100, 80, 5, cost=None)
    assert api.parse_usage({}, "run-1") is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("1.5", 1.5),
        ("Mon, 23 Nov 2026 12:01:00 GMT", 60.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert api.retry_after(value, NOW) == seconds


@given(st.text())
def test_retry_after_never_raises(value: str) -> None:
    seconds = api.retry_after(value, NOW)
    assert seconds is None or seconds >= 0


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_fields = ["id", "status", "result", "error", "errorCode", "git", "updatedAt", "usage", "cost"]
_fields += ["totalUsage", "runs", "inputTokens", "outputTokens", "totalTokens", "chargedCents"]
_fields += ["branches", "branch", "repoUrl", "items", "latestRunId"]
_body = st.dictionaries(st.sampled_from(_fields), _json, max_size=8)


@given(_body)
def test_no_answer_breaks_the_parsers(body: dict[str, Any]) -> None:
    with suppress(f.AgentFailed):
        api.parse_run("bc-1", {**body, "git": {"branches": [body]}}, "github.com/a/b")
    page = api.parse_page({**body, "items": [body], "nextCursor": body.get("id")})
    assert len(page.agents) <= 1
    usage = api.parse_usage({**body, "runs": [body]}, "run-1")
    assert usage is None or usage.total_tokens >= 0
    with pytest.raises(f.AgentFailure):
        raise api.refusal(api.Answer(400, json.dumps({"error": body})), "create an agent")


def test_credentials_are_not_handed_on() -> None:
    url = "https://user:token@example.invalid/a/b.git"
    repo = api.Submission("bc-1", "p", url, "", "n").body()["repos"]
    assert repo == [{"url": "https://example.invalid/a/b.git"}]
    assert api.without_credentials("git@example.invalid:a/b") == "git@example.invalid:a/b"


def test_options_become_fields_and_unknown_ones_are_named() -> None:
    options = {"auto_create_pr": True, "model_params": [{"id": "effort", "value": "high"}]}
    body = api.Submission("bc-1", "p", "u", "main", "n", "gpt", options).body()
    assert body["autoCreatePR"] is True
    assert body["model"] == {"id": "gpt", "params": [{"id": "effort", "value": "high"}]}
    with pytest.raises(f.InvalidDefinition, match=r"'colour'.*auto_create_pr"):
        api.Submission("bc-1", "p", "u", "main", "n", options={"colour": 1}).body()


def test_heartbeats_are_no_sign_of_life() -> None:
    lines = ["event: status", "data: {}", "", "id: 7", "event: assistant", "event: heartbeat", ""]
    assert api.newest_event(lines[:3], "6") == "6"
    assert api.newest_event(lines, "6") == "7"
