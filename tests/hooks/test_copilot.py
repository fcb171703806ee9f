"""The Copilot hook with the real runtime; what all agents share is in ``tests/conformance``."""

from __future__ import annotations

import json
import sys
import threading
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
    Network,
    Sandbox,
    Session,
    ToolKind,
)
from airflow_agent_provider.hooks.copilot import COPILOT_URL, CopilotHook
from airflow_agent_provider.hooks.copilot_program import VERSION
from airflow_agent_provider.rehearsal import tools
from airflow_agent_provider.rehearsal.wires.openai import OpenAI
from tests.conformance.rigs import PROMPT, Attempt, CopilotRig, follow, git
from tests.conformance.test_agent_hooks import WRITES, eventually, processes_that_name

pytestmark = pytest.mark.integration

UNBOXED = Confinement(sandbox=Sandbox.OFF)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CopilotRig]:
    made = CopilotRig(tmp_path, monkeypatch)
    yield made
    made.close()


class OtherRig(CopilotRig):
    """Copilot with other extras in its connection."""

    extras: dict[str, Any]

    def extra(self) -> dict[str, Any]:
        return self.extras


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherRig]:
    made = OtherRig(tmp_path, monkeypatch)
    yield made
    made.close()


def requests(server: Any) -> list[Any]:
    return [entry for entry in server.requests if entry.method == "POST"]


