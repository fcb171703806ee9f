"""Cursor on the worker with the real bridge; what all agents share is in ``tests/conformance``."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import (
    Access,
    Confinement,
    EventKind,
    Limits,
    Network,
    Sandbox,
    Session,
)
from airflow_agent_provider.agents.processes import end_at_home
from airflow_agent_provider.hooks.cursor import DEFAULT_BACKEND, CursorHook
from airflow_agent_provider.hooks.cursor_store import Store
from tests.conformance.rigs import PROMPT, Attempt, CursorLocalRig, follow
from tests.conformance.test_agent_hooks import eventually, processes_that_name

pytestmark = pytest.mark.integration

UNBOXED = Confinement(sandbox=Sandbox.OFF)
OPEN = Confinement(network=Network.OPEN)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CursorLocalRig]:
    made = CursorLocalRig(tmp_path, monkeypatch)
    yield made
    made.close()


def paths(server: Any) -> set[str]:
    return {entry["path"] for entry in server.requests}


def prompts(server: Any) -> list[dict[str, str]]:
    return [entry["body"] for entry in server.requests if "action" in entry]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience"),
        ({"mode": "ask"}, "mode"),
        ({"auto_create_pr": True}, "auto_create_pr"),
    ],
)
def test_options_that_do_not_exist(
    rig: CursorLocalRig, options: dict[str, Any], words: str
) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options=options).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "hosted, mode, model_params, patience" in failure.reason
    assert words in failure.reason.partition(";")[2]


def test_without_a_model_it_says_where_to_name_one(
    rig: CursorLocalRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig, "extra", dict)
    server = rig.rehearse({"say": "x"})
    failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "'model' of the connection 'cursor_default'" in failure.reason
    result = rig.attempt(model="composer-9").done
    assert result.model == "composer-9"
    assert {prompt["model"] for prompt in prompts(server)} == {"composer-9"}


def test_a_refused_key_names_the_connection(rig: CursorLocalRig) -> None:
    server = rig.rehearse({"say": "x"})
    rig.connect(server.url, key="invalid-key")
    failure = rig.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert "'cursor_default'" in failure.reason
    assert "invalid-key" not in f"{failure.reason} {failure.raw}"


def test_read_only_cannot_be_had_without_the_sandbox(rig: CursorLocalRig) -> None:
    rig.rehearse({"run": "touch here"}, {"say": "x"})
    failure = rig.attempt(access=Access.READ_ONLY, confinement=UNBOXED).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "[agents] sandbox" in failure.reason
    assert not (rig.workspace / "here").exists()


@pytest.mark.parametrize("confinement", [UNBOXED, OPEN], ids=["unboxed", "network open"])
def test_a_turn_where_the_bridge_listens_on_the_worker(
    rig: CursorLocalRig, confinement: Confinement
) -> None:
    rig.rehearse(
        {"write": {"path": "a.md", "content": "a\n"}},
        {"run": "(setsid nohup sleep 311 >/dev/null 2>&1 &); env > env.txt"},
        {"say": "Done."},
    )
    attempt = rig.attempt(confinement=confinement)
    assert attempt.done.message == "Done."
    assert (rig.workspace / "a.md").read_text() == "a\n"
    assert not processes_that_name(str(rig.folder))
    told = [event.text for event in attempt.events if event.kind is EventKind.NOTICE]
    assert ["runs without the sandbox" in text for text in told] == (
        [True] if confinement is UNBOXED else []
    )
    # Cursor would let all of its commands do without certificates, had it known the address.
    environment = (rig.workspace / "env.txt").read_text()
    assert "CURSOR_BACKEND_URL" in environment
    assert "NODE_TLS_REJECT_UNAUTHORIZED" not in environment
    assert "sk-conformance-4711" not in environment


UNBOXED_DRIVER = """
import json, sys
from pathlib import Path
from airflow_agent_provider.agents.contract import AgentTask, Confinement, Limits, Sandbox
from airflow_agent_provider.hooks.agent import get_agent_hook

workspace, home, prompt = sys.argv[1:]
task = AgentTask(prompt, Path(workspace), Path(home), limits=Limits(60, 30),
                 confinement=Confinement(sandbox=Sandbox.OFF))
with get_agent_hook("cursor").start(task) as session:
    for event in session.turn(prompt):
        print(json.dumps(event.to_dict()), flush=True)
