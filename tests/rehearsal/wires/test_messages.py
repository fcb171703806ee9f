"""Anthropic's Messages wire: what is read from a request, and how answers are worded."""

from __future__ import annotations

import json
from email.message import Message
from typing import Any

import pytest

from airflow_agent_provider.rehearsal.conversation import Call, Move
from airflow_agent_provider.rehearsal.script import Fail, Script
from airflow_agent_provider.rehearsal.wires.messages import MessagesWire
from airflow_agent_provider.rehearsal.wires.wire import Stream, Whole

WIRE = MessagesWire()
TOOLS = [{"name": "Bash", "input_schema": {"required": ["command"]}}]
PLACE = "<system-reminder>\n# Environment\n - Primary working directory: /d/run/plan/-1/tree\n"
ASKED = "Do it.\n\nStep: other of workflow w, run 1\n"
ACTIONS = [{"run": "a"}, {"write": {"path": "b", "content": ""}}, {"say": "one"}, {"say": "two"}]


def texts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


USER = user(*texts(PLACE, ASKED))


def request(*messages: Any, **values: Any) -> dict[str, Any]:
    system = texts("You are a Claude agent.")
    whole = {"model": "m", "max_tokens": 32_000, "system": system, "tools": TOOLS, **values}
    return {**whole, "messages": list(messages)}


def read(*messages: Any, **values: Any) -> Any:
    script = Script.model_validate({"steps": {"*": ACTIONS}})
    return WIRE.read(request(*messages, **values), script.actions)


def called(call_id: str, name: str = "Bash") -> dict[str, Any]:
    use = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
    return {"role": "assistant", "content": [*texts("I will."), use]}


def result(call_id: str, content: Any, **values: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **values}


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ({"messages": [USER]}, "plan"),
        ({"messages": [user(*texts(ASKED))]}, "other"),
        ({"messages": [{"role": "user", "content": ASKED}]}, "other"),
        ({"messages": [], "system": "Working directory: /d/run/plan/-1/tree"}, "plan"),
        ({"messages": [user(*texts(f"<system-reminder>{ASKED}"))]}, ""),
        ({"messages": []}, ""),
    ],
)
def test_the_step_is_found(values: dict[str, Any], step: str) -> None:
    assert read(*values.pop("messages"), **values).step == step


INTERRUPTED = "[Tool call interrupted: the session ended before this call's result was recorded]"


@pytest.mark.parametrize(
    ("history", "position"),
    [
        ([], 0),
        ([called("call_0_1"), user(result("call_0_1", "ok"))], 1),
        ([called("call_0_1"), user(result("call_0_1", texts("ok"), is_error=True))], 1),
        ([called("call_0_1"), user(result("call_0_1", INTERRUPTED, is_error=True))], 0),
        (
            [
                called("call_1_3", "Write"),
                user(result("call_1_3", "File has not been read yet.", is_error=True)),
            ],
            1,
        ),
        ([{"role": "assistant", "content": "one"}, user(*texts("next"))], 3),
        ([{"role": "assistant", "content": texts("one")}, user(*texts("next"))], 3),
        (
            [
                called("call_0_1"),
                user(result("call_0_1", INTERRUPTED)),
                {"role": "assistant", "content": texts("No response requested.")},
                user(*texts("<system-reminder>\n", "Go on.")),
            ],
            0,
        ),
    ],
)
def test_the_position_follows_from_the_history(history: list[Any], position: int) -> None:
    found = read(USER, *history)
    assert found.position == position
    assert found.by_shell is ("Write" in json.dumps(history))


def test_a_structured_answer_ends_the_turn() -> None:
    told = [called("call_2_5", "StructuredOutput"), user(result("call_2_5", "provided"))]
    assert (read(USER, *told).position, read(USER, *told).told) == (2, True)
    # Claude Code asks for no last words, and resumes with its own.
    added = user(result("call_2_5", "provided"), *texts("<system-reminder>\n", "next"))
    assert read(USER, told[0], added).position == 3
    resumed = {"role": "assistant", "content": texts("No response requested.")}
    assert read(USER, *told, resumed, user(*texts("next"))).position == 3

    wrong = user(result("call_2_5", "does not match", is_error=True))
    assert (read(USER, told[0], wrong).position, read(USER, told[0], wrong).told) == (2, False)


def move_of(answer: Any) -> tuple[dict[str, Any], str, dict[str, int]]:
    """Put an answer together as a program does: its block, stop reason and usage."""
    if isinstance(answer, Whole):
        (block,) = answer.value["content"]
        return block, answer.value["stop_reason"], answer.value["usage"]
    assert isinstance(answer, Stream)
    assert [event.name for event in answer.events] == [e.data["type"] for e in answer.events]
    begin, start, *deltas, stop, ending, end = answer.events
    assert (begin.name, start.name, stop.name) == (
        "message_start",
        "content_block_start",
        "content_block_stop",
    )
    assert (ending.name, end.name) == ("message_delta", "message_stop")
    block = dict(start.data["content_block"])
    pieces = [event.data["delta"] for event in deltas]
    if block["type"] == "text":
        assert block["text"] == ""
        block["text"] = "".join(piece["text"] for piece in pieces)
    else:
        assert block["input"] == {}
        block["input"] = json.loads("".join(piece["partial_json"] for piece in pieces))
    usage = {**begin.data["message"]["usage"], **ending.data["usage"]}
    return block, ending.data["delta"]["stop_reason"], usage


