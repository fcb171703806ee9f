"""The tools by which agents run commands and write files, by the names that they offer them under.

A table: an agent whose tools have other names is a row more. Codex's tools, which belong to its
wire alone, stand in that wire's module.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from airflow_agent_provider.rehearsal.conversation import Call, Verdict
from airflow_agent_provider.rehearsal.script import Write

#: Milliseconds that a command may run, for tools that take a limit: the most that any of them does.
_LONGEST_MS = 600_000


@dataclass(frozen=True)
class _Writer:
    """The parameters of a tool that writes a file.

    :param path: takes the path, absolute where the workspace is known.
    :param content: takes the whole text.
    """

    path: str
    content: str


#: Tools that run a shell command, and the parameter that takes it.
_SHELLS = {
    "bash": "command",  # Copilot and OpenCode
    "Bash": "command",  # Claude Code
    "run_shell_command": "command",  # Qwen Code
}
_WRITERS = {
    "create": _Writer("path", "file_text"),  # Copilot
    "write": _Writer("filePath", "content"),  # OpenCode
    "Write": _Writer("file_path", "content"),  # Claude Code
    "write_file": _Writer("file_path", "content"),  # Qwen Code
}
#: Tools that take a patch, as plain text.
_PATCHERS = ("apply_patch",)  # Copilot, for OpenAI's models
#: Tools that take the turn's structured answer as their arguments.
_TELLERS = ("StructuredOutput",)  # Claude Code
#: Arguments that are given where a tool has a parameter for them.
_USEFUL: dict[str, Any] = {
    "timeout": _LONGEST_MS,
    "initial_wait": _LONGEST_MS // 1000,
    "is_background": False,
}

#: How results begin of calls that did not run to their end: such an action is done again.
_LOST = re.compile(
    # Claude Code
    r"\[(Tool call (interrupted|did not complete)|Request interrupted|Tool use interrupted"
    r"|Tool result missing)|The user doesn't want to take this action right now"
    r"|The user doesn't want to proceed with this tool use\..*this call was stopped while running"
    # Copilot: its program was killed, the turn was aborted
    r"|Tool execution was interrupted|The execution of this tool, or a previous tool was int"
    # OpenCode: it was killed, the turn was cancelled
    r"|\[Tool execution was interrupted|Tool execution aborted"
    # Qwen Code, which drops a call from its history if it was killed
    r"|\[Operation Cancelled\]|Command was cancelled by user before it could",
    re.DOTALL,
)
#: OpenCode adds this to what an interrupted command had written.
_LOST_LATER = re.compile(r"<(?:bash|shell)_metadata>\s[^<]*User aborted the command")
#: What the writing tools answer where the file, or else its folder, is not as they want it.
_SHELL_CAN = re.compile(
    r"already exists|has not been read|must (first )?read|parent (directory|folder)", re.IGNORECASE
)


def write_command(write: Write) -> str:
    """Return the shell command that writes a file, and its folder where there is none."""
    path = shlex.quote(write.path)
    return f'mkdir -p -- "$(dirname -- {path})" && printf %s {shlex.quote(write.content)} > {path}'


def patch_of(write: Write) -> str | None:
    """Return the patch that adds a file; None if no patch can say what is in it."""
    # A patch is made of whole lines, so it cannot say that the last one has no end.
    if not write.content.endswith("\n") or "\r" in write.content or not write.path.strip():
        return None
    lines = "".join(f"+{line}\n" for line in write.content.removesuffix("\n").split("\n"))
    return f"*** Begin Patch\n*** Add File: {write.path}\n{lines}*** End Patch"


def judge(tool: str, output: str, *, failed: bool = False) -> Verdict:
    """Return what the result of a call says of it.

    :param tool: the tool's name.
    :param output: the result's text.
    :param failed: whether the result is marked as an error.
    """
    if tool in _TELLERS:
        return Verdict(done=False, told=not failed)
    if _LOST.match(output) or _LOST_LATER.search(output):
        return Verdict(done=False)
    if (tool in _WRITERS or tool in _PATCHERS) and _SHELL_CAN.search(output[:500]):
        return Verdict(done=False, by_shell=True)
    return Verdict(done=True)


class OfferedTools:
    """How an agent does things by the tools that its request offers.

    :param schemas: the JSON schema of each tool's arguments, by the tool's name.
    :param workspace: the folder that the agent works in; empty if the request does not tell.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]], workspace: str) -> None:
        self._schemas = schemas
        self._workspace = workspace

    def run(self, command: str) -> Call | None:
        """Return the call that runs a shell command in the workspace."""
        for name in self._offered(_SHELLS):
            return self._call(name, {_SHELLS[name]: command})
        return None

    def write(self, write: Write, *, by_shell: bool) -> Call | None:
        """Return the call that writes a file."""
        call = None if by_shell else self._patch(write) or self._create(write)
        return call or self.run(write_command(write))

    def _patch(self, write: Write) -> Call | None:
        patch = patch_of(write)
        for name in self._offered(_PATCHERS):
            return None if patch is None else Call(name, patch)
        return None

    def _create(self, write: Write) -> Call | None:
        # These tools want an absolute path.
        for name in self._offered(_WRITERS) if self._workspace else ():
            path = str(PurePosixPath(self._workspace) / write.path)
            tool = _WRITERS[name]
            return self._call(name, {tool.path: path, tool.content: write.content})
        return None

    def tell(self, values: Mapping[str, Any]) -> Call | None:
        """Return the call that hands over a structured answer."""
        for name in self._offered(_TELLERS):
            # As the script has it: whether it fits the schema is what is rehearsed.
            return Call(name, dict(values))
        return None

    def _offered(self, names: Iterable[str]) -> Iterator[str]:
        return (name for name in names if name in self._schemas)

    def _call(self, name: str, arguments: dict[str, Any]) -> Call:
        schema = self._schemas[name]
        useful = {k: v for k, v in _USEFUL.items() if k in (schema.get("properties") or {})}
        return Call(name, {**_required(schema), **useful, **arguments})


def instance(schema: Any) -> Any:
    """Return a small value that fits a JSON schema: as far as its type, values and fields go."""
    if not isinstance(schema, Mapping):
        return None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance(schema[key][0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        return _required(schema)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return {"string": "Rehearsal", "boolean": False, "array": []}.get(str(kind))


def _required(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {name: instance(properties.get(name)) for name in schema.get("required") or ()}
