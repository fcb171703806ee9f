"""An ACP agent at work on one task: its program, its conversation, its turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentTask,
    Session,
    Usage,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    Interrupted,
    InvalidDefinition,
)
from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.hooks.acp_client import Asked, Client, Rules
from airflow_agent_provider.hooks.acp_events import (
    Spent,
    TurnReader,
    classify,
    error_words,
    refused,
)
from airflow_agent_provider.hooks.acp_home import Home
from airflow_agent_provider.hooks.acp_presets import APIS, Preset, as_text, filled
from airflow_agent_provider.hooks.acp_wire import Wire
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.hooks.vendor import Vendor, refused_key
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream

if TYPE_CHECKING:
    from acp import RequestError
    from acp.client.connection import ClientSideConnection

#: Seconds for the agent to end a turn that was cancelled, and to end by itself.
_CANCEL_SECONDS = 5.0
_CLOSE_SECONDS = 3.0
#: Ends the prompt where a structured answer is wanted: the protocol has no other way to ask.
_STRUCTURED = (
    "\n\nYour final message must be one JSON value of this schema and nothing else, without any "
    "words before or after it:\n"
)
_FENCED = re.compile(r"^```(?:json)?\s*\n(?P<inside>.*)\n\s*```$", re.DOTALL)


class AcpOptions(BaseModel):
    """What a step's ``options:`` may set for an ACP agent.

    :param mode: id of the agent's session mode; None takes the one in which it asks for nothing.
    :param config: values of the agent's session options, by their id, such as how long it thinks.
    :param patience: seconds of nothing but failed requests to the model, which the agent repeats
        by itself, after which the attempt fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: str | None = None
    config: dict[str, str | bool] = Field(default_factory=dict)
    patience: float = Field(default=120.0, gt=0)


@dataclass(frozen=True)
class AcpAgent:
    """Which agent the connection names, ready to be started.

    :param vendor: how the connection reaches the model.
    :param preset: what is known of the agent, with what the connection adds.
    :param command: its program and arguments, by absolute path.
    :param folders: files and folders that the program needs.
    """

    vendor: Vendor
    preset: Preset
    command: tuple[str, ...]
    folders: tuple[Path, ...]


