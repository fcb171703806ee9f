"""Cursor's agents: at Cursor, where they push to a branch of the repository, or on the worker."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow_agent_provider.agents.failures import (
    AgentFailure,
    AuthenticationFailed,
    InvalidDefinition,
    Unavailable,
)
from airflow_agent_provider.hooks import cursor_api as api
from airflow_agent_provider.hooks.agent import (
    AgentPage,
    HostedAgentHook,
    HostedLimits,
    HostedRun,
    LocalAgentHook,
    ask_version,
)
from airflow_agent_provider.hooks.cursor_local import (
    INSTALL,
    CursorOptions,
    CursorSession,
    Vendor,
    find_program,
)
from airflow_agent_provider.hooks.local_session import opened
from airflow_agent_provider.hooks.vendor import read_options

if TYPE_CHECKING:
    import httpx
    from airflow.sdk import Connection

    from airflow_agent_provider.agents.contract import AgentTask

DEFAULT_URL = "https://api.cursor.com"
#: What Cursor's program on the worker talks to.
DEFAULT_BACKEND = "https://api2.cursor.sh"
#: Seconds between two looks at a run.
DEFAULT_POLL_INTERVAL = 10.0
#: What Cursor grants by default.
DEFAULT_REQUESTS_PER_MINUTE = 20.0
CONNECT_TIMEOUT = 10.0
#: Seconds of an event stream that are listened to for a sign of life, and bytes of it at most.
LISTEN_TIMEOUT = 5.0
LISTEN_BYTES = 4_000_000
#: Any fixed value serves; another one would give every running step a second agent.
_NAMESPACE = uuid.UUID("6f0a6c5c-6f4d-5d0a-9d5e-4b1c0a8f7e21")

T = TypeVar("T")


@dataclass(frozen=True)
class _Account:
    """What the connection holds.

    :param url: base URL of the API.
    :param key: the API key.
    :param model: the model where a step names none.
    :param poll_interval: seconds between two looks at a run.
    :param requests_per_minute: how many requests a triggerer may send in a minute.
    """

    url: str
    key: str = field(repr=False)
    model: str | None
    poll_interval: float
    requests_per_minute: float

    @property
    def backend(self) -> str:
        """The base URL for Cursor's program on the worker: the same where a host is given."""
        return DEFAULT_BACKEND if self.url == DEFAULT_URL else self.url


