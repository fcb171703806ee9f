"""What an agent is: a task goes in, a stream of events comes out, a result ends it.

Event kinds follow the Agent Client Protocol's session updates, so that one transcript format fits
all agents (https://agentclientprotocol.com/protocol/schema).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Access(StrEnum):
    """What the agent may do to its workspace."""

    WRITE = "write"
    READ_ONLY = "read_only"


class Sandbox(StrEnum):
    """Whether a local agent runs inside the box (``[agents] sandbox``)."""

    #: Inside the box, or not at all.
    REQUIRED = "required"
    #: Unboxed where the worker has no namespaces; the log and the outcome say so.
    AUTO = "auto"
    #: Never; for workers that are throw-away containers.
    OFF = "off"


class Network(StrEnum):
    """What an agent reaches from inside the box."""

    #: Its model alone, through the door.
    MODEL = "model"
    #: What the worker reaches, for a step that must install packages.
    OPEN = "open"


@dataclass(frozen=True)
class Confinement:
    """The bounds that an agent's program is held in.

    :param sandbox: whether it runs inside the box.
    :param network: what it reaches.
    :param read_only_paths: more folders of the worker that it may read, such as toolchains.
    :param memory: bytes of memory that one process may allocate.
    :param processes: how many processes there may be; root is not bound by it.
    :param file_size: bytes that one file may have.
    :param disk: bytes by which workspace and session home may grow together.
    """

    sandbox: Sandbox = Sandbox.REQUIRED
    network: Network = Network.MODEL
    read_only_paths: tuple[Path, ...] = ()
    memory: int = 8 * 1024**3
    processes: int = 1024
    file_size: int = 2 * 1024**3
    disk: int = 10 * 1024**3


class EventKind(StrEnum):
    """What an event tells, in the Agent Client Protocol's words."""

    MESSAGE = "message"
    THOUGHT = "thought"
    TOOL_CALL = "tool_call"
    TOOL_CALL_UPDATE = "tool_call_update"
    PLAN = "plan"
    USAGE = "usage"
    #: Ours: the session has an id and can be resumed from here on.
    SESSION = "session"
    #: Ours: something the user should read, such as the vendor's own retry.
    NOTICE = "notice"


class ToolKind(StrEnum):
    """What a tool call does, in the Agent Client Protocol's words."""

    READ = "read"
    EDIT = "edit"
    DELETE = "delete"
    MOVE = "move"
    SEARCH = "search"
    EXECUTE = "execute"
    THINK = "think"
    FETCH = "fetch"
    OTHER = "other"


class ToolStatus(StrEnum):
    """How far a tool call is."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Usage:
    """Tokens of one turn or of several, and their cost.

    :param input_tokens: tokens read, the cached ones included.
    :param cached_tokens: those of ``input_tokens`` that came from the vendor's cache.
    :param output_tokens: tokens written, the reasoning ones included.
    :param reasoning_tokens: those of ``output_tokens`` that were reasoning.
    :param cost: USD as the vendor charged; None if the vendor does not say, never 0 for unknown.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None

    @property
    def total_tokens(self) -> int:
        """Tokens read and written."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )

    def __sub__(self, other: Usage) -> Usage:
        """Return what came since ``other``: vendors report sums over the whole session."""
        known = self.cost is not None and other.cost is not None
        return Usage(
            max(0, self.input_tokens - other.input_tokens),
            max(0, self.cached_tokens - other.cached_tokens),
            max(0, self.output_tokens - other.output_tokens),
            max(0, self.reasoning_tokens - other.reasoning_tokens),
            self.cost - other.cost if known else self.cost,  # type: ignore[operator]
        )

    def to_dict(self) -> dict[str, int]:
        """Return the token counts as JSON values; the cost stands beside them, not among them."""
        return {
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "total_tokens": self.total_tokens,
        }


@dataclass(frozen=True)
class Session:
    """An agent's conversation that a later attempt can continue.

    :param agent: the agent's name; no other agent can resume it.
    :param id: the vendor's id of the conversation.
    """

    agent: str
    id: str


@dataclass(frozen=True)
class Limits:
    """How long an agent may take.

    :param timeout: seconds for the whole attempt.
    :param stall: seconds without any event after which the agent counts as stalled.
    :param started: the monotonic clock's seconds when the attempt began.
    """

    timeout: float = 3600.0
    stall: float = 600.0
    started: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float:
        """Seconds left of the timeout, 0 if it is over."""
        return max(0.0, self.started + self.timeout - time.monotonic())


@dataclass(frozen=True)
class AgentTask:
    """What an agent is asked to do.

    :param prompt: the resolved prompt.
    :param workspace: the git working tree; the same path on every worker.
    :param home: the session's own folder, outside the workspace: the vendor's state, temporary
        files and configuration.
    :param access: what the agent may do to the workspace.
    :param model: the vendor's model name; None takes the connection's or the vendor's default.
    :param output_schema: JSON schema of the final answer, if it shall be structured.
    :param session: the conversation to continue, if any.
    :param limits: how long the agent may take.
    :param options: settings of this agent alone, as its hook documents them.
    :param confinement: the bounds that its program is held in.
    """

    prompt: str
    workspace: Path
    home: Path
    access: Access = Access.WRITE
    model: str | None = None
    output_schema: Mapping[str, Any] | None = None
    session: Session | None = None
    limits: Limits = field(default_factory=Limits)
    options: Mapping[str, Any] = field(default_factory=dict)
    confinement: Confinement = field(default_factory=Confinement)


@dataclass(frozen=True)
class AgentEvent:
    """One thing that an agent said or did.

    :param kind: what the event tells.
    :param text: the message, thought, notice, or a line that names the tool call.
    :param tool: for tool calls, the kind of tool.
    :param status: for tool calls, how far it is.
    :param call_id: for tool calls, the id that joins a call and its updates.
    :param data: more values, JSON: paths, exit code, plan entries, tokens.
    """

    kind: EventKind
    text: str = ""
    tool: ToolKind | None = None
    status: ToolStatus | None = None
    call_id: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def completes_tool(self) -> bool:
        """Whether a tool call ended with this event, so that a checkpoint is worthwhile."""
        return self.status in (ToolStatus.COMPLETED, ToolStatus.FAILED)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON values, without the fields that are empty."""
        values = {
            "kind": self.kind.value,
            "text": self.text,
            "tool": self.tool and self.tool.value,
            "status": self.status and self.status.value,
            "call_id": self.call_id,
            "data": dict(self.data),
        }
        return {name: value for name, value in values.items() if value}