class AcpSession(LocalSession):
    """An ACP agent at work for one task. Made by :meth:`AcpHook.start`."""

    agent = "acp"
    title = "the ACP agent"

    def __init__(self, task: AgentTask, agent: AcpAgent, options: AcpOptions) -> None:
        super().__init__(task)
        self._agent = agent
        self._options = options
        self._model = task.model or agent.vendor.model
        self._home = Home(task.home, agent.preset)
        self._loop = SessionLoop("acp")
        self._wire: Wire | None = None
        self._client: Client | None = None
        self._connection: ClientSideConnection | None = None
        self._prompt: asyncio.Future[Any] | None = None
        self._loads = False
        self._resumable = False
        # A fresh session has spent nothing; what a resumed one has spent, few agents say.
        self._spent = Spent(Usage(), 0.0)

    def open(self) -> None:
        """Start the program and open the conversation."""
        with self._failures("start"):
            program = Program(self._agent.command, self._agent.folders)
            box = self._open_box(program, self._upstream())
            values = self._values()
            self._home.write(self._filled(self._agent.preset.files, values))
            variables = self._filled(self._agent.preset.environment, values)
            box.write_wrapper({name: as_text(value) for name, value in variables.items()})
            self._loop.run(self._start(), self._patience(), "starting the agent")
            self._loop.run(self._open(), self._patience(), "opening the session")

    @property
    def session(self) -> Session | None:
        """The conversation, once the agent has said something in it that it can replay."""
        if self._client is None or self._client.session_id is None or not self._resumable:
            return None
        return Session("acp", self._client.session_id)

    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let the agent work on ``prompt``; see :meth:`AgentSession.turn`."""
        if output_schema is not None:
            prompt += _STRUCTURED + json.dumps(output_schema, indent=2)
        reader = TurnReader(self._spent, sums=self._agent.preset.usage)
        yield from self._tell()
        with self._failures("turn"):
            yield from self._follow(prompt, reader)
            failure = refused(reader.stop_reason)
            if failure is not None:
                raise failure
        if self.session is not None:
            self._home.settle(self.session.id, reader.message)
        return AgentResult(
            status="interrupted" if reader.stop_reason == "cancelled" else "completed",
            message=reader.message,
            structured=_structured(reader.message) if output_schema is not None else None,
            session=self.session,
            usage=reader.usage,
            model=self._model,
        )

    def interrupt(self) -> None:
        """End the turn under way; an agent that does not heed it is ended itself."""
        with contextlib.suppress(Exception):
            heeded = self._loop.run(
                self._cancel(), 2 * _CANCEL_SECONDS, "cancelling the agent's turn"
            )
            if not heeded:
                self.box.kill()

    def portable_files(self) -> Mapping[str, Path]:
        """Return the files from which the agent resumes, as far as they are known."""
        session = self.session
        return {} if session is None else self._home.session_files(session.id)

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            self._loop.run(self._hang_up(), 2 * _CLOSE_SECONDS, "closing the agent")
        if self._box is not None:
            self._box.kill()
        self._loop.close()

    def _upstream(self) -> Upstream:
        api = APIS[self._agent.preset.api]
        return Upstream(self._agent.vendor.url, api.headers(self._agent.vendor.key), api.paths)

    def _values(self) -> dict[str, str]:
        url = urlsplit(self.box.model_url)
        values = {
            "model_url": self.box.model_url,
            "model_origin": f"{url.scheme}://{url.netloc}",
            "model_path": url.path.strip("/"),
            "model_key": self.box.model_key,
            "home": str(self._task.home),
        }
        return values | ({"model": self._model} if self._model else {})

    def _filled(self, value: Any, values: Mapping[str, str]) -> Any:
        try:
            return filled(value, values)
        except KeyError as error:
            raise InvalidDefinition(
                "this agent must be told its model: name one in the step, or as the extra 'model' "
                f"of the connection {self._agent.vendor.conn_id!r}"
            ) from error

    async def _start(self) -> None:
        import acp
        from acp.schema import ClientCapabilities, Implementation

        task = self._task
        rules = Rules(task.workspace, task.home, task.access, self.box.boxed)
        self._client = client = Client(rules)
        self._wire = wire = Wire(client.busy)
        await wire.start(self.box.wrapper, task.workspace)
        self._connection = acp.connect_to_agent(cast(Any, client), wire)
        about = await self._connection.initialize(
            protocol_version=acp.PROTOCOL_VERSION,
            client_capabilities=ClientCapabilities(),
            client_info=Implementation(name="airflow-agent-provider", version="1"),
        )
        self._loads = bool(about.agent_capabilities and about.agent_capabilities.load_session)
        if self._agent.preset.auth is not None:
            await self._connection.authenticate(method_id=self._agent.preset.auth)

    async def _open(self) -> None:
        earlier = self._task.session
        opened = await self._load(earlier) if earlier is not None else None
        if opened is None:
            opened = await self._new()
        mode = self._mode()
        if mode is not None:
            await self._set_mode(opened, mode)
        for name, value in self._options.config.items():
            await self._connected.set_config_option(
                config_id=name, session_id=self._session_id, value=value
            )

    async def _new(self) -> Any:
        opened = await self._connected.new_session(cwd=str(self._task.workspace), mcp_servers=[])
        self._talks.session_id = opened.session_id
        return opened

    async def _load(self, earlier: Session) -> Any:
        """Return the answer to the request to load ``earlier``; None if it is not continued."""
        client = self._talks
        client.replayed = 0
        why = "this agent loads no sessions" if not self._loads else ""
        if earlier.agent != "acp":
            why = "it is another agent's"
        if not why:
            try:
                opened = await self._connected.load_session(
                    cwd=str(self._task.workspace), session_id=earlier.id, mcp_servers=[]
                )
            except Exception as error:
                why = _refusal(error)
            else:
                # Some agents take an id that they do not know for a new session's.
                why = "" if client.replayed else "the agent does not know it"
        if why:
            self._notices.append(f"{earlier.id} cannot be continued, a new session starts: {why}")
            return None
        client.session_id = earlier.id
        self._spent = Spent()
        self._resumable = True
        return opened

    def _mode(self) -> str | None:
        preset = self._agent.preset
        if self._options.mode is not None:
            return self._options.mode
        if self._task.access is Access.WRITE or self.box.boxed:
            # In the box the file system itself is read-only, and commands may run.
            return preset.mode
        if preset.read_only_mode is None:
            raise InvalidDefinition(
                "access: read_only needs the sandbox, or an agent with a mode for it; set [agents] "
                f"sandbox = required, or the extra 'read_only_mode' of the connection "
                f"{self._agent.vendor.conn_id!r}"
            )
        return preset.read_only_mode

    async def _set_mode(self, opened: Any, mode: str) -> None:
        modes = opened.modes.available_modes if opened.modes else []
        names = [each.id for each in modes]
        if mode in names:
            await self._connected.set_session_mode(session_id=self._session_id, mode_id=mode)
            return
        for option in opened.config_options or ():
            if option.category == "mode" and option.type == "select":
                names = [choice.value for choice in option.options if hasattr(choice, "value")]
                if mode in names:
                    await self._connected.set_config_option(
                        config_id=option.id, session_id=self._session_id, value=mode
                    )
                    return
        raise InvalidDefinition(
            f"the agent has no mode {mode!r}; it has: {', '.join(names) or 'none'}"
        )

    @property
    def _connected(self) -> ClientSideConnection:
        if self._connection is None:
            raise ConnectionError("the agent was not started")
        return self._connection

    @property
    def _talks(self) -> Client:
        if self._client is None:
            raise ConnectionError("the agent was not started")
        return self._client

    @property
    def _session_id(self) -> str:
        if self._talks.session_id is None:
            raise ConnectionError("the session was not opened")
        return self._talks.session_id

    def _follow(self, prompt: str, reader: TurnReader) -> Iterator[AgentEvent]:
        updates = self._watch(
            self._loop.iterate(self._updates(prompt)), patience=self._options.patience
        )
        for update in updates:
            self._resumable = self._loads
            yield from self._announce()
            if isinstance(update, Asked):
                yield from reader.asked(update.call, update.refusal)
                self._loop.run(self._talks.hear(update), self._patience(), "answering the agent")
            elif hasattr(update, "stop_reason"):
                yield from reader.end(update)
            else:
                yield from reader.events(update)

    async def _updates(self, prompt: str) -> AsyncIterator[Any]:
        from acp import text_block

        request = self._connected.prompt(session_id=self._session_id, prompt=[text_block(prompt)])
        self._prompt = asyncio.ensure_future(request)
        try:
            async for update in self._talks.follow(self._prompt):
                yield update
        finally:
            self._prompt = None

    async def _cancel(self) -> bool:
        """Tell the agent to end its turn; return whether it did."""
        prompt = self._prompt
        if prompt is None or prompt.done():
            return True
        await self._connected.cancel(session_id=self._session_id)
        self._talks.call_off()
        done, _ = await asyncio.wait([prompt], timeout=_CANCEL_SECONDS)
        return bool(done)

    async def _hang_up(self) -> None:
        if self._wire is None:
            return
        await self._wire.close()
        await self._wire.ended(_CLOSE_SECONDS)
        if self._connection is not None:
            await self._connection.close()

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        from acp import RequestError

        if isinstance(error, RequestError):
            return self._refused(error)
        if isinstance(error, ImportError):
            return InvalidDefinition(
                "the library of the Agent Client Protocol is missing; install it on the worker "
                "with: pip install 'airflow-agent-provider[acp]'",
                raw=str(error),
            )
        raw = "\n".join(filter(None, (f"{type(error).__name__}: {error}", self._words)))
        if doing == "start":
            return AgentFailed("the ACP agent did not start", raw=raw)
        if isinstance(error, OSError):
            return Interrupted("the agent's program ended in the middle of the turn", raw=raw)
        return unclassified(self.title, error)

    def _refused(self, error: RequestError) -> AgentFailure:
        words = error_words(str(error), error.data)
        standing = self._standing()
        # Agents put the model's answer into words of their own; the door saw the answer itself.
        failure = standing.failure if standing else classify(error.code, str(error), error.data)
        raw = "\n".join(dict.fromkeys(filter(None, (words, failure.raw, self._words))))
        failure.raw = raw
        return self._explained(failure)

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        if isinstance(failure, AuthenticationFailed):
            return refused_key(self._agent.vendor, failure.raw)
        return failure

    @property
    def _words(self) -> str:
        return self._wire.words if self._wire is not None else ""


def _refusal(error: Exception) -> str:
    from acp import RequestError

    if not isinstance(error, RequestError):
        raise error
    return error_words(str(error), error.data)


def _structured(message: str) -> Any:
    text = message.strip()
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced["inside"] if fenced else text)
    except ValueError:
        return None
