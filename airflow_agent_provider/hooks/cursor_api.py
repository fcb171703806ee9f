"""What is said to Cursor's Cloud Agents API v1 and what its answers mean; nothing is sent here.

Each conversation is a generator that yields what to send (:class:`Call`) or how long to wait
(:class:`Pause`), receives each :class:`Answer`, and returns its result. So the blocking client of
a worker and the asynchronous one of a trigger share every line of it.

Source: https://cursor.com/docs/cloud-agent/api/endpoints (public beta), read in November 2026.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

from airflow_agent_provider.agents.contract import Usage
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    ContextExhausted,
    Interrupted,
    InvalidDefinition,
    QuotaExhausted,
    RateLimited,
    Unavailable,
)
from airflow_agent_provider.hooks.agent import AgentPage, HostedRun, ListedAgent

#: Seconds until an answer must come. Creating an agent answers only once its machine is up, which
#: took about a minute where it was measured.
READ_TIMEOUT = 30.0
CREATE_TIMEOUT = 180.0
#: How often a call is sent where no answer comes, and the seconds before the second try.
TRIES = 3
FIRST_PAUSE = 0.5
#: Agents on a page of the list: Cursor's maximum.
PAGE_LENGTH = 100

_ACTIVE = {"CREATING", "RUNNING"}
_ENDED = {"FINISHED", "ERROR", "CANCELLED", "EXPIRED"}
_RAW_LENGTH = 2000
#: What the user can put into a step's ``options``, and the field of the request it becomes.
_OPTIONS = {"auto_create_pr": "autoCreatePR", "mcp_servers": "mcpServers", "mode": "mode"}
#: Options that are read elsewhere: with the model, by the wait, and before all of this.
_OTHER_OPTIONS = {"model_params", "poll_interval", "hosted"}

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request.

    :param method: the HTTP method.
    :param path: the path below the base URL, with its query.
    :param body: JSON values to send.
    :param timeout: seconds until an answer must come; None for the usual ones.
    """

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Pause:
    """A wait between two requests.

    :param seconds: how long.
    """

    seconds: float


@dataclass(frozen=True)
class Answer:
    """One answer, its text already free of the key.

    :param status: the HTTP status.
    :param text: the body.
    :param headers: the headers, with names in lower case.
    """

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the request was granted."""
        return 200 <= self.status < 300

    @property
    def error(self) -> Mapping[str, Any]:
        """The ``error`` object of a refusal, empty if there is none."""
        try:
            body = json.loads(self.text)
        except ValueError:
            return {}
        error = body.get("error") if isinstance(body, dict) else None
        return error if isinstance(error, dict) else {}

    @property
    def code(self) -> str:
        """The machine-readable error code of a refusal."""
        return str(self.error.get("code") or "")


class NoAnswer(Exception):
    """No answer came: refused, cut off or too late. The request may have been carried out."""


Flow = Generator[Call | Pause, Answer, T]


@dataclass(frozen=True)
class Submission:
    """What :func:`submit` starts.

    :param agent_id: the id that we chose.
    :param prompt: what to do.
    :param repository: the repository's URL.
    :param ref: the branch to start from.
    :param name: what users see at Cursor.
    :param model: the model's id; None takes the account's default.
    :param options: the step's options for Cursor.
    :param after: id of a run that ended with success but was found wanting.
    """

    agent_id: str
    prompt: str
    repository: str
    ref: str
    name: str
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of the request that creates the agent.

        :raises InvalidDefinition: if an option is unknown.
        """
        unknown = sorted(set(self.options) - set(_OPTIONS) - _OTHER_OPTIONS)
        if unknown:
            raise InvalidDefinition(
                f"Cursor knows no option {', '.join(map(repr, unknown))}; "
                f"there are: {', '.join(sorted(_OTHER_OPTIONS | set(_OPTIONS)))}"
            )
        repo = {"url": without_credentials(self.repository)}
        if self.ref:
            repo["startingRef"] = self.ref
        body: dict[str, Any] = {
            "agentId": self.agent_id,
            "prompt": {"text": self.prompt},
            "name": self.name,
            "repos": [repo],
        }
        if self.model:
            body["model"] = {"id": self.model}
            if self.options.get("model_params"):
                body["model"]["params"] = self.options["model_params"]
        for option, name in _OPTIONS.items():
            if option in self.options:
                body[name] = self.options[option]
        return body


