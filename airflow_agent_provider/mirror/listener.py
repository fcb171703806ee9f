"""Airflow's listeners, which tell the mirror what happens: hints only, never the truth.

They run in three kinds of process. In a task's process, the object is a ``RuntimeTaskInstance``,
and the end of the step waits for its hint, shortly. In the scheduler and the API server, it is an
ORM row, of which everything is read at once, and nothing waits. Killed tasks, skips, upstream
failures, deferrals and clears call no listener: the reconcile sees them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any

from airflow.listeners import hookimpl

from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.hooks.artifacts import ArtifactStore, open_store
from airflow_agent_provider.hooks.mirror_table import (
    FOR_HINTS,
    Item,
    MirrorTable,
    MirrorUnavailable,
    Phase,
    Version,
    attempt_item,
    run_item,
    step_item,
    utc_text,
)
from airflow_agent_provider.mirror.records import (
    attempt_values,
    read_outcome,
    run_values,
    step_values,
)
from airflow_agent_provider.mirror.writer import Writer
from airflow_agent_provider.settings import load_settings

log = logging.getLogger(__name__)

#: Seconds that the end of a step waits for its hint. With a dead table, that is all it costs.
END_WAIT = 0.4

_CLIENTS = (
    "airflow.providers.amazon.aws.hooks.base_aws",
    "airflow.sdk.execution_time.task_runner",
    "boto3.dynamodb.types",
)

_writer = Writer()


@hookimpl
def on_starting(component: Any) -> None:
    """Import in the scheduler, before it works and forks, what its hints need.

    A child that is forked while the writer's thread imports a module waits for it for ever.
    """
    if getattr(component, "job_type", "") == "SchedulerJob":
        _guarded(lambda: [import_module(name) for name in _CLIENTS])


@hookimpl
def on_task_instance_running(previous_state: Any, task_instance: Any) -> None:
    """A try began, or goes on after a deferral."""
    _guarded(lambda: _step_changed(task_instance, "running", ended=False))


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """A try succeeded, or a user says so."""
    _guarded(lambda: _step_changed(task_instance, "success", ended=True))


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:
    """A try skipped itself, or a user skipped it."""
    _guarded(lambda: _step_changed(task_instance, "skipped", ended=True))


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """A try failed, for good or not, or a user says so."""
    retried = _name(getattr(task_instance, "state", None)) == "up_for_retry"
    state = "up_for_retry" if retried else "failed"
    _guarded(lambda: _step_changed(task_instance, state, ended=True))


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    """A run began, or begins again after a clear."""
    _guarded(lambda: _run_changed(dag_run, "running"))


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """A run succeeded, or a user says so."""
    _guarded(lambda: _run_changed(dag_run, "success"))


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """A run failed, or a user says so."""
    _guarded(lambda: _run_changed(dag_run, "failed"))


@dataclass(frozen=True)
class Seen:
    """What a listener saw of a step; a copy, since no other thread may touch an ORM row.

    :param state: the step's new state.
    :param phase: how far the try is, and by whose account.
    """

    attempt: AttemptKey
    state: str
    phase: Phase
    started: datetime | None
    ended: datetime | None


def _guarded(action: Callable[[], object]) -> None:
    # Airflow logs what a listener raises with a traceback, and other listeners may be skipped.
    try:
        action()
    except Exception as error:
        log.warning("The mirror missed a change, which the reconcile repairs: %s", error)


def _step_changed(ti: Any, state: str, *, ended: bool) -> None:
    in_task = type(ti).__module__.startswith("airflow.sdk.")
    operator = getattr(ti.task, "operator_name", "") if in_task else ti.operator_name
    if not str(operator or "").startswith(STEP_OPERATOR_NAME):
        return
    if ti.try_number == 0:
        # A user marks a step that never began. No number would tell a late hint of that from one
        # of before a clear, so it is left to the reconcile.
        return
    phase = (Phase.ENDED if in_task else Phase.DECIDED) if ended else Phase.RUNNING
    step = StepKey(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)
    seen = Seen(
        AttemptKey(step, ti.try_number),
        state,
        phase,
        ti.start_date,
        (ti.end_date or datetime.now(UTC)) if ended else None,
    )
    if in_task and not ended:
        # Beside the step, which goes on: its end finds the clients ready.
        _writer.submit(_warm)
    done = _writer.submit(lambda: tell_step(_table(), _store(), seen))
    if in_task and ended and not done.wait(END_WAIT):
        log.warning(
            "The mirror did not take the end of the step within %s s; the reconcile repairs it",
            END_WAIT,
        )


def tell_step(table: MirrorTable, store: ArtifactStore, seen: Seen) -> None:
    """Write what was seen of a step: the step and its attempt, two writes.

    :raises MirrorError: if the table cannot be used.
    """
    key = seen.attempt
    outcome = None if seen.phase is Phase.RUNNING else read_outcome(store, key)
    times = {"started": utc_text(seen.started), "ended": utc_text(seen.ended)}
    attempt = attempt_values(seen.state, times, outcome)
    version = Version(try_number=key.number, phase=seen.phase)
    place = (key.step.dag_id, key.step.run_id, key.step.step_id, key.step.map_index)
    table.hint(step_item(*place, version, step_values(seen.state, key.number, attempt)))
    table.hint(attempt_item(*place, version, attempt))


def _run_changed(dag_run: Any, state: str) -> None:
    tasks = getattr(getattr(dag_run, "dag", None), "tasks", ())
    if not any(str(t.operator_name or "").startswith(STEP_OPERATOR_NAME) for t in tasks):
        return
    item = run_hint(dag_run, state)
    _writer.submit(lambda: _table().hint(item))


def run_hint(dag_run: Any, state: str) -> Item:
    """Return what a listener saw of a run.

    :param dag_run: Airflow's ORM row.
    :param state: the run's new state.
    """
    queued = utc_text(dag_run.queued_at)
    return run_item(
        dag_run.dag_id,
        dag_run.run_id,
        Version(queued or "", 0, Phase.RUNNING if state == "running" else Phase.DECIDED),
        run_values(
            dag_run.dag_id,
            dag_run.run_id,
            state=state,
            conf=dag_run.conf,
            times={
                "time": utc_text(dag_run.run_after),
                "queued": queued,
                "started": utc_text(dag_run.start_date),
                "ended": utc_text(dag_run.end_date),
            },
            clear_number=dag_run.clear_number,
        ),
    )


def _warm() -> None:
    _table().warm()
    # Opens the store's connection too, for the outcome at the step's end.
    _store().exists("warm")


@cache
def _table() -> MirrorTable:
    settings = load_settings()
    if not settings.mirror_table:
        raise MirrorUnavailable("[agents] mirror_table is not set")
    return MirrorTable(settings.mirror_table, settings.aws_conn_id, patience=FOR_HINTS)


@cache
def _store() -> ArtifactStore:
    settings = load_settings()
    return open_store(settings.artifacts, settings.aws_conn_id)


# A forked child must not share its parent's connections.
os.register_at_fork(after_in_child=_table.cache_clear)
os.register_at_fork(after_in_child=_store.cache_clear)


def _name(state: Any) -> str:
    return "" if state is None else str(getattr(state, "value", state))
