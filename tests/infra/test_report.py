"""What the demo prints: each change once, in words, with the reason of what failed."""

from __future__ import annotations

from typing import Any

import pytest

from infra.local import report

RESULT = {
    "agent": "cursor",
    "commit": "0123456789abcdef",
    "usage": {"total_tokens": 1234},
    "cost": 0.5,
    "artifacts": {"prompt.md": "s3://b/prompt.md"},
}
FAILURE = {"failure_class": "OutputInvalid", "reason": "docs/plan.md is missing"}


def task(name: str, state: str | None, attempt: int = 1, start: str = "") -> dict[str, Any]:
    """Return a task instance as Airflow's API gives it."""
    return {
        "task_id": name,
        "map_index": -1,
        "state": state,
        "try_number": attempt,
        "start_date": start or None,
        "end_date": "2026-11-23T10:00:07.500Z" if start else None,
    }


class Api:
    """Airflow's API as far as a report asks it."""

    def __init__(self, *tasks: dict[str, Any], state: str = "running") -> None:
        self.tasks = list(tasks)
        self.state = state

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return {"state": self.state}

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return self.tasks

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        failed = {each["task_id"]: each["state"] for each in self.tasks}[task_id] != "success"
        if key == "failure":
            return FAILURE if failed else None
        return None if failed else RESULT

    def log(self, *_: Any) -> str:
        return "\n".join(f"line {number}" for number in range(100))


def test_each_change_is_told_once() -> None:
    said: list[str] = []
    api: Any = Api(task("plan", None), task("review", None))
    progress = report.Progress(api, "d", "r", said.append)

    assert progress.look() is None
    api.tasks = [task("plan", "queued"), task("review", "scheduled")]
    progress.look()
    api.tasks = [task("plan", "running", start="2026-11-23T10:00:00Z"), task("review", None)]
    progress.look()
    progress.look()
    api.tasks[0] = task("plan", "up_for_retry", start="2026-11-23T10:00:00Z")
    progress.look()
    api.tasks[0] = task("plan", "running", 2, start="2026-11-23T10:00:00Z")
    api.state = "failed"

    assert progress.look() == "failed"
    assert [" ".join(line.split()) for line in said] == [
        "plan running",
        "plan failed, is tried again",
        "OutputInvalid: docs/plan.md is missing",
        "plan running (attempt 2)",
    ]


def test_the_steps_are_shown_in_the_order_in_which_they_started() -> None:
    api: Any = Api(
        task("review", "upstream_failed"),
        task("test", "failed", 3, start="2026-11-23T10:00:02Z"),
        task("plan", "success", start="2026-11-23T10:00:00Z"),
    )

    lines = report.steps_table(api, "d", "r").splitlines()

    assert [line.split() for line in lines[2:5]] == [
        ["plan", "cursor", "success", "1", "7.5", "1234", "0.5000", "0123456789"],
        ["test", "-", "failed", "3", "5.5", "-", "unknown", "-"],
        ["review", "-", "upstream", "failed", "1", "-", "-", "unknown", "-"],
    ]
    assert lines[-2:] == ["  plan", "    s3://b/prompt.md"]


def test_a_failed_step_is_told_with_its_reason_and_the_end_of_its_log() -> None:
    api: Any = Api(task("plan", "success"), task("test", "failed"))

    (told,) = report.failures(api, "d", "r")

    lines = told.splitlines()
    assert lines[0] == "test failed. OutputInvalid: docs/plan.md is missing"
    assert lines[-1] == "  | line 99"
    assert len(lines) == 1 + report.LOG_LINES


def test_items_are_shown_with_state_and_failure() -> None:
    items = [
        {"sk": "RUN", "state": "failed"},
        {"sk": "ATTEMPT#plan#-1#1", "state": "failed", "try_number": 1, **FAILURE},
    ]

    lines = report.items_table(items).splitlines()

    assert lines[2].split() == ["RUN", "failed", "-", "-", "-", "-"]
    assert lines[3].split()[-1] == "OutputInvalid"


def test_the_run_id_is_read_behind_log_lines() -> None:
    assert report.run_id_of('a warning\n[{"dag_run_id": "demo__1", "x": 1}]\n') == "demo__1"


def test_no_run_id_is_an_error_with_what_was_printed() -> None:
    with pytest.raises(ValueError, match="no such DAG"):
        report.run_id_of("no such DAG")
