"""What Cursor's program on a worker tells its backend, and the messages that let it act.

The scripted model keeps no state of a conversation: how far the script is stands in the state that
the program keeps for its backend and shows it with every request. So a session that another process
resumes goes on with the next action, and a fresh session starts over.

Messages are those of ``agent.v1.AgentService`` in the package ``cursor-sdk`` 1.1.0; its bridge has
their names and numbers (``@cursor/sdk``).
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from airflow_agent_provider.rehearsal.protobuf import Field, Message
from airflow_agent_provider.rehearsal.script import Action

# AgentClientMessage: what the program sends.
RUN_REQUEST, EXEC_RESULT, EXEC_CONTROL, CANCEL = 1, 2, 5, 4
# ExecClientControlMessage
_CLOSED, _THROWN = 1, 2
# AgentServerMessage: what the program gets.
_UPDATE, _EXECUTE, _STATE = 1, 2, 3
# InteractionUpdate
_TEXT, _TOOL_STARTED, _TOOL_COMPLETED, _TURN_ENDED = 1, 2, 3, 14
# ToolCall
_SHELL_TOOL, _EDIT_TOOL, _TOOL_CALL_ID = 1, 12, 57
# ExecServerMessage, and ExecClientMessage with the results
_WRITE, _CONTEXT, _SHELL_STREAM = 3, 10, 14
# ShellStream
_STDOUT, _STDERR, _EXIT = 1, 2, 3
# ConversationStateStructure: no fields of Cursor's, which keeps those that it does not know.
_OUR_POSITION, _OUR_STEP = 47001, 47002

#: Milliseconds that a command may run.
_COMMAND_MS = 3_600_000
#: Characters of a message that are sent at once.
_DELTA = 40
#: Id of the request for the program's surroundings, apart from those of the actions.
CONTEXT_ID = 1


@dataclass(frozen=True)
class Run:
    """What a request to run says of its conversation.

    :param step: the step's id as an earlier request told it, empty if none did.
    :param position: index of the action that comes next; beyond the last one when all are done.
    :param prompt: the user's message; empty where the program resumes by itself.
    :param model: the model that is asked for.
    :param size: bytes of the request.
    """

    step: str
    position: int
    prompt: str
    model: str
    size: int


def read_run(data: bytes) -> Run:
    """Return what a request to run says.

    :param data: the ``AgentRunRequest``.
    """
    request = Message(data)
    state = request.at(1)
    return Run(
        step=state.text(_OUR_STEP),
        position=state.number(_OUR_POSITION),
        prompt=request.at(2, 1, 1).text(1),
        model=request.at(9).text(1),
        size=len(data),
    )


def ask_context() -> list[Field]:
    """Return the message that asks the program for its surroundings."""
    return [(_EXECUTE, [(1, CONTEXT_ID), (15, "context"), (_CONTEXT, [])])]


def workspace_of(result: Message) -> str:
    """Return the workspace's path, from what the program says of its surroundings."""
    return result.at(_CONTEXT, 1, 1, 4).text(2)


def rules_of(result: Message) -> str:
    """Return the project's rules, from what the program says of its surroundings."""
    return "\n".join(rule.text(2) for rule in result.at(_CONTEXT, 1, 1).all(2))


def ended_call(control: Message) -> tuple[int, bool]:
    """Return the id of the execution that a control message ends, and whether it was done.

    The id is 0 where the message ends none: the program also says that it is still at work.
    """
    number = control.only()
    if number not in (_CLOSED, _THROWN):
        return 0, False
    return control.at(number).number(1), number == _CLOSED


def text(words: str) -> list[list[Field]]:
    """Return the messages that say ``words``."""
    parts = [words[start : start + _DELTA] for start in range(0, len(words), _DELTA)]
    return [[(_UPDATE, [(_TEXT, [(1, part)])])] for part in parts]


def state(step: str, position: int) -> list[Field]:
    """Return the message that lets the program keep how far the script is."""
    return [(_STATE, [(_OUR_POSITION, position), (_OUR_STEP, step)])]


