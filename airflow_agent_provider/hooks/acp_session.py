"""An ACP agent at work on one task: its program, its conversation, its turns."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
from airflow_agent_provider.hooks.acp_client import Asked, Rules
from airflow_agent_provider.hooks.acp_events import (
    Spent,
    TurnReader,
    classify,
    error_words,
    refused,
)
from airflow_agent_provider.hooks.acp_home import Home
from airflow_agent_provider.hooks.acp_link import CANCEL_SECONDS, CLOSE_SECONDS, Link
from airflow_agent_provider.hooks.acp_presets import APIS, Preset, as_text, filled
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.hooks.vendor import Vendor, refused_key
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream

if TYPE_CHECKING:
    from acp import RequestError

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
    title = "The ACP agent"

    def __init__(self, task: AgentTask, agent: AcpAgent, options: AcpOptions) -> None:
        super().__init__(task)
        self._agent = agent
        self._options = options
        self._model = task.model or agent.vendor.model
        self._home = Home(task.home, agent.preset)
        self._loop = SessionLoop("acp")
        self._link: Link | None = None
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
            task = self._task
            self._link = Link(Rules(task.workspace, task.home, task.access, box.boxed))
            link, seconds = self._link, self._patience()
            starting = link.start(box.wrapper, self._agent.preset.auth)
            self._loop.run(starting, seconds, "starting the agent")
            seconds = self._patience()
            self._loop.run(self._open(link), seconds, "opening the session")

    @property
    def session(self) -> Session | None:
        """The conversation, once the agent has said something in it that it can replay."""
        if self._link is None or self._link.session_id is None or not self._resumable:
            return None
        return Session("acp", self._link.session_id)

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
            cancelling = self._linked.cancel()
            if not self._loop.run(cancelling, 2 * CANCEL_SECONDS, "cancelling the turn"):
                self.box.kill()

    def portable_files(self) -> Mapping[str, Path]:
        """Return the files from which the agent resumes, as far as they are known."""
        session = self.session
        return {} if session is None else self._home.session_files(session.id)

    def settle(self, call: AgentEvent) -> bool:
        """Wait until the call's result is written down, where the agent's files are known."""
        if not self._agent.preset.result or self.session is None or call.call_id is None:
            return super().settle(call)
        return self._home.settle_call(self.session.id, call.call_id)

    def _end(self) -> None:
        if self._link is not None:
            with contextlib.suppress(Exception):
                self._loop.run(self._link.hang_up(), 2 * CLOSE_SECONDS, "closing the agent")
        if self._box is not None:
            self._box.kill()
        if self._link is not None:
            with contextlib.suppress(Exception):
                self._loop.run(self._link.wire.end(), 2 * CLOSE_SECONDS, "ending the agent")
        self._loop.close()

    @property
    def _linked(self) -> Link:
        if self._link is None:
            raise ConnectionError("the agent was not started")
        return self._link

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

    async def _open(self, link: Link) -> None:
        opened = None
        if self._task.session is not None:
            opened = await self._load(link, self._task.session)
        if opened is None:
            opened = await link.new()
        mode = self._mode()
        if mode is not None:
            await link.set_mode(opened, mode)
        if self._model is not None and not self._agent.preset.tells_model:
            await link.choose(opened, "model", self._model)
        await link.configure(self._options.config)

    async def _load(self, link: Link, earlier: Session) -> Any:
        opened, why = None, "it is another agent's"
        if earlier.agent == "acp":
            opened, why = await link.load(earlier.id)
        if opened is None:
            self._notices.append(f"{earlier.id} cannot be continued, a new session starts: {why}")
        else:
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
                "sandbox = required, or the extra 'read_only_mode' of the connection "
                f"{self._agent.vendor.conn_id!r}"
            )
        return preset.read_only_mode

    def _follow(self, prompt: str, reader: TurnReader) -> Iterator[AgentEvent]:
        updates = self._watch(
            self._loop.iterate(self._linked.turn(prompt)), patience=self._options.patience
        )
        try:
            for update in updates:
                self._resumable = self._linked.loads
                yield from self._announce()
                yield from self._read(update, reader)
        except Exception:
            # What the agent had begun to say may tell why.
            yield from reader.close()
            raise

    def _read(self, update: Any, reader: TurnReader) -> Iterator[AgentEvent]:
        if isinstance(update, Asked):
            yield from reader.asked(update.call, update.refusal)
            seconds = self._patience()
            self._loop.run(self._linked.client.hear(update), seconds, "answering the agent")
        elif hasattr(update, "stop_reason"):
            yield from reader.end(update)
        else:
            yield from reader.events(update)

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        from acp import RequestError

        if isinstance(error, RequestError):
            return self._refused(error)
        raw = "\n".join(filter(None, (f"{type(error).__name__}: {error}", self._words)))
        if self._link is not None and self._link.wire.fault is not None:
            return AgentFailed(self._link.wire.fault, raw=raw)
        if doing == "start":
            return AgentFailed("the ACP agent did not start", raw=raw)
        if isinstance(error, OSError):
            return Interrupted("the agent's program ended in the middle of the turn", raw=raw)
        return unclassified(self.title, error)

    def _refused(self, error: RequestError) -> AgentFailure:
        standing = self._standing()
        # Agents put the model's answer into words of their own; the door saw the answer itself.
        failure = standing.failure if standing else classify(error.code, str(error), error.data)
        words = (error_words(str(error), error.data), failure.raw, self._words)
        failure.raw = "\n".join(dict.fromkeys(filter(None, words)))
        return self._explained(failure)

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        if isinstance(failure, AuthenticationFailed):
            return refused_key(self._agent.vendor, failure.raw)
        return failure

    @property
    def _words(self) -> str:
        return self._link.wire.words if self._link is not None else ""


def _structured(message: str) -> Any:
    text = message.strip()
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced["inside"] if fenced else text)
    except ValueError:
        return None
