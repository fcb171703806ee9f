"""Agent steps through real Airflow, with the agents' real programs against a scripted model.

``dag.test()`` runs the tasks in this process; everything else is what production runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.rehearsal.script import Script
from airflow_agent_provider.workspace.workspace import Workspace
from infra.local.api import wait_for
from tests.e2e.bench import Bench, load, one_step
from tests.e2e.live import git

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("airflow_db")]

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_hand_written_example_runs(bench: Bench) -> None:
    bench.rehearse("""
      write:
        - run: git log --oneline
        - write: {path: CHANGELOG.md, content: "# New\\n\\n- a start\\n"}
        - say: Written.
      check:
        - run: cat CHANGELOG.md
        - say: {correct: true, doubts: []}
    """)
    remote = bench.repository({"README.md": "# Project\n"})
    run = load(bench, EXAMPLES / "changelog.py").test(
        run_conf={"repository": str(remote), "audience": "developers"}
    )
    assert run.state == "success"
    outcomes = bench.outcomes()
    assert {step: outcome["state"] for step, outcome in outcomes.items()} == {
        "write": "success",
        "check": "success",
    }
    written = outcomes["write"]
    assert "the sections New, Mended, Internals" in bench.artifact(
        written["artifacts"]["prompt.md"]
    )
    assert bench.artifact(written["artifacts"]["output/CHANGELOG.md"]) == "# New\n\n- a start\n"
    assert "+- a start" in bench.artifact(written["artifacts"]["changes.patch"])
    assert written["usage"]["total_tokens"] > 0
    # The vendor does not say; the price list does.
    assert 0 < written["cost"] < 1
    checked = outcomes["check"]
    assert "- a start" in bench.artifact(checked["artifacts"]["prompt.md"])
    assert json.loads(bench.artifact(checked["artifacts"]["output/message.md"])) == {
        "correct": True,
        "doubts": [],
    }
    branch = written["branch"]
    subjects = git(remote, "log", "--format=%s", branch).split("\n")
    assert subjects[:3] == ["check: changelog", "write: changelog", "Start"]
    assert git(remote, "show", f"{branch}:CHANGELOG.md") == "# New\n\n- a start\n"
    trailers = git(remote, "log", "-1", "--format=%(trailers:only,unfold)", f"{branch}~1")
    assert f"Agents-Session: {written['session']}" in trailers


@pytest.mark.parametrize(
    ("script", "arguments", "failure_class", "reason"),
    [
        ("work: [{say: Done.}]", {"output_path": "plan.md"}, "OutputInvalid", "plan.md"),
        (
            'work: [{write: {path: plan.md, content: " "}}]',
            {"output_path": "plan.md"},
            "OutputInvalid",
            "the output plan.md is empty",
        ),
        (
            "work: [{run: ln -s /etc/hostname plan.md}]",
            {"output_path": "plan.md"},
            "OutputInvalid",
            "plan.md",
        ),
        ("work: [{say: Done.}]", {"output_path": "../plan.md"}, "OutputInvalid", "../plan.md"),
        (
            "work: [{say: Done.}]",
            {"output_path": "/etc/hostname"},
            "OutputInvalid",
            "/etc/hostname",
        ),
        (
            "work: [{say: {count: many}}]",
            {"output_schema": {"properties": {"count": {"type": "integer"}}}},
            "OutputInvalid",
            "$.count: 'many' is not of type 'integer'",
        ),
        (
            "work: [{say: Done.}]",
            {"repository": "/nowhere/at-all.git"},
            "InvalidDefinition",
            "/nowhere/at-all.git",
        ),
        (
            "work: [{say: Done.}]",
            {"prompt": "{{ steps.plan.output }}"},
            "InvalidDefinition",
            "the prompt of step work:1: ",
        ),
        (
            "work: [{say: Done.}]",
            {"prompt": "missing.md"},
            "InvalidDefinition",
            "there is no template 'missing.md'",
        ),
        (
            "work: [{say: Done.}]",
            {"agent_conn_id": "codex_of_nobody"},
            "AuthenticationFailed",
            "airflow connections add codex_of_nobody --conn-type codex",
        ),
        (
            "work: [{fail: {status: 401, message: bad key, times: null}}]",
            {},
            "AuthenticationFailed",
            "",
        ),
    ],
)
def test_what_goes_wrong_is_classified(
    bench: Bench, script: str, arguments: dict[str, Any], failure_class: str, reason: str
) -> None:
    bench.rehearse(script)
    run = one_step(bench, **arguments).test()
    assert run.state == "failed"
    failure = bench.outcomes()["work"]["failure"]
    assert failure["failure_class"] == failure_class
    assert reason in failure["reason"]


def test_a_ref_that_is_not_there_is_one_line(bench: Bench) -> None:
    bench.rehearse("work: [{say: Done.}]")
    remote = bench.repository({"a": "b"})
    one_step(bench, repository=str(remote), ref="v9").test()
    reason = bench.outcomes()["work"]["failure"]["reason"]
    assert "v9" in reason
    assert "main" in reason
    assert "\n" not in reason


def test_the_work_of_a_failed_attempt_is_kept(bench: Bench) -> None:
    bench.rehearse("work: [{write: {path: half.txt, content: half}}, {say: Done.}]")
    one_step(bench, output_path="plan.md").test()
    outcome = bench.outcomes()["work"]
    assert outcome["commit"]
    bundle = bench.folder / "kept.bundle"
    kept = [uri for name, uri in outcome["artifacts"].items() if name.endswith(".bundle")]
    bench.store.fetch(bench.store.key(kept[-1]), bundle)
    heads = git(bench.folder, "bundle", "list-heads", str(bundle))
    assert outcome["commit"] in heads


def test_a_copilot_step_goes_on_in_the_session_of_the_attempt_that_failed(bench: Bench) -> None:
    bench.rehearse("""
      work:
        - write: {path: plan.md, content: "# Plan\\n"}
        - fail: {status: 400, code: model_not_found}
        - say: {approved: true}
    """)
    schema = {"type": "object", "required": ["approved"]}
    dag = one_step(bench, "copilot.CopilotAgentOperator", output_schema=schema, retries=1)
    assert dag.test().state == "success"
    outcome = bench.outcomes()["work"]
    assert (outcome["state"], outcome["agent"], outcome["attempt"]) == ("success", "copilot", 2)
    assert json.loads(bench.artifact(outcome["artifacts"]["output/message.md"])) == {
        "approved": True
    }
    kept = f"session-state/{outcome['session']}/events.jsonl"
    assert any(kept in key for key in bench.store.keys(""))
    assert bench.server is not None
    plays = [entry.action for entry in bench.server.requests]
    assert plays == ["write", "fail", "say"]


def test_a_kept_conversation_knows_of_no_work_that_the_kept_work_lacks(bench: Bench) -> None:
    bench.rehearse("work: [{run: sleep 2; touch one}, {run: touch two}, {say: Done.}]")
    checkpoint = Workspace.checkpoint

    def slowly(workspace: Workspace, *arguments: Any) -> str | None:
        commit = checkpoint(workspace, *arguments)
        # The agent works on before the session is stored.
        wait_for(lambda: (workspace.path / "two").exists() or None, 60, lambda: "it has stopped")
        time.sleep(1)
        return commit

    bench.monkeypatch.setattr(Workspace, "checkpoint", slowly)
    run = one_step(bench).test()
    assert run.state == "success"
    (kept,) = [key for key in bench.store.keys("") if "/checkpoints/0001/session/" in key]
    conversation = bench.store.get(kept).decode()
    assert "Do the work." in conversation
    # Had it been there, whoever resumes the session would take it for done.
    assert "touch two" not in conversation


def test_a_read_only_step_cannot_change_anything(bench: Bench) -> None:
    bench.rehearse("work: [{run: echo x > README.md}, {say: Tried.}]")
    remote = bench.repository({"README.md": "# Project\n"})
    run = one_step(bench, access="read_only", repository=str(remote)).test()
    outcome = bench.outcomes()["work"]
    branch = outcome["branch"]
    assert run.state == "success"
    assert git(remote, "show", f"{branch}:README.md") == "# Project\n"


CURSOR = "cursor.CursorAgentOperator"
Start = Callable[..., CursorServer]


def script(steps: str) -> Script:
    return Script.model_validate({"steps": yaml.safe_load(steps)})


def test_a_hosted_step_is_deferred_and_its_branch_taken_over(bench: Bench, cursor: Start) -> None:
    server = cursor(script("work: [{write: {path: a.txt, content: hello}}, {say: Done.}]"))
    remote = bench.repository({"README.md": "# Project\n"})
    run = one_step(bench, CURSOR, repository=str(remote)).test()
    assert run.state == "success"
    outcome = bench.outcomes()["work"]
    assert outcome["cost"] > 0
    assert outcome["session"].startswith("bc-")
    assert git(remote, "show", f"{outcome['branch']}:a.txt") == "hello"
    # One commit of ours on the run's branch, whatever the agent made of its own.
    subjects = git(remote, "log", "--format=%s", outcome["branch"]).splitlines()
    assert subjects == [f"work: {outcome['dag_id']}", "Start"]
    assert len(posted(server, "/v1/agents")) == 1


@pytest.mark.parametrize(
    ("repair", "attempts", "words"),
    [(2, 1, "is not accepted yet:"), (0, 2, "did not succeed: OutputInvalid:")],
)
def test_a_rejected_result_gets_a_follow_up_of_the_same_agent(
    bench: Bench, cursor: Start, repair: int, attempts: int, words: str
) -> None:
    server = cursor(
        script("""
          work:
            - say: I forgot the file.
            - write: {path: plan.md, content: "# Plan"}
            - say: Here it is.
        """)
    )
    remote = bench.repository({"README.md": "# Project\n"})
    dag = one_step(
        bench, CURSOR, repository=str(remote), output_path="plan.md", retries=1, repair=repair
    )
    assert dag.test().state == "success"
    assert len(posted(server, "/v1/agents")) == 1
    assert bench.outcomes()["work"]["attempt"] == attempts
    follow_ups = posted(server, f"/v1/agents/{bench.outcomes()['work']['session']}/runs")
    assert len(follow_ups) == 1
    text = follow_ups[0]["body"]["prompt"]["text"]
    assert words in text
    assert "plan.md" in text.split("The step:")[0]


@pytest.mark.parametrize(
    ("steps", "failure_class", "reason"),
    [
        ("work: [{fail: {how: error, message: no luck}}]", "AgentFailed", "no luck"),
        (
            "work: [{fail: {status: 401, message: bad key, times: null}}]",
            "AuthenticationFailed",
            "",
        ),
        ("work: [{fail: {status: 402, message: no credit, times: null}}]", "QuotaExhausted", ""),
    ],
)
def test_a_hosted_failure_is_classified(
    bench: Bench, cursor: Start, steps: str, failure_class: str, reason: str
) -> None:
    cursor(script(steps))
    remote = bench.repository({"README.md": "# Project\n"})
    assert one_step(bench, CURSOR, repository=str(remote)).test().state == "failed"
    failure = bench.outcomes()["work"]["failure"]
    assert failure["failure_class"] == failure_class
    assert reason in f"{failure['reason']} {failure['raw']}"


def test_a_hosted_step_needs_a_repository(bench: Bench, cursor: Start) -> None:
    cursor(script("work: [{say: Done.}]"))
    assert one_step(bench, CURSOR, options={"hosted": True}).test().state == "failed"
    failure = bench.outcomes()["work"]["failure"]
    assert failure["failure_class"] == "InvalidDefinition"
    assert "give the workflow a repository" in failure["reason"]


def test_without_a_repository_it_works_on_the_worker(bench: Bench, cursor: Start) -> None:
    cursor(
        script("work: [{write: {path: made.md, content: here}}, {say: Done.}]"), model="composer"
    )
    assert one_step(bench, CURSOR, output_path="made.md").test().state == "success"
    outcome = bench.outcomes()["work"]
    assert outcome["boxed"] is True
    assert outcome["branch"] is None


@pytest.mark.parametrize("remote", [True, False], ids=["that must stay here", "without a remote"])
def test_a_step_of_an_agent_that_is_both_runs_here(
    bench: Bench, cursor: Start, remote: bool
) -> None:
    server = cursor(
        script("work: [{write: {path: a.txt, content: hello}}, {say: Done.}]"), model="composer-2"
    )
    arguments: dict[str, Any] = {}
    if remote:
        repository = bench.repository({"README.md": "# Project\n"})
        arguments = {"repository": str(repository), "options": {"hosted": False}}
    assert one_step(bench, CURSOR, **arguments).test().state == "success"
    outcome = bench.outcomes()["work"]
    assert outcome["session"].startswith("agent-")
    assert outcome["usage"]["total_tokens"] > 0
    assert outcome["cost"] is None
    assert posted(server, "/v1/agents") == []
    plays = [entry["action"] for entry in server.requests if "action" in entry]
    assert plays == ["write", "say"]


def posted(server: CursorServer, path: str) -> list[Any]:
    """Return the requests to ``path`` by which the stand-in made something."""
    made = [r for r in server.requests if r["method"] == "POST" and r["status"] in (200, 201)]
    return [r for r in made if r["path"] == path]
