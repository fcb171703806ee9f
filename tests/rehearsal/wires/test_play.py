"""A whole script, played to agents that only know their own wire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.rehearsal.conversation import next_move
from airflow_agent_provider.rehearsal.script import Script
from airflow_agent_provider.rehearsal.wires.chat import ChatWire
from airflow_agent_provider.rehearsal.wires.messages import MessagesWire
from airflow_agent_provider.rehearsal.wires.wire import Whole, Wire

PROMPT = "Do it.\n\nStep: s of workflow w, run 1\n"
CUT = "[Tool execution was interrupted]"
ACTIONS: dict[str, Any] = {
    "run": {"run": "x"},
    "say": {"say": "y"},
    "answer": {"say": {"ok": True}},
    "fail": {"fail": 500},
}


class ChatAgent:
    """An agent with a shell, on OpenAI's Chat Completions."""

    wire: Wire = ChatWire()

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def request(self) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": "bash"}}]
        return {"messages": self.history, "tools": tools}

    def prompt(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    def take(self, answer: Any, cut: bool) -> bool:
        """Do what an answer asks for; return whether it ended the turn."""
        message = answer["choices"][0]["message"]
        self.history.append(message)
        for call in message.get("tool_calls", ()):
            text = CUT if cut else "ok"
            self.history.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        return "tool_calls" not in message


class ClaudeAgent(ChatAgent):
    """An agent with a shell and a tool for its structured answer, on Anthropic's Messages."""

    wire: Wire = MessagesWire()

    def request(self) -> dict[str, Any]:
        tools = [{"name": "Bash"}, {"name": "StructuredOutput"}]
        return {"messages": self.history, "tools": tools}

    def take(self, answer: Any, cut: bool) -> bool:
        """Do what an answer asks for; return whether it ended the turn."""
        self.history.append({"role": "assistant", "content": answer["content"]})
        (block,) = answer["content"]
        if block["type"] == "text":
            return True
        text = "[Tool call interrupted: the session ended]" if cut else "ok"
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": text}
        self.history.append({"role": "user", "content": [result]})
        # As Claude Code does: a structured answer ends the turn.
        return block["name"] == "StructuredOutput"


@pytest.mark.parametrize("agent_class", [ChatAgent, ClaudeAgent])
@given(
    kinds=st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=8),
    cuts=st.sets(st.integers(0, 12)),
)
def test_every_action_is_played_once_and_again_only_where_it_was_cut(
    agent_class: type[ChatAgent], kinds: list[str], cuts: set[int]
) -> None:
    script = Script.model_validate({"steps": {"s": [ACTIONS[kind] for kind in kinds]}})
    whole = script.actions("s")
    agent = agent_class()
    agent.prompt(PROMPT)
    played: list[int] = []
    ids: list[str] = []
    lost: list[int] = []
    while True:
        found = agent.wire.read(agent.request(), script.actions)
        position = found.position
        while position < len(whole) and whole[position].fail is not None:
            position += 1
        if position >= len(whole):
            break
        move = next_move(found, whole[position], position)
        answer = agent.wire.answer(agent.request(), move)
        assert isinstance(answer, Whole)
        cut = len(ids) in cuts and whole[position].run is not None
        played.append(position)
        ids.append(move.id)
        lost += [position] if cut else []
        # What goes over the wire comes back as it was sent.
        if agent.take(json.loads(json.dumps(answer.value)), cut) or cut:
            agent.prompt("Go on.")
    assert len(ids) == len(set(ids))
    expected = [n for n, action in enumerate(whole) if action.fail is None]
    assert sorted(set(played)) == expected
    assert sorted(played) == sorted(expected + lost)
    assert played == sorted(played)
