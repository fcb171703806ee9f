"""Anthropic's Messages wire, as Claude Code uses it. https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from email.message import Message
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
from airflow_agent_provider.rehearsal.wires.wire import (
    MODEL,
    Answer,
    Event,
    Stream,
    Whole,
    accepts,
    bearer,
    count_tokens,
    dicts,
    error_headers,
    error_words,
    pieces,
    plain_text,
    texts_of,
)

#: The error type of each HTTP status; another 4xx is an invalid request, another 5xx an API error.
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
#: The status of each error type.
_STATUSES = {"invalid_request_error": 400, **{v: k for k, v in _TYPES.items()}, "api_error": 500}
#: The error types for the codes that a script may have from OpenAI's wires.
_TYPES_OF_CODES = {
    "invalid_api_key": "authentication_error",
    "rate_limit_exceeded": "rate_limit_error",
    "server_error": "api_error",
    "server_is_overloaded": "overloaded_error",
    "not_found": "not_found_error",
}
#: Codes of OpenAI's for which this API has but words, in an invalid request.
_WORDS_OF_CODES = {
    "context_length_exceeded": "prompt is too long: 210000 tokens > 200000 maximum",
    "insufficient_quota": (
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing "
        "to upgrade or purchase credits."
    ),
}


class MessagesWire:
    """``POST /v1/messages``, streamed or not, and ``/v1/messages/count_tokens``."""

    def authorized(self, headers: Message) -> bool:
        """Return whether the request has a key that is accepted."""
        return accepts(headers.get("x-api-key") or bearer(headers))

    def read(
        self, request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
    ) -> Conversation:
        """Return where the conversation of a request stands."""
        workspace = _workspace(request)
        messages = dicts(request.get("messages"))
        step = step_of(workspace, filter(is_prompt, _told(messages)))
        tools = OfferedTools(_schemas(request), workspace)
        return conversation_of(step, workspace, tools, _history(messages), actions_of(step))

    def aside(self, request: Mapping[str, Any]) -> str | None:
        """Return the text that answers what is asked beside the conversation."""
        if not is_aside(_schemas(request), _workspace(request), request.get("max_tokens")):
            return None
        wanted = request.get("output_config") or request
        schema = (wanted.get("format") or wanted.get("output_format") or {}).get("schema")
        return "Rehearsal" if schema is None else json.dumps(instance(schema))

    def answer(self, request: Mapping[str, Any], move: Move) -> Answer:
        """Return the answer that makes ``move``."""
        block = _block(move)
        reason = "end_turn" if move.call is None else "tool_use"
        usage = _usage(request, block)
        head = _head(request)
        if not request.get("stream"):
            whole = {**head, "content": [block], "stop_reason": reason, "usage": usage}
            return Whole(200, whole)
        ending = {"stop_reason": reason, "stop_sequence": None}
        return Stream(
            [
                _begin(request, head),
                *_block_events(block),
                _event("message_delta", delta=ending, usage=usage),
                _event("message_stop"),
            ]
        )

    def fail(self, request: Mapping[str, Any], fail: Fail) -> Answer:
        """Return the answer that fails as the script says, but for silence and a reset."""
        streamed = bool(request.get("stream"))
        kind, status = _type(fail.status or 500, fail.code), fail.status
        if status is None and fail.how == "error":
            # What is wrong with the request itself is never told in a stream.
            early = not streamed or kind == "invalid_request_error"
            status = _STATUSES.get(kind, 500) if early else None
        if status is not None:
            return self.refuse(status, fail.message, fail.code, fail.retry_after)
        if fail.how == "error":
            message = fail.message or "The rehearsal's script fails here."
            return Stream([_begin(request, _head(request)), Event("error", _error(kind, message))])
        if streamed:
            return Stream([_begin(request, _head(request))])
        return Whole(200, _head(request), cut=True)

    def refuse(
        self, status: int, message: str, code: str = "", retry_after: float | None = None
    ) -> Whole:
        """Return an error."""
        words = message or _WORDS_OF_CODES.get(code, "")
        status = 400 if code in _WORDS_OF_CODES else status
        error = _error(_type(status, code), error_words(status, words))
        return Whole(status, error, error_headers(retry_after))

    def refuse_key(self) -> Whole:
        """Return the error for a key that is not accepted."""
        return self.refuse(401, "invalid x-api-key")

    def models(self) -> Any:
        """Return the list of models that the key may use."""
        model = {"type": "model", "id": MODEL, "display_name": "Rehearsal"}
        model["created_at"] = "1970-01-01T00:00:00Z"
        return {"data": [model], "has_more": False, "first_id": MODEL, "last_id": MODEL}

    def count(self, request: Mapping[str, Any]) -> Whole:
        """Return how many tokens a request would read."""
        return Whole(200, {"input_tokens": count_tokens(request.get("messages"), None).read})


def _type(status: int, code: str) -> str:
    """Return the error's type, by its code or else by its status."""
    if code in _WORDS_OF_CODES:
        return "invalid_request_error"
    kind = _TYPES_OF_CODES.get(code, code)
    if kind in _STATUSES:
        return kind
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _error(kind: str, message: str) -> dict[str, Any]:
    request_id = f"req_{uuid.uuid4().hex[:24]}"
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def _blocks(content: object) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else dicts(content)


