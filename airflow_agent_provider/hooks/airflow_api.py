"""Airflow's public API: the truth about runs, steps and attempts, for what is not a task.

Task code cannot use Airflow's database, and the execution API lists nothing. So reconcile, and all
else that needs Airflow's state from outside a task, reads it here, through the official client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME

if TYPE_CHECKING:
    from airflow.sdk import Connection

#: Seconds for a connection and for an answer.
TIMEOUT = (5.0, 30.0)
#: Rows per request; Airflow's own default limit for a page.
PAGE = 100
#: How often a request that got no usable answer is repeated, with backoff from 0.5 s.
RETRIES = 3


class AirflowApiError(Exception):
    """Airflow's API cannot be used as it is; the text says what is wrong and what mends it."""


@dataclass(frozen=True)
class RunTruth:
    """A workflow run as Airflow has it.

    :param conf: what the run was triggered with.
    :param time: when it was due, its logical start.
    :param queued: when it was last queued; every clear renews it.
    """

    dag_id: str
    run_id: str
    state: str
    conf: dict[str, Any]
    time: datetime
    queued: datetime | None
    started: datetime | None
    ended: datetime | None


@dataclass(frozen=True, order=True)
class TryTruth:
    """A step as Airflow has it, or one of its tries.

    :param state: Airflow's state, empty for none.
    """

    dag_id: str
    run_id: str
    step: str
    map_index: int
    try_number: int
    state: str
    started: datetime | None = None
    ended: datetime | None = None


