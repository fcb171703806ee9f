"""Codex at work on one task: its program, its conversation, its turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    AgentResult,
    AgentTask,
    Session,
    Usage,
)
from airflow_agent_provider.agents.failures import (
    AgentFailed,
    AgentFailure,
    AuthenticationFailed,
    Interrupted,
    InvalidDefinition,
)
from airflow_agent_provider.agents.loop import SessionLoop
from airflow_agent_provider.agents.processes import MARK
from airflow_agent_provider.agents.watch import within
from airflow_agent_provider.hooks.codex_events import TurnReader, classify, trouble
from airflow_agent_provider.hooks.instructions import read_instructions
from airflow_agent_provider.hooks.local_session import LocalSession, unclassified
from airflow_agent_provider.hooks.session_files import in_one_line, settled
from airflow_agent_provider.hooks.vendor import Vendor, refused_key
from airflow_agent_provider.sandbox.box import Program
from airflow_agent_provider.sandbox.door import Upstream

if TYPE_CHECKING:
    from openai_codex import Codex, Thread
    from openai_codex.api import TurnHandle


#: Name of our model provider in Codex's configuration; sessions remember it.
_PROVIDER = "airflow"
#: Variable of the Codex program that holds the key. Its name makes Codex hide it from commands.
_KEY_VARIABLE = "CODEX_MODEL_API_KEY"
#: Seconds for the trial of Codex's own sandbox.
_TRIAL_SECONDS = 30.0
#: Seconds for Codex to end by itself before it is killed.
_CLOSE_SECONDS = 5.0
#: The project's instructions for agents: the first that exists, as Codex itself would choose.
_INSTRUCTIONS = ("AGENTS.override.md", "AGENTS.md")
#: Folders that Codex's sandbox leaves behind, empty, in the workspace.
_LEFTOVERS = (".codex", ".aws", ".agents")
#: How ids of calls begin that a script makes, and what ends the type of a record for the model.
_IN_SCRIPT = "exec-"
_OUTPUT = '_call_output"'

INSTALL = "install it on the worker with: pip install 'airflow-agent-provider[codex]'"

#: Leads the prompt of a resumed session, since Codex tells the model what is not true.
_RESUMED = (
    "If this conversation says that the user interrupted it on purpose: nobody did. It ended for a "
    "technical reason, and a command that ran at that moment did not complete.\n\n"
)


class CodexOptions(BaseModel):
    """What a step's ``options:`` may set for Codex.

    :param sandbox: what confines the agent's commands where ``[agents] sandbox`` leaves Codex
        unboxed: ``codex`` its own sandbox, ``off`` nothing.
    :param effort: how long the model reasons; None takes the model's default.
    :param retries: how often Codex itself repeats a request that failed, before the attempt fails
        and Airflow retries it.
    :param patience: seconds of nothing but Codex's own retries after which the attempt fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # YAML reads a bare ``off`` as false.
    sandbox: Annotated[
        Literal["codex", "off"], BeforeValidator(lambda v: "off" if v is False else v)
    ] = "codex"
    effort: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None
    retries: int = Field(default=1, ge=0, le=10)
    patience: float = Field(default=120.0, gt=0)


