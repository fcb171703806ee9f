"""The step in which OpenAI Codex works."""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.agent import AgentOperator


class CodexAgentOperator(AgentOperator):
    """An :class:`AgentOperator` whose agent is OpenAI Codex."""

    default_agent: ClassVar[str | None] = "codex"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (Codex)"
