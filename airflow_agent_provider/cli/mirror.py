"""``airflow agents mirror``."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from datetime import UTC, datetime
from typing import NoReturn

from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.hooks.airflow_api import AirflowApiError, AirflowApiHook
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.hooks.mirror_table import MirrorError, MirrorTable
from airflow_agent_provider.mirror.reconcile import Mended, ReconcileError
from airflow_agent_provider.mirror.reconcile import reconcile as reconcile_mirror
from airflow_agent_provider.settings import load_settings


@providers_configuration_loaded
def reconcile(args: Namespace) -> None:
    """Make the mirror equal to Airflow's truth; print a line per mended item, and a summary.

    :param args: ``since`` (ISO 8601, UTC where it names no zone), ``dag_id``, ``run_id``.
    :raises SystemExit: 1, after one line on stderr, if the mirror or Airflow's API cannot be used.
    """
    # As Airflow's own commands do: connections may be in its database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    settings = load_settings()
    if not settings.mirror_table:
        _fail("there is no mirror: set [agents] mirror_table to the name of a DynamoDB table")
    if args.run_id and not args.dag_id:
        _fail("--run-id needs --dag-id")
    try:
        mended = reconcile_mirror(
            AirflowApiHook(settings.airflow_api_conn_id),
            MirrorTable(settings.mirror_table, settings.aws_conn_id),
            open_store(settings.artifacts, settings.aws_conn_id),
            dag_id=args.dag_id,
            run_id=args.run_id,
            since=_moment(args.since),
        )
    except ReconcileError as error:
        _show(error.mended)
        _fail(str(error))
    except (AirflowApiError, MirrorError, InvalidDefinition) as error:
        _fail(str(error))
    _show(mended)
    what = "1 item was" if len(mended) == 1 else f"{len(mended)} items were"
    print(f"{what} mended; the mirror equals Airflow's truth")  # noqa: T201


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        _fail(f"--since {text!r} is no ISO 8601 time, such as 2026-11-23T09:00:00+00:00")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _show(mended: list[Mended]) -> None:
    for item in mended:
        print(item)  # noqa: T201


def _fail(text: str) -> NoReturn:
    print(f"airflow agents mirror reconcile: {text}", file=sys.stderr)  # noqa: T201
    raise SystemExit(1)
