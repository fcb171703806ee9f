"""What Cursor's program on the worker tells, as events.

The stream is that of ``cursor_sdk``'s runs; its messages are told apart by their ``type``, so that
this module imports no vendor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.agents.contract import (
    AgentEvent,
    EventKind,
    ToolKind,
    ToolStatus,
    Usage,
)
from airflow_agent_provider.agents.failures import AgentFailed, AgentFailure, Unavailable

#: Characters of a command's output that an event carries: its end, where the error stands.
_OUTPUT_TAIL = 4000

_KINDS = {
    "shell": ToolKind.EXECUTE,
    "writeShellStdin": ToolKind.EXECUTE,
    "read": ToolKind.READ,
    "readLints": ToolKind.READ,
    "edit": ToolKind.EDIT,
    "applyAgentDiff": ToolKind.EDIT,
    "delete": ToolKind.DELETE,
    "glob": ToolKind.SEARCH,
    "grep": ToolKind.SEARCH,
    "ls": ToolKind.SEARCH,
    "semSearch": ToolKind.SEARCH,
    "fetch": ToolKind.FETCH,
    "webFetch": ToolKind.FETCH,
    "webSearch": ToolKind.FETCH,
    "reflect": ToolKind.THINK,
}
#: Arguments that name what a tool call does, the most telling first.
_TELLING = (
    "command", "path", "targetFile", "globPattern", "pattern", "searchTerm", "query", "url",
    "toolName", "description",
)  # fmt: skip
_PATHS = ("path", "targetFile")
_PLANS = ("updateTodos", "createPlan")


@dataclass(frozen=True)
class Trouble:
    """The backend failed; Cursor's program may try again by itself.

    :param failure: what it is if that does not help.
    :param definite: whether the vendor said just what is wrong.
    """

    failure: AgentFailure
    definite: bool = False


class TurnReader:
    """Turns what one run tells into events, and remembers how the turn ends."""

    def __init__(self) -> None:
        self.usage = Usage()
        #: What the agent said after all that it did.
        self.message = ""
        #: Cursor's word for how the run ended; empty if it did not say.
        self.status = ""
        self.error = ""
        #: The backend's latest failure: the cause, if the turn fails.
        self.trouble: AgentFailure | None = None
        self._text = {EventKind.MESSAGE: "", EventKind.THOUGHT: ""}
        self._running: set[str] = set()

    def events(self, told: Any) -> Iterator[AgentEvent]:
        """Yield the events that ``told`` makes: an event of a run, or :class:`Trouble`."""
        if isinstance(told, Trouble):
            self.trouble = told.failure
            yield AgentEvent(EventKind.NOTICE, f"Cursor's backend failed: {told.failure.raw}")
            return
        message = told.sdk_message
        read = _READERS.get(getattr(message, "type", ""))
        if read is not None:
            yield from read(self, message)
        if told.result is not None:
            yield from self._ended(told.result)

    def _assistant(self, message: Any) -> Iterator[AgentEvent]:
        for block in message.message.content:
            yield from self._add(EventKind.MESSAGE, getattr(block, "text", ""))

    def _thinking(self, message: Any) -> Iterator[AgentEvent]:
        yield from self._add(EventKind.THOUGHT, message.text)

    def _add(self, kind: EventKind, text: str) -> Iterator[AgentEvent]:
        # Text comes in pieces: an event is all of it up to whatever else the agent does.
        if text:
            other = EventKind.THOUGHT if kind is EventKind.MESSAGE else EventKind.MESSAGE
            yield from self._flush(other)
            self._text[kind] += text

    def _flush(self, *kinds: EventKind) -> Iterator[AgentEvent]:
        for kind in kinds:
            text, self._text[kind] = self._text[kind], ""
            if text.strip():
                if kind is EventKind.MESSAGE:
                    self.message = text
                yield AgentEvent(kind, text)

    def _tool_call(self, message: Any) -> Iterator[AgentEvent]:
        yield from self._flush(EventKind.THOUGHT, EventKind.MESSAGE)
        begins = message.status == "running"
        if begins and message.call_id in self._running:
            return
        self._running.add(message.call_id)
        arguments = message.args if isinstance(message.args, Mapping) else {}
        if message.name in _PLANS and (entries := _plan(arguments)):
            if begins:
                yield AgentEvent(EventKind.PLAN, data={"entries": entries})
            return
        data = _data(arguments, message.result)
        yield AgentEvent(
            EventKind.TOOL_CALL if begins else EventKind.TOOL_CALL_UPDATE,
            _text_of(message.name, arguments),
            tool=_KINDS.get(message.name, ToolKind.OTHER),
            status=ToolStatus.IN_PROGRESS if begins else _status(message, data),
            call_id=message.call_id,
            data=data,
        )

    def _usage(self, message: Any) -> Iterator[AgentEvent]:
        yield from self._flush(EventKind.THOUGHT, EventKind.MESSAGE)
        tokens = message.usage
        delta = Usage(
            input_tokens=max(tokens.input_tokens, tokens.total_tokens - tokens.output_tokens),
            cached_tokens=min(tokens.cache_read_tokens, tokens.input_tokens),
            output_tokens=tokens.output_tokens,
            reasoning_tokens=min(tokens.reasoning_tokens or 0, tokens.output_tokens),
        )
        self.usage += delta
        if delta.total_tokens:
            yield AgentEvent(EventKind.USAGE, data=delta.to_dict())

    def _status(self, message: Any) -> Iterator[AgentEvent]:
        if message.message:
            self.error = message.message
        yield from ()

    def _ended(self, result: Mapping[str, Any]) -> Iterator[AgentEvent]:
        yield from self._flush(EventKind.THOUGHT, EventKind.MESSAGE)
        self.status = str(result.get("status") or "").rpartition("_")[2].lower()
        parts = (result.get("errorCode"), result.get("errorMessage"))
        self.error = " ".join(str(part) for part in parts if part) or self.error
        if not self.message:
            self.message = str(result.get("result") or "")


_READERS: dict[str, Callable[[TurnReader, Any], Iterator[AgentEvent]]] = {
    "assistant": TurnReader._assistant,
    "thinking": TurnReader._thinking,
    "tool_call": TurnReader._tool_call,
    "usage": TurnReader._usage,
    "status": TurnReader._status,
}


def trouble(told: Any) -> AgentFailure | None:
    """Return the failure behind the program's own retry, None for everything else."""
    if not isinstance(told, Trouble):
        return None
    # What the program itself holds for passing must not end the step for good.
    passing = told.failure.retryable and not isinstance(told.failure, AgentFailed)
    if told.definite or passing:
        return told.failure
    return Unavailable("Cursor's backend cannot serve the request now", raw=told.failure.raw)


