"""Agents as Cursor hosts them, played by a script: each works in a clone and pushes its branch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_agent_provider.rehearsal.processes import Ended, Processes
from airflow_agent_provider.rehearsal.script import Action, Fail, Script, Write

log = logging.getLogger(__name__)

#: Seconds for one command of the script, and for one git command.
COMMAND_TIMEOUT = 600.0
GIT_TIMEOUT = 120.0
#: An invented price, so that costs and budgets can be rehearsed: US cents per token.
CENTS_PER_TOKEN = 0.001

_STEP = re.compile(r"^Step: (?P<step>\S+) of workflow ", re.MULTILINE)
_UNSAFE = re.compile(r"[^a-z0-9]+")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Trouble(Exception):
    """The run cannot go on; the text is what the vendor would say."""


class Play:
    """How far the script of one agent has come.

    A failure that concerns requests stands in the way until it was answered often enough, so that
    the script and whoever asks meet at the same place.
    """

    def __init__(self, actions: list[Action]) -> None:
        self._actions = actions
        self._position = 0
        self._used = 0
        self._changed = threading.Condition()

    def failing_request(self) -> Fail | None:
        """Return the failure that answers the request at hand, and count it."""
        with self._changed:
            fail = self._fail()
            if fail is None or fail.how in ("error", "hang", "silence"):
                return None
            self._count(fail)
            return fail

    def next(self, ended: threading.Event) -> Action | None:
        """Return the action to play, or None if no more is left in this turn's script.

        Waits where requests must fail first.

        :param ended: cuts the wait short.
        :raises Ended: if it did.
        """
        with self._changed:
            while True:
                fail = self._fail()
                if fail is None or fail.how in ("error", "hang", "silence"):
                    break
                if ended.is_set():
                    raise Ended
                self._changed.wait(0.2)
            if self._position >= len(self._actions):
                return None
            action = self._actions[self._position]
            if fail is None:
                self._advance()
            else:
                self._count(fail)
            return action

    def _fail(self) -> Fail | None:
        if self._position >= len(self._actions):
            return None
        return self._actions[self._position].fail

    def _count(self, fail: Fail) -> None:
        self._used += 1
        if fail.times is not None and self._used >= fail.times:
            self._advance()

    def _advance(self) -> None:
        self._position += 1
        self._used = 0
        self._changed.notify_all()


@dataclass
class Run:
    """One prompt to an agent, and what came of it."""

    agent_id: str
    prompt: str
    id: str = field(default_factory=lambda: f"run-{uuid.uuid4()}")
    status: str = "CREATING"
    created_at: str = field(default_factory=_now)
    updated_at: str = field(default_factory=_now)
    started: float = field(default_factory=time.monotonic)
    result: str = ""
    error: dict[str, str] | None = None
    duration_ms: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)
    thread: threading.Thread | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self.status in ("CREATING", "RUNNING")

    def to_status(self, status: str) -> None:
        """Enter ``status``; a run that has ended stays as it is."""
        with self.lock:
            if self.active:
                self.status, self.updated_at = status, _now()
                self.duration_ms = int((time.monotonic() - self.started) * 1000)

    def tell(self, event: str, **data: Any) -> None:
        """Add an event to the run's stream."""
        self.events.append({"id": f"{self.id}:{len(self.events)}", "event": event, "data": data})

    def usage(self) -> dict[str, Any]:
        """Return tokens, about four characters each, and their invented cost."""
        read = len(self.prompt) // 4 + 1
        written = (len(self.result) + sum(len(json.dumps(e["data"])) for e in self.events)) // 4 + 1
        cents = round((read + written) * CENTS_PER_TOKEN, 6)
        return {
            "id": self.id,
            "usage": {
                "inputTokens": read,
                "outputTokens": written,
                "cacheReadTokens": 0,
                "cacheWriteTokens": 0,
                "totalTokens": read + written,
            },
            "cost": {"rawCostCents": cents, "chargedCents": cents},
        }


