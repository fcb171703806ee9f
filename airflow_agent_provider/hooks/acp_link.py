"""The connection to one ACP agent, by the official library: everything here runs in its loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airflow_agent_provider.agents.failures import InvalidDefinition
from airflow_agent_provider.hooks.acp_client import Client, Rules
from airflow_agent_provider.hooks.acp_events import error_words
from airflow_agent_provider.hooks.acp_wire import Wire

if TYPE_CHECKING:
    from acp.client.connection import ClientSideConnection

#: Seconds for the agent to end a turn that was cancelled, and to end by itself.
CANCEL_SECONDS = 5.0
CLOSE_SECONDS = 3.0


class Link:
    """Speaks with an agent's program, for one session.

    :param rules: what the agent may do where it asks.
    """

    def __init__(self, rules: Rules) -> None:
        self.client = Client(rules)
        self.wire = Wire(self.client.busy)
        #: Whether the agent continues sessions.
        self.loads = False
        self._folder = str(rules.workspace)
        self._connection: ClientSideConnection | None = None
        self._prompt: asyncio.Future[Any] | None = None

    @property
    def session_id(self) -> str | None:
        """The agent's id of the session, once it is open."""
        return self.client.session_id

    async def start(self, program: Path, auth: str | None) -> None:
        """Start the agent, and learn what it can do.

        :param program: the executable.
        :param auth: id of the authentication that it wants, if any.
        """
        import acp
        from acp.schema import ClientCapabilities, Implementation

        await self.wire.start(program, Path(self._folder))
        self._connection = acp.connect_to_agent(cast(Any, self.client), self.wire)
        about = await self._connection.initialize(
            protocol_version=acp.PROTOCOL_VERSION,
            client_capabilities=ClientCapabilities(),
            client_info=Implementation(name="airflow-agent-provider", version="1"),
        )
        if about.protocol_version != acp.PROTOCOL_VERSION:
            raise InvalidDefinition(
                f"the agent speaks version {about.protocol_version} of the Agent Client Protocol; "
                f"only version {acp.PROTOCOL_VERSION} is known here"
            )
        self.loads = bool(about.agent_capabilities and about.agent_capabilities.load_session)
        if auth is not None:
            await self._connection.authenticate(method_id=auth)

    async def new(self) -> Any:
        """Begin a session; return the agent's answer."""
        opened = await self._connected.new_session(cwd=self._folder, mcp_servers=[])
        self.client.session_id = opened.session_id
        return opened

    async def load(self, session_id: str) -> tuple[Any, str]:
        """Continue a session; return the agent's answer, or None and why it is not continued."""
        from acp import RequestError

        if not self.loads:
            return None, "this agent continues no sessions"
        self.client.replayed = 0
        try:
            opened = await self._connected.load_session(
                cwd=self._folder, session_id=session_id, mcp_servers=[]
            )
        except RequestError as error:
            return None, error_words(str(error), error.data)
        if not self.client.replayed:
            # Some agents take an id that they do not know for a new session's.
            return None, "the agent does not know it"
        self.client.session_id = session_id
        return opened, ""

    async def set_mode(self, opened: Any, mode: str) -> None:
        """Let the session be in ``mode``; agents have modes in one of two ways.

        :param opened: the agent's answer when the session was opened.
        :raises InvalidDefinition: if it has no such mode; the reason lists those that it has.
        """
        modes = opened.modes.available_modes if opened.modes else []
        if any(each.id == mode for each in modes):
            await self._connected.set_session_mode(session_id=self._open, mode_id=mode)
        else:
            await self.choose(opened, "mode", mode, [each.id for each in modes])

    async def choose(
        self, opened: Any, category: str, wanted: str, known: Iterable[str] = ()
    ) -> None:
        """Set the session's option of a category, as ``mode`` and ``model``.

        :param opened: the agent's answer when the session was opened.
        :param known: further values that there are, for the error.
        :raises InvalidDefinition: if there is no such value; the reason lists those that there are.
        """
        names = list(known)
        for option in opened.config_options or ():
            if option.category == category and option.type == "select":
                values = [value for choice in option.options for value in _values(choice)]
                if wanted in values:
                    await self._connected.set_config_option(
                        config_id=option.id, session_id=self._open, value=wanted
                    )
                    return
                names += values
        raise InvalidDefinition(
            f"the agent has no {category} {wanted!r}; it has: {', '.join(names) or 'none'}"
        )

    async def configure(self, options: Mapping[str, str | bool]) -> None:
        """Set the session's options, by their id.

        :raises InvalidDefinition: for the first that the agent does not take.
        """
        from acp import RequestError

        for name, value in options.items():
            try:
                await self._connected.set_config_option(
                    config_id=name, session_id=self._open, value=value
                )
            except RequestError as error:
                raise InvalidDefinition(
                    f"the agent does not take {value!r} for its option {name!r}",
                    raw=error_words(str(error), error.data),
                ) from error

    async def turn(self, prompt: str) -> AsyncIterator[Any]:
        """Yield what the agent tells and asks in a turn, and at last its answer to the prompt."""
        from acp import text_block

        request = self._connected.prompt(session_id=self._open, prompt=[text_block(prompt)])
        self._prompt = asyncio.ensure_future(request)
        try:
            async for update in self.client.follow(self._prompt):
                yield update
        finally:
            self._prompt = None

    async def cancel(self) -> bool:
        """Tell the agent to end its turn; return whether it did."""
        prompt = self._prompt
        if prompt is None or prompt.done():
            return True
        await self._connected.cancel(session_id=self._open)
        self.client.call_off()
        done, _ = await asyncio.wait([prompt], timeout=CANCEL_SECONDS)
        return bool(done)

    async def hang_up(self) -> None:
        """Let the agent end by itself, within seconds."""
        await self.wire.close()
        await self.wire.ended(CLOSE_SECONDS)
        if self._connection is not None:
            await self._connection.close()

    @property
    def _connected(self) -> ClientSideConnection:
        if self._connection is None:
            raise ConnectionError("the agent was not started")
        return self._connection

    @property
    def _open(self) -> str:
        if self.session_id is None:
            raise ConnectionError("the session was not opened")
        return self.session_id


def _values(choice: Any) -> list[str]:
    """Return the values of a choice, which may be a group of choices."""
    return [each.value for each in getattr(choice, "options", [choice])]
