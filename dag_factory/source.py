"""YAML and JSON files as values that know the line and column of every key and value.

YAML here is its JSON schema (YAML 1.2, section 10.2, with the core schema's spellings): plain
mappings, lists, texts, numbers, ``true``, ``false`` and ``null``. So ``on``, ``yes`` and ``12:30``
are texts, not a surprise. Tags and merge keys are errors; anchors and aliases work within bounds.
"""

from __future__ import annotations

from os.path import normpath
from pathlib import PurePath
from typing import Any, NamedTuple

from dag_factory.composer import (
    Composer,
    Place,
    Unreadable,
    line_and_column,
    line_starts,
    plain_lines,
)
from dag_factory.errors import Fault, InvalidWorkflow, Path, Problem, Spot, printable, show
from dag_factory.yaml_composer import YamlComposer

#: Bytes that a definition may have.
MAX_BYTES = 1 << 20
_SHOWN_STEPS = 3


class Source(NamedTuple):
    """A definition as it was read.

    :param file: the file, as the user named it.
    :param text: its whole text.
    :param value: what it says.
    :param place: where it says so.
    :param problems: faults of the file itself, such as duplicate keys.
    """

    file: str
    text: str
    value: Any
    place: Place
    problems: tuple[Problem, ...] = ()

    def locate(self, fault: Fault) -> Problem:
        """Return ``fault`` with its line and column, and with its file where that is another one.

        A path that leads beyond the file, as to a key that is missing, ends at the last value there
        is on it.
        """
        line, column = self._position(fault.path, fault.at_key)
        if fault.spot is None:
            return Problem(self.file, line + 1, column + 1, fault.text)
        if fault.spot.file is None:
            line, column = self._within(fault.path, line, column, fault.spot)
            return Problem(self.file, line + 1, column + 1, fault.text)
        file = printable(normpath(PurePath(self.file).parent / fault.spot.file))
        return Problem(file, fault.spot.line, fault.spot.column, self._for_steps(fault))

    def _for_steps(self, fault: Fault) -> str:
        """Return the text of a fault in another file, with the steps for which it is one."""
        if not fault.steps:
            return fault.text
        steps = ", ".join(map(show, fault.steps[:_SHOWN_STEPS]))
        more = len(fault.steps) - _SHOWN_STEPS
        and_more = f" and {more} more" if more > 0 else ""
        return f"for {steps}{and_more} of {self.file}: {fault.text}"

    def _within(self, path: Path, line: int, column: int, spot: Spot) -> tuple[int, int]:
        """Return the place of a spot in the text at ``path``, whose own place is given."""
        from dag_factory.scalars import positions_in_file

        value = self.value
        for part in path:
            value = value[part]
        value = plain_lines(value)
        starts = line_starts(self.text)
        offset = line_starts(value)[spot.line - 1] + spot.column - 1
        position = positions_in_file(self.text, starts[line] + column, value).get(offset)
        return (line, column) if position is None else line_and_column(starts, position)

    def _position(self, path: Path, at_key: bool) -> tuple[int, int]:
        place = self.place
        key_at = (place.line, place.column)
        for part in path:
            inside = place.inside
            if isinstance(inside, dict) and part in inside:
                key_at, place = inside[part]
            elif isinstance(inside, list) and isinstance(part, int) and part < len(inside):
                place = inside[part]
                key_at = (place.line, place.column)
            elif part == 0 and not isinstance(inside, list):
                # Where a list may stand, one value stands for a list of one.
                continue
            else:
                return place.line, place.column
        return key_at if at_key else (place.line, place.column)


def read_source(content: bytes, file: str, *, json: bool = False) -> Source:
    """Read a definition.

    :param content: the file's bytes.
    :param file: the file, as errors shall name it.
    :param json: whether it is JSON; else it is YAML.
    :raises InvalidWorkflow: if nothing can be read from it. What is wrong, but can be read past, is
        in :attr:`Source.problems`.
    """
    text = _decode(content, file)
    composer = _composer(text, json)
    try:
        value, place = composer.compose()
    except Unreadable as error:
        raise InvalidWorkflow(
            Problem(file, line + 1, column + 1, said)
            for line, column, said in [*composer.faults, (error.line, error.column, error.text)]
        ) from None
    problems = (Problem(file, line + 1, column + 1, said) for line, column, said in composer.faults)
    return Source(file, text, value, place, tuple(problems))


def _decode(content: bytes, file: str) -> str:
    if len(content) > MAX_BYTES:
        limit = MAX_BYTES // 1024
        raise InvalidWorkflow([Problem(file, 1, 1, f"the file is too big; at most {limit} KiB")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig", errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        said = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise InvalidWorkflow([Problem(file, line, column, said)]) from None


def _composer(text: str, json: bool) -> Composer:
    if not json:
        return YamlComposer(text)
    from dag_factory.json_composer import JsonComposer

    return JsonComposer(text)