def _told(messages: Sequence[Mapping[str, Any]], roles: Sequence[str] = ("user",)) -> Iterator[str]:
    for message in messages:
        if message.get("role") in roles:
            yield from texts_of(message.get("content"))


def _workspace(request: Mapping[str, Any]) -> str:
    messages = dicts(request.get("messages"))
    # Newer models take Claude Code's reminders as messages of the system's, among the others.
    told = _told(messages, ("user", "system"))
    return workspace_of(texts_of(request.get("system")), told)


def _schemas(request: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    tools = dicts(request.get("tools"))
    return {str(tool.get("name")): tool.get("input_schema") or {} for tool in tools}


def _history(messages: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    names: dict[str, str] = {}
    for message in messages:
        blocks = _blocks(message.get("content"))
        if message.get("role") == "system":
            continue
        if message.get("role") == "user":
            yield from _from_user(blocks, names)
            continue
        calls = [block for block in blocks if block.get("type") == "tool_use"]
        for call in calls:
            names[str(call.get("id"))] = str(call.get("name"))
            yield Called(str(call.get("id")))
        if not calls:
            yield Said(plain_text(blocks))


def _from_user(blocks: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Entry]:
    for block in blocks:
        if block.get("type") == "tool_result":
            call_id, text = str(block.get("tool_use_id")), plain_text(block.get("content"))
            failed = block.get("is_error") is True
            yield Returned(call_id, judge(names.get(call_id, ""), text, failed=failed))
        elif block.get("type") == "text" and is_prompt(str(block.get("text", ""))):
            yield Prompt(str(block.get("text", "")))


def _block(move: Move) -> dict[str, Any]:
    if move.call is None:
        return {"type": "text", "text": move.text}
    return {
        "type": "tool_use",
        "id": move.id,
        "name": move.call.name,
        "input": move.call.arguments,
    }


def _head(request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model") or MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _event(name: str, **values: Any) -> Event:
    return Event(name, {"type": name, **values})


def _begin(request: Mapping[str, Any], head: Mapping[str, Any]) -> Event:
    usage = {**_usage(request, None), "output_tokens": 1}
    return _event("message_start", message={**head, "usage": usage})


def _block_events(block: Mapping[str, Any]) -> Iterator[Event]:
    if block["type"] == "text":
        begun = {**block, "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    else:
        begun = {**block, "input": {}}
        parts = pieces(json.dumps(block["input"]))
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in parts]
    yield _event("content_block_start", index=0, content_block=begun)
    for delta in deltas:
        yield _event("content_block_delta", index=0, delta=delta)
    yield _event("content_block_stop", index=0)


def _usage(request: Mapping[str, Any], written: object) -> dict[str, int]:
    tokens = count_tokens(request.get("messages"), written)
    # This API counts the cached tokens apart from the others.
    return {
        "input_tokens": tokens.read - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.written,
    }
