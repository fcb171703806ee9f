"""What a demo prints of a run: its progress, and what it left where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.local.api import ENDED, AirflowApi
from infra.local.repository import git

LOG_LINES = 25
_WIDEST = 72
#: What Airflow's scheduler does between the states that are worth a line.
_UNREMARKABLE = (None, "scheduled", "queued")

Say = Callable[[str], None]


class Progress:
    """Tells each change of a run's steps once.

    :param api: Airflow's public API.
    :param say: prints a line.
    """

    def __init__(self, api: AirflowApi, dag_id: str, run_id: str, say: Say) -> None:
        self._api = api
        self._run = (dag_id, run_id)
        self._say = say
        self._seen: dict[tuple[str, int], tuple[str | None, int]] = {}

    def look(self) -> str | None:
        """Tell what has changed; return the run's state once the run has ended."""
        # The run's state is read first, so that its steps' last changes are never missed.
        state = str(self._api.run(*self._run)["state"])
        for task in sorted(self._api.task_instances(*self._run), key=_started):
            self._tell(task)
        return state if state in ENDED else None

    def _tell(self, task: Mapping[str, Any]) -> None:
        key, now = (task["task_id"], task["map_index"]), (task["state"], task["try_number"])
        if self._seen.get(key) == now or task["state"] in _UNREMARKABLE:
            return
        self._seen[key] = now
        attempt = f" (attempt {task['try_number']})" if task["try_number"] > 1 else ""
        self._say(f"{_name(task):<12} {_word(task['state'])}{attempt}")
        if task["state"] in ("failed", "up_for_retry"):
            self._tell_failure(task)

    def _tell_failure(self, task: Mapping[str, Any]) -> None:
        failure = self._api.xcom(*self._run, task["task_id"], "failure", task["map_index"])
        if failure:
            self._say(f"{'':<12} {failure['failure_class']}: {failure['reason']}")


def steps_table(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """Return the steps with state, time, tokens, cost and commit, and their artifacts."""
    rows: list[tuple[str, ...]] = [
        ("step", "agent", "state", "tries", "seconds", "tokens", "USD", "commit")
    ]
    artifacts: list[str] = []
    for task in sorted(api.task_instances(dag_id, run_id), key=_started):
        result = api.xcom(dag_id, run_id, task["task_id"], map_index=task["map_index"])
        values = result if isinstance(result, dict) else {}
        rows.append(_row(task, values))
        artifacts += [f"  {_name(task)}"] if values.get("artifacts") else []
        artifacts += [f"    {uri}" for uri in (values.get("artifacts") or {}).values()]
    return "\n".join([table(rows), "", "Artifacts:", *(artifacts or ["  none"])])


def failures(api: AirflowApi, dag_id: str, run_id: str) -> Iterator[str]:
    """Yield why each failed step failed, and the end of its log."""
    for task in api.task_instances(dag_id, run_id):
        if task["state"] == "failed":
            failure = api.xcom(dag_id, run_id, task["task_id"], "failure", task["map_index"])
            told = f"{failure['failure_class']}: {failure['reason']}" if failure else "no reason"
            log = api.log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
            lines = "\n".join(f"  | {line}" for line in log.splitlines()[-LOG_LINES:])
            yield f"{_name(task)} failed. {told}\n{lines}"


def branch_log(repository: Path, branch: str, since: str) -> str:
    """Return ``git log --stat`` of a run's branch, without what was there before."""
    names = git(repository, "for-each-ref", "--format=%(refname:short)", f"refs/heads/{branch}")
    if not names:
        return f"there is no branch {branch}"
    return git(repository, "log", "--stat", "--format=%h %s%n%w(0,4,4)%b", f"{since}..{branch}")


def items_table(items: Sequence[Mapping[str, Any]]) -> str:
    """Return the mirror's items of one run."""
    rows = [("sk", "state", "attempt", "tokens", "commit", "failure")]
    for item in items:
        usage = item.get("usage") or {}
        rows.append(
            (
                str(item["sk"]),
                _text(item.get("state")),
                _text(item.get("try_number")),
                _text(usage.get("total_tokens")),
                _text(item.get("commit"))[:10],
                _text(item.get("failure_class")),
            )
        )
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, the first one as the heading."""
    widths = [min(_WIDEST, max(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def run_id_of(printed: str) -> str:
    """Return the run id that ``airflow dags trigger --output json`` has printed.

    :raises ValueError: if there is none in it.
    """
    # Log lines of plugins may come before.
    start = printed.find("[{")
    if start < 0:
        raise ValueError(f"Airflow printed no run: {printed.strip()[-500:]}")
    (run,) = json.loads(printed[start:])
    return str(run["dag_run_id"])


def _row(task: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, ...]:
    usage = values.get("usage") or {}
    cost = values.get("cost")
    seconds = _seconds(task)
    return (
        _name(task),
        _text(values.get("agent")),
        _word(task["state"]),
        _text(task["try_number"]),
        "-" if seconds is None else f"{seconds:.1f}",
        _text(usage.get("total_tokens")),
        "unknown" if cost is None else f"{cost:.4f}",
        _text(values.get("commit"))[:10],
    )


def _seconds(task: Mapping[str, Any]) -> float | None:
    start, end = task["start_date"], task["end_date"]
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _started(task: Mapping[str, Any]) -> tuple[str, str, int]:
    return task["start_date"] or "~", task["task_id"], task["map_index"]


def _name(task: Mapping[str, Any]) -> str:
    index = task["map_index"]
    return task["task_id"] if index < 0 else f"{task['task_id']}[{index}]"


def _word(state: str | None) -> str:
    words = {"deferred": "waits for the vendor", "up_for_retry": "failed, is tried again"}
    return words.get(state or "", state or "not started").replace("_", " ")


def _text(value: Any) -> str:
    return "-" if value in (None, "") else str(value)
