"""The repository's connection: what git needs to reach a private repository."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_agent_provider.agents.failures import AuthenticationFailed, InvalidDefinition
from airflow_agent_provider.workspace.allowed import AllowList, place_of
from airflow_agent_provider.workspace.git import redact
from airflow_agent_provider.workspace.repository import Repository
from airflow_agent_provider.workspace.submodules import SubmoduleSource

_log = logging.getLogger(__name__)
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


def given_repository(
    url: str, ref: str, conn_id: str | None, *, own: str, allowed: AllowList, what: str = ""
) -> Repository:
    """As :func:`repository_access`, of a repository that is not named by the workflow's author.

    Anybody who may trigger a workflow can name any URL. The worker goes to those that the operator
    of Airflow allows, and takes the credentials to no host but the one that they are for.

    :param own: the repository that the workflow itself names; empty for none.
    :param allowed: what a run may name.
    :param what: what the error calls it; by default, that the run names it.
    :raises PolicyViolation: if it is not allowed; nothing was fetched then.
    """
    shown = redact(url)
    allowed.check(
        url, what or f"repository {shown}, which this run names and its workflow does not,"
    )
    if conn_id and not _serves(url, own, allowed):
        _log.warning(
            "Repository %s is used without connection %r, which is for the workflow's own: "
            "it serves the same host alone, and that only where a pattern of [agents] repositories "
            "names it in full",
            shown,
            conn_id,
        )
        conn_id = None
    return repository_access(url, ref, conn_id)


def submodule_source(allowed: AllowList) -> SubmoduleSource:
    """Return what gives the repositories of submodules.

    Their URLs come from the repository, at a commit that a run may choose, so they are as little
    trusted as those that a run names.

    :param allowed: what a run may name.
    """

    def give(url: str, parent: Repository, what: str) -> Repository:
        called = f"{what} leads to {redact(url)}, which"
        conn_id, own = parent.conn_id, parent.url
        return given_repository(url, "", conn_id, own=own, allowed=allowed, what=called)

    return give


def _serves(url: str, own: str, allowed: AllowList) -> bool:
    here, there = place_of(own), place_of(url)
    same = not own or (here is not None and there is not None and here.same_host(there))
    return same and allowed.trusts(url)


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
