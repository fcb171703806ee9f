"""How one agent of a step's list does the work: on this worker (:mod:`.local`) or at its vendor
(:mod:`.hosted`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_agent_provider.agents.failures import Interrupted
from airflow_agent_provider.agents.registry import AGENTS

if TYPE_CHECKING:
    from airflow_agent_provider.agents.contract import AgentResult
    from airflow_agent_provider.hooks.agent import AgentHook
    from airflow_agent_provider.operators.agent_attempt import AgentAttempt
    from airflow_agent_provider.operators.judge import Verdict


@dataclass(frozen=True)
class AgentChoice:
    """One agent of a step's list.

    :param agent: its name in the registry.
    :param model: the vendor's model name; None takes the connection's or the vendor's default.
    :param conn_id: its connection; None takes the agent's default one.
    :param options: settings of this agent alone.
    """

    agent: str
    model: str | None = None
    conn_id: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The agent's name for users."""
        return AGENTS[self.agent].title


@dataclass(frozen=True)
class Work:
    """What the agent answered, and what was found good of it.

    :param result: the agent's own account.
    :param verdict: the judgement on what it left.
    """

    result: AgentResult
    verdict: Verdict


class AgentWork(ABC):
    """One agent at the step's work.

    :param attempt: the attempt that it is part of.
    :param choice: which agent, and how.
    :param hook: the agent's hook.
    """

    #: Whether the agent works at its vendor, on a clone of its own.
    hosted: ClassVar[bool]

    def __init__(self, attempt: AgentAttempt, choice: AgentChoice, hook: AgentHook) -> None:
        self.attempt = attempt
        self.choice = choice
        self.hook = hook

    @abstractmethod
    def work(self) -> Work:
        """Let the agent work until what it left is found good.

        :raises AgentFailure: if it is not, or the agent cannot go on.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the agent; callable from any thread."""

    def session_files(self) -> Mapping[str, Path]:
        """Return the files that resume the agent's session elsewhere, by their path."""
        return {}

    def on_lost(self, lost: Interrupted) -> None:
        """End the agent: the step belongs to a newer attempt, or the supervisor is gone."""
        self.stop()
