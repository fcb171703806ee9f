"""Claude Code's messages as events, and the ends of its turns as failures.

Messages are those of the official SDK (https://docs.claude.com/en/api/agent-sdk/python). They and
their blocks are told apart by the names of their classes, so that this module imports no vendor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
    BudgetExceeded,
    ContextExhausted,
    OutputInvalid,
    PolicyViolation,
    QuotaExhausted,
    RateLimited,
    Unavailable,
)
from airflow_agent_provider.sandbox.door import UpstreamFailure

#: Characters of a tool's output that an event carries: its end, where the error stands.
_OUTPUT_TAIL = 4000
#: The tool that takes the structured answer: no tool of the agent's work.
_ANSWER_TOOL = "StructuredOutput"
#: The model of what Claude Code itself says in the model's place, errors of the API above all.
_NO_MODEL = "<synthetic>"
_EXIT_CODE = re.compile(r"Exit code (?P<code>\d+)\b")

#: Claude Code's own messages that matter, or tell that the model is at work; of the others, some
#: come by the clock.
_HEEDED = {"init", "api_retry", "compact_boundary", "informational", "thinking_tokens"}
#: USD below which two sums of the same prices differ by their rounding alone.
_NOTHING = 1e-9


def is_heeded(message: Any) -> bool:
    """Return whether a message tells of the agent's work, or of what keeps it from it."""
    return type(message).__name__ != "SystemMessage" or message.subtype in _HEEDED


def is_piece(message: Any) -> bool:
    """Return whether a message is a piece of what a later one tells as a whole."""
    kind = type(message).__name__
    return kind == "StreamEvent" and message.event.get("type") == "content_block_delta"


