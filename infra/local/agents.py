"""The connections that lead each agent to the rehearsal's servers."""

from __future__ import annotations

import json
import secrets
from typing import Any

#: The models whose tools the scripted model server speaks: of OpenAI, and of Anthropic.
MODEL = "gpt-5.5"
CLAUDE_MODEL = "claude-sonnet-5"
#: Seconds between two looks at a hosted run, and looks per minute: the stand-in grants more than
#: the vendor does.
_POLLING = {"poll_interval": 0.5, "requests_per_minute": 6000}


def rehearsal_connections(model_url: str, cursor_url: str) -> dict[str, str]:
    """Return each agent's default connection to a rehearsal, as JSON, by its id.

    :param model_url: where the scripted models are.
    :param cursor_url: where the stand-in for Cursor is.
    """
    values: dict[str, tuple[str, dict[str, Any]]] = {
        "codex": (f"{model_url}/v1", {"model": MODEL}),
        "copilot": (f"{model_url}/v1", {"model": MODEL}),
        "claude": (model_url, {"model": CLAUDE_MODEL}),
        "acp": (f"{model_url}/v1", {"preset": "qwen", "model": MODEL}),
        "cursor": (cursor_url, {"model": "composer", **_POLLING}),
    }
    return {f"{name}_default": _connection(name, *value) for name, value in values.items()}


def _connection(kind: str, url: str, extra: dict[str, Any]) -> str:
    # A key that cannot stand in any file: what agents leave is searched for Airflow's secrets.
    key = f"key_{secrets.token_urlsafe(24)}"
    return json.dumps({"conn_type": kind, "host": url, "password": key, "extra": extra})
