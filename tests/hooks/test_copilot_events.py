"""Copilot's events and errors, as the SDK types them."""

from __future__ import annotations

import uuid
from pathlib import Path
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
from airflow_agent_provider.hooks.copilot_events import (
    TurnReader,
    begins_turn,
    classify,
    classify_upstream,
    ends_turn,
)
from airflow_agent_provider.sandbox.door import UpstreamFailure

WORKSPACE = Path("/w")


def event(kind: str, agent: str | None = None, **data: Any) -> Any:
    """Return the event as the SDK makes it from the wire."""
    from copilot.session_events import session_event_from_dict

    values = {
        "type": kind,
        "id": str(uuid.uuid4()),
        "parentId": None,
        "timestamp": "2026-11-24T11:50:58.268Z",
        "data": data,
    }
    return session_event_from_dict(values if agent is None else {**values, "agentId": agent})


def read(*events: Any, reader: TurnReader | None = None) -> list[AgentEvent]:
    reader = reader or TurnReader(WORKSPACE)
    return [one for each in events for one in reader.events(each)]


def message(text: str, agent: str | None = None, **more: Any) -> Any:
    return event("assistant.message", agent, content=text, messageId="m", model="gpt-5.5", **more)


def usage(finish: str = "stop", agent: str | None = None, **more: Any) -> Any:
    counts = {"inputTokens": 100, "cacheReadTokens": 40, "outputTokens": 20, "reasoningTokens": 5}
    return event(
        "assistant.usage", agent, model="gpt-5.5", finishReason=finish, **{**counts, **more}
    )


def started(tool: str, arguments: Any, **more: Any) -> Any:
    values = {"toolCallId": "c", "toolName": tool, "arguments": arguments}
    return event("tool.execution_start", **values, **more)


def completed(success: bool = True, **more: Any) -> Any:
    return event("tool.execution_complete", toolCallId="c", success=success, **more)


def idle(**data: Any) -> Any:
    return event("session.idle", **data)


def error(kind: str = "query", message: str = "x", **more: Any) -> Any:
    return event("session.error", errorType=kind, message=message, **more)


def call_failure(**data: Any) -> Any:
    return event("model.call_failure", source="top_level", **data)


def test_the_last_message_is_the_answer() -> None:
    reader = TurnReader(WORKSPACE)
    asks = [{"toolCallId": "c", "name": "bash", "arguments": {}, "type": "function"}]
    events = read(
        message("I look.", toolRequests=asks),
        message("", toolRequests=asks),
        message("of a helper", agent="sub"),
        message("It is done."),
        idle(),
        reader=reader,
    )
    assert [one.text for one in events] == ["I look.", "It is done."]
    assert (reader.message, reader.status, reader.model) == ("It is done.", "completed", "gpt-5.5")
    assert reader.failure is None


def test_thoughts() -> None:
    events = read(
        event("assistant.reasoning", content=" Hm. ", reasoningId="r"),
        event("assistant.reasoning", content="", reasoningId="r"),
        event("assistant.reasoning", "sub", content="of a helper", reasoningId="r"),
    )
    assert events == [AgentEvent(EventKind.THOUGHT, "Hm.")]


