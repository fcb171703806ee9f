"""The step in which Cursor works."""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.agent import AgentOperator


class CursorAgentOperator(AgentOperator):
    """An :class:`AgentOperator` whose agent is Cursor."""

    default_agent: ClassVar[str | None] = "cursor"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (Cursor)"