def submit(wanted: Submission) -> Flow[HostedRun]:
    """Create the agent, or attach to the one that has its id.

    A request whose answer was lost is sent again: the id that we chose makes Cursor refuse a
    second agent, and we attach to the first.
    """
    call = Call("POST", "/v1/agents", wanted.body(), CREATE_TIMEOUT)
    answer = yield from _patiently(call)
    if answer.status == 409 and answer.code == "agent_id_conflict":
        return (yield from _attach(wanted))
    body = granted(answer, "create an agent")
    return parse_run(wanted.agent_id, _object(body, "run"))


def get_run(agent_id: str, run_id: str) -> Flow[HostedRun]:
    """Return where a run stands; with its tokens and cost once it has ended."""
    answer = yield from _patiently(Call("GET", f"/v1/agents/{agent_id}/runs/{run_id}"))
    body = granted(answer, f"read the run {run_id}")
    repository = ""
    if len(_branches(body)) > 1:
        agent = granted((yield from _patiently(Call("GET", f"/v1/agents/{agent_id}"))), "read")
        repository = str((agent.get("repos") or [{}])[0].get("url") or "")
    usage = None
    if str(body.get("status")) in _ENDED:
        usage = yield from _usage(agent_id, run_id)
    return parse_run(agent_id, body, repository, usage)


def look(agent_id: str, run_id: str) -> Flow[HostedRun]:
    """Return where a run stands, by one request: without its usage, and its branch is a guess
    where the agent works on several repositories.
    """
    answer = yield Call("GET", f"/v1/agents/{agent_id}/runs/{run_id}")
    return parse_run(agent_id, granted(answer, f"read the run {run_id}"))


def list_agents(cursor: str = "") -> Flow[AgentPage]:
    """Return a page of the account's agents, newest first; archived ones are left out.

    :param cursor: where it begins, as the page before told.
    """
    query = {"limit": str(PAGE_LENGTH), "includeArchived": "false"}
    if cursor:
        query["cursor"] = cursor
    answer = yield Call("GET", f"/v1/agents?{urlencode(query)}")
    return parse_page(granted(answer, "list the agents"))


def cancel(agent_id: str, run_id: str, tries: int = TRIES) -> Flow[bool]:
    """End a run; return whether it was under way: that it has ended, or is gone, is no failure."""
    call = Call("POST", f"/v1/agents/{agent_id}/runs/{run_id}/cancel")
    answer = yield from _patiently(call, tries)
    if answer.status == 404 or answer.code == "run_not_cancellable":
        return False
    granted(answer, f"cancel the run {run_id}")
    return True


def who_am_i() -> Flow[str]:
    """Return the name of the key, as Cursor knows it."""
    body = granted((yield from _patiently(Call("GET", "/v1/me"))), "read the key's account")
    return str(body.get("apiKeyName") or body.get("userEmail") or "the key")


