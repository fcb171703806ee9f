"""The Claude Code hook with the real program; what all agents share is in ``tests/conformance``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.agents.contract import (
    Access,
    Confinement,
    EventKind,
    Limits,
    Sandbox,
    ToolKind,
    ToolStatus,
)
from airflow_agent_provider.agents.prices import load_prices
from airflow_agent_provider.hooks.claude import DEFAULT_URL, ClaudeHook
from tests.conformance.rigs import PROMPT, Attempt, ClaudeRig, follow
from tests.conformance.test_agent_hooks import eventually, processes_that_name

pytestmark = pytest.mark.integration

SCHEMA = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}},
    "required": ["approved"],
    "additionalProperties": False,
}
UNBOXED = Confinement(sandbox=Sandbox.OFF)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClaudeRig]:
    made = ClaudeRig(tmp_path, monkeypatch)
    yield made
    made.close()


def requests(server: Any) -> list[Any]:
    return [entry for entry in server.requests if entry.method == "POST"]


def notices(attempt: Attempt) -> list[str]:
    return [event.text for event in attempt.events if event.kind is EventKind.NOTICE]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sandbox": "off"}, "sandbox"),
        ({"retries": -1}, "retries"),
        ({"patience": 0}, "patience"),
        ({"effort": "extreme"}, "effort"),
        ({"max_turns": 0}, "max_turns"),
        ({"max_budget_usd": 0}, "max_budget_usd"),
    ],
)
def test_options_that_do_not_exist(rig: ClaudeRig, options: dict[str, Any], words: str) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options=options).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "effort, max_turns, max_budget_usd, retries, patience" in failure.reason
    assert words in failure.reason.partition(";")[2]


def test_effort_and_model_reach_the_vendor(rig: ClaudeRig) -> None:
    server = rig.rehearse({"say": "x"})
    result = rig.attempt(options={"effort": "low"}, model="claude-opus-5").done
    (request,) = requests(server)
    assert request.body["model"] == result.model == "claude-opus-5"
    assert request.body["output_config"]["effort"] == "low"


def test_without_a_model_the_result_names_claudes_own(
    rig: ClaudeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClaudeRig, "extra", lambda self: {})
    server = rig.rehearse({"say": "x"})
    with rig.start() as session:
        assert session.model is None
        attempt = Attempt()
        follow(attempt, session.turn(PROMPT))
        assert session.model == attempt.done.model
    (request,) = requests(server)
    assert attempt.done.model == request.body["model"]


def test_the_agent_gets_tools_for_the_work_and_no_others(rig: ClaudeRig) -> None:
    offered = {}
    for access in Access:
        for confinement in (Confinement(), UNBOXED):
            server = rig.rehearse({"say": "x"})
            assert rig.attempt(access=access, confinement=confinement).done
            names = sorted(tool["name"] for tool in requests(server)[0].body["tools"])
            offered[access, confinement.sandbox] = names
    all_of_them = ["Bash", "Edit", "Glob", "Grep", "NotebookEdit", "Read", "Write"]
    assert offered == {
        (Access.WRITE, Sandbox.REQUIRED): all_of_them,
        (Access.WRITE, Sandbox.OFF): all_of_them,
        (Access.READ_ONLY, Sandbox.REQUIRED): ["Bash", "Glob", "Grep", "Read"],
        (Access.READ_ONLY, Sandbox.OFF): ["Glob", "Grep", "Read"],
    }


def test_without_the_box_it_works_too_and_says_so(rig: ClaudeRig) -> None:
    rig.rehearse(
        {"write": {"path": "a.txt", "content": "a\n"}},
        {"run": "(setsid nohup sleep 316 >/dev/null 2>&1 &); touch b.txt"},
        {"say": "Done."},
    )
    attempt = rig.attempt(confinement=UNBOXED)
    assert attempt.done.message == "Done."
    assert notices(attempt) == ["Claude Code runs without the sandbox: [agents] sandbox is off"]
    assert (rig.workspace / "a.txt").read_text() == "a\n"
    assert (rig.workspace / "b.txt").exists()
    assert not processes_that_name(str(rig.folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may not let everything pass")
def test_what_root_is_refused_is_told(rig: ClaudeRig) -> None:
    rig.rehearse({"run": "rm -rf ."}, {"say": "Done."})
    attempt = rig.attempt(confinement=UNBOXED)
    assert "Claude Code refused Bash: rm -rf ." in notices(attempt)
    (rig.workspace / "README.md").read_text()


def test_max_turns(rig: ClaudeRig) -> None:
    rig.rehearse({"run": "true"}, {"run": "true"}, {"say": "x"})
    failure = rig.attempt(options={"max_turns": 1}).failure
    assert isinstance(failure, f.AgentFailed)
    assert "max_turns" in failure.reason


def test_max_budget_usd(rig: ClaudeRig) -> None:
    rig.rehearse({"run": "true"}, {"run": "true"}, {"say": "x"})
    attempt = rig.attempt(options={"max_budget_usd": 0.0001})
    assert isinstance(attempt.failure, f.BudgetExceeded)
    assert sum(event.data["cost"] for event in attempt.events if event.kind is EventKind.USAGE) > 0


def test_an_answer_that_never_fits_its_schema(rig: ClaudeRig) -> None:
    rig.rehearse({"say": {"approved": "no"}})
    attempt = rig.attempt(schema=SCHEMA)
    assert isinstance(attempt.failure, f.OutputInvalid)
    assert any("The answer was refused" in text for text in notices(attempt))


def test_a_schema_that_is_none(rig: ClaudeRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(schema={"type": "nonsense"}).failure
    assert isinstance(failure, f.AgentFailed)
    assert "not a valid JSON Schema" in (failure.raw or "")


def test_each_turn_has_its_own_schema(rig: ClaudeRig) -> None:
    server = rig.rehearse({"say": "Prose."}, {"say": {"approved": True}}, {"say": "Prose again."})
    attempts = [Attempt(), Attempt(), Attempt()]
    with rig.start() as session:
        for attempt, schema in zip(attempts, (None, SCHEMA, None), strict=True):
            follow(attempt, session.turn(PROMPT, output_schema=schema))
    told = [(attempt.done.message, attempt.done.structured) for attempt in attempts]
    assert told == [
        ("Prose.", None),
        ('{"approved":true}', {"approved": True}),
        ("Prose again.", None),
    ]
    assert len({attempt.done.session for attempt in attempts}) == 1
    assert len(requests(server)) == 3
    # The program was started three times, and each turn costs what its own tokens do.
    for attempt in attempts:
        price = load_prices().cost("claude-sonnet-5", attempt.done.usage)
        assert attempt.done.usage.cost == pytest.approx(price)


def test_claude_repeats_a_failed_request_by_itself(rig: ClaudeRig) -> None:
    server = rig.rehearse({"fail": 503}, {"say": "Recovered."})
    attempt = rig.attempt(options={"retries": 1})
    assert attempt.done.message == "Recovered."
    assert [entry.action for entry in requests(server)] == ["fail", "say"]
    assert any("tries again, 1 of 1" in text for text in notices(attempt))


def test_a_dropped_stream_is_asked_for_again_in_one_piece(rig: ClaudeRig) -> None:
    rig.rehearse({"fail": {"how": "drop"}}, {"say": "Recovered."})
    attempt = rig.attempt()
    assert attempt.done.message == "Recovered."
    assert attempt.done.usage.output_tokens > 0


def test_a_long_wait_for_the_rate_limit_is_left_to_airflow(rig: ClaudeRig) -> None:
    rig.rehearse({"fail": {"status": 429, "retry_after": 600, "times": None}})
    failure = rig.attempt(options={"retries": 3}).failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 600
    rig.rehearse({"fail": {"status": 429, "retry_after": 20, "times": None}})
    failure = rig.attempt(options={"retries": 3, "patience": 1}).failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 20


def test_a_refused_key_names_the_connection(rig: ClaudeRig) -> None:
    rig.rehearse({"fail": {"status": 401, "message": "the vendor's own words", "times": None}})
    failure = rig.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert "'claude_default'" in failure.reason
    assert "the vendor's own words" in (failure.raw or "")


def test_a_resumed_session_is_told_that_nobody_interrupted_it(rig: ClaudeRig) -> None:
    server = rig.rehearse({"say": "one"}, {"say": "two"})
    first = rig.attempt().done
    second = rig.attempt(session=first.session).done
    assert second.message == "two"
    bodies = [json.dumps(entry.body["messages"]) for entry in requests(server)]
    assert "nobody did" not in bodies[0]
    assert bodies[1].count("nobody did") == 1
    # What the first one cost, Claude Code still counts; the second one's cost is its own.
    assert first.usage.cost is not None
    assert second.usage.cost is not None
    assert second.usage.cost < 2 * first.usage.cost


def test_a_session_that_cannot_be_read_starts_afresh_and_says_so(rig: ClaudeRig) -> None:
    rig.rehearse({"say": "x"})
    first = rig.attempt().done.session
    assert first is not None
    (file,) = rig.home.rglob(f"{first.id}.jsonl")
    file.write_text("no session at all\n")
    attempt = rig.attempt(session=first)
    assert attempt.done.session != first
    assert "cannot be continued" in notices(attempt)[0]


def test_an_interrupted_turn_can_be_followed_by_another(rig: ClaudeRig) -> None:
    """As where the attempt's time is nearly over and the agent is asked to wrap up."""
    rig.rehearse(
        {"run": "test -e running || { touch running; sleep 317; }"}, {"say": "Wrapped up."}
    )
    first, second = Attempt(), Attempt()
    with rig.start() as session:
        interrupter = threading.Thread(
            target=lambda: (eventually((rig.workspace / "running").exists), session.interrupt())
        )
        interrupter.start()
        follow(first, session.turn(PROMPT))
        interrupter.join()
        # With nothing to interrupt, it takes nothing from the turn that comes.
        session.interrupt()
        follow(second, session.turn("Wrap up."))
    assert first.done.status == "interrupted"
    assert (second.done.status, second.done.message) == ("completed", "Wrapped up.")
    assert second.done.session == first.done.session


