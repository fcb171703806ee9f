"""Codex's notifications as events, and its errors as failures.

Notifications are those of Codex's app-server, as the official SDK types them
(https://github.com/openai/codex/tree/main/codex-rs/app-server). They are told apart by method and
by the ``type`` of their item, so that this module imports no vendor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from airflow_agent_provider.agents.contract import (
    AgentEvent,
    EventKind,
    ToolKind,
    ToolStatus,
    Usage,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    ContextExhausted,
    PolicyViolation,
    QuotaExhausted,
    RateLimited,
    Unavailable,
)

#: Characters of a command's output that an event carries: its end, where the error stands.
_OUTPUT_TAIL = 4000

_STATUSES = {
    "inProgress": ToolStatus.IN_PROGRESS,
    "completed": ToolStatus.COMPLETED,
    "failed": ToolStatus.FAILED,
    "declined": ToolStatus.FAILED,
}

_COMMAND_KINDS = {
    "read": ToolKind.READ,
    "listFiles": ToolKind.SEARCH,
    "search": ToolKind.SEARCH,
}

_PART = r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)"
_WAIT = re.compile(rf"try again in (?P<parts>(?:{_PART})+)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HTTP_STATUS = re.compile(r"\bstatus:? (?P<status>[45]\d\d)\b")


class TurnReader:
    """Turns the notifications of one turn into events, and remembers how the turn ends.

    :param spent: tokens of the session before this turn; None if they are not known, as after a
        resume in another process.
    """

    def __init__(self, spent: Usage | None) -> None:
        self.spent = spent
        self.usage = Usage()
        self.message = ""
        self.status = ""
        self.error: Any = None
        self._final = False

    def events(self, notification: Any) -> Iterator[AgentEvent]:
        """Yield the events that ``notification`` tells; none for those that matter to nobody."""
        read = _READERS.get(notification.method)
        # The SDK hands over what it cannot parse as plain parameters.
        if read is not None and not hasattr(notification.payload, "params"):
            yield from read(self, notification.payload)

    def _item_started(self, payload: Any) -> Iterator[AgentEvent]:
        call = _tool_call(payload.item.root, EventKind.TOOL_CALL)
        if call is not None:
            yield call

    def _item_completed(self, payload: Any) -> Iterator[AgentEvent]:
        item = payload.item.root
        if item.type == "agentMessage":
            self._keep_message(item)
            yield AgentEvent(EventKind.MESSAGE, item.text)
        elif item.type == "reasoning":
            text = "\n".join([*(item.summary or ()), *(item.content or ())]).strip()
            if text:
                yield AgentEvent(EventKind.THOUGHT, text)
        elif (update := _tool_call(item, EventKind.TOOL_CALL_UPDATE)) is not None:
            yield update

    def _keep_message(self, item: Any) -> None:
        # Codex may comment while it works; what it calls the final answer outranks that.
        final = _value(item.phase) == "final_answer"
        if final or not self._final:
            self.message, self._final = item.text, final

    def _plan(self, payload: Any) -> Iterator[AgentEvent]:
        entries = [{"text": step.step, "status": _value(step.status)} for step in payload.plan]
        yield AgentEvent(EventKind.PLAN, payload.explanation or "", data={"entries": entries})

    def _usage(self, payload: Any) -> Iterator[AgentEvent]:
        total = _usage_of(payload.token_usage.total)
        # ``total`` counts from the session's first turn, ``last`` is the latest model call.
        before = (
            self.spent if self.spent is not None else total - _usage_of(payload.token_usage.last)
        )
        self.spent = total
        delta = total - before
        self.usage += delta
        if delta.total_tokens:
            yield AgentEvent(EventKind.USAGE, data=delta.to_dict())

    def _error(self, payload: Any) -> Iterator[AgentEvent]:
        if payload.will_retry:
            yield AgentEvent(EventKind.NOTICE, f"Codex tries again: {_words(payload.error)}")
        else:
            self.error = payload.error

    def _warning(self, payload: Any) -> Iterator[AgentEvent]:
        yield AgentEvent(EventKind.NOTICE, payload.message)

    def _compacted(self, payload: Any) -> Iterator[AgentEvent]:
        yield AgentEvent(EventKind.NOTICE, "Codex summarized the session to make room in it")

    def _completed(self, payload: Any) -> Iterator[AgentEvent]:
        self.status = _value(payload.turn.status)
        self.error = payload.turn.error or self.error
        yield from ()


_READERS: dict[str, Callable[[TurnReader, Any], Iterator[AgentEvent]]] = {
    "item/started": TurnReader._item_started,
    "item/completed": TurnReader._item_completed,
    "turn/plan/updated": TurnReader._plan,
    "thread/tokenUsage/updated": TurnReader._usage,
    "error": TurnReader._error,
    "warning": TurnReader._warning,
    "thread/compacted": TurnReader._compacted,
    "turn/completed": TurnReader._completed,
}


def trouble(notification: Any) -> AgentFailure | None:
    """Return the failure behind Codex's own retry, None for every other notification."""
    if notification.method != "error" or not getattr(notification.payload, "will_retry", False):
        return None
    failure = classify(notification.payload.error)
    # What Codex itself holds for passing must not end the step for good.
    if failure.retryable and not isinstance(failure, AgentFailed):
        return failure
    return Unavailable("the model's API cannot be reached", raw=failure.raw)


