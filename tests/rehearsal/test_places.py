"""Where agents' programs name the workspace, in their own words."""

from __future__ import annotations

import pytest

from airflow_agent_provider.rehearsal.places import is_aside, is_prompt, workspace_of

COPILOT = (
    "<environment_context>\nYou are working in the following environment.\n"
    "* Current working directory: /data/a b/tree\n* Git repository root: /data/a b\n"
)
OPENCODE = "<env>\n  Working directory: /data/tree\n  Workspace root folder: /data\n</env>"
QWEN = (
    "This is the Qwen Code. We are setting up the context for our chat.\n"
    "I'm currently working in the directory: /data/tree\n"
    "Here is the folder structure of the current working directories:\n"
)
CLAUDE = (
    "<system-reminder>\n# Environment\nYou have been invoked in the following environment: \n"
    " - Primary working directory: /data/tree\n - Is a git repository: true\n</system-reminder>"
)
CLAUDE_ELSEWHERE = (
    "<system-reminder>\n# Environment update\n"
    " - Primary working directory: /new/tree (was /data/tree)\n</system-reminder>"
)


@pytest.mark.parametrize(
    ("instructions", "messages", "folder"),
    [
        ([COPILOT], ["Do it."], "/data/a b/tree"),
        ([OPENCODE], ["Do it."], "/data/tree"),
        ([f"{OPENCODE}\n# AGENTS.md\nWorking directory: /elsewhere\n"], [], "/data/tree"),
        (["You are Qwen Code."], [QWEN, "Do it."], "/data/tree"),
        (["You are a Claude agent."], [CLAUDE, "Do it."], "/data/tree"),
        (["You are a Claude agent."], [CLAUDE, "Do it.", CLAUDE_ELSEWHERE, "Go on."], "/new/tree"),
        # Whatever a prompt or a file of the repository quotes.
        (["You are an agent."], ["Working directory: /elsewhere"], ""),
        (["You are an agent."], ["<system-reminder>\nWorking directory: /x\n"], ""),
        (["Mind the working directory: it is yours."], [], ""),
        (["Working directory: relative/tree"], [], ""),
        ([], [], ""),
    ],
)
def test_the_workspace_is_the_programs_word(
    instructions: list[str], messages: list[str], folder: str
) -> None:
    assert workspace_of(instructions, messages) == folder


def test_what_a_program_writes_is_no_prompt() -> None:
    assert [is_prompt(text) for text in (QWEN, CLAUDE, f"\n{CLAUDE}", "Do it.")] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("tools", "workspace", "limit", "aside"),
    [
        (["bash"], "/w", None, False),
        (["bash"], "", 32_000, False),
        # A judge that has no tools works somewhere all the same.
        ([], "/w", 32_000, False),
        # A title.
        ([], "", 32_000, True),
        # A look whether there is any answer.
        (["bash"], "/w", 1, True),
    ],
)
def test_what_is_asked_beside_the_conversation(
    tools: list[str], workspace: str, limit: int | None, aside: bool
) -> None:
    assert is_aside(tools, workspace, limit) is aside
