"""What Cursor's program on the worker tells, as the SDK types it."""

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
from airflow_agent_provider.hooks.cursor_events import (
    Trouble,
    TurnReader,
    is_heartbeat,
    trouble,
)


def event(**value: Any) -> Any:
    """Return the event as the SDK makes it from the wire."""
    from cursor_sdk.types import RunStreamEvent

    return RunStreamEvent.from_json(value)


def message(kind: str, **values: Any) -> Any:
    return event(sdkMessage={"type": kind, "agentId": "a", "runId": "r", **values})


def said(text: str) -> Any:
    content = [{"type": "text", "text": text}]
    return message("assistant", message={"role": "assistant", "content": content})


def called(status: str = "completed", name: str = "shell", **values: Any) -> Any:
    return message("tool_call", call_id="c", name=name, status=status, **values)


def ended(status: str = "FINISHED", **values: Any) -> Any:
    return event(result={"result": {"status": f"RUN_LIFECYCLE_STATUS_{status}", **values}})


def read(*told: Any, reader: TurnReader | None = None) -> list[AgentEvent]:
    reader = reader or TurnReader()
    return [made for one in told for made in reader.events(one)]


def test_pieces_of_text_are_one_message_up_to_what_the_agent_does_next() -> None:
    reader = TurnReader()
    events = read(
        message("thinking", text="Let me "),
        message("thinking", text="see."),
        said("I look "),
        said("first."),
        called("running", args={"command": "ls"}),
        called(args={"command": "ls"}, result={"status": "success", "value": {"exitCode": 0}}),
        said("Done."),
        ended(result="I look first.Done."),
        reader=reader,
    )
    assert [(e.kind, e.text) for e in events] == [
        (EventKind.THOUGHT, "Let me see."),
        (EventKind.MESSAGE, "I look first."),
        (EventKind.TOOL_CALL, "ls"),
        (EventKind.TOOL_CALL_UPDATE, "ls"),
        (EventKind.MESSAGE, "Done."),
    ]
    # The answer is what stands after all the work, not the comments on it.
    assert (reader.message, reader.status) == ("Done.", "finished")


@given(st.lists(st.text(max_size=5), max_size=6))
def test_no_character_is_lost(pieces: list[str]) -> None:
    events = read(*map(said, pieces), ended())
    whole = "".join(pieces)
    assert "".join(e.text for e in events) == (whole if whole.strip() else "")


def test_where_nothing_was_streamed_the_result_is_the_message() -> None:
    reader = TurnReader()
    read(ended(result="All of it."), reader=reader)
    assert reader.message == "All of it."


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "text", "data"),
    [
        ("shell", {"command": "ls -l"}, ToolKind.EXECUTE, "ls -l", {}),
        ("edit", {"path": "/w/a"}, ToolKind.EDIT, "/w/a", {"paths": ["/w/a"]}),
        ("delete", {"path": "/w/a"}, ToolKind.DELETE, "/w/a", {"paths": ["/w/a"]}),
        ("read", {"path": "/w/a"}, ToolKind.READ, "/w/a", {"paths": ["/w/a"]}),
        ("grep", {"pattern": "x", "path": "/w"}, ToolKind.SEARCH, "/w", {"paths": ["/w"]}),
        ("glob", {"globPattern": "*.py"}, ToolKind.SEARCH, "*.py", {}),
        ("webSearch", {"searchTerm": "x"}, ToolKind.FETCH, "x", {}),
        ("task", {"description": "look"}, ToolKind.OTHER, "look", {}),
        ("somethingNew", {}, ToolKind.OTHER, "somethingNew", {}),
        ("shell", None, ToolKind.EXECUTE, "shell", {}),
    ],
)
def test_each_tool(
    name: str, arguments: Any, kind: ToolKind, text: str, data: dict[str, Any]
) -> None:
    (made,) = read(called("running", name=name, args=arguments))
    assert made == AgentEvent(
        EventKind.TOOL_CALL,
        text,
        tool=kind,
        status=ToolStatus.IN_PROGRESS,
        call_id="c",
        data=data,
    )


@pytest.mark.parametrize(
    ("status", "result", "expected", "data"),
    [
        ("completed", {"status": "success", "value": {"exitCode": 0}}, ToolStatus.COMPLETED,
         {"exit_code": 0}),
        ("completed", {"status": "success", "value": {"exitCode": 3, "stdout": "o", "stderr": "e"}},
         ToolStatus.FAILED, {"exit_code": 3, "output": "oe"}),
        ("completed", {"status": "success", "value": {"linesAdded": 1}}, ToolStatus.COMPLETED, {}),
        ("completed", {"status": "error", "error": {"message": "no"}}, ToolStatus.FAILED,
         {"output": "no"}),
        ("completed", {"status": "rejected", "error": "why"}, ToolStatus.FAILED, {"output": "why"}),
        ("error", None, ToolStatus.FAILED, {}),
        ("completed", None, ToolStatus.COMPLETED, {}),
    ],
)  # fmt: skip
def test_how_a_call_ends(
    status: str, result: Any, expected: ToolStatus, data: dict[str, Any]
) -> None:
    (made,) = read(called(status, args={"command": "x"}, result=result))
    assert (made.kind, made.status, dict(made.data)) == (
        EventKind.TOOL_CALL_UPDATE, expected, data,
    )  # fmt: skip


