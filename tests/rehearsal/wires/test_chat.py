"""OpenAI's Chat Completions wire: what is read from a request, and how answers are worded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_agent_provider.rehearsal.conversation import Call, Move
from airflow_agent_provider.rehearsal.script import Fail, Script
from airflow_agent_provider.rehearsal.wires.chat import ChatWire
from airflow_agent_provider.rehearsal.wires.wire import Stream, Whole

WIRE = ChatWire()
TOOLS = [
    {"type": "function", "function": {"name": "bash", "parameters": {"required": ["command"]}}},
    {"type": "custom", "custom": {"name": "apply_patch", "format": {}}},
]
SYSTEM = {
    "role": "system",
    "content": "Be good.\n* Current working directory: /d/run/plan/-1/tree\n",
}
USER = {"role": "user", "content": "Do it.\n\nStep: other of workflow w, run 1\n"}
ACTIONS = [{"run": "a"}, {"write": {"path": "b", "content": ""}}, {"say": "one"}, {"say": "two"}]


def request(*messages: Any, **values: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), "tools": TOOLS, **values}


def read(*messages: Any, **values: Any) -> Any:
    script = Script.model_validate({"steps": {"*": ACTIONS}})
    return WIRE.read(request(*messages, **values), script.actions)


def called(call_id: str, kind: str = "function", name: str = "bash") -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": kind, kind: {"name": name}}],
    }


def result(call_id: str, text: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("messages", "step"),
    [
        ([SYSTEM, USER], "plan"),
        ([{**SYSTEM, "role": "developer"}, USER], "plan"),
        ([{**SYSTEM, "content": parts(SYSTEM["content"])}, USER], "plan"),
        ([USER], "other"),
        # The contract stands in the prompt, whatever the program adds to the message.
        ([{"role": "user", "content": parts("<system-reminder>\nPlan", USER["content"])}], "other"),
        ([{"role": "user", "content": parts(USER["content"], "<system-reminder>\nPlan")}], "other"),
        ([{"role": "user", "content": SYSTEM["content"]}], ""),
        ([{"role": "system", "content": USER["content"]}], ""),
        ([], ""),
    ],
)
def test_the_step_is_found(messages: list[dict[str, Any]], step: str) -> None:
    assert read(*messages).step == step


@pytest.mark.parametrize(
    ("history", "position"),
    [
        ([], 0),
        ([called("call_0_1"), result("call_0_1", "ok")], 1),
        (
            [called("call_0_1"), result("call_0_1", parts("[Tool execution was ", "interrupted]"))],
            0,
        ),
        ([called("call_0_1"), {"role": "user", "content": "go on"}], 0),
        (
            [
                called("call_1_3", "custom", "apply_patch"),
                result("call_1_3", "Failed to apply patch: Error: File already exists: /b"),
            ],
            1,
        ),
        ([{"role": "assistant", "content": "one"}, USER], 3),
        ([{"role": "assistant", "content": parts("one")}, USER], 3),
    ],
)
def test_the_position_follows_from_the_history(history: list[Any], position: int) -> None:
    found = read(SYSTEM, USER, *history)
    assert found.position == position
    assert found.by_shell is (position == 1 and "custom" in json.dumps(history))


def move_of(answer: Any) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """Put an answer together as a program does: its message, finish reason and usage."""
    if isinstance(answer, Whole):
        choice = answer.value["choices"][0]
        return choice["message"], choice["finish_reason"], answer.value.get("usage")
    assert isinstance(answer, Stream)
    *events, end = answer.events
    assert end.encode() == b"data: [DONE]\n\n"
    message: dict[str, Any] = {"role": "", "content": None}
    reason, usage = "", None
    for event in events:
        assert event.data["object"] == "chat.completion.chunk"
        usage = event.data.get("usage", usage)
        for choice in event.data["choices"]:
            reason = choice["finish_reason"] or reason
            take(message, choice["delta"])
    return message, reason, usage


def take(message: dict[str, Any], delta: dict[str, Any]) -> None:
    message["role"] += delta.get("role", "")
    if delta.get("content") is not None:
        message["content"] = (message["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        kind, field = ("custom", "input") if "custom" in call else ("function", "arguments")
        if call["index"] == len(calls):
            begun = {k: v for k, v in call.items() if k != "index"}
            calls.append({**begun, kind: {**call[kind], field: ""}})
        calls[call["index"]][kind][field] += call[kind][field]


MOVES = {
    "text": Move("msg_0_1", text="x" * 100),
    "nothing": Move("msg_0_1"),
    "call": Move("call_0_1", call=Call("bash", {"command": "echo " + "y" * 100})),
    "custom call": Move("call_0_1", call=Call("apply_patch", "*** Begin Patch\n" + "z" * 100)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_an_answer_says_the_same_in_pieces_and_whole(move: Move) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    whole = move_of(WIRE.answer(request(SYSTEM, USER), move))
    assert move_of(WIRE.answer(request(SYSTEM, USER, **options), move)) == whole
    message, reason, usage = whole
    assert reason == ("stop" if move.call is None else "tool_calls")
    assert usage is not None
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    if move.call is None:
        assert message["content"] == move.text
    else:
        (call,) = message["tool_calls"]
        assert call["id"] == move.id
        assert call[call["type"]]["name"] == move.call.name
        told = call[call["type"]].get("input") or json.loads(call["function"]["arguments"])
        assert told == move.call.arguments


def test_a_stream_tells_its_usage_only_if_asked() -> None:
    answer = WIRE.answer(request(SYSTEM, USER, stream=True), MOVES["text"])
    assert move_of(answer)[2] is None


@pytest.mark.parametrize(
    ("fail", "stream", "status", "code", "words"),
    [
        ({"status": 429, "code": "insufficient_quota"}, True, 429, "insufficient_quota", "quota"),
        ({"how": "error", "code": "insufficient_quota"}, True, 429, "insufficient_quota", "quota"),
        (
            {"status": 400, "code": "context_length_exceeded"},
            False,
            400,
            "context_length_exceeded",
            "maximum context length",
        ),
        (
            {"how": "error", "code": "context_length_exceeded"},
            True,
            400,
            "context_length_exceeded",
            "maximum context length",
        ),
        ({"how": "error", "code": "server_is_overloaded"}, False, 500, "server_is_overloaded", ""),
        ({"status": 503, "message": "Down."}, True, 503, None, "Down."),
        ({"status": 503}, True, 503, None, "503 Service Unavailable"),
    ],
)
def test_a_failure_before_the_stream(
    fail: dict[str, Any], stream: bool, status: int, code: str | None, words: str
) -> None:
    answer = WIRE.fail(request(USER, stream=stream), Fail.model_validate(fail))
    assert isinstance(answer, Whole)
    assert (answer.status, answer.value["error"]["code"]) == (status, code)
    assert words in answer.value["error"]["message"]


def test_a_refusal_says_when_to_come_again() -> None:
    answer = WIRE.fail(request(USER), Fail(status=429, retry_after=2.5))
    assert isinstance(answer, Whole)
    assert answer.headers == {"Retry-After": "2.5"}


def test_a_failure_in_the_stream() -> None:
    answer = WIRE.fail(request(USER, stream=True), Fail(how="error", message="Oh."))
    assert isinstance(answer, Stream)
    begun, error = answer.events
    assert begun.data["choices"][0]["finish_reason"] is None
    assert error.data["error"]["message"] == "Oh."


def test_a_dropped_answer_has_no_end() -> None:
    stream = WIRE.fail(request(USER, stream=True), Fail(how="drop"))
    assert isinstance(stream, Stream)
    assert [e.data["choices"][0]["finish_reason"] for e in stream.events] == [None]
    whole = WIRE.fail(request(USER), Fail(how="drop"))
    assert isinstance(whole, Whole)
    assert whole.cut


def test_what_is_asked_beside_the_conversation() -> None:
    assert WIRE.aside(request(SYSTEM, USER)) is None
    assert WIRE.aside(request(SYSTEM, USER, tools=[])) is None
    assert WIRE.aside(request(USER, tools=None))
    assert WIRE.aside(request(SYSTEM, USER, max_tokens=1))
    schema = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "title", "schema": schema}}
    text = WIRE.aside(request(USER, tools=[], response_format=wanted))
    assert text is not None
    assert isinstance(json.loads(text)["title"], str)
