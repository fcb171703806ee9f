"""As much of protobuf's wire format as a stand-in needs, without descriptors.

A message is its fields in order, each a number and a value; whoever reads or writes one knows what
the numbers mean. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

#: An unsigned number, a text, bytes, or the fields of a message.
Value: TypeAlias = "int | str | bytes | Sequence[Field]"
Field: TypeAlias = "tuple[int, Value]"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def encode(fields: Iterable[Field]) -> bytes:
    """Return the message that ``fields`` make."""
    return b"".join(_field(number, value) for number, value in fields)


class Message:
    """A message that was received.

    :param data: the message.
    :raises ValueError: if it is none.
    """

    def __init__(self, data: bytes = b"") -> None:
        self._fields = list(_read(data))

    def has(self, number: int) -> bool:
        """Return whether the field is there."""
        return any(number == found for found, _ in self._fields)

    def number(self, number: int) -> int:
        """Return the value of a number's field; 0 where there is none."""
        return next((v for v in reversed(self._values(number)) if isinstance(v, int)), 0)

    def data(self, number: int) -> bytes:
        """Return the value of a field with a length; empty where there is none."""
        return next((v for v in reversed(self._values(number)) if isinstance(v, bytes)), b"")

    def text(self, number: int) -> str:
        """Return the value of a text's field; empty where there is none."""
        return self.data(number).decode(errors="replace")

    def all(self, number: int) -> list[Message]:
        """Return the messages of a repeated field."""
        return [Message(v) for v in self._values(number) if isinstance(v, bytes)]

    def at(self, *path: int) -> Message:
        """Return the message inside this one at ``path``; an empty one where there is none."""
        found = self
        for number in path:
            found = Message(found.data(number))
        return found

    def only(self) -> int:
        """Return the number of the first field: in a message that is a choice, what was chosen."""
        return self._fields[0][0] if self._fields else 0

    def _values(self, number: int) -> list[int | bytes]:
        return [value for found, value in self._fields if found == number]


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, bytes):
        value = encode(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    if number < 0:
        raise ValueError("only unsigned numbers are written")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _read_varint(data, place)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            length, place = _read_varint(data, place)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if place + length > len(data):
            raise ValueError("the message ends within a field")
        yield key >> 3, data[place : place + length]
        place += length


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place, number, shift = place + 1, number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, place
    raise ValueError("the message ends within a number")
