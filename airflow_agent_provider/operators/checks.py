"""The workflow's own commands in a workspace: what makes it ready, and what proves the work."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_agent_provider.agents.contract import Access, AgentTask, Network
from airflow_agent_provider.agents.failures import AgentFailed
from airflow_agent_provider.sandbox.command import Finished, run_command

if TYPE_CHECKING:
    from airflow_agent_provider.operators.attempt import Attempt

#: Characters of a failed command's output that stand in the failure.
_SHOWN_OUTPUT = 4000


class Checks:
    """Runs the commands of one attempt, each in a box of its own, without the agent's home.

    :param attempt: the attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._count = 0

    def setup(self) -> None:
        """Make the workspace ready, with the network open, before any agent works in it.

        Package caches are kept by the hash of the commands and of the files that they name. What
        setup leaves in the tree is no part of the step's work.

        :raises AgentFailed: if a command fails.
        """
        operator = self._attempt.operator
        if not operator.setup_commands:
            return
        home = self._attempt.settings.workspaces / "setup" / self._digest()
        task = self._task(home, Network.OPEN)
        for command in operator.setup_commands:
            done = self._run(task, command, "setup")
            if done.returncode != 0:
                raise AgentFailed(
                    f"the setup command `{command}` failed with exit code {done.returncode}",
                    raw=done.output.strip()[-_SHOWN_OUTPUT:] or None,
                )
        self._attempt.workspace.settle_setup()

    def verify(self, command: str) -> Finished:
        """Run one of the step's checks; what it leaves in the tree is taken back."""
        home = self._attempt.workspace.home.with_name("checks")
        shutil.rmtree(home, ignore_errors=True)
        task = self._task(home, Network(self._attempt.operator.network))
        try:
            return self._run(task, command, "verify")
        finally:
            self._attempt.workspace.restore()
            shutil.rmtree(home, ignore_errors=True)

    def work(self, command: str) -> Finished:
        """Run the command that is the step itself, its two streams apart."""
        access = Access(self._attempt.operator.access)
        task = self._task(
            self._attempt.workspace.home, Network(self._attempt.operator.network), access
        )
        return self._run(task, command, "run", apart=True)

    def _run(self, task: AgentTask, command: str, folder: str, *, apart: bool = False) -> Finished:
        attempt = self._attempt
        attempt.log.info("%s: %s", folder, command)
        done = run_command(task, command, apart=apart)
        self._count += 1
        head = f"$ {command}\n"
        tail = f"\nexit code {done.returncode} after {done.seconds:.1f} s\n"
        said = f"{head}{done.output}{done.errors}{tail}"
        attempt.record.put_text(f"{folder}/{self._count:02d}.log", said)
        attempt.log.info("%s: exit code %d in %.1f s", folder, done.returncode, done.seconds)
        return done

    def _task(self, home: Path, network: Network, access: Access = Access.WRITE) -> AgentTask:
        attempt = self._attempt
        return AgentTask(
            prompt="",
            workspace=attempt.workspace.path,
            home=home,
            access=access,
            limits=attempt.limits,
            confinement=attempt.confinement(network),
        )

    def _digest(self) -> str:
        attempt = self._attempt
        operator = attempt.operator
        digest = hashlib.sha256()
        known = [attempt.inputs.repository.name, list(operator.setup_commands)]
        digest.update(json.dumps(known).encode())
        for name in operator.setup_files:
            content = attempt.workspace.read_output(name, max_bytes=50_000_000)
            digest.update(f"\n{name}\n".encode() + content)
        return digest.hexdigest()[:32]
