"""The maintenance DAG: a reconcile every minute, where there is a mirror."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator

from airflow_agent_provider.settings import load_settings

if TYPE_CHECKING:
    from airflow.sdk import Context

DAG_ID = "agents_mirror"
#: The first look, and the farthest back that any look goes.
HORIZON = timedelta(days=1)
#: Looks overlap, since clocks differ and a row can be older than its commit.
OVERLAP = timedelta(minutes=2)


class ReconcileOperator(BaseOperator):
    """Make the mirror equal to Airflow's truth for what changed since the last look."""

    ui_color = "#e8f4e8"

    def execute(self, context: Context) -> int:
        """Reconcile; return how many items were wrong.

        :raises ReconcileError: if a run could not be mended; the next look goes as far back.
        """
        from airflow_agent_provider.hooks.airflow_api import AirflowApiHook
        from airflow_agent_provider.hooks.artifacts import open_store
        from airflow_agent_provider.hooks.mirror_table import MirrorTable
        from airflow_agent_provider.mirror.reconcile import reconcile

        settings = load_settings()
        since = since_last_look(context.get("prev_start_date_success"))
        mended = reconcile(
            AirflowApiHook(settings.airflow_api_conn_id),
            MirrorTable(settings.mirror_table, settings.aws_conn_id),
            open_store(settings.artifacts, settings.aws_conn_id),
            since=since,
            thorough=False,
        )
        for item in mended:
            self.log.info("%s", item)
        self.log.info("Looked at what changed since %s; mended %d items", since, len(mended))
        return len(mended)


def since_last_look(last: Any) -> datetime:
    """Return from when on changes are looked at.

    :param last: when the last successful look began, None if there was none.
    """
    horizon = datetime.now(UTC) - HORIZON
    # Airflow gives a lazy proxy, which is no None even where it stands for one.
    return max(horizon, last - OVERLAP) if last else horizon


def maintenance_dag() -> DAG | None:
    """Return the maintenance DAG; None where no mirror is configured."""
    if not load_settings().mirror_table:
        return None
    dag = DAG(
        DAG_ID,
        description="Makes the mirror equal to Airflow's truth",
        schedule=timedelta(minutes=1),
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        tags=["agents-maintenance"],
    )
    ReconcileOperator(
        task_id="reconcile", dag=dag, retries=0, execution_timeout=timedelta(minutes=10)
    )
    return dag
