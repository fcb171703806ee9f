"""The ACP hook with the rehearsal's own agent and with Qwen Code; what all agents share is in
``tests/conformance``."""

from __future__ import annotations

import json
import os
import signal
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
    Usage,
)
from airflow_agent_provider.hooks import acp_wire
from airflow_agent_provider.hooks.acp import AcpHook
from airflow_agent_provider.hooks.acp_client import Rules
from airflow_agent_provider.hooks.acp_home import Home
from airflow_agent_provider.hooks.acp_presets import APIS, PRESETS, Preset, filled
from tests.conformance.rigs import PROMPT, AcpQwenRig, AcpScriptedRig, Attempt, follow
from tests.conformance.test_agent_hooks import eventually, processes_that_name

pytestmark = pytest.mark.integration

UNBOXED = Confinement(sandbox=Sandbox.OFF)


class PlayingRig(AcpScriptedRig):
    """The rehearsal's own agent, with arguments and extras of the test's choice."""

    arguments: tuple[str, ...] = ()
    more: dict[str, Any] = {}  # noqa: RUF012

    def extra(self) -> dict[str, Any]:
        values = {**super().extra(), **self.more}
        values["command"] = [*values["command"], *self.arguments]
        values["read_only_folders"] = [*values["read_only_folders"], str(self.folder / "script")]
        return values

    def play(self, *turns: list[dict[str, Any]]) -> None:
        """Let the agent play these turns."""
        folder = self.folder / "script"
        folder.mkdir(exist_ok=True)
        (folder / "turns.json").write_text(json.dumps(turns))
        self.arguments = ("--script", str(folder / "turns.json"))
        self.rehearse({"say": "not asked"})


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayingRig]:
    made = PlayingRig(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def qwen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AcpQwenRig]:
    made = AcpQwenRig(tmp_path, monkeypatch)
    yield made
    made.close()


def requests(server: Any) -> list[Any]:
    return [entry for entry in server.requests if entry.method == "POST"]


def say(text: str) -> dict[str, Any]:
    return {
        "update": {
            "sessionUpdate": "agent_message_chunk",
            "content": {"type": "text", "text": text},
        }
    }


def connection(monkeypatch: pytest.MonkeyPatch, **values: Any) -> AcpHook:
    values = {"conn_type": "acp", "password": "sk-long-enough", **values}
    monkeypatch.setenv("AIRFLOW_CONN_ACP_OTHER", json.dumps(values))
    return AcpHook("acp_other")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mdoe": "x"}, "mdoe"),
        ({"patience": 0}, "patience"),
        ({"config": {"a": [1]}}, "config"),
    ],
)
def test_options_that_do_not_exist(rig: PlayingRig, options: dict[str, Any], words: str) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options=options).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "mode, config, patience" in failure.reason
    assert words in failure.reason.partition(";")[2]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({}, "names no agent; set its extra 'preset' to one of qwen, opencode, gemini, goose"),
        ({"preset": "claude"}, "preset"),
        ({"preset": "qwen", "environment": "{"}, "environment"),
        ({"preset": "qwen", "environment": "[1]"}, "environment"),
        ({"preset": "qwen", "api": "soap"}, "api"),
        ({"command": "agent --acp"}, "node_modules/.bin/agent is missing"),
        ({"command": "bin/agent"}, "absolute path"),
        ({"command": "/nowhere/agent"}, "extra 'command' its absolute path"),
        ({"preset": "gemini", "model": "m"}, "npm install --prefix {} @google/gemini-cli@0.61.0"),
        ({"preset": "goose", "model": "m"}, "extra 'command' its absolute path"),
    ],
)
def test_connections_that_name_no_agent(
    rig: PlayingRig, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], words: str
) -> None:
    programs = rig.folder / "programs"
    monkeypatch.setenv("AIRFLOW__AGENTS__PROGRAMS", str(programs))
    hook = connection(monkeypatch, extra=json.dumps(extra))
    with pytest.raises(f.InvalidDefinition) as raised:
        hook.start(rig.task())
    assert words.format(programs) in raised.value.reason
    with pytest.raises(f.InvalidDefinition):
        hook.program_version()