def turn_ended(read: int, cached: int, written: int) -> list[Field]:
    """Return the message that ends a turn, with its tokens."""
    tokens = [(1, read), (2, written), (3, cached), (4, 0), (5, written // 5)]
    return [(_UPDATE, [(_TURN_ENDED, tokens)])]


class Call:
    """One action that the program performs with its own tools.

    :param action: a ``write`` or a ``run``.
    :param position: the action's index, by which the call is known.
    :param workspace: the folder that the agent works in.
    """

    def __init__(self, action: Action, position: int, workspace: str) -> None:
        self.position = position
        self.id = CONTEXT_ID + 1 + position
        self._name = f"call_{position}"
        self._write = action.write
        self._command = action.run or ""
        self._workspace = workspace
        self._output = {_STDOUT: "", _STDERR: ""}
        self._exit = 0
        self._wrote = Message()
        self._aborted = False

    def started(self) -> list[Field]:
        """Return the message that shows the call to the user."""
        return self._update(_TOOL_STARTED, self._tool(self._tool_arguments()))

    def execution(self) -> list[Field]:
        """Return the message that lets the program perform it."""
        kind = _SHELL_STREAM if self._write is None else _WRITE
        return [(_EXECUTE, [(1, self.id), (15, self._name), (kind, self._arguments())])]

    def take(self, result: Message) -> None:
        """Take a part of the result into account."""
        if self._write is not None:
            self._wrote = result.at(_WRITE)
            return
        event = result.at(_SHELL_STREAM)
        for stream in self._output:
            self._output[stream] += event.at(stream).text(1)
        if event.has(_EXIT):
            self._exit = event.at(_EXIT).number(1)
            self._aborted = bool(event.at(_EXIT).number(4))

    @property
    def lost(self) -> bool:
        """Whether it was broken off: such an action is done again."""
        return self._aborted

    def completed(self) -> list[Field]:
        """Return the message that shows the result to the user."""
        result = self._edited() if self._write is not None else self._ran()
        return self._update(_TOOL_COMPLETED, self._tool(self._tool_arguments(), (2, result)))

    @property
    def size(self) -> int:
        """Characters that the model wrote for it."""
        return len(self._command if self._write is None else self._write.content) + 80

    @property
    def _path(self) -> str:
        assert self._write is not None
        return posixpath.join(self._workspace, self._write.path)

    def _update(self, kind: int, tool: list[Field]) -> list[Field]:
        return [(_UPDATE, [(kind, [(1, self._name), (2, tool), (3, "model-call")])])]

    def _tool(self, *fields: Field) -> list[Field]:
        kind = _SHELL_TOOL if self._write is None else _EDIT_TOOL
        return [(kind, fields), (_TOOL_CALL_ID, self._name)]

    def _tool_arguments(self) -> Field:
        if self._write is None:
            return 1, self._arguments()
        return 1, [(1, self._path), (6, self._write.content)]

    def _arguments(self) -> list[Field]:
        if self._write is not None:
            return [(1, self._path), (2, self._write.content), (3, self._name)]
        return [
            (1, self._command),
            (2, self._workspace),
            (3, _COMMAND_MS),
            (4, self._name),
        ]

    def _ran(self) -> list[Field]:
        fields: list[Field] = [
            (1, self._command),
            (2, self._workspace),
            (3, self._exit),
            (5, self._output[_STDOUT]),
            (6, self._output[_STDERR]),
        ]
        return [(2 if self._exit else 1, fields)]

    def _edited(self) -> list[Field]:
        assert self._write is not None
        if self._wrote.has(1):
            lines = self._write.content.count("\n")
            return [(1, [(1, self._path), (3, lines), (7, self._write.content)])]
        why = self._wrote.at(self._wrote.only())
        return [(7, [(1, self._path), (2, why.text(4) or why.text(2) or "it was not written")])]
