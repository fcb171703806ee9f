"""Copilot's session events as our events, and its errors as failures.

Events are those of the Copilot SDK (https://github.com/github/copilot-sdk). They are told apart by
their type's name, and read by attribute, so that this module imports no vendor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
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
from airflow_agent_provider.sandbox.door import UpstreamFailure

#: Characters of a tool's output that an event carries: its end, where the error stands.
_OUTPUT_TAIL = 4000
#: Characters of a command or a question that name a tool call.
_TITLE_LENGTH = 2000

#: What each of Copilot's tools does; what is missing here is of the kind "other".
_TOOL_KINDS = {
    "bash": ToolKind.EXECUTE,
    "read_bash": ToolKind.EXECUTE,
    "write_bash": ToolKind.EXECUTE,
    "stop_bash": ToolKind.EXECUTE,
    "list_bash": ToolKind.EXECUTE,
    "view": ToolKind.READ,
    "create": ToolKind.EDIT,
    "edit": ToolKind.EDIT,
    "apply_patch": ToolKind.EDIT,
    "grep": ToolKind.SEARCH,
    "rg": ToolKind.SEARCH,
    "glob": ToolKind.SEARCH,
    "semantic_code_search": ToolKind.SEARCH,
    "web_fetch": ToolKind.FETCH,
    "web_search": ToolKind.FETCH,
}
#: The argument that names what a tool works on, the first that is there.
_SUBJECTS = ("command", "path", "pattern", "query", "url", "description", "prompt")
#: Copilot's own last line under a command's output; the exit code is told beside it.
_SHELL_END = re.compile(r"\n?<shellId: \S+ completed with exit code -?\d+>$")
_PATCHED = re.compile(r"^\*\*\* (?:Add|Update|Delete) File: (?P<path>.+)$", re.MULTILINE)
_DELETED = re.compile(r"^\*\*\* Delete File: ", re.MULTILINE)

#: Signs that the model answers again, after Copilot's own retries.
_PROGRESS = (
    "assistant.usage",
    "assistant.message",
    "assistant.message_delta",
    "assistant.reasoning_delta",
    "assistant.streaming_delta",
    "tool.execution_start",
)


#: A tool call: its kind, the line that names it, and more values.
_Description = tuple[ToolKind, str, dict[str, Any]]


class TurnReader:
    """Turns the events of one turn into ours, and remembers how the turn ends.

    :param workspace: the folder that Copilot's relative paths start from.
    :param upstream: returns how the model's API last failed, as the door has seen it.
    """

    def __init__(
        self,
        workspace: Path,
        upstream: Callable[[], UpstreamFailure | None] = lambda: None,
    ) -> None:
        self.usage = Usage()
        self.message = ""
        self.model: str | None = None
        #: ``completed`` or ``interrupted`` once the turn is over, else empty.
        self.status = ""
        #: Whether the model has said its last word, and only commands in the background go on.
        self.silent = False
        self._workspace = workspace
        self._upstream = upstream
        self._error: Any = None
        self._call: Any = None
        self._trouble: AgentFailure | None = None
        self._finish = ""
        self._tools: dict[str, _Description] = {}

    @property
    def failure(self) -> AgentFailure | None:
        """Why the turn has failed, if it has."""
        if self._error is not None:
            return classify(self._error, self._call, self._upstream())
        # Copilot itself takes both for success, and puts words of its own in the first one's place.
        if self._finish == "content_filter":
            return PolicyViolation("the vendor's content filter withheld the answer")
        if self._finish == "length":
            return AgentFailed(
                "the model's last answer was cut off at the most tokens that it may have; raise "
                "the option max_output_tokens"
            )
        return None

    @property
    def hopeless(self) -> AgentFailure | None:
        """The failure that Copilot tries to get past, although no retry can."""
        return self._trouble if isinstance(self._trouble, QuotaExhausted) else None

    def trouble(self, event: Any) -> AgentFailure | None:
        """Return the failure behind Copilot's own retries; None while the model answers."""
        kind = _type(event)
        if kind == "model.call_failure":
            failure = classify(None, event.data, self._upstream())
            # What Copilot itself holds for passing must not end the step for good.
            passing = failure.retryable and not isinstance(failure, AgentFailed)
            if not passing and not isinstance(failure, QuotaExhausted):
                failure = Unavailable("the model's API does not serve the request", raw=failure.raw)
            self._trouble = failure
        elif kind in _PROGRESS:
            self._trouble = None
        return self._trouble

    def events(self, event: Any) -> Iterator[AgentEvent]:
        """Yield the events that ``event`` tells; none for those that matter to nobody."""
        read = _READERS.get(_type(event))
        if read is not None:
            yield from read(self, event)

    def _turn_start(self, event: Any) -> Iterator[AgentEvent]:
        self.silent = False
        yield from ()

    def _message(self, event: Any) -> Iterator[AgentEvent]:
        data = event.data
        if _of_sub_agent(event):
            return
        self._error = None
        text = _get(data, "content") or ""
        self.model = _get(data, "model") or self.model
        if text:
            # Before its last message, Copilot may say what it is about to do.
            self.message = text
            yield AgentEvent(EventKind.MESSAGE, text)

    def _reasoning(self, event: Any) -> Iterator[AgentEvent]:
        text = (_get(event.data, "content") or "").strip()
        if text and not _of_sub_agent(event):
            yield AgentEvent(EventKind.THOUGHT, text)

    def _tool_start(self, event: Any) -> Iterator[AgentEvent]:
        data = event.data
        described = _describe(data.tool_name, _get(data, "arguments"), self._workspace)
        self._tools[data.tool_call_id] = described
        kind, text, values = described
        yield AgentEvent(
            EventKind.TOOL_CALL,
            text,
            tool=kind,
            status=ToolStatus.IN_PROGRESS,
            call_id=data.tool_call_id,
            data=values,
        )

    def _tool_complete(self, event: Any) -> Iterator[AgentEvent]:
        data = event.data
        # The end of a call that an earlier process began names no tool.
        unknown: _Description = (ToolKind.OTHER, "tool call", {})
        kind, text, values = self._tools.pop(data.tool_call_id, unknown)
        code = _get(_get(data, "shell_execution"), "exit_code")
        told = _get(_get(data, "result"), "content") or _get(_get(data, "error"), "message")
        output = _SHELL_END.sub("", str(told or ""))[-_OUTPUT_TAIL:]
        more = {
            **({} if code is None else {"exit_code": code}),
            **({"output": output} if output else {}),
        }
        yield AgentEvent(
            EventKind.TOOL_CALL_UPDATE,
            text,
            tool=kind,
            status=ToolStatus.COMPLETED if data.success and not code else ToolStatus.FAILED,
            call_id=data.tool_call_id,
            data={**values, **more},
        )

    def _usage(self, event: Any) -> Iterator[AgentEvent]:
        data = event.data
        self._call = None
        if not _of_sub_agent(event):
            self._finish = _get(data, "finish_reason") or ""
        usage = Usage(
            input_tokens=_get(data, "input_tokens") or 0,
            cached_tokens=_get(data, "cache_read_tokens") or 0,
            output_tokens=_get(data, "output_tokens") or 0,
            reasoning_tokens=_get(data, "reasoning_tokens") or 0,
        )
        self.usage += usage
        if usage.total_tokens:
            yield AgentEvent(EventKind.USAGE, data=usage.to_dict())

    def _call_failure(self, event: Any) -> Iterator[AgentEvent]:
        self._call = event.data
        yield from ()

    def _retry(self, event: Any) -> Iterator[AgentEvent]:
        why = _get(event.data, "reason") or "the request failed"
        words = _words(None, self._call, self._upstream())
        yield AgentEvent(EventKind.NOTICE, f"Copilot tries again ({why}): {words}".rstrip(": "))

    def _warning(self, event: Any) -> Iterator[AgentEvent]:
        yield AgentEvent(EventKind.NOTICE, event.data.message)

    def _compacted(self, event: Any) -> Iterator[AgentEvent]:
        yield AgentEvent(EventKind.NOTICE, "Copilot summarized the session to make room in it")

    def _failed(self, event: Any) -> Iterator[AgentEvent]:
        self._error = event.data
        yield from ()

    def _said_all(self, event: Any) -> Iterator[AgentEvent]:
        self.silent = self.silent or not _get(event.data, "aborted")
        yield from ()

    def _idle(self, event: Any) -> Iterator[AgentEvent]:
        self.status = "interrupted" if _get(event.data, "aborted") else "completed"
        yield from ()


