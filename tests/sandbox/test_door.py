"""The door to the model: what it lets through, what it adds, what it remembers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_agent_provider.agents.failures import Unavailable
from airflow_agent_provider.sandbox import door as door_module
from airflow_agent_provider.sandbox.door import Door, Upstream
from tests.sandbox.upstream import (
    REAL_KEY,
    FakeUpstream,
    break_off,
    endless,
    hang_up,
    ok,
    silent,
    status,
    stream,
)

pytestmark = pytest.mark.integration

PATHS = ("/responses", "/models")


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as made:
        yield made


@pytest.fixture
def door(fake: FakeUpstream, tmp_path: Path) -> Iterator[Door]:
    with Door(upstream_of(fake), tmp_path / "door.sock") as made:
        yield made


def upstream_of(fake: FakeUpstream) -> Upstream:
    return Upstream(fake.url, {"Authorization": f"Bearer {REAL_KEY}"}, PATHS)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._place))


def ask(door: Door, method: str, target: str, **more: object) -> tuple[int, bytes]:
    if door.place is not None:
        connection: http.client.HTTPConnection = UnixConnection(door.place)
    else:
        assert door.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    try:
        connection.request(method, target, **more)  # type: ignore[arg-type]
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(door: Door, request: bytes) -> bytes:
    """Send bytes as they are, and return all that comes until the door closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(door.place))
        client.sendall(request)
        answer = b""
        try:
            while piece := client.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def code_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    assert found, answer
    return int(found[1])


def test_the_real_key_takes_the_place_of_whatever_the_agent_shows(
    door: Door, fake: FakeUpstream
) -> None:
    headers = {
        "authorization": "Bearer of-the-box",
        "X-Api-Key": "mine",
        "api-key": "mine",
        "x-goog-api-key": "mine",
        "Proxy-Authorization": "Basic bWluZQ==",
        "X-Custom": "kept",
        "Content-Type": "application/json",
    }
    code, content = ask(door, "POST", "/v1/responses?x=1", body=b'{"a": 1}', headers=headers)
    assert (code, json.loads(content)) == (200, {"ok": True})
    (seen,) = fake.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/v1/responses?x=1", b'{"a": 1}')
    assert seen.headers["authorization"] == f"Bearer {REAL_KEY}"
    assert seen.headers["x-custom"] == "kept"
    assert seen.headers["host"] == fake.url.split("/")[2]
    assert "mine" not in str(seen.headers)
    assert "bWluZQ" not in str(seen.headers)
    assert door.last_failure is None


