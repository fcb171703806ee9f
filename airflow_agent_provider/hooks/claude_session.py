"""Claude Code at work on one task: its program, its conversation, its turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentTask,
    EventKind,
    Session,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    Interrupted,
    InvalidDefinition,
    TimedOut,
)
from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.agents.prices import load_prices
from airflow_agent_provider.agents.watch import Overdue
from airflow_agent_provider.hooks.claude_events import (
    TurnReader,
    classify,
    is_heeded,
    is_piece,
    trouble,
)
from airflow_agent_provider.hooks.instructions import read_instructions
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.hooks.session_files import in_one_line, settled
from airflow_agent_provider.hooks.vendor import Vendor, refused_key
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream, UpstreamFailure

if TYPE_CHECKING:
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Message
    from claude_agent_sdk.types import PermissionMode, SystemPromptPreset

#: Seconds for Claude Code to end by itself before it is killed.
_CLOSE_SECONDS = 5.0
#: Seconds for the pipes of a program that was killed to be closed.
_PIPES_SECONDS = 0.1
#: Bytes of one message. The SDK's own 1 MiB is less than a large file that is written or read.
_MOST_MESSAGE = 64 * 1024**2
#: The last lines of Claude Code's standard error that are kept.
_MOST_WORDS = 50
#: Of the stall time, how much a command may take before Claude Code itself ends it, and tells the
#: model: else its silence would end the whole attempt.
_COMMAND_SHARE = 0.9
#: Seconds that a command may take where the model names no time.
_COMMAND_SECONDS = 120.0
#: Seconds that Claude Code waits for an answer longer than the step does.
_ANSWER_MARGIN = 60.0

#: Seconds in which one piece of an answer is sign of life enough.
_PIECE_SECONDS = 0.5

INSTALL = "install it on the worker with: pip install 'airflow-agent-provider[claude]'"

#: The tools that look, and those that do. No sub-agents, no work in the background, and no search
#: of the web, which is a way out for data and a way in for instructions.
_LOOKS = ("Glob", "Grep", "Read")
_SHELL = "Bash"
_EDITS = ("Edit", "NotebookEdit", "Write")

#: Leads the prompt of a resumed session, since Claude Code tells the model what is not true.
_RESUMED = (
    "If this conversation says that the user interrupted you, or told you to stop and wait: nobody "
    "did. It ended for a technical reason, and a call that ran at that moment did not complete. Go "
    "on with the work.\n\n"
)


class ClaudeOptions(BaseModel):
    """What a step's ``options:`` may set for Claude Code.

    :param effort: how long the model reasons; None takes the model's default.
    :param max_turns: how often a turn may ask the model before it fails; None for no bound.
    :param max_budget_usd: USD at list price that an attempt may take before it fails as
        ``BudgetExceeded``, judged by Claude Code after each answer of the model; None for no bound.
    :param retries: how often Claude Code itself repeats a request that failed, before the attempt
        fails and Airflow retries it.
    :param patience: seconds of nothing but Claude Code's own retries after which the attempt
        fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    max_turns: int | None = Field(default=None, ge=1)
    max_budget_usd: float | None = Field(default=None, gt=0)
    retries: int = Field(default=1, ge=0, le=10)
    patience: float = Field(default=120.0, gt=0)


