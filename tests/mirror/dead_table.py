"""Run in a process of its own: a DAG beside a mirror that does not answer.

Prints as JSON the run's state and the longest time, in seconds, that a listener took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from airflow.sdk import DAG

from airflow_agent_provider.mirror import listener
from airflow_agent_provider.operators.codex import CodexAgentOperator

taken: dict[str, float] = {}


def timed(name: str) -> None:
    """Measure a listener where Airflow calls it: tasks and scheduler have a manager each."""
    from airflow.listeners.listener import get_listener_manager as of_scheduler
    from airflow.sdk.listener import get_listener_manager as of_task

    manager = of_scheduler() if name.startswith("on_dag_run") else of_task()
    for implementation in getattr(manager.hook, name).get_hookimpls():
        if implementation.plugin is not listener:
            continue
        function = implementation.function

        def measured(*args: Any, _function: Any = function) -> None:
            began = time.monotonic()
            _function(*args)
            taken[name] = max(taken.get(name, 0.0), time.monotonic() - began)

        implementation.function = measured


class Step(CodexAgentOperator):
    """Works for a moment."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Take long enough for the clients to be ready."""
        time.sleep(3)
        return {}


with DAG("dead", schedule=None) as dag:
    Step(task_id="step", prompt="do it")

if __name__ == "__main__":
    names = [f"on_task_instance_{end}" for end in ("running", "success", "failed")]
    for hook in (*names, "on_dag_run_running", "on_dag_run_success"):
        timed(hook)
    state = str(dag.test().state)
    json.dump({"state": state, "taken": taken}, sys.stdout)