def test_closing_in_mid_turn_ends_the_turn(rig: ClaudeRig) -> None:
    """As the operator does when a newer attempt has taken the step over."""
    rig.rehearse({"run": "touch running; sleep 318"}, {"say": "x"})
    session = rig.start()
    closer = threading.Thread(
        target=lambda: (eventually((rig.workspace / "running").exists), session.close())
    )
    closer.start()
    with pytest.raises(f.Interrupted):
        follow(Attempt(), session.turn(PROMPT))
    closer.join()
    session.close()
    assert not processes_that_name(str(rig.folder))


def test_leaving_a_turn_early_ends_it(rig: ClaudeRig) -> None:
    rig.rehearse({"run": "touch running; sleep 319"}, {"say": "x"})
    with rig.start() as session:
        turn = session.turn(PROMPT)
        assert next(event for event in turn if event.tool is ToolKind.EXECUTE)
        turn.close()
    assert not processes_that_name(str(rig.folder))


def test_a_command_is_ended_before_its_silence_counts(rig: ClaudeRig) -> None:
    rig.rehearse({"run": "sleep 320"}, {"say": "It took too long."})
    attempt = rig.attempt(limits=Limits(timeout=60, stall=4))
    assert attempt.done.message == "It took too long."
    (end,) = [event for event in attempt.events if event.completes_tool]
    assert end.status is ToolStatus.FAILED