def granted(answer: Answer, wish: str) -> dict[str, Any]:
    """Return the body of an answer that grants the request.

    :param answer: the answer.
    :param wish: what we asked for, as it stands in the reason of a failure.
    :raises AgentFailure: if the request was refused.
    """
    if not answer.ok:
        raise refusal(answer, wish)
    try:
        body = json.loads(answer.text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Unavailable(
            f"what answers at the connection's host is not Cursor's API (asked to {wish}); "
            f"check the host",
            raw=answer.text[:_RAW_LENGTH],
        )
    return body


#: Error codes and words of a refusal or of a failed run, and what they mean; the first match wins.
_WORDS: tuple[tuple[re.Pattern[str], type[AgentFailure]], ...] = (
    (re.compile(r"quota|usage.?limit|spend.?limit|billing|payment|credit"), QuotaExhausted),
    (re.compile(r"rate.?limit|too many requests"), RateLimited),
    (
        re.compile(r"unauthori[sz]ed|invalid.?api.?key|authentication|forbidden"),
        AuthenticationFailed,
    ),
    (re.compile(r"context.?(length|window|limit)|prompt.?too.?long"), ContextExhausted),
    (re.compile(r"unavailable|overloaded|internal.?(server)?.?error|bad.?gateway"), Unavailable),
)
_OF_THE_DEFINITION = re.compile(r"repo|\bref\b|_ref\b|starting.?ref|branch|model|\bmode\b")


def refusal(answer: Answer, wish: str) -> AgentFailure:
    """Return the failure that a refused request is."""
    raw = _raw(answer)
    said = f"Cursor refused to {wish} (HTTP {answer.status})"
    words = f"{answer.code} {answer.error.get('message') or ''}".lower()
    status = answer.status
    if status in (401, 403):
        return AuthenticationFailed(
            f"{said}; check the API key of the connection and what its plan and its "
            f"repository access allow",
            raw=raw,
        )
    if status == 402 or (status == 429 and _WORDS[0][0].search(answer.code.lower())):
        return QuotaExhausted(f"{said}: the account's usage is exhausted", raw=raw)
    if status == 429:
        wait = retry_after(answer.headers.get("retry-after"), datetime.now(UTC))
        return RateLimited(f"{said}: too many requests", raw=raw, retry_after=wait)
    if status >= 500 or status in (408, 425):
        return Unavailable(f"{said}: it cannot serve now", raw=raw)
    if status in (400, 404, 422) and "create" in wish and _OF_THE_DEFINITION.search(words):
        return InvalidDefinition(
            f"{said}; check the step's repository, ref, model and options", raw=raw
        )
    return AgentFailed(said, raw=raw)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks to wait; None if it says nothing.

    :param value: seconds or an HTTP date (RFC 9110, section 10.2.3).
    :param now: the time to reckon from, with its zone.
    """
    if not value:
        return None
    text = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


def parse_run(
    agent_id: str,
    body: Mapping[str, Any],
    repository: str = "",
    usage: Usage | None = None,
) -> HostedRun:
    """Return the run that ``body`` describes.

    :param agent_id: the agent's id.
    :param body: the run as Cursor writes it.
    :param repository: URL that picks the branch where the agent worked on several repositories.
    :param usage: tokens and cost, as far as they are known.
    """
    run_id, status = str(body.get("id") or ""), str(body.get("status") or "")
    if not run_id or not status:
        raise AgentFailed(
            "Cursor described a run without its id or status", raw=json.dumps(body)[:_RAW_LENGTH]
        )
    return HostedRun(
        agent_id=agent_id,
        run_id=run_id,
        status=status,
        ended=status in _ENDED,
        updated_at=str(body.get("updatedAt") or ""),
        failure=_run_failure(run_id, status, body),
        message=str(body.get("result") or ""),
        branch=_branch(body, repository),
        usage=usage,
    )


def parse_page(body: Mapping[str, Any]) -> AgentPage:
    """Return the page of agents that ``body`` describes.

    An agent is active while a turn runs, is about to start or waits for background work. So a run
    may be over whose agent is active, and the newest run need not be the one that is waited for.
    """
    items = [item for item in _list(body.get("items")) if isinstance(item, dict) and item.get("id")]
    agents = {
        str(item["id"]): ListedAgent(
            status=str(item.get("status") or ""),
            active=item.get("status") == "ACTIVE",
            updated_at=str(item.get("updatedAt") or ""),
            latest_run=str(item.get("latestRunId") or ""),
        )
        for item in items
    }
    return AgentPage(agents, str(body.get("nextCursor") or "") or None)


def parse_usage(body: Mapping[str, Any], run_id: str) -> Usage | None:
    """Return the tokens and cost of one run; None if Cursor does not say.

    The totals stand for the whole agent, so they are taken only where no run is listed, as in an
    answer that was asked for one run alone.
    """
    runs = [run for run in body.get("runs") or [] if isinstance(run, dict)]
    entry = next((run for run in runs if run.get("id") == run_id), None)
    if entry is None and not runs:
        entry = {"usage": body.get("totalUsage"), "cost": body.get("cost")}
    tokens = (entry or {}).get("usage")
    if not isinstance(tokens, dict):
        return None
    cost = (entry or {}).get("cost")
    cents = cost.get("chargedCents") if isinstance(cost, dict) else None
    written = _count(tokens.get("outputTokens"))
    parts = sum(
        _count(tokens.get(name)) for name in ("inputTokens", "cacheReadTokens", "cacheWriteTokens")
    )
    # Whether the input counts the cached tokens is not documented; the total settles it.
    total = _count(tokens.get("totalTokens"))
    return Usage(
        input_tokens=total - written if total >= written and total else parts,
        cached_tokens=_count(tokens.get("cacheReadTokens")),
        output_tokens=written,
        cost=cents / 100 if isinstance(cents, int | float) else None,
    )


def newest_event(lines: Iterable[str], since: str) -> str:
    """Return the id of the last event among the lines of a run's event stream, else ``since``.

    Heartbeats and the status that each connection repeats carry no id, so they are no sign of
    life.
    """
    newest = since
    for line in lines:
        if line.startswith("id:"):
            newest = line[3:].strip() or newest
    return newest


def without_credentials(url: str) -> str:
    """Return ``url`` without the user and password in it: an agent gets no git credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def same_repository(one: str, other: str) -> bool:
    """Whether two URLs name the same repository; Cursor's answers leave out the scheme."""
    return _repository_key(one) == _repository_key(other)


def _repository_key(url: str) -> str:
    bare = re.sub(r"^[a-z+]+://", "", url.strip(), flags=re.IGNORECASE).rpartition("@")[2]
    return bare.rstrip("/").removesuffix(".git").rstrip("/").lower()


def _attach(wanted: Submission) -> Flow[HostedRun]:
    """Return the agent's newest run, or a follow-up where that one was of no use."""
    seen = ""
    for attempt in range(TRIES):
        newest = yield from _newest_run(wanted.agent_id)
        if newest is None:
            # Another attempt's request is creating the agent at this moment.
            yield _pause(attempt)
            continue
        if not newest.ended or _is_good(newest, wanted) or (seen and newest.run_id != seen):
            return newest
        seen = newest.run_id
        run = yield from _follow_up(wanted)
        if run is not None:
            return run
        yield _pause(attempt)
    raise Unavailable(
        f"Cursor has the agent {wanted.agent_id}, but gave no run of it to attach to; "
        f"look at https://cursor.com/agents/{wanted.agent_id}"
    )


def _is_good(run: HostedRun, wanted: Submission) -> bool:
    return run.failure is None and run.run_id != wanted.after


def _newest_run(agent_id: str) -> Flow[HostedRun | None]:
    agent = granted((yield from _patiently(Call("GET", f"/v1/agents/{agent_id}"))), "attach")
    run_id = agent.get("latestRunId")
    if not run_id:
        return None
    return (yield from get_run(agent_id, str(run_id)))


def _follow_up(wanted: Submission) -> Flow[HostedRun | None]:
    """Start a run in the agent's conversation; None if it must be looked up which one runs."""
    path = f"/v1/agents/{wanted.agent_id}/runs"
    try:
        answer = yield Call("POST", path, {"prompt": {"text": wanted.prompt}}, CREATE_TIMEOUT)
    except NoAnswer:
        # Not sent again blindly: it may have been carried out, and then the newest run shows it.
        return None
    if answer.status == 409 and answer.code == "agent_busy":
        return None
    body = granted(answer, "continue the agent's conversation")
    return parse_run(wanted.agent_id, _object(body, "run"))


def _usage(agent_id: str, run_id: str) -> Flow[Usage | None]:
    try:
        answer = yield from _patiently(Call("GET", f"/v1/agents/{agent_id}/usage?runId={run_id}"))
        return parse_usage(granted(answer, "read the usage"), run_id)
    except (NoAnswer, AgentFailure):
        # A run that has ended must not fail over its bill; unknown is a value of its own.
        return None


def _patiently(call: Call, tries: int = TRIES) -> Flow[Answer]:
    """Send a call that can be repeated without harm; again if no answer comes."""
    for attempt in range(tries):
        try:
            return (yield call)
        except NoAnswer:
            if attempt == tries - 1:
                raise
            yield _pause(attempt)
    raise AssertionError("unreachable")


def _pause(attempt: int) -> Pause:
    # Jitter keeps many steps that lost the same server from returning to it all at once.
    return Pause(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))


