"""A checked definition to its DAG."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta
from functools import cache
from importlib import import_module
from typing import Any

import jinja2
from airflow.sdk import DAG, BaseOperator, Param

from airflow_agent_provider.agents.prompt_names import prompt_file
from airflow_agent_provider.agents.registry import AGENTS
from dag_factory.definition import (
    Agent,
    Budget,
    Defaults,
    Output,
    Paths,
    Retry,
    Setup,
    Step,
    Workflow,
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
    # Airflow takes no other number with this schedule.
    limits: dict[str, Any] = {"max_active_runs": 1} if workflow.schedule == "@continuous" else {}
    dag = DAG(
        dag_id=workflow.name,
        description=workflow.description or None,
        schedule=workflow.schedule if scheduled else None,
        start_date=_START if scheduled else None,
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
    tasks = {
        step_id: _operator(agent)(**arguments) for step_id, (agent, arguments) in steps.items()
    }
    dag.add_tasks(tasks.values())
    for step in workflow.steps:
        if step.depends_on:
            tasks[step.id].set_upstream([tasks[upstream] for upstream in step.depends_on])
    return dag


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
def _operator(agent: str) -> type[BaseOperator]:
    module, _, name = AGENTS[agent].operator.rpartition(".")
    operator: type[BaseOperator] = getattr(import_module(module), name)
    return operator


def _shared_arguments(workflow: Workflow) -> dict[str, Any]:
    """Return what the workflow says to the operators of all of its steps alike."""
    budget, setup = workflow.budget or _NO_BUDGET, workflow.setup or _NO_SETUP
    return {
        "budget_usd": budget.usd,
        "budget_tokens": budget.tokens,
        "setup_commands": setup.run,
        "setup_files": setup.files,
    }


def _arguments(
    step: Step, workflow: Workflow, files: Files, shared: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the first agent of a step, and the arguments of its operator."""
    defaults = workflow.defaults or _NO_DEFAULTS
    agents = step.agent or defaults.agent
    if not agents:
        raise ValueError(f"step {step.id!r} has no agent; check the definition before building")
    agent, *others = agents
    output, paths = step.output or _NO_OUTPUT, step.paths or _ALL_PATHS
    arguments: dict[str, Any] = {
        "task_id": step.id,
        "prompt": step.prompt,
        "prompt_context": step.context,
        "access": step.access or defaults.access or "write",
        "output_path": output.path,
        "output_schema": output.schema_,
        "model": _model(step, agent, defaults),
        "agent_conn_id": agent.connection,
        "options": agent.options,
        "fallbacks": [_fallback(step, other, defaults) for other in others],
        "verify": step.verify,
        "repair": _first(step.repair, defaults.repair, _REPAIR),
        "changes": step.changes,
        "allow_paths": paths.allow,
        "deny_paths": paths.deny,
        "network": step.network or defaults.network or "model",
        "timeout": step.timeout or defaults.timeout or _TIMEOUT,
        "stall": step.stall or defaults.stall or _STALL,
        "prompt_contract": _first(step.prompt_contract, defaults.prompt_contract, True),
        **_retries(step.retry, defaults.retry),
        **shared,
    }
    arguments["definition_sha256"] = _digest(agent.name, arguments, files)
    # Where a run works and where the files are is no part of what defines the step.
    arguments["prompt_folders"] = files.folders
    arguments["repository"] = _REPOSITORY
    arguments["ref"] = _REF
    if workflow.repository:
        arguments["own_repository"] = workflow.repository.url
        arguments["repository_conn_id"] = workflow.repository.connection
    return agent.name, arguments


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


def _model(step: Step, agent: Agent, defaults: Defaults) -> str | None:
    # Of an agent that the step names itself, only what the step or all steps say.
    return step.model or agent.model or defaults.model


def _fallback(step: Step, agent: Agent, defaults: Defaults) -> dict[str, Any]:
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


def _digest(agent: str, arguments: dict[str, Any], files: Files) -> str:
    """Return the SHA-256 of what defines a step, the contents of its files included."""
    prompt, schema = arguments["prompt"], arguments["output_schema"]
    contents = [
        files.digest(prompt) if prompt_file(prompt) else "",
        files.digest(schema) if isinstance(schema, str) else "",
    ]
    defined = json.dumps([agent, arguments, contents], sort_keys=True, default=str)
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
    prompts = {step.prompt for step in workflow.steps if prompt_file(step.prompt)}
    outputs = (step.output.schema_ for step in workflow.steps if step.output)
    return sorted(prompts.union(schema for schema in outputs if isinstance(schema, str)))
