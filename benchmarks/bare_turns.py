"""One turn of each local agent with its vendor's SDK alone, as a user would write it.

Each is what a step is held against: no box, no checkpoint, no judgement, no store, in a working
tree and a home that are there already. The agent's program is the one that the step runs, and it is
told, as the step's is, to ask nobody but its model.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_agent_provider.hooks.copilot_program import find_runtime
from airflow_agent_provider.settings import load_settings
from infra.local.agents import CLAUDE_MODEL, MODEL

#: As the prompt of the step ends, so that the scripted model knows the step.
PROMPT = "Write notes.\n\nStep: work of workflow bench, run bench\n"
#: The model that a step names, too: Cursor's connection to a rehearsal names none.
CURSOR_MODEL = "composer-2.5"
#: The stand-ins take any.
KEY = "key-of-the-bench"


@dataclass(frozen=True)
class Place:
    """Where a turn happens.

    :param url: the scripted models; for Cursor, its stand-in.
    :param home: the agent's own folder.
    :param tree: the git working tree.
    """

    url: str
    home: Path
    tree: Path


def seconds_of(turn: Callable[[Place], None], url: str) -> float:
    """Return the seconds of one turn, from the import of the SDK to the end of the program.

    :param turn: one of :data:`TURNS`.
    :param url: the scripted models; for Cursor, its stand-in.
    """
    # Not in /tmp: below it, Codex makes no helpers in its home, and its edits come to nothing.
    folder = os.environ["AIRFLOW_HOME"]
    with tempfile.TemporaryDirectory(prefix="bare-", dir=folder, ignore_cleanup_errors=True) as at:
        place = Place(url, Path(at) / "home", Path(at) / "tree")
        place.home.mkdir()
        subprocess.run(["git", "init", "--quiet", str(place.tree)], check=True)
        started = time.perf_counter()
        turn(place)
        seconds = time.perf_counter() - started
        if not (place.tree / "docs" / "notes.md").exists():
            raise SystemExit("the bare turn has not done what the script says")
    return seconds


def codex(place: Place) -> None:
    """Codex, in its own sandbox."""
    from openai_codex import ApprovalMode, Codex, CodexConfig, Sandbox

    settings = (
        'model_provider="p"',
        'model_providers.p.name="p"',
        f'model_providers.p.base_url="{place.url}/v1"',
        'model_providers.p.wire_api="responses"',
        'model_providers.p.env_key="BENCH_KEY"',
        "features.plugins=false",
        "analytics.enabled=false",
    )
    env = {"CODEX_HOME": str(place.home), "BENCH_KEY": KEY}
    with Codex(CodexConfig(cwd=str(place.tree), env=env, config_overrides=settings)) as program:
        thread = program.thread_start(
            cwd=str(place.tree),
            model=MODEL,
            model_provider="p",
            sandbox=Sandbox.workspace_write,
            approval_mode=ApprovalMode.deny_all,
        )
        for _ in thread.turn(PROMPT).stream():
            pass


def copilot(place: Place) -> None:
    """Copilot, with a provider of one's own."""
    asyncio.run(_copilot(place))


async def _copilot(place: Place) -> None:
    from copilot import CopilotClient, PermissionHandler, RuntimeConnection

    runtime = find_runtime(load_settings().programs)
    client = CopilotClient(
        connection=RuntimeConnection.for_stdio(path=str(runtime.program)),
        working_directory=str(place.tree),
        base_directory=str(place.home),
        use_logged_in_user=False,
        env={**os.environ, "COPILOT_GITHUB_TELEMETRY_DISABLED": "true", "USE_TGREP": "false"},
    )
    await client.start()
    session = await client.create_session(
        model=MODEL,
        provider={"type": "openai", "base_url": f"{place.url}/v1", "api_key": KEY},
        working_directory=str(place.tree),
        on_permission_request=PermissionHandler.approve_all,
        streaming=True,
    )
    await session.send_and_wait(PROMPT)
    await client.stop()


def claude(place: Place) -> None:
    """Claude Code."""
    asyncio.run(_claude(place))


