"""The judgement of what an agent left; through real Airflow in ``tests/e2e/test_judgement.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from airflow_agent_provider.agents.contract import Access, AgentResult
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    OutputInvalid,
    PolicyViolation,
    VerificationFailed,
)
from airflow_agent_provider.operators.judge import Rules, Verdict, judge
from airflow_agent_provider.operators.repair import can_repair, repair_prompt
from airflow_agent_provider.sandbox.command import Finished
from airflow_agent_provider.workspace.workspace import Workspace

ANSWER = AgentResult("completed", "Done.")


@dataclass
class Tree:
    """What a judge asks of a workspace."""

    changed: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    in_submodules: list[str] = field(default_factory=list)
    of_lfs: list[str] = field(default_factory=list)

    def changed_paths(self, commit: str) -> list[str]:
        return self.changed

    def submodule_changes(self, commit: str) -> list[str]:
        return self.in_submodules

    def lfs_changes(self) -> list[str]:
        return self.of_lfs

    def read_output(self, path: str, max_bytes: int = 0) -> bytes:
        if path not in self.files:
            raise OutputInvalid(f"output {path} is missing")
        return self.files[path]


def verdict(
    rules: Rules, tree: Tree, answer: AgentResult = ANSWER, codes: dict[str, int] | None = None
) -> Verdict:
    ran = codes or {}

    def run(command: str) -> Finished:
        return Finished(command, ran.get(command, 0), f"output of {command}\n", 0.1)

    return judge(rules, cast(Workspace, tree), "c0ffee", answer, run)


def fault(*arguments: Any, **more: Any) -> AgentFailure:
    with pytest.raises(AgentFailure) as raised:
        verdict(*arguments, **more)
    return raised.value


def test_what_is_good() -> None:
    rules = Rules(changes="required", allow=["src/**"], output_path="src/a", verify=["true"])
    tree = Tree(["src/a"], {"src/a": b"text"})
    assert verdict(rules, tree) == Verdict("c0ffee", "text")
    assert verdict(Rules(), Tree()) == Verdict("c0ffee", "Done.")
    schema = {"type": "object"}
    answer = AgentResult("completed", '{"a": 1}')
    assert verdict(Rules(output_schema=schema), Tree(), answer).output == {"a": 1}


def test_all_that_is_wrong_is_told_at_once_and_the_worst_is_the_class() -> None:
    rules = Rules(output_path="plan.md", verify=["one", "two", "three"])
    found = fault(rules, Tree(["a"]), codes={"one": 1, "three": 2})
    assert type(found) is OutputInvalid
    assert found.reason == (
        "output plan.md is missing; the check `one` failed with exit code 1; "
        "the check `three` failed with exit code 2"
    )
    assert found.raw == "output of three"


def test_what_may_not_be_changed_is_not_even_tried() -> None:
    rules = Rules(deny=["ci"], output_path="plan.md", verify=["one"])
    found = fault(rules, Tree(["ci/run"]), codes={"one": 1})
    assert type(found) is PolicyViolation
    assert "ci/run" in found.reason
    assert "plan.md" in found.reason
    assert "one" not in found.reason


def test_many_paths_are_not_all_named() -> None:
    found = fault(Rules(access=Access.READ_ONLY), Tree([f"f{n:02d}" for n in range(25)]))
    assert "f09 and 15 more" in found.reason
    assert "f10" not in found.reason


def test_what_an_agent_can_mend() -> None:
    assert can_repair(OutputInvalid("x"), "write")
    assert can_repair(VerificationFailed("x"), "read_only")
    assert can_repair(PolicyViolation("x"), "write")
    assert not can_repair(PolicyViolation("x"), "read_only")
    assert not can_repair(AgentFailure("x"), "write")


def test_the_agent_is_told_exactly_what_is_wrong() -> None:
    text = repair_prompt(VerificationFailed("the check `x` failed", raw="line 1\nline 2"))
    assert "the check `x` failed" in text
    assert "```\nline 1\nline 2\n```" in text
    assert "```" not in repair_prompt(OutputInvalid("missing"))


def test_files_of_submodules_and_of_lfs_are_to_read() -> None:
    tree = Tree(in_submodules=["libs/one/a.c"], of_lfs=["a.bin"])
    failure = fault(Rules(verify=["false"]), tree)
    assert isinstance(failure, PolicyViolation)
    assert failure.reason == (
        "a step can read files of submodules and not change them, but libs/one/a.c changed; "
        "undo that; a step can read files that git-lfs manages and not change them, but a.bin "
        "changed; undo that"
    )
