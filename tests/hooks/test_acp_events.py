"""The Agent Client Protocol's updates and errors, as the official library reads them."""

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
from airflow_agent_provider.hooks.acp_events import Spent, TurnReader, classify, refused


def update(name: str, /, **values: Any) -> Any:
    """Return the update as the library makes it from the wire."""
    from acp.schema import SessionNotification

    told = {"sessionUpdate": name, **values}
    return SessionNotification.model_validate({"sessionId": "s", "update": told}).update


def chunk(text: str, kind: str = "agent_message_chunk", **more: Any) -> Any:
    return update(kind, content={"type": "text", "text": text}, **more)


def call(name: str = "tool_call", /, **values: Any) -> Any:
    return update(name, **{"toolCallId": "c", "title": "A tool", **values})


def answer(**values: Any) -> Any:
    from acp.schema import PromptResponse

    return PromptResponse.model_validate({"stopReason": "end_turn", **values})


def fresh() -> TurnReader:
    return TurnReader(Spent(Usage(), 0.0))


def read(*updates: Any, reader: TurnReader | None = None) -> list[AgentEvent]:
    reader = reader or fresh()
    events = [event for one in updates for event in reader.events(one)]
    return [*events, *reader.end(answer())]


def test_chunks_of_a_message_are_one_event() -> None:
    reader = fresh()
    events = read(
        chunk("I ", "agent_thought_chunk"),
        chunk("think.", "agent_thought_chunk"),
        chunk("It is"),
        chunk(" done."),
        reader=reader,
    )
    assert events == [
        AgentEvent(EventKind.THOUGHT, "I think."),
        AgentEvent(EventKind.MESSAGE, "It is done."),
    ]
    assert (reader.message, reader.stop_reason) == ("It is done.", "end_turn")


def test_a_new_message_begins_after_a_tool_and_with_a_new_id() -> None:
    reader = fresh()
    events = read(
        chunk("a"),
        call(kind="read", status="completed"),
        chunk("b", messageId="1"),
        chunk("c", messageId="1"),
        chunk("d", messageId="2"),
        chunk("  "),
        chunk("", messageId="3"),
        reader=reader,
    )
    texts = [event.text for event in events if event.kind is EventKind.MESSAGE]
    assert texts == ["a", "bc", "d  "]
    # What an agent says between its tools is no answer; what it says last is.
    assert reader.message == "d  "


def test_blank_chunks_are_no_message() -> None:
    reader = fresh()
    assert read(chunk("The answer."), call(status="completed"), chunk(" \n"), reader=reader)
    assert reader.message == "The answer."


def test_what_is_no_text_is_named() -> None:
    image = {"type": "image", "data": "eA==", "mimeType": "image/png"}
    (event,) = read(update("agent_message_chunk", content=image))
    assert event.text == "[image]"


def test_a_call_is_told_once_and_its_end_once() -> None:
    """As OpenCode tells its calls: pending without anything, then again and again."""
    events = read(
        call(title="write", kind="edit", status="pending", locations=[], rawInput={}),
        call("tool_call_update", status="in_progress", locations=[{"path": "/w/a"}]),
        call("tool_call_update", status="in_progress", title="a"),
        call("tool_call_update", status="completed", title="a"),
    )
    assert events == [
        AgentEvent(
            EventKind.TOOL_CALL,
            "A tool",
            tool=ToolKind.EDIT,
            status=ToolStatus.IN_PROGRESS,
            call_id="c",
            data={"paths": ["/w/a"]},
        ),
        AgentEvent(
            EventKind.TOOL_CALL_UPDATE,
            "a",
            tool=ToolKind.EDIT,
            status=ToolStatus.COMPLETED,
            call_id="c",
            data={"paths": ["/w/a"]},
        ),
    ]


def test_a_call_that_is_only_known_by_its_end() -> None:
    """As Qwen Code tells those that its own mode refuses."""
    text = {"type": "content", "content": {"type": "text", "text": "Plan mode is active."}}
    events = read(call("tool_call_update", title=None, status="failed", content=[text]))
    assert [(e.kind, e.status) for e in events] == [
        (EventKind.TOOL_CALL, ToolStatus.IN_PROGRESS),
        (EventKind.TOOL_CALL_UPDATE, ToolStatus.FAILED),
    ]
    assert events[1].data["output"] == "Plan mode is active."


QWEN = "Command: make\nDirectory: (root)\nOutput: out\nError: (none)\nExit Code: 3\nSignal: 0"


