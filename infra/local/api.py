"""Airflow's public API, as the demo and the tests use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

ENDED = ("success", "failed")
POLL = 0.5
#: Seconds for one answer; the server shares two processors with everything else.
ANSWER_WITHIN = 60.0

T = TypeVar("T")


class ApiError(RuntimeError):
    """Airflow refused a request; the text has its words."""


class NotInTime(RuntimeError):
    """What was waited for did not happen in time; the text says how far it came."""


class AirflowApi:
    """One Airflow's public API, as one user.

    Values are those of Airflow's REST API v2, unchanged.

    :param url: where Airflow's UI is.
    :param user: a user of the simple auth manager.
    :param password: the user's password.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        # A proxy, where there is one, does not lead to this machine's own servers.
        self._client = httpx.Client(base_url=url, timeout=ANSWER_WITHIN, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send a request, and return the answer's JSON values.

        :param path: below ``/api/v2``.
        :param options: what :meth:`httpx.Client.request` takes.
        :raises ApiError: if the answer is an error, or there is none.
        """
        try:
            if "Authorization" not in self._client.headers:
                self._client.headers["Authorization"] = f"Bearer {self._token()}"
            return _checked(self._client.request(method, f"/api/v2{path}", **options))
        except httpx.TransportError as error:
            raise ApiError(f"Airflow does not answer at {self.url}: {error!r}") from error

    def healthy(self) -> bool:
        """Return whether the API answers and all of Airflow's components are healthy."""
        try:
            parts = self._client.get("/api/v2/monitor/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return all(part["status"] == "healthy" for part in parts.values() if part)

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return a DAG, or None if Airflow does not know it."""
        return self._find(f"/dags/{quote(dag_id, safe='')}")

    def dags(self) -> list[dict[str, Any]]:
        """Return the DAGs that are not stale."""
        return list(self._all("/dags", "dags"))

    def wait_for_dag(self, dag_id: str, within: float = 120.0) -> dict[str, Any]:
        """Return a DAG as soon as Airflow knows it.

        :raises NotInTime: after ``within`` seconds; the text has Airflow's import errors.
        """

        def missing() -> str:
            errors = "\n".join(
                f"{error['filename']}: {error['stack_trace']}" for error in self.import_errors()
            )
            return f"Airflow does not know the DAG {dag_id!r}; its import errors:\n{errors or '-'}"

        return wait_for(lambda: self.dag(dag_id), within, missing)

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> str:
        """Start a run, and return its run id."""
        values = {"conf": dict(conf or {}), "dag_run_id": run_id, "logical_date": None}
        answer = self.request("POST", f"/dags/{quote(dag_id, safe='')}/dagRuns", json=values)
        return str(answer["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run."""
        return dict(self.request("GET", _run(dag_id, run_id)))

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return a DAG's runs."""
        return list(self._all(f"/dags/{quote(dag_id, safe='')}/dagRuns", "dag_runs"))

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        within: float = 300.0,
        states: Collection[str] = ENDED,
    ) -> dict[str, Any]:
        """Return a run as soon as it is in one of ``states``.

        :raises NotInTime: after ``within`` seconds; the text has the states of its steps.
        """

        def reached() -> dict[str, Any] | None:
            run = self.run(dag_id, run_id)
            return run if run["state"] in states else None

        def stuck() -> str:
            steps = {ti["task_id"]: ti["state"] for ti in self.task_instances(dag_id, run_id)}
            return f"run {run_id} of {dag_id} is not in {'/'.join(states)}; its steps: {steps}"

        return wait_for(reached, within, stuck)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the newest try of each task of a run."""
        return list(self._all(f"{_run(dag_id, run_id)}/taskInstances", "task_instances"))

    def task_instance(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1
    ) -> dict[str, Any]:
        """Return the newest try of one task."""
        return dict(self.request("GET", _task(dag_id, run_id, task_id, map_index)))

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        states: Collection[str],
        within: float = 120.0,
        try_number: int = 1,
    ) -> dict[str, Any]:
        """Return a task as soon as its try ``try_number``, or a later one, is in ``states``.

        :raises NotInTime: after ``within`` seconds; the text has where it stands.
        """

        def reached() -> dict[str, Any] | None:
            found = self.task_instance(dag_id, run_id, task_id)
            return found if found["state"] in states and found["try_number"] >= try_number else None

        def stuck() -> str:
            found = self.task_instance(dag_id, run_id, task_id)
            return (
                f"{task_id} is {found['state']} in try {found['try_number']}, "
                f"not {'/'.join(states)} in try {try_number}"
            )

        return wait_for(reached, within, stuck)

    def tries(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1
    ) -> list[dict[str, Any]]:
        """Return all tries of a task, the oldest first."""
        path = f"{_task(dag_id, run_id, task_id, map_index)}/tries"
        tries = self.request("GET", path)["task_instances"]
        return sorted(tries, key=lambda found: found["try_number"])

    def xcom(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        key: str = "return_value",
        map_index: int = -1,
    ) -> Any:
        """Return what a task has pushed under ``key``, or None."""
        path = f"{_task(dag_id, run_id, task_id)}/xcomEntries/{quote(key, safe='')}"
        found = self._find(path, params={"map_index": map_index, "deserialize": True})
        return found and found["value"]

    def rendered_fields(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return a task's templated fields as they were rendered."""
        return dict(self.task_instance(dag_id, run_id, task_id)["rendered_fields"])

    def log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """Return the log of one try, a line per event."""
        path = f"{_task(dag_id, run_id, task_id)}/logs/{try_number}"
        params = {"full_content": True, "map_index": map_index}
        answer = self.request("GET", path, params=params)
        return "\n".join(_log_line(entry) for entry in answer["content"])

    def import_errors(self) -> list[dict[str, Any]]:
        """Return what Airflow could not import."""
        return list(self._all("/importErrors", "import_errors"))

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Collection[str] | None = None,
        *,
        downstream: bool = True,
        only_failed: bool = False,
    ) -> list[str]:
        """Clear tasks so that they run again, and return their ids.

        :param task_ids: None clears all tasks of the run.
        :param downstream: also clear what depends on them.
        """
        values = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": only_failed,
            "include_downstream": downstream,
            **({} if task_ids is None else {"task_ids": list(task_ids)}),
        }
        path = f"/dags/{quote(dag_id, safe='')}/clearTaskInstances"
        cleared = self.request("POST", path, json=values)["task_instances"]
        return [found["task_id"] for found in cleared]

    def mark_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Set a task's state by hand, as a user does in the UI."""
        self.request("PATCH", _task(dag_id, run_id, task_id), json={"new_state": state})

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Set a run's state by hand, as a user does in the UI."""
        self.request("PATCH", _run(dag_id, run_id), json={"state": state})

    def _token(self) -> str:
        return str(_checked(self._client.post("/auth/token", json=self._login))["access_token"])

    def _find(self, path: str, **options: Any) -> dict[str, Any] | None:
        try:
            return dict(self.request("GET", path, **options))
        except ApiError as error:
            if error.args[0].startswith("404 "):
                return None
            raise

    def _all(self, path: str, field: str) -> Iterator[dict[str, Any]]:
        count = 0
        while True:
            page = self.request("GET", path, params={"limit": 100, "offset": count})
            yield from page[field]
            count += len(page[field])
            if not page[field] or count >= page["total_entries"]:
                return


def wait_for(find: Callable[[], T | None], within: float, problem: Callable[[], str]) -> T:
    """Return what ``find`` finds, asking until it is there.

    :param within: seconds.
    :param problem: says what is wrong if it is not there in time.
    :raises NotInTime: if it is not there in time.
    """
    deadline = time.monotonic() + within
    while (found := find()) is None:
        if time.monotonic() > deadline:
            raise NotInTime(f"{problem()} (after {within:g} s)")
        time.sleep(POLL)
    return found


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"


def _task(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}"
    return path if map_index < 0 else f"{path}/{map_index}"


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        request = response.request
        raise ApiError(
            f"{response.status_code} {request.method} {request.url.path}: {response.text[:2000]}"
        )
    return response.json()


def _log_line(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    details = [
        f"{error.get('exc_type')}: {error.get('exc_value')}"
        for error in entry.get("error_detail") or []
    ]
    return " | ".join([str(entry.get("event", "")), *details])