class CursorHook(HostedAgentHook, LocalAgentHook):
    """Runs Cursor at Cursor, or on the worker where the code must stay there.

    At Cursor it is reached by the Cloud Agents API v1
    (https://cursor.com/docs/cloud-agent/api/endpoints), on the worker by the package
    ``cursor-sdk``; :meth:`runs_hosted` says where.

    The connection, of type ``cursor``: the password is the API key; the host, if any, the base
    URL; the extras ``model``, ``poll_interval`` in seconds, ``hosted``, and
    ``requests_per_minute``: how many requests one triggerer may send in any minute (20 by default,
    as Cursor grants).

    Options of a step: ``hosted``; at Cursor ``auto_create_pr``, ``mode``, ``mcp_servers``,
    ``model_params`` (as the API's fields of these names) and ``poll_interval``; on the worker those
    of :class:`CursorOptions`.

    :param conn_id: id of the connection.
    """

    agent: ClassVar[str] = "cursor"
    conn_type: ClassVar[str] = "cursor"
    conn_name_attr: ClassVar[str] = "conn_id"
    default_conn_name: ClassVar[str] = "cursor_default"
    hook_name: ClassVar[str] = "Cursor"

    def __init__(self, conn_id: str | None = None) -> None:
        super().__init__(conn_id)
        self._account_read: _Account | None = None
        self._async_client: httpx.AsyncClient | None = None

    def runs_hosted(self, options: Mapping[str, Any], repository_url: str | None) -> bool:
        """Return whether a step runs at Cursor, and not on the worker.

        The step's option ``hosted`` decides, else the connection's extra of that name, else whether
        there is a repository that Cursor can clone.

        :param options: the step's.
        :param repository_url: the run's remote; None or empty without one.
        :raises InvalidDefinition: if it must run at Cursor and has no remote.
        """
        wanted = _choice(options.get("hosted"), "the step's option hosted")
        if wanted is None:
            where = f"the extra hosted of the connection {self.conn_id!r}"
            wanted = _choice(self.connection().extra_dejson.get("hosted"), where)
        if wanted and not repository_url:
            raise InvalidDefinition(
                "Cursor's cloud works on a repository that it can clone; give the workflow a "
                "repository, or the step 'options: {hosted: false}'"
            )
        return bool(repository_url) if wanted is None else wanted

    def start(self, task: AgentTask) -> CursorSession:
        """Start Cursor on the worker for ``task``, or continue ``task.session``.

        A session of Cursor's cloud cannot be continued here: a new one starts, and says so.

        :raises AuthenticationFailed: without connection or key.
        :raises InvalidDefinition: for options that do not exist, without a model, where Cursor's
            SDK is not installed, and where the sandbox cannot work.
        :raises AgentFailure: if Cursor does not start.
        """
        options = read_options(CursorOptions, "Cursor on the worker", task.options)
        account = self._account()
        model = task.model or account.model
        if not model:
            raise InvalidDefinition(
                "on the worker, Cursor must be told the model; name one in the step, or in the "
                f"extra 'model' of the connection {self.conn_id!r}"
            )
        vendor = Vendor(self.conn_id, account.backend, account.key, model)
        return opened(CursorSession(task, vendor, options))

    def program_version(self) -> str:
        """Start the program that comes with the SDK, which tells how it is used."""
        ask_version([*find_program().command, "--help"], "Cursor", INSTALL)
        return f"cursor-sdk {version('cursor-sdk')} starts"

    def agent_id_for(self, identity: str) -> str:
        """Return the ``bc-`` id that ``identity`` always gets."""
        return f"bc-{uuid.uuid5(_NAMESPACE, identity)}"

    def submit(
        self,
        *,
        agent_id: str,
        prompt: str,
        repository: str,
        ref: str,
        name: str,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        after: str | None = None,
    ) -> HostedRun:
        """Start the agent's run, or attach to the one that was started for ``agent_id`` before.

        Takes up to some minutes: Cursor answers once the agent's machine is up.
        See :meth:`HostedAgentHook.submit`.

        :raises AgentFailure: if Cursor refuses or cannot be reached.
        """
        wanted = api.Submission(
            agent_id=agent_id,
            prompt=prompt,
            repository=repository,
            ref=ref,
            name=name,
            model=model or self._account().model,
            options=options or {},
            after=after,
        )
        return self._run(api.submit(wanted))

    def get_run(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands; with its tokens and cost once it has ended."""
        return self._run(api.get_run(agent_id, run_id))

    async def aget_run(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands, inside a trigger."""
        return await self._arun(api.get_run(agent_id, run_id))

    def cancel(self, agent_id: str, run_id: str) -> None:
        """End the run; harmless if it has ended already."""
        self._run(api.cancel(agent_id, run_id))

    async def alook(self, agent_id: str, run_id: str) -> HostedRun:
        """Return where the run stands, by one request inside a trigger."""
        return await self._arun(api.look(agent_id, run_id))

    async def alist(self, cursor: str = "") -> AgentPage:
        """Return a page of the account's agents, by one request inside a trigger."""
        return await self._arun(api.list_agents(cursor))

    async def acancel(self, agent_id: str, run_id: str) -> bool:
        """End the run, by one request inside a trigger; return whether it was under way."""
        return await self._arun(api.cancel(agent_id, run_id, tries=1))

    def poll_interval(self, options: Mapping[str, Any] | None = None) -> float:
        """Return the seconds between two looks at a run: the option, else the connection's.

        :raises InvalidDefinition: if the option is not a positive number.
        """
        if options and options.get("poll_interval") is not None:
            return _seconds(options["poll_interval"], "the step's option poll_interval")
        return self._account().poll_interval

    async def alimits(self) -> HostedLimits:
        """Return what the connection's key may ask for, inside a trigger."""
        account = await self._aaccount()
        name = hashlib.sha256(f"{account.url} {account.key}".encode()).hexdigest()
        return HostedLimits(
            account=f"{self.agent} {name}",
            requests_per_minute=account.requests_per_minute,
            poll_interval=account.poll_interval,
        )

    def sign_of_life(self, agent_id: str, run_id: str, since: str = "") -> str:
        """Return the id of the newest event of the run; Cursor stamps a run only when it changes
        its status, so a busy run looks like a stalled one but for its events.

        :raises AgentFailure: if the stream does not open: that is no silence of the agent.
        """
        import httpx

        deadline = time.monotonic() + LISTEN_TIMEOUT
        newest, read, opened = since, 0, False
        try:
            with (
                self._client() as client,
                client.stream("GET", **_listening(agent_id, run_id, since)) as answer,
            ):
                opened = True
                if not answer.is_success:
                    answer.read()
                    return self._no_sign(answer, run_id, since)
                for line in answer.iter_lines():
                    newest, read = api.newest_event((line,), newest), read + len(line)
                    if read > LISTEN_BYTES or time.monotonic() > deadline:
                        break
        except httpx.HTTPError as error:
            if not opened:
                raise self._unreachable(_no_answer(error)) from error
            # What was heard until then counts; the caller judges by it.
        return newest

    async def asign_of_life(self, agent_id: str, run_id: str, since: str = "") -> str:
        """Return the id of the newest event of the run, by one request inside a trigger.

        :raises AgentFailure: if the stream does not open: that is no silence of the agent.
        """
        import httpx

        newest, read, opened = since, 0, False
        try:
            async with asyncio.timeout(LISTEN_TIMEOUT + CONNECT_TIMEOUT):
                client = await self._aclient()
                async with client.stream("GET", **_listening(agent_id, run_id, since)) as answer:
                    opened = True
                    if not answer.is_success:
                        await answer.aread()
                        return self._no_sign(answer, run_id, since)
                    async for line in answer.aiter_lines():
                        newest, read = api.newest_event((line,), newest), read + len(line)
                        if read > LISTEN_BYTES:
                            break
        except (httpx.HTTPError, TimeoutError) as error:
            if not opened:
                raise self._unreachable(_no_answer(error)) from error
            # What was heard until then counts; the caller judges by it.
        return newest

    def test_connection(self) -> tuple[bool, str]:
        """Ask Cursor whose key it is."""
        try:
            return True, f"Cursor accepts the key ({self._run(api.who_am_i())})"
        except AgentFailure as failure:
            return False, str(failure)

    async def aclose(self) -> None:
        """Close the client that the trigger's calls share."""
        client, self._async_client = self._async_client, None
        if client is not None:
            await client.aclose()

    def _account(self) -> _Account:
        if self._account_read is None:
            connection = self.connection()
            self._account_read = self._read_account(connection, connection.extra_dejson)
        return self._account_read

    async def _aaccount(self) -> _Account:
        if self._account_read is None:
            connection = await self.aconnection()
            # Its blocking twin talks to the supervisor, which can deadlock inside a trigger.
            extra = await connection.aextra_dejson()
            self._account_read = self._read_account(connection, extra)
        return self._account_read

    def _read_account(self, connection: Connection, extra: Mapping[str, Any]) -> _Account:
        key = (connection.password or "").strip()
        if not key:
            raise AuthenticationFailed(
                f"the connection {self.conn_id!r} has no password; put Cursor's API key there "
                f"(made at https://cursor.com/dashboard/integrations)"
            )
        where = f"of the connection {self.conn_id!r}"
        rate = extra.get("requests_per_minute") or DEFAULT_REQUESTS_PER_MINUTE
        poll = extra.get("poll_interval") or DEFAULT_POLL_INTERVAL
        return _Account(
            url=_base_url(connection, self.conn_id),
            key=key,
            model=str(extra.get("model") or "") or None,
            poll_interval=_seconds(poll, f"the extra poll_interval {where}"),
            requests_per_minute=_rate(rate, f"the extra requests_per_minute {where}"),
        )

    def _client(self) -> httpx.Client:
        import httpx

        return httpx.Client(**_client_options(self._account()))

    async def _aclient(self) -> httpx.AsyncClient:
        import httpx

        if self._async_client is None:
            self._async_client = httpx.AsyncClient(**_client_options(await self._aaccount()))
        return self._async_client

    def _run(self, flow: api.Flow[T]) -> T:
        """Hold a conversation, blocking."""
        import httpx

        with self._client() as client:
            try:
                step = next(flow)
                while True:
                    if isinstance(step, api.Pause):
                        time.sleep(step.seconds)
                        step = next(flow)
                        continue
                    try:
                        response = client.request(**_request(step))
                    except httpx.HTTPError as error:
                        step = flow.throw(_no_answer(error))
                    else:
                        step = flow.send(self._answer(response))
            except StopIteration as stop:
                result: T = stop.value
                return result
            except api.NoAnswer as error:
                raise self._unreachable(error) from error

    async def _arun(self, flow: api.Flow[T]) -> T:
        """Hold a conversation, inside a trigger."""
        import httpx

        client = await self._aclient()
        try:
            step = next(flow)
            while True:
                if isinstance(step, api.Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    response = await client.request(**_request(step))
                except httpx.HTTPError as error:
                    step = flow.throw(_no_answer(error))
                else:
                    step = flow.send(self._answer(response))
        except StopIteration as stop:
            result: T = stop.value
            return result
        except api.NoAnswer as error:
            raise self._unreachable(error) from error

    def _answer(self, response: httpx.Response) -> api.Answer:
        # A vendor may repeat the key in its error; it must reach no log and no outcome.
        text = response.text.replace(self._account().key, "***")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return api.Answer(response.status_code, text, headers)

    def _no_sign(self, response: httpx.Response, run_id: str, since: str) -> str:
        # A stream that is gone, or an event that it no longer knows, tells nothing. Any other
        # refusal hides whether the agent works, so it must not pass for silence.
        if response.status_code in (400, 404, 410):
            return since
        raise api.refusal(self._answer(response), f"stream the run {run_id}")

    def _unreachable(self, error: api.NoAnswer) -> Unavailable:
        return Unavailable(
            f"Cursor's API at {self._account().url} gave no answer; if that lasts, check the "
            f"host of the connection {self.conn_id!r} and the network",
            raw=str(error),
        )


def _client_options(account: _Account) -> dict[str, Any]:
    import httpx

    return {
        "base_url": account.url,
        # Basic with the key as the user and no password, as Cursor documents it.
        "auth": httpx.BasicAuth(account.key, ""),
        "timeout": httpx.Timeout(api.READ_TIMEOUT, connect=CONNECT_TIMEOUT),
        "headers": {"Accept": "application/json"},
    }


def _request(call: api.Call) -> dict[str, Any]:
    import httpx

    request: dict[str, Any] = {
        "method": call.method,
        "url": call.path,
        "timeout": httpx.Timeout(call.timeout or api.READ_TIMEOUT, connect=CONNECT_TIMEOUT),
    }
    if call.body is not None:
        request["json"] = call.body
    return request


def _listening(agent_id: str, run_id: str, since: str) -> dict[str, Any]:
    import httpx

    headers = {"Accept": "text/event-stream"}
    if since:
        headers["Last-Event-ID"] = since
    return {
        "url": f"/v1/agents/{agent_id}/runs/{run_id}/stream",
        "headers": headers,
        "timeout": httpx.Timeout(LISTEN_TIMEOUT, connect=CONNECT_TIMEOUT),
    }


def _no_answer(error: Exception) -> api.NoAnswer:
    return api.NoAnswer(f"{type(error).__name__}: {error}".rstrip(": "))


def _base_url(connection: Connection, conn_id: str) -> str:
    import httpx

    host = (connection.host or "").strip()
    if not host:
        return DEFAULT_URL
    text = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise InvalidDefinition(
            f"the host of the connection {conn_id!r} is no base URL of an API; "
            f"leave it empty for {DEFAULT_URL}, or give http://… or https://…"
        )
    if connection.port and url.port is None:
        url = url.copy_with(port=connection.port)
    return str(url).rstrip("/").removesuffix("/v1")


def _choice(value: Any, where: str) -> bool | None:
    """Return a choice that is given as YAML's or the connection form's, None if there is none."""
    if value in (None, ""):
        return None
    words = {"true": True, "false": False}
    chosen = words.get(str(value).strip().lower())
    if chosen is None:
        raise InvalidDefinition(f"{where} must be true or false, not {value!r}")
    return chosen


def _seconds(value: Any, where: str) -> float:
    seconds = _number(value)
    if not 0 < seconds < 3600:
        raise InvalidDefinition(f"{where} must be a number of seconds above 0, not {value!r}")
    return seconds


def _rate(value: Any, where: str) -> float:
    rate = _number(value)
    if not 0 < rate < 1_000_000:
        raise InvalidDefinition(f"{where} must be a number above 0, not {value!r}")
    return rate


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
