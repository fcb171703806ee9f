"""From a place within a text of a definition to the place in the definition's file.

What quotes, escapes, indentation and folded lines make of a text differs from what stands in the
file in its white space alone, once escapes are resolved. So the n-th other character of the one is
the n-th of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

# Anchors and tags, which stand before the value itself.
_PROPERTIES = r"(?:[&!]\S*\s+)*"
_SINGLE_QUOTED = r"''|[^']"
_DOUBLE_QUOTED = (
    r"\\x[0-9a-fA-F]{2}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{4}"
    r'|\\U[0-9a-fA-F]{8}|\\\r?\n|\\.|[^"\\]'
)
# The escapes of one character that do not mean this character itself; white space is all alike.
_ESCAPES = {**dict.fromkeys("tnvfrNLP_\r\n", " "), "0": "\0", "a": "\a", "b": "\b", "e": "\x1b"}


@lru_cache(maxsize=8)
def positions_in_file(text: str, start: int, value: str) -> Mapping[int, int]:
    """Return where in a file the characters of a value stand; without those that are white space.

    It is empty where that cannot be told, as where the value is an alias of a text elsewhere.

    :param text: the file's text, YAML or JSON.
    :param start: position of the value's start.
    :param value: the text that is the value.
    """
    written = (found for found in _characters(text, start) if not found[0].isspace())
    positions = {}
    for offset, character in enumerate(value):
        if not character.isspace():
            meaning, positions[offset] = next(written, ("", 0))
            if meaning != character:
                return {}
    return positions


def _characters(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Yield the characters of the value that starts here, each with its position."""
    properties = re.compile(_PROPERTIES).match(text, start)
    start = properties.end() if properties else start
    quote, pattern = text[start : start + 1], "."
    if quote in ("|", ">"):
        start = text.find("\n", start) + 1 or len(text)
    elif quote in ("'", '"'):
        start += 1
        pattern = _SINGLE_QUOTED if quote == "'" else _DOUBLE_QUOTED
    for token in re.compile(pattern, re.DOTALL).finditer(text, start):
        # The closing quotes are no token.
        if token.start() != start:
            return
        yield _meaning(token.group()), start
        start = token.end()


def _meaning(token: str) -> str:
    """Return the character that stands for ``token``; a blank for any white space."""
    if len(token) == 1:
        return token
    kind, digits = token[1], token[2:]
    if len(token) == 12:
        pair = chr(int(token[2:6], 16)) + chr(int(token[8:], 16))
        return pair.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if kind in "xuU" and digits:
        # The pattern takes eight digits where they are beyond Unicode too.
        code = int(digits, 16)
        return chr(code) if code < 0x110000 else ""
    return _ESCAPES.get(kind, kind)