@pytest.mark.parametrize(
    "target",
    [
        "/v1/files",
        "/v1",
        "/",
        "/v1/responsesx",
        "/v2/responses",
        "/v1/responses/../files",
        "/v1/responses/..",
        "/v1/responses/%2e%2e/files",
        "/v1/responses/..%2ffiles",
        "/v1/responses/..;x/files",
        "/v1/responses/%2e%2e;x=1/files",
        "/v1/./responses",
        "/v1/responses\\..\\files",
        "/v1/responses%00",
        "//127.0.0.1/v1/responses",
        "http://127.0.0.1:1/v1/responses",
        "https://example.org/v1/responses",
        "v1/responses",
        "*",
    ],
)
def test_other_targets_do_not_pass(door: Door, fake: FakeUpstream, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert code_of(raw(door, request.encode())) == 403
    assert fake.seen == []


@pytest.mark.parametrize("target", ["/v1/responses", "/v1/models/gpt-5", "/v1/models?a=%2e%2e"])
def test_these_do(door: Door, fake: FakeUpstream, target: str) -> None:
    assert ask(door, "GET", target)[0] == 200
    assert fake.seen[0].target == target


@pytest.mark.parametrize("method", ["CONNECT", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "get"])
def test_other_methods_do_not_pass(door: Door, fake: FakeUpstream, method: str) -> None:
    target = "example.org:443" if method == "CONNECT" else "/v1/responses"
    answer = raw(door, f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert code_of(answer) == 501
    assert fake.seen == []


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (b"Upgrade: websocket\r\nConnection: upgrade", 426),
        (b"X-A: b\r\n c", 403),
        (b"X-A: b\x01c", 403),
        (b"Content-Length: -1", 400),
        (b"Content-Length: 1_0", 400),
        (b"Content-Length: +1", 400),
        (b"Content-Length: many", 400),
        (b"Content-Length: 99999999999", 413),
        (b"Transfer-Encoding: gzip, chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(
    door: Door, fake: FakeUpstream, headers: bytes, code: int
) -> None:
    request = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n"
    assert code_of(raw(door, request)) == code
    assert fake.seen == []


@pytest.mark.parametrize("size", [b"-1", b"+1", b"0x1", b"", b"zz", b"1" * 60])
def test_a_chunk_of_no_size_is_refused(door: Door, fake: FakeUpstream, size: bytes) -> None:
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert code_of(raw(door, head + size + b"\r\nx\r\n0\r\n\r\n")) == 400
    assert fake.seen == []


def test_a_second_request_hidden_in_the_first_ones_body_is_a_body(
    door: Door, fake: FakeUpstream
) -> None:
    hidden = b"GET /v1/files HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(hidden)
    answer = raw(door, head + b"Connection: close\r\n\r\n" + hidden)
    assert code_of(answer) == 200
    assert [(seen.target, seen.body) for seen in fake.seen] == [("/v1/responses", hidden)]


def test_a_chunked_body_arrives_whole(door: Door, fake: FakeUpstream) -> None:
    pieces = [b"a" * 70_000, b"b", b"c" * 1000]
    code, _ = ask(door, "POST", "/v1/responses", body=iter(pieces), encode_chunked=True,
                  headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert code == 200
    assert fake.seen[0].body == b"".join(pieces)
    assert "transfer-encoding" not in fake.seen[0].headers


def test_chunk_extensions_and_trailers_are_dropped(door: Door, fake: FakeUpstream) -> None:
    answer = raw(
        door,
        b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n3;name=x\r\nabc\r\n0\r\nX-Trailer: y\r\n\r\n",
    )
    assert code_of(answer) == 200
    assert fake.seen[0].body == b"abc"
    assert "x-trailer" not in fake.seen[0].headers


def test_an_expected_hundred_comes_once_and_only_where_the_body_may_come(
    door: Door, fake: FakeUpstream
) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
    answer = raw(door, head % b"/v1/responses" + b"Content-Length: 3\r\n\r\nabc")
    assert answer.count(b" 100 Continue") == 1
    assert b"HTTP/1.1 200" in answer
    assert fake.seen[0].body == b"abc"
    assert code_of(raw(door, head % b"/v1/files" + b"Content-Length: 3\r\n\r\n")) == 403


def test_a_body_has_a_bound_chunked_or_not(
    door: Door, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_MOST_BODY", 1000)
    assert ask(door, "POST", "/v1/responses", body=b"x" * 1000)[0] == 200
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\n"
    assert code_of(raw(door, head + b"Content-Length: 1001\r\n\r\n")) == 413
    chunks = b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n"
    assert code_of(raw(door, head + chunks)) == 413
    assert len(fake.seen) == 1


def test_all_bodies_together_have_a_bound_and_what_has_ended_counts_no_more(
    fake: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_MOST_BODIES", 1500)
    with Door(upstream_of(fake), tmp_path / "s") as door:
        for _ in range(5):
            assert ask(door, "POST", "/v1/responses", body=b"x" * 1000)[0] == 200
        release = threading.Event()
        fake.answer = stream([b"a", b"b"], release)
        first = threading.Thread(
            target=ask, args=(door, "POST", "/v1/responses"), kwargs={"body": b"x" * 1000}
        )
        first.start()
        eventually(lambda: len(fake.seen) == 6)
        assert ask(door, "POST", "/v1/responses", body=b"x" * 501)[0] == 429
        release.set()
        first.join(30)


def test_half_a_request_goes_nowhere(door: Door, fake: FakeUpstream) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.place))
        client.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        client.shutdown(socket.SHUT_WR)
        client.settimeout(30)
        assert client.recv(100) == b""
    assert fake.seen == []


def test_an_answer_streams(door: Door, fake: FakeUpstream) -> None:
    more = threading.Event()
    fake.answer = stream([b"data: one\n\n", b"data: two\n\n"], more)
    assert door.place is not None
    connection = UnixConnection(door.place)
    connection.request("POST", "/v1/responses", body=b"{}")
    answer = connection.getresponse()
    # The first piece is here before the upstream has sent the second.
    assert answer.read1(1000) == b"data: one\n\n"
    more.set()
    assert answer.read() == b"data: two\n\n"
    assert answer.headers["content-type"] == "text/event-stream"
    # The connection can be used again.
    fake.answer = ok
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("code", [301, 400, 401, 404, 429, 500, 503])
def test_what_the_upstream_refuses_is_passed_on_and_remembered(
    door: Door, fake: FakeUpstream, code: int
) -> None:
    fake.answer = status(code, "its own words", retry_after="7")
    assert ask(door, "POST", "/v1/responses", body=b"{}") == (code, b"its own words")
    failure = door.last_failure
    assert failure is not None
    assert (failure.status, failure.words, failure.retry_after) == (code, "its own words", 7.0)
    fake.answer = stream([b"data: [DONE]\n\n"])
    ask(door, "POST", "/v1/responses", body=b"{}")
    assert door.last_failure is None


def test_a_date_to_retry_after_is_no_number(door: Door, fake: FakeUpstream) -> None:
    fake.answer = status(429, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    ask(door, "POST", "/v1/responses", body=b"{}")
    assert door.last_failure is not None
    assert door.last_failure.retry_after is None


def test_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with Door(Upstream(url, {}, PATHS), tmp_path / "s") as door:
            code, content = ask(door, "POST", "/v1/responses", body=b"{}")
            assert code == 502
            assert "gives no answer" in json.loads(content)["error"]["message"]
            assert door.last_failure is not None
            assert door.last_failure.status is None
            assert "ConnectError" in door.last_failure.words


def test_an_upstream_that_hangs_up(door: Door, fake: FakeUpstream) -> None:
    fake.answer = hang_up
    assert ask(door, "POST", "/v1/responses", body=b"{}")[0] == 502
    assert door.last_failure is not None
    assert door.last_failure.status is None


def test_an_answer_that_breaks_off_breaks_off(door: Door, fake: FakeUpstream) -> None:
    fake.answer = break_off
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(door, "POST", "/v1/responses", body=b"{}")
    assert door.last_failure is not None
    assert "broke off" in door.last_failure.words


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: {}\n\n", b"data: [DO", b"NE]\n\n"],
        [b'data: {"choices": [{"finish_reason": "stop"}]}\n\n'],
        [b'data: {"choices": [{"finish_reason":"tool_calls"}]}\n\n', b"data: {}\n\n"],
        [b"event: response.completed\ndata: {", b"x" * 100_000, b"}\n\n"],
        [b'event: message_stop\ndata: {"type": "message_stop"}\n\n'],
        [b'data: {"candidates": [{"finishReason": "STOP"}]}\n\n'],
    ],
)
def test_a_stream_with_its_end_is_a_success(
    door: Door, fake: FakeUpstream, pieces: list[bytes]
) -> None:
    fake.answer = stream(pieces)
    assert ask(door, "POST", "/v1/responses", body=b"{}") == (200, b"".join(pieces))
    assert door.last_failure is None


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b'data: {"choices": [{"finish_reason": null}]}\n\n'], "broke off"),
        ([], "broke off"),
        ([b"data: {}\n\nda", b'ta: {"error": {"code": "context_length_exceeded"}}\n\n'], "context"),
        ([b'event: error\ndata: {"type": "error", "error": "over', b'loaded"}\n\n'], "overloaded"),
        ([b'event: response.failed\ndata: {"code": "quota"}\n\n', b"data: [DONE]\n\n"], "quota"),
    ],
)
def test_a_stream_without_its_end_or_with_an_error_in_it_is_a_failure(
    door: Door, fake: FakeUpstream, pieces: list[bytes], words: str
) -> None:
    fake.answer = stream(pieces)
    assert ask(door, "POST", "/v1/responses", body=b"{}") == (200, b"".join(pieces))
    assert door.last_failure is not None
    assert door.last_failure.status is None
    assert words in door.last_failure.words


