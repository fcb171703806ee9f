"""What every agent's hook must do, with the real program or client against a scripted vendor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import (
    Access,
    AgentEvent,
    EventKind,
    Limits,
    Session,
    ToolKind,
    ToolStatus,
    Usage,
)
from airflow_agent_provider.agents.registry import AGENTS
from airflow_agent_provider.hooks.agent import get_agent_hook
from tests.conformance.rigs import PROMPT, RIGS, Attempt, HostedRig, LocalRig, Rig, follow, git

pytestmark = pytest.mark.integration

LOCAL = [name for name, rig in RIGS.items() if issubclass(rig, LocalRig)]
#: One rig of each agent program, for what does not depend on the model.
EACH = list({RIGS[name].program: name for name in reversed(LOCAL)}.values())
WRITES = {"write": {"path": "docs/deep/plan.md", "content": "# Plan\n\n- one\n"}}
HANGS = {"fail": {"how": "hang", "times": None}}


@pytest.fixture(params=RIGS)
def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    made = RIGS[request.param](tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture(params=LOCAL)
def local(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalRig]:
    made = RIGS[request.param](tmp_path, monkeypatch)
    assert isinstance(made, LocalRig)
    yield made
    made.close()


@pytest.fixture
def one_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalRig]]:
    """Make a rig by name, one of :data:`EACH`."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> LocalRig:
            made = RIGS[name](tmp_path, monkeypatch)
            assert isinstance(made, LocalRig)
            stack.callback(made.close)
            return made

        yield make


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < end, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


def kinds(events: list[AgentEvent]) -> list[EventKind]:
    return [event.kind for event in events]


def test_every_agent_has_a_row() -> None:
    assert {rig.agent for rig in RIGS.values()} == set(AGENTS)


def test_it_changes_files_and_says_so(rig: Rig) -> None:
    rig.rehearse(
        WRITES,
        {"write": {"path": "README.md", "content": "replaced, without an end of line"}},
        {"run": "printf 'a\\tb' > 'with space.txt'"},
        {"say": "It is done."},
    )
    result = rig.attempt().done
    assert (result.status, result.message) == ("completed", "It is done.")
    assert result.session is not None
    assert result.session.agent == rig.agent
    assert (rig.workspace / "docs/deep/plan.md").read_text() == "# Plan\n\n- one\n"
    assert (rig.workspace / "README.md").read_text() == "replaced, without an end of line"
    assert (rig.workspace / "with space.txt").read_text() == "a\tb"
    assert (result.usage.input_tokens > 0) is rig.usage
    assert (result.usage.output_tokens > 0) is rig.usage


def test_it_commits_nothing_by_itself(local: LocalRig) -> None:
    before = git(local.workspace, "rev-parse", "HEAD")
    local.rehearse(WRITES, {"run": "git commit -qam x || true"}, {"say": "Done."})
    assert local.attempt().result
    assert git(local.workspace, "rev-parse", "HEAD") == before
    assert git(local.workspace, "status", "--porcelain") == "?? docs/"


def test_a_structured_answer(local: LocalRig) -> None:
    schema = {
        "type": "object",
        "properties": {"approved": {"type": "boolean"}},
        "required": ["approved"],
        "additionalProperties": False,
    }
    local.rehearse({"say": {"approved": True}})
    assert local.attempt(schema=schema).done.structured == {"approved": True}
    local.rehearse({"say": "I approve."})
    result = local.attempt(schema=schema).done
    assert (result.structured, result.message) == (None, "I approve.")


def test_read_only_is_read_only(local: LocalRig) -> None:
    local.rehearse(
        WRITES, {"run": "touch here || echo refused; rm -f README.md"}, {"say": "I only read."}
    )
    assert local.attempt(access=Access.READ_ONLY).done.message == "I only read."
    assert git(local.workspace, "status", "--porcelain", "--ignored") == ""
    assert sorted(path.name for path in local.workspace.iterdir()) == [".git", "README.md"]