"""


def test_what_a_killed_attempt_leaves_unboxed_is_found_and_its_session_goes_on(
    rig: CursorLocalRig,
) -> None:
    rig.rehearse({"run": "test -e running || { touch running; sleep 312; }"}, {"say": "Resumed."})
    child = subprocess.Popen(
        [sys.executable, "-c", UNBOXED_DRIVER, str(rig.workspace), str(rig.home), PROMPT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        eventually((rig.workspace / "running").exists)
    finally:
        os.kill(child.pid, signal.SIGKILL)
    # The pipe stays open: the program, which nobody owns any more, has inherited none of it.
    lines = child.communicate(timeout=20)[0].splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    session = Session("cursor", next(e["text"] for e in events if e["kind"] == "session"))
    assert any("cursor-sdk-bridge.js" in line for line in processes_that_name(str(rig.folder)))
    assert end_at_home(rig.home)
    assert not processes_that_name(str(rig.folder))

    attempt = rig.attempt(session=session, confinement=UNBOXED)
    assert attempt.done.message == "Resumed."
    assert attempt.done.session == session


def test_a_session_of_the_cloud_starts_afresh_and_says_so(rig: CursorLocalRig) -> None:
    rig.rehearse({"say": "Anew."})
    hosted = Session("cursor", "bc-019d0000-0000-7000-8000-000000000000")
    attempt = rig.attempt(session=hosted)
    assert attempt.done.message == "Anew."
    assert any(e.kind is EventKind.NOTICE and hosted.id in e.text for e in attempt.events)


def test_what_the_session_keeps_open_is_closed(rig: CursorLocalRig) -> None:
    rig.rehearse({"say": "one"})
    this = psutil.Process()
    before = this.num_fds(), {thread.name for thread in threading.enumerate()}
    children = {child.pid for child in this.children()}
    for _ in range(2):
        assert rig.attempt().done.message == "one"
    eventually(lambda: {thread.name for thread in threading.enumerate()} == before[1])
    assert this.num_fds() <= before[0] + 2
    left = [child for child in this.children() if child.pid not in children]
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.7])
def test_a_start_that_is_broken_off_leaves_nothing(rig: CursorLocalRig, seconds: float) -> None:
    rig.rehearse({"say": "one"})
    before = {thread.name for thread in threading.enumerate()}
    failure = rig.attempt(limits=Limits(timeout=seconds, stall=30)).failure
    assert failure is None or isinstance(failure, f.TimedOut)
    assert not processes_that_name(str(rig.folder))
    eventually(lambda: {thread.name for thread in threading.enumerate()} == before)
    gc.collect()


def test_only_what_the_model_needs_passes_the_door(rig: CursorLocalRig) -> None:
    server = rig.rehearse(
        {
            "run": "for path in /v1/me /v1/agents /aiserver.v1.AnalyticsService/TrackEvents"
            " /auth/exchange_user_api_key; do curl -s -X POST -d '{}' -w ' %{http_code}\\n'"
            ' -H "Authorization: Bearer x" "$CURSOR_BACKEND_URL$path" >> out.txt; done; true'
        },
        {"say": "Done."},
    )
    assert rig.attempt().done.message == "Done."
    lines = (rig.workspace / "out.txt").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["403", "403", "403", "200"]
    # What the door gives for a token is worth nothing beyond it.
    assert "rehearsal-token" not in lines[3]
    assert json.loads(lines[3].rpartition(" ")[0])["accessToken"].startswith("sk-box-")
    assert not any("Analytics" in path or path.startswith("/v1/") for path in paths(server))
    exchanges = [e for e in server.requests if e["path"] == "/auth/exchange_user_api_key"]  # type: ignore[attr-defined]
    assert len(exchanges) == 1


def test_the_projects_rules_reach_the_model(rig: CursorLocalRig) -> None:
    rules = rig.workspace / ".cursor" / "rules"
    rules.mkdir(parents=True)
    (rules / "always.mdc").write_text("---\nalwaysApply: true\n---\nWrite haiku only.\n")
    (rig.workspace / "AGENTS.md").write_text("Be brief.\n")
    server = rig.rehearse({"say": "x"})
    assert rig.attempt().done.message == "x"
    (told,) = prompts(server)
    assert "Write haiku only." in told["rules"]
    assert "Be brief." in told["rules"]


def test_a_failure_that_passes_is_told_and_does_not_fail_the_turn(rig: CursorLocalRig) -> None:
    rig.rehearse(
        {"write": {"path": "a.md", "content": "a\n"}},
        {"fail": {"status": 503, "message": "Down for a moment"}},
        {"say": "Done."},
    )
    attempt = rig.attempt(options={})
    assert attempt.done.message == "Done."
    told = [event.text for event in attempt.events if event.kind is EventKind.NOTICE]
    assert len(told) == 1
    assert "Down for a moment" in told[0]


def test_the_wait_that_the_vendor_asks_for_is_kept(rig: CursorLocalRig) -> None:
    rig.rehearse({"fail": {"status": 429, "retry_after": 41, "times": None}})
    failure = rig.attempt(options={"patience": 1}).failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 41


def test_a_schema_is_asked_for_in_the_prompt_and_a_fence_is_no_matter(
    rig: CursorLocalRig,
) -> None:
    server = rig.rehearse({"say": '```json\n{"approved": true}\n```'})
    result = rig.attempt(schema={"type": "object", "title": "Verdict-4711"}).done
    assert result.structured == {"approved": True}
    assert "Verdict-4711" in prompts(server)[0]["prompt"]


def test_a_second_turn_of_a_resumed_session_is_an_ordinary_one(rig: CursorLocalRig) -> None:
    rig.rehearse({"say": "one"}, {"say": "two"}, {"say": "three"})
    first = rig.attempt().done
    second, third = Attempt(), Attempt()
    with rig.start(session=first.session) as session:
        follow(second, session.turn(PROMPT))
        follow(third, session.turn("Go on."))
    assert (second.done.message, third.done.message) == ("two", "three")
    assert third.done.session == first.session


@pytest.mark.parametrize(
    ("option", "extra", "repository", "hosted"),
    [
        (None, None, "https://example.org/a.git", True),
        (None, None, "", False),
        (None, None, None, False),
        (False, None, "https://example.org/a.git", False),
        (None, "false", "https://example.org/a.git", False),
        (None, False, "https://example.org/a.git", False),
        (True, "false", "https://example.org/a.git", True),
        ("false", True, "https://example.org/a.git", False),
    ],
)
def test_where_it_runs(
    rig: CursorLocalRig,
    monkeypatch: pytest.MonkeyPatch,
    option: Any,
    extra: Any,
    repository: str | None,
    hosted: bool,
) -> None:
    monkeypatch.setattr(rig, "extra", lambda: {} if extra is None else {"hosted": extra})
    rig.connect("")
    options = {} if option is None else {"hosted": option}
    assert CursorHook().runs_hosted(options, repository) is hosted


def test_where_it_cannot_run(rig: CursorLocalRig) -> None:
    rig.connect("")
    with pytest.raises(f.InvalidDefinition, match=r"options: \{hosted: false\}"):
        CursorHook().runs_hosted({"hosted": True}, "")
    with pytest.raises(f.InvalidDefinition, match="true or false, not 'perhaps'"):
        CursorHook().runs_hosted({"hosted": "perhaps"}, "")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", DEFAULT_BACKEND),
        ("https://api.cursor.com", DEFAULT_BACKEND),
        ("https://gateway.example/cursor", "https://gateway.example/cursor"),
    ],
)
def test_the_backend_is_the_connections_host(rig: CursorLocalRig, host: str, url: str) -> None:
    rig.connect(host)
    assert CursorHook()._account().backend == url


def test_a_link_in_the_place_of_the_conversations_files_is_not_followed(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.mkdir()
    (outside / "agents.ndjson").write_text('{"agentId":"a","cwd":"/elsewhere"}\n')
    (home / "cursor").mkdir(parents=True)
    (home / "cursor" / "folder").symlink_to(outside)
    (home / "cursor" / "file").mkdir()
    (home / "cursor" / "file" / "agents.ndjson").symlink_to(outside / "agents.ndjson")
    for name in ("folder", "file", "missing"):
        assert Store(home, name).adopt(tmp_path) is False
    assert (outside / "agents.ndjson").read_text() == '{"agentId":"a","cwd":"/elsewhere"}\n'
    (home / "cursor" / "good").mkdir()
    (home / "cursor" / "good" / "agents.ndjson").write_text('{"agentId":"a","cwd":"/elsewhere"}\n')
    assert Store(home, "good").adopt(tmp_path) is True
    moved = json.loads((home / "cursor" / "good" / "agents.ndjson").read_text())
    assert moved == {"agentId": "a", "cwd": str(tmp_path)}
    assert sorted(path.name for path in (home / "cursor" / "good").iterdir()) == ["agents.ndjson"]
