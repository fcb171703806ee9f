"""The repository's connection: what git needs to reach a private repository."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_agent_provider.agents.failures import AuthenticationFailed, InvalidDefinition
from airflow_agent_provider.workspace.repository import Repository

_PASSWORD_IN_URL = re.compile(r"^\w[\w+.-]*://[^/@]*:[^/@]+@")


def repository_access(url: str, ref: str, conn_id: str | None) -> Repository:
    """Return the repository with what reaches it; its keys and tokens exist only while git runs.

    The connection is of type ``git`` (apache-airflow-providers-git): user and token, SSH key or
    GitHub App. Local paths, ``file://`` URLs and public repositories need none.

    :param url: URL or absolute path of the repository; empty takes the connection's.
    :param ref: branch, tag or commit to start from; empty takes the default branch.
    :param conn_id: id of the connection; None or empty for none.
    :raises AuthenticationFailed: if there is no such connection, or it cannot be used.
    :raises InvalidDefinition: if the URL holds a password, or none is given.
    """
    if _PASSWORD_IN_URL.match(url):
        raise InvalidDefinition(
            "the repository's URL holds a password, which logs and the agent could read; put it "
            "into a connection of type git and name that one"
        )
    if not conn_id:
        return Repository(str(Path(url).expanduser()) if url.startswith("~") else url, ref)
    return _by_connection(url, ref, conn_id)


def _by_connection(url: str, ref: str, conn_id: str) -> Repository:
    from airflow.providers.git.hooks.git import GitHook

    try:
        hook = GitHook(conn_id, repo_url=url or None)
    except AirflowNotFoundException as error:
        raise AuthenticationFailed(
            f"the repository needs the connection {conn_id!r}, which does not exist; add it in "
            f"Airflow under Admin > Connections, or with: airflow connections add {conn_id} "
            f"--conn-type git --conn-host <URL> --conn-login <user> --conn-password <token>"
        ) from error
    except (ValueError, OSError) as error:
        raise AuthenticationFailed(f"connection {conn_id!r} cannot be used: {error}") from error
    if not hook.repo_url:
        raise InvalidDefinition(
            f"connection {conn_id!r} names no repository, nor does the workflow; give the URL in "
            f"one of them"
        )

    @contextlib.contextmanager
    def credentials() -> Iterator[Mapping[str, str]]:
        before = dict(os.environ)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hook.configure_hook_env())
            except (ValueError, OSError, AirflowException) as error:
                raise AuthenticationFailed(
                    f"connection {conn_id!r} cannot be used: {error}"
                ) from error
            finally:
                # The hook also writes to this process's environment, which agents may inherit.
                _restore_environment(before)
            yield dict(hook.env)

    return Repository(hook.repo_url, ref, conn_id=conn_id, credentials=credentials)


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
