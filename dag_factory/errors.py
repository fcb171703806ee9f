"""What is wrong in a definition, and where: one line each, for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

#: The way to a value in a definition: keys of mappings and indexes of lists, from the root.
Path = tuple[str | int, ...]

_SHOWN_LENGTH = 60
_SAID_LENGTH = 200


class Spot(NamedTuple):
    """A place within the text that a value of a definition is, or within the file that it names.

    :param line: line, from 1.
    :param column: character of the line, from 1.
    :param file: the file, relative to the definition's folder; None for the value's own text.
    """

    line: int
    column: int
    file: str | None = None


class Fault(NamedTuple):
    """What is wrong with one value of a definition.

    :param path: the way to the value.
    :param text: what is wrong, and after a semicolon what is allowed or the nearest right word.
    :param at_key: whether the key is wrong, not its value.
    :param spot: where within the value it is wrong; None for all of it.
    :param steps: the steps for which a file is wrong; empty where it is wrong for all.
    """

    path: Path
    text: str
    at_key: bool = False
    spot: Spot | None = None
    steps: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A fault with its place in a file.

    :param file: the file, as the user named it.
    :param line: line, from 1.
    :param column: character of the line, from 1.
    :param text: as in :class:`Fault`.
    """

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


class InvalidWorkflow(Exception):
    """A definition that makes no DAG.

    :param problems: everything that is wrong with it; at least one problem.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        # A dictionary drops what two checks said in the same words, and keeps the order.
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        super().__init__("\n".join(map(str, self.problems)))


def show(value: Any) -> str:
    """Return ``value`` as it is called in an error: on one line, and not long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


def one_line(said: object) -> str:
    """Return another library's words as part of an error: on one line, and not long."""
    text = " ".join(str(said).split()).rstrip(".;")
    return text if len(text) <= _SAID_LENGTH else f"{text[: _SAID_LENGTH - 1]}…"


def printable(file_name: str) -> str:
    """Return a file's name with what is not UTF-8 escaped: terminals and databases refuse it."""
    return file_name.encode(errors="backslashreplace").decode()


def closest(word: str, words: Iterable[str]) -> str | None:
    """Return the word that was meant, None if it is near to none of them.

    :param word: what the user wrote.
    :param words: what there is.
    """
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the end of an error about an unknown word: the one that was meant, or all there are.

    :param word: what the user wrote.
    :param words: what there is.
    """
    known = sorted(words)
    if match := closest(word, known):
        return f"did you mean {match!r}?"
    if not known:
        return "there are none"
    return f"allowed: {', '.join(known)}" if len(known) > 1 else f"allowed: {known[0]}"
