"""Cursor at work on the worker: its program, its conversation, its turns.

The package ``cursor-sdk`` starts a program, the bridge, that holds the conversation, asks Cursor's
backend for the model, and does what the model wants in the workspace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentTask,
    Network,
    Session,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    Interrupted,
    InvalidDefinition,
)
from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.hooks import cursor_backend as backend
from airflow_agent_provider.hooks.cursor_events import (
    Trouble,
    TurnReader,
    is_heartbeat,
    trouble,
)
from airflow_agent_provider.hooks.cursor_store import Store
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream, new_key

if TYPE_CHECKING:
    import httpx
    from cursor_sdk import AgentOptions, LocalAgentOptions
    from cursor_sdk.asyncio import AsyncAgent, AsyncBridge, AsyncClient, AsyncRun

#: Seconds for Cursor to end by itself before it is killed.
_CLOSE_SECONDS = 5.0
#: The port at which the bridge listens in the box, where no other program does.
_PORT = 47114
#: What this session's conversations are called; others are not taken from a checkpoint.
_ID = re.compile(r"agent-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Tools that lead out of the box by the vendor's servers.
_NETWORKED = ("webSearch", "webFetch", "fetch")
#: Bytes of the bridge's own words that are kept.
_WORDS = 4000

#: How the SDK is installed.
INSTALL = "install it on the worker with: pip install 'airflow-agent-provider[cursor]'"

#: Ends a prompt whose answer shall be structured: Cursor takes no schema.
_ANSWER = (
    "\n\nYour final message must be one JSON value of the schema below and nothing else: no words "
    "around it, no code fence.\n\n{schema}\n"
)
_FENCE = re.compile(r"^```(?:json)?\s*\n(?P<inside>.*)\n```$", re.DOTALL)


class CursorOptions(BaseModel):
    """What a step's ``options:`` may set for Cursor on the worker.

    :param hosted: chooses between the worker and Cursor's cloud; see ``CursorHook.runs_hosted``.
    :param mode: ``plan`` lets Cursor plan instead of work.
    :param model_params: parameters of the model, each ``{id: …, value: …}``.
    :param patience: seconds of nothing but failures of Cursor's backend, which its program answers
        by trying again, after which the attempt fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosted: bool | None = None
    mode: Literal["agent", "plan"] | None = None
    model_params: tuple[Mapping[str, str], ...] = ()
    patience: float = Field(default=120.0, gt=0)


@dataclass(frozen=True)
class Vendor:
    """How the connection reaches Cursor's backend.

    :param url: its base URL.
    """

    conn_id: str
    url: str
    key: str = field(repr=False)
    model: str


