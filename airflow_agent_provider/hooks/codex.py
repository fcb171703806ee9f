"""OpenAI Codex, by its official SDK ``openai-codex``, which runs the Codex program on the worker.

https://developers.openai.com/codex/sdk
"""

from __future__ import annotations

from typing import ClassVar

from airflow_agent_provider.agents.contract import Access, AgentTask, Sandbox
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    InvalidDefinition,
)
from airflow_agent_provider.hooks.agent import LocalAgentHook, ask_version
from airflow_agent_provider.hooks.codex_session import (
    INSTALL,
    CodexOptions,
    CodexSession,
    find_program,
)
from airflow_agent_provider.hooks.local_session import opened
from airflow_agent_provider.hooks.vendor import Vendor, ask_for_models, read_options, read_vendor

DEFAULT_URL = "https://api.openai.com/v1"


class CodexHook(LocalAgentHook):
    """Runs OpenAI Codex on the worker.

    The connection's host is the API's base URL (OpenAI's where empty), its password the API key,
    and its extra ``model`` the model where a step names none. ``options`` of a task are those of
    :class:`CodexOptions`.

    :param conn_id: id of the connection; None takes ``codex_default``.
    """

    agent: ClassVar[str] = "codex"
    conn_type = "codex"
    conn_name_attr = "conn_id"
    default_conn_name = "codex_default"
    hook_name = "OpenAI Codex"

    def start(self, task: AgentTask) -> CodexSession:
        """Start Codex for ``task``, or continue ``task.session`` if its files are in the home.

        :raises AuthenticationFailed: without connection or key.
        :raises InvalidDefinition: for options that do not exist, where Codex is not installed, and
            where its sandbox cannot work.
        :raises AgentFailure: if Codex does not start.
        """
        options = read_options(CodexOptions, "Codex", task.options)
        unconfined = task.confinement.sandbox is not Sandbox.REQUIRED and options.sandbox == "off"
        if unconfined and task.access is Access.READ_ONLY:
            raise InvalidDefinition(
                "access: read_only needs a sandbox; remove 'sandbox: off' from the options, or set "
                "[agents] sandbox = required"
            )
        return opened(CodexSession(task, self._vendor(), options))

    def program_version(self) -> str:
        """Start the program that comes with the SDK."""
        return ask_version([str(find_program()), "--version"], "Codex", INSTALL)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the vendor for its models with the connection's key."""
        try:
            vendor = self._vendor()
            return ask_for_models(
                vendor.url, f"{vendor.url}/models", {"Authorization": f"Bearer {vendor.key}"}
            )
        except AgentFailure as failure:
            return False, failure.reason

    def _vendor(self) -> Vendor:
        return read_vendor(self, DEFAULT_URL)
