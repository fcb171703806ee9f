"""The scripted model on its wire, without an agent; the agents' tests play it for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from airflow_agent_provider.rehearsal.model_server import ModelServer
from airflow_agent_provider.rehearsal.script import Script

pytestmark = pytest.mark.integration

KEY = {"Authorization": "Bearer sk-any"}
PROMPT = "Do it.\n\nStep: s of workflow w, run 1\n"


@contextmanager
def serving(*actions: Any, step: str = "s") -> Iterator[ModelServer]:
    with ModelServer(Script.model_validate({"steps": {step: list(actions)}})) as server:
        yield server


def body(prompt: str = PROMPT, *history: dict[str, Any]) -> dict[str, Any]:
    first = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": prompt}]}
    return {"model": "m", "stream": True, "input": [first, *history], "tools": []}


def ask(server: ModelServer, request: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/responses", json=request, headers={**KEY, **headers}, timeout=10
    )


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = response.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_an_answer_is_streamed_with_its_usage() -> None:
    with serving({"say": "x" * 100}) as server:
        answer = ask(server, body())
        assert answer.headers["content-type"] == "text/event-stream"
        stream = events(answer)
        names = [event["type"] for event in stream]
        assert names[:2] == ["response.created", "response.output_item.added"]
        assert names[-2:] == ["response.output_item.done", "response.completed"]
        deltas = [e["delta"] for e in stream if e["type"] == "response.output_text.delta"]
        assert len(deltas) > 1
        assert "".join(deltas) == "x" * 100
        usage = stream[-1]["response"]["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
        assert usage["input_tokens_details"]["cached_tokens"] < usage["input_tokens"]
        # The same request costs the same.
        assert events(ask(server, body()))[-1]["response"]["usage"] == usage


@pytest.mark.parametrize(
    ("say", "text"),
    [("plain", "plain"), ({"ok": True}, '{"ok": true}'), ([1], "[1]"), (3, "3"), (False, "false")],
)
def test_say_is_text_or_json(say: Any, text: str) -> None:
    with serving({"say": say}) as server:
        (item,) = events(ask(server, body()))[-1]["response"]["output"]
        assert item["content"][0]["text"] == text


def test_the_keys() -> None:
    with serving({"say": "hello"}) as server:
        url = f"{server.url}/v1/models"
        assert httpx.get(url, headers=KEY).json()["data"]
        for headers in ({}, {"Authorization": "Basic c2s="}, {"Authorization": "Bearer invalid-1"}):
            assert httpx.get(url, headers=headers).status_code == 401
        refused = ask(server, body(), Authorization="Bearer invalid-2")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"


def test_failures_count_by_step_position_and_workspace() -> None:
    def at(folder: str) -> dict[str, Any]:
        context = f"<environment_context><cwd>{folder}</cwd></environment_context>"
        place = {"type": "message", "role": "user", "content": context}
        request = body()
        request["input"].insert(0, place)
        return request

    with serving({"fail": {"status": 503, "times": 2}}, {"fail": 429}, {"say": "ok"}) as server:
        for folder in ("/one", "/two"):
            answers = [ask(server, at(folder)) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [503, 503, 429, 200, 200]


def test_a_failure_without_end() -> None:
    with serving({"fail": {"status": 500, "times": None}}) as server:
        assert {ask(server, body()).status_code for _ in range(5)} == {500}


def test_a_refused_request_says_what_the_script_says() -> None:
    fail = {"status": 429, "code": "insufficient_quota", "message": "All used.", "retry_after": 7}
    with serving({"fail": fail}) as server:
        answer = ask(server, body())
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert answer.json()["error"]["message"] == "All used."


def test_a_dropped_stream_a_reset_and_silence() -> None:
    with serving(
        {"fail": {"how": "drop"}}, {"fail": {"how": "refuse"}}, {"fail": {"how": "hang"}}
    ) as server:
        assert [event["type"] for event in events(ask(server, body()))] == ["response.created"]
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            ask(server, body())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/responses", json=body(), headers=KEY, timeout=0.5)
        # The script goes on, although one client hangs or is gone.
        assert ask(server, body()).status_code == 200


def test_a_failed_response() -> None:
    fail = {"how": "error", "code": "context_length_exceeded", "message": "Too long."}
    with serving({"fail": fail}) as server:
        last = events(ask(server, body()))[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"] == {"code": fail["code"], "message": "Too long."}


def test_a_request_that_belongs_to_no_step() -> None:
    with serving({"say": "x"}) as server:
        answer = ask(server, body("no contract"))
        assert answer.status_code == 400
        assert "step '*'" in answer.json()["error"]["message"]
    with serving({"say": "x"}, step="*") as server:
        assert ask(server, body("no contract")).status_code == 200


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]"])
def test_a_request_that_is_no_request(content: bytes) -> None:
    with serving({"say": "x"}) as server:
        url = f"{server.url}/v1/responses"
        assert httpx.post(url, content=content, headers=KEY).status_code == 400
        assert httpx.get(f"{server.url}/elsewhere", headers=KEY).status_code == 404
        assert httpx.post(f"{server.url}/v1/chat", json={}, headers=KEY).status_code == 404


def test_the_journal() -> None:
    with serving({"fail": 503}, {"say": "x"}) as server:
        ask(server, body())
        ask(server, body())
        entries = httpx.get(f"{server.url}/_rehearsal/requests").json()
        assert [(e["status"], e["step"], e["position"], e["action"]) for e in entries] == [
            (503, "s", 0, "fail"),
            (200, "s", 1, "say"),
        ]
        assert entries[0]["body"]["model"] == "m"
        assert "sk-any" not in json.dumps(entries)
        assert len(server.requests) == 2


def test_it_listens_on_loopback_only_and_stops_twice() -> None:
    with pytest.raises(ValueError, match="loopback"):
        ModelServer(Script(), host="0.0.0.0")
    server = ModelServer(Script()).start()
    url = server.url
    server.stop()
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/models", headers=KEY)
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages?beta=true"
ANTHROPIC = {"x-api-key": "sk-any", "anthropic-version": "2023-06-01"}
TOOLS = {CHAT: [{"type": "function", "function": {"name": "bash"}}], MESSAGES: [{"name": "Bash"}]}
BOTH = pytest.mark.parametrize("path", [CHAT, MESSAGES])


def post(server: ModelServer, path: str, **values: Any) -> httpx.Response:
    request = {"messages": [{"role": "user", "content": PROMPT}], "tools": TOOLS[path], **values}
    headers = ANTHROPIC if path == MESSAGES else KEY
    return httpx.post(f"{server.url}{path}", json=request, headers=headers, timeout=10)


@BOTH
def test_one_server_plays_the_script_on_every_wire(path: str) -> None:
    with serving({"run": "make"}, {"say": "Done."}) as server:
        assert "make" in post(server, path).text
        stream = post(server, path, stream=True)
        assert stream.headers["content-type"] == "text/event-stream"
        assert "make" in "".join(stream.text.split())
        assert events(ask(server, body()))[-1]["type"] == "response.completed"
        assert [(e.path, e.status, e.position, e.action) for e in server.requests] == [
            (path, 200, 0, "run"),
            (path, 200, 0, "run"),
            ("/v1/responses", 200, 0, "run"),
        ]


@BOTH
def test_failures_on_every_wire(path: str) -> None:
    with serving(
        {"fail": {"status": 429, "retry_after": 3}},
        {"fail": {"how": "drop"}},
        {"fail": {"how": "drop"}},
        {"fail": {"how": "error"}},
        {"fail": {"how": "refuse"}},
        {"fail": {"how": "hang"}},
        {"say": "Done."},
    ) as server:
        busy = post(server, path)
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "3")
        assert busy.json()["error"]["message"]
        dropped = post(server, path, stream=True).text
        assert dropped
        assert "[DONE]" not in dropped
        assert "message_stop" not in dropped
        with pytest.raises(httpx.RemoteProtocolError):
            post(server, path)
        assert "fails here" in post(server, path, stream=True).text
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            post(server, path)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}{path}",
                json={"messages": [{"role": "user", "content": PROMPT}], "tools": TOOLS[path]},
                headers={**KEY, **ANTHROPIC},
                timeout=0.5,
            )
        assert "Done." in post(server, path).text
        assert [entry.status for entry in server.requests] == [429, 200, 200, 200, 0, 0, 200]


@BOTH
def test_what_is_asked_beside_the_conversation_plays_nothing(path: str) -> None:
    with serving({"fail": 503}, {"say": "Done."}) as server:
        assert post(server, path, tools=[]).status_code == 200
        assert post(server, path, max_tokens=1).status_code == 200
        assert post(server, path).status_code == 503
        assert [(e.action, e.position) for e in server.requests] == [
            ("aside", None),
            ("aside", None),
            ("fail", 0),
        ]


def test_tokens_are_counted_beside_the_conversation() -> None:
    with serving({"say": "x"}) as server:
        url = f"{server.url}/v1/messages/count_tokens"
        request = {"messages": [{"role": "user", "content": PROMPT}]}
        answer = httpx.post(url, json=request, headers=ANTHROPIC).json()
        assert answer["input_tokens"] > 0
        assert httpx.post(url, json=request).status_code == 401
        assert [entry.action for entry in server.requests] == ["aside", ""]


def test_the_models_and_errors_of_each_vendor() -> None:
    with serving({"say": "x"}) as server:
        url = f"{server.url}/v1/models"
        (model,) = httpx.get(url, headers=ANTHROPIC).json()["data"]
        assert (model["type"], model["id"]) == ("model", "rehearsal")
        bearer = {**KEY, "anthropic-version": "2023-06-01"}
        assert httpx.get(url, headers=bearer).json()["has_more"] is False
        for headers in ({**ANTHROPIC, "x-api-key": "invalid-1"}, {"x-api-key": ""}):
            refused = httpx.get(url, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
        lost = httpx.post(f"{server.url}/v1/complete", json={}, headers=ANTHROPIC)
        assert (lost.status_code, lost.json()["error"]["type"]) == (404, "not_found_error")
        for path, kind in ((CHAT, "invalid_api_key"), (MESSAGES, "authentication_error")):
            refused = httpx.post(f"{server.url}{path}", json={}, headers={"x-api-key": "invalid"})
            assert refused.json()["error"]["type"] == kind


def test_the_journal_keeps_what_was_refused() -> None:
    with serving({"say": "x"}) as server:
        ask(server, body("no contract"))
        httpx.post(f"{server.url}/v1/responses", content=b"[1]", headers=KEY)
        httpx.get(f"{server.url}/elsewhere", headers=KEY)
        assert [(e.method, e.path, e.status) for e in server.requests] == [
            ("POST", "/v1/responses", 400),
            ("POST", "/v1/responses", 400),
            ("GET", "/elsewhere", 404),
        ]
