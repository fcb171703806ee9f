"""Our side of the Agent Client Protocol: what an agent tells us, and what it asks of us.

https://agentclientprotocol.com/protocol/overview
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_agent_provider.agents.contract import Access
from airflow_agent_provider.hooks.acp_events import paths_of

#: Updates that may wait for the step; beyond, the agent waits.
_QUEUE_LENGTH = 500
#: What agents change by, in the protocol's words.
_CHANGES = ("edit", "delete", "move")
#: Updates that tell of the agent's own state, and are no sign that it works on the task.
_HOUSEKEEPING = (
    "available_commands_update",
    "current_mode_update",
    "config_option_update",
    "session_info_update",
)
#: Updates that replay what was said and done before.
_HISTORY = ("user_message_chunk", "agent_message_chunk", "tool_call", "tool_call_update")


@dataclass(frozen=True)
class Rules:
    """What an agent may do where it asks.

    :param workspace: the step's workspace.
    :param home: the session's own folder.
    :param access: what the agent may do to the workspace.
    :param boxed: whether the file system itself holds the agent to that.
    """

    workspace: Path
    home: Path
    access: Access
    boxed: bool

    def refusal(self, kind: str | None, paths: Iterable[str]) -> str | None:
        """Return why the agent may not do what it asks for, None if it may.

        :param kind: the tool's kind in the protocol's words.
        :param paths: the files that it is about.
        """
        if self.access is Access.READ_ONLY:
            if kind in _CHANGES:
                return "the step is read only"
            if kind == "execute" and not self.boxed:
                return "the step is read only, and nothing would hold the command to that"
        if kind in _CHANGES and not self.boxed:
            outside = [path for path in paths if not self._inside(path)]
            return f"{outside[0]} is outside of the workspace" if outside else None
        return None

    def _inside(self, path: str) -> bool:
        real = (self.workspace / path).resolve()
        folders = (self.workspace, self.home)
        return any(real.is_relative_to(folder.resolve()) for folder in folders)


@dataclass(frozen=True)
class Asked:
    """The agent asked for permission.

    :param call: the tool call, as far as the agent tells it.
    :param refusal: why it may not; None if it may.
    :param heard: set to whether the turn goes on, once the step has been told; the agent waits for
        its answer until then.
    """

    call: Any
    refusal: str | None
    heard: asyncio.Future[bool]


class Client:
    """What the library calls when the agent sends something. Everything runs in the loop.

    :param rules: what the agent may do.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._updates: asyncio.Queue[Any] | None = None
        self._unheard: set[asyncio.Future[bool]] = set()
        self.session_id: str | None = None
        #: How many entries of an earlier conversation the agent has replayed.
        self.replayed = 0

    def busy(self) -> bool:
        """Return whether the step is behind."""
        return self._updates is not None and self._updates.qsize() >= _QUEUE_LENGTH

    async def follow(self, prompt: Awaitable[Any]) -> AsyncIterator[Any]:
        """Yield what the agent tells and asks while ``prompt`` is under way.

        :param prompt: the request that begins the turn; what it raises is raised at the end.
        """
        updates = self._updates = asyncio.Queue()
        task = asyncio.ensure_future(prompt)
        # The library returns from a prompt only when its updates have been handed over.
        task.add_done_callback(lambda done: updates.put_nowait(done))
        try:
            while (item := await updates.get()) is not task:
                yield item
            # An exception, if there was one, is raised here; an answer ends the events.
            yield await task
        finally:
            self._updates = None
            self.call_off()

    async def session_update(self, session_id: str, update: Any, **meta: Any) -> None:
        """Take an update of the session; must not wait, so that updates keep their order."""
        kind = update.session_update
        self.replayed += kind in _HISTORY
        ours = self.session_id in (None, session_id)
        if self._updates is not None and ours and kind not in _HOUSEKEEPING:
            self._updates.put_nowait(update)

    async def request_permission(
        self, session_id: str, tool_call: Any, options: Sequence[Any], **meta: Any
    ) -> Any:
        """Answer by the rules, with the option whose kind says so."""
        refusal = self._rules.refusal(tool_call.kind, paths_of(tool_call))
        if self._updates is None:
            return _answer((), "reject")
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unheard.add(heard)
        self._updates.put_nowait(Asked(tool_call, refusal, heard))
        try:
            goes_on = await heard
        finally:
            self._unheard.discard(heard)
        return _answer(options if goes_on else (), "reject" if refusal else "allow")

    async def hear(self, asked: Asked) -> None:
        """Let the agent have its answer: the step was told what it asked for."""
        if not asked.heard.done():
            asked.heard.set_result(True)

    def call_off(self) -> None:
        """Answer what is still open: the turn was cancelled."""
        for heard in self._unheard:
            if not heard.done():
                heard.set_result(False)

    async def ext_method(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Refuse an extension: we know none."""
        from acp import RequestError

        raise RequestError.method_not_found(method)

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        """Pass over what an extension tells."""


def _answer(options: Sequence[Any], verdict: str) -> Any:
    from acp.schema import AllowedOutcome, DeniedOutcome, RequestPermissionResponse

    # Once is enough: what is allowed for good would not be asked, nor checked, again.
    for kind in (f"{verdict}_once", f"{verdict}_always"):
        for option in options:
            if option.kind == kind:
                chosen = AllowedOutcome(outcome="selected", option_id=option.option_id)
                return RequestPermissionResponse(outcome=chosen)
    return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
