"""What a pattern of a step's ``paths`` may say, and which paths of the workspace it names.

The DAG factory asks when it checks a workflow, the step when it judges its changes; both ask here,
so that a pattern never means less than what its author was told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# Other matchers give these a meaning, and a pattern that says nothing would protect nothing.
_RESERVED = frozenset("[]{}\\")


def pattern_fault(pattern: str) -> str | None:
    """Return what is wrong with a pattern and what is right, None if it can be used.

    A pattern is a path below the workspace in which ``*`` is any part of a name, ``?`` one
    character of it, and the name ``**`` any number of folders, or at the end all that is in one.
    A pattern without any of these is also for all below it, where it is a folder.

    :param pattern: the pattern, as the workflow gives it.
    """
    names = pattern.split("/")
    if pattern.startswith("/") or ".." in names:
        return "leads out of the workspace; a pattern below it, without '..'"
    if pattern.startswith("!"):
        return "starts with '!'; write the pattern alone, under 'allow' or 'deny'"
    if special := next((character for character in pattern if character in _RESERVED), None):
        return f"holds {special!r}; only *, ? and ** are special, so write ? in its place"
    if pattern.endswith("/"):
        return f"names no file; write '{pattern}**' for all that is in a folder"
    if "" in names or "." in names:
        return "is no path of the workspace; write a pattern such as src/**"
    if any("**" in name and name != "**" for name in names):
        return "has '**' beside other characters; '**' is a whole name, as in src/**/*.py"
    return None


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Return whether at least one of the patterns names a file.

    :param path: the file's path in the workspace, with ``/`` between names.
    :param patterns: patterns without fault.
    """
    return any(_compiled(pattern).fullmatch(path) for pattern in patterns)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # A repeated '**' says nothing more, and would only take time.
    *folders, last = re.sub(r"(\*\*/)+", "**/", pattern).split("/")
    parts = [_FOLDERS if name == "**" else f"{_name(name)}/" for name in folders]
    parts.append("[^/].*" if last == "**" else _name(last))
    if not set(pattern) & set(_WILD):
        # Of a folder that may not be changed, nothing below may.
        parts.append("(?:/.+)?")
    return re.compile("".join(parts), re.DOTALL)


def _name(name: str) -> str:
    return "".join(_WILD.get(character, re.escape(character)) for character in name)


_FOLDERS = "(?:[^/]+/)*"
_WILD = {"*": "[^/]*", "?": "[^/]"}
