"""Codex's notifications and errors, as the SDK types them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import (
    AgentEvent,
    EventKind,
    ToolKind,
    ToolStatus,
    Usage,
)
from airflow_agent_provider.hooks.codex_events import TurnReader, classify, trouble

METHODS = {"thread_id": "t", "turn_id": "u"}


def notification(method: str, **payload: Any) -> Any:
    """Return the notification as the SDK makes it from the wire."""
    from openai_codex.generated.notification_registry import NOTIFICATION_MODELS
    from openai_codex.models import Notification

    values = {"threadId": "t", "turnId": "u", **payload}
    return Notification(method=method, payload=NOTIFICATION_MODELS[method].model_validate(values))


def completed(**item: Any) -> Any:
    return notification("item/completed", item={"id": "i", **item}, completedAtMs=1)


def started(**item: Any) -> Any:
    return notification("item/started", item={"id": "i", **item}, startedAtMs=1)


def read(*notifications: Any, reader: TurnReader | None = None) -> list[AgentEvent]:
    reader = reader or TurnReader(Usage())
    return [event for one in notifications for event in reader.events(one)]


def command(**more: Any) -> dict[str, Any]:
    values = {"type": "commandExecution", "command": "ls", "cwd": "/w", "commandActions": []}
    return {**values, "status": "completed", **more}


@pytest.mark.parametrize(
    ("messages", "final"),
    [
        ([("a", None), ("b", None)], "b"),
        ([("a", "commentary"), ("b", "final_answer"), ("c", "commentary")], "b"),
        ([("a", "final_answer"), ("b", "final_answer")], "b"),
        ([("a", "commentary")], "a"),
        ([], ""),
    ],
)
def test_the_final_answer_outranks_comments(
    messages: list[tuple[str, str | None]], final: str
) -> None:
    reader = TurnReader(Usage())
    items = [completed(type="agentMessage", text=text, phase=phase) for text, phase in messages]
    events = read(*items, reader=reader)
    assert [event.text for event in events] == [text for text, _ in messages]
    assert reader.message == final


def test_thoughts_and_plans() -> None:
    plan = [{"step": "read", "status": "completed"}, {"step": "write", "status": "inProgress"}]
    events = read(
        completed(type="reasoning", summary=["First."], content=["Then."]),
        completed(type="reasoning", summary=[], content=[]),
        notification("turn/plan/updated", plan=plan, explanation="why"),
    )
    assert events == [
        AgentEvent(EventKind.THOUGHT, "First.\nThen."),
        AgentEvent(
            EventKind.PLAN,
            "why",
            data={
                "entries": [
                    {"text": "read", "status": "completed"},
                    {"text": "write", "status": "inProgress"},
                ]
            },
        ),
    ]


@pytest.mark.parametrize(
    ("actions", "kind"),
    [
        ([{"type": "read", "command": "cat a", "name": "a", "path": "a"}], ToolKind.READ),
        ([{"type": "search", "command": "rg x"}], ToolKind.SEARCH),
        ([{"type": "listFiles", "command": "ls"}], ToolKind.SEARCH),
        ([{"type": "unknown", "command": "make"}], ToolKind.EXECUTE),
        (
            [{"type": "search", "command": "x"}, {"type": "unknown", "command": "y"}],
            ToolKind.EXECUTE,
        ),
        ([], ToolKind.EXECUTE),
    ],
)
def test_commands_by_what_they_do(actions: list[dict[str, Any]], kind: ToolKind) -> None:
    (event,) = read(started(**command(commandActions=actions, status="inProgress")))
    assert (event.tool, event.status, event.call_id) == (kind, ToolStatus.IN_PROGRESS, "i")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", ToolStatus.COMPLETED),
        ("failed", ToolStatus.FAILED),
        ("declined", ToolStatus.FAILED),
    ],
)
def test_a_commands_end(status: str, expected: ToolStatus) -> None:
    output = "x" * 10_000 + "the error"
    (event,) = read(completed(**command(status=status, exitCode=2, aggregatedOutput=output)))
    assert (event.kind, event.status) == (EventKind.TOOL_CALL_UPDATE, expected)
    assert event.data["exit_code"] == 2
    assert event.data["output"].endswith("the error")
    assert len(event.data["output"]) <= 4000


def test_other_tools() -> None:
    changes = [{"path": "/w/a", "kind": {"type": "delete"}, "diff": ""}]
    mcp = {"type": "mcpToolCall", "server": "s", "tool": "t", "arguments": {}, "status": "failed"}
    events = read(
        completed(type="fileChange", changes=changes, status="completed"),
        completed(**mcp),
        completed(type="webSearch", query="how"),
        completed(type="imageView", path="/w/i.png"),
        completed(type="contextCompaction"),
        completed(type="userMessage", content=[]),
    )
    assert [(e.tool, e.text, e.status) for e in events] == [
        (ToolKind.DELETE, "/w/a", ToolStatus.COMPLETED),
        (ToolKind.OTHER, "s.t", ToolStatus.FAILED),
        (ToolKind.FETCH, "how", ToolStatus.COMPLETED),
        (ToolKind.READ, "/w/i.png", ToolStatus.COMPLETED),
    ]


def tokens(total: int, last: int) -> Any:
    def breakdown(count: int) -> dict[str, int]:
        return {
            "inputTokens": count,
            "cachedInputTokens": count // 2,
            "outputTokens": count // 10,
            "reasoningOutputTokens": 0,
            "totalTokens": count + count // 10,
        }

    usage = {"total": breakdown(total), "last": breakdown(last)}
    return notification("thread/tokenUsage/updated", tokenUsage=usage)


def test_usage_is_what_this_turn_spent() -> None:
    fresh = TurnReader(Usage())
    events = read(tokens(100, 100), tokens(250, 150), tokens(250, 150), reader=fresh)
    assert [event.data["input_tokens"] for event in events] == [100, 150]
    assert fresh.usage == Usage(250, 125, 25)
    following = TurnReader(fresh.spent)
    read(tokens(300, 50), reader=following)
    assert following.usage.input_tokens == 50
    resumed = TurnReader(None)
    read(tokens(1000, 70), tokens(1100, 100), reader=resumed)
    assert resumed.usage.input_tokens == 170


def error(message: str, info: Any = None, details: str | None = None, retry: bool = False) -> Any:
    values = {"message": message, "codexErrorInfo": info, "additionalDetails": details}
    return notification("error", error=values, willRetry=retry)


def test_errors_become_notices_only_where_codex_tries_again() -> None:
    reader = TurnReader(Usage())
    events = read(error("Reconnecting", details="why", retry=True), error("final"), reader=reader)
    assert events == [AgentEvent(EventKind.NOTICE, "Codex tries again: Reconnecting\nwhy")]
    assert reader.error.message == "final"


def test_the_turns_own_error_wins() -> None:
    reader = TurnReader(Usage())
    turn = {"id": "u", "items": [], "status": "failed", "error": {"message": "the turn's"}}
    read(error("earlier"), notification("turn/completed", turn=turn), reader=reader)
    assert (reader.status, reader.error.message) == ("failed", "the turn's")


def test_what_is_unknown_or_unreadable_is_passed_over() -> None:
    from openai_codex.models import Notification, UnknownNotification

    unknown = UnknownNotification(params={"a": 1})
    for method in ("some/thing/new", "item/completed", "error", "turn/completed"):
        one = Notification(method=method, payload=unknown)
        assert read(one) == []
        assert trouble(one) is None


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (
            error("x", {"responseStreamDisconnected": {"httpStatusCode": 429}}, retry=True),
            f.RateLimited,
        ),
        (error("Connection failed: error sending request", retry=True), f.Unavailable),
        (error("x", {"httpConnectionFailed": {"httpStatusCode": 401}}, retry=True), f.Unavailable),
        (error("words of a new release", retry=True), f.Unavailable),
        (error("x", "serverOverloaded"), None),
    ],
)
def test_trouble_is_only_what_codex_repeats(failure: Any, expected: type | None) -> None:
    found = trouble(failure)
    assert (found and type(found)) is expected


def turn_error(message: str, info: Any = None) -> Any:
    return error(message, info).payload.error


@pytest.mark.parametrize(
    ("info", "message", "expected"),
    [
        ("unauthorized", "x", f.AuthenticationFailed),
        ({"httpConnectionFailed": {"httpStatusCode": 401}}, "x", f.AuthenticationFailed),
        ({"httpConnectionFailed": {"httpStatusCode": 403}}, "x", f.AuthenticationFailed),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, "x", f.RateLimited),
        ({"responseStreamConnectionFailed": {"httpStatusCode": 502}}, "x", f.Unavailable),
        ({"httpConnectionFailed": {"httpStatusCode": 404}}, "x", f.AgentFailed),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, "x", f.AgentFailed),
        ({"kindOfANewRelease": {"a": 1}}, "x", f.AgentFailed),
        ({}, "x", f.AgentFailed),
        ("usageLimitExceeded", "x", f.QuotaExhausted),
        ("rateLimitExceeded", "x", f.RateLimited),
        ("contextWindowExceeded", "x", f.ContextExhausted),
        ("serverOverloaded", "x", f.Unavailable),
        ("internalServerError", "x", f.Unavailable),
        ("cyberPolicy", "x", f.PolicyViolation),
        ("sandboxError", "x", f.AgentFailed),
        ("aCodeOfANewRelease", "x", f.AgentFailed),
        ("other", '{"error": {"code": "context_length_exceeded"}}', f.ContextExhausted),
        ("other", '{"error": {"code": "model_not_found"}}', f.AgentFailed),
        ("other", "it says context_length_exceeded, but not as a code", f.AgentFailed),
        ("badRequest", '{"error": "no object"}', f.AgentFailed),
        ("other", "stream disconnected before completion: x", f.Unavailable),
        ("other", "unexpected status 503 Service Unavailable", f.Unavailable),
        ("other", "exceeded retry limit, last status: 429 Too Many", f.RateLimited),
        (None, "x", f.AgentFailed),
    ],
)
def test_every_error_is_one_class(info: Any, message: str, expected: type) -> None:
    failure = classify(turn_error(message, info))
    assert type(failure) is expected
    assert failure.raw == message


def test_no_error_at_all() -> None:
    assert isinstance(classify(None), f.AgentFailed)


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 20s.", 20.0),
        ("try again in 1.5s", 1.5),
        ("try again in 250ms.", 0.25),
        ("Try again in 6m0s", 360.0),
        ("try again in 1h2m3s", 3723.0),
        ("try again later", None),
        ("try again in a while", None),
    ],
)
def test_how_long_to_wait(message: str, seconds: float | None) -> None:
    failure = classify(turn_error(message, "rateLimitExceeded"))
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == seconds


@given(
    st.text(), st.one_of(st.none(), st.text(max_size=20), st.dictionaries(st.text(), st.integers()))
)
def test_no_error_is_too_strange(message: str, info: Any) -> None:
    assert isinstance(classify(turn_error(message, info)), f.AgentFailure)
