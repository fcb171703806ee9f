"""The agents' tools: what is called, and what their results say."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from airflow_agent_provider.rehearsal.conversation import Call, Verdict
from airflow_agent_provider.rehearsal.script import Write
from airflow_agent_provider.rehearsal.tools import OfferedTools, instance, judge

WRITE = Write(path="docs/plan.md", content="# Plan\n")
COMMAND = "mkdir -p -- \"$(dirname -- docs/plan.md)\" && printf %s '# Plan\n' > docs/plan.md"


def schema(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


STRING = {"type": "string"}
#: Each agent's tools as it offered them when this was written.
COPILOT = {
    "bash": schema(
        "command",
        "description",
        command=STRING,
        description=STRING,
        initial_wait={"type": "number"},
    ),
    "view": schema("path", path=STRING),
}
OFFERS: dict[str, dict[str, Any]] = {
    "copilot": {**COPILOT, "create": schema("path", "file_text", path=STRING, file_text=STRING)},
    "copilot, with a model of OpenAI's": {**COPILOT, "apply_patch": {}},
    "opencode": {
        "bash": schema("command", command=STRING, timeout={"type": "integer"}),
        "write": schema("content", "filePath", content=STRING, filePath=STRING),
    },
    "qwen": {
        "run_shell_command": schema(
            "command", "is_background", command=STRING, is_background={"type": "boolean"}
        ),
        "write_file": schema("file_path", "content", file_path=STRING, content=STRING),
    },
    "claude": {
        "Bash": schema("command", command=STRING, timeout={"type": "number"}),
        "Write": schema("file_path", "content", file_path=STRING, content=STRING),
    },
}


@pytest.mark.parametrize(
    ("agent", "name", "arguments"),
    [
        ("copilot", "create", {"path": "/w/docs/plan.md", "file_text": "# Plan\n"}),
        (
            "copilot, with a model of OpenAI's",
            "apply_patch",
            "*** Begin Patch\n*** Add File: docs/plan.md\n+# Plan\n*** End Patch",
        ),
        ("opencode", "write", {"filePath": "/w/docs/plan.md", "content": "# Plan\n"}),
        ("qwen", "write_file", {"file_path": "/w/docs/plan.md", "content": "# Plan\n"}),
        ("claude", "Write", {"file_path": "/w/docs/plan.md", "content": "# Plan\n"}),
    ],
)
def test_each_agent_writes_with_its_own_tool(agent: str, name: str, arguments: Any) -> None:
    call = OfferedTools(OFFERS[agent], "/w").write(WRITE, by_shell=False)
    assert call == Call(name, arguments)


@pytest.mark.parametrize(
    ("agent", "name", "more"),
    [
        ("copilot", "bash", {"initial_wait": 600}),
        ("opencode", "bash", {"timeout": 600_000}),
        ("qwen", "run_shell_command", {"is_background": False}),
        ("claude", "Bash", {"timeout": 600_000}),
    ],
)
def test_each_agent_runs_with_its_own_shell(agent: str, name: str, more: dict[str, Any]) -> None:
    tools = OfferedTools(OFFERS[agent], "/w")
    call = tools.run("make")
    assert call is not None
    assert isinstance(call.arguments, dict)
    assert (call.name, call.arguments["command"]) == (name, "make")
    assert more.items() <= call.arguments.items()
    jsonschema.validate(call.arguments, OFFERS[agent][name])


@pytest.mark.parametrize("agent", OFFERS)
def test_the_shell_writes_what_no_tool_can(agent: str) -> None:
    offer = OFFERS[agent]
    shell = next(name for name in ("bash", "Bash", "run_shell_command") if name in offer)
    for tools, by_shell in (
        (OfferedTools(offer, "/w"), True),
        (OfferedTools({shell: offer[shell]}, "/w"), False),
    ):
        call = tools.write(WRITE, by_shell=by_shell)
        assert call is not None
        assert call.name == shell
        assert isinstance(call.arguments, dict)
        assert call.arguments["command"] == COMMAND


def test_without_a_workspace_there_is_no_absolute_path() -> None:
    call = OfferedTools(OFFERS["claude"], "").write(WRITE, by_shell=False)
    assert call is not None
    assert call.name == "Bash"


def test_a_patch_cannot_end_within_a_line() -> None:
    write = Write(path="a.md", content="no end")
    call = OfferedTools(OFFERS["copilot, with a model of OpenAI's"], "/w").write(
        write, by_shell=False
    )
    assert call is not None
    assert call.name == "bash"


def test_what_is_not_offered_is_not_called() -> None:
    tools = OfferedTools({"Read": {}, "Grep": {}}, "/w")
    assert tools.run("make") is None
    assert tools.write(WRITE, by_shell=False) is None
    assert tools.tell({"ok": True}) is None
    offered = OfferedTools({"StructuredOutput": {"required": ["more"]}}, "/w")
    assert offered.tell({"ok": True}) == Call("StructuredOutput", {"ok": True})


@pytest.mark.parametrize(
    ("tool", "output"),
    [
        (
            "bash",
            "Tool execution was interrupted before a result was recorded. Its effects may be "
            "absent, partial, or already complete, and other tools may have completed "
            "successfully. Check the current state before retrying; do not assume success or "
            "replay this operation blindly.",
        ),
        ("bash", "The execution of this tool, or a previous tool was interrupted."),
        ("bash", "[Tool execution was interrupted]"),
        ("bash", "Tool execution aborted"),
        (
            "bash",
            "(no output)\n\n<shell_metadata>\nUser aborted the command\n</shell_metadata>",
        ),
        (
            "run_shell_command",
            "Command was cancelled by user before it could complete. There was no output before "
            "it was cancelled.",
        ),
        ("write_file", "[Operation Cancelled] Reason: the user said so"),
        (
            "Bash",
            "[Tool call interrupted: the session ended before this call's result was recorded, so "
            "its outcome is unknown. Check whether it took effect before relying on it or running "
            "it again.]",
        ),
        (
            "Bash",
            "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. "
            "if it was a file edit, the new_string was NOT written to the file). STOP what you are "
            "doing and wait for the user to tell you how to proceed. Correction to the text above: "
            "this call was stopped while running, not refused before it ran.",
        ),
        ("Write", "[Request interrupted by user for tool use]"),
    ],
)
def test_an_interrupted_call_is_not_done(tool: str, output: str) -> None:
    assert judge(tool, output) == Verdict(done=False)
    assert judge(tool, f"$ cat log\n{output.splitlines()[0]}") == Verdict(done=True)


@pytest.mark.parametrize(
    ("tool", "output"),
    [
        (
            "create",
            "Path /w/README.md already exists as a file. Use `view` to check contents then edit "
            "it.",
        ),
        (
            "create",
            "Parent directory /w/docs does not exist. You need to create it before creating the "
            "file.",
        ),
        ("apply_patch", "Failed to apply patch: Error: File already exists: /w/README.md"),
        (
            "Write",
            "<tool_use_error>File has not been read yet. Read it first before writing to it."
            "</tool_use_error>",
        ),
        (
            "write_file",
            "File /w/README.md has not been read in this session. Use the read_file tool first",
        ),
    ],
)
def test_what_a_tool_will_not_write_is_left_to_the_shell(tool: str, output: str) -> None:
    assert judge(tool, output) == Verdict(done=False, by_shell=True)
    # The shell's own words are the shell's affair.
    assert judge("bash", output) == Verdict(done=True)


@pytest.mark.parametrize(
    ("tool", "output"),
    [
        ("bash", "\n<shellId: 0 completed with exit code 1>"),
        ("Write", "Cannot write to /w/docs/plan.md while in plan mode."),
        ("Write", "The user doesn't want to proceed with this tool use. The tool use was rejected"),
        ("write_file", 'Plan mode is active. The tool "write_file" cannot be executed'),
        ("write", "The user has specified a rule which prevents you from using this tool call."),
    ],
)
def test_a_failed_or_refused_call_is_done(tool: str, output: str) -> None:
    assert judge(tool, output, failed=True) == Verdict(done=True)


def test_a_structured_answer_is_told_unless_it_is_wrong() -> None:
    output = "Structured output provided successfully"
    assert judge("StructuredOutput", output) == Verdict(done=False, told=True)
    wrong = judge("StructuredOutput", "Output does not match required schema", failed=True)
    assert wrong == Verdict(done=False)


@pytest.mark.parametrize(
    "wanted",
    [
        schema("title", title=STRING, more=STRING),
        schema("n", "f", n={"type": "integer", "minimum": 3}, f={"type": "number"}),
        schema("e", "c", e={"enum": ["a", "b"]}, c={"const": 7}),
        schema("l", "b", "o", l={"type": "array"}, b={"type": "boolean"}, o=schema("x", x=STRING)),
        schema("a", "t", a={"anyOf": [STRING, {"type": "null"}]}, t={"type": ["string", "null"]}),
        schema("z", "d", z={"type": "null"}, d={"type": "string", "default": "x"}),
        schema("any"),
    ],
)
def test_a_small_value_fits_a_schema(wanted: dict[str, Any]) -> None:
    jsonschema.validate(instance(wanted), wanted)