_READERS: dict[str, Callable[[TurnReader, Any], Iterator[AgentEvent]]] = {
    "assistant.turn_start": TurnReader._turn_start,
    "assistant.message": TurnReader._message,
    "assistant.reasoning": TurnReader._reasoning,
    "assistant.usage": TurnReader._usage,
    "assistant.turn_retry": TurnReader._retry,
    "assistant.idle": TurnReader._said_all,
    "model.call_failure": TurnReader._call_failure,
    "session.compaction_complete": TurnReader._compacted,
    "session.error": TurnReader._failed,
    "session.idle": TurnReader._idle,
    "session.warning": TurnReader._warning,
    "tool.execution_start": TurnReader._tool_start,
    "tool.execution_complete": TurnReader._tool_complete,
}


def begins_turn(event: Any, message_id: str) -> bool:
    """Return whether ``event`` shows that the turn of a message is under way, or has failed."""
    if _type(event) == "user.message":
        return bool(_get(event.data, "message_id") == message_id)
    if _type(event) == "session.error":
        return _get(event.data, "originating_message_id") in (None, message_id)
    return False


def ends_turn(event: Any) -> bool:
    """Return whether a turn is over with ``event``, its background work included."""
    return _type(event) == "session.idle"


def _type(event: Any) -> str:
    return _value(event.type)