def usage_of(event: AgentEvent) -> Usage:
    """Return what a usage event reports: the tokens and cost since the usage event before it."""
    return Usage(
        input_tokens=int(event.data.get("input_tokens", 0)),
        cached_tokens=int(event.data.get("cached_tokens", 0)),
        output_tokens=int(event.data.get("output_tokens", 0)),
        reasoning_tokens=int(event.data.get("reasoning_tokens", 0)),
        cost=event.data.get("cost"),
    )


@dataclass(frozen=True)
class AgentResult:
    """How a turn ended, by the agent's own account: no proof that the work is done.

    :param status: ``completed`` or ``interrupted``; failures are raised, not returned.
    :param message: the agent's final message.
    :param structured: the final message as JSON values where a schema was asked for and the
        message is JSON; not yet held against the schema.
    :param session: the conversation, to be continued.
    :param usage: tokens of this turn alone.
    :param model: the model that answered, if the vendor says.
    """

    status: str
    message: str
    structured: Any = None
    session: Session | None = None
    usage: Usage = field(default_factory=Usage)
    model: str | None = None


@dataclass(frozen=True)
class AgentCapabilities:
    """What an agent can do; a workflow that asks for more fails when it is parsed.

    :param local: its program runs on the worker; an agent may be both local and hosted.
    """

    resume: bool = False
    structured_output: bool = False
    read_only: bool = False
    usage: bool = False
    cost: bool = False
    hosted: bool = False
    local: bool = False
    interrupt: bool = False


class AgentSession(ABC):
    """An agent at work on the worker: one conversation, one or more turns. A context manager.

    Leaving the context ends every process that the session started.
    """

    @property
    @abstractmethod
    def session(self) -> Session | None:
        """The conversation, once it can be resumed."""

    @property
    def model(self) -> str | None:
        """The model that answers, once it is known; what tokens cost is looked up by it."""
        return None

    @property
    def metered(self) -> bool:
        """Whether the account pays by tokens, so that list prices tell what a turn costs."""
        return True

    @property
    def boxed(self) -> bool | None:
        """Whether the program runs inside the box; None where none runs on this worker."""
        return None

    @abstractmethod
    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let the agent work on ``prompt``; yield its events as they come, return its result.

        Never blocks longer than the task's limits.

        :param prompt: what to do.
        :param output_schema: JSON schema of the final answer, if it shall be structured.
        :raises AgentFailure: of exactly one class, with the vendor's words in ``raw``.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End the turn under way; callable from any thread, and harmless when there is none."""

    @abstractmethod
    def portable_files(self) -> Mapping[str, Path]:
        """Return the files that resume the session elsewhere, by their path below the home."""

    @abstractmethod
    def settle(self, call: AgentEvent) -> bool:
        """Wait until the portable files tell of a tool call's end: programs say so before.

        Files that are kept too soon would have the next attempt do again what the tree has.

        :param call: the event that completed the call.
        :returns: whether they are known to; False, within seconds, where that cannot be seen.
        """

    @abstractmethod
    def close(self) -> None:
        """End the session and all of its processes within a bounded time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
