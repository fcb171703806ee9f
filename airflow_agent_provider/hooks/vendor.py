"""How an agent's connection and options are read, the same for every agent with a model's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from airflow_agent_provider.agents.failures import AuthenticationFailed, InvalidDefinition
from airflow_agent_provider.hooks.agent import AgentHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

#: Seconds that a connection's test waits for the vendor.
_TEST_SECONDS = 10.0

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Vendor:
    """How the connection reaches the model.

    :param conn_id: the connection's id, for reasons that users read.
    :param url: the API's base URL, without a slash at its end.
    :param key: the API key.
    :param model: the model where a step names none; None takes the agent's own default.
    """

    conn_id: str
    url: str
    key: str = field(repr=False)
    model: str | None


def read_vendor(hook: AgentHook, default_url: str) -> Vendor:
    """Return what the hook's connection says: host, password and the extra ``model``.

    :param default_url: the base URL where the connection has no host.
    :raises AuthenticationFailed: without connection or key.
    :raises InvalidDefinition: if the host is no base URL.
    """
    connection = hook.connection()
    key = (connection.password or "").strip()
    if not key:
        raise AuthenticationFailed(
            f"the connection {hook.conn_id!r} has no API key; set its password in Airflow "
            f"under Admin > Connections"
        )
    model = connection.extra_dejson.get("model")
    return Vendor(hook.conn_id, _url(connection, hook.conn_id, default_url), key, model or None)


def _url(connection: Connection, conn_id: str, default: str) -> str:
    host = (connection.host or "").strip()
    if not host:
        return default
    url = (host if "://" in host else f"https://{host}").rstrip("/")
    if connection.port:
        url = f"{url}:{connection.port}"
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InvalidDefinition(
            f"the connection {conn_id!r} has the host {host!r}, which is no base URL; "
            f"it should be like {default}"
        )
    return url


def read_options(model: type[Options], title: str, values: Mapping[str, Any]) -> Options:
    """Return a step's ``options:`` as ``model``.

    :param title: the agent's name for users.
    :raises InvalidDefinition: for options that do not exist or have no such value; the reason
        names those that do.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        names = ", ".join(model.model_fields)
        raise InvalidDefinition(f"{title}'s options are: {names}; {faults}") from error


def ask_for_models(base: str, url: str, headers: Mapping[str, str]) -> tuple[bool, str]:
    """Ask a model's API for its models; return whether it accepts the key, and a line on it.

    :param base: the API's base URL, for the line.
    :param url: where it lists its models.
    :param headers: the key, as the API wants it.
    """
    try:
        answer = httpx.get(url, headers=dict(headers), timeout=_TEST_SECONDS)
    except httpx.HTTPError as error:
        return False, f"{base} cannot be reached: {error}"
    if answer.is_success:
        return True, f"{base} accepts the key"
    return False, f"{base} answers HTTP {answer.status_code}: {answer.text[:500]}"


def refused_key(vendor: Vendor, raw: str | None) -> AuthenticationFailed:
    """Return the failure of a key that the vendor refused, with the way to mend it."""
    return AuthenticationFailed(
        f"{vendor.url} refused the API key of the connection {vendor.conn_id!r}; correct its "
        "password in Airflow under Admin > Connections",
        raw=raw,
    )