def _value(member: Any) -> str:
    return str(getattr(member, "value", member) or "")


def _get(data: Any, name: str) -> Any:
    # What the SDK cannot parse, it hands over without its fields.
    return getattr(data, name, None)


def _of_sub_agent(event: Any) -> bool:
    return bool(_get(event, "agent_id") or _get(event.data, "parent_tool_call_id"))


def _describe(name: str, arguments: Any, workspace: Path) -> _Description:
    kind = _TOOL_KINDS.get(name, ToolKind.OTHER)
    if isinstance(arguments, str):
        return _describe_patch(name, kind, arguments, workspace)
    values = arguments if isinstance(arguments, Mapping) else {}
    data: dict[str, Any] = {}
    if kind in (ToolKind.EDIT, ToolKind.READ) and isinstance(values.get("path"), str):
        data["paths"] = [_absolute(values["path"], workspace)]
    subject = next((str(values[key]) for key in _SUBJECTS if values.get(key)), "")
    text = subject if name == "bash" else f"{name} {subject}".strip()
    return kind, text[:_TITLE_LENGTH], data


def _describe_patch(name: str, kind: ToolKind, patch: str, workspace: Path) -> _Description:
    paths = [_absolute(match["path"].strip(), workspace) for match in _PATCHED.finditer(patch)]
    if paths and len(_DELETED.findall(patch)) == len(paths):
        kind = ToolKind.DELETE
    return kind, ", ".join(paths)[:_TITLE_LENGTH] or name, {"paths": paths} if paths else {}


def _absolute(path: str, workspace: Path) -> str:
    return str(PurePosixPath(workspace) / path)


def classify(error: Any, call: Any = None, upstream: UpstreamFailure | None = None) -> AgentFailure:
    """Return the failure that an error is.

    :param error: the data of ``session.error``, if there is one.
    :param call: the data of the last ``model.call_failure``, if no call succeeded since.
    :param upstream: how the model's API last failed, as the door has seen it.
    """
    raw = _words(error, call, upstream)
    code = _get(error, "error_code") or _get(call, "error_code") or _code_in(raw)
    status = _get(error, "status_code") or _get(call, "status_code")
    make = (
        _BY_CODE.get(str(code))
        or _BY_TYPE.get(str(_get(error, "error_type")))
        or _BY_STATUS.get(status)
        or (_by_words(raw) if status in (None, 400) else None)
    )
    if make is not None:
        return make(raw, upstream)
    if status is not None and status >= 500:
        return Unavailable(f"the model's API answered with HTTP status {status}", raw=raw)
    if status is not None:
        return AgentFailed(
            f"the model's API refused the request with HTTP status {status}", raw=raw
        )
    if _value(_get(call, "failure_kind")) == "transport":
        return _unavailable(raw, upstream)
    return AgentFailed("Copilot failed", raw=raw or "Copilot gave no reason")


