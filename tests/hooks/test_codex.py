"""The Codex hook with the real Codex program; what all agents share is in ``tests/conformance``."""

from __future__ import annotations

import json
import os
import subprocess
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
    Sandbox,
    ToolKind,
)
from airflow_agent_provider.hooks.codex import DEFAULT_URL, CodexHook
from tests.conformance.rigs import PROMPT, Attempt, CodexRig, CodexScriptRig, follow, git
from tests.conformance.test_agent_hooks import eventually, processes_that_name

pytestmark = pytest.mark.integration

UNBOXED = Confinement(sandbox=Sandbox.OFF)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CodexRig]:
    made = CodexRig(tmp_path, monkeypatch)
    yield made
    made.close()


def requests(server: Any) -> list[Any]:
    return [entry for entry in server.requests if entry.method == "POST"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sandbox": "on"}, "sandbox"),
        ({"effrot": "high"}, "effrot"),
        ({"retries": -1}, "retries"),
        ({"patience": 0}, "patience"),
        ({"effort": "extreme"}, "effort"),
    ],
)
def test_options_that_do_not_exist(rig: CodexRig, options: dict[str, Any], words: str) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(options=options).failure
    assert isinstance(failure, f.InvalidDefinition)
    assert "sandbox, effort, retries, patience" in failure.reason
    assert words in failure.reason.partition(";")[2]