async def _claude(place: Place) -> None:
    from claude_agent_sdk import ClaudeAgentOptions, query

    options = ClaudeAgentOptions(
        cwd=place.tree,
        model=CLAUDE_MODEL,
        permission_mode="acceptEdits",
        allowed_tools=["Bash"],
        env={
            "ANTHROPIC_BASE_URL": place.url,
            "ANTHROPIC_API_KEY": KEY,
            "CLAUDE_CONFIG_DIR": str(place.home),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    async for _ in query(prompt=PROMPT, options=options):
        pass


def cursor(place: Place) -> None:
    """Cursor on this machine."""
    from cursor_sdk import AgentOptions, Client, LocalAgentOptions

    # The SDK takes these from nowhere else.
    os.environ["CURSOR_BACKEND_URL"] = place.url
    os.environ["CURSOR_SDK_LOCAL_MODEL_CATALOG_JSON"] = json.dumps(
        [{"id": CURSOR_MODEL, "displayName": CURSOR_MODEL}]
    )
    with Client.launch_bridge(workspace=place.tree, state_root=place.home) as client:
        local = LocalAgentOptions(cwd=place.tree)
        options = AgentOptions(model=CURSOR_MODEL, api_key=KEY, local=local)
        client.agents.create(options).send(PROMPT).wait()


def qwen(place: Place) -> None:
    """Qwen Code, by the Agent Client Protocol."""
    program = load_settings().programs / "node_modules" / ".bin" / "qwen"
    environment = {
        "HOME": str(place.home),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{place.url}/v1",
        "OPENAI_MODEL": MODEL,
        "QWEN_CODE_NO_RELAUNCH": "true",
        "QWEN_CODE_DISABLE_PRECONNECT": "1",
        "QWEN_DISABLE_AUTO_TITLE": "1",
        "QWEN_TELEMETRY_ENABLED": "false",
    }
    settings = place.home / ".qwen" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(
        '{"$version": 4, "security": {"auth": {"selectedType": "openai"}},'
        ' "general": {"enableAutoUpdate": false}, "privacy": {"usageStatisticsEnabled": false}}'
    )
    asyncio.run(_acp(place, [str(program), "--acp"], environment, "openai"))


def scripted(place: Place) -> None:
    """The rehearsal's own small agent, by the Agent Client Protocol."""
    command = [sys.executable, "-m", "airflow_agent_provider.rehearsal.acp_agent"]
    environment = {
        "HOME": str(place.home),
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"{place.url}/v1",
        "OPENAI_MODEL": MODEL,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    asyncio.run(_acp(place, command, environment, None))


async def _acp(
    place: Place, command: list[str], environment: dict[str, str], auth: str | None
) -> None:
    import acp
    from acp.schema import AllowedOutcome, ClientCapabilities, RequestPermissionResponse

    class Client:
        async def request_permission(self, options: Any, **_: Any) -> Any:
            allowed = next(option for option in options if option.kind == "allow_once")
            outcome = AllowedOutcome(outcome="selected", option_id=allowed.option_id)
            return RequestPermissionResponse(outcome=outcome)

        async def session_update(self, **_: Any) -> None:
            pass

        def on_connect(self, _: Any) -> None:
            pass

    pipes = {"limit": 50 * 1024 * 1024, "stderr": asyncio.subprocess.DEVNULL}
    async with acp.spawn_agent_process(
        Client(), *command, env=environment, cwd=place.tree, transport_kwargs=pipes
    ) as (connection, _):
        await connection.initialize(
            protocol_version=acp.PROTOCOL_VERSION, client_capabilities=ClientCapabilities()
        )
        if auth is not None:
            await connection.authenticate(method_id=auth)
        session = await connection.new_session(cwd=str(place.tree), mcp_servers=[])
        await connection.prompt(session_id=session.session_id, prompt=[acp.text_block(PROMPT)])


#: By the name of the bench's agent.
TURNS: dict[str, Callable[[Place], None]] = {
    "acp-qwen": qwen,
    "acp-scripted": scripted,
    "claude": claude,
    "codex": codex,
    "copilot": copilot,
    "cursor": cursor,
}
