"""The rehearsal's own ACP agent, as the official library's client sees it; what it does with a
model is seen in ``tests/conformance``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.rehearsal.acp_agent import Conversation, Sessions
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script

pytestmark = pytest.mark.integration

AGENT = "airflow_agent_provider.rehearsal.acp_agent"


class Client:
    """Allows everything, and keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[Any] = []

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append(update)

    async def request_permission(self, options: list[Any], **_: Any) -> Any:
        from acp.schema import AllowedOutcome, RequestPermissionResponse

        chosen = next(option.option_id for option in options if option.kind == "allow_once")
        outcome = AllowedOutcome(outcome="selected", option_id=chosen)
        return RequestPermissionResponse(outcome=outcome)

    def told(self) -> list[tuple[str, str]]:
        return [
            (update.session_update, getattr(getattr(update, "content", None), "text", ""))
            for update in self.updates
        ]


def talk(
    folder: Path, client: Client, steps: Callable[[Any], Coroutine[Any, Any, None]], url: str = ""
) -> None:
    import acp

    async def run() -> None:
        command = ("-m", AGENT, "--sessions", str(folder / "sessions"))
        environment = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "sk-any"}
        async with acp.spawn_agent_process(
            client,  # type: ignore[arg-type]
            sys.executable,
            *command,
            env=environment,
            cwd=folder,
            transport_kwargs={"stderr": None},
        ) as (agent, _):
            about = await agent.initialize(acp.PROTOCOL_VERSION)
            assert about.agent_capabilities is not None
            assert about.agent_capabilities.load_session
            await steps(agent)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_turn_and_its_replay(tmp_path: Path) -> None:
    from acp import text_block

    script = Script.model_validate({"steps": {"*": [{"run": "echo x > it"}, {"say": "Done."}]}})
    client, ids = Client(), []

    async def work(agent: Any) -> None:
        opened = await agent.new_session(cwd=str(tmp_path), mcp_servers=[])
        ids.append(opened.session_id)
        answer = await agent.prompt(session_id=ids[0], prompt=[text_block("Do it.")])
        assert answer.stop_reason == "end_turn"
        assert answer.usage.total_tokens > answer.usage.output_tokens > 0

    with ModelServer(script) as model:
        talk(tmp_path, client, work, model.url)
    assert (tmp_path / "it").read_text() == "x\n"
    assert [kind for kind, _ in client.told()] == [
        "tool_call",
        "tool_call_update",
        "tool_call_update",
        "agent_message_chunk",
    ]
    again = Client()

    async def load(agent: Any) -> None:
        await agent.load_session(cwd=str(tmp_path), session_id=ids[0], mcp_servers=[])

    talk(tmp_path, again, load)
    assert again.told() == [
        ("user_message_chunk", "Do it."),
        ("tool_call", ""),
        ("agent_message_chunk", "Done."),
    ]


def test_a_session_that_it_does_not_know(tmp_path: Path) -> None:
    from acp import RequestError

    async def load(agent: Any) -> None:
        with pytest.raises(RequestError, match="not found"):
            await agent.load_session(cwd=str(tmp_path), session_id="none", mcp_servers=[])

    talk(tmp_path, Client(), load)


def test_what_it_died_in_is_told_to_the_model(tmp_path: Path) -> None:
    from acp import text_block

    call = {"id": "call_0_0", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    Sessions(tmp_path / "sessions").save(Conversation("s", str(tmp_path), messages))

    async def resume(agent: Any) -> None:
        await agent.load_session(cwd=str(tmp_path), session_id="s", mcp_servers=[])
        await agent.prompt(session_id="s", prompt=[text_block("Go on.")])

    with ModelServer(Script.model_validate({"steps": {"*": [{"say": "x"}]}})) as model:
        talk(tmp_path, Client(), resume, model.url)
        told = json.dumps([entry.body for entry in model.requests])
    assert "[Tool execution was interrupted]" in told