def test_read_only_cannot_be_had_without_the_sandbox(rig: CodexRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(
        access=Access.READ_ONLY, options={"sandbox": "off"}, confinement=UNBOXED
    ).failure
    assert isinstance(failure, f.InvalidDefinition)


def test_effort_and_model_reach_the_vendor(rig: CodexRig) -> None:
    server = rig.rehearse({"say": "x"})
    result = rig.attempt(options={"effort": "high"}, model="gpt-5.6-luna").done
    (request,) = requests(server)
    assert request.body["model"] == result.model == "gpt-5.6-luna"
    assert request.body["reasoning"]["effort"] == "high"


def test_without_a_model_the_result_names_codexs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = CodexScriptRig(tmp_path, monkeypatch)
    server = rig.rehearse({"say": "x"})
    result = rig.attempt().done
    (request,) = requests(server)
    rig.close()
    assert result.model == request.body["model"]
    assert result.model


@pytest.mark.parametrize("sandbox", ["off", False])
def test_without_the_sandbox_everything_is_allowed_and_still_nothing_is_left(
    rig: CodexRig, sandbox: Any
) -> None:
    outside = rig.folder / "outside.txt"
    rig.rehearse(
        {"run": f"echo x > {outside}; (setsid nohup sleep 306 >/dev/null 2>&1 &); echo"},
        {"say": "Done."},
    )
    attempt = rig.attempt(options={**rig.options, "sandbox": sandbox}, confinement=UNBOXED)
    assert attempt.done.message == "Done."
    assert outside.exists()
    assert "Codex runs without the sandbox: [agents] sandbox is off" in [
        event.text for event in attempt.events if event.kind is EventKind.NOTICE
    ]
    assert not processes_that_name(str(rig.folder))


def test_unboxed_codexs_own_sandbox_holds_its_commands(rig: CodexRig) -> None:
    server = rig.rehearse(
        {
            "run": "for folder in . $TMPDIR /tmp /var/tmp $HOME $HOME/codex ..; do"
            " touch $folder/probe 2>/dev/null && echo $folder; done > writable.txt; "
            "python3 -c \"import socket; socket.create_connection(('127.0.0.1', "
            "int(open('port.txt').read())), 3)\" && touch connected; true"
        },
        {"say": "Done."},
    )
    (rig.workspace / "port.txt").write_text(server.url.rpartition(":")[2])
    assert rig.attempt(confinement=UNBOXED).done.message == "Done."
    writable = (rig.workspace / "writable.txt").read_text().split()
    assert writable == [".", str(rig.home / "tmp")]
    assert not (rig.workspace / "connected").exists()
    assert (rig.home / "codex").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("sandbox", "words", "mend"),
    [
        ("required", "the sandbox does not work on this worker", "[agents] sandbox = off"),
        ("auto", "Codex's sandbox does not work on this worker", "options: {sandbox: off}"),
        ("off", "Codex's sandbox does not work on this worker", "options: {sandbox: off}"),
    ],
)
def test_where_no_sandbox_can_work_it_refuses_to_start(
    rig: CodexRig, sandbox: str, words: str, mend: str
) -> None:
    """In a user namespace that may hold no further ones, as in many containers."""
    unshare = ["unshare", "--user", "--map-root-user", "/bin/sh", "-c"]
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces && "
    if subprocess.run([*unshare, f"{forbid}true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets no user namespace be made to try it in")
    rig.rehearse({"say": "x"})
    attempt = (
        "import sys; from pathlib import Path; "
        "from airflow_agent_provider.agents.contract import AgentTask, Confinement, Sandbox; "
        "from airflow_agent_provider.hooks.codex import CodexHook; "
        "CodexHook().start(AgentTask('x', Path(sys.argv[1]), Path(sys.argv[2]), "
        "confinement=Confinement(Sandbox(sys.argv[3]))))"
    )
    done = subprocess.run(
        [
            *(*unshare, f'{forbid}exec "$@"', "sh"),
            *(sys.executable, "-c", attempt, str(rig.workspace), str(rig.home), sandbox),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"InvalidDefinition: {words}" in done.stderr
    assert mend in done.stderr


def test_a_missing_program_says_how_to_install_it(
    rig: CodexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.rehearse({"say": "x"})
    for module in ("openai_codex", "codex_cli_bin"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            failure = rig.attempt().failure
        assert isinstance(failure, f.InvalidDefinition)
        assert "pip install 'airflow-agent-provider[codex]'" in failure.reason


def test_a_program_that_does_not_start_is_a_failure(rig: CodexRig) -> None:
    rig.rehearse({"say": "x"})
    rig.home.mkdir()
    (rig.home / "codex").write_text("a file where Codex's home should be")
    failure = rig.attempt().failure
    assert isinstance(failure, f.AgentFailed)
    assert failure.raw
    assert isinstance(rig.attempt(workspace=rig.folder / "nowhere").failure, f.AgentFailed)


def test_a_project_cannot_bring_commands_of_its_own(rig: CodexRig) -> None:
    proof = rig.folder / "ran"
    (rig.workspace / ".codex").mkdir()
    (rig.workspace / ".codex" / "config.toml").write_text(
        f'[mcp_servers.x]\ncommand = "/bin/sh"\nargs = ["-c", "env > {proof}"]\n'
        f'notify = ["touch", "{proof}"]\nmodel = "another"\n'
    )
    hook = {"hooks": [{"type": "command", "command": f"touch {proof}"}]}
    hooks = {name: [hook] for name in ("SessionStart", "UserPromptSubmit", "Stop")}
    (rig.workspace / ".codex" / "hooks.json").write_text(json.dumps({"hooks": hooks}))
    server = rig.rehearse({"run": "true"}, {"say": "Done."})
    assert rig.attempt().done.message == "Done."
    assert not proof.exists()
    assert {entry.body["model"] for entry in requests(server)} == {"gpt-5.5"}
    assert (rig.workspace / ".codex" / "config.toml").exists()


@pytest.mark.parametrize(
    ("files", "seen", "unseen"),
    [
        ({"AGENTS.md": "Mind the cats."}, "Mind the cats.", "secret"),
        ({"AGENTS.md": "Old.", "AGENTS.override.md": "New."}, "New.", "Old."),
        ({"AGENTS.md": None}, "Do the work.", "a secret of the worker"),
    ],
)
def test_the_projects_instructions_are_read(
    rig: CodexRig, files: dict[str, str | None], seen: str, unseen: str
) -> None:
    (rig.folder / "secret").write_text("a secret of the worker")
    for name, text in files.items():
        if text is None:
            (rig.workspace / name).symlink_to(rig.folder / "secret")
        else:
            (rig.workspace / name).write_text(text)
    server = rig.rehearse({"say": "x"})
    assert rig.attempt().done
    prompt = json.dumps(requests(server)[0].body["input"])
    assert seen in prompt
    assert unseen not in prompt


def test_the_agent_has_no_web_search_and_no_sub_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = CodexScriptRig(tmp_path, monkeypatch)
    for model in ("gpt-5.5", None):
        server = rig.rehearse({"say": "x"})
        assert rig.attempt(model=model).done
        body = json.dumps(requests(server)[0].body)
        assert "web_search" not in body
        assert "spawn_agent" not in body
    rig.close()


def test_codex_repeats_a_failed_request_by_itself(rig: CodexRig) -> None:
    server = rig.rehearse({"fail": 503}, {"fail": {"how": "drop"}}, {"say": "Recovered."})
    attempt = rig.attempt(options={"retries": 1})
    assert attempt.done.message == "Recovered."
    assert [entry.action for entry in requests(server)] == ["fail", "fail", "say"]
    assert any(e.kind is EventKind.NOTICE and "tries again" in e.text for e in attempt.events)


def test_a_long_wait_for_the_rate_limit_is_left_to_airflow(rig: CodexRig) -> None:
    rig.rehearse({"fail": {"status": 429, "retry_after": 600, "times": None}})
    failure = rig.attempt(options={"retries": 1, "patience": 1}).failure
    assert isinstance(failure, f.RateLimited)
    rig.rehearse(
        {
            "fail": {
                "how": "error",
                "code": "rate_limit_exceeded",
                "message": "Please try again in 1m30s.",
            }
        }
    )
    failure = rig.attempt().failure
    assert isinstance(failure, f.RateLimited)
    assert failure.retry_after == 90


def test_a_refused_key_names_the_connection(rig: CodexRig) -> None:
    rig.rehearse({"fail": {"status": 401, "message": "Incorrect API key provided: sk-…"}})
    failure = rig.attempt().failure
    assert failure is not None
    assert "'codex_default'" in failure.reason
    assert "Incorrect API key provided" in (failure.raw or "")


def test_a_resumed_session_is_told_that_nobody_interrupted_it(rig: CodexRig) -> None:
    server = rig.rehearse({"say": "one"}, {"say": "two"})
    session = rig.attempt().done.session
    assert rig.attempt(session=session).done.message == "two"
    texts = [
        [item["content"][0]["text"] for item in entry.body["input"] if item.get("role") == "user"]
        for entry in requests(server)
    ]
    assert texts[0][-1] == PROMPT
    assert texts[1][-1].startswith("If this conversation says that the user interrupted it")
    assert texts[1][-1].endswith(PROMPT)


def test_a_session_that_another_codex_works_in(rig: CodexRig) -> None:
    rig.rehearse({"run": "touch running; sleep 307"}, {"say": "x"})
    attempt = Attempt()
    with rig.start() as first:
        worker = threading.Thread(target=lambda: follow(attempt, first.turn(PROMPT)))
        worker.start()
        eventually(lambda: first.session and (rig.workspace / "running").exists())
        failure = rig.attempt(session=first.session).failure
        # The newcomer's end takes nothing from the one at work.
        assert processes_that_name("sleep 307")
        first.interrupt()
        worker.join(timeout=20)
    assert isinstance(failure, f.Interrupted)
    assert "still works in session" in failure.reason
    assert attempt.done.status == "interrupted"


def test_closing_in_mid_turn_ends_the_turn(rig: CodexRig) -> None:
    """As the operator does when a newer attempt has taken the step over."""
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


def test_leaving_a_turn_early_interrupts_it(rig: CodexRig) -> None:
    rig.rehearse({"run": "touch running; sleep 309"}, {"say": "x"})
    with rig.start() as session:
        turn = session.turn(PROMPT)
        assert next(event for event in turn if event.tool is ToolKind.EXECUTE)
        turn.close()
    assert not processes_that_name(str(rig.folder))
    # The rollout, too, says that the turn is over.
    (rollout,) = session.portable_files().values()
    assert "turn_aborted" in rollout.read_text()


def test_a_large_and_odd_output_passes(rig: CodexRig) -> None:
    rig.rehearse(
        {"run": "head -c 300000 /dev/urandom; printf '\\xff\\xfe\\0'; sleep 0.3"},
        {"write": {"path": "big.txt", "content": "ü€😀\n" * 50_000}},
        {"say": "ü€😀"},
    )
    assert rig.attempt().done.message == "ü€😀"
    assert (rig.workspace / "big.txt").read_text() == "ü€😀\n" * 50_000


def test_a_command_longer_than_codex_waits_is_polled(rig: CodexRig, monkeypatch: Any) -> None:
    from airflow_agent_provider.rehearsal.wires import responses

    monkeypatch.setattr(responses, "_YIELD_MS", 300)
    server = rig.rehearse({"run": "sleep 1.5; touch late.txt"}, {"say": "Done."})
    assert rig.attempt().done.message == "Done."
    assert (rig.workspace / "late.txt").exists()
    assert [entry.position for entry in requests(server)].count(0) > 1


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, DEFAULT_URL),
        ({"host": "https://gateway.example/v1/"}, "https://gateway.example/v1"),
        ({"host": "gateway.example"}, "https://gateway.example"),
        ({"host": "http://127.0.0.1", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "ftp://gateway.example"}, None),
        ({"host": "https://"}, None),
    ],
)
def test_the_connections_host(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], url: str | None
) -> None:
    connection = {"conn_type": "codex", "password": "sk-long-enough", **values}
    monkeypatch.setenv("AIRFLOW_CONN_CODEX_OTHER", json.dumps(connection))
    hook = CodexHook("codex_other")
    if url is not None:
        assert hook._vendor().url == url
        return
    works, why = hook.test_connection()
    assert not works
    assert "'codex_other'" in why


def test_the_key_is_in_no_text_of_the_session(rig: CodexRig) -> None:
    rig.rehearse({"say": "x"})
    vendor = CodexHook()._vendor()
    assert vendor.key not in repr(vendor)
    with rig.start() as session:
        assert vendor.key not in repr(session)
        lines = processes_that_name(str(rig.folder))
        assert any("app-server" in line for line in lines)
        assert not any(vendor.key in line for line in lines)


def test_the_workspaces_git_folder_is_out_of_reach(rig: CodexRig) -> None:
    rig.rehearse({"run": "echo x > .git/hooks/pre-commit; git config a.b c; true"}, {"say": "x"})
    before = git(rig.workspace, "config", "--list", "--local")
    assert rig.attempt().done
    assert git(rig.workspace, "config", "--list", "--local") == before
    assert not (rig.workspace / ".git/hooks/pre-commit").exists()


def test_an_attempt_that_is_over_starts_nothing(rig: CodexRig) -> None:
    rig.rehearse({"say": "x"})
    failure = rig.attempt(limits=Limits(timeout=0, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    failure = rig.attempt(limits=Limits(timeout=0.05, stall=1)).failure
    assert isinstance(failure, f.TimedOut)
    eventually(lambda: not processes_that_name(str(rig.folder)))