def test_events_come_while_it_works(local: LocalRig) -> None:
    local.rehearse(WRITES, {"run": "sleep 0.5; touch late; echo out; exit 3"}, {"say": "Done."})
    attempt = Attempt()
    marks = []
    with local.start() as session:
        turn = session.turn(PROMPT)
        while not (marks and EventKind.MESSAGE in kinds(attempt.events)):
            attempt.events.append(next(turn))
            marks.append((local.workspace / "late").exists())
        follow(attempt, turn)
    assert kinds(attempt.events)[0] is EventKind.SESSION
    # They came before the agent had done all that they tell of.
    assert marks[0] is False
    edit, edited, ran, ended = [e for e in attempt.events if e.tool is not None]
    assert (edit.tool, edit.status) == (ToolKind.EDIT, ToolStatus.IN_PROGRESS)
    assert edit.data["paths"] == [str(local.workspace / "docs/deep/plan.md")]
    assert (edited.call_id, edited.status) == (edit.call_id, ToolStatus.COMPLETED)
    assert edited.completes_tool
    assert (ran.kind, ran.tool) == (EventKind.TOOL_CALL, ToolKind.EXECUTE)
    assert (ended.kind, ended.status) == (EventKind.TOOL_CALL_UPDATE, ToolStatus.FAILED)
    assert ended.data["exit_code"] == 3
    assert "out" in ended.data["output"]
    assert all(json.dumps(event.to_dict()) for event in attempt.events)
    result = attempt.done
    spent = Usage()
    for event in attempt.events:
        if event.kind is EventKind.USAGE:
            values = dict(event.data)
            assert values.pop("total_tokens") > 0 or values["cost"] > 0
            spent += Usage(**values)
    assert spent == result.usage
    assert (result.usage.cached_tokens < result.usage.input_tokens) is local.usage


def test_a_second_turn_continues_and_counts_its_own_tokens(local: LocalRig) -> None:
    local.rehearse({"say": "first"}, WRITES, {"say": "second"})
    first, second = Attempt(), Attempt()
    with local.start() as session:
        follow(first, session.turn(PROMPT))
        follow(second, session.turn("It is incomplete. Mend it."))
    assert (first.done.message, second.done.message) == ("first", "second")
    assert first.done.session == second.done.session
    assert (local.workspace / "docs/deep/plan.md").exists()
    spent = first.done.usage.output_tokens, second.done.usage.output_tokens
    assert spent[0] < spent[1] if local.usage else spent == (0, 0)
    assert EventKind.SESSION not in kinds(second.events)


DRIVER = """
import json, sys
from pathlib import Path
from airflow_agent_provider.agents.contract import AgentTask, Limits, Session
from airflow_agent_provider.hooks.agent import get_agent_hook

agent, workspace, home, prompt, options = sys.argv[1:]
task = AgentTask(prompt, Path(workspace), Path(home), limits=Limits(60, 30),
                 options=json.loads(options))
with get_agent_hook(agent).start(task) as session:
    for event in session.turn(prompt):
        print(json.dumps(event.to_dict()), flush=True)
"""


