"""Copilot at work on one task: its program, its conversation, its turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_agent_provider.agents.contract import (
    AgentEvent,
    AgentResult,
    AgentTask,
    EventKind,
    Network,
    Session,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    Interrupted,
    InvalidDefinition,
    Stalled,
)
from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.hooks.copilot_events import (
    TurnReader,
    begins_turn,
    classify_upstream,
    ends_turn,
)
from airflow_agent_provider.hooks.copilot_permissions import Judge
from airflow_agent_provider.hooks.copilot_program import VERSION, Runtime
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.hooks.session_files import in_one_line, settled
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream, UpstreamFailure

if TYPE_CHECKING:
    from copilot import CopilotClient
    from copilot.session import CopilotSession as Conversation

#: Seconds for Copilot to end by itself before it is killed.
_CLOSE_SECONDS = 5.0
#: Seconds between two looks at whether the program still lives.
_PULSE = 0.5
#: The variable in which the SDK hands its program the subscription's token.
_TOKEN_VARIABLE = "COPILOT_SDK_AUTH_TOKEN"
#: Looked up beside the model's API, for what only people see. A name that leads nowhere: the door
#: has one upstream, and what is asked there without the real token would be refused.
_NO_GITHUB = "copilot.invalid"
#: Tools that have no use here: the first needs GitHub's index of the repository.
_USELESS = ("semantic_code_search",)
#: Tools that need the network.
_NETWORKED = ("web_fetch", "web_search")
#: Copilot's own server of tools, which talks to GitHub.
_GITHUB_TOOLS = "github-mcp-server"
#: Names the session, which Copilot keeps from its start if it has a name.
_NAME = "Airflow"

_INSTALL = "install it on the worker with: pip install 'airflow-agent-provider[copilot]'"


class CopilotOptions(BaseModel):
    """What a step's ``options:`` may set for GitHub Copilot.

    :param effort: how long the model reasons; None takes the model's default.
    :param patience: seconds of nothing but Copilot's own retries after which the attempt fails.
    :param max_prompt_tokens: tokens after which Copilot summarizes the session; for models of an
        own provider that Copilot does not know. None takes Copilot's default.
    :param max_output_tokens: tokens that one answer of such a model may have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    patience: float = Field(default=120.0, gt=0)
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Vendor:
    """How the connection reaches the model.

    :param url: base URL of the model's API.
    :param key: the provider's key, or the subscription's token.
    :param provider: ``copilot`` for the subscription, else the kind of the own provider's API.
    :param wire: the wire of an own provider that has two.
    """

    conn_id: str
    url: str
    key: str = field(repr=False)
    model: str | None
    provider: Literal["copilot", "openai", "azure", "anthropic"]
    wire: Literal["completions", "responses"] = "completions"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that show the key."""
        if self.provider == "azure":
            return {"api-key": self.key}
        if self.provider == "anthropic":
            return {"x-api-key": self.key}
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def upstream(self) -> Upstream:
        """What the door leads to: no more of the API than the model."""
        return Upstream(self.url, self.headers, _PATHS[self.provider])


_PATHS: dict[str, tuple[str, ...]] = {
    "copilot": ("/chat/completions", "/responses", "/v1/messages", "/models"),
    "openai": ("/chat/completions", "/responses", "/models"),
    "azure": ("/openai", "/chat/completions", "/responses", "/models"),
    "anthropic": ("/v1/messages", "/v1/models"),
}


class CopilotSession(LocalSession):
    """Copilot at work for one task. Made by :meth:`CopilotHook.start`."""

    agent: ClassVar[str] = "copilot"
    title: ClassVar[str] = "Copilot"

    def __init__(
        self, task: AgentTask, vendor: Vendor, options: CopilotOptions, runtime: Runtime
    ) -> None:
        super().__init__(task)
        self._vendor = vendor
        self._options = options
        self._runtime = runtime
        self._home = task.home / "copilot"
        self._model = task.model or vendor.model
        self._loop = SessionLoop("copilot")
        self._client: CopilotClient | None = None
        self._conversation: Conversation | None = None

    def open(self) -> None:
        """Start the program and open the conversation."""
        with self._failures("start"):
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            box = self._open_box(self._boxed_program(), self._vendor.upstream)
            if self._vendor.provider == "copilot":
                box.write_wrapper({"COPILOT_API_URL": box.model_url})
            seconds = self._patience()
            self._loop.run(self._start_program(), seconds, "starting Copilot")
            seconds = self._patience()
            opened = self._loop.run(self._open_conversation(), seconds, "opening the session")
            self._conversation = opened

    @property
    def session(self) -> Session | None:
        """The conversation, which Copilot keeps from its start."""
        if self._conversation is None:
            return None
        return Session("copilot", self._conversation.session_id)

    @property
    def model(self) -> str | None:
        """The model that the step or the connection names."""
        return self._model

    @property
    def metered(self) -> bool:
        """False for a subscription, which counts premium requests and not tokens."""
        return self._vendor.provider != "copilot"

    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let Copilot work on ``prompt``; see :meth:`AgentSession.turn`."""
        reader = TurnReader(self._task.workspace, self._upstream_failure)
        yield from self._tell()
        with self._failures("turn"):
            yield from self._follow(prompt, output_schema, reader)
        if reader.failure is not None and reader.status != "interrupted":
            raise self._explained(reader.failure)
        return AgentResult(
            status=reader.status,
            message=reader.message,
            structured=_structured(reader.message) if output_schema is not None else None,
            session=self.session,
            usage=reader.usage,
            model=reader.model or self._model,
        )

    def interrupt(self) -> None:
        """End the turn under way, and its running command with it."""
        conversation = self._conversation
        if conversation is not None:
            with contextlib.suppress(Exception):
                self._loop.run(conversation.abort(), _CLOSE_SECONDS, "interrupting Copilot")

    def portable_files(self) -> Mapping[str, Path]:
        """Return the session's events, from which alone Copilot resumes."""
        if self._conversation is None:
            return {}
        path = self._home / "session-state" / self._conversation.session_id / "events.jsonl"
        return {path.relative_to(self._task.home).as_posix(): path} if path.is_file() else {}

    def settle(self, call: AgentEvent) -> bool:
        """Wait until the tool's end is written down."""
        return settled(
            lambda: self.portable_files().values(),
            in_one_line(json.dumps(call.call_id), '"tool.execution_complete"'),
        )

    def _end(self) -> None:
        client, self._client = self._client, None
        self._conversation = None
        try:
            if client is not None:
                # A program that is gone already makes the SDK raise; what counts is what is left.
                with contextlib.suppress(Exception):
                    self._loop.run(_stop(client), _CLOSE_SECONDS, "closing Copilot")
        finally:
            if self._box is not None:
                self._box.kill()
            self._loop.close()

    def _boxed_program(self) -> Program:
        environment = {
            "COPILOT_HOME": str(self._home),
            "COPILOT_GH_HOST": _NO_GITHUB,
            "COPILOT_GITHUB_TELEMETRY_DISABLED": "true",
            # An index of the whole workspace, made at each start.
            "USE_TGREP": "false",
        }
        return Program(
            command=(str(self._runtime.program),),
            folders=(self._runtime.folder,),
            environment=environment,
            inherited=(_TOKEN_VARIABLE,),
        )

    async def _start_program(self) -> None:
        try:
            from copilot import CopilotClient, RuntimeConnection
            from copilot._cli_version import CLI_VERSION
        except ImportError as error:
            raise InvalidDefinition(
                f"GitHub Copilot's SDK is missing; {_INSTALL}", raw=str(error)
            ) from error
        if CLI_VERSION != VERSION:
            raise InvalidDefinition(
                f"the installed Copilot SDK works with Copilot {CLI_VERSION}, not with {VERSION}; "
                f"{_INSTALL}"
            )
        subscription = self._vendor.provider == "copilot"
        self._client = CopilotClient(
            connection=RuntimeConnection.for_stdio(path=str(self.box.wrapper)),
            working_directory=str(self._task.workspace),
            env={},
            github_token=self.box.model_key if subscription else None,
            use_logged_in_user=False,
            log_level="error",
        )
        await self._client.start()

    async def _open_conversation(self) -> Conversation:
        assert self._client is not None
        await self._check_model(self._client)
        earlier = self._task.session
        if earlier is not None:
            why = f"the files of {earlier.id} are not here"
            # To create a session under its id would start it anew without a word.
            if earlier.agent == "copilot" and await self._client.get_session_metadata(earlier.id):
                try:
                    return await self._client.resume_session(earlier.id, **self._settings())
                except Exception as error:
                    if _gone(error):
                        raise
                    why = str(error)
            self._notices.append(f"The session cannot be continued, a new one starts: {why}")
        return await self._client.create_session(name=_NAME, **self._settings())

    async def _check_model(self, client: CopilotClient) -> None:
        """Refuse a model that the subscription has not: Copilot would silently take another.

        Without an answer to this, Copilot would go to the vendor's own address instead of the door.
        """
        if self._vendor.provider != "copilot":
            return
        try:
            models = [model.id for model in await client.list_models()]
        except ValueError:
            return  # There was an answer, though one that the SDK cannot read.
        if self._model is not None and self._model not in models:
            raise InvalidDefinition(
                f"this Copilot subscription has no model {self._model!r}; it has: "
                f"{', '.join(sorted(models))}"
            )

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "model": self._model,
            "reasoning_effort": self._options.effort,
            "working_directory": str(self._task.workspace),
            "on_permission_request": Judge(self._task, self.box.boxed),
            "streaming": True,
            "client_name": "airflow_agent_provider",
            "excluded_tools": list(self._excluded()),
            "disabled_mcp_servers": [_GITHUB_TOOLS],
            # What a project or a user has set up for themselves may run commands of its own.
            "enable_config_discovery": False,
            "enable_file_hooks": False,
            "custom_agents_local_only": True,
            "manage_schedule_enabled": False,
            "coauthor_enabled": False,
            # What one session leaves for others.
            "enable_session_store": False,
            "memory": {"enabled": False},
            "enable_session_telemetry": False,
            "skip_embedding_retrieval": True,
        }
        if self._vendor.provider == "copilot":
            # The door speaks plain HTTP.
            settings["capi"] = {"enable_web_socket_responses": False}
        else:
            settings["provider"] = self._provider()
        return settings

    def _provider(self) -> dict[str, Any]:
        provider = {
            "type": self._vendor.provider,
            "base_url": self.box.model_url,
            "api_key": self.box.model_key,
            "max_prompt_tokens": self._options.max_prompt_tokens,
            "max_output_tokens": self._options.max_output_tokens,
        }
        if self._vendor.provider != "anthropic":
            provider["wire_api"] = self._vendor.wire
        return {name: value for name, value in provider.items() if value is not None}

    def _excluded(self) -> Iterator[str]:
        yield from _USELESS
        if self._task.confinement.network is Network.MODEL:
            yield from _NETWORKED

    def _follow(
        self, prompt: str, output_schema: Mapping[str, Any] | None, reader: TurnReader
    ) -> Iterator[AgentEvent]:
        events = self._watch(
            self._loop.iterate(self._events(prompt, output_schema)),
            trouble=reader.trouble,
            patience=self._options.patience,
        )
        try:
            for event in events:
                yield from reader.events(event)
                if reader.hopeless is not None:
                    raise reader.hopeless
        except Stalled:
            if not reader.silent:
                raise
            # The agent has said its last word; a server that it started may run for ever.
            reader.status = "completed"
            yield AgentEvent(
                EventKind.NOTICE,
                "Copilot is done, and a command that it left in the background is ended",
            )

    async def _events(
        self, prompt: str, output_schema: Mapping[str, Any] | None
    ) -> AsyncIterator[Any]:
        """Send the prompt, and yield the SDK's events until the turn is over."""
        assert self._conversation is not None
        queue: asyncio.Queue[Any] = asyncio.Queue()
        stop_listening = self._conversation.on(queue.put_nowait)
        pulse = asyncio.create_task(self._feel_pulse(queue))
        try:
            schema = None if output_schema is None else dict(output_schema)
            message_id = await self._conversation.send(prompt, response_schema=schema)
            begun = False
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                # What comes before is the rest of an earlier turn.
                begun = begun or begins_turn(event, message_id)
                if begun:
                    yield event
                    if ends_turn(event):
                        return
        finally:
            pulse.cancel()
            stop_listening()

    async def _feel_pulse(self, queue: asyncio.Queue[Any]) -> None:
        """Put an exception into ``queue`` when the program ends: the SDK tells nobody."""
        client = self._client
        while client is not None:
            await asyncio.sleep(_PULSE)
            try:
                await client.ping()
            except Exception as error:
                queue.put_nowait(error)
                return

    def _upstream_failure(self) -> UpstreamFailure | None:
        door = self.box.door
        # A subscription's models are looked up before anything else.
        return None if door is None else door.last_failure or door.last_lookup

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        if isinstance(failure, AuthenticationFailed):
            return AuthenticationFailed(
                f"{self._vendor.url} refused the key or token of the connection "
                f"{self._vendor.conn_id!r}; correct its password in Airflow under Admin > "
                "Connections",
                raw=failure.raw,
            )
        return failure

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        raw = f"{type(error).__name__}: {error}"
        upstream = self._upstream_failure() if self._box is not None else None
        if doing == "start" and upstream is not None:
            return self._explained(classify_upstream(upstream))
        if doing == "start":
            return AgentFailed("Copilot did not start", raw=raw)
        if _gone(error):
            return Interrupted("the Copilot program ended in the middle of the turn", raw=raw)
        return unclassified("Copilot", error)


def _gone(error: Exception) -> bool:
    """Return whether an exception says that the program has ended."""
    from copilot._jsonrpc import ProcessExitedError

    return isinstance(error, ProcessExitedError | OSError)


async def _stop(client: CopilotClient) -> None:
    try:
        await client.stop()
    except Exception:
        # An ExceptionGroup, where the program has gone before.
        await client.force_stop()


def _structured(message: str) -> Any:
    try:
        return json.loads(message)
    except ValueError:
        return None
