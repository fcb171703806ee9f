"""The Agent Client Protocol's session updates as events, and an agent's errors as failures.

Updates are those of the official library ``agent-client-protocol``
(https://agentclientprotocol.com/protocol/schema). They are told apart by their names, so that this
module imports no vendor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    PolicyViolation,
)
from airflow_agent_provider.agents.model_errors import failure_of_answer, failure_of_words

#: Characters of a tool's output that an event carries: its end, where the error stands.
_OUTPUT_TAIL = 4000
#: Code of the error by which an agent asks to be authenticated first.
_AUTH_REQUIRED = -32000

#: Where tools name the file that they are about, and how a command ended.
_PATH_KEYS = ("file_path", "filePath", "absolute_path", "path")
_EXIT_KEYS = ("exit_code", "exitCode", "exit")
#: How agents that give the exit code as text do so.
_EXIT_TEXT = re.compile(r"^Exit Code: (?P<code>-?\d+)\s*$", re.MULTILINE)


@dataclass
class _Call:
    """A tool call, as far as the agent has told it."""

    id: str
    title: str = ""
    kind: str | None = None
    status: str | None = None
    paths: list[str] = field(default_factory=list)
    output: str = ""
    exit_code: int | None = None
    told: bool = False

    def take(self, call: Any) -> None:
        """Take what an update of the call adds."""
        self.title = call.title or self.title
        self.kind = call.kind or self.kind
        self.status = call.status or self.status
        self.paths = paths_of(call) or self.paths
        self.output = _output(call) or self.output
        code = _exit_code(call.raw_output)
        if code is None and self.kind == "execute" and (told := _EXIT_TEXT.search(self.output)):
            code = int(told["code"])
        self.exit_code = code if code is not None else self.exit_code

    @property
    def ended(self) -> bool:
        """Whether the agent says that it is over."""
        return self.status in ("completed", "failed")

    def event(self, kind: EventKind, status: ToolStatus) -> AgentEvent:
        """Return the event that tells the call as it is now."""
        data: dict[str, Any] = {}
        if self.paths and self.kind != "execute":
            data["paths"] = self.paths
        if kind is EventKind.TOOL_CALL_UPDATE:
            if self.exit_code is not None:
                data["exit_code"] = self.exit_code
            if self.output:
                data["output"] = self.output[-_OUTPUT_TAIL:]
        tool = _TOOLS.get(self.kind or "", ToolKind.OTHER)
        return AgentEvent(kind, self.title, tool=tool, status=status, call_id=self.id, data=data)

    def end(self) -> AgentEvent:
        """Return the event of its end; a command that fails has failed, whoever ran it well."""
        failed = self.status == "failed" or self.exit_code not in (None, 0)
        status = ToolStatus.FAILED if failed else ToolStatus.COMPLETED
        return self.event(EventKind.TOOL_CALL_UPDATE, status)


_TOOLS = {kind.value: kind for kind in ToolKind}


@dataclass
class Spent:
    """The sums that an agent counts from the begin of its session.

    :param tokens: at the end of the latest turn; None if they are not known, as after a resume in
        another process.
    :param cost: USD; None if it is not known.
    """

    tokens: Usage | None = None
    cost: float | None = None


class TurnReader:
    """Turns the updates of one turn into events, and remembers how the turn ends.

    Chunks of a message are one event, as soon as the message is over.

    :param spent: the session's sums so far; brought up to date.
    :param sums: whether the agent tells the session's sum at a turn's end, as the protocol has it.
    """

    def __init__(self, spent: Spent, *, sums: bool = True) -> None:
        self.usage = Usage()
        self.message = ""
        self.stop_reason = ""
        self._spent = spent
        # Where each answer of the model tells its own, the sum at the end adds nothing.
        self._sums = sums
        self._calls: dict[str, _Call] = {}
        self._text: list[str] = []
        self._kind = EventKind.MESSAGE
        self._message_id: str | None = None

    def events(self, update: Any) -> Iterator[AgentEvent]:
        """Yield the events that ``update`` tells; none for those that matter to nobody."""
        read = _READERS.get(getattr(update, "session_update", ""))
        if read is not None:
            yield from read(self, update)

    def asked(self, call: Any, refusal: str | None) -> Iterator[AgentEvent]:
        """Yield the events of a request for permission.

        :param call: the tool call.
        :param refusal: why it was refused, None if it was not.
        """
        yield from self.close()
        known = self._call(call)
        if not known.told:
            known.told = True
            yield known.event(EventKind.TOOL_CALL, ToolStatus.IN_PROGRESS)
        if refusal:
            yield AgentEvent(EventKind.NOTICE, f"refused: {known.title}: {refusal}")

    def end(self, answer: Any) -> Iterator[AgentEvent]:
        """Yield the last events of the turn.

        :param answer: the agent's answer to the prompt.
        """
        yield from self.close()
        self.stop_reason = answer.stop_reason
        if answer.usage is not None and self._sums:
            before = self._spent.tokens
            self._spent.tokens = total = _usage_of(answer.usage.model_dump(by_alias=True))
            if before is not None:
                yield from self._spend(total - before)

    def close(self) -> Iterator[AgentEvent]:
        """Yield the message that was begun and is not told yet."""
        text, self._text = "".join(self._text), []
        if text.strip():
            if self._kind is EventKind.MESSAGE:
                self.message = text
            yield AgentEvent(self._kind, text)

    def _chunk(self, kind: EventKind, update: Any) -> Iterator[AgentEvent]:
        text = getattr(update.content, "text", None)
        if text is None:
            text = f"[{update.content.type}]"
        other = update.message_id != self._message_id and update.message_id is not None
        if text and (kind is not self._kind or other):
            yield from self.close()
            self._kind, self._message_id = kind, update.message_id
        if text:
            self._text.append(text)
        usage = (update.field_meta or {}).get("usage")
        if isinstance(usage, Mapping):
            self._sums = False
            yield from self._spend(_usage_of(usage))

    def _message_chunk(self, update: Any) -> Iterator[AgentEvent]:
        yield from self._chunk(EventKind.MESSAGE, update)

    def _thought_chunk(self, update: Any) -> Iterator[AgentEvent]:
        yield from self._chunk(EventKind.THOUGHT, update)

    def _tool_call(self, update: Any) -> Iterator[AgentEvent]:
        yield from self.close()
        call = self._call(update)
        # A pending call may not know yet what it is about.
        if not call.told and call.status not in (None, "pending"):
            call.told = True
            yield call.event(EventKind.TOOL_CALL, ToolStatus.IN_PROGRESS)
        if call.ended:
            del self._calls[call.id]
            yield call.end()

    def _call(self, update: Any) -> _Call:
        call = self._calls.setdefault(update.tool_call_id, _Call(update.tool_call_id))
        call.take(update)
        return call

    def _plan(self, update: Any) -> Iterator[AgentEvent]:
        yield from self.close()
        entries = [{"text": entry.content, "status": entry.status} for entry in update.entries]
        yield AgentEvent(EventKind.PLAN, data={"entries": entries})

    def _usage_update(self, update: Any) -> Iterator[AgentEvent]:
        # What it says of tokens is how full the context is, not what was spent.
        if update.cost is not None and update.cost.currency == "USD":
            before, self._spent.cost = self._spent.cost, update.cost.amount
            if before is not None:
                yield from self._spend(Usage(cost=max(0.0, update.cost.amount - before)))

    def _spend(self, usage: Usage) -> Iterator[AgentEvent]:
        self.usage += usage
        if usage.total_tokens or usage.cost:
            cost = {} if usage.cost is None else {"cost": usage.cost}
            yield AgentEvent(EventKind.USAGE, data={**usage.to_dict(), **cost})


_READERS: dict[str, Callable[[TurnReader, Any], Iterator[AgentEvent]]] = {
    "agent_message_chunk": TurnReader._message_chunk,
    "agent_thought_chunk": TurnReader._thought_chunk,
    "tool_call": TurnReader._tool_call,
    "tool_call_update": TurnReader._tool_call,
    "plan": TurnReader._plan,
    "usage_update": TurnReader._usage_update,
}


def _usage_of(values: Mapping[str, Any]) -> Usage:
    def count(*names: str) -> int:
        return sum(int(values.get(name) or 0) for name in names)

    read, written = count("inputTokens"), count("outputTokens")
    cached, thought = count("cachedReadTokens", "cachedWriteTokens"), count("thoughtTokens")
    if read + written != count("totalTokens"):
        # Some agents count the cached and the thought ones apart.
        read, written = read + cached, written + thought
    return Usage(read, count("cachedReadTokens"), written, thought)


def paths_of(call: Any) -> list[str]:
    """Return the files that a tool call is about, as far as the agent says."""
    found = [location.path for location in call.locations or ()]
    found += [part.path for part in call.content or () if part.type == "diff"] if not found else []
    values = call.raw_input if isinstance(call.raw_input, dict) else {}
    if not found:
        found = [values[key] for key in _PATH_KEYS if isinstance(values.get(key), str)]
    return list(dict.fromkeys(found))


def _output(call: Any) -> str:
    texts = [
        getattr(part.content, "text", "") for part in call.content or () if part.type == "content"
    ]
    if any(texts):
        return "\n".join(filter(None, texts))
    return call.raw_output if isinstance(call.raw_output, str) else ""


def _exit_code(output: Any) -> int | None:
    if not isinstance(output, dict):
        return None
    more = output.get("metadata")
    for values in (output, more if isinstance(more, dict) else {}):
        for key in _EXIT_KEYS:
            if isinstance(values.get(key), int):
                return int(values[key])
    return None


def classify(code: int, message: str, data: Any) -> AgentFailure:
    """Return the failure that an agent's error is; agents put their model's error into the words.

    :param code: the error's code, of JSON-RPC, of the protocol, or an HTTP status.
    :param message: its message.
    :param data: what it has besides.
    """
    words = error_words(message, data)
    if code == _AUTH_REQUIRED:
        return AuthenticationFailed("the agent asks to be authenticated first", raw=words)
    if 400 <= code < 600:
        return failure_of_answer(code, words)
    # What stands in the data is closer to the cause than the message, which names a class.
    return failure_of_words(_told(data) or words)


def error_words(message: str, data: Any) -> str:
    """Return all that an error says, as one text."""
    rest = "" if data is None else json.dumps(data, default=str)
    return "\n".join(dict.fromkeys(part for part in (message, _told(data) or rest) if part))


def _told(data: Any) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        for key in ("details", "message", "error"):
            if isinstance(data.get(key), str):
                return str(data[key])
    return ""


def refused(stop_reason: str) -> AgentFailure | None:
    """Return the failure that the end of a turn is, None if the turn was completed or cancelled."""
    if stop_reason in ("end_turn", "cancelled"):
        return None
    if stop_reason == "refusal":
        return PolicyViolation("the model refused to go on with the task")
    words = {
        "max_tokens": "the model's answer was longer than the model allows",
        "max_turn_requests": "the agent made as many requests as it may in one turn",
    }
    return AgentFailed(words.get(stop_reason, f"the agent stopped: {stop_reason}"))
