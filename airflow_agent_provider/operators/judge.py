"""The judgement: whether what an agent left is what the step asks for.

An agent's own account proves nothing, so all of these have to agree: the rules on what may be
changed, the declared output with its schema, and the step's checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_agent_provider.agents.contract import Access, AgentResult
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    OutputInvalid,
    PolicyViolation,
    VerificationFailed,
)
from airflow_agent_provider.agents.outcome import check_schema, parse_output
from airflow_agent_provider.agents.path_patterns import matches_any

if TYPE_CHECKING:
    from airflow_agent_provider.sandbox.command import Finished
    from airflow_agent_provider.workspace.workspace import Workspace

#: Paths that an error names.
_SHOWN_PATHS = 10
#: Characters of a failed check's output that the agent is shown: its end, where the error stands.
_SHOWN_OUTPUT = 4000


@dataclass(frozen=True)
class Rules:
    """What a step asks of its result.

    :param access: what may be done to the workspace at all.
    :param changes: ``required``, ``allowed`` or ``forbidden``.
    :param allow: patterns of the paths that may be changed; empty allows all.
    :param deny: patterns of the paths that may not be.
    :param output_path: file of the workspace that must be written.
    :param output_schema: JSON schema of the output.
    :param verify: shell commands that must succeed.
    """

    access: Access = Access.WRITE
    changes: str = "allowed"
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    output_path: str | None = None
    output_schema: Mapping[str, Any] | None = None
    verify: Sequence[str] = ()

    @property
    def proven(self) -> bool:
        """Whether the step has proof of its work beyond the agent's word."""
        return bool(self.verify or self.output_path or self.output_schema)


@dataclass(frozen=True)
class Verdict:
    """What was found good.

    :param commit: the step's commit.
    :param output: the step's output, text or JSON values.
    """

    commit: str
    output: Any


def judge(
    rules: Rules,
    workspace: Workspace,
    commit: str,
    answer: AgentResult,
    run_check: Callable[[str], Finished],
) -> Verdict:
    """Return the verdict on what an agent left; all that is wrong is told at once.

    :param rules: what the step asks for.
    :param workspace: the step's workspace.
    :param commit: the commit of the agent's work.
    :param answer: the agent's own account.
    :param run_check: runs one of the step's commands.
    :raises PolicyViolation: if something was changed that may not be.
    :raises OutputInvalid: if the output is missing or not of its schema.
    :raises VerificationFailed: if a command failed, or nothing was changed where it must be.
    """
    output: Any = None
    faults: list[AgentFailure] = []
    policy = _policy_faults(rules, workspace.changed_paths(commit))
    if fixed := workspace.submodule_changes(commit):
        policy.append(_fixed_files("files of submodules", fixed))
    if fixed := workspace.lfs_changes():
        policy.append(_fixed_files("files that git-lfs manages", fixed))
    faults += policy
    try:
        output = _output(rules, workspace, answer)
    except OutputInvalid as fault:
        faults.append(fault)
    # A check may run what the agent wrote where it may write nothing.
    if not any(isinstance(fault, PolicyViolation) for fault in policy):
        faults += _failed_checks(rules.verify, run_check)
    if not faults:
        return Verdict(commit, output)
    raise type(faults[0])("; ".join(fault.reason for fault in faults), raw=faults[-1].raw)


def _policy_faults(rules: Rules, changed: Sequence[str]) -> list[AgentFailure]:
    if rules.access is Access.READ_ONLY and changed:
        return [PolicyViolation(f"the step is read-only, but the agent changed {_shown(changed)}")]
    if rules.changes == "forbidden" and changed:
        return [PolicyViolation(f"the step may change nothing, but {_shown(changed)} changed")]
    outside = [path for path in changed if not _permitted(path, rules)]
    if outside:
        return [
            PolicyViolation(
                f"the step's rules (paths) do not let it change {_shown(outside)}; undo that"
            )
        ]
    if rules.changes == "required" and not changed:
        return [VerificationFailed("the step must change something, and nothing was changed")]
    return []


def _fixed_files(what: str, changed: Sequence[str]) -> AgentFailure:
    return PolicyViolation(
        f"a step can read {what} and not change them, but {_shown(changed)} changed; undo that"
    )


def _permitted(path: str, rules: Rules) -> bool:
    if matches_any(path, rules.deny):
        return False
    return not rules.allow or matches_any(path, rules.allow)


def _output(rules: Rules, workspace: Workspace, answer: AgentResult) -> Any:
    path, schema = rules.output_path, rules.output_schema
    if path:
        return parse_output(workspace.read_output(path), path, schema)
    if schema is None:
        return answer.message
    if answer.structured is None:
        content = answer.message.encode()
        return parse_output(content, "that the agent gave as its final message", schema)
    check_schema(answer.structured, schema, "the agent's final message")
    return answer.structured


def _failed_checks(
    commands: Sequence[str], run_check: Callable[[str], Finished]
) -> list[AgentFailure]:
    faults: list[AgentFailure] = []
    for command in commands:
        done = run_check(command)
        if done.returncode != 0:
            faults.append(
                VerificationFailed(
                    f"the check `{command}` failed with exit code {done.returncode}",
                    raw=done.output.strip()[-_SHOWN_OUTPUT:] or None,
                )
            )
    return faults


def _shown(paths: Sequence[str]) -> str:
    more = len(paths) - _SHOWN_PATHS
    return ", ".join(paths[:_SHOWN_PATHS]) + (f" and {more} more" if more > 0 else "")


def output_file(path: str | None) -> str:
    """Return the name of the artifact that holds a step's output."""
    return f"output/{Path(path).as_posix()}" if path else "output/message.md"
