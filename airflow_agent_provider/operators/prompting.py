"""The resolved prompt of an agent step: its template, its context, and the step's contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_agent_provider.agents.prompt_names import prompt_file, prompt_url
from airflow_agent_provider.prompts.contract import StepContract
from airflow_agent_provider.prompts.render import Prompt

if TYPE_CHECKING:
    from airflow_agent_provider.operators.agent import AgentOperator
    from airflow_agent_provider.operators.inputs import StepInputs
    from airflow_agent_provider.workspace.workspace import Workspace


def make_prompt(
    operator: AgentOperator, inputs: StepInputs, workspace: Workspace | None, *, hosted: bool
) -> Prompt:
    """Return the step's resolved prompt.

    :param operator: the step; its context is rendered in place.
    :param inputs: what it starts from.
    :param workspace: the workspace, whose files the template may read; None where there is none.
    :param hosted: whether the agent works at its vendor.
    :raises PromptError: if a template cannot be rendered.
    """
    templates = inputs.templates
    names = templates.names(workspace)
    operator.prompt_context = templates.renderer(names).value(operator.prompt_context, "context")
    name, texts = _template(operator, inputs)
    renderer = templates.renderer({**names, "context": operator.prompt_context}, texts)
    prompt = renderer.prompt(name)
    if not operator.prompt_contract:
        return prompt
    rules = inputs.rules()
    contract = StepContract(
        inputs.step,
        rules.access,
        rules.output_path,
        rules.output_schema,
        hosted,
        changes=rules.changes,
        allow=tuple(rules.allow),
        deny=tuple(rules.deny),
        verify=tuple(rules.verify),
    )
    return Prompt(f"{prompt.text}\n{contract.text()}", prompt.sources)


def _template(
    operator: AgentOperator, inputs: StepInputs
) -> tuple[str, dict[str, tuple[str, str | None]]]:
    """Return the template's name, and its text with its version where it is no file."""
    prompt = operator.prompt
    if prompt_url(prompt):
        from airflow_agent_provider.hooks.prompt_text import read_s3_text

        return prompt, {prompt: read_s3_text(prompt, inputs.settings.aws_conn_id)}
    if prompt_file(prompt):
        return prompt, {}
    name = f"the prompt of step {inputs.step.step_id}"
    return name, {name: (prompt, None)}
