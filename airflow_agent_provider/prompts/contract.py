"""The section that ends a prompt: what the step asks of the agent, whatever the template says.

``prompt_contract: false`` on a step leaves it out. Nothing in it may change between the attempts
of a step: a changed prompt makes a retry start over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.agents.contract import Access
from airflow_agent_provider.agents.identity import StepKey


@dataclass(frozen=True)
class StepContract:
    """What a step asks of its agent.

    :param step: which step it is.
    :param access: what may be done to the workspace.
    :param output_path: the file that must be written, if any.
    :param output_schema: JSON schema of the output, if any.
    :param hosted: whether the agent works on a clone of its own, at its vendor.
    """

    step: StepKey
    access: Access
    output_path: str | None = None
    output_schema: Mapping[str, Any] | None = None
    hosted: bool = False

    def text(self) -> str:
        """Return the section, Markdown."""
        lines = [
            "---",
            "## The contract of this step",
            "",
            f"Step: {self.step.step_id} of workflow {self.step.dag_id}, run {self.step.run_id}",
            "",
            *[f"- {rule}" for rule in (self._work(), self._access(), self._output()) if rule],
            "- Nobody can answer questions. Decide what is left open, and say what you decided.",
        ]
        if self.output_schema is not None:
            schema = json.dumps(self.output_schema, indent=2, sort_keys=True)
            lines += ["", "The schema:", "", "```json", schema, "```"]
        return "\n".join(lines) + "\n"

    def _work(self) -> str:
        if self.hosted:
            return "Commit what you change on the branch that you were given for it."
        return (
            "Work in the current directory, a git working tree. What you leave in it is committed "
            "for you: do not commit, push or switch branches."
        )

    def _access(self) -> str:
        if self.access is Access.READ_ONLY:
            return "Read only: change no file."
        return ""

    def _output(self) -> str:
        schema = self.output_schema is not None
        if self.output_path:
            form = "JSON of the schema below" if schema else "text"
            return (
                f"Write this step's output to the file `{self.output_path}` ({form}). Without it "
                "the step fails."
            )
        if schema:
            return (
                "Your final message is this step's output: JSON of the schema below, nothing else."
            )
        return "Your final message is this step's output."
