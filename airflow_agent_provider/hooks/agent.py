"""The base of every agent's hook: what the operator and the conformance suite rely on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_agent_provider.agents.contract import AgentCapabilities, AgentSession, AgentTask, Usage
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
)
from airflow_agent_provider.agents.registry import AGENTS, AgentSpec

if TYPE_CHECKING:
    from airflow.sdk import Connection

#: Seconds for an agent's program to tell its version.
_VERSION_SECONDS = 60.0


class AgentHook(BaseHook):
    """Reaches one agent through its connection.

    :param conn_id: id of the connection; None takes the agent's default one.
    """

    #: The agent's name: its key in the registry and its connection type.
    agent: ClassVar[str]

    def __init__(self, conn_id: str | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id or self.spec.connection

    @property
    def spec(self) -> AgentSpec:
        """The agent's row in the registry."""
        return AGENTS[self.agent]

    @property
    def capabilities(self) -> AgentCapabilities:
        """What the agent can do."""
        return self.spec.capabilities

    def runs_hosted(self, options: Mapping[str, Any], repository_url: str | None) -> bool:
        """Return whether a step's agent works at its vendor, and not on the worker.

        :param options: the step's, of this agent alone.
        :param repository_url: the run's repository; None or empty without one.
        :raises InvalidDefinition: if it must work where it cannot.
        """
        return self.capabilities.hosted

    def connection(self) -> Connection:
        """Return the agent's connection.

        :raises AuthenticationFailed: if there is none; the reason says how to add it.
        """
        try:
            return self.get_connection(self.conn_id)
        except AirflowNotFoundException as error:
            raise self._no_connection() from error

    async def aconnection(self) -> Connection:
        """Return the agent's connection, as :meth:`connection` does, inside a trigger."""
        try:
            return await self.aget_connection(self.conn_id)
        except AirflowNotFoundException as error:
            raise self._no_connection() from error

    def _no_connection(self) -> AuthenticationFailed:
        return AuthenticationFailed(
            f"{self.spec.title} needs the connection {self.conn_id!r}, which does not exist; "
            f"add it in Airflow under Admin > Connections, or with: airflow connections add "
            f"{self.conn_id} --conn-type {self.agent} --conn-password <API key>"
        )

    @abstractmethod
    def test_connection(self) -> tuple[bool, str]:
        """Try the key on the vendor; return whether it works, and one line that says why not."""


class LocalAgentHook(AgentHook):
    """An agent whose program runs on the worker."""

    @abstractmethod
    def start(self, task: AgentTask) -> AgentSession:
        """Start the agent's program for ``task``, or continue ``task.session``.

        :raises AgentFailure: if it does not start, or the session cannot be continued.
        """

    @abstractmethod
    def program_version(self) -> str:
        """Start the agent's program, and return what it says of its version.

        :raises InvalidDefinition: if it is missing or does not start; the reason has the command
            that mends it.
        """