class CodexSession(LocalSession):
    """Codex at work for one task. Made by :meth:`CodexHook.start`."""

    agent = "codex"
    title = "Codex"

    def __init__(self, task: AgentTask, vendor: Vendor, options: CodexOptions) -> None:
        super().__init__(task)
        self._vendor = vendor
        self._options = options
        self._home = task.home / "codex"
        self._model = task.model or vendor.model
        self._loop = SessionLoop("codex")
        self._codex: Codex | None = None
        self._thread: Thread | None = None
        self._handle: TurnHandle | None = None
        self._resumable = False
        self._explain = False
        # A fresh session has spent nothing; what a resumed one has spent, Codex says later.
        self._spent: Usage | None = Usage()

    def open(self) -> None:
        """Start the program and open the conversation."""
        with self._failures("start"):
            program = find_program()
            self._make_home()
            box = self._open_box(self._boxed_program(program), self._upstream())
            if not box.boxed and self._options.sandbox == "codex":
                _check_sandbox(program, self._task.home, self._environment())
            seconds = self._patience()
            # The box ends with the thread that it was started from.
            self._codex = self._loop.run(_called(self._start_program), seconds, "starting Codex")
            self._thread = within(self._patience(), self._open_thread, "opening the session")

    @property
    def session(self) -> Session | None:
        """The conversation, once Codex has written something of it down."""
        if self._thread is None or not self._resumable:
            return None
        return Session("codex", self._thread.id)

    @property
    def model(self) -> str | None:
        """The model that answers: the step's, the connection's or Codex's own default."""
        return self._model

    def turn(
        self, prompt: str, *, output_schema: Mapping[str, Any] | None = None
    ) -> Generator[AgentEvent, None, AgentResult]:
        """Let Codex work on ``prompt``; see :meth:`AgentSession.turn`."""
        reader = TurnReader(self._spent)
        yield from self._tell()
        with self._failures("turn"):
            handle = within(
                self._patience(), lambda: self._begin(prompt, output_schema), "beginning the turn"
            )
            try:
                yield from self._follow(handle, reader)
            finally:
                self._spent = reader.spent
            if reader.status not in ("completed", "interrupted"):
                raise self._failure(reader.error)
        return AgentResult(
            status=reader.status,
            message=reader.message,
            structured=_structured(reader.message) if output_schema is not None else None,
            session=self.session,
            usage=reader.usage,
            model=self._model,
        )

    def interrupt(self) -> None:
        """End the turn under way; its running command ends with :meth:`close`."""
        handle = self._handle
        if handle is not None:
            with contextlib.suppress(Exception):
                within(_CLOSE_SECONDS, handle.interrupt, "interrupting Codex")

    def portable_files(self) -> Mapping[str, Path]:
        """Return the rollout, from which Codex resumes; its databases name this worker's paths."""
        if self._thread is None:
            return {}
        return {
            path.relative_to(self._task.home).as_posix(): path
            for path in _rollouts(self._home, self._thread.id)
        }

    def settle(self, call: AgentEvent) -> bool:
        """Wait until the rollout has the output that the model gets of the call."""
        return settled(
            lambda: self.portable_files().values(),
            lambda rollout: _has_output(rollout, call.call_id or ""),
        )

    def _end(self) -> None:
        codex, self._codex = self._codex, None
        if codex is not None:
            # A program that is gone already makes the SDK raise; what counts is what is left.
            with contextlib.suppress(Exception):
                within(_CLOSE_SECONDS, codex.close, "closing Codex")
        if self._box is not None:
            self._box.kill()
        self._loop.close()
        for name in _LEFTOVERS:
            # Not there, or not empty: then it is the project's own.
            with contextlib.suppress(OSError):
                (self._task.workspace / name).rmdir()

    def _make_home(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A project that Codex trusts may bring commands of its own (.codex/config.toml), which
        # run unasked at the start.
        trust = f'[projects.{_toml(str(self._task.workspace))}]\ntrust_level = "untrusted"\n'
        (self._home / "config.toml").write_text(trust)
        # Of a project without trust Codex leaves out the instructions too, which are wanted.
        (self._home / "AGENTS.md").write_bytes(
            read_instructions(self._task.workspace, *_INSTRUCTIONS)
        )

    def _boxed_program(self, program: Path) -> Program:
        return Program(
            command=(str(program),),
            folders=(program.parent, *_tool_folders()),
            environment=self._environment(),
            inherited=(_KEY_VARIABLE,),
            path=tuple(_tool_folders()),
        )

    def _environment(self) -> dict[str, str]:
        return {"CODEX_HOME": str(self._home), "NO_COLOR": "1"}

    def _upstream(self) -> Upstream:
        headers = {"Authorization": f"Bearer {self._vendor.key}"}
        return Upstream(self._vendor.url, headers, ("/responses", "/models"))

    def _start_program(self) -> Codex:
        from openai_codex import Codex, CodexConfig

        settings = [part for setting in self._settings() for part in ("--config", setting)]
        command = (str(self.box.wrapper), *settings, "app-server", "--listen", "stdio://")
        return Codex(
            CodexConfig(
                launch_args_override=command,
                cwd=str(self._task.workspace),
                env={_KEY_VARIABLE: self.box.model_key},
                client_name="airflow_agent_provider",
                client_title="Airflow",
            )
        )

    def _settings(self) -> Iterator[str]:
        provider = f"model_providers.{_PROVIDER}"
        yield f"model_provider={_toml(_PROVIDER)}"
        # Not "OpenAI": of that, Codex expects services that a gateway need not have.
        yield f'{provider}.name="Airflow"'
        yield f"{provider}.base_url={_toml(self.box.model_url)}"
        yield f"{provider}.env_key={_toml(_KEY_VARIABLE)}"
        yield f'{provider}.wire_api="responses"'
        yield f"{provider}.request_max_retries={self._options.retries}"
        yield f"{provider}.stream_max_retries={self._options.retries}"
        # Else a refused connection is tried again for ever, whatever the retries above say.
        yield "features.unbounded_connection_retries=false"
        # These two look up services of the vendor's, apart from the model.
        yield "features.plugins=false"
        yield "analytics.enabled=false"
        # Codex counts its sub-agents' tokens in none of the figures that it reports.
        yield "agents.enabled=false"
        yield "features.hooks=false"
        # Searching the web is a way out for data, and a way in for instructions.
        yield 'web_search="disabled"'
        if self._options.effort:
            yield f"model_reasoning_effort={_toml(self._options.effort)}"
        yield 'shell_environment_policy.inherit="core"'
        yield "shell_environment_policy.ignore_default_excludes=false"
        yield f"shell_environment_policy.set={{{MARK}={_toml(self.box.mark)}}}"
        yield "sandbox_workspace_write.network_access=false"
        # Other steps of the worker use it too; this session has a TMPDIR of its own.
        yield "sandbox_workspace_write.exclude_slash_tmp=true"

    def _open_thread(self) -> Thread:
        from openai_codex import ApprovalMode, Sandbox

        assert self._codex is not None
        if self._model is None:
            # A resumed session would keep the model that it had; and the result names it.
            models = self._codex.models().data
            self._model = next((model.model for model in models if model.is_default), None)
        if self.box.boxed or self._options.sandbox == "off":
            # In the box its own sandbox could not make another namespace.
            sandbox = Sandbox.full_access
        elif self._task.access is Access.READ_ONLY:
            sandbox = Sandbox.read_only
        else:
            sandbox = Sandbox.workspace_write
        arguments: dict[str, Any] = {
            "cwd": str(self._task.workspace),
            "model": self._model,
            "model_provider": _PROVIDER,
            "sandbox": sandbox,
            "approval_mode": ApprovalMode.deny_all,
        }
        earlier = self._task.session
        if earlier is None:
            return self._codex.thread_start(**arguments)
        return self._resume(earlier, arguments)

    def _resume(self, earlier: Session, arguments: Mapping[str, Any]) -> Thread:
        assert self._codex is not None
        if earlier.agent != "codex" or not _rollouts(self._home, earlier.id):
            return self._start_afresh(f"the files of {earlier.id} are not here", arguments)
        from openai_codex.errors import InvalidRequestError

        try:
            thread = self._codex.thread_resume(earlier.id, **arguments)
        except InvalidRequestError as error:
            if "active writer" in error.message:
                raise Interrupted(
                    f"an earlier attempt's Codex still works in session {earlier.id}; "
                    "the next attempt resumes it",
                    raw=str(error),
                ) from error
            return self._start_afresh(error.message, arguments)
        self._spent = None
        self._explain = self._resumable = True
        return thread

    def _start_afresh(self, why: str, arguments: Mapping[str, Any]) -> Thread:
        assert self._codex is not None
        self._notices.append(f"The session cannot be continued, a new one starts: {why}")
        return self._codex.thread_start(**arguments)

    def _begin(self, prompt: str, output_schema: Mapping[str, Any] | None) -> TurnHandle:
        assert self._thread is not None
        text = _RESUMED + prompt if self._explain else prompt
        self._explain = False
        schema = None if output_schema is None else dict(output_schema)
        return self._thread.turn(text, output_schema=schema)

    def _follow(self, handle: TurnHandle, reader: TurnReader) -> Iterator[AgentEvent]:
        self._handle = handle
        notifications = self._watch(
            handle.stream(), trouble=trouble, patience=self._options.patience
        )
        try:
            for notification in notifications:
                if notification.method == "item/completed":
                    self._resumable = True
                    yield from self._announce()
                yield from reader.events(notification)
        except GeneratorExit:
            # The box passes no signal on: only so is the end of the turn written down.
            self.interrupt()
            raise
        finally:
            self._handle = None

    def _failure(self, error: Any) -> AgentFailure:
        failure = classify(error)
        if isinstance(failure, AuthenticationFailed):
            return refused_key(self._vendor, failure.raw)
        return failure

    def _classify(self, error: Exception, doing: str) -> AgentFailure:
        from openai_codex.errors import TransportClosedError

        raw = f"{type(error).__name__}: {error}"
        if doing == "start":
            return AgentFailed("Codex did not start", raw=raw)
        if isinstance(error, TransportClosedError | OSError | ValueError):
            return Interrupted("the Codex program ended in the middle of the turn", raw=raw)
        return unclassified("Codex", error)


async def _called(call: Callable[[], Codex]) -> Codex:
    return call()


def find_program() -> Path:
    """Return the program that comes with the SDK; InvalidDefinition where there is none."""
    try:
        import openai_codex  # noqa: F401
        from codex_cli_bin import bundled_codex_path

        return Path(bundled_codex_path())
    except (ImportError, FileNotFoundError) as error:
        raise InvalidDefinition(f"OpenAI Codex is missing; {INSTALL}", raw=str(error)) from error


def _tool_folders() -> list[Path]:
    from codex_cli_bin import bundled_path_dir

    folder = bundled_path_dir()
    return [] if folder is None else [Path(folder)]


#: Programs whose sandbox was seen to work in this process.
_sandbox_works: set[Path] = set()


def _check_sandbox(program: Path, home: Path, environment: Mapping[str, str]) -> None:
    """Make sure that Codex's own sandbox works: commands fail without, and turns "complete"."""
    if program in _sandbox_works:
        return
    try:
        trial = subprocess.run(
            [str(program), "sandbox", "--", "true"],
            env={
                **environment,
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(home),
                "TMPDIR": str(home / "tmp"),
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentFailed(f"Codex's program does not run: {error}") from error
    if trial.returncode != 0:
        raise InvalidDefinition(
            "Codex's sandbox does not work on this worker, so its commands would fail; allow user "
            "namespaces there (in a container, by its seccomp and AppArmor profiles) or, in a "
            "throw-away container only, give the step 'options: {sandbox: off}'",
            raw=trial.stderr.strip()[-2000:],
        )
    _sandbox_works.add(program)


def _rollouts(home: Path, thread_id: str) -> list[Path]:
    return sorted((home / "sessions").rglob(f"rollout-*{thread_id}.jsonl"))


def _has_output(rollout: bytes, call_id: str) -> bool:
    """Return whether the end of a rollout has what the model is told of a call.

    A call of a script has an id that only its own record has; what the model gets is the script's
    output, which stands after it.
    """
    if not call_id.startswith(_IN_SCRIPT):
        return in_one_line(json.dumps(call_id), _OUTPUT)(rollout)
    _, found, after = rollout.rpartition(json.dumps(call_id).encode())
    return bool(found) and _OUTPUT.encode() in after


def _structured(message: str) -> Any:
    try:
        return json.loads(message)
    except ValueError:
        return None


def _toml(text: str) -> str:
    # A JSON string is a TOML string, as long as it keeps its characters.
    return json.dumps(text, ensure_ascii=False)
