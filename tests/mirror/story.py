"""The story of a run, step by step and try by try, from Airflow and from the mirror."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.hooks.mirror_table import MirrorTable

#: A task instance of these states has no try of its own, or has it archived already.
_NO_TRY = (None, "scheduled", "queued", "up_for_retry", "upstream_failed", "removed")


@dataclass(frozen=True)
class Story:
    """What became of a run.

    :param state: of the run.
    :param steps: try number and state by step id and map index.
    :param attempts: step id, map index, try number and state of every try that began, sorted.
    """

    state: str
    steps: dict[tuple[str, int], tuple[int, str]]
    attempts: list[tuple[str, int, int, str]]


def airflow_story(get: Callable[[str], Any], dag_id: str, run_id: str) -> Story:
    """Return the story as Airflow tells it.

    :param get: returns the public API's answer for a path below ``/api/v2``.
    """
    path = f"dags/{dag_id}/dagRuns/{run_id}"
    steps, attempts = {}, []
    for row in get(f"{path}/taskInstances?limit=1000")["task_instances"]:
        if not str(row["operator_name"]).startswith(STEP_OPERATOR_NAME):
            continue
        name, index = row["task_id"], row["map_index"]
        steps[name, index] = (row["try_number"], row["state"] or "")
        where = f"{path}/taskInstances/{name}/{index}/tries"
        tries: dict[int, str] = {}
        for one in get(where)["task_instances"]:
            if one["try_number"] and one["state"] not in _NO_TRY:
                # Archived tries come first; after a clear the task instance has the same number.
                tries.setdefault(one["try_number"], one["state"])
        attempts += [(name, index, number, state) for number, state in tries.items()]
    return Story(get(path)["state"], steps, sorted(attempts))


def mirror_story(table: MirrorTable, dag_id: str, run_id: str) -> Story:
    """Return the story as the mirror tells it."""
    run = table.read_run(dag_id, run_id)
    assert run.run is not None, f"the mirror has no run {dag_id} {run_id}"
    steps = {item.step[:2]: (item.values["try_number"], item.state) for item in run.steps}
    return Story(run.run.state, steps, [(*item.step, item.state) for item in run.attempts])
