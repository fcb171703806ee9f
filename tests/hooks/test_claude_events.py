"""Claude Code's messages and the ends of its turns, as the SDK types them."""

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
    usage_of,
)
from airflow_agent_provider.hooks.claude_events import (
    TurnReader,
    classify,
    is_heeded,
    is_piece,
    trouble,
)
from airflow_agent_provider.sandbox.door import UpstreamFailure

NAMES = {"uuid": "u", "session_id": "s"}


def message(**wire: Any) -> Any:
    """Return the message as the SDK makes it from the wire."""
    from claude_agent_sdk._internal.message_parser import parse_message

    return parse_message({**NAMES, **wire})


def assistant(*blocks: dict[str, Any], model: str = "claude-sonnet-5", **more: Any) -> Any:
    inner = {"id": "m", "model": model, "content": list(blocks), "usage": {"output_tokens": 1}}
    return message(type="assistant", message=inner, **more)


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def call(name: str, id: str = "c", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def returned(content: Any, id: str = "c", failed: bool | None = None) -> Any:
    block = {"type": "tool_result", "tool_use_id": id, "content": content, "is_error": failed}
    return message(type="user", message={"content": [block]})


def streamed(**event: Any) -> Any:
    return message(type="stream_event", event=event)


def system(subtype: str, **data: Any) -> Any:
    return message(type="system", subtype=subtype, **data)


def ended(subtype: str = "success", **more: Any) -> Any:
    values = {"duration_ms": 1, "duration_api_ms": 1, "num_turns": 1, "is_error": False}
    return message(type="result", subtype=subtype, **{**values, **more})


def failed(result: str | None = None, subtype: str = "success", **more: Any) -> Any:
    return ended(subtype, is_error=True, result=result, **more)


def fresh(spent: float = 0.0, price: float | None = None) -> TurnReader:
    def estimate(model: str | None, usage: Usage) -> float | None:
        return None if price is None else price * usage.total_tokens

    return TurnReader(spent, estimate)


def read(*messages: Any, reader: TurnReader | None = None) -> list[AgentEvent]:
    reader = reader or fresh()
    return [event for one in messages for event in reader.events(one)]


def test_messages_and_thoughts() -> None:
    reader = fresh()
    thought = {"type": "thinking", "thinking": " First.\n", "signature": "x"}
    events = read(
        assistant(thought, {**thought, "thinking": ""}, text("One.")),
        assistant(text("Two.")),
        reader=reader,
    )
    assert events == [
        AgentEvent(EventKind.THOUGHT, "First."),
        AgentEvent(EventKind.MESSAGE, "One."),
        AgentEvent(EventKind.MESSAGE, "Two."),
    ]
    assert (reader.message, reader.model) == ("Two.", "claude-sonnet-5")
    read(ended(result="The end."), reader=reader)
    assert reader.message == "The end."


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "words", "paths"),
    [
        ("Bash", {"command": "make"}, ToolKind.EXECUTE, "make", None),
        ("Read", {"file_path": "/w/a"}, ToolKind.READ, "/w/a", ["/w/a"]),
        ("Edit", {"file_path": "/w/a"}, ToolKind.EDIT, "/w/a", ["/w/a"]),
        ("Write", {"file_path": "/w/a"}, ToolKind.EDIT, "/w/a", ["/w/a"]),
        ("NotebookEdit", {"notebook_path": "/w/n"}, ToolKind.EDIT, "/w/n", ["/w/n"]),
        ("Glob", {"pattern": "*.py"}, ToolKind.SEARCH, "*.py", None),
        ("Grep", {"pattern": "x", "path": "/w"}, ToolKind.SEARCH, "x", None),
        ("WebFetch", {"url": "https://a"}, ToolKind.FETCH, "https://a", None),
        ("mcp__server__tool", {"a": 1}, ToolKind.OTHER, "mcp__server__tool", None),
        ("Write", {}, ToolKind.EDIT, "Write", None),
    ],
)
def test_tools_by_what_they_do(
    name: str, arguments: dict[str, Any], kind: ToolKind, words: str, paths: list[str] | None
) -> None:
    begun, done = read(assistant(call(name, **arguments)), returned("ok"))
    assert (begun.kind, begun.status) == (EventKind.TOOL_CALL, ToolStatus.IN_PROGRESS)
    assert (done.kind, done.status) == (EventKind.TOOL_CALL_UPDATE, ToolStatus.COMPLETED)
    for event in (begun, done):
        assert (event.tool, event.text, event.call_id) == (kind, words, "c")
        assert event.data.get("paths") == paths


