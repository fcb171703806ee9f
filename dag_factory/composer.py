"""What YAML and JSON have in common: places, bounds, and faults that can be read past."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from dag_factory.errors import show

#: Collections within collections.
MAX_DEPTH = 40
#: Values, those that aliases repeat counted each time.
MAX_VALUES = 50_000

_INTEGER = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
# Of what a value may not hold: PostgreSQL refuses NUL, and UTF-8 half of a surrogate pair.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# An integer of more digits takes Python a time that grows with their square.
_MAX_DIGITS = 300


class Place(NamedTuple):
    """Where a value stands.

    :param line: line, from 0 as parsers count.
    :param column: character of the line, from 0.
    :param inside: places of what a collection holds: of a mapping by key, with the key's own place,
        or of a list in its order; None for anything else.
    """

    line: int
    column: int
    inside: dict[str, tuple[tuple[int, int], Place]] | list[Place] | None = None


class Unreadable(Exception):
    """The file cannot be read past this place; line and column are from 0."""

    def __init__(self, line: int, column: int, text: str) -> None:
        super().__init__(text)
        self.line, self.column, self.text = line, column, text


class Composer(ABC):
    """Composes values and their places from a text.

    ``faults`` is what is wrong but can be read past: line and column from 0, and the error.

    :param text: the file's text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.faults: list[tuple[int, int, str]] = []
        self.values = 0

    @abstractmethod
    def compose(self) -> tuple[Any, Place]:
        """Return the whole text's value, and where it stands.

        :raises Unreadable: where the text cannot be read past.
        """

    def count(self, line: int, column: int, values: int = 1) -> None:
        """Count values that were met here; Unreadable if they are too many."""
        self.values += values
        if self.values > MAX_VALUES:
            said = f"too many values; at most {MAX_VALUES}, and aliases count each time"
            raise Unreadable(line, column, said)

    def check_depth(self, line: int, column: int, depth: int) -> None:
        """Check the depth of the collection that starts here; Unreadable if it is too deep."""
        if depth > MAX_DEPTH:
            raise Unreadable(line, column, f"nested too deeply; at most {MAX_DEPTH} levels")

    def fault(self, line: int, column: int, text: str) -> None:
        """Note what is wrong here but can be read past."""
        self.faults.append((line, column, text))

    def check_text(self, line: int, column: int, text: str) -> str:
        """Return ``text`` without what no database can store, which is a fault."""
        if bad := _UNSTORABLE.search(text):
            said = f"the character U+{ord(bad.group()):04X} cannot be stored; leave it out"
            self.fault(line, column, said)
            return _UNSTORABLE.sub("", text)
        return text

    def check_key(self, at: tuple[int, int], key: str, known: dict[str, Any]) -> bool:
        """Return whether ``key`` is new in its mapping."""
        if key not in known:
            return True
        first = known[key][0][0] + 1
        said = f"duplicate key {show(key)}; it is given in line {first} already"
        self.fault(*at, said)
        return False

    def number(self, line: int, column: int, text: str) -> int | float:
        """Return the number that ``text`` spells; 0 and a fault where JSON can hold none such."""
        if len(text) > _MAX_DIGITS:
            self.fault(line, column, f"the number has too many digits; at most {_MAX_DIGITS}")
            return 0
        if text.isascii() and text.isdecimal():
            return int(text)
        if re.fullmatch(_INTEGER, text):
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        value = float(text)
        if value in (float("inf"), float("-inf")):
            self.fault(line, column, f"the number {text} is too big; at most 1.8e308")
            return 0
        return value


def plain_lines(text: str) -> str:
    """Return ``text`` with each end of a line as one character."""
    return re.sub("\r\n|\r", "\n", text) if "\r" in text else text


@lru_cache(maxsize=8)
def line_starts(text: str) -> Sequence[int]:
    """Return the position of each line's first character."""
    return [0, *(match.end() for match in re.finditer("\n", text))]


def line_and_column(starts: Sequence[int], position: int) -> tuple[int, int]:
    """Return line and column, from 0, of a position in a text with these line starts."""
    line = bisect_right(starts, position) - 1
    return line, position - starts[line]
