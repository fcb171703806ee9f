"""``airflow agents render``: a step's prompt as its agent would get it, without a run."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk.exceptions import ParamValidationError
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_agent_provider.agents.failures import AgentFailure, AuthenticationFailed
from airflow_agent_provider.cli.placeholder import readable
from airflow_agent_provider.cli.preview import RUN_ID, Preview
from airflow_agent_provider.cli.workflow import build_dag, fail, read_workflow
from airflow_agent_provider.hooks.agent import get_agent_hook
from airflow_agent_provider.hooks.artifacts import open_store
from airflow_agent_provider.operators.agent import AgentOperator
from airflow_agent_provider.operators.command import CommandOperator
from airflow_agent_provider.operators.prompting import make_prompt
from airflow_agent_provider.operators.step import StepOperator
from airflow_agent_provider.settings import load_settings
from dag_factory.errors import nearest, one_line, show

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

    from airflow_agent_provider.operators.work import AgentChoice

_NOTE = (
    "«…» stands for what earlier steps would leave; --results FILE gives their results: "
    '{"STEP": {"output": …}}'
)


@providers_configuration_loaded
def render(args: Namespace) -> None:
    """Print the prompt of a step, or the command of one that is a command.

    :param args: ``workflow``, ``step``, ``conf`` (JSON, None for the defaults) and ``results`` (a
        JSON file of results by step).
    :raises SystemExit: 1, after what is wrong on stderr, if it cannot be rendered.
    """
    # As Airflow's own commands do: connections may be in its database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    path, definition = read_workflow(args.workflow)
    dag = build_dag(path, definition)
    if args.step not in dag.task_dict:
        fail(f"{path}: unknown step {show(args.step)}; {nearest(args.step, dag.task_dict)}")
    task = dag.task_dict[args.step]
    if not isinstance(task, AgentOperator | CommandOperator):
        fail(f"{path}: step {show(args.step)} has neither a prompt nor a command")
    params = _params(dag, args.conf)
    results = _results(dag, task, args.results)
    try:
        text = _rendered(task, _context(dag, task, params), results)
    except AgentFailure as failure:
        fail(f"{path}: step {show(args.step)}: {failure.reason}")
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    if "«" in text:
        sys.stderr.write(f"{_NOTE}\n")


def _rendered(
    task: AgentOperator | CommandOperator, context: Context, results: dict[str, Any]
) -> str:
    settings = load_settings()
    store = open_store(settings.artifacts, settings.aws_conn_id)
    task.render_template_fields(context)
    with Preview(task, context, store, settings, results).opened() as inputs:
        if isinstance(task, CommandOperator):
            renderer = inputs.templates.renderer(inputs.templates.names(None))
            return readable(renderer.command(task.run, f"'run' of step {task.task_id}"))
        hosted = _hosted(task.choices[0], inputs.repository.url)
        return readable(make_prompt(task, inputs, None, hosted=hosted).text)


def _hosted(agent: AgentChoice, repository: str) -> bool:
    hook = get_agent_hook(agent.agent, agent.conn_id)
    try:
        return hook.runs_hosted(agent.options, repository)
    except AuthenticationFailed:
        # The connection may say; without one, as by default. A preview needs no key.
        return hook.capabilities.hosted and bool(repository)


def _context(dag: DAG, task: StepOperator, params: dict[str, Any]) -> Context:
    """Return what there is of Airflow's context before a run."""
    now = datetime.now(UTC)
    context = {
        "dag": dag,
        "task": task,
        "params": params,
        "run_id": RUN_ID,
        "logical_date": now,
        "ds": now.date().isoformat(),
        "ds_nodash": f"{now:%Y%m%d}",
        "ts": now.isoformat(),
    }
    return cast("Context", context)


def _params(dag: DAG, text: str | None) -> dict[str, Any]:
    """Return the run's parameters, as a trigger with this configuration would set them."""
    given = _json(text, "--conf") if text else {}
    wrong = [
        f"--conf: unknown parameter {show(name)}; {nearest(name, dag.params)}"
        for name in given
        if name not in dag.params
    ]
    params = {}
    for name in dag.params:
        param = dag.params.get_param(name)
        try:
            params[name] = param.resolve(given[name]) if name in given else param.resolve()
        except ParamValidationError as error:
            said = getattr(error.args[0], "message", None) if error.args else None
            hint = one_line(said) if said else "it has no default, so give it a value"
            wrong.append(f"--conf: parameter {show(name)}: {hint}")
    if wrong:
        fail(*wrong)
    return params


def _results(dag: DAG, task: StepOperator, file: str | None) -> dict[str, Any]:
    if not file:
        return {}
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(f"{file}:1:1: it cannot be read: {getattr(error, 'strerror', None) or error}")
    results = _json(text, file)
    earlier = task.get_flat_relative_ids(upstream=True)
    unknown = [name for name in results if name not in earlier]
    if unknown:
        fail(
            *(
                f"{file}: {show(name)} is no step before {show(task.task_id)}; "
                f"{nearest(name, earlier)}"
                for name in unknown
            )
        )
    return results


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        said = f"{error.msg[:1].lower()}{error.msg[1:]}"
        fail(f"{where}:{error.lineno}:{error.colno}: not JSON: {said}")
    except RecursionError:
        fail(f"{where}:1:1: nested too deeply")
    if not isinstance(value, dict):
        fail(f"{where}:1:1: it is {show(value)}, not a JSON object")
    return value