def test_only_the_end_of_an_output_is_kept() -> None:
    value = {"exitCode": 1, "stdout": "x" * 10_000 + "the error"}
    (made,) = read(called(args={}, result={"status": "success", "value": value}))
    assert len(made.data["output"]) == 4000
    assert made.data["output"].endswith("the error")


def test_a_call_that_is_told_twice_begins_once() -> None:
    events = read(*[called("running", args={"command": "ls"})] * 2)
    assert len(events) == 1


def test_a_list_of_things_to_do_is_a_plan() -> None:
    todos = [
        {"content": "read", "status": "TODO_STATUS_COMPLETED"},
        {"content": "write", "status": "inProgress"},
        {"content": "test"},
    ]
    events = read(
        called("running", name="updateTodos", args={"todos": todos}),
        called(name="updateTodos", args={"todos": todos}, result={"status": "success"}),
    )
    assert events == [
        AgentEvent(
            EventKind.PLAN,
            data={
                "entries": [
                    {"text": "read", "status": "completed"},
                    {"text": "write", "status": "in_progress"},
                    {"text": "test", "status": "pending"},
                ]
            },
        )
    ]


def tokens(**more: int) -> Any:
    usage = {"inputTokens": 100, "outputTokens": 10, "cacheReadTokens": 60, **more}
    return message("usage", usage=usage)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"totalTokens": 110, "reasoningTokens": 4}, Usage(100, 60, 10, 4)),
        # Where the total counts more than input and output, the input was without the cache.
        ({"totalTokens": 170}, Usage(160, 60, 10, 0)),
        ({"totalTokens": 110, "reasoningTokens": 99}, Usage(100, 60, 10, 10)),
    ],
)
def test_tokens(more: dict[str, int], expected: Usage) -> None:
    reader = TurnReader()
    (made,) = read(tokens(**more), reader=reader)
    assert (made.kind, dict(made.data)) == (EventKind.USAGE, expected.to_dict())
    assert reader.usage == expected
    read(tokens(**more), reader=reader)
    assert reader.usage == expected + expected


def test_tokens_that_nobody_counted_are_none() -> None:
    assert read(message("usage", usage={})) == []


@pytest.mark.parametrize("status", ["FINISHED", "CANCELLED", "ERROR", "EXPIRED"])
def test_how_a_run_ends(status: str) -> None:
    reader = TurnReader()
    read(ended(status, errorMessage="[internal] oops"), reader=reader)
    assert (reader.status, reader.error) == (status.lower(), "[internal] oops")


def test_an_error_may_stand_in_the_status_alone() -> None:
    reader = TurnReader()
    read(message("status", status="ERROR", message="[unknown] x"), ended("ERROR"), reader=reader)
    assert reader.error == "[unknown] x"


def test_only_the_bridges_own_sign_is_a_heartbeat() -> None:
    assert is_heartbeat(event(offset="1"))
    assert is_heartbeat(event())
    assert not is_heartbeat(said("x"))
    assert not is_heartbeat(ended())


def test_what_matters_to_nobody_makes_no_event() -> None:
    assert read(event(done={}), message("system"), message("request"), event(step={})) == []


@pytest.mark.parametrize(
    ("failure", "definite", "expected"),
    [
        (f.RateLimited("slow", raw="r"), False, f.RateLimited),
        (f.Unavailable("down", raw="r"), False, f.Unavailable),
        (f.ContextExhausted("long", raw="r"), True, f.ContextExhausted),
        (f.AgentFailed("bad model", raw="r"), True, f.AgentFailed),
        # What Cursor's program holds for passing does not end the step for good.
        (f.AgentFailed("what", raw="r"), False, f.Unavailable),
        (f.AuthenticationFailed("key", raw="r"), False, f.Unavailable),
    ],
)
def test_trouble(failure: f.AgentFailure, definite: bool, expected: type) -> None:
    told = Trouble(failure, definite)
    found = trouble(told)
    assert type(found) is expected
    assert found is not None
    assert found.raw == "r"
    reader = TurnReader()
    (notice,) = read(told, reader=reader)
    assert (notice.kind, "r" in notice.text) == (EventKind.NOTICE, True)
    # The cause stays known, whatever the program says of it in the end.
    read(called("running"), ended("ERROR", errorMessage="stopped"), reader=reader)
    assert reader.trouble is failure
    assert trouble(said("x")) is None
