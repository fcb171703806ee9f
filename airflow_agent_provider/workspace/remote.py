"""Calls to a remote repository, and what their failures mean.

git tells its failures in words only, so they are classified by git's, curl's and OpenSSH's words
(``LC_ALL=C``): https://github.com/git/git/blob/v2.39.5/http.c (``show_http_message``),
https://github.com/git/git/blob/v2.39.5/remote-curl.c and
https://github.com/git/git/blob/v2.39.5/connect.c (``die_initial_contact``).
"""

from __future__ import annotations

import re

from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
    PolicyViolation,
    RateLimited,
    Unavailable,
)
from airflow_agent_provider.workspace.git import GitError

#: Seconds for a call that moves no objects.
QUERY_TIMEOUT = 120.0
#: Seconds for a fetch or a push; a first fetch brings the whole history.
TRANSFER_TIMEOUT = 1800.0

#: The failure class of the first pattern that matches git's words.
_CLASSES: tuple[tuple[type[AgentFailure], re.Pattern[str]], ...] = tuple(
    (failure, re.compile(pattern, re.IGNORECASE))
    for failure, pattern in (
        (RateLimited, r"returned error: 429"),
        (
            PolicyViolation,
            r"protected branch|hook declined|GH00\d:|denyCurrentBranch|deny updating",
        ),
        (
            AuthenticationFailed,
            r"authentication failed|could not read (username|password)|permission denied \("
            r"|returned error: 40[13]|host key verification failed|access denied|invalid username"
            r"|permission to .* denied|write access to repository not granted"
            r"|insufficient permission for adding|unable to create temporary object directory"
            r"|deploy key|terminal prompts disabled",
        ),
        (
            InvalidDefinition,
            r"repository .*not found|does not appear to be a git repository|does not exist"
            r"|returned error: (404|410)|dubious ownership|transport '.*' not allowed"
            r"|unable to find remote helper|no such file or directory|not a git repository",
        ),
        (
            Unavailable,
            r"returned error: 5\d\d|could ?n.t resolve|could not resolve|failed to connect"
            r"|couldn't connect|connection (refused|reset|timed out|closed)|timed? ?out"
            r"|operation too slow|network is unreachable|no route to host|early eof"
            r"|hung up unexpectedly|rpc failed|unexpected disconnect|ssl_error|gnutls|recv failure"
            r"|empty reply|temporary failure|kex_exchange",
        ),
    )
)

_HINTS: dict[type[AgentFailure], str] = {
    AuthenticationFailed: "refused the credentials: {remedy}",
    InvalidDefinition: "does not exist, or these credentials may not see it: check the URL; "
    "a private repository needs a connection of type git",
    Unavailable: "cannot be reached",
    RateLimited: "asks to wait",
    PolicyViolation: "rejects the push",
    AgentFailed: "failed",
}
_OWNERSHIP = (
    "belongs to another user than this worker's, so git refuses to read it: give the worker's user "
    "a clone of its own, or name the repository by a URL that a server answers"
)


def remote_failure(error: GitError, url: str, conn_id: str = "") -> AgentFailure:
    """Return what the failure of a call to the repository ``url`` means.

    :param error: the failure; its words are kept as the vendor's.
    :param url: the repository, as users know it.
    :param conn_id: the connection whose credentials were used, if any.
    """
    failure = _class_of(error)
    if "dubious ownership" in error.stderr:
        hint = _OWNERSHIP
    else:
        hint = _HINTS[failure].format(remedy=_remedy(conn_id))
    reason = f"repository {url} {hint} ({error.reason})"
    return failure(reason, raw=error.stderr or None)


def _class_of(error: GitError) -> type[AgentFailure]:
    if error.timed_out:
        return Unavailable
    for failure, pattern in _CLASSES:
        if pattern.search(error.stderr or error.reason):
            return failure
    return AgentFailed


def _remedy(conn_id: str) -> str:
    if conn_id:
        return f"check the login and password (or key) of the connection {conn_id!r}"
    return (
        "name a connection of type git that may use it, in the workflow's repository.connection or "
        "the operator's repository_conn_id"
    )
