"""OpenAI's Responses wire, as the Codex program uses it.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_agent_provider.rehearsal.conversation import (
    Call,
    Called,
    Conversation,
    Entry,
    Move,
    Prompt,
    Returned,
    Said,
    Verdict,
    conversation_of,
    next_move,
    step_of,
)
from airflow_agent_provider.rehearsal.script import Action, Fail, Write
from airflow_agent_provider.rehearsal.tools import patch_of, write_command
from airflow_agent_provider.rehearsal.wires.openai import OpenAI
from airflow_agent_provider.rehearsal.wires.wire import (
    MODEL,
    Answer,
    Event,
    Stream,
    count_tokens,
    dicts,
    pieces,
    plain_text,
)

#: Milliseconds that a command may run before Codex asks the model whether to wait on.
_YIELD_MS = 30_000

_FOLDER = re.compile(r"<cwd>(?P<path>[^<]+)</cwd>")
_RUNNING_COMMAND = re.compile(r"Process running with session ID (?P<id>\d+)")
_RUNNING_SCRIPT = re.compile(r"Script running with cell ID (?P<id>\S+)")
#: What Codex reports of a call that did not run to its end: such an action is done again.
_LOST = re.compile(
    r"(Wall time: [^\n]*\n)?aborted|write_stdin failed: Unknown process|exec cell \S+ not found"
)
#: How messages begin that Codex writes in the user's name.
_NO_PROMPT = ("<environment_context>", "<user_instructions>", "# AGENTS.md")


class ResponsesWire(OpenAI):
    """``POST /v1/responses``; every answer is streamed, as Codex asks for it."""

    def read(
        self, request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
    ) -> Conversation:
        """Return where the conversation of a request stands."""
        return read_conversation(request, actions_of)

    def aside(self, request: Mapping[str, Any]) -> str | None:
        """Return None: Codex asks nothing beside the conversation."""
        return None

    def answer(self, request: Mapping[str, Any], move: Move) -> Answer:
        """Return the answer that makes ``move``."""
        item = _item(move)
        response = _response(request)
        usage = _usage(request, item)
        done = {**response, "status": "completed", "output": [item], "usage": usage}
        return Stream(
            [
                _created(response),
                _event("response.output_item.added", output_index=0, item=_begun(item)),
                *_deltas(item),
                _event("response.output_item.done", output_index=0, item=item),
                _event("response.completed", response=done),
            ]
        )

    def fail(self, request: Mapping[str, Any], fail: Fail) -> Answer:
        """Return the answer that fails as the script says, but for silence and a reset."""
        if fail.status is not None:
            return self.refuse(fail.status, fail.message, fail.code, fail.retry_after)
        response = _response(request)
        if fail.how in ("drop", "silence"):
            return Stream([_created(response)])
        error = {
            "code": fail.code or "server_error",
            "message": fail.message or "The rehearsal's script fails here.",
        }
        failed = {**response, "status": "failed", "error": error}
        return Stream([_created(response), _event("response.failed", response=failed)])


@dataclass(frozen=True)
class CodexTools:
    """How Codex does things.

    :param code_mode: whether this model's tools are called from a script (``exec``).
    :param patches: whether this model has a tool of its own to edit files.
    """

    code_mode: bool
    patches: bool

    def run(self, command: str) -> Call:
        """Return the call that runs a shell command in the workspace."""
        arguments = {"cmd": command, "yield_time_ms": _YIELD_MS}
        if not self.code_mode:
            return Call("exec_command", arguments)
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

    def write(self, write: Write, *, by_shell: bool) -> Call:
        """Return the call that writes a file."""
        # Adding a file that exists replaces it.
        patch = patch_of(write) if self.patches and not by_shell else None
        if patch is None:
            return self.run(write_command(write))
        if self.code_mode:
            return _script(f"text(await tools.apply_patch({json.dumps(patch)}));")
        return Call("apply_patch", patch)

    def tell(self, values: Mapping[str, Any]) -> Call | None:
        """Return None: Codex takes a structured answer from the last message."""
        return None


def read_conversation(
    request: Mapping[str, Any], actions_of: Callable[[str], Sequence[Action]]
) -> Conversation:
    """Return where the conversation of ``request`` stands.

    :param request: the body of a request to ``/responses``.
    :param actions_of: returns a step's actions; only where its turns end matters here.
    """
    items = dicts(request.get("input"))
    workspace = _workspace(items)
    step = step_of(workspace, (t for t in _user_texts(items) if not t.startswith(_NO_PROMPT)))
    names = set(_tool_names([*dicts(request.get("tools")), *items]))
    tools = CodexTools(
        code_mode="exec_command" not in names and "exec" in names,
        patches="apply_patch" in names or "exec" in names,
    )
    return conversation_of(step, workspace, tools, _history(items), actions_of(step))


def answer_item(conversation: Conversation, action: Action, position: int) -> dict[str, Any]:
    """Return the output item that performs ``action``.

    :param conversation: the conversation that it answers.
    :param action: what to do; no ``fail``.
    :param position: the index of the action.
    """
    return _item(next_move(conversation, action, position))


def _user_texts(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for item in items:
        if item.get("type") == "message" and item.get("role") == "user":
            yield plain_text(item.get("content"))


def _workspace(items: Sequence[Mapping[str, Any]]) -> str:
    folder = ""
    for text in _user_texts(items):
        if text.startswith("<environment_context>") and (match := _FOLDER.search(text)):
            folder = match["path"]
    return folder


def _tool_names(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tool in tools:
        if tool.get("type") in ("function", "custom"):
            yield str(tool.get("name"))
        yield from _tool_names(dicts(tool.get("tools")))


def _history(items: Sequence[Mapping[str, Any]]) -> Iterator[Entry]:
    for item in items:
        if item.get("type") == "message" and item.get("role") == "assistant":
            yield Said(plain_text(item.get("content")))
        elif item.get("type") == "message" and item.get("role") == "user":
            yield Prompt(plain_text(item.get("content")))
        elif "output" in item:
            output = item["output"]
            text = output if isinstance(output, str) else plain_text(output)
            yield Returned(str(item.get("call_id")), _judge(text))
        elif "call_id" in item:
            yield Called(str(item["call_id"]))


def _judge(output: str) -> Verdict:
    head = output[:500]
    if match := _RUNNING_SCRIPT.search(head):
        values = {"cell_id": match["id"], "yield_time_ms": _YIELD_MS}
        return Verdict(done=False, waiting_for=Call("wait", values, namespace="functions"))
    if match := _RUNNING_COMMAND.search(head):
        values = {"session_id": int(match["id"]), "chars": "", "yield_time_ms": _YIELD_MS}
        return Verdict(done=False, waiting_for=Call("write_stdin", values))
    return Verdict(done=not _LOST.match(output))


def _item(move: Move) -> dict[str, Any]:
    if move.call is None:
        return {
            "type": "message",
            "id": move.id,
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": move.text, "annotations": []}],
        }
    item = {"id": f"item_{move.id}", "call_id": move.id, "status": "completed"}
    item["name"] = move.call.name
    if move.call.namespace:
        item["namespace"] = move.call.namespace
    if isinstance(move.call.arguments, str):
        return {**item, "type": "custom_tool_call", "input": move.call.arguments}
    return {**item, "type": "function_call", "arguments": json.dumps(move.call.arguments)}


def _script(source: str) -> Call:
    return Call("exec", source, namespace="functions")


def _response(request: Mapping[str, Any]) -> dict[str, Any]:
    model = request.get("model") or MODEL
    return {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "model": model}


def _created(response: Mapping[str, Any]) -> Event:
    return _event("response.created", response={**response, "status": "in_progress"})


def _event(name: str, **values: Any) -> Event:
    return Event(name, {"type": name, **values})


def _begun(item: Mapping[str, Any]) -> dict[str, Any]:
    begun = {**item, "status": "in_progress"}
    return {**begun, "content": []} if item["type"] == "message" else begun


def _deltas(item: Mapping[str, Any]) -> Iterator[Event]:
    if item["type"] == "message":
        for piece in pieces(item["content"][0]["text"]):
            yield _event(
                "response.output_text.delta",
                item_id=item["id"],
                output_index=0,
                content_index=0,
                delta=piece,
            )


def _usage(request: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
    tokens = count_tokens(request.get("input"), item)
    return {
        "input_tokens": tokens.read,
        "input_tokens_details": {"cached_tokens": tokens.cached},
        "output_tokens": tokens.written,
        "output_tokens_details": {"reasoning_tokens": tokens.written // 5},
        "total_tokens": tokens.read + tokens.written,
    }
