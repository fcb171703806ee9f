"""How Cursor's backend fails: as Connect tells it in a stream, by HTTP status, and in words."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_agent_provider.agents import failures as f
from airflow_agent_provider.hooks.cursor_backend import (
    RUN,
    AccessToken,
    StreamEnds,
    StreamFailure,
    failure_of,
    failure_of_status,
    failure_of_words,
    read_end,
)


def frame(content: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + len(content).to_bytes(4, "big") + content


def end(error: dict[str, Any] | None = None, **more: Any) -> bytes:
    return json.dumps({**({} if error is None else {"error": error}), **more}).encode()


def details(number: int) -> list[dict[str, str]]:
    # ErrorDetails: its field 1 is the number; others follow.
    varint = bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])
    value = base64.b64encode(b"\x08" + varint + b"\x12\x02\x0a\x00").decode().rstrip("=")
    return [{"type": "other", "value": "!"}, {"type": "aiserver.v1.ErrorDetails", "value": value}]


def heard(pieces: list[bytes], path: str = RUN) -> list[StreamFailure]:
    found: list[StreamFailure] = []
    assert list(StreamEnds(found.append).tap(path, iter(pieces))) == pieces
    return found


RATE = {"code": "resource_exhausted", "message": "slow"}


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 9), st.booleans())
def test_the_end_is_found_however_the_stream_is_cut(
    messages: list[bytes], size: int, compressed: bool
) -> None:
    last = end(RATE, metadata={"retry-after": ["7"]})
    stream = b"".join(frame(message) for message in messages)
    stream += frame(gzip.compress(last), 3) if compressed else frame(last, 2)
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert heard(pieces) == [StreamFailure("resource_exhausted", "slow", 0, 7.0)]


@pytest.mark.parametrize("cut", [0, 3, 5, 8])
def test_a_stream_without_an_end_broke_off(cut: int) -> None:
    (failure,) = heard([(frame(b"abc") + frame(b"{}", 2))[:cut]] if cut else [])
    assert failure.code == ""
    assert type(failure_of(failure)) is f.Unavailable


def test_a_good_end_and_other_answers_tell_nothing() -> None:
    assert heard([frame(b"abc") + frame(b"{}", 2)]) == []
    assert heard([b"anything"], path="/aiserver.v1.BidiService/BidiAppend") == []


def test_an_error_on_the_way_is_told_and_raised() -> None:
    def pieces() -> Iterator[bytes]:
        yield frame(b"abc")
        raise ConnectionResetError("reset")

    found: list[StreamFailure] = []
    with pytest.raises(ConnectionResetError):
        list(StreamEnds(found.append).tap(RUN, pieces()))
    assert [failure.code for failure in found] == [""]


def test_the_failure_is_told_before_the_program_hears_of_it() -> None:
    found: list[StreamFailure] = []
    stream = StreamEnds(found.append).tap(RUN, iter([frame(end(RATE), 2), b""]))
    next(stream)
    assert len(found) == 1


@pytest.mark.parametrize("content", [b"no json", b"[]", b'{"error": 1}', b"{}"])
def test_ends_that_are_none(content: bytes) -> None:
    failure = read_end(content)
    assert failure is None or failure.code == ""


@pytest.mark.parametrize("value", ["!", "", "CAA", "EgA", "CP////////"])
def test_details_that_say_nothing(value: str) -> None:
    error = {**RATE, "details": [{"type": "aiserver.v1.ErrorDetails", "value": value}, 7]}
    assert read_end(end(error)) == StreamFailure("resource_exhausted", "slow")


#: By Connect's code alone.
CODES = [
    ("unauthenticated", f.AuthenticationFailed),
    ("permission_denied", f.AuthenticationFailed),
    ("resource_exhausted", f.RateLimited),
    ("unavailable", f.Unavailable),
    ("internal", f.Unavailable),
    ("deadline_exceeded", f.Unavailable),
    ("aborted", f.Unavailable),
    ("invalid_argument", f.AgentFailed),
    ("failed_precondition", f.AgentFailed),
    ("unknown", f.AgentFailed),
]


@pytest.mark.parametrize(("code", "expected"), CODES)
def test_each_code(code: str, expected: type) -> None:
    stream = read_end(end({"code": code, "message": "words"}))
    assert stream is not None
    failure = failure_of(stream)
    assert type(failure) is expected
    assert failure.raw == f"[{code}] words"
    # The SDK words it so.
    assert type(failure_of_words(f"[{code}] words")) is expected


#: By the number in Cursor's own details, which outrank the code.
NUMBERS = [
    (1, f.AuthenticationFailed),
    (12, f.AuthenticationFailed),
    (42, f.AuthenticationFailed),
    (9, f.QuotaExhausted),
    (10, f.QuotaExhausted),
    (44, f.QuotaExhausted),
    (7, f.RateLimited),
    (50, f.RateLimited),
    (43, f.ContextExhausted),
    (54, f.PolicyViolation),
    (57, f.Unavailable),
    (5, f.AgentFailed),
    (58, f.AgentFailed),
    # Numbers that say no more than the code.
    (52, f.RateLimited),
    (300, f.RateLimited),
]


@pytest.mark.parametrize(("number", "expected"), NUMBERS)
def test_each_number(number: int, expected: type) -> None:
    stream = read_end(end({**RATE, "details": details(number)}, metadata={"retry-after": ["5"]}))
    assert stream is not None
    assert stream.error == number
    failure = failure_of(stream)
    assert type(failure) is expected
    if isinstance(failure, f.RateLimited):
        assert failure.retry_after == 5


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, f.AuthenticationFailed),
        (403, f.AuthenticationFailed),
        (402, f.QuotaExhausted),
        (429, f.RateLimited),
        (408, f.Unavailable),
        (500, f.Unavailable),
        (503, f.Unavailable),
        (None, f.Unavailable),
        (400, f.AgentFailed),
        (404, f.AgentFailed),
    ],
)
def test_each_status(status: int | None, expected: type) -> None:
    failure = failure_of_status(status, "words", 3.0)
    assert type(failure) is expected
    assert "words" in str(failure.raw)
    assert getattr(failure, "retry_after", 3.0) == 3.0


def test_words_without_a_code() -> None:
    failure = failure_of_words("Agent turn stopped")
    assert type(failure) is f.AgentFailed
    assert failure.raw == "Agent turn stopped"


def web_token(seconds: float) -> str:
    claims = json.dumps({"exp": time.time() + seconds}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.sign"


class Exchange:
    """A backend that answers the exchange as it is told."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.keys.append(str(self.headers["Authorization"]))
                status, value = outer.answers.pop(0)
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Retry-After", "9")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def token(self) -> AccessToken:
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return AccessToken(url, "key-4711", "cursor_default")


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    made = Exchange()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.mark.integration
def test_a_token_is_used_until_half_of_its_life(exchange: Exchange) -> None:
    long, short = web_token(3600), web_token(-5)
    exchange.answers = [(200, {"accessToken": t}) for t in (short, long)]
    token = exchange.token
    assert token.headers() == {"Authorization": f"Bearer {short}"}
    # That one is over: a second of its life is left at most.
    time.sleep(1.1)
    assert token.headers() == {"Authorization": f"Bearer {long}"}
    assert token.headers() == {"Authorization": f"Bearer {long}"}
    assert exchange.keys == ["Bearer key-4711"] * 2


@pytest.mark.integration
@pytest.mark.parametrize("token", ["opaque", "a.b", "a.e30.c", "a.!!!.c"])
def test_a_token_that_does_not_say_when_it_ends(exchange: Exchange, token: str) -> None:
    exchange.answers = [(200, {"accessToken": token})]
    made = exchange.token
    assert made.headers() == made.headers() == {"Authorization": f"Bearer {token}"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (401, {"message": "no: key-4711"}, f.AuthenticationFailed),
        (403, {"message": "no"}, f.AuthenticationFailed),
        (429, {"message": "slow"}, f.RateLimited),
        (500, b"oops", f.Unavailable),
        (404, b"<html>", f.AgentFailed),
        (200, b"<html>", f.AgentFailed),
        (200, {"accessToken": ""}, f.AgentFailed),
        (200, [], f.AgentFailed),
    ],
)
def test_exchanges_that_fail(exchange: Exchange, status: int, answer: Any, expected: type) -> None:
    exchange.answers = [(status, answer)]
    with pytest.raises(f.AgentFailure) as caught:
        exchange.token.headers()
    assert type(caught.value) is expected
    assert "key-4711" not in f"{caught.value}"
    if isinstance(caught.value, f.RateLimited):
        assert caught.value.retry_after == 9
