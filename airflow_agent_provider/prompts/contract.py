"""The section that ends a prompt: what the step asks of the agent, whatever the template says.

``prompt_contract: false`` on a step leaves it out. Nothing in it may change between the attempts
of a step: a changed prompt makes a retry start over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    :param changes: ``required``, ``allowed`` or ``forbidden``.
    :param allow: patterns of the paths that may be changed; empty allows all.
    :param deny: patterns of the paths that may not be.
    :param verify: shell commands that will be run on the work, and must succeed.
    """

    step: StepKey
    access: Access
    output_path: str | None = None
    output_schema: Mapping[str, Any] | None = None
    hosted: bool = False
    changes: str = "allowed"
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    verify: Sequence[str] = ()

    def text(self) -> str:
        """Return the section, Markdown."""
        rules = (self._work(), self._access(), self._paths(), self._output(), self._checks())
        lines = [
            "---",
            "## The contract of this step",
            "",
            f"Step: {self.step.step_id} of workflow {self.step.dag_id}, run {self.step.run_id}",
            "",
            *[f"- {rule}" for rule in rules if rule],
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
        if self.changes == "forbidden":
            return "Leave every file of the repository as it is."
        return "Something must be changed." if self.changes == "required" else ""

    def _paths(self) -> str:
        rules = []
        if self.allow:
            rules.append(f"Change only what matches {_names(self.allow)}.")
        if self.deny:
            rules.append(f"Never change what matches {_names(self.deny)}.")
        return " ".join(rules)

    def _checks(self) -> str:
        if not self.verify:
            return ""
        return f"When you are done these commands are run, and must succeed: {_names(self.verify)}."

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


def _names(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