class TurnReader:
    """Turns the messages of one turn into events, and remembers how the turn ends.

    :param spent: USD of the session before this turn, which Claude Code adds the turn's to.
    :param estimate: returns the USD that tokens of a model cost, None if it does not know: Claude
        Code tells the turn's cost at its end only, and a budget is judged before.
    """

    def __init__(self, spent: float, estimate: Callable[[str | None, Usage], float | None]) -> None:
        self.spent = spent
        self._estimate = estimate
        self.usage = Usage()
        self.message = ""
        self.model: str | None = None
        #: The turn's last message, which tells how it ended.
        self.result: Any = None
        #: The kind of the API's last error, in Claude Code's words.
        self.error = ""
        self._calls: dict[str, AgentEvent] = {}
        self._answers: set[str] = set()
        self._tokens: dict[str, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether the turn was ended from outside."""
        return str(getattr(self.result, "terminal_reason", "")).startswith("aborted")

    def events(self, message: Any) -> Iterator[AgentEvent]:
        """Yield the events that ``message`` tells; none for those that matter to nobody."""
        kind = type(message).__name__
        if kind == "SystemMessage":
            read = _SYSTEM_READERS.get(message.subtype)
        else:
            read = _READERS.get(kind)
        if read is not None:
            yield from read(self, message)

    def _stream(self, message: Any) -> Iterator[AgentEvent]:
        event = message.event
        if event.get("type") == "message_start":
            message = event.get("message") or {}
            self.model = message.get("model") or self.model
            self._tokens = dict(message.get("usage") or {})
        elif event.get("type") == "message_delta":
            told = {name: value for name, value in (event.get("usage") or {}).items() if value}
            usage = _usage_of({**self._tokens, **told})
            self._tokens = {}
            # What nobody can price now is in the turn's cost at its end.
            yield from self._spend(usage, self._estimate(self.model, usage) or 0.0)

    def _assistant(self, message: Any) -> Iterator[AgentEvent]:
        if message.model == _NO_MODEL:
            self.error = message.error or self.error
            return
        self.model = message.model or self.model
        for block in message.content:
            read = _BLOCK_READERS.get(type(block).__name__)
            if read is not None:
                yield from read(self, block)

    def _text(self, block: Any) -> Iterator[AgentEvent]:
        self.message = block.text
        yield AgentEvent(EventKind.MESSAGE, block.text)

    def _thinking(self, block: Any) -> Iterator[AgentEvent]:
        if block.thinking.strip():
            yield AgentEvent(EventKind.THOUGHT, block.thinking.strip())

    def _tool_use(self, block: Any) -> Iterator[AgentEvent]:
        if block.name == _ANSWER_TOOL:
            self._answers.add(block.id)
            self.message = json.dumps(block.input)
            yield AgentEvent(EventKind.MESSAGE, self.message)
            return
        kind, text, paths = _describe(block.name, block.input)
        self._calls[block.id] = call = AgentEvent(
            EventKind.TOOL_CALL,
            text,
            tool=kind,
            status=ToolStatus.IN_PROGRESS,
            call_id=block.id,
            data={"paths": paths} if paths else {},
        )
        yield call

    def _user(self, message: Any) -> Iterator[AgentEvent]:
        for block in message.content if isinstance(message.content, list) else ():
            if type(block).__name__ == "ToolResultBlock":
                yield from self._tool_result(block)

    def _tool_result(self, block: Any) -> Iterator[AgentEvent]:
        output = _plain(block.content)
        if block.tool_use_id in self._answers:
            if block.is_error:
                yield AgentEvent(EventKind.NOTICE, f"The answer was refused: {output}")
            return
        call = self._calls.pop(block.tool_use_id, None)
        if call is None:
            return
        data = dict(call.data)
        if call.tool is ToolKind.EXECUTE:
            data |= _exit(output, bool(block.is_error))
        if output and (block.is_error or call.tool is ToolKind.EXECUTE):
            data["output"] = output[-_OUTPUT_TAIL:]
        status = ToolStatus.FAILED if block.is_error else ToolStatus.COMPLETED
        yield AgentEvent(
            EventKind.TOOL_CALL_UPDATE,
            call.text,
            tool=call.tool,
            status=status,
            call_id=call.call_id,
            data=data,
        )

    def _retry(self, message: Any) -> Iterator[AgentEvent]:
        data = message.data
        status = f" (HTTP {data['error_status']})" if data.get("error_status") else ""
        yield AgentEvent(
            EventKind.NOTICE,
            f"Claude Code tries again, {data.get('attempt')} of {data.get('max_retries')}: "
            f"{data.get('error')}{status}",
        )

    def _compacted(self, message: Any) -> Iterator[AgentEvent]:
        yield AgentEvent(EventKind.NOTICE, "Claude Code summarized the session to make room in it")

    def _informed(self, message: Any) -> Iterator[AgentEvent]:
        if message.data.get("content"):
            yield AgentEvent(EventKind.NOTICE, str(message.data["content"]))

    def _result(self, message: Any) -> Iterator[AgentEvent]:
        self.result = message
        self.message = message.result or self.message
        for denial in message.permission_denials or ():
            name, values = denial.get("tool_name", ""), denial.get("tool_input") or {}
            yield AgentEvent(
                EventKind.NOTICE, f"Claude Code refused {name}: {_describe(name, values)[1]}"
            )
        # What was streamed has been told; requests that were not streamed are in the sum alone.
        left = _usage_of(message.usage or {}) - replace(self.usage, cost=None)
        yield from self._spend(left, self._settle(message.total_cost_usd))

    def _settle(self, total: float | None) -> float | None:
        """Return what the turn's cost is more, or less, than was told of it so far."""
        if total is None:
            return None
        # A sum that is smaller than before was begun anew.
        before, self.spent = (self.spent if total >= self.spent else 0.0), total
        return total - before - (self.usage.cost or 0.0)

    def _spend(self, usage: Usage, cost: float | None) -> Iterator[AgentEvent]:
        if cost is not None and abs(cost) < _NOTHING and not usage.total_tokens:
            return
        usage = replace(usage, cost=cost)
        self.usage += usage
        if usage.total_tokens or cost:
            data: dict[str, Any] = dict(usage.to_dict())
            yield AgentEvent(EventKind.USAGE, data=data if cost is None else {**data, "cost": cost})

    def _begun(self, message: Any) -> Iterator[AgentEvent]:
        self.model = message.data.get("model") or self.model
        yield from ()


_Reader = Callable[[TurnReader, Any], Iterator[AgentEvent]]

_READERS: dict[str, _Reader] = {
    "StreamEvent": TurnReader._stream,
    "AssistantMessage": TurnReader._assistant,
    "UserMessage": TurnReader._user,
    "ResultMessage": TurnReader._result,
}
_SYSTEM_READERS: dict[str, _Reader] = {
    "init": TurnReader._begun,
    "api_retry": TurnReader._retry,
    "compact_boundary": TurnReader._compacted,
    "informational": TurnReader._informed,
}
_BLOCK_READERS: dict[str, _Reader] = {
    "TextBlock": TurnReader._text,
    "ThinkingBlock": TurnReader._thinking,
    "ToolUseBlock": TurnReader._tool_use,
}


def _usage_of(tokens: Mapping[str, Any]) -> Usage:
    def count(name: str, values: Mapping[str, Any] = tokens) -> int:
        return int(values.get(name) or 0)

    cached = count("cache_read_input_tokens")
    details = tokens.get("output_tokens_details") or {}
    return Usage(
        # The vendor counts what it read from its cache, or wrote to it, apart.
        input_tokens=count("input_tokens") + count("cache_creation_input_tokens") + cached,
        cached_tokens=cached,
        output_tokens=count("output_tokens"),
        reasoning_tokens=count("thinking_tokens", details),
    )


#: The tools by their names: what they do, the argument that says it, and whether that is a path.
_TOOLS: dict[str, tuple[ToolKind, str, bool]] = {
    "Bash": (ToolKind.EXECUTE, "command", False),
    "Read": (ToolKind.READ, "file_path", True),
    "Edit": (ToolKind.EDIT, "file_path", True),
    "Write": (ToolKind.EDIT, "file_path", True),
    "NotebookEdit": (ToolKind.EDIT, "notebook_path", True),
    "Glob": (ToolKind.SEARCH, "pattern", False),
    "Grep": (ToolKind.SEARCH, "pattern", False),
    "WebFetch": (ToolKind.FETCH, "url", False),
    "WebSearch": (ToolKind.FETCH, "query", False),
}


def _describe(name: str, values: Any) -> tuple[ToolKind, str, list[str]]:
    kind, argument, is_path = _TOOLS.get(name, (ToolKind.OTHER, "", False))
    text = str(values.get(argument) or name) if isinstance(values, Mapping) else name
    return kind, text, [text] if is_path and text != name else []


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part
    )