def _value(member: Any) -> str:
    return str(getattr(member, "value", member) or "")


def _usage_of(tokens: Any) -> Usage:
    return Usage(
        input_tokens=tokens.input_tokens,
        cached_tokens=tokens.cached_input_tokens,
        output_tokens=tokens.output_tokens,
        reasoning_tokens=tokens.reasoning_output_tokens,
    )


def _tool_call(item: Any, kind: EventKind) -> AgentEvent | None:
    describe = _TOOLS.get(item.type)
    if describe is None:
        return None
    tool, text, data = describe(item)
    status = ToolStatus.IN_PROGRESS if kind is EventKind.TOOL_CALL else _tool_status(item)
    return AgentEvent(kind, text, tool=tool, status=status, call_id=item.id, data=data)


def _tool_status(item: Any) -> ToolStatus:
    return _STATUSES.get(_value(getattr(item, "status", "completed")), ToolStatus.COMPLETED)


_Description = tuple[ToolKind, str, dict[str, Any]]


def _command(item: Any) -> _Description:
    kinds = {_COMMAND_KINDS.get(action.root.type) for action in item.command_actions}
    kind = kinds.pop() if len(kinds) == 1 else None
    data: dict[str, Any] = {}
    if item.exit_code is not None:
        data["exit_code"] = item.exit_code
    if item.aggregated_output:
        data["output"] = item.aggregated_output[-_OUTPUT_TAIL:]
    return kind or ToolKind.EXECUTE, item.command, data


def _file_change(item: Any) -> _Description:
    paths = [change.path for change in item.changes]
    kinds = {change.kind.root.type for change in item.changes}
    kind = ToolKind.DELETE if kinds == {"delete"} else ToolKind.EDIT
    return kind, ", ".join(paths), {"paths": paths}


def _mcp_tool(item: Any) -> _Description:
    return ToolKind.OTHER, f"{item.server}.{item.tool}", {}


def _web_search(item: Any) -> _Description:
    return ToolKind.FETCH, item.query, {}


def _image(item: Any) -> _Description:
    path = _value(getattr(item.path, "root", item.path))
    return ToolKind.READ, path, {"paths": [path]}


def _sub_agent(item: Any) -> _Description:
    return ToolKind.OTHER, f"sub-agent: {_value(item.tool)}", {}


_TOOLS: dict[str, Callable[[Any], _Description]] = {
    "commandExecution": _command,
    "fileChange": _file_change,
    "mcpToolCall": _mcp_tool,
    "webSearch": _web_search,
    "imageView": _image,
    "collabAgentToolCall": _sub_agent,
}


