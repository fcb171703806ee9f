"""The processes of a step's attempt, found from outside, for the tests that kill them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_agent_provider.agents.identity import StepKey
from tests.e2e.live import Live


@dataclass(frozen=True)
class Victim:
    """An attempt in the middle of its work.

    :param task: Airflow's task process.
    :param supervisor: its parent, which talks to Airflow.
    :param agent: the agent's box, its program and what that has started; the outermost first.
    """

    task: psutil.Process
    supervisor: psutil.Process
    agent: list[psutil.Process]

    def agent_is_gone(self) -> bool:
        """Return whether no process of the agent is left."""
        return not any(process.is_running() for process in self.agent)

    def names(self) -> list[str]:
        """Return the names of the agent's processes."""
        return [name for process in self.agent if (name := _name(process))]


def session_home(live: Live, step: StepKey) -> Path:
    """Return the home of a step's sessions: every process of its agent has it as HOME."""
    return live.stack.workspaces / step.prefix / "home"


def find_victim(home: Path) -> Victim | None:
    """Return the processes of the attempt whose agent has this home; None if there are none.

    :param home: the session home of the step.
    """
    agent = with_variable(f"HOME={home}")
    outermost = next((p for p in agent if _parent(p) not in agent), None)
    task = _parent(outermost)
    supervisor = _parent(task)
    if outermost is None or task is None or supervisor is None:
        return None
    agent.remove(outermost)
    return Victim(task, supervisor, [outermost, *agent])


def with_variable(variable: str) -> list[psutil.Process]:
    """Return the processes that have ``variable``, ``NAME=value``, in their environment."""
    name, _, value = variable.partition("=")
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _parent(process: psutil.Process | None) -> psutil.Process | None:
    try:
        return None if process is None else process.parent()
    except psutil.Error:
        return None


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
