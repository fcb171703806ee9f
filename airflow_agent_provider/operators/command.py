"""The step in which a command works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.step import StepOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_agent_provider.operators.command_attempt import CommandAttempt


class CommandOperator(StepOperator):
    """Run a shell command in the run's repository; see also :class:`StepOperator`.

    It runs in the sandbox, as an agent does. What it changed is committed; without an output file,
    what it wrote to its standard output is the step's output.

    :param run: the command, a template, for ``/bin/sh -e``. Each value that goes in is one quoted
        word, so it is data for the command, whoever wrote it.
    """

    template_fields: Sequence[str] = (*StepOperator.template_fields, "run")
    template_fields_renderers: ClassVar[dict[str, str]] = {"run": "bash"}
    rendered_late: ClassVar[tuple[str, ...]] = (*StepOperator.rendered_late, "run")
    ui_color = "#e4eef8"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (command)"

    def __init__(self, *, run: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    @property
    def item(self) -> Any:
        """The command."""
        return self.run

    def new_attempt(self, context: Context) -> CommandAttempt:
        """Return a new attempt."""
        from airflow_agent_provider.operators.command_attempt import CommandAttempt

        return CommandAttempt(self, context)
