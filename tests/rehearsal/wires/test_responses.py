"""Where a conversation stands, read from its history alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.rehearsal.script import Action, Script
from airflow_agent_provider.rehearsal.wires.responses import answer_item, read_conversation

SHELL = [{"type": "function", "name": "exec_command"}, {"type": "custom", "name": "apply_patch"}]
SCRIPTED = {
    "type": "additional_tools",
    "tools": [
        {"type": "namespace", "name": "functions", "tools": [{"type": "custom", "name": "exec"}]}
    ],
}


def user(text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content}


def place(folder: str) -> dict[str, Any]:
    return user(f"<environment_context>\n  <cwd>{folder}</cwd>\n</environment_context>")


def contract(step: str, before: str = "Do it.") -> dict[str, Any]:
    return user(f"{before}\n\nStep: {step} of workflow w, run manual__1\n\n- Work.\n")


def read(*items: dict[str, Any], actions: list[Any] | None = None, tools: Any = SHELL) -> Any:
    script = Script.model_validate({"steps": {"*": actions or [{"say": "Done."}]}})
    return read_conversation({"input": list(items), "tools": tools}, script.actions)


def output(call_id: str, text: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


@pytest.mark.parametrize(
    ("items", "step"),
    [
        ([contract("review")], "review"),
        ([place("/somewhere"), contract("review")], "review"),
        ([contract("review", "Step: plan of workflow w, run 1, quoted")], "review"),
        ([contract("plan"), contract("review")], "plan"),
        ([user("<user_instructions>Step: plan of workflow w</user_instructions>")], ""),
        ([user("# AGENTS.md instructions\nStep: a of workflow w"), contract("b")], "b"),
        ([place("/data/w/run-1/review/-1/tree"), user("no contract")], "review"),
        ([place("/data/w/run-1/review/3/tree"), contract("plan")], "review"),
        ([place("/home/me/project/tree"), user("no contract")], ""),
        ([place("/a/b"), place("/data/w/run/a-b.c/0/tree"), user("x")], "a-b.c"),
        ([user("Not a line: Step: plan of workflow w")], ""),
        ([], ""),
    ],
)
def test_the_step_is_found(items: list[dict[str, Any]], step: str) -> None:
    assert read(*items).step == step


ACTIONS = [{"run": "a"}, {"fail": 503}, {"run": "b"}, {"say": "one"}, {"run": "c"}, {"say": "two"}]


def message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("history", "position"),
    [
        ([], 0),
        ([output("call_0_0", "Process exited with code 1")], 1),
        ([output("call_0_0", "ok"), output("call_2_1", [{"text": "ok"}])], 3),
        ([output("call_0_0", "Wall time: 0.7 seconds\naborted by user")], 0),
        ([output("call_0_0", "aborted")], 0),
        ([output("call_0_0", "the command said: aborted")], 1),
        ([output("call_2_0", "write_stdin failed: Unknown process id 7")], 2),
        ([output("call_0_0", "ok"), message("one")], 4),
        ([message("one"), user("repair it")], 4),
        ([message("one"), output("call_4_1", "ok"), message("two")], 6),
        ([message("one"), message("two"), user("again")], 6),
        ([output("of another program", "ok")], 0),
    ],
)
def test_the_position_follows_from_the_history(history: list[Any], position: int) -> None:
    assert read(contract("s"), *history, actions=ACTIONS).position == position


def test_a_command_that_still_runs_is_waited_for() -> None:
    running = output("call_0_0", "Chunk ID: 1\nProcess running with session ID 42\nOutput:\n")
    found = read(contract("s"), running, actions=ACTIONS)
    assert found.position == 0
    item = answer_item(found, Action(run="a"), 0)
    assert (item["type"], item["name"]) == ("function_call", "write_stdin")
    assert json.loads(item["arguments"])["session_id"] == 42
    assert read(contract("s"), running, user("resumed"), actions=ACTIONS).waiting_for is None


def test_a_script_that_still_runs_is_waited_for() -> None:
    running = output("call_0_0", "Script running with cell ID c7\nWall time 30 seconds\n")
    item = answer_item(read(contract("s"), running, SCRIPTED, tools=[]), Action(run="a"), 0)
    assert (item["name"], item["namespace"]) == ("wait", "functions")
    assert json.loads(item["arguments"])["cell_id"] == "c7"


@pytest.mark.parametrize("content", ["line\n", "\n", "a\n\nb\n", "*** End Patch\n", "+x\n-y\n"])
def test_whole_lines_are_written_by_a_patch(content: str) -> None:
    item = answer_item(
        read(contract("s")),
        Action.model_validate({"write": {"path": "a/b.md", "content": content}}),
        0,
    )
    assert item["name"] == "apply_patch"
    lines = item["input"].split("\n")
    assert lines[:2] == ["*** Begin Patch", "*** Add File: a/b.md"]
    assert "".join(f"{line[1:]}\n" for line in lines[2:-1]) == content


@pytest.mark.parametrize("content", ["", "no end", "dos\r\n"])
def test_other_content_is_written_by_a_command(content: str) -> None:
    action = Action.model_validate({"write": {"path": "a b.md", "content": content}})
    assert answer_item(read(contract("s")), action, 0)["name"] == "exec_command"


@given(st.text())
def test_code_mode_gets_the_command_as_a_literal(command: str) -> None:
    item = answer_item(read(contract("s"), SCRIPTED, tools=[]), Action(run=command), 0)
    assert (item["type"], item["name"], item["namespace"]) == (
        "custom_tool_call",
        "exec",
        "functions",
    )
    first = item["input"].partition(";\ntext(")[0]
    arguments = first.removeprefix("let r = await tools.exec_command(").removesuffix(")")
    assert json.loads(arguments)["cmd"] == command


@given(st.text())
def test_code_mode_gets_a_file_as_a_literal(content: str) -> None:
    write = {"write": {"path": "a/b.md", "content": f"{content}\n".replace("\r", "")}}
    found = read(contract("s"), SCRIPTED, tools=[])
    item = answer_item(found, Action.model_validate(write), 0)
    patch = item["input"].removeprefix("text(await tools.apply_patch(").removesuffix("));")
    lines = json.loads(patch).split("\n")
    assert "".join(f"{line[1:]}\n" for line in lines[2:-1]) == write["write"]["content"]


@given(st.lists(st.sampled_from(["run", "say", "fail"]), min_size=1, max_size=8))
def test_playing_a_script_visits_every_action_once(kinds: list[str]) -> None:
    actions = [
        {"run": "x"} if k == "run" else {"say": "y"} if k == "say" else {"fail": 500} for k in kinds
    ]
    script = Script.model_validate({"steps": {"*": actions}})
    played: list[int] = []
    history = [contract("s")]
    whole = script.actions("s")
    while True:
        found = read_conversation({"input": history, "tools": SHELL}, script.actions)
        position = found.position
        while position < len(whole) and whole[position].fail is not None:
            position += 1
        if position >= len(whole):
            break
        played.append(position)
        item = answer_item(found, whole[position], position)
        history.append(item)
        if item["type"] == "message":
            history.append(user("next turn"))
        else:
            history.append(output(item["call_id"], "Process exited with code 0"))
    assert played == [n for n, action in enumerate(whole) if action.fail is None]