@pytest.mark.parametrize(
    ("told", "code", "status"),
    [
        ({"rawOutput": {"exit_code": 0}}, 0, ToolStatus.COMPLETED),
        ({"rawOutput": {"exit_code": 2}}, 2, ToolStatus.FAILED),
        ({"rawOutput": {"output": "", "metadata": {"exit": 3}}}, 3, ToolStatus.FAILED),
        (
            {"content": [{"type": "content", "content": {"type": "text", "text": QWEN}}]},
            3,
            ToolStatus.FAILED,
        ),
        ({"rawOutput": "Exit Code: 0"}, 0, ToolStatus.COMPLETED),
        ({"rawOutput": {"metadata": "odd"}}, None, ToolStatus.COMPLETED),
        ({"rawOutput": None}, None, ToolStatus.COMPLETED),
    ],
)
def test_a_commands_end(told: dict[str, Any], code: int | None, status: ToolStatus) -> None:
    end = read(call(kind="execute", status="completed", **told))[-1]
    assert end.data.get("exit_code") == code
    assert end.status is status
    assert "paths" not in end.data


def test_only_a_command_has_an_exit_code() -> None:
    text = {"type": "content", "content": {"type": "text", "text": "Exit Code: 1"}}
    assert read(call(kind="read", status="completed", content=[text]))[-1].status is (
        ToolStatus.COMPLETED
    )


def test_a_long_output_is_cut_to_its_end() -> None:
    output = "x" * 10_000 + "the error"
    data = read(call(kind="execute", status="failed", rawOutput=output))[-1].data
    assert data["output"].endswith("the error")
    assert len(data["output"]) == 4000


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({"locations": [{"path": "/w/a"}, {"path": "/w/b"}, {"path": "/w/a"}]}, ["/w/a", "/w/b"]),
        ({"content": [{"type": "diff", "path": "a", "newText": "x"}]}, ["a"]),
        ({"rawInput": {"file_path": "/w/a"}}, ["/w/a"]),
        ({"rawInput": {"file_path": 1}}, None),
        ({"rawInput": "/w/a"}, None),
        ({}, None),
    ],
)
def test_the_files_of_a_call(values: dict[str, Any], paths: list[str] | None) -> None:
    (event,) = read(call(kind="edit", status="in_progress", **values))
    assert event.data.get("paths") == paths


@pytest.mark.parametrize("kind", ["switch_mode", "other", None])
def test_kinds_that_we_have_no_word_for(kind: str | None) -> None:
    (event,) = read(call(kind=kind, status="in_progress"))
    assert event.tool is ToolKind.OTHER


def test_a_request_for_permission_tells_a_call() -> None:
    from acp.schema import ToolCallUpdate

    asked = ToolCallUpdate.model_validate(
        {"toolCallId": "c", "kind": "edit", "title": "Write a", "locations": [{"path": "/w/a"}]}
    )
    reader = fresh()
    (told,) = reader.asked(asked, None)
    assert (told.kind, told.text, told.data) == (
        EventKind.TOOL_CALL,
        "Write a",
        {"paths": ["/w/a"]},
    )
    assert list(reader.asked(asked, None)) == []
    # The end of a call may say no more than that.
    (end,) = read(call("tool_call_update", title=None, status="completed"), reader=reader)
    assert (end.text, end.tool) == ("Write a", ToolKind.EDIT)


def test_a_refusal_is_a_notice() -> None:
    from acp.schema import ToolCallUpdate

    asked = ToolCallUpdate.model_validate({"toolCallId": "c", "title": "Write a"})
    _, notice = fresh().asked(asked, "the step is read only")
    assert notice == AgentEvent(EventKind.NOTICE, "refused: Write a: the step is read only")


def test_plans() -> None:
    entries = [{"content": "read", "priority": "high", "status": "completed"}]
    assert read(update("plan", entries=entries)) == [
        AgentEvent(EventKind.PLAN, data={"entries": [{"text": "read", "status": "completed"}]})
    ]


def test_what_matters_to_nobody_is_passed_over() -> None:
    assert (
        read(
            update("available_commands_update", availableCommands=[]),
            update("current_mode_update", currentModeId="plan"),
            chunk("what the user said", "user_message_chunk"),
            object(),
        )
        == []
    )


def usage(read_: int, written: int, cached: int = 0, thought: int = 0, *, apart: bool) -> dict:
    more = cached + thought if apart else 0
    return {
        "inputTokens": read_,
        "outputTokens": written,
        "cachedReadTokens": cached,
        "thoughtTokens": thought,
        "totalTokens": read_ + written + more,
    }


