"""Any agent that speaks the Agent Client Protocol, by the library ``agent-client-protocol``.

https://agentclientprotocol.com
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from airflow_agent_provider.agents.contract import AgentTask
from airflow_agent_provider.agents.failures import AgentFailure, InvalidDefinition
from airflow_agent_provider.hooks.acp_presets import APIS, PRESETS, Preset
from airflow_agent_provider.hooks.acp_session import AcpAgent, AcpOptions, AcpSession
from airflow_agent_provider.hooks.agent import LocalAgentHook, ask_version
from airflow_agent_provider.hooks.local_session import opened
from airflow_agent_provider.hooks.programs import find_program
from airflow_agent_provider.hooks.vendor import Vendor, ask_for_models, read_options, read_vendor
from airflow_agent_provider.settings import load_settings

#: Seconds that the connection's test waits for the model's API.
_TEST_SECONDS = 10.0


def _words(value: Any) -> Any:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.strip() else value or {}


def _lines(value: Any) -> Any:
    return tuple(value.replace(",", "\n").split()) if isinstance(value, str) else value or ()


class AcpExtra(BaseModel):
    """The connection's extra: which agent it is.

    :param preset: the agent, where it is one that is known here.
    :param command: the command line of any other, or another one of a known agent.
    :param environment: variables besides the preset's. In their values, ``{model_url}``,
        ``{model_key}``, ``{model}`` and ``{home}`` stand for what the session has.
    :param read_only_folders: folders of the worker that the program needs to see.
    :param api: the kind of its model's API.
    :param auth_method: id of the authentication that the agent wants.
    :param mode: id of the session mode in which it asks for nothing.
    :param read_only_mode: id of the session mode in which it changes nothing.
    :param session_files: patterns, below the home, of the files that another worker needs to
        continue a session; ``{id}`` stands for the session's id.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    preset: Literal["none", "qwen", "opencode", "gemini", "goose"] = "none"
    command: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    environment: Annotated[dict[str, Any], BeforeValidator(_json)] = Field(default_factory=dict)
    read_only_folders: Annotated[tuple[Path, ...], BeforeValidator(_lines)] = ()
    api: Literal["openai", "anthropic", "gemini"] | None = None
    auth_method: str | None = None
    mode: str | None = None
    read_only_mode: str | None = None
    session_files: Annotated[tuple[str, ...], BeforeValidator(_lines)] = ()

    def agent(self) -> Preset:
        """Return the preset with what the connection says besides."""
        preset = PRESETS[self.preset]
        return replace(
            preset,
            command=self.command or preset.command,
            environment={**preset.environment, **self.environment},
            api=self.api or preset.api,
            auth=self.auth_method or preset.auth,
            mode=self.mode or preset.mode,
            read_only_mode=self.read_only_mode or preset.read_only_mode,
            sessions=self.session_files or preset.sessions,
        )


class AcpHook(LocalAgentHook):
    """Runs an agent that speaks the Agent Client Protocol on the worker.

    The connection's host is the base URL of its model's API (the vendor's where empty), its
    password the API key, its extra ``model`` the model where a step names none; the rest of the
    extra is that of :class:`AcpExtra`. ``options`` of a task are those of :class:`AcpOptions`.

    :param conn_id: id of the connection; None takes ``acp_default``.
    """

    agent: ClassVar[str] = "acp"
    conn_type = "acp"
    conn_name_attr = "conn_id"
    default_conn_name = "acp_default"
    hook_name = "ACP agent"

    def start(self, task: AgentTask) -> AcpSession:
        """Start the agent for ``task``, or continue ``task.session`` if its files are in the home.

        :raises AuthenticationFailed: without connection or key.
        :raises InvalidDefinition: for options that do not exist, where the connection names no
            agent, and where the agent's program is missing.
        :raises AgentFailure: if the agent does not start.
        """
        _check_library()
        options = read_options(AcpOptions, "an ACP agent", task.options)
        return opened(AcpSession(task, self._agent(), options))

    def test_connection(self) -> tuple[bool, str]:
        """Ask the model's API for its models with the connection's key."""
        try:
            vendor, preset = self._read()
            api = APIS[preset.api]
            headers = {**api.version, **api.headers(vendor.key)}
            return ask_for_models(vendor.url, f"{vendor.url}{api.models}", headers)
        except AgentFailure as failure:
            return False, failure.reason

    def program_version(self) -> str:
        """Start the agent's program, and return what it says of its version."""
        _, preset = self._read()
        command, _ = self._program(preset, "--version")
        return ask_version(command, "the ACP agent", _install(preset))

    def _agent(self) -> AcpAgent:
        vendor, preset = self._read()
        command, folders = self._program(preset, *preset.command[1:])
        more = self._extra().read_only_folders
        return AcpAgent(vendor, preset, command, (*folders, *more))

    def _program(self, preset: Preset, *arguments: str) -> tuple[tuple[str, ...], tuple[Path, ...]]:
        if not preset.command:
            raise InvalidDefinition(
                f"the connection {self.conn_id!r} names no agent; set its extra 'preset' to one of "
                f"{', '.join(name for name in PRESETS if name != 'none')}, or 'command' to the "
                "command line of another"
            )
        wanted = (preset.command[0], *arguments)
        return find_program(wanted, load_settings().programs, _install(preset))

    def _read(self) -> tuple[Vendor, Preset]:
        preset = self._extra().agent()
        return read_vendor(self, APIS[preset.api].url), preset

    def _extra(self) -> AcpExtra:
        values: Mapping[str, Any] = self.connection().extra_dejson
        given = {name: value for name, value in values.items() if value not in (None, "")}
        try:
            return AcpExtra.model_validate(given)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            raise InvalidDefinition(
                f"the connection {self.conn_id!r} has an extra that cannot be used: {faults}"
            ) from error


def _install(preset: Preset) -> str:
    programs = load_settings().programs
    if preset.package is None:
        return "install it, and give the connection's extra 'command' its absolute path"
    return f"install it on the worker with: npm install --prefix {programs} {preset.package}"


def _check_library() -> None:
    try:
        import acp  # noqa: F401
    except ImportError as error:
        raise InvalidDefinition(
            "the library of the Agent Client Protocol is missing; install it on the worker with: "
            "pip install 'airflow-agent-provider[acp]'",
            raw=str(error),
        ) from error
