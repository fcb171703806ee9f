"""Where agents' programs tell the model which folder they work in, and what they ask besides."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sized

_FOLDER = re.compile(
    r"working (?:in the )?directory(?: is)?:?\s+`?(?P<path>/[^\n`<]*[^\s`<.])", re.IGNORECASE
)
_PROGRAM = re.compile(r"")
#: An answer with fewer tokens is wanted to see whether the model answers at all.
_LEAST_TOKENS = 16


def workspace_of(instructions: Iterable[str], prompts: Iterable[str]) -> str:
    """Return the folder that an agent works in; empty if its request does not tell.

    :param instructions: the texts of the agent's program.
    :param prompts: the user's messages; 
    """
    folder = ""
    for text in instructions:
        for match in _FOLDER.finditer(text):
            folder = match["path"]
    return folder


def is_aside(tools: Sized, workspace: str, limit: int | None) -> bool:
    """Return whether a request is none of the conversation's."""
    return (not tools and not workspace) or (limit is not None and limit <= _LEAST_TOKENS)