def is_heartbeat(told: Any) -> bool:
    """Return whether an event only says that the bridge is alive, which the agent need not be."""
    return bool(told.kind == "unknown")


def _plan(arguments: Mapping[str, Any]) -> list[dict[str, str]]:
    entries = arguments.get("todos")
    return [
        {"text": str(entry.get("content") or ""), "status": _todo_status(entry.get("status"))}
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping)
    ]


def _todo_status(value: object) -> str:
    words = str(value or "pending").lower()
    known = ("in_progress", "completed", "cancelled", "pending")
    return next((name for name in known if name.replace("_", "") in words.replace("_", "")), words)


def _text_of(name: str, arguments: Mapping[str, Any]) -> str:
    named = (arguments.get(key) for key in _TELLING)
    return next((str(value) for value in named if value), name)


def _data(arguments: Mapping[str, Any], result: object) -> dict[str, Any]:
    data: dict[str, Any] = {}
    paths = [str(arguments[key]) for key in _PATHS if arguments.get(key)]
    if paths and "command" not in arguments:
        data["paths"] = paths
    value = _value(result)
    if "exitCode" in value:
        data["exit_code"] = int(value["exitCode"])
        output = str(value.get("stdout") or "") + str(value.get("stderr") or "")
        if output:
            data["output"] = output[-_OUTPUT_TAIL:]
    elif reason := _reason(result):
        data["output"] = reason[-_OUTPUT_TAIL:]
    return data


def _value(result: object) -> Mapping[str, Any]:
    value = result.get("value") if isinstance(result, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _reason(result: object) -> str:
    error = result.get("error") if isinstance(result, Mapping) else None
    if isinstance(error, Mapping):
        return str(error.get("message") or error.get("reason") or "")
    return str(error or "")


def _status(message: Any, data: Mapping[str, Any]) -> ToolStatus:
    result = message.result
    failed = message.status == "error" or data.get("exit_code", 0) != 0
    if isinstance(result, Mapping) and result.get("status") not in (None, "success"):
        failed = True
    return ToolStatus.FAILED if failed else ToolStatus.COMPLETED
