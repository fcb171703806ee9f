"""Claude Code, by its official SDK ``claude-agent-sdk``, which brings the program along.

https://docs.claude.com/en/api/agent-sdk/python
"""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import AgentFailure
from airflow_agent_provider.hooks.agent import LocalAgentHook, ask_version
from airflow_agent_provider.hooks.claude_session import (
    INSTALL,
    ClaudeOptions,
    ClaudeSession,
    find_program,
)
from airflow_agent_provider.hooks.local_session import opened
from airflow_agent_provider.hooks.vendor import Vendor, ask_for_models, read_options, read_vendor

DEFAULT_URL = "https://api.anthropic.com"
#: The API's version, which every request must name.
_VERSION = "2023-06-01"


class ClaudeHook(LocalAgentHook):
    """Runs Claude Code on the worker.

    The connection's host is the API's base URL, without ``/v1`` (Anthropic's where empty), its
    password the API key, and its extra ``model`` the model where a step names none. ``options`` of
    a task are those of :class:`ClaudeOptions`.

    :param conn_id: id of the connection; None takes ``claude_default``.
    """

    agent: ClassVar[str] = "claude"
    conn_type = "claude"
    conn_name_attr = "conn_id"
    default_conn_name = "claude_default"
    hook_name = "Claude Code"

    def start(self, task: AgentTask) -> ClaudeSession:
        """Start Claude Code for ``task``, or continue ``task.session`` if its file is in the home.

        :raises AuthenticationFailed: without connection or key.
        :raises InvalidDefinition: for options that do not exist, where Claude Code is not
            installed, and where the sandbox is required and cannot work.
        :raises AgentFailure: if Claude Code does not start.
        """
        options = read_options(ClaudeOptions, "Claude Code", task.options)
        return opened(ClaudeSession(task, self._vendor(), options))

    def program_version(self) -> str:
        """Start the program that comes with the SDK."""
        return ask_version([str(find_program()), "--version"], "Claude Code", INSTALL)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the vendor for its models with the connection's key."""
        try:
            vendor = self._vendor()
            return ask_for_models(
                vendor.url,
                f"{vendor.url}/v1/models",
                {"x-api-key": vendor.key, "anthropic-version": _VERSION},
            )
        except AgentFailure as failure:
            return False, failure.reason

    def _vendor(self) -> Vendor:
        return read_vendor(self, DEFAULT_URL)
