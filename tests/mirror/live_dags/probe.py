"""Steps that end as the run's configuration says, for the tests of the mirror."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_agent_provider.agents.failures import OutputInvalid, failure_to_dict
from airflow_agent_provider.agents.identity import AttemptKey, StepKey
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.mirror import listener
from airflow_agent_provider.mirror.maintenance import ReconcileOperator
from airflow_agent_provider.operators.agent import AgentOperator
from airflow_agent_provider.operators.codex import CodexAgentOperator
from airflow_agent_provider.settings import load_settings

# What the listeners tell is to be tested, on however busy a machine; not how soon they give up.
listener.END_WAIT = 60.0


class Behave:
    """Ends the attempt as ``conf[<step>]`` says, a list with a word per try."""

    def execute(self, context: Any) -> dict[str, Any]:
        ti = context["ti"]
        words = (context["dag_run"].conf or {}).get(ti.task_id, [])
        word = words[ti.try_number - 1] if ti.try_number <= len(words) else "ok"
        if word == "kill":
            # By then the listener's hint is on its way.
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "wait":
            time.sleep(120)
        failure = OutputInvalid("docs/plan.md is empty") if word == "fail" else None
        write_outcome(ti, failure)
        if word == "skip":
            raise AirflowSkipException("nothing to do")
        if failure:
            raise failure
        return {}


def write_outcome(ti: Any, failure: OutputInvalid | None) -> None:
    key = AttemptKey(StepKey(ti.dag_id, ti.run_id, ti.task_id, ti.map_index), ti.try_number)
    outcome = {
        "schema": 1,
        "state": "failed" if failure else "success",
        "failure": failure_to_dict(failure) if failure else None,
        "agent": "codex",
        "model": "scripted",
        "session": f"session-{ti.try_number}",
        "commit": f"{ti.try_number:040x}",
        "usage": {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120},
        "cost": None,
        "artifacts": {"prompt": f"file:///{key.prefix}/prompt.md"},
    }
    settings = load_settings()
    store = open_store(settings.artifacts, settings.aws_conn_id)
    store.put(f"{key.prefix}/outcome.json", json.dumps(outcome).encode())


class Codex(Behave, CodexAgentOperator):
    """A user's own subclass, in a module of the user's own."""


class Agent(Behave, AgentOperator):
    """Another."""


class Other(BaseOperator):
    """No step of ours."""

    def execute(self, context: Any) -> None:
        """Do nothing."""


RETRY = {"prompt": "do it", "retries": 1, "retry_delay": timedelta(seconds=1)}

with DAG("probe", schedule=None):
    plan = Codex(task_id="plan", **RETRY)
    implement = Agent(task_id="implement", agent="cursor", **RETRY)
    review = Codex(task_id="review", **RETRY)
    other = Other(task_id="other")
    plan >> implement >> review >> other
    Codex.partial(task_id="each", retries=0).expand(prompt=["a", "b"])

with DAG("foreign", schedule=None):
    Other(task_id="other")

# The maintenance DAG's task, without its schedule, which would mend what other tests break.
with DAG("look", schedule=None):
    ReconcileOperator(task_id="reconcile")
