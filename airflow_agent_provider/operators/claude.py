"""The step in which Claude Code works."""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.agent import AgentOperator


class ClaudeAgentOperator(AgentOperator):
    """An :class:`AgentOperator` whose agent is Claude Code."""

    default_agent: ClassVar[str | None] = "claude"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (Claude Code)"
