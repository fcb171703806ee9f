"""OpenAI's Chat Completions wire, as Copilot, OpenCode and Qwen Code use it.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from airflow_agent_provider.rehearsal.conversation import (
    Called,
    Conversation,
    Entry,
    Move,
    Prompt,
    Returned,
    Said,
    conversation_of,
    step_of,
)
from airflow_agent_provider.rehearsal.places import is_aside, is_prompt, workspace_of
from airflow_agent_provider.rehearsal.script import Action, Fail
from airflow_agent_provider.rehearsal.tools import OfferedTools, instance, judge
from airflow_agent_provider.rehearsal.wires.openai import OpenAI, error_body
from airflow_agent_provider.rehearsal.wires.wire import (
    MODEL,
    Answer,
    Event,
    Stream,
    Whole,
    count_tokens,
    dicts,
    pieces,
    plain_text,
    texts_of,
)

#: Errors that the API never sends in a stream, and the status that it answers them with.
_BEFORE_STREAM = {"context_length_exceeded": 400, "insufficient_quota": 429}
#: The vendor's words for errors whose words agents look at.
_WORDS = {
    "context_length_exceeded": (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in "
        "130000 tokens. Please reduce the length of the messages."
    ),
    "insufficient_quota": (
        "You exceeded your current quota, please check your plan and billing details."
    ),
}


class ChatWire(OpenAI):
    """``POST /v1/chat/completions``, streamed or not."""

    def read(
        self, request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
    ) -> Conversation:
        """Return where the conversation of a request stands."""
        messages = dicts(request.get("messages"))
        workspace = _workspace(messages)
        step = step_of(workspace, filter(is_prompt, _texts(messages, "user")))
        tools = OfferedTools(_schemas(request), workspace)
        return conversation_of(step, workspace, tools, _history(messages), actions_of(step))

    def aside(self, request: Mapping[str, Any]) -> str | None:
        """Return the text that answers what is asked beside the conversation."""
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        messages = dicts(request.get("messages"))
        if not is_aside(_schemas(request), _workspace(messages), limit):
            return None
        wanted = request.get("response_format") or {}
        schema = (wanted.get("json_schema") or {}).get("schema")
        return "Rehearsal" if schema is None else json.dumps(instance(schema))

    def answer(self, request: Mapping[str, Any], move: Move) -> Answer:
        """Return the answer that makes ``move``."""
        message = _message(move)
        reason = "stop" if move.call is None else "tool_calls"
        usage = _usage(request, message)
        head = _head(request)
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
            value = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return Whole(200, value)
        return Stream(
            [
                *(_chunk(head, delta) for delta in _deltas(message)),
                _chunk(head, {}, reason),
                *_usage_chunk(request, head, usage),
                Event("", "[DONE]"),
            ]
        )

    def fail(self, request: Mapping[str, Any], fail: Fail) -> Answer:
        """Return the answer that fails as the script says, but for silence and a reset."""
        message = fail.message or _WORDS.get(fail.code, "")
        status = fail.status
        if status is None and fail.how == "error":
            status = _BEFORE_STREAM.get(fail.code, None if request.get("stream") else 500)
        if status is not None:
            return self.refuse(status, message, fail.code, fail.retry_after)
        head = _head(request)
        begun = {"role": "assistant", "content": ""}
        if fail.how == "error":
            return Stream([_chunk(head, begun), Event("", _error(message, fail.code))])
        if request.get("stream"):
            return Stream([_chunk(head, begun)])
        return Whole(200, {**head, "object": "chat.completion"}, cut=True)


def _error(message: str, code: str) -> dict[str, Any]:
    return error_body(500, message or "The rehearsal's script fails here.", code or "server_error")


def _texts(messages: Sequence[Mapping[str, Any]], *roles: str) -> Iterator[str]:
    for message in messages:
        if message.get("role") in roles:
            yield from texts_of(message.get("content"))


def _workspace(messages: Sequence[Mapping[str, Any]]) -> str:
    return workspace_of(_texts(messages, "system", "developer"), _texts(messages, "user"))


def _schemas(request: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    tools = [_called(tool) for tool in dicts(request.get("tools"))]
    return {str(tool.get("name")): tool.get("parameters") or {} for tool in tools}


def _called(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a tool, or a call of one, says under its kind: its name and so on."""
    return tool.get(str(tool.get("type") or "function")) or {}


def _history(messages: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    names: dict[str, str] = {}
    for message in messages:
        role, text = message.get("role"), plain_text(message.get("content"))
        calls = dicts(message.get("tool_calls"))
        if role == "assistant" and not calls:
            yield Said(text)
        elif role == "assistant":
            for call in calls:
                names[str(call.get("id"))] = str(_called(call).get("name"))
                yield Called(str(call.get("id")))
        elif role == "user":
            yield from map(Prompt, filter(is_prompt, texts_of(message.get("content"))))
        elif role == "tool":
            call_id = str(message.get("tool_call_id"))
            yield Returned(call_id, judge(names.get(call_id, ""), text))


def _message(move: Move) -> dict[str, Any]:
    if move.call is None:
        return {"role": "assistant", "content": move.text}
    call: dict[str, Any] = {"id": move.id}
    if isinstance(move.call.arguments, str):
        custom = {"name": move.call.name, "input": move.call.arguments}
        call |= {"type": "custom", "custom": custom}
    else:
        function = {"name": move.call.name, "arguments": json.dumps(move.call.arguments)}
        call |= {"type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _head(request: Mapping[str, Any]) -> dict[str, Any]:
    model = request.get("model") or MODEL
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": 0, "model": model}


def _chunk(
    head: Mapping[str, Any], delta: Mapping[str, Any], finish_reason: str | None = None
) -> Event:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return Event("", {**head, "object": "chat.completion.chunk", "choices": [choice]})


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": message["content"] and ""}
    for index, call in enumerate(message.get("tool_calls", ())):
        kind = call["type"]
        field = "input" if kind == "custom" else "arguments"
        begun = {**call, kind: {**call[kind], field: ""}}
        yield {"tool_calls": [{"index": index, **begun}]}
        for piece in pieces(call[kind][field]):
            yield {"tool_calls": [{"index": index, kind: {field: piece}}]}
    for piece in pieces(message["content"] or ""):
        yield {"content": piece}


def _usage_chunk(
    request: Mapping[str, Any], head: Mapping[str, Any], usage: Mapping[str, Any]
) -> Iterator[Event]:
    if (request.get("stream_options") or {}).get("include_usage"):
        last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        yield Event("", last)


def _usage(request: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    tokens = count_tokens(request.get("messages"), message)
    return {
        "prompt_tokens": tokens.read,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        "completion_tokens": tokens.written,
        "completion_tokens_details": {"reasoning_tokens": tokens.written // 5},
        "total_tokens": tokens.read + tokens.written,
    }
