"""The agents that come with the provider, by the name that a workflow uses.

The table is plain data: a DAG that names an agent imports neither its hook nor its vendor's SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.agents.contract import AgentCapabilities

#: How the names of our operators begin in Airflow (``operator_name``), subclasses in hand-written
#: DAGs included. By it, the scheduler, the API and the mirror know a step without its code.
STEP_OPERATOR_NAME = "Agent step"


@dataclass(frozen=True)
class AgentSpec:
    """One agent.

    :param name: the name in workflows, and the type of its connection.
    :param title: the name that users read.
    :param hook: import path of its hook.
    :param operator: import path of its operator.
    :param connection: id of the connection that is used where a step names none.
    :param package: the distribution that the hook needs.
    :param capabilities: what it can do; of an agent that runs both ways, at its vendor.
    :param on_worker: what an agent that runs both ways can do on the worker.
    """

    name: str
    title: str
    hook: str
    operator: str
    connection: str
    package: str
    capabilities: AgentCapabilities
    on_worker: AgentCapabilities | None = None

    def able(self, options: Mapping[str, Any]) -> AgentCapabilities:
        """Return what the agent can do with a step's options.

        :param options: the step's, of this agent alone; ``hosted: false`` keeps it on the worker.
        """
        if self.on_worker is not None and options.get("hosted") is False:
            return self.on_worker
        return self.capabilities


AGENTS: dict[str, AgentSpec] = {
    spec.name: spec
    for spec in (
        AgentSpec(
            name="acp",
            title="ACP agent",
            hook="airflow_agent_provider.hooks.acp.AcpHook",
            operator="airflow_agent_provider.operators.acp.AcpAgentOperator",
            connection="acp_default",
            package="agent-client-protocol",
            # What the protocol has; a single program may lack some of it.
            capabilities=AgentCapabilities(
                resume=True,
                structured_output=True,
                read_only=True,
                usage=True,
                local=True,
                interrupt=True,
            ),
        ),
        AgentSpec(
            name="claude",
            title="Claude Code",
            hook="airflow_agent_provider.hooks.claude.ClaudeHook",
            operator="airflow_agent_provider.operators.claude.ClaudeAgentOperator",
            connection="claude_default",
            package="claude-agent-sdk",
            capabilities=AgentCapabilities(
                resume=True,
                structured_output=True,
                read_only=True,
                usage=True,
                cost=True,
                local=True,
                interrupt=True,
            ),
        ),
        AgentSpec(
            name="codex",
            title="OpenAI Codex",
            hook="airflow_agent_provider.hooks.codex.CodexHook",
            operator="airflow_agent_provider.operators.codex.CodexAgentOperator",
            connection="codex_default",
            package="openai-codex",
            capabilities=AgentCapabilities(
                resume=True,
                structured_output=True,
                read_only=True,
                usage=True,
                local=True,
                interrupt=True,
            ),
        ),
        AgentSpec(
            name="copilot",
            title="GitHub Copilot",
            hook="airflow_agent_provider.hooks.copilot.CopilotHook",
            operator="airflow_agent_provider.operators.copilot.CopilotAgentOperator",
            connection="copilot_default",
            package="github-copilot-sdk",
            capabilities=AgentCapabilities(
                resume=True,
                structured_output=True,
                read_only=True,
                usage=True,
                local=True,
                interrupt=True,
            ),
        ),
        AgentSpec(
            name="cursor",
            title="Cursor",
            hook="airflow_agent_provider.hooks.cursor.CursorHook",
            operator="airflow_agent_provider.operators.cursor.CursorAgentOperator",
            connection="cursor_default",
            package="cursor-sdk",
            capabilities=AgentCapabilities(
                resume=True, usage=True, cost=True, hosted=True, local=True, interrupt=True
            ),
            on_worker=AgentCapabilities(
                resume=True,
                structured_output=True,
                read_only=True,
                usage=True,
                local=True,
                interrupt=True,
            ),
        ),
    )
}