def test_failures_in_a_row_are_known_by_the_first(door: Door, fake: FakeUpstream) -> None:
    fake.answer = status(503)
    ask(door, "POST", "/v1/responses", body=b"{}")
    first = door.last_failure
    assert first is not None
    assert first.since <= first.at <= time.monotonic()
    # What is only looked up says nothing of the work, well or not.
    fake.answer = ok
    ask(door, "GET", "/v1/models")
    assert door.last_failure is first
    fake.answer = status(429)
    ask(door, "POST", "/v1/responses", body=b"{}")
    second = door.last_failure
    assert second is not None
    assert (second.status, second.since) == (429, first.since)
    assert second.at > first.at
    fake.answer = ok
    ask(door, "POST", "/v1/responses", body=b"{}")
    fake.answer = status(500)
    ask(door, "POST", "/v1/responses", body=b"{}")
    third = door.last_failure
    assert third is not None
    assert third.since > second.at


def test_a_request_of_the_agents_making_is_no_failure_of_the_upstream(
    door: Door, fake: FakeUpstream
) -> None:
    raw(door, b"GET /v1/responses HTTP/1.1\r\nX-A: b\x01c\r\nConnection: close\r\n\r\n")
    raw(door, b"nonsense\r\n\r\n")
    assert door.last_failure is None