def offered(server: Any) -> set[str]:
    tools = requests(server)[0].body["tools"]
    return {tool[tool["type"]]["name"] for tool in tools}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effrot": "high"}, "effrot"),
        ({"patience": 0}, "patience"),
        ({"effort": "extreme"}, "effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_options_that_do_not_exist(rig: CopilotRig, options: dict[str, Any], words: str) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options=options).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "effort, patience, max_prompt_tokens, max_output_tokens" in failure.reason
    assert words in failure.reason.partition(";")[2]


def test_effort_limits_and_model_reach_the_vendor(rig: CopilotRig) -> None:
    server = rig.rehearse({"say": "x"})
    options = {"effort": "high", "max_output_tokens": 4321}
    result = rig.attempt(options=options, model="gpt-5.6-luna").done
    (request,) = requests(server)
    assert request.body["model"] == result.model == "gpt-5.6-luna"
    assert request.body["reasoning_effort"] == "high"
    assert 4321 in request.body.values()


#: Where the model is reached by which of Copilot's providers, with the tools of which model.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "chat": ({"model": "some-model"}, "/v1/chat/completions"),
    "responses": ({"model": "gpt-5.5", "wire": "responses"}, "/v1/responses"),
    "anthropic": ({"model": "claude-sonnet-4.5", "provider": "anthropic"}, "/v1/messages"),
    "subscription": ({"provider": "copilot"}, "/v1/chat/completions"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_a_model(other: OtherRig, way: str) -> None:
    other.extras, path = WAYS[way]
    server = other.rehearse(WRITES, {"say": "Done."})
    result = other.attempt().done
    assert (result.status, result.message) == ("completed", "Done.")
    assert (other.workspace / "docs/deep/plan.md").read_text() == "# Plan\n\n- one\n"
    assert {entry.path for entry in requests(server)} == {path}
    assert 0 < result.usage.cached_tokens < result.usage.input_tokens
    assert result.model == other.extras.get("model", result.model)
    assert CopilotHook().test_connection()[0]
    other.connect(server.url, key="invalid-key")
    assert not CopilotHook().test_connection()[0]
    failure = other.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert "'copilot_default'" in failure.reason


def test_a_provider_of_ones_own_needs_a_model(other: OtherRig) -> None:
    other.extras = {}
    other.rehearse({"say": "x"})
    failure = other.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "extra 'model' of the connection 'copilot_default'" in failure.reason
    assert other.attempt(model="gpt-5.5").done


def test_a_model_that_the_subscription_has_not(
    other: OtherRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copilot would take another one, and say nothing."""
    supports = {"vision": False, "streaming": True, "tool_calls": True}
    limits = {"max_context_window_tokens": 200_000, "max_prompt_tokens": 128_000}
    capabilities = {"family": "gpt", "type": "chat", "supports": supports, "limits": limits}
    model = {"id": "gpt-5.5", "name": "GPT-5.5", "capabilities": capabilities}
    policy = {"policy": {"state": "enabled", "terms": ""}, "model_picker_enabled": True}
    listed = {"data": [{**model, **policy, "object": "model", "vendor": "x", "version": "1"}]}
    monkeypatch.setattr(OpenAI, "models", lambda _: listed)
    other.extras = {"provider": "copilot"}
    server = other.rehearse({"say": "x"})
    failure = other.attempt(model="gpt-9").failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "no model 'gpt-9'; it has: auto, gpt-5.5" in failure.reason
    assert not requests(server)
    assert other.attempt(model="gpt-5.5").done.model == "gpt-5.5"


def test_a_subscription_whose_vendor_gives_no_answer(other: OtherRig) -> None:
    other.extras = {"provider": "copilot"}
    other.connect(other.nowhere())
    failure = other.attempt().failure
    assert isinstance(failure, f.Unavailable)
    assert "ConnectError" in (failure.raw or "")


def test_its_commands_run_in_the_box(rig: CopilotRig) -> None:
    server = rig.rehearse(
        {
            "run": "touch ../probe /tmp/agent-probe .git/probe; "
            "python3 -c \"import socket; socket.create_connection(('127.0.0.1', "
            "int(open('port.txt').read())), 3)\" && touch connected; touch alive"
        },
        {"say": "Done."},
    )
    (rig.workspace / "port.txt").write_text(server.url.rpartition(":")[2])
    assert rig.attempt().done.message == "Done."
    assert (rig.workspace / "alive").exists()
    assert not (rig.workspace / "connected").exists()
    for left in (rig.folder / "probe", Path("/tmp/agent-probe"), rig.workspace / ".git/probe"):
        assert not left.exists()
    assert (rig.home / "copilot").stat().st_mode & 0o777 == 0o700


def test_without_the_box_it_says_so_and_writes_nowhere_else(rig: CopilotRig) -> None:
    outside = {"write": {"path": "../outside.md", "content": "x\n"}}
    rig.rehearse(WRITES, outside, {"say": "Done."})
    attempt = rig.attempt(confinement=UNBOXED)
    assert attempt.done.message == "Done."
    assert (rig.workspace / "docs/deep/plan.md").exists()
    assert not (rig.folder / "outside.md").exists()
    refused = [e for e in attempt.events if "outside of the workspace" in str(e.data)]
    assert refused
    assert any(
        e.kind is EventKind.NOTICE and "without the sandbox" in e.text for e in attempt.events
    )


def test_read_only_holds_without_the_box(rig: CopilotRig) -> None:
    rig.rehearse(WRITES, {"run": "touch here"}, {"say": "I only read."})
    attempt = rig.attempt(access=Access.READ_ONLY, confinement=UNBOXED)
    assert attempt.done.message == "I only read."
    assert git(rig.workspace, "status", "--porcelain", "--ignored") == ""
    assert "run no command" in str([event.data for event in attempt.events])


def test_a_missing_sdk_says_how_to_install_it(
    rig: CopilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.rehearse({"say": "x"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "copilot", None)
        failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "pip install 'airflow-agent-provider[copilot]'" in failure.reason


def test_another_sdk_than_the_programs_is_refused(
    rig: CopilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copilot import _cli_version

    rig.rehearse({"say": "x"})
    monkeypatch.setattr(_cli_version, "CLI_VERSION", "1.0.104")
    failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "1.0.104, not with 1.0.102" in failure.reason


def test_a_missing_program_says_how_to_install_it(
    rig: CopilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.rehearse({"say": "x"})
    monkeypatch.setenv("AIRFLOW__AGENTS__PROGRAMS", str(rig.folder / "none"))
    failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    command = f"npm install --prefix {rig.folder / 'none'} @github/copilot@{VERSION}"
    assert command in failure.reason


def test_a_program_that_does_not_start_is_a_failure(rig: CopilotRig) -> None:
    rig.rehearse({"say": "x"})
    rig.home.mkdir()
    (rig.home / "copilot").write_text("a file where Copilot's home should be")
    failure = rig.attempt().failure
    assert isinstance(failure, f.AgentFailed)
    assert failure.raw
    assert isinstance(rig.attempt(workspace=rig.folder / "nowhere").failure, f.AgentFailed)


def test_a_project_cannot_bring_commands_of_its_own(rig: CopilotRig) -> None:
    # In the home and in the workspace, so that the box itself does not keep it from running.
    proofs = [rig.workspace / "ran", rig.home / "ran"]
    command = " ; ".join(f"touch {proof}" for proof in proofs)
    servers = {"x": {"type": "local", "command": "/bin/sh", "args": ["-c", command], "tools": "*"}}
    names = ("sessionStart", "userPromptSubmitted", "preToolUse", "postToolUse", "sessionEnd")
    hooks = {"version": 1, "hooks": {n: [{"type": "command", "bash": command}] for n in names}}
    for path, value in {
        ".github/hooks/all.json": hooks,
        ".github/copilot/settings.json": hooks,
        ".mcp.json": {"mcpServers": servers},
        ".github/mcp.json": {"mcpServers": servers},
        ".copilot/mcp-config.json": {"mcpServers": servers},
        ".vscode/mcp.json": {"servers": servers},
    }.items():
        (rig.workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (rig.workspace / path).write_text(json.dumps(value))
    server = rig.rehearse({"run": "true"}, {"say": "Done."})
    assert rig.attempt().done.message == "Done."
    assert not [proof for proof in proofs if proof.exists()]
    assert not [name for name in offered(server) if name.startswith("x")]


@pytest.mark.parametrize(
    ("files", "seen", "unseen"),
    [
        ({"AGENTS.md": "Mind the cats."}, "Mind the cats.", "a secret of"),
        ({".github/copilot-instructions.md": "Mind the dogs."}, "Mind the dogs.", "a secret of"),
        ({"AGENTS.md": None}, "Do the work.", "a secret of"),
    ],
)
def test_the_projects_instructions_are_read(
    rig: CopilotRig, files: dict[str, str | None], seen: str, unseen: str
) -> None:
    (rig.folder / "secret").write_text("a secret of the worker")
    for name, text in files.items():
        (rig.workspace / name).parent.mkdir(exist_ok=True)
        if text is None:
            (rig.workspace / name).symlink_to(rig.folder / "secret")
        else:
            (rig.workspace / name).write_text(text)
    server = rig.rehearse({"say": "x"})
    assert rig.attempt().done
    prompt = json.dumps(requests(server)[0].body["messages"])
    assert seen in prompt
    assert unseen not in prompt


def test_what_needs_the_network_is_offered_only_where_there_is_one(rig: CopilotRig) -> None:
    server = rig.rehearse({"say": "x"})
    assert rig.attempt().done
    assert not offered(server) & {"web_fetch", "web_search", "semantic_code_search"}
    server = rig.rehearse({"say": "x"})
    assert rig.attempt(confinement=Confinement(network=Network.OPEN)).done
    assert "web_fetch" in offered(server)


def test_copilot_repeats_a_failed_request_by_itself(rig: CopilotRig) -> None:
    server = rig.rehearse({"fail": 503}, {"fail": {"how": "drop"}}, {"say": "Recovered."})
    attempt = rig.attempt(options={"patience": 60})
    assert attempt.done.message == "Recovered."
    assert [entry.action for entry in requests(server)] == ["fail", "fail", "say"]
    told = [e.text for e in attempt.events if e.kind is EventKind.NOTICE]
    assert len([text for text in told if "tries again" in text]) == 2
    assert "503" in told[0]


def test_a_long_wait_for_the_rate_limit_is_left_to_airflow(rig: CopilotRig) -> None:
    rig.rehearse({"fail": {"status": 429, "retry_after": 600, "times": None}})
    failure = rig.attempt(options={"patience": 1}).failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 600


def test_a_quota_that_is_used_up_is_not_waited_for(rig: CopilotRig) -> None:
    server = rig.rehearse({"fail": {"status": 429, "code": "insufficient_quota", "times": None}})
    failure = rig.attempt(options={"patience": 100}).failure
    assert isinstance(failure, f.QuotaExhausted)
    assert len(requests(server)) == 1


def test_a_resumed_session_survives_a_torn_end(rig: CopilotRig) -> None:
    rig.rehearse({"say": "one"}, {"say": "two"})
    session = rig.attempt().done.session
    assert session is not None
    (events,) = rig.home.rglob(f"{session.id}/events.jsonl")
    events.write_bytes(events.read_bytes()[:-20])
    result = rig.attempt(session=session).done
    assert (result.message, result.session) == ("two", session)


def test_another_agents_session_is_not_resumed(rig: CopilotRig) -> None:
    rig.rehearse({"say": "one"}, {"say": "two"})
    first = rig.attempt().done.session
    assert first is not None
    attempt = rig.attempt(session=Session("codex", first.id))
    assert attempt.done.message == "one"
    assert attempt.done.session not in (None, first)


def test_closing_in_mid_turn_ends_the_turn(rig: CopilotRig) -> None:
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


def test_leaving_a_turn_early_interrupts_it(rig: CopilotRig) -> None:
    rig.rehearse({"run": "touch running; sleep 319"}, {"say": "x"})
    with rig.start() as session:
        turn = session.turn(PROMPT)
        assert next(event for event in turn if event.tool is ToolKind.EXECUTE)
        turn.close()
        (events,) = eventually(session.portable_files).values()
        eventually(lambda: '"abort"' in events.read_text())
    assert not processes_that_name(str(rig.folder))


def test_a_command_in_the_background_is_waited_for(
    rig: CopilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tools._USEFUL, "mode", "async")
    rig.rehearse({"run": "sleep 1; touch late.txt"}, {"say": "Done."})
    assert rig.attempt().done.message == "Done."
    assert (rig.workspace / "late.txt").exists()


def test_a_server_in_the_background_does_not_keep_the_step_for_ever(
    rig: CopilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tools._USEFUL, "mode", "async")
    rig.rehearse({"run": "sleep 320"}, {"say": "Done."})
    attempt = rig.attempt(limits=Limits(timeout=60, stall=3))
    assert (attempt.done.status, attempt.done.message) == ("completed", "Done.")
    assert any("left in the background" in event.text for event in attempt.events)
    assert not processes_that_name(str(rig.folder))


def test_a_large_and_odd_output_passes(rig: CopilotRig) -> None:
    rig.rehearse(
        {"run": "head -c 300000 /dev/urandom; printf '\\xff\\xfe\\0'; sleep 0.3"},
        {"write": {"path": "big.txt", "content": "ü€😀\n" * 50_000}},
        {"say": "ü€😀"},
    )
    assert rig.attempt().done.message == "ü€😀"
    assert (rig.workspace / "big.txt").read_text() == "ü€😀\n" * 50_000


@pytest.mark.parametrize(
    ("values", "extra", "url"),
    [
        ({}, {}, COPILOT_URL),
        ({"host": "https://api.business.githubcopilot.com"}, {"provider": "copilot"}, None),
        ({"host": "https://gateway.example/v1/"}, {}, "https://gateway.example/v1"),
        ({"host": "gateway.example"}, {}, "https://gateway.example"),
        ({"host": "http://127.0.0.1", "port": 81}, {}, "http://127.0.0.1:81"),
        (
            {"host": "https://api.anthropic.com/v1"},
            {"provider": "anthropic"},
            "https://api.anthropic.com",
        ),
    ],
)
def test_the_connections_host(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], extra: dict[str, Any], url: str | None
) -> None:
    connection = {"conn_type": "copilot", "password": "long-enough", "extra": extra, **values}
    monkeypatch.setenv("AIRFLOW_CONN_COPILOT_OTHER", json.dumps(connection))
    hook = CopilotHook("copilot_other")
    assert hook._vendor(hook.connection()).url == (url or values["host"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"host": "ftp://gateway.example"}, "no base URL"),
        ({"host": "https://"}, "no base URL"),
        ({"extra": {"provider": "openai"}}, "no base URL"),
        ({"extra": {"provider": "opneai"}}, "copilot, openai, azure, anthropic"),
        ({"host": "https://x.example", "extra": {"wire": "x"}}, "completions, responses"),
        ({"password": "ghp_abcdefghijklmnop"}, "fine-grained"),
    ],
)
def test_a_connection_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], words: str
) -> None:
    connection = {"conn_type": "copilot", "password": "long-enough", **values}
    monkeypatch.setenv("AIRFLOW_CONN_COPILOT_OTHER", json.dumps(connection))
    works, why = CopilotHook("copilot_other").test_connection()
    assert not works
    assert "'copilot_other'" in why
    assert words in why


def test_the_key_is_in_no_text_of_the_session(rig: CopilotRig) -> None:
    rig.rehearse({"say": "x"})
    hook = CopilotHook()
    vendor = hook._vendor(hook.connection())
    assert vendor.key not in repr(vendor)
    assert vendor.key not in repr(vendor.upstream)
    with rig.start() as session:
        assert vendor.key not in repr(session)
        lines = processes_that_name(str(rig.folder))
        assert any(rig.program in line for line in lines)
        assert not any(vendor.key in line for line in lines)


def test_an_attempt_that_is_over_starts_nothing(rig: CopilotRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(limits=Limits(timeout=0, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    failure = rig.attempt(limits=Limits(timeout=0.05, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    eventually(lambda: not processes_that_name(str(rig.folder)))
