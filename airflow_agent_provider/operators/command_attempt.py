"""One attempt of a command step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow_agent_provider.agents.checkpoint import Checkpoint
from airflow_agent_provider.agents.contract import AgentResult
from airflow_agent_provider.agents.failures import Interrupted, VerificationFailed
from airflow_agent_provider.operators.attempt import Attempt
from airflow_agent_provider.operators.work import Work
from airflow_agent_provider.prompts.render import Prompt, PromptError

if TYPE_CHECKING:
    from airflow_agent_provider.operators.command import CommandOperator

#: Characters of a failed command's output that stand in the failure: its end, where the error is.
_SHOWN_OUTPUT = 4000


class CommandAttempt(Attempt):
    """One attempt of a command step.

    A command does not know how far an earlier attempt came, so each starts on the upstream's work;
    only one that was done and could not tell is not run again.
    """

    operator: CommandOperator

    @property
    def who(self) -> str:
        """A command is known by nothing but that."""
        return "command"

    def on_lost(self, lost: Interrupted) -> None:
        """End the process, and the command's box with it: nobody waits for either any more."""
        super().on_lost(lost)
        os._exit(1)

    def stop(self) -> None:
        """Do nothing: the command's box ends with the call that runs it, or with its process."""

    def _resolve(self) -> Prompt:
        where = f"'run' of step {self.key.step.step_id}"
        templates = self.inputs.templates
        renderer = templates.renderer(templates.names(self.workspace))
        command = renderer.command(self.operator.run, where)
        if not command.strip():
            raise PromptError(f"{where}: the command is empty")
        self.operator.run = command
        self.record.put_text("command.sh", command)
        return Prompt(command)

    def _continued(self, found: Checkpoint | None) -> Checkpoint | None:
        return found if found is not None and found.finished else None

    def _work(self) -> Work:
        self.checks.setup()
        done = self.checks.work(f"set -e\n{self.operator.run}")
        if done.returncode != 0:
            said = (done.errors.strip() or done.output.strip())[-_SHOWN_OUTPUT:]
            raise VerificationFailed(
                f"the command failed with exit code {done.returncode}", raw=said or None
            )
        answer = AgentResult("completed", done.output)
        return Work(answer, self.judge(answer))