def classify_upstream(upstream: UpstreamFailure) -> AgentFailure:
    """Return the failure that the model's API answers with, where Copilot says nothing of it."""
    raw, status = upstream.words, upstream.status
    make = _BY_CODE.get(_code_in(raw)) or _BY_STATUS.get(status)
    if make is not None:
        return make(raw, upstream)
    if status is None or status >= 500:
        return _unavailable(raw, upstream)
    return AgentFailed(f"the model's API refused the request with HTTP status {status}", raw=raw)


def _words(error: Any, call: Any, upstream: UpstreamFailure | None) -> str:
    parts = [_get(error, "message"), _get(call, "error_message")]
    if upstream is not None and (error is not None or call is not None):
        parts.append(upstream.words)
    return "\n".join(dict.fromkeys(str(part) for part in parts if part))


def _by_words(raw: str) -> _Make | None:
    return next((make for words, make in _BY_WORDS if words in raw.lower()), None)


def _code_in(raw: str) -> str:
    """Return the code of the error that stands in ``raw`` as JSON, empty if there is none."""
    for line in raw.splitlines():
        try:
            body = json.loads(line)
        except ValueError:
            continue
        error = body.get("error", body) if isinstance(body, dict) else None
        if isinstance(error, dict) and error.get("code"):
            return str(error["code"])
    return ""


_Make = Callable[[str, UpstreamFailure | None], AgentFailure]


def _unauthorized(raw: str, _: UpstreamFailure | None) -> AgentFailure:
    return AuthenticationFailed("the model's API refused the key", raw=raw)


def _quota(raw: str, _: UpstreamFailure | None) -> AgentFailure:
    return QuotaExhausted("the quota of the vendor's account is used up", raw=raw)


def _rate_limited(raw: str, upstream: UpstreamFailure | None) -> AgentFailure:
    seconds = upstream.retry_after if upstream is not None else None
    return RateLimited("the rate limit of the model's API is reached", raw=raw, retry_after=seconds)


def _context(raw: str, _: UpstreamFailure | None) -> AgentFailure:
    return ContextExhausted("the session no longer fits the model's context", raw=raw)


def _policy(raw: str, _: UpstreamFailure | None) -> AgentFailure:
    return PolicyViolation("the vendor refused the task by its usage policy", raw=raw)


def _unavailable(raw: str, _: UpstreamFailure | None) -> AgentFailure:
    return Unavailable("the model's API cannot serve the request now", raw=raw)


#: By the vendor's code for the error, which says more than its status.
_BY_CODE: dict[str, _Make] = {
    "insufficient_quota": _quota,
    "billing_hard_limit_reached": _quota,
    "quota_exceeded": _quota,
    "context_length_exceeded": _context,
    "model_max_prompt_tokens_exceeded": _context,
    "rate_limit_exceeded": _rate_limited,
    "server_error": _unavailable,
    "server_is_overloaded": _unavailable,
    "model_overloaded": _unavailable,
    "content_filter": _policy,
}
#: By Copilot's own category of the error; "query" says nothing.
_BY_TYPE: dict[str, _Make] = {
    "authentication": _unauthorized,
    "authorization": _unauthorized,
    "policy": _policy,
    "quota": _quota,
    "rate_limit": _rate_limited,
    "context_limit": _context,
}
_BY_STATUS: dict[int | None, _Make] = {
    401: _unauthorized,
    402: _quota,
    403: _unauthorized,
    408: _unavailable,
    409: _unavailable,
    413: _context,
    429: _rate_limited,
}
#: For errors that say no more than words, in small letters.
_BY_WORDS: tuple[tuple[str, _Make], ...] = (
    ("prompt as too long", _context),
    ("prompt is too long", _context),
    ("context limit", _context),
    ("maximum context length", _context),
    ("credit balance is too low", _quota),
    ("no github oauth token", _unauthorized),
    ("insufficient_quota", _quota),
    ("failed to get response from the ai model", _unavailable),
)