@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "text", "paths"),
    [
        ("bash", {"command": "make", "description": "x"}, ToolKind.EXECUTE, "make", None),
        ("create", {"path": "/w/a", "file_text": ""}, ToolKind.EDIT, "create /w/a", ["/w/a"]),
        ("edit", {"path": "b/c", "old_str": ""}, ToolKind.EDIT, "edit b/c", ["/w/b/c"]),
        ("view", {"path": "/w"}, ToolKind.READ, "view /w", ["/w"]),
        ("rg", {"pattern": "x", "path": "/w"}, ToolKind.SEARCH, "rg /w", None),
        ("glob", {"pattern": "*.py"}, ToolKind.SEARCH, "glob *.py", None),
        ("web_fetch", {"url": "https://x"}, ToolKind.FETCH, "web_fetch https://x", None),
        ("task", {"description": "look"}, ToolKind.OTHER, "task look", None),
        ("new_tool", None, ToolKind.OTHER, "new_tool", None),
        (
            "apply_patch",
            "*** Begin Patch\n*** Add File: a\n+x\n*** Update File: /w/b\n*** End Patch",
            ToolKind.EDIT,
            "/w/a, /w/b",
            ["/w/a", "/w/b"],
        ),
        (
            "apply_patch",
            "*** Begin Patch\n*** Delete File: a\n*** End Patch",
            ToolKind.DELETE,
            "/w/a",
            ["/w/a"],
        ),
        ("apply_patch", "no patch", ToolKind.EDIT, "apply_patch", None),
    ],
)
def test_tools_by_what_they_do(
    tool: str, arguments: Any, kind: ToolKind, text: str, paths: list[str] | None
) -> None:
    begun, ended = read(started(tool, arguments), completed())
    assert (begun.kind, begun.status) == (EventKind.TOOL_CALL, ToolStatus.IN_PROGRESS)
    assert (ended.kind, ended.status) == (EventKind.TOOL_CALL_UPDATE, ToolStatus.COMPLETED)
    for one in (begun, ended):
        assert (one.tool, one.text, one.call_id) == (kind, text, "c")
        assert one.data == ({} if paths is None else {"paths": paths})


@pytest.mark.parametrize(
    ("success", "code", "expected"),
    [
        (True, 0, ToolStatus.COMPLETED),
        (True, 2, ToolStatus.FAILED),
        (True, None, ToolStatus.COMPLETED),
        (False, None, ToolStatus.FAILED),
    ],
)
def test_a_commands_end(success: bool, code: int | None, expected: ToolStatus) -> None:
    output = "x" * 10_000 + f"the error\n<shellId: 0 completed with exit code {code}>"
    more = {} if code is None else {"shellExecution": {"exitCode": code}}
    result = {"content": output, "detailedContent": output}
    ended = read(started("bash", {"command": "ls"}), completed(success, result=result, **more))[-1]
    assert ended.status is expected
    assert ended.data.get("exit_code") == code
    assert len(ended.data["output"]) <= 4000
    if code is not None:
        assert ended.data["output"].endswith("the error")


def test_a_tool_that_failed_says_why() -> None:
    failed = completed(False, error={"message": "no such file", "code": "failure"})
    assert read(started("view", {"path": "a"}), failed)[-1].data["output"] == "no such file"


def test_the_end_of_an_earlier_processs_call() -> None:
    (ended,) = read(completed(False, error={"message": "was interrupted", "code": "interrupted"}))
    assert (ended.tool, ended.status) == (ToolKind.OTHER, ToolStatus.FAILED)


def test_usage_counts_every_call_the_helpers_too() -> None:
    reader = TurnReader(WORKSPACE)
    nothing = usage(inputTokens=0, cacheReadTokens=0, outputTokens=0, reasoningTokens=0)
    events = read(usage(), usage(agent="sub"), nothing, reader=reader)
    assert [one.data["total_tokens"] for one in events] == [120, 120]
    assert reader.usage == Usage(200, 80, 40, 10)
    # Copilot's "cost" is a multiplier of its own, not money.
    assert reader.usage.cost is None


def test_a_turn_without_its_whole_answer_has_failed() -> None:
    for finish, expected in (("content_filter", f.PolicyViolation), ("length", f.AgentFailed)):
        reader = TurnReader(WORKSPACE)
        read(usage(finish), message("The model returned no content …"), idle(), reader=reader)
        assert type(reader.failure) is expected
        # Only the last answer counts, and a helper's does not.
        read(usage("tool_calls"), usage("stop"), usage(finish, agent="sub"), reader=reader)
        assert reader.failure is None


def test_notices() -> None:
    upstream = UpstreamFailure(503, "Down", None)
    reader = TurnReader(WORKSPACE, lambda: upstream)
    retry = event("assistant.turn_retry", turnId="0", model="m", reason="api_error")
    compacted = event("session.compaction_complete", success=True)
    warning = event("session.warning", message="Mind this.", warningType="x")
    events = read(
        call_failure(statusCode=503, errorMessage="Oops"), retry, warning, compacted, reader=reader
    )
    assert [one.text for one in events] == [
        "Copilot tries again (api_error): Oops\nDown",
        "Mind this.",
        "Copilot summarized the session to make room in it",
    ]
    assert {one.kind for one in events} == {EventKind.NOTICE}