def _run_failure(run_id: str, status: str, body: Mapping[str, Any]) -> AgentFailure | None:
    if status == "CANCELLED":
        return Interrupted(f"Cursor's run {run_id} was cancelled")
    if status not in ("ERROR", "EXPIRED"):
        return None
    error = body.get("error")
    parts = (
        [error.get("code"), error.get("message")]
        if isinstance(error, dict)
        else [body.get("errorCode"), body.get("errorMessage") or error]
    )
    raw = ": ".join(str(part) for part in parts if part) or str(body.get("result") or "")
    words = raw.lower()
    kind = next((kind for pattern, kind in _WORDS if pattern.search(words)), AgentFailed)
    return kind(f"Cursor's run {run_id} ended as {status}", raw=raw[:_RAW_LENGTH] or None)


def _branch(body: Mapping[str, Any], repository: str) -> str | None:
    branches = _branches(body)
    if len(branches) > 1 and repository:
        branches = [b for b in branches if same_repository(str(b.get("repoUrl") or ""), repository)]
    return str(branches[0]["branch"]) if branches else None


def _branches(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    git = body.get("git")
    entries = git.get("branches") if isinstance(git, dict) else None
    return [entry for entry in entries or [] if isinstance(entry, dict) and entry.get("branch")]


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    # The documentation wraps a new run in an object; both shapes are read.
    return value if isinstance(value, dict) else body


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int:
    return max(0, int(value)) if isinstance(value, int | float) else 0


def _raw(answer: Answer) -> str:
    message = str(answer.error.get("message") or "")
    words = ": ".join(part for part in (answer.code, message) if part)
    return (words or answer.text)[:_RAW_LENGTH]
