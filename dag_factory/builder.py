"""A checked definition to its DAG."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, time, timedelta
from functools import cache
from importlib import import_module
from typing import Any
from zoneinfo import ZoneInfo

import jinja2
from airflow.sdk import DAG, BaseOperator, Param

from airflow_agent_provider.agents.prompt_names import prompt_file
from airflow_agent_provider.agents.registry import AGENTS
from dag_factory.definition import (
    Agent,
    AgentStep,
    ApproveStep,
    Budget,
    CommandStep,
    Defaults,
    Output,
    Paths,
    Retry,
    Setup,
    StepBase,
    Workflow,
    WorkspaceStep,
)
from dag_factory.files import Files
from dag_factory.reader import Definition
from dag_factory.schedule import is_scheduled

#: The tag of every workflow, to find them among other DAGs.
TAG = "agents"

# Without time zone: Airflow reads it, and with it the cron expression, in its default time zone.
_START = datetime(2024, 1, 1)

# The form of the trigger lets fields be emptied only where null is allowed, and sends null then.
_PARAM_TYPE = {"type": ["string", "null"]}
_REPOSITORY = "{{ params.repository or '' }}"
_REF = "{{ params.ref or '' }}"


def build(definition: Definition, loader_file: str) -> DAG:
    """Return the DAG of a definition.

    :param definition: a definition that was read without error.
    :param loader_file: the Python file from which Airflow loads the DAG.
    """
    workflow, files = definition.workflow, definition.files
    scheduled = is_scheduled(workflow.schedule)
    shared = _shared_arguments(workflow)
    steps = {step.id: _arguments(step, workflow, files, shared) for step in workflow.steps}
    limits: dict[str, Any] = {}
    if workflow.max_active_runs is not None:
        limits["max_active_runs"] = workflow.max_active_runs
    elif workflow.schedule == "@continuous":
        # Airflow takes no other number with this schedule.
        limits["max_active_runs"] = 1
    dag = DAG(
        dag_id=workflow.name,
        description=workflow.description or None,
        schedule=workflow.schedule if scheduled else None,
        start_date=_start(workflow) if scheduled else None,
        catchup=False,
        tags=[TAG, *workflow.tags],
        doc_md=_doc_md(definition),
        params=_params(workflow),
        template_searchpath=files.folders,
        template_undefined=jinja2.StrictUndefined,
        **limits,
    )
    dag.fileloc = loader_file
    # Not in a `with` block: one that raises would still register the half-built DAG. And not born
    # into the DAG: Airflow would copy all of its parameters, twice, into each operator, where they
    # say nothing new. The copies are a fifth of a build by hand, or more.
    tasks = {step_id: _operator(path)(**arguments) for step_id, (path, arguments) in steps.items()}
    dag.add_tasks(tasks.values())
    for step in workflow.steps:
        if step.depends_on:
            tasks[step.id].set_upstream([tasks[upstream] for upstream in step.depends_on])
    return dag


def _start(workflow: Workflow) -> datetime:
    first = datetime.combine(workflow.start_date, time()) if workflow.start_date else _START
    # Airflow takes the schedule's time zone from here.
    return first.replace(tzinfo=ZoneInfo(workflow.timezone)) if workflow.timezone else first


def _params(workflow: Workflow) -> dict[str, Param]:
    repository = workflow.repository
    own = {
        "repository": Param(
            repository.url if repository else "",
            description="URL or path of the git repository; empty for a new empty one per run.",
            schema=_PARAM_TYPE,
        ),
        "ref": Param(
            repository.ref if repository else "",
            description="Branch, tag or commit to start from; empty for the default branch.",
            schema=_PARAM_TYPE,
        ),
    }
    return {**{name: _param(schema) for name, schema in workflow.params.items()}, **own}


def _param(definition: dict[str, Any]) -> Param:
    schema = dict(definition)
    default = {"default": schema.pop("default")} if "default" in schema else {}
    return Param(**default, description=schema.pop("description", None), schema=schema)


@cache
def _operator(path: str) -> type[BaseOperator]:
    module, _, name = path.rpartition(".")
    operator: type[BaseOperator] = getattr(import_module(module), name)
    return operator


def _shared_arguments(workflow: Workflow) -> dict[str, Any]:
    """Return what the workflow says to the operators of all of its steps alike."""
    return {"owner": workflow.owner} if workflow.owner else {}


def _arguments(
    step: StepBase, workflow: Workflow, files: Files, shared: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the import path of a step's operator, and the operator's arguments."""
    defaults = workflow.defaults or _NO_DEFAULTS
    arguments = {"task_id": step.id, **_schedule_arguments(step, defaults), **shared}
    if isinstance(step, WorkspaceStep):
        arguments |= _workspace_arguments(step, workflow, defaults)
    if isinstance(step, AgentStep):
        operator, own = _agent_arguments(step, workflow, defaults)
    elif isinstance(step, ApproveStep):
        return _APPROVE, _approve_arguments(step, arguments, files)
    elif isinstance(step, CommandStep):
        operator, own = _COMMAND, {"run": step.run}
    else:
        raise TypeError(f"no operator for a step of the kind {type(step).__name__}")
    arguments |= own
    arguments["definition_sha256"] = _digest(operator, arguments, files)
    # Where a run works and where the files are is no part of what defines the step.
    arguments["prompt_folders"] = files.folders
    arguments["repository"] = _REPOSITORY
    arguments["ref"] = _REF
    if workflow.repository:
        arguments["own_repository"] = workflow.repository.url
        arguments["repository_conn_id"] = workflow.repository.connection
        arguments["submodules"] = workflow.repository.submodules
        arguments["lfs"] = workflow.repository.lfs
        arguments["sparse"] = workflow.repository.sparse
    return operator, arguments