def test_a_turns_bounds() -> None:
    user = event("user.message", content="x", messageId="m1")
    assert begins_turn(user, "m1")
    assert not begins_turn(user, "m2")
    assert begins_turn(error(originatingMessageId="m1"), "m1")
    assert begins_turn(error(), "m1")
    assert not begins_turn(error(originatingMessageId="m0"), "m1")
    assert not begins_turn(idle(), "m1")
    assert ends_turn(idle())
    assert not ends_turn(event("assistant.idle"))


@pytest.mark.parametrize(("aborted", "status"), [(True, "interrupted"), (None, "completed")])
def test_how_a_turn_ends(aborted: bool | None, status: str) -> None:
    reader = TurnReader(WORKSPACE)
    read(idle(**({} if aborted is None else {"aborted": aborted})), reader=reader)
    assert reader.status == status


def test_silence_while_commands_go_on_in_the_background() -> None:
    reader = TurnReader(WORKSPACE)
    read(event("assistant.idle", aborted=True), reader=reader)
    assert not reader.silent
    read(event("assistant.idle"), reader=reader)
    assert reader.silent
    # As an interruption after the silence tells.
    read(event("assistant.idle", aborted=True), reader=reader)
    assert reader.silent
    read(event("assistant.turn_start", turnId="0"), reader=reader)
    assert not reader.silent


def test_an_error_that_copilot_got_over() -> None:
    reader = TurnReader(WORKSPACE)
    read(error(), reader=reader)
    assert isinstance(reader.failure, f.AgentFailed)
    read(message("Done after all."), reader=reader)
    assert reader.failure is None


def test_trouble_lasts_until_the_model_answers() -> None:
    reader = TurnReader(WORKSPACE)
    info = event("session.info", infoType="model_retry", message="…")
    retry = event("assistant.turn_retry", turnId="0", reason="rate_limit")
    assert reader.trouble(info) is None
    for each in (call_failure(statusCode=429), retry, info):
        assert isinstance(reader.trouble(each), f.RateLimited)
    delta = event("assistant.message_delta", deltaContent="x", messageId="m")
    assert reader.trouble(delta) is None
    assert reader.trouble(info) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"statusCode": 503}, f.Unavailable),
        # Copilot tries these again, so they may pass.
        ({"statusCode": 401}, f.Unavailable),
        ({"statusCode": 418}, f.Unavailable),
        ({"errorMessage": "words of a new release"}, f.Unavailable),
        ({"statusCode": 429, "errorCode": "insufficient_quota"}, f.QuotaExhausted),
    ],
)
def test_trouble_is_what_may_pass(data: dict[str, Any], expected: type) -> None:
    reader = TurnReader(WORKSPACE)
    assert type(reader.trouble(call_failure(**data))) is expected
    assert (reader.hopeless is not None) is (expected is f.QuotaExhausted)


#: What Copilot 1.0.102 was seen to report (the session's error, the last call's failure).
MEASURED: list[tuple[dict[str, Any], dict[str, Any] | None, type[f.AgentFailure]]] = [
    ({"kind": "rate_limit", "statusCode": 429}, {"statusCode": 429}, f.RateLimited),
    ({"statusCode": 500}, {"statusCode": 500}, f.Unavailable),
    ({"kind": "authentication", "statusCode": 401}, {"statusCode": 401}, f.AuthenticationFailed),
    ({"kind": "authentication", "statusCode": 403}, {"statusCode": 403}, f.AuthenticationFailed),
    ({"message": "400 no model", "statusCode": 400}, {"statusCode": 400}, f.AgentFailed),
    ({"message": "Resource not found", "statusCode": 404}, {"statusCode": 404}, f.AgentFailed),
    ({"message": "402 pay", "statusCode": 402}, {"statusCode": 402}, f.QuotaExhausted),
    (
        {"message": "Failed to get response from the AI model; retried 5 times"},
        {"errorMessage": "missing finish_reason", "failureKind": "transport"},
        f.Unavailable,
    ),
    (
        {"message": "The provider rejected the prompt as too long, but automatic recovery …"},
        {"statusCode": 413},
        f.ContextExhausted,
    ),
    (
        {"message": "400 maximum context length is 1", "statusCode": 400},
        {"statusCode": 400, "errorCode": "context_length_exceeded"},
        f.ContextExhausted,
    ),
    (
        {"kind": "rate_limit", "statusCode": 429},
        {"statusCode": 429, "errorCode": "insufficient_quota"},
        f.QuotaExhausted,
    ),
    (
        {"message": "Execution failed: InvalidArg, No GitHub OAuth token or Copilot HMAC key"},
        None,
        f.AuthenticationFailed,
    ),
]


