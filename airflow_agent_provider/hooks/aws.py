"""Clients of AWS's services, by Airflow's AWS connection."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import boto3
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.config import Config


class _Sessions:
    """The sessions of this process: what describes the services is read once for each.

    By what the connection says and not by its id alone, which may mean another one tomorrow.
    """

    def __init__(self) -> None:
        self._reset()
        # A forked child must not wait for a lock that a thread of its parent had.
        os.register_at_fork(after_in_child=self._reset)

    def client(self, hook: AwsBaseHook, config: Config) -> Any:
        """Return a client of the hook's service."""
        service = hook.service_name
        # Sessions, other than clients, are not for several threads at a time.
        with self._lock:
            return self._session(hook).client(
                service,
                endpoint_url=hook.conn_config.get_service_endpoint_url(service_name=service),
                config=config,
                verify=hook.verify,
            )

    def _session(self, hook: AwsBaseHook) -> boto3.session.Session:
        said = hook.conn_config
        key = (hook.aws_conn_id, said.login, said.password, json.dumps(said.extra_config))
        if key not in self._made:
            self._made[key] = hook.get_session()
        return self._made[key]

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[Any, ...], boto3.session.Session] = {}


_sessions = _Sessions()


def aws_client(service: str, conn_id: str, config: Config) -> Any:
    """Return a new boto3 client, which any thread may use.

    Not by the hook's own ``get_client_type``: for what it tells AWS of its caller, that reads the
    sources of the whole call stack, twice, which takes 0.1 s in a fresh process.

    :param service: the service's name, as boto3 has it.
    :param conn_id: the connection.
    :param config: settings of the client; what the connection sets wins.
    """
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

    hook: AwsBaseHook = AwsBaseHook(conn_id, client_type=service)
    return _sessions.client(hook, config.merge(hook.config))