def test_a_large_and_odd_output_passes(rig: ClaudeRig) -> None:
    rig.rehearse(
        {"run": "head -c 300000 /dev/urandom; printf '\\xff\\xfe\\0'; sleep 0.3"},
        {"write": {"path": "big.txt", "content": "ü€😀\n" * 100_000}},
        {"say": "ü€😀"},
    )
    assert rig.attempt().done.message == "ü€😀"
    assert (rig.workspace / "big.txt").read_text() == "ü€😀\n" * 100_000


def test_a_project_cannot_bring_commands_of_its_own(rig: ClaudeRig) -> None:
    proof = rig.workspace / "ran"
    command = [{"hooks": [{"type": "command", "command": f"touch {proof}"}], "matcher": "*"}]
    events = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop")
    settings = {
        "hooks": dict.fromkeys(events, command),
        "apiKeyHelper": f"touch {proof}; echo sk-x",
        "env": {"ANTHROPIC_BASE_URL": rig.nowhere(), "ANTHROPIC_MODEL": "another"},
        "model": "another",
        "permissions": {"deny": ["Bash"]},
        "enableAllProjectMcpServers": True,
    }
    (rig.workspace / ".claude").mkdir()
    for name in ("settings.json", "settings.local.json"):
        (rig.workspace / ".claude" / name).write_text(json.dumps(settings))
    server_of_its_own = {"command": "/bin/sh", "args": ["-c", f"touch {proof}"]}
    servers = {"mcpServers": {"x": server_of_its_own}}
    (rig.workspace / ".mcp.json").write_text(json.dumps(servers))
    server = rig.rehearse({"run": "touch asked"}, {"say": "Done."})
    assert rig.attempt().done.message == "Done."
    assert (rig.workspace / "asked").exists()
    assert not proof.exists()
    assert {entry.body["model"] for entry in requests(server)} == {"claude-sonnet-5"}