class CursorSession(LocalSession):
    """Cursor at work for one task. Made by :meth:`CursorHook.start`."""

    agent: ClassVar[str] = "cursor"
    title: ClassVar[str] = "Cursor"

    def __init__(self, task: AgentTask, vendor: Vendor, options: CursorOptions) -> None:
        super().__init__(task)
        self._vendor = vendor
        self._options = options
        self._loop = SessionLoop("cursor")
        self._bridge: AsyncBridge | None = None
        self._http: httpx.AsyncClient | None = None
        self._client: AsyncClient | None = None
        self._conversation: AsyncAgent | None = None
        self._run: AsyncRun | None = None
        self._launching: asyncio.Task[AsyncBridge] | None = None
        self._listening: asyncio.Task[None] | None = None
        #: The last that the bridge said, for the user where it ends.
        self._words = b""
        #: Takes a failure of the backend's to the turn under way.
        self._tell_turn: Callable[[Trouble], None] | None = None
        #: Whether an earlier attempt's run may still stand as active in the conversation's files.
        self._resumed = False

    def open(self) -> None:
        """Start the program and open the conversation."""
        with self._failures("start"):
            program = find_program()
            token = backend.AccessToken(self._vendor.url, self._vendor.key, self._vendor.conn_id)
            # Now, so that a key that is refused is told apart from all that may fail later.
            token.headers()
            box = self._open_box(program, self._upstream(token))
            if not box.boxed and self._task.access is Access.READ_ONLY:
                raise InvalidDefinition(
                    "access: read_only needs the sandbox: Cursor itself would let its commands "
                    "write; set [agents] sandbox = required"
                )
            box.write_wrapper(self._environment())
            seconds = self._patience()
            self._loop.run(self._start_program(), seconds, "starting Cursor")
            seconds = self._patience()
            self._conversation = self._loop.run(
                self._open_conversation(), seconds, "opening the session"
            )

    @property
    def session(self) -> Session | None:
        """The conversation, which is kept from its start."""
        if self._conversation is None:
            return None
        return Session("cursor", self._conversation.agent_id)

    @property
    def model(self) -> str | None:
        """The model that answers."""
        return self._vendor.model

    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let Cursor work on ``prompt``; see :meth:`AgentSession.turn`."""
        reader = TurnReader()
        text = prompt
        if output_schema is not None:
            text += _ANSWER.format(schema=json.dumps(dict(output_schema), indent=2))
        yield from self._tell()
        with self._failures("turn"):
            told = self._watch(
                self._loop.iterate(self._events(text)),
                trouble=trouble,
                patience=self._options.patience,
            )
            for event in told:
                yield from reader.events(event)
            if reader.status not in ("finished", "cancelled"):
                raise self._failure(reader)
        return AgentResult(
            status="completed" if reader.status == "finished" else "interrupted",
            message=reader.message,
            structured=_structured(reader.message) if output_schema is not None else None,
            session=self.session,
            usage=reader.usage,
            model=self._vendor.model,
        )

    def interrupt(self) -> None:
        """End the turn under way, and its running command with it."""
        run = self._run
        if run is not None:
            with contextlib.suppress(Exception):
                self._loop.run(run.cancel(), _CLOSE_SECONDS, "interrupting Cursor")

    def portable_files(self) -> Mapping[str, Path]:
        """Return the conversation's files, from which alone Cursor resumes."""
        if self._conversation is None:
            return {}
        return self._store(self._conversation.agent_id).portable_files()

    def _end(self) -> None:
        self._conversation = None
        try:
            with contextlib.suppress(Exception):
                self._loop.run(self._stop_program(), _CLOSE_SECONDS, "closing Cursor")
        finally:
            if self._box is not None:
                self._box.kill()
            with contextlib.suppress(Exception):
                self._loop.run(self._hear_out(), _CLOSE_SECONDS, "hearing Cursor out")
            self._loop.close()

    def _upstream(self, token: backend.AccessToken) -> Upstream:
        key = new_key()
        ends = backend.StreamEnds(self._hear)
        return Upstream(
            self._vendor.url,
            token.headers,
            backend.PATHS,
            # The token of the backend stays outside, as the key does.
            answers={backend.EXCHANGE: {"accessToken": key, "refreshToken": key}},
            tap=ends.tap,
            key=key,
        )

    def _environment(self) -> dict[str, str]:
        # Under a name that Cursor does not know for the loopback interface: it would let its
        # program and all commands of the agent's do without TLS certificates.
        url = self.box.model_url.replace("//127.0.0.1:", "//127.1:")
        # Else it asks another service for the models that there are, with the API key.
        catalog = json.dumps([{"id": self._vendor.model, "displayName": self._vendor.model}])
        return {"CURSOR_BACKEND_URL": url, "CURSOR_SDK_LOCAL_MODEL_CATALOG_JSON": catalog}

    def _store(self, session: str) -> Store:
        return Store(self._task.home, session)

    async def _start_program(self) -> None:
        import httpx
        from cursor_sdk.asyncio import AsyncClient

        self._launching = asyncio.create_task(self._launch())
        # Apart, since a launch that is broken off would leave its process to nobody.
        bridge = self._bridge = await asyncio.shield(self._launching)
        self._listening = asyncio.create_task(self._listen(bridge))
        inlet = self.box.inlet
        # Whatever proxies the worker has: the bridge is not behind them.
        way = httpx.AsyncHTTPTransport(uds=None if inlet is None else str(inlet))
        self._http = httpx.AsyncClient(transport=way, trust_env=False)
        self._client = AsyncClient(
            bridge.endpoint,
            # A turn lasts as long as the task lets it.
            stream_timeout=None,
            http_client=self._http,
            # Without it no run can be cancelled. There is no fallback: the key is always given.
            allow_api_key_env_fallback=True,
        )

    async def _launch(self) -> AsyncBridge:
        from cursor_sdk.asyncio import AsyncBridge

        bridge = await AsyncBridge.launch(
            [self.box.wrapper],
            workspace=self._task.workspace,
            state_root=self._task.home / "cursor" / "state",
            port=None if self.box.inlet is None else _PORT,
            timeout=self._patience(),
        )
        if bridge._tool_callback_server is not None:
            # For tools made in Python, of which there are none. Its end takes half a second.
            end = bridge._tool_callback_server.close
            threading.Thread(target=end, name="cursor callback end", daemon=True).start()
        return bridge

    async def _listen(self, bridge: AsyncBridge) -> None:
        """Read what the bridge says besides: it waits when nobody does."""
        if bridge.process is not None and bridge.process.stderr is not None:
            while words := await bridge.process.stderr.read(_WORDS):
                self._words = (self._words + words)[-_WORDS:]

    async def _stop_program(self) -> None:
        bridge, self._bridge = self._bridge, None
        http, self._http = self._http, None
        try:
            if http is not None:
                await http.aclose()
        finally:
            if bridge is not None:
                await self._end_bridge(bridge)

    async def _end_bridge(self, bridge: AsyncBridge) -> None:
        # Not by its own ``aclose``, which asks the bridge to end at a port of the worker's, where
        # there may be anybody: the boxed one listens elsewhere.
        process = bridge.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def _hear_out(self) -> None:
        """Wait for the end of what the bridge says, which whatever it started may keep open."""
        left = [task for task in (self._launching, self._listening) if task is not None]
        await asyncio.gather(*left, return_exceptions=True)

    async def _open_conversation(self) -> AsyncAgent:
        assert self._client is not None
        earlier = self._task.session
        if earlier is not None:
            why = f"the files of {earlier.id} are not here"
            if self._is_ours(earlier) and self._store(earlier.id).adopt(self._task.workspace):
                from cursor_sdk import AgentNotFoundError

                try:
                    agent = await self._client.agents.resume(earlier.id, self._settings(earlier.id))
                    self._resumed = True
                    return agent
                except AgentNotFoundError as error:
                    why = str(error)
            self._notices.append(f"The session cannot be continued, a new one starts: {why}")
        name = f"agent-{uuid.uuid4()}"
        return await self._client.agents.create(self._settings(name))

    def _is_ours(self, earlier: Session) -> bool:
        return earlier.agent == "cursor" and _ID.fullmatch(earlier.id) is not None

    def _settings(self, session: str) -> AgentOptions:
        from cursor_sdk import AgentOptions, ModelSelection

        closed = self._task.confinement.network is Network.MODEL
        model = {"id": self._vendor.model, "params": list(self._options.model_params)}
        return AgentOptions(
            model=ModelSelection.from_value(model),
            api_key=self.box.model_key,
            agent_id=session,
            local=self._local(session),
            mode=self._options.mode,
            disallowed_tools=_NETWORKED if closed else None,
        )

    def _local(self, session: str) -> LocalAgentOptions:
        from cursor_sdk import LocalAgentOptions, LocalAgentStoreConfig

        store = self._store(session).folder
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalAgentOptions(
            cwd=self._task.workspace,
            # The project's own rules, as at Cursor; nothing of the worker's user.
            setting_sources=["project"],
            store=LocalAgentStoreConfig("jsonl", str(store)),
        )

    async def _events(self, text: str) -> AsyncIterator[Any]:
        """Send the prompt; yield the run's events, and the backend's failures between them."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(told: Trouble) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, told)

        self._tell_turn = tell
        sending = asyncio.create_task(self._send(text, queue))
        try:
            while (told := await queue.get()) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        finally:
            self._tell_turn = self._run = None
            sending.cancel()

    async def _send(self, text: str, queue: asyncio.Queue[Any]) -> None:
        from cursor_sdk import SendOptions
        from cursor_sdk.types import LocalSendOptions

        assert self._conversation is not None
        # A run that an earlier attempt was killed in still counts as active.
        local = LocalSendOptions(force=True) if self._resumed else None
        self._resumed = False
        try:
            self._run = run = await self._conversation.send(text, SendOptions(local=local))
            async for event in run.events():
                if not is_heartbeat(event):
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    def _hear(self, failure: backend.StreamFailure) -> None:
        """Take a failure of the backend's; in the door's thread."""
        tell = self._tell_turn
        if tell is not None:
            # The session's loop may be closed by now: then nobody waits for it.
            with contextlib.suppress(RuntimeError):
                tell(Trouble(backend.failure_of(failure), failure.error != 0))

    def _failure(self, reader: TurnReader) -> AgentFailure:
        door = self.box.door
        if reader.trouble is not None:
            return self._explained(reader.trouble)
        if door is not None and door.last_failure is not None:
            last = door.last_failure
            found = backend.failure_of_status(last.status, last.words, last.retry_after)
            return self._explained(found)
        if reader.error:
            return self._explained(backend.failure_of_words(reader.error))
        return Interrupted("Cursor's program ended the turn without a word", raw=reader.status)

    def _explained(self, failure: AgentFailure) -> AgentFailure:
        if isinstance(failure, AuthenticationFailed):
            return backend.refused_key(self._vendor.url, self._vendor.conn_id, failure.raw)
        return failure

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        import httpx
        from cursor_sdk import errors

        raw = f"{type(error).__name__}: {error}\n{self._words.decode(errors='replace')}".strip()
        if doing == "start":
            return AgentFailed("Cursor did not start", raw=raw)
        if isinstance(error, errors.NetworkError | httpx.HTTPError | OSError):
            return Interrupted("the Cursor program ended in the middle of the turn", raw=raw)
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return self._explained(AuthenticationFailed("", raw=raw))
        if isinstance(error, errors.RateLimitError):
            return backend.failure_of_words(f"[resource_exhausted] {error}")
        if isinstance(error, errors.InternalServerError):
            return backend.failure_of_words(error.message)
        return unclassified("Cursor", error)


def find_program() -> Program:
    """Return the bridge, as its package brings it, without the shell script that starts it.

    :raises InvalidDefinition: if it is not installed.
    """
    try:
        import cursor_sdk
    except ImportError as error:
        raise InvalidDefinition(f"Cursor's SDK is missing; {INSTALL}", raw=str(error)) from error
    folder = Path(cursor_sdk.__file__).resolve().parent / "_vendor" / "bridge"
    command = (folder / "bin" / "node", folder / "dist" / "bin" / "cursor-sdk-bridge.js")
    missing = [str(path) for path in command if not path.is_file()]
    if missing:
        raise InvalidDefinition(
            f"Cursor's SDK is here without its program, as where no wheel fits the worker; "
            f"{INSTALL}",
            raw=f"missing: {', '.join(missing)}",
        )
    return Program(
        command=tuple(map(str, command)),
        folders=(folder,),
        inherited=("CURSOR_SDK_CLIENT_LANGUAGE", "CURSOR_SDK_PYTHON_VERSION"),
        port=_PORT,
    )


def _structured(message: str) -> Any:
    text = message.strip()
    fenced = _FENCE.match(text)
    try:
        return json.loads(fenced["inside"] if fenced else text)
    except ValueError:
        return None
