"""How the suite drives an agent: one row per agent, on the worker or at its vendor.

A new agent is one class here, named in ``RIGS``. It says how its stand-in is started and reached;
:class:`LocalRig` and :class:`HostedRig` do the rest.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import pytest

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentSession,
    AgentTask,
    Limits,
    Session,
    Usage,
)
from airflow_agent_provider.agents.failures import AgentFailure
from airflow_agent_provider.hooks.agent import HostedAgentHook, LocalAgentHook, get_agent_hook
from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script
from airflow_agent_provider.settings import load_settings
from airflow_agent_provider.triggers.hosted import wait_for_run

PROMPT = "Do the work.\n\nStep: work of workflow conformance, run manual__1\n"


class StandIn(Protocol):
    """The scripted vendor."""

    @property
    def url(self) -> str: ...

    def start(self) -> object: ...

    def stop(self) -> None: ...


@dataclass
class Attempt:
    """What came of one attempt: its events, and a result or a failure."""

    events: list[AgentEvent] = field(default_factory=list)
    result: AgentResult | None = None
    failure: AgentFailure | None = None

    @property
    def done(self) -> AgentResult:
        """The result of an attempt that must have one."""
        if self.failure is not None:
            raise self.failure
        assert self.result is not None
        return self.result


class Rig(ABC):
    """One agent with its stand-in, a workspace and a connection.

    :param folder: what the test may write.
    :param patch: sets the connection.
    """

    agent: ClassVar[str]
    #: Whether it tells the tokens that it spends.
    usage: ClassVar[bool] = True

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.workspace = folder / "tree"
        self.patch = patch
        self._stand_in: StandIn | None = None
        make_repository(self.workspace)

    @abstractmethod
    def stand_in(self, script: Script) -> StandIn:
        """Return the vendor's stand-in, not yet started."""

    @abstractmethod
    def attempt(
        self,
        *,
        access: Access = Access.WRITE,
        schema: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        session: Session | None = None,
    ) -> Attempt:
        """Let the agent work once on what :meth:`rehearse` has set."""

    def rehearse(self, *actions: Any) -> StandIn:
        """Let the scripted vendor play ``actions``; return it."""
        self.close()
        self._stand_in = self.stand_in(Script.model_validate({"steps": {"work": list(actions)}}))
        self._stand_in.start()
        self.connect(self._stand_in.url)
        return self._stand_in

    def connect(self, url: str, key: str = "sk-conformance-4711") -> None:
        """Set the agent's connection."""
        values = {"conn_type": self.agent, "host": url, "password": key}
        values["extra"] = json.dumps(self.extra())
        self.patch.setenv(f"AIRFLOW_CONN_{self.agent.upper()}_DEFAULT", json.dumps(values))

    def disconnect(self) -> None:
        """Take the agent's connection away."""
        self.patch.delenv(f"AIRFLOW_CONN_{self.agent.upper()}_DEFAULT", raising=False)

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {}

    def close(self) -> None:
        """End the stand-in."""
        if self._stand_in is not None:
            self._stand_in.stop()
            self._stand_in = None

    @staticmethod
    def nowhere() -> str:
        """Return a URL that refuses connections."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{free.getsockname()[1]}"


class LocalRig(Rig):
    """An agent whose program runs here."""

    options: ClassVar[dict[str, Any]] = {}
    #: Whether its sessions go on in a folder of another path.
    moves: ClassVar[bool] = True
    #: What stands in the command line of the agent's program, and in no other's.
    program: ClassVar[str]

    #: Modules of the vendor's SDK, which a test takes away.
    sdk: ClassVar[tuple[str, ...]] = ()

    def hide_program(self, patch: pytest.MonkeyPatch) -> None:
        """Let the SDK be missing."""
        for module in self.sdk:
            patch.setitem(sys.modules, module, None)

    @property
    def home(self) -> Path:
        """The session's own folder."""
        return self.folder / "home"

    def task(self, **changes: Any) -> AgentTask:
        """Return the task that an attempt gets."""
        values = {
            "prompt": PROMPT,
            "workspace": self.workspace,
            "home": self.home,
            "limits": Limits(timeout=60, stall=30),
            "options": self.options,
            **{name: value for name, value in changes.items() if value is not None},
        }
        return AgentTask(**values)

    def hook(self) -> LocalAgentHook:
        """Return the agent's hook."""
        hook = get_agent_hook(self.agent)
        assert isinstance(hook, LocalAgentHook)
        return hook

    def attempt(self, **changes: Any) -> Attempt:
        """Let the agent work once."""
        attempt = Attempt()
        schema = changes.pop("schema", None)
        try:
            with self.hook().start(self.task(output_schema=schema, **changes)) as session:
                follow(attempt, session.turn(PROMPT, output_schema=schema))
        except AgentFailure as failure:
            attempt.failure = failure
        return attempt

    def elsewhere(self) -> tuple[Path, Self]:
        """Return the folder with what this rig has left, and the rig of another worker.

        Every worker has the same paths for a step; agents whose sessions go on under other ones
        have to show it.
        """
        if self.moves:
            return self.folder, type(self)(self.folder / "elsewhere", self.patch)
        left = self.folder / "left"
        left.mkdir()
        for folder in (self.workspace, self.home):
            folder.rename(left / folder.name)
        return left, type(self)(self.folder, self.patch)

    def kept(self, home: Path, session: Session) -> list[Path]:
        """Return the files that a killed agent has left of its session."""
        files = (file for file in home.rglob("*") if session.id in file.as_posix())
        return [file for file in files if file.is_file()]

    def plays(self, server: StandIn) -> list[tuple[int, str]]:
        """Return what the scripted model played: index and kind of each action."""
        entries = [entry for entry in server.requests if entry.action != "aside"]  # type: ignore[attr-defined]
        return [(entry.position, entry.action) for entry in entries]

    def start(self, **changes: Any) -> AgentSession:
        """Start the agent; the caller closes it."""
        return self.hook().start(self.task(**changes))