def _schedule_arguments(step: StepBase, defaults: Defaults) -> dict[str, Any]:
    """Return what says when a step runs."""
    arguments: dict[str, Any] = {
        "when": step.when,
        "trigger_rule": step.trigger_rule or _trigger_rule(step),
    }
    pool = step.pool or defaults.pool
    if pool is not None:
        arguments["pool"] = pool
    priority = defaults.priority if step.priority is None else step.priority
    if priority is not None:
        # Of this step alone: by Airflow's default it would be added up over all that follow.
        arguments |= {"priority_weight": priority, "weight_rule": "absolute"}
    return arguments


def _trigger_rule(step: StepBase) -> str:
    # Where paths meet, one that was not taken is no reason to stop.
    return "none_failed_min_one_success" if len(step.depends_on) > 1 else "all_success"


def _workspace_arguments(
    step: WorkspaceStep, workflow: Workflow, defaults: Defaults
) -> dict[str, Any]:
    output, paths = step.output or _NO_OUTPUT, step.paths or _ALL_PATHS
    setup = workflow.setup or _NO_SETUP
    return {
        "timeout": step.timeout or defaults.timeout or _TIMEOUT,
        **_retries(step.retry, defaults.retry),
        "setup_commands": setup.run,
        "setup_files": setup.files,
        "access": step.access or defaults.access or "write",
        "output_path": output.path,
        "output_schema": output.schema_,
        "changes": step.changes,
        "allow_paths": paths.allow,
        "deny_paths": paths.deny,
        "network": step.network or defaults.network or "model",
    }


def _agent_arguments(
    step: AgentStep, workflow: Workflow, defaults: Defaults
) -> tuple[str, dict[str, Any]]:
    agents = step.agent or defaults.agent
    if not agents:
        raise ValueError(f"step {step.id!r} has no agent; check the definition before building")
    agent, *others = agents
    budget = workflow.budget or _NO_BUDGET
    return AGENTS[agent.name].operator, {
        "prompt": step.prompt,
        "prompt_context": step.context,
        "model": _model(step, agent, defaults),
        "agent_conn_id": agent.connection,
        "options": agent.options,
        "fallbacks": [_fallback(step, other, defaults) for other in others],
        "verify": step.verify,
        "repair": _first(step.repair, defaults.repair, _REPAIR),
        "stall": step.stall or defaults.stall or _STALL,
        "prompt_contract": _first(step.prompt_contract, defaults.prompt_contract, True),
        "budget_usd": budget.usd,
        "budget_tokens": budget.tokens,
    }


