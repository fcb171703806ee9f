"""The step in which an agent works that speaks the Agent Client Protocol."""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.registry import STEP_OPERATOR_NAME
from airflow_agent_provider.operators.agent import AgentOperator


class AcpAgentOperator(AgentOperator):
    """An :class:`AgentOperator` whose agent is the one that the connection names."""

    default_agent: ClassVar[str | None] = "acp"
    custom_operator_name: ClassVar[str] = f"{STEP_OPERATOR_NAME} (ACP)"
