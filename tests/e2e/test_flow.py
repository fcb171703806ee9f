"""Commands, conditions and joins, as a workflow's definition has them, through real Airflow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.bench import Bench, workflow
from tests.e2e.live import git

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("airflow_db")]


def states(run: Any) -> dict[str, str]:
    """Return the states of a run's tasks."""
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def result(run: Any, step: str) -> dict[str, Any]:
    """Return a step's results."""
    ti = next(ti for ti in run.get_task_instances() if ti.task_id == step)
    return ti.xcom_pull(task_ids=step)


def test_commands_and_agents_work_on_each_other_s_results(bench: Bench) -> None:
    bench.rehearse("""
      plan:
        - write: {path: src/a.py, content: "print('a')\\n"}
        - say: {files: ["src/a.py", "it's; rm -rf *"]}
      tell:
        - say: Told.
    """)
    dag = workflow(
        bench,
        "commands",
        """
        params: {who: {type: string, default: "$(id)"}}
        steps:
          - id: plan
            agent: codex
            prompt: Plan it.
            output:
              schema:
                type: object
                properties: {files: {type: array, items: {type: string}}}
                required: [files]
                additionalProperties: false
          - id: count
            depends_on: plan
            run: |
              echo noise >&2
              for name in {{ steps.plan.output.files[0] }} {{ steps.plan.output.files[1] }}; do
                echo "$name"
              done > names.txt
              git diff --name-only {{ run.base }} > changed.txt
              echo {{ params.who }} > who.txt
              echo '{"names": 2}'
            output: {schema: {type: object, required: [names]}}
          - id: tell
            agent: codex
            prompt: "There are {{ steps.count.output.names }} names, by {{ steps.count.agent }}."
            depends_on: count
        """,
    )
    remote = bench.repository({"README.md": "# Project\n"})
    run = dag.test(run_conf={"repository": str(remote)})
    outcomes = bench.outcomes()
    assert run.state == "success", json.dumps(outcomes, indent=1)
    branch = outcomes["tell"]["branch"]
    # What an agent or a user wrote is a word for the command, and never a command.
    assert git(remote, "show", f"{branch}:names.txt").splitlines() == ["src/a.py", "it's; rm -rf *"]
    assert git(remote, "show", f"{branch}:changed.txt").strip() == "src/a.py"
    assert git(remote, "show", f"{branch}:who.txt").strip() == "$(id)"
    subjects = git(remote, "log", "--format=%s", branch).splitlines()[:3]
    assert subjects == ["tell: commands", "count: commands", "plan: commands"]
    count = outcomes["count"]
    assert (count["agent"], count["cost"], count["session"]) == ("command", 0.0, None)
    log = bench.artifact(count["artifacts"]["run/01.log"])
    assert "noise" in log
    assert "exit code 0" in log
    assert "'it'\"'\"'s; rm -rf *'" in bench.artifact(count["artifacts"]["command.sh"])
    assert result(run, "count")["output"] == {"names": 2}
    assert "There are 2 names, by command." in bench.artifact(
        outcomes["tell"]["artifacts"]["prompt.md"]
    )


def test_a_command_that_fails_says_what_it_said(bench: Bench) -> None:
    dag = workflow(
        bench,
        "failing",
        """
        steps:
          - id: lint
            run: |
              echo half > half.txt
              echo "line 3: bad" >&2
              false
              echo never
            retry: 0
          - {id: after, run: "true", depends_on: lint}
        """,
    )
    run = dag.test()
    assert states(run) == {"lint": "failed", "after": "upstream_failed"}
    failure = bench.outcomes()["lint"]["failure"]
    assert failure["failure_class"] == "VerificationFailed"
    assert "exit code 1" in failure["reason"]
    assert failure["raw"] == "line 3: bad"


def test_a_retried_command_starts_on_what_it_was_given(bench: Bench) -> None:
    dag = workflow(
        bench,
        "retried",
        """
        steps:
          - id: work
            run: |
              echo once >> done.txt
              test -e tried || { touch tried; exit 3; }
            retry: {count: 1, backoff: none}
        """,
    )
    run = dag.test()
    # Each attempt finds the tree as the steps before left it, so the second fails as the first did.
    assert states(run) == {"work": "failed"}
    assert bench.outcomes()["work"]["attempt"] == 2


@pytest.mark.parametrize("broken", [True, False])
def test_a_step_whose_condition_is_false_is_skipped(bench: Bench, broken: bool) -> None:
    dag = workflow(
        bench,
        "branches",
        """
        params: {broken: {type: boolean, default: false}}
        steps:
          - {id: start, run: "echo start > start.txt; echo {{ params.broken }}"}
          - id: fix
            run: echo fix > fix.txt
            depends_on: start
            when: "{{ params.broken }}"
          - {id: check, run: test -e fix.txt, depends_on: fix}
          - id: praise
            run: echo praise > praise.txt
            depends_on: start
            when: "{{ not (steps.start.output == 'True\\n') }}"
          - {id: join, run: ls *.txt, depends_on: [check, praise]}
        """,
    )
    run = dag.test(run_conf={"broken": broken})
    outcomes = bench.outcomes()
    taken, left = ("fix", "praise") if broken else ("praise", "fix")
    expected = dict.fromkeys(("start", "join", taken), "success") | {left: "skipped"}
    expected["check"] = "success" if broken else "skipped"
    assert states(run) == expected, json.dumps(outcomes, indent=1)
    # The join starts on the path that was taken, and on what came before the skipped one.
    assert result(run, "join")["output"].split() == sorted(["start.txt", f"{taken}.txt"])
    assert left not in outcomes


def test_a_condition_that_is_no_truth_fails_the_step_and_says_why(bench: Bench) -> None:
    dag = workflow(
        bench,
        "truths",
        """
        steps:
          - {id: ask, run: echo perhaps}
          - id: go
            run: "true"
            depends_on: ask
            when: "{{ steps.ask.output }}"
        """,
    )
    run = dag.test()
    assert states(run) == {"ask": "success", "go": "failed"}
    failure = bench.outcomes()["go"]["failure"]
    assert failure["failure_class"] == "InvalidDefinition"
    assert "neither true nor false" in failure["reason"]
    assert "'when' of step go" in failure["reason"]