def test_extras_as_a_form_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of a form are texts, and empty ones are none."""
    extra = {
        "preset": "qwen",
        "command": "qwen --acp --debug 'two words'",
        "environment": '{"A": "{model}", "B": {"c": 1}}',
        "read_only_folders": "/a\n/b, /c",
        "api": "",
        "mode": None,
        "session_files": "one/{id}\ntwo",
    }
    hook = connection(monkeypatch, extra=json.dumps(extra))
    assert hook._extra().read_only_folders == (Path("/a"), Path("/b"), Path("/c"))
    vendor, preset = hook._read()
    assert vendor.url == APIS["openai"].url
    assert preset.command == ("qwen", "--acp", "--debug", "two words")
    assert preset.environment["A"] == "{model}"
    assert preset.environment["B"] == {"c": 1}
    assert preset.environment["OPENAI_MODEL"] == "{model}"
    assert (preset.mode, preset.sessions) == ("yolo", ("one/{id}", "two"))


def test_the_models_api_decides_on_the_address_and_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, api in APIS.items():
        hook = connection(monkeypatch, extra=json.dumps({"preset": "none", "api": name}))
        assert hook._read()[0].url == api.url
    assert APIS["openai"].headers("k") == {"Authorization": "Bearer k"}
    assert APIS["anthropic"].headers("k") == {"x-api-key": "k"}
    assert APIS["gemini"].headers("k") == {"x-goog-api-key": "k"}


def test_the_key_is_tried_as_the_api_wants_it(
    rig: PlayingRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rig.rehearse({"say": "x"}).url
    extra = json.dumps({"preset": "none", "api": "anthropic"})
    assert connection(monkeypatch, host=url, extra=extra).test_connection()[0] is True
    works, why = connection(
        monkeypatch, host=url, extra=extra, password="invalid-key"
    ).test_connection()
    assert not works
    assert "401" in why


def test_placeholders() -> None:
    values = {"model": 'a"b', "home": "/h", "model_url": "http://x/v1"}
    assert filled("{home}/{model}/{other}", values) == '/h/a"b/{other}'
    assert filled({"{model}": ["{model_url}", 1, None, ("{home}",)]}, values) == {
        'a"b': ["http://x/v1", 1, None, ["/h"]]
    }
    with pytest.raises(KeyError):
        filled("{model_key}", values)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_every_preset_can_be_filled(name: str) -> None:
    preset = PRESETS[name]
    values = {
        "model_url": "http://127.0.0.1:1/v1",
        "model_origin": "http://127.0.0.1:1",
        "model_path": "v1",
        "model_key": "k",
        "model": "m",
        "home": "/h",
    }
    text = json.dumps([filled(preset.environment, values), filled(preset.files, values)])
    assert not any(f"{{{name}}}" in text for name in values)
    assert preset.tells_model
    assert preset.api in APIS


def test_without_the_model_that_it_must_be_told(
    qwen: AcpQwenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcpQwenRig, "extra", lambda self: {"preset": "qwen"})
    qwen.rehearse({"say": "x"})
    failure = qwen.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "extra 'model' of the connection 'acp_default'" in failure.reason
    assert qwen.attempt(model="one").done.model == "one"


def test_a_model_that_the_agent_is_told_nowhere(rig: PlayingRig) -> None:
    environment = {**rig.extra()["environment"], "OPENAI_MODEL": "fixed"}
    rig.more = {"environment": environment}
    rig.rehearse({"say": "x"})
    failure = rig.attempt(model="one").failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "has no model 'one'; it has: none" in failure.reason


def test_modes_and_options_that_the_agent_does_not_have(rig: PlayingRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options={"mode": "yolo"}).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "has no mode 'yolo'; it has: ask, auto, read" in failure.reason
    failure = rig.attempt(options={"config": {"thought_level": "high"}}).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "'thought_level'" in failure.reason
    assert failure.raw


def test_a_step_may_name_the_mode(rig: PlayingRig) -> None:
    rig.rehearse({"run": "touch it"}, {"say": "Done."})
    assert rig.attempt(options={"mode": "read"}).done.message == "Done."
    assert not (rig.workspace / "it").exists()
    assert rig.attempt(options={"mode": "auto"}).done
    assert (rig.workspace / "it").exists()


def test_without_the_library_it_says_how_to_install_it(
    rig: PlayingRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.rehearse({"say": "x"})
    monkeypatch.setitem(sys.modules, "acp", None)
    failure = rig.attempt().failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "pip install 'airflow-agent-provider[acp]'" in failure.reason


def test_the_version_of_the_program(qwen: AcpQwenRig) -> None:
    qwen.rehearse({"say": "x"})
    assert qwen.hook().program_version() == "0.15.10"


def test_a_program_that_speaks_no_protocol_does_not_start(rig: PlayingRig) -> None:
    rig.more = {"command": ["/bin/sh", "-c", "echo hello; echo no such option >&2; exit 3", "x"]}
    rig.rehearse({"say": "x"})
    failure = rig.attempt().failure
    assert isinstance(failure, f.AgentFailed)
    assert "did not start" in failure.reason
    for words in ("hello", "no such option", "the program ended with 3"):
        assert words in (failure.raw or "")
    rig.more = {"command": ["/bin/sleep", "310"]}
    rig.rehearse({"say": "x"})
    failure = rig.attempt(limits=Limits(timeout=2, stall=60)).failure
    assert isinstance(failure, f.TimedOut)
    eventually(lambda: not processes_that_name("sleep 310"))
    assert isinstance(rig.attempt(workspace=rig.folder / "nowhere").failure, f.AgentFailed)


def test_what_the_agent_writes_elsewhere_neither_hangs_nor_confuses(rig: PlayingRig) -> None:
    rig.play(
        [
            {"line": "Welcome!"},
            {"line": "[1, 2]"},
            {"noise": 300_000},
            {"update": {"sessionUpdate": "of_a_later_protocol", "x": 1}},
            {"update": {"sessionUpdate": "plan", "entries": "no list"}},
            say("Done."),
        ]
    )
    assert rig.attempt().done.message == "Done."


def test_a_program_that_ends_in_the_middle_tells_why(rig: PlayingRig) -> None:
    rig.play([say("I was about to"), {"noise": 100}, {"wait": 0.2}, {"exit": 7}])
    attempt = rig.attempt()
    assert isinstance(attempt.failure, f.Interrupted)
    assert "the program ended with 7" in (attempt.failure.raw or "")
    assert "x" * 100 in (attempt.failure.raw or "")
    # What it had begun to say is not lost.
    assert any(event.text == "I was about to" for event in attempt.events)


def test_a_message_without_an_end_is_not_waited_for(
    rig: PlayingRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acp_wire, "LINE_SIZE", 100_000)
    rig.play([say("x" * 50_000), say("x" * 300_000), say("never")])
    failure = rig.attempt().failure
    assert isinstance(failure, f.AgentFailed)
    assert "more than 100,000 bytes" in failure.reason


def test_more_updates_than_the_step_takes_let_the_agent_wait(rig: PlayingRig) -> None:
    thoughts = [
        {
            "update": {
                "sessionUpdate": "tool_call",
                "toolCallId": str(number),
                "title": "Look",
                "kind": "read",
                "status": "completed",
            }
        }
        for number in range(3000)
    ]
    rig.play([*thoughts, say("Done.")])
    attempt = rig.attempt()
    assert attempt.done.message == "Done."
    ids = [e.call_id for e in attempt.events if e.kind is EventKind.TOOL_CALL]
    assert ids == [str(number) for number in range(3000)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"stop": {"stopReason": "refusal"}}, f.PolicyViolation),
        ({"stop": {"stopReason": "max_tokens"}}, f.AgentFailed),
        ({"error": {"code": -32603, "message": "x", "data": "500 Oops"}}, f.Unavailable),
        ({"error": {"code": -32000, "message": "Log in first"}}, f.AuthenticationFailed),
        ({"error": {"code": 1, "message": "a bug of the agent's"}}, f.AgentFailed),
    ],
)
def test_how_a_turn_may_end(rig: PlayingRig, message: dict[str, Any], expected: type) -> None:
    rig.play([say("Well, "), message])
    failure = rig.attempt().failure
    assert type(failure) is expected


def ask(kind: str, path: Path | str, *kinds: str) -> dict[str, Any]:
    options = [{"optionId": f"id of {k}", "name": "?", "kind": k} for k in kinds]
    call = {"toolCallId": "c", "kind": kind, "title": f"{kind} {path}"}
    return {"ask": {"toolCall": {**call, "locations": [{"path": str(path)}]}, "options": options}}


ALL = ("allow_always", "reject_always", "allow_once", "reject_once")


@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        (ALL, {"outcome": "selected", "optionId": "id of allow_once"}),
        (
            ("reject_once", "allow_always"),
            {"outcome": "selected", "optionId": "id of allow_always"},
        ),
        (("reject_once",), {"outcome": "cancelled"}),
        ((), {"outcome": "cancelled"}),
    ],
)
def test_permission_is_given_by_the_kind_of_the_option(
    rig: PlayingRig, kinds: tuple[str, ...], outcome: dict[str, str]
) -> None:
    rig.play([ask("edit", rig.workspace / "a", *kinds)])
    attempt = rig.attempt()
    assert json.loads(attempt.done.message) == outcome
    told = [event for event in attempt.events if event.tool is not None]
    assert [(e.tool, e.data["paths"]) for e in told] == [
        (ToolKind.EDIT, [str(rig.workspace / "a")])
    ]


def test_permission_is_refused_by_the_kind_of_the_option(rig: PlayingRig) -> None:
    outside = rig.folder / "outside"
    rig.play([ask("edit", outside, *ALL)])
    attempt = rig.attempt(confinement=UNBOXED)
    assert json.loads(attempt.done.message)["optionId"] == "id of reject_once"
    notices = [event.text for event in attempt.events if event.kind is EventKind.NOTICE]
    assert f"refused: edit {outside}: {outside} is outside of the workspace" in notices


@pytest.mark.parametrize(
    ("access", "boxed", "kind", "path", "allowed"),
    [
        (Access.WRITE, False, "edit", "a", True),
        (Access.WRITE, False, "edit", "{tree}/deep/a", True),
        (Access.WRITE, False, "edit", "{home}/a", True),
        (Access.WRITE, False, "edit", "../a", False),
        (Access.WRITE, False, "move", "{tree}/../a", False),
        (Access.WRITE, False, "delete", "/etc/passwd", False),
        (Access.WRITE, False, "edit", "link/a", False),
        (Access.WRITE, False, "read", "/etc/passwd", True),
        (Access.WRITE, False, "execute", "/", True),
        # The box has nothing outside that could be written.
        (Access.WRITE, True, "edit", "/tmp/a", True),
        (Access.READ_ONLY, True, "edit", "a", False),
        (Access.READ_ONLY, True, "execute", "a", True),
        (Access.READ_ONLY, False, "execute", "a", False),
        (Access.READ_ONLY, False, "search", "a", True),
        (Access.READ_ONLY, False, None, "a", True),
    ],
)
def test_the_rules(
    tmp_path: Path, access: Access, boxed: bool, kind: str | None, path: str, allowed: bool
) -> None:
    tree, home = tmp_path / "tree", tmp_path / "home"
    tree.mkdir()
    (tree / "link").symlink_to("/etc")
    rules = Rules(tree, home, access, boxed)
    refusal = rules.refusal(kind, [path.format(tree=tree, home=home)])
    assert (refusal is None) is allowed


@pytest.mark.parametrize("name", ["scripted", "qwen"])
def test_read_only_without_the_sandbox_is_a_mode_of_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rig = {"scripted": PlayingRig, "qwen": AcpQwenRig}[name](tmp_path, monkeypatch)
    rig.rehearse(
        {"write": {"path": "a", "content": "x\n"}},
        {"run": "touch b; rm README.md"},
        {"say": "I only read."},
    )
    attempt = rig.attempt(access=Access.READ_ONLY, confinement=UNBOXED)
    rig.close()
    assert attempt.done.message == "I only read."
    assert sorted(path.name for path in rig.workspace.iterdir()) == [".git", "README.md"]


def test_read_only_needs_the_sandbox_or_a_mode(rig: PlayingRig) -> None:
    rig.more = {"read_only_mode": ""}
    rig.rehearse({"say": "x"})
    failure = rig.attempt(access=Access.READ_ONLY, confinement=UNBOXED).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "set [agents] sandbox = required" in failure.reason


def test_in_the_sandbox_a_read_only_agent_still_runs_commands(qwen: AcpQwenRig) -> None:
    server = qwen.rehearse({"run": "git log --format=%s; touch x; id -u"}, {"say": "I read."})
    assert qwen.attempt(access=Access.READ_ONLY).done.message == "I read."
    told = json.dumps(requests(server)[-1].body)
    assert "Begin" in told
    assert "Read-only file system" in told


def test_unboxed_it_works_too_and_says_so(rig: PlayingRig) -> None:
    rig.rehearse({"run": "touch it; (setsid nohup sleep 311 >/dev/null 2>&1 &)"}, {"say": "Done."})
    attempt = rig.attempt(confinement=UNBOXED)
    assert attempt.done.message == "Done."
    assert (rig.workspace / "it").exists()
    assert attempt.events[0].kind is EventKind.NOTICE
    assert "without the sandbox" in attempt.events[0].text
    assert not processes_that_name("sleep 311")


def test_an_agent_that_keeps_no_sessions(rig: PlayingRig) -> None:
    rig.rehearse({"say": "one"}, {"say": "two"})
    kept = rig.attempt().done.session
    rig.arguments = ("--forgets",)
    rig.rehearse({"say": "Anew."})
    attempt = rig.attempt(session=kept)
    assert attempt.done.message == "Anew."
    assert attempt.done.session is None
    assert EventKind.SESSION not in [event.kind for event in attempt.events]
    assert any("continues no sessions" in event.text for event in attempt.events)


def test_a_session_of_another_folder_is_not_qwens(qwen: AcpQwenRig) -> None:
    """Its sessions belong to the folder that they were begun in; every worker has the same."""
    qwen.rehearse({"say": "one"}, {"say": "two"})
    attempt = Attempt()
    with qwen.start() as session:
        follow(attempt, session.turn(PROMPT))
        files = {path: file.read_bytes() for path, file in session.portable_files().items()}
    moved = AcpQwenRig(qwen.folder / "elsewhere", qwen.patch)
    for path, content in files.items():
        (moved.home / path).parent.mkdir(parents=True)
        (moved.home / path).write_bytes(content)
    again = moved.attempt(session=attempt.done.session)
    assert again.done.message == "one"
    assert again.done.session != attempt.done.session
    assert any("the agent does not know it" in event.text for event in again.events)


def test_only_new_tokens_count_where_an_agent_tells_sums(rig: PlayingRig) -> None:
    def stop(read: int, written: int) -> dict[str, Any]:
        sums = {"inputTokens": read, "outputTokens": written, "totalTokens": read + written}
        return {"stop": {"stopReason": "end_turn", "usage": sums}}

    rig.play([say("a"), stop(100, 10)], [say("b"), stop(300, 15)])
    first, second = Attempt(), Attempt()
    with rig.start() as session:
        follow(first, session.turn(PROMPT))
        follow(second, session.turn(PROMPT))
    assert first.done.usage == Usage(100, 0, 10)
    assert second.done.usage == Usage(200, 0, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        (' \n{"a": 1}\n', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n[1]\n```\n", [1]),
        ('Here it is: {"a": 1}', None),
        ("```json\nno\n```", None),
    ],
)
def test_a_structured_answer_is_found(rig: PlayingRig, text: str, expected: Any) -> None:
    rig.play([say(text)])
    assert rig.attempt(schema={"type": "object"}).done.structured == expected


def test_a_structured_answer_is_asked_for_in_the_prompt(rig: PlayingRig) -> None:
    server = rig.rehearse({"say": {"a": 1}})
    assert rig.attempt(schema={"type": "object", "title": "The answer"}).done.structured == {"a": 1}
    (request,) = requests(server)
    prompt = request.body["messages"][-1]["content"]
    assert prompt.startswith(PROMPT)
    assert '"title": "The answer"' in prompt


def test_a_refused_key_names_the_connection(rig: PlayingRig) -> None:
    rig.rehearse({"fail": {"status": 401, "message": "Incorrect API key provided", "times": None}})
    failure = rig.attempt().failure
    assert isinstance(failure, f.AuthenticationFailed)
    assert "'acp_default'" in failure.reason
    assert "Incorrect API key provided" in (failure.raw or "")


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        ({"status": 401}, f.AuthenticationFailed),
        ({"status": 429, "code": "insufficient_quota"}, f.QuotaExhausted),
        ({"status": 400, "code": "context_length_exceeded"}, f.ContextExhausted),
        ({"status": 503}, f.Unavailable),
        ({"how": "refuse"}, f.Unavailable),
        ({"how": "drop"}, f.Unavailable),
    ],
)
def test_the_door_knows_what_an_agent_does_not_tell(
    rig: PlayingRig, fail: dict[str, Any], expected: type
) -> None:
    rig.arguments = ("--terse",)
    rig.rehearse({"fail": {**fail, "times": None}})
    failure = rig.attempt().failure
    assert type(failure) is expected
    assert "Internal error" in (failure.raw or "")


def test_how_long_to_wait_is_kept(rig: PlayingRig) -> None:
    rig.rehearse({"fail": {"status": 429, "retry_after": 7, "times": None}})
    failure = rig.attempt().failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 7


def test_an_agent_that_repeats_requests_is_ended_once_patience_is_over(qwen: AcpQwenRig) -> None:
    qwen.rehearse({"fail": {"status": 429, "message": "Slow down", "times": None}})
    started = time.monotonic()
    failure = qwen.attempt(options={"patience": 2}).failure
    assert isinstance(failure, f.RateLimited)
    # By itself it would give up after more than a minute.
    assert time.monotonic() - started < 45


def test_an_agent_that_does_not_heed_the_interrupt_is_ended(rig: PlayingRig) -> None:
    rig.rehearse({"run": "touch running; sleep 312"}, {"say": "Never."})
    attempt = Attempt()

    def stop() -> None:
        eventually((rig.workspace / "running").exists)
        for line in processes_that_name(str(rig.folder)):
            if rig.program in line and "pump.py" not in line and "bwrap" not in line:
                os.kill(int(line.partition(":")[0]), signal.SIGSTOP)
        session.interrupt()

    with rig.start() as session:
        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(f.Interrupted):
            follow(attempt, session.turn(PROMPT))
        stopper.join()
    assert not processes_that_name(str(rig.folder))


def test_an_interrupt_while_it_asks_ends_the_turn(rig: PlayingRig) -> None:
    rig.play([say("x"), ask("edit", "a", *ALL), {"wait": 60}])
    with rig.start() as session:
        turn = session.turn(PROMPT)
        assert next(event for event in turn if event.tool is ToolKind.EDIT)
        # The step has not yet come back for more: the agent still waits for its answer.
        session.interrupt()
        attempt = Attempt()
        follow(attempt, turn)
    assert attempt.done.status == "interrupted"


def test_closing_in_mid_turn_ends_the_turn(rig: PlayingRig) -> None:
    rig.rehearse({"run": "touch running; sleep 308"}, {"say": "x"})
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


def test_leaving_a_turn_early_interrupts_it(rig: PlayingRig) -> None:
    rig.rehearse({"run": "touch running; sleep 309"}, {"say": "x"})
    with rig.start() as session:
        turn = session.turn(PROMPT)
        assert next(event for event in turn if event.tool is ToolKind.EXECUTE)
        turn.close()
    assert not processes_that_name(str(rig.folder))


def test_a_large_and_odd_output_passes(qwen: AcpQwenRig) -> None:
    qwen.rehearse(
        {"run": "head -c 300000 /dev/urandom; printf '\\xff\\xfe\\0'; sleep 0.3"},
        {"write": {"path": "big.txt", "content": "ü€😀\n" * 50_000}},
        {"say": "ü€😀"},
    )
    assert qwen.attempt().done.message == "ü€😀"
    assert (qwen.workspace / "big.txt").read_text() == "ü€😀\n" * 50_000


def test_the_key_is_in_no_text_of_the_session(rig: PlayingRig) -> None:
    rig.rehearse({"say": "x"})
    agent = AcpHook()._agent()
    assert agent.vendor.key not in repr(agent)
    with rig.start() as session:
        assert agent.vendor.key not in repr(session)
        lines = processes_that_name(str(rig.folder))
        assert any(rig.program in line for line in lines)
        assert not any(agent.vendor.key in line for line in lines)


def test_an_attempt_that_is_over_starts_nothing(rig: PlayingRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(limits=Limits(timeout=0, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    failure = rig.attempt(limits=Limits(timeout=0.05, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    eventually(lambda: not processes_that_name(str(rig.folder)))


def test_the_home_follows_no_link_of_the_agents(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of the worker")
    folder = tmp_path / "home"
    folder.mkdir()
    home = Home(folder, Preset(sessions=("*-{id}", "deep/*")))
    (folder / "a-1").symlink_to(secret)
    os.mkfifo(folder / "b-1")
    (folder / "c-1").write_text(json.dumps({"text": "The answer is here."}))
    (folder / "d-2").touch()
    assert home.session_files("1") == {"c-1": folder / "c-1"}
    assert home.settle("1", "The answer is here.")
    (folder / "settings.json").symlink_to(secret)
    home.write({"settings.json": {"a": 1}, "new/deep.json": []})
    assert secret.read_text() == "a secret of the worker"
    assert (folder / "settings.json").read_text() == '{"a": 1}'
    assert (folder / "new" / "deep.json").read_text() == "[]"


def test_a_message_that_is_written_down_later_is_waited_for(tmp_path: Path) -> None:
    home = Home(tmp_path, Preset(sessions=("{id}",), written='{"text":{message}'))
    assert not home.settle("1", "no files, so nothing is waited for")
    file = tmp_path / "1"
    long = "It is a long story, which takes more than a line.\n“And so on.”"
    for message in ("one", " ü", long):
        # Its words may stand there for another reason.
        told = json.dumps(message.strip(), ensure_ascii=False)
        file.write_text(f'{{"response_text":{told}}}\n')
        line = f'{{"text":{told}}}\n'
        writer = threading.Timer(0.3, lambda line=line: file.write_text(line))
        writer.start()
        assert home.settle("1", message)
        assert file.read_text() == line
        writer.join()
    assert home.settle("1", " ")