def _exit(output: str, failed: bool) -> dict[str, int]:
    """Return a command's exit code; none for a command that was refused or cut off."""
    if not failed:
        return {"exit_code": 0}
    code = _EXIT_CODE.match(output)
    return {"exit_code": int(code["code"])} if code else {}


def trouble(message: Any, upstream: UpstreamFailure | None = None) -> AgentFailure | None:
    """Return the failure behind Claude Code's own retry, None for every other message.

    :param message: any message.
    :param upstream: how the model's API failed last, as the door saw it.
    """
    if type(message).__name__ != "SystemMessage" or message.subtype != "api_retry":
        return None
    status, kind = message.data.get("error_status"), str(message.data.get("error") or "")
    failure = _by_api(status, kind, f"{kind} (HTTP {status})", upstream)
    # What Claude Code itself holds for passing must not end the step for good.
    if failure.retryable and not isinstance(failure, AgentFailed):
        return failure
    return Unavailable("the model's API cannot be reached", raw=failure.raw)


def classify(result: Any, kind: str = "", upstream: UpstreamFailure | None = None) -> AgentFailure:
    """Return the failure that the end of a turn tells.

    :param result: the turn's last message, an error.
    :param kind: the kind of the API's error, in Claude Code's words.
    :param upstream: how the model's API failed last, as the door saw it.
    """
    words = [*(result.errors or ()), result.result or ""]
    raw = "\n".join(word for word in words if word) or result.subtype
    if result.subtype in _BY_SUBTYPE:
        return _BY_SUBTYPE[result.subtype](raw)
    if result.terminal_reason in ("prompt_too_long", "image_error"):
        return _context(_joined(raw, upstream))
    if result.stop_reason == "refusal":
        return PolicyViolation("the vendor refused the task by its usage policy", raw=raw)
    return _by_api(result.api_error_status, kind, raw, upstream)


def _by_api(
    status: int | None, kind: str, raw: str, upstream: UpstreamFailure | None
) -> AgentFailure:
    raw = _joined(raw, upstream)
    if status is None and upstream is not None:
        status = upstream.status
    for words, make in _BY_WORDS:
        if words in raw.lower():
            return make(raw)
    if kind in _BY_KIND:
        return _BY_KIND[kind](raw)
    if status is not None:
        return _by_status(status, raw, upstream)
    if upstream is not None or kind == "server_error":
        return Unavailable("the model's API cannot be reached", raw=raw)
    return AgentFailed("Claude Code failed", raw=raw)


def _by_status(status: int, raw: str, upstream: UpstreamFailure | None) -> AgentFailure:
    if status in (401, 403):
        return _unauthorized(raw)
    if status == 402:
        return _quota(raw)
    if status == 413:
        return _context(raw)
    if status == 429:
        wait = upstream.retry_after if upstream is not None else None
        return RateLimited(
            "the rate limit of the model's API is reached", raw=raw, retry_after=wait
        )
    if status in (408, 409) or status >= 500:
        return Unavailable(f"the model's API answered with HTTP status {status}", raw=raw)
    return AgentFailed(f"the model's API refused the request with HTTP status {status}", raw=raw)


def _joined(raw: str, upstream: UpstreamFailure | None) -> str:
    """Return Claude Code's words with those of the API itself, which it abridges."""
    if upstream is None or not upstream.words or upstream.words in raw:
        return raw
    return f"{raw}\n{upstream.words}"


def _unauthorized(raw: str) -> AgentFailure:
    return AuthenticationFailed("the model's API refused the key", raw=raw)


def _quota(raw: str) -> AgentFailure:
    return QuotaExhausted("the quota of the vendor's account is used up", raw=raw)


def _context(raw: str) -> AgentFailure:
    return ContextExhausted("the session no longer fits the model's context", raw=raw)


_BY_SUBTYPE: dict[str, Callable[[str], AgentFailure]] = {
    "error_max_turns": lambda raw: AgentFailed(
        "Claude Code used up the step's max_turns before it was done", raw=raw
    ),
    "error_max_budget_usd": lambda raw: BudgetExceeded(
        "Claude Code spent the step's max_budget_usd before it was done", raw=raw
    ),
    "error_max_structured_output_retries": lambda raw: OutputInvalid(
        "Claude Code's answer does not match the schema, in several tries", raw=raw
    ),
}

_BY_KIND: dict[str, Callable[[str], AgentFailure]] = {
    "authentication_failed": _unauthorized,
    "billing_error": _quota,
}

#: What no kind and no status tells, in small letters.
_BY_WORDS: tuple[tuple[str, Callable[[str], AgentFailure]], ...] = (
    ("credit balance is too low", _quota),
    ("your specified api usage limits", _quota),
    ("context window limit", _context),
)
