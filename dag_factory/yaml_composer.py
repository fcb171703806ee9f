"""YAML text to values and their places, from the events of PyYAML's parser."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from dag_factory.composer import (
    MAX_DEPTH,
    Composer,
    Place,
    Unreadable,
    line_and_column,
    line_starts,
)
from dag_factory.errors import show

# libyaml's parser is ten times as fast; not every platform has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Patterns stay texts where few definitions need them: compiling one takes a millisecond, and every
# task parses its definition anew.
_NUMBER = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_NOT_FINITE = r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_UNPRINTABLE = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
_WORDS = {
    "": None,
    **dict.fromkeys(("~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER_START = frozenset("0123456789-+.")


class YamlComposer(Composer):
    """Composes values from a YAML parser's events.

    PyYAML's own composer and constructor take three times as long, know no bounds and drop the
    places and duplicate keys.
    """

    def compose(self) -> tuple[Any, Place]:
        self._anchors: dict[str, tuple[Any, Place, int] | None] = {}
        try:
            parser = _Loader(self.text)
            self._next = parser.get_event
            return self._document()
        except yaml.reader.ReaderError:
            raise self._unprintable() from None
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None

    def _document(self) -> tuple[Any, Place]:
        self._next()  # the stream's start
        event = self._next()
        if not isinstance(event, DocumentStartEvent):
            raise Unreadable(0, 0, "the file is empty; a workflow has a name and steps")
        composed = self._value(self._next(), 1)
        self._next()  # the document's end
        event = self._next()
        if not isinstance(event, StreamEndEvent):
            mark = event.start_mark
            said = "a second document starts here; a file holds one workflow, without '---' in it"
            self.fault(mark.line, mark.column, said)
        return composed

    def _value(self, event: Any, depth: int) -> tuple[Any, Place]:
        mark = event.start_mark
        line, column = mark.line, mark.column
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event.anchor, line, column)
        self.count(line, column)
        if kind is ScalarEvent:
            composed: tuple[Any, Place] = self._scalar(event, line, column), Place(line, column)
            if event.anchor is not None:
                self._anchors[event.anchor] = (*composed, 1)
            return composed
        self.check_depth(line, column, depth)
        if event.tag is not None:
            self._refuse_tag(event.tag, line, column)
        before = self.values
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if kind is MappingStartEvent:
            composed = self._mapping(line, column, depth)
        else:
            composed = self._list(line, column, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (*composed, self.values - before + 1)
        return composed

    def _mapping(self, line: int, column: int, depth: int) -> tuple[Any, Place]:
        value: dict[str, Any] = {}
        inside: dict[str, tuple[tuple[int, int], Place]] = {}
        following = self._next
        while not isinstance(event := following(), MappingEndEvent):
            at = (event.start_mark.line, event.start_mark.column)
            key = self._key(event, at, depth)
            item, place = self._value(following(), depth + 1)
            if key is not None and self.check_key(at, key, inside):
                value[key] = item
                inside[key] = (at, place)
        return value, Place(line, column, inside)

    def _key(self, event: Any, at: tuple[int, int], depth: int) -> str | None:
        if not isinstance(event, ScalarEvent):
            self._value(event, depth + 1)
            said = "a key is plain text; put the text of an alias or a collection here instead"
            self.fault(*at, said)
            return None
        if event.tag is not None:
            self._refuse_tag(event.tag, *at)
        if event.value == "<<" and event.implicit[0]:
            self.fault(*at, "merge keys are not supported; use 'defaults', or write the keys out")
            return None
        key = self.check_text(*at, event.value)
        if event.anchor is not None:
            self._anchors[event.anchor] = (key, Place(*at), 1)
        return key

    def _list(self, line: int, column: int, depth: int) -> tuple[Any, Place]:
        value: list[Any] = []
        inside: list[Place] = []
        following = self._next
        while not isinstance(event := following(), SequenceEndEvent):
            item, place = self._value(event, depth + 1)
            value.append(item)
            inside.append(place)
        return value, Place(line, column, inside)

    def _alias(self, name: str, line: int, column: int) -> tuple[Any, Place]:
        if name not in self._anchors:
            self.fault(line, column, f"no anchor is called {show(name)}; define it before its use")
            return None, Place(line, column)
        anchored = self._anchors[name]
        if anchored is None:
            self.fault(line, column, f"the alias {show(name)} stands within its own anchor")
            return None, Place(line, column)
        value, place, values = anchored
        self.count(line, column, values)
        return value, Place(line, column, place.inside)

    def _scalar(self, event: Any, line: int, column: int) -> Any:
        text: str = event.value
        if event.tag is not None:
            self._refuse_tag(event.tag, line, column)
        elif event.implicit[0]:
            if text in _WORDS:
                return _WORDS[text]
            if text[0] in _NUMBER_START:
                return self._plain_number(text, line, column)
        return self.check_text(line, column, text)

    def _plain_number(self, text: str, line: int, column: int) -> int | float | str:
        if (text.isascii() and text.isdecimal()) or re.fullmatch(_NUMBER, text):
            return self.number(line, column, text)
        if re.fullmatch(_NOT_FINITE, text):
            self.fault(line, column, f"{text} is no number that JSON can hold; put it in quotes")
        return text

    def _refuse_tag(self, tag: str, line: int, column: int) -> None:
        short = tag.replace("tag:yaml.org,2002:", "!!", 1)
        self.fault(line, column, f"the tag {show(short)} is not supported; write the plain value")

    def _unprintable(self) -> Unreadable:
        bad = re.search(_UNPRINTABLE, self.text)
        start = bad.start() if bad else 0
        line, column = line_and_column(line_starts(self.text), start)
        found = f"U+{ord(self.text[start]):04X}" if bad else "a character"
        return Unreadable(line, column, f"{found} is not allowed in YAML; leave it out")

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> Unreadable:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = error.problem or "the text cannot be read"
        if self._is_tab(error, line, column):
            return Unreadable(line, column, "a tab; indent with spaces")
        if "unexpected end of stream" in problem and error.context_mark:
            # The end of the file says less than where the quotes were opened.
            line, column = error.context_mark.line, error.context_mark.column
        for known, said in _SYNTAX_ERRORS.items():
            if known in problem:
                return Unreadable(line, column, said)
        context = f" {error.context}" if error.context else ""
        return Unreadable(
            line, column, f"not YAML: {problem}{context}; check indentation, quotes and brackets"
        )

    def _is_tab(self, error: yaml.MarkedYAMLError, line: int, column: int) -> bool:
        lines = self.text.splitlines()
        here = lines[line][column : column + 1] if line < len(lines) else ""
        return here == "\t" or "tab character" in (error.problem or "")


_SYNTAX_ERRORS = {
    "mapping values are not allowed": (
        "a ':' cannot stand here; check the indentation, and put text that holds ': ' in quotes"
    ),
    "cannot start any token": "this character cannot start a value; put the value in quotes",
    "unexpected end of stream": "these quotes are never closed; close them",
    "could not find expected ':'": "a key without a ':'; write 'key: value'",
    "did not find expected key": "no key where one belongs; check indentation and quotes above",
    "did not find expected '-' indicator": (
        "no '- ' where a list goes on; check the indentation, here and above"
    ),
    "found unknown escape character": (
        "an unknown escape; write \\\\ for a backslash, or use single quotes"
    ),
    "did not find expected node content": (
        "no value where one belongs; add it, or close the brackets before"
    ),
    # The parser's own limit, which newer releases meet before ours is asked.
    "exceeded maximum nesting depth": f"nested too deeply; at most {MAX_DEPTH} levels",
    "expected ',' or ']'": "a list in brackets is not closed; add ',' or ']'",
    "expected ',' or '}'": "a mapping in braces is not closed; add ',' or '}'",
}