@pytest.mark.parametrize(
    ("content", "is_error", "code", "output"),
    [
        ("out", None, 0, "out"),
        ([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], False,
         0, "a\nb"),
        ("Exit code 3\nout", True, 3, "Exit code 3\nout"),
        ("The user doesn't want to proceed", True, None, "The user doesn't want to proceed"),
        ("x" * 10_000 + "the error", True, None, "x" * 3991 + "the error"),
        (None, None, 0, None),
    ],
)  # fmt: skip
def test_a_commands_end(content: Any, is_error: Any, code: int | None, output: str | None) -> None:
    _, event = read(assistant(call("Bash", command="x")), returned(content, failed=is_error))
    assert event.status is (ToolStatus.FAILED if is_error else ToolStatus.COMPLETED)
    assert event.data.get("exit_code") == code
    assert event.data.get("output") == output


def test_a_result_without_its_call_is_passed_over() -> None:
    assert read(returned("x", id="unknown")) == []


def test_only_failed_tools_tell_what_they_read() -> None:
    _, good = read(assistant(call("Read", file_path="/w/a")), returned("all of it"))
    _, bad = read(assistant(call("Read", file_path="/w/a")), returned("not there", failed=True))
    assert "output" not in good.data
    assert bad.data["output"] == "not there"


def test_the_structured_answer_is_a_message_and_no_tool() -> None:
    reader = fresh()
    wrong = call("StructuredOutput", id="1", approved="no")
    right = call("StructuredOutput", id="2", approved=True)
    events = read(
        assistant(wrong),
        returned("must be boolean", id="1", failed=True),
        assistant(right),
        returned("Structured output provided successfully", id="2"),
        reader=reader,
    )
    assert events == [
        AgentEvent(EventKind.MESSAGE, '{"approved": "no"}'),
        AgentEvent(EventKind.NOTICE, "The answer was refused: must be boolean"),
        AgentEvent(EventKind.MESSAGE, '{"approved": true}'),
    ]
    assert reader.message == '{"approved": true}'


def spent(read: int, cached: int, made: int, written: int) -> dict[str, Any]:
    return {
        "input_tokens": read,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": made,
        "output_tokens": written,
    }


def answer(usage: dict[str, Any], model: str = "claude-sonnet-5") -> list[Any]:
    begun = {"model": model, "usage": {**usage, "output_tokens": 1}}
    return [
        streamed(type="message_start", message=begun),
        streamed(type="content_block_delta", delta={"type": "text_delta", "text": "x"}),
        streamed(type="message_delta", usage={"output_tokens": usage["output_tokens"]}),
        streamed(type="message_stop"),
    ]


def test_usage_is_told_by_each_answer_and_settled_at_the_end() -> None:
    reader = fresh(spent=1.0, price=0.01)
    events = read(
        *answer(spent(100, 30, 20, 7)),
        *answer(spent(10, 150, 0, 5)),
        ended(usage=spent(110, 180, 20, 12), total_cost_usd=5.0),
        reader=reader,
    )
    told = [usage_of(event) for event in events]
    assert told[:2] == [
        Usage(150, 30, 7, cost=pytest.approx(1.57)),
        Usage(160, 150, 5, cost=pytest.approx(1.65)),
    ]
    assert told[2] == Usage(cost=pytest.approx(0.78))
    assert reader.usage == Usage(310, 180, 12, cost=pytest.approx(4.0))
    assert reader.spent == 5.0
    following = fresh(reader.spent)
    read(*answer(spent(1, 0, 0, 1)), ended(total_cost_usd=5.25), reader=following)
    assert following.usage.cost == pytest.approx(0.25)


def test_a_sum_that_was_begun_anew() -> None:
    reader = fresh(spent=5.0, price=0.01)
    read(*answer(spent(100, 0, 0, 7)), ended(total_cost_usd=0.5), reader=reader)
    assert reader.usage.cost == pytest.approx(0.5)
    assert reader.spent == 0.5


def test_what_was_not_streamed_is_in_the_sum() -> None:
    reader = fresh()
    details = {"output_tokens_details": {"thinking_tokens": 4}}
    events = read(
        *answer(spent(100, 0, 0, 7)),
        ended(usage={**spent(300, 50, 0, 20), **details}, total_cost_usd=0.5),
        reader=reader,
    )
    assert reader.usage == Usage(350, 50, 20, 4, 0.5)
    assert sum((usage_of(event) for event in events), Usage()) == reader.usage