def test_usage_of_each_answer_of_the_model() -> None:
    """As Qwen Code tells it, in chunks without a text; its turn's end has none."""
    reader = fresh()
    first = chunk("", _meta={"usage": usage(100, 10, 40, 2, apart=False)})
    second = chunk("", _meta={"usage": usage(120, 20, 90, 0, apart=False)})
    events = read(first, call(status="completed"), second, chunk("Done."), reader=reader)
    spent = [dict(e.data) for e in events if e.kind is EventKind.USAGE]
    assert [values["total_tokens"] for values in spent] == [110, 140]
    assert reader.usage == Usage(220, 130, 30, 2)


def test_the_sessions_sum_at_a_turns_end_is_taken_since_the_turn_before() -> None:
    spent = Spent(Usage(), 0.0)
    first = TurnReader(spent)
    (event,) = first.end(answer(usage=usage(60, 8, 40, 2, apart=True)))
    # Counted apart, the cached and the thought ones are added: they were read and written too.
    assert first.usage == Usage(100, 40, 10, 2)
    assert event.data["input_tokens"] == 100
    second = TurnReader(spent)
    list(second.end(answer(usage=usage(90, 18, 60, 2, apart=True))))
    assert second.usage == Usage(50, 20, 10, 0)


def test_of_a_resumed_session_only_what_comes_after_its_first_turn_is_known() -> None:
    spent = Spent()
    first = TurnReader(spent)
    assert list(first.end(answer(usage=usage(1000, 100, apart=True)))) == []
    assert first.usage == Usage()
    second = TurnReader(spent)
    list(second.end(answer(usage=usage(1010, 101, apart=True))))
    assert second.usage == Usage(10, 0, 1)


def test_a_sum_that_is_none_is_passed_over() -> None:
    reader = TurnReader(Spent(Usage(), 0.0), sums=False)
    assert list(reader.end(answer(usage=usage(60, 8, apart=True)))) == []
    assert reader.usage == Usage()


def test_costs_are_sums_in_dollars() -> None:
    def cost(amount: float, currency: str = "USD") -> Any:
        return update(
            "usage_update", used=10, size=100, cost={"amount": amount, "currency": currency}
        )

    reader = fresh()
    events = read(cost(0.5), cost(2, "EUR"), cost(0.75), reader=reader)
    assert [event.data["cost"] for event in events] == [0.5, 0.25]
    assert reader.usage.cost == 0.75
    assert read(update("usage_update", used=10, size=100)) == []
    resumed = TurnReader(Spent())
    assert read(cost(5), cost(5.5), reader=resumed)[0].data["cost"] == 0.5


@pytest.mark.parametrize(
    ("code", "message", "data", "expected"),
    [
        # Qwen Code
        (-32603, "Internal error", {"details": "401 Incorrect API key"}, f.AuthenticationFailed),
        (-32603, "Internal error", {"details": "500 Oops"}, f.Unavailable),
        (429, "Rate limit exceeded. Try again later.", None, f.RateLimited),
        (
            -32603,
            "Internal error",
            {"details": "Model stream ended without a finish reason."},
            f.Unavailable,
        ),
        # OpenCode
        (
            -32603,
            "Internal error: Incorrect API key",
            {"service": "session", "errorName": "APIError"},
            f.AuthenticationFailed,
        ),
        # The protocol
        (-32000, "Authentication required", None, f.AuthenticationFailed),
        (-32002, "Resource not found", {"uri": "x"}, f.AgentFailed),
        (-32603, "Internal error", "a text", f.AgentFailed),
        (-32603, "", None, f.AgentFailed),
    ],
)
def test_every_error_is_one_class(code: int, message: str, data: Any, expected: type) -> None:
    failure = classify(code, message, data)
    assert type(failure) is expected
    if message:
        assert failure.raw


@given(
    st.integers(), st.text(), st.one_of(st.none(), st.text(), st.dictionaries(st.text(), st.text()))
)
def test_no_error_is_too_strange(code: int, message: str, data: Any) -> None:
    assert isinstance(classify(code, message, data), f.AgentFailure)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", None),
        ("cancelled", None),
        ("refusal", f.PolicyViolation),
        ("max_tokens", f.AgentFailed),
        ("max_turn_requests", f.AgentFailed),
        ("a reason of a later protocol", f.AgentFailed),
    ],
)
def test_how_a_turn_ends(reason: str, expected: type | None) -> None:
    failure = refused(reason)
    assert (failure and type(failure)) is expected