def ask_version(command: Sequence[str], title: str, install: str) -> str:
    """Return the first line that a program prints, asked for its version.

    :param command: the program and its arguments.
    :param title: the agent's name for users.
    :param install: how it is installed, for the error.
    :raises InvalidDefinition: if it does not run.
    """
    with tempfile.TemporaryDirectory(prefix="agent-version-") as home:
        (Path(home) / "tmp").mkdir()
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": home,
            "TMPDIR": str(Path(home) / "tmp"),
        }
        try:
            done = subprocess.run(
                list(command),
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_VERSION_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            words = str(getattr(error, "stderr", None) or error).strip()[-2000:]
            raise InvalidDefinition(
                f"{title}'s program does not start; {install}", raw=words
            ) from error
    return done.stdout.strip().partition("\n")[0]


@dataclass(frozen=True)
class HostedRun:
    """A vendor's run of an agent, wherever it stands.

    :param agent_id: the vendor's id of the agent, which holds the conversation.
    :param run_id: the vendor's id of this run.
    :param status: the vendor's word for where the run stands.
    :param ended: whether it will not change any more.
    :param updated_at: the vendor's time of the last change, as text; stall is judged by it.
    :param failure: why it failed, if it did.
    :param message: the agent's final message.
    :param branch: the branch with the agent's work, if it pushed one.
    :param usage: tokens and cost, as far as the vendor says.
    """

    agent_id: str
    run_id: str
    status: str
    ended: bool
    updated_at: str = ""
    failure: AgentFailure | None = None
    message: str = ""
    branch: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class HostedLimits:
    """What a vendor grants to a key, and how often to look.

    :param account: names the key without telling it: the same for all connections that hold it.
    :param requests_per_minute: how many requests one process may send in any minute.
    :param poll_interval: seconds between two looks at a run.
    """

    account: str
    requests_per_minute: float
    poll_interval: float


@dataclass(frozen=True)
class ListedAgent:
    """What a vendor's list tells of an agent: less than a look at its run.

    :param status: the vendor's word for where the agent stands.
    :param active: whether its run may still be under way; where not, a look tells more.
    :param updated_at: the vendor's time of the last change, as text.
    :param latest_run: the vendor's id of its newest run; empty if the list does not say.
    """

    status: str
    active: bool
    updated_at: str = ""
    latest_run: str = ""


@dataclass(frozen=True)
class AgentPage:
    """A page of a vendor's list of agents.

    :param agents: what it tells, by the agent's id.
    :param cursor: where the next page begins; None if there is none.
    """

    agents: Mapping[str, ListedAgent]
    cursor: str | None = None


class HostedAgentHook(AgentHook):
    """An agent that runs at its vendor and works on a branch of the repository.

    The methods that a trigger calls to look at a run, to end it or to hear from it send one
    request each, so that whoever shares the key among many runs can count them. None of them tries
    again.
    """

    @abstractmethod
    def submit(
        self,
        *,
        agent_id: str,
        prompt: str,
        repository: str,
        ref: str,
        name: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        after: str | None = None,
    ) -> HostedRun:
        """Start the agent's run, or attach to the one that was started for ``agent_id`` before.

        Where the agent exists and its last run has ended without success, a follow-up run
        continues the conversation. No call ever makes a second agent for an ``agent_id``.

        :param agent_id: id that we chose; see :meth:`agent_id_for`.
        :param prompt: what to do.
        :param repository: the repository's URL as the vendor reaches it.
        :param ref: the branch to start from.
        :param name: what users see at the vendor.
        :param model: the vendor's model name.
        :param options: settings of this agent alone.
        :param after: id of a run whose result was judged and found wanting: where it is the
            agent's last run, a follow-up run is started although it ended with success.
        """

    @abstractmethod
    def agent_id_for(self, identity: str) -> str:
        """Return the vendor-shaped id that ``identity`` always gets."""

    @abstractmethod
    def get_run(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands, usage included once it has ended."""

    @abstractmethod
    async def aget_run(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands, as :meth:`get_run` does, inside a trigger."""

    @abstractmethod
    def cancel(self, agent_id: str, run_id: str) -> None:
        """End the run; harmless if it has ended already."""

    @abstractmethod
    async def alook(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands, by one request inside a trigger: without its usage."""

    async def alist(self, cursor: str = "") -> AgentPage | None:
        """Return a page of the agents of the key, newest first, by one request inside a trigger.

        The base returns None: there is no list, so each run is looked at by itself.

        :param cursor: where the page begins, as the page before told; empty for the first one.
        """
        return None

    @abstractmethod
    async def acancel(self, agent_id: str, run_id: str) -> bool:
        """End the run, by one request inside a trigger; return whether it was still under way."""

    @abstractmethod
    def poll_interval(self, options: Mapping[str, Any] | None = None) -> float:
        """Return the seconds between two looks at a run.

        :param options: settings of this agent alone; they win over the connection's.
        """

    @abstractmethod
    async def alimits(self) -> HostedLimits:
        """Return what the connection's key may ask for, inside a trigger; sends nothing."""

    def sign_of_life(self, agent_id: str, run_id: str, since: str = "") -> str:
        """Return a mark that changes while the agent works, asked only when a stall is suspected.

        The base knows none beyond the run's status and time of change, and returns ``since``.

        :param since: the mark of the last call, empty at first.
        :raises AgentFailure: if the vendor refuses to tell: that is no silence of the agent.
        """
        return since

    async def asign_of_life(self, agent_id: str, run_id: str, since: str = "") -> str:
        """Return a mark that changes while the agent works, by one request inside a trigger.

        :raises AgentFailure: if the vendor refuses to tell: that is no silence of the agent.
        """
        return since

    async def aclose(self) -> None:
        """Release what the hook keeps open inside a trigger; the base keeps nothing."""


def get_agent_hook(agent: str, conn_id: str | None = None) -> AgentHook:
    """Return the hook of ``agent``, importing it now.

    :param agent: a name in the registry.
    :param conn_id: id of the connection; None takes the agent's default one.
    """
    module, _, name = AGENTS[agent].hook.rpartition(".")
    hook: AgentHook = getattr(import_module(module), name)(conn_id)
    return hook
