"""What a run leaves for good: its branch and the outputs of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_agent_provider.agents.identity import StepKey
from tests.e2e.live import Live, git

#: Trailers in which a disturbed run may differ from an undisturbed one.
_OWN = ("Agents-Run", "Agents-Attempt", "Agents-Session")


@dataclass(frozen=True)
class History:
    """What two runs of the same workflow have in common, whatever happened to them.

    :param commits: subject, tree and trailers of each commit of the run's branch, oldest first.
    :param outputs: each step's output.
    """

    commits: list[tuple[str, str, dict[str, str]]]
    outputs: dict[str, Any]

    def differences(self, other: History) -> list[str]:
        """Return in what ``other`` differs; empty if in nothing."""
        told = [
            f"the history is {[commit[0] for commit in other.commits]}, "
            f"not {[commit[0] for commit in self.commits]}"
            for _ in range(len(self.commits) != len(other.commits))
        ]
        told += [
            f"the commit is {there}, not {here}"
            for here, there in zip(self.commits, other.commits, strict=False)
            if here != there
        ]
        told += [
            f"the output of {step} is {other.outputs.get(step)!r}, not {output!r}"
            for step, output in self.outputs.items()
            if output != other.outputs.get(step)
        ]
        return told


def read_history(live: Live, remote: Path, dag_id: str, run_id: str, steps: list[str]) -> History:
    """Return the history that a run has left.

    :param remote: its repository.
    :param steps: its steps.
    """
    branch = StepKey(dag_id, run_id, "any").run_branch
    listing = git(
        remote,
        *("log", "--reverse", "--format=%s%x00%T%x00%(trailers:only,unfold)%x01"),
        f"main..{branch}",
    )
    commits = [_commit(entry.strip("\n")) for entry in listing.split("\x01") if entry.strip()]
    results = {step: live.api.xcom(dag_id, run_id, step) or {} for step in steps}
    return History(commits, {step: result.get("output") for step, result in results.items()})


def _commit(entry: str) -> tuple[str, str, dict[str, str]]:
    subject, tree, trailers = entry.split("\x00")
    pairs = (line.split(": ", 1) for line in trailers.splitlines() if line)
    return subject, tree, {name: value for name, value in pairs if name not in _OWN}