def test_requests_at_a_time_have_a_bound(
    fake: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_MOST_REQUESTS", 3)
    release = threading.Event()
    fake.answer = stream([b"a", b"b"], release)
    with Door(upstream_of(fake), tmp_path / "s") as door:
        threads = [
            threading.Thread(target=ask, args=(door, "POST", "/v1/responses")) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(fake.seen) == 3)
        code, content = ask(door, "POST", "/v1/responses")
        assert (code, b"more than 3 requests" in content) == (429, True)
        release.set()
        for thread in threads:
            thread.join(30)
        assert ask(door, "GET", "/v1/models")[0] == 200


def test_connections_have_a_bound_and_slow_ones_keep_nobody_else_out(
    fake: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_MOST_CONNECTIONS", 20)
    before = threading.active_count()
    with Door(upstream_of(fake), tmp_path / "s") as door:
        slow = []
        for _ in range(15):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(door.place))
            client.sendall(b"POST /v1/resp")
            slow.append(client)
        assert ask(door, "GET", "/v1/models")[0] == 200
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(door.place))
            slow.append(client)
        client.settimeout(30)
        assert client.recv(1) == b""
        assert threading.active_count() - before < 30
        for client in slow:
            client.close()
        eventually(lambda: not door.connections.open)
        assert ask(door, "GET", "/v1/models")[0] == 200


def test_a_client_that_takes_too_long_is_left(
    door: Door, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module._Handler, "timeout", 0.2)
    assert raw(door, b"POST /v1/responses HTTP/1.1\r\n") == b""
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
    assert raw(door, head + b"12345") == b""
    assert fake.seen == []


def test_on_loopback_each_request_shows_this_doors_key(fake: FakeUpstream) -> None:
    with Door(upstream_of(fake)) as door, Door(upstream_of(fake)) as other:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {other.key}"},
            {"Cookie": door.key},
        ):
            assert ask(door, "GET", "/v1/models", headers=headers)[0] == 403
        assert fake.seen == []
        for headers in (
            {"Authorization": f"Bearer {door.key}"},
            {"x-api-key": door.key},
            {"x-goog-api-key": door.key},
        ):
            assert ask(door, "GET", "/v1/models", headers=headers)[0] == 200
        assert [seen.headers["authorization"] for seen in fake.seen] == [f"Bearer {REAL_KEY}"] * 3
        assert not any(door.key in str(seen.headers) for seen in fake.seen)


