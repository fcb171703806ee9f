"""The processes of a step's attempt, found from outside, for the tests that kill them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_agent_provider.agents.identity import StepKey
from tests.e2e.live import Live

#: Name of the processes that make the box.
_BOX = "bwrap"


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

    def living(self) -> list[str]:
        """Return what lives on of the task and its agent."""
        return [text for process in (self.task, *self.agent) if (text := _alive(process))]

    def names(self) -> list[str]:
        """Return the names of the agent's processes."""
        return [_name(process) for process in self.agent]

    @property
    def box(self) -> psutil.Process:
        """The outermost process of the agent: its box, or its program where it has none."""
        return self.agent[0]

    @property
    def program(self) -> psutil.Process:
        """The agent's program itself, which the box's processes have started."""
        process = self.box
        while _name(process) == _BOX:
            inside = [child for child in self.agent if _parent(child) == process]
            if not inside:
                break
            process = inside[0]
        return process


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


def processes_below(folder: Path) -> list[str]:
    """Return the processes that work or have their home below a folder, or name it."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [process.environ().get("HOME", ""), process.cwd(), *process.cmdline()]
        except psutil.Error:
            continue
        if any(str(folder) in text for text in told):
            found.append(_alive(process))
    return [text for text in found if text]


def _alive(process: psutil.Process) -> str:
    """Return what the process is; an empty text if it has ended."""
    try:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return f"{process.pid} {process.name()}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        pass
    return ""


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