def follow(attempt: Attempt, turn: Generator[AgentEvent, None, AgentResult]) -> None:
    """Take a turn's events and its result into ``attempt``."""
    while True:
        try:
            attempt.events.append(next(turn))
        except StopIteration as end:
            attempt.result = end.value
            return


class HostedRig(Rig):
    """An agent that runs at its vendor and pushes its work."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, patch)
        self.remote = folder / "remote.git"
        git(folder, "clone", "--quiet", "--bare", str(self.workspace), str(self.remote))

    def attempt(self, **changes: Any) -> Attempt:
        """Submit the work, wait for its end and fetch the agent's branch into the workspace."""
        attempt = Attempt()
        hook = get_agent_hook(self.agent)
        assert isinstance(hook, HostedAgentHook)
        try:
            run = hook.submit(
                agent_id=hook.agent_id_for(str(self.folder)),
                prompt=PROMPT,
                repository=str(self.remote),
                ref="main",
                name="conformance/work",
            )
            limits = changes.get("limits") or Limits(timeout=60, stall=30)
            run = wait_for_run(hook, run.agent_id, run.run_id, limits, 0.1)
            if run.failure is not None:
                raise run.failure
        except AgentFailure as failure:
            attempt.failure = failure
            return attempt
        session = Session(self.agent, run.agent_id)
        usage = run.usage or Usage()
        attempt.result = AgentResult("completed", run.message, session=session, usage=usage)
        if run.branch:
            git(self.workspace, "fetch", "--quiet", str(self.remote), run.branch)
            git(self.workspace, "reset", "--quiet", "--hard", "FETCH_HEAD")
        return attempt


class CodexRig(LocalRig):
    """The real Codex program, against the scripted model."""

    agent = "codex"
    # Codex repeats failed requests by itself, which would only make the suite slow.
    options: ClassVar[dict[str, Any]] = {"retries": 0, "patience": 3}
    program = "app-server"
    sdk = ("openai_codex", "codex_cli_bin")

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted model."""
        return ModelServer(script)

    def connect(self, url: str, key: str = "sk-conformance-4711") -> None:
        """Set the connection; Codex wants the API's base URL."""
        super().connect(f"{url}/v1", key)

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {"model": "gpt-5.5"}


class CodexScriptRig(CodexRig):
    """Codex's default model, which calls its tools from scripts."""

    def extra(self) -> dict[str, Any]:
        """Name no model."""
        return {}


class AcpRig(LocalRig):
    """An agent that speaks the Agent Client Protocol, against the scripted model."""

    agent = "acp"
    options: ClassVar[dict[str, Any]] = {"patience": 3}

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted model."""
        return ModelServer(script)

    def connect(self, url: str, key: str = "sk-conformance-4711") -> None:
        """Set the connection; these agents want the API's base URL."""
        super().connect(f"{url}/v1", key)


