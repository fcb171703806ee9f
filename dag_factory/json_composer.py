"""JSON text to values and their places: YAML's parser refuses JSON's tabs and surrogate pairs."""

from __future__ import annotations

import re
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from dag_factory.composer import Composer, Place, Unreadable, line_and_column, line_starts

_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_JSON_WORD = re.compile(r"[A-Za-z]+")
_JSON_WORDS = {"null": None, "true": True, "false": False}


class JsonComposer(Composer):
    """Composes values from JSON text."""

    def compose(self) -> tuple[Any, Place]:
        self._starts = line_starts(self.text)
        try:
            value, place, end = self._value(self._skip(0), 1)
        except JSONDecodeError as error:
            said = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}; check the quotes"
            raise self._unreadable(error.pos, said) from None
        if (end := self._skip(end)) < len(self.text):
            raise self._unreadable(end, "text after the end of the JSON value; remove it")
        return value, place

    def _skip(self, position: int) -> int:
        match = _JSON_SPACE.match(self.text, position)
        return match.end() if match else position

    def _at(self, position: int) -> tuple[int, int]:
        return line_and_column(self._starts, position)

    def _unreadable(self, position: int, text: str) -> Unreadable:
        return Unreadable(*self._at(position), text)

    def _value(self, position: int, depth: int) -> tuple[Any, Place, int]:
        line, column = self._at(position)
        self.count(line, column)
        start = self.text[position : position + 1]
        if start in ("{", "["):
            self.check_depth(line, column, depth)
            compose = self._mapping if start == "{" else self._list
            return compose(position + 1, (line, column), depth)
        if start == '"':
            text, end = scanstring(self.text, position + 1, True)
            return self.check_text(line, column, text), Place(line, column), end
        if match := _JSON_NUMBER.match(self.text, position):
            return self.number(line, column, match.group()), Place(line, column), match.end()
        if (match := _JSON_WORD.match(self.text, position)) and match.group() in _JSON_WORDS:
            return _JSON_WORDS[match.group()], Place(line, column), match.end()
        said = "no JSON value; expected a text in double quotes, a number, '{', '[', true or false"
        raise self._unreadable(position, said if start else "the JSON text ends too early; go on")

    def _mapping(self, position: int, start: tuple[int, int], depth: int) -> tuple[Any, Place, int]:
        value: dict[str, Any] = {}
        inside: dict[str, tuple[tuple[int, int], Place]] = {}
        position = self._skip(position)
        more = not self.text.startswith("}", position)
        while more:
            if not self.text.startswith('"', position):
                raise self._unreadable(position, "no key where one belongs; keys are in quotes")
            at = self._at(position)
            key, position = scanstring(self.text, position + 1, True)
            key = self.check_text(*at, key)
            position = self._expect(":", self._skip(position))
            item, place, position = self._value(self._skip(position), depth + 1)
            if self.check_key(at, key, inside):
                value[key] = item
                inside[key] = (at, place)
            more, position = self._goes_on("}", position)
        return value, Place(*start, inside), position + 1

    def _list(self, position: int, start: tuple[int, int], depth: int) -> tuple[Any, Place, int]:
        value: list[Any] = []
        inside: list[Place] = []
        position = self._skip(position)
        more = not self.text.startswith("]", position)
        while more:
            item, place, position = self._value(position, depth + 1)
            value.append(item)
            inside.append(place)
            more, position = self._goes_on("]", position)
        return value, Place(*start, inside), position + 1

    def _expect(self, token: str, position: int) -> int:
        if not self.text.startswith(token, position):
            raise self._unreadable(position, f"no {token!r} where one belongs; add it")
        return position + 1

    def _goes_on(self, end: str, position: int) -> tuple[bool, int]:
        """Return whether a comma follows, and the position of what comes next."""
        position = self._skip(position)
        if self.text.startswith(end, position):
            return False, position
        if not self.text.startswith(",", position):
            raise self._unreadable(position, f"no ',' or {end!r} where one belongs; add it")
        return True, self._skip(position + 1)