MOVES = {
    "text": Move("msg_0_1", text="x" * 100),
    "nothing": Move("msg_0_1"),
    "call": Move("call_0_1", call=Call("Bash", {"command": "echo " + "y" * 100})),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_an_answer_says_the_same_in_pieces_and_whole(move: Move) -> None:
    history = [USER, called("call_0_1"), user(result("call_0_1", "ok"))]
    whole = move_of(WIRE.answer(request(*history), move))
    assert move_of(WIRE.answer(request(*history, stream=True), move)) == whole
    block, reason, usage = whole
    assert reason == ("end_turn" if move.call is None else "tool_use")
    # The cached tokens are not among the others.
    assert 0 < usage["input_tokens"] < usage["cache_read_input_tokens"]
    assert usage["output_tokens"] > 0
    if move.call is None:
        assert block["text"] == move.text
    else:
        assert (block["id"], block["name"]) == (move.id, move.call.name)
        assert block["input"] == move.call.arguments


@pytest.mark.parametrize(
    ("fail", "stream", "status", "kind", "words"),
    [
        ({"status": 401}, True, 401, "authentication_error", "401"),
        ({"status": 403}, True, 403, "permission_error", ""),
        ({"status": 404}, True, 404, "not_found_error", ""),
        ({"status": 413}, True, 413, "request_too_large", ""),
        ({"status": 429, "message": "Slow."}, True, 429, "rate_limit_error", "Slow."),
        ({"status": 500}, True, 500, "api_error", ""),
        ({"status": 529}, True, 529, "overloaded_error", ""),
        ({"status": 418}, True, 418, "invalid_request_error", ""),
        ({"status": 599}, True, 599, "api_error", ""),
        (
            {"status": 429, "code": "insufficient_quota"},
            True,
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API",
        ),
        (
            {"how": "error", "code": "insufficient_quota"},
            True,
            400,
            "invalid_request_error",
            "Your credit balance is too low",
        ),
        (
            {"how": "error", "code": "context_length_exceeded"},
            True,
            400,
            "invalid_request_error",
            "prompt is too long: ",
        ),
        ({"how": "error", "code": "server_is_overloaded"}, False, 529, "overloaded_error", ""),
        ({"how": "error"}, False, 500, "api_error", ""),
        ({"how": "error", "code": "rate_limit_error"}, False, 429, "rate_limit_error", ""),
    ],
)
def test_a_failure_before_the_stream(
    fail: dict[str, Any], stream: bool, status: int, kind: str, words: str
) -> None:
    answer = WIRE.fail(request(USER, stream=stream), Fail.model_validate(fail))
    assert isinstance(answer, Whole)
    assert (answer.status, answer.value["type"]) == (status, "error")
    assert answer.value["error"]["type"] == kind
    assert words in answer.value["error"]["message"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("", "api_error"),
        ("server_is_overloaded", "overloaded_error"),
        ("overloaded_error", "overloaded_error"),
        ("rate_limit_exceeded", "rate_limit_error"),
        ("of nobody", "api_error"),
    ],
)
def test_a_failure_in_the_stream(code: str, kind: str) -> None:
    answer = WIRE.fail(request(USER, stream=True), Fail(how="error", code=code, message="Oh."))
    assert isinstance(answer, Stream)
    begun, error = answer.events
    assert (begun.name, error.name) == ("message_start", "error")
    assert error.data["type"] == "error"
    assert error.data["error"] == {"type": kind, "message": "Oh."}


def test_a_dropped_answer_has_no_end() -> None:
    stream = WIRE.fail(request(USER, stream=True), Fail(how="drop"))
    assert isinstance(stream, Stream)
    assert [event.name for event in stream.events] == ["message_start"]
    whole = WIRE.fail(request(USER), Fail(how="drop"))
    assert isinstance(whole, Whole)
    assert whole.cut


def test_a_refusal_says_when_to_come_again() -> None:
    answer = WIRE.fail(request(USER), Fail(status=429, retry_after=7))
    assert isinstance(answer, Whole)
    assert answer.headers == {"Retry-After": "7"}


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"x-api-key": "sk-any"}, True),
        ({"X-Api-Key": "sk-any"}, True),
        ({"Authorization": "Bearer any"}, True),
        ({"x-api-key": "invalid-1"}, False),
        ({"x-api-key": " "}, False),
        ({"Authorization": "Bearer invalid-1"}, False),
        ({"Authorization": "Basic any"}, False),
        ({}, False),
    ],
)
def test_the_keys(headers: dict[str, str], accepted: bool) -> None:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    assert WIRE.authorized(message) is accepted


def test_what_is_asked_beside_the_conversation() -> None:
    assert WIRE.aside(request(USER)) is None
    assert WIRE.aside(request(USER, tools=[])) is None
    assert WIRE.aside(request(user(*texts(ASKED)), tools=[]))
    assert WIRE.aside(request(USER, max_tokens=1))
    schema = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}}
    asked = request(user(*texts(ASKED)), tools=[])
    for wanted in (
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_format": {"type": "json_schema", "schema": schema}},
    ):
        text = WIRE.aside({**asked, **wanted})
        assert text is not None
        assert isinstance(json.loads(text)["title"], str)


def test_tokens_are_counted() -> None:
    short = WIRE.count(request(USER)).value["input_tokens"]
    assert 0 < short < WIRE.count(request(USER, USER)).value["input_tokens"]