@dataclass
class Agent:
    """A conversation and its machine, which keeps the clone from one run to the next.

    One without a repository works in an empty folder and pushes nothing.
    """

    id: str
    name: str
    repository: str
    ref: str
    folder: Path
    play: Play
    created_at: str = field(default_factory=_now)
    runs: list[Run] = field(default_factory=list)
    pushed: str | None = None
    archived: bool = False

    @property
    def branch(self) -> str:
        """The branch that the agent works on."""
        readable = _UNSAFE.sub("-", self.name.lower()).strip("-")[:50].rstrip("-") or "agent"
        return f"cursor/{readable}-{hashlib.sha256(self.id.encode()).hexdigest()[:6]}"

    @property
    def clone(self) -> Path:
        """The agent's work tree."""
        return self.folder / "repository"


def step_of(prompt: str, name: str) -> str:
    """Return the id of the step that a prompt belongs to.

    :param prompt: its contract section, at its end, has a line ``Step: <id> of workflow …``; a
        prompt may quote another step's prompt, so the last such line counts.
    :param name: else the third part of the agent's name ``<dag>/<run>/<step>…``.
    """
    named = _STEP.findall(prompt)
    if named:
        return str(named[-1])
    parts = name.split("/")
    return re.split(r"[^\w.-]", parts[2])[0] if len(parts) > 2 else ""


def plays_of(script: Script, prompt: str, name: str) -> Play:
    """Return a play of the script's step that a prompt belongs to."""
    return Play(script.actions(step_of(prompt, name)))


def perform(agent: Agent, run: Run) -> None:
    """Play the script's next turn for ``run``; never raises."""
    try:
        _open_clone(agent, run)
        run.to_status("RUNNING")
        while run.active:
            if _perform_next(agent, run):
                break
        if run.active:
            _push(agent, run)
            run.to_status("FINISHED")
    except Ended:
        run.to_status("CANCELLED")
    except Trouble as trouble:
        run.error = run.error or {"code": "agent_error", "message": str(trouble)}
        run.to_status("ERROR")
    except Exception as error:
        log.exception("the stand-in failed in run %s", run.id)
        run.error = {"code": "internal_error", "message": f"{type(error).__name__}: {error}"}
        run.to_status("ERROR")


def remote_refuses(repository: str, ref: str, processes: Processes, folder: Path) -> str:
    """Return why an agent cannot start from ``ref`` of ``repository``; empty if it can."""
    command = ["git", "ls-remote", "--quiet", "--", repository]
    listing = processes.run(command, folder=folder, env=_environment(folder), timeout=GIT_TIMEOUT)
    if listing.returncode:
        return f"repository {repository} cannot be read: {_reason(listing.output)}"
    names = {line.partition("\t")[2] for line in listing.output.splitlines()}
    hashes = {line.partition("\t")[0] for line in listing.output.splitlines()}
    known = {ref, f"refs/heads/{ref}", f"refs/tags/{ref}"} & names
    if ref and not known and ref not in hashes and not re.fullmatch(r"[0-9a-f]{40}", ref):
        return f"startingRef {ref} is no branch, tag or commit of repository {repository}"
    return ""


def _perform_next(agent: Agent, run: Run) -> bool:
    """Play one action; return whether it ended the turn."""
    action = agent.play.next(run.processes.ended)
    if run.processes.ended.is_set():
        raise Ended
    if action is None:
        run.result = "Done."
        return True
    if action.write is not None:
        _write(agent, run, action.write)
    elif action.run is not None:
        _run_command(agent, run, action.run)
    elif action.fail is not None:
        _fail(run, action.fail)
    else:
        run.result = action.say if isinstance(action.say, str) else json.dumps(action.say)
        run.tell("assistant", text=run.result)
        return True
    return False


def _write(agent: Agent, run: Run, write: Write) -> None:
    path = (agent.clone / write.path).resolve()
    if not path.is_relative_to(agent.clone.resolve()) or ".git" in path.parts:
        raise Trouble(f"the script writes {write.path}, which is outside the repository")
    run.tell("tool_call", name="write", status="running", args={"path": write.path})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write.content)
    run.tell("tool_call", name="write", status="completed")


