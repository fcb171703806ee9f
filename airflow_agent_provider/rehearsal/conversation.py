"""Where a conversation with the scripted model stands, and what the model answers next.

The scripted model keeps no state of a conversation: as a real model's, its every answer follows
from the request alone. So a session that another process resumes goes on with the next action of
the script, and a fresh session starts over. This holds on every wire; what a wire's requests and
answers look like is in :mod:`airflow_agent_provider.rehearsal.wires`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from airflow_agent_provider.rehearsal.script import Action, Write

_CONTRACT_STEP = re.compile(r"^Step: (?P<step>\S+) of workflow ", re.MULTILINE)
# The position stands in a call's id, which comes back with every later request.
_CALL_ID = re.compile(r"^call_(?P<position>\d+)_\d+$")


@dataclass(frozen=True)
class Call:
    """A tool call that the model asks for.

    :param name: the tool.
    :param arguments: its arguments by name; the text of a tool that takes plain text.
    :param namespace: where the tool belongs to; only Codex has such.
    """

    name: str
    arguments: Mapping[str, Any] | str
    namespace: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a tool call's result says of the call.

    :param done: it ran to its end, well or not; else it is done again.
    :param waiting_for: the call that asks for the end of one that still runs.
    :param by_shell: the tool refused what the shell can do: to write over a file.
    :param told: it handed over the turn's structured answer; the turn's last words are left.
    """

    done: bool
    waiting_for: Call | None = None
    by_shell: bool = False
    told: bool = False


@dataclass(frozen=True)
class Prompt:
    """A user's message, which begins a turn."""

    text: str


@dataclass(frozen=True)
class Said:
    """A message that the model ended a turn with."""

    text: str


@dataclass(frozen=True)
class Called:
    """A tool call that the model asked for."""

    id: str


@dataclass(frozen=True)
class Returned:
    """The result of a tool call."""

    id: str
    verdict: Verdict


#: One entry of a conversation's history.
Entry = Prompt | Said | Called | Returned


class Tools(Protocol):
    """How the agent of a request does things. Each method returns None for want of a tool."""

    def run(self, command: str) -> Call | None:
        """Return the call that runs a shell command in the workspace."""

    def write(self, write: Write, *, by_shell: bool) -> Call | None:
        """Return the call that writes a file; by the shell although there is a tool for it?"""

    def tell(self, values: Mapping[str, Any]) -> Call | None:
        """Return the call that hands over a structured answer."""


@dataclass(frozen=True)
class Conversation:
    """Where a conversation stands, by its own history.

    :param step: the step's id, empty if the request does not tell it.
    :param workspace: the folder that the agent works in.
    :param tools: what the agent can do.
    :param position: the index of the action that comes next; beyond the last one when all are done.
    :param waiting_for: the tool call that asks for the end of a command that still runs.
    :param length: how many entries the history has.
    :param by_shell: whether the agent's own tool refused to write the file that comes next.
    :param told: whether the structured answer that comes next has been handed over.
    """

    step: str
    workspace: str
    tools: Tools
    position: int
    waiting_for: Call | None = None
    length: int = 0
    by_shell: bool = False
    told: bool = False


@dataclass(frozen=True)
class Move:
    """What the model answers: a message, which ends the turn, or a tool call.

    :param id: identifies the message or the call; a call's tells its action's index.
    """

    id: str
    text: str = ""
    call: Call | None = None


def step_of(workspace: str, prompts: Iterable[str]) -> str:
    """Return the id of the step that a request belongs to; empty if it does not tell.

    :param workspace: the agent's folder: it comes from the agent's program, not from a prompt
        that may quote other steps' prompts, so it counts first.
    :param prompts: the user's messages; the first one that has a step's contract counts.
    """
    parts = PurePosixPath(workspace).parts
    if len(parts) > 3 and parts[-1] == "tree" and re.fullmatch(r"-1|\d+", parts[-2]):
        return parts[-3]
    for prompt in prompts:
        # The contract is the prompt's last section, after whatever the prompt quotes.
        if named := _CONTRACT_STEP.findall(prompt):
            return str(named[-1])
    return ""


def conversation_of(
    step: str, workspace: str, tools: Tools, history: Iterable[Entry], actions: Sequence[Action]
) -> Conversation:
    """Return where the conversation with this history stands.

    :param actions: the step's; only where its turns end matters here.
    """
    position, length, verdict = 0, 0, Verdict(done=True)
    for entry in history:
        length += 1
        if isinstance(entry, Said):
            said = _after_say(actions, position, entry.text)
            if said is not None:
                position, verdict = said, Verdict(done=True)
        elif isinstance(entry, Prompt):
            # A new turn: whatever ran in the one before was ended with it, and what the one before
            # was told needs no last words.
            position, verdict = position + verdict.told, Verdict(done=True)
        elif isinstance(entry, Returned) and (match := _CALL_ID.match(entry.id)):
            verdict = entry.verdict
            position = int(match["position"]) + verdict.done
    return Conversation(
        step=step,
        workspace=workspace,
        tools=tools,
        position=position,
        waiting_for=verdict.waiting_for,
        length=length,
        by_shell=verdict.by_shell,
        told=verdict.told,
    )


def _after_say(actions: Sequence[Action], position: int, text: str) -> int | None:
    """Return the position after the next action that says ``text``; None if there is none.

    Then it is what the agent's program adds in the model's name, as after an interruption, or the
    last message, which is said again in every further turn.
    """
    words = text.split()
    for index in range(position, len(actions)):
        if actions[index].say is not None and say_text(actions[index].say).split() == words:
            return index + 1
    return None


def say_text(say: Any) -> str:
    """Return the text of a ``say``: a mapping or list is sent as JSON."""
    return say if isinstance(say, str) else json.dumps(say)


def next_move(conversation: Conversation, action: Action, position: int) -> Move:
    """Return what performs ``action``.

    :param conversation: the conversation that it answers.
    :param action: what to do; no ``fail``.
    :param position: the index of the action; -1 if the last one is said again.
    """
    call = _call(conversation, action)
    if call is not None:
        index = position if position >= 0 else conversation.position
        return Move(f"call_{index}_{conversation.length}", call=call)
    # A tool that the agent does not have ends the turn, with the reason.
    text = _lack(action) if action.say is None else say_text(action.say)
    return Move(f"msg_{position}_{conversation.length}", text=text)


def _call(conversation: Conversation, action: Action) -> Call | None:
    if action.say is not None:
        told = conversation.told or not isinstance(action.say, Mapping)
        return None if told else conversation.tools.tell(action.say)
    if conversation.waiting_for is not None:
        return conversation.waiting_for
    if action.write is not None:
        return conversation.tools.write(action.write, by_shell=conversation.by_shell)
    return conversation.tools.run(action.run or "")


def _lack(action: Action) -> str:
    what = f"run `{action.run}`" if action.write is None else f"write {action.write.path}"
    return f"The rehearsal cannot {what}: this request offers no tool for it."