@pytest.mark.parametrize(("told", "call", "expected"), MEASURED)
def test_every_measured_error_is_one_class(
    told: dict[str, Any], call: dict[str, Any] | None, expected: type
) -> None:
    failure = classify(error(**told).data, None if call is None else call_failure(**call).data)
    assert type(failure) is expected
    assert failure.raw


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"kind": "authorization"}, f.AuthenticationFailed),
        ({"kind": "policy"}, f.PolicyViolation),
        ({"kind": "quota"}, f.QuotaExhausted),
        ({"kind": "context_limit"}, f.ContextExhausted),
        ({"kind": "a_kind_of_a_new_release"}, f.AgentFailed),
        ({"statusCode": 529}, f.Unavailable),
        ({"statusCode": 409}, f.Unavailable),
        ({"errorCode": "model_overloaded"}, f.Unavailable),
        ({"message": "prompt is too long: 210000 tokens", "statusCode": 400}, f.ContextExhausted),
        ({"message": "Your credit balance is too low", "statusCode": 400}, f.QuotaExhausted),
        # Words are believed only where nothing else tells.
        ({"message": "prompt is too long", "statusCode": 404}, f.AgentFailed),
        ({"message": '{"error": {"code": "insufficient_quota"}}'}, f.QuotaExhausted),
        ({"message": '{"code": "context_length_exceeded"}'}, f.ContextExhausted),
        ({"message": '{"error": "no object"}'}, f.AgentFailed),
    ],
)
def test_every_documented_error_is_one_class(told: dict[str, Any], expected: type) -> None:
    assert type(classify(error(**told).data)) is expected


def test_how_long_to_wait_is_what_the_door_has_seen() -> None:
    failure = classify(error("rate_limit").data, None, UpstreamFailure(429, "Slow", 90.0))
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 90
    assert failure.raw == "x\nSlow"


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (None, "ConnectError: refused", f.Unavailable),
        (503, "Down", f.Unavailable),
        (401, "Bad credentials", f.AuthenticationFailed),
        (429, '{"error": {"code": "quota_exceeded"}}', f.QuotaExhausted),
        (404, "Not found", f.AgentFailed),
    ],
)
def test_an_answer_that_copilot_says_nothing_of(
    status: int | None, words: str, expected: type
) -> None:
    failure = classify_upstream(UpstreamFailure(status, words))
    assert type(failure) is expected
    assert failure.raw == words


def test_no_error_at_all() -> None:
    failure = classify(None)
    assert isinstance(failure, f.AgentFailed)
    assert failure.raw


def test_what_is_unknown_is_passed_over() -> None:
    reader = TurnReader(WORKSPACE)
    for one in (
        event("some.thing.new", a=1),
        event("model.thing"),
        event("abort", reason="user_initiated"),
    ):
        assert read(one, reader=reader) == []
        assert reader.trouble(one) is None


@given(st.text(), st.text(max_size=20), st.one_of(st.none(), st.integers()))
def test_no_error_is_too_strange(words: str, kind: str, status: int | None) -> None:
    more = {} if status is None else {"statusCode": status}
    failure = classify(error(kind, words, **more).data)
    assert isinstance(failure, f.AgentFailure)
