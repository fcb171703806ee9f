"""A small agent that speaks the Agent Client Protocol, for rehearsals of what such agents do.

``python -m airflow_agent_provider.rehearsal.acp_agent`` talks to a client on its standard streams
and does what its model says: the one at ``OPENAI_BASE_URL``, which a rehearsal plays. With
``--script FILE`` it asks no model, and plays the file's messages instead (see :class:`Played`), so
that a client can be tried on what no real agent does when it is wanted.

It is written on the official library, as other agents are: https://agentclientprotocol.com.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from airflow_agent_provider.rehearsal.processes import Ended, Processes

#: Seconds for one command, and for the model's answer.
_COMMAND_SECONDS = 600.0
_MODEL_SECONDS = 600.0
#: What a command's result begins with that did not run to its end, as OpenCode has it.
_LOST = "[Tool execution was interrupted]"
#: Modes: it asks before it changes something; it does not ask; it changes nothing.
_MODES = {"ask": "Asks first", "auto": "Does not ask", "read": "Changes nothing"}


def _tool(name: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


_TOOLS = [_tool("bash", command="string"), _tool("write", filePath="string", content="string")]


@dataclass
class Conversation:
    """A session, as its file holds it.

    :param id: its id.
    :param folder: the folder that it works in.
    :param messages: what was said and done, as the model is told.
    :param usage: tokens since it began, as the protocol counts them.
    """

    id: str
    folder: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)

    def spend(self, usage: Mapping[str, Any]) -> None:
        """Add what one answer of the model cost."""
        read, written = usage["prompt_tokens"], usage["completion_tokens"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        spent = {
            "inputTokens": read - cached,
            "cachedReadTokens": cached,
            "outputTokens": written,
            "totalTokens": read + written,
        }
        self.usage = {name: self.usage.get(name, 0) + count for name, count in spent.items()}


class Sessions:
    """The files that sessions are kept in.

    :param folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, conversation: Conversation) -> None:
        """Write a session down; a reader never sees half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{conversation.id}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(conversation)))
        part.replace(path)

    def load(self, session_id: str) -> Conversation | None:
        """Return a session; None if there is no such one."""
        path = self._folder / f"{session_id}.json"
        return Conversation(**json.loads(path.read_text())) if path.is_file() else None


class Agent:
    """The agent, as the library calls it.

    :param sessions: where sessions are kept; None keeps none.
    :param played: what it plays instead of asking its model.
    :param terse: whether it tells its model's errors without their cause, as some agents do.
    """

    def __init__(
        self, sessions: Sessions | None, played: Played | None = None, *, terse: bool = False
    ) -> None:
        self._sessions = sessions
        self._terse = terse
        self._played = played
        self._client: Any = None
        self._open: dict[str, Conversation] = {}
        self._mode = "ask"
        self._turn: asyncio.Task[Any] | None = None
        self._processes = Processes()

    def on_connect(self, client: Any) -> None:
        """Take the client."""
        self._client = client

    async def initialize(self, protocol_version: int, **_: Any) -> Any:
        """Say what it can do."""
        from acp.schema import AgentCapabilities, Implementation, InitializeResponse

        return InitializeResponse(
            protocol_version=protocol_version,
            agent_capabilities=AgentCapabilities(load_session=self._sessions is not None),
            agent_info=Implementation(name="rehearsal", version="1"),
        )

    async def new_session(self, cwd: str, **_: Any) -> Any:
        """Begin a session."""
        from acp.schema import NewSessionResponse

        conversation = Conversation(str(uuid.uuid4()), cwd)
        self._open[conversation.id] = conversation
        return NewSessionResponse(session_id=conversation.id, modes=self._modes())

    async def load_session(self, cwd: str, session_id: str, **_: Any) -> Any:
        """Continue a session: replay it, then go on with it."""
        from acp import RequestError
        from acp.schema import LoadSessionResponse

        conversation = self._sessions.load(session_id) if self._sessions else None
        if conversation is None:
            raise RequestError.resource_not_found(session_id)
        conversation.folder = cwd
        self._open[session_id] = conversation
        for message in conversation.messages:
            await self._replay(session_id, message)
        return LoadSessionResponse(modes=self._modes())

    async def set_session_mode(self, session_id: str, mode_id: str, **_: Any) -> None:
        """Change how it asks."""
        self._mode = mode_id

    async def prompt(self, prompt: Sequence[Any], session_id: str, **_: Any) -> Any:
        """Work on a prompt."""
        from acp.schema import PromptResponse

        conversation = self._open[session_id]
        text = "\n".join(getattr(block, "text", "") for block in prompt)
        self._processes = Processes()
        work = self._play(conversation) if self._played else self._work(conversation, text)
        self._turn = asyncio.ensure_future(work)
        try:
            await self._turn
        except asyncio.CancelledError:
            return PromptResponse(stop_reason="cancelled", usage=_usage(conversation))
        return self._turn.result()

    async def cancel(self, session_id: str, **_: Any) -> None:
        """End the turn, and what runs in it."""
        self._processes.end()
        if self._turn is not None:
            self._turn.cancel()

    def _modes(self) -> Any:
        from acp.schema import SessionMode, SessionModeState

        modes = [SessionMode(id=mode, name=name) for mode, name in _MODES.items()]
        return SessionModeState(current_mode_id=self._mode, available_modes=modes)

    async def _replay(self, session_id: str, message: Mapping[str, Any]) -> None:
        import acp

        text = str(message.get("content") or "")
        if message["role"] == "user":
            await self._client.session_update(session_id, acp.update_user_message_text(text))
        elif message["role"] == "assistant":
            for call in message.get("tool_calls", ()):
                name = call["function"]["name"]
                await self._client.session_update(session_id, acp.start_tool_call(call["id"], name))
            if text:
                await self._client.session_update(session_id, acp.update_agent_message_text(text))

    async def _play(self, conversation: Conversation) -> Any:
        assert self._played is not None
        return await self._played.turn(self._client, conversation.id)

    async def _work(self, conversation: Conversation, text: str) -> Any:
        import acp
        from acp.schema import PromptResponse

        _mend(conversation.messages)
        conversation.messages.append({"role": "user", "content": text})
        while True:
            self._save(conversation)
            message = await self._ask(conversation)
            conversation.messages.append(message)
            self._save(conversation)
            if message.get("content"):
                chunk = acp.update_agent_message_text(message["content"])
                await self._client.session_update(conversation.id, chunk)
            if not message.get("tool_calls"):
                return PromptResponse(stop_reason="end_turn", usage=_usage(conversation))
            for call in message["tool_calls"]:
                result = await self._call(conversation, call["id"], call["function"])
                conversation.messages.append(
                    {"role": "tool", "tool_call_id": call["id"], "content": result}
                )

    def _save(self, conversation: Conversation) -> None:
        if self._sessions is not None:
            self._sessions.save(conversation)

    async def _ask(self, conversation: Conversation) -> dict[str, Any]:
        from acp import RequestError

        try:
            return await _answer(conversation)
        except _ModelError as error:
            raise RequestError.internal_error(
                None if self._terse else {"details": str(error)}
            ) from error

    async def _call(self, conversation: Conversation, call_id: str, call: Mapping[str, Any]) -> str:
        """Do what the model asks for; return what it is told of that."""
        import acp

        arguments = json.loads(call["arguments"])
        runs = call["name"] == "bash"
        path = Path(conversation.folder, arguments.get("filePath", ""))
        start = acp.start_tool_call(
            call_id,
            arguments["command"] if runs else f"Write {path}",
            kind="execute" if runs else "edit",
            status="pending",
            locations=[] if runs else [{"path": str(path)}],  # type: ignore[list-item]
            raw_input=arguments,
        )
        await self._client.session_update(conversation.id, start)
        refusal = await self._refusal(conversation, call_id, start)
        if refusal:
            return await self._ended(conversation, call_id, refusal, failed=True)
        going = acp.update_tool_call(call_id, status="in_progress")
        await self._client.session_update(conversation.id, going)
        if runs:
            code, output = await self._run(arguments["command"], Path(conversation.folder))
            return await self._ended(conversation, call_id, output, failed=False, code=code)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(arguments["content"])
        except OSError as error:
            return await self._ended(conversation, call_id, str(error), failed=True)
        return await self._ended(conversation, call_id, f"{path} is written", failed=False)

    async def _refusal(self, conversation: Conversation, call_id: str, call: Any) -> str | None:
        from acp.schema import PermissionOption, ToolCallUpdate

        if self._mode == "read":
            return "refused: nothing is changed in this mode"
        if self._mode == "auto":
            return None
        asked = ToolCallUpdate(
            tool_call_id=call_id, kind=call.kind, title=call.title, locations=call.locations
        )
        options = [
            PermissionOption(option_id="always", name="Always", kind="allow_always"),
            PermissionOption(option_id="yes", name="Yes", kind="allow_once"),
            PermissionOption(option_id="no", name="No", kind="reject_once"),
        ]
        answer = await self._client.request_permission(conversation.id, asked, options)
        chosen = getattr(answer.outcome, "option_id", "no")
        return None if chosen == "yes" else "refused by the user"

    async def _run(self, command: str, folder: Path) -> tuple[int, str]:
        def run() -> tuple[int, str]:
            shell = ["/bin/bash", "-c", command]
            done = self._processes.run(
                shell, folder=folder, env=dict(os.environ), timeout=_COMMAND_SECONDS
            )
            return done.returncode, done.output

        try:
            return await asyncio.to_thread(run)
        except Ended:
            raise asyncio.CancelledError from None

    async def _ended(
        self,
        conversation: Conversation,
        call_id: str,
        output: str,
        *,
        failed: bool,
        code: int | None = None,
    ) -> str:
        import acp

        update = acp.update_tool_call(
            call_id,
            status="failed" if failed else "completed",
            content=[acp.tool_content(acp.text_block(output))],
            raw_output=None if code is None else {"exit_code": code},
        )
        await self._client.session_update(conversation.id, update)
        return output if code is None else f"{output}\nexit code {code}"


class Played:
    """What a script makes the agent do, whatever it is asked.

    The file is JSON: a list of turns, each a list of messages. A message is a mapping with one of:
    ``update`` (a session update, as the protocol has it), ``ask`` (a request for permission;
    what it is answered is told in a message), ``line`` (a line that is no message), ``noise``
    (so many bytes on the standard error), ``wait`` (seconds), ``stop`` (ends the turn with this
    answer), ``error`` (ends it with this error) and ``exit`` (ends the program with this code).
    """

    def __init__(self, turns: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        self._turns = iter(turns)

    async def turn(self, client: Any, session_id: str) -> Any:
        """Play the next turn; return the answer to its prompt."""
        from acp import RequestError
        from acp.schema import PromptResponse

        for message in next(self._turns):
            if "error" in message:
                raise RequestError(**message["error"])
            if "stop" in message:
                return PromptResponse.model_validate(message["stop"])
            await self._play(client, session_id, message)
        return PromptResponse(stop_reason="end_turn")

    async def _play(self, client: Any, session_id: str, message: Mapping[str, Any]) -> None:
        match message:
            case {"update": update}:
                # Not by the library's types: what they do not know is of interest too.
                params = {"sessionId": session_id, "update": update}
                await client._conn.send_notification("session/update", params)
            case {"ask": ask}:
                params = {"sessionId": session_id, **ask}
                answer = await client._conn.send_request("session/request_permission", params)
                told = {"type": "text", "text": json.dumps(answer["outcome"])}
                update = {"sessionUpdate": "agent_message_chunk", "content": told}
                await self._play(client, session_id, {"update": update})
            case {"line": line}:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            case {"noise": size}:
                sys.stderr.write("x" * size)
                sys.stderr.flush()
            case {"wait": seconds}:
                await asyncio.sleep(seconds)
            case {"exit": code}:
                os._exit(code)


def _mend(messages: list[dict[str, Any]]) -> None:
    """Give the calls that have no result one that says so: the agent died in the middle."""
    answered = {message.get("tool_call_id") for message in messages}
    for message in list(messages):
        for call in message.get("tool_calls", ()):
            if call["id"] not in answered:
                lost = {"role": "tool", "tool_call_id": call["id"], "content": _LOST}
                messages.append(lost)


class _ModelError(Exception):
    """The model gave no answer."""


async def _answer(conversation: Conversation) -> dict[str, Any]:
    """Return the model's next message."""
    about = f"You are an agent of a rehearsal.\nWorking directory: {conversation.folder}"
    body = {
        "model": os.environ.get("OPENAI_MODEL", "rehearsal"),
        "messages": [{"role": "system", "content": about}, *conversation.messages],
        "tools": _TOOLS,
    }
    headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    try:
        async with httpx.AsyncClient(timeout=_MODEL_SECONDS) as client:
            answer = await client.post(url, json=body, headers=headers)
    except httpx.HTTPError as error:
        raise _ModelError(f"network error: {error!r}") from error
    if not answer.is_success:
        # As real agents have it: the status is told in words, if at all.
        raise _ModelError(f"{answer.status_code} {answer.text}")
    values = answer.json()
    conversation.spend(values["usage"])
    message: dict[str, Any] = values["choices"][0]["message"]
    return message


def _usage(conversation: Conversation) -> Any:
    from acp.schema import Usage

    return Usage.model_validate(conversation.usage) if conversation.usage else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one client on the standard streams until it hangs up."""
    import acp

    parser = argparse.ArgumentParser(prog="python -m airflow_agent_provider.rehearsal.acp_agent")
    parser.add_argument(
        "--sessions", type=Path, default=Path.home() / "sessions", help="where sessions are kept"
    )
    parser.add_argument("--forgets", action="store_true", help="keep no sessions")
    parser.add_argument("--terse", action="store_true", help="tell errors without their cause")
    parser.add_argument("--script", type=Path, help="JSON file with the turns to play")
    options = parser.parse_args(arguments)
    played = None if options.script is None else Played(json.loads(options.script.read_text()))
    sessions = None if options.forgets else Sessions(options.sessions)
    agent = Agent(sessions, played, terse=options.terse)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(acp.run_agent(agent))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
