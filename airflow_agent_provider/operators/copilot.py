"""The step in which GitHub Copilot works."""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.agent import AgentOperator


class CopilotAgentOperator(AgentOperator):
    """An :class:`AgentOperator` whose agent is GitHub Copilot."""

    default_agent: ClassVar[str | None] = "copilot"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (Copilot)"
