"""The wire format: what is written is read again, and what is no message is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.rehearsal.protobuf import Message, encode

NUMBERS = st.integers(1, 2**29 - 1)


def test_the_documentations_own_examples() -> None:
    assert encode([(1, 150)]) == bytes.fromhex("089601")
    assert encode([(2, "testing")]) == bytes.fromhex("120774657374696e67")
    assert encode([(3, [(1, 150)])]) == bytes.fromhex("1a03089601")
    message = Message(bytes.fromhex("1a03089601"))
    assert message.at(3).number(1) == 150


@given(NUMBERS, st.integers(0, 2**64 - 1), st.text(), st.binary())
def test_what_is_written_is_read(number: int, value: int, text: str, data: bytes) -> None:
    assert Message(encode([(number, value)])).number(number) == value
    assert Message(encode([(number, text)])).text(number) == text
    assert Message(encode([(number, data)])).data(number) == data
    inner = [(number, value), (number, text)]
    assert Message(encode([(number, [(number, inner)])])).at(number, number).text(number) == text


def test_repeated_fields_and_those_that_are_not_there() -> None:
    message = Message(encode([(1, 1), (1, 2), (2, "a"), (2, "b"), (3, [(1, 7)]), (3, [(1, 8)])]))
    assert (message.number(1), message.text(2)) == (2, "b")
    assert [part.number(1) for part in message.all(3)] == [7, 8]
    assert message.has(3)
    assert message.only() == 1
    assert not message.has(9)
    assert (message.number(9), message.text(9), message.data(9), message.at(9, 9).only()) == (
        0, "", b"", 0,
    )  # fmt: skip


def test_fields_of_a_fixed_length_are_skipped() -> None:
    message = Message(b"\x09" + bytes(8) + b"\x15" + bytes(4) + encode([(3, 5)]))
    assert message.number(3) == 5


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\x08" + b"\xff" * 11, b"\x09\0"]
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|wire type"):
        Message(data)


@given(st.binary(max_size=60))
def test_anything_is_either_a_message_or_refused(data: bytes) -> None:
    try:
        message: Any = Message(data)
    except ValueError:
        return
    assert message.only() >= 0


def test_there_are_no_negative_numbers() -> None:
    with pytest.raises(ValueError, match="unsigned"):
        encode([(1, -1)])