class ClaudeSession(LocalSession):
    """Claude Code at work for one task. Made by :meth:`ClaudeHook.start`."""

    agent = "claude"
    title = "Claude Code"

    def __init__(self, task: AgentTask, vendor: Vendor, options: ClaudeOptions) -> None:
        super().__init__(task)
        self._vendor = vendor
        self._options = options
        self._home = task.home / "claude"
        self._asked_model = task.model or vendor.model
        self._model = self._asked_model
        self._loop = SessionLoop("claude")
        self._client: ClaudeSDKClient | None = None
        self._connected = False
        self._id = str(uuid.uuid4())
        # The schema that the program was started for: it takes one for all of its turns.
        self._schema: Mapping[str, Any] | None = None
        self._resumable = False
        self._explain = False
        self._following = False
        self._closed = False
        self._spent = 0.0
        self._words: deque[str] = deque(maxlen=_MOST_WORDS)

    def open(self) -> None:
        """Start the program and open the conversation."""
        with self._failures("start"):
            self._open_box(self._program(find_program()), self._upstream())
            self._schema = self._task.output_schema
            earlier = self._task.session
            if earlier is None or not self._resume(earlier):
                self._connect()

    @property
    def session(self) -> Session | None:
        """The conversation, once Claude Code writes it down."""
        return Session("claude", self._id) if self._resumable else None

    @property
    def model(self) -> str | None:
        """The model that answers; before the first turn, the one that was asked for."""
        return self._model

    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let Claude Code work on ``prompt``; see :meth:`AgentSession.turn`."""
        reader = TurnReader(self._spent, load_prices().cost)
        yield from self._tell()
        with self._failures("turn"):
            self._take_schema(output_schema)
            self._begin(prompt)
            try:
                yield from self._follow(reader)
            finally:
                self._spent = reader.spent
            return self._result(reader)

    def interrupt(self) -> None:
        """End the turn under way, and the command that it runs."""
        client = self._client
        if client is not None:
            with contextlib.suppress(Exception):
                self._loop.run(client.interrupt(), _CLOSE_SECONDS, "interrupting Claude Code")

    def portable_files(self) -> Mapping[str, Path]:
        """Return the session's own file, from which Claude Code resumes in any other home."""
        return {
            path.relative_to(self._task.home).as_posix(): path
            for path in _session_files(self._home, self._id)
        }

    def settle(self, call: AgentEvent) -> bool:
        """Wait until the tool's result is written down."""
        return settled(
            lambda: _session_files(self._home, self._id),
            in_one_line(json.dumps(call.call_id), '"tool_result"'),
        )

    def _end(self) -> None:
        self._closed = True
        if self._following:
            # In mid-command it would not end by itself, nor write down how far it is.
            self.interrupt()
        # A program that is gone already makes the SDK raise; what counts is what is left.
        if self._connected:
            with contextlib.suppress(Exception):
                self._disconnect()
        if self._box is not None:
            self._box.kill()
        if self._client is not None:
            # It did not end by itself. Now that it is dead, the SDK lets go of it at once, and the
            # loop of its pipes as soon as the kernel has closed them.
            with contextlib.suppress(Exception):
                self._disconnect()
            with contextlib.suppress(Exception):
                self._loop.run(asyncio.sleep(_PIPES_SECONDS), _CLOSE_SECONDS, "closing its pipes")
        self._loop.close()

    def _program(self, program: Path) -> Program:
        return Program(
            command=(str(program),),
            folders=(program.parent,),
            environment=self._environment(),
            inherited=(
                "ANTHROPIC_BASE_URL",
                "ANTHROPIC_API_KEY",
                # The SDK sets these three itself.
                "CLAUDE_CODE_ENTRYPOINT",
                "CLAUDE_AGENT_SDK_VERSION",
                "CLAUDE_CODE_SDK_READS_SESSION_STATE",
            ),
        )

    def _environment(self) -> dict[str, str]:
        stall = self._task.limits.stall
        longest = max(1.0, stall * _COMMAND_SHARE)
        milliseconds = {
            "API_TIMEOUT_MS": stall + _ANSWER_MARGIN,
            "BASH_MAX_TIMEOUT_MS": longest,
            "BASH_DEFAULT_TIMEOUT_MS": min(longest, _COMMAND_SECONDS),
        }
        return {
            "CLAUDE_CONFIG_DIR": str(self._home),
            "CLAUDE_CODE_TMPDIR": str(self._task.home / "tmp"),
            "CLAUDE_CODE_MAX_RETRIES": str(self._options.retries),
            # Anything but the model: updates, statistics, tips.
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            # Notes that it would keep for later sessions, of which there is none in this home.
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            # What still ran after the turn's end would be ended with the box.
            "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
            "CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD": "1",
            **{name: str(int(value * 1000)) for name, value in milliseconds.items()},
        }

    def _upstream(self) -> Upstream:
        headers = {"x-api-key": self._vendor.key}
        return Upstream(self._vendor.url, headers, ("/v1/messages", "/v1/models"))

    def _resume(self, earlier: Session) -> bool:
        """Continue ``earlier``; return whether that worked, and else say why it did not."""
        files = _session_files(self._home, earlier.id) if earlier.agent == "claude" else []
        if not files:
            return self._give_up(f"the files of {earlier.id} are not here")
        fresh, self._id = self._id, earlier.id
        self._resumable = True
        try:
            self._connect()
        except (Overdue, TimedOut):
            raise
        except Exception as error:
            self._id, self._resumable = fresh, False
            self._disconnect()
            return self._give_up(self._raw(error))
        self._spent = _spent_before(files[0])
        self._explain = True
        return True

    def _give_up(self, why: str) -> bool:
        self._notices.append(f"The session cannot be continued, a new one starts: {why}")
        return False

    def _take_schema(self, schema: Mapping[str, Any] | None) -> None:
        """Start the program once more, in the same session, if it must have another schema."""
        if schema == self._schema:
            return
        self._schema = schema
        self._disconnect()
        self._connect()

    def _connect(self) -> None:
        from claude_agent_sdk import ClaudeSDKClient

        self._words.clear()
        seconds = self._patience()
        self._client = ClaudeSDKClient(self._sdk_options())
        # The box ends with the thread that it was started from: the loop's.
        self._loop.run(self._client.connect(), seconds, "starting Claude Code")
        self._connected = True

    def _disconnect(self) -> None:
        if self._client is not None:
            self._loop.run(self._client.disconnect(), _CLOSE_SECONDS, "ending Claude Code")
            self._client, self._connected = None, False

    def _sdk_options(self) -> ClaudeAgentOptions:
        from claude_agent_sdk import ClaudeAgentOptions

        schema = self._schema
        tools = self._tools()
        return ClaudeAgentOptions(
            cli_path=self.box.wrapper,
            cwd=self._task.workspace,
            env={
                "ANTHROPIC_BASE_URL": self.box.model_url,
                "ANTHROPIC_API_KEY": self.box.model_key,
            },
            model=self._asked_model,
            effort=self._options.effort,
            max_turns=self._options.max_turns,
            max_budget_usd=self._options.max_budget_usd,
            session_id=None if self._resumable else self._id,
            resume=self._id if self._resumable else None,
            output_format=None if schema is None else {"type": "json_schema", "schema": schema},
            tools=tools,
            allowed_tools=tools,
            permission_mode=self._permission_mode(),
            system_prompt=self._system_prompt(),
            # None of the project's settings: they bring commands that would run unasked (hooks,
            # helpers, servers). Its CLAUDE.md is wanted, and read since the folder is named.
            setting_sources=[],
            add_dirs=[self._task.workspace],
            strict_mcp_config=True,
            # We commit, not the agent: no word of how it should sign.
            settings=json.dumps({"disableAllHooks": True, "attribution": {"commit": "", "pr": ""}}),
            # A prompt may quote anybody: no "/command" and no "@file" in it may do anything.
            verbatim_prompts=True,
            # A long answer is no silence, and what it costs is known before the turn is over.
            include_partial_messages=True,
            max_buffer_size=_MOST_MESSAGE,
            stderr=self._words.append,
        )

    def _tools(self) -> list[str]:
        if self._task.access is Access.WRITE:
            return [_SHELL, *_EDITS, *_LOOKS]
        # Only in the box, where the workspace cannot be written, is a command sure to be harmless.
        return [_SHELL, *_LOOKS] if self.box.boxed else [*_LOOKS]

    def _permission_mode(self) -> PermissionMode:
        # Root may only ask to be let through one by one; in the box nobody is root.
        unasked = self.box.boxed or os.geteuid() != 0
        return "bypassPermissions" if unasked else "acceptEdits"

    def _system_prompt(self) -> SystemPromptPreset:
        prompt: SystemPromptPreset = {"type": "preset", "preset": "claude_code"}
        tree = self._task.workspace
        if not (tree / "CLAUDE.md").exists() and not (tree / ".claude" / "CLAUDE.md").exists():
            # As Claude Code itself would do, if it trusted the project.
            text = read_instructions(tree, "AGENTS.md").decode(errors="replace").replace("\0", "")
            if text.strip():
                prompt["append"] = f"# AGENTS.md, the project's instructions for agents\n\n{text}"
        return prompt

    def _begin(self, prompt: str) -> None:
        assert self._client is not None
        text = _RESUMED + prompt if self._explain else prompt
        self._explain = False
        seconds = self._patience()
        self._loop.run(self._client.query(text), seconds, "beginning the turn")

    def _follow(self, reader: TurnReader) -> Iterator[AgentEvent]:
        assert self._client is not None
        messages = self._loop.iterate(_heeded(self._client))
        self._following = True
        try:
            for message in self._watch(
                messages,
                trouble=lambda message: trouble(message, self._upstream_failure()),
                patience=self._options.patience,
            ):
                # It has the prompt, and so something to write down.
                self._resumable = True
                yield from self._announce()
                yield from self._hear()
                for event in reader.events(message):
                    self._model = reader.model or self._model
                    yield event
        finally:
            self._following = False

    def _hear(self) -> Iterator[AgentEvent]:
        while self._words:
            yield AgentEvent(EventKind.NOTICE, f"Claude Code: {self._words.popleft()}")

    def _result(self, reader: TurnReader) -> AgentResult:
        result = reader.result
        if self._closed:
            raise Interrupted("the session was closed in the middle of the turn")
        if result is None:
            raise _ended("it closed its output")
        if result.is_error and not reader.interrupted:
            raise classify(result, reader.error, self._upstream_failure())
        return AgentResult(
            status="interrupted" if reader.interrupted else "completed",
            message=reader.message,
            structured=None if self._schema is None else result.structured_output,
            session=self.session,
            usage=reader.usage,
            model=self._model,
        )

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        if isinstance(failure, AuthenticationFailed):
            return refused_key(self._vendor, failure.raw)
        return failure

    def _upstream_failure(self) -> UpstreamFailure | None:
        return None if self.box.door is None else self.box.door.last_failure

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        from claude_agent_sdk import CLIConnectionError, ProcessError

        raw = self._raw(error)
        if doing == "start":
            return AgentFailed("Claude Code did not start", raw=raw)
        if isinstance(error, CLIConnectionError | ProcessError | OSError):
            return _ended(raw)
        return unclassified("Claude Code", error)

    def _raw(self, error: Exception) -> str:
        # Of a program that ended, the SDK says no more than to look at its standard error.
        words = [f"{type(error).__name__}: {error}", *self._words]
        return "\n".join(words)