class AcpScriptedRig(AcpRig):
    """The rehearsal's own agent, which asks before it does anything."""

    program = "rehearsal.acp_agent"

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        root = Path(__file__).parents[2]
        return {
            "command": [sys.executable, "-m", "airflow_agent_provider.rehearsal.acp_agent"],
            "environment": {
                "OPENAI_BASE_URL": "{model_url}",
                "OPENAI_API_KEY": "{model_key}",
                "OPENAI_MODEL": "{model}",
                "PYTHONPATH": str(root),
            },
            "model": "rehearsal",
            "read_only_folders": [sys.prefix, str(root / "airflow_agent_provider")],
            "read_only_mode": "read",
            "session_files": ["sessions/{id}.json"],
        }

    def hide_program(self, patch: pytest.MonkeyPatch) -> None:
        """Name a program that is not there."""
        patch.setattr(self, "extra", lambda: {"command": ["/nowhere/agent"], "model": "x"})
        assert self._stand_in is not None
        self.connect(self._stand_in.url)


class AcpQwenRig(AcpRig):
    """The real Qwen Code program."""

    program = "qwen-code"
    moves = False

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {"preset": "qwen", "model": "rehearsal"}


class AcpOpenCodeRig(AcpRig):
    """The real OpenCode program: 350 MB, so it is tried where somebody has installed it.

    ``npm install --prefix .programs opencode-ai@1.18.33``
    """

    program = "opencode"
    moves = False
    usage = False

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        # Where it makes room by itself, no overflow of the context is to be seen.
        alone = {"OPENCODE_DISABLE_AUTOCOMPACT": "1"}
        return {"preset": "opencode", "model": "rehearsal", "environment": alone}

    def kept(self, home: Path, session: Session) -> list[Path]:
        """Return its database, which holds all sessions."""
        return [file for file in home.rglob("opencode.db*") if file.is_file()]


class ClaudeRig(LocalRig):
    """The real Claude Code program, against the scripted model."""

    agent = "claude"
    # Claude Code repeats failed requests by itself, which would only make the suite slow.
    options: ClassVar[dict[str, Any]] = {"retries": 0, "patience": 3}
    program = "stream-json"
    sdk = ("claude_agent_sdk",)

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted model."""
        return ModelServer(script)

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {"model": "claude-sonnet-5"}


class CopilotRig(LocalRig):
    """The real Copilot runtime, against the scripted model."""

    agent = "copilot"
    # Copilot repeats failed requests by itself, which would only make the suite slow.
    options: ClassVar[dict[str, Any]] = {"patience": 3}
    program = "--headless"

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted model."""
        return ModelServer(script)

    def connect(self, url: str, key: str = "sk-conformance-4711") -> None:
        """Set the connection; a provider of one's own is named by its API's base URL."""
        super().connect(f"{url}/v1", key)

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {"model": "gpt-5.5"}


class CursorRig(HostedRig):
    """The Cursor hook, against the stand-in of Cursor's cloud."""

    agent = "cursor"

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted cloud."""
        return CursorServer(script)


class CursorLocalRig(LocalRig):
    """The real bridge of Cursor's SDK, against the stand-in of Cursor's backend."""

    agent = "cursor"
    # Cursor's program repeats failed requests by itself, which would only make the suite slow.
    options: ClassVar[dict[str, Any]] = {"hosted": False, "patience": 3}
    program = "cursor-sdk-bridge.js"
    sdk = ("cursor_sdk",)

    def stand_in(self, script: Script) -> StandIn:
        """Return the scripted backend, at the address of the cloud."""
        return CursorServer(script)

    def extra(self) -> dict[str, Any]:
        """Return the connection's extras."""
        return {"model": "composer-2.5"}

    def plays(self, server: StandIn) -> list[tuple[int, str]]:
        """Return what the scripted model played."""
        requests = server.requests  # type: ignore[attr-defined]
        return [(entry["position"], entry["action"]) for entry in requests if "action" in entry]


RIGS: dict[str, type[Rig]] = {
    "acp-qwen": AcpQwenRig,
    "acp-scripted": AcpScriptedRig,
    "claude": ClaudeRig,
    "codex": CodexRig,
    "codex-default-model": CodexScriptRig,
    "copilot": CopilotRig,
    "cursor": CursorRig,
    "cursor-local": CursorLocalRig,
}
if (load_settings().programs / "node_modules" / ".bin" / "opencode").exists():
    RIGS["acp-opencode"] = AcpOpenCodeRig


def make_repository(folder: Path) -> None:
    """Make a git repository with one commit on ``main``."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("A project.\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    git(folder, *who, "commit", "--quiet", "--message=Begin")


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it says."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip()