def test_a_cost_that_is_right_is_not_told_twice() -> None:
    reader = fresh(price=0.01)
    events = read(
        *answer(spent(100, 0, 0, 7)),
        ended(usage=spent(100, 0, 0, 7), total_cost_usd=1.07 + 1e-12),
        reader=reader,
    )
    assert len(events) == 1
    assert reader.usage.cost == pytest.approx(1.07)


def test_a_turn_that_asked_nothing_has_no_cost() -> None:
    reader = fresh()
    assert read(ended(usage=spent(0, 0, 0, 0), total_cost_usd=0), reader=reader) == []
    assert reader.usage == Usage()
    assert read(ended(usage=None, total_cost_usd=None), reader=reader) == []


def test_notices() -> None:
    denied = {"tool_name": "Bash", "tool_use_id": "c", "tool_input": {"command": "rm -rf /"}}
    retry = {"attempt": 1, "max_retries": 2, "retry_delay_ms": 500}
    events = read(
        system("api_retry", **retry, error="overloaded", error_status=529),
        system("api_retry", **retry, error="unknown", error_status=None),
        system("compact_boundary"),
        system("informational", content="Mind the gap."),
        system("informational", content=""),
        system("a_kind_of_a_new_release"),
        ended(permission_denials=[denied]),
    )
    assert {event.kind for event in events} == {EventKind.NOTICE}
    assert [event.text for event in events] == [
        "Claude Code tries again, 1 of 2: overloaded (HTTP 529)",
        "Claude Code tries again, 1 of 2: unknown",
        "Claude Code summarized the session to make room in it",
        "Mind the gap.",
        "Claude Code refused Bash: rm -rf /",
    ]


def test_what_claude_code_says_in_the_models_place_is_no_message() -> None:
    reader = fresh()
    said = assistant(text("API Error"), model="<synthetic>", error="rate_limit")
    assert read(said, reader=reader) == []
    assert (reader.error, reader.message, reader.model) == ("rate_limit", "", None)


def test_the_model_is_known_from_the_start() -> None:
    reader = fresh()
    assert read(system("init", model="claude-opus-5"), reader=reader) == []
    assert reader.model == "claude-opus-5"


@pytest.mark.parametrize(
    ("told", "heeded"),
    [
        (assistant(text("x")), True),
        (streamed(type="ping"), True),
        (system("api_retry"), True),
        (system("thinking_tokens"), True),
        (system("status", status="requesting"), False),
        (system("ui_invalidate"), False),
        (system("a_kind_of_a_new_release"), False),
        (ended(), True),
    ],
)
def test_the_clock_is_no_sign_of_life(told: Any, heeded: bool) -> None:
    assert is_heeded(told) is heeded


def test_only_pieces_of_an_answer_may_be_passed_over() -> None:
    begun, piece, priced, over = answer(spent(1, 0, 0, 1))
    assert [is_piece(one) for one in (begun, piece, priced, over)] == [False, True, False, False]
    assert not is_piece(assistant(text("x")))


@pytest.mark.parametrize(
    ("reason", "interrupted"),
    [("aborted_streaming", True), ("aborted_tools", True), ("completed", False), (None, False)],
)
def test_an_interrupted_turn(reason: str | None, interrupted: bool) -> None:
    reader = fresh()
    assert not reader.interrupted
    read(failed(subtype="error_during_execution", terminal_reason=reason), reader=reader)
    assert reader.interrupted is interrupted


API = {"terminal_reason": "api_error", "stop_reason": "stop_sequence"}