@pytest.mark.parametrize("answer", [endless, silent])
def test_closing_cuts_what_is_under_way_at_both_ends(
    fake: FakeUpstream, tmp_path: Path, answer: object
) -> None:
    fake.answer = answer(fake)  # type: ignore[operator]
    door = Door(upstream_of(fake), tmp_path / "s")
    ended = threading.Event()

    def work() -> None:
        try:
            ask(door, "POST", "/v1/responses", body=b"{}")
        except (OSError, http.client.HTTPException):
            ended.set()

    agent = threading.Thread(target=work)
    agent.start()
    eventually(lambda: fake.seen)
    started = time.monotonic()
    door.close()
    door.close()
    agent.join(30)
    assert ended.is_set()
    # The model goes on with nothing that nobody reads.
    assert fake.cut.wait(30)
    assert time.monotonic() - started < 30
    assert not (tmp_path / "s").exists()


def test_the_key_is_shown_nowhere(fake: FakeUpstream) -> None:
    assert REAL_KEY not in repr(upstream_of(fake))


def eventually(look: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not look():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)


def test_keys_that_end_are_asked_for_with_each_request(fake: FakeUpstream, tmp_path: Path) -> None:
    keys = iter(["first", "second"])
    upstream = Upstream(fake.url, lambda: {"Authorization": f"Bearer {next(keys)}"}, PATHS)
    with Door(upstream, tmp_path / "door.sock") as door:
        for _ in range(2):
            assert ask(door, "POST", "/v1/responses")[0] == 200
    assert [seen.headers["authorization"] for seen in fake.seen] == [
        "Bearer first",
        "Bearer second",
    ]


def test_a_key_that_cannot_be_had_is_an_error_to_the_agent(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    def no_key() -> dict[str, str]:
        raise Unavailable("the vendor gives no token", raw="HTTP 503")

    with Door(Upstream(fake.url, no_key, PATHS), tmp_path / "door.sock") as door:
        code, content = ask(door, "POST", "/v1/responses")
        assert (code, b"gives no token" in content) == (502, True)
        assert door.last_failure is not None
        assert "HTTP 503" in door.last_failure.words
    assert fake.seen == []


def test_what_must_not_be_inside_is_answered_by_the_door(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    answers = {"/v1/models": {"token": "worth nothing"}}
    upstream = Upstream(fake.url, {}, PATHS, answers=answers, key="sk-chosen")
    with Door(upstream, tmp_path / "door.sock") as door:
        assert door.key == "sk-chosen"
        for method in ("POST", "GET"):
            code, content = ask(door, method, "/v1/models?x=1")
            assert (code, json.loads(content)) == (200, {"token": "worth nothing"})
        # Only the path itself, and only where it is let through at all.
        assert ask(door, "GET", "/v1/models/one")[0] == 200
        assert ask(door, "GET", "/v1/other")[0] == 403
    assert [seen.target for seen in fake.seen] == ["/v1/models/one"]


def test_a_tap_reads_along_and_changes_nothing(fake: FakeUpstream, tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []

    def tap(path: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            heard.append((path, piece))
            yield piece

    with Door(Upstream(fake.url, {}, PATHS, tap=tap), tmp_path / "door.sock") as door:
        code, content = ask(door, "POST", "/v1/responses?x=1")
        assert (code, json.loads(content)) == (200, {"ok": True})
        assert {path for path, _ in heard} == {"/v1/responses"}
        assert b"".join(piece for _, piece in heard) == content
        heard.clear()
        # A bad answer tells by its status.
        fake.answer = status(429, "slow")
        assert ask(door, "POST", "/v1/responses")[0] == 429
        assert heard == []
