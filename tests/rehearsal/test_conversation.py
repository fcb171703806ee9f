"""Where a conversation stands, and what comes next, on no wire at all."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_agent_provider.rehearsal.conversation import (
    Call,
    Called,
    Conversation,
    Entry,
    Prompt,
    Returned,
    Said,
    Verdict,
    conversation_of,
    next_move,
    step_of,
)
from airflow_agent_provider.rehearsal.script import Action, Script, Write

DONE, LOST = Verdict(done=True), Verdict(done=False)
TOLD, BY_SHELL = Verdict(done=False, told=True), Verdict(done=False, by_shell=True)
ACTIONS = [{"run": "a"}, {"fail": 503}, {"write": {"path": "b", "content": ""}}, {"say": "one"}]


class Hands:
    """An agent with a shell, which writes and tells as it is told to."""

    def __init__(self, *, shell: bool = True, tells: bool = False) -> None:
        self.shell = shell
        self.tells = tells

    def run(self, command: str) -> Call | None:
        return Call("shell", {"command": command}) if self.shell else None

    def write(self, write: Write, *, by_shell: bool) -> Call | None:
        if not self.shell:
            return None
        return Call("shell" if by_shell else "write", {"path": write.path})

    def tell(self, values: Any) -> Call | None:
        return Call("tell", values) if self.tells else None


def read(*history: Entry, actions: list[Any] = ACTIONS, hands: Hands | None = None) -> Conversation:
    actions = Script.model_validate({"steps": {"s": actions}}).actions("s")
    return conversation_of("s", "/w", hands or Hands(), history, actions)


@pytest.mark.parametrize(
    ("workspace", "prompts", "step"),
    [
        ("/data/w/run-1/review/-1/tree", ["Step: plan of workflow w, run 1"], "review"),
        ("/data/w/run-1/review/12/tree", [], "review"),
        ("/data/review/tree", ["Step: plan of workflow w, run 1"], "plan"),
        (
            "",
            ["no contract", "Do.\n\nStep: plan of workflow w, run 1\n", "Step: b of workflow w"],
            "plan",
        ),
        ("", ["Step: quoted of workflow w\n\nStep: plan of workflow w, run 1"], "plan"),
        ("", ["In a line: Step: plan of workflow w"], ""),
        ("", [], ""),
    ],
)
def test_the_step_is_the_workspaces_or_else_the_contracts(
    workspace: str, prompts: list[str], step: str
) -> None:
    assert step_of(workspace, prompts) == step


@pytest.mark.parametrize(
    ("history", "position"),
    [
        ([Prompt("do")], 0),
        ([Prompt("do"), Called("call_0_1"), Returned("call_0_1", DONE)], 1),
        ([Prompt("do"), Called("call_0_1"), Returned("call_0_1", LOST)], 0),
        # The result was never written down, or the call neither.
        ([Prompt("do"), Called("call_0_1"), Prompt("go on")], 0),
        ([Prompt("do"), Prompt("go on")], 0),
        ([Returned("call_2_5", BY_SHELL)], 2),
        ([Returned("call_2_5", DONE), Said("one")], 4),
        ([Returned("call_2_5", DONE), Said("one \n")], 4),
        # What an agent's program says in the model's name.
        ([Said("Got it. Thanks for the context!"), Prompt("do")], 0),
        ([Returned("call_2_5", DONE), Said("No response requested."), Prompt("go on")], 3),
        ([Returned("toolu_of_another", DONE)], 0),
        ([Returned("call_0_1", DONE), Said("one"), Prompt("again"), Said("one")], 4),
    ],
)
def test_the_position_follows_from_the_history(history: list[Entry], position: int) -> None:
    assert read(*history).position == position


def test_a_call_is_never_given_an_id_twice() -> None:
    action = Action(run="a")
    first = next_move(read(Prompt("do")), action, 0).id
    # As Qwen Code goes on after a kill: without a word of the call that was cut.
    assert next_move(read(Prompt("do"), Prompt("go on")), action, 0).id != first


def test_a_file_that_the_tool_refused_is_written_by_the_shell() -> None:
    action = Action.model_validate(ACTIONS[2])
    assert next_move(read(), action, 2).call == Call("write", {"path": "b"})
    refused = read(Returned("call_2_5", BY_SHELL))
    assert next_move(refused, action, 2).call == Call("shell", {"path": "b"})


@pytest.mark.parametrize("say", ["text", [1], 3])
def test_only_a_mapping_is_handed_over_by_a_tool(say: Any) -> None:
    move = next_move(read(hands=Hands(tells=True)), Action(say=say), 0)
    assert move.call is None
    assert move.text


def test_a_structured_answer_is_handed_over_once_a_turn() -> None:
    hands = Hands(tells=True)
    script = [{"say": {"ok": 1}}, {"say": {"ok": 2}}]
    first = next_move(read(hands=hands, actions=script), Action(say={"ok": 1}), 0)
    assert first.call == Call("tell", {"ok": 1})

    told = read(Returned(first.id, TOLD), hands=hands, actions=script)
    assert told.position == 0
    assert next_move(told, Action(say={"ok": 1}), 0).text == '{"ok": 1}'

    for history in ([], [Said('{"ok": 1}')], [Said("No response requested.")]):
        after = read(
            Returned(first.id, TOLD), *history, Prompt("next"), hands=hands, actions=script
        )
        assert (after.position, after.told) == (1, False)


def test_the_last_answer_is_handed_over_in_every_further_turn() -> None:
    hands, script = Hands(tells=True), [{"say": {"ok": 1}}]
    history: list[Entry] = [Prompt("do")]
    for _ in range(3):
        again = read(*history, hands=hands, actions=script)
        position = again.position if again.position < 1 else -1
        move = next_move(again, Action(say={"ok": 1}), position)
        assert move.call == Call("tell", {"ok": 1})
        history += [Called(move.id), Returned(move.id, TOLD)]
        told = read(*history, hands=hands, actions=script)
        assert next_move(told, Action(say={"ok": 1}), position).text == '{"ok": 1}'
        history.append(Prompt("next"))


def test_a_wrong_structured_answer_is_handed_over_again() -> None:
    found = read(Returned("call_3_9", LOST), hands=Hands(tells=True))
    assert next_move(found, Action(say={"ok": 1}), 3).call is not None


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"run": "make"}, "run `make`"),
        ({"write": {"path": "a/b.md", "content": ""}}, "write a/b.md"),
    ],
)
def test_an_agent_without_the_tool_hears_so(action: Any, words: str) -> None:
    move = next_move(read(hands=Hands(shell=False)), Action.model_validate(action), 0)
    assert move.call is None
    assert words in move.text
    # It ended the turn, not the action.
    assert read(Prompt("do"), Said(move.text), Prompt("again")).position == 0
