"""GitHub Copilot, by its official SDK ``github-copilot-sdk``, which runs Copilot on the worker.

https://github.com/github/copilot-sdk
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import (
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
)
from airflow_agent_provider.hooks.agent import LocalAgentHook, ask_version
from airflow_agent_provider.hooks.copilot_program import VERSION, find_runtime
from airflow_agent_provider.hooks.copilot_session import CopilotOptions, CopilotSession, Vendor
from airflow_agent_provider.hooks.local_session import opened
from airflow_agent_provider.hooks.vendor import ask_for_models, read_options
from airflow_agent_provider.settings import load_settings

#: Copilot's own API, for a person's subscription; organisations' plans have addresses of their own.
COPILOT_URL = "https://api.githubcopilot.com"
_PROVIDERS = ("copilot", "openai", "azure", "anthropic")
_WIRES = ("completions", "responses")


class CopilotHook(LocalAgentHook):
    """Runs GitHub Copilot on the worker, with a Copilot subscription or a provider of one's own.

    Without a host, the connection's password is the token of somebody who has Copilot. With a
    host, which is then a provider's base URL, it is that provider's key. Extras: ``model`` (where
    a step names none), ``provider`` (``copilot``, ``openai``, ``azure`` or ``anthropic``), ``wire``
    (``completions`` or ``responses``), ``program`` (path of Copilot's program). ``options`` of a
    task are those of :class:`CopilotOptions`.

    :param conn_id: id of the connection; None takes ``copilot_default``.
    """

    agent: ClassVar[str] = "copilot"
    conn_type = "copilot"
    conn_name_attr = "conn_id"
    default_conn_name = "copilot_default"
    hook_name = "GitHub Copilot"

    def start(self, task: AgentTask) -> CopilotSession:
        """Start Copilot for ``task``, or continue ``task.session`` if its files are in the home.

        :raises AuthenticationFailed: without connection or key.
        :raises InvalidDefinition: for options that do not exist, for a missing model, where Copilot
            is not installed, and where the sandbox cannot work.
        :raises AgentFailure: if Copilot does not start.
        """
        options = read_options(CopilotOptions, "Copilot", task.options)
        connection = self.connection()
        vendor = self._vendor(connection)
        if vendor.provider != "copilot" and not (task.model or vendor.model):
            raise InvalidDefinition(
                f"with a provider of one's own, Copilot needs to be told the model: name it in the "
                f"step, or in the extra 'model' of the connection {self.conn_id!r}"
            )
        program = str(connection.extra_dejson.get("program") or "") or None
        runtime = find_runtime(Path(load_settings().programs), program)
        return opened(CopilotSession(task, vendor, options, runtime))

    def program_version(self) -> str:
        """Find the runtime, unpacking it where that is not done yet, and start it.

        It has no option that tells its version, but ends well where it has nothing to do.
        """
        runtime = find_runtime(load_settings().programs)
        ask_version(
            [str(runtime.program), "--headless", "--stdio"], "Copilot", f"remove {runtime.folder}"
        )
        return f"copilot-runtime {VERSION} starts"

    def test_connection(self) -> tuple[bool, str]:
        """Ask the vendor for its models with the connection's key."""
        try:
            vendor = self._vendor(self.connection())
            return ask_for_models(
                vendor.url,
                _models_url(vendor),
                {**vendor.headers, **_TEST_HEADERS.get(vendor.provider, {})},
            )
        except AgentFailure as failure:
            return False, failure.reason

    def _vendor(self, connection: Any) -> Vendor:
        key = (connection.password or "").strip()
        if not key:
            raise AuthenticationFailed(
                f"the connection {self.conn_id!r} has no key or token; set its password in Airflow "
                f"under Admin > Connections"
            )
        extra = connection.extra_dejson
        host = (connection.host or "").strip()
        provider = self._choice(extra, "provider", _PROVIDERS, "openai" if host else "copilot")
        if provider == "copilot" and key.startswith("ghp_"):
            raise AuthenticationFailed(
                f"the password of the connection {self.conn_id!r} is a classic personal access "
                "token, which Copilot does not take; use a fine-grained one (github_pat_…) with "
                "the permission 'Copilot Requests'"
            )
        return Vendor(
            conn_id=self.conn_id,
            url=self._url(connection, host, provider),
            key=key,
            model=str(extra.get("model") or "") or None,
            provider=provider,  # type: ignore[arg-type]
            wire=self._choice(extra, "wire", _WIRES, "completions"),  # type: ignore[arg-type]
        )

    def _choice(
        self, extra: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str
    ) -> str:
        value = str(extra.get(name) or default)
        if value not in choices:
            raise InvalidDefinition(
                f"the extra {name!r} of the connection {self.conn_id!r} is {value!r}; it should be "
                f"one of: {', '.join(choices)}"
            )
        return value

    def _url(self, connection: Any, host: str, provider: str) -> str:
        if not host and provider == "copilot":
            return COPILOT_URL
        url = (host if "://" in host else f"https://{host}").rstrip("/")
        if connection.port:
            url = f"{url}:{connection.port}"
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise InvalidDefinition(
                f"the connection {self.conn_id!r} has the host {host!r}, which is no base URL; it "
                "should be like https://api.openai.com/v1"
            )
        # Copilot itself adds it for this provider.
        return url.removesuffix("/v1") if provider == "anthropic" else url


#: What the vendor wants to see beside the key.
_TEST_HEADERS = {
    "anthropic": {"anthropic-version": "2023-06-01"},
    "copilot": {"Copilot-Integration-Id": "copilot-sdk"},
}


def _models_url(vendor: Vendor) -> str:
    if vendor.provider == "anthropic":
        return f"{vendor.url}/v1/models"
    if vendor.provider == "azure" and not vendor.url.endswith("/openai/v1"):
        return f"{vendor.url}/openai/v1/models"
    return f"{vendor.url}/models"