def test_killed_in_mid_command_it_resumes_in_another_process_and_folder(local: LocalRig) -> None:
    server = local.rehearse(
        WRITES,
        # The second time, there is nothing to wait for.
        {"run": "test -e running || { touch running; sleep 301; }"},
        {"write": {"path": "second.md", "content": "b\n"}},
        {"say": "Resumed."},
    )
    driver = [sys.executable, "-c", DRIVER, local.agent, str(local.workspace), str(local.home)]
    child = subprocess.Popen(
        [*driver, PROMPT, json.dumps(local.options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        eventually((local.workspace / "running").exists)
        # Some agents write down a little later what they do.
        eventually(lambda: any("touch running" in text for text in texts(local.home)))
    finally:
        os.kill(child.pid, signal.SIGKILL)
    lines = child.communicate(timeout=20)[0].splitlines()
    # Airflow may log to the same stream.
    events = [json.loads(line) for line in lines if line.startswith("{")]
    session = Session(local.agent, next(e["text"] for e in events if e["kind"] == "session"))
    # The program and its command end, although nobody told them to.
    eventually(lambda: not processes_that_name(str(local.folder)))

    git(local.workspace, "add", "--all")
    left, moved = local.elsewhere()
    home = left / local.home.name
    shutil.copytree(left / local.workspace.name / "docs", moved.workspace / "docs")
    (moved.workspace / "running").touch()
    for file in local.kept(home, session):
        copy = moved.home / file.relative_to(home)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    shutil.rmtree(home)
    attempt = moved.attempt(session=session)
    assert attempt.done.message == "Resumed."
    assert attempt.done.session == session
    assert attempt.events[0] == AgentEvent(
        EventKind.SESSION, session.id, data={"agent": local.agent}
    )
    assert (moved.workspace / "second.md").exists()
    assert not (left / local.workspace.name / "second.md").exists()
    # The first action was not done again, and only the new turn's tokens count.
    assert local.plays(server) == [(0, "write"), (1, "run"), (1, "run"), (2, "write"), (3, "say")]
    assert attempt.done.usage.output_tokens < 600


def texts(folder: Path) -> Iterator[str]:
    # The agent is at work: what was listed may be gone by now.
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield Path(place, name).read_text(errors="replace")


def processes_that_name(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                folder = str((entry / "cwd").readlink())
                if text in line or folder.startswith(text):
                    found.append(f"{entry.name}: {line}")
    return found


def test_the_portable_files_lie_below_the_home_and_resume_the_session(local: LocalRig) -> None:
    local.rehearse({"say": "one"}, {"say": "two"})
    attempt = Attempt()
    with local.start() as session:
        follow(attempt, session.turn(PROMPT))
        files = {path: file.read_bytes() for path, file in session.portable_files().items()}
    assert files
    _, moved = local.elsewhere()
    for path, content in files.items():
        file = moved.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    result = moved.attempt(session=attempt.done.session).done
    assert result.message == "two"
    assert result.session == attempt.done.session
    before = attempt.done.usage.output_tokens
    assert result.usage.output_tokens < 2 * before if local.usage else before == 0


def test_a_call_that_has_ended_stands_in_the_files_that_are_kept_then(local: LocalRig) -> None:
    server = local.rehearse(
        {"run": "echo once >> done.txt"},
        {"run": "test -e running || { touch running; sleep 306; }"},
        {"say": "Resumed."},
    )
    with local.start() as session:
        turn = session.turn(PROMPT)
        ended = next(event for event in turn if event.completes_tool)
        session.settle(ended)
        # The program works on, and what it writes from now on is not kept.
        files = {path: file.read_bytes() for path, file in session.portable_files().items()}
        known = session.session
    _, moved = local.elsewhere()
    (moved.workspace / "running").touch()
    for path, content in files.items():
        file = moved.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    assert moved.attempt(session=known).done.message == "Resumed."
    assert [play for play in local.plays(server) if play[0] == 0] == [(0, "run")]
    assert not (moved.workspace / "done.txt").exists()


def test_a_session_without_its_files_starts_afresh_and_says_so(local: LocalRig) -> None:
    local.rehearse({"say": "Anew."})
    lost = Session(local.agent, "019d0000-0000-7000-8000-000000000000")
    attempt = local.attempt(session=lost)
    assert attempt.done.message == "Anew."
    assert attempt.done.session != lost
    assert any(e.kind is EventKind.NOTICE and lost.id in e.text for e in attempt.events)


def test_interrupt_ends_the_turn(local: LocalRig) -> None:
    local.rehearse({"run": "touch running; sleep 302"}, {"say": "Never."})
    attempt = Attempt()
    with local.start() as session:
        interrupter = threading.Thread(
            target=lambda: (
                eventually((local.workspace / "running").exists),
                session.interrupt(),
            )
        )
        interrupter.start()
        follow(attempt, session.turn(PROMPT))
        interrupter.join()
        session.interrupt()
    assert attempt.done.status == "interrupted"
    assert attempt.done.session is not None
    assert not processes_that_name(str(local.folder))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((2.0, 60.0), f.TimedOut), ((60.0, 1.5), f.Stalled)],
)
def test_silence_ends_in_time(rig: Rig, limits: tuple[float, float], expected: type) -> None:
    rig.rehearse(HANGS)
    started = time.monotonic()
    attempt = rig.attempt(limits=Limits(*limits))
    assert type(attempt.failure) is expected
    assert time.monotonic() - started < 20


def test_a_long_command_ends_at_the_deadline_with_everything_it_started(local: LocalRig) -> None:
    local.rehearse({"run": "(setsid sleep 303 >/dev/null 2>&1 &); trap '' TERM; sleep 303"})
    attempt = local.attempt(limits=Limits(timeout=3, stall=60))
    assert isinstance(attempt.failure, f.TimedOut)
    assert not processes_that_name(str(local.folder))


#: What the vendor does, and the one class that it is.
FAILURES: list[tuple[str, dict[str, Any], type[f.AgentFailure]]] = [
    ("401", {"status": 401, "message": "Incorrect API key"}, f.AuthenticationFailed),
    ("403", {"status": 403, "message": "No access"}, f.AuthenticationFailed),
    ("quota", {"status": 429, "code": "insufficient_quota"}, f.QuotaExhausted),
    ("429", {"status": 429, "message": "Slow down"}, f.RateLimited),
    ("500", {"status": 500, "message": "Oops"}, f.Unavailable),
    ("503", {"status": 503, "message": "Down"}, f.Unavailable),
    ("overloaded", {"status": 503, "code": "server_is_overloaded"}, f.Unavailable),
    ("dropped", {"how": "drop"}, f.Unavailable),
    ("reset", {"how": "refuse"}, f.Unavailable),
    ("bad model", {"status": 400, "code": "model_not_found"}, f.AgentFailed),
    ("context", {"how": "error", "code": "context_length_exceeded"}, f.ContextExhausted),
    ("context 400", {"status": 400, "code": "context_length_exceeded"}, f.ContextExhausted),
]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    ("fail", "expected"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
def test_each_failure_is_one_class(
    one_local: Callable[[str], LocalRig], name: str, fail: dict[str, Any], expected: type
) -> None:
    rig = one_local(name)
    rig.rehearse(WRITES, {"fail": {**fail, "times": None}})
    attempt = rig.attempt()
    assert type(attempt.failure) is expected, attempt.failure
    assert attempt.failure.raw
    # What was done before is kept, and the session with it.
    assert (rig.workspace / "docs/deep/plan.md").exists()
    assert EventKind.SESSION in kinds(attempt.events)


def test_a_refused_connection_ends_within_bounds(rig: Rig) -> None:
    rig.connect(rig.nowhere())
    started = time.monotonic()
    attempt = rig.attempt(limits=Limits(timeout=40, stall=30))
    assert isinstance(attempt.failure, f.Unavailable)
    assert time.monotonic() - started < 35


def test_no_connection_and_no_key(rig: Rig) -> None:
    rig.rehearse({"say": "x"})
    rig.connect("http://127.0.0.1:9", key="")
    failure = rig.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert f"{rig.agent}_default" in failure.reason
    rig.disconnect()
    failure = rig.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert f"airflow connections add {rig.agent}_default" in failure.reason


def test_the_connections_test_button(rig: Rig) -> None:
    url = rig.rehearse({"say": "x"}).url
    hook = get_agent_hook(rig.agent)
    assert hook.test_connection()[0] is True
    rig.connect(url, key="invalid-key")
    works, why = get_agent_hook(rig.agent).test_connection()
    assert not works
    assert "401" in why or "key" in why.lower()
    rig.connect(rig.nowhere())
    assert get_agent_hook(rig.agent).test_connection()[0] is False
    rig.disconnect()
    works, why = get_agent_hook(rig.agent).test_connection()
    assert not works
    assert "does not exist" in why


def test_a_program_that_dies_is_an_interruption(local: LocalRig) -> None:
    local.rehearse({"run": "touch running; sleep 304"}, {"say": "Never."})

    def kill() -> None:
        eventually((local.workspace / "running").exists)
        for line in processes_that_name(str(local.folder)):
            # The rest of them may end with the first.
            if local.program in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.partition(":")[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    attempt = local.attempt()
    killer.join()
    assert isinstance(attempt.failure, f.Interrupted)
    assert attempt.failure.raw
    eventually(lambda: not processes_that_name(str(local.folder)))


def test_nothing_is_left_behind(local: LocalRig) -> None:
    local.rehearse({"run": "(setsid nohup sleep 305 >/dev/null 2>&1 &); echo"}, {"say": "Done."})
    assert local.attempt().done.message == "Done."
    assert not processes_that_name(str(local.folder))
    assert sorted(path.name for path in local.workspace.iterdir()) == [".git", "README.md"]


def test_the_agent_sees_none_of_the_workers_secrets(
    local: LocalRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD", "PLAIN"):
        monkeypatch.setenv(name, "canary-8237465")
    local.rehearse(
        {"run": "env > env.txt; cat /proc/*/environ >> env.txt 2>/dev/null; true"},
        {"say": "Done."},
    )
    assert local.attempt().done.message == "Done."
    seen = (local.workspace / "env.txt").read_text()
    assert "PATH=" in seen
    for secret in ("canary-8237465", "sk-conformance-4711", "AIRFLOW", "AWS_"):
        assert secret not in seen
    # Nor does anything that is kept.
    for file in local.home.rglob("*"):
        if file.is_file():
            assert b"sk-conformance-4711" not in file.read_bytes()


def test_a_hosted_agent_is_attached_to_and_never_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind in RIGS.items():
        if issubclass(kind, HostedRig):
            rig = kind(tmp_path / name, monkeypatch)
            rig.rehearse(WRITES, {"say": "Done."})
            first, second = rig.attempt().done, rig.attempt().done
            rig.close()
            assert first.session == second.session