@pytest.mark.parametrize(
    ("result", "kind", "expected"),
    [
        (failed("Invalid API key", api_error_status=401, **API), "authentication_failed",
         f.AuthenticationFailed),
        (failed("API Error: 403 No access", api_error_status=403, **API), "",
         f.AuthenticationFailed),
        (failed("Not logged in", **API), "authentication_failed", f.AuthenticationFailed),
        (failed("There's an issue with the model", api_error_status=404, **API), "model_not_found",
         f.AgentFailed),
        (failed("API Error: 400 bad thing", api_error_status=400, **API), "unknown", f.AgentFailed),
        (failed("Credit balance is too low", api_error_status=400, **API), "billing_error",
         f.QuotaExhausted),
        (failed("API Error: 402 billing", api_error_status=402, **API), "unknown",
         f.QuotaExhausted),
        (failed("API Error: Request rejected (429) · You have reached your specified API usage "
                "limits. You will regain access on 2026-12-01 at 00:00 UTC.",
                api_error_status=429, **API), "rate_limit", f.QuotaExhausted),
        (failed("Request rejected (429) · Slow down", api_error_status=429, **API), "rate_limit",
         f.RateLimited),
        (failed("API Error: 408", api_error_status=408, **API), "unknown", f.Unavailable),
        (failed("API Error: 500 Oops.", api_error_status=500, **API), "server_error",
         f.Unavailable),
        (failed("API Error: 529 Overloaded.", api_error_status=529, **API), "server_error",
         f.Unavailable),
        (failed("API Error: Connection dropped (ECONNRESET).", **API), "server_error",
         f.Unavailable),
        (failed("Prompt is too long", api_error_status=400, terminal_reason="prompt_too_long"),
         "invalid_request", f.ContextExhausted),
        (failed("Request too large (max 32MB).", api_error_status=413,
                terminal_reason="image_error"), "invalid_request", f.ContextExhausted),
        (failed("API Error: 413", api_error_status=413, **API), "", f.ContextExhausted),
        (failed("API Error: The model has reached its context window limit.", **API),
         "max_output_tokens", f.ContextExhausted),
        (failed("API Error: Claude's response exceeded the 64000 output token maximum.", **API),
         "max_output_tokens", f.AgentFailed),
        (failed("API Error: Sonnet 5 can't help with this.", terminal_reason="api_error",
                stop_reason="refusal"), "invalid_request", f.PolicyViolation),
        (failed(subtype="error_max_turns", errors=["Reached maximum number of turns (1)"]), "",
         f.AgentFailed),
        (failed(subtype="error_max_budget_usd", errors=["Reached maximum budget"]), "",
         f.BudgetExceeded),
        (failed(subtype="error_max_structured_output_retries", errors=["x"]), "", f.OutputInvalid),
        (failed(subtype="error_during_execution", errors=["[ede_diagnostic] x"]), "",
         f.AgentFailed),
        (failed(subtype="error_of_a_new_release"), "", f.AgentFailed),
    ],
)  # fmt: skip
def test_every_end_is_one_class(result: Any, kind: str, expected: type) -> None:
    failure = classify(result, kind)
    assert type(failure) is expected
    assert failure.raw
    assert (result.result or "") in failure.raw


def test_the_api_says_more_than_claude_code() -> None:
    upstream = UpstreamFailure(429, '{"error": {"message": "Slow down"}}', 90.0)
    failure = classify(failed("Rejected (429)", api_error_status=429, **API), "", upstream)
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 90.0
    assert failure.raw == 'Rejected (429)\n{"error": {"message": "Slow down"}}'


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (UpstreamFailure(None, "ConnectError: refused"), f.Unavailable),
        (UpstreamFailure(503, "Down"), f.Unavailable),
        (UpstreamFailure(401, "No"), f.AuthenticationFailed),
        (UpstreamFailure(400, "your specified API usage limits"), f.QuotaExhausted),
    ],
)
def test_what_claude_code_does_not_tell_the_api_did(
    upstream: UpstreamFailure, expected: type
) -> None:
    failure = classify(failed(subtype="error_during_execution"), "", upstream)
    assert type(failure) is expected
    assert upstream.words in (failure.raw or "")


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (429, "rate_limit", f.RateLimited),
        (529, "overloaded", f.Unavailable),
        (None, "unknown", f.Unavailable),
        # It tries again although no retry can help; that it fails at last says so.
        (401, "authentication_failed", f.Unavailable),
        (400, "invalid_request", f.Unavailable),
    ],
)
def test_trouble_is_what_claude_code_repeats(status: int | None, kind: str, expected: type) -> None:
    retry = system("api_retry", error_status=status, error=kind, attempt=1, max_retries=2)
    assert type(trouble(retry)) is expected


def test_nothing_else_is_trouble() -> None:
    for one in (assistant(text("x")), system("init"), ended(), streamed(type="ping")):
        assert trouble(one) is None


UPSTREAMS = st.builds(UpstreamFailure, st.none() | st.integers(), st.text())


@given(
    st.text(),
    st.text(max_size=20),
    st.one_of(st.none(), st.integers(0, 999)),
    st.one_of(st.none(), st.text(max_size=20)),
    st.one_of(
        st.none(), st.builds(UpstreamFailure, st.one_of(st.none(), st.integers()), st.text())
    ),
)
def test_no_end_is_too_strange(
    words: str, kind: str, status: Any, reason: Any, upstream: Any
) -> None:
    result = failed(words, api_error_status=status, terminal_reason=reason)
    assert isinstance(classify(result, kind, upstream), f.AgentFailure)