def _run_command(agent: Agent, run: Run, command: str) -> None:
    run.tell("tool_call", name="shell", status="running", args={"command": command})
    done = run.processes.run(
        ["sh", "-c", command],
        folder=agent.clone,
        env=_environment(agent.folder),
        timeout=COMMAND_TIMEOUT,
    )
    # A real agent reads a failure and goes on; so does the script.
    run.tell("tool_call", name="shell", status="completed", exitCode=done.returncode)
    log.info("%s: `%s` ended with %d\n%s", agent.name, command, done.returncode, done.output)


def _fail(run: Run, fail: Fail) -> None:
    if fail.how in ("hang", "silence"):
        run.processes.ended.wait()
        raise Ended
    message = fail.message or "the rehearsal script says so"
    run.error = {"code": fail.code or "agent_error", "message": message}
    raise Trouble(message)


def _open_clone(agent: Agent, run: Run) -> None:
    """Clone the repository, unless the run before left its clone behind."""
    if agent.clone.exists():
        # Left by a git that was killed with the run before.
        (agent.clone / ".git" / "index.lock").unlink(missing_ok=True)
        return
    if not agent.repository:
        agent.clone.mkdir(parents=True)
        return
    # Under another name until it is complete: a run can be cancelled at any moment.
    fresh = agent.folder / "cloning"
    shutil.rmtree(fresh, ignore_errors=True)
    agent.folder.mkdir(parents=True, exist_ok=True)
    _git(run, agent.folder, "clone", "--quiet", "--", agent.repository, str(fresh))
    _git(run, fresh, "checkout", "--quiet", "-B", agent.branch, *_start(agent, run, fresh))
    fresh.rename(agent.clone)


def _start(agent: Agent, run: Run, clone: Path) -> list[str]:
    """Return the commit to start from; none in an empty repository, where history begins."""
    start = agent.pushed or agent.ref
    names = [f"refs/remotes/origin/{start}", f"refs/tags/{start}", start] if start else ["HEAD"]
    for name in names:
        question = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"]
        status, commit = _try_git(run, clone, *question)
        if status == 0:
            return [commit.strip()]
    if start:
        raise Trouble(f"{start} is no branch, tag or commit of {agent.repository}")
    return []


def _push(agent: Agent, run: Run) -> None:
    """Commit what changed and push it; without a change there is no branch."""
    if not agent.repository:
        shutil.rmtree(agent.folder, ignore_errors=True)
        return
    _git(run, agent.clone, "add", "--all")
    if _try_git(run, agent.clone, "diff", "--cached", "--quiet")[0]:
        first_line = (run.result.strip().splitlines() or ["Work"])[0][:72] or "Work"
        _git(run, agent.clone, "commit", "--quiet", "--message", first_line)
    head = _try_git(run, agent.clone, "rev-parse", "--verify", "--quiet", "HEAD")[1].strip()
    known = _git(run, agent.clone, "for-each-ref", "--format=%(objectname)", "refs/remotes/origin")
    if head and head not in known.split():
        _git(run, agent.clone, "push", "--quiet", "origin", f"HEAD:refs/heads/{agent.branch}")
        agent.pushed = agent.branch
    # The machine is put to sleep; a follow-up run clones the branch again.
    shutil.rmtree(agent.folder, ignore_errors=True)


def _git(run: Run, folder: Path, *arguments: str) -> str:
    status, output = _try_git(run, folder, *arguments)
    if status:
        raise Trouble(f"git {arguments[0]} failed: {_reason(output)}")
    return output


def _try_git(run: Run, folder: Path, *arguments: str) -> tuple[int, str]:
    done = run.processes.run(
        ["git", *arguments], folder=folder, env=_environment(folder.parent), timeout=GIT_TIMEOUT
    )
    return done.returncode, done.output


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of every command: nothing of the stand-in's own but the PATH."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Cursor Agent",
        "GIT_AUTHOR_EMAIL": "cursoragent@example.invalid",
        "GIT_COMMITTER_NAME": "Cursor Agent",
        "GIT_COMMITTER_EMAIL": "cursoragent@example.invalid",
    }


def _reason(output: str) -> str:
    # git adds advice after the reason, and progress before it.
    lines = [line for line in output.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (reasons or lines or ["no reason given"])[0]
