"""What a request of the Codex program tells, and the items that answer it.

The scripted model keeps no state of a conversation: as a real model's, its every answer follows
from the request alone. So a session that another process resumes goes on with the next action of
the script, and a fresh session starts over. Wire:
https://platform.openai.com/docs/api-reference/responses, as Codex uses it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from airflow_agent_provider.rehearsal.script import Action, Write

#: Milliseconds that a command may run before Codex asks the model whether to wait on.
_YIELD_MS = 30_000

_CONTRACT_STEP = re.compile(r"^Step: (?P<step>\S+) of workflow ", re.MULTILINE)
_FOLDER = re.compile(r"<cwd>(?P<path>[^<]+)</cwd>")
_CALL_ID = re.compile(r"^call_(?P<position>\d+)_\d+$")
_RUNNING_COMMAND = re.compile(r"Process running with session ID (?P<id>\d+)")
_RUNNING_SCRIPT = re.compile(r"Script running with cell ID (?P<id>\S+)")
#: What Codex reports of a call that did not run to its end: such an action is done again.
_LOST = re.compile(
    r"(Wall time: [^\n]*\n)?aborted|write_stdin failed: Unknown process|exec cell \S+ not found"
)


@dataclass(frozen=True)
class Conversation:
    """Where a conversation stands, by its own history.

    :param step: the step's id, empty if the request does not tell it.
    :param workspace: the folder that the agent works in.
    :param position: the index of the action that comes next; beyond the last one when all are done.
    :param waiting_for: the tool call that asks for the end of a command that still runs.
    :param calls: how many tool calls there were.
    :param code_mode: whether this model's tools are called from a script (``exec``).
    :param patches: whether this model has a tool of its own to edit files.
    """

    step: str
    workspace: str
    position: int
    waiting_for: dict[str, Any] | None
    calls: int
    code_mode: bool
    patches: bool


def read_conversation(
    request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
) -> Conversation:
    """Return where the conversation of ``request`` stands.

    :param request: the body of a request to ``/responses``.
    :param actions_of: returns a step's actions; only where its turns end matters here.
    """
    items = [item for item in request.get("input", ()) if isinstance(item, dict)]
    workspace = _workspace(items)
    step = _step(items, workspace)
    tools = set(_tool_names([*request.get("tools", ()), *items]))
    position, waiting_for = _progress(items, actions_of(step))
    return Conversation(
        step=step,
        workspace=workspace,
        position=position,
        waiting_for=waiting_for,
        calls=sum(1 for item in items if "call_id" in item and "output" not in item),
        code_mode="exec_command" not in tools and "exec" in tools,
        patches="apply_patch" in tools or "exec" in tools,
    )


def _user_texts(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for item in items:
        if item.get("type") == "message" and item.get("role") == "user":
            yield _text(item.get("content"))


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _workspace(items: Sequence[Mapping[str, Any]]) -> str:
    folder = ""
    for text in _user_texts(items):
        if text.startswith("<environment_context>") and (match := _FOLDER.search(text)):
            folder = match["path"]
    return folder


def _step(items: Sequence[Mapping[str, Any]], workspace: str) -> str:
    # The folder comes from Codex, not from a prompt that may quote other steps' prompts.
    parts = PurePosixPath(workspace).parts
    if len(parts) > 3 and parts[-1] == "tree" and re.fullmatch(r"-1|\d+", parts[-2]):
        return parts[-3]
    for text in _user_texts(items):
        if text.startswith(("<environment_context>", "<user_instructions>", "# AGENTS.md")):
            continue
        # The contract is the prompt's last section, after whatever the prompt quotes.
        named = _CONTRACT_STEP.findall(text)
        return named[-1] if named else ""
    return ""


def _tool_names(tools: Sequence[Any]) -> Iterator[str]:
    for tool in tools:
        if isinstance(tool, dict):
            if tool.get("type") in ("function", "custom"):
                yield str(tool.get("name"))
            yield from _tool_names(tool.get("tools", ()))


def _progress(
    items: Sequence[Mapping[str, Any]], actions: Sequence[Action]
) -> tuple[int, dict[str, Any] | None]:
    position, waiting_for = 0, None
    for item in items:
        if item.get("type") == "message" and item.get("role") == "assistant":
            position, waiting_for = _after_next_say(actions, position), None
        elif item.get("type") == "message" and item.get("role") == "user":
            # A new turn: whatever ran in the one before was ended with it.
            waiting_for = None
        elif "output" in item and (match := _CALL_ID.match(str(item.get("call_id")))):
            position = int(match["position"])
            done, waiting_for = _judge(_output(item))
            position += done
    return position, waiting_for


def _after_next_say(actions: Sequence[Action], position: int) -> int:
    for index in range(position, len(actions)):
        if actions[index].say is not None:
            return index + 1
    return len(actions)


def _output(item: Mapping[str, Any]) -> str:
    output = item["output"]
    return output if isinstance(output, str) else _text(output)


def _judge(output: str) -> tuple[bool, dict[str, Any] | None]:
    """Return whether a call is done, and else the call that waits on, if it still runs."""
    head = output[:500]
    if match := _RUNNING_SCRIPT.search(head):
        values = {"cell_id": match["id"], "yield_time_ms": _YIELD_MS}
        return False, {"name": "wait", "namespace": "functions", "arguments": json.dumps(values)}
    if match := _RUNNING_COMMAND.search(head):
        values = {"session_id": int(match["id"]), "chars": "", "yield_time_ms": _YIELD_MS}
        return False, {"name": "write_stdin", "arguments": json.dumps(values)}
    return not _LOST.match(output), None


def answer_item(conversation: Conversation, action: Action, position: int) -> dict[str, Any]:
    """Return the output item that performs ``action``.

    :param conversation: the conversation that it answers.
    :param action: what to do; no ``fail``.
    :param position: the index of the action.
    """
    if action.say is not None:
        text = action.say if isinstance(action.say, str) else json.dumps(action.say)
        return _message(text, f"msg_{position}_{conversation.calls}")
    # The position stands in the id, which comes back with every later request.
    call_id = f"call_{position}_{conversation.calls}"
    if conversation.waiting_for is not None:
        call = {"type": "function_call", **conversation.waiting_for}
    elif action.write is not None:
        call = _write(conversation, action.write)
    else:
        call = _run(conversation, action.run or "")
    return {"id": f"item_{call_id}", "call_id": call_id, "status": "completed", **call}


def _message(text: str, item_id: str) -> dict[str, Any]:
    return {
        "type": "message",
        "id": item_id,
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def _run(conversation: Conversation, command: str) -> dict[str, Any]:
    arguments = {"cmd": command, "yield_time_ms": _YIELD_MS}
    if not conversation.code_mode:
        return {
            "type": "function_call",
            "name": "exec_command",
            "arguments": json.dumps(arguments),
        }
    return _script(
        f"let r = await tools.exec_command({json.dumps(arguments)});\n"
        "text(r.output);\n"
        "while (r.session_id !== undefined) {\n"
        "  r = await tools.write_stdin({session_id: r.session_id, chars: '', "
        f"yield_time_ms: {_YIELD_MS}}});\n"
        "  text(r.output);\n"
        "}\n"
        "text(`exit code ${r.exit_code}`);"
    )


def _script(source: str) -> dict[str, Any]:
    return {"type": "custom_tool_call", "name": "exec", "namespace": "functions", "input": source}


def _write(conversation: Conversation, write: Write) -> dict[str, Any]:
    if not conversation.patches or not _fits_a_patch(write):
        return _run(conversation, _write_command(write))
    lines = "".join(f"+{line}\n" for line in write.content.removesuffix("\n").split("\n"))
    # Adding a file that exists replaces it.
    patch = f"*** Begin Patch\n*** Add File: {write.path}\n{lines}*** End Patch"
    if conversation.code_mode:
        return _script(f"text(await tools.apply_patch({json.dumps(patch)}));")
    return {"type": "custom_tool_call", "name": "apply_patch", "input": patch}


def _fits_a_patch(write: Write) -> bool:
    # A patch is made of whole lines, so it cannot say that the last one has no end.
    return write.content.endswith("\n") and "\r" not in write.content and write.path.strip() != ""


def _write_command(write: Write) -> str:
    path = shlex.quote(write.path)
    return f'mkdir -p -- "$(dirname -- {path})" && printf %s {shlex.quote(write.content)} > {path}'
