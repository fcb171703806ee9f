"""What is known of single ACP agents: how each is started, and told its model.

Any other agent is described by the connection alone. A preset is data; what one connection adds to
it wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What may stand in variables and files, in braces.
PLACEHOLDERS = ("model_url", "model_origin", "model_path", "model_key", "model", "home")
_PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")


@dataclass(frozen=True)
class Api:
    """A kind of model API.

    :param url: the vendor's own base URL.
    :param header: the header that takes the key.
    :param scheme: what stands before the key in it.
    :param paths: prefixes of the paths that agents need.
    :param models: path of the list of models, by which a key is tried.
    :param version: headers that name the version of the API, where it wants them.
    """

    url: str
    header: str
    scheme: str
    paths: tuple[str, ...]
    models: str
    version: Mapping[str, str] = field(default_factory=dict)

    def headers(self, key: str) -> dict[str, str]:
        """Return the header with ``key``."""
        return {self.header: f"{self.scheme}{key}"}


APIS = {
    "openai": Api(
        "https://api.openai.com/v1",
        "Authorization",
        "Bearer ",
        ("/chat/completions", "/responses", "/models"),
        "/models",
    ),
    "anthropic": Api(
        "https://api.anthropic.com",
        "x-api-key",
        "",
        ("/v1/messages", "/v1/models"),
        "/v1/models",
        {"anthropic-version": "2023-06-01"},
    ),
    "gemini": Api(
        "https://generativelanguage.googleapis.com",
        "x-goog-api-key",
        "",
        ("/v1beta", "/v1alpha", "/v1"),
        "/v1beta/models",
    ),
}


@dataclass(frozen=True)
class Preset:
    """One ACP agent.

    :param command: its command line; the first word is looked up below ``[agents] programs``.
    :param package: its package on npm, with the version that it was tried with; None where it does
        not come from there.
    :param api: the kind of its model's API, a key of :data:`APIS`.
    :param environment: its variables; a value that is no text is written as JSON.
    :param files: files of its home, by their path, written as JSON before each start.
    :param auth: id of the authentication that it wants; None if it wants none.
    :param mode: id of the session mode in which it asks for nothing; None if that is its own.
    :param read_only_mode: id of the session mode in which it changes nothing.
    :param sessions: patterns below the home of the files that resume a session; ``{id}`` is its
        id.
    :param written: how those files have a message of the agent's; ``{message}`` is it, in JSON.
    :param result: a word in the line in which they have the result of a tool call; empty if there
        is no such line.
    :param usage: whether the tokens in its answer to a prompt are the session's sum, as the
        protocol has it; else they are passed over.
    """

    command: tuple[str, ...] = ()
    package: str | None = None
    api: str = "openai"
    environment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    auth: str | None = None
    mode: str | None = None
    read_only_mode: str | None = None
    sessions: tuple[str, ...] = ()
    written: str = "{message}"
    result: str = ""
    usage: bool = True

    @property
    def tells_model(self) -> bool:
        """Whether the agent is told its model when it starts."""
        return "{model}" in json.dumps([self.environment, self.files])


PRESETS = {
    "none": Preset(),
    "qwen": Preset(
        command=("qwen", "--acp"),
        package="@qwen-code/qwen-code@0.15.10",
        environment={
            "OPENAI_API_KEY": "{model_key}",
            "OPENAI_BASE_URL": "{model_url}",
            "OPENAI_MODEL": "{model}",
            # Else a second process starts, with more memory.
            "QWEN_CODE_NO_RELAUNCH": "true",
            "QWEN_CODE_DISABLE_PRECONNECT": "1",
            "QWEN_DISABLE_AUTO_TITLE": "1",
            "QWEN_TELEMETRY_ENABLED": "false",
            "NO_COLOR": "1",
        },
        files={
            ".qwen/settings.json": {
                "$version": 4,
                "security": {"auth": {"selectedType": "openai"}},
                "general": {"enableAutoUpdate": False},
                "privacy": {"usageStatisticsEnabled": False},
                "telemetry": {"enabled": False},
                # It repeats a request 7 times, and each of those as often as this says.
                "model": {"generationConfig": {"maxRetries": 0, "timeout": 900_000}},
            }
        },
        auth="openai",
        mode="yolo",
        read_only_mode="plan",
        sessions=(".qwen/projects/*/chats/{id}.jsonl",),
        # It writes a line about the answer first, and then the answer.
        written='{"text":{message}',
        result='"functionResponse"',
    ),
    "opencode": Preset(
        command=("opencode", "acp", "--pure"),
        package="opencode-ai@1.18.33",
        environment={
            "OPENCODE_CONFIG_CONTENT": {
                "provider": {
                    "airflow": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": "Airflow",
                        "options": {"baseURL": "{model_url}", "apiKey": "{model_key}"},
                        "models": {"{model}": {"name": "{model}"}},
                    }
                },
                # Without these it would take the vendor's own hosted models.
                "model": "airflow/{model}",
                "small_model": "airflow/{model}",
                "enabled_providers": ["airflow"],
                "autoupdate": False,
                "share": "disabled",
            },
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        },
        read_only_mode="plan",
        # It tells those of its last request only.
        usage=False,
        sessions=(
            ".local/share/opencode/opencode.db",
            ".local/share/opencode/opencode.db-wal",
            ".local/share/opencode/opencode.db-shm",
        ),
    ),
    "gemini": Preset(
        command=("gemini", "--acp"),
        package="@google/gemini-cli@0.61.0",
        api="gemini",
        environment={
            "GEMINI_API_KEY": "{model_key}",
            "GOOGLE_GEMINI_BASE_URL": "{model_url}",
            "GEMINI_MODEL": "{model}",
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
            "NO_COLOR": "1",
        },
        files={
            ".gemini/settings.json": {
                "security": {"auth": {"selectedType": "gemini-api-key"}},
                "general": {"enableAutoUpdate": False},
                "privacy": {"usageStatisticsEnabled": False},
            }
        },
        auth="gemini-api-key",
        mode="yolo",
        read_only_mode="plan",
        sessions=(".gemini/tmp/*/chats/*{id}*",),
    ),
    "goose": Preset(
        command=("goose", "acp"),
        environment={
            "GOOSE_PROVIDER": "openai",
            "GOOSE_MODEL": "{model}",
            "GOOSE_MODE": "auto",
            "GOOSE_DISABLE_KEYRING": "1",
            "OPENAI_API_KEY": "{model_key}",
            "OPENAI_HOST": "{model_origin}",
            "OPENAI_BASE_PATH": "{model_path}/chat/completions",
        },
        sessions=(".local/share/goose/sessions/*",),
    ),
}


def filled(value: Any, values: Mapping[str, str]) -> Any:
    """Return ``value`` with the placeholders replaced, in the texts of nested values too.

    :param value: a text, a list or a mapping; anything else is returned as it is.
    :param values: by the placeholder's name.
    :raises KeyError: if a placeholder has no value.
    """
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: values[match[1]], value)
    if isinstance(value, Mapping):
        return {filled(name, values): filled(part, values) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [filled(part, values) for part in value]
    return value


def as_text(value: Any) -> str:
    """Return a variable's value: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