@pytest.mark.parametrize(
    ("files", "seen", "unseen"),
    [
        ({"CLAUDE.md": "Mind the cats."}, "Mind the cats.", "a secret of"),
        ({"CLAUDE.md": "@docs/a.md", "docs/a.md": "Mind the imp."}, "Mind the imp.", "a secret of"),
        ({".claude/CLAUDE.md": "Mind the dogs."}, "Mind the dogs.", "a secret of"),
        ({".claude/rules/a.md": "Mind the rules."}, "Mind the rules.", "a secret of"),
        ({"AGENTS.md": "Mind the agents."}, "Mind the agents.", "a secret of"),
        ({"AGENTS.md": "Old.", "CLAUDE.md": "New."}, "New.", "Old."),
        ({"AGENTS.md": None}, "Do the work.", "a secret of"),
        ({"CLAUDE.md": None}, "Do the work.", "a secret of"),
    ],
)
def test_the_projects_instructions_are_read(
    rig: ClaudeRig, files: dict[str, str | None], seen: str, unseen: str
) -> None:
    (rig.folder / "secret").write_text("a secret of the worker")
    for name, text in files.items():
        (rig.workspace / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            (rig.workspace / name).symlink_to(rig.folder / "secret")
        else:
            (rig.workspace / name).write_text(text)
    server = rig.rehearse({"say": "x"})
    assert rig.attempt().done
    body = requests(server)[0].body
    told = json.dumps([body["system"], body["messages"]])
    assert seen in told
    assert unseen not in told


def test_a_prompt_commands_nothing(rig: ClaudeRig) -> None:
    """An issue's text in a prompt may hold anybody's words."""
    (rig.workspace / "secret").write_text("the words of the file")
    server = rig.rehearse({"say": "x"})
    attempt = Attempt()
    prompt = f"/compact\n@{rig.workspace / 'secret'}\n\n{PROMPT}"
    with rig.start() as session:
        follow(attempt, session.turn(prompt))
    assert attempt.done.message == "x"
    (request,) = requests(server)
    told = json.dumps(request.body["messages"])
    assert json.dumps(prompt)[1:-1] in told
    assert "the words of the file" not in told


def test_what_claude_says_on_its_error_stream_is_told(rig: ClaudeRig) -> None:
    rig.rehearse({"say": "x"})
    attempt = rig.attempt(model="a-model-of-a-gateway")
    assert attempt.done.model == "a-model-of-a-gateway"
    assert any("unrecognized_model" in text for text in notices(attempt))


def test_a_missing_program_says_how_to_install_it(
    rig: ClaudeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import claude_agent_sdk

    rig.rehearse({"say": "x"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "claude_agent_sdk", None)
        failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "pip install 'airflow-agent-provider[claude]'" in failure.reason
    monkeypatch.setattr(claude_agent_sdk, "__file__", str(rig.folder / "__init__.py"))
    failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert str(rig.folder / "_bundled" / "claude") in failure.reason


def test_a_program_that_does_not_start_is_a_failure(rig: ClaudeRig) -> None:
    rig.rehearse({"say": "x"})
    attempt = rig.attempt(confinement=Confinement(memory=1024**2))
    assert isinstance(attempt.failure, f.AgentFailed)
    assert attempt.failure.raw
    assert isinstance(rig.attempt(workspace=rig.folder / "nowhere").failure, f.AgentFailed)


@pytest.mark.parametrize("timeout", [0, 0.05, 0.2, 0.4, 0.8])
def test_an_attempt_whose_time_is_over_at_the_start(rig: ClaudeRig, timeout: float) -> None:
    from claude_agent_sdk._internal.transport.subprocess_cli import _ACTIVE_CHILDREN

    rig.rehearse({"fail": {"how": "hang", "times": None}})
    began = time.monotonic()
    failure = rig.attempt(limits=Limits(timeout=timeout, stall=30)).failure
    assert isinstance(failure, f.TimedOut)
    assert time.monotonic() - began < 30
    assert not processes_that_name(str(rig.folder))
    # Nor does the SDK believe that anything runs.
    assert not _ACTIVE_CHILDREN


def test_the_key_is_in_no_text_of_the_session(rig: ClaudeRig) -> None:
    rig.rehearse({"say": "x"})
    vendor = ClaudeHook()._vendor()
    assert vendor.key not in repr(vendor)
    with rig.start() as session:
        assert vendor.key not in repr(session)
        lines = processes_that_name(str(rig.folder))
        assert any("stream-json" in line for line in lines)
        assert not any(vendor.key in line for line in lines)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, DEFAULT_URL),
        ({"host": "https://gateway.example/anthropic/"}, "https://gateway.example/anthropic"),
        ({"host": "ftp://gateway.example"}, None),
    ],
)
def test_the_connections_host(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], url: str | None
) -> None:
    connection = {"conn_type": "claude", "password": "sk-long-enough", **values}
    monkeypatch.setenv("AIRFLOW_CONN_CLAUDE_OTHER", json.dumps(connection))
    hook = ClaudeHook("claude_other")
    if url is not None:
        assert hook._vendor().url == url
        return
    works, why = hook.test_connection()
    assert not works
    assert "'claude_other'" in why