def _approve_arguments(
    step: ApproveStep, arguments: dict[str, Any], files: Files
) -> dict[str, Any]:
    asked = step.approve
    arguments |= {
        "subject": asked.subject,
        "body": asked.body,
        "options": asked.options,
        "assignees": asked.assignees,
        "response_timeout": asked.timeout,
        "on_reject": asked.on_reject,
    }
    digest = _digest(_APPROVE, arguments, files)
    return {**arguments, "definition_sha256": digest, "prompt_folders": files.folders}


#: Import path of the operator of a step in which a person decides.
_APPROVE = "airflow_agent_provider.operators.approval.ApproveOperator"
#: Import path of the operator of a step that is a command.
_COMMAND = "airflow_agent_provider.operators.command.CommandOperator"
_NO_DEFAULTS = Defaults.model_construct()
_NO_OUTPUT = Output.model_construct(path=None, schema_=None)
_ALL_PATHS = Paths.model_construct(allow=[], deny=[])
_NO_BUDGET = Budget.model_construct(usd=None, tokens=None)
_NO_SETUP = Setup.model_construct(run=[], files=[])
_RETRY = Retry()
_REPAIR = 2
_TIMEOUT = timedelta(hours=1)
_STALL = timedelta(minutes=10)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _model(step: AgentStep, agent: Agent, defaults: Defaults) -> str | None:
    # Of an agent that the step names itself, only what the step or all steps say.
    return step.model or agent.model or defaults.model


def _fallback(step: AgentStep, agent: Agent, defaults: Defaults) -> dict[str, Any]:
    """Return an agent that takes over where those before it in the list cannot serve."""
    return {
        "agent": agent.name,
        "model": _model(step, agent, defaults),
        "agent_conn_id": agent.connection,
        "options": agent.options,
    }


def _retries(retry: Retry | None, default: Retry | None) -> dict[str, Any]:
    """Return Airflow's arguments; what a step leaves open its workflow's defaults may say."""
    rule = _merged(retry, default)
    arguments = {"retries": rule.count, "retry_on": rule.on}
    if rule.backoff == "exponential":
        longest = max(rule.max_delay, rule.delay)
        delays = {"retry_delay": rule.delay, "retry_exponential_backoff": 2}
        return {**arguments, **delays, "max_retry_delay": longest}
    delay = rule.delay if rule.backoff == "constant" else timedelta()
    return {**arguments, "retry_delay": delay, "retry_exponential_backoff": 0}


def _merged(retry: Retry | None, default: Retry | None) -> Retry:
    if retry is None or default is None:
        return retry or default or _RETRY
    return default.model_copy(
        update={name: getattr(retry, name) for name in retry.model_fields_set}
    )


def _digest(operator: str, arguments: dict[str, Any], files: Files) -> str:
    """Return the SHA-256 of what defines a step, the contents of its files included."""
    prompt, schema = arguments.get("prompt", ""), arguments.get("output_schema")
    contents = [
        files.digest(prompt) if prompt_file(prompt) else "",
        files.digest(schema) if isinstance(schema, str) else "",
    ]
    defined = json.dumps([operator, arguments, contents], sort_keys=True, default=str)
    return hashlib.sha256(defined.encode()).hexdigest()


def _doc_md(definition: Definition) -> str:
    """Return the DAG's documentation: the definition, and the digest of all that belongs to it.

    Airflow makes a new DAG version where the documentation changes, so a changed prompt makes one.
    """
    text, workflow, files = definition.text, definition.workflow, definition.files
    digest = hashlib.sha256(text.encode())
    for name in _files_of(workflow):
        digest.update(f"\n{name} {files.digest(name)}".encode())
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    head = f"{workflow.description}\n\n" if workflow.description else ""
    return f"{head}{fence}yaml\n{text.rstrip()}\n{fence}\n\nSHA-256 `{digest.hexdigest()}`\n"


def _files_of(workflow: Workflow) -> list[str]:
    prompts = {
        step.prompt
        for step in workflow.steps
        if isinstance(step, AgentStep) and prompt_file(step.prompt)
    }
    outputs = (
        step.output.schema_
        for step in workflow.steps
        if isinstance(step, WorkspaceStep) and step.output
    )
    return sorted(prompts.union(schema for schema in outputs if isinstance(schema, str)))