def classify(error: Any) -> AgentFailure:
    """Return the failure that a turn's error is.

    :param error: the SDK's ``TurnError``, or None if Codex gave none.
    """
    if error is None:
        return AgentFailed("Codex failed without saying why")
    raw = _words(error)
    code, status = _error_code(error)
    if code in _BY_CODE:
        return _BY_CODE[code](raw)
    if status is None and (match := _HTTP_STATUS.search(raw)):
        status = int(match["status"])
    if status is not None:
        return _by_status(status, raw)
    for words, make in _BY_WORDS:
        if words in raw.lower():
            return make(raw)
    return AgentFailed("Codex failed", raw=raw)


def _words(error: Any) -> str:
    parts = [error.message, error.additional_details]
    return "\n".join(dict.fromkeys(part for part in parts if part))


def _error_code(error: Any) -> tuple[str, int | None]:
    info = getattr(error.codex_error_info, "root", None)
    if info is None or isinstance(info, str):
        return _value(info), None
    # The kinds that know an HTTP status are objects with one key.
    values = info if isinstance(info, dict) else info.model_dump(by_alias=True)
    code, details = next(iter(values.items()), ("", None))
    status = details.get("httpStatusCode") if isinstance(details, dict) else None
    return str(code), status


def _by_status(status: int, raw: str) -> AgentFailure:
    if status in (401, 403):
        return _unauthorized(raw)
    if status == 429:
        return _rate_limited(raw)
    if status in (408, 409) or status >= 500:
        return Unavailable(f"the model's API answered with HTTP status {status}", raw=raw)
    return AgentFailed(f"the model's API refused the request with HTTP status {status}", raw=raw)


def _unauthorized(raw: str) -> AgentFailure:
    return AuthenticationFailed("the model's API refused the key", raw=raw)


def _rate_limited(raw: str) -> AgentFailure:
    wait = _WAIT.search(raw)
    parts = re.findall(_PART, wait["parts"].lower()) if wait else []
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else None
    return RateLimited("the rate limit of the model's API is reached", raw=raw, retry_after=seconds)


def _quota(raw: str) -> AgentFailure:
    return QuotaExhausted("the quota of the vendor's account is used up", raw=raw)


def _context(raw: str) -> AgentFailure:
    return ContextExhausted("the session no longer fits the model's context", raw=raw)


def _unavailable(raw: str) -> AgentFailure:
    return Unavailable("the model's API cannot serve the request now", raw=raw)


def _policy(raw: str) -> AgentFailure:
    return PolicyViolation("the vendor refused the task by its usage policy", raw=raw)


def _bad_request(raw: str) -> AgentFailure:
    # A context overflow can come as a plain HTTP 400 with the code in its body.
    if _json_code(raw) == "context_length_exceeded":
        return _context(raw)
    return AgentFailed("the model's API refused the request", raw=raw)


def _json_code(raw: str) -> str:
    start = raw.find("{")
    try:
        body = json.loads(raw[start:]) if start >= 0 else {}
    except ValueError:
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("code")) if isinstance(error, dict) else ""


_BY_CODE: dict[str, Callable[[str], AgentFailure]] = {
    "unauthorized": _unauthorized,
    "usageLimitExceeded": _quota,
    "rateLimitExceeded": _rate_limited,
    "contextWindowExceeded": _context,
    "sessionBudgetExceeded": _context,
    "serverOverloaded": _unavailable,
    "flexUnavailable": _unavailable,
    "internalServerError": _unavailable,
    "cyberPolicy": _policy,
    "misalignmentPolicyViolation": _policy,
    "badRequest": _bad_request,
}

#: For kinds that say no more than words, in small letters.
_BY_WORDS: tuple[tuple[str, Callable[[str], AgentFailure]], ...] = (
    ("context_length_exceeded", _bad_request),
    ("rate limit", _rate_limited),
    ("stream disconnected", _unavailable),
    ("connection failed", _unavailable),
)