def find_program() -> Path:
    """Return the program that comes with the SDK; InvalidDefinition where there is none."""
    try:
        import claude_agent_sdk
    except ImportError as error:
        raise InvalidDefinition(f"Claude Code is missing; {INSTALL}", raw=str(error)) from error
    program = Path(str(claude_agent_sdk.__file__)).with_name("_bundled") / "claude"
    if not program.is_file():
        raise InvalidDefinition(
            f"the package claude-agent-sdk has no program for this machine ({program} is not "
            "there); install a wheel of it for this platform"
        )
    return program


def _ended(raw: str) -> Interrupted:
    return Interrupted("the Claude Code program ended in the middle of the turn", raw=raw)


async def _heeded(client: ClaudeSDKClient) -> AsyncIterator[Message]:
    told = -_PIECE_SECONDS
    async for message in client.receive_response():
        now = time.monotonic()
        # Of an answer's pieces, only that they come matters.
        if is_heeded(message) and not (is_piece(message) and now - told < _PIECE_SECONDS):
            told = now
            yield message


def _session_files(home: Path, session_id: str) -> list[Path]:
    return sorted((home / "projects").glob(f"*/{session_id}.jsonl"))


def _spent_before(file: Path) -> float:
    """Return the USD that a session's file says were spent: Claude Code goes on counting there."""
    spent = 0.0
    # The agent can write here: what it may have put in the file's place is not opened.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as lines:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return spent
            for line in lines:
                if line.startswith(b'{"type":"cost-state"'):
                    spent = float(json.loads(line).get("totalCostUSD") or 0)
    return spent
