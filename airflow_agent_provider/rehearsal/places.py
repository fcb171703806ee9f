"""Where agents' programs tell the model which folder they work in, and what they ask besides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sized

#: Lines by which programs name the folder: Claude Code, Copilot and OpenCode; Qwen Code.
_FOLDER = re.compile(
    r"^(?:[ \t*-]*(?:Primary |Current )?working directory"
    r"|I'm currently working in the directory): (?P<path>/.*?)(?: \(was /.*\))?[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
#: How messages begin that programs write in the user's name.
_PROGRAMS_OWN = ("<system-reminder>", "This is the Qwen Code.")
#: Those of them that tell the folder; others may quote a file of the repository.
_TELL_FOLDER = ("<system-reminder>\n# Environment", "This is the Qwen Code.")
#: An answer with at most so many tokens is only wanted to see whether the model answers.
_PROBE_TOKENS = 16


def is_prompt(text: str) -> bool:
    """Return whether a message in the user's name is the user's, and not the program's own."""
    return not text.lstrip().startswith(_PROGRAMS_OWN)


def workspace_of(instructions: Iterable[str], messages: Iterable[str]) -> str:
    """Return the folder that an agent works in; empty if its request does not tell.

    A user's prompt does not count: it may quote anything.

    :param instructions: the texts of the agent's program.
    :param messages: the messages in the user's name. The last one counts: a session that goes on
        elsewhere is told so.
    """
    folder = ""
    for text in (*instructions, *(m for m in messages if m.startswith(_TELL_FOLDER))):
        if match := _FOLDER.search(text):
            folder = match["path"]
    return folder


def is_aside(tools: Sized, workspace: str, limit: int | None) -> bool:
    """Return whether a request is none of the conversation's, but asks for a title or the like.

    :param tools: what the request offers.
    :param workspace: the folder that the request names.
    :param limit: how many tokens the answer may have; None for no limit.
    """
    return (not tools and not workspace) or (limit is not None and limit <= _PROBE_TOKENS)