class AirflowApiHook(BaseHook):
    """Reads Airflow's public API through a connection of type ``airflow_api``.

    The connection's host is Airflow's base URL. With a login, the password is exchanged for a
    token at ``/auth/token`` (simple and FAB auth manager); without one, the password is the token
    itself. With neither, a token is asked for without credentials, which Airflow grants only where
    everybody is an administrator.

    :param conn_id: id of the connection.
    """

    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str] = "airflow_api"
    conn_type: ClassVar[str] = "airflow_api"
    hook_name: ClassVar[str] = "Airflow public API"

    def __init__(self, conn_id: str = "airflow_api") -> None:
        super().__init__()
        self.conn_id = conn_id
        self._client: Any = None
        self._url = ""

    @property
    def client(self) -> Any:
        """The official client (``airflow_client.client.ApiClient``), logged in.

        :raises AirflowApiError: if the connection is missing or refused.
        """
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def test_connection(self) -> tuple[bool, str]:
        """Log in and ask for one DAG; return whether it worked, and a line that says what came."""
        from airflow_client.client import DAGApi, VersionApi

        try:
            version = self._call(VersionApi(self.client).get_version).version
            self._call(DAGApi(self.client).get_dags, limit=1)
        except AirflowApiError as error:
            return False, str(error)
        return True, f"Airflow {version} answers at {self._url}"

    def run(self, dag_id: str, run_id: str) -> RunTruth | None:
        """Return a run; None if Airflow has none.

        :raises AirflowApiError: if the API does not answer.
        """
        from airflow_client.client import DagRunApi

        row = self._find(DagRunApi(self.client).get_dag_run, dag_id=dag_id, dag_run_id=run_id)
        return _run(row) if row is not None else None

    def runs(self, dag_id: str | None = None, since: datetime | None = None) -> Iterator[RunTruth]:
        """Yield the runs, of any DAG or one, that changed since a time.

        :raises AirflowApiError: if the API does not answer.
        """
        from airflow_client.client import DagRunApi

        rows = self._pages(
            DagRunApi(self.client).get_dag_runs,
            "dag_runs",
            dag_id=dag_id or "~",
            updated_at_gte=since,
        )
        return (_run(row) for row in rows)

    def steps(
        self, dag_id: str | None = None, run_id: str | None = None, since: datetime | None = None
    ) -> Iterator[TryTruth]:
        """Yield the steps, with the try that each is at, that changed since a time.

        Tasks that are no steps of ours are left out. Nothing comes for a run that is not there.

        :param run_id: only this run; needs ``dag_id``.
        :raises AirflowApiError: if the API does not answer.
        """
        from airflow_client.client import TaskInstanceApi

        rows = self._pages(
            TaskInstanceApi(self.client).get_task_instances,
            "task_instances",
            dag_id=dag_id or "~",
            dag_run_id=run_id or "~",
            updated_at_gte=since,
            operator_name_prefix_pattern=STEP_OPERATOR_NAME,
        )
        return (_try(row) for row in rows)

    def has_steps(self, dag_id: str) -> bool:
        """Return whether any run of the DAG has a step of ours."""
        from airflow_client.client import TaskInstanceApi

        page = self._find(
            TaskInstanceApi(self.client).get_task_instances,
            dag_id=dag_id,
            dag_run_id="~",
            operator_name_prefix_pattern=STEP_OPERATOR_NAME,
            limit=1,
        )
        return bool(page and page.task_instances)

    def tries(self, step: TryTruth) -> list[TryTruth]:
        """Return the tries of a step that began, by number.

        A try that Airflow has archived (retried or cleared) is told as it was archived.

        :raises AirflowApiError: if the API does not answer.
        """
        from airflow_client.client import TaskInstanceApi

        answer = self._find(
            TaskInstanceApi(self.client).get_mapped_task_instance_tries,
            dag_id=step.dag_id,
            dag_run_id=step.run_id,
            task_id=step.step,
            map_index=step.map_index,
        )
        found: dict[int, TryTruth] = {}
        # The archived tries come first, then the task instance itself, which after a clear still
        # has the number of the last archived one.
        for row in map(_try, answer.task_instances if answer else ()):
            if row.try_number > 0 and row.state not in NOT_BEGUN:
                found.setdefault(row.try_number, row)
        return [found[number] for number in sorted(found)]

    def _connection(self) -> Connection:
        try:
            return self.get_connection(self.conn_id)
        except AirflowNotFoundException as error:
            raise AirflowApiError(
                f"Airflow's API needs the connection {self.conn_id!r}, which does not exist; add "
                f"it in Airflow under Admin > Connections, or with: airflow connections add "
                f"{self.conn_id} --conn-type airflow_api --conn-host http://localhost:8080 "
                f"--conn-login <user> --conn-password <password>"
            ) from error

    def _new_client(self) -> Any:
        from airflow_client.client import ApiClient, Configuration
        from urllib3 import Retry

        connection = self._connection()
        self._url = _base_url(connection)
        if not self._url:
            raise AirflowApiError(
                f"the connection {self.conn_id!r} has no host; set it to Airflow's base URL, such "
                f"as http://localhost:8080"
            )
        configuration = Configuration(
            host=self._url,
            access_token=self._token(connection),
            retries=Retry(
                total=RETRIES,
                backoff_factor=0.5,
                status_forcelist=(429, 502, 503, 504),
                # A server's wish could be an hour.
                respect_retry_after_header=False,
                raise_on_status=False,
            ),
        )
        return ApiClient(configuration)

    def _token(self, connection: Connection) -> str:
        if connection.password and not connection.login:
            return connection.password
        url = f"{self._url}/auth/token"
        try:
            if connection.login:
                body = {"username": connection.login, "password": connection.password or ""}
                answer = httpx.post(url, json=body, timeout=TIMEOUT[1])
            else:
                answer = httpx.get(url, timeout=TIMEOUT[1])
        except httpx.HTTPError as error:
            raise AirflowApiError(self._unreachable(error)) from error
        if not answer.is_success:
            raise AirflowApiError(
                f"Airflow at {self._url} refuses the login of the connection {self.conn_id!r}: "
                f"HTTP {answer.status_code} {answer.text[:200]}; mend its login and password in "
                f"Airflow under Admin > Connections"
            )
        try:
            return str(answer.json()["access_token"])
        except (ValueError, KeyError, TypeError) as error:
            raise AirflowApiError(
                f"{url} answers without a token; is {self._url}, the host of the connection "
                f"{self.conn_id!r}, Airflow's base URL?"
            ) from error

    def _pages(self, function: Callable[..., Any], rows: str, **request: Any) -> Iterator[Any]:
        # By cursor over the id: rows that change meanwhile get a greater id or keep theirs, so
        # none is missed between two pages, as it would be with an offset.
        cursor: str | None = ""
        while cursor is not None:
            page = self._find(function, cursor=cursor, limit=PAGE, order_by=["id"], **request)
            if page is None:
                return
            yield from getattr(page, rows)
            cursor = page.next_cursor

    def _find(self, function: Callable[..., Any], **request: Any) -> Any:
        from airflow_client.client.exceptions import NotFoundException

        try:
            return self._call(function, **request)
        except AirflowApiError as error:
            if isinstance(error.__cause__, NotFoundException):
                return None
            raise

    def _call(self, function: Callable[..., Any], **request: Any) -> Any:
        from airflow_client.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return function(**request, _request_timeout=TIMEOUT)
        except ApiException as error:
            raise AirflowApiError(
                f"Airflow at {self._url} answers {function.__name__} with HTTP {error.status}: "
                f"{str(error.body or error.reason)[:300]}; the connection is {self.conn_id!r}"
            ) from error
        except HTTPError as error:
            raise AirflowApiError(self._unreachable(error)) from error

    def _unreachable(self, error: Exception) -> str:
        return (
            f"Airflow at {self._url} cannot be reached: {error}; is its API server up, and is the "
            f"host of the connection {self.conn_id!r} right?"
        )


#: States of a task instance whose current try has not begun, or is archived already.
NOT_BEGUN = frozenset(
    {"", "scheduled", "queued", "up_for_retry", "up_for_reschedule", "upstream_failed", "removed"}
)


def _base_url(connection: Connection) -> str:
    host = (connection.host or "").rstrip("/")
    if not host:
        return ""
    # A connection that was given as a URI has scheme and port in fields of their own.
    parts = urlsplit(host if "://" in host else f"{connection.schema or 'http'}://{host}")
    if connection.port and not parts.port:
        parts = parts._replace(netloc=f"{parts.netloc}:{connection.port}")
    return parts.geturl()


def _run(row: Any) -> RunTruth:
    return RunTruth(
        row.dag_id,
        row.dag_run_id,
        _text(row.state),
        dict(row.conf or {}),
        row.run_after,
        row.queued_at,
        row.start_date,
        row.end_date,
    )


def _try(row: Any) -> TryTruth:
    return TryTruth(
        row.dag_id,
        row.dag_run_id,
        row.task_id,
        row.map_index,
        row.try_number,
        _text(row.state),
        row.start_date,
        row.end_date,
    )


def _text(state: Any) -> str:
    return "" if state is None else str(getattr(state, "value", state))
